"""Connections that are late, cut, half-closed or silent, before the service and behind it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from tests.resilience import Finding, Plan
from tests.resilience.machine import SETTINGS, Machine, machine
from tests.support.agent import Agent
from tests.support.fleet import Fleet, Line
from tests.support.proxy import CUT, HALF_CLOSE, SILENCE, Proxy, proxying
from tests.support.service import serving

# Seconds after which an agent takes a silent connection for lost.
PATIENCE = 4
# Seconds until an answer when the database keeps silent: a wait for a connection and a statement, and once more.
LIMITS = {"pool_wait_seconds": 2, "statement_timeout_ms": 2000}
# The rest is for a machine that is slow; without the limits it is the fleet's own timeout, a minute.
LONGEST = 40
# Seconds that a slow machine may take to notice.
GRACE = 20
FAULTS = (CUT, HALF_CLOSE, SILENCE)


def run(plan: Plan) -> Iterator[Finding]:
    with machine(plan.folder / "machine") as computer:
        yield from on(computer, plan)


def on(computer: Machine, plan: Plan) -> Iterator[Finding]:
    """The same on a machine that runs already."""
    host, port = computer.service.bind.split(":")
    with proxying((host, int(port))) as proxy:
        yield _registrations(plan, computer, proxy)
        before = Fleet(computer.service, address=proxy.address, timeout=PATIENCE)
        for fault in FAULTS:
            yield _rounds(f"agents to service: delays, {fault}", plan, computer, proxy, fault, PATIENCE + GRACE, before)
    (plan.folder / "behind").mkdir(mode=0o755)
    with proxying(str(computer.cluster / ".s.PGSQL.5432")) as proxy:
        url = f"postgresql://postgres@{proxy.address[0]}:{proxy.address[1]}/watchpost"
        with serving(plan.folder / "behind", database_url=url, **SETTINGS, **LIMITS) as service:
            behind = Fleet(service)
            for fault in FAULTS:
                what = f"service to database: delays, {fault}"
                yield _rounds(what, plan, computer, proxy, fault, LONGEST, behind)
            proxy.fault = None


def _rounds(
    what: str, plan: Plan, computer: Machine, proxy: Proxy, fault: str, longest: float, fleet: Fleet
) -> Finding:
    before, broken = len(fleet.acknowledged), proxy.broken
    fleet.fresh_tally()
    with fleet.reporting():
        for _ in range(plan.rounds):
            proxy.fault, proxy.likelihood, proxy.delay = fault, 0.01, 0.02
            happened = proxy.broken
            fleet.until(plan.rows // 2)
            while proxy.broken == happened:
                fleet.until(1)
            proxy.fault, proxy.delay = None, 0.0
            fleet.until(plan.rows // 2)
    verdict, tally = fleet.compare(computer.url), fleet.tally
    happened = proxy.broken - broken
    result = f"{verdict}; longest wait {tally.longest:.1f} s, 503 {tally.answers[503]}"
    if tally.wrong:
        result += f"; {tally.wrong[:3]}"
    is_passed = verdict.is_exact and not tally.wrong and happened > 0 and tally.longest < longest
    count = f"{plan.rounds} rounds, {happened} faults, {len(fleet.acknowledged) - before:,} rows acknowledged"
    return Finding(what, count, result, is_passed)


def _registrations(plan: Plan, computer: Machine, proxy: Proxy) -> Finding:
    """With an enrolment that is good for as many devices as there are: a repeat that used it once more would show."""
    agents = [Agent() for _ in range(10 * plan.rounds)]
    uses = ["--max-uses", str(len(agents)), "--expires-in", "1h"]
    enrollment = computer.service.flask("enrollment", "create", "--label", "network", *uses)
    proxy.fault, proxy.likelihood, proxy.delay, broken = CUT, 0.3, 0.02, proxy.broken

    def register(agent: Agent) -> int:
        body = json.dumps(agent.registration()).encode()
        head = (
            "POST /api/devices/register HTTP/1.1\r\nHost: watchpost\r\nContent-Type: application/json\r\n"
            f"Authorization: Bearer {enrollment}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        for _ in range(100):
            try:
                status, _, _ = Line(proxy.address, PATIENCE).exchange(head.encode() + body)
            except OSError:
                continue
            if status not in (429, 503):
                return status
        return 0

    with ThreadPoolExecutor(10) as threads:
        statuses = list(threads.map(register, agents))
    while proxy.broken == broken:
        # Chance has spared all of them.
        statuses.append(register(agents[0]))
    proxy.fault = None
    wrong = [status for status in statuses if status not in (200, 201)]
    [(used,)] = computer.ask("SELECT uses FROM enrollments WHERE label = 'network'")
    ids = ", ".join(f"'{agent.device_id}'" for agent in agents)
    [(stored,)] = computer.ask(f"SELECT count(*) FROM devices WHERE device_id IN ({ids})")
    return Finding(
        "registrations: delays, cut",
        f"{len(agents)} devices, {proxy.broken - broken} faults",
        f"{stored} registered, {used} uses of the enrolment, refused {len(wrong)}",
        not wrong and stored == used == len(agents) and proxy.broken > broken,
    )
