"""flask migrate"""

from __future__ import annotations

import click

from app.commands.shell import as_json, command, settings, show_values, with_new_database


@command()
@as_json
@with_new_database
def migrate(as_json: bool) -> None:
    """Apply pending migrations and print their names. `make run` does the same."""
    from app.db import migrations
    from app.db.errors import DriverError
    from app.db.startup import explain
    from app.db.urls import migration_url

    try:
        applied = migrations.apply(migration_url(settings()))
    except migrations.MigrationError as error:
        raise click.ClickException(str(error)) from None
    except DriverError as error:
        raise click.ClickException("the migration failed: " + explain(error)) from None
    show_values("name", applied, as_json)
