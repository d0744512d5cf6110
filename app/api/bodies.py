"""How a body is read: its size, its encoding, and JSON as strict as the contract."""

from __future__ import annotations

import io
import time
import zlib
from typing import Any

import flask
import marshmallow as ma
from flask_smorest import Blueprint as SmorestBlueprint
from webargs.flaskparser import FlaskParser
from werkzeug.exceptions import ClientDisconnected, RequestEntityTooLarge
from werkzeug.utils import cached_property

from app.api import json_values, problems

# Bytes of a body, inflated, and values in it. A value costs a hundred times its bytes to parse and to keep.
MAX_BODY = 2 * 1024 * 1024
MAX_BATCH = 8 * MAX_BODY
MAX_VALUES = 20_000
MAX_BATCH_VALUES = 100_000
# Bytes that are inflated at a time.
INFLATE_SIZE = 65536


class Request(flask.Request):
    """A request whose body may be compressed with gzip. Limits count the inflated bytes."""

    @cached_property
    def stream(self) -> Any:
        encoding = self.headers.get("Content-Encoding", "identity").strip().lower()
        stream = super().stream
        if encoding in ("identity", ""):
            return stream
        if encoding not in ("gzip", "x-gzip"):
            raise problems.Problem(
                415,
                "unsupported-encoding",
                "Unsupported media type",
                "Content-Encoding must be gzip, or absent.",
                headers={"Accept-Encoding": "gzip"},
            )
        return io.BytesIO(self._inflated(stream))

    def body(self, max_size: int) -> bytes:
        """The body, inflated. Raises RequestEntityTooLarge when it has more than `max_size` bytes."""
        length = self.content_length
        if length is not None and "HTTP_CONTENT_ENCODING" not in self.environ:
            if length > max_size:
                raise RequestEntityTooLarge
            flask.g.slots.size = length
            return read(self.environ, length)
        # One byte more than allowed: a body without a Content-Length is cut there, and must not pass for a whole one.
        self.max_content_length = max_size + 1
        body = self.get_data(cache=False)
        flask.g.slots.size = len(body)
        if len(body) > max_size:
            raise RequestEntityTooLarge
        return body

    def _inflated(self, stream: Any) -> bytes:
        limit = self.max_content_length or MAX_BODY
        pieces: list[bytes] = []
        left = limit
        inflater = zlib.decompressobj(wbits=31)
        is_in_member = False
        try:
            while chunk := stream.read(65536):
                # A small body may inflate for long: let other requests run in between.
                time.sleep(0)
                has_more = False
                while chunk or has_more:
                    is_in_member = True
                    size = min(left + 1, INFLATE_SIZE)
                    piece = inflater.decompress(chunk, size)
                    left -= len(piece)
                    if left < 0:
                        raise RequestEntityTooLarge
                    flask.g.slots.grow(limit - left)
                    pieces.append(piece)
                    chunk, has_more = inflater.unconsumed_tail, len(piece) == size
                    if inflater.eof:
                        # RFC 1952: a file may have several members, one behind the other.
                        chunk, has_more = inflater.unused_data, False
                        inflater, is_in_member = zlib.decompressobj(wbits=31), False
        except zlib.error:
            raise _not_gzip() from None
        if is_in_member:
            raise _not_gzip()
        return b"".join(pieces)


def _not_gzip() -> problems.Problem:
    return problems.invalid({"body": ["Not valid gzip."]}, "The body is not what Content-Encoding says.")


def read(environ: dict[str, Any], length: int) -> bytes:
    """A body of known length. Raises ClientDisconnected when it stops before its end."""
    body: bytes = environ["wsgi.input"].read(length)
    if len(body) != length:
        raise ClientDisconnected
    return body


def check_content_type(request: flask.Request) -> None:
    """Raises Problem 415 for a body that is not JSON in UTF-8."""
    if request.environ.get("CONTENT_TYPE") != "application/json":
        charset = request.mimetype_params.get("charset", "utf-8").lower()
        if request.mimetype != "application/json" or charset not in ("utf-8", "utf8"):
            raise problems.Problem(
                415,
                "unsupported-media-type",
                "Unsupported media type",
                "Content-Type must be application/json, in UTF-8.",
            )


def parse(schema: Any, body: bytes) -> Any:
    """The JSON value of a body, for a schema (app.api.fields.Schema). Raises Problem 400 or 413."""
    try:
        value, may_have_violations = json_values.parse(body, schema.max_values)
    except json_values.TooManyValues:
        detail = f"The body holds more than {schema.max_values} values."
        raise problems.Problem(413, "content-too-large", "Content too large", detail) from None
    except ValueError:
        raise problems.invalid({"json": {"_schema": ["Not valid JSON."]}}, "The body is not JSON.") from None
    if may_have_violations:
        for message in schema.violations(value):
            raise problems.invalid({"json": {"_schema": [message]}})
    return value


def load(schema: Any, body: bytes) -> Any:
    """A body as its schema loads it. Raises Problem 400 or 413."""
    try:
        return schema.load(parse(schema, body))
    except ma.ValidationError as error:
        raise problems.invalid({"json": error.messages}) from None


class Parser(FlaskParser):
    """webargs for the full path: the same steps, between the guard and the view."""

    DEFAULT_VALIDATION_STATUS = 400
    DEFAULT_UNKNOWN_BY_LOCATION = {"json": None}

    def load_json(self, req: flask.Request, schema: Any) -> Any:
        request: Request = flask.request._get_current_object()  # type: ignore[attr-defined]
        check_content_type(request)
        return parse(schema, request.body(schema.max_size))

    def handle_error(self, error: ma.ValidationError, *args: Any, **kwargs: Any) -> Any:
        raise problems.invalid(error.messages if isinstance(error.messages, dict) else {"json": error.messages})


class Blueprint(SmorestBlueprint):
    """flask-smorest's Blueprint with our parser."""

    ARGUMENTS_PARSER = Parser()
