"""flask migrate"""

from __future__ import annotations

import click
import psycopg
from flask import current_app

from app.commands.shell import with_database
from app.db import embedded, migrations
from app.db.database import database_url


@click.command()
@with_database
def migrate() -> None:
    """Apply pending migrations and print their names. `make run` does the same."""
    try:
        for name in migrations.apply(database_url(current_app.config["SETTINGS"])):
            click.echo(name)
    except psycopg.Error as error:
        raise click.ClickException("the migration failed: " + embedded.explain(error)) from None
