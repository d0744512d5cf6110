"""The service as it is started and stopped: gunicorn, its workers, the embedded PostgreSQL."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import tempfile
import time
import urllib.parse
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest

from app.db import embedded
from config.settings import SettingError, load
from tests.agent import Agent
from tests.service import Service, serving


@pytest.fixture
def folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="wp-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def token_of(service: Service, agent: Agent) -> str:
    form = urllib.parse.urlencode(agent.token_request(service.url)).encode()
    kind = {"Content-Type": "application/x-www-form-urlencoded"}
    return str(service.post("/api/auth/token", form, **kind).json["access_token"])


def registered(service: Service) -> tuple[Agent, str]:
    enrollment = service.flask("enrollment", "create", "--label", "l", "--max-uses", "5", "--expires-in", "1h")
    agent = Agent()
    assert service.post("/api/devices/register", agent.registration(), enrollment).status == 201
    return agent, token_of(service, agent)


def prompt(agent: Agent, **more: Any) -> dict[str, Any]:
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


def wait_for(condition: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_fresh_start_makes_everything_and_a_second_start_uses_it_again(folder: Path) -> None:
    with serving(folder) as service:
        agent, token = registered(service)
        first = prompt(agent)
        assert service.post("/api/prompt", first, token).status == 201
        assert (folder / "data" / "signing-keys.json").stat().st_mode & 0o777 == 0o600
    assert servers_of(folder) == []
    with serving(folder, bind=service.bind) as service:
        # The token of the first run, and its row, are still good.
        assert service.post("/api/prompt", first, token).status == 200
    assert servers_of(folder) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_lets_a_running_request_finish_and_stops_the_database_after_it(folder: Path, number: int) -> None:
    with serving(folder) as service:
        agent, token = registered(service)
        with (
            psycopg.connect(embedded.url(str(folder / "data"))) as blocker,
            ThreadPoolExecutor(1) as threads,
        ):
            blocker.execute("LOCK TABLE prompts IN ACCESS EXCLUSIVE MODE")
            running = threads.submit(service.post, "/api/prompt", prompt(agent), token)
            waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
            with psycopg.connect(embedded.url(str(folder / "data")), autocommit=True) as observer:
                wait_for(lambda: observer.execute(waiting).fetchone() == (1,))
            service.process.send_signal(number)
            wait_for(lambda: _refuses_connections(service))
            blocker.rollback()
            assert running.result().status == 201
        assert service.process.wait(60) == 0
    assert servers_of(folder) == []


def _refuses_connections(service: Service) -> bool:
    host, port = service.bind.split(":")
    try:
        socket.create_connection((host, int(port)), timeout=1).close()
    except OSError:
        return True
    return False


def test_an_interrupt_from_the_terminal_is_graceful_too(folder: Path) -> None:
    with serving(folder) as service:
        # Ctrl-C reaches the whole process group, the workers included.
        os.killpg(service.process.pid, signal.SIGINT)
        assert service.process.wait(60) == 0
    assert servers_of(folder) == []


def test_a_killed_master_leaves_nothing_that_stops_the_next_start(folder: Path) -> None:
    with serving(folder) as service:
        agent, token = registered(service)
        service.process.kill()
        service.process.wait()
        with serving(folder, bind=service.bind) as second:
            assert second.post("/api/prompt", prompt(agent), token).status == 201
    wait_for(lambda: servers_of(folder) == [])


def test_a_killed_database_server_does_not_stop_the_next_start(folder: Path) -> None:
    with serving(folder) as service:
        agent, token = registered(service)
        assert service.post("/api/prompt", prompt(agent), token).status == 201
        for server in servers_of(folder):
            server.kill()
        service.kill_everything()
    wait_for(lambda: not _keeper_of(folder))
    # A number that is another process's by now.
    (folder / "data" / "postgresql" / "postmaster.pid").write_text(f"{os.getpid()}\n")
    with serving(folder, bind=service.bind) as second:
        assert second.post("/api/prompt", prompt(agent), token).status == 201


def _keeper_of(folder: Path) -> bool:
    for process in psutil.process_iter(["cmdline", "environ"]):
        line = process.info["cmdline"] or []
        if "app.db.keeper" in line and (process.info["environ"] or {}).get("WATCHPOST_DATA_DIR") == str(
            folder / "data"
        ):
            return True
    return False


def test_an_interrupted_initdb_does_not_stop_the_next_start(folder: Path) -> None:
    data = folder / "data"
    (data / "postgresql.new").mkdir(parents=True)
    (data / "postgresql.new" / "PG_VERSION").write_text("18\n")
    data.chmod(0o755)
    with serving(folder) as service:
        assert service.get("/livez").status == 200


def test_with_a_database_url_no_server_is_started(folder: Path, database_url: str) -> None:
    with serving(folder, database_url=database_url) as service:
        registered(service)
        assert not (folder / "data" / "postgresql").exists()


def test_two_workers_store_what_is_sent_at_once_exactly_once(folder: Path, database_url: str) -> None:
    with serving(folder, database_url=database_url) as service:
        agent, token = registered(service)
        body = prompt(agent)
        with ThreadPoolExecutor(32) as threads:
            answers = list(threads.map(lambda _: service.post("/api/prompt", body, token), range(32)))
        assert sorted(answer.status for answer in answers) == [200] * 31 + [201]
        assert len({answer.json["prompt_id"] for answer in answers}) == 1


def test_a_client_assertion_is_good_for_one_worker_only(folder: Path, database_url: str) -> None:
    with serving(folder, database_url=database_url) as service:
        agent, _ = registered(service)
        form = urllib.parse.urlencode(agent.token_request(service.url)).encode()
        kind = {"Content-Type": "application/x-www-form-urlencoded"}
        with ThreadPoolExecutor(16) as threads:
            answers = list(threads.map(lambda _: service.post("/api/auth/token", form, **kind), range(16)))
        assert sorted(answer.status for answer in answers) == [200] + [401] * 15


def test_a_revocation_and_a_key_rotation_take_effect_on_the_next_request_of_any_worker(
    folder: Path, database_url: str
) -> None:
    with serving(folder, database_url=database_url) as service:
        agent, token = registered(service)
        for _ in range(8):
            assert service.post("/api/prompt", prompt(agent), token).status in (200, 201)
        service.flask("keys", "rotate")
        assert service.post("/api/prompt", prompt(agent), token_of(service, agent)).status in (200, 201)
        assert service.post("/api/prompt", prompt(agent), token).status in (200, 201)
        service.flask("device", "revoke", agent.device_id)
        assert [service.post("/api/prompt", prompt(agent), token).status for _ in range(8)] == [403] * 8
        service.flask("device", "restore", agent.device_id)
        assert service.post("/api/prompt", prompt(agent), token).status == 201


def test_hup_replaces_the_workers_and_the_service_goes_on(folder: Path, database_url: str) -> None:
    with serving(folder, database_url=database_url) as service:
        agent, token = registered(service)
        master = psutil.Process(service.process.pid)
        before = {child.pid for child in master.children()}
        service.process.send_signal(signal.SIGHUP)
        wait_for(lambda: len({child.pid for child in master.children()} - before) == 2)
        assert service.post("/api/prompt", prompt(agent), token).status == 201


def test_half_sent_requests_do_not_hold_up_others(folder: Path, database_url: str) -> None:
    with serving(folder, database_url=database_url) as service:
        agent, token = registered(service)
        host, port = service.bind.split(":")
        halves = [socket.create_connection((host, int(port))) for _ in range(50)]
        for half in halves:
            half.sendall(b"POST /api/prompt HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{")
        assert service.post("/api/prompt", prompt(agent), token).status == 201
        for half in halves:
            half.close()


def test_a_wrong_setting_stops_the_start_with_its_name(folder: Path) -> None:
    service = Service(folder, pool_size="many")
    assert service.process.wait(30) != 0
    assert "WATCHPOST_POOL_SIZE must be a whole number." in service.log.read_text()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("POOL_SIZE", "0"),
        ("ACCESS_TOKEN_SECONDS", "x"),
        ("ISSUER", "ftp://x"),
        ("ISSUER", "example.com"),
        ("DATABASE_URL", "mysql://x/y"),
        ("PREPARE_STATEMENTS", "perhaps"),
        ("LOG_LEVEL", "loud"),
    ],
)
def test_settings_are_checked(name: str, value: str) -> None:
    with pytest.raises(SettingError, match=f"WATCHPOST_{name}"):
        load({f"WATCHPOST_{name}": value})


def test_defaults_are_those_of_the_contract() -> None:
    settings = load({})
    assert settings.bind == "127.0.0.1:8000"
    assert settings.issuer == "http://127.0.0.1:8000"
    assert settings.data_dir == ".data"
    assert settings.access_token_seconds == 900
