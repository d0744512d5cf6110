"""Read-only connections that find out what each role may do."""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg import sql
from psycopg.rows import dict_row

from app.db import plans
from app.db.statements import statement

Connection = psycopg.Connection[dict[str, Any]]


def connect(url: str) -> Connection:
    """A connection whose transactions are read-only. Raises DriverError."""
    connection: Connection = psycopg.connect(
        url, autocommit=True, row_factory=dict_row, options="-c default_transaction_read_only=on -c lock_timeout=1s"
    )
    return connection


def as_role(urls: list[str], role: str) -> Connection | None:
    """A connection that is this role, from the first of the addresses that gives one."""
    for url in urls:
        connection = connect(url)
        try:
            connection.execute(sql.SQL("SET ROLE {}").format(sql.Identifier(role)))
            return connection
        # There is no such role, or this one may not become it.
        except (psycopg.errors.InvalidParameterValue, psycopg.errors.InsufficientPrivilege):
            connection.close()
    return None


def plan(connection: Connection, name: str) -> str | None:
    """The plan of a statement, if this connection's role may run it."""
    try:
        return str(plans.explain(connection, statement(name), plans.examples(), True, "COSTS ON"))
    except psycopg.errors.InsufficientPrivilege:
        return None
