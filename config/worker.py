"""gunicorn's gevent worker, with a limit on how long a client may keep silent within a request, and its logger."""

from __future__ import annotations

import contextlib
import http
import json
import logging
import uuid
from typing import Any

from gunicorn.glogging import Logger as GunicornLogger
from gunicorn.http import errors
from gunicorn.workers.ggevent import GeventWorker

log = logging.getLogger("watchpost.worker")

REFUSED = {
    errors.LimitRequestLine: 414,
    errors.LimitRequestHeaders: 431,
    errors.ExpectationFailed: 417,
    errors.UnsupportedTransferCoding: 501,
    errors.ParseException: 400,
}


class OneSend:
    """A client's socket that holds an answer's head back until its body is there: one packet, one system call."""

    LARGEST = 65536

    def __init__(self, client: Any) -> None:
        self._client = client
        self._held: list[bytes] = []

    def __getattr__(self, name: str) -> Any:
        self.flush()
        return getattr(self._client, name)

    def sendall(self, data: bytes) -> None:
        self._held.append(data)
        if len(data) > self.LARGEST:
            self.flush()

    def flush(self) -> None:
        if self._held:
            data = b"".join(self._held)
            self._held = []
            sent = self._client.send(data)
            if sent < len(data):
                self._client.sendall(data[sent:])


class Worker(GeventWorker):
    """A greenlet a connection: a commit in flight keeps none of the others waiting."""

    # The socket has a time limit of its own; when it passes between two requests, the connection is closed.
    _until_silent = contextlib.suppress(TimeoutError)

    def timeout_ctx(self) -> Any:
        return self._until_silent

    def handle_request(self, listener_name: Any, req: Any, sock: Any, addr: Any) -> Any:
        once = OneSend(sock)
        try:
            return super().handle_request(listener_name, req, once, addr)
        finally:
            once.flush()

    def handle(self, listener: Any, client: Any, addr: Any) -> None:
        # Half-sent requests would otherwise be waited for, and hold their connections, for ever.
        client.settimeout(self.cfg.keepalive)
        super(GeventWorker, self).handle(listener, client, addr)

    def handle_error(self, req: Any, client: Any, addr: Any, exc: BaseException) -> None:
        """Refuse what is not HTTP. gunicorn's own way quotes it in the log and answers in HTML."""
        status = next((status for kind, status in REFUSED.items() if isinstance(exc, kind)), 500)
        request_id = str(uuid.uuid4())
        fields = {"request_id": request_id, "status": status, "error": type(exc).__name__}
        log.log(logging.WARNING if status < 500 else logging.ERROR, "not a request", extra={"fields": fields})
        phrase = http.HTTPStatus(status).phrase
        problem = {
            "type": "urn:watchpost:problem:" + phrase.lower().replace(" ", "-"),
            "title": phrase,
            "status": status,
            "detail": "The request can't be read." if status < 500 else "The fault is ours.",
            "request_id": request_id,
        }
        body = json.dumps(problem).encode()
        head = (
            f"HTTP/1.1 {status} {phrase}\r\nConnection: close\r\nContent-Type: application/problem+json\r\n"
            f"X-Request-ID: {request_id}\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        with contextlib.suppress(OSError):
            client.sendall(head.encode() + body)


class Logger(GunicornLogger):
    def access(self, *args: Any) -> None:
        """Write nothing: a request has one line, written by the application."""
