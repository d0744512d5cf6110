"""What has expired goes, what is held stays, and nobody who writes waits for it."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from app.application import create_app
from app.commands import pages
from config.settings import Settings
from tests.support.agent import Agent
from tests.support.checks import at_once
from tests.support.service import ROOT, wait_for

commands = importlib.import_module("app.commands.retention")
Rows = Callable[..., list[dict[str, Any]]]
TABLES = {"prompts": "timestamp", "extension_status": "reported_at", "compliance_events": "detected_at"}
DAY_MS = 86_400_000


@pytest.fixture
def settings(settings: Settings) -> Settings:
    days = {"prompts_days": 90, "extension_status_days": 90, "compliance_events_days": 90}
    return replace(settings, **days, archive_days=30)


@pytest.fixture
def command(app: Any) -> Callable[..., Any]:
    return lambda *arguments: app.test_cli_runner().invoke(args=list(arguments))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "ROWS", 40)
    monkeypatch.setattr(pages, "PAUSE_SECONDS", 0.05)


def month(months_ago: int) -> tuple[str, int, int]:
    """A month's label, and its first and its next millisecond."""
    first = datetime.now(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    for _ in range(months_ago):
        first = (first - timedelta(days=1)).replace(day=1)
    following = (first + timedelta(days=32)).replace(day=1)
    return first.strftime("%Y%m"), round(first.timestamp() * 1000), round(following.timestamp() * 1000)


@pytest.fixture
def filled(rows: Rows) -> list[str]:
    """Partitions of the months 6 to 8 ago, some hundred rows in each table from a year ago until today."""
    made = []
    for table in TABLES:
        for ago in (6, 7, 8):
            label, first, following = month(ago)
            rows(f"CREATE TABLE {table}_{label} (LIKE {table} INCLUDING ALL)")
            rows(f"ALTER TABLE {table}_{label} OWNER TO watchpost_owner")
            rows(f"ALTER TABLE {table} ATTACH PARTITION {table}_{label} FOR VALUES FROM ({first}) TO ({following})")
            made.append(f"{table}_{label}")
    now = int(time.time() * 1000)
    times = f"FROM generate_series({now - 365 * DAY_MS}, {now}, {DAY_MS}) AS at"
    device = f"'device-' || (at / {DAY_MS}) % 2"
    rows(f"""
        INSERT INTO prompts ("timestamp", device_id, prompt_id, instance_id, site, url, prompt)
        SELECT at, {device}, gen_random_uuid(), 'i', 's', 'u', 'p' {times}
    """)
    rows(f"""
        INSERT INTO extension_status (reported_at, device_id, status_id, instance_id, status)
        SELECT at, {device}, gen_random_uuid(), 'i', 'enabled' {times}
    """)
    rows(f"""
        INSERT INTO compliance_events (detected_at, device_id, event_id, event_type, severity)
        SELECT at, {device}, gen_random_uuid(), 'e', 'low' {times}
    """)
    return made


def left(rows: Rows, table: str) -> tuple[int, int]:
    """Rows that have expired, and all."""
    before = int(time.time() * 1000) - 90 * DAY_MS
    found = rows(
        f'SELECT count(*) FILTER (WHERE "{TABLES[table]}" < {before}) AS expired, count(*) AS stored FROM {table}'
    )
    return found[0]["expired"], found[0]["stored"]


def partitions(rows: Rows) -> set[str]:
    found = rows("SELECT inhrelid::regclass::text AS name FROM pg_inherits WHERE inhparent::regclass::text = 'prompts'")
    return {part["name"] for part in found}


def test_expired_months_are_dropped_and_other_expired_rows_deleted(filled: list[str], command: Any, rows: Rows) -> None:
    assert left(rows, "prompts")[1] == 366
    result = command("retention", "run", "--json")
    assert result.exit_code == 0, result.output
    for table in TABLES:
        expired, stored = left(rows, table)
        assert expired == 0
        assert 89 <= stored <= 91
    assert not partitions(rows) & set(filled)
    lines = {line["table"]: line for line in json.loads(result.stdout)}
    for table in TABLES:
        assert 275 <= lines[table]["rows"] <= 277
        assert lines[table]["partitions"].split(", ") == [name for name in sorted(filled) if name.startswith(table)]
    noted = rows("SELECT action, target FROM audit_log WHERE action LIKE 'retention%%' ORDER BY at")
    assert [entry["target"] for entry in noted if entry["action"] == "retention.done"] == list(TABLES)
    dropped = rows("SELECT target FROM audit_log WHERE action = 'partition.drop'")
    assert {entry["target"] for entry in dropped} == set(filled)
    again = json.loads(command("retention", "run", "--json").stdout)
    assert {line["rows"] for line in again} == {0}


def test_a_dry_run_says_what_would_go_and_changes_nothing(filled: list[str], command: Any, rows: Rows) -> None:
    before = {table: left(rows, table) for table in TABLES}, partitions(rows)
    result = command("retention", "run", "--dry-run", "--json")
    assert result.exit_code == 0, result.output
    assert ({table: left(rows, table) for table in TABLES}, partitions(rows)) == before
    assert rows("SELECT * FROM audit_log") == []
    told = {line["table"]: (line["rows"], line["partitions"]) for line in json.loads(result.stdout)}
    done = {
        line["table"]: (line["rows"], line["partitions"])
        for line in json.loads(command("retention", "run", "--json").stdout)
    }
    assert {table: set(names.split(", ")) for table, (_, names) in told.items()} == {
        table: set(names.split(", ")) for table, (_, names) in done.items()
    }
    assert {table: count for table, (count, _) in told.items()} == {table: count for table, (count, _) in done.items()}


def test_what_is_held_stays_and_is_named(filled: list[str], command: Any, rows: Rows) -> None:
    label, first, following = month(7)
    by_device = command("hold", "create", "--device", "device-1", "--reason", "r").stdout.strip()
    dates = [datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d") for ms in (first, following)]
    by_time = command("hold", "create", "--from", dates[0], "--to", dates[1], "--reason", "r").stdout.strip()
    before_ms = int(time.time() * 1000) - 90 * DAY_MS
    held = (
        f'SELECT count(*) AS n FROM prompts WHERE "timestamp" < {before_ms} '
        f"AND (device_id = 'device-1' OR \"timestamp\" BETWEEN {first} AND {following - 1})"
    )
    expected = rows(held)[0]["n"]
    assert expected > 100
    looked = json.loads(command("retention", "run", "--dry-run", "--json").stdout)[0]
    done = json.loads(command("retention", "run", "--json").stdout)[0]
    for line in (looked, done):
        assert line["held"] == expected
        assert by_device in line["holds"]
        assert by_time in line["holds"]
        assert line["partitions"] == ""
    assert left(rows, "prompts")[0] == expected == rows(held)[0]["n"]
    for hold in (by_device, by_time):
        command("hold", "release", hold)
    assert command("retention", "run").exit_code == 0
    assert left(rows, "prompts")[0] == 0
    assert f"prompts_{label}" not in partitions(rows)


def test_a_hold_of_one_month_keeps_that_month_and_no_other(filled: list[str], command: Any, rows: Rows) -> None:
    label, first, following = month(7)
    dates = [datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d") for ms in (first, following)]
    command("hold", "create", "--from", dates[0], "--to", dates[1], "--reason", "r")
    assert command("retention", "run").exit_code == 0
    assert f"prompts_{label}" in partitions(rows)
    assert not {f"prompts_{month(ago)[0]}" for ago in (6, 8)} & partitions(rows)


def test_writers_go_on_and_wait_for_no_longer_than_a_moment(
    filled: list[str],
    command: Any,
    app: Any,
    device: Agent,
    headers: Any,
    rows: Rows,
    database_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also while somebody reads a table in a long transaction, which keeps its months from being dropped."""
    stop = threading.Event()
    slowest, statuses = [0.0], []

    def write(number: int) -> None:
        client = app.test_client()
        count = 0
        while not stop.is_set():
            count += 1
            body = {"device_id": device.device_id, "instance_id": "i", "site": "s", "url": "u"}
            body |= {"prompt": f"{number} {count}", "timestamp": int(time.time() * 1000)}
            began = time.monotonic()
            statuses.append(client.post("/api/prompt", json=body, headers=headers).status_code)
            slowest.append(time.monotonic() - began)

    with psycopg.connect(database_url) as reader, ThreadPoolExecutor(3) as threads:
        reader.execute("SELECT count(*) FROM prompts").fetchall()
        writers = [threads.submit(write, number) for number in range(3)]
        try:
            with monkeypatch.context() as hasty:
                hasty.setattr(pages, "MAX_TRIES", 2)
                busy = command("retention", "run")
            reader.rollback()
            result = command("retention", "run")
        finally:
            stop.set()
            reader.rollback()
        for writer in writers:
            writer.result()
    assert (busy.exit_code, result.exit_code) == (1, 0), busy.output + result.output
    assert set(statuses) == {201}
    # A lock that retention waits for is given up after 0.2 s, not when the reader or the lock's own limit ends, half a
    # minute later; the rest is this machine's.
    assert max(slowest) < 10
    assert rows("SELECT count(*) AS n FROM prompts WHERE prompt LIKE '%% %%'") == [{"n": len(statuses)}]


def test_a_month_in_use_is_left_for_later_and_said(
    filled: list[str], command: Any, database_url: str, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "MAX_TRIES", 2)
    with psycopg.connect(database_url) as reader:
        reader.execute("SELECT count(*) FROM prompts").fetchall()
        result = command("retention", "run", "--json")
        assert result.exit_code == 1
        assert "prompts_" in result.stderr
        assert "extension_status_" not in result.stderr.split("in use")[1]
    assert left(rows, "extension_status")[0] == left(rows, "compliance_events")[0] == 0
    assert command("retention", "run").exit_code == 0
    assert not partitions(rows) & set(filled)


def test_a_run_that_is_stopped_is_finished_by_the_next(
    filled: list[str], command: Any, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stopped(BaseException):
        pass

    calls = []
    real = pages.click.echo

    def stopping(*arguments: Any, **named: Any) -> None:
        calls.append(1)
        if len(calls) == 2:
            raise Stopped
        real(*arguments, **named)

    monkeypatch.setattr(commands.click, "echo", stopping)
    with pytest.raises(Stopped):
        command("retention", "run")
    monkeypatch.setattr(commands.click, "echo", real)
    assert left(rows, "compliance_events")[0] > 0
    assert command("retention", "run").exit_code == 0
    for table in TABLES:
        assert left(rows, table)[0] == 0


def noted(rows: Rows) -> int:
    """How many rows the audit log says are gone."""
    found = rows("""
        SELECT coalesce(sum((details ->> 'rows')::int), 0) AS gone FROM audit_log
        WHERE action ~ '^(prompts|extension_status|compliance_events)[.]delete$' OR action = 'partition.drop'
    """)
    return int(found[0]["gone"])


def stored(rows: Rows) -> int:
    return sum(left(rows, table)[1] for table in TABLES)


def test_two_that_run_at_once_delete_and_note_each_row_once(filled: list[str], app: Any, rows: Rows) -> None:
    before = stored(rows)
    results = at_once([lambda: app.test_cli_runner().invoke(args=["retention", "run"])] * 2)
    assert [result.exit_code for result in results] == [0, 0], [result.output for result in results]
    assert [left(rows, table)[0] for table in TABLES] == [0, 0, 0]
    assert noted(rows) == before - stored(rows)


@pytest.fixture
def kept_months(filled: list[str], rows: Rows) -> None:
    """No month is dropped, since a hold is in force, of a device that has no rows: each row is deleted for itself."""
    rows("INSERT INTO legal_holds (hold_id, device_id, reason) VALUES (gen_random_uuid(), 'nobody', 'r')")


def lock_one(holder: psycopg.Connection[Any], table: str) -> None:
    """Lock a row that has expired, some pages after the first."""
    at = TABLES[table]
    first = f'SELECT min("{at}") FROM {table} WHERE "{at}" > %s'
    expired = int(time.time() * 1000) - 150 * DAY_MS
    holder.execute(f'SELECT FROM {table} WHERE "{at}" = ({first}) FOR UPDATE', [expired])


RUN_IN_SMALL_PAGES = """
from app.commands import pages
pages.ROWS = 40
from wsgi import app
app.test_cli_runner().invoke(args=["retention", "run"])
"""


def test_a_run_that_is_killed_has_noted_what_it_did_and_the_next_does_the_rest(
    kept_months: None, command: Any, rows: Rows, database_url: str, settings: Settings
) -> None:
    """It is killed while it waits for a row that somebody else has locked, some pages after the first."""
    before = stored(rows)
    names = ("owner_database_url", "prompts_days", "extension_status_days", "compliance_events_days", "data_dir")
    environment = {f"WATCHPOST_{name.upper()}": str(getattr(settings, name)) for name in names}
    with psycopg.connect(database_url) as holder:
        lock_one(holder, "extension_status")
        run = subprocess.Popen(
            [sys.executable, "-c", RUN_IN_SMALL_PAGES],
            env={**os.environ, **environment, "WATCHPOST_DATABASE_URL": settings.owner_database_url},
            cwd=ROOT,
        )
        try:
            # Statuses come after prompts; of theirs the oldest are gone already, and the locked one's page is not.
            wait_for(lambda: left(rows, "prompts")[0] == 0 and left(rows, "extension_status")[1] < 366)
            wait_for(lambda: rows("SELECT count(*) AS n FROM pg_locks WHERE NOT granted")[0]["n"] > 0)
        finally:
            run.kill()
            run.wait(10)
    assert left(rows, "extension_status")[0] > 0
    assert 0 < noted(rows) == before - stored(rows)
    assert command("retention", "run").exit_code == 0
    assert [left(rows, table)[0] for table in TABLES] == [0, 0, 0]
    assert noted(rows) == before - stored(rows)


def test_a_row_that_is_locked_for_a_moment_is_waited_for(
    kept_months: None, command: Any, rows: Rows, database_url: str
) -> None:
    with psycopg.connect(database_url) as holder, ThreadPoolExecutor(1) as pool:
        lock_one(holder, "prompts")
        run = pool.submit(command, "retention", "run")
        time.sleep(1)
        assert not run.done()
        holder.rollback()
        assert run.result(30).exit_code == 0
    assert [left(rows, table)[0] for table in TABLES] == [0, 0, 0]


def test_a_hold_that_is_made_while_a_page_is_deleted_keeps_all_that_is_left(
    kept_months: None, command: Any, app: Any, rows: Rows, database_url: str
) -> None:
    """A page waits for a locked row when the hold is asked for. Nothing goes after the hold's id was printed."""
    held_since: list[int] = []

    def hold() -> None:
        assert app.test_cli_runner().invoke(args=["hold", "create", "--from", "2015-01-01", "--reason", "r"]).stdout
        held_since.append(stored(rows))

    with psycopg.connect(database_url) as holder, ThreadPoolExecutor(2) as pool:
        lock_one(holder, "prompts")
        waiting = "SELECT count(*) AS n FROM pg_locks WHERE NOT granted"
        run = pool.submit(command, "retention", "run", "--json")
        wait_for(lambda: rows(waiting)[0]["n"] > 0)
        made = pool.submit(hold)
        time.sleep(0.1)
        holder.rollback()
        made.result(30)
        result = run.result(30)
    assert result.exit_code == 0, result.output
    assert stored(rows) == held_since[0]
    assert left(rows, "prompts")[0] == json.loads(result.stdout)[0]["held"] > 0


def test_nothing_is_deleted_by_a_clock_that_is_wrong(
    filled: list[str], command: Any, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time
    before = stored(rows)
    for wrong in (-120, 120, 10 * 365 * 86400):
        monkeypatch.setattr(commands.time, "time", lambda wrong=wrong: now() + wrong)
        result = command("retention", "run")
        assert result.exit_code == 1
        assert "clocks of this machine and of the database are" in result.stderr
    monkeypatch.undo()
    assert stored(rows) == before
    assert rows("SELECT * FROM audit_log") == []


@pytest.mark.parametrize("zone", ["Pacific/Kiritimati", "Pacific/Niue"])
def test_months_begin_in_utc_wherever_the_database_is(
    filled: list[str], command: Any, rows: Rows, database_url: str, zone: str
) -> None:
    """A row of the last and of the first millisecond of a month that a hold separates, 14 h east and 11 h west."""
    name = psycopg.conninfo.conninfo_to_dict(database_url)["dbname"]
    rows(f"ALTER DATABASE \"{name}\" SET timezone = '{zone}'")
    bounds = "SELECT pg_get_expr(relpartbound, oid) AS bound FROM pg_class WHERE relname ~ '^prompts_' ORDER BY relname"
    before = rows(bounds)
    rows(f"DROP TABLE prompts_{month(0)[0]}")
    assert command("partitions", "ensure").stdout == f"prompts_{month(0)[0]}\n"
    assert rows(bounds) == before
    label, first, following = month(7)
    for at in (first - 1, first, following - 1, following):
        rows(
            'INSERT INTO prompts ("timestamp", device_id, prompt_id, instance_id, site, url, prompt) '
            "VALUES (%s, 'edge', gen_random_uuid(), 'i', 's', 'u', 'p')",
            at,
        )
    dates = [datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d") for ms in (first, following)]
    command("hold", "create", "--from", dates[0], "--to", dates[1], "--reason", "r")
    assert command("retention", "run").exit_code == 0
    left_at = [
        row["timestamp"] for row in rows("SELECT \"timestamp\" FROM prompts WHERE device_id = 'edge' ORDER BY 1")
    ]
    assert left_at == [first, following - 1]
    assert f"prompts_{label}" in partitions(rows)


def test_detaching_a_month_concurrently_is_refused_beside_a_default_partition(rows: Rows, filled: list[str]) -> None:
    """Why retention takes the table's lock for a moment instead."""
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match="default partition"):
        rows(f"ALTER TABLE prompts DETACH PARTITION {filled[0]} CONCURRENTLY")


def test_the_silent_are_archived_and_come_back_when_they_are_heard(
    command: Any, client: Any, device: Agent, headers: Any, rows: Rows
) -> None:
    instance = {"instance_id": "i", "browser_name": "chrome"}
    assert client.post("/api/browsers/register", json={**instance, "device_id": device.device_id}, headers=headers)
    rows("UPDATE devices SET registered_at = now() - interval '31 days'")
    rows("UPDATE browser_instances SET created_at = now() - interval '31 days'")
    rows(
        "INSERT INTO devices (device_id, last_heartbeat) SELECT 'recent-' || n, now() FROM generate_series(1, 90) AS n"
    )
    looked = {
        line["table"]: line["rows"] for line in json.loads(command("retention", "run", "--dry-run", "--json").stdout)
    }
    assert (looked["devices"], looked["browser_instances"]) == (1, 1)
    assert command("retention", "run").exit_code == 0
    archived = "SELECT device_id FROM devices WHERE archived_at IS NOT NULL"
    assert rows(archived) == [{"device_id": device.device_id}]
    assert rows("SELECT instance_id FROM browser_instances WHERE archived_at IS NOT NULL") == [{"instance_id": "i"}]
    assert json.loads(command("device", "show", device.device_id, "--json").stdout)["archived_at"]
    assert client.post("/api/browsers/heartbeat", json={"instance_id": "i"}, headers=headers).status_code == 200
    heartbeat = client.post("/api/devices/heartbeat", json={"device_id": device.device_id}, headers=headers)
    assert heartbeat.status_code == 200
    assert rows(archived) == []
    assert rows("SELECT instance_id FROM browser_instances WHERE archived_at IS NOT NULL") == []


def test_an_archived_device_that_is_revoked_stays_revoked(
    command: Any, client: Any, device: Agent, headers: Any, rows: Rows
) -> None:
    command("device", "revoke", device.device_id)
    rows("UPDATE devices SET archived_at = now()")
    heartbeat = client.post("/api/devices/heartbeat", json={"device_id": device.device_id}, headers=headers)
    assert heartbeat.status_code == 403
    assert rows("SELECT archived_at IS NULL AS back FROM devices") == [{"back": False}]


def test_nothing_expires_by_itself(app: Any, settings: Settings, filled: list[str], rows: Rows) -> None:
    unset = {"prompts_days": 0, "extension_status_days": 0, "compliance_events_days": 0, "archive_days": 0}
    keeping = create_app(replace(settings, **unset))
    before = {table: left(rows, table) for table in TABLES}
    result = keeping.test_cli_runner().invoke(args=["retention", "run"])
    assert result.exit_code == 0
    assert "nothing expires" in result.stderr
    assert {table: left(rows, table) for table in TABLES} == before
