"""Which browser instances this worker has heard of lately, so that a report need not look its instance up each time."""

from __future__ import annotations

import time

# Half of the time within which a report is noted as a sign of life of its instance.
GENERATION_SECONDS = 1800

Instance = tuple[str, str]


class Heard:
    """Devices' instances that were noted within the last half hour, or hour. A new worker has heard of none."""

    def __init__(self) -> None:
        self._current: set[Instance] = set()
        self._previous: set[Instance] = set()
        self._ends = time.monotonic() + GENERATION_SECONDS

    def __contains__(self, instance: Instance) -> bool:
        now = time.monotonic()
        if now >= self._ends:
            self._previous = self._current if now < self._ends + GENERATION_SECONDS else set()
            self._current, self._ends = set(), now + GENERATION_SECONDS
        return instance in self._current or instance in self._previous

    def add(self, instance: Instance) -> None:
        self._current.add(instance)
