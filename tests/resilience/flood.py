"""A flood: one device sends ten times what it may, from many connections; the others keep to their rate."""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import statistics
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from app.dev import embedded
from tests.resilience import Finding, Plan, crowd
from tests.support.service import serving

OTHERS = 50
CONNECTIONS = 20
# Requests a second that a device may make, and seconds of them that it may make at once.
RATE = 5
BURST = 2
# A look at each flood; they take turns, so that whatever else the machine does hits all of them alike.
SECONDS = 5


@dataclasses.dataclass
class Figures:
    """What the others saw, in seconds, and the answers to the one that floods, by status."""

    seconds: list[float] = dataclasses.field(default_factory=list)
    statuses: collections.Counter[int] = dataclasses.field(default_factory=collections.Counter)
    flood: collections.Counter[int] = dataclasses.field(default_factory=collections.Counter)
    retry_after: set[int] = dataclasses.field(default_factory=set)

    @property
    def p50(self) -> float:
        return statistics.median(self.seconds) * 1000

    @property
    def p99(self) -> float:
        return statistics.quantiles(self.seconds, n=100)[98] * 1000

    @property
    def refused(self) -> int:
        return self.statuses.total() - self.statuses[201]


async def measure(
    figures: Figures, bind: str, devices: list[str], tokens: list[str], seconds: float, flood: int
) -> None:
    """Let all but the first device send at their rate for so long, and the first `flood` requests a second."""
    end = time.monotonic() + seconds

    async def send_regularly(number: int, pause: float, is_flood: bool) -> None:
        caller = crowd.Caller(bind)
        device, token = devices[number], tokens[number]
        while (began := time.monotonic()) < end:
            answer = await caller.send(crowd.post("/api/prompt", _prompt(device), token))
            if is_flood:
                figures.flood[answer.status] += 1
                figures.retry_after.add(answer.retry_after)
            else:
                figures.statuses[answer.status] += 1
                figures.seconds.append(answer.seconds)
            await asyncio.sleep(max(0.0, began + pause - time.monotonic()))
        caller.close()

    sending = [send_regularly(number, 1 / RATE, False) for number in range(1, len(devices))]
    if flood:
        sending += [send_regularly(0, CONNECTIONS / flood, True) for _ in range(CONNECTIONS)]
    await asyncio.gather(*sending)


def _prompt(device: str) -> dict[str, object]:
    return {
        "device_id": device,
        "instance_id": "i",
        "prompt_id": str(uuid.uuid4()),
        "timestamp": int(time.time() * 1000),
        "site": "chatgpt.com",
        "url": "https://chatgpt.com/",
        "prompt": "Summarise this.",
    }


def run(plan: Plan) -> Iterator[Finding]:
    with serving(plan.folder, workers=0, device_rate=RATE, burst_seconds=BURST) as service:
        ids = crowd.fill(embedded.url(str(plan.folder / "data")), OTHERS + 1)
        signed = crowd.tokens(Path(service.environment["WATCHPOST_DATA_DIR"]) / "signing-keys.json", service.url, ids)

        floods = {"none": 0, f"{10 * RATE}/s": 10 * RATE, f"{100 * RATE}/s": 100 * RATE}
        seen = {name: Figures() for name in floods}
        # To warm up.
        asyncio.run(measure(Figures(), service.bind, ids, signed, SECONDS, 0))
        for _ in range(max(1, plan.rounds // 5)):
            for name, flood in floods.items():
                asyncio.run(measure(seen[name], service.bind, ids, signed, SECONDS, flood))
    for (what, flood), figures in zip(floods.items(), seen.values(), strict=True):
        sent = figures.flood.total()
        yield Finding(
            f"{OTHERS} devices at their {RATE}/s, and a flood of {what} by one on {CONNECTIONS} connections",
            f"{figures.statuses.total():,} requests of the others, {sent:,} of the flood",
            f"the others: p50 {figures.p50:.1f} ms, p99 {figures.p99:.1f} ms, refused {figures.refused}; "
            f"the flood: {figures.flood[201]} stored, {figures.flood[429]} refused with 429",
            figures.refused == 0
            and set(figures.flood) <= {201, 429}
            and (figures.flood[429] > sent / 2) == bool(flood)
            and figures.p50 <= 2 * seen["none"].p50 + 5,
        )
