"""One device floods a real service and nobody else is refused (tests/resilience/herd.py: thousands of devices)."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from tests.resilience import crowd, flood
from tests.support.service import serving


def test_a_flood_from_many_connections_costs_the_others_nothing(folder: Path, database_url: str) -> None:
    with serving(folder, database_url=database_url, workers=1, device_rate=flood.RATE, burst_seconds=1) as service:
        ids = crowd.fill(database_url, 10)
        keys = Path(service.environment["WATCHPOST_DATA_DIR"]) / "signing-keys.json"
        figures = flood.Figures()
        tokens = crowd.tokens(keys, service.url, ids)
        began = time.monotonic()
        asyncio.run(flood.measure(figures, service.bind, ids, tokens, 1, 20 * flood.RATE))
        seconds = time.monotonic() - began
    assert set(figures.statuses) == {201}
    assert set(figures.flood) == {201, 429}
    # Its rate for as long as the requests took, its burst, and a second more.
    assert figures.flood[201] <= flood.RATE * (seconds + 2)
    assert figures.retry_after - {0} == {1}
