"""Raw HTTP: bytes on a socket, as no HTTP client would send them, and the answers to them."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import socket
import time
import uuid
from typing import Any

import psycopg

from tests.support.service import Service
from tests.support.site import Site

CHUNKED = b"Transfer-Encoding: chunked"


@dataclasses.dataclass(frozen=True)
class Reply:
    """One answer. id: its X-Request-ID, which is the request's own where the request was read."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def id(self) -> str:
        return self.headers.get("x-request-id", "")


class RawConnection:
    """A raw HTTP connection to a service. seconds: how long the service may be silent."""

    def __init__(self, service: Service, seconds: float = 30) -> None:
        host, port = service.bind.split(":")
        self.socket = socket.create_connection((host, int(port)), timeout=seconds)
        self.closed = False
        self._received = b""

    def __enter__(self) -> RawConnection:
        return self

    def __exit__(self, *_: Any) -> None:
        self.socket.close()

    def send(self, data: bytes, *, slowly: float = 0, no_more: bool = False) -> None:
        """Send bytes. slowly: seconds between two of them. no_more: shut this half of the connection."""
        # A service that has seen enough closes at once.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for piece in [data[at : at + 1] for at in range(len(data))] if slowly else [data]:
                self.socket.sendall(piece)
                time.sleep(slowly)
        if no_more:
            with contextlib.suppress(OSError):
                self.socket.shutdown(socket.SHUT_WR)

    def reply(self, *, head_only: bool = False) -> Reply | None:
        """The next answer, or None when the service has closed the connection. head_only: of a HEAD request."""
        while b"\r\n\r\n" not in self._received:
            if not self._receive():
                assert not self._received, self._received[:200]
                return None
        head, _, rest = self._received.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        assert first.startswith(("HTTP/1.1 ", "HTTP/1.0 ")), first
        status = int(first.split(" ")[1])
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        length = 0 if head_only or status < 200 or status in (204, 304) else int(headers["content-length"])
        self._received = rest
        while len(self._received) < length:
            assert self._receive(), "the answer's body is cut"
        body, self._received = self._received[:length], self._received[length:]
        return Reply(status, headers, body)

    def replies(self) -> list[Reply]:
        """All answers until the service closes the connection."""
        found = []
        while (reply := self.reply()) is not None:
            found.append(reply)
        return found

    def _receive(self) -> bool:
        try:
            piece = self.socket.recv(65536)
        except ConnectionResetError:
            piece = b""
        self._received += piece
        self.closed = self.closed or not piece
        return bool(piece)


# The name in tests/server/test_http.py, until that says RawConnection too.
Wire = RawConnection


def chunk(data: bytes, size: bytes | None = None) -> bytes:
    return (b"%x" % len(data) if size is None else size) + b"\r\n" + data + b"\r\n"


class Case:
    """A prompt to send, on a request named `first`, and how to find out what became of it."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.mark = uuid.uuid4().hex
        self.body = json.dumps(
            {
                "device_id": site.agent.device_id,
                "instance_id": "i",
                "site": "s",
                "url": "u",
                "prompt": self.mark,
                "timestamp": int(time.time() * 1000),
            }
        ).encode()

    def id(self, name: str) -> str:
        return f"{name}-{self.mark}"

    def head(self, *lines: bytes, start: bytes = b"POST /api/prompt HTTP/1.1", trusted: bool = True) -> bytes:
        """The head of a request named `first`, with these lines at its end."""
        own = [start, b"Host: watchpost.test", b"X-Request-ID: " + self.id("first").encode()]
        if trusted:
            own += [b"Authorization: Bearer " + self.site.token.encode(), b"Content-Type: application/json"]
        return b"\r\n".join([*own, *lines, b"", b""])

    def length(self) -> bytes:
        return b"Content-Length: %d" % len(self.body)

    def get(self, name: str, *lines: bytes) -> bytes:
        """A whole harmless request."""
        own = [b"GET /livez HTTP/1.1", b"Host: watchpost.test", b"X-Request-ID: " + self.id(name).encode()]
        return b"\r\n".join([*own, *lines, b"", b""])

    @property
    def chunks(self) -> bytes:
        """The body in two chunks."""
        return chunk(self.body[:10]) + chunk(self.body[10:]) + b"0\r\n\r\n"

    def seen(self) -> set[str]:
        """Names of the requests that the application answered."""
        ids = [json.loads(line).get("request_id", "") for line in self.site.service.log.read_text().splitlines()]
        return {id_.partition("-")[0] for id_ in ids if id_.endswith(self.mark)}

    def stored(self) -> bool:
        with psycopg.connect(self.site.database) as connection:
            found = connection.execute("SELECT FROM prompts WHERE prompt = %s", (self.mark,)).fetchall()
        return found != []
