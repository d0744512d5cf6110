"""The short way of a plain POST: a caller who is known, a small body of JSON, one row.

Flask, webargs and marshmallow take longer to find out that nothing is special about a request than all the rest of it
takes. So what is plain goes from the guard's memory to the shared commit and back; everything else, and every body that
is not valid, goes the whole way from its beginning, which alone knows what to say then.
"""

from __future__ import annotations

import http
import io
import time
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import marshmallow as ma
import orjson
from flask import Flask

from app.api import bodies, problems
from app.auth import Auth
from app.db import Database
from app.ingest.record_types import Row, Write
from app.limits.admission import SLOT_BYTES, Slots
from app.limits.rates import Limits
from app.telemetry import request_log

View = TypeVar("View", bound=Callable[..., Any])
Environ = dict[str, Any]

# What makes a request less than plain.
_SPECIAL = ("HTTP_ORIGIN", "HTTP_CONTENT_ENCODING", "HTTP_TRANSFER_ENCODING")
_STATUS = {status.value: f"{status.value} {status.phrase.upper()}" for status in http.HTTPStatus}


def express(write: Write) -> Callable[[View], View]:
    """Let plain requests of a view go the short way, which stores this kind of row."""

    def decorate(view: View) -> View:
        view.write = write  # type: ignore[attr-defined]
        return view

    return decorate


class FastPath:
    """The application by WSGI, with the short way before Flask's."""

    def __init__(self, app: Flask) -> None:
        self._full_path = app.wsgi_app
        self._auth: Auth = app.extensions["auth"]
        self._limits: Limits = app.extensions["limits"]
        self._db: Database = app.extensions["db"]
        self._writes: dict[str, Write] = {
            rule.rule: write
            for rule in app.url_map.iter_rules()
            if (write := getattr(app.view_functions[rule.endpoint], "write", None))
        }

    def __call__(self, environ: Environ, start_response: Any) -> Iterable[bytes]:
        write = self._writes.get(environ["PATH_INFO"])
        if write is not None and environ["REQUEST_METHOD"] == "POST":
            answer = self._answer(environ, write)
            if answer is not None:
                status, headers, body = answer
                start_response(_STATUS[status], headers)
                return [body]
        return self._full_path(environ, start_response)

    def _answer(self, environ: Environ, write: Write) -> tuple[int, list[tuple[str, str]], bytes] | None:
        """Status, headers and body; None for what is not plain."""
        began = time.perf_counter()
        length = environ.get("CONTENT_LENGTH", "")
        if (
            environ.get("CONTENT_TYPE") != "application/json"
            or not (length.isdecimal() and 0 < int(length) < SLOT_BYTES)
            or any(name in environ for name in _SPECIAL)
        ):
            return None
        kind, _, text = environ.get("HTTP_AUTHORIZATION", "").partition(" ")
        try:
            token = self._auth.cached(text) if kind == "Bearer" else None
        except (OSError, ValueError):
            # The file of the signing keys can't be read.
            return None
        if token is None or write.scope not in token.scopes:
            return None
        request_id = request_log.request_id(environ.get("HTTP_X_REQUEST_ID"))
        headers = [("Content-Type", "application/json")]
        try:
            with Slots(self._limits.admission, write.priority, 1) as slots:
                self._limits.count(token.subject, None)
                slots.charge(token.subject)
                body = _body(environ, write, int(length))
                if body is None:
                    return None
                stored, status = write.store_for(body, token, self._db)
            content = orjson.dumps(write.answer.dump(stored))
        except Exception as error:
            problem = problems.of(error, request_id)
            status, content = problem.status, problems.body(problem, request_id)
            headers = [("Content-Type", problems.MEDIA_TYPE), *problem.headers.items()]
        headers += [("Content-Length", str(len(content))), ("X-Request-ID", request_id)]
        request_log.answered(request_id, "POST", environ["PATH_INFO"], status, began, token.subject)
        return status, headers, content


def _body(environ: Environ, write: Write, length: int) -> Row | None:
    """The body as its schema loads it; None, and the body to be read again, when it is not valid."""
    data = environ["wsgi.input"].read(length)
    try:
        if len(data) == length:
            value, may_have_violations = bodies.parse(data)
            if not may_have_violations or not any(write.schema.violations(value)):
                return write.schema.load(value)  # type: ignore[no-any-return]
    except (ValueError, ma.ValidationError):
        pass
    environ["wsgi.input"], environ["watchpost.counted"] = io.BytesIO(data), True
    return None
