"""What Prometheus reads: guarded, and right with several workers."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import signal
import subprocess
import sys
import time
import urllib.parse
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from app.server import counters
from app.telemetry import metric_files
from tests.support.agent import Agent
from tests.support.application import create_app
from tests.support.service import ROOT, Service, enrolled, serving


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


@pytest.fixture
def scrape(client: Any, app: Any, bearer: Any) -> Any:
    reader = app.extensions["auth"].sign("prometheus", "id", "metrics:read", 60)
    return lambda: client.get("/metrics", headers=bearer(reader)).text


def test_refused_tokens_are_counted_by_reason(client, device, bearer, headers, app, operate, access, scrape) -> None:
    token = headers["Authorization"].removeprefix("Bearer ")
    other = app.extensions["auth"].sign(device.device_id, "id", "prompts:read", 60)
    refused = {
        ("access", "missing_authorization"): [None],
        ("access", "malformed"): ["x"],
        ("access", "signature"): [token[:-8] + "AAAAAAAA", token[:-8] + "QQQQQQQQ"],
        ("access", "expired"): [app.extensions["auth"].sign(device.device_id, "id", "prompts:write", -61)],
        ("access", "insufficient_scope"): [other],
    }
    before = scrape()
    for tokens in refused.values():
        for text in tokens:
            client.post("/api/prompt", json={}, headers=bearer(text) if text else {})
    form = device.token_request(app.extensions["auth"].token_endpoint)
    stranger = Agent().token_request(app.extensions["auth"].token_endpoint)
    assert [client.post("/api/auth/token", data=data).status_code for data in (form, form, stranger)] == [200, 401, 401]
    operate("device", "revoke", device.device_id)
    assert client.post("/api/auth/token", data=device.token_request(app.extensions["auth"].token_endpoint)).json
    assert client.post("/api/auth/token", data={"grant_type": "client_credentials"}).status_code == 401
    after = scrape()
    expected = {kind: len(tokens) for kind, tokens in refused.items()}
    expected |= {("assertion", reason): 1 for reason in ("replayed", "unknown_device", "revoked", "invalid_client")}
    sample = 'watchpost_tokens_refused_total{{kind="{}",reason="{}"}}'
    assert {
        kind: value(after, sample.format(*kind)) - value(before, sample.format(*kind)) for kind in expected
    } == expected
    assert token not in after
    assert device.device_id not in after


def test_problems_are_counted_also_those_of_items(client, headers, scrape) -> None:
    before = scrape()
    client.post("/api/prompt", json={}, headers=headers)
    client.post("/api/batch", json={"items": [{"type": "MARKED", "body": {}}, 5]}, headers=headers)
    client.get("/MARKED")
    after = scrape()
    samples = {'problem="invalid-body",status="400"': 3, 'problem="not-found",status="404"': 1}
    for labels, expected in samples.items():
        sample = f"watchpost_problems_total{{{labels}}}"
        assert value(after, sample) - value(before, sample) == expected
    assert "MARKED" not in after


def test_metrics_show_the_state_of_the_database(rows, scrape) -> None:
    text = scrape()
    assert (value(text, "watchpost_ready"), value(text, "watchpost_migrations_pending")) == (1, 0)
    until = 'watchpost_partitions_until_timestamp_seconds{table="prompts"}'
    size = 'watchpost_default_partition_bytes{table="prompts"}'
    assert 89 < (value(text, until) - time.time()) / 86400 < 124
    empty = value(text, size)
    rows("DELETE FROM _yoyo_migration WHERE migration_id LIKE '0003%'")
    months = rows("SELECT relname AS name FROM pg_class WHERE relname ~ '^prompts_[0-9]+$' ORDER BY relname")
    # A gap before the last month: what comes behind it does not count.
    rows(f"ALTER TABLE prompts DETACH PARTITION {months[-2]['name']}")
    rows(
        'INSERT INTO prompts (device_id, instance_id, site, url, prompt, "timestamp", prompt_id)'
        " SELECT 'd', 'i', 's', 'u', repeat('p', 999), 1420070400000, gen_random_uuid() FROM generate_series(1, 500)"
    )
    text = scrape()
    assert (value(text, "watchpost_ready"), value(text, "watchpost_migrations_pending")) == (0, 1)
    assert 27 < (value(text, until) - time.time()) / 86400 < 63
    assert value(text, size) > empty + 500_000


@pytest.mark.direct("names no database at all")
def test_metrics_are_there_while_the_database_is_away(settings, bearer) -> None:
    away = dataclasses.replace(settings, database_url="postgresql://x@127.0.0.1:1/x", pool_wait_seconds=1)
    app = create_app(away)
    try:
        reader = app.extensions["auth"].sign("prometheus", "id", "metrics:read", 60)
        answer = app.test_client().get("/metrics", headers=bearer(reader))
        assert answer.status_code == 200
        assert value(answer.text, 'watchpost_database_errors_total{error="PoolTimeout",sqlstate="none"}') >= 1
        assert re.search("^watchpost_ready 0.0$", answer.text, re.MULTILINE)
        assert "\nwatchpost_migrations_pending " not in answer.text
        assert "partitions_until" in answer.text
    finally:
        app.extensions["db"].close()


def test_metrics_sum_all_workers_whichever_answers(folder: Path, database_url: str) -> None:
    with serving(folder, database_url=database_url) as service:
        enrollment = enrolled(service)
        reader = service.operate("token", "create", "--subject", "p", "--scope", "metrics:read", "--expires-in", "1h")
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
            rows = 'watchpost_rows_total{{outcome="{}",record_type="prompt"}}'
            assert [value(text, rows.format(outcome)) for outcome in ("created", "duplicate")] == [40, 40]
            assert value(text, 'watchpost_group_commit_rows_sum{record_type="prompt"}') == 80
            assert value(text, 'watchpost_request_seconds_count{route="/api/prompt"}') == 81
            assert "MARKED" not in text
            assert value(text, "watchpost_pool_wait_seconds_count") > 0
            assert value(text, 'watchpost_queue_wait_seconds_count{record_type="prompt"}') == value(
                text, 'watchpost_group_commit_rows_count{record_type="prompt"}'
            )
        # Who replaces a worker goes on with its counts, in its files.
        counted = counting_folder(service)
        replace_workers(service)
        assert service.post("/api/prompt", sent[0], token).status == 200
        text = read(service, reader)
        assert [value(text, requests.format(status)) for status in (201, 200, 400)] == [40, 41, 1]
        assert value(text, 'watchpost_group_commit_rows_sum{record_type="prompt"}') == 81
        files = {f"{kind}_{place}.db" for kind in ("counter", "histogram") for place in (0, 1)}
        assert {path.name for path in counted.iterdir()} == files
        service.end(signal.SIGKILL)
    # Nothing of it is left after the next start, however it ended; what others count in stays.
    with serving(folder, database_url=database_url) as first, serving(folder, database_url=database_url) as second:
        assert not counted.exists()
        folders = {counting_folder(first), counting_folder(second)}
        assert len(folders) == 2
        assert all(folder.exists() for folder in folders)
    assert not any(folder.exists() for folder in folders)


def test_prometheus_client_still_maps_a_value_where_ours_writes_it(tmp_path: Path) -> None:
    """The private interface that app/telemetry/metric_files.py uses. A child process, since it is read at import."""
    program = """
import sys
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest, multiprocess
from app.telemetry import metric_files
metric_files.install()
counter = Counter("things", "Things.", ["name"])
counter.labels("a").inc()
counter.labels("a").inc(2)
Histogram("seconds", "Seconds.", buckets=(1, 5)).observe(3)
registry = CollectorRegistry()
multiprocess.MultiProcessCollector(registry)
print(generate_latest(registry).decode())
"""
    environment = {**os.environ, metric_files.FOLDER: str(tmp_path), metric_files.SLOT: "7"}
    for total in (3.0, 6.0):
        done = subprocess.run(
            [sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
        )
        assert value(done.stdout, 'things_total{name="a"}') == total
        assert value(done.stdout, 'seconds_bucket{le="5.0"}') == total / 3
        assert value(done.stdout, "seconds_sum") == total
    assert {path.name for path in tmp_path.iterdir()} == {"counter_7.db", "histogram_7.db"}


def workers(service: Service) -> list[psutil.Process]:
    found = []
    for child in psutil.Process(service.process.pid).children():
        with contextlib.suppress(psutil.Error):
            if "gunicorn" in " ".join(child.cmdline()):
                found.append(child)
    return found


def counting_folder(service: Service) -> Path:
    folders = {Path(file.path).parent for worker in workers(service) for file in worker.open_files()}
    (folder,) = [folder for folder in folders if folder.name.startswith(counters.PREFIX)]
    return folder


def replace_workers(service: Service) -> None:
    old = workers(service)
    for worker in old:
        os.kill(worker.pid, signal.SIGKILL)
    deadline = time.monotonic() + 60
    while len(set(workers(service)) - set(old)) < len(old):
        assert time.monotonic() < deadline, "no new workers"
        time.sleep(0.05)
    service.wait_until_ready()
