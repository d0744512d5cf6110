"""One log line for each request: request id, route, status, milliseconds, device; never a body, a token or a key."""

from __future__ import annotations

import logging
import re
import time
import uuid

from flask import Flask, Response, g, request

from app.telemetry import logging as log_config
from app.telemetry import metrics

log = logging.getLogger("watchpost.request")

METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


def init_app(app: Flask) -> None:
    app.before_request(_begin)
    app.after_request(_end)


def _begin() -> None:
    context = g._get_current_object()
    context.began = time.perf_counter()
    context.request_id = request_id(request.headers.get("X-Request-ID"))


def _end(response: Response) -> Response:
    context = g._get_current_object()
    response.headers["X-Request-ID"] = context.request_id
    asked = request._get_current_object()  # type: ignore[attr-defined]
    # The rule and a known method: a path and a method that a client makes up may be anything.
    route = asked.url_rule.rule if asked.url_rule else None
    method = asked.method if asked.method in METHODS else "other"
    principal = context.get("principal")
    answered(
        context.request_id, method, route, response.status_code, context.began, principal.subject if principal else None
    )
    return response


def request_id(given: str | None) -> str:
    """Return the client's X-Request-ID if it is valid, else a new id."""
    return given if given and _REQUEST_ID.fullmatch(given) else str(uuid.uuid4())


def answered(request_id: str, method: str, route: str | None, status: int, began: float, device_id: str | None) -> None:
    """Count a request and write its line. began: by time.perf_counter()."""
    seconds = time.perf_counter() - began
    metrics.answered(route, method, status, seconds)
    if log.isEnabledFor(logging.INFO):
        fields = {
            "request_id": request_id,
            "method": method,
            "route": route,
            "status": status,
            "ms": round(seconds * 1000, 2),
            "device_id": device_id,
        }
        log_config.write(log.name, "request", fields)
