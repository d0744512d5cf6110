"""Route protection: no route answers without a token, but for the open routes listed here."""

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
    "/.well-known/oauth-authorization-server",
}


@pytest.fixture
def guarded(app: Watchpost) -> list[tuple[str, str, Rule]]:
    """Every other route: method, path, rule."""
    return [
        (method, rule.rule.replace("<", "").replace(">", ""), rule)
        for rule in app.url_map.iter_rules()
        if rule.rule not in OPEN
        for method in sorted((rule.methods or set()) - {"OPTIONS"})
    ]


def test_every_open_route_in_the_list_exists(app: Watchpost) -> None:
    assert {rule.rule for rule in app.url_map.iter_rules()} >= OPEN


def test_the_eight_write_routes_are_guarded(guarded: list[tuple[str, str, Rule]]) -> None:
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
def test_a_guarded_route_answers_401_without_a_token_whatever_is_sent(
    sent: dict[str, Any], guarded: list[tuple[str, str, Rule]], client: FlaskClient
) -> None:
    answers = {(method, path): client.open(path, method=method, **sent) for method, path, _ in guarded}
    assert {route: answer.status_code for route, answer in answers.items()} == dict.fromkeys(answers, 401)
    challenges = {route: answer.headers.get("WWW-Authenticate", "") for route, answer in answers.items()}
    assert [route for route, challenge in challenges.items() if not challenge.startswith('Bearer error="')] == []
    assert {answer.mimetype for answer in answers.values()} == {"application/problem+json"}


def test_the_view_of_a_guarded_route_names_its_scopes(app: Watchpost, guarded: list[tuple[str, str, Rule]]) -> None:
    known = {scopes.REGISTER, *scopes.WRITE, *scopes.READ}
    named = {path: set(getattr(app.view_functions[rule.endpoint], "scopes", ())) for _, path, rule in guarded}
    assert {path: wanted for path, wanted in named.items() if not wanted or not wanted <= known} == {}


def test_no_view_of_an_open_route_names_scopes(app: Watchpost) -> None:
    endpoints = [rule.endpoint for rule in app.url_map.iter_rules() if rule.rule in OPEN]
    assert [name for name in endpoints if hasattr(app.view_functions[name], "scopes")] == []


@pytest.mark.parametrize("path", sorted(OPEN - {TOKEN_ENDPOINT}))
def test_an_open_route_answers_without_a_token(path: str, client: FlaskClient) -> None:
    assert client.get(path.replace("<path:name>", "swagger-ui.css")).status_code == 200


def test_the_token_endpoint_answers_401_without_a_client_assertion(client: FlaskClient) -> None:
    answer = client.post(TOKEN_ENDPOINT, data={"grant_type": "client_credentials"})
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"].startswith('Bearer error="invalid_client"')


def test_an_open_route_is_read_only(app: Watchpost) -> None:
    methods = {rule.rule: rule.methods for rule in app.url_map.iter_rules() if rule.rule in OPEN - {TOKEN_ENDPOINT}}
    assert {path: found for path, found in methods.items() if not (found or set()) <= {"GET", "HEAD", "OPTIONS"}} == {}


@pytest.mark.parametrize("path", ["/api/", "/api", "/metrics/", "/api/prompt/", "//api/prompt", "/api/nothing", "/x"])
def test_an_unknown_route_is_404(path: str, client: FlaskClient) -> None:
    answer = client.post(path, json={})
    assert answer.status_code == 404
    assert answer.mimetype == "application/problem+json"
