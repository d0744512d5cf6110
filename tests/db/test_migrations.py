"""Migrations go forward, back and forward again, and leave nothing unexplained."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
import pytest

from app.db import grants, migrations
from tests.support import previous_release

TABLES = """
SELECT table_name FROM information_schema.tables
WHERE table_schema = 'public' AND table_name NOT LIKE '%yoyo%' AND table_name != 'migration_checksums'
ORDER BY table_name
"""
SCHEMA = """
SELECT table_name, column_name, data_type, is_nullable, column_default
FROM information_schema.columns
WHERE table_schema = 'public' AND table_name NOT LIKE '%yoyo%'
UNION ALL
SELECT tablename, indexname, indexdef, NULL, NULL
FROM pg_indexes
WHERE schemaname = 'public' AND tablename NOT LIKE '%yoyo%'
ORDER BY 1, 2
"""


@pytest.fixture
def empty_url(template: Any) -> Iterator[str]:
    """A database without a schema."""
    base = template.url("{}")
    with psycopg.connect(base.format("postgres"), autocommit=True) as admin:
        admin.execute("CREATE DATABASE empty")
        try:
            yield base.format("empty")
        finally:
            admin.execute("DROP DATABASE empty WITH (FORCE)")


def query(url: str, text: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(url, autocommit=True) as connection:
        return connection.execute(text).fetchall()


def test_forward_back_and_forward_again_gives_the_same_schema(empty_url: str) -> None:
    applied = migrations.apply(empty_url)
    first = query(empty_url, SCHEMA)
    undone = migrations.rollback(empty_url)
    assert query(empty_url, TABLES) == []
    assert undone == applied[::-1] == migrations.names()[::-1]
    migrations.apply(empty_url)
    assert query(empty_url, SCHEMA) == first != []


@pytest.mark.parametrize("name", migrations.names())
def test_each_migration_can_be_undone_alone_with_rows_in_its_table(empty_url: str, name: str) -> None:
    migrations.apply(empty_url)
    before = query(empty_url, SCHEMA)
    migrations.rollback(empty_url, to=name)
    assert migrations.apply(empty_url)[0] == name
    assert query(empty_url, SCHEMA) == before


def test_applying_twice_does_nothing_the_second_time(empty_url: str) -> None:
    assert migrations.apply(empty_url) == migrations.names()
    assert migrations.apply(empty_url) == []


def test_ten_replicas_that_start_together_migrate_once(empty_url: str) -> None:
    script = "import sys; from app.db import migrations; print(*migrations.apply(sys.argv[1]))"
    replicas = [
        subprocess.Popen([sys.executable, "-c", script, empty_url], stdout=subprocess.PIPE, text=True)
        for _ in range(10)
    ]
    outputs = [replica.communicate(timeout=300)[0].split() for replica in replicas]
    assert [replica.returncode for replica in replicas] == [0] * 10
    assert sorted(outputs) == [*[[]] * 9, migrations.names()]


def test_a_migration_that_was_killed_does_not_stop_the_next_one(empty_url: str) -> None:
    migrations.apply(empty_url)
    with psycopg.connect(empty_url, autocommit=True) as connection:
        connection.execute("INSERT INTO yoyo_lock (locked, ctime, pid) VALUES (1, now(), 1)")
    migrations.rollback(empty_url, to=migrations.names()[-1])
    assert migrations.apply(empty_url) == migrations.names()[-1:]


def test_every_migration_has_a_way_back_and_a_header() -> None:
    for name in migrations.names():
        for path in (migrations.FOLDER / f"{name}.sql", migrations.FOLDER / f"{name}.rollback.sql"):
            assert path.read_text(encoding="utf-8").startswith("-- "), path
        assert "Locks:" in Path(migrations.FOLDER / f"{name}.sql").read_text(encoding="utf-8")


def test_every_table_and_column_is_commented(rows: Callable[..., list[dict[str, Any]]]) -> None:
    missing = rows("""
        SELECT c.relname, a.attname
        FROM pg_class AS c
        INNER JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum >= 0 AND NOT a.attisdropped
        WHERE
            c.relkind IN ('r', 'p') AND c.relnamespace = 'public'::regnamespace AND c.relname NOT LIKE '%yoyo%'
            -- A partition's columns are its parent's.
            AND NOT c.relispartition AND col_description(c.oid, a.attnum) IS NULL
        UNION ALL
        SELECT c.relname, NULL
        FROM pg_class AS c
        WHERE
            c.relkind IN ('r', 'p') AND c.relnamespace = 'public'::regnamespace AND c.relname NOT LIKE '%yoyo%'
            AND obj_description(c.oid) IS NULL
    """)
    assert missing == []


@pytest.fixture
def edited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the migrations that a test may change."""
    copy = tmp_path / "migrations"
    shutil.copytree(migrations.FOLDER, copy)
    monkeypatch.setattr(migrations, "FOLDER", copy)
    return copy


def test_a_file_that_was_edited_after_it_was_applied_is_refused_by_name(empty_url: str, edited: Path) -> None:
    migrations.apply(empty_url)
    with (edited / "0004.create-prompts.sql").open("a") as file:
        file.write("\n-- Harmless?\n")
    (edited / "9999.create-things.sql").write_text("CREATE TABLE things (x int);\n")
    with pytest.raises(migrations.MigrationError, match=r"^0004\.create-prompts\.sql was changed after"):
        migrations.apply(empty_url)
    assert query(empty_url, "SELECT to_regclass('things')::text") == [(None,)]


def test_what_the_previous_release_applied_gets_its_checksum_at_the_first_run(empty_url: str, edited: Path) -> None:
    migrations.apply(empty_url)
    with psycopg.connect(empty_url, autocommit=True) as connection:
        connection.execute("DROP TABLE migration_checksums")
    assert migrations.apply(empty_url) == []
    with (edited / "0001.create-enrollments.sql").open("a") as file:
        file.write("-- More.\n")
    with pytest.raises(migrations.MigrationError, match=r"^0001\."):
        migrations.apply(empty_url)


def test_a_release_goes_on_beside_migrations_that_only_the_next_one_knows(empty_url: str, edited: Path) -> None:
    migrations.apply(empty_url)
    (edited / "9999.create-things.sql").write_text("CREATE TABLE things (x int);\n")
    (edited / "9999.create-things.rollback.sql").write_text("DROP TABLE things;\n")
    assert migrations.apply(empty_url) == ["9999.create-things"]
    (edited / "9999.create-things.sql").unlink()
    (edited / "9999.create-things.rollback.sql").unlink()
    assert migrations.apply(empty_url) == []


def test_a_failed_migration_names_its_file_and_the_object_and_quotes_no_row(empty_url: str, edited: Path) -> None:
    migrations.apply(empty_url)
    with psycopg.connect(empty_url, autocommit=True) as connection:
        connection.execute("INSERT INTO devices (device_id, hostname) VALUES ('a', 'SECRET'), ('b', 'SECRET')")
    new = edited / "9999.fail.sql"
    for text, message in (
        ("ALTER TABLE nothing ADD COLUMN x int;", '9999.fail: relation "nothing" does not exist (42P01)'),
        ("DROP FUNCTION is_held(int);", "9999.fail: function is_held(integer) does not exist (42883)"),
        ("CREATE UNIQUE INDEX one ON devices (hostname);", "9999.fail: UniqueViolation 23505 of devices of one"),
        (
            "ALTER TABLE devices ALTER hostname TYPE int USING hostname::int;",
            "9999.fail: InvalidTextRepresentation 22P02",
        ),
    ):
        new.write_text(text + "\n")
        with pytest.raises(migrations.MigrationError) as raised:
            migrations.apply(empty_url)
        assert str(raised.value) == message


def test_a_lock_that_is_held_is_waited_for_in_small_steps(empty_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migrations, "LOCK_TIMEOUT", "100ms")
    migrations.apply(empty_url)
    migrations.rollback(empty_url, to="0010.partition-event-tables")
    with psycopg.connect(empty_url) as holder, ThreadPoolExecutor(1) as threads:
        holder.execute("LOCK TABLE prompts IN ROW EXCLUSIVE MODE")
        applied = threads.submit(migrations.apply, empty_url)
        time.sleep(1)
        assert not applied.done()
        # Whoever writes meanwhile waits for a step, not for the holder.
        with psycopg.connect(empty_url, autocommit=True) as writer:
            writer.execute("SET lock_timeout = '20s'")
            writer.execute("SELECT count(*) FROM prompts")
        holder.rollback()
        assert applied.result(timeout=30)[0] == "0010.partition-event-tables"


def test_a_lock_that_is_held_for_too_long_ends_the_run_and_changes_nothing(
    empty_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrations, "LOCK_TIMEOUT", "50ms")
    monkeypatch.setattr(migrations, "MAX_TRIES", 2)
    migrations.apply(empty_url)
    migrations.rollback(empty_url, to="0010.partition-event-tables")
    before = query(empty_url, SCHEMA)
    with psycopg.connect(empty_url) as holder:
        holder.execute("LOCK TABLE compliance_events IN ROW EXCLUSIVE MODE")
        with pytest.raises(migrations.MigrationError, match=r"^0010\..*long transaction"):
            migrations.apply(empty_url)
        assert query(empty_url, SCHEMA) == before


SCRIPT = "import sys; from pathlib import Path; from app.db import migrations; "
SCRIPT += "migrations.FOLDER = Path(sys.argv[2]); print(*migrations.apply(sys.argv[1]))"


def run_until(url: str, folder: Path, waits_for: str) -> subprocess.Popen[str]:
    """Start a run in a process of its own, and return when it waits for a lock in this statement."""
    run = subprocess.Popen([sys.executable, "-c", SCRIPT, url, str(folder)], stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    waiting = f"SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%{waits_for}%'"
    waiting += " AND datname = current_database() AND pid != pg_backend_pid()"
    while query(url, waiting) == [(0,)]:
        assert run.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return run


def test_a_run_that_is_killed_goes_on_where_it_stopped(empty_url: str, edited: Path) -> None:
    """The second statement of the second migration waits when the run is killed: the first one's table must go."""
    migrations.apply(empty_url)
    (edited / "9997.create-first.sql").write_text("CREATE TABLE first (x int);\n")
    (edited / "9998.create-second.sql").write_text(
        "CREATE TABLE second (x int);\nALTER TABLE devices ADD COLUMN second int;\n"
    )
    with psycopg.connect(empty_url) as holder:
        holder.execute("LOCK TABLE devices IN ACCESS SHARE MODE")
        run = run_until(empty_url, edited, "ADD COLUMN second")
        run.kill()
        run.wait(10)
    applied = "SELECT migration_id FROM _yoyo_migration WHERE migration_id LIKE '999%'"
    assert query(empty_url, applied) == [("9997.create-first",)]
    assert migrations.apply(empty_url) == ["9998.create-second"]
    assert query(empty_url, "SELECT to_regclass('first')::text, to_regclass('second')::text") == [("first", "second")]
    assert query(empty_url, "SELECT count(*) FROM migration_checksums WHERE name LIKE '999%'") == [(2,)]


def test_a_migration_without_a_transaction_that_is_killed_is_run_again(empty_url: str, edited: Path) -> None:
    migrations.apply(empty_url)
    (edited / "9998.index-hostname.sql").write_text(
        "-- transactional: false\n"
        "DROP INDEX CONCURRENTLY IF EXISTS devices_hostname_idx;\n"
        "CREATE INDEX CONCURRENTLY devices_hostname_idx ON devices (hostname);\n"
    )
    with psycopg.connect(empty_url) as holder:
        holder.execute("INSERT INTO devices (device_id) VALUES ('d')")
        run = run_until(empty_url, edited, "CREATE INDEX CONCURRENTLY")
        run.kill()
        run.wait(10)
        holder.commit()
    invalid = "SELECT count(*) FROM pg_index WHERE indexrelid = to_regclass('devices_hostname_idx') AND NOT indisvalid"
    assert query(empty_url, "SELECT count(*) FROM _yoyo_migration WHERE migration_id LIKE '999%'") == [(0,)]
    assert migrations.apply(empty_url) == ["9998.index-hostname"]
    assert query(empty_url, invalid) == [(0,)]
    assert query(empty_url, "SELECT to_regclass('devices_hostname_idx')::text") == [("devices_hostname_idx",)]


FILL = """
INSERT INTO enrollments (enrollment_id, label, max_uses, expires_at)
SELECT ('00000000-0000-8000-8000-' || lpad(n::text, 12, '0'))::uuid, 'l', 10, now() + interval '1 day'
FROM generate_series(1, 100) AS n;
INSERT INTO devices (device_id, key_thumbprint) SELECT 'device-' || n, 'k' || n FROM generate_series(1, 100) AS n;
INSERT INTO browser_instances (instance_id, device_id) SELECT 'i' || n, 'device-1' FROM generate_series(1, 100) AS n;
INSERT INTO prompts ("timestamp", device_id, prompt_id, instance_id, site, url, prompt)
SELECT 1700000000000 + n * 100000000::bigint, 'device-1', gen_random_uuid(), 'i', 's', 'u', 'p'
FROM generate_series(1, 500) AS n;
INSERT INTO extension_status (reported_at, device_id, status_id, instance_id, status)
SELECT 1700000000000 + n * 100000000::bigint, 'device-1', gen_random_uuid(), 'i', 'enabled'
FROM generate_series(1, 500) AS n;
INSERT INTO compliance_events (detected_at, device_id, event_id, event_type, severity)
SELECT 1700000000000 + n * 100000000::bigint, 'device-1', gen_random_uuid(), 'e', 'low'
FROM generate_series(1, 500) AS n;
INSERT INTO client_assertions (device_id, jti, use_id, expires_at)
SELECT 'device-1', 'j' || n, gen_random_uuid(), now() FROM generate_series(1, 100) AS n;
"""
# What is only in tables of this release.
FILL_THE_REST = """
INSERT INTO audit_log (audit_id, actor, action) SELECT gen_random_uuid(), 'a', 'b.c' FROM generate_series(1, 100);
INSERT INTO legal_holds (hold_id, device_id, reason)
SELECT gen_random_uuid(), 'device-' || n, 'r' FROM generate_series(1, 100) AS n;
UPDATE prompts SET prompt = '', erased_at = now() WHERE "timestamp" % 3 = 0;
UPDATE devices SET archived_at = now();
INSERT INTO conflict_notices (device_id, event_type, subject, noticed_on)
SELECT 'device-' || n, 'registration_conflict', 'k', current_date FROM generate_series(1, 100) AS n;
"""
CREATED = {
    "0001.create-enrollments": "enrollments",
    "0002.create-devices": "devices",
    "0003.create-browser-instances": "browser_instances",
    "0004.create-prompts": "prompts",
    "0005.create-extension-status": "extension_status",
    "0006.create-compliance-events": "compliance_events",
    "0007.create-client-assertions": "client_assertions",
    "0012.create-audit-log": "audit_log",
    "0013.create-legal-holds": "legal_holds",
    "0028.create-conflict-notices": "conflict_notices",
}


def counts(url: str) -> dict[str, int]:
    there = {row[0] for row in query(url, TABLES)}
    return {table: query(url, f"SELECT count(*) FROM {table}")[0][0] for table in sorted(set(CREATED.values()) & there)}


@pytest.mark.parametrize("name", migrations.names())
def test_a_rollback_of_filled_tables_loses_no_more_than_it_says(empty_url: str, name: str) -> None:
    migrations.apply(empty_url)
    with psycopg.connect(empty_url, autocommit=True) as connection:
        connection.execute(FILL)
        connection.execute(FILL_THE_REST)
    before = counts(empty_url)
    assert min(before.values()) > 0
    assert set(before) == {row[0] for row in query(empty_url, TABLES) if not re.search(r"_(\d{6}|default)$", row[0])}
    migrations.rollback(empty_url, to=name)
    gone = {table for migration, table in CREATED.items() if migration >= name}
    assert counts(empty_url) == {table: count for table, count in before.items() if table not in gone}
    migrations.apply(empty_url)
    assert counts(empty_url) == {table: 0 if table in gone else count for table, count in before.items()}


@pytest.mark.parametrize("release", previous_release.RELEASES)
def test_a_previous_release_writes_while_this_one_migrates(
    empty_url: str, edited: Path, monkeypatch: pytest.MonkeyPatch, release: str
) -> None:
    """Its statements against its schema, filled, while everything newer is applied."""
    newer = [name for name in migrations.names() if name not in previous_release.migrations(release)]
    kept = {path: path.read_text() for name in newer for path in edited.glob(f"{name}.*")}
    for path in kept:
        path.unlink()
    with monkeypatch.context() as then:
        then.setattr(grants, "GRANTS", edited / "none.sql")
        grants.GRANTS.write_text("")
        migrations.apply(empty_url)
    with psycopg.connect(empty_url, autocommit=True) as connection:
        connection.execute(FILL)
    for path, text in kept.items():
        path.write_text(text)
    statements = previous_release.statements(release)
    stop = threading.Event()

    def write(number: int) -> dict[str, int]:
        """Send the statements in turn until the migration is over, and some times more."""
        sent: Counter[str] = Counter()
        rounds_left = 30
        with psycopg.connect(empty_url, autocommit=True, prepare_threshold=0) as connection:
            connection.execute("SET lock_timeout = '2500ms'")
            while rounds_left:
                rounds_left -= stop.is_set()
                for name, text in statements.items():
                    sent[name] += _send(connection, text, f"{number}-{name}-{sent[name]}")
        return dict(sent)

    with ThreadPoolExecutor(4) as threads:
        writers = [threads.submit(write, number) for number in range(4)]
        time.sleep(0.5)
        try:
            assert migrations.apply(empty_url) == newer
            time.sleep(0.5)
        finally:
            stop.set()
        sent = sum((Counter(writer.result(timeout=60)) for writer in writers), Counter())
    stored = counts(empty_url)
    assert stored["prompts"] == 500 + sent["prompts/insert_prompts"] > 600
    assert stored["extension_status"] == 500 + sent["extension/insert_statuses"]
    assert stored["compliance_events"] == 500 + sent["compliance/insert_events"]
    assert stored["devices"] == 100 + sent["devices/register_devices"]
    assert stored["browser_instances"] == 100 + sent["browsers/upsert_instances"] + sent["browsers/upsert_heartbeats"]


def test_a_clone_without_the_history_of_a_previous_release_skips_its_tests_and_says_why() -> None:
    with pytest.raises(pytest.skip.Exception, match="whole history"):
        previous_release.statements("0" * 40)


def _send(connection: psycopg.Connection[Any], text: str, unique: str) -> int:
    """Send one row as often as a client would; returns 1 when it is stored."""
    now = int(time.time() * 1000)
    row = {
        "ord": 0,
        "device_id": f"new-{unique}" if "enrollment" in text else "device-1",
        "instance_id": f"instance-{unique}",
        "key_thumbprint": f"t-{unique}" if "enrollment" in text else "k1",
        "public_key_pem": "pem",
        "enrollment_id": f"00000000-0000-8000-8000-{(hash(unique) % 100) + 1:012d}",
        "hostname": "h",
        "timestamp": now,
        "reported_at": now,
        "detected_at": now,
        **{name: str(uuid.uuid4()) for name in ("prompt_id", "status_id", "event_id")},
        "site": "s",
        "url": "u",
        "prompt": "p",
        "status": "enabled",
        "event_type": "e",
        "severity": "low",
    }
    for _ in range(10):
        try:
            found = connection.execute(text, {"rows": json.dumps([row])}).fetchall()
        except psycopg.errors.LockNotAvailable:
            continue
        return int("created" in found[0])
    raise AssertionError("a row was refused ten times")
