"""Build the row of a valid body: whose it is, and the id and the time that its client left out."""

from __future__ import annotations

import hashlib
import json
import time
import uuid
from typing import Any

from app.api import problems
from app.api.fields import is_plausible, uuid7_time
from app.auth import Principal

Row = dict[str, Any]

_canonical = json.JSONEncoder(ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode


def build(body: Row, principal: Principal, id_field: str, time_field: str | None) -> Row:
    """The row of a body, with the principal's device and key; of an event also its id and its time.

    Raises Problem 403 for another device's body, 400 for a UUIDv7 with an implausible time.
    """
    if body.get("device_id") not in (None, principal.subject):
        raise problems.other_device()
    body["device_id"], body["key_thumbprint"] = principal.subject, principal.key_thumbprint
    if time_field is not None:
        _identify(body, id_field, time_field)
    return body


def _identify(row: Row, id_field: str, time_field: str) -> None:
    """Give an event the time and the id that its client left out, so that the same report is the same row.

    A report without a client time gets the server's and can't be recognised when it is repeated, unless its id is a
    UUIDv7, which carries one.
    """
    if row[time_field] is None and row[id_field] is not None:
        row[time_field] = uuid7_time(row[id_field])
        if row[time_field] is not None and not is_plausible(row[time_field]):
            message = "The time in this UUIDv7 is not from 2015-01-01 to 24 hours ahead."
            raise problems.invalid({"json": {id_field: [message]}})
    if row[time_field] is None:
        row[time_field] = int(time.time() * 1000)
        # Two reports with the same content in one millisecond are two rows.
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
