"""Cross-origin requests (CORS): which browsers' pages may call the API."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
from flask.testing import FlaskClient

from config.settings import SettingError, Settings, load

EXTENSION = "chrome-extension://abc"
ORIGINS = {"cors_origins": f"{EXTENSION} https://x.example"}
with_origins = pytest.mark.parametrize("settings", [ORIGINS], indirect=True)

Rows = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def settings(settings: Settings, request: pytest.FixtureRequest) -> Settings:
    return dataclasses.replace(settings, **getattr(request, "param", {}))


@pytest.fixture
def prompt(now_ms: int, headers: dict[str, str], device: Any) -> dict[str, Any]:
    return {
        "device_id": device.device_id,
        "instance_id": "chrome-1",
        "site": "site.example",
        "url": "https://site.example/",
        "prompt": "text",
        "timestamp": now_ms,
    }


def preflight(client: FlaskClient, origin: str, path: str = "/api/prompt") -> Any:
    return client.options(
        path,
        headers={
            "Origin": origin,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization, content-type, content-encoding, x-request-id",
        },
    )


def cors_headers(answer: Any) -> list[str]:
    return [name for name, _ in answer.headers if name.lower().startswith("access-control-")]


def words(answer: Any, name: str) -> set[str]:
    return {word.strip().lower() for word in answer.headers[name].split(",")}


@with_origins
@pytest.mark.parametrize("origin", [EXTENSION, "https://x.example"])
def test_cors_allows_a_listed_origin(origin: str, client: FlaskClient) -> None:
    answer = preflight(client, origin)
    assert answer.status_code == 200
    assert answer.headers["Access-Control-Allow-Origin"] == origin
    assert "post" in words(answer, "Access-Control-Allow-Methods")
    allowed = {"authorization", "content-type", "content-encoding", "x-request-id"}
    assert words(answer, "Access-Control-Allow-Headers") == allowed
    assert "Access-Control-Allow-Credentials" not in answer.headers
    assert "origin" in words(answer, "Vary")


@with_origins
def test_cors_allows_no_other_header(client: FlaskClient) -> None:
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x-sesame, authorization"}
    answer = client.options("/api/prompt", headers={"Origin": EXTENSION, **asked})
    assert "x-sesame" not in words(answer, "Access-Control-Allow-Headers")


@with_origins
@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example",
        "https://x.example.evil.example",
        "https://xxexample",
        "https://sub.x.example",
        "https://x.example:8443",
        "http://x.example",
        "HTTPS://X.EXAMPLE",
        "https://X.example",
        "https://x.example/",
        "https://x.example:443",
        "https://x.example.",
        "Chrome-Extension://abc",
        "chrome-extension://abcd",
        "chrome-extension://ab",
        "null",
        "*",
    ],
)
def test_cors_refuses_an_origin_that_is_not_listed(origin: str, client: FlaskClient) -> None:
    assert cors_headers(preflight(client, origin)) == []
    assert cors_headers(client.post("/api/prompt", headers={"Origin": origin})) == []


@pytest.mark.parametrize("origin", [EXTENSION, "https://x.example", "http://watchpost.test", "null"])
def test_cors_allows_no_origin_by_default(origin: str, client: FlaskClient) -> None:
    assert cors_headers(preflight(client, origin)) == []
    assert cors_headers(client.post("/api/prompt", headers={"Origin": origin})) == []


@with_origins
def test_cors_headers_are_absent_from_the_answer_to_a_request_without_an_origin(
    client: FlaskClient, headers: dict[str, str], prompt: dict[str, Any]
) -> None:
    """On the fast path, and on the full path, which the first request of a token and each invalid body take."""
    answers = [client.post("/api/prompt", json=body, headers=headers) for body in (prompt, prompt, {})]
    assert [answer.status_code for answer in answers] == [201, 200, 400]
    assert [cors_headers(answer) for answer in answers] == [[], [], []]


@with_origins
def test_cors_lets_an_extension_read_answers_and_refusals(
    client: FlaskClient, headers: dict[str, str], prompt: dict[str, Any], rows: Rows
) -> None:
    origin = {"Origin": EXTENSION}
    stored = client.post("/api/prompt", json=prompt, headers=headers | origin)
    refused = client.post("/api/prompt", json={}, headers=headers | origin)
    stranger = client.post("/api/prompt", json=prompt, headers=origin)
    assert [answer.status_code for answer in (stored, refused, stranger)] == [201, 400, 401]
    for answer in (stored, refused, stranger):
        assert answer.headers["Access-Control-Allow-Origin"] == EXTENSION
        assert "Access-Control-Allow-Credentials" not in answer.headers
        assert {"retry-after", "x-request-id"} <= words(answer, "Access-Control-Expose-Headers")
    assert len(rows("SELECT prompt_id FROM prompts")) == 1


@with_origins
def test_a_cors_preflight_needs_no_token_and_does_nothing(client: FlaskClient, rows: Rows) -> None:
    answer = preflight(client, EXTENSION)
    assert (answer.status_code, answer.data) == (200, b"")
    assert rows("SELECT prompt_id FROM prompts") == []


@pytest.mark.parametrize(
    ("settings", "allowed", "refused"),
    [
        (
            {"cors_origins": "https://a.example:8443,http://[::1]:3000 http://127.0.0.1:5000"},
            ["https://a.example:8443", "http://[::1]:3000", "http://127.0.0.1:5000"],
            ["https://a.example", "https://a.example:84430", "http://[::1]", "http://1:3000", "http://127.0.0.1"],
        ),
        (
            # An entry is written as a browser writes it: in lower case, without the default port.
            {"cors_origins": "https://A.Example:443 http://[0:0:0:0:0:0:0:1]"},
            ["https://a.example", "http://[::1]"],
            ["https://A.Example", "https://a.example:443"],
        ),
        (
            {"cors_origins": "moz-extension://* safari-web-extension://*"},
            [
                "moz-extension://2c127fa4-62c7-7e4f-90e5-472b45eecfdc",
                "safari-web-extension://E9A9B9C0-62C7-7E4F-90E5-472B45EECFDC",
            ],
            [
                "moz-extension://",
                "moz-extension://a.b",
                "moz-extension://a:80",
                "moz-extension://a/b",
                "xmoz-extension://a",
                "chrome-extension://abc",
                "https://moz-extension://a",
            ],
        ),
        (
            {"cors_origins": "chrome-extension://abcdefghijklmnopabcdefghijklmnop"},
            ["chrome-extension://abcdefghijklmnopabcdefghijklmnop"],
            [
                "chrome-extension://abcdefghijklmnopabcdefghijklmno",
                "chrome-extension://ABCDEFGHIJKLMNOPABCDEFGHIJKLMNOP",
            ],
        ),
    ],
    indirect=["settings"],
    ids=["port and IPv6", "as a browser writes it", "random extension id", "fixed extension id"],
)
def test_cors_compares_an_origin_exactly(allowed: list[str], refused: list[str], client: FlaskClient) -> None:
    assert [preflight(client, origin).headers.get("Access-Control-Allow-Origin") for origin in allowed] == allowed
    assert [cors_headers(preflight(client, origin)) for origin in refused] == [[]] * len(refused)


@with_origins
@pytest.mark.parametrize("path", ["/livez", "/openapi.json", "/docs", "/.well-known/jwks.json", "/nothing"])
def test_cors_is_for_the_api_only(path: str, client: FlaskClient) -> None:
    assert cors_headers(client.get(path, headers={"Origin": EXTENSION})) == []
    assert cors_headers(preflight(client, EXTENSION, path)) == []


@pytest.mark.parametrize(
    "entry",
    [
        "*",
        "null",
        "https://*",
        "https://*.example.com",
        "https://x.example/",
        "https://x.example/path",
        "https://x.example?q",
        "https://x.example#f",
        "https://user@x.example",
        "https://x.example:",
        "https://x.example:0",
        "https://x.example:65536",
        "https://x.example:*",
        "https://x..example",
        "https://x.example,*",
        "https://ex\u00e4mple.com",
        "https://[::1",
        "https://[::g]",
        "https://::1",
        "https://1.2.3.4.5",
        "https://",
        "//x.example",
        "x.example",
        "https:/x.example",
        "https://x.*",
        "https://x.example$",
        ".*",
        "chrome-extension://*",
        "moz-extension://*/",
        "moz-extension://a*",
        "*://*",
        "[a",
    ],
)
def test_a_cors_entry_that_is_no_origin_stops_the_start_and_names_the_variable(entry: str) -> None:
    with pytest.raises(SettingError, match="WATCHPOST_CORS_ORIGINS"):
        load({"WATCHPOST_CORS_ORIGINS": f"https://good.example {entry}"})
