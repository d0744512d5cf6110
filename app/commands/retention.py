"""flask retention run: let go of what is older than it need be."""

from __future__ import annotations

import dataclasses
import time
from datetime import UTC, datetime
from typing import Any

import click
from flask import current_app

from app import problems
from app.commands import pages
from app.commands.audit import INSERT_ENTRY, entry, note
from app.commands.shell import as_json, show, with_database
from app.db import Statement, owner, statement

DROP_PARTITION = statement("retention/drop_partition")
SELECT_PARTITIONS = statement("partitions/select_partitions")
SELECT_HOLDS = statement("holds/select_holds")
# Somebody holds the table: a moment later it may be free.
MOST_TRIES = 20
PAUSE_SECONDS = 0.5
DAY_SECONDS = 86400


@dataclasses.dataclass(frozen=True)
class Events:
    """A table of evidence: the setting that says how long it is kept, and its statements."""

    table: str
    setting: str
    count: Statement
    delete: Statement


@dataclasses.dataclass(frozen=True)
class Things:
    """A table of things that are archived when they have been silent for long."""

    table: str
    count: Statement
    archive: Statement


EVENTS = (
    Events("prompts", "prompts_days", statement("retention/count_prompts"), statement("retention/delete_prompts")),
    Events(
        "extension_status",
        "extension_status_days",
        statement("retention/count_statuses"),
        statement("retention/delete_statuses"),
    ),
    Events(
        "compliance_events",
        "compliance_events_days",
        statement("retention/count_events"),
        statement("retention/delete_events"),
    ),
)
THINGS = (
    Things("devices", statement("retention/count_devices"), statement("retention/archive_devices")),
    Things("browser_instances", statement("retention/count_instances"), statement("retention/archive_instances")),
)


@click.group()
def retention() -> None:
    """Retention: how long what was reported is kept."""


@retention.command()
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
@as_json
@with_database
def run(dry_run: bool, as_json: bool) -> None:
    """Drop expired months, delete the other expired rows, archive what has been silent.

    The days are settings: WATCHPOST_PROMPTS_DAYS and others; 0 keeps for ever. Rows under a legal hold stay. It can be
    stopped at any time, and does the rest when it is run again.
    """
    settings = current_app.config["SETTINGS"]
    done: list[dict[str, Any]] = []
    left: list[str] = []
    for events in EVENTS:
        days = getattr(settings, events.setting)
        if days:
            done.append(_look(events, days) if dry_run else _delete(events, days, left))
    if settings.archive_days:
        done += [_archive(things, settings.archive_days, dry_run) for things in THINGS]
    show(done, ("table", "older_than", "partitions", "rows", "held", "holds"), as_json)
    if not done:
        click.echo("nothing expires: see WATCHPOST_PROMPTS_DAYS and the settings beside it", err=True)
    if left:
        raise click.ClickException("in use by long transactions, run this again: " + ", ".join(left))


def _look(events: Events, days: int) -> dict[str, Any]:
    before_ms = _before_ms(days)
    found = owner.run(events.count, before_ms=before_ms)[0]
    expired = [part["name"] for part in _expired(events, before_ms) if not _holds(part)]
    rows = found["expired"] - found["held"]
    return _line(events.table, before_ms, ", ".join(expired), rows, found["held"], _named(_holds({}, before_ms)))


def _delete(events: Events, days: int, left: list[str]) -> dict[str, Any]:
    before_ms = _before_ms(days)
    found = owner.run(events.count, before_ms=before_ms)[0]
    note("retention.run", events.table, before_ms=before_ms, days=days)
    dropped = []
    for part in _expired(events, before_ms):
        outcome = _drop(part["name"], before_ms)
        if outcome == "dropped":
            dropped.append(part["name"])
            click.echo(f"{part['name']}: dropped", err=True)
        elif outcome == "busy":
            left.append(part["name"])
    # What is left is in months that have not wholly expired, that are held or in use, and in the default partition.
    pages.through(events.delete, events.table, pages.FIRST_EVENT, before_ms=before_ms)
    rest = owner.run(events.count, before_ms=before_ms)[0]
    gone = found["expired"] - rest["expired"]
    note("retention.done", events.table, before_ms=before_ms, rows=gone, partitions=dropped, held=rest["held"])
    return _line(events.table, before_ms, ", ".join(dropped), gone, rest["held"], _named(_holds({}, before_ms)))


def _drop(name: str, before_ms: int) -> str:
    """Drop a partition and note it, in one transaction. Returns what the statement says, or `busy`."""
    noted = entry("partition.drop", name, before_ms=before_ms)

    def work(run: Any) -> str:
        outcome = str(run(DROP_PARTITION, part=name, expired_before_ms=before_ms)[0]["outcome"])
        if outcome == "dropped":
            run(INSERT_ENTRY, **noted)
        return outcome

    for tries_left in reversed(range(MOST_TRIES)):
        try:
            return owner.transact(work)
        except problems.Problem as problem:
            if problem.status != 503 or not tries_left:
                break
            time.sleep(PAUSE_SECONDS)
    return "busy"


def _archive(things: Things, days: int, dry_run: bool) -> dict[str, Any]:
    seconds = days * DAY_SECONDS
    if dry_run:
        rows = owner.run(things.count, seconds=seconds)[0]["expired"]
    else:
        rows = pages.through(things.archive, things.table, pages.FIRST_NAME, seconds=seconds)
        if rows:
            note("retention.archived", things.table, days=days, rows=rows)
    return _line(things.table, _before_ms(days), "", rows, 0, "")


def _expired(events: Events, before_ms: int) -> list[dict[str, Any]]:
    return [
        part
        for part in owner.run(SELECT_PARTITIONS)
        if part["table_name"] == events.table and part["ends_at"] and part["ends_at"].timestamp() * 1000 <= before_ms
    ]


def _holds(part: dict[str, Any], before_ms: int | None = None) -> list[dict[str, Any]]:
    """The holds in force in a partition's time, or before a time."""
    starts = part["starts_at"].timestamp() * 1000 if part.get("starts_at") else None
    ends = part["ends_at"].timestamp() * 1000 if part.get("ends_at") else before_ms
    return [
        hold
        for hold in owner.run(SELECT_HOLDS)
        if hold["released_at"] is None
        and (hold["from_ms"] is None or ends is None or hold["from_ms"] < ends)
        and (hold["to_ms"] is None or starts is None or hold["to_ms"] > starts)
    ]


def _named(holds: list[dict[str, Any]]) -> str:
    return ", ".join(str(hold["hold_id"]) for hold in holds)


def _before_ms(days: int) -> int:
    return round((time.time() - days * DAY_SECONDS) * 1000)


def _line(table: str, before_ms: int, partitions: str, rows: int, held: int, holds: str) -> dict[str, Any]:
    return {
        "table": table,
        "older_than": datetime.fromtimestamp(before_ms / 1000, UTC),
        "partitions": partitions,
        "rows": rows,
        "held": held,
        "holds": holds,
    }
