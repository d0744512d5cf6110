"""Requests from a client's bytes: HTTP/1.1 (RFC 9112) as llhttp parses it, strictly, within limits.

What two programs might understand differently, such as two lengths, is refused.
"""

from __future__ import annotations

from collections import deque
from functools import lru_cache
from typing import Any
from urllib.parse import unquote_to_bytes, urlsplit

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser

Environ = dict[str, Any]

# Bytes that llhttp parses at a time, and requests among them after which it parses no more until one is answered: a
# request in memory takes fifty times the bytes of a short one.
PARSE_SIZE = 1024
MAX_READY = 4
# Bytes of a target, of a header's name, of its value (an access token has at most 8 KiB), of a whole head.
MAX_TARGET = 4094
MAX_HEADER_NAME = 256
MAX_HEADER_VALUE = 16384
MAX_HEAD = 65536
MAX_HEADERS = 100


class NotHttp(Exception):
    """A head that can't be accepted. status: the answer."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class Request:
    """A request as far as it has been received. body: parts that nobody has read yet."""

    __slots__ = ("body", "environ", "expects_continue", "is_complete", "is_http_1_0", "keeps_alive")

    def __init__(self, environ: Environ, is_http_1_0: bool, keeps_alive: bool) -> None:
        self.environ = environ
        # HTTP/1.0 has no chunks.
        self.is_http_1_0 = is_http_1_0
        self.keeps_alive = keeps_alive
        # The client waits with its body until it is told to go on (RFC 9110, section 10.1.1).
        self.expects_continue = "HTTP_EXPECT" in environ and not is_http_1_0
        self.body: list[bytes] = []
        self.is_complete = False


class RequestParser:
    """The requests of one connection.

    base: what the environ of every request contains. ready: requests whose head is complete, in order; the last one
    may still get more of its body. refusal: the status to answer after them, when the rest can't be parsed.
    """

    def __init__(self, base: Environ) -> None:
        self.ready: deque[Request] = deque()
        self.refusal: int | None = None
        self._base = base
        self._llhttp = HttpRequestParser(self)
        self._environ: Environ = {}
        self._target = b""
        # Headers of the head so far; -1 outside a head.
        self._headers = -1
        self._request: Request | None = None
        # Bytes since the last ones that belonged to a body.
        self._overhead = 0

    def feed(self, data: bytes) -> bytes:
        """Parse bytes until MAX_READY requests are ready. Returns those that were not parsed."""
        try:
            while data and len(self.ready) < MAX_READY and self.refusal is None:
                piece, data = data[:PARSE_SIZE], data[PARSE_SIZE:]
                self._overhead += len(piece)
                try:
                    self._llhttp.feed_data(piece)
                except HttpParserUpgrade as upgrade:
                    data = self._decline(piece[upgrade.args[0] :] + data)
                if self._overhead > MAX_HEAD and self.refusal is None:
                    self.refusal = 431 if self._headers >= 0 else 400
        except HttpParserError as error:
            self.refusal = error.__context__.status if isinstance(error.__context__, NotHttp) else 400
        return data

    def _decline(self, rest: bytes) -> bytes:
        """Parse on in HTTP/1.1, whatever other protocol a request offers (RFC 9110, section 7.8).

        rest: the bytes behind its head. Returns those that are to be parsed.
        """
        request = self.ready[-1]
        environ = request.environ
        if environ["REQUEST_METHOD"] == "CONNECT":
            # What follows is meant for another server.
            request.keeps_alive = False
            return b""
        # llhttp takes such a request for one without a body. A new parser gets the same framing, and nothing else.
        self._llhttp = HttpRequestParser(self)
        framing = {"Content-Length": "CONTENT_LENGTH", "Transfer-Encoding": "HTTP_TRANSFER_ENCODING"}
        lines = [f"{name}: {environ[key]}\r\n" for name, key in framing.items() if key in environ]
        self._llhttp.feed_data(f"POST / HTTP/1.1\r\nHost: -\r\n{''.join(lines)}\r\n".encode("latin-1"))
        request.is_complete = self.ready.pop().is_complete
        self._request = request
        return rest

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
            # A trailer: nobody looks for it behind the body.
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
        environ, llhttp = self._environ, self._llhttp
        version = llhttp.get_http_version()
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
        environ["REQUEST_METHOD"] = llhttp.get_method().decode("latin-1")
        environ["SERVER_PROTOCOL"] = "HTTP/" + version
        path, _, query = _origin_form(self._target).partition(b"?")
        environ["PATH_INFO"] = (unquote_to_bytes(path) if b"%" in path else path).decode("latin-1")
        environ["QUERY_STRING"] = query.decode("latin-1")
        self._headers = -1
        self._overhead = 0
        self._request = Request(environ, is_http_1_0, llhttp.should_keep_alive())
        self.ready.append(self._request)

    def on_body(self, part: bytes) -> None:
        assert self._request is not None
        self._request.body.append(part)
        self._overhead = 0

    def on_message_complete(self) -> None:
        assert self._request is not None
        self._request.is_complete = True
        self._overhead = 0


@lru_cache(maxsize=1000)
def _key(name: bytes) -> str:
    """The environ's key of a header; empty for a name that could be taken for another one."""
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
