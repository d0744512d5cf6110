"""Restarts and killed workers behind the nginx of docs/deployment.md: clients see answers, and no broken connection."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from tests.resilience import Finding, Plan, restarts
from tests.resilience.machine import Machine, machine
from tests.support import nginx
from tests.support.fleet import Fleet


def run(plan: Plan) -> Iterator[Finding]:
    with machine(plan.folder / "machine") as computer:
        yield from on(computer, plan)


def on(computer: Machine, plan: Plan) -> Iterator[Finding]:
    """The same on a machine that runs already."""
    if nginx.PROGRAM is None:
        yield Finding("restarts behind nginx", "-", nginx.MISSING, None)
        return
    with nginx.running(computer.service, plan.folder) as front:
        fleets = [Fleet(computer.service, 10, address=front.address, keep_alive=alive) for alive in (True, False)]
        for what, fault in (
            ("SIGHUP to the master behind nginx", restarts._replace),
            ("SIGTERM to the master behind nginx, then a start", restarts._restart),
            ("SIGKILL to a worker behind nginx", _kill_worker),
        ):
            yield _rounds(what, plan, computer, fleets, fault)


def _kill_worker(computer: Machine) -> None:
    worker = computer.workers()[0]
    worker.kill()
    restarts._until_gone(computer, [worker])


def _rounds(what: str, plan: Plan, computer: Machine, fleets: list[Fleet], fault: Callable[[Machine], None]) -> Finding:
    """Repeat a fault under load. Passes when every answer is 2xx, 429 or 503 with Retry-After, and every row exact."""
    before = sum(len(fleet.acknowledged) for fleet in fleets)
    for fleet in fleets:
        fleet.fresh_tally()
    with contextlib.ExitStack() as stack:
        for fleet in fleets:
            stack.enter_context(fleet.reporting())
        for _ in range(plan.rounds):
            for fleet in fleets:
                fleet.until(plan.rows // 2)
            fault(computer)
        for fleet in fleets:
            fleet.until(plan.rows // 2)
    verdict = fleets[0].compare(computer.url, *fleets[1:])
    tallies = [fleet.tally for fleet in fleets]
    answers = sum(tally.answers.total() for tally in tallies)
    broken = sum(tally.broken.total() for tally in tallies)
    unavailable = sum(tally.answers[503] for tally in tallies)
    wrong = [line for tally in tallies for line in tally.wrong]
    rows = sum(len(fleet.acknowledged) for fleet in fleets) - before
    return Finding(
        what,
        f"{plan.rounds} rounds, {answers:,} answers, {rows:,} rows acknowledged",
        f"broken connections {broken}, 503 {unavailable}, other answers {wrong[:3]}; {verdict}",
        verdict.is_exact and not broken and not wrong,
    )
