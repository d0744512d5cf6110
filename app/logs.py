"""One line a request: time, request id, route, status, milliseconds, device. Never a body, a token or a key."""

from __future__ import annotations

import logging
import re
import time
import uuid

from flask import Flask, Response, g, request

from app import metrics

log = logging.getLogger("watchpost.request")

METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


def init_app(app: Flask) -> None:
    app.before_request(_begin)
    app.after_request(_end)


def _begin() -> None:
    given = request.headers.get("X-Request-ID")
    context = g._get_current_object()
    context.began = time.perf_counter()
    context.request_id = given if given and _REQUEST_ID.fullmatch(given) else str(uuid.uuid4())


def _end(response: Response) -> Response:
    context = g._get_current_object()
    response.headers["X-Request-ID"] = context.request_id
    asked = request._get_current_object()  # type: ignore[attr-defined]
    # The rule, not the path: what somebody asks for may be anything. Nor any method that isn't one.
    route = asked.url_rule.rule if asked.url_rule else None
    method = asked.method if asked.method in METHODS else "other"
    seconds = time.perf_counter() - context.began
    metrics.answered(route, method, response.status_code, seconds)
    if log.isEnabledFor(logging.INFO):
        token = context.get("token")
        fields = {
            "request_id": context.request_id,
            "method": method,
            "route": route,
            "status": response.status_code,
            "ms": round(seconds * 1000, 2),
            "device_id": token.subject if token else None,
        }
        log.info("request", extra={"fields": fields})
    return response
