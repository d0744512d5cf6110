"""Devices whose clocks are wrong, and spools that come late: their own time is kept, and ours beside it."""

from __future__ import annotations

import json
import time
import urllib.parse
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import psycopg
from psycopg.rows import dict_row

from tests.resilience import Finding, Plan
from tests.resilience.machine import Machine, machine
from tests.support.agent import Agent
from tests.support.service import Answer, Service

HOUR = 3600
# Seconds that our own times may be off by while a test runs.
CLOSE = 120
TABLES = (("prompts", "timestamp"), ("compliance_events", "detected_at"), ("extension_status", "reported_at"))


class WrongClock:
    """A device whose clock is off by so many seconds; it knows our time only from answers."""

    def __init__(self, service: Service, enrollment: str, off: int) -> None:
        self.service = service
        self.agent = Agent()
        self.off = off
        self.refused = 0
        answer = service.post(
            "/api/devices/register", self.agent.registration(registered_at=self.now() * 1000), enrollment
        )
        assert answer.status == 201, answer.body
        self.token = self._token()

    def now(self) -> int:
        return int(time.time()) + self.off

    def _token(self) -> str:
        """Sign with the device's own clock; when that is refused, with the time that the answer's Date tells."""
        now = self.now()
        while True:
            claims = {"iat": now, "exp": now + 60}
            form = urllib.parse.urlencode(self.agent.token_request(self.service.url, **claims)).encode()
            answer = self.service.post("/api/auth/token", form, **{"Content-Type": "application/x-www-form-urlencoded"})
            if answer.status == 200:
                return str(answer.json["access_token"])
            assert self.refused == 0, answer.body
            self.refused += 1
            now = int(parsedate_to_datetime(answer.headers["Date"]).timestamp())

    def post(self, path: str, **body: Any) -> Answer:
        return self.service.post(path, {"device_id": self.agent.device_id, **body}, self.token)

    def reports(self, at: int) -> list[tuple[str, str, dict[str, Any]]]:
        """One of each kind, of this time in epoch seconds; type, path and body."""
        prompt = {"site": "claude.ai", "url": "https://claude.ai/", "prompt": f"at {at}", "timestamp": at * 1000}
        event = {"event_type": "tamper_detected", "severity": "high", "detected_at": at * 1000}
        # Only its id says when it was: a UUIDv7.
        late = str(uuid.UUID(int=at * 1000 << 80 | 7 << 76 | 2 << 62 | uuid.uuid4().int & 2**62 - 1))
        given = {"instance_id": "profile-1"}
        return [
            ("prompt", "/api/prompt", prompt | given),
            ("compliance_event", "/api/compliance/event", event | given),
            ("extension_status", "/api/extension/status", {"status": "disabled", "status_id": late} | given),
        ]


def run(plan: Plan) -> Iterator[Finding]:
    with machine(plan.folder / "machine") as computer:
        yield from on(computer, plan)


def on(computer: Machine, plan: Plan) -> Iterator[Finding]:
    """The same on a machine that runs already."""
    uses = ["--max-uses", str(3 * plan.rounds), "--expires-in", "1h"]
    enrollment = computer.service.flask("enrollment", "create", "--label", "clocks", *uses)
    yield _wrong(plan, computer, enrollment, "an hour fast", HOUR)
    yield _wrong(plan, computer, enrollment, "an hour slow", -HOUR)
    yield _spool(plan, computer, enrollment)


def _wrong(plan: Plan, computer: Machine, enrollment: str, what: str, off: int) -> Finding:
    faults: list[str] = []
    reports = refused = 0
    for _ in range(plan.rounds):
        device = WrongClock(computer.service, enrollment, off)
        refused += device.refused
        at = device.now()
        for _, path, body in device.reports(at):
            reports += 1
            # The second is a repeat.
            statuses = [device.post(path, **body).status for _ in range(2)]
            if statuses != [201, 200]:
                faults.append(f"{path}: {statuses}")
        heartbeat = device.post("/api/devices/heartbeat").json
        if abs(heartbeat["server_time"] / 1000 - time.time()) > CLOSE:
            faults.append("server_time is not ours")
        faults += _stored(computer, device, [at])
    count = f"{plan.rounds} devices, {reports} reports, each sent twice"
    result = f"{len(faults)} with a wrong time or number; {refused} assertions refused, and signed anew by our Date"
    return Finding(f"a clock {what}", count, _with(result, faults), not faults and refused == plan.rounds)


def _spool(plan: Plan, computer: Machine, enrollment: str) -> Finding:
    """Three weeks of an offline device, in batches that are replayed, in part together with an item of next week."""
    faults: list[str] = []
    reports = 0
    for _ in range(plan.rounds):
        device = WrongClock(computer.service, enrollment, 0)
        sent_at = device.now()
        times = [sent_at - days * 24 * HOUR for days in range(1, 22)]
        items = [
            {"type": type_, "body": {"device_id": device.agent.device_id, **body}}
            for at in times
            for type_, _, body in device.reports(at)
        ]
        impossible = {"type": "prompt", "body": device.reports(sent_at + 7 * 24 * HOUR)[0][2]}
        impossible["body"]["device_id"] = device.agent.device_id
        reports += len(items)
        for wanted in (201, 200):
            answer = device.service.post("/api/batch", {"items": [*items, impossible]}, device.token)
            statuses = [result["status"] for result in answer.json["results"]]
            if statuses != [wanted] * len(items) + [400]:
                faults.append(f"batch: {sorted(set(statuses))}, not {wanted}")
        device.post("/api/devices/heartbeat")
        faults += _stored(computer, device, times)
    count = f"{plan.rounds} devices, {reports} reports, each sent twice"
    return Finding(
        "a spool of three weeks", count, _with(f"{len(faults)} with a wrong time or number", faults), not faults
    )


def _stored(computer: Machine, device: WrongClock, times: list[int]) -> Iterator[str]:
    """What is not as it has to be: a row for each time, with ours beside it, and a sign of life by our clock."""
    now = datetime.now(UTC)
    id_ = [device.agent.device_id]
    with psycopg.connect(computer.url, row_factory=dict_row) as connection:
        for table, column in TABLES:
            query = f'SELECT "{column}" AS theirs, created_at FROM {table} WHERE device_id = %s'
            rows = connection.execute(query, id_).fetchall()  # type: ignore[call-overload]
            if sorted(row["theirs"] for row in rows) != sorted(at * 1000 for at in times):
                yield f"{table} has {json.dumps([row['theirs'] for row in rows])[:200]}"
            if any(abs((now - row["created_at"]).total_seconds()) > CLOSE for row in rows):
                yield f"{table}: created_at is not ours"
        query = "SELECT last_heartbeat FROM devices WHERE device_id = %s"
        row = connection.execute(query, id_).fetchone()
        if row is None or abs((now - row["last_heartbeat"]).total_seconds()) > CLOSE:
            yield "last_heartbeat is not ours"


def _with(result: str, faults: list[str]) -> str:
    return f"{result}: {faults[:3]}" if faults else result
