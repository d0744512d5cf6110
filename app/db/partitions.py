"""Monthly partitions of the event tables: made ahead of time, so that the default partition stays all but empty.

A coming month is attached while everybody reads and writes. For a month that may be written to, the default partition
is rebuilt beside the table without it, in pages, and takes its place in some milliseconds: see the functions of
migration 0023. Each step is a transaction of its own and gives up a lock after 0.1 s, so no writer waits for longer.
"""

from __future__ import annotations

import contextlib
import logging
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from datetime import date
from itertools import groupby
from typing import Any

import psycopg
from psycopg.rows import dict_row

from app.db.startup import explain
from app.db.statements import Statement, statement

log = logging.getLogger(__name__)

SELECT_MISSING_MONTHS = statement("partitions/select_missing_months")
CREATE_MONTH = statement("partitions/create_month")
BEGIN_REBUILD = statement("partitions/begin_rebuild")
COPY_PAGE = statement("partitions/copy_page")
FINISH_REBUILD = statement("partitions/finish_rebuild")
ABANDON_REBUILD = statement("partitions/abandon_rebuild")

MONTHS_AHEAD = 3
# The last month: laptops that were offline report of it.
MONTHS_BACK = 1
# Months that one rebuild makes: their attaching is what writers wait for.
REBUILD_MONTHS = 6
PAGE_ROWS = 2_000
# Before every row of an event table.
FIRST_EVENT: dict[str, Any] = {"after_ms": -1, "after_device": "", "after_id": uuid.UUID(int=0)}
# Others hold a lock that is needed: lock_not_available, deadlock_detected.
BUSY = {"55P03", "40P01"}
MAX_TRIES = 20
PAUSE_SECONDS = 0.5

Row = dict[str, Any]
Run = Callable[..., list[Row]]


def ensure(url: str, months_ahead: int = MONTHS_AHEAD, months_back: int = MONTHS_BACK) -> list[Row]:
    """Make the partitions that are missing. Raises psycopg.Error; what is made by then stays, and no row is lost.

    Returns a row for each month that had no partition: name (of the partition), moved (about how many rows came from
    the default partition), outcome (created | name_taken: another table is called so | superseded: another process
    makes it now).
    """
    with psycopg.connect(url, autocommit=True, row_factory=dict_row, connect_timeout=5) as connection:
        run = _runner(connection)
        missing = run(SELECT_MISSING_MONTHS, months_back=months_back, months_ahead=months_ahead)
        return [
            made
            for table, months in groupby(missing, key=lambda month: month["table_name"])
            for made in _ensure_table(run, table, list(months))
        ]


def try_to_ensure(url: str) -> bool:
    """Make the partitions that are missing, and log what can't be made. Returns whether none is missing now."""
    try:
        found = ensure(url)
    except psycopg.Error as error:
        log.warning("can't make partitions: %s", explain(error))
        return False
    left = [month for month in found if month["outcome"] != "created"]
    for month in left:
        log.warning("no partition", extra={"fields": {"partition": month["name"], "reason": month["outcome"]}})
    return not left


def _ensure_table(run: Run, table: str, missing: list[Row]) -> Iterator[Row]:
    to_rebuild = [month for month in missing if month["may_be_written"] and not month["is_taken"]]
    for month in missing:
        if month["is_taken"]:
            yield _made(month["name"], "name_taken")
        elif not month["may_be_written"]:
            outcome = _create_month(run, table, month["month"])
            if outcome == "created":
                yield _made(month["name"], outcome)
            elif outcome == "has_rows":
                to_rebuild.append(month)
    for first in range(0, len(to_rebuild), REBUILD_MONTHS):
        yield from _rebuild(run, table, to_rebuild[first : first + REBUILD_MONTHS])


def _create_month(run: Run, table: str, month: date) -> str:
    while True:
        outcome = str(run(CREATE_MONTH, table_name=table, month=month)[0]["outcome"])
        if outcome != "next_step":
            return outcome


def _rebuild(run: Run, table: str, months: Sequence[Row]) -> Iterator[Row]:
    rebuild = run(BEGIN_REBUILD, table_name=table, months=[month["month"] for month in months])[0]["rebuild"]
    if rebuild is None:
        # Another process has made one of them meanwhile, and is likely to make the others.
        yield from (_made(month["name"], "superseded") for month in months)
        return
    parameters = {"table_name": table, "rebuild": rebuild}
    try:
        after = FIRST_EVENT
        while page := run(COPY_PAGE, **parameters, **after, amount=PAGE_ROWS):
            after = page[0]
        moved = run(FINISH_REBUILD, **parameters)
    except BaseException:
        with contextlib.suppress(psycopg.Error):
            run(ABANDON_REBUILD, **parameters)
        raise
    if moved:
        yield from (_made(month["name"], "created", month["moved"]) for month in moved)
    else:
        yield from (_made(month["name"], "superseded") for month in months)


def _made(name: str, outcome: str, moved: int = 0) -> Row:
    return {"name": name, "outcome": outcome, "moved": moved}


def _runner(connection: psycopg.Connection[Row]) -> Run:
    """What runs a statement in a transaction of its own, again while others hold a lock that it needs."""

    def run(wanted: Statement, **parameters: Any) -> list[Row]:
        for tries_left in reversed(range(MAX_TRIES)):
            try:
                with connection.transaction():
                    # A role's own limit is meant for requests; what others wait for is bounded by the functions.
                    connection.execute("SET LOCAL statement_timeout = '1h'")
                    return connection.execute(wanted.text, parameters).fetchall()
            except psycopg.Error as error:
                if error.sqlstate not in BUSY or not tries_left:
                    raise
                time.sleep(PAUSE_SECONDS)
        raise AssertionError

    return run
