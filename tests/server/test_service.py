"""The service as it is started and stopped: gunicorn, its workers, the embedded PostgreSQL."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest

from app.db.urls import cluster_folder, socket_folder
from app.dev import embedded
from app.dev.programs import EmbeddedError
from app.server import connection
from config.settings import SettingError, load
from tests.support.service import (
    Service,
    processes_of,
    prompt,
    registered,
    servers_of,
    serving,
    token_of,
    wait_for,
)
from tests.support.site import Site, faults


def kill_servers(folder: Path) -> None:
    """Kill the servers that run in this folder, and wait until another has been started."""
    killed = servers_of(folder)
    for server in killed:
        server.kill()
    # One of its processes may outlive it for a moment, and answer.
    wait_for(lambda: bool(set(servers_of(folder)) - set(killed)))


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


# Who waits for a lock does so for longer than a slow machine takes to stop listening.
PATIENT = {"statement_timeout_ms": 120_000}


@contextlib.contextmanager
def holding_up_prompts(folder: Path) -> Iterator[tuple[psycopg.Connection, Callable[[], bool]]]:
    """Lock the table until the connection rolls back; the other says whether a prompt waits for that."""
    database = embedded.url(str(folder / "data"))
    with psycopg.connect(database) as blocker, psycopg.connect(database, autocommit=True) as observer:
        blocker.execute("LOCK TABLE prompts IN ACCESS EXCLUSIVE MODE")
        # The service looks after its partitions soon after the start, and may wait for the same.
        waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE %s"
        yield blocker, lambda: observer.execute(waiting, ["%/* prompts/insert_prompts */%"]).fetchone() == (1,)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_lets_a_running_request_finish_and_stops_the_database_after_it(folder: Path, number: int) -> None:
    with serving(folder, **PATIENT, graceful_seconds=120) as service:
        agent, token = registered(service)
        with ThreadPoolExecutor(1) as threads, holding_up_prompts(folder) as (blocker, is_waiting):
            running = threads.submit(service.post, "/api/prompt", prompt(agent), token)
            wait_for(is_waiting)
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


def test_the_workers_of_a_killed_master_answer_whom_they_have_let_in(folder: Path) -> None:
    with serving(folder, **PATIENT, graceful_seconds=120) as service:
        agent, token = registered(service)
        with ThreadPoolExecutor(1) as threads, holding_up_prompts(folder) as (blocker, is_waiting):
            running = threads.submit(service.post, "/api/prompt", prompt(agent), token)
            wait_for(is_waiting)
            service.process.kill()
            service.process.wait()
            wait_for(lambda: _refuses_connections(service))
            blocker.rollback()
            assert running.result().status == 201
    wait_for(lambda: servers_of(folder) == [])


def test_a_killed_database_server_does_not_stop_the_next_start(folder: Path) -> None:
    with serving(folder) as service:
        agent, token = registered(service)
        assert service.post("/api/prompt", prompt(agent), token).status == 201
        for server in servers_of(folder):
            server.kill()
        service.kill_everything()
    wait_for(lambda: not processes_of(folder))
    # A number that is another process's by now.
    (folder / "data" / "postgresql" / "postmaster.pid").write_text(f"{os.getpid()}\n")
    with serving(folder, bind=service.bind) as second:
        assert second.post("/api/prompt", prompt(agent), token).status == 201


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
        service.operate("keys", "rotate")
        assert service.post("/api/prompt", prompt(agent), token_of(service, agent)).status in (200, 201)
        assert service.post("/api/prompt", prompt(agent), token).status in (200, 201)
        service.operate("device", "revoke", agent.device_id)
        assert [service.post("/api/prompt", prompt(agent), token).status for _ in range(8)] == [403] * 8
        service.operate("device", "restore", agent.device_id)
        assert service.post("/api/prompt", prompt(agent), token).status == 201


def test_hup_replaces_the_workers_and_the_service_goes_on(folder: Path, database_url: str) -> None:
    with serving(folder, database_url=database_url) as service:
        agent, token = registered(service)
        before = set(service.workers())
        service.process.send_signal(signal.SIGHUP)
        wait_for(lambda: len(set(service.workers()) - before) == 2)
        assert service.post("/api/prompt", prompt(agent), token).status == 201


def test_a_worker_is_replaced_after_as_many_requests_as_gunicorn_is_told(
    folder: Path, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GUNICORN_CMD_ARGS", "--max-requests 10")
    with serving(folder, database_url=database_url, workers=1) as service:
        for _ in range(10):
            assert service.get("/livez").status == 200
        wait_for(lambda: service.log.read_text().count("Booting worker") > 1)
        assert service.get("/livez").status == 200


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
    assert service.process.wait(60) != 0
    assert "WATCHPOST_POOL_SIZE must be a whole number." in service.log.read_text()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("POOL_SIZE", "0"),
        ("ACCESS_TOKEN_SECONDS", "x"),
        ("ISSUER", "ftp://x"),
        ("ISSUER", "example.com"),
        ("DATABASE_URL", "mysql://x/y"),
        ("READ_DATABASE_URL", "mysql://x/y"),
        ("DATABASE_URL", "postgresql://u:half%zz@h/d"),
        ("DATABASE_URL", "postgresql://u:half@half@h/d"),
        ("DATABASE_URL", "postgresql://u:half/half@h/d"),
        ("OWNER_DATABASE_URL", "postgresql://u:half?half@h/d"),
        ("DATABASE_URL", "postgresql://u@h:port/d"),
        ("PREPARE_STATEMENTS", "perhaps"),
        ("LOG_LEVEL", "loud"),
    ],
)
def test_settings_are_checked(name: str, value: str) -> None:
    with pytest.raises(SettingError, match=f"WATCHPOST_{name}") as refusal:
        load({f"WATCHPOST_{name}": value})
    assert "half" not in str(refusal.value)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u@/d?host=/run/postgresql&port=5433",
        "postgresql://u:p%40ss:word@db1:5432,db2/d?target_session_attrs=read-write",
        "postgres://%2Frun%2Fpostgresql/d",
        "postgresql://u@[::1]:5432/d",
        "postgresql://",
    ],
)
def test_whatever_libpq_reads_is_a_database_url(url: str) -> None:
    assert psycopg.conninfo.conninfo_to_dict(url) is not None
    assert load({"WATCHPOST_DATABASE_URL": url}).database_url == url


def test_defaults_are_those_of_the_contract() -> None:
    settings = load({})
    assert settings.bind == "127.0.0.1:8000"
    assert settings.issuer == "http://127.0.0.1:8000"
    assert settings.data_dir == ".data"
    assert settings.access_token_seconds == 900


def raw(service: Service, request: bytes, half_close: bool = False) -> bytes:
    """Send bytes as they are and return all that comes back."""
    host, port = service.bind.split(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(request)
        if half_close:
            connection.shutdown(socket.SHUT_WR)
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
        return answer


FORM = b"POST /api/auth/token HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
URLENCODED = b"Content-Type: application/x-www-form-urlencoded\r\n"


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET / HTTP/1.1\r\nAuthorization Bearer MARKED-SECRET\r\n\r\n", b"400"),
        (b'{"prompt": "MARKED-SECRET"}\r\n\r\n', b"400"),
        (FORM + b"Expect: MARKED-SECRET\r\n\r\n", b"417"),
        (FORM + b"Transfer-Encoding: MARKED-SECRET\r\n\r\n", b"501"),
        (FORM + b"X-Long: " + b"MARKED-SECRET" * 2000 + b"\r\n\r\n", b"431"),
        (FORM + URLENCODED + b"Transfer-Encoding: chunked\r\n\r\nMARKED-SECRET\r\nabc\r\n0\r\n\r\n", b"400"),
        (FORM + URLENCODED + b"Transfer-Encoding: chunked\r\n\r\n-5\r\nabc\r\n0\r\n\r\n", b"400"),
    ],
    ids=["header", "request line", "expect", "transfer coding", "long header", "chunk size", "negative chunk"],
)
def test_what_is_not_http_is_refused_without_a_word_of_it(site: Site, request_bytes: bytes, status: bytes) -> None:
    answer = raw(site.service, request_bytes)
    assert answer.startswith(b"HTTP/1.1 " + status)
    assert b"request_id" in answer
    assert b"X-Request-ID: " in answer
    assert b"MARKED-SECRET" not in answer
    assert site.service.get("/livez").status == 200
    assert "MARKED-SECRET" not in site.service.log.read_text()
    assert faults(site.service) == []


def test_a_body_that_stops_before_its_end_is_not_taken_and_may_be_repeated(site: Site) -> None:
    body = json.dumps(prompt(site.agent)).encode()
    head = f"POST /api/prompt HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {site.token}\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body) + 50}\r\n\r\n"
    answer = raw(site.service, head.encode() + body, half_close=True)
    assert answer.startswith(b"HTTP/1.1 503")
    assert b"Retry-After: " in answer
    assert site.service.post("/api/prompt", body, site.token).status == 201


def test_a_stop_leaves_nothing_but_json_lines_in_the_log(folder: Path, database_url: str) -> None:
    with serving(folder, database_url=database_url) as service:
        registered(service)
    for line in service.log.read_text().splitlines():
        assert isinstance(json.loads(line), dict)


def test_a_database_server_that_dies_is_started_again(folder: Path) -> None:
    with serving(folder) as service:
        agent, token = registered(service)
        body = prompt(agent)
        assert service.post("/api/prompt", body, token).status == 201
        kill_servers(folder)
        wait_for(lambda: service.get("/readyz").status == 200)
        assert service.post("/api/prompt", body, token).status == 200


def test_a_worker_that_is_aborted_is_gone_at_once(folder: Path) -> None:
    limits = {"pool_wait_seconds": 120, **PATIENT}
    with serving(folder, workers=1, **limits) as service, ThreadPoolExecutor(6) as threads:
        [worker] = service.workers()
        server = [one for parent in servers_of(folder) for one in (parent, *parent.children(recursive=True))]
        for process in server:
            process.suspend()
        try:
            # They make the worker open connections, which stay half open.
            waiting = [threads.submit(service.get, "/readyz") for _ in range(6)]
            wait_for(lambda: _has_let_in(worker, service) == 6)
            time.sleep(1)
            worker.send_signal(signal.SIGABRT)
            # An orderly end would take as long as the database keeps silent.
            assert psutil.wait_procs([worker], 30)[1] == []
        finally:
            for process in server:
                process.resume()
        assert all(isinstance(one.exception(), OSError) for one in waiting)
        service.wait_until_ready()


def _has_let_in(worker: psutil.Process, service: Service) -> int:
    """How many connections of clients a worker has."""
    there = worker.net_connections("tcp4")
    return sum(
        one.status == psutil.CONN_ESTABLISHED and service.bind == f"{one.laddr.ip}:{one.laddr.port}" for one in there
    )


def test_children_that_are_killed_are_replaced(folder: Path) -> None:
    with serving(folder) as service:
        agent, token = registered(service)
        for find, name in ((service.background_worker, "worker"), (service.master, "gunicorn")):
            killed = find()
            killed.kill()
            wait_for(lambda: find() not in (None, killed))  # noqa: B023
            assert f"{name} died and is started again" in service.log.read_text()
        kill_servers(folder)
        wait_for(lambda: _status(service, "/api/prompt", prompt(agent), token) in (200, 201))
        service.end()
        assert servers_of(folder) == []


def _status(service: Service, *request: Any) -> int:
    """Of an answer; 0 when there is none."""
    try:
        return service.post(*request).status
    except OSError:
        return 0


def test_children_that_are_replaced_need_nothing_that_only_a_start_does(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = folder / "temporary"
    temporary.mkdir(mode=0o755)
    monkeypatch.setenv("TMPDIR", str(temporary))
    with serving(folder) as service:
        database = embedded.url(str(folder / "data"))
        # As if somebody had changed a file, with which no service starts.
        with psycopg.connect(database) as connection:
            connection.execute("UPDATE migration_checksums SET sha256 = 'other'")
        service.background_worker().kill()
        service.master().kill()
        wait_for(lambda: service.log.read_text().count("died and is started again") >= 2)
        for _ in range(2):
            kill_servers(folder)
            service.wait_until_ready()
        # Where the workers count; those of the killed master have removed theirs.
        wait_for(lambda: len(list(temporary.glob("watchpost-counters-*/*.db"))) == 2 * len(service.workers()))
        service.end()
        assert list(temporary.glob("watchpost-counters-*")) == []


def test_a_child_that_fails_is_replaced_again_and_again(folder: Path) -> None:
    script = """
import sys
from app.dev import serve
serve.WORKER = [sys.executable, "-c", "raise SystemExit(5)"]
sys.exit(serve.main())
"""
    service = Service(folder, command=[sys.executable, "-c", script])
    try:
        service.wait_until_ready()
        wait_for(lambda: service.log.read_text().count("worker died and is started again") >= 3)
        assert service.get("/readyz").status == 200
        assert service.end() == 0
    finally:
        service.kill_everything()


def test_everything_ends_when_the_supervisor_is_killed(folder: Path) -> None:
    with serving(folder) as service:
        service.process.kill()
        service.process.wait()
        wait_for(lambda: not processes_of(folder))
        assert servers_of(folder) == []


def test_a_command_never_stops_the_database_of_a_service_without_its_supervisor(folder: Path) -> None:
    with serving(folder, **PATIENT, graceful_seconds=120) as service:
        agent, token = registered(service)
        with ThreadPoolExecutor(1) as threads, holding_up_prompts(folder) as (blocker, is_waiting):
            running = threads.submit(service.post, "/api/prompt", prompt(agent), token)
            wait_for(is_waiting)
            service.process.kill()
            service.process.wait()
            service.flask("device", "list")
            blocker.rollback()
            assert running.result().status == 201


def test_the_folder_of_the_socket_is_not_taken_from_somebody_else(tmp_path: Path) -> None:
    data = tmp_path / ("long" * 30)
    folder = socket_folder(cluster_folder(str(data)))
    folder.mkdir(mode=0o777)
    folder.chmod(0o777)
    try:
        with pytest.raises(EmbeddedError, match="only the server's user"), embedded.running(str(data)):
            pass
    finally:
        folder.rmdir()


def test_paths_with_quotes_commas_and_spaces_are_fine(folder: Path) -> None:
    with embedded.running(str(folder / "it's, a folder")) as url, psycopg.connect(url) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)


def test_the_server_is_that_of_the_programs_in_use(rows: Callable[..., list[dict[str, Any]]]) -> None:
    said = subprocess.run([embedded.programs() / "postgres", "--version"], capture_output=True, text=True, check=True)
    assert said.stdout.split()[2] == rows("SELECT split_part(current_setting('server_version'), ' ', 1) AS is")[0]["is"]


def test_programs_that_are_not_there_are_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHPOST_POSTGRESQL_PROGRAMS", str(folder / "bin"))
    with (
        pytest.raises(EmbeddedError, match=f"{folder}/bin: see WATCHPOST_POSTGRESQL_PROGRAMS"),
        embedded.running(str(folder)),
    ):
        pass


def test_files_of_another_version_are_refused_at_once(folder: Path) -> None:
    with embedded.running(str(folder)):
        pass
    (folder / "postgresql" / "PG_VERSION").write_text("14\n")
    with pytest.raises(EmbeddedError, match="was made by PostgreSQL 14"), embedded.running(str(folder)):
        pass


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"POST / HT",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 99999\r\n\r\n" + b" " * 65536,
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
)
def test_a_client_that_sends_or_reads_nothing_more_is_given_up(monkeypatch: pytest.MonkeyPatch, sent: bytes) -> None:
    monkeypatch.setattr(connection, "SILENCE_SECONDS", 0.2)

    def application(environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        return [environ["wsgi.input"].read() and b"", b"x" * 2**24]

    ours, silent = socket.socketpair()
    with ThreadPoolExecutor(1) as threads, silent:
        served = connection.Connection(ours, ("127.0.0.1", 1), application, {}, lambda: False)
        ended = threads.submit(served.serve)
        silent.sendall(sent)
        deadline = time.monotonic() + 20
        # As the worker does, once a second.
        while not ended.done() and time.monotonic() < deadline:
            time.sleep(0.05)
            if served.deadline <= time.monotonic():
                served.give_up()
        assert ended.done()


def test_a_client_that_sends_for_ever_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "MAX_REQUEST_SECONDS", 1)

    def application(environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", [("Content-Length", "9")])
        return [b"%9d" % len(environ["wsgi.input"].read())]

    ours, client = socket.socketpair()
    with ThreadPoolExecutor(1) as threads, client:
        served = connection.Connection(ours, ("127.0.0.1", 1), application, {}, lambda: False)
        ended = threads.submit(served.serve)
        client.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n\r\n")
        deadline = time.monotonic() + 20
        while not ended.done() and time.monotonic() < deadline:
            # Faster than it has to be, and never silent.
            with contextlib.suppress(OSError):
                client.sendall(b" " * 1024)
            time.sleep(0.02)
            if served.deadline <= time.monotonic():
                served.give_up()
        assert ended.done()
        assert b" 200 OK" in client.recv(1000)


def numbers_answered(served: connection.Connection, client: socket.socket, requests: list[bytes]) -> list[int]:
    """Send all at once, and return the numbers that the answers begin with."""
    answers = b""
    with ThreadPoolExecutor(1) as threads, client:
        client.sendall(b"".join(requests))
        client.shutdown(socket.SHUT_WR)
        threads.submit(served.serve)
        while part := client.recv(65536):
            answers += part
    return [int(number) for number in re.findall(rb"^/(\d+)", answers, re.MULTILINE)]


def test_of_many_requests_at_once_a_few_are_read_before_the_first_is_answered() -> None:
    waiting: list[int] = []

    def application(environ: Any, start_response: Any) -> list[bytes]:
        waiting.append(len(served._parser.ready))
        start_response("200 OK", [])
        return [environ["PATH_INFO"].encode()]

    ours, client = socket.socketpair()
    served = connection.Connection(ours, ("127.0.0.1", 1), application, {}, lambda: False)
    requests = [b"GET /%03d HTTP/1.1\r\nHost:\r\n\r\n" % number for number in range(500)]
    assert numbers_answered(served, client, requests) == list(range(500))
    assert max(waiting) < 50


def test_requests_that_come_at_once_and_are_refused_unread_are_all_answered() -> None:
    def application(environ: Any, start_response: Any) -> list[bytes]:
        start_response("401 UNAUTHORIZED", [])
        return [environ["PATH_INFO"].encode()]

    ours, client = socket.socketpair()
    served = connection.Connection(ours, ("127.0.0.1", 1), application, {}, lambda: False)
    head = b"POST /%03d HTTP/1.1\r\nHost:\r\nContent-Length: 600\r\n\r\n"
    requests = [head % number + b" " * 600 for number in range(20)]
    assert numbers_answered(served, client, requests) == list(range(20))
