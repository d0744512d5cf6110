"""gunicorn's gevent worker, with connections of our own making."""

from __future__ import annotations

import contextlib
import os
import time
from typing import Any

from gevent.server import StreamServer
from gunicorn.http.wsgi import base_environ
from gunicorn.workers import ggevent
from gunicorn.workers.ggevent import GeventWorker

from app.server.connection import Connection

# Who connects, one after the other with less than a second between them, is a crowd from so many on.
BURST = 64
BURST_ACCEPTS = 64


class Listener(StreamServer):
    """gevent's server, which takes a crowd faster, and at a stop serves whoever is connected already.

    Workers that take one connection a turn share them evenly; but behind a crowd of thousands, who asks whether the
    service lives would wait for as many turns. At a stop the kernel would reset those who wait to be taken.
    """

    _row, _last = 0, 0.0

    def _do_read(self) -> None:
        now = time.monotonic()
        self._row, self._last = (self._row + 1 if now < self._last + 1 else 0), now
        self.max_accept = BURST_ACCEPTS if self._row > BURST else 1
        super()._do_read()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            while not self.closed and not self.full() and (client := self.do_read()):
                self.do_handle(*client)
        super().close()


ggevent.StreamServer = Listener


class Worker(GeventWorker):
    """A greenlet a connection: a commit in flight keeps none of the others waiting."""

    def init_process(self) -> None:
        self._connections: set[Connection] = set()
        super().init_process()

    def notify(self) -> None:
        """Called once a second."""
        # Not gevent's own: it leaves at once when the master is gone, whoever waits for an answer.
        super(GeventWorker, self).notify()
        if self.ppid != os.getppid():
            self.alive = False
        now = time.monotonic()
        for connection in list(self._connections):
            if not self.alive:
                connection.drain(now)
            if connection.deadline <= now:
                connection.give_up()

    def handle_abort(self, *_: Any) -> None:
        # The master has lost timeout. An exception in whatever runs at the moment would be a fault to all who wait for
        # it, and an orderly end may take as long as the database keeps silent.
        os._exit(1)

    def handle(self, listener: Any, client: Any, addr: Any) -> None:
        # The address that was connected to: at a stop the listener is closed before the last are served.
        connection = Connection(client, addr, self._answer, self._environ(client), lambda: not self.alive)
        self._connections.add(connection)
        try:
            connection.serve()
        finally:
            self._connections.discard(connection)

    def _answer(self, environ: dict[str, Any], start_response: Any) -> Any:
        self.nr += 1
        if self.nr >= self.max_requests:
            # It stops as if it were told to, and the master starts another.
            self.alive = False
        return self.wsgi(environ, start_response)

    def _environ(self, client: Any) -> dict[str, Any]:
        """What the environ of every request holds (PEP 3333)."""
        name = client.getsockname()
        host, port = name[:2] if isinstance(name, tuple) else ("localhost", 0)
        environ: dict[str, Any] = base_environ(self.cfg)
        # Whole files are sent as any other answer.
        del environ["wsgi.file_wrapper"]
        return environ | {
            "SCRIPT_NAME": "",
            "SERVER_NAME": host,
            "SERVER_PORT": str(port),
            "REMOTE_ADDR": "",
            "wsgi.url_scheme": "https" if self.cfg.is_ssl else "http",
            "wsgi.multithread": True,
        }
