"""One record from its valid body to its answer: build, commit, answer. Both entrances end here."""

from __future__ import annotations

import time
from typing import Any

from flask import g

from app.api import problems
from app.auth import Principal, principal
from app.ingest.record_types import RecordType
from app.ingest.records import Row
from app.ingest.writer import Writer, writer

STATUS = {"created": 201, "updated": 200, "duplicate": 200}


def store(record_type: RecordType, body: Row) -> tuple[Row, int]:
    """Store the body of the current request; return the stored row and the status. Raises Problem, DatabaseError."""
    return store_for(record_type, body, principal(), writer, is_large=g.slots.is_large)


def store_for(
    record_type: RecordType, body: Row, principal: Principal, writer: Writer, is_large: bool = False
) -> tuple[Row, int]:
    """The same outside of Flask's request. is_large: the row is stored apart from others."""
    row = record_type.row(body, principal)
    stored, status = accepted(writer.write(record_type, row, is_large))
    if record_type.is_heartbeat:
        stored["server_time"] = int(time.time() * 1000)
        stored["heartbeat_interval_s"] = writer.settings.heartbeat_seconds
    return stored, status


def accepted(stored: Any) -> tuple[Row, int]:
    """Row and status of a writer's answer. Raises Problem when the row is not stored, or the answer's error."""
    if isinstance(stored, Exception):
        raise stored
    status = STATUS.get(stored["outcome"])
    if status is None:
        raise problems.refused(stored["outcome"])
    return stored, status
