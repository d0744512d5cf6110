"""Batches: what an agent spooled while it was offline."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import marshmallow as ma
from flask import g, jsonify

from app.api import fields, problems
from app.api.bodies import MAX_BATCH, MAX_BATCH_VALUES, Blueprint
from app.api.json_values import MAX_DEPTH, DuplicateKeyDict, violations
from app.api.openapi import refusals
from app.api.schemas import RequestField
from app.api.scopes import WRITE
from app.auth import Principal, principal, require
from app.ingest import pipeline
from app.ingest.record_types import RecordType, batch_types
from app.ingest.records import Row
from app.ingest.writer import writer
from app.limits.admission import NORMAL
from app.limits.rates import limits
from app.resources.devices import DEVICE_HEARTBEAT
from app.resources.prompts import PROMPT
from app.telemetry import metrics

blp = Blueprint("batch", __name__, url_prefix="/api", description="What an agent spooled while it was offline.")

MAX_ITEMS = 1000
# Requests of a device's rate that each item after the first costs.
ITEM_COST = 0.1
EXAMPLE = {
    "items": [{"type": record_type.name, "body": record_type.example} for record_type in (DEVICE_HEARTBEAT, PROMPT)]
}


class Items(RequestField[list[Any]]):
    """1 to 1,000 items, each as it came: a fault in one must not cost the others."""

    default_error_messages = {"invalid": f"Must be a list of 1 to {MAX_ITEMS} items."}

    @property
    def json_schema(self) -> dict[str, Any]:
        return {
            "type": "array",
            "minItems": 1,
            "maxItems": MAX_ITEMS,
            "items": {
                "type": "object",
                "required": ["type", "body"],
                "properties": {
                    "type": {"type": "string", "enum": list(batch_types())},
                    "body": {"type": "object", "description": "As the route of this type takes it."},
                },
            },
        }

    def read(self, value: Any) -> list[Any]:
        if not isinstance(value, list) or not 1 <= len(value) <= MAX_ITEMS:
            raise self.make_error("invalid")
        return value


class BatchRequest(fields.Schema):
    items = Items(required=True)

    max_size = MAX_BATCH
    max_values = MAX_BATCH_VALUES

    def violations(self, value: Any) -> Iterator[str]:
        """What is wrong outside of the items."""
        if not isinstance(value, dict) or not isinstance(value.get("items"), list):
            return violations(value)
        shell = DuplicateKeyDict() if isinstance(value, DuplicateKeyDict) else {}
        shell.update({name: below for name, below in value.items() if name != "items"})
        return violations(shell)


class BatchResult(ma.Schema):
    status = ma.fields.Integer(required=True, validate=ma.validate.OneOf([200, 201, 400, 403, 409]))
    id = ma.fields.String(required=True, allow_none=True, metadata={"description": "Null when the item has none."})
    errors = ma.fields.Dict(
        required=True,
        allow_none=True,
        keys=ma.fields.String(),
        metadata={"description": "As a problem's; null when the item is stored."},
    )
    warnings = ma.fields.List(
        ma.fields.String(), metadata={"description": "Of a stored heartbeat: addresses that could not be read, if any."}
    )


class BatchResponse(ma.Schema):
    results = ma.fields.List(ma.fields.Nested(BatchResult), required=True, metadata={"description": "In order."})


@blp.route("/batch", methods=["POST"])
@require(*WRITE, priority=NORMAL, max_size=MAX_BATCH)
@blp.arguments(BatchRequest(), example=EXAMPLE)
@blp.response(200, BatchResponse())
@refusals()
def replay(batch: dict[str, Any]) -> Any:
    """Record up to 1,000 items of mixed types in one commit, each with its own result."""
    return jsonify(results=_store(batch["items"], principal()))


def _store(items: list[Any], principal: Principal) -> list[dict[str, Any]]:
    """A result for each item, in order; after the commit. Raises Problem 401 for a token that is no longer valid."""
    results: list[dict[str, Any]] = [{}] * len(items)
    rows: dict[RecordType, list[tuple[int, Row]]] = {record_type: [] for record_type in batch_types().values()}
    for index, item in enumerate(items):
        try:
            record_type, row = _row(item, principal)
            rows[record_type].append((index, row))
        except problems.Problem as problem:
            results[index] = _refused(problem, _item_id(item))
    limits.charge(principal.subject, g.slots.priority, (len(items) - 1) * ITEM_COST)
    batch = [(record_type, indexed) for record_type, indexed in rows.items() if indexed]
    answers = writer.write_batch([(record_type, [row for _, row in indexed]) for record_type, indexed in batch])
    for (record_type, indexed), stored in zip(batch, answers, strict=True):
        for (index, row), answer in zip(indexed, stored, strict=True):
            results[index] = _result(answer, row, row[record_type.id_field])
    return results


def _row(item: Any, principal: Principal) -> tuple[RecordType, Row]:
    """The record type of an item, and its row. Raises Problem 400 or 403."""
    # An item nests its body one level deeper than a POST of its own.
    for message in violations(item, MAX_DEPTH + 1):
        raise problems.invalid({"json": {"_schema": [message]}})
    record_type = _record_type(item)
    if record_type is None:
        raise problems.invalid({"json": {"type": [f"Must be one of: {', '.join(batch_types())}."]}})
    if not principal.allows(record_type.scope):
        detail = f"The token lacks the scope {record_type.scope}."
        raise problems.Problem(403, "insufficient-scope", "Forbidden", detail)
    try:
        return record_type, record_type.row(record_type.schema.load(item.get("body")), principal)
    except ma.ValidationError as error:
        raise problems.invalid({"json": error.messages}) from None


def _record_type(item: Any) -> RecordType | None:
    name = item.get("type") if isinstance(item, dict) else None
    return batch_types().get(name) if isinstance(name, str) else None


def _item_id(item: Any) -> str | None:
    """The id of a refused item, so that its sender finds it again; None when it has no valid one."""
    record_type = _record_type(item)
    body = item.get("body") if record_type else None
    if record_type is None or not isinstance(body, dict) or not isinstance(body.get(record_type.id_field), str):
        return None
    try:
        return str(record_type.schema.load_fields[record_type.id_field].deserialize(body[record_type.id_field]))
    except ma.ValidationError:
        return None


def _result(answer: Any, row: Row, id_: str) -> dict[str, Any]:
    """The result of an item whose row was sent to the database. Raises Problem 401."""
    try:
        _, status = pipeline.accepted(answer)
    except Exception as error:
        problem = problems.of(error)
        if problem.status == 401:
            # Of all items alike: the client needs another token, or to register again.
            raise problem from None
        return _refused(problem, id_)
    result = {"status": status, "id": id_, "errors": None}
    if row.get("warnings"):
        result["warnings"] = row["warnings"]
    return result


def _refused(problem: problems.Problem, id_: str | None) -> dict[str, Any]:
    metrics.refused(problem.name, problem.status)
    errors = problem.errors or {"json": {"_schema": [problem.detail]}}
    return {"status": problem.status, "id": id_, "errors": problems.bounded(errors)}
