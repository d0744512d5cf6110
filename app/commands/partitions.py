"""flask partitions ensure | list"""

from __future__ import annotations

import click
import psycopg
from flask import current_app

from app.commands.shell import as_json, group, show, show_values, with_database
from app.db import owner, statement
from app.db import partitions as monthly
from app.db.startup import explain
from app.db.urls import owner_url

SELECT_PARTITIONS = statement("partitions/select_partitions")

LEFT = {
    "too_many_strays": "too many of its rows are in the default partition; at a quiet time, say --most-moved",
    "name_taken": "another table is called so",
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
    "--most-moved",
    default=monthly.MAX_MOVED,
    show_default=True,
    type=click.IntRange(0, 2**62),
    help="Rows of one month that may move from the default partition, while writers wait.",
)
@as_json
@with_database
def ensure(months_ahead: int, most_moved: int, as_json: bool) -> None:
    """Make the partitions that are missing and print their names. The running service does so once a day."""
    try:
        found = monthly.ensure(owner_url(current_app.config["SETTINGS"]), months_ahead, most_moved)
    except psycopg.Error as error:
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
