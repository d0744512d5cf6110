"""Connections of one worker, and what becomes of the database's errors."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, cast

import orjson
import psycopg
from flask import Flask, current_app
from gevent import Timeout, get_hub, monkey
from psycopg.pq import TransactionStatus
from psycopg.rows import DictRow, dict_row
from psycopg_pool import ConnectionPool, PoolClosed, PoolTimeout, TooManyRequests
from werkzeug.local import LocalProxy

from app import metrics, problems
from app.db import embedded, migrations
from app.db.shared_commit import QueueFull, SharedCommit
from app.db.statements import Statement
from config.settings import Settings

if TYPE_CHECKING:
    from app.writes import Write

log = logging.getLogger(__name__)

Row = dict[str, Any]
T = TypeVar("T")
Given = TypeVar("Given")
Answer = TypeVar("Answer")
Run = Callable[..., list[Row]]

# The server ends, starts or lost the connection, or let it go because it was idle, or turned read-only because another
# took over: worth the same statement again on another connection, since every statement is idempotent.
GONE = {"57P01", "57P02", "57P03", "57P05", "25P03", "25006"}
# Another set got there first: a serialization failure, a deadlock, a unique constraint beside the expected one.
RACES = {"40001", "40P01", "23505"}
# The server is there but can't do it now: full of connections, disk, memory or locks, too slow, or its disk fails.
BUSY = {"53000", "53100", "53200", "53300", "53400", "57014", "25P04", "58000", "58030", "58P01"}
# Somebody else held what it would change for as long as it may wait.
LOCKED = "55P03"
# Its schema is older than this code: migrations are pending.
BEHIND = {"42P01", "42703"}

# How often a race may be lost, and how many passes a set may take while others change what it looks at.
MOST_RACES = 4
MOST_PASSES = 8
# Of rows that are stored one by one: milliseconds that each waits for a lock, and how many of a set may do so in vain
# before the rest is not tried: it may be the table that is locked, and others wait behind.
ROW_LOCK_MS = 100
MOST_LOCKED = 5
# How long a kind that could not be stored counts as failing when nobody tries again: whoever watches readiness may have
# sent everybody elsewhere, and waits for it to return.
FAILING_SECONDS = 4


def dumps(rows: list[Row]) -> str:
    """Rows as the JSON parameter of a statement."""
    return orjson.dumps(rows).decode()


class Connection(psycopg.Connection[DictRow]):
    """A connection that gives up on a server that keeps silent.

    The server ends a statement that takes too long, but not when it is itself stopped or cut off.
    """

    silence_seconds: float | None = None

    def wait(self, gen: Any, interval: float = 0.1, timeout: float | None = None) -> Any:
        seconds = self.silence_seconds if timeout is None else timeout
        try:
            if monkey.is_module_patched("select"):
                return _wait_in_greenlet(gen, self.pgconn.socket, seconds)
            return super().wait(gen, interval, seconds)
        except psycopg.OperationalError:
            if self.pgconn.transaction_status == TransactionStatus.ACTIVE:
                # Its answer may still come, and would be taken for the next statement's.
                self.close()
            raise


def _wait_in_greenlet(gen: Any, fileno: int, seconds: float | None) -> Any:
    """As psycopg.waiting.wait, by gevent's own loop: psycopg would ask a patched poll, which costs a multiple.

    gen: yields what it waits for, psycopg.waiting's Wait, whose bits are those of gevent's watchers.
    """
    hub = get_hub()
    try:
        wanted = next(gen)
        with Timeout(seconds, psycopg.OperationalError("the server keeps silent")):
            while True:
                watcher = hub.loop.io(fileno, int(wanted))
                try:
                    hub.wait(watcher)
                finally:
                    watcher.close()
                # Where it waited for both, it finds out by itself which of them came.
                wanted = gen.send(int(wanted))
    except StopIteration as end:
        return end.value


class Database:
    """The pool of one process, opened at the first use, so after a fork.

    Every call raises Problem 503 when the database is away, full or too slow; nothing is then known to be stored, and
    the same call may be repeated.
    """

    def __init__(self, settings: Settings, url: str, statement_seconds: float | None) -> None:
        self.settings = settings
        self.url = url
        self._statement_seconds = statement_seconds
        self._pool: ConnectionPool[Connection] | None = None
        self._pid = 0
        self._opening = threading.Lock()
        # Seconds that a row waits for those before it.
        self._patience = settings.pool_wait_seconds + 2 * settings.statement_timeout_ms / 1000
        self._shared: dict[str, SharedCommit[Row, Row]] = {}
        self._looks: dict[str, SharedCommit[None, list[Row]]] = {}
        # When each kind could last not be stored, and has not been since.
        self._failed: dict[str, float] = {}

    def run(self, statement: Statement, **parameters: Any) -> list[Row]:
        """Run one statement in a transaction of its own and return its rows, after the commit."""
        return self._reliably(lambda connection: self._execute(connection, statement, parameters))

    def look(self, statement: Statement) -> list[Row]:
        """Run a statement that has no parameters and changes nothing. Concurrent calls share one run.

        So strangers, who may ask as often as they like, take one connection from those who write.
        """
        looks = self._looks.get(statement.name)
        if looks is None:
            looks = self._looks.setdefault(
                statement.name,
                SharedCommit(
                    lambda asked: [self.run(statement)] * len(asked),
                    max_rows=sys.maxsize,
                    max_waiting=sys.maxsize,
                    patience=self._patience,
                ),
            )
        return _submitted(looks, None)

    def transact(self, work: Callable[[Run], T]) -> T:
        """Do work in one transaction: it gets what runs a statement. It may be called again after a lost connection."""

        def once(connection: Connection) -> T:
            with connection.transaction():
                return work(lambda statement, **parameters: self._execute(connection, statement, parameters))

        return self._reliably(once)

    def write(self, write: Write, row: Row) -> Row:
        """Store one row of one kind. Concurrent calls share a statement and a commit.

        Returns the row with what the statement says of it: `outcome`, and the database's times. Returns after the
        commit.
        """
        shared = self._shared.get(write.type)
        if shared is None:
            shared = self._shared.setdefault(
                write.type,
                SharedCommit(
                    lambda rows: self._write_set(write, rows),
                    max_rows=self.settings.set_rows,
                    max_waiting=self.settings.queue_rows,
                    patience=self._patience,
                    waited=partial(metrics.waited_in_queue, write.type),
                ),
            )
        return _submitted(shared, row)

    def write_all(self, sets: Sequence[tuple[Write, list[Row]]]) -> list[list[Row | problems.Problem]]:
        """Store sets of several kinds in one transaction and return, after its commit, an answer for each row.

        sets: kinds in an order that is the same for all callers, so that two calls never wait for each other's locks;
        only where two kinds have one table they may, and PostgreSQL ends one of them, which is then run again.
        """

        def together(connection: Connection) -> list[list[Row | problems.Problem]]:
            with connection.transaction():
                return [list(self._outcomes(connection, write, rows)) for write, rows in sets]

        def apart(connection: Connection) -> list[list[Row | problems.Problem]]:
            with connection.transaction():
                return [[self._outcome(connection, write, row) for row in rows] for write, rows in sets]

        try:
            answers = self._reliably(together)
        except problems.Problem as problem:
            if problem.status == 503:
                self._failed.update((write.type, time.monotonic()) for write, _ in sets)
                raise
            answers = self._reliably(apart)
        for (write, _), set_ in zip(sets, answers, strict=True):
            self._failed.pop(write.type, None)
            metrics.stored(write.type, [row["outcome"] if isinstance(row, dict) else "failed" for row in set_])
        return answers

    def is_failing(self) -> bool:
        """Whether rows of a kind could not be stored a moment ago for want of the database, and none has been since."""
        since = time.monotonic() - FAILING_SECONDS
        return any(at > since for at in list(self._failed.values()))

    def close(self) -> None:
        if self._pool is not None:
            self._pool.close()
            self._pool = None

    def _write_set(self, write: Write, rows: list[Row]) -> list[Row | Exception]:
        """Store rows together; if that fails for one of them, one by one."""
        answers = self._attempt(write, rows)
        if len(rows) > 1 and isinstance(answers[0], problems.Problem) and not _is_away(answers[0]):
            answers = []
            for row in rows:
                # To find out for each that the database is away, or the whole table locked, would take minutes.
                answers += answers[-1:] if _is_hopeless(answers) else self._attempt(write, [row], ROW_LOCK_MS)
        if any(isinstance(answer, dict) for answer in answers):
            self._failed.pop(write.type, None)
        elif any(isinstance(answer, problems.Unavailable) for answer in answers):
            self._failed[write.type] = time.monotonic()
        return answers

    def _attempt(self, write: Write, rows: list[Row], lock_ms: int | None = None) -> list[Row | Exception]:
        """Store rows together. lock_ms: milliseconds that a lock is waited for, if not as usual."""

        def once(connection: Connection) -> list[Row]:
            if lock_ms is None:
                return self._outcomes(connection, write, rows)
            with connection.transaction():
                connection.execute(f"SET LOCAL lock_timeout = {lock_ms}")
                return self._outcomes(connection, write, rows)

        try:
            stored = self._reliably(once)
        except problems.Problem as problem:
            return [problem] * len(rows)
        metrics.stored(write.type, [row["outcome"] for row in stored])
        return list(stored)

    def _outcome(self, connection: Connection, write: Write, row: Row) -> Row | problems.Problem:
        """Store one row in a savepoint, so that its fault leaves the transaction as it was."""
        try:
            with connection.transaction():
                return self._outcomes(connection, write, [row])[0]
        except psycopg.Error as error:
            problem = _problem(error)
            if problem.status == 503:
                raise
            return problem

    def _outcomes(self, connection: Connection, write: Write, rows: list[Row]) -> list[Row]:
        """Run the statement of a kind; ask its second statement about rows without an outcome; and so on in turns.

        A row that the second can't explain either has changed meanwhile: the first may take it now.
        """
        answers: list[Row] = [{**row, "outcome": "device_unknown"} for row in rows]
        asked: Sequence[int] = range(len(rows))
        for number in range(MOST_PASSES):
            text = dumps([{"ordinal": ordinal, **rows[ordinal]} for ordinal in asked])
            parameters = {"rows": text, "instances_per_device": self.settings.instances_per_device}
            for found in self._execute(connection, write.again if number % 2 else write.statement, parameters):
                answers[found.pop("ordinal")].update(found)
            asked = [ordinal for ordinal in asked if answers[ordinal]["outcome"] is None]
            if not asked:
                return answers
        raise problems.Unavailable()

    def _execute(self, connection: Connection, statement: Statement, parameters: Row) -> list[Row]:
        cursor = connection.execute(statement.text, parameters, prepare=self.settings.prepare_statements)
        return cursor.fetchall()

    def _reliably(self, work: Callable[[Connection], T]) -> T:
        """Do the work on a connection, and again on another while that may help; turn errors into Problems."""
        deadline = time.monotonic() + self.settings.pool_wait_seconds
        lost_races = 0
        while True:
            try:
                with self._connection() as connection:
                    return work(connection)
            except (PoolTimeout, TooManyRequests, PoolClosed) as error:
                log.warning("no database connection", extra={"fields": {"error": type(error).__name__}})
                metrics.database_error(error)
                raise problems.Unavailable() from None
            except psycopg.Error as error:
                # Never the error's text: it quotes rows.
                fields = {"sqlstate": error.sqlstate, "constraint": error.diag.constraint_name}
                log.warning("database error", extra={"fields": fields})
                metrics.database_error(error)
                gone = _is_gone(error)
                lost_races += error.sqlstate in RACES
                if (gone and time.monotonic() < deadline) or (error.sqlstate in RACES and lost_races < MOST_RACES):
                    if gone and self._pool is not None:
                        # The others that idle in the pool are likely to be broken too.
                        self._pool.drain()
                    time.sleep(0.05)
                    continue
                raise _problem(error) from None

    def _configure(self, connection: Connection) -> None:
        connection.silence_seconds = self._statement_seconds and self._statement_seconds + 1

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


def _submitted(shared: SharedCommit[Given, Answer], given: Given) -> Answer:
    try:
        return shared.submit(given)
    except QueueFull as error:
        metrics.database_error(error)
        raise problems.Unavailable() from None


def _is_gone(error: psycopg.Error) -> bool:
    """Whether this connection is of no use any more, and another may be."""
    if error.sqlstate is None:
        return isinstance(error, (psycopg.OperationalError, psycopg.InterfaceError))
    # Class 08 is about connections; a pooler in between reports its own failures so.
    return error.sqlstate in GONE or error.sqlstate.startswith("08")


def _problem(error: psycopg.Error) -> problems.Problem:
    outcome = problems.CONSTRAINTS.get(error.diag.constraint_name or "")
    if outcome is not None:
        return problems.refused(outcome)
    if error.sqlstate == LOCKED:
        return problems.Unavailable(is_locked=True)
    if _is_gone(error) or error.sqlstate in BUSY | RACES | BEHIND:
        return problems.Unavailable()
    return problems.internal()


def _is_away(answer: Row | Exception) -> bool:
    """Whether a row could not be stored for want of the database, whichever row it was."""
    return isinstance(answer, problems.Unavailable) and not answer.is_locked


def _is_locked(answer: Row | Exception) -> bool:
    return isinstance(answer, problems.Unavailable) and answer.is_locked


def _is_hopeless(answers: list[Row | Exception]) -> bool:
    """Whether those that come behind these need not be tried."""
    return bool(answers) and (_is_away(answers[-1]) or sum(map(_is_locked, answers)) >= MOST_LOCKED)


def wait_until_up(settings: Settings, is_given_up: Callable[[], bool], seconds: float = 30) -> None:
    """Return when the database accepts connections. Raises psycopg.OperationalError when it did not in time."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            psycopg.connect(migration_url(settings), connect_timeout=3).close()
            return
        except psycopg.OperationalError:
            if time.monotonic() > deadline or is_given_up():
                raise
            log.warning("waiting for the database")
            time.sleep(1)


def writer_url(settings: Settings) -> str:
    """What requests use."""
    return settings.database_url or embedded.url(settings.data_dir, "watchpost_writer")


def owner_url(settings: Settings) -> str:
    """What operators' commands use."""
    if settings.owner_database_url or settings.database_url:
        return settings.owner_database_url or settings.database_url
    return embedded.url(settings.data_dir, migrations.OWNER)


def migration_url(settings: Settings) -> str:
    """What migrations use: the owner, or whoever may make that role."""
    if settings.owner_database_url or settings.database_url:
        return owner_url(settings)
    return embedded.url(settings.data_dir)


def connection_options(settings: Settings, url: str, statement_seconds: float | None) -> dict[str, Any]:
    """What every connection of the service is opened with (libpq's connection parameters).

    A URL's own parameters win, so that `options` can be left out for a pooler that refuses it.
    """
    options: dict[str, Any] = {
        "autocommit": True,
        "row_factory": dict_row,
        "prepare_threshold": 0 if settings.prepare_statements else None,
        "application_name": "watchpost",
        "connect_timeout": settings.pool_wait_seconds,
        "keepalives_idle": 30,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        "tcp_user_timeout": 15000,
        "options": f"-c lock_timeout={settings.statement_timeout_ms // 2} -c idle_in_transaction_session_timeout=15s"
        + (f" -c statement_timeout={round(statement_seconds * 1000)}" if statement_seconds else ""),
    }
    given = psycopg.conninfo.conninfo_to_dict(url)
    return {name: value for name, value in options.items() if name not in given}


def init_app(app: Flask, settings: Settings) -> None:
    app.extensions["db"] = Database(settings, writer_url(settings), settings.statement_timeout_ms / 1000)
    # An operator waits as long as it takes, and sees how far it is.
    app.extensions["owner"] = Database(settings, owner_url(settings), None)
    app.extensions["reader"] = Database(settings, settings.read_database_url or owner_url(settings), None)


db = cast(Database, LocalProxy(lambda: current_app.extensions["db"]))
owner = cast(Database, LocalProxy(lambda: current_app.extensions["owner"]))
reader = cast(Database, LocalProxy(lambda: current_app.extensions["reader"]))
