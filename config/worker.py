"""gunicorn's gevent worker, with a limit on how long a client may keep silent within a request, and its logger."""

from __future__ import annotations

from typing import Any

from gunicorn.glogging import Logger as GunicornLogger
from gunicorn.workers.ggevent import GeventWorker


class Worker(GeventWorker):
    """A greenlet a connection: a commit in flight keeps none of the others waiting."""

    def handle(self, listener: Any, client: Any, addr: Any) -> None:
        # Half-sent requests would otherwise be waited for, and hold their connections, for ever.
        client.settimeout(self.cfg.keepalive)
        super(GeventWorker, self).handle(listener, client, addr)


class Logger(GunicornLogger):
    def access(self, *args: Any) -> None:
        """Write nothing: a request has one line, written by the application."""
