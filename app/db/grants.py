"""Roles and grants: who owns the schema, and what the writer and the reader may do with it.

`config/roles.sql` makes the roles, which takes a superuser. `config/grants.sql` follows the schema; its checksum is
recorded, so that a service knows whether its release's grants were applied.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psycopg

from app.db import checksums

ROOT = Path(__file__).resolve().parents[2]
ROLES = ROOT / "config" / "roles.sql"
GRANTS = ROOT / "config" / "grants.sql"

SELECT_RIGHTS = """
SELECT
    (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) AS is_superuser,
    (
        SELECT count(*) = 3
        FROM pg_roles
        WHERE rolname IN ('watchpost_owner', 'watchpost_writer', 'watchpost_reader')
    ) AS has_roles,
    -- By name, so that a role which is not there is no error.
    EXISTS (SELECT FROM pg_roles WHERE rolname = 'watchpost_owner' AND pg_has_role(oid, 'MEMBER')) AS may_be_owner
"""


def rights(connection: psycopg.Connection[Any]) -> dict[str, bool]:
    """Return is_superuser, may_be_owner, and has_roles (all three exist), of who connected. Raises psycopg.Error."""
    cursor = connection.execute(SELECT_RIGHTS)
    columns = [column.name for column in cursor.description or ()]
    return dict(zip(columns, cursor.fetchone() or (), strict=True))


def create_roles(connection: psycopg.Connection[Any]) -> None:
    """Make the roles that are missing, as a superuser. Raises psycopg.Error."""
    connection.execute(ROLES.read_text(encoding="utf-8"))


def version() -> str:
    """What is recorded when this release's grants have been applied."""
    return f"{GRANTS.stem}:{checksums.checksum(GRANTS)}"


def are_applied(recorded: dict[str, str]) -> bool:
    """Whether this release's grants are those that were applied last, by the recorded checksums."""
    return recorded.get(GRANTS.stem) == checksums.checksum(GRANTS) and version() in recorded


def has_grants(found: list[dict[str, Any]]) -> bool:
    """Whether this release's grants were applied, or the role needs none, by rows of service/select_migrations."""
    return all(row["is_owner"] or version() in row["grants"] for row in found)


def apply(backend: Any) -> None:
    """Apply this release's grants on yoyo's connection, in one transaction. Raises psycopg.Error."""
    with backend.transaction():
        # yoyo passes parameters, if none: a % would begin a placeholder.
        backend.execute(GRANTS.read_text(encoding="utf-8").replace("%", "%%"))
        checksums.record(backend, GRANTS.stem, GRANTS)
        # Kept when a later release applies its own, which are made so that this one goes on.
        checksums.record(backend, version(), GRANTS)
