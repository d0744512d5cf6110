"""What is text to whoever sent it is text to us: stored as it came, in every field, and nothing is made of it."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from flask.testing import FlaskClient

from tests.support.agent import Agent
from tests.support.corpus import TEXTS

REGISTER = "/api/devices/register"
UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


class Place(NamedTuple):
    """A route, where it stores, and what of it is text. wanted: fields that may not be empty."""

    path: str
    table: str
    key: str
    fixed: dict[str, Any]
    texts: tuple[str, ...]
    objects: tuple[str, ...]
    wanted: tuple[str, ...] = ()


PLACES = [
    Place(
        "/api/prompt",
        "prompts",
        "prompt_id",
        {"instance_id": "i", "timestamp": 1767225600000},
        (
            *("site", "url", "prompt", "browser_name", "browser_version", "profile_name", "username", "page_title"),
            *("conversation_id", "model"),
        ),
        ("metadata",),
        ("site", "url"),
    ),
    Place(
        "/api/browsers/register",
        "browser_instances",
        "instance_id",
        {},
        (
            *("browser_name", "browser_version", "profile_name", "profile_path", "extension_id"),
            *("extension_version",),
        ),
        (),
        ("browser_name",),
    ),
    Place(
        "/api/extension/status",
        "extension_status",
        "status_id",
        {"instance_id": "i", "status": "enabled", "reported_at": 1767225600000},
        (),
        ("metadata",),
    ),
    Place(
        "/api/compliance/event",
        "compliance_events",
        "event_id",
        {"event_type": "tamper_detected", "severity": "low", "detected_at": 1767225600000},
        ("user_context",),
        ("details",),
    ),
]


def stored(value: Any) -> Any:
    """What becomes of characters that PostgreSQL can't hold."""
    if isinstance(value, str):
        return UNSTORABLE.sub("\ufffd", value)
    if isinstance(value, list):
        return [stored(item) for item in value]
    return {stored(name): stored(below) for name, below in value.items()} if isinstance(value, dict) else value


def holding(text: str) -> dict[str, Any]:
    """An object that holds a text wherever an object can."""
    return {"value": text, text: "name", "deep": [{"list": [text, text]}]}


@pytest.fixture
def untouched(rows: Callable[..., list[dict[str, Any]]]) -> Callable[[], list[dict[str, Any]]]:
    """Which tables, functions and roles there are, and who may come in."""
    query = """SELECT relname AS name FROM pg_class WHERE relnamespace = 'public'::regnamespace
        UNION ALL SELECT proname FROM pg_proc WHERE pronamespace = 'public'::regnamespace
        UNION ALL SELECT rolname FROM pg_roles UNION ALL SELECT enrollment_id::text FROM enrollments ORDER BY 1"""
    return lambda: rows(query)


@pytest.mark.parametrize("place", PLACES, ids=[place.table for place in PLACES])
def test_an_injection_in_text_is_stored_verbatim(
    place: Place, client: FlaskClient, device: Agent, headers: dict[str, str], rows: Any, untouched: Any
) -> None:
    before = untouched()
    sent = {}
    for text in TEXTS:
        key = str(uuid.uuid4())
        body = {**dict.fromkeys(place.texts, text), **{name: holding(text) for name in place.objects}}
        body |= dict.fromkeys(place.wanted, text if text.strip() else "-")
        # Blank metadata is absent.
        is_absent = place.table == "browser_instances" and not text.strip()
        sent[key] = {name: None if is_absent and value == text else value for name, value in body.items()}
        answer = client.post(
            place.path, json={**place.fixed, **body, "device_id": device.device_id, place.key: key}, headers=headers
        )
        assert answer.status_code == 201, (text, answer.text)
        assert answer.content_type == "application/json"
    found = rows(f"SELECT {', '.join((place.key, *place.texts, *place.objects))} FROM {place.table}")
    assert {str(row.pop(place.key)): row for row in found} == {key: stored(body) for key, body in sent.items()}
    assert untouched() == before
    assert not Path("/tmp/watchpost-was-here").exists()


@pytest.mark.parametrize("path", [REGISTER, "/api/devices/heartbeat"])
def test_an_injection_in_device_metadata_is_stored_verbatim(
    path: str, client: FlaskClient, device: Agent, headers: dict[str, str], enrollment: Any, bearer: Any, rows: Any
) -> None:
    given = bearer(enrollment()) if path == REGISTER else headers
    for text in TEXTS:
        said = {"hostname": text if text.strip() else "-", "os": holding(text), "browsers": [text, holding(text)]}
        body = {**device.proven(), **said} if path == REGISTER else {"device_id": device.device_id, **said}
        answer = client.post(path, json=body, headers=given)
        assert answer.status_code in (200, 201), (text, answer.text)
        assert rows("SELECT hostname, os, browsers FROM devices") == [stored(said)]


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("/api/devices/heartbeat", "device_id"),
        ("/api/prompt", "instance_id"),
        ("/api/prompt", "prompt_id"),
        ("/api/prompt", "action"),
        ("/api/extension/status", "reported_by"),
        ("/api/compliance/event", "event_type"),
        ("/api/compliance/event", "severity"),
    ],
)
def test_an_injection_in_an_identifier_is_refused_or_only_text(
    path: str, field: str, client: FlaskClient, device: Agent, headers: dict[str, str], untouched: Any
) -> None:
    before = untouched()
    place = next((place for place in PLACES if place.path == path), None)
    for text in TEXTS:
        body = {"device_id": device.device_id, **dict.fromkeys(place.wanted, "-"), **place.fixed} if place else {}
        answer = client.post(path, json={"prompt": text, **body, field: text}, headers=headers)
        # 403: the name of another device.
        assert answer.status_code in (201, 400, 403), (text, answer.text)
        form = "[a-z][a-z0-9_]{0,63}" if field in ("event_type", "action") else "[!-~]{1,128}"
        is_one = re.fullmatch(form, text) is not None and field not in ("device_id", "prompt_id", "severity")
        assert (answer.status_code == 201) == is_one, (text, answer.text)
    assert untouched() == before


def test_an_injection_in_the_path_or_query_is_only_text(
    client: FlaskClient, headers: dict[str, str], untouched: Any
) -> None:
    before = untouched()
    for text in TEXTS[::3]:
        shown = UNSTORABLE.sub("\ufffd", text)
        assert client.post("/api/nothing", query_string={"q": shown}, json={}, headers=headers).status_code == 404
        answer = client.post("/api/prompt", query_string={"q": shown, shown: "x"}, json={}, headers=headers)
        assert answer.status_code == 400
        assert len(shown) < 3 or shown not in answer.text or shown in ("null",)
    assert untouched() == before
