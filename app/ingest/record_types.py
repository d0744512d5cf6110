"""The registry of record types: what devices send, each declared once in its file of `app/resources`.

Batches, the OpenAPI examples, retention, metrics and the tests iterate over `RECORD_TYPES`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from app.api.fields import Answer, Schema
from app.auth import Principal
from app.db import Statement
from app.ingest import records
from app.ingest.records import Row
from app.limits.admission import CRITICAL


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class RecordType:
    """One type of record.

    name: its type in a batch, and its label in metrics.
    scope: what a token needs.
    schema: the request body. answer: what is told of a stored row.
    statement: stores rows. duplicate_check: decides on the rows that the statement returns without an outcome.
    table: where the rows are.
    id_field: the field that names a row. time_field: of event types, the field with the client's time.
    example: a request body.
    priority: the share of a worker's slots up to which it is served.
    retention: of event types, the setting with the days that rows are kept.
    is_heartbeat: the answer tells when to send the next.
    in_batch: a batch may hold it.
    build: makes a row of a valid body, where `records.build` does not.
    """

    name: str
    scope: str
    schema: Schema
    answer: Answer
    statement: Statement
    duplicate_check: Statement
    table: str
    id_field: str
    example: dict[str, Any]
    time_field: str | None = None
    priority: float = CRITICAL
    retention: str | None = None
    is_heartbeat: bool = False
    in_batch: bool = True
    build: Callable[[Row, Principal], Row] | None = None

    def __post_init__(self) -> None:
        RECORD_TYPES[self.name] = self

    @property
    def is_event(self) -> bool:
        """Whether its rows are events: kept by time, partitioned by month, deleted by retention."""
        return self.retention is not None

    def row(self, body: Row, principal: Principal) -> Row:
        """The row of a valid body. Raises Problem 400 or 403."""
        if self.build is not None:
            return self.build(body, principal)
        return records.build(body, principal, self.id_field, self.time_field)


# By name, in the order of declaration.
RECORD_TYPES: dict[str, RecordType] = {}


def batch_types() -> dict[str, RecordType]:
    """The record types that a batch may hold, by name, in the order in which every batch stores them."""
    return {name: record_type for name, record_type in RECORD_TYPES.items() if record_type.in_batch}


def event_types() -> list[RecordType]:
    """The record types that are events."""
    return [record_type for record_type in RECORD_TYPES.values() if record_type.is_event]
