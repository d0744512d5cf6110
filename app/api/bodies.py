"""How a body is read: its size, its encoding, and JSON as strict as the contract."""

from __future__ import annotations

import io
import json
import math
import time
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import flask
import marshmallow as ma
from flask_smorest import Blueprint as SmorestBlueprint
from webargs.flaskparser import FlaskParser
from werkzeug.exceptions import ClientDisconnected, RequestEntityTooLarge
from werkzeug.utils import cached_property

from app.api import problems

MAX_BODY = 1024 * 1024
MAX_BATCH = 8 * MAX_BODY
MAX_DEPTH = 32
# Bytes that are inflated at a time.
INFLATE_SIZE = 65536


class Request(flask.Request):
    """A request whose body may be compressed with gzip; limits count what comes out of it."""

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

    def body(self, largest: int) -> bytes:
        """The body, inflated. Raises RequestEntityTooLarge when it has more bytes than `largest`."""
        length = self.content_length
        if length is not None and "HTTP_CONTENT_ENCODING" not in self.environ:
            if length > largest:
                raise RequestEntityTooLarge
            body: bytes = self.environ["wsgi.input"].read(length)
            if len(body) != length:
                raise ClientDisconnected
            return body
        # One byte more than it may have: without a Content-Length it is cut there, and must not pass for a whole one.
        self.max_content_length = largest + 1
        body = self.get_data(cache=False)
        if len(body) > largest:
            raise RequestEntityTooLarge
        return body

    def _inflated(self, stream: Any) -> bytes:
        limit = self.max_content_length or MAX_BODY
        pieces: list[bytes] = []
        left = limit
        inflater = zlib.decompressobj(wbits=31)
        fed = False
        try:
            while chunk := stream.read(65536):
                # What is small may take long: others have their turn.
                time.sleep(0)
                is_more = False
                while chunk or is_more:
                    fed = True
                    most = min(left + 1, INFLATE_SIZE)
                    piece = inflater.decompress(chunk, most)
                    left -= len(piece)
                    if left < 0:
                        raise RequestEntityTooLarge
                    flask.g.slots.grow(limit - left)
                    pieces.append(piece)
                    chunk, is_more = inflater.unconsumed_tail, len(piece) == most
                    if inflater.eof:
                        # RFC 1952: a file may be several members, one behind the other.
                        chunk, is_more = inflater.unused_data, False
                        inflater, fed = zlib.decompressobj(wbits=31), False
        except zlib.error:
            raise _not_gzip() from None
        if fed:
            raise _not_gzip()
        return b"".join(pieces)


def _not_gzip() -> problems.Problem:
    return problems.invalid({"body": ["Not valid gzip."]}, "The body is not what Content-Encoding says.")


class Violation:
    """Stands in a parsed body where something can't be accepted, so that a batch can refuse just the item around it."""

    __slots__ = ("message",)

    def __init__(self, message: str) -> None:
        self.message = message


class DuplicateKeyDict(dict[str, Any]):
    """An object that names a key twice."""

    message = "An object has the same key twice."


class _Found(ValueError):
    """A flaw was found: the body is parsed once more, to say where."""


def parse(body: bytes) -> tuple[Any, bool]:
    """Parse JSON (RFC 8259), as strictly as the contract asks.

    Returns what was sent, and whether `violations` may find something in it: a number that is not finite or beyond 64
    bits,
    a key that stands twice, nesting too deep. Raises ValueError for anything that is not JSON in UTF-8.
    """
    text = body.decode("utf-8")
    try:
        try:
            # Without 33 brackets there can't be 33 levels.
            return _STRICT.decode(text), body.count(b"{") + body.count(b"[") > MAX_DEPTH
        except _Found:
            return _TELLING.decode(text), True
    except RecursionError:
        raise ValueError("nested too deep") from None


def _decoder(flaw: Callable[[str], Any]) -> json.JSONDecoder:
    """A decoder that puts into its result what `flaw` makes of a fault, unless that raises."""

    def integer(text: str) -> Any:
        # 20 characters hold every 64-bit integer; longer ones would be costly to convert.
        if len(text) <= 20 and -(2**63) <= (number := int(text)) < 2**63:
            return number
        return flaw("An integer is beyond 64 bits.")

    def fraction(text: str) -> Any:
        number = float(text)
        return number if math.isfinite(number) else flaw("A number is too large.")

    def members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        object_ = dict(pairs)
        if len(object_) != len(pairs):
            flaw(DuplicateKeyDict.message)
            return DuplicateKeyDict(object_)
        return object_

    return json.JSONDecoder(
        object_pairs_hook=members,
        parse_int=integer,
        parse_float=fraction,
        parse_constant=lambda name: flaw(f"{name} is not JSON."),
    )


def _found(message: str) -> Any:
    raise _Found(message)


_STRICT = _decoder(_found)
_TELLING = _decoder(Violation)


def violations(value: Any, deepest: int = MAX_DEPTH) -> Iterator[str]:
    """What can't be accepted in a parsed value: its Flaws, and nesting deeper than may be."""
    if not _may_have_violations(value, deepest):
        return
    level: list[Any] = [value]
    depth = 0
    while level:
        containers = [node for node in level if isinstance(node, (dict, list))]
        for node in level:
            if isinstance(node, (Violation, DuplicateKeyDict)):
                yield node.message
        depth += bool(containers)
        if containers and depth > deepest:
            yield f"Nested deeper than {deepest} levels."
            return
        level = [child for node in containers for child in (node.values() if isinstance(node, dict) else node)]


def _may_have_violations(value: Any, deepest: int) -> bool:
    """Whether there is a Violation in a parsed value, or so many objects and lists that they might lie too deep."""
    if type(value) in (DuplicateKeyDict, Violation):
        return True
    left = [value] if type(value) in (dict, list) else []
    containers = len(left)
    while left:
        node = left.pop()
        for child in node.values() if type(node) is dict else node:
            kind = type(child)
            if kind is dict or kind is list:
                left.append(child)
                containers += 1
            elif kind is Violation or kind is DuplicateKeyDict:
                return True
        if containers > deepest:
            return True
    return False


def read_json(largest: int) -> tuple[Any, bool]:
    """The JSON body of the current request, as `parse` returns it.

    largest: bytes that it may have, inflated. Raises Problem 400 or 415, RequestEntityTooLarge.
    """
    request: Request = flask.request._get_current_object()  # type: ignore[attr-defined]
    if request.environ.get("CONTENT_TYPE") != "application/json":
        charset = request.mimetype_params.get("charset", "utf-8").lower()
        if request.mimetype != "application/json" or charset not in ("utf-8", "utf8"):
            raise problems.Problem(
                415,
                "unsupported-media-type",
                "Unsupported media type",
                "Content-Type must be application/json, in UTF-8.",
            )
    try:
        return parse(request.body(largest))
    except ValueError:
        raise problems.invalid({"json": {"_schema": ["Not valid JSON in UTF-8."]}}, "The body is not JSON.") from None


class Parser(FlaskParser):
    """webargs as the contract has it: 400 for a body that is not valid, 415 for one that is not JSON."""

    DEFAULT_VALIDATION_STATUS = 400
    DEFAULT_UNKNOWN_BY_LOCATION = {"json": None}

    def load_json(self, req: flask.Request, schema: Any) -> Any:
        value, flawed = read_json(schema.largest)
        if flawed:
            for message in schema.violations(value):
                raise problems.invalid({"json": {"_schema": [message]}})
        return value

    def handle_error(self, error: ma.ValidationError, *args: Any, **kwargs: Any) -> Any:
        raise problems.invalid(error.messages if isinstance(error.messages, dict) else {"json": error.messages})


class Blueprint(SmorestBlueprint):
    """flask-smorest's Blueprint with our parser."""

    ARGUMENTS_PARSER = Parser()
