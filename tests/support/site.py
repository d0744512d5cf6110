"""A running service with a registered device, for tests that send many requests."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlencode

from app.dev import embedded
from tests.support.agent import Agent
from tests.support.service import Service, enrolled, serving

FORM = {"Content-Type": "application/x-www-form-urlencoded"}


class Site(NamedTuple):
    """token: the device's, for all that it may do. enrollment: the token that it registered with. database: its URL."""

    service: Service
    agent: Agent
    token: str
    enrollment: str
    database: str


@contextlib.contextmanager
def inhabited(folder: Path, **settings: Any) -> Iterator[Site]:
    """Run a service, by default on an embedded database in the folder, and check its log for faults at the end."""
    settings = {"workers": 1, "device_rate": 0, "enrollment_rate": 0, "address_rate": 0, **settings}
    # A machine that stalls for some seconds fails no test.
    settings = {"pool_wait_seconds": 60, "statement_timeout_ms": 120_000, **settings}
    with serving(folder, **settings) as service:
        enrollment = enrolled(service, 100_000)
        agent = Agent()
        answer = service.post("/api/devices/register", agent.registration(), enrollment)
        assert answer.status == 201, answer.body
        answer = service.post("/api/auth/token", urlencode(agent.token_request(service.url)).encode(), **FORM)
        database = settings.get("database_url") or embedded.url(str(folder / "data"))
        yield Site(service, agent, answer.json["access_token"], enrollment, database)
    assert faults(service) == []


def faults(service: Service) -> list[str]:
    """Log lines that should not be there: text that is not a JSON object, tracebacks, 5xx other than 503."""
    found = []
    for line in service.log.read_text().splitlines():
        try:
            fields = json.loads(line)
        except ValueError:
            found.append(line)
            continue
        # 501 and 505 are of HTTP itself.
        if "Traceback" in line or (fields.get("status", 0) >= 500 and fields["status"] not in (501, 503, 505)):
            found.append(line)
    return found
