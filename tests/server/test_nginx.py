"""The README's proxy: what agents see through nginx while the service is reloaded, restarted or away."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.server.test_service import prompt, registered, wait_for
from tests.support.agent import Agent
from tests.support.service import ROOT, Service, free_port

NGINX = shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")
pytestmark = pytest.mark.skipif(NGINX is None, reason="needs nginx: apt-get install nginx-light")

MAIN = """
daemon off;
pid {folder}/nginx.pid;
error_log stderr error;
events {{ worker_connections 256; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    {site}
}}
"""


@contextlib.contextmanager
def nginx(folder: Path, upstream: str, bind: str) -> Iterator[None]:
    """Run it with the README's configuration, without TLS."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    block = re.search(r"```nginx\n(.*?)```", readme, re.DOTALL)
    assert block is not None
    site = re.sub(r"^\s*ssl_.*\n", "", block[1], flags=re.MULTILINE)
    site = site.replace("listen 443 ssl;", f"listen {bind};").replace("server 127.0.0.1:8000;", f"server {upstream};")
    configuration = folder / "nginx.conf"
    configuration.write_text(MAIN.format(folder=folder, site=site))
    process = subprocess.Popen([str(NGINX), "-c", str(configuration), "-p", str(folder)], stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: (folder / "nginx.pid").exists())
        yield
    finally:
        process.terminate()
        process.wait(30)


def problem(answer: Any) -> dict[str, Any]:
    assert answer.headers["Content-Type"] == "application/problem+json"
    found = dict(answer.json)
    assert found["status"] == answer.status
    assert found["type"].startswith("urn:watchpost:problem:")
    return found


class Sender(threading.Thread):
    """Sends prompts through nginx, each until it is acknowledged, as an agent does."""

    def __init__(self, service: Service, agent: Agent, token: str) -> None:
        super().__init__()
        self.service, self.agent, self.token = service, agent, token
        self.is_over = threading.Event()
        self.acknowledged: set[str] = set()
        self.statuses: set[int] = set()
        self.faults: list[str] = []

    def run(self) -> None:
        number = 0
        while not self.is_over.is_set():
            number += 1
            body = prompt(self.agent, prompt=f"{id(self)} {number}")
            while not self.is_over.is_set():
                answer = self.service.post("/api/prompt", body, self.token)
                self.statuses.add(answer.status)
                if answer.status in (200, 201):
                    self.acknowledged.add(answer.json["prompt_id"])
                    break
                if answer.status != 503 or not answer.headers.get("Retry-After", "").isdigit():
                    self.faults.append(f"{answer.status} {answer.body[:200]!r}")
                    break
                problem(answer)
                time.sleep(0.05)

    def until(self, amount: int) -> None:
        wanted = len(self.acknowledged) + amount
        wait_for(lambda: len(self.acknowledged) >= wanted or bool(self.faults))


def test_reloads_restarts_and_killed_workers_behind_nginx_lose_nothing_and_show_no_html(
    folder: Path, database_url: str
) -> None:
    settings = {"database_url": database_url, "proxies": 1, "device_rate": 0}
    service = Service(folder, **settings)
    bind = service.bind
    through = f"127.0.0.1:{free_port()}"
    try:
        service.wait_until_ready()
        agent, token = registered(service)
        with nginx(folder, bind, through):
            service.url = f"http://{through}"
            senders = [Sender(service, agent, token) for _ in range(4)]
            for sender in senders:
                sender.start()
            try:
                for step in ("reload", "kill", "restart", "reload"):
                    for sender in senders:
                        sender.until(10)
                    if step == "reload":
                        before = set(service.workers())
                        service.process.send_signal(signal.SIGHUP)
                        wait_for(lambda: len(service.workers()) == 2 and not set(service.workers()) & before)  # noqa: B023
                    elif step == "kill":
                        service.workers()[0].kill()
                    else:
                        assert service.end() == 0
                        service = Service(folder, bind=bind, issuer=f"http://{bind}", **settings)
                        service.wait_until_ready()
                for sender in senders:
                    sender.until(10)
            finally:
                for sender in senders:
                    sender.is_over.set()
                for sender in senders:
                    sender.join()
    finally:
        service.kill_everything()
    assert [sender.faults for sender in senders] == [[]] * 4
    acknowledged = set().union(*(sender.acknowledged for sender in senders))
    with psycopg.connect(database_url) as connection:
        stored = [str(row[0]) for row in connection.execute("SELECT prompt_id FROM prompts").fetchall()]
    assert acknowledged <= set(stored)
    assert len(stored) == len(set(stored))


def test_a_service_that_is_away_is_503_with_a_time_to_come_back(folder: Path) -> None:
    through = f"127.0.0.1:{free_port()}"
    nobody = f"127.0.0.1:{free_port()}"
    caller = Service.__new__(Service)
    caller.url = f"http://{through}"
    with nginx(folder, nobody, through):
        wait_for(lambda: _is_answered(caller))
        waits = set()
        for _ in range(40):
            answer = caller.post("/api/prompt", {})
            assert answer.status == 503
            problem(answer)
            waits.add(int(answer.headers["Retry-After"]))
        # Spread, so that a fleet does not come back in the same second.
        assert len(waits) > 1
        answer = caller.post("/api/batch", json.dumps("x" * 9_000_000).encode())
        assert answer.status == 413
        problem(answer)


def _is_answered(caller: Service) -> bool:
    with contextlib.suppress(OSError):
        return caller.get("/livez").status == 503
    return False
