"""Admission control: a worker that has too much to do refuses what can wait longest, before it reads a body (503)."""

from __future__ import annotations

import random
import threading
import time

from flask import request

from app.api import problems

# Priority of a route: the share of a worker's slots up to which it is served. What clients repeat anyway or can send
# later is refused first.
CRITICAL, NORMAL, LOW = 1.0, 0.8, 0.5
# A request takes one slot, and one more for each of so many bytes that it may hold in memory.
SLOT_BYTES = 65536
# Requests of a device's rate that each further slot costs.
SLOT_COST = 2
# Assumed compression ratio of a gzip body, until its size is known.
GZIP_RATIO = 10
# The share of a worker's slots that one caller may hold, and the slots that it may hold in any case. Otherwise a client
# that sends slowly on many connections would hold all of them.
MAX_CALLER_SHARE, MIN_CALLER_SLOTS = 1 / 8, 16
# Refused callers come back over at most so many seconds.
MAX_WAIT_SECONDS = 120
# Decay per second of what was measured before: about ten seconds count.
DECAY = 0.9
# Shortest loop tick that is measured, and the tick from which on a worker is late. A tick ends when everything that was
# ready at its beginning has run.
TICK_SECONDS = 0.01
LATE_TICK_SECONDS = 0.05


class Admission:
    """Slots for the requests that a worker handles at a time.

    taken: slots in use. A slow database fills them; a slow worker does not, since it accepts requests faster than it
    serves them: therefore a late loop tick admits no more requests than there are slots.
    """

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self.taken = 0
        self._max_of_caller = max(MIN_CALLER_SLOTS, slots * MAX_CALLER_SHARE)
        self._taken_by: dict[str, int] = {}
        # When this tick and this second began, and how many requests were admitted since.
        self._tick_began = self._second_began = 0.0
        self._admitted_in_tick = self._admitted = 0
        self._is_watched = False
        self._pace = self._refused = 0.0

    def acquire(self, priority: float, slots: int, own: int = 0) -> None:
        """Take slots until `release`. Raises Problem 503 when this priority's share of them is in use.

        own: slots that the same request holds already.
        """
        now = time.monotonic()
        if not self._is_watched:
            self._is_watched = True
            threading.Thread(target=self._watch_ticks, daemon=True).start()
        if now > self._second_began + 1:
            self._pace = max(self._pace * DECAY, self._admitted / (now - self._second_began))
            self._refused *= DECAY ** (now - self._second_began)
            self._second_began, self._admitted = now, 0
        limit = self._slots * priority
        # An idle worker takes any request, even one larger than the limit.
        is_full = self.taken > own and self.taken + slots > limit
        is_late = not own and self._admitted_in_tick >= limit and now > self._tick_began + LATE_TICK_SECONDS
        if is_full or is_late:
            self._refused += 1
            raise problems.overloaded(random.uniform(1, self._max_wait(now)))  # noqa: S311
        self.taken += slots
        if not own:
            self._admitted_in_tick += 1
            self._admitted += 1

    def release(self, slots: int) -> None:
        self.taken -= slots

    def charge(self, caller: str, slots: int, own: int = 0) -> None:
        """Count taken slots as this caller's until `discharge`. Raises Problem 429 when it holds too many.

        own: slots of the same request. One request may be of any size.
        """
        held = self._taken_by.get(caller, 0)
        if held > own and held + slots > self._max_of_caller:
            raise problems.too_many(1)
        self._taken_by[caller] = held + slots

    def discharge(self, caller: str, slots: int) -> None:
        left = self._taken_by.get(caller, 0) - slots
        if left > 0:
            self._taken_by[caller] = left
        else:
            # With threads two of its requests may have counted as one: the second finds nothing left.
            self._taken_by.pop(caller, None)

    def _max_wait(self, now: float) -> float:
        """Seconds that it takes to serve everything refused lately; refused callers come back spread over them.

        Counts with the best pace of late: an idle worker serves few requests, however many it could.
        """
        pace = max(1.0, self._pace, self._admitted / max(0.1, now - self._second_began))
        return min(MAX_WAIT_SECONDS, 2 + self._refused / pace)

    def _watch_ticks(self) -> None:
        """Note when ticks begin while requests come: a sleeper wakes after everything that was ready before it."""
        while True:
            self._tick_began, self._admitted_in_tick = time.monotonic(), 0
            time.sleep(TICK_SECONDS)
            if not self._admitted_in_tick:
                break
        self._is_watched = False


class Slots:
    """Slots that a request holds until it is answered; a context manager. Raises Problem 503 when there are too few."""

    def __init__(self, admission: Admission, priority: float, number: int) -> None:
        self._admission = admission
        self.priority = priority
        self._caller = ""
        self._charged = 0
        # Bytes of the body, inflated, as far as it has been read.
        self.size = 0
        admission.acquire(priority, number)
        self._taken = number

    def __enter__(self) -> Slots:
        return self

    def __exit__(self, *_: object) -> None:
        self._admission.release(self._taken)
        if self._charged:
            self._admission.discharge(self._caller, self._charged)

    @property
    def cost(self) -> float:
        """What their request cost beyond an ordinary one, in requests: by the size of its body."""
        return self.size // SLOT_BYTES * SLOT_COST

    @property
    def is_large(self) -> bool:
        """Whether its body was larger than an ordinary one."""
        return self.size >= SLOT_BYTES

    def charge(self, caller: str) -> None:
        """Count them as this caller's. Raises Problem 429 when it holds too many."""
        self._admission.charge(caller, self._taken)
        self._caller, self._charged = caller, self._taken

    def grow(self, size: int) -> None:
        """Hold enough of them for so many bytes. Raises Problem 429 or 503."""
        self.size = size
        more = 1 + size // SLOT_BYTES - self._taken
        if more <= 0:
            return
        if self._charged:
            self._admission.charge(self._caller, more, self._charged)
            self._charged += more
        self._admission.acquire(self.priority, more, self._taken)
        self._taken += more


def acquire_slots(admission: Admission, priority: float, max_size: int) -> Slots:
    """Slots for the current request, by what it says of its body. Raises Problem 503.

    max_size: bytes that the route takes.
    """
    length = request.content_length
    if length is None:
        length = max_size if "HTTP_TRANSFER_ENCODING" in request.environ else 0
    elif "HTTP_CONTENT_ENCODING" in request.environ:
        length *= GZIP_RATIO
    return Slots(admission, priority, 1 + min(length, max_size) // SLOT_BYTES)
