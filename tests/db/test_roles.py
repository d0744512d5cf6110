"""Three roles: each may do what it is for, and nothing else."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from app.db import grants, migrations
from app.db.plans import examples
from app.db.statements import FOLDER, statement
from app.dev import embedded
from app.ingest.record_types import event_types
from config.settings import load
from tests.support import previous_release
from tests.support.agent import Agent
from tests.support.service import Service, as_role, serving

EVIDENCE = ("prompts", "extension_status", "compliance_events")
WRITER_FILES = sorted(
    str(path.relative_to(FOLDER).with_suffix(""))
    for path in FOLDER.rglob("*.sql")
    if "%(rows)s" in path.read_text()
    or path.stem in ("select_key", "use_assertion", "delete_expired_assertions", "select_migrations")
)
REFUSED_TO_THE_WRITER = [
    *(f"DELETE FROM {table}" for table in (*EVIDENCE, "devices", "browser_instances", "enrollments")),
    *(f"TRUNCATE {table}" for table in (*EVIDENCE, "devices", "client_assertions")),
    *(f"UPDATE {table} SET created_at = now()" for table in (*EVIDENCE, "browser_instances")),
    "UPDATE prompts SET prompt = ''",
    "UPDATE compliance_events SET severity = 'low'",
    "UPDATE extension_status SET status = 'enabled'",
    "UPDATE devices SET revoked_at = NULL",
    "UPDATE devices SET device_id = 'other'",
    "UPDATE browser_instances SET instance_id = 'other'",
    "UPDATE enrollments SET max_uses = 1000000",
    "UPDATE enrollments SET expires_at = now() + interval '1 year'",
    "INSERT INTO enrollments (enrollment_id, label, max_uses, expires_at) "
    "VALUES (gen_random_uuid(), 'l', 1, now() + interval '1 day')",
    'INSERT INTO prompts ("timestamp", device_id, prompt_id, instance_id, site, url, prompt, created_at) '
    "VALUES (1, 'd', gen_random_uuid(), 'i', 's', 'u', 'p', '2020-01-01')",
    "SELECT label FROM enrollments",
    "INSERT INTO _yoyo_migration (migration_hash, migration_id) VALUES ('x', 'x')",
    "DELETE FROM migration_checksums",
    "CREATE TABLE mine (x int)",
    "CREATE SCHEMA mine",
    "CREATE INDEX mine ON prompts (site)",
    "ALTER TABLE prompts ADD COLUMN mine int",
    "DROP TABLE prompts_default",
    "SELECT count(*) FROM prompts_default",
    "SET ROLE watchpost_owner",
    "COPY prompts TO PROGRAM 'cat'",
    "SELECT pg_read_file('postgresql.conf')",
]
REFUSED_TO_THE_READER = [
    "SELECT public_key_pem FROM devices",
    "SELECT * FROM devices",
    "SELECT enrollment_id FROM enrollments",
    "SELECT jti FROM client_assertions",
    "SELECT create_month('prompts', '2030-01-01')",
    "UPDATE devices SET hostname = 'h'",
    "DELETE FROM prompts",
    "INSERT INTO client_assertions VALUES ('d', 'j', gen_random_uuid(), now())",
    "CREATE TABLE mine (x int)",
    "SET ROLE watchpost_writer",
]


@pytest.fixture
def connect(database_url: str) -> Callable[[str], psycopg.Connection[Any]]:
    return lambda role: psycopg.connect(as_role(database_url, role), autocommit=True)


@pytest.mark.parametrize("query", REFUSED_TO_THE_WRITER)
def test_the_writer_may_not(connect: Any, query: str) -> None:
    with connect("writer") as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
        connection.execute(query)


@pytest.mark.parametrize("query", REFUSED_TO_THE_READER)
def test_the_reader_may_not(connect: Any, query: str) -> None:
    with connect("reader") as connection:
        # The role's default would refuse a write before its rights are looked at, and anybody can change a default.
        connection.execute("SET default_transaction_read_only = off")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute(query)


@pytest.mark.parametrize("name", WRITER_FILES)
def test_the_writer_may_run_what_requests_need(connect: Any, name: str) -> None:
    with connect("writer") as connection, connection.transaction(force_rollback=True):
        connection.execute(statement(name).text, examples())


@pytest.mark.parametrize("release", previous_release.RELEASES)
@pytest.mark.parametrize("name", previous_release.WRITES)
def test_the_writer_of_a_previous_release_goes_on_with_these_rights(connect: Any, release: str, name: str) -> None:
    parameters = examples()
    parameters["rows"] = parameters["rows"].replace('"ordinal"', '"ord"')
    with connect("writer") as connection, connection.transaction(force_rollback=True):
        found = connection.execute(previous_release.statements(release)[name], parameters).fetchall()
    # No device of the example is registered; heartbeats and registrations need none.
    assert len(found) == (name.startswith("devices/"))


RIGHTS = """
SELECT relname AS name, NULL AS column_name, may.privilege_type AS privilege
FROM pg_class CROSS JOIN LATERAL aclexplode(relacl) AS may
WHERE relnamespace = 'public'::regnamespace AND may.grantee = 'watchpost_writer'::regrole
UNION ALL
SELECT attrelid::regclass::text, attname, may.privilege_type
FROM pg_attribute CROSS JOIN LATERAL aclexplode(attacl) AS may
WHERE may.grantee = 'watchpost_writer'::regrole
ORDER BY name, column_name, privilege
"""


def test_the_writer_has_no_right_that_no_statement_needs(database_url: str) -> None:
    """Each right is taken away in turn: a statement must then be refused."""
    statements = [statement(name).text for name in WRITER_FILES]
    spare = []
    with psycopg.connect(database_url) as connection:
        rights = connection.execute(RIGHTS).fetchall()
        for table, column, privilege in rights:
            with connection.transaction(force_rollback=True):
                what = f'{privilege} ("{column}")' if column else privilege
                connection.execute(f"REVOKE {what} ON {table} FROM watchpost_writer")
                connection.execute("SET LOCAL ROLE watchpost_writer")
                if not any(_is_refused(connection, text) for text in statements if table in text):
                    spare.append((table, column, privilege))
    assert len(rights) > 100
    assert spare == []
    # A duplicate check compares whole rows of events, also where a migration has just added a column.
    whole = [("client_assertions", None, "DELETE"), *((event.table, None, "SELECT") for event in event_types())]
    assert [right for right in rights if right[1] is None] == sorted(whole)


def _is_refused(connection: psycopg.Connection[Any], text: str) -> bool:
    try:
        with connection.transaction(force_rollback=True):
            connection.execute("EXPLAIN " + text, examples())
    except psycopg.errors.InsufficientPrivilege:
        return True
    return False


def test_only_the_owner_makes_temporary_tables(rows: Callable[..., list[dict[str, Any]]], connect: Any) -> None:
    # A clone of a database does not have its rights.
    rows(grants.ROLES.read_text())
    with connect("owner") as owner:
        owner.execute("CREATE TEMPORARY TABLE mine (x int)")
    for role in ("writer", "reader"):
        with connect(role) as connection:
            connection.execute("SET default_transaction_read_only = off")
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute("CREATE TEMPORARY TABLE mine (x int)")


def test_the_reader_reads_the_rest(connect: Any) -> None:
    with connect("reader") as connection:
        for table in (*EVIDENCE, "browser_instances"):
            connection.execute(f"SELECT * FROM {table}")
        connection.execute("SELECT device_id, hostname, last_heartbeat, revoked_at FROM devices")
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            connection.execute("CREATE TEMPORARY TABLE mine (x int)")


@pytest.mark.parametrize("role", ["owner", "writer", "reader"])
def test_every_role_waits_for_locks_and_idles_for_a_bounded_time(connect: Any, role: str) -> None:
    with connect(role) as connection:
        shown = {
            name: connection.execute(f"SHOW {name}").fetchone()[0]
            for name in ("lock_timeout", "idle_in_transaction_session_timeout", "statement_timeout")
        }
    assert shown["lock_timeout"] != "0"
    assert shown["idle_in_transaction_session_timeout"] != "0"
    assert shown["statement_timeout"] != "0"


def test_everything_belongs_to_the_owner(rows: Callable[..., list[dict[str, Any]]]) -> None:
    assert rows("""
        SELECT DISTINCT pg_get_userbyid(relowner) AS owner FROM pg_class
        WHERE relnamespace = 'public'::regnamespace
        UNION
        SELECT DISTINCT pg_get_userbyid(proowner) FROM pg_proc WHERE pronamespace = 'public'::regnamespace
    """) == [{"owner": "watchpost_owner"}]


def test_nobody_else_may_do_anything(rows: Callable[..., list[dict[str, Any]]]) -> None:
    rows("CREATE ROLE stranger LOGIN")
    try:
        found = rows("""
            SELECT relname FROM pg_class
            WHERE
                relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p')
                AND (
                    has_table_privilege('stranger', oid, 'SELECT, INSERT, UPDATE, DELETE, TRUNCATE')
                    OR has_any_column_privilege('stranger', oid, 'SELECT, INSERT, UPDATE')
                )
            UNION ALL
            SELECT proname FROM pg_proc
            WHERE pronamespace = 'public'::regnamespace AND has_function_privilege('stranger', oid, 'EXECUTE')
        """)
        assert found == []
    finally:
        rows("DROP ROLE stranger")


def test_a_changed_right_is_put_back_when_the_grants_change(
    database_url: str, connect: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with connect("owner") as owner:
        owner.execute("GRANT DELETE ON prompts TO watchpost_writer")
    migrations.apply(as_role(database_url, "owner"))
    changed = tmp_path / "grants.sql"
    changed.write_text(grants.GRANTS.read_text() + "\n-- Changed.\n")
    monkeypatch.setattr(grants, "GRANTS", changed)
    migrations.apply(as_role(database_url, "owner"))
    with connect("writer") as writer, pytest.raises(psycopg.errors.InsufficientPrivilege):
        writer.execute("DELETE FROM prompts")


THEIRS = """
CREATE FUNCTION theirs() RETURNS int LANGUAGE sql AS 'SELECT 1';
CREATE VIEW their_view AS SELECT 1 AS n;
REVOKE ALL ON FUNCTION theirs() FROM public;
GRANT EXECUTE ON FUNCTION theirs() TO pg_monitor;
GRANT SELECT ON their_view TO public;
"""
THEIR_RIGHTS = """
SELECT proacl::text AS acl FROM pg_proc WHERE proname = 'theirs'
UNION ALL SELECT relacl::text FROM pg_class WHERE relname = 'their_view'
"""


@pytest.mark.parametrize("to", ["0001", "0020"], ids=["install", "upgrade"])
@pytest.mark.parametrize("role", ["owner", None], ids=["as the owner", "as a superuser"])
def test_what_others_have_in_the_schema_is_left_alone(
    database_url: str, rows: Callable[..., list[dict[str, Any]]], to: str, role: str | None
) -> None:
    migrations.rollback(database_url, to=to)
    rows(THEIRS)
    before = rows(THEIR_RIGHTS)
    assert migrations.apply(as_role(database_url, role) if role else database_url)[0].startswith(to)
    assert rows(THEIR_RIGHTS) == before
    assert rows("SELECT * FROM migration_checksums WHERE name = %s", grants.version())


def test_roles_sql_names_every_function(rows: Callable[..., list[dict[str, Any]]]) -> None:
    named = set(re.findall(r"'(\w+)'", grants.ROLES.read_text()))
    functions = rows("SELECT proname FROM pg_proc WHERE pronamespace = 'public'::regnamespace")
    assert {row["proname"] for row in functions} <= named, "name it in config/roles.sql, so that it is handed over"


@pytest.fixture
def with_an_extension(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Iterator[str]:
    """A database that has pg_stat_statements in schema public before it has a table."""
    if not load().postgresql_programs:
        if not Path("/usr/lib/postgresql/15/bin/postgres").exists():
            pytest.skip("needs the contrib modules of PostgreSQL, as Debian's postgresql-15 has them")
        monkeypatch.setenv("WATCHPOST_POSTGRESQL_PROGRAMS", "/usr/lib/postgresql/15/bin")
    with embedded.running(str(folder), "shared_preload_libraries = 'pg_stat_statements'\nfsync = off\n") as url:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("CREATE EXTENSION pg_stat_statements")
        yield url


def test_pg_stat_statements_in_the_schema_is_in_the_way_of_no_install_and_no_upgrade(with_an_extension: str) -> None:
    owner = as_role(with_an_extension, "owner")
    assert migrations.apply(with_an_extension) == migrations.names()
    migrations.rollback(with_an_extension, to="0020")
    assert migrations.apply(owner) == [name for name in migrations.names() if name >= "0020"]
    assert not migrations.is_behind(as_role(with_an_extension, "writer"))


def test_a_failed_grant_ends_the_start_and_names_its_object(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, client: Any
) -> None:
    broken = tmp_path / "grants.sql"
    broken.write_text(grants.GRANTS.read_text() + "\nGRANT SELECT ON nothing TO watchpost_reader;\n")
    monkeypatch.setattr(grants, "GRANTS", broken)
    with pytest.raises(migrations.MigrationError) as raised:
        migrations.apply(as_role(database_url, "owner"))
    assert str(raised.value) == 'config/grants.sql: relation "nothing" does not exist (42P01)'
    answer = client.get("/readyz")
    assert (answer.status_code, answer.json["type"]) == (503, "urn:watchpost:problem:grants-pending")
    assert migrations.is_behind(as_role(database_url, "writer"))
    broken.write_text(grants.GRANTS.read_text().replace("nothing", "prompts"))
    assert migrations.apply(as_role(database_url, "owner")) == []
    assert client.get("/readyz").status_code == 200


def test_a_role_that_lacks_the_grants_of_this_release_is_not_ready_and_no_request_is_a_fault(
    client: Any, rows: Callable[..., list[dict[str, Any]]], enrollment: Any, bearer: Any
) -> None:
    token = enrollment()
    rows("REVOKE ALL ON migration_checksums, devices FROM watchpost_writer")
    rows("REVOKE ALL (name) ON migration_checksums FROM watchpost_writer")
    rows("REVOKE ALL (revoked_at) ON devices FROM watchpost_writer")
    assert client.get("/readyz").status_code == 503
    answer = client.post("/api/devices/register", json=Agent().registration(), headers=bearer(token))
    assert (answer.status_code, "Retry-After" in answer.headers) == (503, True)


def test_a_release_is_ready_beside_the_grants_of_the_next_one(
    database_url: str, client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as next_release:
        changed = tmp_path / "grants.sql"
        changed.write_text(grants.GRANTS.read_text() + "\n-- More.\n")
        next_release.setattr(grants, "GRANTS", changed)
        migrations.apply(as_role(database_url, "owner"))
    assert client.get("/readyz").status_code == 200


@pytest.mark.parametrize("is_supervised", [True, False], ids=["make run", "gunicorn"])
@pytest.mark.parametrize("options", ["", "&options=-c%20role%3Dwatchpost_writer"], ids=["", "in another's role"])
def test_the_service_refuses_to_run_as_a_superuser(
    tmp_path_factory: Any, database_url: str, options: str, is_supervised: bool
) -> None:
    folder = tmp_path_factory.mktemp("superuser")
    service = Service(folder, is_supervised=is_supervised, Database_url=database_url + options)
    try:
        assert service.process.wait(60) == 3
    finally:
        service.kill_everything()
    lines = [json.loads(line) for line in service.log.read_text().splitlines() if line.startswith("{")]
    said = [line["message"] for line in lines if line["level"] == "error"]
    assert said[0].startswith("can't start: WATCHPOST_DATABASE_URL names a superuser: use watchpost_writer")


def test_a_service_that_may_not_migrate_waits_for_the_owner(
    tmp_path_factory: Any, database_url: str, rows: Callable[..., list[dict[str, Any]]]
) -> None:
    migrations.rollback(database_url, to=migrations.names()[-1])
    folder = tmp_path_factory.mktemp("waits")
    service = Service(folder, is_supervised=True, database_url=database_url, owner_database_url="")
    try:
        answer = _when_it_answers(service)
        assert answer.status == 503
        assert answer.json["type"] == "urn:watchpost:problem:migrations-pending"
        assert "run `flask --app wsgi migrate` as the owner" in service.log.read_text()
        assert migrations.apply(as_role(database_url, "owner"))
        assert service.get("/readyz").status == 200
        assert service.end() == 0
    finally:
        service.kill_everything()


def test_a_service_that_may_not_migrate_and_need_not_says_nothing(tmp_path_factory: Any, database_url: str) -> None:
    folder = tmp_path_factory.mktemp("silent")
    with serving(folder, is_supervised=True, database_url=database_url, owner_database_url="") as service:
        pass
    lines = [json.loads(line) for line in service.log.read_text().splitlines()]
    assert [line for line in lines if line["level"] not in ("info", "debug")] == []


def test_a_databases_owner_can_give_the_roles_their_rights(
    database_url: str, rows: Callable[..., list[dict[str, Any]]]
) -> None:
    """As where others run the server, and nobody is a superuser."""
    rows("CREATE ROLE dba LOGIN CREATEROLE")
    rows("CREATE DATABASE hosted OWNER dba")
    given = psycopg.conninfo.conninfo_to_dict(database_url)
    hosted = database_url.replace(f"/{given['dbname']}?", "/hosted?")
    try:
        with psycopg.connect(hosted, user="dba", autocommit=True) as dba:
            dba.execute(grants.ROLES.read_text())
        assert migrations.apply(as_role(hosted, "owner")) == migrations.names()
        with psycopg.connect(as_role(hosted, "writer"), autocommit=True) as writer:
            writer.execute(statement("service/select_migrations").text)
    finally:
        rows("DROP DATABASE hosted WITH (FORCE)")
        rows("DROP ROLE dba")


def _when_it_answers(service: Service) -> Any:
    deadline = time.monotonic() + 30
    while True:
        try:
            return service.get("/readyz")
        except OSError:
            assert time.monotonic() < deadline, service.log.read_text()
            time.sleep(0.05)


def test_what_an_older_release_made_is_handed_over_and_its_role_goes_on(
    database_url: str, rows: Callable[..., list[dict[str, Any]]]
) -> None:
    rows("CREATE ROLE older LOGIN")
    try:
        for table in ("devices", "prompts", "client_assertions"):
            rows(f"ALTER TABLE {table} OWNER TO older")
        rows("ALTER FUNCTION create_month OWNER TO postgres")
        migrations.apply(database_url)
        test_everything_belongs_to_the_owner(rows)
        with psycopg.connect(as_role(database_url, "writer").replace("watchpost_writer", "older")) as connection:
            connection.execute("INSERT INTO devices (device_id) VALUES ('d')")
    finally:
        rows("DROP OWNED BY older")
        rows("DROP ROLE older")


def test_a_role_that_is_not_the_owner_can_own_a_database_of_its_own(
    database_url: str, rows: Callable[..., list[dict[str, Any]]]
) -> None:
    rows("CREATE ROLE alone LOGIN")
    rows("CREATE DATABASE alone OWNER alone")
    url = as_role(database_url, "writer").replace("watchpost_writer", "alone")
    given = psycopg.conninfo.conninfo_to_dict(url)
    url = url.replace(f"/{given['dbname']}?", "/alone?")
    try:
        assert migrations.apply(url) == migrations.names()
        assert migrations.apply(url) == []
    finally:
        rows("DROP DATABASE alone WITH (FORCE)")
        rows("DROP ROLE alone")
