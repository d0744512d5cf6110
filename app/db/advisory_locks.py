"""Advisory locks: of many processes on many hosts, one at a time does a piece of work."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg import sql
from psycopg.rows import scalar_row


@contextmanager
def try_lock_at(url: str, name: str) -> Iterator[bool]:
    """The same on a connection of its own. Raises DriverError."""
    with psycopg.connect(url, autocommit=True, connect_timeout=5) as holder, try_lock(holder, name) as is_locked:
        yield is_locked


@contextmanager
def try_lock(connection: psycopg.Connection[Any], name: str) -> Iterator[bool]:
    """Yield whether this process holds the named lock; it is released at the end of the block.

    connection: in autocommit, and used for nothing else meanwhile; the lock ends with it.

    The lock belongs to a transaction, since one of a session stays behind PgBouncer with whichever connection took it.
    That transaction has no snapshot, so it delays neither vacuum nor CREATE INDEX CONCURRENTLY, however long the work
    takes: a statement with parameters, or a prepared one, would leave a portal open, which keeps its snapshot.
    """
    number = int.from_bytes(hashlib.sha256(f"watchpost {name}".encode()).digest()[:8], signed=True)
    with connection.transaction():
        # The holder is idle for as long as the work takes.
        connection.execute("SET LOCAL idle_in_transaction_session_timeout = 0", prepare=False)
        query = sql.SQL("SELECT pg_try_advisory_xact_lock({})").format(number)
        cursor = connection.cursor(row_factory=scalar_row)
        yield bool(cursor.execute(query, prepare=False).fetchone())
