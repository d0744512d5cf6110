"""What is checked before a process uses the database, and how a failure to do so is described."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import psycopg

log = logging.getLogger(__name__)

# SET ROLE can be undone, so both roles count.
SELECT_IS_SUPERUSER = "SELECT bool_or(rolsuper) FROM pg_roles WHERE rolname IN (current_user, session_user)"


class StartupError(Exception):
    """The process must not start. The message says why, and what to do."""


def wait_until_up(url: str, is_given_up: Callable[[], bool], seconds: float = 30) -> None:
    """Return when the database accepts connections. Raises psycopg.OperationalError when it does not in time."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            psycopg.connect(url, connect_timeout=3).close()
            return
        except psycopg.OperationalError:
            if time.monotonic() > deadline or is_given_up():
                raise
            log.warning("waiting for the database")
            time.sleep(1)


def refuse_superuser(url: str) -> None:
    """Raises StartupError when requests would run as a superuser: a fault in the service could then do anything.

    Raises psycopg.Error when the database can't be reached.
    """
    with psycopg.connect(url, autocommit=True, connect_timeout=3) as connection:
        row = connection.execute(SELECT_IS_SUPERUSER).fetchone()
    if row and row[0]:
        raise StartupError("WATCHPOST_DATABASE_URL names a superuser: use watchpost_writer, see config/roles.sql")


def explain(error: Exception) -> str:
    """Describe an error for a log. Of a database's refusal only the SQLSTATE: its message quotes rows."""
    if isinstance(error, OSError):
        return f"{error.strerror}: {error.filename}"
    if isinstance(error, psycopg.Error) and error.sqlstate is not None:
        return f"{type(error).__name__} {error.sqlstate}"
    if isinstance(error, psycopg.ProgrammingError):
        # libpq quotes what it can't read of a URL, passwords included.
        return "the database's URL can't be read"
    return f"{type(error).__name__}: {error}".strip()
