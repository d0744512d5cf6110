"""The fast path of a plain POST: one record as JSON, from a caller whose token is cached.

Finding out in Flask, webargs and marshmallow that nothing is special about a request takes longer than all the rest of
it. So a plain request goes through the same steps without them; every other request takes the full path.
"""

from __future__ import annotations

import http
import time
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import orjson
from flask import Flask

from app.api import bodies, problems
from app.auth import Auth, guard
from app.ingest import pipeline
from app.ingest.record_types import RecordType
from app.ingest.writer import Writer
from app.limits.admission import SLOT_BYTES, Slots
from app.limits.rates import Limits
from app.telemetry import request_log

View = TypeVar("View", bound=Callable[..., Any])
Environ = dict[str, Any]

# Headers that need the full path.
_SPECIAL = ("HTTP_ORIGIN", "HTTP_CONTENT_ENCODING", "HTTP_TRANSFER_ENCODING")
_STATUS = {status.value: f"{status.value} {status.phrase.upper()}" for status in http.HTTPStatus}


def fast_path(record_type: RecordType) -> Callable[[View], View]:
    """Let plain requests of a view, which stores this record type, take the fast path."""

    def decorate(view: View) -> View:
        view.record_type = record_type  # type: ignore[attr-defined]
        return view

    return decorate


class FastPath:
    """The WSGI application: the fast path, with Flask behind it as the full path."""

    def __init__(self, app: Flask) -> None:
        self._full_path = app.wsgi_app
        self._auth: Auth = app.extensions["auth"]
        self._limits: Limits = app.extensions["limits"]
        self._writer: Writer = app.extensions["writer"]
        self._record_types: dict[str, RecordType] = {
            rule.rule: record_type
            for rule in app.url_map.iter_rules()
            if (record_type := getattr(app.view_functions[rule.endpoint], "record_type", None))
        }

    def __call__(self, environ: Environ, start_response: Any) -> Iterable[bytes]:
        record_type = self._record_types.get(environ["PATH_INFO"])
        if record_type is not None and environ["REQUEST_METHOD"] == "POST":
            answer = self._answer(environ, record_type)
            if answer is not None:
                status, headers, body = answer
                start_response(_STATUS[status], headers)
                return [body]
        return self._full_path(environ, start_response)

    def _answer(self, environ: Environ, record_type: RecordType) -> tuple[int, list[tuple[str, str]], bytes] | None:
        """Status, headers and body; None for a request that needs the full path, of which nothing is read yet."""
        began = time.perf_counter()
        length = environ.get("CONTENT_LENGTH", "")
        if (
            environ.get("CONTENT_TYPE") != "application/json"
            or not (length.isdecimal() and 0 < int(length) < SLOT_BYTES)
            or any(name in environ for name in _SPECIAL)
        ):
            return None
        kind, _, token = environ.get("HTTP_AUTHORIZATION", "").partition(" ")
        try:
            principal = self._auth.cached(token) if kind == "Bearer" else None
        except (OSError, ValueError):
            # The file of the signing keys can't be read.
            return None
        if principal is None or not principal.allows(record_type.scope):
            return None
        request_id = request_log.request_id(environ.get("HTTP_X_REQUEST_ID"))
        headers = [("Content-Type", "application/json")]
        try:
            with Slots(self._limits.admission, record_type.priority, 1) as slots:
                guard.apply_rate_limit(principal, self._limits, slots)
                body = bodies.load(record_type.schema, bodies.read(environ, int(length)))
                stored, status = pipeline.store_for(record_type, body, principal, self._writer)
            content = orjson.dumps(record_type.answer.dump(stored))
        except Exception as error:
            problem = problems.of(error, request_id)
            status, content = problem.status, problems.body(problem, request_id)
            headers = [("Content-Type", problems.MEDIA_TYPE), *problem.headers.items()]
        headers += [("Content-Length", str(len(content))), ("X-Request-ID", request_id)]
        request_log.answered(request_id, "POST", environ["PATH_INFO"], status, began, principal.subject)
        return status, headers, content
