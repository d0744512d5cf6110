"""What a write is: a checked body, made a row, stored by one `.sql` file, answered after the commit.

The view of a single POST, its short way (`app/ingest/fast_path.py`) and an item of a batch go the same way.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
import uuid
from typing import Any

from app.api import problems
from app.api.fields import Answer, Schema, is_plausible, uuid7_time
from app.auth import Principal, token
from app.db import Database, Statement, db
from app.limits.admission import CRITICAL

_canonical = json.JSONEncoder(ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode

STATUS = {"created": 201, "updated": 200, "duplicate": 200}
Row = dict[str, Any]


@dataclasses.dataclass(frozen=True, eq=False)
class Write:
    """One kind of row that devices send.

    type: its name in a batch. scope: what a token needs. schema: what a body must be. answer: what is told of a stored
    row. statement: stores a set of rows. again: decides on the rows that the statement can't decide on. id: the field
    that names a row. time: of events, the field that holds the client's time. share: of a worker's capacity, up to
    which it is served. beats: whether it tells when to send the next.
    """

    type: str
    scope: str
    schema: Schema
    answer: Answer
    statement: Statement
    again: Statement
    id: str
    time: str | None = None
    priority: float = CRITICAL
    beats: bool = False

    def row(self, body: Row, principal: Principal) -> Row:
        """Make the row of a valid body. Raises Problem 403 for another device's, 400 for a UUIDv7 of a wrong time."""
        if body.get("device_id") not in (None, principal.subject):
            raise problems.other_device()
        body["device_id"], body["key_thumbprint"] = principal.subject, principal.key_thumbprint
        if self.time is not None:
            _identify(body, self.id, self.time)
        return body

    def store(self, body: Row) -> tuple[Row, int]:
        """Store one row; return what is stored and the status. Raises Problem 403, 409, 503."""
        return self.store_for(body, token(), db)

    def store_for(self, body: Row, principal: Principal, database: Database) -> tuple[Row, int]:
        """The same, outside of Flask's request."""
        stored, status = accepted(database.write(self, self.row(body, principal)))
        if self.beats:
            stored["server_time"] = int(time.time() * 1000)
            stored["heartbeat_interval_s"] = database.settings.heartbeat_seconds
        return stored, status


def accepted(stored: Row) -> tuple[Row, int]:
    """Answer and status of a row that is stored, or the Problem that says why it is not."""
    status = STATUS.get(stored["outcome"])
    if status is None:
        raise problems.refused(stored["outcome"])
    return stored, status


def _identify(row: Row, id_field: str, time_field: str) -> None:
    """Give an event the time and the id that its client left out, so that the same report is the same row.

    Without a client's time a report gets the server's and can't be recognised when it comes again, unless its id is a
    UUIDv7, which carries one.
    """
    if row[time_field] is None and row[id_field] is not None:
        row[time_field] = uuid7_time(row[id_field])
        if row[time_field] is not None and not is_plausible(row[time_field]):
            message = "The time in this UUIDv7 is not from 2015-01-01 to 24 hours ahead."
            raise problems.invalid({"json": {id_field: [message]}})
    if row[time_field] is None:
        row[time_field] = int(time.time() * 1000)
        # Of two reports in one millisecond with the same content neither is the other's repeat.
        row[id_field] = row[id_field] or str(uuid.uuid4())
    if row[id_field] is None:
        row[id_field] = _content_id(
            {name: value for name, value in row.items() if value is not None and name != "key_thumbprint"}
        )


def _content_id(content: Row) -> str:
    """A UUIDv8 (RFC 9562, section 5.8) of the first 122 bits of the content's SHA-256."""
    digest = hashlib.sha256(_canonical(content).encode()).hexdigest()
    variant = "89ab"[int(digest[16], 16) & 3]
    return f"{digest[:8]}-{digest[8:12]}-8{digest[13:16]}-{variant}{digest[17:20]}-{digest[20:32]}"
