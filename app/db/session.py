"""One connection for background work, beside the pool of the requests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg.rows import dict_row

from app.db.statements import Statement

Run = Callable[..., list[dict[str, Any]]]


@contextmanager
def session(url: str) -> Iterator[Run]:
    """Connect, and yield what runs a statement in a transaction of its own and returns its rows. Raises DriverError.

    Nothing is prepared: a pooler may give each transaction another connection.
    """
    with psycopg.connect(
        url, autocommit=True, row_factory=dict_row, connect_timeout=5, prepare_threshold=None
    ) as connection:

        def run(statement: Statement, **parameters: Any) -> list[dict[str, Any]]:
            return connection.execute(statement.text, parameters).fetchall()

        yield run
