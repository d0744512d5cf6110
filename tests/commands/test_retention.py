"""What has expired goes, what is held stays, and nobody who writes waits for it."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest

from app.commands import pages
from app.ingest import heard
from config.settings import Settings
from tests.support.agent import Agent
from tests.support.application import create_app
from tests.support.checks import at_once
from tests.support.service import ROOT, wait_for

commands = importlib.import_module("app.commands.retention")
Rows = Callable[..., list[dict[str, Any]]]
TABLES = {"compliance_events": "detected_at", "extension_status": "reported_at", "prompts": "timestamp"}
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
    arrival = "to_timestamp(at / 1000.0)"
    rows(f"""
        INSERT INTO prompts ("timestamp", device_id, prompt_id, instance_id, site, url, prompt, created_at)
        SELECT at, {device}, gen_random_uuid(), 'i', 's', 'u', 'p', {arrival} {times}
    """)
    rows(f"""
        INSERT INTO extension_status (reported_at, device_id, status_id, instance_id, status, created_at)
        SELECT at, {device}, gen_random_uuid(), 'i', 'enabled', {arrival} {times}
    """)
    rows(f"""
        INSERT INTO compliance_events (detected_at, device_id, event_id, event_type, severity, created_at)
        SELECT at, {device}, gen_random_uuid(), 'e', 'low', {arrival} {times}
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
    by_device = command("hold", "create", "--device", "device-1", "--future", "--reason", "r").stdout.strip()
    dates = [datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d") for ms in (first, following)]
    by_time = command("hold", "create", "--from", dates[0], "--to", dates[1], "--reason", "r").stdout.strip()
    before_ms = int(time.time() * 1000) - 90 * DAY_MS
    held = (
        f'SELECT count(*) AS n FROM prompts WHERE "timestamp" < {before_ms} '
        f"AND (device_id = 'device-1' OR \"timestamp\" BETWEEN {first} AND {following - 1})"
    )
    expected = rows(held)[0]["n"]
    assert expected > 100
    looked = json.loads(command("retention", "run", "--dry-run", "--json").stdout)
    done = json.loads(command("retention", "run", "--json").stdout)
    for line in (line for lines in (looked, done) for line in lines if line["table"] == "prompts"):
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
    assert left(rows, "prompts")[0] > 0
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
from app.ingest import heard
pages.ROWS = 40
from app.commands.application import create_app
create_app().test_cli_runner().invoke(args=["retention", "run"])
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
            # Statuses come after events; of theirs the oldest are deleted already, and the locked one's page is not.
            wait_for(lambda: left(rows, "compliance_events")[0] == 0 and left(rows, "extension_status")[1] < 366)
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
    told = {line["table"]: line["held"] for line in json.loads(result.stdout)}
    assert left(rows, "prompts")[0] == told["prompts"] > 0


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


KINDS = {
    "prompts": ("/api/prompt", {"instance_id": "i", "site": "s", "url": "u", "prompt": "p"}),
    "extension_status": ("/api/extension/status", {"instance_id": "i", "status": "enabled"}),
    "compliance_events": ("/api/compliance/event", {"event_type": "e", "severity": "low"}),
}
LONG_AGO = 1_577_880_000_000  # in 2020
OLDER = "UPDATE {} SET created_at = now() - %s * interval '1 day'"


@pytest.fixture
def reported_with_a_wrong_clock(client: Any, device: Agent, headers: Any) -> None:
    """A row in each event table that arrives now, by a laptop whose clock is years behind."""
    for table, (path, body) in KINDS.items():
        body = {"device_id": device.device_id, TABLES[table]: LONG_AGO, **body}
        assert client.post(path, json=body, headers=headers).status_code == 201


@pytest.mark.parametrize("made_by_month", [False, True], ids=["in the default partition", "in a month of its own"])
def test_a_wrong_client_clock_expires_nothing_before_90_days_after_arrival(
    reported_with_a_wrong_clock: None, command: Any, rows: Rows, made_by_month: bool
) -> None:
    if made_by_month:
        for table in TABLES:
            own_month(rows, table)
    for days, kept in ((0, 1), (89, 1), (91, 0)):
        for table in TABLES:
            rows(OLDER.format(table), days)
        told = {line["table"]: line for line in json.loads(command("retention", "run", "--dry-run", "--json").stdout)}
        result = command("retention", "run", "--json")
        assert result.exit_code == 0, result.output
        done = {line["table"]: line for line in json.loads(result.stdout)}
        for table in TABLES:
            assert left(rows, table)[1] == kept, (table, days)
            assert told[table]["rows"] == done[table]["rows"] == 1 - kept
            assert told[table]["partitions"] == done[table]["partitions"]
            assert bool(done[table]["partitions"]) == (made_by_month and not kept)


def own_month(rows: Rows, table: str) -> None:
    """Have the row of 2020 in a partition of its month."""
    rows(f"ALTER TABLE {table} DETACH PARTITION {table}_default")
    rows(f"ALTER TABLE {table}_default RENAME TO {table}_202001")
    rows(f"ALTER INDEX {table}_default_pkey RENAME TO {table}_202001_pkey")
    rows(f"ALTER TABLE {table} ATTACH PARTITION {table}_202001 FOR VALUES FROM (1577836800000) TO (1580515200000)")
    rows(f"CREATE TABLE {table}_default PARTITION OF {table} DEFAULT")


@pytest.mark.parametrize("made_by_month", [False, True], ids=["in the default partition", "in a month of its own"])
@pytest.mark.parametrize(
    "span", [("--from", "{day_of_arrival}"), ("--from", "2020-01-01", "--to", "2020-02-01")], ids=["arrival", "client"]
)
def test_a_hold_covers_a_row_by_either_of_its_times(
    reported_with_a_wrong_clock: None, command: Any, rows: Rows, span: tuple[str, ...], made_by_month: bool
) -> None:
    if made_by_month:
        for table in TABLES:
            own_month(rows, table)
    for table in TABLES:
        rows(OLDER.format(table), 200)
    day = (datetime.now(UTC) - timedelta(days=201)).strftime("%Y-%m-%d")
    hold = command("hold", "create", *(part.format(day_of_arrival=day) for part in span), "--reason", "r").stdout
    result = command("retention", "run", "--json")
    assert result.exit_code == 0, result.output
    assert {line["table"]: line["held"] for line in json.loads(result.stdout) if line["table"] in TABLES} == (
        dict.fromkeys(TABLES, 1)
    )
    assert {table: left(rows, table)[1] for table in TABLES} == dict.fromkeys(TABLES, 1)
    refused = command("device", "erase", rows("SELECT device_id FROM devices")[0]["device_id"], "--reason", "r")
    assert refused.exit_code == 1
    assert "3 rows are under a legal hold" in refused.stderr
    command("hold", "release", hold.strip())
    assert command("retention", "run").exit_code == 0
    assert {table: left(rows, table)[1] for table in TABLES} == dict.fromkeys(TABLES, 0)


def test_a_row_that_arrives_in_an_expired_month_while_it_is_dropped_is_kept(
    filled: list[str], command: Any, client: Any, device: Agent, headers: Any, rows: Rows, monkeypatch: Any
) -> None:
    """It comes after the month was read and before it is dropped, on another connection."""
    _, first, _ = month(7)
    body = {"device_id": device.device_id, "timestamp": first, **KINDS["prompts"][1]}
    sent: list[int] = []
    real = commands.pages.retry_on_lock

    def late(work: Any) -> Any:
        if work.__name__ == "drop" and not sent:
            sent.append(client.post("/api/prompt", json=body, headers=headers).status_code)
        return real(work)

    rows("DELETE FROM legal_holds")
    # Retention looks at one month alone, and has read it when the row comes.
    label = month(7)[0]
    monkeypatch.setattr(commands, "_expired", lambda table, _: [f"prompts_{label}"] if table == "prompts" else [])
    with monkeypatch.context() as stopped:
        stopped.setattr(commands.pages, "retry_on_lock", late)
        result = command("retention", "run", "--json")
    assert result.exit_code == 0, result.output
    assert sent == [201]
    assert f"prompts_{label}" in partitions(rows)
    assert rows('SELECT count(*) AS n FROM prompts WHERE "timestamp" = %s AND prompt = %s', first, "p") == [{"n": 1}]
    assert rows("SELECT relname FROM pg_class WHERE relname LIKE 'arrived%%'") == []
    assert rows("SELECT tgname FROM pg_trigger WHERE NOT tgisinternal") == []


def test_a_row_that_arrives_after_the_month_was_read_keeps_it(filled: list[str], database_url: str, rows: Rows) -> None:
    """The month is read, then a row comes, then its table is locked: drop_partition looks at what was noted."""
    part, first = f"prompts_{month(7)[0]}", month(7)[1]
    before_ms = int(time.time() * 1000) - 90 * DAY_MS
    drop = "SELECT outcome FROM drop_partition(%s, %s, FALSE)"
    late = (
        'INSERT INTO prompts ("timestamp", device_id, prompt_id, instance_id, site, url, prompt) '
        "VALUES (%s, 'late', gen_random_uuid(), 'i', 's', 'u', 'p')"
    )
    rows("SELECT watch_partition(%s)", part)
    with psycopg.connect(database_url) as writer, psycopg.connect(database_url) as reader:
        # Locked by a writer whose row nobody sees yet: the month is read without it, and the lock waited for.
        writer.execute(late, [first])
        with ThreadPoolExecutor(1) as pool:
            reader.execute("SET lock_timeout = 0")
            dropping = pool.submit(lambda: reader.execute(drop, [part, before_ms]).fetchall())
            with pytest.raises(psycopg.errors.LockNotAvailable):
                dropping.result(30)
            reader.rollback()
        writer.commit()
    assert rows(drop, part, before_ms) == [{"outcome": "arrived_later"}]
    rows("SELECT unwatch_partition(%s)", part)
    rows("SELECT watch_partition(%s)", part)
    rows("UPDATE prompts SET created_at = now() - interval '200 days' WHERE device_id = 'late'")
    # What was noted since it is watched counts too: a change is as good as an arrival.
    assert rows(drop, part, before_ms) == [{"outcome": "arrived_later"}]
    rows("SELECT watch_partition(%s)", part)
    assert rows(drop, part, before_ms) == [{"outcome": "dropped"}]
    assert part not in partitions(rows)


def test_an_event_table_that_is_new_needs_no_change_of_retention_or_partitions(
    command: Any, app: Any, rows: Rows, settings: Settings
) -> None:
    """Whatever is partitioned by a time in milliseconds, with the key (time, device_id, id)."""
    rows("""
        CREATE TABLE visits (
            seen_at bigint, device_id text, visit_id uuid, created_at timestamptz NOT NULL DEFAULT now(),
            PRIMARY KEY (seen_at, device_id, visit_id)
        ) PARTITION BY RANGE (seen_at)
    """)
    rows("CREATE TABLE visits_default PARTITION OF visits DEFAULT")
    for table in ("visits", "visits_default"):
        rows(f"ALTER TABLE {table} OWNER TO watchpost_owner")
    insert = "INSERT INTO visits SELECT %s, 'd', gen_random_uuid(), to_timestamp(%s / 1000.0)"
    now = int(time.time() * 1000)
    for at in (now, now - 100 * DAY_MS):
        rows(insert, at, at)
    app.config["SETTINGS"] = type("More", (), {**settings.__dict__, "visits_days": 90})()
    result = command("retention", "run", "--json")
    assert result.exit_code == 0, result.output
    assert {line["table"]: line["rows"] for line in json.loads(result.stdout)}["visits"] == 1
    assert rows("SELECT seen_at FROM visits") == [{"seen_at": now}]


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
            'INSERT INTO prompts ("timestamp", device_id, prompt_id, instance_id, site, url, prompt, created_at) '
            "VALUES (%s, 'edge', gen_random_uuid(), 'i', 's', 'u', 'p', to_timestamp(%s / 1000.0))",
            at,
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
    silence(rows)
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


def silence(rows: Rows) -> None:
    """Have been heard of for the last time 31 days ago."""
    rows("UPDATE devices SET registered_at = now(), last_report = now() - interval '31 days'")
    rows("UPDATE browser_instances SET last_seen = NULL, last_report = now() - interval '31 days'")
    rows("UPDATE browser_instances SET created_at = now() - interval '31 days'")


ARCHIVED = """
SELECT device_id AS id FROM devices WHERE archived_at IS NOT NULL
UNION ALL SELECT instance_id FROM browser_instances WHERE archived_at IS NOT NULL
ORDER BY id
"""
REPORTS = {
    **{
        table: (path, {**body, "instance_id": "i", TABLES[table]: round(time.time() * 1000)})
        for table, (path, body) in KINDS.items()
    },
    "browser heartbeat": ("/api/browsers/heartbeat", {"instance_id": "i"}),
    "browser registration": ("/api/browsers/register", {"instance_id": "i", "browser_name": "chrome"}),
}


@pytest.fixture
def instance(client: Any, device: Agent, headers: Any) -> None:
    for instance_id in ("i", "other"):
        body = {"instance_id": instance_id, "device_id": device.device_id, "browser_name": "chrome"}
        assert client.post("/api/browsers/register", json=body, headers=headers).status_code == 201


@pytest.mark.parametrize("report", REPORTS)
@pytest.mark.parametrize("before", [True, False], ids=["before it would be archived", "after it was archived"])
@pytest.mark.parametrize("alone", [True, False], ids=["alone", "in a batch"])
def test_whatever_arrives_keeps_a_device_and_its_instance_from_the_archive_or_brings_them_back(
    command: Any,
    client: Any,
    device: Agent,
    headers: Any,
    rows: Rows,
    instance: None,
    report: str,
    before: bool,
    alone: bool,
) -> None:
    silence(rows)
    if not before:
        assert command("retention", "run").exit_code == 0
        assert [row["id"] for row in rows(ARCHIVED)] == sorted([device.device_id, "i", "other"])
    path, body = REPORTS[report]
    body = {"device_id": device.device_id, **body}
    if alone:
        assert client.post(path, json=body, headers=headers).status_code in (200, 201)
    else:
        types = {path: type_ for type_, path in BATCH.items()}
        answer = client.post("/api/batch", json={"items": [{"type": types[path], "body": body}]}, headers=headers)
        assert answer.json["results"][0]["status"] in (200, 201)
    assert [row["id"] for row in rows(ARCHIVED)] == ([] if before else ["other"])
    # What it reports a day later than that is heard of it too.
    assert command("retention", "run").exit_code == 0
    assert [row["id"] for row in rows(ARCHIVED)] == ["other"]


BATCH = {
    "prompt": "/api/prompt",
    "extension_status": "/api/extension/status",
    "compliance_event": "/api/compliance/event",
    "browser_heartbeat": "/api/browsers/heartbeat",
    "browser_register": "/api/browsers/register",
}


@pytest.mark.parametrize("table", KINDS)
def test_reports_write_no_row_of_a_device_that_was_heard_of_within_the_hour(
    client: Any, device: Agent, headers: Any, rows: Rows, instance: None, table: str
) -> None:
    versions = "SELECT xmin, ctid FROM devices UNION ALL SELECT xmin, ctid FROM browser_instances"
    path, body = REPORTS[table]
    stored = rows(versions)
    for _ in range(3):
        assert client.post(path, json={"device_id": device.device_id, **body}, headers=headers).status_code in (
            200,
            201,
        )
    assert rows(versions) == stored
    silence(rows)
    for _ in range(3):
        assert client.post(path, json={"device_id": device.device_id, **body}, headers=headers).status_code in (
            200,
            201,
        )
        stored.append(rows(versions))
    assert stored[-1] == stored[-2] == stored[-3]


@pytest.mark.parametrize("table", ["devices", "browser_instances"])
def test_what_arrived_as_late_as_a_worker_may_have_noted_it_is_not_archived(
    command: Any, rows: Rows, device: Agent, instance: None, table: str
) -> None:
    """A device's time may be an hour too early, an instance's two: a report looks at it once an hour."""
    silence(rows)
    hours = {"devices": 1, "browser_instances": 2}[table]
    for minutes, archived in ((hours * 60 - 1, 0), (hours * 60 + 1, 1)):
        rows(f"UPDATE {table} SET last_report = now() - interval '30 days' - %s * interval '1 minute'", minutes)
        assert command("retention", "run").exit_code == 0
        found = rows(f"SELECT DISTINCT archived_at IS NOT NULL AS is_archived FROM {table}")
        assert found == [{"is_archived": bool(archived)}]
        if table == "browser_instances":
            # An instance that is not silent keeps its device.
            assert rows("SELECT archived_at IS NOT NULL AS is_archived FROM devices") == found


def test_a_worker_that_hears_little_notes_a_report_after_an_hour(
    client: Any, device: Agent, headers: Any, rows: Rows, instance: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    ahead = 0
    monkeypatch.setattr(heard, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + ahead))
    noted = []
    for seconds in (0, 3500, 3700):
        ahead = seconds
        silence(rows)
        path, body = REPORTS["prompts"]
        body = {"device_id": device.device_id, **body, "prompt_id": str(uuid.uuid4())}
        assert client.post(path, json=body, headers=headers).status_code == 201
        found = rows("SELECT last_report > now() - interval '1 day' AS is_noted FROM browser_instances ORDER BY 1 DESC")
        noted.append(found[0]["is_noted"])
    assert noted == [True, False, True]


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
