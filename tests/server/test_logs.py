"""What the log says of a request and what it never says; what an answer to another origin says."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import select
import socket
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from flask.testing import FlaskClient

from app.application import Watchpost
from config.settings import Settings
from tests.support.agent import Agent
from tests.support.service import GUNICORN, ROOT, Service, serving

TOKEN_ENDPOINT = "http://watchpost.test/api/auth/token"

Rows = Callable[..., list[dict[str, Any]]]
Logged = Callable[[], list[dict[str, Any]]]


@pytest.fixture
def settings(settings: Settings, capfd: pytest.CaptureFixture[str], request: pytest.FixtureRequest) -> Settings:
    # capfd before the application: its log handler keeps the standard error that it finds.
    return dataclasses.replace(settings, **getattr(request, "param", {}))


@pytest.fixture
def logged(capfd: pytest.CaptureFixture[str]) -> Logged:
    """The log since the last look, each line parsed."""
    return lambda: [json.loads(line) for line in capfd.readouterr().err.splitlines()]


@pytest.fixture
def prompt(now_ms: int, device: Agent) -> dict[str, Any]:
    return {
        "device_id": device.device_id,
        "instance_id": "chrome-1",
        "site": "site.example",
        "url": "https://site.example/sesame-url",
        "prompt": "sesame-prompt",
        "username": "sesame-user",
        "timestamp": now_ms,
    }


def test_a_request_is_one_log_line(client: FlaskClient, device: Agent, headers: dict[str, str], logged: Logged) -> None:
    logged()
    client.post("/api/devices/heartbeat", json={"device_id": device.device_id}, headers=headers)
    (line,) = logged()
    assert {"time", "level", "request_id", "method", "route", "status", "ms", "device_id"} <= set(line)
    assert (line["method"], line["route"], line["status"]) == ("POST", "/api/devices/heartbeat", 200)
    assert line["device_id"] == device.device_id
    assert isinstance(line["ms"], float)
    assert datetime.fromisoformat(line["time"]).utcoffset() == timedelta(0)


@pytest.mark.parametrize(
    ("method", "path", "status", "route"),
    [
        ("GET", "/livez", 200, "/livez"),
        ("GET", "/sesame", 404, None),
        ("GET", "/docs/static/sesame", 404, "/docs/static/<path:name>"),
        ("POST", "/api/prompt?sesame=1", 401, "/api/prompt"),
        ("POST", "/api/auth/token?sesame=1", 400, "/api/auth/token"),
        ("DELETE", "/api/prompt", 405, None),
    ],
)
def test_a_log_line_names_the_route_and_not_the_path(
    method: str, path: str, status: int, route: str | None, client: FlaskClient, logged: Logged
) -> None:
    logged()
    client.open(path, method=method)
    (line,) = logged()
    assert (line["method"], line["route"], line["status"], line["device_id"]) == (method, route, status, None)
    assert "sesame" not in json.dumps(line)


@pytest.mark.parametrize("given", ["a", "x" * 64, "Ab.9_-"])
def test_a_request_id_is_echoed_and_logged(given: str, client: FlaskClient, logged: Logged) -> None:
    answer = client.post("/api/prompt", headers={"X-Request-ID": given})
    assert answer.headers["X-Request-ID"] == answer.json["request_id"] == given
    assert logged()[-1]["request_id"] == given


@pytest.mark.parametrize("given", [None, "", "x" * 65, "a b", 'a"b', "a{b}", "a/b", "é", "a;b"])
def test_an_invalid_request_id_is_replaced(given: str | None, client: FlaskClient, logged: Logged) -> None:
    sent = {} if given is None else {"X-Request-ID": given}
    made = [client.get("/livez", headers=sent).headers["X-Request-ID"] for _ in range(2)]
    assert len({*made, given}) == 3
    assert [line["request_id"] for line in logged()[-2:]] == made


def test_request_bodies_are_never_logged(
    client: FlaskClient,
    register: Callable[..., Agent],
    access: Callable[..., dict[str, str]],
    prompt: dict[str, Any],
    device: Agent,
    capfd: pytest.CaptureFixture[str],
) -> None:
    agent = register(hostname="sesame-host", os="sesame-os", macs=["a4:83:e7:11:22:33"], ips=["10.98.76.54"])
    form = device.token_request(TOKEN_ENDPOINT)
    tokens = [client.post("/api/auth/token", data=form).get_json().get("access_token") for _ in range(2)]
    assert tokens[1] is None
    headers = {"Authorization": f"Bearer {tokens[0]}"}
    identified = prompt | {"prompt_id": "0d6e1b0e-98a5-4f31-9b4c-0a2d2b1f6a77"}
    bodies = [prompt, prompt, identified, identified | {"prompt": "sesame-other"}, prompt | {"timestamp": "sesame"}]
    statuses = [client.post("/api/prompt", json=body, headers=headers).status_code for body in bodies]
    assert statuses == [201, 200, 201, 409, 400]
    client.post("/api/prompt", data=b'{"prompt": "sesame', headers=headers, content_type="application/json")
    client.post("/api/prompt", json=prompt, headers={"Authorization": f"Bearer {tokens[0]}x"})
    client.post("/api/batch", json={"items": [{"type": "prompt", "body": prompt}]}, headers=headers)
    told = capfd.readouterr()
    assert told.out == ""
    secrets = ["sesame", "a4:83", "10.98", "BEGIN", tokens[0], form["client_assertion"], agent.public_key_pem[40:80]]
    secrets += [*tokens[0].split("."), *form["client_assertion"].split(".")]
    assert "watchpost.request" in told.err
    assert [secret for secret in secrets if secret in told.err] == []


def test_a_private_key_that_was_sent_is_neither_logged_nor_told(
    client: FlaskClient,
    enrollment: Callable[..., str],
    bearer: Callable[[str], dict[str, str]],
    capfd: pytest.CaptureFixture[str],
    rows: Rows,
) -> None:
    agent = Agent()
    private = agent.key.get_op_key("sign").private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    body = agent.registration(public_key_pem=private)
    answer = client.post("/api/devices/register", json=body, headers=bearer(enrollment()))
    assert answer.status_code == 400
    told = capfd.readouterr().err + answer.text
    assert [line for line in private.splitlines() if line in told] == []
    assert rows("SELECT device_id FROM devices") == []


def test_a_fault_is_500_with_a_request_id_and_nothing_else(app: Watchpost) -> None:
    def broken() -> None:
        raise ValueError("sesame")

    app.add_url_rule("/broken", view_func=broken)
    answer = app.test_client().get("/broken")
    assert answer.status_code == 500
    assert answer.mimetype == "application/problem+json"
    assert answer.json["request_id"] == answer.headers["X-Request-ID"]
    assert (answer.json["status"], set(answer.json)) == (500, {"type", "title", "status", "detail", "request_id"})
    assert not [word for word in ("sesame", "ValueError", "Traceback", ".py") if word in answer.text]


def test_the_log_of_a_fault_names_its_type_and_place_and_not_its_message(app: Watchpost, logged: Logged) -> None:
    def broken() -> None:
        try:
            raise KeyError("sesame-cause")
        except KeyError as cause:
            raise ValueError("sesame") from cause

    app.add_url_rule("/broken", view_func=broken)
    answer = app.test_client().get("/broken")
    fault, line = logged()[-2:]
    assert (fault["level"], fault["exception"]) == ("error", "ValueError")
    assert fault["at"][-1].startswith(__file__)
    assert fault["at"][-1].endswith(" broken")
    assert fault["request_id"] == line["request_id"] == answer.headers["X-Request-ID"]
    assert (line["route"], line["status"]) == ("/broken", 500)
    assert "sesame" not in json.dumps([fault, line])


def test_a_database_error_is_logged_by_its_sqlstate_alone(
    client: FlaskClient, headers: dict[str, str], prompt: dict[str, Any], logged: Logged, rows: Rows
) -> None:
    rows("ALTER TABLE prompts ADD CONSTRAINT no_sesame CHECK (prompt NOT LIKE 'sesame%')")
    answer = client.post("/api/prompt", json=prompt, headers=headers)
    assert answer.status_code == 500
    lines = logged()
    assert [line["constraint"] for line in lines if line.get("sqlstate") == "23514"] == ["no_sesame"]
    told = answer.text + json.dumps(lines).replace("no_sesame", "")
    assert not [word for word in ("sesame", "INSERT", "Failing row") if word in told]
    assert rows("SELECT prompt FROM prompts") == []


@pytest.mark.parametrize("settings", [{"log_level": "WARNING"}], indirect=True)
def test_a_quiet_log_leaves_requests_out_and_keeps_faults(app: Watchpost, logged: Logged) -> None:
    app.add_url_rule("/broken", view_func=lambda: 1 / 0)
    app.test_client().get("/livez")
    app.test_client().get("/broken")
    assert [line.get("exception") for line in logged()] == ["ZeroDivisionError"]


def test_a_reader_of_the_log_that_stalls_stops_no_request_and_learns_what_was_dropped(
    folder: Path, database_url: str
) -> None:
    """As `make run | less` does, or a journald that hangs."""
    read_end, write_end = os.pipe()
    service = Service(folder, stderr=write_end, database_url=database_url)
    os.close(write_end)
    log = b""
    try:
        service.wait_until_ready()
        capacity = fcntl.fcntl(read_end, fcntl.F_GETPIPE_SZ)
        # Each line has more than a hundred bytes.
        for _ in range(capacity // 100):
            assert service.get("/livez").status == 200
        while select.select([read_end], [], [], 0)[0]:
            log += os.read(read_end, 65536)
        for _ in range(50):
            service.get("/livez")
        assert service.end() == 0
        while part := os.read(read_end, 65536):
            log += part
    finally:
        service.kill_everything()
        os.close(read_end)
    lines = [json.loads(line) for line in log.splitlines()]
    dropped = sum(line.get("dropped", 0) for line in lines)
    assert dropped > 0
    assert sum(line["message"] == "request" and line["route"] == "/livez" for line in lines) + dropped >= 50


def test_closed_standard_error_fails_no_request(folder: Path, database_url: str) -> None:
    command = ["sh", "-c", 'exec "$@" 2>&-', "sh", *GUNICORN]
    with serving(folder, command=command, database_url=database_url) as service:
        assert [service.get(path).status for path in ("/livez", "/readyz", "/openapi.json", "/nowhere")] == [
            200,
            200,
            200,
            404,
        ]


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_a_log_that_is_a_socket_is_not_waited_for(kind: int) -> None:
    """As journald's is."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, kind)
    script = """
from app.telemetry.logging import OUTPUT
for number in range(100_000):
    OUTPUT.write("x" * 100)
print("done", OUTPUT._dropped > 0)
"""
    with ours, theirs:
        command = [sys.executable, "-c", script]
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=theirs, timeout=60, check=True)
        assert done.stdout == b"done True\n"
        # Other processes that share it may wait.
        assert not fcntl.fcntl(theirs, fcntl.F_GETFL) & os.O_NONBLOCK
