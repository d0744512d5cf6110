"""A run is divided among as many processes as it is worth, and its longest files begin at once."""

from __future__ import annotations

import pytest

from tests.support import distribution


@pytest.fixture(autouse=True)
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)


@pytest.mark.parametrize(
    ("arguments", "keyword", "expected"),
    [
        (["tests"], "", 4),
        (["tests"], "pagination", 0),
        (["tests/a.py"], "", 0),
        (["tests/a.py::test_one", "tests/a.py::test_two"], "", 0),
        (["tests/a.py", "tests/b.py"], "", 2),
        (["tests/a.py", "tests/db"], "", 4),
        ([f"tests/{number}.py" for number in range(9)], "", 4),
    ],
)
def test_the_number_of_test_processes_follows_what_is_asked_for(
    arguments: list[str], keyword: str, expected: int
) -> None:
    assert distribution.processes(arguments, keyword) == expected


@pytest.mark.parametrize("hands", [1, 2, 3, 4, 7])
def test_the_longest_test_files_begin_in_processes_of_their_own(hands: int) -> None:
    items = list(range(103))
    first = [[90, 91], [5], [60, 61, 62]]
    order = distribution.dealt(items, first, hands)
    assert sorted(order) == items
    starts, rest = [], order
    for left in range(hands, 0, -1):
        starts.append(rest[0])
        rest = rest[len(rest) // left :]
    assert starts[: min(hands, 3)] == [90, 5, 60][:hands]
    others = [item for item in order if item not in {90, 91, 5, 60, 61, 62}]
    assert others == sorted(others)


def test_a_run_of_long_test_files_alone_leaves_none_out() -> None:
    items = list(range(7))
    assert sorted(distribution.dealt(items, [items], 4)) == items
    assert distribution.dealt([], [[], []], 4) == []
