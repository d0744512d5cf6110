"""A real streaming standby: it serves reads, and takes over when the primary dies."""

from __future__ import annotations

import contextlib
import itertools
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest

from app.db import migrations
from app.dev import embedded, programs
from tests.support.agent import Agent
from tests.support.service import Service, as_role, prompt, registered, servers_of, serving, wait_for

# Durable, unlike the other tests' server: what is counted here must survive a crash.
PRIMARY = "wal_level = replica\nmax_wal_senders = 4\nhot_standby = on\n"
NAME = "standby"


class Pair:
    """A primary and a standby that follows it, each in a folder of its own."""

    def __init__(self, folder: Path, primary: str, standby: str) -> None:
        self.folder = folder
        self.primary = primary
        self.standby = standby

    @property
    def settings(self) -> dict[str, str]:
        """The service's: whichever server takes writes, and the standby for reads."""
        hosts = [str(psycopg.conninfo.conninfo_to_dict(url)["host"]) for url in (self.primary, self.standby)]
        return {
            "database_url": f"postgresql://postgres@/watchpost?host={','.join(hosts)}&target_session_attrs=read-write",
            "read_database_url": as_role(self.standby, "reader"),
        }

    def kill_primary(self) -> None:
        for server in servers_of(self.folder / "primary"):
            for process in [server, *server.children()]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
        wait_for(lambda: not servers_of(self.folder / "primary"))


def ask(url: str, query: str) -> Any:
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(query)
        return (cursor.fetchone() or [None])[0] if cursor.description else None


@pytest.fixture
def pair(folder: Path) -> Iterator[Pair]:
    with embedded.running(str(folder / "primary"), PRIMARY) as primary:
        # Roles and schema, before anything waits for the standby.
        migrations.apply(primary)
        host = psycopg.conninfo.conninfo_to_dict(primary)["host"]
        copy = folder / "standby" / "postgresql"
        copy.parent.mkdir(mode=0o755)
        programs.own_folder(copy)
        embedded.run_program(
            *("pg_basebackup", "--write-recovery-conf", "--checkpoint=fast", "-D", str(copy)),
            *("-d", f"host={host} user=postgres application_name={NAME}"),
        )
        # The primary's socket lies among its files, and was copied with them.
        (copy / ".s.PGSQL.5432.lock").unlink(missing_ok=True)
        with embedded.running(str(folder / "standby"), "hot_standby = on\n") as standby:
            # From here on a commit is answered when the standby has it too.
            ask(primary, f"ALTER SYSTEM SET synchronous_standby_names = '{NAME}'")
            ask(primary, "SELECT pg_reload_conf()")
            wait_for(lambda: ask(primary, "SELECT sync_state FROM pg_stat_replication") == "sync")
            yield Pair(folder, primary, standby)


class Writer(threading.Thread):
    """An agent that goes on sending prompts and repeats what was not answered with 2xx."""

    def __init__(self, service: Service, agent: Agent, token: str) -> None:
        super().__init__()
        self.service, self.agent, self.token = service, agent, token
        self.acknowledged: list[str] = []
        self.statuses: set[int] = set()
        self.answered_at = time.monotonic()
        self.is_over = threading.Event()

    def run(self) -> None:
        for number in itertools.count():
            body = prompt(self.agent, prompt=f"number {number}")
            while not self.is_over.is_set():
                answer = self.service.post("/api/prompt", body, self.token)
                self.statuses.add(answer.status)
                if answer.status in (200, 201):
                    self.acknowledged.append(answer.json["prompt_id"])
                    self.answered_at = time.monotonic()
                    break
                time.sleep(0.1)
            if self.is_over.is_set():
                return

    def until(self, amount: int) -> None:
        """Return when so many more are acknowledged."""
        wanted = len(self.acknowledged) + amount
        wait_for(lambda: len(self.acknowledged) >= wanted)


def test_after_a_failover_the_promoted_standby_has_all_that_was_acknowledged(pair: Pair) -> None:
    with serving(pair.folder, **pair.settings) as service:
        agent, token = registered(service)
        writers = [Writer(service, agent, token) for _ in range(4)]
        for writer in writers:
            writer.start()
        try:
            for writer in writers:
                writer.until(20)
            pair.kill_primary()
            killed_at = time.monotonic()
            assert ask(pair.standby, "SELECT pg_promote()") is True
            for writer in writers:
                writer.until(20)
            took = time.monotonic() - killed_at
        finally:
            for writer in writers:
                writer.is_over.set()
                writer.join()
        acknowledged = {prompt_id for writer in writers for prompt_id in writer.acknowledged}
        with psycopg.connect(pair.standby) as connection:
            stored = {str(row[0]) for row in connection.execute("SELECT prompt_id FROM prompts").fetchall()}
        assert acknowledged <= stored
        assert set().union(*(writer.statuses for writer in writers)) <= {200, 201, 503}
        assert service.get("/readyz").status == 200
        # A few seconds, if the machine is not busy with something else.
        assert took < 120


def test_lists_are_read_from_the_standby_and_nothing_else_is(pair: Pair) -> None:
    with serving(pair.folder, **pair.settings) as service:
        agent, token = registered(service)
        # Acknowledged means flushed there; that it can be read takes a moment more.
        wait_for(lambda: agent.device_id in service.flask("device", "list"))
        ask(pair.standby, "SELECT pg_wal_replay_pause()")
        service.flask("device", "revoke", agent.device_id)
        assert service.post("/api/prompt", prompt(agent), token).status == 403
        shown = json.loads(service.flask("device", "show", agent.device_id, "--json"))
        assert shown["revoked_at"] is None
        ask(pair.standby, "SELECT pg_wal_replay_resume()")
        wait_for(lambda: json.loads(service.flask("device", "show", agent.device_id, "--json"))["revoked_at"])
