"""Partitions: each row in its month's, strays in the default, none lost or doubled, and reads by time touch few."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import psycopg
import pytest
from flask.testing import FlaskClient

from app.db import migrations, partitions
from app.db.statements import statement
from config.settings import Settings
from tests.support import previous_release
from tests.support.agent import Agent
from tests.support.checks import at_once
from tests.support.service import ROOT, Service, as_role, registered, serving, wait_for

Rows = Callable[..., list[dict[str, Any]]]


class Kind(NamedTuple):
    path: str
    table: str
    time: str
    id: str
    insert: str
    again: str
    content: dict[str, Any]
    other: dict[str, Any]

    def body(self, device: Agent, at: int, **more: Any) -> dict[str, Any]:
        given = {"device_id": device.device_id, "instance_id": "i", self.time: at, self.id: str(uuid.uuid4())}
        return {**given, **self.content, **more}


PROMPT = Kind(
    "/api/prompt",
    "prompts",
    "timestamp",
    "prompt_id",
    "prompts/insert_prompts",
    "prompts/select_prompts",
    {"site": "s", "url": "u", "prompt": "p"},
    {"prompt": "other"},
)
STATUS = Kind(
    "/api/extension/status",
    "extension_status",
    "reported_at",
    "status_id",
    "extension/insert_statuses",
    "extension/select_statuses",
    {"status": "enabled"},
    {"status": "disabled"},
)
EVENT = Kind(
    "/api/compliance/event",
    "compliance_events",
    "detected_at",
    "event_id",
    "compliance/insert_events",
    "compliance/select_events",
    {"event_type": "tamper_detected", "severity": "low"},
    {"severity": "high"},
)
# As a batch names them, in the order in which it stores them.
TYPES = [("prompt", PROMPT), ("extension_status", STATUS), ("compliance_event", EVENT)]
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


def unmake(connection: psycopg.Connection[Any], *kinds: Kind) -> None:
    """Have this month's rows in the default partition, as if nobody had made the month's in time."""
    for kind in kinds:
        connection.execute(f"LOCK TABLE {kind.table} IN ACCESS EXCLUSIVE MODE")
    for kind in kinds:
        connection.execute(f"ALTER TABLE {kind.table} DETACH PARTITION {name(kind)}")
        connection.execute(f"INSERT INTO {kind.table} SELECT * FROM {name(kind)}")
        connection.execute(f"DROP TABLE {name(kind)}")


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


def test_a_batch_across_partitions_is_stored_once_and_conflicts_where_it_differs(
    client: FlaskClient, device: Agent, headers: Any, where: Any
) -> None:
    times = [ms(month(-6)), ms(month(-1)), ms(month()) - 1, ms(month())]
    bodies = [(type_, kind, kind.body(device, at)) for at in times for type_, kind in TYPES]
    items = [{"type": type_, "body": body} for type_, _, body in bodies]
    others = [{"type": type_, "body": {**body, **kind.other}} for type_, kind, body in bodies]

    def send(items: list[Any]) -> set[int]:
        answer = client.post("/api/batch", json={"items": items}, headers=headers)
        return {result["status"] for result in answer.get_json()["results"]}

    assert [send(items), send(items[::-1]), send(others)] == [{201}, {200}, {409}]
    for _, kind in TYPES:
        assert where(kind) == {
            f"{kind.table}_default": times[:1],
            name(kind, -1): times[1:3],
            name(kind): times[3:],
        }


def test_batches_of_all_kinds_wait_for_their_partitions_and_never_deadlock(
    app: Any, device: Agent, headers: Any, rows: Rows, where: Any, database_url: str
) -> None:
    over = threading.Event()
    sent: list[int] = []

    def write() -> set[int]:
        client, found = app.test_client(), set()
        while not over.is_set():
            at = int(time.time() * 1000)
            items = [{"type": type_, "body": kind.body(device, at)} for type_, kind in TYPES[::-1] for _ in range(5)]
            answer = client.post("/api/batch", json={"items": items}, headers=headers)
            found |= {result["status"] for result in answer.get_json()["results"]}
            sent.append(5)
        return found

    with ThreadPoolExecutor(3) as pool:
        writers = [pool.submit(write) for _ in range(3)]
        try:
            for _ in range(3):
                with psycopg.connect(database_url) as connection:
                    unmake(connection, *(kind for _, kind in TYPES))
                before = len(sent)
                wait_for(lambda before=before: len(sent) > before + 5)  # type: ignore[misc]
                made = partitions.ensure(database_url)
                assert [each["name"] for each in made] == sorted(name(kind) for _, kind in TYPES)
                assert all(each["moved"] > 0 for each in made)
        finally:
            over.set()
        assert [writer.result(30) for writer in writers] == [{201}] * 3
    for _, kind in TYPES:
        assert {table: len(times) for table, times in where(kind).items()} == {name(kind): sum(sent)}


def test_ensuring_twice_makes_nothing_the_second_time(rows: Rows, ensure: Any) -> None:
    rows(f"DROP TABLE {name(PROMPT, 1)}, {name(EVENT, 3)}")
    assert ensure() == [name(EVENT, 3), name(PROMPT, 1)]
    assert ensure() == []
    assert ensure("--months-ahead", "4") == [name(EVENT, 4), name(STATUS, 4), name(PROMPT, 4)]


def test_ten_that_ensure_at_once_make_each_partition_once(rows: Rows, database_url: str) -> None:
    missing = [name(kind, ahead) for kind in (EVENT, STATUS, PROMPT) for ahead in (0, 2)]
    rows(f"DROP TABLE {', '.join(missing)}")
    made = at_once([lambda: partitions.ensure(database_url)] * 10)
    created = [month["name"] for each in made for month in each if month["outcome"] == "created"]
    assert sorted(created) == sorted(missing)
    assert {month["outcome"] for each in made for month in each} <= {"created", "superseded"}
    assert rows(LEFTOVERS) == []


@KINDS
def test_past_months_are_made_when_they_are_asked_for_and_the_default_partition_empties(
    client: FlaskClient, device: Agent, headers: Any, rows: Rows, where: Any, ensure: Any, kind: Kind
) -> None:
    times = [*(ms(month(ago)) for ago in (-16, -14, -13, -3, -2)), ms(month(-1)) - 1]
    bodies = [kind.body(device, at) for at in times]
    for body in bodies:
        assert client.post(kind.path, json=body, headers=headers).status_code == 201
    stored = rows(f"SELECT * FROM {kind.table} ORDER BY 1")
    assert where(kind) == {f"{kind.table}_default": times}
    made = ensure("--months-back", "13")
    assert [part for part in made if part.startswith(kind.table)] == [name(kind, ago) for ago in range(-13, -1)]
    assert where(kind) == {
        f"{kind.table}_default": times[:2],
        name(kind, -13): times[2:3],
        name(kind, -3): times[3:4],
        name(kind, -2): times[4:],
    }
    assert rows(f"SELECT * FROM {kind.table} ORDER BY 1") == stored
    assert {client.post(kind.path, json=body, headers=headers).status_code for body in bodies} == {200}
    others = [{**body, **kind.other} for body in bodies]
    assert {client.post(kind.path, json=body, headers=headers).status_code for body in others} == {409}
    assert ensure("--months-back", "13") == []
    assert len(ensure("--months-back", "16")) == 9
    assert f"{kind.table}_default" not in where(kind)
    assert rows(f"SELECT * FROM {kind.table} ORDER BY 1") == stored


LEFTOVERS = """
SELECT relname FROM pg_class WHERE relname LIKE 'rebuilt%%'
UNION ALL SELECT conname FROM pg_constraint WHERE conname = 'bound' OR conname LIKE 'outside%%'
UNION ALL SELECT tgname FROM pg_trigger WHERE NOT tgisinternal
"""


def columns_indexes_and_constraints(rows: Rows, table: str) -> list[dict[str, Any]]:
    return rows(
        """
        SELECT attname::text AS what, attnotnull::text AS more FROM pg_attribute
        WHERE attrelid = %s::text::regclass AND attnum > 0 AND NOT attisdropped
        UNION ALL SELECT indexname, indexdef FROM pg_indexes WHERE tablename = %s
        UNION ALL SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint WHERE conrelid = %s::text::regclass
        UNION ALL SELECT 'owner', pg_get_userbyid(relowner) FROM pg_class WHERE oid = %s::text::regclass
        UNION ALL SELECT 'comment', obj_description(%s::text::regclass, 'pg_class')
        UNION ALL SELECT 'partition', inhparent::regclass::text FROM pg_inherits WHERE inhrelid = %s::text::regclass
        ORDER BY 1, 2
        """,
        *[table] * 6,
    )


@KINDS
def test_a_rebuilt_partition_is_what_it_would_have_been(rows: Rows, ensure: Any, kind: Kind) -> None:
    parts = [f"{kind.table}_default", name(kind)]
    before = [columns_indexes_and_constraints(rows, part) for part in parts]
    rows(f"DROP TABLE {name(kind)}")
    assert ensure() == [name(kind)]
    assert [columns_indexes_and_constraints(rows, part) for part in parts] == before
    assert rows(LEFTOVERS) == []


def test_nothing_is_read_while_writers_wait(database_url: str, rows: Rows) -> None:
    """PostgreSQL says of each attached partition that a constraint told what a scan would have."""
    rows(f"DROP TABLE {name(PROMPT)}, {name(PROMPT, 2)}")
    rows(MANY, ms(month(-3)), "x" * 200, 20_000)
    said: list[str] = []
    with psycopg.connect(database_url, autocommit=True, row_factory=psycopg.rows.dict_row) as connection:
        connection.add_notice_handler(lambda notice: said.append(str(notice.message_primary)))
        connection.execute("SET client_min_messages = debug1")
        # The functions set it to less than the session.
        for function in ("create_month(text, date)", "finish_rebuild(text, bigint)"):
            connection.execute(f"ALTER FUNCTION {function} SET client_min_messages = debug1")
        run = partitions._runner(connection)
        made = list(partitions._ensure_table(run, "prompts", run(partitions.SELECT_MISSING_MONTHS, **MONTHS)))
    assert sorted(month["name"] for month in made) == [name(PROMPT), name(PROMPT, 2)]
    implied = [message for message in said if "is implied by existing constraints" in message]
    read = [message for message in said if message.startswith("verifying table")]
    # What the coming month leaves to the default; the new default, the rebuilt month, what that leaves to the default.
    assert len(implied) == 4
    # To validate a constraint, which nobody waits for; and the new table, which is empty.
    assert read == ['verifying table "prompts_default"', f'verifying table "{name(PROMPT, 2)}"']


MONTHS = {"months_back": 1, "months_ahead": 3}
MANY = """
INSERT INTO prompts ("timestamp", device_id, prompt_id, instance_id, site, url, prompt)
SELECT %s + n, 'device-' || n, gen_random_uuid(), 'i', 's', 'u', %s FROM generate_series(1, %s) AS n
"""


@pytest.mark.parametrize("at", ["a page", "the end"])
def test_a_rebuild_that_is_killed_loses_nothing_and_the_next_one_does_it(
    database_url: str, rows: Rows, ensure: Any, client: FlaskClient, device: Agent, headers: Any, where: Any, at: str
) -> None:
    """What was begun is kept as the table is, by writers and by an erasure, until another rebuild begins."""
    rows(f"DROP TABLE {name(PROMPT)}")
    now = int(time.time() * 1000)
    bodies = [PROMPT.body(device, now - n) for n in range(10)]
    for body in bodies[:5]:
        assert client.post(PROMPT.path, json=body, headers=headers).status_code == 201
    begun = rows("SELECT begin_rebuild('prompts', ARRAY[%s::date]) AS rebuild", month().date())[0]["rebuild"]
    page = "SELECT * FROM copy_page('prompts', %s, -1, '', gen_random_uuid(), %s)"
    assert len(rows(page, begun, 3 if at == "a page" else 10)) == 1
    for body in bodies[5:]:
        assert client.post(PROMPT.path, json=body, headers=headers).status_code == 201
    rows("UPDATE prompts SET prompt = 'erased' WHERE \"timestamp\" = %s", now)
    rows('DELETE FROM prompts WHERE "timestamp" IN (%s, %s)', now - 4, now - 6)
    # As many as are deleted in the one are deleted in the other.
    copied = rows('SELECT "timestamp" AS at, prompt FROM rebuilt_prompts ORDER BY 1')
    stored = rows('SELECT "timestamp" AS at, prompt FROM prompts ORDER BY 1')
    assert len(stored) == 8
    assert copied == stored if at == "the end" else {row["at"] for row in copied} < {row["at"] for row in stored}
    if at == "a page":
        with pytest.raises(psycopg.errors.DataCorrupted, match="prompts_default"):
            rows("SELECT * FROM finish_rebuild('prompts', %s)", begun)
    assert ensure() == [name(PROMPT)]
    assert rows('SELECT "timestamp" AS at, prompt FROM prompts ORDER BY 1') == stored
    assert list(where(PROMPT)) == [name(PROMPT)]
    assert rows("SELECT * FROM finish_rebuild('prompts', %s)", begun) == []
    assert rows(LEFTOVERS) == []


def test_a_row_that_changes_while_it_is_copied_is_copied_as_it_is_then(database_url: str, rows: Rows) -> None:
    rows(f"DROP TABLE {name(PROMPT)}")
    now = int(time.time() * 1000)
    rows(MANY, now, "p", 2)
    begun = rows("SELECT begin_rebuild('prompts', ARRAY[%s::date]) AS rebuild", month().date())[0]["rebuild"]
    page = "SELECT last_ms FROM copy_page('prompts', %s, -1, '', gen_random_uuid(), 10)"
    with (
        psycopg.connect(database_url) as copier,
        psycopg.connect(database_url) as eraser,
        ThreadPoolExecutor(1) as pool,
    ):
        copier.execute("ALTER FUNCTION copy_page SET lock_timeout = '60s'")
        copier.commit()
        # It changes before it is copied: the copy waits for it.
        eraser.execute("UPDATE prompts SET prompt = 'erased' WHERE \"timestamp\" = %s", [now + 1])
        copying = pool.submit(lambda: copier.execute(page, [begun]).fetchall())
        wait_for(lambda: rows("SELECT count(*) AS n FROM pg_locks WHERE NOT granted")[0]["n"] > 0)
        eraser.commit()
        assert copying.result(30) == [(now + 2,)]
        # It is deleted after it was copied, and before that is committed: that waits for the copy.
        deleting = pool.submit(lambda: eraser.execute('DELETE FROM prompts WHERE "timestamp" = %s', [now + 2]))
        wait_for(lambda: rows("SELECT count(*) AS n FROM pg_locks WHERE NOT granted")[0]["n"] > 0)
        copier.commit()
        deleting.result(30)
        eraser.commit()
    assert rows('SELECT "timestamp" AS at, prompt FROM rebuilt_prompts') == [{"at": now + 1, "prompt": "erased"}]
    assert rows("SELECT name FROM finish_rebuild('prompts', %s)", begun) == [{"name": name(PROMPT)}]


def test_a_table_that_has_a_partitions_name_is_left_alone(app: Any, rows: Rows, where: Any) -> None:
    rows(f"DROP TABLE {name(PROMPT)}")
    rows(f"CREATE TABLE {name(PROMPT)} (n int)")
    result = app.test_cli_runner().invoke(args=["partitions", "ensure"])
    assert (result.exit_code, result.stdout) == (1, "")
    assert f"{name(PROMPT)}: another table is called so" in result.stderr


def test_the_writer_makes_partitions_by_the_function_alone_and_the_reader_makes_none(
    rows: Rows, database_url: str
) -> None:
    rows(f"DROP TABLE {name(PROMPT)}")
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        partitions.ensure(as_role(database_url, "reader"))
    writer = as_role(database_url, "writer")
    with psycopg.connect(writer) as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
        connection.execute(f"CREATE TABLE {name(PROMPT)} (LIKE prompts)")
    assert [each["name"] for each in partitions.ensure(writer)] == [name(PROMPT)]
    with pytest.raises(psycopg.errors.InvalidParameterValue):
        partitions.ensure(writer, 122)
    assert rows("SELECT relname FROM pg_class WHERE relname = %s", name(PROMPT, 121)) == []
    for call in ("create_month('prompts', '2015-01-01')", "begin_rebuild('prompts', '{}')"):
        with psycopg.connect(writer) as connection, pytest.raises(psycopg.errors.InvalidParameterValue):
            connection.execute(f"SELECT {call}")
    with psycopg.connect(writer) as connection:
        assert connection.execute("SELECT begin_rebuild('prompts', '{1999-01-01}')").fetchone() == (None,)
    owner = "SELECT tableowner FROM pg_tables WHERE tablename = ANY (%s)"
    assert {row["tableowner"] for row in rows(owner, [name(PROMPT), "prompts"])} == {"watchpost_owner"}
    paths = (
        "SELECT DISTINCT proconfig[1] AS path FROM pg_proc WHERE pronamespace = 'public'::regnamespace AND prosecdef"
    )
    assert rows(paths) == [{"path": "search_path=pg_catalog, public, pg_temp"}]


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


# Sends a body and returns the status of its answer.
Send = Callable[[dict[str, Any]], int]


def by_http(service: Service, kind: Kind, token: str) -> Callable[[], AbstractContextManager[Send]]:
    """Senders to a running service."""
    return lambda: nullcontext(lambda body: service.post(kind.path, body, token).status)


def by_previous_release(url: str, kind: Kind) -> Callable[[], AbstractContextManager[Send]]:
    """Senders that do as the release before the tables were partitioned: its statements, as its role."""
    release = previous_release.RELEASES[0]
    insert, check = (previous_release.statement(release, name) for name in (kind.insert, kind.again))
    statuses = {"created": 201, "duplicate": 200, "conflict": 409}

    @contextmanager
    def sender() -> Iterator[Send]:
        with psycopg.connect(as_role(url, "writer"), autocommit=True, prepare_threshold=0) as connection:

            def run(text: str, body: dict[str, Any]) -> str | None:
                # Writers wait while tables are rewritten, on a slow machine for longer than their timeout.
                for _ in range(10):
                    with suppress(psycopg.errors.LockNotAvailable):
                        rows = connection.execute(text, {"rows": json.dumps([{"ord": 0, **body}])}).fetchall()
                        assert len(rows) == 1
                        return rows[0][1]
                raise AssertionError("a row was refused ten times")

            def send(body: dict[str, Any]) -> int:
                return statuses[run(insert, body) or run(check, body) or "neither new nor stored"]

            yield send

    return sender


class Traffic:
    """Writers and a reader that go on until told to stop.

    Each writer sends a new row, the same again, and the same key with other content. The reader counts the rows of
    this month, which must never become fewer.
    """

    def __init__(
        self, sender: Callable[[], AbstractContextManager[Send]], agent: Agent, rows: Rows, kind: Kind
    ) -> None:
        self.sender, self.agent, self.rows, self.kind = sender, agent, rows, kind
        self.over = threading.Event()
        self.sent: list[list[dict[str, Any]]] = []
        self.statuses: set[tuple[int, int, int]] = set()
        self.counts: list[int] = []

    def write(self) -> None:
        sent: list[dict[str, Any]] = []
        self.sent.append(sent)
        with self.sender() as send:
            while not self.over.is_set():
                body = self.kind.body(self.agent, int(time.time() * 1000))
                first, again, other = (send(each) for each in (body, body, {**body, **self.kind.other}))
                self.statuses.add((first, again, other))
                sent.append(body)

    def read(self, url: str) -> None:
        query = f'SELECT count(*) FROM {self.kind.table} WHERE "{self.kind.time}" >= %s'
        with psycopg.connect(url, autocommit=True) as connection:
            while not self.over.is_set():
                found = connection.execute(query, [ms(month())]).fetchone()
                assert found is not None
                self.counts.append(found[0])

    @contextmanager
    def running(self, url: str) -> Iterator[None]:
        with ThreadPoolExecutor(5) as pool:
            work = [pool.submit(self.write) for _ in range(4)] + [pool.submit(self.read, url)]
            try:
                yield
            finally:
                self.over.set()
            for each in work:
                each.result()

    def goes_on(self) -> None:
        """Wait until each writer has sent ten more rows."""
        wait_for(lambda: len(self.sent) == 4)
        before = [len(sent) for sent in self.sent]
        wait_for(lambda: all(len(now) >= then + 10 for now, then in zip(self.sent, before, strict=True)))

    def assert_nothing_is_lost_or_doubled(self) -> None:
        assert self.statuses == {(201, 200, 409)}
        stored = self.rows(f"SELECT {self.kind.id}::text AS id FROM {self.kind.table}")
        assert sorted(row["id"] for row in stored) == sorted(body[self.kind.id] for sent in self.sent for body in sent)
        assert self.counts == sorted(self.counts)
        assert len(set(self.counts)) > 1


@pytest.fixture
def service(database_url: str, settings: Settings, tmp_path: Path) -> Iterator[Service]:
    """A running service. It looks after its partitions once, soon after the start, and may be faster than a test."""
    # Writers wait while tables are rewritten, on a slow machine for more than two seconds.
    limits = {"pool_wait_seconds": settings.pool_wait_seconds, "statement_timeout_ms": settings.statement_timeout_ms}
    keys = settings.signing_keys_path
    with serving(tmp_path, database_url=database_url, signing_keys=keys, **limits) as service:
        yield service


@KINDS
def test_rows_move_to_their_partition_while_others_write_and_read(
    service: Service, rows: Rows, where: Any, database_url: str, kind: Kind
) -> None:
    agent, token = registered(service)
    traffic = Traffic(by_http(service, kind, token), agent, rows, kind)
    made: list[dict[str, Any]] = []
    with traffic.running(database_url):
        traffic.goes_on()
        for _ in range(3):
            with psycopg.connect(database_url) as connection:
                unmake(connection, kind)
            traffic.goes_on()
            made += partitions.ensure(database_url)
            traffic.goes_on()
    traffic.assert_nothing_is_lost_or_doubled()
    assert list(where(kind)) == [name(kind)]
    assert {(each["name"], each["outcome"], each["moved"] > 0) for each in made} == {(name(kind), "created", True)}


def test_coming_months_are_attached_while_others_write_and_hold_the_table(
    service: Service, rows: Rows, database_url: str
) -> None:
    agent, token = registered(service)
    traffic = Traffic(by_http(service, PROMPT, token), agent, rows, PROMPT)
    with traffic.running(database_url), psycopg.connect(database_url) as open_writer:
        traffic.goes_on()
        open_writer.execute(f"LOCK TABLE ONLY prompts, ONLY {name(PROMPT)} IN ROW EXCLUSIVE MODE")
        made = partitions.ensure(database_url, partitions.MONTHS_AHEAD + 2)
        assert [each["outcome"] for each in made] == ["created"] * 6
        traffic.goes_on()
    traffic.assert_nothing_is_lost_or_doubled()


@KINDS
def test_a_previous_release_writes_on_while_its_tables_are_partitioned_and_back(
    client: FlaskClient, device: Agent, headers: Any, rows: Rows, where: Any, database_url: str, kind: Kind
) -> None:
    traffic = Traffic(by_previous_release(database_url, kind), device, rows, kind)
    with traffic.running(database_url):
        traffic.goes_on()
        migrations.rollback(database_url, to="0008")
        traffic.goes_on()
        assert list(where(kind)) == [kind.table]
        migrations.apply(database_url)
        traffic.goes_on()
    traffic.assert_nothing_is_lost_or_doubled()
    assert list(where(kind)) == [f"{kind.table}_before_{month(2):%Y%m}"]
    # This release finds what that one stored.
    for sent in traffic.sent:
        for body in (sent[0], sent[-1]):
            assert client.post(kind.path, json=body, headers=headers).status_code == 200
            assert client.post(kind.path, json={**body, **kind.other}, headers=headers).status_code == 409


@KINDS
def test_what_is_stored_becomes_the_first_partition_uncopied_and_comes_back_whole(
    client: FlaskClient, device: Agent, headers: Any, rows: Rows, where: Any, database_url: str, kind: Kind
) -> None:
    times = [ms(datetime(2015, 1, 1, tzinfo=UTC)), ms(month(-1)) - 1, ms(month()) - 1, int(time.time() * 1000)]
    bodies = [kind.body(device, at) for at in times]
    for body in bodies:
        assert client.post(kind.path, json=body, headers=headers).status_code == 201
    before, by_partition = rows(f"SELECT * FROM {kind.table} ORDER BY 1"), where(kind)
    assert len(by_partition) == 3

    migrations.rollback(database_url, to="0008")
    assert where(kind) == {kind.table: times}
    rows(f"GRANT SELECT ON {kind.table} TO pg_monitor; GRANT UPDATE (device_id) ON {kind.table} TO pg_monitor")
    file = "SELECT pg_relation_filenode(%s::text::regclass) AS file"
    flat = rows(file, kind.table)
    migrations.apply(database_url)
    old = f"{kind.table}_before_{month(2):%Y%m}"
    assert where(kind) == {old: times}
    assert rows(file, old) == flat
    assert rows(f"SELECT * FROM {kind.table} ORDER BY 1") == before
    may = """
        SELECT
            has_table_privilege('pg_monitor', %s, 'SELECT') AS a,
            has_column_privilege('pg_monitor', %s, 'device_id', 'UPDATE') AS b
    """
    assert rows(may, kind.table, kind.table) == [{"a": True, "b": True}]
    for body in bodies:
        assert client.post(kind.path, json=body, headers=headers).status_code == 200
    later = ms(month(2))
    rows(
        f"INSERT INTO {kind.table} SELECT (later).* FROM "
        f"(SELECT jsonb_populate_record(old, %s) AS later FROM {kind.table} AS old LIMIT 1) AS one",
        json.dumps({kind.time: later}),
    )
    assert where(kind) == {old: times, name(kind, 2): [later]}

    migrations.rollback(database_url, to="0010")
    assert where(kind) == {kind.table: [*times, later]}
    # Columns of later migrations are gone by now.
    after = rows(f"SELECT * FROM {kind.table} ORDER BY 1")[:4]
    assert after == [{name: row[name] for name in after[0]} for row in before]
    assert rows(may, kind.table, kind.table) == [{"a": True, "b": True}]
    migrations.apply(database_url)
    assert where(kind) == {f"{kind.table}_before_{month(4):%Y%m}": [*times, later]}


def test_a_view_stops_the_partitioning_rather_than_become_stale(rows: Rows, database_url: str) -> None:
    migrations.rollback(database_url, to="0008")
    rows("CREATE VIEW sites AS SELECT DISTINCT site FROM prompts")
    with pytest.raises(migrations.MigrationError, match=r"^0010\..*: the view sites reads prompts"):
        migrations.apply(database_url)
    rows("DROP VIEW sites")
    assert migrations.apply(database_url)[0].startswith("0010")


def test_a_table_that_is_in_use_for_long_stops_neither_migration_nor_service(
    app: Any, rows: Rows, database_url: str, ensure: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partitions, "MAX_TRIES", 1)
    rows(f"DROP TABLE {name(PROMPT)}, {name(PROMPT, 1)}")
    with psycopg.connect(database_url) as holder:
        holder.execute("LOCK TABLE prompts IN ACCESS SHARE MODE")
        result = app.test_cli_runner().invoke(args=["partitions", "ensure"])
        assert (result.exit_code, result.stdout) == (1, "")
        assert "55P03" in result.stderr
        assert migrations.apply(database_url) == []
        assert not partitions.try_to_ensure(database_url)
    assert sorted(ensure()) == [name(PROMPT), name(PROMPT, 1)]


def test_a_table_that_is_in_use_for_a_moment_is_waited_for(rows: Rows, database_url: str) -> None:
    rows(f"DROP TABLE {name(PROMPT)}")
    with psycopg.connect(database_url) as holder, ThreadPoolExecutor(1) as pool:
        holder.execute("LOCK TABLE prompts IN ACCESS SHARE MODE")
        made = pool.submit(partitions.ensure, database_url)
        time.sleep(1.5)
        holder.rollback()
        assert [each["name"] for each in made.result(20)] == [name(PROMPT)]


def test_the_running_service_makes_missing_partitions_and_tries_again_when_it_could_not(
    rows: Rows, database_url: str, tmp_path: Path
) -> None:
    script = """
from app.jobs import worker
from config.settings import load
jobs = tuple(job._replace(seconds=1, retry_seconds=1) for job in worker.JOBS)
worker.Worker(load(), jobs).serve()
"""
    environment = {"WATCHPOST_DATABASE_URL": as_role(database_url, "writer"), "PATH": "/usr/bin:/bin"}
    exists = "SELECT to_regclass(%s) IS NOT NULL AS is_there"
    log = tmp_path / "worker.log"
    rows("ALTER FUNCTION missing_months RENAME TO gone")
    rows(f"DROP TABLE {name(PROMPT)}")
    with log.open("w") as errors:
        worker = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, env=environment, stderr=errors)
    try:
        wait_for(lambda: "can't make partitions: UndefinedFunction 42883" in log.read_text())
        assert rows(exists, name(PROMPT)) == [{"is_there": False}]
        rows("ALTER FUNCTION gone RENAME TO missing_months")
        wait_for(lambda: rows(exists, name(PROMPT)) == [{"is_there": True}])
        assert worker.poll() is None
    finally:
        worker.terminate()
        assert worker.wait(60) == 0


@pytest.fixture(scope="module", params=["not analyzed", "analyzed"])
def months(request: pytest.FixtureRequest, template: Any) -> Iterator[psycopg.Connection[Any]]:
    """Fourteen months, the last and all coming ones, with 2,000 rows each, and as many strays."""
    url = template.url("{}")
    database = f"partitions_{len(request.param)}"
    with psycopg.connect(url.format("postgres"), autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {database} TEMPLATE {template.name}")
        try:
            partitions.ensure(url.format(database), 12)
            with psycopg.connect(url.format(database), autocommit=True, prepare_threshold=None) as connection:
                fill(connection)
                if request.param == "analyzed":
                    connection.execute("VACUUM ANALYZE")
                yield connection
        finally:
            admin.execute(f"DROP DATABASE {database} WITH (FORCE)")


def fill(connection: psycopg.Connection[Any]) -> None:
    connection.execute("INSERT INTO devices (device_id) SELECT 'device-' || n FROM generate_series(1, 2000) AS n")
    for ahead in (-6, *range(-1, 12 + 1)):
        start = ms(month(ahead))
        for columns, values in (
            ('prompts ("timestamp", device_id, prompt_id, instance_id, site, url, prompt)', "'i', 's', 'u', 'p'"),
            ("extension_status (reported_at, device_id, status_id, instance_id, status)", "'i', 'enabled'"),
            ("compliance_events (detected_at, device_id, event_id, event_type, severity)", "'e', 'low'"),
        ):
            connection.execute(
                f"INSERT INTO {columns} SELECT {start} + n, 'device-' || n, gen_random_uuid(), {values} "
                "FROM generate_series(1, 2000) AS n"
            )


def scans(connection: psycopg.Connection[Any], explained: str, *parameters: Any) -> dict[str, str]:
    """What a statement looked into: the node of each partition that was executed."""
    query = "EXPLAIN (ANALYZE, FORMAT JSON) " + explained
    found = connection.execute(query, parameters or None).fetchone()
    assert found is not None
    scans, left = {}, [found[0][0]["Plan"]]
    while left:
        node = left.pop()
        left += node.get("Plans", [])
        if "Relation Name" in node and node["Node Type"] != "ModifyTable" and node["Actual Loops"]:
            scans[node["Relation Name"]] = node["Node Type"]
    return scans


def prepare(connection: psycopg.Connection[Any], plan: str, text: str) -> None:
    connection.execute("DEALLOCATE ALL")
    connection.execute(f"SET plan_cache_mode = force_{plan}_plan")
    connection.execute(f"PREPARE {text}")


@KINDS
@pytest.mark.parametrize("plan", ["custom", "generic"])
def test_reads_by_time_look_into_the_months_that_they_ask_for(
    months: psycopg.Connection[Any], kind: Kind, plan: str
) -> None:
    page = f'''
        SELECT * FROM {kind.table} WHERE "{kind.time}" >= $1 AND "{kind.time}" < $2
        ORDER BY "{kind.time}" DESC, device_id DESC, {kind.id} DESC LIMIT 50
    '''
    prepare(months, plan, f"page (bigint, bigint) AS {page}")

    def read(first: int, last: int) -> set[str]:
        return set(scans(months, f"EXECUTE page ({first}, {last})"))

    assert read(ms(month(3)), ms(month(4))) == {name(kind, 3)}
    assert read(ms(month(4)) - 1, ms(month(4)) + 10) == {name(kind, 3), name(kind, 4)}
    assert read(ms(month(-6)), ms(month(-5))) == {f"{kind.table}_default"}


@KINDS
@pytest.mark.parametrize("plan", ["custom", "generic"])
def test_a_set_that_comes_again_is_looked_up_by_key_in_its_own_months(
    months: psycopg.Connection[Any], kind: Kind, plan: str
) -> None:
    text = statement(kind.again).text.replace("%(rows)s", "$1")
    prepare(months, plan, f"again (json) AS {text}")
    keys = months.execute(
        f'SELECT "{kind.time}", device_id, {kind.id}::text FROM {kind.table} WHERE "{kind.time}" = ANY (%s)',
        [[ms(month(ahead)) + 7 for ahead in (-6, 0, 5)]],
    ).fetchall()
    assert len(keys) == 3
    names = ("ordinal", kind.time, "device_id", kind.id)
    set_ = json.dumps([dict(zip(names, (n, *key), strict=True)) for n, key in enumerate(keys)])
    looked_into = {f"{kind.table}_default", name(kind), name(kind, 5)}
    assert scans(months, f"EXECUTE again ('{set_}')") == dict.fromkeys(looked_into, "Index Scan")


@KINDS
@pytest.mark.parametrize("plan", ["custom", "generic"])
def test_an_insert_looks_into_no_partition_at_all(months: psycopg.Connection[Any], kind: Kind, plan: str) -> None:
    text = statement(kind.insert).text.replace("%(rows)s", "$1")
    row = {
        "ordinal": 0,
        "device_id": "device-1",
        "instance_id": "i",
        "notes_instance": True,
        kind.id: str(uuid.uuid4()),
        kind.time: ms(month()),
    }
    set_ = json.dumps([{**row, **kind.content}])
    # With the settings of its role: the planner scans a table that is small or has no statistics, in a plan that stays.
    with psycopg.connect(months.info.dsn, user="watchpost_writer", autocommit=True) as writer:
        prepare(writer, plan, f"new (json) AS {text}")
        found = scans(writer, f"EXECUTE new ('{set_}')")
    assert found == {"devices": "Index Scan", "browser_instances": "Index Scan"}


def test_a_plan_made_while_a_month_was_empty_changes_when_it_fills(months: psycopg.Connection[Any]) -> None:
    months.execute("TRUNCATE " + name(PROMPT, 7))
    months.execute("VACUUM ANALYZE " + name(PROMPT, 7))
    text = statement("prompts/select_prompts").text.replace("%(rows)s", "$1")
    prepare(months, "generic", f"again (json) AS {text}")
    at = ms(month(7)) + 7
    key = {"ordinal": 0, "timestamp": at, "device_id": "device-7", "prompt_id": str(uuid.uuid4())}
    lookup = f"EXECUTE again ('[{json.dumps(key)}]')"
    assert scans(months, lookup) == {name(PROMPT, 7): "Seq Scan"}
    months.execute(
        f"INSERT INTO prompts SELECT {ms(month(7))} + n, device_id, prompt_id, instance_id, site, url, prompt "
        f"FROM {name(PROMPT, 6)}, generate_series(1, 5) AS n"
    )
    # As autovacuum does within a minute or two.
    months.execute("ANALYZE " + name(PROMPT, 7))
    assert scans(months, lookup) == {name(PROMPT, 7): "Index Scan"}
