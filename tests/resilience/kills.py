"""Processes killed with SIGKILL under load: what was acknowledged is stored, once."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator

from tests.resilience import Finding, Plan
from tests.resilience.machine import Machine, machine
from tests.support.fleet import Fleet


def run(plan: Plan) -> Iterator[Finding]:
    with machine(plan.folder / "machine") as computer:
        yield from on(computer, plan)


def on(computer: Machine, plan: Plan) -> Iterator[Finding]:
    """The same on a machine that runs already."""
    fleet = Fleet(computer.service)
    for what, kill in (
        ("kill -9 of a worker", Machine.kill_worker),
        ("kill -9 of gunicorn's master, then a start", _master),
        ("kill -9 of a PostgreSQL backend", Machine.kill_backend),
        ("kill -9 of all of PostgreSQL", Machine.kill_server),
        ("kill -9 of everything at once, then a start", _all),
    ):
        yield rounds(what, plan, computer, fleet, kill)
    yield _control(plan, computer)


def _master(computer: Machine) -> None:
    computer.kill_master()
    computer.start()


def _all(computer: Machine) -> None:
    computer.kill_all()
    computer.start()


def rounds(what: str, plan: Plan, computer: Machine, fleet: Fleet, kill: Callable[[Machine], None]) -> Finding:
    """kill: returns when what it killed has been started, or is starting, again."""
    before, longest = len(fleet.acknowledged), 0.0
    fleet.fresh_tally()
    with fleet.reporting():
        for _ in range(plan.rounds):
            fleet.until(plan.rows)
            time.sleep(random.random() / 5)
            began = time.monotonic()
            kill(computer)
            fleet.until(1)
            longest = max(longest, time.monotonic() - began)
        fleet.until(plan.rows)
    verdict, tally = fleet.compare(computer.url), fleet.tally
    count = f"{plan.rounds} rounds, {len(fleet.acknowledged) - before:,} rows acknowledged"
    broken = sum(tally.broken.values())
    result = (
        f"{verdict}; repeated after {tally.answers[503]} x 503 and {broken} broken connections; back in {longest:.1f} s"
    )
    is_passed = verdict.is_exact and not tally.wrong
    return Finding(what, count, result if not tally.wrong else f"{result}; {tally.wrong[:3]}", is_passed)


def _control(plan: Plan, computer: Machine) -> Finding:
    """The same with a server that answers before it has written: a harness that finds nothing here is blind."""
    computer.set(synchronous_commit="off", wal_writer_delay="10s")
    fleet = Fleet(computer.service)
    rounds = min(3, plan.rounds)
    with fleet.reporting():
        for _ in range(rounds):
            fleet.until(plan.rows)
            computer.kill_server()
            fleet.until(1)
    verdict = fleet.compare(computer.url)
    count = f"{rounds} rounds, {len(fleet.acknowledged):,} rows acknowledged"
    return Finding(
        "control: the same with synchronous_commit=off", count, f"lost {verdict.lost}, as it has to", verdict.lost > 0
    )
