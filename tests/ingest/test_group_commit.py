"""Concurrent writes share statements and commits, and none pays for another."""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from app.application import Watchpost
from app.ingest.group_commit import GroupCommit, QueueFull
from config.settings import Settings
from tests.support.agent import Agent
from tests.support.application import create_app


class Store:
    """Stands where the statement stands: records the sets it is given, and waits when told to."""

    def __init__(self) -> None:
        self.sets: list[list[int]] = []
        self.gate = threading.Event()
        self.entered = threading.Semaphore(0)
        self.gate.set()

    def __call__(self, rows: list[int]) -> list[int | Exception]:
        self.sets.append(rows)
        self.entered.release()
        self.gate.wait(60)
        return [ValueError(row) if row < 0 else row * 10 for row in rows]


def shared(store: Store, **limits: Any) -> GroupCommit[int, int]:
    return GroupCommit(store, **{"max_rows": 100, "max_waiting": 1000, "timeout": 60, **limits})


def queued(commit: GroupCommit[int, int], amount: int) -> None:
    """Return when so many rows wait behind the set that is running."""
    deadline = time.monotonic() + 60
    while len(commit._queue) < amount:
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_a_leader_waits_briefly_for_as_many_rows_as_the_previous_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.ingest.group_commit.GATHER_SECONDS", 120)
    store = Store()
    commit = shared(store)
    commit._expected = 3
    with ThreadPoolExecutor(4) as threads:
        answers = [threads.submit(commit.submit, row) for row in range(3)]
        # Who is alone next is expected to come with two others, but nobody is waited for longer than the limit.
        assert sorted(answer.result(60) for answer in answers) == [0, 10, 20]
        assert [len(rows) for rows in store.sets] == [3]
        monkeypatch.setattr("app.ingest.group_commit.GATHER_SECONDS", 0.01)
        assert threads.submit(commit.submit, 4).result(60) == 40
        assert [len(rows) for rows in store.sets] == [3, 1]
        assert commit._expected == 1


def test_rows_that_wait_together_are_one_batch_in_the_order_of_arrival() -> None:
    store = Store()
    commit = shared(store)
    store.gate.clear()
    with ThreadPoolExecutor(21) as threads:
        first = threads.submit(commit.submit, 0)
        store.entered.acquire()
        others = []
        for row in range(1, 21):
            others.append(threads.submit(commit.submit, row))
            queued(commit, row)
        store.gate.set()
        assert first.result() == 0
        assert [other.result() for other in others] == [row * 10 for row in range(1, 21)]
    assert store.sets == [[0], list(range(1, 21))]


def test_a_batch_is_never_larger_than_the_limit() -> None:
    store = Store()
    commit = shared(store, max_rows=7)
    store.gate.clear()
    with ThreadPoolExecutor(31) as threads:
        answers = [threads.submit(commit.submit, 0)]
        store.entered.acquire()
        answers += [threads.submit(commit.submit, row) for row in range(1, 31)]
        queued(commit, 30)
        store.gate.set()
        assert [answer.result() for answer in answers] == [row * 10 for row in range(31)]
    assert [len(rows) for rows in store.sets] == [1, 7, 7, 7, 7, 2]


def test_an_error_of_one_row_is_raised_for_that_row_alone() -> None:
    store = Store()
    commit = shared(store)
    with pytest.raises(ValueError, match="-1"):
        commit.submit(-1)
    assert commit.submit(1) == 10


def test_a_full_queue_refuses_at_once_and_works_again_when_it_is_drained() -> None:
    store = Store()
    commit = shared(store, max_waiting=3)
    store.gate.clear()
    with ThreadPoolExecutor(4) as threads:
        first = threads.submit(commit.submit, 0)
        store.entered.acquire()
        others = [threads.submit(commit.submit, row) for row in (1, 2, 3)]
        queued(commit, 3)
        with pytest.raises(QueueFull):
            commit.submit(4)
        store.gate.set()
        assert [answer.result() for answer in (first, *others)] == [0, 10, 20, 30]
    assert commit.submit(5) == 50


def test_a_row_that_times_out_leaves_the_queue_and_is_not_stored_later() -> None:
    store = Store()
    commit = shared(store, timeout=0.05)
    store.gate.clear()
    with ThreadPoolExecutor(1) as threads:
        first = threads.submit(commit.submit, 0)
        store.entered.acquire()
        with pytest.raises(QueueFull):
            commit.submit(1)
        store.gate.set()
        assert first.result() == 0
    assert store.sets == [[0]]


def test_a_leader_that_fails_fails_its_batch_and_the_next_one_leads() -> None:
    def run(rows: list[int]) -> list[int | Exception]:
        entered.set()
        gate.wait(60)
        if 0 in rows:
            raise RuntimeError("lost")
        return list(rows)

    entered, gate = threading.Event(), threading.Event()
    commit: GroupCommit[int, int] = GroupCommit(run, max_rows=10, max_waiting=10, timeout=60)
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(commit.submit, 0)
        entered.wait(60)
        second = threads.submit(commit.submit, 1)
        while not commit._queue:
            time.sleep(0.001)
        gate.set()
        with pytest.raises(RuntimeError):
            first.result()
        assert second.result() == 1


def test_many_threads_get_their_own_answers() -> None:
    store = Store()
    commit = shared(store, max_rows=16)
    with ThreadPoolExecutor(32) as threads:
        assert list(threads.map(commit.submit, range(3000))) == [row * 10 for row in range(3000)]
    assert sorted(row for rows in store.sets for row in rows) == list(range(3000))


def prompt(agent: Agent, timestamp: int, **more: Any) -> dict[str, Any]:
    return {
        "device_id": agent.device_id,
        "instance_id": "i-1",
        "site": "site",
        "url": "url",
        "prompt": "text",
        "timestamp": timestamp,
        **more,
    }


def test_a_row_that_fails_in_the_database_costs_no_other_row_of_its_batch(
    app: Watchpost,
    device: Agent,
    headers: dict[str, str],
    rows: Callable[..., list[dict[str, Any]]],
    now_ms: int,
) -> None:
    # A constraint that only the database knows: what validation can't foresee.
    rows("ALTER TABLE prompts ADD CONSTRAINT refused CHECK (site != 'refused')")
    bodies = [prompt(device, now_ms + n, site="refused" if n % 10 == 3 else "site") for n in range(60)]
    with ThreadPoolExecutor(60) as threads:
        answers = list(
            threads.map(lambda body: app.test_client().post("/api/prompt", json=body, headers=headers), bodies)
        )
    assert [answer.status_code for answer in answers] == [500 if n % 10 == 3 else 201 for n in range(60)]
    assert rows("SELECT count(*) AS stored FROM prompts") == [{"stored": 54}]


@pytest.mark.direct("PgBouncer does not pass the shorter time limit on")
def test_rows_stored_one_by_one_wait_for_an_absent_database_once(
    settings: Settings, device: Agent, headers: dict[str, str], rows: Callable[..., list[dict[str, Any]]], now_ms: int
) -> None:
    rows("""
        CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            IF NEW.site = 'refused' THEN
                RAISE 'refused';
            END IF;
            PERFORM pg_sleep(60);
            RETURN NEW;
        END $$;
        CREATE TRIGGER refuse BEFORE INSERT ON prompts FOR EACH ROW EXECUTE FUNCTION refuse()
    """)
    app = create_app(replace(settings, statement_timeout_ms=1000))
    # Those that are refused come first in their statement, and its failure is theirs.
    bodies = [prompt(device, now_ms + n - 1000 * (n % 4 == 0), site="site" if n % 4 else "refused") for n in range(40)]
    began = time.monotonic()
    with ThreadPoolExecutor(40) as threads:
        answers = list(
            threads.map(lambda body: app.test_client().post("/api/prompt", json=body, headers=headers), bodies)
        )
    # A few times as long as one may take; each for itself, the thirty that are not refused would take thirty seconds.
    assert time.monotonic() - began < 25
    assert {answer.status_code for answer in answers} <= {500, 503}
    assert rows("SELECT count(*) AS stored FROM prompts") == [{"stored": 0}]
    app.extensions["db"].close()


def test_two_record_types_never_wait_for_each_other(
    app: Watchpost,
    device: Agent,
    headers: dict[str, str],
    database_url: str,
    now_ms: int,
) -> None:
    import psycopg

    with psycopg.connect(database_url) as blocker, ThreadPoolExecutor(1) as threads:
        blocker.execute("LOCK TABLE prompts IN ACCESS EXCLUSIVE MODE")
        body = prompt(device, now_ms)
        waiting = threads.submit(lambda: app.test_client().post("/api/prompt", json=body, headers=headers))
        beat = app.test_client().post("/api/devices/heartbeat", json={"device_id": device.device_id}, headers=headers)
        assert beat.status_code == 200
        assert not waiting.done()
        blocker.rollback()
        assert waiting.result().status_code == 201


def _hammer(settings: Settings, headers: list[dict[str, str]], names: list[str], seed: int, out: Any) -> None:
    """One worker process: batches and single writes over keys that all processes share, in orders of its own."""
    import random

    app = create_app(settings)
    order = random.Random(seed)
    statuses: list[int] = []
    for round_ in range(12):
        whose = order.randrange(len(names))
        items = [{"type": "device_heartbeat", "body": {"device_id": names[whose], "os": f"os-{round_}"}}]
        for n in order.sample(range(20), 20):
            items.append({"type": "browser_heartbeat", "body": {"instance_id": f"{names[whose]}-{n}"}})
            body = {
                "device_id": names[whose],
                "instance_id": "i",
                "site": "s",
                "url": "u",
                "prompt": "p",
                "timestamp": 1_760_000_000_000 + n,
            }
            items.append({"type": "prompt", "body": body})
        answer = app.test_client().post("/api/batch", json={"items": items}, headers=headers[whose])
        statuses.append(answer.status_code)
        statuses += [result["status"] for result in answer.json.get("results", [])]
        with ThreadPoolExecutor(8) as threads:
            pairs = [(order.randrange(len(names)), n) for n in order.sample(range(20), 8)]
            statuses += threads.map(
                lambda pair: (
                    app.test_client()
                    .post(
                        "/api/browsers/heartbeat",
                        json={"instance_id": f"{names[pair[0]]}-{pair[1]}"},
                        headers=headers[pair[0]],
                    )
                    .status_code
                ),
                pairs,
            )
    app.extensions["db"].close()
    out.put(statuses)


def test_overlapping_batches_from_several_processes_never_deadlock(
    settings: Settings,
    register: Callable[..., Agent],
    access: Callable[..., dict[str, str]],
    rows: Callable[..., list[dict[str, Any]]],
) -> None:
    agents = [register() for _ in range(3)]
    headers = [access(agent) for agent in agents]
    before = rows("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
    context = multiprocessing.get_context("spawn")
    out = context.Queue()
    names = [agent.device_id for agent in agents]
    processes = [context.Process(target=_hammer, args=(settings, headers, names, seed, out)) for seed in range(4)]
    for process in processes:
        process.start()
    statuses = [status for _ in processes for status in out.get(timeout=300)]
    for process in processes:
        process.join(60)
    assert set(statuses) <= {200, 201}
    assert statuses.count(201) == 60 + 60
    assert rows("SELECT count(*) AS stored FROM prompts") == [{"stored": 60}]
    assert rows("SELECT count(*) AS stored FROM browser_instances") == [{"stored": 60}]
    assert rows("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()") == before
