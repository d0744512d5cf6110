"""Restarts that an operator asks for, under load: no request is cut off, none is refused while a worker lives.

At a stop of the whole service a connection that no worker has accepted yet is reset by the kernel; its client repeats.
That may happen to one in MIN_CONNECTIONS_PER_RESET.
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Iterator

from tests.resilience import Finding, Plan
from tests.resilience.machine import Machine, machine
from tests.support.fleet import Fleet

# What a client sees when nobody listens, and when its connection is reset before it was accepted; everything else is a
# request that was cut off.
NOBODY = "ConnectionRefusedError"
RESET = ("ConnectionResetError", "BrokenPipeError")
MIN_CONNECTIONS_PER_RESET = 10_000


def run(plan: Plan) -> Iterator[Finding]:
    with machine(plan.folder / "machine") as computer:
        yield from on(computer, plan)


def on(computer: Machine, plan: Plan) -> Iterator[Finding]:
    """The same on a machine that runs already."""
    fleets = [Fleet(computer.service, 10), Fleet(computer.service, 10, keep_alive=False)]
    for what, restart, may_refuse in (
        ("SIGHUP to the master: new workers", _replace, False),
        ("SIGTERM to a worker", _end_worker, False),
        ("SIGTERM to the master, then a start", _restart, True),
    ):
        yield _rounds(what, plan, computer, fleets, restart, may_refuse)


def _replace(computer: Machine) -> None:
    before = computer.workers()
    computer.service.process.send_signal(signal.SIGHUP)
    _until_gone(computer, before)


def _end_worker(computer: Machine) -> None:
    worker = computer.workers()[0]
    worker.terminate()
    _until_gone(computer, [worker])


def _until_gone(computer: Machine, workers: list[object]) -> None:
    """Return when these are gone and as many as before are there."""
    deadline = time.monotonic() + 90
    while True:
        now = computer.workers()
        if len(now) == int(computer.service.environment["WATCHPOST_WORKERS"]) and not set(now) & set(workers):
            return
        assert time.monotonic() < deadline, f"{workers} are still there"
        time.sleep(0.05)


def _restart(computer: Machine) -> None:
    code = computer.service.end()
    assert code == 0, f"the service ended with {code}"
    computer.start()


def _rounds(
    what: str, plan: Plan, computer: Machine, fleets: list[Fleet], restart: Callable[[Machine], None], may_refuse: bool
) -> Finding:
    before = [len(fleet.acknowledged) for fleet in fleets]
    for fleet in fleets:
        fleet.fresh_tally()
    with contextlib.ExitStack() as stack:
        for fleet in fleets:
            stack.enter_context(fleet.reporting())
        for _ in range(plan.rounds):
            for fleet in fleets:
                fleet.until(plan.rows // 2)
            restart(computer)
        for fleet in fleets:
            fleet.until(plan.rows // 2)
    verdict = fleets[0].compare(computer.url, *fleets[1:])
    answered = sum(sum(fleet.tally.answers.values()) for fleet in fleets)
    broken = sum((fleet.tally.broken for fleet in fleets), type(fleets[0].tally.broken)())
    refused = broken.pop(NOBODY, 0)
    resets = sum(broken.pop(kind, 0) for kind in RESET)
    # Of a few thousand connections one reset proves nothing.
    connections = sum(sum(fleet.tally.answers.values()) for fleet in fleets if not fleet.keep_alive)
    may_reset = max(1, connections // MIN_CONNECTIONS_PER_RESET) if may_refuse else 0
    unavailable = sum(fleet.tally.answers[503] for fleet in fleets)
    wrong = [line for fleet in fleets for line in fleet.tally.wrong]
    rows = sum(len(fleet.acknowledged) for fleet in fleets) - sum(before)
    result = f"cut off {sum(broken.values())}, reset {resets} of {connections:,} connections, 503 {unavailable}, "
    result += f"not connected {refused}; {verdict}"
    if broken or wrong:
        result += f"; {dict(broken)} {wrong[:3]}"
    is_passed = verdict.is_exact and not broken and not unavailable and not wrong
    is_passed = is_passed and resets <= may_reset and (may_refuse or not refused)
    return Finding(what, f"{plan.rounds} rounds, {answered:,} answers, {rows:,} rows acknowledged", result, is_passed)
