"""What a DBA reviews is what is there: every table, statement, migration, and who may run what."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row

from app.commands import review_server
from app.commands.review_server import STATISTICS, wanted
from app.db import migrations, plans
from app.db.statements import names, statement
from app.dev import embedded
from config.settings import Settings, load
from tests import dba
from tests.support.application import create_app
from tests.support.service import as_role

DEBIAN_15 = Path("/usr/lib/postgresql/15/bin")
# What the tests' server does without.
UNSAFE = {"fsync", "synchronous_commit", "full_page_writes"}


def review(settings: Settings) -> str:
    app = create_app(settings)
    try:
        result = app.test_cli_runner().invoke(args=["review"])
        assert result.exit_code == 0, result.stderr
        return result.stdout
    finally:
        app.extensions["db"].close()


def sections(text: str, level: str) -> dict[str, str]:
    parts = re.split(rf"^{level} (.*)\n", text, flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def roles(text: str) -> dict[str, set[str]]:
    """By statement, the roles that may run it."""
    return {
        title.removeprefix("sql/").removesuffix(".sql"): set(re.findall(r"watchpost_(\w+)", line[0]))
        for title, body in sections(sections(text, "##")["Statements"], "###").items()
        if (line := re.search(r"^May run it: .*$", body, re.MULTILINE))
    }


def test_make_dba_prints_the_whole_review(capfd: pytest.CaptureFixture[str]) -> None:
    dba.main(devices=500, events=700)
    text = capfd.readouterr().out
    found = sections(text, "##")

    tables = sections(found["Tables"], "###")
    assert {"devices", "prompts", "audit_log", "enrollments", "_yoyo_migration"} <= set(tables)
    assert "Client clock, epoch milliseconds." in tables["prompts"]
    assert "prompts_pkey" in tables["prompts"]
    assert "prompts_default" in tables["prompts"]
    assert re.search(r"about [1-9][0-9]* rows, [1-9][0-9,]* KiB", tables["prompts"])
    assert re.search(r"`client_assertions` \| watchpost_writer \| DELETE, ", text)

    statements = sections(found["Statements"], "###")
    assert set(statements) == {f"sql/{name}.sql" for name in names()}
    for title, body in statements.items():
        header, sql, plan = re.findall(r"^```\w*\n(.+?)^```", body, re.DOTALL | re.MULTILINE)
        assert header.strip(), title
        assert sql.rstrip().endswith(";"), title
        assert "(cost=" in plan, title

    migrated = found["Locks of migrations, as measured"]
    for name in migrations.names():
        line = re.search(rf"^\| `{re.escape(name)}` \| (.*) \|$", migrated, re.MULTILINE)
        said = re.search(r"Locks: (.*)", (migrations.FOLDER / f"{name}.sql").read_text(encoding="utf-8"))
        assert line is not None
        assert said is not None
        # A header that says none is measured to have none, and one that says some has some.
        assert said[1].startswith("none") == ("**" not in line[1]), name
        assert f"`{name}` | applied" in found["Migrations"]

    assert "recovery_target_time" in found["Backup and restore"]


def test_who_may_run_a_statement_is_asked_of_the_database(settings: Settings, database_url: str) -> None:
    may = roles(review(dataclasses.replace(settings, read_database_url=as_role(database_url, "reader"))))
    assert set(may) == set(names())
    assert may["devices/select_device"] == {"owner", "writer", "reader"}
    assert may["prompts/insert_prompts"] == {"owner", "writer"}
    assert may["partitions/create_month"] == {"owner", "writer"}
    assert may["retention/drop_partition"] == may["erasure/erase_prompts"] == may["auth/insert_enrollment"] == {"owner"}
    assert may["devices/select_key"] == {"owner", "writer"}


def test_a_role_that_the_review_can_not_become_is_said_to_be_unknown(settings: Settings) -> None:
    text = review(settings)
    assert "Not asked as watchpost_reader: " in text
    assert roles(text)["prompts/insert_prompts"] == {"owner", "writer"}


def test_a_role_without_a_privilege_is_not_listed(settings: Settings, database_url: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("REVOKE INSERT (username) ON prompts FROM watchpost_writer")
    assert roles(review(settings))["prompts/insert_prompts"] == {"owner"}


def test_the_embedded_server_is_set_as_a_server_is_to_be(rows: Any) -> None:
    is_set = {row["name"]: row["value"] for row in rows(statement("review/select_settings").text)}
    listed = list(wanted())
    assert len(listed) > 15
    assert all(why for _, _, _, why in listed)
    for name, value, depends, _ in listed:
        assert depends or name in UNSAFE or is_set[name] == value, name


@pytest.fixture
def with_statistics(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Iterator[psycopg.Connection[Any]]:
    """A server that has pg_stat_statements: this run's, or else Debian's PostgreSQL 15."""
    # The package that the embedded server comes from has no extensions.
    if not load().postgresql_programs:
        if not (DEBIAN_15 / "postgres").exists():
            pytest.skip("needs the contrib modules of PostgreSQL, as Debian's postgresql-15 has them")
        monkeypatch.setenv("WATCHPOST_POSTGRESQL_PROGRAMS", str(DEBIAN_15))
    preload = "shared_preload_libraries = 'pg_stat_statements'\nfsync = off\n"
    with embedded.running(str(folder), preload) as url:
        migrations.apply(url)
        with psycopg.connect(url, autocommit=True, row_factory=dict_row) as connection:
            connection.execute("CREATE EXTENSION pg_stat_statements")
            yield connection


def test_the_review_has_the_statistics_where_they_are(with_statistics: psycopg.Connection[Any]) -> None:
    text = "\n".join(review_server.statistics(with_statistics))
    assert "Here it is not there." not in text
    assert "| file | role | calls |" in text
    assert re.search(r"^\| `?\w+/\w+`? \| \w+ \| \d+ ", text, re.MULTILINE)


def test_statistics_name_the_files(with_statistics: psycopg.Connection[Any]) -> None:
    with_statistics.execute("SELECT pg_stat_statements_reset()")
    for name in names():
        for _ in range(3):
            # As the service does: prepared, with parameters.
            with with_statistics.transaction(force_rollback=True):
                with_statistics.execute(statement(name).text, plans.examples(), prepare=True)
    found = {row["file"]: row["calls"] for row in with_statistics.execute(STATISTICS.encode()).fetchall()}
    assert {name: found.get(name) for name in names()} == dict.fromkeys(names(), 3)


def test_statistics_are_shown_when_the_extension_is_there(with_statistics: psycopg.Connection[Any]) -> None:
    assert "does not have it" not in "\n".join(review_server.statistics(with_statistics))


def test_statistics_say_that_the_extension_is_not_there(database_url: str) -> None:
    with psycopg.connect(database_url, row_factory=dict_row) as connection:
        assert "This database does not have it." in "\n".join(review_server.statistics(connection))


def test_a_review_as_json_has_a_title_and_a_text_for_each_section(settings: Settings) -> None:
    result = create_app(settings).test_cli_runner().invoke(args=["review", "--json"])
    titles = [section["title"] for section in json.loads(result.stdout)]
    assert titles[0].startswith("Watchpost")
    assert {"Tables", "Grants", "Statements", "Migrations", "Backup and restore"} <= set(titles)
