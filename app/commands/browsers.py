"""flask browser list | show | release"""

from __future__ import annotations

from typing import Any

import click

from app.commands.audit import audited
from app.commands.shell import NotFound, as_json, group, show, show_one, with_database
from app.db import reader, statement

SELECT_INSTANCES = statement("browsers/select_instances")
SELECT_INSTANCE = statement("browsers/select_instance")
RELEASE_INSTANCE = statement("browsers/release_instance")

PAGE = 1000
COLUMNS = (
    "instance_id",
    "device_id",
    "browser_name",
    "extension_version",
    "created_at",
    "last_seen",
    "archived_at",
    "released_at",
)


@group()
def browser() -> None:
    """Browser instances: one for each browser profile with the extension."""


@browser.command("list")
@click.option("--limit", default=PAGE, show_default=True, type=click.IntRange(1, 1_000_000), help="Instances to list.")
@as_json
@with_database
def list_(limit: int, as_json: bool) -> None:
    """List browser instances, by id."""
    found = reader.run(SELECT_INSTANCES, after="", amount=limit + 1)
    show(found[:limit], COLUMNS, as_json)
    if len(found) > limit:
        click.echo(f"more than {limit} browser instances: see --limit", err=True)


@browser.command("show")
@click.argument("instance_id", metavar="ID")
@as_json
@with_database
def show_(instance_id: str, as_json: bool) -> None:
    """Show what is stored about a browser instance."""
    _show(reader.run(SELECT_INSTANCE, instance_id=instance_id) if instance_id.isprintable() else [], as_json)


@browser.command()
@click.argument("instance_id", metavar="ID")
@as_json
@with_database
def release(instance_id: str, as_json: bool) -> None:
    """Let any device register a browser instance that belongs to another."""
    found: list[dict[str, Any]] = []
    if instance_id.isprintable():
        found = audited("browser.release", instance_id, RELEASE_INSTANCE, instance_id=instance_id)
    _show(found, as_json)


def _show(found: list[dict[str, Any]], as_json: bool) -> None:
    if not found:
        raise NotFound("there is no such browser instance")
    show_one(found[0], as_json)
