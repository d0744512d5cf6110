"""What gunicorn is told, and what master and workers do beside serving.

The master itself imports nothing of the application: a worker makes blocking calls cooperative before it does, and
modules that were imported earlier would keep the blocking ones.
"""

from __future__ import annotations

import gc
import itertools
import os
import resource
import shutil
import signal
import sys
from types import FrameType
from typing import Any

from app import __version__
from app.server import counters
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
# Far more than are handled at a time: most are idle, and only an accepted client can be told to come back later.
worker_connections = 10 * settings.connections
backlog = 4096
graceful_timeout = settings.graceful_seconds
timeout = 60
forwarded_allow_ips = ""
control_socket_disable = True
logconfig_dict = log_config.config(settings.log_level)

# Before gunicorn handles it, a hangup would end the master.
signal.signal(signal.SIGHUP, signal.SIG_IGN)


def on_starting(server: Any) -> None:
    # A connection is a file; what a shell allows by default is less than a worker's connections.
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = 65536 if hard == resource.RLIM_INFINITY else min(hard, 65536)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))
    for sentence in unknown_variables():
        server.log.warning(sentence)


def pre_fork(server: Any, worker: Any) -> None:
    taken = {other.place for other in server.WORKERS.values()}
    worker.place = next(place for place in itertools.count() if place not in taken)


def post_fork(server: Any, worker: Any) -> None:
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = server.metrics
    os.environ["PROMETHEUS_MULTIPROC_PLACE"] = str(worker.place)
    # Until a worker sets handlers of its own it has the master's, which would swallow the signal to stop.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)


def when_ready(server: Any) -> None:
    server.metrics = counters.make_folder()
    _end_gracefully_on_interrupt(server)


def post_worker_init(worker: Any) -> None:
    # Ctrl-C reaches every process of the terminal; the master tells its workers what to do.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if worker.age <= worker.cfg.workers:
        # Only the first ones: those that replace them go on with what there is.
        from app.server import preflight

        preflight.check(worker)
    # Modules that are loaded now stay: the garbage collector need not scan them again and again.
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 50)


def worker_exit(server: Any, worker: Any) -> None:
    application = getattr(worker, "wsgi", None)
    if application is not None:
        application.extensions["db"].close()
    if os.getppid() != worker.ppid:
        # The master was killed, and nobody counts any more.
        shutil.rmtree(server.metrics, ignore_errors=True)


def on_exit(server: Any) -> None:
    shutil.rmtree(getattr(server, "metrics", ""), ignore_errors=True)


def _end_gracefully_on_interrupt(server: Any) -> None:
    """Let requests in progress finish on Ctrl-C, as on SIGTERM. SIGQUIT ends gunicorn at once."""

    def terminate(number: int, frame: FrameType | None) -> None:
        server.signal(signal.SIGTERM, frame)

    signal.signal(signal.SIGINT, terminate)
