"""The connections of one process, and what is run on them."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TypeVar, cast

import orjson
import psycopg
from flask import Flask, current_app
from psycopg_pool import ConnectionPool, PoolClosed, PoolTimeout, TooManyRequests
from werkzeug.local import LocalProxy

from app.db.connection import Connection, connection_options
from app.db.errors import RACES, Unavailable, is_connection_lost, translated
from app.db.statements import Statement
from app.db.urls import owner_url, writer_url
from app.telemetry import metrics
from config.settings import Settings

log = logging.getLogger(__name__)

Row = dict[str, Any]
Run = Callable[..., list[Row]]
T = TypeVar("T")
# Traces a statement: called with its name, and in the context with the number of rows that it returned.
Span = Callable[[str], AbstractContextManager[Callable[[int], None]]]

# Attempts of a transaction that loses races, and seconds between two attempts.
MAX_RACES = 4
RETRY_PAUSE_SECONDS = 0.05


def dumps(rows: list[Row]) -> str:
    """Rows as the JSON parameter of a statement."""
    return orjson.dumps(rows).decode()


class Transaction:
    """What runs statements on one connection: call it with a statement and its parameters."""

    def __init__(self, connection: Connection, prepares: bool, span: Span | None) -> None:
        self._connection = connection
        self._prepares = prepares
        self._span = span

    def __call__(self, statement: Statement, **parameters: Any) -> list[Row]:
        """Run one statement and return its rows."""
        if self._span is None:
            return self._execute(statement, parameters)
        with self._span(statement.name) as note_rows:
            rows = self._execute(statement, parameters)
            note_rows(len(rows))
            return rows

    def _execute(self, statement: Statement, parameters: Row) -> list[Row]:
        return self._connection.execute(statement.text, parameters, prepare=self._prepares).fetchall()

    def limit_lock_wait(self, milliseconds: int) -> None:
        """Wait for locks no longer than that until the transaction ends."""
        self._connection.execute(f"SET LOCAL lock_timeout = {milliseconds}")

    def attempt(self, work: Callable[[], T]) -> T:
        """Do work in a savepoint: what it fails with leaves the transaction as it was.

        Raises DatabaseError; what the whole transaction should be repeated for is raised as psycopg.Error.
        """
        try:
            with self._connection.transaction():
                return work()
        except psycopg.Error as error:
            ours = translated(error)
            if isinstance(ours, Unavailable):
                raise
            raise ours from None


class Database:
    """The pool of one process, opened at its first use, hence after a fork.

    Every call raises DatabaseError: Unavailable when the database is away, full or too slow. Then it is not known
    whether anything is stored, and the same call may be repeated.

    span: traces the statements, where a collector of traces is configured.
    """

    def __init__(self, settings: Settings, url: str, statement_seconds: float | None) -> None:
        self.settings = settings
        self.url = url
        self._statement_seconds = statement_seconds
        self._pool: ConnectionPool[Connection] | None = None
        self._pid = 0
        self._opening = threading.Lock()
        self.span: Span | None = None

    def run(self, statement: Statement, **parameters: Any) -> list[Row]:
        """Run one statement in a transaction of its own and return its rows, after the commit."""
        return self.on_connection(lambda run: run(statement, **parameters))

    def transact(self, work: Callable[[Transaction], T]) -> T:
        """Do work in one transaction. It may be called again after a lost connection or a lost race."""

        def once(connection: Connection) -> T:
            with connection.transaction():
                return work(self._on(connection))

        return self._with_retries(once)

    def on_connection(self, work: Callable[[Transaction], T]) -> T:
        """Do work whose single statement is its own transaction: two round trips fewer than `transact`."""
        return self._with_retries(lambda connection: work(self._on(connection)))

    def close(self) -> None:
        if self._pool is not None:
            self._pool.close()
            self._pool = None

    def _on(self, connection: Connection) -> Transaction:
        return Transaction(connection, self.settings.prepare_statements, self.span)

    def _with_retries(self, work: Callable[[Connection], T]) -> T:
        """Do work on a connection, and again on another while that may help. Raises DatabaseError."""
        deadline = time.monotonic() + self.settings.pool_wait_seconds
        races = 0
        while True:
            try:
                with self._connection() as connection:
                    return work(connection)
            except (PoolTimeout, TooManyRequests, PoolClosed) as error:
                log.warning("no database connection", extra={"fields": {"error": type(error).__name__}})
                metrics.database_error(error)
                raise Unavailable from None
            except psycopg.Error as error:
                # Never the error's text: it quotes rows.
                fields = {"sqlstate": error.sqlstate, "constraint": error.diag.constraint_name}
                log.warning("database error", extra={"fields": fields})
                metrics.database_error(error)
                is_lost = is_connection_lost(error)
                races += error.sqlstate in RACES
                if (is_lost and time.monotonic() < deadline) or (error.sqlstate in RACES and races < MAX_RACES):
                    if is_lost and self._pool is not None:
                        # The other idle connections of the pool are likely to be broken too.
                        self._pool.drain()
                    time.sleep(RETRY_PAUSE_SECONDS)
                    continue
                raise translated(error) from None

    @contextmanager
    def _connection(self) -> Iterator[Connection]:
        if self._pool is None or self._pid != os.getpid():
            self._open()
        assert self._pool is not None
        began = time.perf_counter()
        with self._pool.connection() as connection:
            metrics.waited_for_connection(time.perf_counter() - began)
            yield connection

    def _open(self) -> None:
        with self._opening:
            if self._pool is not None and self._pid == os.getpid():
                return
            settings = self.settings
            pool: ConnectionPool[Connection] = ConnectionPool(
                self.url,
                connection_class=Connection,
                kwargs=connection_options(settings, self.url, self._statement_seconds),
                configure=self._configure,
                min_size=1,
                max_size=settings.pool_size,
                timeout=settings.pool_wait_seconds,
                max_waiting=max(64, settings.connections),
                # Short, so that a slot does not back off for minutes while the database is already there again.
                reconnect_timeout=4,
                open=False,
                name="watchpost",
            )
            pool.open()
            self._pool, self._pid = pool, os.getpid()

    def _configure(self, connection: Connection) -> None:
        connection.silence_seconds = self._statement_seconds and self._statement_seconds + 1


def init_app(app: Flask, settings: Settings) -> None:
    app.extensions["db"] = Database(settings, writer_url(settings), settings.statement_timeout_ms / 1000)
    # An operator waits as long as it takes, and sees how far it is.
    app.extensions["owner"] = Database(settings, owner_url(settings), None)
    app.extensions["reader"] = Database(settings, settings.read_database_url or owner_url(settings), None)


db = cast(Database, LocalProxy(lambda: current_app.extensions["db"]))
owner = cast(Database, LocalProxy(lambda: current_app.extensions["owner"]))
reader = cast(Database, LocalProxy(lambda: current_app.extensions["reader"]))
