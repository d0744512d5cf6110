"""Partitions: each row in its month's, strays in the default, none lost or doubled, and reads by time touch few."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, NamedTuple

import pytest
from flask.testing import FlaskClient

from app.db import partitions
from tests.agent import Agent
from tests.checks import at_once

Rows = Callable[..., list[dict[str, Any]]]


class Kind(NamedTuple):
    path: str
    table: str
    time: str
    id: str
    content: dict[str, Any]
    other: dict[str, Any]

    def body(self, device: Agent, at: int, **more: Any) -> dict[str, Any]:
        given = {"device_id": device.device_id, "instance_id": "i", self.time: at, self.id: str(uuid.uuid4())}
        return {**given, **self.content, **more}


PROMPT = Kind(
    "/api/prompt", "prompts", "timestamp", "prompt_id", {"site": "s", "url": "u", "prompt": "p"}, {"prompt": "other"}
)
STATUS = Kind(
    "/api/extension/status",
    "extension_status",
    "reported_at",
    "status_id",
    {"status": "enabled"},
    {"status": "disabled"},
)
EVENT = Kind(
    "/api/compliance/event",
    "compliance_events",
    "detected_at",
    "event_id",
    {"event_type": "tamper_detected", "severity": "low"},
    {"severity": "high"},
)
KINDS = pytest.mark.parametrize("kind", [PROMPT, STATUS, EVENT], ids=lambda kind: kind.table)


def month(ahead: int = 0) -> datetime:
    """The first moment of this month, or of one that is so many months ahead, in UTC."""
    now = datetime.now(UTC)
    years, number = divmod(now.month - 1 + ahead, 12)
    return datetime(now.year + years, number + 1, 1, tzinfo=UTC)


def ms(moment: datetime) -> int:
    return int(moment.timestamp()) * 1000


def name(kind: Kind, ahead: int = 0) -> str:
    return f"{kind.table}_{month(ahead):%Y%m}"


@pytest.fixture
def where(rows: Rows) -> Callable[[Kind], dict[str, list[int]]]:
    """The times of a kind's rows, by the partition that each is in."""

    def where(kind: Kind) -> dict[str, list[int]]:
        found: dict[str, list[int]] = {}
        query = f'SELECT tableoid::regclass::text AS partition, "{kind.time}" AS at FROM {kind.table} ORDER BY at'
        for row in rows(query):
            found.setdefault(row["partition"], []).append(row["at"])
        return found

    return where


@pytest.fixture
def ensure(app: Any) -> Callable[..., list[str]]:
    """`flask partitions ensure`: the names it prints."""

    def ensure(*arguments: str) -> list[str]:
        result = app.test_cli_runner().invoke(args=["partitions", "ensure", *arguments])
        assert result.exit_code == 0, result.output
        return result.stdout.split()

    return ensure


@KINDS
def test_each_row_is_in_the_partition_of_its_month_in_utc(
    client: FlaskClient, device: Agent, headers: Any, where: Any, kind: Kind
) -> None:
    start = ms(month())
    now = int(time.time() * 1000)
    for at in (start - 1, start, now):
        assert client.post(kind.path, json=kind.body(device, at), headers=headers).status_code == 201
    assert where(kind) == {name(kind, -1): [start - 1], name(kind): [start, now]}


@KINDS
def test_strays_are_in_the_default_partition(
    client: FlaskClient, device: Agent, headers: Any, where: Any, kind: Kind
) -> None:
    first, before = ms(datetime(2015, 1, 1, tzinfo=UTC)), ms(month(-1)) - 1
    for at in (first, before):
        assert client.post(kind.path, json=kind.body(device, at), headers=headers).status_code == 201
    assert where(kind) == {f"{kind.table}_default": [first, before]}


@KINDS
def test_a_missing_partition_loses_nothing_and_its_rows_move_when_it_is_made(
    client: FlaskClient, device: Agent, headers: Any, rows: Rows, where: Any, ensure: Any, kind: Kind
) -> None:
    rows(f"DROP TABLE {name(kind)}")
    at = int(time.time() * 1000)
    old = kind.body(device, ms(month(-1)) - 1)
    body = kind.body(device, at)
    assert client.post(kind.path, json=old, headers=headers).status_code == 201
    first = client.post(kind.path, json=body, headers=headers)
    assert first.status_code == 201
    assert where(kind) == {f"{kind.table}_default": [old[kind.time], at]}
    stored = rows(f"SELECT * FROM {kind.table} ORDER BY 1")

    def answers() -> list[int]:
        sent = [body, {**body, **kind.other}, old, {**old, **kind.other}]
        return [client.post(kind.path, json=each, headers=headers).status_code for each in sent]

    assert answers() == [200, 409, 200, 409]
    assert ensure() == [name(kind)]
    assert answers() == [200, 409, 200, 409]
    assert where(kind) == {f"{kind.table}_default": [old[kind.time]], name(kind): [at]}
    assert rows(f"SELECT * FROM {kind.table} ORDER BY 1") == stored


def test_ensuring_twice_makes_nothing_the_second_time(rows: Rows, ensure: Any) -> None:
    rows(f"DROP TABLE {name(PROMPT, 1)}, {name(EVENT, 3)}")
    assert ensure() == [name(PROMPT, 1), name(EVENT, 3)]
    assert ensure() == []
    assert ensure("--months-ahead", "4") == [name(PROMPT, 4), name(STATUS, 4), name(EVENT, 4)]


def test_ten_that_ensure_at_once_make_each_partition_once(rows: Rows, database_url: str) -> None:
    missing = [name(kind, ahead) for kind in (PROMPT, STATUS, EVENT) for ahead in (0, 2)]
    rows(f"DROP TABLE {', '.join(missing)}")
    made = at_once([lambda: partitions.ensure(database_url)] * 10)
    assert sorted(month["name"] for each in made for month in each) == sorted(missing)
    assert {month["outcome"] for each in made for month in each} == {"created"}


def test_more_strays_than_may_move_stay_until_they_are_asked_to(
    app: Any, client: FlaskClient, device: Agent, headers: Any, rows: Rows, where: Any, ensure: Any
) -> None:
    rows(f"DROP TABLE {name(PROMPT)}, {name(PROMPT, 1)}")
    for _ in range(3):
        body = PROMPT.body(device, int(time.time() * 1000))
        assert client.post(PROMPT.path, json=body, headers=headers).status_code == 201
    result = app.test_cli_runner().invoke(args=["partitions", "ensure", "--most-moved", "2"])
    assert (result.exit_code, result.stdout) == (1, name(PROMPT, 1) + "\n")
    assert name(PROMPT) in result.stderr
    assert [len(times) for times in where(PROMPT).values()] == [3]
    assert ensure("--most-moved", "3") == [name(PROMPT)]
    assert list(where(PROMPT)) == [name(PROMPT)]


def test_a_table_that_has_a_partitions_name_is_left_alone(app: Any, rows: Rows, where: Any) -> None:
    rows(f"DROP TABLE {name(PROMPT)}")
    rows(f"CREATE TABLE {name(PROMPT)} (n int)")
    result = app.test_cli_runner().invoke(args=["partitions", "ensure"])
    assert (result.exit_code, result.stdout) == (1, "")
    assert f"{name(PROMPT)}: another table is called so" in result.stderr


def test_not_everybody_may_make_partitions(rows: Rows) -> None:
    found = rows("""
        SELECT has_function_privilege('pg_monitor', oid, 'EXECUTE') AS may, prosecdef, proconfig
        FROM pg_proc WHERE proname = 'ensure_partitions'
    """)
    assert [(row["may"], row["prosecdef"]) for row in found] == [(False, True)]
    assert found[0]["proconfig"][0].startswith("search_path=pg_catalog")


def test_a_list_shows_bounds_rows_and_sizes(app: Any, rows: Rows, operate: Any) -> None:
    rows("ANALYZE prompts")
    result = app.test_cli_runner().invoke(args=["partitions", "list"])
    lines = [line.split() for line in result.stdout.splitlines()]
    assert lines[0] == ["TABLE_NAME", "NAME", "STARTS_AT", "ENDS_AT", "ROW_ESTIMATE", "BYTES"]
    listed = [line[1] for line in lines[1:] if line[0] == "prompts"]
    assert listed == [name(PROMPT, ahead) for ahead in range(-1, 4)] + ["prompts_default"]
    bounds = [f"{month(ahead):%Y-%m-%d} 00:00:00 UTC" for ahead in (0, 1)]
    line = next(line for line in result.stdout.splitlines() if name(PROMPT) in line)
    assert bounds[0] in line
    assert bounds[1] in line
    assert len(lines) == 1 + 3 * 6
