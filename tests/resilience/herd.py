"""A herd: thousands of devices that come back in the same second, each with what it spooled in a day."""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import json
import random
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg

from app.dev import embedded
from tests.resilience import Finding, Plan, crowd
from tests.support.service import Service, serving

DEVICES = 5000
# Of a day's spool: what goes one by one, and what goes in a batch.
SINGLES = {"device_heartbeat": 1, "browser_heartbeat": 1, "prompt": 2, "compliance_event": 1}
BATCHED = {"prompt": 8, "extension_status": 1, "compliance_event": 1}
PATHS = {
    "device_heartbeat": "/api/devices/heartbeat",
    "browser_heartbeat": "/api/browsers/heartbeat",
    "prompt": "/api/prompt",
    "compliance_event": "/api/compliance/event",
    "batch": "/api/batch",
}
# Which share of a worker each is served up to: see app/limits/admission.py.
CLASSES = {
    "compliance_event": "events",
    "prompt": "prompts",
    "batch": "batches",
    "device_heartbeat": "heartbeats",
    "browser_heartbeat": "heartbeats",
}
COUNTS = """
SELECT
    (SELECT count(*) FROM prompts) AS prompts,
    (SELECT count(*) FROM compliance_events) AS events,
    (SELECT count(*) FROM extension_status) AS statuses,
    (SELECT count(last_heartbeat) FROM devices) AS devices,
    (SELECT count(last_seen) FROM browser_instances) AS browsers
"""


@dataclasses.dataclass
class Seen:
    """What the devices of a herd saw of one class: answers that were sheds, waits they were told, times of answers."""

    requests: int = 0
    sheds: int = 0
    shed_first: int = 0
    retry_after: collections.Counter[int] = dataclasses.field(default_factory=collections.Counter)
    seconds: list[float] = dataclasses.field(default_factory=list)
    drained: float = 0.0


class Herd:
    """Devices that send until all that they have is acknowledged."""

    def __init__(self, bind: str, devices: list[str], tokens: list[str]) -> None:
        self._bind = bind
        self._spools = [list(_spool(device, token)) for device, token in zip(devices, tokens, strict=True)]
        self.seen: dict[str, Seen] = collections.defaultdict(Seen)
        self.broken = 0
        self.unexpected: collections.Counter[str] = collections.Counter()

    async def return_at_once(self) -> float:
        """Returns the seconds until the last device was rid of all it had."""
        crowd.allow_many_connections()
        began = time.monotonic()
        await asyncio.gather(*(self._drain(spool, began) for spool in self._spools))
        return time.monotonic() - began

    async def _drain(self, spool: list[tuple[str, bytes]], began: float) -> None:
        caller = crowd.Caller(self._bind)
        # When each may be sent; what was refused waits as it was told, the others need not.
        due = [(0.0, number) for number in range(len(spool))]
        tried: set[int] = set()
        while due:
            due.sort()
            at, number = due.pop(0)
            if (pause := at - time.monotonic()) > 0:
                if pause > 1:
                    caller.close()
                await asyncio.sleep(pause)
            kind, request = spool[number]
            seen = self.seen[CLASSES[kind]]
            answer = await caller.send(request)
            seen.requests += 1
            seen.seconds.append(answer.seconds)
            if answer.status in (429, 503):
                seen.sheds += 1
                seen.shed_first += number not in tried
                seen.retry_after[answer.retry_after] += 1
                # A little beside the second, as clients' clocks are.
                due.append((time.monotonic() + answer.retry_after * random.uniform(1, 1.1), number))
            elif not _is_stored(kind, answer):
                self.unexpected[f"{kind} {answer.status}"] += 1
            else:
                seen.drained = time.monotonic() - began
            tried.add(number)
        self.broken += caller.broken
        caller.close()


def _is_stored(kind: str, answer: crowd.Answer) -> bool:
    if kind == "batch" and answer.status == 200:
        return all(result["status"] in (200, 201) for result in json.loads(answer.body)["results"])
    return answer.status in (200, 201)


def _spool(device: str, token: str) -> Iterator[tuple[str, bytes]]:
    """The requests of a day, in any order."""
    items = [(kind, _body(kind, device)) for kind, amount in BATCHED.items() for _ in range(amount)]
    singles = [(kind, _body(kind, device)) for kind, amount in SINGLES.items() for _ in range(amount)]
    singles.append(("batch", {"items": [{"type": kind, "body": body} for kind, body in items]}))
    random.shuffle(singles)
    for kind, body in singles:
        yield kind, crowd.post(PATHS[kind], body, token)


def _body(kind: str, device: str) -> dict[str, Any]:
    then = int((time.time() - random.uniform(0, 86400)) * 1000)
    instance = f"browser-of-{device}"
    if kind == "device_heartbeat":
        return {"device_id": device, "hostname": f"host-of-{device}"}
    if kind == "browser_heartbeat":
        return {"instance_id": instance, "browser_name": "chrome"}
    if kind == "extension_status":
        return {"instance_id": instance, "status": "enabled", "status_id": str(uuid.uuid4()), "reported_at": then}
    if kind == "compliance_event":
        event = {"event_type": "prompt_blocked", "severity": "high", "event_id": str(uuid.uuid4()), "detected_at": then}
        return {"device_id": device, "instance_id": instance, **event, "details": {"rule": "customer-data"}}
    return {
        "device_id": device,
        "instance_id": instance,
        "prompt_id": str(uuid.uuid4()),
        "timestamp": then,
        "site": "chatgpt.com",
        "url": "https://chatgpt.com/",
        "prompt": "Summarise the attached minutes of the meeting in five points. " * 5,
    }


def stampede(service: Service, database_url: str, devices: int) -> tuple[Herd, float, crowd.Watched, dict[str, int]]:
    """Let a herd of so many devices return to a service. Returns it, its seconds, what was watched, and the rows."""
    ids = crowd.fill(database_url, devices)
    signed = crowd.tokens(Path(service.environment["WATCHPOST_DATA_DIR"]) / "signing-keys.json", service.url, ids)
    herd = Herd(service.bind, ids, signed)
    with crowd.watching(service.url, service.process.pid) as watched:
        seconds = asyncio.run(herd.return_at_once())
    with psycopg.connect(database_url, row_factory=psycopg.rows.dict_row) as connection:
        stored = connection.execute(COUNTS).fetchone()
    assert stored is not None
    return herd, seconds, watched[0], stored


def expected(devices: int) -> dict[str, int]:
    """The rows that a herd of so many devices leaves."""
    of_each = collections.Counter(SINGLES) + collections.Counter(BATCHED)
    return {
        "prompts": devices * of_each["prompt"],
        "events": devices * of_each["compliance_event"],
        "statuses": devices * of_each["extension_status"],
        "devices": devices,
        "browsers": devices,
    }


def run(plan: Plan) -> Iterator[Finding]:
    # Settings as they are by default; the service brings its own PostgreSQL.
    with serving(plan.folder, workers=0) as service:
        url = embedded.url(str(plan.folder / "data"))
        herd, seconds, watched, stored = stampede(service, url, DEVICES)
    requests = sum(seen.requests for seen in herd.seen.values())
    sheds = sum(seen.sheds for seen in herd.seen.values())
    rows = sum(stored.values())
    lost = sum(expected(DEVICES).values()) - rows
    yield Finding(
        f"{DEVICES:,} devices return in one second, each with a day's spool",
        f"{requests:,} requests, {rows:,} rows acknowledged, {herd.broken:,} connections broken",
        f"lost {lost}, doubled {max(0, -lost)}, other refusals {sum(herd.unexpected.values())}; "
        f"all drained in {seconds:.0f} s without an operator",
        stored == expected(DEVICES) and not herd.unexpected,
    )
    shares = {name: herd.seen[name].shed_first / (DEVICES * amount) for name, amount in _amounts().items()}
    told = collections.Counter[int]()
    for seen in herd.seen.values():
        told += seen.retry_after
    yield Finding(
        "sheds by priority: share refused at the first try, and until when",
        f"{sheds:,} sheds",
        "; ".join(f"{name} {share:.0%}, drained in {herd.seen[name].drained:.0f} s" for name, share in shares.items()),
        shares["events"] <= shares["prompts"] <= shares["heartbeats"],
    )
    yield Finding(
        "who was shed is told when to return",
        f"{told.total():,} answers with Retry-After",
        f"from {min(told, default=0)} to {max(told, default=0)} s, {len(told)} different",
        told.total() == sheds and 0 not in told,
    )
    worst = max(watched.alive, default=0)
    yield Finding(
        "liveness and memory meanwhile",
        f"{len(watched.alive)} probes of /livez, a new connection each",
        f"worst {worst * 1000:.0f} ms, not alive {len(watched.dead)}; "
        f"largest worker {watched.peak_bytes / 2**20:.0f} MiB",
        not watched.dead and bool(watched.alive),
    )


def _amounts() -> dict[str, int]:
    amounts: collections.Counter[str] = collections.Counter({"batches": 1})
    for kind, amount in SINGLES.items():
        amounts[CLASSES[kind]] += amount
    return {name: amounts[name] for name in ("events", "prompts", "batches", "heartbeats")}
