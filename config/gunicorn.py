"""What gunicorn is told, and what its master does before the first worker and after the last.

The master itself imports nothing of the application: a worker makes blocking calls cooperative before it does, and
modules that were imported earlier would keep the blocking ones.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import gc
import itertools
import os
import resource
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from pathlib import Path
from types import FrameType
from typing import Any

from app import __version__
from app.telemetry import logging as log_config
from config.settings import SettingError, load, prepare_start, unknown_variables

try:
    settings = load()
    prepare_start(settings)
except SettingError as error:
    sys.exit(str(error))
if settings.log_level in ("DEBUG", "INFO"):
    log_config.write("watchpost", "starting Watchpost", {"version": __version__})

bind = settings.bind
workers = settings.workers or min(16, len(os.sched_getaffinity(0)))
# gevent: with 16 connections it did 1.6 times the prompts of gthread with 16 threads, for 0.7 times the CPU of each, in
# one run on two cores.
worker_class = "app.server.worker.Worker"
# Far more than are handled at a time: most are idle, and who is not let in can't be told to come back later.
worker_connections = 10 * settings.connections
backlog = 4096
graceful_timeout = settings.graceful_seconds
timeout = 60
forwarded_allow_ips = ""
control_socket_disable = True
logconfig_dict = log_config.config(settings.log_level)

# socket(7); and what it takes: a program for BSD's packet filter (linux/filter.h) that looks at a TCP header, and drops
# what has SYN but not ACK among its flags.
SO_ATTACH_FILTER = 26
NO_SYN = ((0x30, 0, 0, 13), (0x54, 0, 0, 0x12), (0x15, 0, 1, 0x02), (0x06, 0, 0, 0), (0x06, 0, 0, 0x40000))

_in_use: list[int] = []
_keepers: list[subprocess.Popen[str]] = []


def on_starting(server: Any) -> None:
    """Have a database with the newest schema and a signing key, or end with a message that says why not."""
    # A connection is a file; what a shell allows by default is less than a worker's connections.
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = 65536 if hard == resource.RLIM_INFINITY else min(hard, 65536)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))
    signal.signal(signal.SIGINT, lambda *_: sys.exit(130))
    for sentence in unknown_variables():
        server.log.warning(sentence)
    if not settings.database_url:
        # Held by the master and, as its forks, by all workers: the embedded server is in use as long as one lives.
        _in_use.append(os.open(Path(settings.data_dir) / "postgres.lock", os.O_RDWR | os.O_CREAT, 0o600))
        fcntl.flock(_in_use[0], fcntl.LOCK_SH)
    # The folder of the workers' counters (app/telemetry/metrics.py); the keeper removes it.
    server.metrics = tempfile.mkdtemp(prefix="watchpost-metrics-")
    keeper = subprocess.Popen(
        [sys.executable, "-m", "app.dev.keeper", server.metrics],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    _keepers.append(keeper)
    assert keeper.stdout is not None
    if keeper.stdout.readline().strip() != "ready":
        sys.exit(keeper.wait() or 3)


def pre_fork(server: Any, worker: Any) -> None:
    taken = {other.place for other in server.WORKERS.values()}
    worker.place = next(place for place in itertools.count() if place not in taken)


def post_fork(server: Any, worker: Any) -> None:
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = server.metrics
    os.environ["PROMETHEUS_MULTIPROC_PLACE"] = str(worker.place)
    # Until a worker has handlers of its own it has the master's, which would swallow the signal to stop.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)


def when_ready(server: Any) -> None:
    _end_gracefully_on_interrupt(server)
    stop = server.stop

    def stop_without_new_connections(graceful: bool = True) -> None:
        # Whoever listens at the same socket after us, as another master or systemd, goes on hearing.
        if not (server.reexec_pid or server.master_pid or server.systemd):
            for listener in server.LISTENERS:
                deafen(listener.sock)
        stop(graceful)

    server.stop = stop_without_new_connections


def post_worker_init(worker: Any) -> None:
    # Ctrl-C reaches every process of the terminal; the master tells its workers what to do.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # What is loaded now stays: the collector need not look through it again and again.
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 50)


def worker_exit(server: Any, worker: Any) -> None:
    application = getattr(worker, "wsgi", None)
    if application is not None:
        application.extensions["db"].close()


def on_exit(server: Any) -> None:
    for lock in _in_use:
        os.close(lock)
    for keeper in _keepers:
        assert keeper.stdin is not None
        keeper.stdin.close()
        keeper.wait()


def deafen(listener: socket.socket) -> None:
    """Have a listening socket begin no more connections; those that have begun are completed, and can be taken.

    A worker takes all who wait before it closes the socket, and who is connected between the two is reset. Their
    packets are lost instead: TCP sends them again, and finds nobody, or the next service.
    """
    if listener.family in (socket.AF_INET, socket.AF_INET6) and sys.platform == "linux":
        program = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in NO_SYN))
        filter_ = struct.pack("@HP", len(NO_SYN), ctypes.addressof(program))
        with contextlib.suppress(OSError):
            listener.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, filter_)


def _end_gracefully_on_interrupt(server: Any) -> None:
    """Ctrl-C lets running requests finish, as SIGTERM does; SIGQUIT is gunicorn's quick way."""

    def terminate(number: int, frame: FrameType | None) -> None:
        server.signal(signal.SIGTERM, frame)

    signal.signal(signal.SIGINT, terminate)
