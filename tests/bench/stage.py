"""What everything runs on: one PostgreSQL, the services, and what they have in common."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
from psycopg.rows import dict_row

from app.auth.keys import SigningKeys
from app.db import migrations
from app.dev import embedded
from tests.bench.rows import Mint
from tests.support.service import ROOT, free_port, serving

ISSUER = "http://watchpost.bench"
WORKERS = 2
PEER_POOL = 8


class BenchError(Exception):
    """The benchmark can't be run, or what it found can't be trusted. The message says why."""


def say(message: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {message}", file=sys.stderr, flush=True)


class Tools:
    """The programs that are not Python. Raises BenchError when one is missing, with the way to get it."""

    def __init__(self) -> None:
        self.wrk = shutil.which("wrk")
        if self.wrk is None:
            raise BenchError("wrk is missing: apt-get install wrk")
        # The server's own version if its package has it, else the system's.
        found = [embedded.programs() / "pgbench", *sorted(Path("/usr/lib/postgresql").glob("*/bin/pgbench"))[::-1]]
        path = next((str(path) for path in found if os.access(path, os.X_OK)), shutil.which("pgbench"))
        if path is None:
            raise BenchError("pgbench is missing: apt-get install postgresql-contrib")
        self.pgbench = path


class Site:
    """A running HTTP service: where it answers, the process at the root of its tree, and the operator's commands."""

    def __init__(self, url: str, pid: int, log: Path, flask: Callable[..., str] | None = None) -> None:
        self.url = url
        self.pid = pid
        self.flask = flask
        self.log = log


class Stage:
    """One PostgreSQL server with real durability, its databases, and the services in front of them."""

    def __init__(self, folder: Path, url: str, stack: contextlib.ExitStack) -> None:
        self.folder = folder
        self.url = url
        self.signing_keys = folder / "signing-keys.json"
        SigningKeys(self.signing_keys).ensure()
        self.mint = Mint(self.signing_keys, ISSUER)
        self.cluster = folder / "postgresql"
        self.postmaster = int((self.cluster / "postmaster.pid").read_text().split("\n", 1)[0])
        self._stack = stack
        # For questions about the whole server.
        self.control = stack.enter_context(psycopg.connect(url, autocommit=True, row_factory=dict_row))

    def database(self, name: str) -> str:
        """Make an empty database with the service's schema and return its URL."""
        self.control.execute(f"CREATE DATABASE {name}")
        url = self.url.replace(f"/{embedded.DATABASE}?", f"/{name}?")
        migrations.apply(url)
        return url

    @contextlib.contextmanager
    def ours_for_a_while(self, url: str, **settings: Any) -> Iterator[Site]:
        """The service, in front of a database."""
        given = {"workers": WORKERS, "database_url": url, "signing_keys": self.signing_keys, "issuer": ISSUER}
        with serving(self.folder, **(given | settings)) as service:
            yield Site(service.url, service.process.pid, service.log, service.flask)

    def ours(self, url: str, **settings: Any) -> Site:
        return self._stack.enter_context(self.ours_for_a_while(url, **settings))

    def peer(self, url: str) -> Site:
        return self._stack.enter_context(self._peer(url))

    @contextlib.contextmanager
    def _peer(self, url: str) -> Iterator[Site]:
        port = free_port()
        log = self.folder / "peer.log"
        command = [sys.executable, "-m", "uvicorn", "tests.bench.peer:app", "--workers", str(WORKERS)]
        command += ["--host", "127.0.0.1", "--port", str(port), "--loop", "uvloop", "--http", "httptools"]
        # The peer writes one line a request itself, as ours does.
        command += ["--no-access-log", "--log-level", "warning"]
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("WATCHPOST_")},
            "WATCHPOST_DATABASE_URL": url,
            "WATCHPOST_SIGNING_KEYS": str(self.signing_keys),
            "WATCHPOST_ISSUER": ISSUER,
            "PEER_POOL_SIZE": str(PEER_POOL),
        }
        with log.open("wb") as output:
            process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )
        try:
            _wait_for(f"http://127.0.0.1:{port}/readyz", process, log)
            yield Site(f"http://127.0.0.1:{port}", process.pid, log)
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(30)


def _wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError, urllib.error.URLError), urllib.request.urlopen(url, timeout=5) as answer:
            if answer.status == 200:
                return
        time.sleep(0.1)
    raise BenchError("the peer did not start:\n" + log.read_text()[-2000:])


@contextlib.contextmanager
def stage() -> Iterator[Stage]:
    """Set it up in a temporary folder; stop and remove everything afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="wp-bench-"))
    folder.chmod(0o755)
    try:
        with embedded.running(str(folder)) as url, contextlib.ExitStack() as stack:
            migrations.apply(url)
            yield Stage(folder, url, stack)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
