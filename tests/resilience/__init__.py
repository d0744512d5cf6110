"""The fault and attack battery: what is said of trust, as figures.

Each chapter is a module with `run(plan)`, which yields a Finding for each line of the report. A chapter drives a real
service on a real database, counts what was acknowledged and looks at the rows.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class Plan:
    """How much of everything.

    rounds: repetitions of each fault. minutes: length of what only time shows. folder: for what is left behind, removed
    afterwards. rows: acknowledged at least before each fault, and after the last.
    """

    rounds: int
    minutes: float
    folder: Path
    rows: int = 1000


@dataclasses.dataclass(frozen=True)
class Finding:
    """One line of the report.

    what: the fault or attack. count: how many of what were tried, such as `20 rounds, 41,200 rows acknowledged`.
    result: what came of it, such as `lost 0, doubled 0`. passed: whether that is what has to come of it; None
    when it can't be tried here, and then the result says why.
    """

    what: str
    count: str
    result: str
    passed: bool | None
