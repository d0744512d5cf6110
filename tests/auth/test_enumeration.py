"""A stranger learns from no answer which devices exist; tests/resilience/enumeration.py has how long answers take."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from flask.testing import FlaskClient
from joserfc.jwk import OKPKey, RSAKey

from tests.resilience.enumeration import mann_whitney
from tests.support.agent import TOKEN_ENDPOINT, Agent


def said(answer: Any) -> tuple[int, list[tuple[str, str]], str]:
    """Status, headers and body of an answer, without what is the request's own."""
    request_id = answer.headers["X-Request-ID"]
    headers = [(name, value) for name, value in answer.headers if name != "X-Request-ID"]
    return answer.status_code, headers, answer.text.replace(request_id, "")


@pytest.fixture
def devices(register: Any, operate: Callable[..., None]) -> list[str]:
    """Devices with keys of each kind, a revoked one, one whose key was forgotten, and two that there are not."""
    keys = [None, RSAKey.generate_key(2048), OKPKey.generate_key("Ed25519"), None, None]
    ids = [register(Agent(key=key)).device_id for key in keys]
    operate("device", "revoke", ids[3])
    operate("device", "forget-key", ids[4])
    return [*ids, "nobody", "x" * 128]


def test_a_wrong_key_is_refused_alike_for_every_device(client: FlaskClient, devices: list[str]) -> None:
    for key in (None, RSAKey.generate_key(2048), OKPKey.generate_key("Ed25519")):
        forms = [Agent(device, key).token_request(TOKEN_ENDPOINT) for device in devices]
        answers = {str(said(client.post("/api/auth/token", data=form))) for form in forms}
        assert len(answers) == 1
        assert "401" in answers.pop()


def test_a_refusal_for_another_device_does_not_tell_whether_it_exists(
    client: FlaskClient, devices: list[str], headers: dict[str, str]
) -> None:
    def ask(device: str) -> str:
        one = client.post("/api/devices/heartbeat", json={"device_id": device}, headers=headers)
        items = [{"type": "device_heartbeat", "body": {"device_id": device}}]
        batch = client.post("/api/batch", json={"items": items}, headers=headers)
        assert (one.status_code, batch.json["results"][0]["status"]) == (403, 403)
        # A result holds the id of its item, which is what was sent, and is as long as that.
        length = str(len(batch.data) - len(device))
        return str((said(one), said(batch))).replace(device, "").replace(str(len(batch.data)), length)

    assert len({ask(device) for device in devices}) == 1


def test_a_taken_id_and_a_taken_key_are_refused_alike(
    client: FlaskClient, device: Agent, register: Any, enrollment: Callable[..., str], bearer: Any
) -> None:
    bodies = [Agent(device.device_id).registration(), Agent("somebody-else", device.key).registration()]
    tokens = bearer(enrollment())
    answers = {str(said(client.post("/api/devices/register", json=body, headers=tokens))) for body in bodies}
    assert len(answers) == 1
    assert "409" in answers.pop()


def test_a_report_id_of_another_device_is_free(
    client: FlaskClient, register: Any, access: Any, now_ms: int, rows: Any
) -> None:
    id_ = "0d6e1b0e-98a5-4f31-9b4c-0a2d2b1f6a77"
    event = {"event_type": "tamper_detected", "severity": "high", "event_id": id_, "detected_at": now_ms}
    for agent in (register(), register()):
        body = event | {"device_id": agent.device_id, "details": {"of": agent.device_id}}
        assert client.post("/api/compliance/event", json=body, headers=access(agent)).status_code == 201
    assert rows("SELECT count(*) AS n FROM compliance_events") == [{"n": 2}]


def test_the_rank_test_detects_a_timing_difference_and_no_noise() -> None:
    chance = random.Random(1)
    times = [[chance.gauss(mean, 1) for _ in range(2000)] for mean in (5, 5, 5.3)]
    advantage, p = mann_whitney(times[0], times[1])
    assert abs(advantage - 0.5) < 0.03
    assert p > 0.01
    # A difference of 0.3 standard deviations: Phi(0.3 / sqrt 2) = 0.584.
    advantage, p = mann_whitney(times[0], times[2])
    assert abs(advantage - 0.584) < 0.03
    assert p < 1e-6
