"""What Prometheus reads: guarded, and right with several workers."""

from __future__ import annotations

import re
import shutil
import tempfile
import time
import urllib.parse
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.agent import Agent
from tests.service import Service, serving


@pytest.fixture
def folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="wp-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def read(service: Service, token: str) -> str:
    answer = service.get_with("/metrics", token)
    assert answer.status == 200
    assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    return str(answer.body.decode())


def value(text: str, sample: str) -> float:
    found = re.search(rf"^{re.escape(sample)} (\S+)$", text, re.MULTILINE)
    return float(found[1]) if found else 0


def test_metrics_need_their_own_scope(client, headers, app):
    assert client.get("/metrics").status_code == 401
    assert client.get("/metrics", headers=headers).status_code == 403
    reader = app.extensions["auth"].sign("prometheus", "id", "metrics:read", 60)
    assert client.get("/metrics", headers={"Authorization": f"Bearer {reader}"}).status_code == 200


def test_every_worker_is_counted_whichever_answers(folder: Path, database_url: str) -> None:
    with serving(folder, database_url=database_url) as service:
        enrollment = service.flask("enrollment", "create", "--label", "l", "--max-uses", "5", "--expires-in", "1h")
        reader = service.flask("token", "create", "--subject", "p", "--scope", "metrics:read", "--expires-in", "1h")
        agent = Agent()
        assert service.post("/api/devices/register", agent.registration(), enrollment).status == 201
        form = urllib.parse.urlencode(agent.token_request(service.url)).encode()
        kind = {"Content-Type": "application/x-www-form-urlencoded"}
        token = service.post("/api/auth/token", form, **kind).json["access_token"]
        now = int(time.time() * 1000)
        body = {"device_id": agent.device_id, "instance_id": "i", "site": "s", "url": "u", "prompt": "p"}
        with ThreadPoolExecutor(16) as threads:
            sent = [{**body, "timestamp": now - n % 40} for n in range(80)]
            statuses = list(threads.map(lambda one: service.post("/api/prompt", one, token).status, sent))
        assert (statuses.count(201), statuses.count(200)) == (40, 40)
        assert service.post("/api/prompt", {"device_id": "MARKED/secret"}, token).status == 400
        for _ in range(4):
            text = read(service, reader)
            requests = 'watchpost_requests_total{{method="POST",route="/api/prompt",status="{}"}}'
            assert [value(text, requests.format(status)) for status in (201, 200, 400)] == [40, 40, 1]
            rows = 'watchpost_rows_total{{kind="prompt",outcome="{}"}}'
            assert [value(text, rows.format(outcome)) for outcome in ("created", "duplicate")] == [40, 40]
            assert value(text, 'watchpost_set_rows_sum{kind="prompt"}') == 80
            assert value(text, 'watchpost_request_seconds_count{route="/api/prompt"}') == 81
            assert "MARKED" not in text
