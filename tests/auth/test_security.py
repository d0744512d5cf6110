"""docs/security.md is true: each point names tests that there are."""

from __future__ import annotations

import importlib
import re

from tests.support.service import ROOT

PAGE = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| ((?:API|V)\d+ [^|]*) \| ([^|]*) \| ([^|]*) \|$", PAGE, re.MULTILINE)


def test_every_point_is_there_once() -> None:
    names = [name.split(" ")[0] for name, _, _ in ROWS]
    assert names[:10] == [f"API{number}" for number in range(1, 11)]
    assert len(set(names)) == len(names) == PAGE.count("\n| API") + PAGE.count("\n| V")


def test_every_point_is_covered_by_tests_that_there_are() -> None:
    missing = []
    for point, _, tests in ROWS:
        named = re.findall(r"`(test_\w+)\.py::([\w:]+)`", tests)
        assert named, point
        assert tests.count("`") == 2 * len(named), point
        for file, path in named:
            place = next((ROOT / "tests").rglob(f"{file}.py")).relative_to(ROOT).with_suffix("")
            found = importlib.import_module(".".join(place.parts))
            for name in path.split("::"):
                found = getattr(found, name, None)
            if not callable(found) or not path.split("::")[-1].startswith("test_"):
                missing.append(f"{file}.py::{path}")
    assert missing == []
