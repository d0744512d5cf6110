"""What becomes of the database's errors: one class for each thing that a caller can do about them.

None of them holds the error's text, which quotes rows.
"""

from __future__ import annotations

import psycopg

# What psycopg raises itself, where no pool translates it: in migrations, and in checks at the start.
DriverError = psycopg.Error

# The server ends, starts or lost the connection, closed it because it was idle, or turned read-only at a failover. The
# same statement on another connection may succeed, and every statement is idempotent.
CONNECTION_LOST = {"57P01", "57P02", "57P03", "57P05", "25P03", "25006"}
# A concurrent transaction won: a serialization failure, a deadlock, a unique constraint beside the expected one.
RACES = {"40001", "40P01", "23505"}
# The server is there but can't do it now: out of connections, disk, memory or locks, too slow, or its disk fails.
BUSY = {"53000", "53100", "53200", "53300", "53400", "57014", "25P04", "58000", "58030", "58P01"}
# Another transaction held a lock for longer than the lock timeout.
LOCK_NOT_AVAILABLE = "55P03"
# The schema is older than this code: migrations are pending.
SCHEMA_OUTDATED = {"42P01", "42703", "42883"}
UNIQUE_VIOLATION = "23505"
INSUFFICIENT_PRIVILEGE = "42501"


class DatabaseError(Exception):
    """The database refused a statement, through a fault of ours."""

    def __init__(self, sqlstate: str | None = None) -> None:
        super().__init__(sqlstate or "no answer")
        self.sqlstate = sqlstate


class Unavailable(DatabaseError):
    """The database is away, full or too slow; the same call may succeed later.

    is_locked: another transaction held a lock for too long; the database itself works.
    """

    def __init__(self, sqlstate: str | None = None, is_locked: bool = False) -> None:
        super().__init__(sqlstate)
        self.is_locked = is_locked


class Conflict(DatabaseError):
    """A unique constraint that the statement does not handle. constraint: its name."""

    def __init__(self, constraint: str) -> None:
        super().__init__(UNIQUE_VIOLATION)
        self.constraint = constraint


class Denied(Unavailable):
    """This role may not do that: its grants are not those of this release."""


def translated(error: psycopg.Error) -> DatabaseError:
    """The error of ours that psycopg's stands for."""
    state = error.sqlstate
    if state == LOCK_NOT_AVAILABLE:
        return Unavailable(state, is_locked=True)
    if state == UNIQUE_VIOLATION and error.diag.constraint_name:
        return Conflict(error.diag.constraint_name)
    if state == INSUFFICIENT_PRIVILEGE:
        return Denied(state)
    if is_connection_lost(error) or state in BUSY | RACES | SCHEMA_OUTDATED:
        return Unavailable(state)
    return DatabaseError(state)


def is_connection_lost(error: psycopg.Error) -> bool:
    """Whether this connection is of no more use while another may be."""
    if error.sqlstate is None:
        return isinstance(error, (psycopg.OperationalError, psycopg.InterfaceError))
    # Class 08 is about connections; a pooler reports its own failures with it.
    return error.sqlstate in CONNECTION_LOST or error.sqlstate.startswith("08")
