"""Background jobs: `flask --app wsgi worker` and the lock under which each of them runs."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

from app.db.advisory_locks import try_lock
from app.jobs import assertions
from app.jobs.worker import JOBS
from tests.support.service import ROOT, as_role, wait_for

Rows = Callable[..., list[dict[str, Any]]]

FILL = """
INSERT INTO client_assertions (device_id, jti, use_id, expires_at)
SELECT 'd', n::text, gen_random_uuid(), now() + (n - %s) * interval '1 minute' FROM generate_series(1, %s) AS n
"""
# The last month that the worker has a partition for.
MONTH = (datetime.now(UTC).replace(day=1) + timedelta(days=31 * 3)).strftime("prompts_%Y%m")
COUNT = "SELECT count(*) AS n FROM client_assertions"


def expire(rows: Rows, amount: int) -> None:
    """Have so many assertions that expired long enough ago, and one that did not."""
    rows(FILL, amount + 6, amount)
    rows("INSERT INTO client_assertions VALUES ('d', 'fresh', gen_random_uuid(), now() - interval '4 minutes')")


@contextlib.contextmanager
def working(log: Path, database_url: str, script: str | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """Run the worker, or another script in its place."""
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("WATCHPOST_")},
        "WATCHPOST_DATABASE_URL": as_role(database_url, "writer"),
    }
    with log.open("wb") as output:
        command = [sys.executable, *(["-c", script] if script else ["-m", "flask", "--app", "wsgi", "worker"])]
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=output)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_worker_deletes_expired_assertions_until_it_is_stopped(
    rows: Rows, database_url: str, tmp_path: Path, number: int
) -> None:
    expire(rows, 20)
    with working(tmp_path / "log", database_url) as worker:
        wait_for(lambda: rows(COUNT) == [{"n": 1}])
        worker.send_signal(number)
        assert worker.wait(60) == 0
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert [line["level"] for line in lines] == ["info"] * len(lines)
    assert sorted(lines[0]["jobs"]) == sorted(job.name for job in JOBS)


def test_a_job_that_another_host_is_busy_with_is_left_to_it(rows: Rows, database_url: str, tmp_path: Path) -> None:
    script = """
from app.jobs import worker
from config.settings import load
jobs = tuple(job._replace(seconds=1) for job in worker.JOBS)
worker.Worker(load(), jobs).serve()
"""
    expire(rows, 20)
    with (
        psycopg.connect(as_role(database_url, "writer"), autocommit=True) as other,
        try_lock(other, JOBS[1].name) as is_locked,
    ):
        assert is_locked
        rows(f"DROP TABLE {MONTH}")
        with working(tmp_path / "log", database_url, script):
            # All jobs run each second: when the first one has run twice, so has the second.
            for _ in range(2):
                wait_for(lambda: rows("SELECT to_regclass(%s) IS NULL AS is_gone", MONTH) == [{"is_gone": False}])
                rows(f"DROP TABLE {MONTH}")
            assert rows(COUNT) == [{"n": 21}]


def test_a_worker_waits_for_a_database_that_is_away(tmp_path: Path) -> None:
    with working(tmp_path / "log", "postgresql://postgres@/none?host=/nowhere") as worker:
        wait_for(lambda: (tmp_path / "log").read_text().count("a job failed") == len(JOBS))
        assert worker.poll() is None
        worker.terminate()
        assert worker.wait(60) == 0


def test_expired_assertions_are_deleted_in_batches(
    rows: Rows, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(assertions, "BATCH_ROWS", 7)
    expire(rows, 30)
    stops = iter([False, False, True])
    writer = as_role(database_url, "writer")
    assert assertions.delete_expired(writer, lambda: next(stops)) == 14
    assert assertions.delete_expired(writer, lambda: False) == 16
    assert rows("SELECT jti FROM client_assertions") == [{"jti": "fresh"}]


def test_an_assertion_that_somebody_uses_is_not_waited_for(rows: Rows, database_url: str) -> None:
    expire(rows, 3)
    with psycopg.connect(database_url) as user:
        user.execute("SELECT FROM client_assertions WHERE jti = '2' FOR UPDATE")
        assert assertions.delete_expired(as_role(database_url, "writer"), lambda: False) == 2


def test_an_advisory_lock_is_held_by_one_connection_until_its_block_ends(database_url: str) -> None:
    url = as_role(database_url, "writer")
    with psycopg.connect(url, autocommit=True) as first, psycopg.connect(url, autocommit=True) as second:
        with try_lock(first, "work") as is_locked:
            assert is_locked
            with try_lock(second, "work") as is_locked_twice, try_lock(second, "other") as is_other_locked:
                assert (is_locked_twice, is_other_locked) == (False, True)
        with try_lock(second, "work") as is_locked:
            assert is_locked


@pytest.mark.direct("PgBouncer prepares what the client does not")
@pytest.mark.parametrize("threshold", [None, 0])
def test_an_advisory_lock_keeps_no_snapshot_that_delays_vacuum_and_index_builds(
    database_url: str, rows: Rows, threshold: int | None
) -> None:
    rows("CREATE TABLE things (id int)")
    with (
        psycopg.connect(database_url, autocommit=True, prepare_threshold=threshold) as holder,
        try_lock(holder, "work") as is_locked,
    ):
        assert is_locked
        held = "SELECT backend_xmin, backend_xid, state FROM pg_stat_activity WHERE pid = %s"
        assert rows(held, holder.info.backend_pid) == [
            {"backend_xmin": None, "backend_xid": None, "state": "idle in transaction"}
        ]
        rows("SET statement_timeout = '30s'")
        rows("CREATE INDEX CONCURRENTLY things_id_idx ON things (id)")


def test_an_advisory_lock_outlives_the_roles_limit_on_idle_transactions(database_url: str) -> None:
    with psycopg.connect(as_role(database_url, "writer"), autocommit=True) as holder:
        limit = "SELECT current_setting('idle_in_transaction_session_timeout')"
        assert holder.execute(limit).fetchone() == ("15s",)
        with try_lock(holder, "work"):
            assert holder.execute(limit).fetchone() == ("0",)
        assert holder.execute(limit).fetchone() == ("15s",)
