"""Every `.sql` file is one reviewed statement: header, parameters, plan, use."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from app.db import plans
from app.db.statements import FOLDER, header, names, statement
from tests.support.seed import fill

NAMES = names()
# The sets of the service: a request's own, the largest of a batch, one of things that are not there yet.
SETS = ((1, 1), (1000, 1), (1000, 1_000_001))
PAGE_BYTES = 8192
# Rows beside those that are asked for: what has expired, the first row of each partition.
FEW = 40


def source(name: str) -> str:
    return (FOLDER / f"{name}.sql").read_text(encoding="utf-8")


def code(name: str) -> str:
    return "\n".join(line for line in source(name).split("\n") if not line.lstrip().startswith("--"))


@pytest.mark.parametrize("name", NAMES)
def test_a_statement_has_a_header_and_is_one_statement(name: str) -> None:
    assert source(name).startswith("-- ")
    assert code(name).count(";") == 1
    assert code(name).rstrip().endswith(";")
    assert not re.search(r"\bOFFSET\b", code(name))
    assert "LIMIT" not in code(name) or "ORDER BY" in code(name)


@pytest.mark.parametrize("name", NAMES)
def test_a_header_lists_every_parameter_and_what_comes_back(name: str) -> None:
    said = "\n".join(line for line in source(name).split("\n") if line.startswith("--"))
    for parameter in set(re.findall(r"%\((\w+)\)s", code(name))):
        assert re.search(rf"^-- {parameter}\s", said, re.MULTILINE), parameter
    assert {"Returns", "Load"} <= set(header(name))


@pytest.mark.parametrize("name", NAMES)
def test_a_header_says_how_rows_are_found(name: str) -> None:
    """By an index, by a scan of a table with the reason why, or inside a function that it describes."""
    said = header(name)
    assert set(said) & {"Index", "Scans", "Calls"} or said.get("Reads") == "no table"
    assert re.fullmatch(r"\w+(, \w+)*", said.get("Index", "none"))
    assert re.fullmatch(r"(\w+|system catalogs): .{15,}", said.get("Scans", "none: " + "-" * 15))
    assert re.fullmatch(r"\w+(, \w+)*(, once:| for each) .{15,}", said.get("Calls", "none, once: " + "-" * 15))


@pytest.mark.parametrize("name", NAMES)
def test_a_statement_is_used_by_the_code(name: str) -> None:
    code = "".join(path.read_text(encoding="utf-8") for path in (Path(FOLDER).parent / "app").rglob("*.py"))
    # An event table's erasure is found by the table's name.
    by_table = re.sub(r"^erasure/erase_(prompts|extension_status|compliance_events)$", "erasure/erase_{table}", name)
    assert f'statement("{name}")' in code or f'statement(f"{by_table}")' in code


@pytest.mark.parametrize("name", NAMES)
def test_what_is_sent_names_its_file_behind_the_first_word_and_has_no_other_comment(name: str) -> None:
    sent = statement(name).text
    assert re.match(rf"[A-Z]+ /\* {name} \*/\s", sent)
    assert "--" not in sent
    assert sent.count("/*") == 1


class Tables:
    """The tables in a state in which statistics may mislead the planner, and what a plan touches in them."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self.connection = connection
        whole = "SELECT c.relname, coalesce(r.relname, c.relname) FROM pg_class AS c "
        whole += "LEFT JOIN pg_class AS r ON pg_partition_root(c.oid) = r.oid"
        # By a partition the table that it is of, by its index the index that that is of.
        self.whole = dict(connection.execute(whole).fetchall())
        self.sizes = dict(connection.execute("SELECT relname, pg_relation_size(oid) FROM pg_class").fetchall())
        catalogs = "SELECT relname FROM pg_class WHERE relnamespace = 'pg_catalog'::regnamespace"
        self.catalogs = {row[0] for row in connection.execute(catalogs)}
        self.indexes: dict[str, set[str]] = {}
        self.unique: dict[str, set[str]] = {}
        for table, index, definition in connection.execute("SELECT tablename, indexname, indexdef FROM pg_indexes"):
            self.indexes.setdefault(table, set()).add(index)
            if "UNIQUE" in definition:
                self.unique.setdefault(table, set()).add(index)

    def found_by(self, plan: plans.Plan) -> set[str]:
        """The indexes by which a plan finds rows, and tells that a row is there already."""
        found = set()
        for node in plans.nodes(plan):
            if "Index Name" in node and node["Index Name"] not in self.catalogs:
                found.add(self.whole[node["Index Name"]])
            if "Conflict Resolution" in node:
                # Without a target any unique index tells.
                found |= set(node.get("Conflict Arbiter Indexes", ())) or self.unique[node["Relation Name"]]
        return found

    def scanned(self, plan: plans.Plan, least_bytes: int) -> set[str]:
        """The tables of at least that size, as one file each, that a plan reads from end to end."""
        return {
            "system catalogs" if scan["Relation Name"] in self.catalogs else self.whole[scan["Relation Name"]]
            for scan in plans.nodes(plan)
            if scan["Node Type"] == "Seq Scan" and self.sizes[scan["Relation Name"]] >= least_bytes
        }


def read(plan: plans.Plan) -> float:
    """Rows looked at in tables, whether they were of use or not, and rows that were handed on to be written."""
    rows = 0.0
    for node in plans.nodes(plan):
        if node["Node Type"] == "ModifyTable":
            rows += sum(child["Actual Rows"] * child["Actual Loops"] for child in node.get("Plans", ()))
        elif "Relation Name" in node:
            rows += handled(node)
    return rows


def handled(node: plans.Plan) -> float:
    """Rows that a node looked at, in tables or in what other nodes made."""
    dropped = sum(value for name, value in node.items() if name.startswith("Rows Removed by"))
    return float((node["Actual Rows"] + dropped) * node["Actual Loops"])


def repeated(plan: plans.Plan) -> set[str]:
    """What a plan made in memory, and looks through from end to end for each row of something else."""
    loops = [node["Plans"][1] for node in plans.nodes(plan) if node["Node Type"] == "Nested Loop"]
    inner = [child["Plans"][0] if child["Node Type"] in ("Materialize", "Memoize") else child for child in loops]
    return {child["CTE Name"] for child in inner if "CTE Name" in child}


def expected(plan: plans.Plan) -> float:
    """Rows that the planner expects of tables. What is below a limit is not fetched to the end, whatever it expects."""
    if plan["Node Type"] == "Limit":
        return 0.0
    own = plan["Plan Rows"] if "Relation Name" in plan and plan["Node Type"] != "ModifyTable" else 0.0
    return own + sum(expected(child) for child in plan.get("Plans", ()))


def faults_of(tables: Tables, name: str, is_empty: bool) -> Iterator[str]:
    """What the plans of a statement do otherwise than its header says."""
    said = header(name)
    named = set(said["Index"].split(", ")) if "Index" in said else set()
    may_scan = said["Scans"].split(":")[0] if "Scans" in said else ""
    wanted = statement(name)
    takes_a_set = "%(rows)s" in wanted.text
    found: set[str] = set()
    scanned: set[str] = set()
    for rows, first in SETS if takes_a_set else SETS[:1]:
        parameters = plans.examples(rows, first)
        amount = rows if takes_a_set else parameters["amount"] if "%(amount)s" in wanted.text else 1
        for generic in (False, True):
            options = "FORMAT JSON" if is_empty else "ANALYZE, TIMING OFF, FORMAT JSON"
            plan = plans.explain(tables.connection, wanted, parameters, generic, options)
            case = f"{name}, {rows} rows from {first}, {'generic' if generic else 'custom'}: "
            found |= tables.found_by(plan)
            scanned |= tables.scanned(plan, 0)
            # A plan that is made while a table is empty stays after it has filled: sets get none that scans.
            # Other statements may scan what has no more than a page.
            least = 0 if is_empty and takes_a_set else 1 if takes_a_set else PAGE_BYTES + 1
            if scans := tables.scanned(plan, least) - {may_scan}:
                yield case + f"scans {scans}"
            if takes_a_set and repeated(plan):
                yield case + f"looks through {repeated(plan)} for each row"
            if is_empty or "Reads" in said or may_scan:
                continue
            # A row may be looked up in several tables.
            if read(plan) > 4 * amount + FEW:
                yield case + f"reads {read(plan):.0f} rows"
            # In memory too, what a set costs grows with its rows, not with their square.
            if sum(map(handled, plans.nodes(plan))) > 60 * amount + 1000:
                yield case + f"handles {sum(map(handled, plans.nodes(plan))):.0f} rows"
            if expected(plan) > 4 * amount + FEW:
                yield case + f"is expected to read {expected(plan):.0f} rows"
    if found - named:
        yield f"{name}: uses {found - named}, which its header does not name"
    if not is_empty:
        # In a table of one page no index is worth it.
        small = {
            index
            for table in scanned - {"system catalogs"}
            if tables.sizes[table] <= PAGE_BYTES
            for index in tables.indexes[table]
        }
        # Where a header has both, it depends on how much has expired.
        if named - found - small and not may_scan:
            yield f"{name}: does not use {named - found - small}, which its header names"
        if may_scan and may_scan != "system catalogs" and not named and may_scan not in scanned:
            yield f"{name}: does not scan {may_scan}"


@contextmanager
def tables(template: Any, state: str) -> Iterator[Tables]:
    database = f"plans_{state.split()[-1]}"
    url = template.url("{}")
    with psycopg.connect(url.format("postgres"), autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {database} TEMPLATE {template.name}")
        try:
            with psycopg.connect(url.format(database), autocommit=True) as connection:
                if state != "empty":
                    fill(connection)
                if state == "filled and analyzed":
                    connection.execute("VACUUM ANALYZE")
                yield Tables(connection)
        finally:
            admin.execute(f"DROP DATABASE {database} WITH (FORCE)")


@pytest.mark.parametrize("state", ["empty", "filled but not analyzed", "filled and analyzed"])
def test_query_plans_use_the_index_that_the_header_names(template: Any, state: str) -> None:
    with tables(template, state) as there:
        faults = [fault for name in NAMES for fault in faults_of(there, name, state == "empty")]
    assert not faults, "\n".join(faults)


def new_or_in_conflict(rows: int) -> dict[str, tuple[dict[str, Any], ...]]:
    """Rows that the other tests do not send, by statement: of instances and devices that are new or another's."""
    each = [
        {**row, "device_id": f"device-{2000 + number}", "key_thumbprint": f"thumbprint-{2000 + number}"}
        for number, row in enumerate(json.loads(plans.examples(rows)["rows"]))
    ]
    one = [{**row, "device_id": "device-2000", "key_thumbprint": "thumbprint-2000"} for row in each]
    new = [[{**row, "instance_id": f"new-{row['ordinal']}"} for row in rows] for rows in (each, one)]
    other_keys = [{**row, "key_thumbprint": f"other-{row['ordinal']}"} for row in each]
    sent: dict[str, list[list[dict[str, Any]]]] = {
        "browsers/upsert_instances": [*new, each, one],
        "browsers/settle_claims": [each, one, [{**row, "is_heartbeat": True} for row in each]],
        "devices/record_conflicts": [other_keys, [{**row, "device_id": f"new-{row['ordinal']}"} for row in each]],
        "devices/register_devices": [other_keys, [{**row, "device_id": row["key_thumbprint"]} for row in other_keys]],
        "devices/select_refusals": [other_keys],
        "devices/upsert_heartbeats": [other_keys, each + other_keys],
    }
    return {name: tuple(plans.examples() | {"rows": json.dumps(rows)} for rows in sets) for name, sets in sent.items()}


@pytest.mark.parametrize("owners", ["there", "revoked"])
def test_what_new_and_refused_rows_cost_grows_with_the_batch_and_not_with_its_square(
    template: Any, owners: str
) -> None:
    amount = 1000
    with tables(template, "filled and analyzed") as there:
        if owners == "revoked":
            there.connection.execute("UPDATE devices SET revoked_at = now() WHERE length(device_id) < 11")
        for name, sets in new_or_in_conflict(amount).items():
            for number, parameters in enumerate(sets):
                plan = plans.explain(
                    there.connection, statement(name), parameters, True, "ANALYZE, TIMING OFF, FORMAT JSON"
                )
                assert not repeated(plan), (name, number)
                assert sum(map(handled, plans.nodes(plan))) < 100 * amount, (name, number)
                assert not there.scanned(plan, 1), (name, number)


@pytest.mark.parametrize("name", ["devices/upsert_heartbeats", "browsers/upsert_instances"])
def test_heartbeats_are_hot_updates(template: Any, name: str) -> None:
    """No index is touched, whatever metadata comes with them."""
    metadata = {"hostname": "h", "os": {}, "browser_name": "b", "profile_name": "p", "is_heartbeat": True}
    [row] = json.loads(plans.examples()["rows"])
    updates = "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_xact_user_tables WHERE relname = %s"
    with tables(template, "empty") as there, there.connection.transaction():
        key = {"device_id": row["device_id"], "key_thumbprint": row["key_thumbprint"]}
        there.connection.execute(
            "INSERT INTO devices (device_id, key_thumbprint) VALUES (%(device_id)s, %(key_thumbprint)s)", key
        )
        for number in range(4):
            sent = {**row, **metadata, "profile_name": f"p-{number}", "hostname": f"h-{number}"}
            found = there.connection.execute(
                statement(name).text, plans.examples() | {"rows": json.dumps([sent if number else row])}
            ).fetchall()
            assert found[0][1] in ("created", "updated")
        table = "devices" if name.startswith("devices") else "browser_instances"
        total, hot = there.connection.execute(updates, [table]).fetchone()
    assert (total, hot) == ((4, 4) if table == "devices" else (3, 3))


HOLDS = """
INSERT INTO legal_holds (hold_id, device_id, reason)
SELECT gen_random_uuid(), 'other-' || n, 'r' FROM generate_series(1, 10000) AS n;
INSERT INTO prompts ("timestamp", device_id, prompt_id, instance_id, site, url, prompt, username, created_at)
SELECT ms, 'device-1', gen_random_uuid(), 'i', 's', 'u', 'p', 'anna', to_timestamp(ms / 1000.0)
FROM generate_series($after + 1, $after + 100) AS ms;
INSERT INTO extension_status (reported_at, device_id, status_id, instance_id, status, reported_by, created_at)
SELECT "timestamp", device_id, prompt_id, 'i', 'enabled', 'anna', created_at FROM prompts;
INSERT INTO compliance_events (detected_at, device_id, event_id, event_type, severity, user_context, created_at)
SELECT "timestamp", device_id, prompt_id, 'e', 'low', '"anna"', created_at FROM prompts;
"""
HOLDS_READ = "SELECT seq_tup_read + idx_tup_fetch FROM pg_stat_xact_user_tables WHERE relname = 'legal_holds'"
EVENT_TABLES = ("compliance_events", "extension_status", "prompts")
# Those that look at holds for each row of an event table, whichever it is, and those of one table.
OF_ANY_TABLE = ("retention/count_expired", "retention/delete_expired", "erasure/count_held")
OF_ONE_TABLE = ("erasure/erase_compliance_events", "erasure/erase_extension_status", "erasure/erase_prompts")


@pytest.mark.parametrize("state", ["not analyzed", "analyzed"])
def test_a_legal_hold_check_reads_no_holds_of_other_devices(template: Any, state: str) -> None:
    """A plan does not show what happens in is_held."""
    parameters = plans.examples()
    calls = [(name, table) for name in OF_ANY_TABLE for table in EVENT_TABLES] + [(name, "") for name in OF_ONE_TABLE]
    with tables(template, "empty") as there:
        there.connection.execute(HOLDS.replace("$after", str(parameters["after_ms"])))
        if state == "analyzed":
            there.connection.execute("ANALYZE")
        for name, table in calls:
            with there.connection.transaction(force_rollback=True):
                text = statement(name).text
                found = there.connection.execute(text, {**parameters, "table_name": table}).fetchall()
                (read_of_holds,) = there.connection.execute(HOLDS_READ).fetchone()
            # Each of them has looked at a hundred rows, none of which is held.
            assert found[0][0] == (0 if "count_held" in name else 100), name
            assert read_of_holds < FEW, name


ROWS_READ = """
SELECT coalesce(sum(seq_tup_read + coalesce(idx_tup_fetch, 0)), 0)
FROM pg_stat_xact_user_tables
INNER JOIN event_partitions() ON relid = relation
WHERE table_name = %s
"""


@pytest.mark.parametrize("table", EVENT_TABLES)
@pytest.mark.parametrize("name", ["retention/delete_expired", "erasure/count_held"])
def test_a_page_of_an_event_table_reads_the_rows_of_the_page(
    filled: psycopg.Connection[Any], name: str, table: str
) -> None:
    """Nor does a plan show what a function reads."""
    parameters = {**plans.examples(), "table_name": table}
    with filled.transaction(force_rollback=True):
        (before,) = filled.execute(ROWS_READ, [table]).fetchone()
        assert len(filled.execute(statement(name).text, parameters).fetchall()) == 1
        (after,) = filled.execute(ROWS_READ, [table]).fetchone()
    # Found once by the page, and once more by its key.
    assert after - before <= 3 * parameters["amount"] + FEW


@pytest.fixture(scope="module", params=["filled but not analyzed", "filled and analyzed"])
def filled(request: pytest.FixtureRequest, template: Any) -> Iterator[psycopg.Connection[Any]]:
    with tables(template, request.param) as there:
        yield there.connection


def test_the_functions_that_a_statement_calls_are_named(template: Any) -> None:
    """A plan does not show what happens in them."""
    with tables(template, "empty") as there:
        own = there.connection.execute(
            "SELECT proname FROM pg_proc WHERE pronamespace = 'public'::regnamespace"
        ).fetchall()
    assert len(own) >= 10
    for name in NAMES:
        called = {function for (function,) in own if re.search(rf"\b{function}\(", code(name))}
        named = re.split(r", once:| for each", header(name).get("Calls", ""))[0]
        assert called == set(filter(None, named.split(", "))), name
