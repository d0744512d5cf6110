"""The schema: yoyo applies `migrations/`, one process at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import psycopg
import yoyo

from app.db import partitions

FOLDER = Path(__file__).resolve().parents[2] / "migrations"
# One number for all replicas; any constant does.
ADVISORY_LOCK = int.from_bytes(hashlib.sha256(b"watchpost migrations").digest()[:8], signed=True)
LOCK_TIMEOUT = "5s"


def apply(url: str) -> list[str]:
    """Apply what is pending and return its names. Raises psycopg.Error.

    Replicas that start together wait for one another: the first migrates, the others find nothing to do.
    """
    with _backend(url) as backend:
        pending = backend.to_apply(yoyo.read_migrations(str(FOLDER)))
        backend.apply_migrations(pending)
        partitions.try_to_ensure(url)
        return [migration.id for migration in pending]


def rollback(url: str, to: str | None = None) -> list[str]:
    """Undo applied migrations, newest first, down to and including the one named, or all. Returns their names."""
    with _backend(url) as backend:
        undone = backend.to_rollback(yoyo.read_migrations(str(FOLDER)))
        if to is not None:
            undone = undone.filter(lambda migration: migration.id >= to)
        backend.rollback_migrations(undone)
        return [migration.id for migration in undone]


def names() -> list[str]:
    """The names of all migrations, in order."""
    return [path.stem for path in sorted(FOLDER.glob("*.sql")) if not path.stem.endswith(".rollback")]


@contextmanager
def _backend(url: str) -> Iterator[Any]:
    # yoyo's own lock is a row that outlives a killed process; this one ends with its connection.
    with psycopg.connect(url, autocommit=True) as lock:
        lock.execute("SELECT pg_advisory_lock(%s)", [ADVISORY_LOCK])
        backend = yoyo.get_backend(_yoyo_url(url))
        try:
            backend.break_lock()
            yield backend
        finally:
            backend.connection.close()


def _yoyo_url(url: str) -> str:
    """The same database in yoyo's dialect, with psycopg 3 and the timeouts of a migration."""
    given = psycopg.conninfo.conninfo_to_dict(url)
    given.setdefault("options", f"-c lock_timeout={LOCK_TIMEOUT} -c client_min_messages=warning")
    database = quote(str(given.pop("dbname", "")))
    return f"postgresql+psycopg:///{database}?{urlencode({name: str(value) for name, value in given.items()})}"
