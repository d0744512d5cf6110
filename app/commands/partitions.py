"""flask partitions ensure | list"""

from __future__ import annotations

import click
from flask import current_app

from app.commands.shell import as_json, group, show, show_values, with_database
from app.db import owner, statement
from app.db import partitions as monthly
from app.db.errors import DriverError
from app.db.startup import explain
from app.db.urls import owner_url

SELECT_PARTITIONS = statement("partitions/select_partitions")

LEFT = {
    "name_taken": "another table is called so",
    "superseded": "another process makes it at the moment; run this again",
}


@group()
def partitions() -> None:
    """Partitions: the months that prompts, extension status and compliance events are kept in."""


@partitions.command()
@click.option(
    "--months-ahead",
    default=monthly.MONTHS_AHEAD,
    show_default=True,
    type=click.IntRange(1, 120),
    help="Coming months.",
)
@click.option(
    "--months-back",
    default=monthly.MONTHS_BACK,
    show_default=True,
    type=click.IntRange(1, 143),
    help="Past months. Their rows move there from the default partition.",
)
@as_json
@with_database
def ensure(months_ahead: int, months_back: int, as_json: bool) -> None:
    """Make the partitions that are missing and print their names. The running service does so once a day.

    Nobody who writes waits for more than 0.2 s, however many rows move. Each partition costs every read that bounds no
    time a little: make past months only where the default partition holds many of their rows.
    """
    try:
        found = monthly.ensure(owner_url(current_app.config["SETTINGS"]), months_ahead, months_back)
    except DriverError as error:
        raise click.ClickException("can't make partitions: " + explain(error)) from None
    show_values("name", [month["name"] for month in found if month["outcome"] == "created"], as_json)
    left = [f"{month['name']}: {LEFT[month['outcome']]}" for month in found if month["outcome"] != "created"]
    if left:
        raise click.ClickException("\n".join(left))


@partitions.command("list")
@as_json
@with_database
def list_(as_json: bool) -> None:
    """List the partitions, the oldest of each table first. Rows are an estimate."""
    columns = ("table_name", "name", "starts_at", "ends_at", "row_estimate", "bytes")
    show(owner.run(SELECT_PARTITIONS), columns, as_json)
