"""flask migrate"""

from __future__ import annotations

import click
import psycopg
from flask import current_app

from app.commands.shell import with_database
from app.db import migrations
from app.db.startup import explain
from app.db.urls import migration_url


@click.command()
@with_database
def migrate() -> None:
    """Apply pending migrations and print their names. `make run` does the same."""
    try:
        for name in migrations.apply(migration_url(current_app.config["SETTINGS"])):
            click.echo(name)
    except migrations.MigrationError as error:
        raise click.ClickException(str(error)) from None
    except psycopg.Error as error:
        raise click.ClickException("the migration failed: " + explain(error)) from None
