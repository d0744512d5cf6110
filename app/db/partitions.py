"""Monthly partitions of the event tables: made ahead of time, so that the default partition stays all but empty."""

from __future__ import annotations

import logging
import time
from typing import Any

import psycopg
from psycopg.rows import dict_row

from app.db.startup import explain
from app.db.statements import statement

log = logging.getLogger(__name__)

ENSURE_PARTITIONS = statement("partitions/ensure_partitions")

MONTHS_AHEAD = 3
# They move while writers wait, so in less than a writer's timeout.
MAX_MOVED = 50_000
# Somebody holds a table for longer than this waits: worth coming again.
BUSY = {"55P03", "40P01"}
MAX_TRIES = 5


def ensure(url: str, months_ahead: int = MONTHS_AHEAD, most_moved: int = MAX_MOVED) -> list[dict[str, Any]]:
    """Make the partitions that are missing. Raises psycopg.Error; nothing is then made, and no row lost.

    Returns what the statement does: a row for each month that had no partition.
    """
    parameters = {"months_ahead": months_ahead, "most_moved": most_moved}
    with psycopg.connect(url, autocommit=True, row_factory=dict_row, connect_timeout=5) as connection:
        for tries_left in reversed(range(MAX_TRIES)):
            try:
                with connection.transaction():
                    # Its waits are bounded by the function; a role's own limit is meant for requests.
                    connection.execute("SET LOCAL statement_timeout = '10min'")
                    return connection.execute(ENSURE_PARTITIONS.text, parameters).fetchall()
            except psycopg.Error as error:
                if error.sqlstate not in BUSY or not tries_left:
                    raise
                time.sleep(1)
    raise AssertionError


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
