"""The demonstration: one laptop's life against a real service, from enrolment to revocation, with each answer checked.

It plays against the service that the settings name, or, when none answers there, against one that it starts itself.
"""

from __future__ import annotations

import gzip
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import psycopg
from psycopg.rows import dict_row

from app.db.urls import owner_url
from config.settings import SettingError, Settings, load
from tests.support.agent import Agent

SECRETS = {"public_key_pem", "client_assertion", "access_token"}
# Each table, and the order in which its rows are shown.
TABLES = {
    "devices": "registered_at",
    "browser_instances": "created_at",
    "prompts": '"timestamp"',
    "extension_status": "reported_at",
    "compliance_events": "detected_at",
}
WIDTH = 112
NO_BREAK = "\N{NO-BREAK SPACE}"
START_SECONDS = 120
BIN = Path(sys.executable).parent


class Off(Exception):
    """Something is not as expected. The message says in which step, and what."""


def main() -> None:
    for number in (signal.SIGTERM, signal.SIGHUP):
        # As Ctrl-C does, these end what was started too.
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    try:
        with service() as (settings, environment):
            play(Laptop(settings, environment))
    except (Off, SettingError) as off:
        sys.exit(f"\nOFF: {off}")
    except KeyboardInterrupt:
        sys.exit(130)
    print("\nEverything was as expected.")


def play(laptop: Laptop) -> None:
    agent = laptop.agent
    device = {"device_id": agent.device_id}
    instance = {"instance_id": f"{agent.device_id}-chrome-1"}
    now = int(time.time() * 1000)

    enrolment = laptop.command(
        "An operator mints an enrolment; the agent's installer ships it",
        ["enrollment", "create", "--label", "demonstration", "--max-uses", "1", "--expires-in", "1h"],
    )

    registration = agent.registration(
        macs=["a4:83:e7:11:22:33"],
        ips=["10.1.2.3", "fe80::1"],
        os={"name": "macOS", "version": "26.1"},
        browsers=["chrome", {"name": "firefox", "version": "146"}],
    )
    laptop.post("The agent registers its public key", "/api/devices/register", registration, enrolment, expect=201)

    token = laptop.get_token("It gets an access token for an assertion that its private key signed")

    answer = laptop.post("The agent sends a heartbeat", "/api/devices/heartbeat", device, token, expect=200)
    laptop.check(answer["heartbeat_interval_s"] > 0, "the interval until the next heartbeat is not positive")

    browser = {
        **device,
        **instance,
        "browser_name": "chrome",
        "browser_version": "143.0",
        "profile_name": "Work",
        "extension_version": "2.4.0",
        "discovered_at": now,
    }
    laptop.post("The agent found a browser with the extension", "/api/browsers/register", browser, token, expect=201)

    extension_token = laptop.get_token(
        "The agent gets a token with fewer scopes and hands it to the extension",
        scope="browsers:write extension:write prompts:write compliance:write",
    )

    laptop.post("The extension sends a heartbeat", "/api/browsers/heartbeat", instance, extension_token, expect=200)

    status = {**instance, "status": "enabled", "reported_at": now, "reported_by": "extension"}
    laptop.post("The extension says that it is on", "/api/extension/status", status, extension_token, expect=201)

    prompt = {
        **device,
        **instance,
        "prompt_id": str(uuid.uuid4()),
        "timestamp": now,
        "site": "chatgpt.com",
        "url": "https://chatgpt.com/c/1",
        "prompt": "Summarise the attached minutes.",
        "model": "gpt-5",
        "action": "allowed",
        "metadata": {"attachments": 1},
    }
    laptop.post("The extension reports a prompt", "/api/prompt", prompt, extension_token, expect=201)

    event = {
        **device,
        **instance,
        "event_type": "tamper_detected",
        "severity": "high",
        "detected_at": now,
        "user_context": "anna",
        "details": {"file": "manifest.json"},
    }
    laptop.post("The agent reports a compliance event", "/api/compliance/event", event, token, expect=201)

    spooled = [
        {"type": "device_heartbeat", "body": {**device, "ips": ["10.1.2.9"]}},
        {"type": "prompt", "body": {**prompt, "prompt_id": str(uuid.uuid4()), "timestamp": now + 1}},
        {"type": "prompt", "body": {**device, **instance, "prompt": "It lacks its site, its url and its time."}},
        {"type": "extension_status", "body": {**instance, "status": "disabled", "reported_at": now + 2}},
        {"type": "compliance_event", "body": {**event, "event_type": "prompt_blocked", "detected_at": now + 3}},
    ]
    answer = laptop.post(
        "After a while offline the agent replays what it spooled, gzipped; the invalid item costs the others nothing",
        "/api/batch",
        {"items": spooled},
        token,
        expect=200,
        compress=True,
    )
    statuses = [result["status"] for result in answer["results"]]
    laptop.check(statuses == [200, 201, 400, 201, 201], f"the items' statuses are {statuses}")

    answer = laptop.post("The same prompt again is stored once", "/api/prompt", prompt, extension_token, expect=200)
    laptop.check(answer["prompt_id"] == prompt["prompt_id"], "the answer names another prompt")

    changed = {**prompt, "prompt": "Something else."}
    laptop.post("The same id with other content is a conflict", "/api/prompt", changed, extension_token, expect=409)

    in_seconds = {**prompt, "timestamp": now // 1000}
    laptop.post("Seconds in place of milliseconds are invalid", "/api/prompt", in_seconds, extension_token, expect=400)

    laptop.post("Nobody gets in without a token", "/api/prompt", prompt, None, expect=401)

    laptop.post("Nor beyond the token's scopes", "/api/devices/heartbeat", device, extension_token, expect=403)

    laptop.command("An operator revokes the device", ["device", "revoke", agent.device_id])

    answer = laptop.post("Its very next request is refused", "/api/devices/heartbeat", device, token, expect=403)
    laptop.check(answer["type"] == "urn:watchpost:problem:device-revoked", f"the problem is {answer['type']}")

    stored = laptop.rows("What the database holds of this device")
    counts = {table: len(rows) for table, rows in stored.items()}
    wanted = {"devices": 1, "browser_instances": 1, "prompts": 2, "extension_status": 2, "compliance_events": 2}
    laptop.check(counts == wanted, f"the rows are {counts}, and should be {wanted}")


class Laptop:
    """A device with an agent, its operator at the command line, and somebody who looks into the database.

    Every step prints what it does and what came of it, and raises Off when that is not what was expected.
    """

    def __init__(self, settings: Settings, environment: dict[str, str]) -> None:
        self.agent = Agent()
        self.settings = settings
        self.environment = environment
        self.step = ""
        self.steps = 0

    def begin(self, step: str) -> None:
        self.steps += 1
        self.step = f"{self.steps}. {step}"
        print(f"\n{self.step}")

    def check(self, is_so: bool, otherwise: str) -> None:
        if not is_so:
            raise Off(f"step {self.step}: {otherwise}")

    def command(self, step: str, arguments: list[str]) -> str:
        """Run a command of the operator's command line; return what it printed."""
        self.begin(step)
        show(subprocess.list2cmdline(["flask", "--app", "wsgi", *arguments]), "$ ")
        command = [str(BIN / "flask"), "--app", "wsgi", *arguments]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False)
        self.check(done.returncode == 0, f"exit code {done.returncode}: {done.stderr.strip()}")
        printed = done.stdout.strip()
        for line in printed.splitlines():
            show(hidden(line) if arguments[:2] == ["enrollment", "create"] else line, "  ")
        return printed

    def get_token(self, step: str, scope: str | None = None) -> str:
        """Get an access token (RFC 6749, section 4.4) for a client assertion (RFC 7523)."""
        self.begin(step)
        path = "/api/auth/token"
        # Signed anew for each request: the service takes an assertion once.
        form = self.agent.token_request(self.settings.issuer + path, scope)
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        return str(self.send(path, form, urlencode(form).encode(), headers, expect=200)["access_token"])

    # The refusals here are wanted. An agent sends the same again after 429, 503 or no answer, when Retry-After is over.
    def post(
        self, step: str, path: str, body: dict[str, Any], token: str | None, expect: int, compress: bool = False
    ) -> dict[str, Any]:
        """POST a JSON body with a token and return the answer."""
        self.begin(step)
        headers = {"Content-Type": "application/json"}
        content = json.dumps(body).encode()
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        if compress:
            headers["Content-Encoding"] = "gzip"
            content = gzip.compress(content)
        return self.send(path, body, content, headers, expect)

    def send(
        self, path: str, body: dict[str, Any], content: bytes, headers: dict[str, str], expect: int
    ) -> dict[str, Any]:
        show(f"POST {self.settings.issuer}{path}", "> ")
        for name, value in headers.items():
            scheme, _, token = value.partition(" ")
            show(f"{name}: {f'{scheme} {hidden(token)}' if token else value}", "> ")
        show(shortened(body), "> ")
        try:
            status, text = exchange(self.settings.issuer + path, content, headers)
        except OSError as error:
            raise Off(f"step {self.step}: no answer: {error}") from None
        try:
            answer = json.loads(text)
        except ValueError:
            answer = {"not JSON": text.decode("utf-8", "replace")}
        show(f"{status} {http.HTTPStatus(status).phrase}", "< ")
        show(shortened(answer), "< ")
        self.check(status == expect, f"the status is {status}, and should be {expect}")
        return dict(answer)

    def rows(self, step: str) -> dict[str, list[dict[str, Any]]]:
        """Look up what each table holds of the device."""
        self.begin(step)
        stored = {}
        try:
            with psycopg.connect(owner_url(self.settings), row_factory=dict_row) as connection:
                for table, order in TABLES.items():
                    query = f"SELECT * FROM {table} WHERE device_id = %s ORDER BY {order}"
                    show(query.replace("%s", f"'{self.agent.device_id}'"), "# ")
                    stored[table] = connection.execute(query, [self.agent.device_id]).fetchall()
                    for row in stored[table]:
                        show(shortened(row), "  ")
        except psycopg.Error as error:
            raise Off(f"step {self.step}: {error}") from None
        return stored


# Without proxies: the service is on this machine, or as near as its database.
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def exchange(url: str, content: bytes | None = None, headers: dict[str, str] | None = None) -> tuple[int, bytes]:
    """Status and body of the answer to a POST, or to a GET when there is no content. Raises OSError for none."""
    request = urllib.request.Request(url, content, headers or {})
    try:
        with opener.open(request, timeout=30) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as refusal:
        with refusal:
            return refusal.code, refusal.read()
    except http.client.HTTPException as error:
        raise OSError(f"not HTTP: {type(error).__name__}") from None


@contextmanager
def service() -> Iterator[tuple[Settings, dict[str, str]]]:
    """A service that answers: its settings, and the environment that makes a command have the same."""
    settings = load()
    try:
        found, _ = exchange(settings.issuer + "/livez")
    except OSError:
        found = None
    if found == 200:
        print(f"Against the service that runs at {settings.issuer}; the settings here must be its own.")
        yield settings, dict(os.environ)
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address, port = probe.getsockname()
    with tempfile.TemporaryDirectory(prefix="watchpost-demo-") as folder:
        # Nothing of it outlives the demonstration, so it is kept away from a database and from keys that do.
        theirs = {"WATCHPOST_DATABASE_URL", "WATCHPOST_ISSUER", "WATCHPOST_SIGNING_KEYS"}
        environment = {name: value for name, value in os.environ.items() if name not in theirs}
        environment |= {"WATCHPOST_DATA_DIR": folder, "WATCHPOST_BIND": f"{address}:{port}"}
        print(f"Nothing answers at {settings.issuer}: starting a service of its own at http://{address}:{port}")
        with started(environment):
            yield load(environment), environment


@contextmanager
def started(environment: dict[str, str]) -> Iterator[None]:
    """Have a service run that is ready. Raises Off with its log when it does not get so far."""
    log: list[str] = []
    process = subprocess.Popen(
        [str(BIN / "python"), "-m", "app.dev.serve"],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # Ctrl-C is for the demonstration, which then stops the service.
        start_new_session=True,
    )
    reader = threading.Thread(target=lambda: log.extend(process.stdout or []), daemon=True)
    reader.start()
    try:
        if not is_ready(load(environment).issuer, process):
            # Only then is its log complete.
            stop(process, reader)
            raise Off("the service did not start; its log:\n" + "".join(log))
        yield
    finally:
        stop(process, reader)


def is_ready(issuer: str, process: subprocess.Popen[str]) -> bool:
    """Wait until the service is ready. False when it ended, or took too long."""
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        try:
            if exchange(issuer + "/readyz")[0] == 200:
                return True
        except OSError:
            pass
        time.sleep(0.1)
    return False


def stop(process: subprocess.Popen[str], reader: threading.Thread) -> None:
    # A second Ctrl-C must not leave half of it running.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    process.terminate()
    process.wait()
    # Its log ends when the last of its processes does, and with it their use of the folder.
    reader.join()


def shortened(value: Any) -> str:
    """JSON for a person to read: no secrets, nothing long."""

    def short(name: str, node: Any) -> Any:
        if isinstance(node, dict):
            return {name: short(name, below) for name, below in node.items()}
        if isinstance(node, list):
            return [short(name, below) for below in node]
        if isinstance(node, (int, float, type(None))):
            return node
        text = str(node)
        if name in SECRETS:
            return hidden(text)
        return text if len(text) <= 200 else text[:197] + "..."

    # Lines break at spaces, and this is none: a name stays with its value.
    return json.dumps(short("", value), separators=(", ", f":{NO_BREAK}"))


def hidden(secret: str) -> str:
    return secret[:12] + "..."


def show(text: str, mark: str) -> None:
    """Print text in lines that fit a terminal, each behind a mark that says what it is."""
    mark = "   " + mark
    lines = textwrap.wrap(text, WIDTH, break_long_words=False, break_on_hyphens=False)
    print(textwrap.indent("\n".join(lines), mark).replace(NO_BREAK, " "), flush=True)


if __name__ == "__main__":
    main()
