"""What Prometheus reads at `/metrics`: counts and times of all workers of this host together."""

from __future__ import annotations

import os
from collections import Counter as Tally
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Histogram, generate_latest, multiprocess

# prometheus_client reads it when it is imported: workers then count in files that each of them can add up.
FOLDER = "PROMETHEUS_MULTIPROC_DIR"

REQUESTS = Counter("watchpost_requests", "Requests, by route, method and status.", ["route", "method", "status"])
REQUEST_SECONDS = Histogram(
    "watchpost_request_seconds",
    "Time from reading a request's head to its answer, by route.",
    ["route"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)
ROWS = Counter("watchpost_rows", "Rows that devices sent, by kind and by what became of them.", ["kind", "outcome"])
SET_ROWS = Histogram(
    "watchpost_set_rows",
    "Rows that shared one statement and one commit, by kind.",
    ["kind"],
    buckets=(1, 2, 5, 10, 20, 50, 100, 200, 500, 1000),
)
DATABASE_ERRORS = Counter("watchpost_database_errors", "Errors of the database, by SQLSTATE.", ["sqlstate"])

# Finding the child of a label costs more than counting in it.
_request = lru_cache(maxsize=1000)(REQUESTS.labels)
_seconds = lru_cache(maxsize=100)(REQUEST_SECONDS.labels)


def answered(route: str | None, method: str, status: int, seconds: float) -> None:
    """Count a request. route: the rule, never the path, which may be anything."""
    _request(route or "none", method, status).inc()
    _seconds(route or "none").observe(seconds)


def stored(kind: str, outcomes: Iterable[str]) -> None:
    """Count the rows of one set after its commit."""
    tally = Tally(outcomes)
    SET_ROWS.labels(kind).observe(tally.total())
    for outcome, amount in tally.items():
        ROWS.labels(kind, outcome).inc(amount)


def database_error(sqlstate: str | None) -> None:
    DATABASE_ERRORS.labels(sqlstate or "none").inc()


def exposition() -> bytes:
    """All of it in Prometheus' text format, version 0.0.4."""
    registry: Any = REGISTRY
    if FOLDER in os.environ:
        registry = CollectorRegistry()
        multiprocess.MultiProcessCollector(registry)
    return bytes(generate_latest(registry))
