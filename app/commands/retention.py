"""flask retention run: let go of what is older than it need be."""

from __future__ import annotations

import dataclasses
import time
from datetime import UTC, datetime
from typing import Any

import click
from flask import current_app

from app.commands import pages
from app.commands.audit import INSERT_ENTRY, entry, note
from app.commands.shell import as_json, group, show, with_database
from app.db import DatabaseError, Statement, owner, statement

DROP_PARTITION = statement("retention/drop_partition")
SELECT_PARTITIONS = statement("partitions/select_partitions")
SELECT_HOLDS = statement("holds/select_holds")
SELECT_CLOCK = statement("service/select_clock")
DAY_MS = 86_400_000
MAX_CLOCK_SKEW_SECONDS = 60


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


@group()
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
    now_ms = _now_ms()
    done: list[dict[str, Any]] = []
    left: list[str] = []
    for events in EVENTS:
        days = getattr(settings, events.setting)
        if days:
            before_ms = now_ms - days * DAY_MS
            done.append(_look(events, before_ms) if dry_run else _delete(events, before_ms, left))
    if settings.archive_days:
        before_ms = now_ms - settings.archive_days * DAY_MS
        done += [_archive(things, settings.archive_days, before_ms, dry_run) for things in THINGS]
    show(done, ("table", "older_than", "partitions", "rows", "held", "holds"), as_json)
    if not done:
        click.echo("nothing expires: see WATCHPOST_PROMPTS_DAYS and the settings beside it", err=True)
    if left:
        raise click.ClickException("in use by long transactions, run this again: " + ", ".join(left))


def _look(events: Events, before_ms: int) -> dict[str, Any]:
    found = _count(events, before_ms)
    expired = [part["name"] for part in _expired(events, before_ms) if not _holds(part)]
    rows = found["expired"] - found["held"]
    return _line(events.table, before_ms, expired, rows, found["held"], _holds({}, before_ms))


def _delete(events: Events, before_ms: int, left: list[str]) -> dict[str, Any]:
    note("retention.run", events.table, before_ms=before_ms)
    dropped, gone = [], 0
    for part in _expired(events, before_ms):
        if _holds(part):
            continue
        rows = _count(events, _ms(part["ends_at"]) or 0, _ms(part["starts_at"]))["expired"]
        outcome = _drop(part["name"], before_ms, rows)
        if outcome == "dropped":
            gone += rows
            dropped.append(part["name"])
            click.echo(f"{part['name']}: dropped, {rows} rows", err=True)
        elif outcome == "busy":
            left.append(part["name"])
    # What is left is in months that have not wholly expired, that are held or in use, and in the default partition.
    action = f"{events.table}.delete"
    gone += pages.through(events.delete, events.table, pages.FIRST_EVENT, action, before_ms=before_ms)
    held = _count(events, before_ms)["held"]
    note("retention.done", events.table, before_ms=before_ms, rows=gone, partitions=dropped, held=held)
    return _line(events.table, before_ms, dropped, gone, held, _holds({}, before_ms))


def _count(events: Events, before_ms: int, from_ms: int | None = None) -> dict[str, Any]:
    return owner.run(events.count, before_ms=before_ms, from_ms=from_ms or 0)[0]


def _drop(name: str, before_ms: int, rows: int) -> str:
    """Drop a partition and note it, in one transaction. Returns what the statement says, or `busy`."""
    noted = entry("partition.drop", name, before_ms=before_ms, rows=rows)

    def work(run: Any) -> str:
        outcome = str(run(DROP_PARTITION, part=name, expired_before_ms=before_ms)[0]["outcome"])
        if outcome == "dropped":
            run(INSERT_ENTRY, **noted)
        return outcome

    try:
        return pages.retry_on_lock(work)
    except DatabaseError:
        return "busy"


def _archive(things: Things, days: int, before_ms: int, dry_run: bool) -> dict[str, Any]:
    seconds = days * DAY_MS // 1000
    if dry_run:
        rows = owner.run(things.count, seconds=seconds)[0]["expired"]
    else:
        action = f"{things.table}.archive"
        rows = pages.through(things.archive, things.table, pages.FIRST_NAME, action, seconds=seconds)
    return _line(things.table, before_ms, [], rows, 0, [])


def _expired(events: Events, before_ms: int) -> list[dict[str, Any]]:
    return [
        part
        for part in owner.run(SELECT_PARTITIONS)
        if part["table_name"] == events.table and part["ends_at"] and part["ends_at"].timestamp() * 1000 <= before_ms
    ]


def _holds(part: dict[str, Any], before_ms: int | None = None) -> list[str]:
    """The holds in force in a partition's time, or before a time."""
    starts, ends = _ms(part.get("starts_at")), _ms(part.get("ends_at")) or before_ms
    return [
        str(hold["hold_id"])
        for hold in owner.run(SELECT_HOLDS)
        if hold["released_at"] is None
        and (hold["from_ms"] is None or ends is None or hold["from_ms"] < ends)
        and (hold["to_ms"] is None or starts is None or hold["to_ms"] > starts)
    ]


def _now_ms() -> int:
    """The database's time. Raises ClickException when this machine's is another: one wrong clock deletes nothing."""
    now_ms = int(owner.run(SELECT_CLOCK)[0]["now_ms"])
    apart = abs(time.time() - now_ms / 1000)
    if apart > MAX_CLOCK_SKEW_SECONDS:
        raise click.ClickException(
            f"the clocks of this machine and of the database are {apart:.0f} s apart: set them right first"
        )
    return now_ms


def _ms(moment: datetime | None) -> int | None:
    return None if moment is None else round(moment.timestamp() * 1000)


def _line(table: str, before_ms: int, partitions: list[str], rows: int, held: int, holds: list[str]) -> dict[str, Any]:
    return {
        "table": table,
        "older_than": datetime.fromtimestamp(before_ms / 1000, UTC),
        "partitions": ", ".join(partitions),
        "rows": rows,
        "held": held,
        "holds": ", ".join(holds),
    }
