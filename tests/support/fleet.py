"""A fleet of devices that report all the time, repeat what was not acknowledged and remember what was.

Each device has a key and a token of its own. Devices report every kind of row, with ids of their own and without, one
by one and in batches; what one sends is never sent again by another. Afterwards the rows are compared with the ledger.
"""

from __future__ import annotations

import collections
import contextlib
import itertools
import json
import random
import socket
import threading
import time
import urllib.parse
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import psycopg

from tests.support.agent import Agent
from tests.support.service import Service, enrolled

# Which columns are the content of a row, and the field that is its id.
CONTENT = {
    "prompt": (
        "prompts",
        "prompt_id",
        ("device_id", "instance_id", "site", "url", "prompt", "timestamp", "username", "page_title", "metadata"),
    ),
    "compliance_event": (
        "compliance_events",
        "event_id",
        ("device_id", "instance_id", "event_type", "severity", "detected_at", "user_context", "details"),
    ),
    "extension_status": (
        "extension_status",
        "status_id",
        ("device_id", "instance_id", "status", "reported_at", "reported_by", "metadata"),
    ),
}
PATHS = {
    "prompt": "/api/prompt",
    "compliance_event": "/api/compliance/event",
    "extension_status": "/api/extension/status",
    "device_heartbeat": "/api/devices/heartbeat",
    "browser_register": "/api/browsers/register",
    "browser_heartbeat": "/api/browsers/heartbeat",
    "batch": "/api/batch",
}
Body = dict[str, Any]
Item = tuple[str, Body]


class Cut(OSError):
    """The other end closed the connection before an answer was complete."""


class Line:
    """A connection that is kept alive: plain bytes, so that the sender costs less than the service.

    address: where to connect. timeout: seconds that one answer may keep silent.
    """

    def __init__(self, address: tuple[str, int], timeout: float) -> None:
        self._address = address
        self._timeout = timeout
        self._socket: socket.socket | None = None

    def exchange(self, request: bytes) -> tuple[int, dict[str, str], bytes]:
        """Send one request and return status, headers and body of its answer. Raises OSError."""
        try:
            if self._socket is None:
                self._socket = socket.create_connection(self._address, self._timeout)
                self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._socket.sendall(request)
            return self._answer(self._socket)
        except OSError:
            self.close()
            raise

    def _answer(self, connection: socket.socket) -> tuple[int, dict[str, str], bytes]:
        data = b""
        while b"\r\n\r\n" not in data:
            piece = connection.recv(65536)
            if not piece:
                raise Cut(f"{len(data)} bytes of an answer")
            data += piece
        head, _, body = data.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        length = int(headers["content-length"])
        while len(body) < length:
            piece = connection.recv(65536)
            if not piece:
                raise Cut("half an answer")
            body += piece
        if headers.get("connection", "").lower() == "close":
            self.close()
        return int(first.split(" ", 2)[1]), headers, body

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


@dataclass
class Verdict:
    """What a comparison of the rows with the ledger found.

    acknowledged: rows that were answered with 2xx. lost: of those, not there. doubled: rows more than one for a report.
    changed: with other content than was sent. foreign: sent by nobody. unanswered: reports never acknowledged.
    moved_back: devices and browsers whose last sign of life is older than one that was acknowledged.
    """

    acknowledged: int = 0
    lost: int = 0
    doubled: int = 0
    changed: int = 0
    foreign: int = 0
    unanswered: int = 0
    moved_back: int = 0

    @property
    def is_exact(self) -> bool:
        return self.acknowledged > 0 and not (
            self.lost or self.doubled or self.changed or self.foreign or self.unanswered or self.moved_back
        )

    def __str__(self) -> str:
        found = f"lost {self.lost}, doubled {self.doubled}"
        others = {
            name: getattr(self, name)
            for name in ("changed", "foreign", "unanswered", "moved_back")
            if getattr(self, name)
        }
        return ", ".join([found, *(f"{name.replace('_', ' ')} {count}" for name, count in others.items())])


@dataclass
class Tally:
    """What came back: statuses, broken connections by kind, the longest wait, and what must not come back."""

    answers: collections.Counter[int] = field(default_factory=collections.Counter)
    broken: collections.Counter[str] = field(default_factory=collections.Counter)
    longest: float = 0.0
    wrong: list[str] = field(default_factory=list)


class Fleet:
    """Devices of one service.

    size: devices. lines: connections of each, which report at the same time. address: where they connect, the service
    itself unless a proxy is in between. timeout: seconds that they wait for an answer. pause: seconds before a request
    is repeated. rate: requests a second of each line, as many as possible if 0. batch: items of a batch.
    keep_alive: whether a connection serves more than one request.
    """

    def __init__(
        self,
        service: Service,
        size: int = 20,
        lines: int = 1,
        *,
        address: tuple[str, int] | None = None,
        timeout: float = 60,
        pause: float = 0.05,
        rate: float = 0,
        batch: int = 20,
        keep_alive: bool = True,
    ) -> None:
        host, port = service.bind.rsplit(":", 1)
        self.direct = (host, int(port))
        self.address = address or self.direct
        self.issuer = service.url
        self.timeout, self.pause, self.rate, self.batch, self.keep_alive = timeout, pause, rate, batch, keep_alive
        self.acknowledged: dict[tuple[str, str], int] = {}
        self.sent: set[int] = set()
        self.signs: dict[tuple[str, str], datetime] = {}
        self.tally = Tally()
        self.unanswered = 0
        # Acknowledged rows by kind.
        self.stored: collections.Counter[str] = collections.Counter()
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._given_up = threading.Event()
        self._errors: list[BaseException] = []
        enrollment = enrolled(service, size)
        self._members = []
        for _ in range(size):
            agent = Agent()
            answer = service.post("/api/devices/register", agent.registration(), enrollment)
            assert answer.status == 201, answer.body
            device = _Device(self, agent)
            self._members += [_Member(self, device, number) for number in range(lines)]

    @contextlib.contextmanager
    def reporting(self, timeout: float = 60) -> Iterator[Fleet]:
        """All report; at the end each goes on until its last report is acknowledged, or so many seconds are over."""
        self._over.clear()
        self._given_up.clear()
        threads = [threading.Thread(target=self._run, args=[member], daemon=True) for member in self._members]
        for thread in threads:
            thread.start()
        try:
            yield self
        finally:
            self._over.set()
            deadline = time.monotonic() + timeout
            for thread in threads:
                thread.join(max(0.0, deadline - time.monotonic()))
            self._given_up.set()
            for thread in threads:
                thread.join(self.timeout + 10)
        if self._errors:
            raise self._errors[0]

    def until(self, amount: int, kind: str | None = None, seconds: float = 120) -> None:
        """Return when so many more rows, of any kind or of one, are acknowledged."""
        wanted = self._stored(kind) + amount
        deadline = time.monotonic() + seconds
        while (left := wanted - self._stored(kind)) > 0:
            assert time.monotonic() < deadline, (
                f"{left} of {amount} rows are missing after {seconds:.0f} s: {self.tally}"
            )
            assert not self._errors, self._errors
            time.sleep(0.005)

    def _stored(self, kind: str | None) -> int:
        with self._lock:
            return self.stored.total() if kind is None else self.stored[kind]

    def fresh_tally(self) -> Tally:
        """Begin to count anew; return what was counted until now."""
        with self._lock:
            tally, self.tally = self.tally, Tally()
            return tally

    def compare(self, database_url: str, *others: Fleet) -> Verdict:
        """Compare all rows of the fleet's devices with its ledger, and with those of other fleets.

        database_url: of the superuser.
        """
        fleets = (self, *others)
        missing = {key: digest for fleet in fleets for key, digest in fleet.acknowledged.items()}
        signs = {key: sign for fleet in fleets for key, sign in fleet.signs.items()}
        devices = [member.device.agent.device_id for fleet in fleets for member in fleet._members]
        sent = set().union(*(fleet.sent for fleet in fleets))
        verdict = Verdict(acknowledged=len(missing), unanswered=sum(fleet.unanswered for fleet in fleets))
        with psycopg.connect(database_url) as connection:
            for kind, (table, id_field, columns) in CONTENT.items():
                names = ", ".join(f'"{name}"' for name in (id_field, *columns))
                seen: set[int] = set()
                with connection.cursor(f"all_{table}") as cursor:
                    cursor.itersize = 5000
                    query = f"SELECT {names} FROM {table} WHERE device_id = ANY(%s)"
                    for id_, *values in cursor.execute(query, [devices]):  # type: ignore[call-overload]
                        digest = _digest(kind, values)
                        verdict.doubled += digest in seen
                        seen.add(digest)
                        known = missing.pop((kind, str(id_)), None)
                        verdict.changed += known is not None and known != digest
                        verdict.foreign += digest not in sent
            verdict.lost = len(missing)
            stored: dict[tuple[str, str], datetime] = {}
            for kind, table, key, sign in (
                ("device_heartbeat", "devices", "device_id", "last_heartbeat"),
                ("browser_heartbeat", "browser_instances", "instance_id", "last_seen"),
            ):
                for id_, seen_at in connection.execute(f"SELECT {key}, {sign} FROM {table} WHERE {sign} IS NOT NULL"):  # type: ignore[call-overload]
                    stored[kind, id_] = seen_at
        verdict.moved_back = sum(key not in stored or stored[key] < sign for key, sign in signs.items())
        return verdict

    def _run(self, member: _Member) -> None:
        try:
            while not self._over.is_set():
                began = time.monotonic()
                if not self._deliver(member, member.next()):
                    return
                if self.rate:
                    self._over.wait(max(0.0, 1 / self.rate - (time.monotonic() - began)))
        except BaseException as error:
            self._errors.append(error)
        finally:
            member.line.close()

    def _deliver(self, member: _Member, items: list[Item]) -> bool:
        """Send until it is acknowledged; False when the fleet was told to give up."""
        is_batch = len(items) > 1
        if is_batch:
            path, body = PATHS["batch"], {"items": [{"type": kind, "body": body} for kind, body in items]}
        else:
            path, body = PATHS[items[0][0]], items[0][1]
        for kind, given in items:
            if kind in CONTENT:
                self.sent.add(_digest(kind, [given.get(name) for name in CONTENT[kind][2]]))
        text = json.dumps(body).encode()
        while not self._given_up.is_set():
            head = (
                f"POST {path} HTTP/1.1\r\nHost: watchpost\r\nContent-Type: application/json\r\n"
                f"Authorization: Bearer {member.device.token()}\r\nContent-Length: {len(text)}\r\n\r\n"
            )
            began = time.monotonic()
            try:
                status, headers, answer = member.line.exchange(head.encode() + text)
            except OSError as error:
                self._count(began, broken=type(error).__name__)
            else:
                if not self.keep_alive:
                    member.line.close()
                self._count(began, status)
                if status in (200, 201):
                    self._acknowledge(items, json.loads(answer), is_batch)
                    return True
                if status not in (429, 503) or not headers.get("retry-after", "").isdigit():
                    self.tally.wrong.append(f"{status} {answer[:300]!r}")
                    if status != 401:
                        return True
            time.sleep(self.pause)
        with self._lock:
            self.unanswered += len(items)
        return False

    def _count(self, began: float, status: int | None = None, broken: str = "") -> None:
        with self._lock:
            self.tally.longest = max(self.tally.longest, time.monotonic() - began)
            if status is None:
                self.tally.broken[broken] += 1
            else:
                self.tally.answers[status] += 1

    def _acknowledge(self, items: list[Item], answer: Any, is_batch: bool) -> None:
        with self._lock:
            for (kind, body), result in zip(items, answer["results"] if is_batch else [answer], strict=True):
                if is_batch and result["status"] not in (200, 201):
                    self.tally.wrong.append(f"{kind} in a batch: {result}")
                    continue
                self.stored[kind] += 1
                if kind in CONTENT:
                    _, id_field, columns = CONTENT[kind]
                    id_ = result["id" if is_batch else id_field]
                    self.acknowledged[kind, id_] = _digest(kind, [body.get(name) for name in columns])
                elif kind != "browser_register" and not is_batch:
                    sign = result["last_heartbeat" if kind == "device_heartbeat" else "last_seen"]
                    key = (kind, result["device_id" if kind == "device_heartbeat" else "instance_id"])
                    self.signs[key] = max(
                        datetime.fromisoformat(sign), self.signs.get(key, datetime.fromisoformat(sign))
                    )


class _Device:
    """An agent and its access token, which it asks for anew before it expires."""

    def __init__(self, fleet: Fleet, agent: Agent) -> None:
        self.fleet = fleet
        self.agent = agent
        self._token = ""
        self._renew_at = 0.0
        self._lock = threading.Lock()

    def token(self) -> str:
        if time.monotonic() > self._renew_at:
            with self._lock:
                while time.monotonic() > self._renew_at and not self.fleet._given_up.is_set():
                    self._ask()
        return self._token

    def _ask(self) -> None:
        form = urllib.parse.urlencode(self.agent.token_request(self.fleet.issuer)).encode()
        head = (
            "POST /api/auth/token HTTP/1.1\r\nHost: watchpost\r\nContent-Type: application/x-www-form-urlencoded\r\n"
            f"Connection: close\r\nContent-Length: {len(form)}\r\n\r\n"
        )
        line = Line(self.fleet.address, self.fleet.timeout)
        with contextlib.suppress(OSError):
            status, _, answer = line.exchange(head.encode() + form)
            if status == 200:
                token = json.loads(answer)
                self._token, self._renew_at = token["access_token"], time.monotonic() + token["expires_in"] / 2
                return
        line.close()
        time.sleep(self.fleet.pause)


class _Member:
    """One line of a device, and what goes over it."""

    def __init__(self, fleet: Fleet, device: _Device, number: int) -> None:
        self.fleet = fleet
        self.device = device
        self.line = Line(fleet.address, fleet.timeout)
        self.instance_id = f"{device.agent.device_id}/{number}"
        self._numbers = itertools.count()
        self._random = random.Random(self.instance_id)

    def next(self) -> list[Item]:
        turn = next(self._numbers)
        if turn % 12 == 11:
            return [self._item(number) for number in range(self.fleet.batch)]
        return [self._item(turn)]

    def _item(self, turn: int) -> Item:
        """One report; every other one has an id of its own."""
        device_id, instance_id = self.device.agent.device_id, self.instance_id
        serial = uuid.uuid4()
        now = int(time.time() * 1000)
        given = str(uuid.uuid4()) if turn % 2 else None
        match turn % 10:
            case 0 | 1 | 2 | 3 | 4:
                return "prompt", {
                    "device_id": device_id,
                    "instance_id": instance_id,
                    "site": self._random.choice(["chatgpt.com", "claude.ai", "gemini.google.com"]),
                    "url": f"https://chatgpt.com/c/{serial}",
                    "prompt": f"{serial} \u00fcber \U0001f600 " + "lorem ipsum " * self._random.randrange(40),
                    "timestamp": now,
                    "prompt_id": given,
                    "username": "anna",
                    "page_title": "ChatGPT \u2014 \u65b0",
                    "metadata": {"turn": turn, "nested": {"list": [1, None, "x"]}},
                }
            case 5 | 6:
                return "compliance_event", {
                    "device_id": device_id,
                    "instance_id": instance_id,
                    "event_type": "tamper_detected",
                    "severity": self._random.choice(["low", "medium", "high", "critical"]),
                    "detected_at": now,
                    "event_id": given,
                    "user_context": "anna",
                    "details": {"serial": str(serial)},
                }
            case 7:
                return "extension_status", {
                    "instance_id": instance_id,
                    "device_id": device_id,
                    "status": self._random.choice(["enabled", "disabled"]),
                    "reported_at": now,
                    # RFC 9562, section 5.7: the id's first 48 bits are its time.
                    "status_id": str(uuid.UUID(int=now << 80 | 7 << 76 | 2 << 62 | self._random.getrandbits(62))),
                    "reported_by": "agent",
                    "metadata": {"serial": str(serial)},
                }
            case 8:
                return "device_heartbeat", {"device_id": device_id, "hostname": f"host-{turn}"}
            case _:
                body = {"instance_id": instance_id, "device_id": device_id, "browser_name": "firefox"}
                return ("browser_heartbeat" if turn % 4 == 1 else "browser_register"), body


def _digest(kind: str, values: list[Any]) -> int:
    """What stands in the ledger for a content, the same for what was sent and for what is stored."""
    return hash((kind, json.dumps(values, sort_keys=True, ensure_ascii=False)))
