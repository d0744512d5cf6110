"""One client's connection: requests from its bytes, the application behind them, time limits on both sides."""

from __future__ import annotations

import contextlib
import io
import logging
import socket
import time
import uuid
from collections.abc import Callable, Iterable
from typing import Any

from gunicorn.http.errors import ParseException
from werkzeug.exceptions import ClientDisconnected

from app.server.request_parser import Environ, Request, RequestParser
from app.server.response import PIECE_SIZE, Response, refusal

log = logging.getLogger("watchpost.worker")

Application = Callable[[Environ, Callable[..., Any]], Iterable[bytes]]

# Bytes that are taken from a client at a time.
READ_SIZE = 16384
# A client may send nothing for so long, must send so many bytes a second from then on, and a whole request in so long.
SILENCE_SECONDS = 15.0
MIN_PACE = 1024
MAX_REQUEST_SECONDS = 600.0
# When the worker stops, connections without a request get so long to send one.
DRAIN_SECONDS = 2.0
# The rest of a body that nobody reads is discarded for so long: closing at once would reset the connection, and the
# client might not see its answer.
LINGER_SECONDS = 2.0
NEVER = float("inf")


class Body(io.RawIOBase):
    """The body of a request that was not complete when the application was called."""

    def __init__(self, connection: Connection, request: Request) -> None:
        self._connection = connection
        self._request = request
        self._unread = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Read some bytes; 0 at the end, and where a client with Content-Length stopped before it.

        Raises ParseException, and ClientDisconnected when chunks stop before the last one.
        """
        request = self._request
        while not self._unread:
            self._unread, request.body = b"".join(request.body), []
            if not self._unread and (request.is_complete or not self._connection.receive_body(request)):
                if not request.is_complete and "HTTP_TRANSFER_ENCODING" in request.environ:
                    raise ClientDisconnected
                return 0
        size = min(len(buffer), len(self._unread))
        buffer[:size] = self._unread[:size]
        self._unread = self._unread[size:]
        return size


class Connection:
    """Requests of one client, answered one after the other.

    base: what the environ of every request contains. is_stopping: whether this worker takes no more requests than it
    has. deadline: by time.monotonic(); the worker calls `give_up` when it has passed.
    """

    def __init__(
        self,
        client: socket.socket,
        address: Any,
        application: Application,
        base: Environ,
        is_stopping: Callable[[], bool],
    ) -> None:
        if isinstance(address, tuple):
            base = {**base, "REMOTE_ADDR": address[0], "REMOTE_PORT": str(address[1])}
        self._client = client
        self._application = application
        self._is_stopping = is_stopping
        self._parser = RequestParser(base)
        # Bytes of the next request so far, and when the wait for it began.
        self._received = 0
        self._since = 0.0
        # Bytes that are received and not parsed, and whether the client may have sent more of them.
        self._unparsed = b""
        self._is_behind = False
        self._is_sending = False
        self.deadline = NEVER

    def serve(self) -> None:
        """Answer requests until either side ends the connection, and close it."""
        parser = self._parser
        try:
            is_open = True
            while is_open:
                self._received, self._since = 0, time.monotonic()
                while not parser.ready and parser.refusal is None:
                    if not self._receive():
                        return
                if parser.ready:
                    request = parser.ready.popleft()
                    if self._unparsed and not request.is_complete:
                        # The part of its body that is here already: a refusal without it would end the connection.
                        self._receive()
                    is_open = self._answer(request)
                    if parser.ready or self._unparsed or self._is_behind:
                        # It waits for nothing, so the other connections need a loop tick of their own.
                        time.sleep(0)
                else:
                    self._refuse(parser.refusal or 400)
                    is_open = False
        except OSError:
            # The client has closed it, as it may.
            log.debug("connection lost")
        finally:
            self._client.close()

    def give_up(self) -> None:
        """Wait no longer: whatever is being received or sent ends here."""
        self.deadline = NEVER
        with contextlib.suppress(OSError):
            self._client.shutdown(socket.SHUT_RDWR if self._is_sending else socket.SHUT_RD)

    def drain(self, now: float) -> None:
        """Give a client without a request in progress a moment to send one."""
        if not self._received and self.deadline != NEVER:
            self.deadline = min(self.deadline, now + DRAIN_SECONDS)

    def receive_body(self, request: Request) -> bool:
        """Receive more of a body; False when there is no more of it. Raises ParseException."""
        if request.expects_continue:
            request.expects_continue = False
            try:
                self.send(b"HTTP/1.1 100 Continue\r\n\r\n")
            except OSError:
                return False
        is_more = self._receive()
        if self._parser.refusal is not None and not request.is_complete and not request.body:
            raise ParseException
        return is_more

    def keeps_alive(self, request: Request) -> bool:
        return request.keeps_alive and request.is_complete and self._parser.refusal is None and not self._is_stopping()

    def send(self, data: bytes) -> None:
        """Send bytes, piece by piece, each within SILENCE_SECONDS. Raises OSError."""
        self._is_sending = True
        sent = 0
        while sent < len(data):
            self.deadline = time.monotonic() + SILENCE_SECONDS
            # No copy when one piece is enough, as nearly always.
            sent += self._client.send(data[sent : sent + PIECE_SIZE] if sent else data)
        self._is_sending, self.deadline = False, NEVER

    def _receive(self) -> bool:
        """Receive and parse what the client sends next; False when it sends nothing more, or too slowly."""
        if self._parser.refusal is not None:
            return False
        if not self._unparsed:
            # A client that was faster than the least pace may not be silent for longer.
            last = min(time.monotonic(), self._since + self._received / MIN_PACE) + SILENCE_SECONDS
            self.deadline = min(last, self._since + MAX_REQUEST_SECONDS)
            with contextlib.suppress(OSError):
                self._unparsed = self._client.recv(READ_SIZE)
            self.deadline = NEVER
            self._is_behind = len(self._unparsed) == READ_SIZE
            if not self._unparsed:
                return False
        if not self._received:
            self._since = time.monotonic()
        size = len(self._unparsed)
        self._unparsed = self._parser.feed(self._unparsed)
        self._received += size - len(self._unparsed)
        return True

    def _answer(self, request: Request) -> bool:
        """Have the application answer; whether the connection stays open."""
        environ = request.environ
        environ["wsgi.input"] = (
            io.BytesIO(b"".join(request.body))
            if request.is_complete
            else io.BufferedReader(Body(self, request), PIECE_SIZE)
        )
        response = Response(self, request)
        try:
            result = self._application(environ, response.start)
            try:
                for part in result:
                    response.write(part)
                response.end()
            finally:
                if hasattr(result, "close"):
                    result.close()
        except OSError:
            raise
        except Exception as error:
            log.error("unhandled exception", exc_info=error)
            if response.is_begun:
                # Cut off, so that no client takes it for complete.
                return False
            self._refuse(500)
            return False
        if response.keeps_alive:
            return True
        if not request.is_complete:
            self._linger()
        return False

    def _refuse(self, status: int) -> None:
        """Answer bytes that are no request, and log that, without quoting them."""
        request_id = str(uuid.uuid4())
        fields = {"request_id": request_id, "status": status}
        log.log(logging.WARNING if status < 500 else logging.ERROR, "not a request", extra={"fields": fields})
        self.send(refusal(status, request_id))
        self._linger()

    def _linger(self) -> None:
        end = self.deadline = time.monotonic() + LINGER_SECONDS
        with contextlib.suppress(OSError):
            self._client.shutdown(socket.SHUT_WR)
            while self._client.recv(PIECE_SIZE) and time.monotonic() < end:
                pass
