"""Checksums of the files that were applied, migrations and grants, by which a changed file is noticed."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

CREATE = """
CREATE TABLE IF NOT EXISTS migration_checksums (
    name text PRIMARY KEY,
    sha256 text NOT NULL,
    recorded_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE migration_checksums IS 'What the applied migrations, and the grants, looked like.';
COMMENT ON COLUMN migration_checksums.name IS 'The file, without its ending.';
COMMENT ON COLUMN migration_checksums.sha256 IS 'SHA-256 of the file, in hexadecimal.';
COMMENT ON COLUMN migration_checksums.recorded_at IS 'Database clock.';
"""
RECORD = """
INSERT INTO migration_checksums (name, sha256) VALUES (%s, %s)
ON CONFLICT (name) DO UPDATE SET sha256 = excluded.sha256, recorded_at = now()
"""
SELECT = "SELECT name, sha256 FROM migration_checksums"
DELETE = "DELETE FROM migration_checksums WHERE name = %s"


def checksum(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal. Raises OSError."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def create(backend: Any) -> None:
    """Create the table on yoyo's connection, unless it is there. Raises psycopg.Error."""
    with backend.transaction():
        backend.execute(CREATE)


def record(backend: Any, name: str, path: Path) -> None:
    """Record a file's checksum, in the caller's transaction. Raises psycopg.Error, OSError."""
    backend.execute(RECORD, (name, checksum(path)))


def delete(backend: Any, name: str) -> None:
    """Forget a file that was rolled back, in the caller's transaction. Raises psycopg.Error."""
    backend.execute(DELETE, (name,))


def recorded(backend: Any) -> dict[str, str]:
    """Return the recorded checksums by name. Raises psycopg.Error."""
    with backend.transaction():
        return dict(backend.execute(SELECT).fetchall())
