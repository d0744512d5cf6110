"""Whether this worker can do its work: the database answers, has this release's schema, and stores what is sent."""

from __future__ import annotations

import sys
from typing import Any, cast

from flask import Flask, current_app
from werkzeug.local import LocalProxy

from app.db import Database, Unavailable, migrations, statement
from app.ingest.group_commit import GroupCommit
from app.ingest.writer import Writer

SELECT_MIGRATIONS = statement("service/select_migrations")


class Readiness:
    """Asks the database for `/readyz` and `/metrics`."""

    def __init__(self, database: Database, writer: Writer) -> None:
        self._database = database
        self._writer = writer
        # Concurrent probes share one query: strangers may ask as often as they like, and take one connection at most.
        self._probes: GroupCommit[None, int] = GroupCommit(
            lambda waiting: [self.pending_migrations()] * len(waiting),
            max_rows=sys.maxsize,
            max_waiting=sys.maxsize,
            timeout=database.settings.pool_wait_seconds + 2 * database.settings.statement_timeout_ms / 1000,
        )

    def probe(self) -> int:
        """The number of pending migrations. Raises DatabaseError, also while the database stores nothing."""
        return self._probes.submit(None)

    def pending_migrations(self) -> int:
        """The same, with a query of its own."""
        rows: list[dict[str, Any]] = self._database.run(SELECT_MIGRATIONS)
        if self._writer.is_failing() or any(row["is_read_only"] for row in rows):
            raise Unavailable
        applied = {row["migration_id"] for row in rows}
        return sum(name not in applied for name in migrations.names())


def init_app(app: Flask) -> None:
    app.extensions["readiness"] = Readiness(app.extensions["db"], app.extensions["writer"])


readiness = cast(Readiness, LocalProxy(lambda: current_app.extensions["readiness"]))
