"""Migrations go forward, back and forward again, and leave nothing unexplained."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from app.db import migrations

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
    base = f"postgresql://{template.user}@/{{}}?host={template.host}&port={template.port}"
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


def test_four_replicas_that_start_together_migrate_once(empty_url: str) -> None:
    script = "import sys; from app.db import migrations; print(*migrations.apply(sys.argv[1]))"
    replicas = [
        subprocess.Popen([sys.executable, "-c", script, empty_url], stdout=subprocess.PIPE, text=True) for _ in range(4)
    ]
    outputs = [replica.communicate(timeout=60)[0].split() for replica in replicas]
    assert [replica.returncode for replica in replicas] == [0] * 4
    assert sorted(outputs) == [[], [], [], migrations.names()]


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
