"""`make run`: what it starts, what it says, and how it ends."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.service import (
    ROOT,
    SUPERVISED,
    Service,
    free_port,
    processes_of,
    prompt,
    registered,
    servers_of,
    serving,
    wait_for,
)


def messages(service: Service) -> list[str]:
    return [json.loads(line)["message"] for line in service.log.read_text().splitlines()]


def test_the_first_start_says_each_step_as_it_happens(folder: Path) -> None:
    with serving(folder) as service:
        steps = [
            "PostgreSQL: is created in ",
            "PostgreSQL: runs",
            "migrations: ",
            "signing key: made in ",
            "worker: background jobs",
            "the service answers",
        ]
        wait_for(lambda: steps[-1] in messages(service))
        own = [
            json.loads(line)["message"]
            for line in service.log.read_text().splitlines()
            if json.loads(line)["logger"] == "watchpost.serve"
        ]
        assert len(own) == len(steps), own
        assert all(message.startswith(step) for message, step in zip(own, steps, strict=True)), own
    assert processes_of(folder) == []


class Terminal:
    """A pseudo-terminal that a service's standard error is."""

    def __init__(self) -> None:
        self._ours, self.theirs = pty.openpty()
        self._shown = b""

    def shown(self) -> str:
        """What is on it so far."""
        while select.select([self._ours], [], [], 0)[0]:
            try:
                self._shown += os.read(self._ours, 65536)
            except OSError:
                break
        return self._shown.decode().replace("\r\n", "\n")

    def break_off(self) -> None:
        os.close(self._ours)


@contextlib.contextmanager
def on_a_terminal(folder: Path) -> Iterator[tuple[Service, Terminal]]:
    terminal = Terminal()
    service = Service(folder, stderr=terminal.theirs)
    os.close(terminal.theirs)
    try:
        yield service, terminal
    finally:
        service.kill_everything()


def test_a_terminal_shows_what_runs_where_and_what_to_do_next(folder: Path) -> None:
    with on_a_terminal(folder) as (service, terminal):
        wait_for(lambda: "Stop: Ctrl-C" in terminal.shown())
        text = terminal.shown()
        for line in (
            r"^PostgreSQL +runs, its files are in \S+/data/postgresql$",
            r"^migrations +\d+ applied$",
            r"^signing key +made in \S+/data/signing-keys.json$",
            r"^worker +background jobs$",
            rf"^service +answers at {service.url}$",
            rf" {service.url}/docs$",
        ):
            assert re.search(line, text, re.MULTILINE), (line, text)
        assert '{"' not in text
        # The command as it stands mints a token.
        [command] = re.findall(r"^ +\.venv/bin/flask --app wsgi (enrollment .*)$", text, re.MULTILINE)
        assert service.flask(*[word.strip('"') for word in re.findall(r'"[^"]*"|\S+', command)]) != ""
        assert service.get("/docs").status == 200
        service.process.send_signal(signal.SIGINT)
        assert service.process.wait(60) == 0


def test_a_terminal_that_is_gone_does_not_end_the_service(folder: Path) -> None:
    with on_a_terminal(folder) as (service, terminal):
        wait_for(lambda: "Stop: Ctrl-C" in terminal.shown())
        terminal.break_off()
        agent, token = registered(service)
        assert service.post("/api/prompt", prompt(agent), token).status == 201
        service.background_worker().kill()
        wait_for(lambda: service.background_worker() is not None)
        assert service.post("/api/prompt", prompt(agent), token).status in (200, 201)
        assert service.end() == 0
    assert servers_of(folder) == []


def heeds_hangups(process: psutil.Process) -> bool:
    """Whether a process ignores or handles SIGHUP."""
    with contextlib.suppress(OSError):
        status = Path(f"/proc/{process.pid}/status").read_text()
        masks = [int(mask, 16) for mask in re.findall(r"^Sig(?:Ign|Cgt):\s+(\w+)$", status, re.MULTILINE)]
        return any(mask >> (signal.SIGHUP - 1) & 1 for mask in masks)
    return False


@pytest.mark.parametrize("is_supervised", [True, False], ids=["make run", "gunicorn"])
def test_hangups_before_readiness_do_not_end_the_service(folder: Path, database_url: str, is_supervised: bool) -> None:
    service = Service(folder, is_supervised=is_supervised, database_url=database_url)
    try:
        process = psutil.Process(service.process.pid)
        wait_for(lambda: heeds_hangups(process))
        answered = False
        while not answered:
            assert service.process.poll() is None, service.log.read_text()
            service.process.send_signal(signal.SIGHUP)
            with contextlib.suppress(OSError):
                answered = service.get("/livez").status == 200
            # As often as a machine can bear: each is worth new workers once there are some.
            with contextlib.suppress(psutil.TimeoutExpired):
                process.wait(0.3)
        service.wait_until_ready()
        assert service.end() == 0
    finally:
        service.kill_everything()


def test_a_hangup_is_passed_on_and_replaces_gunicorns_workers(folder: Path, database_url: str) -> None:
    with serving(folder, is_supervised=True, database_url=database_url) as service:
        before = set(service.workers())
        master = service.master()
        service.process.send_signal(signal.SIGHUP)
        wait_for(lambda: len(service.workers()) == 2 and not set(service.workers()) & before)
        assert service.master() == master


def test_a_stop_while_the_database_is_made_leaves_nothing(folder: Path) -> None:
    service = Service(folder)
    try:
        wait_for(lambda: "is created" in service.log.read_text())
        assert service.end() == 0
        wait_for(lambda: not processes_of(folder))
        assert servers_of(folder) == []
    finally:
        service.kill_everything()


def test_two_starts_at_once_share_the_database_until_the_last_stops(folder: Path) -> None:
    first, second = Service(folder), Service(folder)
    try:
        first.wait_until_ready()
        second.wait_until_ready()
        assert first.end() == 0
        agent, token = registered(second)
        assert second.post("/api/prompt", prompt(agent), token).status == 201
        assert second.end() == 0
        assert servers_of(folder) == []
    finally:
        first.kill_everything()
        second.kill_everything()


def test_a_port_that_is_taken_ends_the_start(folder: Path, database_url: str) -> None:
    with serving(folder, database_url=database_url) as there:
        service = Service(folder, is_supervised=True, database_url=database_url, bind=there.bind)
        try:
            assert service.process.wait(60) != 0
        finally:
            service.kill_everything()
    assert "Connection in use" in service.log.read_text()


@pytest.mark.parametrize("mask", [0o000, 0o002, 0o077])
def test_the_data_folder_is_writable_for_its_owner_alone_whatever_the_umask(folder: Path, mask: int) -> None:
    parent = folder / "new"
    before = os.umask(mask)
    try:
        service = Service(parent / "service", log_folder=folder)
    finally:
        os.umask(before)
    try:
        service.wait_until_ready()
        assert service.end() == 0
    finally:
        service.kill_everything()
    for path in (parent, *parent.rglob("*")):
        assert path.is_symlink() or path.stat().st_mode & 0o022 == 0, path
    assert (parent / "service" / "data" / "signing-keys.json").stat().st_mode & 0o777 == 0o600


def test_a_data_folder_that_is_writable_for_all_is_closed(folder: Path, database_url: str) -> None:
    (folder / "data").mkdir()
    (folder / "data").chmod(0o777)
    with serving(folder, is_supervised=True, database_url=database_url):
        assert (folder / "data").stat().st_mode & 0o777 == 0o775


def refused(folder: Path, **settings: Any) -> str:
    """Start what must not start, and return the reason that it logs first."""
    service = Service(folder, make_keys=False, **settings)
    try:
        assert service.process.wait(60) == 3
    finally:
        service.kill_everything()
    lines = [json.loads(line) for line in service.log.read_text().splitlines() if line.startswith("{")]
    return next(line["message"] for line in lines if line["level"] == "error")


@pytest.mark.parametrize("is_supervised", [True, False], ids=["make run", "gunicorn"])
def test_a_mistyped_file_of_signing_keys_makes_no_new_key(folder: Path, database_url: str, is_supervised: bool) -> None:
    wrong = folder / "sining-keys.json"
    reason = refused(folder, is_supervised=is_supervised, database_url=database_url, signing_keys=wrong)
    assert str(wrong) in reason
    assert "WATCHPOST_SIGNING_KEYS" in reason
    assert not wrong.exists()


@pytest.mark.parametrize("content", ["", "{", '{"keys": []}', '{"keys": [{"kty": "EC", "d": "MARKED-SECRET"}]}'])
def test_a_file_that_holds_no_signing_keys_stops_the_start(folder: Path, database_url: str, content: str) -> None:
    keys = folder / "keys.json"
    keys.write_text(content)
    reason = refused(folder, database_url=database_url, signing_keys=keys)
    assert reason == f"can't start: {keys} holds no signing keys that can be read: put back a copy"
    assert keys.read_text() == content


def test_gunicorn_starts_before_its_database_and_is_ready_when_that_is(folder: Path) -> None:
    """Both are started by systemd, in any order."""
    with serving(folder) as other:
        pass
    service = Service(folder, is_supervised=False)
    try:
        wait_for(lambda: "the database can't be reached yet" in service.log.read_text())
        wait_for(lambda: _answers(service))
        assert service.get("/readyz").status == 503
        with serving(folder, bind=other.bind):
            service.wait_until_ready()
        assert service.end() == 0
    finally:
        service.kill_everything()


def _answers(service: Service) -> bool:
    with contextlib.suppress(OSError):
        return service.get("/livez").status == 200
    return False


def test_a_wrong_setting_is_one_sentence(folder: Path) -> None:
    environment = {"WATCHPOST_POOL_SIZE": "many", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(SUPERVISED, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "WATCHPOST_POOL_SIZE must be a whole number.\n")


def clean(folder: Path, answer: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `make clean-data` on this folder's data."""
    return subprocess.run(
        ["make", "--silent", "clean-data", f"PYTHON={sys.executable}"],
        cwd=ROOT,
        env={
            "WATCHPOST_DATA_DIR": str(folder / "data"),
            "WATCHPOST_BIND": f"127.0.0.1:{free_port()}",
            "PATH": os.environ["PATH"],
            **environment,
        },
        input=answer,
        capture_output=True,
        text=True,
        check=False,
    )


def test_data_is_removed_after_a_question_and_never_under_a_running_service(folder: Path, database_url: str) -> None:
    data = folder / "data"
    with serving(folder):
        done = clean(folder, "yes\n")
        assert done.returncode != 0
        assert "stop it first" in done.stderr
    with serving(folder, database_url=database_url) as service:
        done = clean(folder, "yes\n", WATCHPOST_BIND=service.bind)
        assert done.returncode != 0
        assert f"a service answers at {service.bind}" in done.stderr
    (data / "notes.txt").write_text("not ours")
    for answer in ("", "no\n", "y\n"):
        done = clean(folder, answer)
        assert done.returncode != 0
        assert (data / "postgresql" / "PG_VERSION").exists()
        assert (data / "signing-keys.json").exists()
    assert clean(folder, "yes\n").returncode == 0
    assert [path.name for path in data.iterdir()] == ["notes.txt"]
    assert clean(folder, "yes\n").stdout.startswith("There is no data")


def test_make_clean_leaves_data_alone() -> None:
    printed = subprocess.run(
        ["make", "--no-print-directory", "--dry-run", "clean"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert printed.stdout.startswith("rm -rf .venv ")
    assert ".data" not in printed.stdout
