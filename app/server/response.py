"""Responses as bytes (RFC 9112): the application's (PEP 3333), and those to bytes that are no request."""

from __future__ import annotations

import http
import json
import time
from collections.abc import Callable
from email.utils import formatdate
from functools import lru_cache
from typing import Any, Protocol

from app.server.request_parser import Request

# Bytes that are collected before they are sent.
PIECE_SIZE = 65536


class Sender(Protocol):
    """A connection."""

    def send(self, data: bytes) -> None:
        """Send bytes. Raises OSError."""

    def keeps_alive(self, request: Request) -> bool:
        """Whether another request may follow this one."""


class Response:
    """What the application answers to one request, sent in as few pieces as it has parts of 64 KiB."""

    def __init__(self, connection: Sender, request: Request) -> None:
        self._connection = connection
        self._request = request
        self._status = ""
        self._headers: list[tuple[str, str]] = []
        self._parts: list[bytes] = []
        self._size = 0
        self._is_chunked = False
        self._has_body = request.environ["REQUEST_METHOD"] != "HEAD"
        self.is_begun = False
        self.keeps_alive = False

    def start(self, status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Callable[[bytes], None]:
        """PEP 3333's start_response."""
        if exc_info and self.is_begun:
            raise exc_info[1].with_traceback(exc_info[2])
        self._status, self._headers = status, headers
        return self.write

    def write(self, part: bytes) -> None:
        if part:
            self._parts.append(part)
            self._size += len(part)
            if self._size > PIECE_SIZE:
                self._flush(is_last=False)

    def end(self) -> None:
        self._flush(is_last=True)

    def _flush(self, is_last: bool) -> None:
        parts, size = self._parts, self._size
        self._parts, self._size = [], 0
        head = b""
        if not self.is_begun:
            self.is_begun = True
            head = self._head(size if is_last else None)
        if not self._has_body:
            parts = []
        elif self._is_chunked:
            if parts:
                parts = [b"%x\r\n" % size, *parts, b"\r\n"]
            if is_last:
                parts.append(b"0\r\n\r\n")
        data = b"".join((head, *parts))
        if data:
            self._connection.send(data)

    def _head(self, size: int | None) -> bytes:
        """size: of the whole body, if it is known."""
        request = self._request
        lines = [f"HTTP/1.1 {self._status}"]
        is_measured = wants_close = False
        for name, value in self._headers:
            lowered = name.lower()
            if lowered == "connection":
                wants_close = True
                continue
            is_measured = is_measured or lowered == "content-length"
            lines.append(f"{name}: {value}")
        self.keeps_alive = not wants_close and self._connection.keeps_alive(request)
        if self._status[:3] in ("204", "304"):
            self._has_body = False
        elif not is_measured:
            if size is not None and self._has_body:
                lines.append(f"Content-Length: {size}")
            elif request.is_http_1_0:
                self.keeps_alive = False
            else:
                self._is_chunked = True
                lines.append("Transfer-Encoding: chunked")
        if not self.keeps_alive:
            lines.append("Connection: close")
        elif request.is_http_1_0:
            lines.append("Connection: keep-alive")
        lines.append(f"Date: {_date(int(time.time()))}\r\n\r\n")
        return "\r\n".join(lines).encode("latin-1")


def refusal(status: int, request_id: str) -> bytes:
    """The whole response to bytes that are no request, as problem details (RFC 9457). It quotes nothing of them."""
    phrase = http.HTTPStatus(status).phrase
    problem = {
        "type": "urn:watchpost:problem:" + phrase.lower().replace(" ", "-"),
        "title": phrase,
        "status": status,
        "detail": "The fault is ours." if status == 500 else "The request can't be read.",
        "request_id": request_id,
    }
    body = json.dumps(problem).encode()
    head = (
        f"HTTP/1.1 {status} {phrase}\r\nContent-Type: application/problem+json\r\nContent-Length: {len(body)}\r\n"
        f"Connection: close\r\nX-Request-ID: {request_id}\r\nDate: {_date(int(time.time()))}\r\n\r\n"
    )
    return head.encode() + body


@lru_cache(maxsize=1)
def _date(second: int) -> str:
    return formatdate(second, usegmt=True)
