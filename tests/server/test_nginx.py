"""The nginx of the deployment page: what clients get from it, and what they get while the service is away."""

from __future__ import annotations

import http.client
import json
import re
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.api import bodies
from app.server import connection
from tests.resilience import Plan, proxy
from tests.resilience.machine import machine
from tests.support import nginx
from tests.support.service import Service, prompt, registered, serving

pytestmark = pytest.mark.skipif(nginx.PROGRAM is None, reason=nginx.MISSING)

Answer = tuple[int, http.client.HTTPMessage, bytes]


class Silence:
    """A socket in a service's place: nobody listens at first; later somebody takes connections and never answers."""

    def __init__(self) -> None:
        self.socket = socket.socket()
        self.socket.bind(("127.0.0.1", 0))
        self.bind = f"127.0.0.1:{self.socket.getsockname()[1]}"


@pytest.fixture
def silence() -> Iterator[Any]:
    silence = Silence()
    yield silence
    silence.socket.close()


def ask(front: nginx.Nginx, path: str, body: Any = None, **headers: str) -> Answer:
    """A request over TLS: POST with a body, else GET."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    line = http.client.HTTPSConnection("127.0.0.1", front.tls_port, timeout=60, context=context)
    try:
        line.request("POST" if body is not None else "GET", path, body, {"Content-Type": "application/json", **headers})
        answer = line.getresponse()
        return answer.status, answer.headers, answer.read()
    finally:
        line.close()


def assert_problem(answer: Answer, status: int, name: str) -> None:
    found, headers, body = answer
    assert found == status, body
    assert headers["Content-Type"] == "application/problem+json"
    problem = json.loads(body)
    assert set(problem) == {"type", "title", "status", "detail", "request_id"}
    assert problem["type"] == f"urn:watchpost:problem:{name}"
    assert problem["status"] == status
    assert headers.get_all("X-Request-ID") == [problem["request_id"]]


def assert_unavailable(answer: Answer) -> int:
    assert_problem(answer, 503, "unavailable")
    seconds = int(answer[1]["Retry-After"])
    assert 3 <= seconds <= 30
    return seconds


def test_a_prompt_through_nginx_is_stored_under_the_request_id_of_its_client(folder: Path, database_url: str) -> None:
    with serving(folder, database_url=database_url, proxies=1) as service, nginx.running(service, folder) as front:
        agent, token = registered(service)
        body = json.dumps(prompt(agent))
        bearer = {"Authorization": f"Bearer {token}"}
        assert ask(front, "/api/prompt", body, **bearer, **{"X-Request-ID": "spool-7"})[0] == 201
        status, headers, _ = ask(front, "/api/prompt", body, **bearer, **{"X-Request-ID": "no valid id"})
        assert status == 200
        assert re.fullmatch(r"[0-9a-f]{32}", headers["X-Request-ID"])
        # An answer of the service passes through as it is.
        status, headers, answer = ask(front, "/api/prompt", body)
        assert (status, headers["Content-Type"]) == (401, "application/problem+json")
        assert headers["WWW-Authenticate"].startswith("Bearer")
        log = service.log.read_text()
        assert '"spool-7"' in log
        assert json.loads(answer)["request_id"] in log


def test_nginx_answers_for_an_absent_service_with_a_problem_and_a_random_retry_after(
    folder: Path, silence: Service
) -> None:
    with nginx.running(silence, folder) as front:
        answers = [ask(front, "/api/prompt", b"{}") for _ in range(30)]
        assert len({assert_unavailable(answer) for answer in answers}) > 2
        assert_unavailable(ask(front, "/readyz"))


def test_nginx_answers_for_a_silent_service_with_a_problem(folder: Path, silence: Any) -> None:
    silence.socket.listen(16)
    with nginx.running(silence, folder, {"proxy_read_timeout 60s;": "proxy_read_timeout 1s;"}) as front:
        assert_unavailable(ask(front, "/api/prompt", b"{}"))


def test_a_body_beyond_the_limit_is_413_as_a_problem(folder: Path, silence: Service) -> None:
    with nginx.running(silence, folder, {"client_max_body_size 16m;": "client_max_body_size 64k;"}) as front:
        answer = ask(front, "/api/batch", bytes(300_000), **{"X-Request-ID": "large"})
        assert_problem(answer, 413, "request-entity-too-large")
        assert json.loads(answer[2])["request_id"] == "large"
        # A repeat gets the same answer.
        assert "Retry-After" not in answer[1]


@pytest.mark.parametrize("request_", [b"garbage\r\n\r\n", b"GET /%s HTTP/1.1\r\nHost: a\r\n\r\n" % (b"a" * 40_000)])
def test_a_request_that_is_no_http_is_400_as_a_problem(folder: Path, silence: Service, request_: bytes) -> None:
    with nginx.running(silence, folder) as front, socket.create_connection(front.address, 60) as line:
        line.sendall(request_)
        answer = http.client.HTTPResponse(line)
        answer.begin()
        assert_problem((answer.status, answer.headers, answer.read()), 400, "bad-request")


def test_nginx_takes_the_largest_batch_and_closes_idle_connections_before_the_service_does() -> None:
    text = nginx.example()
    size = re.search(r"client_max_body_size (\d+)m;", text)
    idle = re.search(r"keepalive_timeout (\d+)s;", text)
    assert size is not None
    assert idle is not None
    assert int(size[1]) * 2**20 >= bodies.MAX_BATCH
    assert int(idle[1]) < connection.SILENCE_SECONDS - 1


def test_a_reload_a_restart_and_killed_workers_behind_nginx_lose_and_break_nothing(folder: Path) -> None:
    plan = Plan(rounds=1, minutes=0, folder=folder, rows=100)
    with machine(folder / "machine") as computer:
        findings = list(proxy.on(computer, plan))
    assert len(findings) == 3
    assert [finding for finding in findings if not finding.passed] == []
