"""Fixtures: a PostgreSQL for the run, a database for each test, an application, a device with real keys."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import psycopg
import pytest
from flask.testing import FlaskClient
from psycopg.rows import dict_row
from werkzeug.test import TestResponse

from app.application import Watchpost
from app.auth.keys import SigningKeys
from app.db import migrations
from app.dev import embedded
from config.settings import Settings
from tests.support import databases, distribution, pgbouncer
from tests.support.agent import ISSUER, TOKEN_ENDPOINT, Agent
from tests.support.application import create_app
from tests.support.databases import Template
from tests.support.service import Service, as_role
from tests.support.site import Site, inhabited

# Their assertions explain themselves as those of test files do.
pytest.register_assert_rewrite("tests.support.contracts", "tests.support.checks")

# Nothing here outlives the run, so nothing needs to reach the disk.
IN_MEMORY = "fsync = off\nsynchronous_commit = off\nfull_page_writes = off\nautovacuum = off\n"
# Cloning the template writes it to the WAL otherwise.
IN_MEMORY += "wal_level = minimal\nmax_wal_senders = 0\n"
# A copy of a database begins and ends with a checkpoint, which looks through all of it.
IN_MEMORY += "shared_buffers = 32MB\n"
# The files that take longest begin first.
LONGEST = (
    "resilience/test_scenarios.py",
    "db/test_standby.py",
    "db/test_backup.py",
    "resilience/test_canaries.py",
    "project/test_readme.py",
    "resources/test_conformance.py",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--pgbouncer", action="store_true", help="only what goes over HTTP, with PgBouncer in between")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With --pgbouncer, keep the tests that PgBouncer can serve; then order all for the processes of the run.

    It serves tests that make an application or start a service on the given database and are not marked `direct`.
    """
    if config.option.pgbouncer:
        chosen = [
            item
            for item in items
            if ("settings" in item.fixturenames or {"folder", "database_url"} <= set(item.fixturenames))
            and not item.get_closest_marker("direct")
        ]
        config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
        items[:] = chosen
    if hands := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0")):
        first = [[item for item in items if item.path.match(f"tests/{name}")] for name in LONGEST]
        items[:] = distribution.dealt(items, first, hands)


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    return distribution.processes(config.args, config.option.keyword)


@contextlib.contextmanager
def open_folder() -> Iterator[Path]:
    """A folder that PostgreSQL's user may enter, with a short name, since the path of a socket is limited."""
    folder = Path(tempfile.mkdtemp(prefix="wp-", dir=memory_folder()))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """A PostgreSQL server for the whole run; the value is the folder of its socket."""
    with open_folder() as folder, embedded.running(str(folder), IN_MEMORY) as url:
        sockets = psycopg.conninfo.conninfo_to_dict(url)["host"]
        yield str(sockets)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder for a service or a PostgreSQL server of the test's own."""
    with open_folder() as folder:
        yield folder


def memory_folder() -> str | None:
    """A file system in memory with enough space, if there is one: each test creates and removes some hundred files."""
    memory = Path("/dev/shm")
    if memory.is_dir() and os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > 2**31:
        return str(memory)
    return None


@pytest.fixture(scope="session")
def template(server: str, pooler: str | None) -> Template:
    """A migrated database without rows."""
    template = databases.create(server, "migrated")
    migrations.apply(template.url(template.name))
    # PgBouncer passes on the limits of the role only: the same as in `settings`.
    with psycopg.connect(template.url("postgres"), autocommit=True) as connection:
        connection.execute("ALTER ROLE watchpost_writer SET lock_timeout = '60s'")
        connection.execute("ALTER ROLE watchpost_writer SET statement_timeout = '120s'")
    return template


@pytest.fixture(scope="session")
def signing_keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("keys") / "signing-keys.json"
    SigningKeys(path).ensure()
    return path


class Prepared(NamedTuple):
    """template: a migrated database with one enrolment, and one device that registered with it."""

    template: Template
    enrollment: str
    device: Agent


@pytest.fixture(scope="session")
def prepared(template: Template, signing_keys: Path, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """Made as in production, through the command line and the API, but once a run: a device costs a test nothing."""
    one = databases.create_from(template, "prepared")
    app = create_app(settings_for(one.url(one.name), signing_keys, tmp_path_factory.mktemp("prepared")))
    agent = Agent()
    token = mint(app)
    assert join(app.test_client(), agent, token).status_code == 201
    app.extensions["db"].close()
    return Prepared(one, token, agent)


@pytest.fixture
def database_url(request: pytest.FixtureRequest, template: Template) -> Iterator[str]:
    """A database of the test's own: with a device for tests that use `device`, without rows for all others."""
    has_device = "prepared" in request.fixturenames
    with databases.clone(request.getfixturevalue("prepared").template if has_device else template) as url:
        yield url


@pytest.fixture(scope="session")
def pooler(server: str, request: pytest.FixtureRequest) -> Iterator[str | None]:
    """A PgBouncer in front of the server if the run is to have one; the value is the folder of its socket."""
    if not request.config.option.pgbouncer:
        yield None
        return
    with pgbouncer.running(server) as sockets:
        Service.poolers[server] = sockets
        yield sockets


def settings_for(database_url: str, signing_keys: Path, folder: Path, pooler: str | None = None) -> Settings:
    copy = folder / "signing-keys.json"
    shutil.copy(signing_keys, copy)
    writer_url = as_role(database_url, "writer")
    return Settings(
        database_url=pgbouncer.url(writer_url, pooler) if pooler else writer_url,
        owner_database_url=as_role(database_url, "owner"),
        prepare_statements=not pooler,
        issuer=ISSUER,
        signing_keys=str(copy),
        data_dir=str(folder),
        pool_size=4,
        # A machine that stalls for some seconds fails no test. Tests of these limits set shorter ones.
        pool_wait_seconds=60,
        statement_timeout_ms=120_000,
        # Tests that send in a loop send as fast as the machine does; those of the limits set their own.
        device_rate=10_000,
    )


@pytest.fixture
def settings(database_url: str, pooler: str | None, signing_keys: Path, tmp_path: Path) -> Settings:
    """Settings of the application under test; a test that needs others replaces some of them."""
    return settings_for(database_url, signing_keys, tmp_path, pooler)


@pytest.fixture
def app(settings: Settings) -> Iterator[Watchpost]:
    app = create_app(settings)
    yield app
    app.extensions["db"].close()


@pytest.fixture
def client(app: Watchpost) -> FlaskClient:
    return app.test_client()


@pytest.fixture
def rows(database_url: str) -> Iterator[Callable[..., list[dict[str, Any]]]]:
    """Query the database as its superuser: rows("SELECT ...", parameter, ...) gives dicts."""
    with psycopg.connect(database_url, autocommit=True, row_factory=dict_row) as connection:
        yield (
            lambda query, *parameters: (
                connection.execute(query, parameters or None).fetchall()
                if (query.lstrip().upper().startswith(("SELECT", "WITH")) or "RETURNING" in query)
                else connection.execute(query, parameters or None) and []
            )
        )


def mint(app: Watchpost, max_uses: int = 1000, expires_in: str = "1d", label: str = "tests") -> str:
    """Create an enrolment through the command line and return its token."""
    arguments = ["--label", label, "--max-uses", str(max_uses), "--expires-in", expires_in]
    result = app.test_cli_runner().invoke(args=["enrollment", "create", *arguments])
    assert result.exit_code == 0, result.output
    return result.stdout.strip()


@pytest.fixture
def enrollment(app: Watchpost) -> Callable[..., str]:
    """Create an enrolment of the test's own: enrollment(max_uses=5, expires_in="1d")."""
    return functools.partial(mint, app)


@pytest.fixture
def bearer() -> Callable[[str], dict[str, str]]:
    """Headers of a request with this token."""
    return lambda token: {"Authorization": f"Bearer {token}"}


def join(client: FlaskClient, agent: Agent, token: str, **more: Any) -> TestResponse:
    """Register an agent with an enrolment's token."""
    authorization = {"Authorization": f"Bearer {token}"}
    return client.post("/api/devices/register", json=agent.registration(**more), headers=authorization)


@pytest.fixture
def register(
    request: pytest.FixtureRequest, client: FlaskClient, enrollment: Callable[..., str]
) -> Callable[..., Agent]:
    """Register an agent, a new one unless one is given; with the enrolment of `device` where the test has that."""
    tokens = []
    if "prepared" in request.fixturenames:
        tokens.append(request.getfixturevalue("prepared").enrollment)

    def register(agent: Agent | None = None, **more: Any) -> Agent:
        agent = agent or Agent()
        if not tokens:
            tokens.append(enrollment())
        answer = join(client, agent, tokens[0], **more)
        assert answer.status_code in (200, 201), answer.text
        return agent

    return register


@pytest.fixture
def access(client: FlaskClient) -> Callable[..., dict[str, str]]:
    """Get an access token for an agent the real way, and return the headers that carry it."""

    def access(agent: Agent, scope: str | None = None) -> dict[str, str]:
        answer = client.post("/api/auth/token", data=agent.token_request(TOKEN_ENDPOINT, scope))
        assert answer.status_code == 200, answer.text
        return {"Authorization": f"Bearer {answer.json['access_token']}"}

    return access


@pytest.fixture
def device(prepared: Prepared) -> Agent:
    """A registered device, the only one in the test's database."""
    return Agent(prepared.device.device_id, prepared.device.key)


@pytest.fixture
def headers(device: Agent, access: Callable[..., dict[str, str]]) -> dict[str, str]:
    """Headers with an access token of `device`, for all that a device may do."""
    return access(device)


@pytest.fixture
def now_ms() -> int:
    return int(time.time() * 1000)


@pytest.fixture
def operate(app: Any) -> Callable[..., None]:
    """Run the operator's command line: operate("device", "revoke", device_id)."""

    def run(*arguments: str) -> None:
        result = app.test_cli_runner().invoke(args=arguments)
        assert result.exit_code == 0, result.output

    return run


@pytest.fixture(scope="module")
def site(template: Template) -> Iterator[Site]:
    """A running service with a device, for all tests of a module."""
    with open_folder() as folder, databases.clone(template) as url, inhabited(folder, database_url=url) as site:
        yield site


@pytest.fixture
def other_worker(settings: Any) -> Iterator[Any]:
    """The application of a second worker process, which shares the database and nothing else."""
    app = create_app(settings)
    yield app
    app.extensions["db"].close()


@pytest.fixture
def held(database_url: str, rows: Any) -> Callable[..., list[Any]]:
    """Make requests wait for a lock, and release it when all of them do: none has seen the rows of another."""

    def run(lock: str, requests: list[Callable[[], Any]]) -> list[Any]:
        waiting = (
            "SELECT count(*) AS n FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        )
        with ThreadPoolExecutor(len(requests)) as pool, psycopg.connect(database_url) as holder:
            holder.execute(lock)
            answers = [pool.submit(request) for request in requests]
            # Less than their lock timeout.
            deadline = time.monotonic() + 50
            while rows(waiting)[0]["n"] < len(requests):
                assert time.monotonic() < deadline, "the requests don't wait for the lock"
                time.sleep(0.01)
            holder.commit()
        return [answer.result() for answer in answers]

    return run
