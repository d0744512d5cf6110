"""A database that is away, slow or full: 503 with Retry-After, and recovery without a restart."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import pytest
from flask.testing import FlaskClient

from app.application import Watchpost
from app.db import migrations
from app.dev import embedded
from app.ingest import writer
from config.settings import Settings
from tests.support.agent import Agent
from tests.support.application import create_app
from tests.support.service import as_role, wait_for


def prompt(agent: Agent, **more: Any) -> dict[str, Any]:
    now = int(time.time() * 1000)
    body = {"device_id": agent.device_id, "instance_id": "i", "site": "s", "url": "u", "prompt": "p", "timestamp": now}
    return {**body, **more}


class Server:
    """A PostgreSQL server of the test's own, to be stopped and started."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._running: Any = None
        self.url = self.start()

    def start(self) -> str:
        self._running = embedded.running(str(self.folder), "fsync = off\n")
        return str(self._running.__enter__())

    def stop(self) -> None:
        self._running.__exit__(None, None, None)


@pytest.fixture
def own_server(folder: Path) -> Iterator[Server]:
    server = Server(folder)
    yield server
    server.stop()


@pytest.fixture
def settings(settings: Settings, request: pytest.FixtureRequest) -> Settings:
    if "own_server" in request.fixturenames:
        url = request.getfixturevalue("own_server").url
        migrations.apply(url)
        settings = replace(settings, database_url=as_role(url, "writer"), owner_database_url=as_role(url, "owner"))
    return settings


@pytest.fixture
def device(register: Callable[..., Agent]) -> Agent:
    """Registered here, since a server of the test's own has no device."""
    return register()


@pytest.fixture
def hasty(settings: Settings, device: Agent, headers: dict[str, str]) -> Iterator[FlaskClient]:
    """A client of a worker that gives up on the database after a second, and has a connection to it.

    What has to work is asked of `client`, or until it does: a second is soon over on a machine that stalls.
    """
    app = create_app(replace(settings, pool_wait_seconds=1, statement_timeout_ms=1000))
    client = app.test_client()
    body = {"device_id": device.device_id}
    wait_for(lambda: client.post("/api/devices/heartbeat", json=body, headers=headers).status_code == 200)
    yield client
    app.extensions["db"].close()


@pytest.fixture(autouse=True)
def long_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kind of row that could not be stored counts as failing for as long as a test takes."""
    monkeypatch.setattr(writer, "FAILING_SECONDS", 600)


def is_unavailable(answer: Any) -> bool:
    return bool(
        answer.status_code == 503
        and int(answer.headers["Retry-After"]) > 0
        and answer.content_type == "application/problem+json"
        and answer.json["type"] == "urn:watchpost:problem:unavailable"
    )


def test_a_stopped_database_is_503_and_the_service_recovers_by_itself(
    own_server: Server, client: FlaskClient, hasty: FlaskClient, device: Agent, headers: dict[str, str]
) -> None:
    first = prompt(device)
    assert client.post("/api/prompt", json=first, headers=headers).status_code == 201
    own_server.stop()
    assert is_unavailable(hasty.post("/api/prompt", json=prompt(device), headers=headers))
    assert is_unavailable(hasty.post("/api/auth/token", data=device.token_request("http://watchpost.test")))
    assert hasty.get("/livez").status_code == 200
    assert is_unavailable(hasty.get("/readyz"))
    own_server.start()
    wait_for(lambda: hasty.post("/api/prompt", json=first, headers=headers).status_code == 200)
    wait_for(lambda: hasty.get("/readyz").status_code == 200)


def test_a_database_restart_between_requests_costs_no_request(
    own_server: Server, client: FlaskClient, device: Agent, headers: dict[str, str]
) -> None:
    assert client.post("/api/prompt", json=prompt(device), headers=headers).status_code == 201
    own_server.stop()
    own_server.start()
    assert client.post("/api/prompt", json=prompt(device, prompt="next"), headers=headers).status_code == 201


def test_a_failover_that_kills_backends_costs_no_request(
    app: Watchpost,
    device: Agent,
    headers: dict[str, str],
    rows: Callable[..., list[dict[str, Any]]],
) -> None:
    kill = """
        SELECT pg_terminate_backend(pid) FROM pg_stat_activity
        WHERE application_name = 'watchpost' AND datname = current_database()
    """
    bodies = [prompt(device, prompt=f"number {n}") for n in range(400)]
    with ThreadPoolExecutor(9) as threads:
        answers = [threads.submit(app.test_client().post, "/api/prompt", json=body, headers=headers) for body in bodies]
        killed = 0
        while not all(answer.done() for answer in answers):
            killed += len(rows(kill))
            time.sleep(0.2)
    assert killed > 0
    assert {answer.result().status_code for answer in answers} <= {200, 201}
    assert rows("SELECT count(*) AS stored FROM prompts") == [{"stored": 400}]


@pytest.mark.direct("PgBouncer, not the service, has the connections that are let go")
def test_connections_closed_by_the_idle_timeout_cost_no_request(
    settings: Settings, device: Agent, headers: dict[str, str]
) -> None:
    impatient = settings.database_url + "&options=-c%20idle_session_timeout%3D100ms"
    app = create_app(replace(settings, database_url=impatient))
    for number in range(3):
        answer = app.test_client().post("/api/prompt", json=prompt(device, prompt=f"number {number}"), headers=headers)
        assert answer.status_code == 201
        time.sleep(0.3)
    app.extensions["db"].close()


@pytest.mark.direct("this test's time limit reaches the server as `options`, which PgBouncer does not pass on")
def test_a_transaction_timeout_is_503(
    settings: Settings, device: Agent, headers: dict[str, str], database_url: str
) -> None:
    app = create_app(
        replace(settings, database_url=settings.database_url + "&options=-c%20transaction_timeout%3D300ms")
    )
    with psycopg.connect(database_url) as blocker:
        if blocker.info.server_version < 170000:
            pytest.skip("transaction_timeout came with PostgreSQL 17")
        blocker.execute("LOCK TABLE prompts")
        assert is_unavailable(app.test_client().post("/api/prompt", json=prompt(device), headers=headers))
    app.extensions["db"].close()


@pytest.mark.direct("this test's shorter time limits reach the server as `options`, which PgBouncer does not pass on")
def test_a_locked_table_is_503_within_the_lock_timeout_and_stores_nothing(
    hasty: FlaskClient,
    device: Agent,
    headers: dict[str, str],
    database_url: str,
    rows: Callable[..., list[dict[str, Any]]],
) -> None:
    with psycopg.connect(database_url) as blocker:
        blocker.execute("LOCK TABLE prompts IN ACCESS EXCLUSIVE MODE")
        assert is_unavailable(hasty.post("/api/prompt", json=prompt(device), headers=headers))
        assert is_unavailable(hasty.get("/readyz"))
        assert hasty.get("/livez").status_code == 200
        blocker.rollback()
    assert rows("SELECT count(*) AS stored FROM prompts") == [{"stored": 0}]
    wait_for(lambda: hasty.post("/api/prompt", json=prompt(device), headers=headers).status_code == 201)
    wait_for(lambda: hasty.get("/readyz").status_code == 200)


@pytest.fixture
def unlocked(settings: Settings) -> Iterator[Watchpost]:
    """A worker that is impatient for locks only."""
    app = create_app(replace(settings, database_url=settings.database_url + "&options=-c%20lock_timeout%3D500ms"))
    yield app
    app.extensions["db"].close()


@pytest.mark.direct("this test's time limit reaches the server as `options`, which PgBouncer does not pass on")
def test_rows_of_a_batch_wait_for_a_locked_table_once(
    unlocked: Watchpost,
    device: Agent,
    headers: dict[str, str],
    database_url: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    bodies = [prompt(device, prompt=f"number {number}") for number in range(100)]
    with psycopg.connect(database_url) as holder, ThreadPoolExecutor(100) as threads:
        holder.execute("LOCK TABLE prompts IN ACCESS EXCLUSIVE MODE")
        post = partial(unlocked.test_client().post, "/api/prompt", headers=headers)
        assert all(is_unavailable(answer) for answer in threads.map(lambda body: post(json=body), bodies))
        holder.rollback()
    assert 0 < caplog.text.count("database error") < 50


@pytest.mark.direct("this test's time limit reaches the server as `options`, which PgBouncer does not pass on")
def test_a_locked_row_costs_no_other_row_of_its_batch(
    unlocked: Watchpost, headers: dict[str, str], database_url: str, rows: Callable[..., list[dict[str, Any]]]
) -> None:
    def beat(number: int) -> Any:
        body = {"instance_id": f"instance-{number}", "profile_name": profile}
        return unlocked.test_client().post("/api/browsers/heartbeat", json=body, headers=headers)

    with psycopg.connect(database_url) as holder, ThreadPoolExecutor(30) as threads:
        profile = "before"
        assert {answer.status_code for answer in threads.map(beat, range(30))} == {201}
        holder.execute("SELECT FROM browser_instances WHERE instance_id = 'instance-7' FOR UPDATE")
        profile = "after"
        # Of several times at least once it is in a set with others.
        for _ in range(3):
            answers = list(threads.map(beat, range(30)))
            assert is_unavailable(answers.pop(7))
            assert {answer.status_code for answer in answers} == {200}
        assert rows("SELECT instance_id FROM browser_instances WHERE profile_name = 'before'") == [
            {"instance_id": "instance-7"}
        ]
        holder.rollback()
        assert beat(7).status_code == 200


@pytest.mark.direct("this test's shorter time limits reach the server as `options`, which PgBouncer does not pass on")
def test_a_batch_that_could_not_be_stored_is_seen_by_readiness_until_one_is_stored(
    hasty: FlaskClient, device: Agent, headers: dict[str, str], database_url: str
) -> None:
    batch = {"items": [{"type": "prompt", "body": prompt(device)}]}
    with psycopg.connect(database_url) as blocker:
        blocker.execute("LOCK TABLE prompts IN ACCESS EXCLUSIVE MODE")
        assert is_unavailable(hasty.post("/api/batch", json=batch, headers=headers))
        assert is_unavailable(hasty.get("/readyz"))
        blocker.rollback()

    def is_stored() -> bool:
        answer = hasty.post("/api/batch", json=batch, headers=headers)
        return answer.status_code == 200 and answer.json["results"][0]["status"] in (200, 201)

    wait_for(is_stored)
    wait_for(lambda: hasty.get("/readyz").status_code == 200)


def test_an_exhausted_connection_pool_is_503(
    settings: Settings, device: Agent, headers: dict[str, str], database_url: str
) -> None:
    app = create_app(replace(settings, pool_size=1, pool_wait_seconds=4))
    with psycopg.connect(database_url) as blocker, ThreadPoolExecutor(1) as threads:
        blocker.execute("LOCK TABLE prompts IN ACCESS EXCLUSIVE MODE")
        holding = threads.submit(app.test_client().post, "/api/prompt", json=prompt(device), headers=headers)
        wait_for(lambda: somebody_waits(blocker))
        # The statement ahead waits for its lock for longer than this one for its connection.
        body = {"device_id": device.device_id}
        assert is_unavailable(app.test_client().post("/api/devices/heartbeat", json=body, headers=headers))
        blocker.rollback()
        assert holding.result().status_code == 201
    app.extensions["db"].close()


def somebody_waits(connection: psycopg.Connection[Any]) -> bool:
    return connection.execute("SELECT 1 FROM pg_locks WHERE NOT granted").fetchone() is not None


def test_many_readiness_requests_leave_connections_to_writes(
    settings: Settings, device: Agent, headers: dict[str, str], database_url: str
) -> None:
    app = create_app(replace(settings, pool_size=2, connections=1))
    with psycopg.connect(database_url) as blocker, ThreadPoolExecutor(100) as threads:
        blocker.execute("LOCK TABLE _yoyo_migration IN ACCESS EXCLUSIVE MODE")
        asking = [threads.submit(app.test_client().get, "/readyz") for _ in range(100)]
        wait_for(lambda: somebody_waits(blocker))
        answer = app.test_client().post("/api/prompt", json=prompt(device), headers=headers)
        blocker.rollback()
        assert answer.status_code == 201
        assert {one.result().status_code for one in asking} == {200}
    app.extensions["db"].close()


def test_a_full_queue_is_503_at_once(
    settings: Settings, device: Agent, headers: dict[str, str], database_url: str
) -> None:
    app = create_app(replace(settings, queue_rows=2))
    with psycopg.connect(database_url) as blocker, ThreadPoolExecutor(8) as threads:
        blocker.execute("LOCK TABLE prompts IN ACCESS EXCLUSIVE MODE")
        answers = [
            threads.submit(app.test_client().post, "/api/prompt", json=prompt(device, prompt=str(n)), headers=headers)
            for n in range(8)
        ]
        # Two at most are on their way into the database, and two wait; the others need not wait for the lock.
        wait_for(lambda: sum(answer.done() for answer in answers) >= 4)
        refused = [answer.result() for answer in answers if answer.done()]
        blocker.rollback()
    assert all(is_unavailable(answer) for answer in refused)
    app.extensions["db"].close()


@pytest.mark.direct("a server connection that PgBouncer holds keeps the setting that it began with")
def test_a_read_only_database_after_a_failover_is_503_and_recovers(
    hasty: FlaskClient,
    device: Agent,
    headers: dict[str, str],
    rows: Callable[..., list[dict[str, Any]]],
    database_url: str,
) -> None:
    with psycopg.connect(database_url, autocommit=True) as admin:
        name = admin.info.dbname
        admin.execute(f'ALTER DATABASE "{name}" SET default_transaction_read_only = on')
        drop = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'watchpost'"
        admin.execute(drop)
        assert is_unavailable(hasty.post("/api/prompt", json=prompt(device), headers=headers))
        assert is_unavailable(hasty.get("/readyz"))
        admin.execute("SET default_transaction_read_only = off")
        admin.execute(f'ALTER DATABASE "{name}" RESET default_transaction_read_only')
        wait_for(lambda: hasty.post("/api/prompt", json=prompt(device), headers=headers).status_code == 201)


def test_a_database_without_the_newest_schema_is_not_ready(
    client: FlaskClient, rows: Callable[..., list[dict[str, Any]]]
) -> None:
    assert client.get("/readyz").status_code == 200
    rows("DELETE FROM _yoyo_migration WHERE migration_id = %s", migrations.names()[-1])
    answer = client.get("/readyz")
    assert answer.status_code == 503
    assert answer.json["type"] == "urn:watchpost:problem:migrations-pending"


@pytest.mark.parametrize("path", ["/api/prompt", "/api/devices/heartbeat"])
def test_no_row_reaches_the_log_when_the_database_fails(
    capfd: pytest.CaptureFixture[str],
    client: FlaskClient,
    device: Agent,
    headers: dict[str, str],
    rows: Callable[..., list[dict[str, Any]]],
    path: str,
) -> None:
    rows("ALTER TABLE prompts ADD CONSTRAINT refused CHECK (site != 'marked-site-7')")
    rows("ALTER TABLE devices ADD CONSTRAINT refused CHECK (hostname != 'marked-site-7')")
    body = prompt(device, site="marked-site-7", hostname="marked-site-7")
    answer = client.post(path, json=body, headers=headers)
    assert answer.status_code == 500
    assert "marked-site-7" not in answer.text
    logged = capfd.readouterr()
    assert "23514" in logged.err
    assert "marked-site-7" not in logged.out + logged.err
