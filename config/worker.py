"""gunicorn's gevent worker, with connections of our own making, and its logger."""

from __future__ import annotations

import time
from typing import Any

from gunicorn.glogging import Logger as GunicornLogger
from gunicorn.http.wsgi import base_environ
from gunicorn.workers.ggevent import GeventWorker

from config.connection import Connection


class Worker(GeventWorker):
    """A greenlet a connection: a commit in flight keeps none of the others waiting."""

    def init_process(self) -> None:
        self._connections: set[Connection] = set()
        super().init_process()

    def notify(self) -> None:
        """Called once a second."""
        super().notify()
        now = time.monotonic()
        for connection in list(self._connections):
            if not self.alive:
                connection.hurry(now)
            if connection.deadline <= now:
                connection.give_up()

    def handle(self, listener: Any, client: Any, addr: Any) -> None:
        connection = Connection(client, addr, self.wsgi, self._environ(listener), lambda: not self.alive)
        self._connections.add(connection)
        try:
            connection.serve()
        finally:
            self._connections.discard(connection)

    def _environ(self, listener: Any) -> dict[str, Any]:
        """What the environ of every request holds (PEP 3333)."""
        name = listener.getsockname()
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


class Logger(GunicornLogger):
    def access(self, *args: Any) -> None:
        """Write nothing: a request has one line, written by the application."""
