"""Resilience: faults and attacks, with counts of what came of them (`make battery`).

Each scenario is a module with `run(plan)`, which yields a Finding for each line of the report. A scenario drives a real
service on a real database, counts what was acknowledged and looks at the rows.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class Plan:
    """How much of everything.

    rounds: repetitions of each fault. minutes: length of a scenario that needs time, such as the soak. folder: for the
    files of the run, removed afterwards. rows: rows acknowledged at least before each fault, and after the last.
    """

    rounds: int
    minutes: float
    folder: Path
    rows: int = 1000


@dataclasses.dataclass(frozen=True)
class Finding:
    """One line of the report.

    what: the fault or attack. count: the number of attempts, such as `20 rounds, 41,200 rows acknowledged`.
    result: the outcome, such as `lost 0, doubled 0`. passed: whether the outcome is the required one; None when the
    fault can't be tried here, and then the result says why.
    """

    what: str
    count: str
    result: str
    passed: bool | None
