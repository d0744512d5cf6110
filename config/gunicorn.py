"""What gunicorn is told, and what its master does before the first worker and after the last.

The master starts the embedded PostgreSQL (unless WATCHPOST_DATABASE_URL names another), applies pending migrations and
makes a signing key if there is none. It stops the embedded server when the workers are gone.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import sys
from types import FrameType
from typing import Any

from app.auth.keys import SigningKeys
from app.db import embedded, migrations
from app.db.database import database_url, wait_until_up
from config import logging as log_config
from config.settings import load

settings = load()

bind = settings.bind
workers = settings.workers or os.cpu_count() or 1
worker_class = "gevent"
worker_connections = settings.connections
graceful_timeout = settings.graceful_seconds
timeout = 60
keepalive = 75
# A body's limit is the application's; these are of the request line and the headers, a token of 8 KiB included.
limit_request_line = 4094
limit_request_field_size = 16384
forwarded_allow_ips = ""
control_socket_disable = True
logconfig_dict = log_config.config(settings.log_level)

_resources = contextlib.ExitStack()


def on_starting(server: Any) -> None:
    """Have a database with the newest schema and a signing key, or end with a message that says why not."""
    _end_gracefully_on_interrupt(server)
    master = os.getpid()
    # Runs in the master alone: workers are forks of it and end through the same exit functions.
    atexit.register(lambda: _resources.close() if os.getpid() == master else None)
    try:
        if not settings.database_url:
            _resources.enter_context(embedded.running(settings.data_dir))
        wait_until_up(settings)
        for name in migrations.apply(database_url(settings)):
            server.log.info("applied migration %s", name)
        SigningKeys(settings.signing_keys_path).ensure()
    except Exception as error:
        # The URL and what the server says of it may hold a password.
        server.log.error("can't start: %s", embedded.explain(error))
        sys.exit(3)


def when_ready(server: Any) -> None:
    _end_gracefully_on_interrupt(server)


def post_worker_init(worker: Any) -> None:
    # Ctrl-C reaches every process of the terminal; the master tells its workers what to do.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def on_exit(server: Any) -> None:
    _resources.close()


def _end_gracefully_on_interrupt(server: Any) -> None:
    """Ctrl-C lets running requests finish, as SIGTERM does; SIGQUIT is gunicorn's quick way."""

    def terminate(number: int, frame: FrameType | None) -> None:
        server.signal(signal.SIGTERM, frame)

    signal.signal(signal.SIGINT, terminate)
