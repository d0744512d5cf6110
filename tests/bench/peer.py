"""The other service: POST /api/prompt as one would write it with FastAPI, uvicorn, asyncpg and PyJWT.

It has the duties of Watchpost's route, in the same order: a verified RFC 9068 token before the body is read, at most
1 MiB, the same fields with the same limits, the device's own rows only, a device that is known and not revoked, one
idempotent insert (201, again 200, other content 409), an answer after the commit, errors as RFC 9457, a request id, a
log line a request. Left out, all to its advantage: refusal of duplicate keys, gzip, repair of lone surrogates (400
here), a look at the key file on each request, a repeat of the statement after a lost connection.

Settings are Watchpost's: WATCHPOST_DATABASE_URL, WATCHPOST_ISSUER, WATCHPOST_SIGNING_KEYS; PEER_POOL_SIZE connections
a worker process.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import sys
import time
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import asyncpg
import jwt
from fastapi import FastAPI, Request, Response
from pydantic import AfterValidator, BaseModel, Field, StringConstraints, ValidationError
from pydantic_core import to_json

ISSUER = os.environ.get("WATCHPOST_ISSUER", "")
SCOPE = "prompts:write"
LEEWAY_SECONDS = 60
MOST_TOKENS = 100_000
MAX_BODY = 1024 * 1024
EARLIEST_MS = 1_420_070_400_000
AHEAD_MS = 24 * 3600 * 1000
MAX_TEXT = 262_144
REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")

COLUMNS = (
    '"timestamp", device_id, prompt_id, instance_id, site, url, prompt, browser_name, browser_version, '
    "profile_name, username, page_title, conversation_id, model, action, metadata"
)
INSERT = f"""
WITH device AS (
    SELECT revoked_at IS NOT NULL AS revoked FROM devices WHERE device_id = $2
),

stored AS (
    INSERT INTO prompts ({COLUMNS})
    SELECT
        $1::bigint, $2::text, $3::uuid, $4::text, $5::text, $6::text, $7::text, $8::text, $9::text, $10::text,
        $11::text, $12::text, $13::text, $14::text, $15::text, $16::jsonb
    FROM device
    WHERE NOT revoked
    ON CONFLICT DO NOTHING
    RETURNING created_at
)

SELECT device.revoked, stored.created_at FROM device LEFT JOIN stored ON true
"""
COMPARE = """
SELECT
    created_at,
    (instance_id, site, url, prompt, browser_name, browser_version, profile_name, username, page_title,
     conversation_id, model, action, metadata)
    IS NOT DISTINCT FROM
    ($4::text, $5::text, $6::text, $7::text, $8::text, $9::text, $10::text, $11::text, $12::text,
     $13::text, $14::text, $15::text, $16::jsonb) AS same
FROM prompts
WHERE "timestamp" = $1 AND device_id = $2 AND prompt_id = $3
"""

log = logging.getLogger("peer.request")


class Problem(Exception):
    def __init__(self, status: int, detail: str, headers: dict[str, str] | None = None, errors: Any = None) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.headers = headers or {}
        self.errors = errors


class Token(NamedTuple):
    subject: str
    scopes: frozenset[str]
    expires_at: float


class Tokens:
    """Verifies access tokens and remembers them by their digest, the oldest forgotten first."""

    def __init__(self, path: Path) -> None:
        members = json.loads(path.read_bytes())["keys"]
        self._keys = {key["kid"]: jwt.PyJWK.from_dict(_public(key)).key for key in members}
        self._cached_tokens: dict[bytes, Token] = {}

    def verify(self, text: str) -> Token:
        digest = hashlib.sha256(text.encode("utf-8", "replace")).digest()
        token = self._cached_tokens.get(digest)
        if token is None:
            token = self._verify(text)
            while len(self._cached_tokens) >= MOST_TOKENS:
                self._cached_tokens.pop(next(iter(self._cached_tokens)))
            self._cached_tokens[digest] = token
        elif token.expires_at <= time.time() - LEEWAY_SECONDS:
            del self._cached_tokens[digest]
            raise _unauthorized("invalid_token", "The token has expired.")
        return token

    def _verify(self, text: str) -> Token:
        try:
            header = jwt.get_unverified_header(text)
            if header.get("typ", "").lower() not in ("at+jwt", "application/at+jwt") or header.get("crit"):
                raise jwt.InvalidTokenError
            claims = jwt.decode(
                text,
                self._keys[header["kid"]],
                algorithms=["ES256"],
                audience=ISSUER,
                issuer=ISSUER,
                leeway=LEEWAY_SECONDS,
                options={"require": ["exp", "iat", "sub", "client_id", "jti"]},
            )
            return Token(claims["sub"], frozenset(claims.get("scope", "").split()), claims["exp"])
        except (jwt.InvalidTokenError, KeyError, AttributeError, TypeError, ValueError):
            raise _unauthorized("invalid_token", "The token is not valid.") from None


def _public(key: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in key.items() if name != "d"}


def _unauthorized(error: str, detail: str) -> Problem:
    challenge = f'Bearer error="{error}", error_description="{detail}"'
    return Problem(401, detail, {"WWW-Authenticate": challenge})


def _sanitize(text: str) -> str:
    return text.replace("\x00", "\ufffd") if "\x00" in text else text


def _storable_tree(node: Any) -> Any:
    if isinstance(node, str):
        return _sanitize(node)
    if isinstance(node, list):
        return [_storable_tree(item) for item in node]
    if isinstance(node, dict):
        return {_sanitize(key): _storable_tree(item) for key, item in node.items()}
    return node


def _plausible(epoch_ms: int) -> int:
    if epoch_ms > time.time() * 1000 + AHEAD_MS:
        raise ValueError("Must be epoch milliseconds from 2015-01-01 to 24 hours ahead.")
    return epoch_ms


Identifier = Annotated[str, StringConstraints(pattern=r"^[!-~]{1,128}$")]
Text = Annotated[str, StringConstraints(max_length=MAX_TEXT), AfterValidator(_sanitize)]
FilledText = Annotated[str, StringConstraints(min_length=1, max_length=MAX_TEXT), AfterValidator(_sanitize)]
EpochMilliseconds = Annotated[int, Field(strict=True, ge=EARLIEST_MS), AfterValidator(_plausible)]
Uuid = Annotated[str, StringConstraints(pattern=r"^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$", to_lower=True)]


class Prompt(BaseModel):
    device_id: Identifier
    instance_id: Identifier
    site: FilledText
    url: FilledText
    prompt: Text
    timestamp: EpochMilliseconds
    prompt_id: Uuid | None = None
    browser_name: Text | None = None
    browser_version: Text | None = None
    profile_name: Text | None = None
    username: Text | None = None
    page_title: Text | None = None
    conversation_id: Text | None = None
    model: Text | None = None
    action: Literal["allowed", "warned", "blocked", "redacted"] | None = None
    metadata: Annotated[dict[str, Any], AfterValidator(_storable_tree)] | None = None


class RequestLog:
    """ASGI middleware: the request id in the answer, and one line of log."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began = time.perf_counter()
        given = next((value.decode("latin-1") for name, value in scope["headers"] if name == b"x-request-id"), "")
        request_id = given if REQUEST_ID.fullmatch(given) else str(uuid.uuid4())
        state = scope.setdefault("state", {})
        state["request_id"] = request_id
        status = 500

        async def answer(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"].append((b"x-request-id", request_id.encode()))
            await send(message)

        try:
            await self.app(scope, receive, answer)
        finally:
            fields = {
                "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
                "level": "info",
                "request_id": request_id,
                "method": scope["method"],
                "route": scope["path"],
                "status": status,
                "ms": round((time.perf_counter() - began) * 1000, 2),
                "device_id": state.get("device_id"),
            }
            log.info(json.dumps(fields))


@contextlib.asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    size = int(os.environ.get("PEER_POOL_SIZE", "8"))
    app.state.tokens = Tokens(Path(os.environ["WATCHPOST_SIGNING_KEYS"]))
    app.state.pool = await asyncpg.create_pool(
        os.environ["WATCHPOST_DATABASE_URL"],
        min_size=size,
        max_size=size,
        command_timeout=10,
        server_settings={"application_name": "peer", "statement_timeout": "5000", "lock_timeout": "2500"},
        # Nothing here changes a session, so nothing needs to be reset, and each statement is one round trip.
        reset=_keep,
    )
    async with app.state.pool:
        yield


async def _keep(connection: Any) -> None:
    """Leave a session as it is."""


app = FastAPI(lifespan=lifespan, openapi_url=None)
app.add_middleware(RequestLog)


@app.exception_handler(Problem)
async def refuse(request: Request, problem: Problem) -> Response:
    body = {
        "type": "about:blank",
        "title": problem.detail,
        "status": problem.status,
        "detail": problem.detail,
        "request_id": request.state.request_id,
    }
    if problem.errors:
        body["errors"] = problem.errors
    return Response(to_json(body), problem.status, problem.headers, media_type="application/problem+json")


@app.get("/readyz")
async def ready(request: Request) -> dict[str, str]:
    await request.app.state.pool.fetchval("SELECT 1")
    return {"status": "ready"}


@app.post("/api/prompt")
async def capture(request: Request) -> Response:
    token = _speaker(request)
    prompt = _checked(await _body(request))
    if prompt.device_id != token.subject:
        raise Problem(403, "The token does not speak for this device.")
    prompt_id = prompt.prompt_id or _derived_id(prompt)
    values = (
        prompt.timestamp,
        prompt.device_id,
        prompt_id,
        prompt.instance_id,
        prompt.site,
        prompt.url,
        prompt.prompt,
        prompt.browser_name,
        prompt.browser_version,
        prompt.profile_name,
        prompt.username,
        prompt.page_title,
        prompt.conversation_id,
        prompt.model,
        prompt.action,
        None if prompt.metadata is None else to_json(prompt.metadata).decode(),
    )
    created_at, status = await _store(request.app.state.pool, values)
    answer = {
        "prompt_id": prompt_id,
        "device_id": prompt.device_id,
        "instance_id": prompt.instance_id,
        "timestamp": prompt.timestamp,
        "created_at": created_at.isoformat(timespec="microseconds").replace("+00:00", "Z"),
    }
    return Response(to_json(answer), status, media_type="application/json")


def _speaker(request: Request) -> Token:
    kind, _, text = request.headers.get("authorization", "").partition(" ")
    if kind.lower() != "bearer" or not text:
        raise _unauthorized("missing_authorization", "A bearer token is needed.")
    token: Token = request.app.state.tokens.verify(text)
    if SCOPE not in token.scopes:
        challenge = 'Bearer error="insufficient_scope"'
        raise Problem(403, "The token lacks the scope.", {"WWW-Authenticate": challenge})
    request.state.device_id = token.subject
    return token


async def _body(request: Request) -> bytes:
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise Problem(415, "Content-Type must be application/json.")
    pieces = []
    size = 0
    async for piece in request.stream():
        size += len(piece)
        if size > MAX_BODY:
            raise Problem(413, "The body is too large.")
        pieces.append(piece)
    return b"".join(pieces)


def _checked(body: bytes) -> Prompt:
    try:
        return Prompt.model_validate_json(body)
    except ValidationError as error:
        errors = {".".join(map(str, item["loc"])) or "_schema": [item["msg"]] for item in error.errors()[:50]}
        raise Problem(400, "The body is not valid.", errors={"json": errors}) from None


def _derived_id(prompt: Prompt) -> str:
    """A UUIDv8 of the content, so that the same report sent twice is one row."""
    content = json.dumps(prompt.model_dump(), sort_keys=True, separators=(",", ":"))
    digest = bytearray(hashlib.sha256(content.encode()).digest()[:16])
    digest[6] = digest[6] & 0x0F | 0x80
    digest[8] = digest[8] & 0x3F | 0x80
    return str(uuid.UUID(bytes=bytes(digest)))


async def _store(pool: Any, values: tuple[Any, ...]) -> tuple[datetime, int]:
    try:
        async with pool.acquire(timeout=5) as connection:
            row = await connection.fetchrow(INSERT, *values)
            if row is None:
                raise Problem(403, "The device is not registered.")
            if row["revoked"]:
                raise Problem(403, "The device is revoked.")
            if row["created_at"] is not None:
                return row["created_at"], 201
            stored = await connection.fetchrow(COMPARE, *values)
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError):
        raise Problem(503, "The database can't be reached or is too busy.", {"Retry-After": "2"}) from None
    if stored is None:
        raise Problem(503, "The database is too busy.", {"Retry-After": "2"})
    if not stored["same"]:
        raise Problem(409, "The same device, time and id are stored with other content.")
    return stored["created_at"], 200
