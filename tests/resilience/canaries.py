"""Canaries: marked secrets go through every kind of fault, and are then looked for wherever they must not be."""

from __future__ import annotations

import base64
import collections
import contextlib
import dataclasses
import gzip
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import psycopg
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from psycopg import sql

from app.api.bodies import MAX_BODY
from app.db import migrations
from app.dev import embedded
from tests.resilience import Finding, Plan
from tests.support.agent import Agent
from tests.support.service import ROOT, Answer, Service, as_role

FORM = "application/x-www-form-urlencoded"
LOCKED = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
WORDS = ("prompt", "url", "username", "hostname", "password")


class Marks:
    """Secrets that nothing else looks like, by name, and how to find them in whatever form."""

    def __init__(self) -> None:
        self.words = {name: f"canary-{name}-{uuid.uuid4().hex}" for name in WORDS}
        self._forms: dict[str, set[bytes]] = collections.defaultdict(set)
        for name, word in self.words.items():
            # The random part alone: what is around it may be escaped.
            self.add(name, word.rpartition("-")[2])

    def add(self, name: str, secret: str) -> None:
        """secret: ASCII without what a URL or JSON escapes."""
        raw = secret.encode()
        self._forms[name] |= {raw, raw.hex().encode(), raw.hex().upper().encode()}
        self._forms[name] |= {b"".join(form % byte for byte in raw) for form in (b"%%%02x", b"%%%02X", b"\\u%04x")}
        for shift in range(3):
            # What base64 makes of it depends on where it stands; of its ends, also on what is around.
            coded = base64.b64encode(b"\0" * shift + raw)[4:-4]
            self._forms[name] |= {coded, coded.replace(b"+", b"-").replace(b"/", b"_")}

    def add_token(self, name: str, token: str) -> None:
        """A JWS. Its header is no secret, and others have the same."""
        for part in token.split(".")[1:]:
            self.add(name, part)

    def add_pem(self, name: str, pem: str) -> None:
        """A key. The first line of two of the same kind begins alike."""
        for line in pem.strip().splitlines()[1:-1]:
            self.add(name, line[-30:].strip("="))

    @property
    def names(self) -> list[str]:
        return sorted(self._forms)

    def found(self, text: bytes) -> set[str]:
        """The names of the marks that are in it in any form."""
        return {name for name, forms in self._forms.items() if any(form in text for form in forms)}


@dataclasses.dataclass
class Search:
    """What was looked at: faults by their answer, bytes searched by place, and the marks that were found."""

    marks: Marks
    faults: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    searched: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    leaks: set[str] = dataclasses.field(default_factory=set)

    def check(self, place: str, text: bytes, without: tuple[str, ...] = ()) -> None:
        self.searched[place] += len(text)
        self.leaks |= {f"{name} in {place}" for name in self.marks.found(text) if name not in without}

    def fault(self, kind: str, answer: Answer | None) -> None:
        """Count a fault and look at its answer; None when the connection was cut."""
        self.faults[str(answer.status) if answer else "cut"] += 1
        if answer:
            self.check(f"answer to {kind}", answer.body + str(answer.headers).encode())


class Site:
    """A service at DEBUG level, its database, and a device with marked secrets that uses it."""

    def __init__(self, service: Service, database_url: str, search: Search) -> None:
        self.service = service
        self.database_url = database_url
        self.search = search
        marks = search.marks
        self.words = marks.words
        self.device, self.other = Agent(), Agent()
        arguments = ("--label", self.words["username"], "--max-uses", "9", "--expires-in", "1d")
        self.enrollment = service.flask("enrollment", "create", *arguments)
        marks.add_token("enrolment token", self.enrollment)
        for agent in (self.device, self.other):
            marks.add_pem("public key", agent.public_key_pem)
            body = agent.registration(hostname=self.words["hostname"])
            self.taken("/api/devices/register", body, self.enrollment)
        self.token, self.others_token = self.access(self.device), self.access(self.other)

    def form(self, agent: Agent, **more: str) -> dict[str, str]:
        form = agent.token_request(self.service.url) | more
        self.search.marks.add_token("client assertion", form["client_assertion"])
        return form

    def ask_token(self, form: dict[str, str], **headers: str) -> Answer:
        headers.setdefault("Content-Type", FORM)
        return self.service.post("/api/auth/token", urllib.parse.urlencode(form).encode(), **headers)

    def access(self, agent: Agent, **more: str) -> str:
        answer = _retry_on_lock(lambda: self.ask_token(self.form(agent, **more)))
        token = str(answer.json["access_token"])
        self.search.marks.add_token("access token", token)
        return token

    def taken(self, path: str, body: Any, token: str) -> None:
        """Send what is to be stored, as a client does: again after 503. It gives up soon on its database."""
        answer = _retry_on_lock(lambda: self.service.post(path, body, token))
        assert answer.status in (200, 201), answer.body

    def bodies(self) -> dict[str, dict[str, Any]]:
        """A valid body for each route, marked wherever it may be."""
        now = int(time.time() * 1000)
        words, device = self.words, self.device.device_id
        metadata = {words["prompt"]: words["username"]}
        return {
            "/api/prompt": {
                "device_id": device,
                "instance_id": "i",
                "prompt_id": str(uuid.uuid4()),
                "timestamp": now,
                "site": words["url"],
                "url": "https://chatgpt.com/" + words["url"],
                "prompt": words["prompt"],
                "username": words["username"],
                "page_title": words["prompt"],
                "profile_name": words["username"],
                "action": "blocked",
                "metadata": metadata,
            },
            "/api/devices/register": self.device.registration(hostname=words["hostname"], os=words["hostname"]),
            "/api/devices/heartbeat": {
                "device_id": device,
                "hostname": words["hostname"],
                "macs": ["02:00:5e:10:00:01"],
                "ips": ["10.20.30.40"],
                "os": {"name": words["hostname"]},
                "browsers": [words["hostname"]],
            },
            "/api/browsers/register": {
                "instance_id": "i",
                "device_id": device,
                "browser_name": "chrome",
                "profile_name": words["username"],
                "profile_path": "C:/" + words["username"],
                "discovered_at": now,
            },
            "/api/browsers/heartbeat": {"instance_id": "i", "profile_name": words["username"]},
            "/api/extension/status": {
                "instance_id": "i",
                "status": "enabled",
                "status_id": str(uuid.uuid4()),
                "reported_at": now,
                "reported_by": "agent",
                "metadata": metadata,
            },
            "/api/compliance/event": {
                "device_id": device,
                "event_type": "prompt_blocked",
                "severity": "high",
                "instance_id": "i",
                "event_id": str(uuid.uuid4()),
                "detected_at": now,
                "user_context": words["username"],
                "details": {words["prompt"]: words["prompt"]},
            },
        }

    def post(self, kind: str, path: str, body: Any, token: str | None = None, **headers: str) -> Answer:
        """Send what is to fail."""
        if token is None:
            token = self.enrollment if path == "/api/devices/register" else self.token
        answer = self.service.post(path, body, token, **headers)
        self.search.fault(kind, answer)
        return answer

    def raw(self, kind: str, request: bytes, cut: bool = False) -> None:
        """Send bytes as they are; cut: and go away without waiting for an answer."""
        host, port = self.service.bind.split(":")
        answer = b""
        with socket.create_connection((host, int(port)), timeout=30) as connection, contextlib.suppress(OSError):
            connection.sendall(request)
            if not cut:
                connection.shutdown(socket.SHUT_WR)
                while piece := connection.recv(65536):
                    answer += piece
        self.search.faults[answer[9:12].decode() or "cut"] += 1
        self.search.check(f"answer to {kind}", answer)
        head = answer.partition(b"\r\n\r\n")[0].lower()
        if b"\x1b" in head or b"set-cookie" in head:
            self.search.leaks.add(f"what was sent in a header of the answer to {kind}")


def _retry_on_lock(send: Callable[[], Answer]) -> Answer:
    deadline = time.monotonic() + 60
    while (answer := send()).status == 503 and time.monotonic() < deadline:
        time.sleep(0.05)
    return answer


def bodies(site: Site, paths: tuple[str, ...] = ()) -> None:
    """400 on every field, JSON and gzip that are none, 413, 415, a connection that is cut; on these routes, or all."""
    marks = site.words
    wrong: tuple[Any, ...] = (
        marks["prompt"] + "\x1b[2J\r\n ",
        [marks["prompt"], {marks["username"]: 1}],
        {marks["prompt"]: [marks["url"]]},
        float("nan"),
        True,
    )
    too_much = marks["prompt"].encode() * (MAX_BODY // len(marks["prompt"]) + 1)
    for path, body in site.bodies().items():
        if paths and path not in paths:
            continue
        for field in body:
            for value in wrong:
                site.post(f"a wrong {field}", path, body | {field: value})
            site.post(f"no {field}", path, {name: value for name, value in body.items() if name != field})
        whole = json.dumps(body).encode()
        packed = gzip.compress(whole)
        for kind, data, headers in (
            ("half of a body", whole[:-5], {}),
            ("a key that stands twice", whole[:-1] + b"," + whole[1:], {}),
            ("what is not UTF-8", whole[:-1] + b"\xff", {}),
            ("nesting", b'{"%s":' % marks["prompt"].encode() * 50 + b"1" + b"}" * 50, {}),
            ("a list", b"[" + whole + b"]", {}),
            ("half of a gzip", packed[: len(packed) // 2], {"Content-Encoding": "gzip"}),
            ("a broken gzip", packed[:-8] + b"canaries", {"Content-Encoding": "gzip"}),
            ("no gzip", whole, {"Content-Encoding": "gzip"}),
            ("another encoding", whole, {"Content-Encoding": marks["prompt"]}),
            ("another type", whole, {"Content-Type": "text/" + marks["prompt"]}),
            ("too much", whole[:-1] + b',"x":"' + too_much + b'"}', {}),
        ):
            site.post(kind, path, data, **headers)
        token = site.enrollment if path == "/api/devices/register" else site.token
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\nContent-Type: application/json\r\n"
        site.raw("a cut", f"{head}Content-Length: {len(whole) + 50}\r\n\r\n".encode() + whole)
        site.raw("a cut", f"{head}Content-Length: {len(whole) + 50}\r\n\r\n".encode() + whole, cut=True)
        site.raw("a wrong chunk", f"{head}Transfer-Encoding: chunked\r\n\r\n{marks['prompt']}\r\n".encode() + whole)
    items = [{"type": path, "body": body} for path, body in site.bodies().items()]
    items += [{"type": marks["prompt"], "body": marks["prompt"]}, marks["prompt"]]  # type: ignore[list-item]
    kinds = {"prompt": "/api/prompt", "device_heartbeat": "/api/devices/heartbeat"}
    items += [
        {"type": kind, "body": site.bodies()[path] | {field: [marks["prompt"]]}}
        for kind, path in kinds.items()
        for field in site.bodies()[path]
        # A warning names an address that can't be read.
        if field not in ("macs", "ips")
    ]
    site.post("a batch with bad items", "/api/batch", {"items": items})


def callers(site: Site) -> None:
    """401, 403, 404, 405, 409, what is no HTTP, and keys that are none."""
    marks, prompt = site.words, site.bodies()["/api/prompt"]
    private = site.device.key.get_op_key("sign")
    for form in (PrivateFormat.PKCS8, PrivateFormat.TraditionalOpenSSL):
        pem = private.private_bytes(Encoding.PEM, form, NoEncryption()).decode()
        site.search.marks.add_pem("private key", pem)
        for sent in (pem, pem.replace("PRIVATE", "PUBLIC"), pem[:-40], [pem], site.device.public_key_pem + pem):
            body = site.bodies()["/api/devices/register"] | {"public_key_pem": sent}
            site.post("a private key", "/api/devices/register", body)
            site.post("a private key elsewhere", "/api/prompt", prompt | {"timestamp": pem})
    for token in (
        site.token[:-9] + "canaries_",
        site.token.rpartition(".")[0],
        site.token[1:],
        marks["prompt"],
        site.form(site.device)["client_assertion"],
        site.enrollment,
        private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).hex(),
    ):
        site.post("a wrong token", "/api/prompt", prompt, token)
    site.post("another scheme", "/api/prompt", prompt, "", Authorization=f"Basic {site.token}")
    for changes in (
        {"grant_type": marks["prompt"]},
        {"scope": marks["prompt"]},
        {"client_id": marks["username"]},
        {"client_assertion_type": marks["prompt"]},
        {"client_assertion": site.token},
        {"client_assertion": marks["prompt"]},
        {"client_assertion": site.form(site.device)["client_assertion"][:-9] + "canaries_"},
    ):
        site.search.fault("a token request", site.ask_token(site.form(site.device) | changes))
    for agent in (Agent(site.device.device_id), Agent(marks["username"])):
        site.search.fault("a stranger's assertion", site.ask_token(site.form(agent)))
    claims: tuple[dict[str, Any], ...] = ({"aud": marks["url"]}, {"exp": 1}, {"jti": [marks["prompt"]]}, {"iss": "x"})
    for wrong in claims:
        form = site.device.token_request(site.service.url, **wrong)
        site.search.marks.add_token("client assertion", form["client_assertion"])
        site.search.fault("a wrong claim", site.ask_token(form))
    used = site.form(site.device)
    site.ask_token(used)
    site.search.fault("a used assertion", site.ask_token(used))
    site.search.fault("another type of form", site.ask_token(used, **{"Content-Type": "text/plain"}))
    reads = site.access(site.device, scope="devices:write")
    site.post("a scope that lacks", "/api/prompt", prompt, reads)
    site.post("another's name", "/api/prompt", prompt, site.others_token)
    site.taken("/api/prompt", prompt, site.token)
    site.post("other content", "/api/prompt", prompt | {"prompt": marks["prompt"] + " again"})
    site.taken("/api/browsers/heartbeat", {"instance_id": "i"}, site.token)
    instance = {"instance_id": "i", "profile_name": marks["username"]}
    site.post("another's instance", "/api/browsers/heartbeat", instance, site.others_token)
    stranger = Agent(site.device.device_id).registration(hostname=marks["hostname"])
    site.post("another's id", "/api/devices/register", stranger)
    taken = {**site.device.registration(hostname=marks["hostname"]), "device_id": "somebody-else"}
    site.post("another's key", "/api/devices/register", taken)
    site.service.flask("device", "revoke", site.other.device_id)
    site.post("a revoked device", "/api/browsers/heartbeat", instance, site.others_token)
    site.search.fault("a revoked device's assertion", site.ask_token(site.form(site.other)))
    word = marks["prompt"]
    names = ("X-Request-ID", "X-Forwarded-For", "Host", "User-Agent", "Cookie", "Referer", "Origin", "Accept", "Expect")
    head = f"POST /api/prompt?{word}=%0d%0a{word} HTTP/1.1\r\n"
    for name in names:
        host = "" if name == "Host" else "Host: x\r\n"
        site.raw(f"a {name}", f"{head}{host}{name}: {word}\x1b[2J\r\nConnection: close\r\n\r\n".encode())
    for line in (
        f"POST /{word} HTTP/1.1",
        f"POST /%0d%0aSet-Cookie:%20{word} HTTP/1.1",
        f"GET /docs/static/..%2f{word} HTTP/1.1",
        f"{word.replace('-', '').upper()} /api/prompt HTTP/1.1",
        f"GET http://{word}/ HTTP/1.1",
        f"GET / HTTP/9.{word}",
        f"GET /{word * 200} HTTP/1.1",
        word,
    ):
        site.raw("a request line", f"{line}\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    for header in (f"{word} x", f"{word}: {word * 900}", f"Content-Length: {word}", f"Transfer-Encoding: {word}"):
        site.raw("a header", f"POST /api/prompt HTTP/1.1\r\nHost: x\r\n{header}\r\n\r\n{word}".encode())


def database(site: Site, signals: tuple[int, ...] = (signal.SIGKILL, signal.SIGABRT)) -> None:
    """500 by a constraint, 503 by locks and a read-only database, backends that are killed, workers that die."""
    prompt, heartbeat = site.bodies()["/api/prompt"], site.bodies()["/api/devices/heartbeat"]
    fresh: Callable[[], dict[str, Any]] = lambda: prompt | {"prompt_id": str(uuid.uuid4())}  # noqa: E731
    with psycopg.connect(site.database_url, autocommit=True) as admin, ThreadPoolExecutor(4) as threads:
        name = sql.Identifier(admin.info.dbname)

        def send() -> None:
            for path, body in (("/api/prompt", fresh()), ("/api/devices/heartbeat", heartbeat)):
                site.post("a failing database", path, body)
            items = [{"type": "prompt", "body": fresh()}, {"type": "device_heartbeat", "body": heartbeat}]
            site.post("a failing database", "/api/batch", {"items": items})

        def send_while_locked(then: Callable[[], object]) -> None:
            with psycopg.connect(site.database_url) as holder:
                holder.execute("LOCK TABLE prompts, devices IN ACCESS EXCLUSIVE MODE")
                sent = [threads.submit(send) for _ in range(2)]
                deadline = time.monotonic() + 60
                while admin.execute(LOCKED).fetchone() == (0,) and time.monotonic() < deadline:
                    time.sleep(0.01)
                shown = admin.execute("SELECT string_agg(query, ' ') FROM pg_stat_activity").fetchone()
                site.search.check("pg_stat_activity", str(shown).encode())
                processes(site)
                then()
                for one in sent:
                    if (error := one.exception()) is not None:
                        assert isinstance(error, OSError), error
                        site.search.faults["cut"] += 1

        for table, column in (("prompts", "prompt"), ("devices", "hostname")):
            check = sql.SQL("ALTER TABLE {} ADD CONSTRAINT broken CHECK ({} NOT LIKE '%canary%') NOT VALID")
            admin.execute(check.format(sql.Identifier(table), sql.Identifier(column)))
        send()
        admin.execute("ALTER TABLE prompts DROP CONSTRAINT broken; ALTER TABLE devices DROP CONSTRAINT broken")
        ended = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'watchpost'"
        ended += " AND datname = current_database()"
        send_while_locked(lambda: None)
        send_while_locked(lambda: admin.execute(ended))
        admin.execute(sql.SQL("ALTER DATABASE {} SET default_transaction_read_only = on").format(name))
        admin.execute(ended)
        send()
        admin.execute("SET default_transaction_read_only = off")
        admin.execute(sql.SQL("ALTER DATABASE {} RESET default_transaction_read_only").format(name))
        admin.execute(ended)
        for number in signals:
            send_while_locked(lambda number=number: _end_workers(site, number))  # type: ignore[misc]
            site.service.wait_until_ready()


def _end_workers(site: Site, number: int) -> None:
    for process in site.service.workers():
        process.send_signal(number)


def operators(site: Site, folder: Path) -> None:
    """A migration that fails on a row, and commands that fail."""
    copy = folder / "migrations"
    shutil.copytree(migrations.FOLDER, copy)
    last = "9999.break-prompts"
    (copy / f"{last}.rollback.sql").write_text("SELECT 1;\n")
    script = "import pathlib, sys; from app.db import migrations; migrations.FOLDER = pathlib.Path(sys.argv.pop(1))"
    script += "; from flask.cli import main; main()"
    for statement in (
        "ALTER TABLE prompts ADD CONSTRAINT broken CHECK (prompt NOT LIKE '%canary%');",
        "CREATE TABLE copies AS SELECT username FROM prompts UNION ALL SELECT username FROM prompts;"
        "CREATE UNIQUE INDEX ON copies (username);",
        "INSERT INTO devices SELECT * FROM devices;",
    ):
        (copy / f"{last}.sql").write_text(statement + "\n")
        _command(site, [sys.executable, "-c", script, str(copy), "--app", "wsgi", "migrate"])
    flask = [str(Path(sys.executable).parent / "flask"), "--app", "wsgi"]
    for arguments in (
        ["device", "show", site.words["hostname"]],
        ["device", "erase", site.words["hostname"], "--reason", site.words["prompt"]],
        ["hold", "release", str(uuid.uuid4())],
        ["token", "create", "--subject", site.words["username"], "--scope", "prompts:write", "--expires-in", "1h"],
        ["keys", "remove", site.words["hostname"]],
    ):
        _command(site, [*flask, *arguments])
    nowhere = f"postgresql://watchpost_owner:{site.words['password']}@127.0.0.1:1/x"
    for url in (nowhere, nowhere.replace("@", "%zz@"), nowhere.replace(":1/", ":port/")):
        away = {"WATCHPOST_DATABASE_URL": url, "WATCHPOST_OWNER_DATABASE_URL": url, "WATCHPOST_POOL_WAIT_SECONDS": "1"}
        _command(site, [*flask, "user", "erase", "--reason", "r", site.words["username"]], **away)
        _command(site, [*flask, "migrate"], **away)
        _command(site, [sys.executable, "-m", "app.dev.serve"], **away)


def _command(site: Site, command: list[str], **environment: str) -> None:
    """Run what must fail, and look at what it prints."""
    environment = site.service.environment | environment
    done = subprocess.run(
        command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, capture_output=True, check=False
    )
    assert done.returncode != 0, command
    site.search.faults["command"] += 1
    site.search.check("a command's output", done.stdout + done.stderr)


def processes(site: Site) -> None:
    """Look at what the service's processes show of themselves."""
    root = psutil.Process(site.service.process.pid)
    for process in (root, *root.children(recursive=True)):
        with contextlib.suppress(OSError, psutil.Error):
            site.search.check("process list", Path(f"/proc/{process.pid}/cmdline").read_bytes())
            # Its database's password is a setting, and readable to itself and root alone.
            environ = Path(f"/proc/{process.pid}/environ").read_bytes()
            site.search.check("environ", environ, without=("password",))


def everywhere(site: Site, server_log: Path, temporary: Path) -> None:
    """Look at the logs, the metrics, the processes and what is left in the temporary folder."""
    token = site.service.flask("token", "create", "--subject", "x", "--scope", "metrics:read", "--expires-in", "1h")
    site.search.check("metrics", site.service.get_with("/metrics", token).body)
    processes(site)
    log = site.service.log.read_bytes()
    site.search.check("the service's log", log)
    if any(byte < 32 or byte > 126 for byte in log.replace(b"\n", b"")):
        site.search.leaks.add("control characters in the service's log")
    site.search.check("PostgreSQL's log", server_log.read_bytes())
    for path in temporary.rglob("*"):
        if path.is_file():
            site.search.check("temporary files", path.read_bytes())


def controls(search: Search) -> dict[str, bool]:
    """Whether a mark is found, in each form in which it might stand in a log."""
    secret = f'{search.marks.words["prompt"]} "é\n'
    forms = {
        "plain": secret,
        "JSON": json.dumps({"message": secret}),
        "JSON in JSON": json.dumps(json.dumps(secret)),
        "URL-encoded": urllib.parse.quote(secret),
        "base64": base64.b64encode(secret.encode()).decode(),
        "base64 behind one byte": base64.b64encode(b"x" + secret.encode()).decode(),
        "base64 behind two bytes": base64.urlsafe_b64encode(b"xx" + secret.encode()).decode(),
        "hexadecimal": secret.encode().hex(),
        "escaped": "".join(f"\\u{ord(character):04x}" for character in secret),
        "repr": repr(secret.encode()),
    }
    return {
        name: search.marks.found(b"2026 request " + text.encode() + b" end") == {"prompt"}
        for name, text in forms.items()
    }


@contextlib.contextmanager
def temporary_folder(folder: Path) -> Iterator[Path]:
    """Have what is started from here on put its temporary files into a folder of its own."""
    before = os.environ.get("TMPDIR")
    temporary = folder / "temporary"
    temporary.mkdir()
    os.environ["TMPDIR"] = str(temporary)
    try:
        yield temporary
    finally:
        if before is None:
            del os.environ["TMPDIR"]
        else:
            os.environ["TMPDIR"] = before


@contextlib.contextmanager
def site(folder: Path, database_url: str, search: Search, **settings: Any) -> Iterator[Site]:
    """A service at DEBUG level that gives up soon on its database."""
    marked = as_role(database_url, "writer").replace("@", f":{search.marks.words['password']}@")
    given = {
        "database_url": marked,
        "owner_database_url": as_role(database_url, "owner"),
        "log_level": "DEBUG",
        "statement_timeout_ms": 500,
        "pool_wait_seconds": 1,
    }
    service = Service(folder, **(given | settings))
    try:
        service.wait_until_ready()
        yield Site(service, database_url, search)
        service.end()
    finally:
        service.kill_everything()


def run(plan: Plan) -> Iterator[Finding]:
    search = Search(Marks())
    server = plan.folder / "server"
    with contextlib.ExitStack() as stack:
        temporary = stack.enter_context(temporary_folder(plan.folder))
        running = contextlib.ExitStack()
        url = running.enter_context(embedded.running(str(server)))
        stack.callback(running.close)
        migrations.apply(url)
        here = stack.enter_context(site(plan.folder, url, search))
        for _ in range(max(1, plan.rounds // 10)):
            bodies(here)
        callers(here)
        database(here)
        operators(here, plan.folder)
        _too_many(here, plan.folder)
        _full_and_silent(here, server)
        server_log = server / "postgresql" / "server.log"
        everywhere(here, server_log, temporary)
        running.close()
        for path, body in here.bodies().items():
            here.post("a database that is away", path, body)
        search.check("the service's log", here.service.log.read_bytes())
    statuses = ", ".join(f"{amount} x {status}" for status, amount in sorted(search.faults.items()))
    places = collections.Counter[str]()
    for place, size in search.searched.items():
        places[place.split(" to ")[0]] += size
    yield Finding(
        f"{len(search.marks.names)} marked secrets through every kind of fault: {', '.join(search.marks.names)}",
        f"{search.faults.total():,} faults ({statuses})",
        f"found {len(search.leaks)} in "
        + ", ".join(f"{size:,} bytes of {place}" for place, size in places.items())
        + "".join(f"; {leak}" for leak in sorted(search.leaks)),
        not search.leaks,
    )
    found = controls(search)
    yield Finding(
        "control: the search finds a mark in a log line",
        ", ".join(found),
        f"found in {sum(found.values())} of {len(found)} forms",
        all(found.values()),
    )


def _too_many(here: Site, folder: Path) -> None:
    """429, and 503 by a worker that is full."""
    limits = {"device_rate": 1, "burst_seconds": 1, "connections": 2, "workers": 1}
    with site(folder, here.database_url, here.search, **limits) as limited:
        for path, body in limited.bodies().items():
            for _ in range(5):
                limited.post("too many", path, body)
        with ThreadPoolExecutor(30) as threads:
            list(
                threads.map(
                    lambda _: limited.post("too much", "/api/prompt", limited.bodies()["/api/prompt"]), range(90)
                )
            )
        here.search.check("the service's log", limited.service.log.read_bytes())


def _full_and_silent(here: Site, server: Path) -> None:
    """A server without a free connection, and one that is stopped."""
    ended = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'watchpost_writer'"
    with psycopg.connect(here.database_url, autocommit=True) as admin:
        admin.execute("ALTER ROLE watchpost_writer CONNECTION LIMIT 0")
        admin.execute(ended)
        for path, body in here.bodies().items():
            here.post("a database that is full", path, body)
        admin.execute("ALTER ROLE watchpost_writer CONNECTION LIMIT -1")
    here.service.wait_until_ready()
    postmaster = psutil.Process(int((server / "postgresql" / "postmaster.pid").read_text().split("\n", 1)[0]))
    stopped = [postmaster, *postmaster.children()]
    try:
        for process in stopped:
            process.suspend()
        for path in ("/api/prompt", "/api/compliance/event", "/api/devices/heartbeat"):
            here.post("a database that keeps silent", path, here.bodies()[path])
    finally:
        for process in stopped:
            process.resume()
    here.service.wait_until_ready()
