"""Used client assertions, which are forgotten when they have expired (RFC 7523, section 3)."""

from __future__ import annotations

from collections.abc import Callable

import psycopg
from psycopg.rows import dict_row

from app.db.statements import statement

DELETE_EXPIRED = statement("auth/delete_expired_assertions")
# Rows of one transaction: short enough to end at once at a stop.
BATCH_ROWS = 1000


def delete_expired(url: str, is_stopping: Callable[[], bool]) -> int:
    """Delete all that have expired, in batches. Returns how many rows were deleted. Raises psycopg.Error.

    url: of a role that may delete them, such as the writer.
    """
    deleted, after = 0, "-infinity"
    # Not prepared: a pooler may give each transaction another connection.
    with psycopg.connect(
        url, autocommit=True, row_factory=dict_row, connect_timeout=5, prepare_threshold=None
    ) as connection:
        while not is_stopping():
            row = connection.execute(DELETE_EXPIRED.text, {"after_time": after, "amount": BATCH_ROWS}).fetchone()
            assert row is not None
            deleted += row["deleted"]
            if row["deleted"] < BATCH_ROWS:
                break
            after = row["last_expires_at"]
    return deleted
