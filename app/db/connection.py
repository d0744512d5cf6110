"""One connection to PostgreSQL: its parameters, and how it waits for the server."""

from __future__ import annotations

import sys
from typing import Any

import psycopg
from psycopg.pq import TransactionStatus
from psycopg.rows import DictRow, dict_row

from config.settings import Settings


class Connection(psycopg.Connection[DictRow]):
    """A connection that gives up on a silent server.

    The server ends a statement that takes too long, but not when it is itself stopped or cut off.
    silence_seconds: how long a statement may wait for its answer; None: for ever.
    """

    silence_seconds: float | None = None

    def wait(self, gen: Any, interval: float = 0.1, timeout: float | None = None) -> Any:
        seconds = self.silence_seconds if timeout is None else timeout
        try:
            if _is_cooperative():
                return _wait_in_greenlet(gen, self.pgconn.socket, seconds)
            return super().wait(gen, interval, seconds)
        except psycopg.OperationalError:
            if self.pgconn.transaction_status == TransactionStatus.ACTIVE:
                # Its answer may still come, and would be taken for the next statement's.
                self.close()
            raise


def _is_cooperative() -> bool:
    """Whether this process is a worker, where gevent has patched blocking calls. A command never imports gevent."""
    monkey = sys.modules.get("gevent.monkey")
    return monkey is not None and monkey.is_module_patched("select")


def _wait_in_greenlet(gen: Any, fileno: int, seconds: float | None) -> Any:
    """As psycopg.waiting.wait, on gevent's own loop. psycopg would call a patched poll, which costs several times more.

    gen: yields what it waits for, psycopg.waiting's Wait, whose bits are those of gevent's watchers.
    """
    # Loaded in a worker already; a command does without.
    from gevent import Timeout, get_hub

    hub = get_hub()
    try:
        wanted = next(gen)
        with Timeout(seconds, psycopg.OperationalError("the server keeps silent")):
            while True:
                watcher = hub.loop.io(fileno, int(wanted))
                try:
                    hub.wait(watcher)
                finally:
                    watcher.close()
                # After a wait for both directions, psycopg finds out itself which one is ready.
                wanted = gen.send(int(wanted))
    except StopIteration as end:
        return end.value


def connection_options(settings: Settings, url: str, statement_seconds: float | None) -> dict[str, Any]:
    """The parameters of every connection of the service (libpq's connection parameters).

    A URL's own parameters win, so that `options` can be left out for a pooler that refuses it.
    """
    options: dict[str, Any] = {
        "autocommit": True,
        "row_factory": dict_row,
        "prepare_threshold": 0 if settings.prepare_statements else None,
        "application_name": "watchpost",
        "connect_timeout": settings.pool_wait_seconds,
        "keepalives_idle": 30,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        "tcp_user_timeout": 15000,
        "options": f"-c lock_timeout={settings.statement_timeout_ms // 2} -c idle_in_transaction_session_timeout=15s"
        + (f" -c statement_timeout={round(statement_seconds * 1000)}" if statement_seconds else ""),
    }
    in_url = psycopg.conninfo.conninfo_to_dict(url)
    return {name: value for name, value in options.items() if name not in in_url}
