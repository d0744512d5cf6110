"""A machine of a scenario's own: the service and its PostgreSQL, durable as by default, to be killed in parts."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import psycopg

from app.dev import embedded
from tests.support.service import Service

# The rates of a fleet of twenty are those of a fleet of thousands.
SETTINGS = {"device_rate": 0}
# Time to start in: recovery included, and others may use the machine.
START_SECONDS = 300


class Machine:
    """A running one.

    folder: of the data directory. environment: more of it, for the service and its server. settings: the service's.
    """

    def __init__(self, folder: Path, environment: dict[str, str] | None = None, **settings: Any) -> None:
        self.folder = folder
        self._environment = environment or {}
        self._settings = SETTINGS | settings
        self.url = embedded.url(str(folder / "data"))
        self.cluster = folder / "data" / "postgresql"
        self.service = self._start()
        self.service.wait_until_ready(START_SECONDS)

    def _start(self) -> Service:
        with _environment(self._environment):
            return Service(self.folder, **self._settings)

    def start(self) -> None:
        """Start what was killed, at the same address."""
        self._settings["bind"] = self.service.bind
        self.service.process.wait(30)
        self.service = self._start()
        # Workers of the killed master may still answer: it is ready when a new one does.
        deadline = time.monotonic() + START_SECONDS
        while len(self.workers()) < int(self.service.environment["WATCHPOST_WORKERS"]):
            assert self.service.process.poll() is None, self.service.log.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        self.service.wait_until_ready(START_SECONDS)

    def workers(self) -> list[psutil.Process]:
        return self.service.workers()

    def kill_worker(self) -> None:
        random.choice(self.workers()).kill()

    def kill_master(self) -> None:
        """The supervisor; the others end by themselves."""
        self.service.process.kill()

    def kill_backend(self) -> None:
        """One of the service's own connections; PostgreSQL then restarts all the others, since it may be corrupt."""
        query = "SELECT pid FROM pg_stat_activity WHERE usename = 'watchpost_writer'"
        with psycopg.connect(self.url) as connection:
            pids = [pid for (pid,) in connection.execute(query)]
        if pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(random.choice(pids), signal.SIGKILL)

    def servers(self) -> list[psutil.Process]:
        """The server's processes, its postmaster first."""
        try:
            postmaster = psutil.Process(int((self.cluster / "postmaster.pid").read_text().split("\n", 1)[0]))
            if postmaster.name() == "postgres":
                return [postmaster, *postmaster.children(recursive=True)]
        except (OSError, ValueError, psutil.Error):
            pass
        return []

    def kill_server(self) -> None:
        _kill(self.servers())

    def kill_all(self) -> None:
        """Every process at once, as when the power fails."""
        master = psutil.Process(self.service.process.pid)
        # Children first: they are told when their parent is gone.
        _kill([*self.servers(), *reversed(master.children(recursive=True)), master])

    def ask(self, query: str) -> list[Any]:
        """As the superuser."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            cursor = connection.execute(query)  # type: ignore[call-overload]
            return list(cursor.fetchall()) if cursor.description else []

    def set(self, **settings: str) -> None:
        """Change settings of the server that a reload is enough for; they stay."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            for name, value in settings.items():
                connection.execute(f"ALTER SYSTEM SET {name} = '{value}'")  # type: ignore[call-overload]
            connection.execute("SELECT pg_reload_conf()")
        time.sleep(0.2)

    def end(self) -> None:
        self.service.end()

    def kill_what_is_left(self) -> None:
        with contextlib.suppress(psutil.Error):
            self.kill_all()
        self.service.kill_everything()
        _kill(self.servers())


@contextlib.contextmanager
def machine(folder: Path, environment: dict[str, str] | None = None, **settings: Any) -> Iterator[Machine]:
    folder.mkdir(mode=0o755)
    made = Machine(folder, environment, **settings)
    try:
        yield made
        made.end()
    finally:
        made.kill_what_is_left()


def _kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, 10)


@contextlib.contextmanager
def _environment(more: dict[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(more)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
