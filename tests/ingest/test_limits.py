"""Who asks too often waits; who can wait makes room; a database that keeps silent keeps nobody waiting."""

from __future__ import annotations

import gzip
import io
import json
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest
from flask.testing import FlaskClient

from app.api import problems
from app.application import Watchpost
from app.dev import embedded
from app.limits.admission import CRITICAL, LOW, NORMAL, Admission
from config.settings import Settings
from tests.support.agent import TOKEN_ENDPOINT, Agent
from tests.support.application import create_app
from tests.support.service import free_port

WRONG = {"Authorization": "Bearer not.a.token"}
GZIP = {"Content-Encoding": "gzip"}


def prompt(agent: Agent, number: int = 0) -> dict[str, Any]:
    now = int(time.time() * 1000)
    return {
        "device_id": agent.device_id,
        "instance_id": "i",
        "site": "s",
        "url": "u",
        "prompt": f"prompt {number}",
        "timestamp": now,
    }


@pytest.fixture
def settings(settings: Settings, request: pytest.FixtureRequest) -> Settings:
    """Limits that a few requests reach: `@pytest.mark.parametrize("limits", [{"device_rate": 5}])`."""
    given = request.node.callspec.params.get("limits", {}) if hasattr(request.node, "callspec") else {}
    return replace(settings, **given)


def with_limits(**limits: Any) -> Any:
    return pytest.mark.parametrize("limits", [limits], ids=[""])


def last_refused(answers: list[Any]) -> Any:
    """A machine that stalls at the end may let the very last one in again."""
    return [answer for answer in answers if answer.status_code == 429][-1]


def assert_refused(answer: Any, status: int = 429, name: str = "too-many-requests") -> int:
    assert answer.status_code == status
    assert answer.json["type"] == f"urn:watchpost:problem:{name}"
    assert answer.content_type == "application/problem+json"
    assert int(answer.headers["Retry-After"]) >= 1
    return int(answer.headers["Retry-After"])


# Here and below: what is refilled is so little that a machine which stalls for seconds gives away no more than some.
@with_limits(device_rate=1, burst_seconds=10)
def test_a_device_over_its_rate_limit_gets_429_and_slows_nobody(
    limits: Any, client: FlaskClient, register: Any, access: Any, rows: Callable[..., list[dict[str, Any]]]
) -> None:
    flooding, quiet = register(), register()
    tokens = access(flooding), access(quiet)
    answers = [client.post("/api/prompt", json=prompt(flooding, n), headers=tokens[0]) for n in range(30)]
    statuses = [answer.status_code for answer in answers]
    # Ten at once, one of them the token's; a slow machine refills a few meanwhile.
    assert 9 <= statuses.count(201) <= 20
    assert set(statuses) == {201, 429}
    wait = assert_refused(last_refused(answers))
    assert wait <= 2
    assert client.post("/api/prompt", json=prompt(quiet), headers=tokens[1]).status_code == 201
    count = "SELECT count(*) AS stored FROM prompts WHERE device_id = %s"
    assert rows(count, flooding.device_id) == [{"stored": statuses.count(201)}]
    time.sleep(wait)
    assert client.post("/api/prompt", json=prompt(flooding, 99), headers=tokens[0]).status_code == 201


@with_limits(device_rate=0.1, burst_seconds=100)
def test_a_flood_of_prompts_holds_up_no_compliance_event_heartbeat_or_token(
    limits: Any, client: FlaskClient, device: Agent, headers: dict[str, str], now_ms: int
) -> None:
    answers = [client.post("/api/prompt", json=prompt(device, n), headers=headers) for n in range(30)]
    assert_refused(answers[-1])
    event = {"device_id": device.device_id, "event_type": "prompt_blocked", "severity": "high"}
    assert client.post("/api/compliance/event", json=event, headers=headers).status_code == 201
    beat = {"device_id": device.device_id}
    assert client.post("/api/devices/heartbeat", json=beat, headers=headers).status_code == 200
    assert client.post("/api/auth/token", data=device.token_request(TOKEN_ENDPOINT)).status_code == 200


@with_limits(device_rate=0.1, burst_seconds=100)
@pytest.mark.parametrize("is_valid", [True, False])
@pytest.mark.parametrize("is_gzip", [True, False])
def test_a_large_body_costs_its_device_more_of_its_rate(
    limits: Any, client: FlaskClient, device: Agent, headers: dict[str, str], is_gzip: bool, is_valid: bool
) -> None:
    body = json.dumps(prompt(device) | {"metadata": {"a": "x" * 400_000}}).encode()
    if not is_valid:
        body = body[:-1]
    if is_gzip:
        body = gzip.compress(body)
    more = {"Content-Encoding": "gzip"} if is_gzip else {}
    statuses = [
        client.post("/api/prompt", data=body, content_type="application/json", headers=headers | more).status_code
        for _ in range(2)
    ]
    assert statuses == [201 if is_valid else 400, 429]


@with_limits(device_rate=0.1, burst_seconds=100)
@pytest.mark.parametrize("path", ["/api/prompt", "/api/batch"])
def test_a_small_body_of_unannounced_length_costs_no_more_than_another(
    limits: Any, client: FlaskClient, device: Agent, headers: dict[str, str], path: str
) -> None:
    """It takes as many slots as the largest, until it is known."""
    body: Any = prompt(device)
    if path == "/api/batch":
        body = {"items": [{"type": "prompt", "body": body}]}
    statuses = [
        client.post(
            path,
            input_stream=io.BytesIO(json.dumps(body).encode()),
            content_type="application/json",
            headers={**headers, "Transfer-Encoding": "chunked"},
            environ_overrides={"wsgi.input_terminated": True},
        ).status_code
        // 100
        for _ in range(4)
    ]
    assert statuses == [2] * 4


@with_limits(device_rate=0.1, burst_seconds=100)
def test_the_items_of_a_batch_count_against_the_rate_of_its_device(
    limits: Any, client: FlaskClient, device: Agent, headers: dict[str, str]
) -> None:
    items = [{"type": "prompt", "body": prompt(device, n)} for n in range(120)]
    statuses = [client.post("/api/batch", json={"items": items}, headers=headers).status_code for _ in range(2)]
    assert statuses == [200, 429]


@with_limits(device_rate=1, burst_seconds=10)
def test_the_token_endpoint_has_a_rate_limit_per_device(
    limits: Any, client: FlaskClient, device: Agent, rows: Any
) -> None:
    answers = [client.post("/api/auth/token", data=device.token_request(TOKEN_ENDPOINT)) for _ in range(25)]
    statuses = [answer.status_code for answer in answers]
    assert set(statuses) == {200, 429}
    assert int(answers[statuses.index(429)].headers["Retry-After"]) >= 1
    # What was refused used up no assertion.
    assert rows("SELECT count(*) AS used FROM client_assertions") == [{"used": statuses.count(200)}]


@with_limits(enrollment_rate=0.4, burst_seconds=10)
def test_registrations_have_a_rate_limit_per_enrolment(
    limits: Any, client: FlaskClient, enrollment: Any, bearer: Any, rows: Any
) -> None:
    one, other = bearer(enrollment()), bearer(enrollment())
    agents = [Agent() for _ in range(12)]
    answers = [client.post("/api/devices/register", json=agent.registration(), headers=one) for agent in agents]
    statuses = [answer.status_code for answer in answers]
    assert 4 <= statuses.count(201) <= 8
    assert_refused(last_refused(answers))
    assert rows("SELECT sum(uses) AS uses FROM enrollments") == [{"uses": statuses.count(201)}]
    assert client.post("/api/devices/register", json=agents[-1].registration(), headers=other).status_code == 201


@with_limits(address_rate=0.1, burst_seconds=100)
def test_invalid_tokens_have_a_rate_limit_per_address_and_valid_ones_have_none(
    limits: Any, client: FlaskClient, register: Any, access: Any
) -> None:
    known, fresh = register(), register()
    cached, not_seen_yet = access(known), access(fresh)
    assert client.post("/api/prompt", json=prompt(known), headers=cached).status_code == 201
    guesses = [client.post("/api/prompt", json={}, headers=WRONG) for _ in range(25)]
    assert [answer.status_code for answer in guesses[:10]] == [401] * 10
    assert_refused(guesses[-1])
    # A valid token is never refused for its address, whether this worker has seen it or not.
    assert client.post("/api/prompt", json=prompt(fresh), headers=not_seen_yet).status_code == 201
    assert client.post("/api/auth/token", data=known.token_request(TOKEN_ENDPOINT)).status_code == 429
    assert client.post("/api/prompt", json=prompt(known, 1), headers=cached).status_code == 201


@with_limits(address_rate=0.1, burst_seconds=100)
def test_invalid_assertions_count_against_the_rate_limit_of_the_address(
    limits: Any, client: FlaskClient, device: Agent
) -> None:
    form = {**Agent(device.device_id).token_request(TOKEN_ENDPOINT)}
    statuses = [client.post("/api/auth/token", data=form).status_code for _ in range(25)]
    assert statuses[:10] == [401] * 10
    assert statuses[-1] == 429


@with_limits(address_rate=0.1, burst_seconds=10)
def test_a_client_can_not_choose_its_address_by_x_forwarded_for(limits: Any, client: FlaskClient) -> None:
    forwarded = [{**WRONG, "X-Forwarded-For": f"192.0.2.{n}"} for n in range(20)]
    assert [client.post("/api/prompt", headers=headers).status_code for headers in forwarded][-1] == 429


@with_limits(address_rate=0.1, burst_seconds=10)
def test_an_ipv6_prefix_of_64_bits_shares_one_rate_limit(limits: Any, client: FlaskClient) -> None:
    def last_of(addresses: list[str]) -> int:
        answers = [client.post("/api/prompt", headers=WRONG, environ_overrides={"REMOTE_ADDR": a}) for a in addresses]
        return answers[-1].status_code

    assert last_of([f"2001:db8:1:2:{n:x}::{n:x}" for n in range(20)]) == 429
    assert last_of([f"2001:db8:1:{n:x}::1" for n in range(3, 20)]) == 401
    assert last_of([f"::ffff:192.0.2.{n}" for n in range(20)]) == 401
    assert last_of([f"fe80::1%eth{n}" for n in range(20)]) == 429


@with_limits(address_rate=0.1, burst_seconds=10, proxies=1)
def test_behind_a_proxy_the_rate_limit_uses_the_address_from_x_forwarded_for(limits: Any, client: FlaskClient) -> None:
    honest = [{**WRONG, "X-Forwarded-For": f"192.0.2.{n}"} for n in range(20)]
    assert {client.post("/api/prompt", headers=headers).status_code for headers in honest} == {401}
    lying = [{**WRONG, "X-Forwarded-For": f"192.0.2.{n}, 198.51.100.1"} for n in range(20)]
    assert [client.post("/api/prompt", headers=headers).status_code for headers in lying][-1] == 429


@with_limits(address_rate=0.1, burst_seconds=10, proxies=1)
@pytest.mark.parametrize(
    "address",
    ["198.51.100.1:{}", "[2001:db8::1]:{}", "[2001:db8::{:x}]", "[::ffff:198.51.100.1]:{}", " 198.51.100.1:{} "],
)
def test_an_address_behind_a_proxy_counts_in_the_rate_limit_without_its_port(
    address: str, limits: Any, client: FlaskClient
) -> None:
    asked = [{**WRONG, "X-Forwarded-For": address.format(1024 + n)} for n in range(20)]
    assert [client.post("/api/prompt", headers=headers).status_code for headers in asked][-1] == 429
    without = re.sub(r"\]?:?\{.*", "", address).strip(" [")
    without = "2001:db8::1" if "2001" in without else without
    assert client.post("/api/prompt", headers={**WRONG, "X-Forwarded-For": without}).status_code == 429


@with_limits(device_rate=0, enrollment_rate=0, address_rate=0, burst_seconds=1)
def test_a_rate_limit_of_zero_is_no_limit(limits: Any, client: FlaskClient, device: Agent, headers: Any) -> None:
    assert {client.post("/api/prompt", headers=WRONG).status_code for _ in range(50)} == {401}
    answers = [client.post("/api/prompt", json=prompt(device, n), headers=headers) for n in range(50)]
    assert {answer.status_code for answer in answers} == {201}


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("redis-server is not installed")
    port = free_port()
    command = [program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while subprocess.run(["redis-cli", "-p", str(port), "ping"], capture_output=True, check=False).returncode:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield f"redis://127.0.0.1:{port}/0", process
    finally:
        process.kill()
        process.wait(60)


def test_workers_share_rate_limits_in_redis_and_count_alone_without_it(
    redis_server: Any, settings: Settings, register: Any, access: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, process = redis_server
    # A Redis that is late is away, and the machine may be so slow.
    monkeypatch.setattr("app.limits.rates.REDIS_SECONDS", 20)
    agents = [register(), register()]
    tokens = [access(agent) for agent in agents]
    limited = replace(settings, redis_url=url, device_rate=1, burst_seconds=10)
    workers: list[Watchpost] = [create_app(limited), create_app(limited)]
    try:

        def send(number: int, who: int) -> int:
            client = workers[number % 2].test_client()
            return client.post("/api/prompt", json=prompt(agents[who], number), headers=tokens[who]).status_code

        together = [send(number, 0) for number in range(30)]
        assert 10 <= together.count(201) <= 18
        process.kill()
        process.wait(60)
        # Each gives the other device its own ten now.
        alone = [send(number, 1) for number in range(30)]
        assert alone.count(201) >= 18
        assert set(together + alone) == {201, 429}
    finally:
        for worker in workers:
            worker.extensions["db"].close()


@with_limits(connections=10, pool_size=8)
def test_load_shedding_refuses_heartbeats_first_then_prompts_and_accepts_compliance_events(
    limits: Any, app: Watchpost, device: Agent, headers: Any, database_url: str, rows: Any
) -> None:
    def post(path: str, body: dict[str, Any]) -> Any:
        return app.test_client().post(path, json=body, headers=headers)

    def in_flight() -> int:
        return int(app.extensions["limits"].admission.taken)

    def wait_for(number: int) -> None:
        # Less than they wait for the lock.
        deadline = time.monotonic() + 50
        while in_flight() != number:
            assert time.monotonic() < deadline, in_flight()
            time.sleep(0.01)

    event = {"device_id": device.device_id, "event_type": "tamper_detected", "severity": "high"}
    with ThreadPoolExecutor(16) as pool, psycopg.connect(database_url) as holder:
        holder.execute("LOCK TABLE prompts, compliance_events IN ACCESS EXCLUSIVE MODE")
        waiting = [pool.submit(post, "/api/prompt", prompt(device, n)) for n in range(5)]
        wait_for(5)
        assert_refused(post("/api/devices/heartbeat", {"device_id": device.device_id}), 503, "overloaded")
        waiting += [pool.submit(post, "/api/prompt", prompt(device, n)) for n in range(5, 8)]
        wait_for(8)
        assert_refused(post("/api/prompt", prompt(device, 8)), 503, "overloaded")
        assert_refused(post("/api/batch", {"items": [{"type": "prompt", "body": prompt(device)}]}), 503, "overloaded")
        waiting += [pool.submit(post, "/api/compliance/event", {**event, "details": {"n": n}}) for n in range(2)]
        wait_for(10)
        assert_refused(post("/api/compliance/event", event), 503, "overloaded")
        assert app.test_client().get("/livez").status_code == 200
        holder.rollback()
        assert [answer.result().status_code for answer in waiting] == [201] * 10
    wait_for(0)
    assert post("/api/devices/heartbeat", {"device_id": device.device_id}).status_code == 200
    assert rows("SELECT count(*) AS n FROM prompts") == [{"n": 8}]
    assert rows("SELECT count(*) AS n FROM compliance_events") == [{"n": 2}]


def test_load_shedding_of_a_late_worker_accepts_as_many_as_it_has_slots() -> None:
    admission = Admission(10)
    # Nobody notes that a new turn begins: this one lasts, as it does when thousands are ready at once.
    admission._is_watched, admission._tick_began = True, time.monotonic() - 1
    taken, refused = [], []
    for share in (LOW, NORMAL, CRITICAL):
        for _ in range(20):
            try:
                admission.acquire(share, 1)
            except problems.Problem as problem:
                refused.append(problem)
            else:
                taken.append(share)
                admission.release(1)
    assert taken == [LOW] * 5 + [NORMAL] * 3 + [CRITICAL] * 2
    assert {problem.status for problem in refused} == {503}
    # Nobody waits longer than it takes to serve all who were refused, at the pace of just now.
    assert {int(problem.headers["Retry-After"]) for problem in refused} <= set(range(2, 9))
    admission._is_watched = False
    deadline = time.monotonic() + 60
    while True:
        try:
            admission.acquire(LOW, 1)
            break
        except problems.Problem:
            assert time.monotonic() < deadline, "the watch does not see that a new turn has begun"
            time.sleep(0.01)


@with_limits(connections=2)
def test_an_idle_worker_accepts_a_body_larger_than_its_slots(
    limits: Any, client: FlaskClient, device: Agent, headers: Any
) -> None:
    body = {**prompt(device), "prompt": "x" * 200_000}
    assert client.post("/api/prompt", json=body, headers=headers).status_code == 201


class Trickle(io.RawIOBase):
    """A body of which no byte comes until somebody lets go."""

    def __init__(self, body: bytes) -> None:
        self.body = body
        self.is_asked, self.is_over = threading.Event(), threading.Event()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self.is_asked.set()
        self.is_over.wait(120)
        piece, self.body = self.body[: len(buffer)], self.body[len(buffer) :]
        buffer[: len(piece)] = piece
        return len(piece)


@pytest.mark.parametrize("path", ["/api/prompt", "/api/batch"])
@with_limits(connections=40)
def test_slow_senders_hold_only_a_part_of_the_slots(
    limits: Any,
    app: Watchpost,
    register: Any,
    access: Any,
    rows: Callable[..., list[dict[str, Any]]],
    path: str,
) -> None:
    slow, other = register(), register()
    headers, others = access(slow), access(other)
    body = {"items": [{"type": "prompt", "body": prompt(slow)}]} if path == "/api/batch" else prompt(slow)
    # The first of them is cached, so that plain ones go the short way.
    assert app.test_client().post("/api/prompt", json=prompt(slow), headers=headers).status_code == 201
    # Each batch takes two slots, each prompt one; sixteen are what one may have.
    padding = b" " * 66_000 if path == "/api/batch" else b""
    bodies = [Trickle(json.dumps(body).encode() + padding) for _ in range(8 if padding else 16)]
    with ThreadPoolExecutor(len(bodies)) as threads:
        answers = []
        for one in bodies:
            environ = {"wsgi.input": one, "CONTENT_LENGTH": str(len(one.body)), "CONTENT_TYPE": "application/json"}
            answers.append(threads.submit(app.test_client().post, path, headers=headers, environ_overrides=environ))
            assert one.is_asked.wait(60)
        assert_refused(app.test_client().post("/api/prompt", json=prompt(slow, 1), headers=headers))
        heartbeat = {"device_id": other.device_id}
        assert app.test_client().post("/api/devices/heartbeat", json=heartbeat, headers=others).status_code == 200
        for one in bodies:
            one.is_over.set()
    assert {answer.result().status_code for answer in answers} <= {200, 201}
    assert app.test_client().post("/api/prompt", json=prompt(slow, 1), headers=headers).status_code == 201
    assert rows("SELECT count(*) AS stored FROM prompts WHERE prompt = 'prompt 1'") == [{"stored": 1}]


@with_limits(connections=320)
def test_a_gzip_body_takes_the_slots_of_its_inflated_size(
    limits: Any, app: Watchpost, device: Agent, headers: Any, database_url: str
) -> None:
    items = [{"type": "prompt", "body": prompt(device)}]
    # 33 slots, of the 40 that one caller may have; as it comes it is smaller than one.
    body = gzip.compress(json.dumps({"items": items}).encode().ljust(2 << 20))
    assert len(body) < 4096

    def post(path: str, **more: Any) -> Any:
        return app.test_client().post(path, headers={**headers, "Content-Type": "application/json", **GZIP}, **more)

    admission = app.extensions["limits"].admission
    with psycopg.connect(database_url) as holder, ThreadPoolExecutor(1) as threads:
        holder.execute("LOCK TABLE prompts IN ACCESS EXCLUSIVE MODE")
        first = threads.submit(post, "/api/batch", data=body)
        deadline = time.monotonic() + 50
        while admission.taken < 33:
            assert time.monotonic() < deadline, admission.taken
            time.sleep(0.01)
        for _ in range(3):
            assert_refused(post("/api/batch", data=body))
            assert admission.taken == 33
        small = gzip.compress(json.dumps({"device_id": device.device_id}).encode())
        assert post("/api/devices/heartbeat", data=small).status_code == 200
        holder.rollback()
        assert first.result().json["results"][0]["status"] == 201
    assert post("/api/batch", data=body).json["results"][0]["status"] == 200
    assert (admission.taken, admission._taken_by) == (0, {})


def test_a_silent_database_is_503_within_the_timeout(folder: Path, settings: Settings) -> None:
    """A server that is stopped, not dead: its connections stand, and nothing comes back."""
    with embedded.running(str(folder), "fsync = off\n"):
        own = replace(settings, database_url="", owner_database_url="", data_dir=str(folder))
        patient = create_app(own)
        runner = patient.test_cli_runner()
        assert runner.invoke(args=["migrate"]).exit_code == 0
        arguments = ["enrollment", "create", "--label", "l", "--max-uses", "9", "--expires-in", "1d"]
        token = runner.invoke(args=arguments).stdout.strip()
        agent, client = Agent(), patient.test_client()
        registered = client.post(
            "/api/devices/register", json=agent.registration(), headers={"Authorization": f"Bearer {token}"}
        )
        assert registered.status_code == 201
        form = agent.token_request(TOKEN_ENDPOINT)
        answer = client.post("/api/auth/token", data=form)
        headers = {"Authorization": f"Bearer {answer.json['access_token']}"}
        patient.extensions["db"].close()
        app = create_app(replace(own, statement_timeout_ms=500, pool_wait_seconds=1))
        client = app.test_client()
        _until_stored(app, prompt(agent), headers)
        servers = [one for one in psutil.process_iter(["name"]) if _belongs_to(one, folder)]
        assert servers
        try:
            for server in servers:
                server.send_signal(signal.SIGSTOP)
            began = time.monotonic()
            with ThreadPoolExecutor(8) as pool:
                answers = list(pool.map(lambda n: _post(app, prompt(agent, n), headers), range(8)))
            assert {answer.status_code for answer in answers} == {503}
            assert all(int(answer.headers["Retry-After"]) > 0 for answer in answers)
            # A few seconds; who waits for the server waits as long as it is stopped.
            assert time.monotonic() - began < 60
            assert client.get("/livez").status_code == 200
            assert client.get("/readyz").status_code == 503
        finally:
            for server in servers:
                server.send_signal(signal.SIGCONT)
        _until_stored(app, prompt(agent, 100), headers)
        app.extensions["db"].close()


def _until_stored(app: Watchpost, body: dict[str, Any], headers: Any) -> None:
    deadline = time.monotonic() + 60
    while _post(app, body, headers).status_code not in (200, 201):
        assert time.monotonic() < deadline


def _post(app: Watchpost, body: dict[str, Any], headers: Any) -> Any:
    return app.test_client().post("/api/prompt", json=body, headers=headers)


def _belongs_to(process: psutil.Process, folder: Path) -> bool:
    try:
        return process.info["name"] == "postgres" and folder in Path(process.cwd()).parents
    except psutil.Error:
        return False
