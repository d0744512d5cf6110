"""How a run is divided among pytest-xdist's processes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TypeVar

Item = TypeVar("Item")


def processes(arguments: Sequence[str], keyword: str) -> int:
    """How many processes a run is worth; 0: the one that there is already.

    arguments: the files and folders that were asked for. keyword: what `-k` was given. Each process costs the start of
    a PostgreSQL. There are more than there are cores, since tests of whole services wait most of the time.
    """
    files = {argument.split("::")[0] for argument in arguments}
    most = 2 * (os.cpu_count() or 1)
    if any(not file.endswith(".py") for file in files):
        return 0 if keyword else most
    return min(len(files), most) if len(files) > 1 else 0


def dealt(items: Sequence[Item], first: Sequence[Sequence[Item]], hands: int) -> list[Item]:
    """Order tests so that the longest files begin at once, each in a process of its own.

    `--dist=worksteal` gives each process a hand of neighbours of equal size, and later moves tests from the ends of
    full hands to processes that are done. first: the tests of the longest files, the longest file first.
    """
    starts: list[list[Item]] = [[] for _ in range(hands)]
    for number, tests in enumerate(first):
        starts[number % hands] += tests
    early = {id(item) for tests in first for item in tests}
    rest = iter([item for item in items if id(item) not in early])
    order: list[Item] = []
    for number, start in enumerate(starts):
        size = (len(items) - len(order)) // (hands - number)
        order += start
        order += [item for _, item in zip(range(size - len(start)), rest, strict=False)]
    return order
