"""The short way of plain requests answers and stores what the whole way does."""

from __future__ import annotations

import dataclasses
import gzip
import json
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from flask.testing import FlaskClient

from app.api import fields
from app.application import Watchpost
from app.ingest.record_types import batch_types
from app.resources.prompts import PROMPT
from config.settings import Settings
from tests.support.agent import Agent
from tests.support.application import create_app
from tests.support.checks import HOSTILE_TEXT


@pytest.fixture
def whole(settings: Settings) -> Iterator[FlaskClient]:
    """A client of a worker that remembers no token, so that every request goes the whole way."""
    app = create_app(dataclasses.replace(settings, token_cache=0))
    yield app.test_client()
    app.extensions["db"].close()


@pytest.fixture
def short(client: FlaskClient, headers: dict[str, str], device: Agent) -> FlaskClient:
    """A client of a worker that remembers the token."""
    answer = client.post("/api/devices/heartbeat", json={"device_id": device.device_id}, headers=headers)
    assert answer.status_code == 200
    return client


def bodies(device: Agent, now_ms: int) -> dict[str, tuple[str, dict[str, Any]]]:
    device_id = device.device_id
    return {
        "prompt": (
            "/api/prompt",
            {
                "device_id": device_id,
                "instance_id": "i",
                "site": "s",
                "url": "u",
                "prompt": "p",
                "timestamp": now_ms,
                "metadata": {"a": [1, 2.5, None, "x"]},
            },
        ),
        "browser_register": (
            "/api/browsers/register",
            {"device_id": device_id, "instance_id": "i", "browser_name": "chrome", "discovered_at": now_ms},
        ),
        "browser_heartbeat": ("/api/browsers/heartbeat", {"instance_id": "i", "browser_version": "1"}),
        "device_heartbeat": ("/api/devices/heartbeat", {"device_id": device_id, "ips": ["10.0.0.1"]}),
        "extension_status": (
            "/api/extension/status",
            {"instance_id": "i", "status": "enabled", "reported_at": now_ms},
        ),
        "compliance_event": (
            "/api/compliance/event",
            {"device_id": device_id, "event_type": "tamper_detected", "severity": "low", "detected_at": now_ms},
        ),
    }


def told(answer: Any) -> tuple[int, dict[str, str], Any]:
    """Status, headers and body without what is new every time."""
    new = ("created_at", "server_time", "last_seen", "last_heartbeat", "request_id")
    body = {name: value for name, value in answer.json.items() if name not in new}
    return answer.status_code, {n: v for n, v in answer.headers.items() if n != "X-Request-ID"}, body


def seen_by_flask(app: Watchpost, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Paths of the requests that Flask gets to see from now on."""
    seen: list[str] = []
    whole_way = app.wsgi_app._full_path

    def note(environ: Any, start_response: Any) -> Any:
        seen.append(environ["PATH_INFO"])
        return whole_way(environ, start_response)

    monkeypatch.setattr(app.wsgi_app, "_full_path", note)
    return seen


@pytest.mark.parametrize("kind", sorted(batch_types()))
def test_the_fast_path_takes_a_plain_request_of_a_cached_token(
    app: Watchpost,
    short: FlaskClient,
    device: Agent,
    headers: dict[str, str],
    now_ms: int,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
) -> None:
    path, body = bodies(device, now_ms)[kind]
    seen = seen_by_flask(app, monkeypatch)
    assert short.post(path, json=body, headers=headers).status_code in (200, 201)
    assert seen == []
    assert short.post(path, json={**body, "instance_id": 7}, headers=headers).status_code in (200, 400)
    assert short.post(path, json=body, headers=headers | {"Origin": "https://example.com"}).status_code == 200
    assert path in seen


CHANGES: dict[str, Callable[[dict[str, Any]], bytes]] = {
    "as it is": lambda body: json.dumps(body).encode(),
    "unknown fields": lambda body: json.dumps({**body, "later": {"x": 1}}).encode(),
    "hostile text": lambda body: json.dumps(body).encode().replace(b'"p"', b'"' + HOSTILE_TEXT + b'"'),
    "an empty object": lambda _: b"{}",
    "a list": lambda _: b"[]",
    "not JSON": lambda _: b'{"device_id": ',
    "not UTF-8": lambda body: json.dumps(body).encode() + b"\xff",
    "a key twice": lambda body: json.dumps(body).encode()[:-1] + b', "device_id": "x"}',
    "too deep": lambda body: json.dumps(body).encode()[:-1] + b', "metadata": ' + b"[" * 40 + b"]" * 40 + b"}",
    "not a number": lambda body: json.dumps(body).encode()[:-1] + b', "metadata": {"x": NaN}}',
    "too large a number": lambda body: json.dumps(body).encode()[:-1] + b', "metadata": {"x": 18446744073709551616}}',
    "all null": lambda body: json.dumps(dict.fromkeys(body)).encode(),
    "all of a wrong type": lambda body: json.dumps(dict.fromkeys(body, True)).encode(),
    "another device's": lambda body: json.dumps({**body, "device_id": "somebody-else"}).encode(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_fast_path_and_full_path_answer_alike(
    short: FlaskClient, whole: FlaskClient, device: Agent, headers: dict[str, str], now_ms: int, change: str
) -> None:
    for path, body in bodies(device, now_ms).values():
        data = CHANGES[change](body)
        first = short.post(path, data=data, content_type="application/json", headers=headers)
        answers = [
            told(client.post(path, data=data, content_type="application/json", headers=headers))
            for client in (whole, short)
        ]
        assert answers[0] == answers[1], path
        assert first.status_code in (answers[0][0], 201)


@pytest.mark.parametrize("content", [None, "{"])
def test_keys_in_memory_stay_in_force_on_both_paths_when_the_file_can_not_be_read(
    short: FlaskClient,
    whole: FlaskClient,
    settings: Settings,
    device: Agent,
    headers: dict[str, str],
    now_ms: int,
    content: str | None,
) -> None:
    keys = settings.signing_keys_path
    path, body = bodies(device, now_ms)["prompt"]
    assert [client.post(path, json=body, headers=headers).status_code for client in (whole, short)] == [201, 200]
    if content is None:
        keys.unlink()
    else:
        keys.write_text(content)
    answers = [told(client.post(path, json=body, headers=headers)) for client in (whole, short)]
    assert answers[0] == answers[1]
    assert answers[0][0] == 200


def test_fast_path_and_full_path_answer_500_when_a_row_can_not_be_answered(
    short: FlaskClient,
    whole: FlaskClient,
    device: Agent,
    headers: dict[str, str],
    now_ms: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delitem(PROMPT.answer.dump_fields, "created_at")
    monkeypatch.setitem(PROMPT.answer.dump_fields, "sesame", fields.Time())
    path, body = bodies(device, now_ms)["prompt"]
    answers = [told(client.post(path, json=body, headers=headers)) for client in (whole, short)]
    assert answers[0] == answers[1]
    assert answers[0][0] == 500


@pytest.mark.parametrize("id_name", ["prompt_id", "status_id", "event_id"])
def test_fast_path_and_full_path_answer_409_to_a_conflict(
    short: FlaskClient, whole: FlaskClient, device: Agent, headers: dict[str, str], now_ms: int, id_name: str
) -> None:
    kind = {"prompt_id": "prompt", "status_id": "extension_status", "event_id": "compliance_event"}[id_name]
    path, body = bodies(device, now_ms)[kind]
    body[id_name] = str(uuid.uuid4())
    assert short.post(path, json=body, headers=headers).status_code == 201
    other = {**body, "instance_id": "another"}
    answers = [told(client.post(path, json=other, headers=headers)) for client in (whole, short)]
    assert answers[0] == answers[1]
    assert answers[0][0] == 409


def test_fast_path_and_full_path_refuse_the_same_tokens(
    short: FlaskClient,
    whole: FlaskClient,
    device: Agent,
    headers: dict[str, str],
    access: Callable[..., dict[str, str]],
    operate: Callable[..., None],
    now_ms: int,
) -> None:
    path, body = bodies(device, now_ms)["prompt"]
    narrow = access(device, "extension:write")
    status = {"instance_id": "i", "status": "enabled"}
    assert short.post("/api/extension/status", json=status, headers=narrow).status_code == 201
    for given, expected in ((narrow, 403), ({"Authorization": headers["Authorization"][:-4] + "AAAA"}, 401), ({}, 401)):
        answers = [told(client.post(path, json=body, headers=given)) for client in (whole, short)]
        assert answers[0] == answers[1]
        assert answers[0][0] == expected
    operate("device", "revoke", device.device_id)
    answers = [told(client.post(path, json=body, headers=headers)) for client in (whole, short)]
    assert answers[0] == answers[1]
    assert answers[0][0] == 403


@pytest.mark.parametrize(
    "given",
    [
        {"content_type": "application/json; charset=utf-8"},
        {"content_type": "text/plain"},
        {"content_type": "application/json", "headers": {"Content-Encoding": "gzip"}},
        {"content_type": "application/json", "headers": {"Content-Encoding": "br"}},
        {"content_type": "application/json", "environ_overrides": {"CONTENT_LENGTH": "70000"}},
    ],
    ids=["charset", "text", "gzip", "brotli", "cut short"],
)
def test_any_other_request_takes_the_full_path(
    app: Watchpost,
    short: FlaskClient,
    whole: FlaskClient,
    device: Agent,
    headers: dict[str, str],
    now_ms: int,
    monkeypatch: pytest.MonkeyPatch,
    given: dict[str, Any],
) -> None:
    path, body = bodies(device, now_ms)["prompt"]
    data = json.dumps(body).encode()
    given = {**given, "headers": headers | given.get("headers", {})}
    if given["headers"].get("Content-Encoding") == "gzip":
        data = gzip.compress(data)
    seen = seen_by_flask(app, monkeypatch)
    answers = [told(client.post(path, data=data, **given)) for client in (short, whole)]
    assert seen == [path]
    assert [status for status, _, _ in answers] in ([201, 200], [415, 415], [503, 503])


def test_a_refused_body_counts_once_against_the_rate_limit_of_its_device(
    settings: Settings, device: Agent, headers: dict[str, str]
) -> None:
    app = create_app(dataclasses.replace(settings, device_rate=1, burst_seconds=5))
    client = app.test_client()
    beat = {"device_id": device.device_id}
    statuses = [client.post("/api/devices/heartbeat", json=beat, headers=headers).status_code]
    statuses += [client.post("/api/prompt", json={}, headers=headers).status_code for _ in range(3)]
    assert statuses == [200, 400, 400, 400]
    statuses = [client.post("/api/prompt", json={}, headers=headers).status_code for _ in range(9)]
    assert 429 in statuses
    app.extensions["db"].close()
