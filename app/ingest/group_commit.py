"""Group commit: one statement and one commit for all rows that wait at the same time, without a background thread.

The first caller becomes the leader: it stores the queued rows as one batch and hands each caller its answer. Callers
that queue meanwhile wait; then the first of them leads the next batch. Under load a batch holds the rows that came
during the commit before it; without load each row is a batch of one. Clients that are answered together send their next
requests together, a few at a time, so a leader waits for as many rows as the last batch had, a millisecond at most.
Works with threads and with greenlets.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

from gevent import monkey

Item = TypeVar("Item")
Answer = TypeVar("Answer")


# How long a leader waits for the expected rows.
GATHER_SECONDS = 0.001


class QueueFull(Exception):
    """The queue is full, or a row waited for too long; then it is not known whether that row is stored."""


class _Waiter(Generic[Item, Answer]):
    __slots__ = ("answer", "leads", "row", "since", "woken")

    def __init__(self, row: Item) -> None:
        self.row = row
        self.since = time.perf_counter()
        self.answer: Answer | Exception | None = None
        self.leads = False
        self.woken = threading.Lock()
        self.woken.acquire()


class GroupCommit(Generic[Item, Answer]):
    """Rows of one record type on their way into the database.

    run: stores a list of rows and returns as many answers, in order, after the commit; an answer that is an exception
    is raised for the row that it belongs to.
    max_rows: rows in a batch. max_waiting: rows in the queue. timeout: seconds that a row may wait.
    waited: called for each batch with the seconds that its first row waited.
    """

    def __init__(
        self,
        run: Callable[[list[Item]], list[Answer | Exception]],
        *,
        max_rows: int,
        max_waiting: int,
        timeout: float,
        waited: Callable[[float], None] = lambda _: None,
    ) -> None:
        self._run = run
        self._max_rows = max_rows
        self._max_waiting = max_waiting
        self._timeout = timeout
        self._waited = waited
        # Held for moments and never across a wait, so greenlets need no lock of their own kind.
        self._lock = monkey.get_original("threading", "Lock")()
        self._queue: deque[_Waiter[Item, Answer]] = deque()
        self._led = False
        # Rows of the last batch, and the leader that waits for as many.
        self._expected = 1
        self._gathering: _Waiter[Item, Answer] | None = None

    def submit(self, row: Item) -> Answer:
        """Store one row together with others and return its answer, after the commit.

        Raises QueueFull, and what `run` raised or answered.
        """
        me: _Waiter[Item, Answer] = _Waiter(row)
        with self._lock:
            if len(self._queue) >= self._max_waiting:
                raise QueueFull
            self._queue.append(me)
            if not self._led:
                self._led = me.leads = True
            elif self._gathering is not None and len(self._queue) >= self._expected:
                self._gathering.woken.release()
                self._gathering = None
        try:
            if not me.leads:
                self._wait(me)
            if me.leads:
                self._lead(me)
        except BaseException:
            # Also when a greenlet is killed: the other callers must not wait for it to lead.
            self._leave(me)
            raise
        if isinstance(me.answer, Exception):
            raise me.answer
        assert me.answer is not None
        return me.answer

    def _wait(self, me: _Waiter[Item, Answer]) -> None:
        if me.woken.acquire(timeout=self._timeout):
            return
        with self._lock:
            # Woken at the last moment: it has an answer, or has to lead.
            if me.leads or me.answer is not None:
                return
            if me in self._queue:
                self._queue.remove(me)
        raise QueueFull

    def _leave(self, me: _Waiter[Item, Answer]) -> None:
        with self._lock:
            if me in self._queue:
                self._queue.remove(me)
            if self._gathering is me:
                self._gathering = None
            if me.leads:
                me.leads = False
                self._pass_on()

    def _pass_on(self) -> None:
        """Let the first waiting caller lead; called with the lock held."""
        if self._queue:
            heir = self._queue[0]
            heir.leads = True
            heir.woken.release()
        else:
            self._led = False

    def _lead(self, me: _Waiter[Item, Answer]) -> None:
        # Greenlets that are ready run first: they may have rows for this batch.
        time.sleep(0)
        with self._lock:
            if len(self._queue) < self._expected:
                self._gathering = me
        if self._gathering is me:
            me.woken.acquire(timeout=GATHER_SECONDS)
        with self._lock:
            self._gathering = None
            self._expected = min(self._max_rows, len(self._queue))
            taken = [self._queue.popleft() for _ in range(self._expected)]
        answers: list[Answer | Exception]
        try:
            self._waited(time.perf_counter() - taken[0].since)
            answers = self._run([waiter.row for waiter in taken])
        except BaseException as error:
            fault = error if isinstance(error, Exception) else RuntimeError("the worker stops")
            answers = [fault] * len(taken)
            raise
        finally:
            with self._lock:
                for waiter, answer in zip(taken, answers, strict=True):
                    waiter.answer = answer
                me.leads = False
                self._pass_on()
            for waiter in taken:
                if waiter is not me:
                    waiter.woken.release()
