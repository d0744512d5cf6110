"""Every `.sql` file is one reviewed statement: header, parameters, plan, use."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from app.db.statements import FOLDER, statement

NAMES = sorted(str(path.relative_to(FOLDER).with_suffix("")) for path in FOLDER.rglob("*.sql"))
WRITES = [name for name in NAMES if "%(rows)s" in (FOLDER / f"{name}.sql").read_text()]
NOW = int(time.time() * 1000)
ROW: dict[str, Any] = {
    "ord": 0,
    "device_id": "device-500",
    "instance_id": "instance-500",
    "timestamp": NOW,
    "reported_at": NOW,
    "detected_at": NOW,
    "prompt_id": "00000000-0000-8000-8000-000000000001",
    "status_id": "00000000-0000-8000-8000-000000000001",
    "event_id": "00000000-0000-8000-8000-000000000001",
    "enrollment_id": "00000000-0000-8000-8000-000000000001",
    "key_thumbprint": "thumbprint-500",
    "public_key_pem": "pem",
    "hostname": "host",
    "site": "site",
    "url": "url",
    "prompt": "prompt",
    "status": "enabled",
    "event_type": "tamper_detected",
    "severity": "low",
}
PARAMETERS: dict[str, Any] = {
    "rows": json.dumps([ROW]),
    "device_id": "device-500",
    "enrollment_id": ROW["enrollment_id"],
    "jti": "jti",
    "use_id": ROW["enrollment_id"],
    "expires_at": time.time() + 60,
    "label": "label",
    "max_uses": 1,
    "after": "",
    "amount": 10,
    "before_ms": 1700000000000,
    "after_ms": 1700000000000,
    "after_device": "",
    "after_id": ROW["enrollment_id"],
    "username": "anna",
    "seconds": 86400,
    "part": "prompts_200001",
    "expired_before_ms": 0,
    "audit_id": ROW["enrollment_id"],
    "actor": "tests",
    "action": "device.revoke",
    "target": "device-500",
    "details": None,
    "hold_id": ROW["enrollment_id"],
    "from_ms": 1,
    "to_ms": 2,
    "reason": "tests",
    "months_ahead": 3,
    "most_moved": 1000,
}
FILL = """
INSERT INTO devices (device_id, key_thumbprint, public_key_pem, hostname, os)
SELECT 'device-' || n, 'thumbprint-' || n, repeat('k', 178), 'host', '{"name": "macOS"}'
FROM generate_series(1, 20000) AS n;
INSERT INTO browser_instances (instance_id, device_id, browser_name)
SELECT 'instance-' || n, 'device-' || n, 'chrome' FROM generate_series(1, 20000) AS n;
INSERT INTO prompts ("timestamp", device_id, prompt_id, instance_id, site, url, prompt)
SELECT $now - n, 'device-' || n, gen_random_uuid(), 'instance-' || n, 'site', 'url', repeat('p', 200)
FROM generate_series(1, 20000) AS n;
INSERT INTO extension_status (reported_at, device_id, status_id, instance_id, status)
SELECT $now - n, 'device-' || n, gen_random_uuid(), 'instance-' || n, 'enabled'
FROM generate_series(1, 20000) AS n;
INSERT INTO compliance_events (detected_at, device_id, event_id, event_type, severity)
SELECT $now - n, 'device-' || n, gen_random_uuid(), 'tamper_detected', 'low'
FROM generate_series(1, 20000) AS n;
INSERT INTO client_assertions (device_id, jti, use_id, expires_at)
SELECT 'device-' || n, 'jti-' || n, gen_random_uuid(), now() + n * interval '1 second'
FROM generate_series(1, 20000) AS n;
INSERT INTO enrollments (enrollment_id, label, max_uses, expires_at)
SELECT gen_random_uuid(), 'label', 1000000, now() + interval '1 day' FROM generate_series(1, 2000);
""".replace("$now", str(NOW))


def header(name: str) -> str:
    text = (FOLDER / f"{name}.sql").read_text(encoding="utf-8")
    return "\n".join(line for line in text.split("\n") if line.startswith("--"))


@pytest.fixture(scope="module", params=["empty", "filled but not analyzed", "filled and analyzed"])
def connection(request: pytest.FixtureRequest, template: Any) -> Iterator[psycopg.Connection[Any]]:
    """The tables in the states in which statistics have misled planners."""
    name = f"plans_{request.param.split()[-1]}"
    url = f"postgresql://{template.user}@/{{}}?host={template.host}&port={template.port}"
    with psycopg.connect(url.format("postgres"), autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name} TEMPLATE {template.template_dbname}")
        try:
            with psycopg.connect(url.format(name), autocommit=True) as connection:
                if request.param != "empty":
                    connection.execute(FILL)
                if request.param == "filled and analyzed":
                    connection.execute("VACUUM ANALYZE")
                yield connection
        finally:
            admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


def plan_of(connection: psycopg.Connection[Any], name: str) -> list[dict[str, Any]]:
    """The nodes of a statement's plan."""
    sql = statement(name)
    found = connection.execute("EXPLAIN (FORMAT JSON) " + sql.text, PARAMETERS).fetchone()
    nodes, left = [], [found[0][0]["Plan"]]
    while left:
        node = left.pop()
        nodes.append(node)
        left += node.get("Plans", [])
    return nodes


@pytest.mark.parametrize("name", NAMES)
def test_a_statement_has_a_header_and_is_one_statement(name: str) -> None:
    text = (FOLDER / f"{name}.sql").read_text(encoding="utf-8")
    code = "\n".join(line for line in text.split("\n") if not line.lstrip().startswith("--"))
    assert text.startswith("-- ")
    assert code.count(";") == 1
    assert code.rstrip().endswith(";")
    assert not re.search(r"\bOFFSET\b", code)
    assert "LIMIT" not in code or "ORDER BY" in code


@pytest.mark.parametrize("name", NAMES)
def test_a_header_lists_every_parameter_and_what_comes_back(name: str) -> None:
    text = (FOLDER / f"{name}.sql").read_text(encoding="utf-8")
    for parameter in set(re.findall(r"%\((\w+)\)s", text)):
        assert re.search(rf"^-- {parameter}\s", header(name), re.MULTILINE), parameter
    assert re.search(r"^-- Returns\s", header(name), re.MULTILINE)
    assert re.search(r"^-- Load\s", header(name), re.MULTILINE)


@pytest.mark.parametrize("name", NAMES)
def test_a_statement_is_used_by_the_code(name: str) -> None:
    code = "".join(path.read_text(encoding="utf-8") for path in (Path(FOLDER).parent / "app").rglob("*.py"))
    assert f'statement("{name}")' in code


@pytest.mark.parametrize("name", NAMES)
def test_what_is_sent_begins_with_the_file_name_and_has_no_other_comment(name: str) -> None:
    lines = statement(name).text.split("\n")
    assert lines[0] == f"-- {name}"
    assert not any("--" in line for line in lines[1:])


@pytest.mark.parametrize("name", NAMES)
def test_a_statement_plans(connection: psycopg.Connection[Any], name: str) -> None:
    assert plan_of(connection, name)


@pytest.mark.parametrize("name", WRITES)
def test_a_write_never_reads_a_whole_table(connection: psycopg.Connection[Any], name: str) -> None:
    # Of a partition that is known to be empty there is nothing to read, with or without an index.
    scans = [node["Relation Name"] for node in plan_of(connection, name) if node["Node Type"] == "Seq Scan"]
    assert [table for table in scans if connection.execute(f"SELECT FROM {table} LIMIT 1").fetchone()] == []


@pytest.mark.parametrize("name", [name for name in NAMES if "\n-- Index" in header(name)])
def test_the_indexes_that_a_header_names_exist(connection: psycopg.Connection[Any], name: str) -> None:
    named = re.search(r"^-- Index\s+(.*)$", header(name), re.MULTILINE)
    assert named is not None
    existing = {row[0] for row in connection.execute("SELECT indexname FROM pg_indexes").fetchall()}
    assert set(re.split(r",\s*", named[1].strip())) <= existing
