"""gunicorn's gevent worker, with our own HTTP connections.

It overrides methods of gunicorn's workers, and calls some; tests/server/test_seams.py watches over them.
"""

from __future__ import annotations

import os
import time
from typing import Any

from gunicorn.http.wsgi import base_environ
from gunicorn.workers.ggevent import GeventWorker

from app.server import listener
from app.server.connection import Connection

listener.install()


class Worker(GeventWorker):
    """One greenlet per connection: a commit in progress keeps no other connection waiting."""

    def init_process(self) -> None:
        self._connections: set[Connection] = set()
        super().init_process()

    def notify(self) -> None:
        """Called once a second."""
        # Not GeventWorker's own: it exits at once when the master is gone, and drops the requests in progress.
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
        # The master gave up on this worker. An exception in whatever runs now would fail the requests that wait for it,
        # and an orderly end takes as long as the database keeps silent.
        os._exit(1)

    def handle(self, _: Any, client: Any, addr: Any) -> None:
        connection = Connection(client, addr, self._answer, self._environ(client), lambda: not self.alive)
        self._connections.add(connection)
        try:
            connection.serve()
        finally:
            self._connections.discard(connection)

    def _answer(self, environ: dict[str, Any], start_response: Any) -> Any:
        self.nr += 1
        if self.nr >= self.max_requests:
            # It stops as on SIGTERM, and the master starts another.
            self.alive = False
        return self.wsgi(environ, start_response)

    def _environ(self, client: Any) -> dict[str, Any]:
        """What the environ of every request contains (PEP 3333)."""
        # Of the connection: at a stop the listener is closed before the last connections are served.
        name = client.getsockname()
        host, port = name[:2] if isinstance(name, tuple) else ("localhost", 0)
        environ: dict[str, Any] = base_environ(self.cfg)
        # Files are sent as any other answer.
        del environ["wsgi.file_wrapper"]
        return environ | {
            "SCRIPT_NAME": "",
            "SERVER_NAME": host,
            "SERVER_PORT": str(port),
            "REMOTE_ADDR": "",
            "wsgi.url_scheme": "https" if self.cfg.is_ssl else "http",
            "wsgi.multithread": True,
        }
