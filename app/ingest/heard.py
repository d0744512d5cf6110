"""Which browser instances this worker has heard of lately, so that a report need not look its instance up each time."""

from __future__ import annotations

import time

# Half of the time within which a report is noted as a sign of life of its instance.
GENERATION_SECONDS = 1800

Instance = tuple[str, str]


class Heard:
    """Devices' instances of the last half hour to hour, never of longer ago. A new worker has heard of none."""

    def __init__(self) -> None:
        self._current: set[Instance] = set()
        self._previous: set[Instance] = set()
        self._ends = time.monotonic() + GENERATION_SECONDS

    def __contains__(self, instance: Instance) -> bool:
        now = time.monotonic()
        if now >= self._ends:
            is_next = now < self._ends + GENERATION_SECONDS
            self._previous = self._current if is_next else set()
            # Counted from the last one's end, not from now: an instance would be remembered for longer than an hour.
            self._current, self._ends = set(), (self._ends if is_next else now) + GENERATION_SECONDS
        return instance in self._current or instance in self._previous

    def add(self, instance: Instance) -> None:
        self._current.add(instance)
