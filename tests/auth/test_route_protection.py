"""No route answers without a token, but for a short list named here."""

from __future__ import annotations

import gzip
from typing import Any

import pytest
from flask.testing import FlaskClient
from werkzeug.routing import Rule

from app.api import scopes
from app.application import Watchpost

# The token endpoint is guarded by the client assertion that it carries.
TOKEN_ENDPOINT = "/api/auth/token"
OPEN = {
    TOKEN_ENDPOINT,
    "/livez",
    "/readyz",
    "/openapi.json",
    "/docs",
    "/docs/static/<path:name>",
    "/.well-known/jwks.json",
}


@pytest.fixture
def guarded(app: Watchpost) -> list[tuple[str, str, Rule]]:
    """Every other door: method, path, rule."""
    return [
        (method, rule.rule.replace("<", "").replace(">", ""), rule)
        for rule in app.url_map.iter_rules()
        if rule.rule not in OPEN
        for method in sorted((rule.methods or set()) - {"OPTIONS"})
    ]


def test_the_list_of_open_doors_names_routes_that_there_are(app: Watchpost) -> None:
    assert {rule.rule for rule in app.url_map.iter_rules()} >= OPEN


def test_the_contract_names_eight_guarded_doors_for_writing(guarded: list[tuple[str, str, Rule]]) -> None:
    assert {path for method, path, _ in guarded if method == "POST"} >= {
        "/api/devices/register",
        "/api/devices/heartbeat",
        "/api/prompt",
        "/api/browsers/register",
        "/api/browsers/heartbeat",
        "/api/extension/status",
        "/api/compliance/event",
        "/api/batch",
    }


@pytest.mark.parametrize(
    "sent",
    [
        {},
        {"json": {}},
        {"data": b"{", "content_type": "application/json"},
        {"data": b"x", "content_type": "text/plain"},
        {"data": gzip.compress(b"{}" * 20_000_000), "headers": {"Content-Encoding": "gzip"}},
        {"data": b"x", "headers": {"Content-Encoding": "br"}},
        {"data": b"x" * (9 * 2**20), "content_type": "application/json"},
        {"headers": {"Cookie": "session=1", "X-Forwarded-For": "127.0.0.1"}},
    ],
    ids=["nothing", "object", "broken", "text", "gzip bomb", "brotli", "too large", "cookie"],
)
def test_a_guarded_door_is_closed_to_who_has_no_token_whatever_is_sent(
    sent: dict[str, Any], guarded: list[tuple[str, str, Rule]], client: FlaskClient
) -> None:
    answers = {(method, path): client.open(path, method=method, **sent) for method, path, _ in guarded}
    assert {door: answer.status_code for door, answer in answers.items()} == dict.fromkeys(answers, 401)
    challenges = {door: answer.headers.get("WWW-Authenticate", "") for door, answer in answers.items()}
    assert [door for door, challenge in challenges.items() if not challenge.startswith('Bearer error="')] == []
    assert {answer.mimetype for answer in answers.values()} == {"application/problem+json"}


def test_the_view_behind_a_guarded_door_names_its_scopes(app: Watchpost, guarded: list[tuple[str, str, Rule]]) -> None:
    known = {scopes.REGISTER, *scopes.WRITE, *scopes.READ}
    named = {path: set(getattr(app.view_functions[rule.endpoint], "scopes", ())) for _, path, rule in guarded}
    assert {path: wanted for path, wanted in named.items() if not wanted or not wanted <= known} == {}


def test_no_view_behind_an_open_door_pretends_to_be_guarded(app: Watchpost) -> None:
    endpoints = [rule.endpoint for rule in app.url_map.iter_rules() if rule.rule in OPEN]
    assert [name for name in endpoints if hasattr(app.view_functions[name], "scopes")] == []


@pytest.mark.parametrize("path", sorted(OPEN - {TOKEN_ENDPOINT}))
def test_an_open_door_answers_without_a_token(path: str, client: FlaskClient) -> None:
    assert client.get(path.replace("<path:name>", "swagger-ui.css")).status_code == 200


def test_the_token_endpoint_is_closed_to_who_has_no_assertion(client: FlaskClient) -> None:
    answer = client.post(TOKEN_ENDPOINT, data={"grant_type": "client_credentials"})
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"].startswith('Bearer error="invalid_client"')


def test_an_open_door_is_open_for_reading_alone(app: Watchpost) -> None:
    methods = {rule.rule: rule.methods for rule in app.url_map.iter_rules() if rule.rule in OPEN - {TOKEN_ENDPOINT}}
    assert {path: found for path, found in methods.items() if not (found or set()) <= {"GET", "HEAD", "OPTIONS"}} == {}


@pytest.mark.parametrize("path", ["/api/", "/api", "/metrics/", "/api/prompt/", "//api/prompt", "/api/nothing", "/x"])
def test_there_is_nothing_behind_other_addresses(path: str, client: FlaskClient) -> None:
    answer = client.post(path, json={})
    assert answer.status_code == 404
    assert answer.mimetype == "application/problem+json"
