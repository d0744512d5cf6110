"""The resilience scenarios in short: each fault once, with little load, on one machine."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from tests.resilience import Plan, clocks, kills, network, power, restarts, soak
from tests.resilience.machine import machine


@pytest.mark.timeout(900)
def test_every_resilience_scenario_passes_with_little_load(folder: Path) -> None:
    plan = Plan(rounds=1, minutes=0.05, folder=folder, rows=100)
    with machine(folder / "machine") as computer:
        # The last of them leaves a server that loses rows.
        for scenario in (soak, clocks, network, restarts, kills):
            findings = list(scenario.on(computer, plan))
            assert findings
            assert [finding for finding in findings if finding.passed is False] == []


def test_a_power_failure_loses_nothing_that_was_acknowledged(folder: Path) -> None:
    with contextlib.closing(power.run(Plan(rounds=1, minutes=0, folder=folder, rows=50))) as findings:
        found = next(findings)
    if found.passed is None:
        pytest.skip(found.result)
    assert found.passed, found
