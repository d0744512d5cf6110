"""Thousands of devices from one process: an asynchronous HTTP client that does no more than these tests need."""

from __future__ import annotations

import asyncio
import contextlib
import json
import multiprocessing
import random
import resource
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import psycopg

from app.api.scopes import WRITE
from app.auth import Auth
from config.settings import Settings

FILL_DEVICES = """
INSERT INTO devices (device_id, key_thumbprint, public_key_pem, hostname)
SELECT 'device-' || n, 'thumbprint-of-device-' || n, '', 'host-' || n
FROM generate_series(0, %s - 1) AS n
"""


class Answer(NamedTuple):
    """headers: their names in small letters. seconds: from the request's first byte to the answer's last."""

    status: int
    headers: dict[str, str]
    body: bytes
    seconds: float

    @property
    def retry_after(self) -> int:
        return int(self.headers.get("retry-after", 0))


class Connection(asyncio.Protocol):
    """One connection, one request at a time."""

    def __init__(self) -> None:
        self._transport: Any = None
        self._received = bytearray()
        self._answered: asyncio.Future[Answer] | None = None
        self._began = 0.0
        self.is_open = False

    def connection_made(self, transport: Any) -> None:
        self._transport, self.is_open = transport, True

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_open = False
        if self._answered is not None and not self._answered.done():
            self._answered.set_exception(ConnectionResetError("closed before the answer"))

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, end, body = bytes(self._received).partition(b"\r\n\r\n")
        if not end:
            return
        status, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        if len(body) < int(headers.get("content-length", 0)):
            return
        self._received.clear()
        if headers.get("connection", "").lower() == "close":
            self.close()
        if self._answered is not None and not self._answered.done():
            self._answered.set_result(Answer(int(status.split()[1]), headers, body, time.perf_counter() - self._began))

    async def send(self, request: bytes) -> Answer:
        """Raises OSError when the connection ends before the answer."""
        self._answered = asyncio.get_running_loop().create_future()
        self._began = time.perf_counter()
        self._transport.write(request)
        return await self._answered

    def close(self) -> None:
        self.is_open = False
        self._transport.close()


class Caller:
    """A device's end: a connection that is made anew when it is gone, with pauses that double.

    broken: how often it was gone before an answer.
    """

    def __init__(self, bind: str) -> None:
        self._host, port = bind.split(":")
        self._port = int(port)
        self._connection = Connection()
        self.broken = 0

    async def send(self, request: bytes) -> Answer:
        """Send it until there is an answer. Raises OSError when there is none after ten tries."""
        pause = 0.25
        for tries_left in reversed(range(10)):
            try:
                if not self._connection.is_open:
                    loop = asyncio.get_running_loop()
                    _, self._connection = await loop.create_connection(Connection, self._host, self._port)
                return await self._connection.send(request)
            except OSError:
                self.broken += 1
                self.close()
                if not tries_left:
                    raise
                await asyncio.sleep(pause * random.uniform(1, 2))
                pause *= 2
        raise AssertionError

    def close(self) -> None:
        if self._connection.is_open:
            self._connection.close()


def post(path: str, body: Any, token: str) -> bytes:
    """A POST as raw HTTP."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data


def allow_many_connections() -> None:
    """Let this process have as many open files as it may."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def fill(database_url: str, devices: int) -> list[str]:
    """Put devices into an empty database and return their ids."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(FILL_DEVICES, [devices])
        connection.execute("ANALYZE devices")
    return [f"device-{number}" for number in range(devices)]


def tokens(signing_keys: Path, issuer: str, devices: list[str]) -> list[str]:
    """An access token for each device of `fill`, as the token endpoint gives it."""
    auth = Auth(Settings(signing_keys=str(signing_keys), issuer=issuer))
    scope = " ".join(WRITE)
    return [
        auth.sign(device, str(uuid.uuid4()), scope, 86400, cnf={"jkt": f"thumbprint-of-{device}"}) for device in devices
    ]


class Watched(NamedTuple):
    """What an onlooker saw of a service.

    alive: how long /livez took, in seconds, a new connection each. dead: what it was when it was not 200. peak_bytes:
    the most that one worker had in memory.
    """

    alive: list[float]
    dead: list[str]
    peak_bytes: int


@contextlib.contextmanager
def watching(url: str, pid: int) -> Iterator[list[Watched]]:
    """Look at a service from a process of its own, as a probe does; at the end the list holds what was seen."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    onlooker = context.Process(target=_watch, args=(url, pid, theirs), daemon=True)
    onlooker.start()
    ours.recv()
    seen: list[Watched] = []
    try:
        yield seen
        ours.send("end")
        if ours.poll(60):
            seen.append(ours.recv())
    finally:
        onlooker.kill()
        onlooker.join()


def _watch(url: str, pid: int, pipe: Any) -> None:
    alive: list[float] = []
    dead: list[str] = []
    peak = 0
    pipe.send("ready")
    while not pipe.poll(0.25):
        began = time.monotonic()
        try:
            with urllib.request.urlopen(url + "/livez", timeout=30) as answer:
                answer.read()
            alive.append(time.monotonic() - began)
        except urllib.error.HTTPError as error:
            dead.append(str(error.code))
        except OSError as error:
            dead.append(type(error).__name__)
        with contextlib.suppress(psutil.Error):
            for worker in psutil.Process(pid).children():
                if "gunicorn" in " ".join(worker.cmdline()):
                    peak = max(peak, worker.memory_info().rss)
    pipe.send(Watched(alive, dead, peak))
