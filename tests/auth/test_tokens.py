"""How a device gets an access token, and which tokens the routes believe."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import hmac
import itertools
import json
import time
import uuid
from base64 import urlsafe_b64decode
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple
from urllib.parse import urlencode

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from flask.testing import FlaskClient
from joserfc.jwk import ECKey, OKPKey, RSAKey
from werkzeug.test import TestResponse

from app.api import scopes
from app.application import Watchpost
from app.auth import jws
from app.jobs import assertions
from config.settings import Settings
from tests.support import forgery
from tests.support.agent import ALGORITHMS, ASSERTION_TYPE, Agent
from tests.support.forgery import part, signed
from tests.support.service import as_role

ISSUER = "http://watchpost.test"
TOKEN_ENDPOINT = ISSUER + "/api/auth/token"
ROUTES = {
    "/api/devices/heartbeat": "devices:write",
    "/api/prompt": "prompts:write",
    "/api/browsers/register": "browsers:write",
    "/api/browsers/heartbeat": "browsers:write",
    "/api/extension/status": "extension:write",
    "/api/compliance/event": "compliance:write",
}
KEYS: dict[str, Callable[[], ECKey | RSAKey | OKPKey]] = {
    "EC": lambda: ECKey.generate_key("P-256"),
    "RSA": lambda: RSAKey.generate_key(2048),
    "Ed25519": lambda: OKPKey.generate_key("Ed25519"),
}

Claims = dict[str, Any]
Rows = Callable[..., list[dict[str, Any]]]
Ask = Callable[..., TestResponse]
Knock = Callable[[str], TestResponse]


def opened(token: str) -> tuple[Claims, Claims]:
    """Header and claims of a token, unverified."""
    header, claims, _ = token.split(".")
    return json.loads(urlsafe_b64decode(header + "==")), json.loads(urlsafe_b64decode(claims + "=="))


def es256(key: ECKey, text: str) -> tuple[bytes, int, int]:
    """A signature of a text: as DER, and as its two numbers."""
    der = key.get_op_key("sign").sign(text.encode(), ec.ECDSA(SHA256()))
    return der, *decode_dss_signature(der)


def keyed_hash(secret: bytes, header: Claims, claims: Claims) -> str:
    """A token "signed" with HS256."""
    text = f"{part({**header, 'alg': 'HS256'})}.{part(claims)}"
    return f"{text}.{part(hmac.digest(secret, text.encode(), hashlib.sha256))}"


def public_pem(key: ECKey | RSAKey | OKPKey) -> bytes:
    return key.get_op_key("verify").public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def present(claims: Claims) -> Claims:
    return {name: value for name, value in claims.items() if value is not None}


def from_now(**seconds: int) -> Claims:
    now = int(time.time())
    return {name: now + offset for name, offset in seconds.items()}


def assertion_parts(agent: Agent, **claims: Any) -> tuple[Claims, Claims]:
    """Header and claims of a client assertion; a claim given as None is left out."""
    good = {"iss": agent.device_id, "sub": agent.device_id, "aud": TOKEN_ENDPOINT, "jti": uuid.uuid4().hex}
    return {"alg": ALGORITHMS[agent.key.key_type]}, present({**good, **from_now(iat=0, exp=60), **claims})


def access_parts(app: Watchpost, agent: Agent, **claims: Any) -> tuple[ECKey, Claims, Claims]:
    """The service's key, and header and claims of an access token; a claim given as None is left out."""
    key = app.extensions["auth"].keys.signing.keys[0]
    good = {"iss": ISSUER, "aud": ISSUER, "sub": agent.device_id, "client_id": agent.device_id}
    good |= {"jti": uuid.uuid4().hex, "scope": "devices:write", **from_now(iat=0, exp=900)}
    good |= {"cnf": {"jkt": thumbprint(agent.key)}}
    return key, {"alg": "ES256", "typ": "at+jwt", "kid": key.kid}, present({**good, **claims})


def access_token(app: Watchpost, agent: Agent, header: Claims | None = None, **claims: Any) -> str:
    key, good, all_claims = access_parts(app, agent, **claims)
    return signed(key, present({**good, **(header or {})}), all_claims)


def thumbprint(key: ECKey | RSAKey | OKPKey) -> str:
    """RFC 7638, with the required members spelt out."""
    members = {"EC": ("crv", "kty", "x", "y"), "RSA": ("e", "kty", "n"), "OKP": ("crv", "kty", "x")}[key.key_type]
    jwk = key.as_dict(private=False)
    text = json.dumps({name: jwk[name] for name in members}, sort_keys=True, separators=(",", ":"))
    return part(hashlib.sha256(text.encode()).digest())


def assert_refused(answer: TestResponse, status: int, error: str) -> None:
    """RFC 6749, section 5.2."""
    assert (answer.status_code, answer.json["error"]) == (status, error), answer.text
    assert answer.json["error_description"]
    assert answer.json["request_id"] == answer.headers["X-Request-ID"]
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.mimetype == "application/json"
    assert "access_token" not in answer.json
    if status == 401:
        assert answer.headers["WWW-Authenticate"].startswith(f'Bearer error="{error}"')


def assert_challenged(answer: TestResponse, status: int = 401, error: str = "invalid_token") -> None:
    """RFC 6750, section 3, and RFC 9457."""
    assert answer.status_code == status, answer.text
    assert answer.mimetype == "application/problem+json"
    assert answer.headers["WWW-Authenticate"].startswith(f'Bearer error="{error}"')
    assert answer.json["status"] == status
    assert {"type", "title", "detail"} <= set(answer.json)
    assert answer.json["request_id"] == answer.headers["X-Request-ID"]


@pytest.fixture
def settings(settings: Settings, request: pytest.FixtureRequest) -> Settings:
    return dataclasses.replace(settings, **getattr(request, "param", {}))


@pytest.fixture
def ask(client: FlaskClient) -> Ask:
    """Ask for an access token; a parameter given as None is left out."""

    def ask(assertion: str | None, **form: Any) -> TestResponse:
        good = {"grant_type": "client_credentials", "client_assertion_type": ASSERTION_TYPE}
        return client.post("/api/auth/token", data=present({**good, "client_assertion": assertion, **form}))

    return ask


@pytest.fixture
def knock(client: FlaskClient, device: Agent, bearer: Callable[[str], dict[str, str]]) -> Knock:
    """Send a heartbeat of `device` with a token."""
    return lambda token: client.post(
        "/api/devices/heartbeat", json={"device_id": device.device_id}, headers=bearer(token)
    )


@pytest.fixture
def command(app: Watchpost) -> Callable[..., str]:
    def command(*arguments: str) -> str:
        result = app.test_cli_runner().invoke(args=arguments)
        assert result.exit_code == 0, result.output
        return result.stdout.strip()

    return command


def heartbeats(rows: Rows) -> int:
    return rows("SELECT count(last_heartbeat) AS n FROM devices")[0]["n"]


def used(rows: Rows) -> int:
    return rows("SELECT count(*) AS n FROM client_assertions")[0]["n"]


# The token endpoint


@pytest.mark.parametrize("kind", KEYS)
def test_a_device_gets_a_token_with_each_kind_of_key(kind: str, register: Callable[..., Agent], ask: Ask) -> None:
    agent = register(Agent(key=KEYS[kind]()))
    answer = ask(agent.assertion(TOKEN_ENDPOINT), scope="prompts:write devices:write")
    assert answer.status_code == 200, answer.text
    assert set(answer.json) == {"access_token", "token_type", "expires_in", "scope"}
    assert (answer.json["token_type"], answer.json["expires_in"]) == ("Bearer", 900)
    assert set(answer.json["scope"].split()) == {"prompts:write", "devices:write"}
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.mimetype == "application/json"


@pytest.mark.parametrize("kind", KEYS)
def test_an_access_token_names_its_subject_lifetime_and_key_thumbprint(
    kind: str, app: Watchpost, register: Callable[..., Agent], ask: Ask
) -> None:
    agent = register(Agent(key=KEYS[kind]()))
    answer = ask(agent.assertion(TOKEN_ENDPOINT), scope="prompts:write").json
    header, claims = opened(answer["access_token"])
    kid = app.extensions["auth"].keys.listed()[0]["kid"]
    assert header == {"typ": "at+jwt", "alg": "ES256", "kid": kid}
    assert (claims["iss"], claims["aud"]) == (ISSUER, ISSUER)
    assert claims["sub"] == claims["client_id"] == agent.device_id
    assert claims["exp"] - claims["iat"] == 900
    assert claims["scope"] == answer["scope"] == "prompts:write"
    assert claims["cnf"] == {"jkt": thumbprint(agent.key)}
    assert claims["jti"]


def test_every_access_token_has_its_own_jti(device: Agent, ask: Ask) -> None:
    tokens = [ask(device.assertion(TOKEN_ENDPOINT)).json["access_token"] for _ in range(3)]
    assert len({opened(token)[1]["jti"] for token in tokens}) == 3


def test_a_used_assertion_is_kept_until_it_expires_against_replay(device: Agent, ask: Ask, rows: Rows) -> None:
    claims = {"jti": "once", **from_now(exp=120)}
    assert ask(device.assertion(TOKEN_ENDPOINT, **claims)).status_code == 200
    (row,) = rows("SELECT device_id, jti, extract(epoch FROM expires_at)::int AS expires FROM client_assertions")
    assert row == {"device_id": device.device_id, "jti": "once", "expires": claims["exp"] + 60}


@pytest.mark.parametrize("settings", [{"access_token_seconds": 120}], indirect=True)
def test_the_lifetime_of_tokens_can_be_set(device: Agent, ask: Ask) -> None:
    answer = ask(device.assertion(TOKEN_ENDPOINT)).json
    _, claims = opened(answer["access_token"])
    assert answer["expires_in"] == claims["exp"] - claims["iat"] == 120


@pytest.mark.parametrize("scope", [None, ""])
def test_without_a_scope_a_device_gets_all_that_it_may_have(scope: str | None, device: Agent, ask: Ask) -> None:
    answer = ask(device.assertion(TOKEN_ENDPOINT), scope=scope).json
    assert set(answer["scope"].split()) == set(scopes.WRITE)
    assert set(opened(answer["access_token"])[1]["scope"].split()) == set(scopes.WRITE)


@pytest.mark.parametrize(
    "scope", ["devices:register", "prompts:read", "metrics:read", "prompts:reveal audit:read", "all", "é\x00", "*"]
)
def test_a_scope_that_no_device_may_have_is_refused(scope: str, device: Agent, ask: Ask) -> None:
    assert_refused(ask(device.assertion(TOKEN_ENDPOINT), scope=scope), 400, "invalid_scope")


@pytest.mark.parametrize(
    "scope",
    [
        "prompts:write prompts:read",
        "devices:register prompts:write",
        "prompts:write files:write prompts:write",
        "all prompts:write *",
    ],
)
def test_a_scope_that_no_device_may_have_is_left_out_of_the_token(scope: str, device: Agent, ask: Ask) -> None:
    answer = ask(device.assertion(TOKEN_ENDPOINT), scope=scope)
    assert answer.status_code == 200, answer.text
    assert answer.json["scope"] == opened(answer.json["access_token"])[1]["scope"] == "prompts:write"


def test_a_token_with_fewer_scopes_is_refused_by_other_routes(
    device: Agent, ask: Ask, knock: Knock, rows: Rows
) -> None:
    token = ask(device.assertion(TOKEN_ENDPOINT), scope="prompts:write").json["access_token"]
    assert_challenged(knock(token), 403, "insufficient_scope")
    assert heartbeats(rows) == 0


@pytest.mark.parametrize(
    ("grant_type", "error"),
    [
        (None, "invalid_request"),
        ("", "invalid_request"),
        ("password", "unsupported_grant_type"),
        ("authorization_code", "unsupported_grant_type"),
        ("urn:ietf:params:oauth:grant-type:jwt-bearer", "unsupported_grant_type"),
    ],
)
def test_any_other_grant_type_is_refused(
    grant_type: str | None, error: str, device: Agent, ask: Ask, rows: Rows
) -> None:
    assert_refused(ask(device.assertion(TOKEN_ENDPOINT), grant_type=grant_type), 400, error)
    assert used(rows) == 0


@pytest.mark.parametrize(
    "name", ["grant_type", "client_assertion", "client_assertion_type", "scope", "something_of_no_meaning"]
)
def test_a_duplicate_form_parameter_is_refused(name: str, device: Agent, client: FlaskClient, rows: Rows) -> None:
    form = device.token_request(TOKEN_ENDPOINT, "prompts:write") | {"something_of_no_meaning": "1"}
    twice = [*form.items(), (name, form[name])]
    answer = client.post("/api/auth/token", data=urlencode(twice), content_type="application/x-www-form-urlencoded")
    assert_refused(answer, 400, "invalid_request")
    assert used(rows) == 0


@pytest.mark.parametrize("type_", [None, "", "urn:ietf:params:oauth:client-assertion-type:saml2-bearer"])
def test_any_other_client_assertion_type_is_refused(type_: str | None, device: Agent, ask: Ask) -> None:
    assert_refused(ask(device.assertion(TOKEN_ENDPOINT), client_assertion_type=type_), 401, "invalid_client")


@pytest.mark.parametrize("assertion", [None, ""])
def test_without_an_assertion_there_is_no_token(assertion: str | None, ask: Ask) -> None:
    assert_refused(ask(assertion), 401, "invalid_client")


@pytest.mark.parametrize("more", [{"client_id": "laptop", "client_secret": "x"}, {"client_id": "laptop"}])
def test_no_other_way_to_authenticate_is_offered(more: dict[str, str], device: Agent, ask: Ask) -> None:
    form = {name: device.device_id if name == "client_id" else value for name, value in more.items()}
    assert_refused(ask(None, client_assertion_type=None, **form), 401, "invalid_client")


def test_a_password_in_the_header_is_no_assertion(device: Agent, client: FlaskClient) -> None:
    form = {"grant_type": "client_credentials"}
    assert_refused(client.post("/api/auth/token", data=form, auth=(device.device_id, "x")), 401, "invalid_client")


def test_parameters_count_in_the_form_alone(device: Agent, client: FlaskClient, rows: Rows) -> None:
    form = device.token_request(TOKEN_ENDPOINT)
    assert_refused(client.post("/api/auth/token", query_string=form), 400, "invalid_request")
    assert_refused(client.post("/api/auth/token", json=form), 400, "invalid_request")
    assert client.get("/api/auth/token", query_string=form).status_code == 405
    assert used(rows) == 0


def test_the_form_may_be_compressed(device: Agent, client: FlaskClient) -> None:
    answer = client.post(
        "/api/auth/token",
        data=gzip.compress(urlencode(device.token_request(TOKEN_ENDPOINT)).encode()),
        headers={"Content-Encoding": "gzip", "Content-Type": "application/x-www-form-urlencoded"},
    )
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("encoding", ["identity", "gzip"])
def test_a_form_of_more_than_a_mebibyte_is_too_large(encoding: str, client: FlaskClient) -> None:
    form = b"grant_type=client_credentials&x=" + b"x" * 2**20
    answer = client.post(
        "/api/auth/token",
        data=gzip.compress(form) if encoding == "gzip" else form,
        headers={"Content-Encoding": encoding, "Content-Type": "application/x-www-form-urlencoded"},
    )
    assert answer.status_code == 413, answer.text


# Client assertions


@pytest.mark.parametrize("audience", [ISSUER, TOKEN_ENDPOINT, [TOKEN_ENDPOINT], [TOKEN_ENDPOINT, ISSUER]])
def test_an_assertion_is_for_the_issuer_or_the_token_endpoint(audience: Any, device: Agent, ask: Ask) -> None:
    assert ask(device.assertion(audience)).status_code == 200


def test_an_assertion_without_optional_claims_and_with_a_type_is_accepted(device: Agent, ask: Ask) -> None:
    header, claims = assertion_parts(device, iat=None)
    assert ask(signed(device.key, {**header, "typ": "JWT", "kid": "mine"}, claims)).status_code == 200


@pytest.mark.parametrize(
    "member",
    [
        {"x5t": "dGh1bWI"},
        {"x5t#S256": "dGh1bWI"},
        {"x5t": 5},
        {"cty": "JWT"},
        {"cty": None},
        {"nonce": ["a", {"b": 1}]},
        {"iat": 5, "ver": 1.5},
        {"x5t": "x" * 600},
    ],
    ids=lambda member: " ".join(member),
)
def test_a_header_member_that_names_no_key_is_ignored(member: Claims, device: Agent, ask: Ask) -> None:
    header, claims = assertion_parts(device)
    answer = ask(signed(device.key, {**header, **member}, claims))
    assert answer.status_code == 200, answer.text


REFUSED_CLAIMS: dict[str, Claims] = {
    "aud of somebody else": {"aud": "https://else.example"},
    "aud of another route": {"aud": ISSUER + "/api/prompt"},
    "aud list of this and another server": {"aud": [TOKEN_ENDPOINT, "https://else.example"]},
    "aud list of another server and this": {"aud": ["https://else.example", ISSUER]},
    "aud list with an empty string": {"aud": [ISSUER, ""]},
    "aud list of others": {"aud": ["https://else.example", ISSUER + "/"]},
    "aud empty list": {"aud": []},
    "aud number": {"aud": 5},
    "aud object": {"aud": {ISSUER: ISSUER}},
    "aud list of odd things": {"aud": [ISSUER, 5, {}]},
    "aud missing": {"aud": None},
    "iss of somebody else": {"iss": "somebody"},
    "iss missing": {"iss": None},
    "iss list": {"iss": ["laptop"]},
    "exp missing": {"exp": None},
    "exp text": {"exp": "9999999999"},
    "exp boolean": {"exp": True},
    "exp zero": {"exp": 0},
    "exp not a number": {"exp": float("nan")},
    "exp endless": {"exp": float("inf")},
    "exp beyond 64 bits": {"exp": 10**30},
    "nbf text": {"nbf": "0"},
    "iat text": {"iat": "0"},
    "iat list": {"iat": []},
    "jti missing": {"jti": None},
    "jti empty": {"jti": ""},
    "jti number": {"jti": 5},
    "jti object": {"jti": {"a": 1}},
    "jti with NUL": {"jti": "a\x00b"},
    "jti not ASCII": {"jti": "é"},
    "jti a lone surrogate": {"jti": "\ud800"},
    "jti too long": {"jti": "x" * 257},
    "sub missing": {"sub": None},
    "sub number": {"sub": 5},
    "sub list": {"sub": ["laptop"]},
    "sub empty": {"sub": ""},
    "sub with NUL": {"sub": "a\x00"},
    "sub a lone surrogate": {"sub": "\ud800"},
    "sub SQL": {"sub": "' OR 1=1 --"},
}


@pytest.mark.parametrize("claims", REFUSED_CLAIMS.values(), ids=REFUSED_CLAIMS)
def test_an_assertion_with_a_wrong_claim_gets_no_token(claims: Claims, device: Agent, ask: Ask, rows: Rows) -> None:
    header, all_claims = assertion_parts(device, **claims)
    assert_refused(ask(signed(device.key, header, all_claims)), 401, "invalid_client")
    assert used(rows) == 0


@pytest.mark.parametrize("seconds", [{"exp": -30}, {"exp": 300}, {"exp": 345}, {"iat": 30}, {"nbf": 30}])
def test_clock_skew_of_a_minute_is_allowed(seconds: dict[str, int], device: Agent, ask: Ask) -> None:
    assert ask(device.assertion(TOKEN_ENDPOINT, **from_now(**seconds))).status_code == 200


@pytest.mark.parametrize("seconds", [{"exp": -61}, {"exp": 400}, {"exp": 366 * 86400}, {"iat": 120}, {"nbf": 120}])
def test_larger_clock_skew_is_refused(seconds: dict[str, int], device: Agent, ask: Ask, rows: Rows) -> None:
    header, claims = assertion_parts(device, **from_now(**seconds))
    assert_refused(ask(signed(device.key, header, claims)), 401, "invalid_client")
    assert used(rows) == 0


def test_a_replayed_assertion_is_refused(device: Agent, ask: Ask, rows: Rows) -> None:
    assertion = device.assertion(TOKEN_ENDPOINT)
    assert ask(assertion).status_code == 200
    assert_refused(ask(assertion), 401, "invalid_client")
    assert used(rows) == 1


def test_a_replayed_jti_is_refused_in_any_assertion(device: Agent, ask: Ask) -> None:
    assert ask(device.assertion(TOKEN_ENDPOINT, jti="same")).status_code == 200
    assert_refused(ask(device.assertion(ISSUER, jti="same", **from_now(exp=200))), 401, "invalid_client")


def test_two_devices_may_use_the_same_jti(register: Callable[..., Agent], ask: Ask, rows: Rows) -> None:
    statuses = [ask(register().assertion(TOKEN_ENDPOINT, jti="same")).status_code for _ in range(2)]
    assert statuses == [200, 200]
    assert used(rows) == 2


def test_a_replay_is_refused_for_some_minutes_after_expiry(
    device: Agent, ask: Ask, rows: Rows, database_url: str
) -> None:
    """By the database's clock, which may be ahead of the one that says whether an assertion has expired."""
    expire = "UPDATE client_assertions SET expires_at = now() - %s * interval '1 minute'"
    assertion = device.assertion(TOKEN_ENDPOINT)
    assert ask(assertion).status_code == 200
    writer = as_role(database_url, "writer")
    rows(expire, 4)
    assert assertions.delete_expired(writer, lambda: False) == 0
    assert_refused(ask(assertion), 401, "invalid_client")
    rows(expire, 6)
    assert assertions.delete_expired(writer, lambda: False) == 1
    assert used(rows) == 0


def test_of_twenty_concurrent_replays_exactly_one_gets_a_token(app: Watchpost, device: Agent, rows: Rows) -> None:
    form = device.token_request(TOKEN_ENDPOINT)
    with ThreadPoolExecutor(20) as pool:
        statuses = list(pool.map(lambda _: app.test_client().post("/api/auth/token", data=form).status_code, range(20)))
    assert sorted(statuses) == [200] + [401] * 19
    assert used(rows) == 1


def test_an_unsigned_assertion_does_not_use_up_a_jti(device: Agent, ask: Ask) -> None:
    stranger = Agent(device.device_id)
    assert_refused(ask(stranger.assertion(TOKEN_ENDPOINT, jti="next")), 401, "invalid_client")
    assert ask(device.assertion(TOKEN_ENDPOINT, jti="next")).status_code == 200


def test_a_refusal_does_not_tell_whether_the_device_exists(
    register: Callable[..., Agent], command: Callable[..., str], client: FlaskClient
) -> None:
    registered, revoked, keyless = register(), register(), register()
    command("device", "revoke", revoked.device_id)
    command("device", "forget-key", keyless.device_id)
    names = [registered.device_id, revoked.device_id, keyless.device_id, "nobody"]
    answers = [
        client.post("/api/auth/token", data=Agent(name).token_request(TOKEN_ENDPOINT), headers={"X-Request-ID": "same"})
        for name in names
    ]
    assert_refused(answers[0], 401, "invalid_client")
    assert len({(answer.status_code, answer.data, str(answer.headers)) for answer in answers}) == 1


@pytest.mark.parametrize("kind", KEYS)
def test_a_signature_is_verified_whether_or_not_there_is_such_a_device_or_key(
    kind: str, register: Callable[..., Agent], ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = [register(Agent(key=make())).device_id for make in KEYS.values()]
    verified: list[str] = []
    decode = jws.jwt.decode
    monkeypatch.setattr(
        jws.jwt, "decode", lambda text, *rest, **more: verified.append(text) or decode(text, *rest, **more)
    )
    key = KEYS[kind]()
    for name in (*known, "nobody"):
        assertion = Agent(name, key).assertion(TOKEN_ENDPOINT)
        assert_refused(ask(assertion), 401, "invalid_client")
        assert verified == [assertion]
        verified.clear()


def test_a_revoked_device_gets_no_token_until_it_is_restored(
    device: Agent, ask: Ask, command: Callable[..., str]
) -> None:
    command("device", "revoke", device.device_id)
    assert_refused(ask(device.assertion(TOKEN_ENDPOINT)), 401, "invalid_client")
    command("device", "restore", device.device_id)
    assert ask(device.assertion(TOKEN_ENDPOINT)).status_code == 200


def test_a_device_can_not_sign_for_another(register: Callable[..., Agent], ask: Ask) -> None:
    one, other = register(), register()
    assertion = one.assertion(TOKEN_ENDPOINT, iss=other.device_id, sub=other.device_id)
    assert_refused(ask(assertion), 401, "invalid_client")
    assert_refused(ask(one.assertion(TOKEN_ENDPOINT, iss=other.device_id)), 401, "invalid_client")


@pytest.mark.parametrize("kind", KEYS)
@pytest.mark.parametrize("ending", ["\n", ""])
def test_the_public_key_is_no_secret_to_sign_with(
    kind: str, ending: str, register: Callable[..., Agent], ask: Ask, rows: Rows
) -> None:
    agent = register(Agent(key=KEYS[kind]()))
    secret = public_pem(agent.key).strip() + ending.encode()
    assert_refused(ask(keyed_hash(secret, *assertion_parts(agent))), 401, "invalid_client")
    assert used(rows) == 0


@pytest.mark.parametrize(("registered", "claimed"), list(itertools.permutations(KEYS, 2)))
def test_the_key_decides_on_the_algorithm(
    registered: str, claimed: str, register: Callable[..., Agent], ask: Ask, rows: Rows
) -> None:
    agent = register(Agent(key=KEYS[registered]()))
    stranger = Agent(agent.device_id, KEYS[claimed]())
    by_stranger = stranger.assertion(TOKEN_ENDPOINT)
    header = by_stranger.split(".")[0]
    _, claims, signature = agent.assertion(TOKEN_ENDPOINT).split(".")
    assert_refused(ask(by_stranger), 401, "invalid_client")
    assert_refused(ask(f"{header}.{claims}.{signature}"), 401, "invalid_client")
    assert used(rows) == 0


# Forgeries: each is made from good parts, and is refused as an assertion and as an access token.


Forge = Callable[["Good"], str]


class Good(NamedTuple):
    """What a good token is made of."""

    key: ECKey
    header: Claims
    claims: Claims


class Signature(NamedTuple):
    """A signature as DER, and its two numbers."""

    der: bytes
    r: bytes
    s: bytes


def literally(text: str) -> Forge:
    return lambda _: text


def with_header(**header: Any) -> Forge:
    """Correctly signed, with this header; a member given as None is left out."""
    return lambda good: signed(good.key, present({**good.header, **header}), good.claims)


def with_raw_header(raw: bytes) -> Forge:
    return lambda good: signed(good.key, raw, good.claims)


def with_raw_claims(raw: bytes) -> Forge:
    return lambda good: signed(good.key, good.header, raw)


def with_also(make: Callable[[Claims], str]) -> Forge:
    """Correctly signed, with one more member at the end of the claims, as it is written."""
    return lambda good: signed(good.key, good.header, f"{json.dumps(good.claims)[:-1]}, {make(good.claims)}}}".encode())


def again(name: str) -> Forge:
    """Correctly signed, with a claim that stands twice."""
    return with_also(lambda claims: json.dumps({name: claims[name]})[1:-1])


def with_signature(make: Callable[[Signature], bytes]) -> Forge:
    """With a signature made of the right one."""

    def forge(good: Good) -> str:
        text = f"{part(good.header)}.{part(good.claims)}"
        der, r, s = es256(good.key, text)
        return f"{text}.{part(make(Signature(der, r.to_bytes(32, 'big'), s.to_bytes(32, 'big'))))}"

    return forge


def unsigned(good: Good) -> str:
    return f"{part(good.header)}.{part(good.claims)}."


def tampered(good: Good) -> str:
    header, _, signature = signed(*good).split(".")
    return f"{header}.{part(good.claims | {'sub': 'somebody-else'})}.{signature}"


def by_another_key(good: Good) -> str:
    return signed(ECKey.generate_key("P-256"), good.header, good.claims)


def by_the_key_in_the_header(good: Good) -> str:
    own = ECKey.generate_key("P-256")
    return signed(own, {**good.header, "jwk": own.as_dict(private=False)}, good.claims)


def hashed_with_the_pem(good: Good) -> str:
    return keyed_hash(public_pem(good.key), good.header, good.claims)


def hashed_with_the_jwk(good: Good) -> str:
    return keyed_hash(json.dumps(good.key.as_dict(private=False)).encode(), good.header, good.claims)


# Of the group of P-256.
ORDER = bytes.fromhex("ffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551")
FORGERIES: dict[str, Forge] = {
    "alg none unsigned": lambda good: unsigned(good._replace(header={**good.header, "alg": "none"})),
    "alg none signed": with_header(alg="none"),
    "alg NONE": with_header(alg="NONE"),
    "alg HS256 with the PEM": hashed_with_the_pem,
    "alg HS256 with the JWK": hashed_with_the_jwk,
    "alg HS256 with nothing": lambda good: keyed_hash(b"", good.header, good.claims),
    "alg RS256": with_header(alg="RS256"),
    "alg ES384": with_header(alg="ES384"),
    "alg EdDSA": with_header(alg="EdDSA"),
    "alg in lower case": with_header(alg="es256"),
    "alg with a quote": with_header(alg='ES256"'),
    "alg a list": with_header(alg=["ES256"]),
    "alg a number": with_header(alg=256),
    "alg missing": with_header(alg=None),
    "kid a number": with_header(kid=5),
    "kid a list": with_header(kid=["a"]),
    "kid an object": with_header(kid={"a": 1}),
    "typ a number": with_header(typ=5),
    "typ a list": with_header(typ=["JWT"]),
    "jku": with_header(jku="https://evil.example/jwks.json"),
    "jku a number": with_header(jku=5),
    "x5u": with_header(x5u="https://evil.example/cert.pem"),
    "x5u a list": with_header(x5u=[1]),
    "x5c": with_header(x5c=["MIIB"]),
    "jwk": by_the_key_in_the_header,
    "jwk a text": with_header(jwk="{}"),
    "crit a number": with_header(crit=5),
    "crit a list": with_header(crit=["b64"], b64=True),
    "b64 false": with_header(b64=False),
    "b64 a number": with_header(b64=5),
    "zip": with_header(zip="DEF"),
    "header with just crit": with_raw_header(b'{"crit":5}'),
    "header a list": with_raw_header(b'["alg"]'),
    "header a text": with_raw_header(b'"alg"'),
    "header null": with_raw_header(b"null"),
    "header empty": with_raw_header(b"{}"),
    "header nested deeply": with_raw_header(b'{"alg":"ES256","typ":' + b"[" * 2500 + b"]" * 2500 + b"}"),
    "header never closed": with_raw_header(b'{"a":' * 1000),
    "header with a member twice": with_raw_header(b'{"alg":"none","alg":"ES256"}'),
    "header not UTF-8": with_raw_header(b'{"alg":"\xff"}'),
    "header of 5,000 digits": with_raw_header(b'{"alg":1' + b"0" * 5000 + b"}"),
    "claims a list": with_raw_claims(b"[]"),
    "claims a text": with_raw_claims(b'"sub"'),
    "claims a number": with_raw_claims(b"5"),
    "claims null": with_raw_claims(b"null"),
    "claims not JSON": with_raw_claims(b"{sub}"),
    "claims not UTF-8": with_raw_claims(b"\xff\xfe"),
    "claims nested deeply": with_raw_claims(b'{"sub":' + b"[" * 2500 + b"]" * 2500 + b"}"),
    "claims nested 34 levels": with_also(lambda _: '"x": ' + "[" * 33 + "]" * 33),
    "claims with a number of 5,000 digits": with_also(lambda _: '"x": 1' + "0" * 5000),
    "sub twice": again("sub"),
    "jti twice": again("jti"),
    "exp twice": again("exp"),
    "tampered claims": tampered,
    "signed by another key": by_another_key,
    "signature of zeros": with_signature(lambda _: bytes(64)),
    "signature with r = 0": with_signature(lambda right: bytes(32) + right.s),
    "signature with s = 0": with_signature(lambda right: right.r + bytes(32)),
    "signature with r and s the order": with_signature(lambda _: ORDER * 2),
    "signature of ones": with_signature(lambda _: (bytes(31) + b"\x01") * 2),
    "signature in DER": with_signature(lambda right: right.der),
    "signature one byte short": with_signature(lambda right: (right.r + right.s)[:-1]),
    "signature one byte long": with_signature(lambda right: right.r + right.s + b"\0"),
    "signature with zeros in front": with_signature(lambda right: b"\0" + right.r + b"\0" + right.s),
    "signature of 5,000 bytes": with_signature(lambda _: bytes(5000)),
    "signature missing": unsigned,
    "two parts": lambda good: unsigned(good)[:-1],
    "four parts": lambda good: signed(*good) + ".e30",
    "five parts": literally(".".join([part({"alg": "dir", "enc": "A128GCM"}), "", *["AAAA"] * 3])),
    "five full parts": literally(".".join([part({"alg": "RSA-OAEP", "enc": "A256GCM"}), *["e30"] * 4])),
    "padded": lambda good: signed(*good) + "==",
    "garbage": literally("garbage"),
    "garbage in three parts": literally("a.b.c"),
    "no base64": literally("$$$.$$$.$$$"),
    "dots": literally(".."),
    "JSON": literally('{"payload":"","protected":"","signature":""}'),
    "huge": literally("A" * 15000),
    "huge in three parts": literally(".".join(["A" * 4000] * 3)),
    "huge claim": lambda good: signed(good.key, good.header, good.claims | {"x": "y" * 9000}),
}


@pytest.mark.parametrize("forge", FORGERIES.values(), ids=FORGERIES)
def test_a_forgery_is_no_client_assertion(forge: Forge, device: Agent, ask: Ask, rows: Rows) -> None:
    assert_refused(ask(forge(Good(device.key, *assertion_parts(device)))), 401, "invalid_client")
    assert used(rows) == 0


@pytest.mark.parametrize("forge", FORGERIES.values(), ids=FORGERIES)
def test_a_forgery_is_no_access_token(forge: Forge, app: Watchpost, device: Agent, knock: Knock, rows: Rows) -> None:
    assert_challenged(knock(forge(Good(*access_parts(app, device)))))
    assert heartbeats(rows) == 0


def test_what_forgeries_are_made_of_is_good(app: Watchpost, device: Agent, ask: Ask, knock: Knock, rows: Rows) -> None:
    assert ask(signed(device.key, *assertion_parts(device))).status_code == 200
    assert knock(signed(*access_parts(app, device))).status_code == 200
    assert (used(rows), heartbeats(rows)) == (1, 1)


# Signatures, spellings, types and bits: each of a thousand small changes makes a token worthless.


@pytest.mark.parametrize("kind", KEYS)
def test_a_signature_with_a_known_flaw_is_refused(
    kind: str, register: Callable[..., Agent], ask: Ask, rows: Rows
) -> None:
    agent = register(Agent(key=KEYS[kind]()))
    header, claims = assertion_parts(agent)
    text = f"{part(header)}.{part(claims)}"
    for name, signature in forgery.forged(agent.key, text.encode()).items():
        assert ask(f"{text}.{part(signature)}").status_code == 401, name
    assert used(rows) == 0
    assert ask(f"{text}.{part(forgery.sign(agent.key, text.encode()))}").status_code == 200


def test_an_access_token_with_a_known_flaw_in_its_signature_is_refused(
    app: Watchpost, device: Agent, knock: Knock, rows: Rows
) -> None:
    key, header, claims = access_parts(app, device)
    text = f"{part(header)}.{part(claims)}"
    for name, signature in forgery.forged(key, text.encode()).items():
        assert knock(f"{text}.{part(signature)}").status_code == 401, name
    assert heartbeats(rows) == 0


def test_both_signatures_that_ecdsa_has_are_taken(device: Agent, ask: Ask) -> None:
    # (r, s) and (r, n - s) are equally valid (FIPS 186-5, section 6.4.2), and a device's library may make either.
    for turned in (False, True):
        header, claims = assertion_parts(device)
        text = f"{part(header)}.{part(claims)}"
        _, r, s = es256(device.key, text)
        signature = r.to_bytes(32, "big") + (forgery.N - s if turned else s).to_bytes(32, "big")
        assert ask(f"{text}.{part(signature)}").status_code == 200


@pytest.mark.parametrize("kind", KEYS)
def test_a_token_has_one_spelling(kind: str, register: Callable[..., Agent], ask: Ask, rows: Rows) -> None:
    agent = register(Agent(key=KEYS[kind]()))
    assertion = signed(agent.key, *assertion_parts(agent))
    for name, text in forgery.respelled(assertion).items():
        assert ask(text).status_code == 401, name
    assert used(rows) == 0
    assert ask(assertion).status_code == 200


def test_an_access_token_has_one_spelling(app: Watchpost, device: Agent, knock: Knock, rows: Rows) -> None:
    token = access_token(app, device)
    # A header's value can't hold a line end, and spaces around it are not part of it.
    texts = {name: text for name, text in forgery.respelled(token).items() if text.isprintable() and text[0] != " "}
    for name, text in texts.items():
        assert knock(text).status_code == 401, name
    assert heartbeats(rows) == 0
    assert knock(token).status_code == 200


def test_an_assertion_with_a_claim_of_another_json_type_is_refused(device: Agent, ask: Ask, rows: Rows) -> None:
    for name, assertion in forgery.mistyped(device.key, *assertion_parts(device)):
        answer = ask(assertion)
        assert (answer.status_code, answer.json["error"]) == (401, "invalid_client"), name
    assert used(rows) == 0


def test_an_access_token_with_a_claim_of_another_json_type_is_refused(
    app: Watchpost, device: Agent, knock: Knock, rows: Rows
) -> None:
    for name, token in forgery.mistyped(*access_parts(app, device)):
        assert knock(token).status_code == 401, name
    assert heartbeats(rows) == 0


@pytest.mark.parametrize("kind", KEYS)
def test_an_assertion_with_a_flipped_bit_is_refused(
    kind: str, register: Callable[..., Agent], ask: Ask, rows: Rows
) -> None:
    agent = register(Agent(key=KEYS[kind]()))
    # Some of them; tests/resilience/tokens.py has all.
    for name, assertion in itertools.islice(forgery.flipped(signed(agent.key, *assertion_parts(agent))), 3, None, 23):
        assert ask(assertion).status_code == 401, name
    assert used(rows) == 0


def test_an_access_token_with_a_flipped_bit_is_refused(app: Watchpost, device: Agent, knock: Knock, rows: Rows) -> None:
    token = access_token(app, device)
    for name, text in itertools.islice(forgery.flipped(token), 3, None, 23):
        assert knock(text).status_code == 401, name
    for name, text in itertools.islice(forgery.cut(token), 1, None, 23):
        assert knock(text).status_code == 401, name
    assert heartbeats(rows) == 0


# One kind of token is not taken for another.


def test_an_access_token_is_no_client_assertion(app: Watchpost, device: Agent, ask: Ask) -> None:
    assert_refused(ask(access_token(app, device)), 401, "invalid_client")
    by_device = signed(device.key, {"alg": "ES256", "typ": "at+jwt"}, assertion_parts(device)[1])
    assert_refused(ask(by_device), 401, "invalid_client")


def test_a_client_assertion_is_no_access_token(device: Agent, knock: Knock, rows: Rows) -> None:
    assert_challenged(knock(device.assertion(TOKEN_ENDPOINT)))
    claims = {"scope": "devices:write", "client_id": device.device_id, "aud": ISSUER}
    assert_challenged(knock(device.assertion(ISSUER, header={"typ": "at+jwt"}, **claims)))
    assert heartbeats(rows) == 0


def test_an_enrolment_token_is_no_client_assertion(enrollment: Callable[..., str], ask: Ask) -> None:
    assert_refused(ask(enrollment()), 401, "invalid_client")


@pytest.mark.parametrize("route", [*ROUTES, "/api/batch"])
def test_an_enrolment_token_opens_no_other_route(
    route: str, client: FlaskClient, enrollment: Callable[..., str], bearer: Callable[[str], dict[str, str]]
) -> None:
    assert_challenged(client.post(route, json={}, headers=bearer(enrollment())), 403, "insufficient_scope")


@pytest.mark.parametrize("route", ROUTES)
def test_each_route_requires_its_own_scope(
    route: str, client: FlaskClient, device: Agent, access: Callable[..., dict[str, str]]
) -> None:
    others = " ".join(scope for scope in scopes.WRITE if scope != ROUTES[route])
    assert_challenged(client.post(route, json={}, headers=access(device, others)), 403, "insufficient_scope")
    # With the scope the body is what is wrong.
    assert client.post(route, json={}, headers=access(device, ROUTES[route])).status_code == 400


def test_a_devices_token_registers_no_device(client: FlaskClient, headers: dict[str, str], rows: Rows) -> None:
    answer = client.post("/api/devices/register", json=Agent("another").registration(), headers=headers)
    assert_challenged(answer, 403, "insufficient_scope")
    assert rows("SELECT device_id FROM devices WHERE device_id = 'another'") == []


def test_a_readers_token_writes_nothing(knock: Knock, command: Callable[..., str], rows: Rows) -> None:
    arguments = ["--subject", "alice", "--scope", " ".join(scopes.READ), "--expires-in", "1h"]
    assert_challenged(knock(command("token", "create", *arguments)), 403, "insufficient_scope")
    assert heartbeats(rows) == 0


# Access tokens on routes


ACCEPTED: dict[str, tuple[Claims, dict[str, int], Claims]] = {
    "aud list": ({}, {}, {"aud": ["https://else.example", ISSUER]}),
    "full media type": ({"typ": "application/at+jwt"}, {}, {}),
    "media type in capitals": ({"typ": "AT+JWT"}, {}, {}),
    "expired within the leeway": ({}, {"exp": -30}, {}),
    "not yet valid within the leeway": ({}, {"nbf": 30, "iat": 30}, {}),
    "more scopes": ({}, {}, {"scope": "prompts:write devices:write"}),
    "unknown claims": ({}, {}, {"more": {"a": [1, 2]}}),
}


@pytest.mark.parametrize(("header", "seconds", "claims"), ACCEPTED.values(), ids=ACCEPTED)
def test_a_valid_access_token_is_accepted(
    header: Claims,
    seconds: dict[str, int],
    claims: Claims,
    app: Watchpost,
    device: Agent,
    knock: Knock,
    rows: Rows,
) -> None:
    answer = knock(access_token(app, device, header, **from_now(**seconds), **claims))
    assert answer.status_code == 200, answer.text
    assert heartbeats(rows) == 1


BAD_TOKENS: dict[str, tuple[Claims, dict[str, int], Claims]] = {
    "expired": ({}, {"exp": -61}, {}),
    "expired long ago": ({}, {"exp": -86400}, {}),
    "exp missing": ({}, {}, {"exp": None}),
    "exp text": ({}, {}, {"exp": "9999999999"}),
    "exp boolean": ({}, {}, {"exp": True}),
    "exp endless": ({}, {}, {"exp": float("inf")}),
    "not yet valid": ({}, {"nbf": 120}, {}),
    "nbf text": ({}, {}, {"nbf": "0"}),
    "from the future": ({}, {"iat": 120}, {}),
    "iat missing": ({}, {}, {"iat": None}),
    "iat text": ({}, {}, {"iat": "0"}),
    "iss of somebody else": ({}, {}, {"iss": "https://else.example"}),
    "iss missing": ({}, {}, {"iss": None}),
    "iss list": ({}, {}, {"iss": [ISSUER]}),
    "aud of somebody else": ({}, {}, {"aud": "https://else.example"}),
    "aud begins like ours": ({}, {}, {"aud": ISSUER + ".evil.example"}),
    "aud list of others": ({}, {}, {"aud": ["https://else.example"]}),
    "aud missing": ({}, {}, {"aud": None}),
    "aud object": ({}, {}, {"aud": {ISSUER: 1}}),
    "typ JWT": ({"typ": "JWT"}, {}, {}),
    "typ missing": ({"typ": None}, {}, {}),
    "typ empty": ({"typ": ""}, {}, {}),
    "typ of an ID token": ({"typ": "id+jwt"}, {}, {}),
    "kid of no key": ({"kid": "nobody"}, {}, {}),
    "sub missing": ({}, {}, {"sub": None}),
    "sub number": ({}, {}, {"sub": 5}),
    "sub empty": ({}, {}, {"sub": ""}),
    "sub list": ({}, {}, {"sub": ["laptop"]}),
    "sub with NUL": ({}, {}, {"sub": "a\x00"}),
    "sub too long": ({}, {}, {"sub": "x" * 257}),
    "client_id missing": ({}, {}, {"client_id": None}),
    "client_id number": ({}, {}, {"client_id": 5}),
    "jti missing": ({}, {}, {"jti": None}),
    "jti number": ({}, {}, {"jti": 5}),
    "scope list": ({}, {}, {"scope": ["devices:write"]}),
    "scope number": ({}, {}, {"scope": 5}),
    "scope object": ({}, {}, {"scope": {"devices:write": 1}}),
    "scope boolean": ({}, {}, {"scope": True}),
    "scope huge": ({}, {}, {"scope": "devices:write " * 200}),
    "cnf missing": ({}, {}, {"cnf": None}),
    "cnf empty": ({}, {}, {"cnf": {}}),
    "cnf without a thumbprint": ({}, {}, {"cnf": {"kid": "laptop"}}),
    "cnf of another key": ({}, {}, {"cnf": {"jkt": "A" * 43}}),
    "cnf with an empty thumbprint": ({}, {}, {"cnf": {"jkt": ""}}),
    "cnf with a list": ({}, {}, {"cnf": {"jkt": ["A" * 43]}}),
}


@pytest.mark.parametrize(("header", "seconds", "claims"), BAD_TOKENS.values(), ids=BAD_TOKENS)
def test_an_invalid_access_token_is_refused(
    header: Claims,
    seconds: dict[str, int],
    claims: Claims,
    app: Watchpost,
    device: Agent,
    knock: Knock,
    rows: Rows,
) -> None:
    good = access_parts(app, device, **from_now(**seconds), **claims)
    assert_challenged(knock(signed(good[0], present({**good[1], **header}), good[2])))
    assert heartbeats(rows) == 0


@pytest.mark.parametrize("scope", [None, "", "devices:read", "devices", "devices:write2", "Devices:Write", "*"])
def test_a_token_without_the_scope_is_forbidden(
    scope: str | None, app: Watchpost, device: Agent, knock: Knock, rows: Rows
) -> None:
    assert_challenged(knock(access_token(app, device, scope=scope)), 403, "insufficient_scope")
    assert heartbeats(rows) == 0


@pytest.mark.parametrize(
    "value",
    [
        "",
        " ",
        "Bearer",
        "Bearer ",
        "Bearer x",
        "Basic YTpi",
        "Token TOKEN",
        "TOKEN",
        "Bearer TOKEN TOKEN",
        "BearerTOKEN",
    ],
)
def test_a_header_that_is_no_bearer_token_is_refused(
    value: str, app: Watchpost, client: FlaskClient, device: Agent, rows: Rows
) -> None:
    given = {"Authorization": value.replace("TOKEN", access_token(app, device))}
    answer = client.post("/api/devices/heartbeat", json={"device_id": device.device_id}, headers=given)
    assert answer.status_code == 401, answer.text
    assert answer.mimetype == "application/problem+json"
    assert answer.headers["WWW-Authenticate"].startswith('Bearer error="')
    assert heartbeats(rows) == 0


def test_a_token_counts_in_its_header_alone(app: Watchpost, client: FlaskClient, device: Agent, rows: Rows) -> None:
    token = access_token(app, device)
    answer = client.post(
        "/api/devices/heartbeat",
        query_string={"access_token": token},
        json={"device_id": device.device_id, "access_token": token},
    )
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"].startswith('Bearer error="')
    assert heartbeats(rows) == 0


def test_the_name_of_the_scheme_may_be_in_any_case(app: Watchpost, client: FlaskClient, device: Agent) -> None:
    given = {"Authorization": "bearer " + access_token(app, device)}
    answer = client.post("/api/devices/heartbeat", json={"device_id": device.device_id}, headers=given)
    assert answer.status_code == 200


def test_a_refusal_quotes_nothing_of_the_token(app: Watchpost, device: Agent, knock: Knock) -> None:
    token = access_token(app, device, iss="https://else.example")
    answer = knock(token)
    told = answer.text + str(answer.headers)
    assert_challenged(answer)
    assert not [quoted for quoted in (*token.split("."), "else.example", device.device_id) if quoted in told]


# Remembered tokens


def test_a_token_can_be_used_again_and_is_cached(app: Watchpost, device: Agent, knock: Knock) -> None:
    token = access_token(app, device)
    assert [knock(token).status_code for _ in range(3)] == [200] * 3
    assert len(app.extensions["auth"]._cached_tokens) == 1


@pytest.mark.parametrize("settings", [{"token_cache": 0}, {"token_cache": 2}], indirect=True)
def test_the_token_cache_is_bounded(app: Watchpost, settings: Settings, device: Agent, knock: Knock) -> None:
    tokens = [access_token(app, device) for _ in range(4)]
    assert [knock(token).status_code for token in tokens * 2] == [200] * 8
    assert len(app.extensions["auth"]._cached_tokens) == settings.token_cache


def test_a_refused_token_is_not_cached(app: Watchpost, device: Agent, knock: Knock) -> None:
    before = len(app.extensions["auth"]._cached_tokens)
    token = access_token(app, device, aud="https://else.example")
    assert_challenged(knock(token))
    assert_challenged(knock(token))
    assert len(app.extensions["auth"]._cached_tokens) == before


def test_a_cached_token_expires(
    app: Watchpost, device: Agent, knock: Knock, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    # With the leeway of a minute it is good for half a minute more.
    expires_at = int(time.time()) - 30
    token = access_token(app, device, exp=expires_at)
    assert knock(token).status_code == 200
    assert app.extensions["auth"].cached(token) is not None
    first = rows("SELECT last_heartbeat FROM devices")
    monkeypatch.setattr(time, "time", lambda: expires_at + 60.1)
    assert app.extensions["auth"].cached(token) is None
    assert_challenged(knock(token))
    assert rows("SELECT last_heartbeat FROM devices") == first


def test_a_cached_token_is_refused_after_its_signing_key_is_removed(
    app: Watchpost, device: Agent, knock: Knock, command: Callable[..., str]
) -> None:
    token = access_token(app, device)
    old = opened(token)[0]["kid"]
    assert knock(token).status_code == 200
    command("keys", "rotate")
    assert knock(token).status_code == 200
    command("keys", "remove", old)
    assert_challenged(knock(token))


def test_a_cached_token_of_a_revoked_device_is_forbidden(
    app: Watchpost, device: Agent, knock: Knock, command: Callable[..., str], rows: Rows
) -> None:
    token = access_token(app, device)
    assert knock(token).status_code == 200
    first = rows("SELECT last_heartbeat FROM devices")
    command("device", "revoke", device.device_id)
    assert knock(token).status_code == 403
    assert rows("SELECT last_heartbeat FROM devices") == first
