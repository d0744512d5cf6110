"""Rows on their way into the database: one statement and one commit for all that wait, one outcome for each."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Sequence
from functools import partial
from typing import cast

from flask import Flask, current_app
from werkzeug.local import LocalProxy

from app.db import Conflict, Database, DatabaseError, Transaction, Unavailable
from app.db.database import dumps
from app.ingest.group_commit import GroupCommit, QueueFull
from app.ingest.heard import Heard
from app.ingest.record_types import RecordType
from app.ingest.records import Row
from app.telemetry import metrics

log = logging.getLogger(__name__)

# Statements that a batch may take, its own and the duplicate check in turns, while other transactions change its rows.
MAX_PASSES = 8
# Limits of rows that are stored one by one, after a lock stopped their batch: milliseconds that each waits for a lock,
# and rows that may do so in vain before the rest is given up, since the whole table may be locked.
ROW_LOCK_MS = 100
MAX_LOCKED_ROWS = 5
# How long a record type counts as failing after a failure that no success follows: a load balancer may have sent all
# clients elsewhere, and waits for readiness to return.
FAILING_SECONDS = 4

# Constraints that no statement can foresee, and the outcome that each stands for.
CONSTRAINTS = {"devices_key_thumbprint_key": "key_conflict"}

Answer = Row | DatabaseError


class Writer:
    """Stores rows of all record types for one worker.

    An answer for a row is the row with the statement's columns: `outcome` and the database's times.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self.settings = database.settings
        # Seconds that a row may wait for the rows before it.
        self._timeout = self.settings.pool_wait_seconds + 2 * self.settings.statement_timeout_ms / 1000
        self._groups: dict[str, GroupCommit[Row, Row]] = {}
        # When each record type could last not be stored, unless it has been since.
        self._failed_at: dict[str, float] = {}
        self._heard = Heard()

    def write(self, record_type: RecordType, row: Row, is_large: bool = False) -> Row:
        """Store one row and return its answer, after the commit. Concurrent calls share a statement and a commit.

        is_large: large rows are stored one at a time, so that nobody waits in the same statement for a row that takes
        the database long. Raises DatabaseError; after Unavailable the same row may be sent again.
        """
        lane = f"{record_type.name} large" if is_large else record_type.name
        group = self._groups.get(lane)
        if group is None:
            group = self._groups.setdefault(
                lane,
                GroupCommit(
                    lambda rows: self._write_group(record_type, rows),
                    max_rows=1 if is_large else self.settings.set_rows,
                    max_waiting=self.settings.queue_rows,
                    timeout=self._timeout,
                    waited=partial(metrics.waited_in_queue, record_type.name),
                ),
            )
        try:
            return group.submit(row)
        except QueueFull as error:
            metrics.database_error(error)
            raise Unavailable from None

    def write_batch(self, batch: Sequence[tuple[RecordType, list[Row]]]) -> list[list[Answer]]:
        """Store rows of several record types in one transaction; return the answers of each after its commit.

        batch: record types in the order of the registry, the same for all callers, so that two batches never wait for
        each other's locks. Where two record types share a table they may; PostgreSQL ends one, which is run again.
        Raises Unavailable.
        """

        def together(transaction: Transaction) -> list[list[Answer]]:
            return [list(self._run_passes(transaction, record_type, rows)) for record_type, rows in batch]

        def one_by_one(transaction: Transaction) -> list[list[Answer]]:
            return [[self._attempt_row(transaction, record_type, row) for row in rows] for record_type, rows in batch]

        try:
            answers = self._database.transact(together)
        except Unavailable:
            self._failed_at.update((record_type.name, time.monotonic()) for record_type, _ in batch)
            raise
        except DatabaseError:
            answers = self._database.transact(one_by_one)
        for (record_type, _), rows in zip(batch, answers, strict=True):
            self._failed_at.pop(record_type.name, None)
            self._hear(row for row in rows if isinstance(row, dict))
            metrics.stored(record_type.name, [row["outcome"] if isinstance(row, dict) else "failed" for row in rows])
        return answers

    def is_failing(self) -> bool:
        """Whether the database could not store a record type a moment ago, and has not since."""
        since = time.monotonic() - FAILING_SECONDS
        return any(at > since for at in list(self._failed_at.values()))

    def _write_group(self, record_type: RecordType, rows: list[Row]) -> list[Row | Exception]:
        """Store rows together; after a failure that one of them may have caused, one by one."""
        answers = self._attempt(record_type, rows)
        if len(rows) > 1 and isinstance(answers[0], DatabaseError) and not _is_away(answers[0]):
            answers = []
            for row in rows:
                # Finding out for each row that the database is away or the table locked would take minutes.
                answers += answers[-1:] if _is_hopeless(answers) else self._attempt(record_type, [row], ROW_LOCK_MS)
        if any(isinstance(answer, dict) for answer in answers):
            self._failed_at.pop(record_type.name, None)
        elif any(isinstance(answer, Unavailable) for answer in answers):
            self._failed_at[record_type.name] = time.monotonic()
        return list(answers)

    def _attempt(self, record_type: RecordType, rows: list[Row], lock_ms: int | None = None) -> list[Answer]:
        """Store rows together. lock_ms: milliseconds to wait for a lock, if not the usual time."""

        def limited(transaction: Transaction) -> list[Row]:
            transaction.limit_lock_wait(cast(int, lock_ms))
            return self._run_passes(transaction, record_type, rows)

        try:
            if lock_ms is None:
                stored = self._database.on_connection(lambda run: self._run_passes(run, record_type, rows))
            else:
                stored = self._database.transact(limited)
        except Conflict as conflict:
            outcome = CONSTRAINTS.get(conflict.constraint)
            if outcome is None or len(rows) > 1:
                return [conflict] * len(rows)
            stored = [{**rows[0], "outcome": outcome}]
        except DatabaseError as error:
            return [error] * len(rows)
        self._hear(stored)
        metrics.stored(record_type.name, [row["outcome"] for row in stored])
        return list(stored)

    def _hear(self, stored: Iterable[Row]) -> None:
        """Remember after the commit of which instances a sign of life was noted."""
        for row in stored:
            if row.pop("notes_instance", False) and row["outcome"] in ("created", "duplicate"):
                self._heard.add((row["device_id"], row["instance_id"]))

    def _attempt_row(self, transaction: Transaction, record_type: RecordType, row: Row) -> Answer:
        try:
            return transaction.attempt(lambda: self._run_passes(transaction, record_type, [row])[0])
        except DatabaseError as error:
            return error

    def _run_passes(self, run: Transaction, record_type: RecordType, rows: list[Row]) -> list[Row]:
        """Run the statement of a record type, then the duplicate check for rows without an outcome, and so on in turns.

        A row that the duplicate check can't explain has changed meanwhile: the statement may take it now. Raises
        Unavailable when that does not end.
        """
        if record_type.is_event:
            for row in rows:
                instance_id = row["instance_id"]
                row["notes_instance"] = instance_id is not None and (row["device_id"], instance_id) not in self._heard
        answers: list[Row] = [{**row, "outcome": "device_unknown"} for row in rows]
        undecided: Sequence[int] = range(len(rows))
        for number in range(MAX_PASSES):
            text = dumps([{"ordinal": index, **rows[index]} for index in undecided])
            statement = record_type.duplicate_check if number % 2 else record_type.statement
            for found in run(statement, rows=text, instances_per_device=self.settings.instances_per_device):
                answers[found.pop("ordinal")].update(found)
            undecided = [index for index in undecided if answers[index]["outcome"] is None]
            if not undecided:
                return answers
        raise Unavailable


def _is_away(answer: Answer) -> bool:
    """Whether a row failed for want of the database, whichever row it was."""
    return isinstance(answer, Unavailable) and not answer.is_locked


def _is_locked(answer: Answer) -> bool:
    return isinstance(answer, Unavailable) and answer.is_locked


def _is_hopeless(answers: list[Answer]) -> bool:
    """Whether rows behind these need not be tried."""
    return bool(answers) and (_is_away(answers[-1]) or sum(map(_is_locked, answers)) >= MAX_LOCKED_ROWS)


def init_app(app: Flask) -> None:
    app.extensions["writer"] = Writer(app.extensions["db"])


writer = cast(Writer, LocalProxy(lambda: current_app.extensions["writer"]))
