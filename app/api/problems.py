"""Every refusal, as RFC 9457 problem details: status, title, and which outcome of a statement it stands for."""

from __future__ import annotations

import http
import logging
import math
import random
from collections.abc import Mapping
from typing import Any

import marshmallow as ma
import orjson
from flask import Flask, Response, g, request
from gunicorn.http.errors import ParseException
from werkzeug.exceptions import ClientDisconnected, HTTPException

from app.db import DatabaseError, Unavailable
from app.telemetry import metrics

log = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
OAUTH_ENDPOINT = "tokens.issue"
# Errors reported of one body; a list of a thousand wrong items need not come back as a thousand messages.
MAX_ERRORS = 50
# Seconds after which clients come back from an outage, spread at random.
RETRY_SECONDS = (1, 10)


class Problem(Exception):
    """A refusal on its way to the client.

    name: last part of the problem's `type`, a URN that programs may compare.
    detail: a sentence for people; never quotes what was sent.
    errors: field -> messages, as `{"json": {"hostname": ["..."]}}`.
    """

    def __init__(
        self,
        status: int,
        name: str,
        title: str,
        detail: str = "",
        errors: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(name)
        self.status = status
        self.name = name
        self.title = title
        self.detail = detail
        self.errors = errors
        self.headers = dict(headers or {})


def invalid(errors: Mapping[str, Any], detail: str = "The body is not valid.") -> Problem:
    return Problem(400, "invalid-body", "Invalid body", detail, errors)


def other_device() -> Problem:
    return Problem(403, "other-device", "Forbidden", "The token does not speak for this device.")


def unavailable() -> Problem:
    detail = "The database can't be reached or is too busy. Repeat the request."
    return Problem(503, "unavailable", "Service unavailable", detail, headers=retry_after_outage())


def not_ready(pending: int, has_grants: bool) -> Problem | None:
    """What /readyz answers while the schema is not that of this release. pending: migrations."""
    if pending:
        name, detail = "migrations-pending", f"{pending} migrations are pending."
    elif not has_grants:
        name, detail = "grants-pending", "The grants are not those of this release."
    else:
        return None
    return Problem(503, name, "Service unavailable", detail, headers=retry_after_outage())


def incomplete() -> Problem:
    """A body that stopped before its end is a broken connection: the client repeats it, whatever it is."""
    headers = {**retry_after_outage(), "Connection": "close"}
    detail = "The body stopped before its end. Repeat the request."
    return Problem(503, "incomplete-body", "Service unavailable", detail, headers=headers)


def overloaded(wait: float) -> Problem:
    """wait: seconds after which the client may come back, other ones for others."""
    detail = "The service has too much to do. Repeat the request."
    return Problem(503, "overloaded", "Service unavailable", detail, headers=_retry_after(wait))


def too_many(wait: float) -> Problem:
    """wait: seconds after which the next request is taken."""
    detail = "There were too many requests. Repeat this one later."
    return Problem(429, "too-many-requests", "Too many requests", detail, headers=_retry_after(wait))


def retry_after_outage() -> dict[str, str]:
    """When to come back after a fault that all clients see: a random time, so that they don't return in one second."""
    return _retry_after(random.uniform(*RETRY_SECONDS))  # noqa: S311


def _retry_after(wait: float) -> dict[str, str]:
    return {"Retry-After": str(max(1, math.ceil(wait)))}


def internal() -> Problem:
    return Problem(500, "internal", "Internal server error", "The fault is ours; the request_id finds it in our log.")


def of(error: Exception, request_id: str = "") -> Problem:
    """The Problem that an exception is; a fault, which is logged, when it is none."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, Unavailable):
        return unavailable()
    if isinstance(error, ClientDisconnected):
        return incomplete()
    if isinstance(error, DatabaseError):
        # Its pool has logged it.
        return internal()
    log.error("unhandled exception", exc_info=error, extra={"fields": {"request_id": request_id}})
    return internal()


# What a statement says of a row that it did not take.
REFUSED: dict[str, tuple[int, str, str, str]] = {
    "conflict": (409, "content-conflict", "Conflict", "The same device, time and id are stored with other content."),
    "instance_conflict": (409, "instance-conflict", "Conflict", "The browser instance belongs to another device."),
    "instance_limit": (409, "instance-limit", "Conflict", "The device has as many browser instances as it may."),
    "key_conflict": (409, "key-conflict", "Conflict", "The device has another key, or the key another device."),
    "device_unknown": (401, "invalid-token", "Unauthorized", "The device is not registered."),
    "key_replaced": (401, "invalid-token", "Unauthorized", "The token is for another key than the device's."),
    "device_revoked": (403, "device-revoked", "Forbidden", "The device is revoked."),
    "enrollment_revoked": (403, "enrollment-revoked", "Forbidden", "The enrolment is revoked."),
    "enrollment_used_up": (403, "enrollment-used-up", "Forbidden", "The enrolment has no uses left."),
    "enrollment_expired": (401, "invalid-token", "Unauthorized", "The enrolment has expired."),
    "enrollment_unknown": (401, "invalid-token", "Unauthorized", "The enrolment is not known."),
}


def refused(outcome: str) -> Problem:
    status, name, title, detail = REFUSED[outcome]
    headers = {"WWW-Authenticate": f'Bearer error="invalid_token", error_description="{detail}"'}
    return Problem(status, name, title, detail, headers=headers if status == 401 else None)


class ProblemSchema(ma.Schema):
    """RFC 9457 problem details."""

    type = ma.fields.String(required=True, metadata={"description": "Names the problem; compare this."})
    title = ma.fields.String(required=True)
    status = ma.fields.Integer(required=True, metadata={"description": "The HTTP status code."})
    detail = ma.fields.String(required=True, metadata={"description": "What happened, for people."})
    errors = ma.fields.Dict(
        keys=ma.fields.String(), metadata={"description": "Part of the request -> field -> list of messages."}
    )
    request_id = ma.fields.String(required=True, metadata={"description": "As in X-Request-ID and the service's log."})


def init_app(app: Flask) -> None:
    app.register_error_handler(Problem, respond)
    app.register_error_handler(HTTPException, _http)
    app.register_error_handler(ParseException, _framing)
    app.register_error_handler(ClientDisconnected, _fault)
    app.register_error_handler(Exception, _fault)


def respond(problem: Problem) -> Response:
    media_type = MEDIA_TYPE
    more = {}
    if request.endpoint == OAUTH_ENDPOINT and problem.status < 500:
        # RFC 6749, section 5.2, has members and a media type of its own.
        more = {"error": "invalid_request", "error_description": problem.detail or problem.title}
        media_type = "application/json"
    content = body(problem, g.get("request_id", ""), **more)
    return Response(content, problem.status, problem.headers, content_type=media_type)


def body(problem: Problem, request_id: str, **more: str) -> bytes:
    """A problem as JSON."""
    metrics.refused(problem.name, problem.status)
    members: dict[str, Any] = {
        "type": f"urn:watchpost:problem:{problem.name}",
        "title": problem.title,
        "status": problem.status,
        "detail": problem.detail or problem.title,
        "request_id": request_id,
        **more,
    }
    if problem.errors:
        members["errors"] = bounded(problem.errors)
    return orjson.dumps(members)


def bounded(errors: Any) -> Any:
    """The same tree of messages, with at most MAX_ERRORS leaves."""
    left = MAX_ERRORS

    def cut(node: Any) -> Any:
        nonlocal left
        if isinstance(node, Mapping):
            kept = {}
            for name, below in node.items():
                if left <= 0:
                    break
                kept[str(name)] = cut(below)
            return kept
        left -= 1
        return node

    return cut(errors)


def _http(error: HTTPException) -> Response | HTTPException:
    """Werkzeug's own refusals: no such route, wrong method, too large, a connection that broke off."""
    status = error.code or 500
    if status < 400:
        return error
    phrase = http.HTTPStatus(status).phrase
    headers = {name: value for name, value in error.get_headers() if name in ("Allow", "Accept-Encoding")}
    detail = {
        404: "There is nothing at this address.",
        405: f"{request.method if request.method.isalpha() else 'The method'} is not allowed here."[:60],
        413: "The body is too large.",
    }.get(status, phrase + ".")
    return respond(Problem(status, phrase.lower().replace(" ", "-"), phrase, detail, headers=headers))


def _framing(error: Exception) -> Response:
    """That a body is not framed as its headers say is found out only when it is read."""
    return respond(invalid({"body": ["Not valid transfer coding."]}, "The body can't be read."))


def _fault(error: Exception) -> Response:
    return respond(of(error, g.get("request_id", "")))
