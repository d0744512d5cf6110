"""What Citus refuses is in no migration and no statement, as far as that can be told without Citus.

The rules are those of its planner and of create_distributed_table; each is shown to catch what it is for.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from app.db.plans import examples
from app.db.statements import FOLDER, names, statement

CITUS = (Path(FOLDER).parent / "config" / "citus.sql").read_text(encoding="utf-8")
SPREAD = dict(re.findall(r"create_distributed_table\('(\w+)', '(\w+)'", CITUS))
REFERENCE = set(re.findall(r"create_reference_table\('(\w+)'", CITUS))
LOCAL = set(re.search(r"^-- local tables: (.*)$", CITUS, re.MULTILINE)[1].split(", "))  # type: ignore[index]

# The functions and the view that citus.sql uses, with the checks that create_distributed_table makes.
CITUS_ITSELF = """
CREATE TABLE citus_tables (table_name regclass PRIMARY KEY);
CREATE FUNCTION create_reference_table(name regclass) RETURNS void
LANGUAGE sql AS 'INSERT INTO citus_tables VALUES ($1)';
CREATE FUNCTION create_distributed_function(name regprocedure) RETURNS void LANGUAGE sql AS '';
CREATE FUNCTION create_distributed_table(name regclass, key text, colocate_with text DEFAULT 'default') RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (
        SELECT FROM pg_index
        WHERE indrelid = name AND indisunique AND NOT (
            (SELECT attnum FROM pg_attribute WHERE attrelid = name AND attname = key) = ANY (indkey::int2[])
        )
    ) THEN
        RAISE EXCEPTION 'a unique index of % lacks %', name, key;
    END IF;
    IF NOT EXISTS (SELECT FROM pg_attribute WHERE attrelid = name AND attname = key AND attnotnull) THEN
        RAISE EXCEPTION '% has no %', name, key;
    END IF;
    IF colocate_with NOT IN ('default', 'none') THEN
        PERFORM FROM citus_tables WHERE table_name = colocate_with::regclass;
        IF NOT FOUND THEN RAISE EXCEPTION '% is not distributed', colocate_with; END IF;
    END IF;
    INSERT INTO citus_tables VALUES (name);
END
$$;
"""
TABLES = """
SELECT relname FROM pg_class
WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p') AND NOT relispartition
"""
# Rules of the catalog: each query finds what breaks it, among tables that are not on the coordinator alone.
CATALOG = {
    "foreign keys": """
        SELECT conname FROM pg_constraint WHERE contype = 'f' AND conrelid::regclass::text = ANY (%(all)s)
    """,
    "triggers": "SELECT tgname FROM pg_trigger WHERE NOT tgisinternal AND tgrelid::regclass::text = ANY (%(all)s)",
    "rules": "SELECT rulename FROM pg_rules WHERE tablename = ANY (%(all)s)",
    "serial keys": """
        SELECT attrelid::regclass || '.' || attname
        FROM pg_attribute
        LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
        WHERE
            attrelid::regclass::text = ANY (%(all)s) AND attnum > 0
            AND (attidentity != '' OR pg_get_expr(adbin, adrelid) LIKE '%%nextval(%%')
    """,
    "volatile defaults": """
        SELECT attrelid::regclass || '.' || attname
        FROM pg_attribute
        INNER JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
        WHERE
            attrelid::regclass::text = ANY (%(all)s)
            AND pg_get_expr(adbin, adrelid) ~ '(gen_random_uuid|clock_timestamp|random)[(]'
    """,
}
BREAKS_CATALOG = {
    "foreign keys": "ALTER TABLE prompts ADD FOREIGN KEY (device_id) REFERENCES devices",
    "triggers": """
        CREATE FUNCTION t() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
        CREATE TRIGGER t BEFORE INSERT ON devices FOR EACH ROW EXECUTE FUNCTION t()
    """,
    "rules": "CREATE RULE r AS ON DELETE TO devices DO INSTEAD NOTHING",
    "serial keys": "ALTER TABLE devices ADD COLUMN number bigserial",
    "volatile defaults": "ALTER TABLE devices ALTER COLUMN hostname SET DEFAULT gen_random_uuid()::text",
}

SPREAD_TABLE = rf"(?:{'|'.join(SPREAD)})\b"
PART = r"(?:(?!\n\),?\n)[\s\S])*?"  # as far as the end of a CTE
# Rules of a statement's text.
TEXT = {
    "an outer join fetches the whole table": rf"(?:LEFT|RIGHT|FULL)(?: OUTER)? JOIN {SPREAD_TABLE}",
    "rows of many machines can't be locked": rf"FROM {SPREAD_TABLE}{PART}FOR (?:UPDATE|SHARE)",
    "sets of many machines can't be compared": r"\b(?:INTERSECT|EXCEPT)\b",
    "an update's coalesce or case must be immutable": rf"UPDATE \w+{PART}(?:coalesce|CASE)\b[^;]*?\bnow\(\)",
    "an update's functions must not be volatile": r"\b(?:gen_random_uuid|clock_timestamp|random|nextval)\(",
    "no session state": r"\bpg_(?:try_)?advisory_|\bTEMP(?:ORARY)?\b|\bSET (?:LOCAL|SESSION)\b|\bset_config\(",
    "no recursion": r"\bWITH RECURSIVE\b",
}
BREAKS_TEXT = {
    "an outer join fetches the whole table": "SELECT 1\nFROM given\nLEFT JOIN devices ON given.a = devices.device_id",
    "rows of many machines can't be locked": "SELECT hostname\nFROM devices\nWHERE last_heartbeat < now()\nFOR UPDATE",
    "sets of many machines can't be compared": "SELECT 1 FROM devices INTERSECT SELECT 2",
    "an update's coalesce or case must be immutable": "UPDATE devices\nSET revoked_at = coalesce(revoked_at, now())",
    "an update's functions must not be volatile": "UPDATE devices SET hostname = gen_random_uuid()::text",
    "no session state": "SELECT pg_advisory_lock(1)",
    "no recursion": "WITH RECURSIVE a AS (SELECT 1) SELECT * FROM a",
}


@pytest.fixture(scope="module")
def spread(template: Any) -> Iterator[psycopg.Connection[Any]]:
    """A migrated database to which config/citus.sql was applied."""
    url = template.url("{}")
    with psycopg.connect(url.format("postgres"), autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE citus TEMPLATE {template.name}")
        try:
            with psycopg.connect(url.format("citus"), autocommit=True) as connection:
                connection.execute(CITUS_ITSELF)
                connection.execute(CITUS)
                yield connection
        finally:
            admin.execute("DROP DATABASE citus WITH (FORCE)")


def broken(connection: psycopg.Connection[Any], rule: str) -> list[str]:
    tables = [*SPREAD, *REFERENCE]
    return [row[0] for row in connection.execute(CATALOG[rule], {"all": tables}).fetchall()]


def test_citus_sql_can_be_run_again(spread: psycopg.Connection[Any]) -> None:
    spread.execute(CITUS)
    found = {row[0] for row in spread.execute("SELECT table_name::text FROM citus_tables").fetchall()}
    assert found == {*SPREAD, *REFERENCE}


def test_every_table_is_distributed_or_a_reference_table(spread: psycopg.Connection[Any]) -> None:
    tables = {row[0] for row in spread.execute(TABLES).fetchall() if "yoyo" not in row[0]} - {"citus_tables"}
    assert tables - {*SPREAD, *REFERENCE, *LOCAL} == set(), "say in config/citus.sql where these are kept"


def test_a_unique_constraint_without_the_distribution_column_is_caught(spread: psycopg.Connection[Any]) -> None:
    with spread.transaction(force_rollback=True):
        spread.execute("DELETE FROM citus_tables WHERE table_name = 'devices'::regclass")
        spread.execute("CREATE UNIQUE INDEX ON devices (hostname)")
        with pytest.raises(psycopg.errors.RaiseException, match="lacks device_id"), spread.transaction():
            spread.execute(CITUS)


@pytest.mark.parametrize("rule", CATALOG)
def test_no_migration_makes_what_citus_refuses(spread: psycopg.Connection[Any], rule: str) -> None:
    assert broken(spread, rule) == []


@pytest.mark.parametrize("rule", CATALOG)
def test_a_rule_of_the_catalog_catches_what_it_is_for(spread: psycopg.Connection[Any], rule: str) -> None:
    with spread.transaction(force_rollback=True):
        spread.execute(BREAKS_CATALOG[rule])
        assert broken(spread, rule) != []


@pytest.mark.parametrize("rule", TEXT)
@pytest.mark.parametrize("name", names())
def test_no_statement_uses_what_citus_refuses(name: str, rule: str) -> None:
    text = statement(name).text
    if not re.search(rf"\b{SPREAD_TABLE}", text) and "enrollments" not in text:
        return  # on the coordinator alone it is PostgreSQL's
    assert not re.search(TEXT[rule], text), rule


@pytest.mark.parametrize("rule", TEXT)
def test_a_rule_of_the_text_catches_what_it_is_for(rule: str) -> None:
    assert re.search(TEXT[rule], BREAKS_TEXT[rule])


@pytest.fixture(scope="module")
def careful(spread: psycopg.Connection[Any]) -> Iterator[Callable[[str], None]]:
    """Plan as a role that may do everything but update a distribution column: PostgreSQL itself then refuses it."""
    spread.execute("CREATE ROLE careful; GRANT SELECT, INSERT, DELETE ON ALL TABLES IN SCHEMA public TO careful")
    spread.execute("GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA public TO careful")
    columns = spread.execute("""
        SELECT relname, attname FROM pg_attribute
        INNER JOIN pg_class ON attrelid = pg_class.oid
        WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p') AND attnum > 0 AND NOT attisdropped
    """).fetchall()
    for table, column in columns:
        if SPREAD.get(table) != column:
            spread.execute(f'GRANT UPDATE ("{column}") ON "{table}" TO careful')

    def plan(text: str) -> None:
        spread.execute("SET ROLE careful")
        try:
            spread.execute("EXPLAIN " + text, examples())
        finally:
            spread.execute("RESET ROLE")

    yield plan
    spread.execute("DROP OWNED BY careful; DROP ROLE careful")


@pytest.mark.parametrize("name", names())
def test_no_statement_updates_a_distribution_column(careful: Callable[[str], None], name: str) -> None:
    careful(statement(name).text)


@pytest.mark.parametrize(
    "text",
    [
        "UPDATE devices SET device_id = 'x'",
        "INSERT INTO devices (device_id) VALUES ('x') ON CONFLICT (device_id) DO UPDATE SET device_id = 'y'",
        "UPDATE browser_instances SET instance_id = 'x'",
    ],
)
def test_an_update_of_a_distribution_column_is_caught(careful: Callable[[str], None], text: str) -> None:
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        careful(text)
