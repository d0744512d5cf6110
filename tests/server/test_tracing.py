"""Traces reach a collector over OTLP/HTTP, say nothing that is secret, and cost nobody anything when it is away."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
import urllib.parse
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from tests.support.agent import Agent
from tests.support.service import ROOT, Service, enrolled, serving

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


class Collector(ThreadingHTTPServer):
    """Takes OTLP/HTTP at /v1/traces, and keeps what it got, as it came."""

    daemon_threads = True

    def __init__(self, port: int = 0) -> None:
        self.received: list[ExportTraceServiceRequest] = []
        super().__init__(("127.0.0.1", port), Receiver)
        self.thread = threading.Thread(target=self.serve_forever)
        self.thread.start()

    @property
    def spans(self) -> list[Span]:
        return [
            span
            for request in list(self.received)
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]

    def wait_for(self, *names: str) -> list[Span]:
        """The spans with these names, the first of each, when all are there."""
        deadline = time.monotonic() + 60
        while True:
            first = {span.name: span for span in reversed(self.spans)}
            if first.keys() >= set(names):
                return [first[name] for name in names]
            assert time.monotonic() < deadline, f"there are only {sorted(first)}"
            time.sleep(0.05)

    def stop(self) -> None:
        if self.thread.is_alive():
            self.shutdown()
            self.thread.join()
            self.server_close()


class Receiver(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        assert (self.path, self.headers["Content-Type"]) == ("/v1/traces", "application/x-protobuf")
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.received.append(ExportTraceServiceRequest.FromString(body))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    collector = Collector()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://user:SECRET@127.0.0.1:{collector.server_port}")
    # What is not taken within so many seconds is dropped, and would be missed.
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "5")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "watchpost-test")
    # How long a span may wait for others to be sent with, in milliseconds.
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
    yield collector
    collector.stop()


def attributes(span: Span) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, str(pair.value.WhichOneof("value"))) for pair in span.attributes}


def registered(service: Service, agent: Agent) -> tuple[str, str, str]:
    """Its enrolment, assertion and access token."""
    enrollment = enrolled(service)
    assert service.post("/api/devices/register", agent.registration(), enrollment).status == 201
    form = agent.token_request(service.url)
    kind = {"Content-Type": "application/x-www-form-urlencoded"}
    answer = service.post("/api/auth/token", urllib.parse.urlencode(form).encode(), **kind)
    return enrollment, form["client_assertion"], answer.json["access_token"]


def prompt(agent: Agent, text: str) -> dict[str, Any]:
    now = int(time.time() * 1000)
    place = {"site": "SECRET-site", "url": "https://SECRET-url/?q=SECRET", "page_title": "SECRET"}
    return {"device_id": agent.device_id, "instance_id": "i", "prompt": text, "timestamp": now, **place}


def test_requests_and_statements_are_traced_nothing_secret_is_and_nobody_waits_for_the_collector(
    folder: Path, database_url: str, rows: Any, collector: Collector
) -> None:
    agent = Agent()
    with serving(folder, database_url=database_url, workers=1) as service:
        secrets = registered(service, agent)
        token = secrets[-1]
        parent = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "vendor=SECRET", "baggage": "a=SECRET"}
        assert service.post("/api/prompt", prompt(agent, "SECRET"), token, **parent).status == 201
        assert service.get("/api/SECRET?q=SECRET").status == 404
        rows("ALTER TABLE browser_instances ADD CONSTRAINT odd CHECK (profile_name <> 'SECRET') NOT VALID")
        browser = {"device_id": agent.device_id, "instance_id": "SECRET", "browser_name": "b", "profile_name": "SECRET"}
        assert service.post("/api/browsers/register", browser, token).status == 500
        request, failed, statement, broken = collector.wait_for(
            "POST /api/prompt", "POST /api/browsers/register", "prompts/insert_prompts", "browsers/upsert_instances"
        )
        collector.wait_for("GET", "POST /api/auth/token", "devices/register_devices")
        collector.stop()
        nobody_waits_for_a_collector_that_is_away(service, agent, token, collector.server_port)
    assert request.trace_id.hex() == statement.trace_id.hex() == TRACE
    assert (request.parent_span_id.hex(), request.kind) == (PARENT, Span.SPAN_KIND_SERVER)
    assert (statement.parent_span_id, statement.kind) == (request.span_id, Span.SPAN_KIND_CLIENT)
    assert request.start_time_unix_nano <= statement.start_time_unix_nano
    assert statement.end_time_unix_nano <= request.end_time_unix_nano
    assert attributes(request) == {
        "http.request.method": "POST",
        "http.route": "/api/prompt",
        "http.response.status_code": 201,
    }
    assert attributes(statement) == {
        "db.system.name": "postgresql",
        "db.query.summary": "prompts/insert_prompts",
        "db.response.returned_rows": 1,
    }
    assert (attributes(broken)["error.type"], broken.status.code) == ("23514", Status.STATUS_CODE_ERROR)
    assert (attributes(failed)["http.response.status_code"], failed.status.code) == (500, Status.STATUS_CODE_ERROR)
    # Nobody asked for another parent, so each of the others is a trace of its own.
    assert len({span.trace_id for span in collector.spans if span.kind == Span.SPAN_KIND_SERVER}) >= 5

    sent = b"".join(request.SerializeToString() for request in collector.received)
    assert b"watchpost-test" in sent
    for text in ("SECRET", "127.0.0.1", agent.device_id, str(agent.registration()["hostname"]), *secrets):
        assert text.encode() not in sent


def nobody_waits_for_a_collector_that_is_away(service: Service, agent: Agent, token: str, port: int) -> None:
    deadline = time.monotonic() + 60
    while "collector of traces is away" not in service.log.read_text():
        assert time.monotonic() < deadline
        assert service.post("/api/prompt", prompt(agent, str(time.monotonic())), token).status == 201
    for _ in range(20):
        assert service.post("/api/prompt", prompt(agent, str(time.monotonic())), token).status == 201
        time.sleep(0.05)
    lines = [line for line in service.log.read_text().splitlines() if '"watchpost.request"' not in line]
    assert sum("collector of traces is away" in line for line in lines) == 1
    assert not any(word in line for line in lines for word in ("SECRET", f":{port}", "opentelemetry"))
    again = Collector(port)
    try:
        service.post("/api/prompt", prompt(agent, "back"), token)
        again.wait_for("POST /api/prompt")
    finally:
        again.stop()
    began = time.monotonic()
    service.post("/api/prompt", prompt(agent, "away again"), token)
    service.end()
    assert time.monotonic() - began < 40


def test_without_a_collector_nothing_of_it_is_imported() -> None:
    code = "import sys, wsgi; sys.exit(any('opentelemetry' in name for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
