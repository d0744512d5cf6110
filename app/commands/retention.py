"""flask retention run: let go of what is older than it need be."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from datetime import UTC, datetime
from typing import Any

import click
from flask import current_app

from app.commands import pages
from app.commands.audit import INSERT_ENTRY, entry, note
from app.commands.shell import as_json, group, show, with_database
from app.db import DatabaseError, Statement, Unavailable, owner, statement

SELECT_TABLES = statement("retention/select_tables")
COUNT_EXPIRED = statement("retention/count_expired")
DELETE_EXPIRED = statement("retention/delete_expired")
WATCH_PARTITION = statement("retention/watch_partition")
UNWATCH_PARTITION = statement("retention/unwatch_partition")
DROP_PARTITION = statement("retention/drop_partition")
SELECT_PARTITIONS = statement("partitions/select_partitions")
SELECT_HOLDS = statement("holds/select_holds")
SELECT_CLOCK = statement("service/select_clock")
DAY_MS = 86_400_000
MAX_CLOCK_SKEW_SECONDS = 60


@dataclasses.dataclass(frozen=True)
class Things:
    """A table of things that are archived when they have been silent for long."""

    table: str
    count: Statement
    archive: Statement


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

    The days are settings: WATCHPOST_PROMPTS_DAYS and others; 0 keeps for ever. A row has expired when both its times
    are older: the client's, and when it arrived. Rows under a legal hold stay. It can be stopped at any time, and does
    the rest when it is run again.
    """
    settings = current_app.config["SETTINGS"]
    now_ms = _now_ms()
    done: list[dict[str, Any]] = []
    busy: list[str] = []
    for table in [row["table_name"] for row in owner.run(SELECT_TABLES)]:
        # Each event table has a setting of its name; without one its rows stay.
        days = getattr(settings, f"{table}_days", 0)
        if days:
            before_ms = now_ms - days * DAY_MS
            done.append(_look(table, before_ms) if dry_run else _delete(table, before_ms, busy))
    if settings.archive_days:
        before_ms = now_ms - settings.archive_days * DAY_MS
        done += [_archive(things, settings.archive_days, before_ms, dry_run) for things in THINGS]
    show(done, ("table", "older_than", "partitions", "rows", "held", "holds"), as_json)
    if not done:
        click.echo("nothing expires: see WATCHPOST_PROMPTS_DAYS and the settings beside it", err=True)
    if busy:
        raise click.ClickException("in use by long transactions, run this again: " + ", ".join(busy))


def _look(table: str, before_ms: int) -> dict[str, Any]:
    found = _count(table, before_ms)
    outcomes = {
        part: owner.run(DROP_PARTITION, part=part, expired_before_ms=before_ms, is_dry_run=True)[0]["outcome"]
        for part in _expired(table, before_ms)
    }
    expired = [part for part, outcome in outcomes.items() if outcome == "expired"]
    return _line(table, before_ms, expired, found["expired"] - found["held"], found["held"], _holds(before_ms))


def _delete(table: str, before_ms: int, busy: list[str]) -> dict[str, Any]:
    note("retention.run", table, before_ms=before_ms)
    dropped, deleted = [], 0
    for part in _expired(table, before_ms):
        outcome, rows = _drop(part, before_ms)
        if outcome == "dropped":
            deleted += rows
            dropped.append(part)
            click.echo(f"{part}: dropped, {rows} rows", err=True)
        elif outcome == "busy":
            busy.append(part)
    # What is left is in months that have not wholly expired, that are held or in use, and in the default partition.
    parameters: dict[str, Any] = {"table_name": table, "expired_before_ms": before_ms}
    deleted += pages.through(DELETE_EXPIRED, table, pages.FIRST_EVENT, f"{table}.delete", **parameters)
    held = _count(table, before_ms)["held"]
    note("retention.done", table, before_ms=before_ms, rows=deleted, partitions=dropped, held=held)
    return _line(table, before_ms, dropped, deleted, held, _holds(before_ms))


def _count(table: str, before_ms: int) -> dict[str, Any]:
    return owner.run(COUNT_EXPIRED, table_name=table, expired_before_ms=before_ms)[0]


def _drop(part: str, before_ms: int) -> tuple[str, int]:
    """Drop a partition and note it, in one transaction. Returns what the statement says, or `busy`, and its rows."""

    def watch(run: pages.Run) -> None:
        run(WATCH_PARTITION, part=part)

    def drop(run: pages.Run) -> tuple[str, int]:
        found = run(DROP_PARTITION, part=part, expired_before_ms=before_ms, is_dry_run=False)[0]
        if found["outcome"] == "dropped":
            run(INSERT_ENTRY, **entry("partition.drop", part, before_ms=before_ms, rows=found["stored"]))
        return found["outcome"], found["stored"]

    outcome, rows = "busy", 0
    try:
        pages.retry_on_lock(watch)
        outcome, rows = pages.retry_on_lock(drop)
    except Unavailable:
        pass
    if outcome != "dropped":
        # Whoever is in the way may be so for long. Then the next run does it.
        with contextlib.suppress(DatabaseError):
            owner.run(UNWATCH_PARTITION, part=part)
    return outcome, rows


def _archive(things: Things, days: int, before_ms: int, dry_run: bool) -> dict[str, Any]:
    seconds = days * DAY_MS // 1000
    if dry_run:
        rows = owner.run(things.count, seconds=seconds)[0]["expired"]
    else:
        action = f"{things.table}.archive"
        rows = pages.through(things.archive, things.table, pages.FIRST_NAME, action, seconds=seconds)
    return _line(things.table, before_ms, [], rows, 0, [])


def _expired(table: str, before_ms: int) -> list[str]:
    """The partitions whose months ended before a time; rows of theirs may have arrived later."""
    return [
        part["name"]
        for part in owner.run(SELECT_PARTITIONS)
        if part["table_name"] == table and part["ends_at"] and part["ends_at"].timestamp() * 1000 <= before_ms
    ]


def _holds(before_ms: int) -> list[str]:
    """The holds in force that may cover a row which is older than a time."""
    return [
        str(hold["hold_id"])
        for hold in owner.run(SELECT_HOLDS)
        if hold["released_at"] is None and (hold["from_ms"] is None or hold["from_ms"] < before_ms)
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


def _line(table: str, before_ms: int, partitions: list[str], rows: int, held: int, holds: list[str]) -> dict[str, Any]:
    return {
        "table": table,
        "older_than": datetime.fromtimestamp(before_ms / 1000, UTC),
        "partitions": ", ".join(partitions),
        "rows": rows,
        "held": held,
        "holds": ", ".join(holds),
    }
