"""A real service for tests: gunicorn on a given database, as in production, or all that `make run` starts."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import psutil
import psycopg

from app.auth.keys import SigningKeys
from config.settings import load
from tests.support import pgbouncer
from tests.support.agent import Agent
from tests.support.application import create_app

ROOT = Path(__file__).resolve().parents[2]
# Variables of the run that each service gets too.
KEPT = ("WATCHPOST_POSTGRESQL_PROGRAMS",)
GUNICORN = [str(Path(sys.executable).parent / "gunicorn"), "--config", "python:config.gunicorn", "wsgi:app"]
SUPERVISED = [sys.executable, "-m", "app.dev.serve"]


def as_role(url: str, role: str) -> str:
    """The same database for another role: owner, writer or reader."""
    given = psycopg.conninfo.conninfo_to_dict(url)
    database, _ = given.pop("dbname"), given.pop("user")
    return f"postgresql://watchpost_{role}@/{database}?{urlencode(given, quote_via=quote)}"


class Answer:
    def __init__(self, status: int, headers: Any, body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Service:
    """A running service: its address, its process, its log.

    database_url: of the superuser; the service gets those of its own roles. is_supervised: started as by `make run`,
    which brings its database, keys and background jobs; by default where no database is given. Else the process is
    gunicorn's master alone, on a database that is migrated already. command: another one to start it with.
    stderr: a descriptor to use in place of the log.
    """

    # The socket folder of the PgBouncer in front of a server, by the server's socket folder.
    poolers: dict[str, str] = {}

    def __init__(
        self,
        folder: Path,
        is_supervised: bool | None = None,
        command: list[str] | None = None,
        stderr: int | None = None,
        log_folder: Path | None = None,
        make_keys: bool = True,
        **settings: Any,
    ) -> None:
        self.is_supervised = "database_url" not in settings if is_supervised is None else is_supervised
        if url := settings.pop("database_url", None):
            settings = {
                "database_url": as_role(url, "writer"),
                "owner_database_url": as_role(url, "owner"),
                **settings,
            }
            if pooler := self.poolers.get(str(psycopg.conninfo.conninfo_to_dict(url)["host"])):
                settings |= {
                    "database_url": pgbouncer.url(settings["database_url"], pooler),
                    "prepare_statements": False,
                }
        self.bind = str(settings.get("bind") or f"127.0.0.1:{free_port()}")
        self.url = f"http://{self.bind}"
        self.log = (log_folder or folder) / f"service-{time.monotonic_ns()}.log"
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("WATCHPOST_") or name in KEPT},
            "WATCHPOST_BIND": self.bind,
            "WATCHPOST_DATA_DIR": str(folder / "data"),
            "WATCHPOST_WORKERS": "2",
            **{f"WATCHPOST_{name.upper()}": str(value) for name, value in settings.items()},
        }
        self.environment = environment
        command = command or (SUPERVISED if self.is_supervised else GUNICORN)
        if make_keys and not self.is_supervised:
            # In production an operator has made them.
            SigningKeys(load(environment).signing_keys_path).ensure()
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdout=self.log.open("wb"),
            stderr=subprocess.STDOUT if stderr is None else stderr,
            start_new_session=True,
        )

    def wait_until_ready(self, seconds: float = 120) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                break
            with contextlib.suppress(OSError):
                if self._listens() and self.get("/readyz").status == 200:
                    return
            time.sleep(0.05)
        raise AssertionError("the service did not start:\n" + self.log.read_text())

    def _listens(self) -> bool:
        """Whether this service listens, rather than a previous one at the same address."""
        with contextlib.suppress(psutil.Error):
            master = self.master()
            return master is not None and any(it.status == psutil.CONN_LISTEN for it in master.net_connections())
        return False

    def master(self) -> psutil.Process | None:
        """gunicorn's master; None while there is none."""
        process = psutil.Process(self.process.pid)
        return self._child("gunicorn") if self.is_supervised else process

    def workers(self) -> list[psutil.Process]:
        """gunicorn's workers."""
        with contextlib.suppress(psutil.Error):
            if master := self.master():
                return list(master.children())
        return []

    def background_worker(self) -> psutil.Process | None:
        """The process of the background jobs, where `make run` starts it."""
        return self._child("flask")

    def _child(self, word: str) -> psutil.Process | None:
        for child in psutil.Process(self.process.pid).children():
            with contextlib.suppress(psutil.Error):
                if word in child.cmdline():
                    return child
        return None

    def get(self, path: str) -> Answer:
        return self.send(urllib.request.Request(self.url + path))

    def get_with(self, path: str, token: str) -> Answer:
        return self.send(urllib.request.Request(self.url + path, headers={"Authorization": f"Bearer {token}"}))

    def post(self, path: str, body: Any, token: str | None = None, **headers: str) -> Answer:
        if token:
            headers["Authorization"] = f"Bearer {token}"
        headers.setdefault("Content-Type", "application/json")
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.send(urllib.request.Request(self.url + path, data, headers))

    def send(self, request: urllib.request.Request) -> Answer:
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return Answer(answer.status, answer.headers, answer.read())
        except urllib.error.HTTPError as error:
            with error:
                return Answer(error.code, error.headers, error.read())

    def operate(self, *arguments: str) -> str:
        """Run an operator's command in this process and return what it printed."""
        app = create_app(load(self.environment))
        try:
            result = app.test_cli_runner().invoke(args=arguments)
            assert result.exit_code == 0, result.output
            return str(result.stdout).strip()
        finally:
            app.extensions["db"].close()

    def flask(self, *arguments: str) -> str:
        """The same in a process of its own, which takes a second longer, as an operator does."""
        command = [str(Path(sys.executable).parent / "flask"), "--app", "wsgi", *arguments]
        done = subprocess.run(command, cwd=ROOT, env=self.environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def end(self, number: int = signal.SIGTERM, seconds: float = 60) -> int:
        """Send a signal to the master alone and wait for its end."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(seconds)

    def kill_everything(self) -> None:
        """End all that is left of it, for tests that end in any way; its embedded server is stopped by the guard."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(60)
        deadline = time.monotonic() + 20
        while self.is_supervised and self._has_server() and time.monotonic() < deadline:
            time.sleep(0.05)

    def _has_server(self) -> bool:
        pid_file = Path(self.environment["WATCHPOST_DATA_DIR"], "postgresql", "postmaster.pid")
        with contextlib.suppress(OSError, ValueError, psutil.Error):
            process = psutil.Process(int(pid_file.read_text().split("\n", 1)[0]))
            return process.name() == "postgres" and process.status() != psutil.STATUS_ZOMBIE
        return False


def wait_for(condition: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def enrolled(service: Service, uses: int = 5) -> str:
    """An enrolment's token."""
    uses_and_end = ["--max-uses", str(uses), "--expires-in", "1d"]
    return service.operate("enrollment", "create", "--label", "tests", *uses_and_end)


def token_of(service: Service, agent: Agent) -> str:
    """An access token for a registered agent."""
    form = urlencode(agent.token_request(service.url)).encode()
    content_type = {"Content-Type": "application/x-www-form-urlencoded"}
    return str(service.post("/api/auth/token", form, **content_type).json["access_token"])


def registered(service: Service) -> tuple[Agent, str]:
    """A new device and its access token."""
    agent = Agent()
    assert service.post("/api/devices/register", agent.registration(), enrolled(service)).status == 201
    return agent, token_of(service, agent)


def prompt(agent: Agent, **more: Any) -> dict[str, Any]:
    """The body of POST /api/prompt."""
    now = int(time.time() * 1000)
    body = {"device_id": agent.device_id, "instance_id": "i", "site": "s", "url": "u", "prompt": "p", "timestamp": now}
    return {**body, **more}


def servers_of(folder: Path) -> list[psutil.Process]:
    """The PostgreSQL servers that run in this folder."""
    found = []
    for process in psutil.process_iter(["name", "cmdline"]):
        line = process.info["cmdline"] or []
        if process.info["name"] == "postgres" and any(str(folder) in word for word in line):
            found.append(process)
    return found


@contextlib.contextmanager
def serving(folder: Path, **settings: Any) -> Iterator[Service]:
    """Run a service: it is ready at the start and stopped at the end."""
    service = Service(folder, **settings)
    try:
        service.wait_until_ready()
        yield service
        service.end()
    finally:
        service.kill_everything()


def free_port() -> int:
    """A free port, reserved until this process ends: a socket stays bound to it, which the service shares.

    A service listens only when its database is up. Until then, and between a stop and the next start, another test's
    service or connection could get the same port.
    """
    probe = socket.socket()
    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    probe.bind(("127.0.0.1", 0))
    port = int(probe.getsockname()[1])
    probe.detach()
    return port


def processes_of(folder: Path) -> list[psutil.Process]:
    """What was started with this folder's data directory in its environment and still runs."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("WATCHPOST_DATA_DIR") == str(folder / "data"):
                found.append(process)
    return found
