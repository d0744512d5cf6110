"""`make run`: everything that the service needs on one machine, started in order, watched and stopped together.

1. the embedded PostgreSQL, unless WATCHPOST_DATABASE_URL names another database
2. pending migrations, and a signing key if there is none
3. two children: the worker for background jobs, and gunicorn

A child or a database server that dies is started again. SIGTERM and SIGINT stop all of it, running requests are
finished first; SIGHUP is passed on to gunicorn, which replaces its workers. In production systemd does this job.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging.config
import select
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

import psycopg

from app.auth import keys
from app.db import migrations
from app.db.startup import StartupError, explain, refuse_superuser, wait_until_up
from app.db.urls import cluster_folder, migration_url, writer_url
from app.dev import embedded
from app.dev.children import Child
from app.dev.console import Console
from app.dev.programs import EmbeddedError
from app.files import make_folder
from app.telemetry.logging import config
from config.settings import SettingError, Settings, load, prepare_start

log = logging.getLogger("watchpost.serve")

GUNICORN = [sys.executable, "-m", "gunicorn", "--config", "python:config.gunicorn", "wsgi:app"]
WORKER = [sys.executable, "-m", "flask", "--app", "wsgi", "worker"]
STOPPED, WRONG_SETTING, NO_START = 0, 2, 3
POLL_SECONDS = 0.1
# How often the embedded server is looked at.
CHECK_SECONDS = 1.0
# What a child gets, beyond the time for running requests, before it is killed.
STOP_SECONDS = 10.0


class Supervisor:
    """Starts, watches and stops the service of these settings."""

    def __init__(self, settings: Settings, console: Console, signals: Signals) -> None:
        self._settings = settings
        self._console = console
        self._signals = signals
        self._pass_fds: list[int] = []
        self._probe: socket.socket | None = None

    def run(self) -> int:
        """Serve until a signal says to stop. Returns the exit code."""
        with contextlib.ExitStack() as stack:
            try:
                self._start_database(stack)
                if not self._signals.is_stopping:
                    self._prepare()
            except (StartupError, migrations.MigrationError, EmbeddedError) as error:
                return self._refuse(str(error))
            except Exception as error:
                return self._refuse(explain(error))
            if self._signals.is_stopping:
                return STOPPED
            gunicorn, worker = Child("gunicorn", GUNICORN), Child("worker", WORKER)
            children = [gunicorn, worker]
            stack.callback(self._stop, children)
            for child in children:
                child.start(self._pass_fds)
            self._console.step("worker", "background jobs", pid=worker.pid)
            return self._watch(gunicorn, children)

    def _refuse(self, reason: str) -> int:
        if self._signals.is_stopping:
            return STOPPED
        log.error("can't start: %s", reason)
        return NO_START

    def _start_database(self, stack: contextlib.ExitStack) -> None:
        settings = self._settings
        make_folder(Path(settings.data_dir))
        if settings.database_url:
            wait_until_up(migration_url(settings), lambda: self._signals.is_stopping)
            refuse_superuser(settings.database_url)
            self._console.step("database", "that of WATCHPOST_DATABASE_URL")
            return
        cluster = cluster_folder(settings.data_dir)
        if not cluster.exists():
            self._console.step("PostgreSQL", f"is created in {cluster}, which takes some seconds")
        stack.enter_context(embedded.running(settings.data_dir, is_given_up=lambda: self._signals.is_stopping))
        # Children hold it too: the server runs until the last request is answered, whoever is killed before.
        lock = stack.enter_context(embedded.in_use(settings.data_dir))
        fcntl.flock(lock, fcntl.LOCK_SH)
        self._pass_fds.append(lock.fileno())
        self._console.step("PostgreSQL", f"runs, its files are in {cluster}")

    def _prepare(self) -> None:
        """Migrate, and make a signing key. Raises StartupError, MigrationError, psycopg.Error, OSError."""
        settings = self._settings
        try:
            applied = migrations.apply(migration_url(settings))
            self._console.step("migrations", f"{len(applied)} applied" if applied else "all applied", applied=applied)
        except psycopg.errors.InsufficientPrivilege:
            # Migrations may be another role's business. Until they are applied /readyz answers 503.
            if migrations.is_behind(writer_url(settings)):
                log.error("this role may not migrate: run `flask --app wsgi migrate` as the owner")
        try:
            is_new = keys.prepare(settings)
        except keys.SigningKeysUnavailable as error:
            raise StartupError(str(error)) from None
        self._console.step("signing key", f"{'made' if is_new else 'found'} in {settings.signing_keys_path}")

    def _watch(self, gunicorn: Child, children: list[Child]) -> int:
        is_ready, was_killed, next_check = False, False, 0.0
        while not self._signals.is_stopping:
            if self._signals.take_hangup():
                gunicorn.signal(signal.SIGHUP)
            code = gunicorn.poll()
            # Killed before it was ready is killed: it is started again like later.
            was_killed = was_killed or (code is not None and code < 0)
            if not is_ready and not was_killed and code is not None:
                log.error("can't start: gunicorn ended", extra={"fields": {"status": code}})
                return code if code > 0 else NO_START
            for child in children:
                child.start_again_if_dead(self._pass_fds)
            if not is_ready and self._answers() and gunicorn.listens():
                is_ready = True
                self._console.ready(self._settings)
            if not self._settings.database_url and time.monotonic() >= next_check:
                self._restart_database_if_dead()
                next_check = time.monotonic() + CHECK_SECONDS
            time.sleep(POLL_SECONDS)
        return STOPPED

    def _answers(self) -> bool:
        """Whether gunicorn has answered, without waiting for it."""
        host, _, port = self._settings.bind.rpartition(":")
        host = {"0.0.0.0": "127.0.0.1", "[::]": "::1", "": "127.0.0.1"}.get(host, host.strip("[]"))  # noqa: S104
        try:
            if self._probe is None:
                self._probe = socket.create_connection((host, int(port)), timeout=1)
                self._probe.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            if not select.select([self._probe], [], [], 0)[0]:
                return False
            answer = self._probe.recv(100)
        except (OSError, ValueError):
            answer = b""
        if self._probe is not None:
            self._probe.close()
            self._probe = None
        return answer.startswith(b"HTTP/1.1 200 ")

    def _restart_database_if_dead(self) -> None:
        try:
            if embedded.ensure_up(self._settings.data_dir, lambda: self._signals.is_stopping):
                log.warning("the database server died and was started again")
        except Exception as error:
            if not self._signals.is_stopping:
                log.error("the database does not start: %s", explain(error))

    def _stop(self, children: list[Child]) -> None:
        self._console.step("stopping", "running requests are finished")
        for child in children:
            child.signal(signal.SIGTERM)
        deadline = time.monotonic() + self._settings.graceful_seconds + STOP_SECONDS
        for child in children:
            child.wait(deadline)


class Signals:
    """What signals ask for. They are only noted, so that no step is left half done."""

    def __init__(self) -> None:
        self.is_stopping = False
        self._is_hangup = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._note_stop)
        signal.signal(signal.SIGHUP, self._note_hangup)

    def take_hangup(self) -> bool:
        was, self._is_hangup = self._is_hangup, False
        return was

    def _note_stop(self, *_: Any) -> None:
        self.is_stopping = True

    def _note_hangup(self, *_: Any) -> None:
        self._is_hangup = True


def main() -> int:
    signals = Signals()
    # A terminal or a log that is gone must not end the service.
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    try:
        settings = load()
        prepare_start(settings)
    except SettingError as error:
        sys.stderr.write(f"{error}\n")
        return WRONG_SETTING
    logging.config.dictConfig(config(settings.log_level))
    return Supervisor(settings, Console(), signals).run()


if __name__ == "__main__":
    sys.exit(main())
