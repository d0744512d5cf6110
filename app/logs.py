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
    g.began = time.perf_counter()
    given = request.headers.get("X-Request-ID", "")
    g.request_id = given if _REQUEST_ID.fullmatch(given) else str(uuid.uuid4())


def _end(response: Response) -> Response:
    response.headers["X-Request-ID"] = g.request_id
    if log.isEnabledFor(logging.INFO):
        token = g.get("token")
        fields = {
            "request_id": g.request_id,
            "method": request.method if request.method.isalpha() else "?",
            # The rule, not the path: what somebody asks for may be anything.
            "route": request.url_rule.rule if request.url_rule else None,
            "status": response.status_code,
            "ms": round((time.perf_counter() - g.began) * 1000, 2),
            "device_id": token.subject if token else None,
        }
        log.info("request", extra={"fields": fields})
    return response
