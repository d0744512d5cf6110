"""The quick part of the battery of faults: each fault once, with little load."""

from __future__ import annotations

import importlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.battery import Plan


@pytest.fixture
def folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="wp-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.parametrize("chapter", ["kills", "restarts", "network", "clocks", "soak"])
def test_what_the_battery_finds_is_as_it_has_to_be(chapter: str, folder: Path) -> None:
    plan = Plan(rounds=1, minutes=0.05, folder=folder, rows=100)
    findings = list(importlib.import_module(f"tests.battery.{chapter}").run(plan))
    assert findings
    assert [finding for finding in findings if finding.passed is False] == []
