"""One line a request: time, request id, route, status, milliseconds, device. Never a body, a token or a key."""

from __future__ import annotations

import logging
import re
import time
import uuid

from flask import Flask, Response, g, request

log = logging.getLogger("watchpost.request")

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
    if log.isEnabledFor(logging.INFO):
        asked = request._get_current_object()  # type: ignore[attr-defined]
        token = context.get("token")
        fields = {
            "request_id": context.request_id,
            "method": asked.method if asked.method.isalpha() else "?",
            # The rule, not the path: what somebody asks for may be anything.
            "route": asked.url_rule.rule if asked.url_rule else None,
            "status": response.status_code,
            "ms": round((time.perf_counter() - context.began) * 1000, 2),
            "device_id": token.subject if token else None,
        }
        log.info("request", extra={"fields": fields})
    return response
