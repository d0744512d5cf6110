"""What has expired goes, what is held stays, and nobody who writes waits for it."""

from __future__ import annotations

import importlib
import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from app import create_app
from app.commands import pages
from config.settings import Settings
from tests.agent import Agent

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
    monkeypatch.setattr(commands, "PAUSE_SECONDS", 0.05)


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
    filled: list[str], command: Any, app: Any, device: Agent, headers: Any, rows: Rows
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

    with ThreadPoolExecutor(3) as threads:
        writers = [threads.submit(write, number) for number in range(3)]
        try:
            result = command("retention", "run")
        finally:
            stop.set()
        for writer in writers:
            writer.result()
    assert result.exit_code == 0, result.output
    assert set(statuses) == {201}
    # A lock that retention waits for is given up after 0.2 s; the rest is this machine's.
    assert max(slowest) < 1.5
    assert rows("SELECT count(*) AS n FROM prompts WHERE prompt LIKE '%% %%'") == [{"n": len(statuses)}]


def test_a_month_in_use_is_left_for_later_and_said(
    filled: list[str], command: Any, database_url: str, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands, "MOST_TRIES", 2)
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
