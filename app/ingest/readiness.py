"""Whether this worker can do its work: the database answers, has this release's schema, and stores what is sent."""

from __future__ import annotations

import sys
from typing import Any, NamedTuple, cast

from flask import Flask, current_app
from werkzeug.local import LocalProxy

from app.db import Database, Unavailable, grants, migrations, statement
from app.ingest.group_commit import GroupCommit
from app.ingest.writer import Writer

SELECT_MIGRATIONS = statement("service/select_migrations")


class SchemaState(NamedTuple):
    """pending: migrations that are not applied. has_grants: the grants are those of this release."""

    pending: int
    has_grants: bool


class Readiness:
    """Asks the database for `/readyz` and `/metrics`."""

    def __init__(self, database: Database, writer: Writer) -> None:
        self._database = database
        self._writer = writer
        # Concurrent probes share one query: strangers may ask as often as they like, and take one connection at most.
        self._probes: GroupCommit[None, SchemaState] = GroupCommit(
            lambda waiting: [self.look()] * len(waiting),
            max_rows=sys.maxsize,
            max_waiting=sys.maxsize,
            timeout=database.settings.pool_wait_seconds + 2 * database.settings.statement_timeout_ms / 1000,
        )

    def probe(self) -> SchemaState:
        """How far the schema is. Raises DatabaseError, also while the database stores nothing."""
        return self._probes.submit(None)

    def look(self) -> SchemaState:
        """The same, with a query of its own."""
        rows: list[dict[str, Any]] = self._database.run(SELECT_MIGRATIONS)
        if self._writer.is_failing() or any(row["is_read_only"] for row in rows):
            raise Unavailable
        applied = {row["migration_id"] for row in rows}
        pending = sum(name not in applied for name in migrations.names())
        return SchemaState(pending, grants.has_grants(rows))


def init_app(app: Flask) -> None:
    app.extensions["readiness"] = Readiness(app.extensions["db"], app.extensions["writer"])


readiness = cast(Readiness, LocalProxy(lambda: current_app.extensions["readiness"]))
