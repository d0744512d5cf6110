"""Used client assertions, which are forgotten when they have expired (RFC 7523, section 3)."""

from __future__ import annotations

from collections.abc import Callable

from app.db.session import session
from app.db.statements import statement

DELETE_EXPIRED = statement("auth/delete_expired_assertions")
# Rows of one transaction: short enough to end at once at a stop.
BATCH_ROWS = 1000


def delete_expired(url: str, is_stopping: Callable[[], bool]) -> int:
    """Delete all that have expired, in batches. Returns how many rows were deleted. Raises DriverError.

    url: of a role that may delete them, such as the writer.
    """
    deleted, after = 0, "-infinity"
    with session(url) as run:
        while not is_stopping():
            [row] = run(DELETE_EXPIRED, after_time=after, amount=BATCH_ROWS)
            deleted += row["deleted"]
            if row["deleted"] < BATCH_ROWS:
                break
            after = row["last_expires_at"]
    return deleted
