"""The metrics at `/metrics`: counts and times of all workers of this host together, and the state of the database.

A label value is a word of this code or of PostgreSQL, never text that a client sends.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Histogram, generate_latest, multiprocess
from prometheus_client.core import GaugeMetricFamily

from app.telemetry.metric_files import FOLDER, install

# Before the first metric is made.
install()

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)

REQUESTS = Counter("watchpost_requests", "Requests, by route, method and status.", ["route", "method", "status"])
REQUEST_SECONDS = Histogram(
    "watchpost_request_seconds", "Time from the end of a request's head to its answer.", ["route"], buckets=SECONDS
)
PROBLEMS = Counter(
    "watchpost_problems", "Refusals of requests and of items of batches, by problem type.", ["problem", "status"]
)
TOKENS_REFUSED = Counter(
    "watchpost_tokens_refused", "Access tokens and client assertions that were refused, by reason.", ["kind", "reason"]
)
ROWS = Counter("watchpost_rows", "Rows that devices sent, by record type and outcome.", ["record_type", "outcome"])
GROUP_COMMIT_ROWS = Histogram(
    "watchpost_group_commit_rows",
    "Rows of one group commit, by record type.",
    ["record_type"],
    buckets=(1, 2, 5, 10, 20, 50, 100, 200, 500, 1000),
)
QUEUE_WAIT_SECONDS = Histogram(
    "watchpost_queue_wait_seconds",
    "Time that the first row of a group commit waited for the commit before it.",
    ["record_type"],
    buckets=SECONDS,
)
POOL_WAIT_SECONDS = Histogram(
    "watchpost_pool_wait_seconds", "Time until a database connection was free.", buckets=SECONDS
)
DATABASE_ERRORS = Counter(
    "watchpost_database_errors",
    "Errors of the database and timeouts of waits for it, by class and SQLSTATE.",
    ["error", "sqlstate"],
)

# Looking up the child of a label costs more than counting in it.
_request = lru_cache(maxsize=1000)(REQUESTS.labels)
_request_seconds = lru_cache(maxsize=100)(REQUEST_SECONDS.labels)
_rows = lru_cache(maxsize=1000)(ROWS.labels)
_group_commit_rows = lru_cache(maxsize=100)(GROUP_COMMIT_ROWS.labels)
_queue_wait_seconds = lru_cache(maxsize=100)(QUEUE_WAIT_SECONDS.labels)

# A series that alerts use exists from the start: one that begins with its first event shows no increase.
ROWS.labels("device_register", "key_conflict")
for _reason in ("malformed", "header", "algorithm", "signature", "replayed", "unknown_device"):
    TOKENS_REFUSED.labels("access", _reason)
    TOKENS_REFUSED.labels("assertion", _reason)


def answered(route: str | None, method: str, status: int, seconds: float) -> None:
    """Count a request. route: the rule, never the path, which is a client's text. seconds: until its answer."""
    _request(route or "none", method, status).inc()
    _request_seconds(route or "none").observe(seconds)


def refused(problem: str, status: int) -> None:
    PROBLEMS.labels(problem, status).inc()


def token_refused(kind: str, reason: str) -> None:
    """kind: access, assertion. reason: a TokenRefused's, or an OAuth error code."""
    TOKENS_REFUSED.labels(kind, reason).inc()


def stored(record_type: str, outcomes: Sequence[str]) -> None:
    """Count the rows of a group commit, or of one type in a batch, after the commit."""
    _group_commit_rows(record_type).observe(len(outcomes))
    for outcome in set(outcomes):
        _rows(record_type, outcome).inc(outcomes.count(outcome))


def waited_in_queue(record_type: str, seconds: float) -> None:
    _queue_wait_seconds(record_type).observe(seconds)


waited_for_connection = POOL_WAIT_SECONDS.observe


def database_error(error: Exception) -> None:
    DATABASE_ERRORS.labels(type(error).__name__, getattr(error, "sqlstate", None) or "none").inc()


class State:
    """The state of the database at the time of a scrape, as a collector of prometheus_client.

    pending: migrations that are not applied; None when the database does not answer.
    partitions: rows of sql/partitions/select_partitions.sql.
    """

    def __init__(self, pending: int | None, partitions: Iterable[dict[str, Any]]) -> None:
        self._pending = pending
        self._partitions = list(partitions)

    def collect(self) -> Iterator[GaugeMetricFamily]:
        is_ready = self._pending == 0
        yield GaugeMetricFamily("watchpost_ready", "Whether /readyz answers 200: 1 or 0.", value=int(is_ready))
        if self._pending is not None:
            yield GaugeMetricFamily("watchpost_migrations_pending", "Pending migrations.", value=self._pending)
        until = GaugeMetricFamily(
            "watchpost_partitions_until_timestamp_seconds",
            "End of the last month that has a partition, without a gap from this month on.",
            labels=["table"],
        )
        size = GaugeMetricFamily(
            "watchpost_default_partition_bytes", "Size of the default partition, with its indexes.", labels=["table"]
        )
        for table in sorted({row["table_name"] for row in self._partitions}):
            rows = [row for row in self._partitions if row["table_name"] == table]
            size.add_metric([table], sum(row["bytes"] for row in rows if row["starts_at"] is row["ends_at"] is None))
            until.add_metric([table], _covered_until(rows))
        yield from (until, size)


def _covered_until(rows: Iterable[dict[str, Any]]) -> float:
    """Return the end of the unbroken row of partitions that begins now, in epoch seconds; now, when there is none.

    rows: of one table, oldest first.
    """
    until = time.time()
    for row in rows:
        starts = -math.inf if row["starts_at"] is None else row["starts_at"].timestamp()
        ends = math.inf if row["ends_at"] is None else row["ends_at"].timestamp()
        if starts <= until and (starts, ends) != (-math.inf, math.inf):
            until = max(until, ends)
    return until


def exposition(state: State) -> bytes:
    """Return all metrics in Prometheus' text format, version 0.0.4."""
    counts: Any = REGISTRY
    if FOLDER in os.environ:
        counts = CollectorRegistry()
        multiprocess.MultiProcessCollector(counts)
    states: Any = CollectorRegistry()
    states.register(state)
    return bytes(generate_latest(counts) + generate_latest(states))
