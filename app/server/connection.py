"""One client's connection: HTTP/1.1 (RFC 9112) as llhttp reads it, and the application behind it (PEP 3333).

llhttp is strict: what two programs might understand differently, such as two lengths, is refused.
"""

from __future__ import annotations

import contextlib
import http
import io
import json
import logging
import socket
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable
from email.utils import formatdate
from functools import lru_cache
from typing import Any
from urllib.parse import unquote_to_bytes, urlsplit

from gunicorn.http.errors import ParseException
from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser
from werkzeug.exceptions import ClientDisconnected

log = logging.getLogger("watchpost.worker")

Environ = dict[str, Any]
Application = Callable[[Environ, Callable[..., Any]], Iterable[bytes]]

PIECE = 65536
# Bytes that are taken from a client at a time, those of them that llhttp reads at a time, and requests among them from
# which on it reads no more before one is answered: a request in memory takes fifty times the bytes of a short one.
READ_SIZE = 16384
PARSE_SIZE = 1024
MAX_READY = 4
# Bytes of a target, of a header's name, of its value (an access token has 8 KiB at most), of a whole head.
MAX_TARGET = 4094
MAX_HEADER_NAME = 256
MAX_HEADER_VALUE = 16384
MAX_HEAD = 65536
MAX_HEADERS = 100
# A client may be silent for so long, has to send so much a second from then on, and all of a request in so long.
SILENCE_SECONDS = 15.0
MIN_PACE = 1024
MAX_REQUEST_SECONDS = 600.0
# When the worker stops, connections without a request get so long to send one.
DRAIN_SECONDS = 2.0
# What nobody reads of a body is thrown away for so long: to close at once would reset the connection, and the client
# might not see its answer.
LINGER_SECONDS = 2.0
NEVER = float("inf")


class NotHttp(Exception):
    """A head that can't be accepted. status: the answer."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class Incoming:
    """A request as far as it has come."""

    __slots__ = ("body", "environ", "expects_continue", "is_complete", "is_http_1_0", "keeps_alive")

    def __init__(self, environ: Environ, is_http_1_0: bool, keeps_alive: bool) -> None:
        self.environ = environ
        # HTTP/1.0, which knows no chunks.
        self.is_http_1_0 = is_http_1_0
        self.keeps_alive = keeps_alive
        # The client sends its body when it is told to (RFC 9110, section 10.1.1).
        self.expects_continue = "HTTP_EXPECT" in environ and not is_http_1_0
        self.body: list[bytes] = []
        self.is_complete = False


class Body(io.RawIOBase):
    """A body whose end had not come yet when the application was called."""

    def __init__(self, connection: Connection, incoming: Incoming) -> None:
        self._connection = connection
        self._incoming = incoming
        self._left = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Read some bytes; 0 at the end, also where the client stopped before it, if there is a length to tell by.

        Raises ParseException, and ClientDisconnected when chunks stop before the last.
        """
        incoming = self._incoming
        while not self._left:
            self._left, incoming.body = b"".join(incoming.body), []
            if not self._left and (incoming.is_complete or not self._connection.receive_body(incoming)):
                if not incoming.is_complete and "HTTP_TRANSFER_ENCODING" in incoming.environ:
                    raise ClientDisconnected
                return 0
        size = min(len(buffer), len(self._left))
        buffer[:size] = self._left[:size]
        self._left = self._left[size:]
        return size


class Connection:
    """Requests of one client, answered one after the other.

    base: what the environ of every request holds. is_stopping: whether this worker takes no more requests than it has.
    deadline: by time.monotonic(); whoever watches over connections calls `give_up` when it has passed.
    """

    def __init__(
        self,
        client: socket.socket,
        address: Any,
        application: Application,
        base: Environ,
        is_stopping: Callable[[], bool],
    ) -> None:
        self._client = client
        self._application = application
        self._base = base
        if isinstance(address, tuple):
            self._base = {**base, "REMOTE_ADDR": address[0], "REMOTE_PORT": str(address[1])}
        self._is_stopping = is_stopping
        self._parser = HttpRequestParser(self)
        self._environ: Environ = {}
        self._target = b""
        self._headers = -1
        self._incoming: Incoming | None = None
        self._ready: deque[Incoming] = deque()
        self._refusal: int | None = None
        # Bytes of the next request so far, those since the last that belonged to a body, and when the wait began.
        self._received = self._overhead = 0
        self._since = 0.0
        # What came and was not read yet, and whether there may be more of it.
        self._unread = b""
        self._is_behind = False
        self._is_sending = False
        self.deadline = NEVER

    def serve(self) -> None:
        """Answer requests until one of both ends the connection, and close it."""
        try:
            goes_on = True
            while goes_on:
                self._received, self._since = 0, time.monotonic()
                while not self._ready and self._refusal is None:
                    if not self._receive():
                        return
                if self._ready:
                    incoming = self._ready.popleft()
                    if self._unread and not incoming.is_complete:
                        # What has come of its body already: who refuses it unread would end the connection otherwise.
                        self._receive()
                    goes_on = self._answer(incoming)
                    if self._ready or self._unread or self._is_behind:
                        # Nothing that it waits for would let others have their turn.
                        time.sleep(0)
                else:
                    self._refuse(self._refusal or 400)
                    goes_on = False
        except OSError:
            # Gone, which is the client's right.
            log.debug("connection lost")
        finally:
            self._client.close()

    def give_up(self) -> None:
        """Wait no longer: whatever is being received or sent ends here."""
        self.deadline = NEVER
        with contextlib.suppress(OSError):
            self._client.shutdown(socket.SHUT_RDWR if self._is_sending else socket.SHUT_RD)

    def drain(self, now: float) -> None:
        """Give a client that has nothing under way a moment to send something."""
        if not self._received and self.deadline != NEVER:
            self.deadline = min(self.deadline, now + DRAIN_SECONDS)

    # Called by llhttp.

    def on_message_begin(self) -> None:
        self._environ = self._base.copy()
        self._target = b""
        self._headers = 0

    def on_url(self, part: bytes) -> None:
        self._target += part
        if len(self._target) > MAX_TARGET:
            raise NotHttp(414)

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._headers < 0:
            # A trailer: behind the body, where nobody looks for it.
            return
        self._headers += 1
        if len(value) > MAX_HEADER_VALUE or len(name) > MAX_HEADER_NAME or self._headers > MAX_HEADERS:
            raise NotHttp(431)
        key = _key(name)
        if not key:
            return
        text = value.decode("latin-1").strip(" \t")
        environ = self._environ
        if key in environ:
            if key == "HTTP_HOST":
                raise NotHttp(400)
            text = f"{environ[key]},{text}"
        environ[key] = text

    def on_headers_complete(self) -> None:
        environ, parser = self._environ, self._parser
        version = parser.get_http_version()
        if version not in ("1.1", "1.0"):
            raise NotHttp(505)
        is_http_1_0 = version == "1.0"
        if "HTTP_TRANSFER_ENCODING" in environ:
            if environ["HTTP_TRANSFER_ENCODING"].lower() != "chunked":
                raise NotHttp(501)
            if is_http_1_0:
                raise NotHttp(400)
        if "HTTP_HOST" not in environ and not is_http_1_0:
            raise NotHttp(400)
        if "HTTP_EXPECT" in environ and environ["HTTP_EXPECT"].lower() != "100-continue":
            raise NotHttp(417)
        environ["REQUEST_METHOD"] = parser.get_method().decode("latin-1")
        environ["SERVER_PROTOCOL"] = "HTTP/" + version
        path, _, query = _origin_form(self._target).partition(b"?")
        environ["PATH_INFO"] = (unquote_to_bytes(path) if b"%" in path else path).decode("latin-1")
        environ["QUERY_STRING"] = query.decode("latin-1")
        self._headers = -1
        self._overhead = 0
        self._incoming = Incoming(environ, is_http_1_0, parser.should_keep_alive())
        self._ready.append(self._incoming)

    def on_body(self, part: bytes) -> None:
        assert self._incoming is not None
        self._incoming.body.append(part)
        self._overhead = 0

    def on_message_complete(self) -> None:
        assert self._incoming is not None
        self._incoming.is_complete = True
        self._overhead = 0

    def receive_body(self, incoming: Incoming) -> bool:
        """Take in more of a body; False when there is no more to be had of it. Raises ParseException."""
        if incoming.expects_continue:
            incoming.expects_continue = False
            try:
                self.send(b"HTTP/1.1 100 Continue\r\n\r\n")
            except OSError:
                return False
        is_more = self._receive()
        if self._refusal is not None and not incoming.is_complete and not incoming.body:
            raise ParseException
        return is_more

    def _receive(self) -> bool:
        """Take in what the client sends next; False when it sends nothing more, or too slowly."""
        if self._refusal is not None:
            return False
        if not self._unread:
            # Who has sent much at once may not be silent for longer.
            last = min(time.monotonic(), self._since + self._received / MIN_PACE) + SILENCE_SECONDS
            self.deadline = min(last, self._since + MAX_REQUEST_SECONDS)
            with contextlib.suppress(OSError):
                self._unread = self._client.recv(READ_SIZE)
            self.deadline = NEVER
            self._is_behind = len(self._unread) == READ_SIZE
            if not self._unread:
                return False
        if not self._received:
            self._since = time.monotonic()
        try:
            while self._unread and len(self._ready) < MAX_READY and self._refusal is None:
                self._read(self._unread[:PARSE_SIZE])
        except HttpParserError as error:
            self._refusal = error.__context__.status if isinstance(error.__context__, NotHttp) else 400
        return True

    def _read(self, piece: bytes) -> None:
        self._unread = self._unread[len(piece) :]
        self._received += len(piece)
        self._overhead += len(piece)
        try:
            self._parser.feed_data(piece)
        except HttpParserUpgrade as upgrade:
            self._unread = self._decline(piece[upgrade.args[0] :] + self._unread)
        if self._overhead > MAX_HEAD and self._refusal is None:
            self._refusal = 431 if self._headers >= 0 else 400

    def _decline(self, rest: bytes) -> bytes:
        """Read on in HTTP/1.1, whatever other protocol a request offers (RFC 9110, section 7.8).

        rest: what follows its head. Returns what there is to read of it.
        """
        incoming = self._ready[-1]
        environ = incoming.environ
        if environ["REQUEST_METHOD"] == "CONNECT":
            # What follows is meant for somebody else.
            incoming.keeps_alive = False
            return b""
        # llhttp takes such a request for one without a body. Another one is told just what the body is like.
        self._parser = HttpRequestParser(self)
        framing = {"Content-Length": "CONTENT_LENGTH", "Transfer-Encoding": "HTTP_TRANSFER_ENCODING"}
        lines = [f"{name}: {environ[key]}\r\n" for name, key in framing.items() if key in environ]
        self._parser.feed_data(f"POST / HTTP/1.1\r\nHost: -\r\n{''.join(lines)}\r\n".encode("latin-1"))
        incoming.is_complete = self._ready.pop().is_complete
        self._incoming = incoming
        return rest

    def _answer(self, incoming: Incoming) -> bool:
        """Have the application answer; whether the connection goes on."""
        environ = incoming.environ
        environ["wsgi.input"] = (
            io.BytesIO(b"".join(incoming.body))
            if incoming.is_complete
            else io.BufferedReader(Body(self, incoming), PIECE)
        )
        answer = Answer(self, incoming)
        try:
            result = self._application(environ, answer.start)
            try:
                for piece in result:
                    answer.write(piece)
                answer.end()
            finally:
                if hasattr(result, "close"):
                    result.close()
        except OSError:
            raise
        except Exception as error:
            log.error("unhandled exception", exc_info=error)
            if answer.is_begun:
                # Cut off, so that nobody takes it for whole.
                return False
            self._refuse(500)
            return False
        if answer.keeps_alive:
            return True
        if not incoming.is_complete:
            self._linger()
        return False

    def keeps_alive(self, incoming: Incoming) -> bool:
        return incoming.keeps_alive and incoming.is_complete and self._refusal is None and not self._is_stopping()

    def send(self, data: bytes) -> None:
        """Send bytes, piece by piece, each within the time that a client may be silent."""
        self._is_sending = True
        sent = 0
        while sent < len(data):
            self.deadline = time.monotonic() + SILENCE_SECONDS
            # No copy of what is sent in one piece, as almost everything is.
            sent += self._client.send(data[sent : sent + PIECE] if sent else data)
        self._is_sending, self.deadline = False, NEVER

    def _refuse(self, status: int) -> None:
        """Answer what is no request, without a word of it here or in the log."""
        request_id = str(uuid.uuid4())
        fields = {"request_id": request_id, "status": status}
        log.log(logging.WARNING if status < 500 else logging.ERROR, "not a request", extra={"fields": fields})
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
        self.send(head.encode() + body)
        self._linger()

    def _linger(self) -> None:
        end = self.deadline = time.monotonic() + LINGER_SECONDS
        with contextlib.suppress(OSError):
            self._client.shutdown(socket.SHUT_WR)
            while self._client.recv(PIECE) and time.monotonic() < end:
                pass


class Answer:
    """What the application answers to one request, sent in as few pieces as it has parts of 64 KiB."""

    def __init__(self, connection: Connection, incoming: Incoming) -> None:
        self._connection = connection
        self._incoming = incoming
        self._status = ""
        self._headers: list[tuple[str, str]] = []
        self._parts: list[bytes] = []
        self._size = 0
        self._is_chunked = False
        self._has_body = incoming.environ["REQUEST_METHOD"] != "HEAD"
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
            if self._size > PIECE:
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
        incoming = self._incoming
        lines = [f"HTTP/1.1 {self._status}"]
        is_measured = wants_close = False
        for name, value in self._headers:
            lowered = name.lower()
            if lowered == "connection":
                wants_close = True
                continue
            is_measured = is_measured or lowered == "content-length"
            lines.append(f"{name}: {value}")
        self.keeps_alive = not wants_close and self._connection.keeps_alive(incoming)
        if self._status[:3] in ("204", "304"):
            self._has_body = False
        elif not is_measured:
            if size is not None and self._has_body:
                lines.append(f"Content-Length: {size}")
            elif incoming.is_http_1_0:
                self.keeps_alive = False
            else:
                self._is_chunked = True
                lines.append("Transfer-Encoding: chunked")
        if not self.keeps_alive:
            lines.append("Connection: close")
        elif incoming.is_http_1_0:
            lines.append("Connection: keep-alive")
        lines.append(f"Date: {_date(int(time.time()))}\r\n\r\n")
        return "\r\n".join(lines).encode("latin-1")


@lru_cache(maxsize=1)
def _date(second: int) -> str:
    return formatdate(second, usegmt=True)


@lru_cache(maxsize=1000)
def _key(name: bytes) -> str:
    """The environ's name of a header; empty for one that could be taken for another."""
    if b"_" in name:
        return ""
    key = name.decode("latin-1").upper().replace("-", "_")
    return key if key in ("CONTENT_TYPE", "CONTENT_LENGTH") else "HTTP_" + key


def _origin_form(target: bytes) -> bytes:
    """Path and query of a request's target (RFC 9112, section 3.2). Raises NotHttp."""
    if b"#" in target:
        raise NotHttp(400)
    if target[:1] == b"/" or target == b"*":
        return target
    try:
        parts = urlsplit(target)
    except ValueError:
        raise NotHttp(400) from None
    if parts.scheme not in (b"http", b"https") or not parts.netloc:
        raise NotHttp(400)
    return (parts.path or b"/") + (b"?" + parts.query if parts.query else b"")
