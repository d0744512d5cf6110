"""Batches: what an agent spooled while it was offline."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import marshmallow as ma
from flask import jsonify

from app import fields, metrics, problems
from app.auth import AccessToken, require, token
from app.db import db
from app.limits import REPORTS
from app.openapi import example, refusals
from app.requests import DEEPEST, LARGEST_BATCH, Blueprint, FlawedDict, flaws
from app.resources.browsers import BROWSER_HEARTBEAT, BROWSER_REGISTER
from app.resources.compliance import COMPLIANCE_EVENT
from app.resources.devices import DEVICE_HEARTBEAT
from app.resources.extension import EXTENSION_STATUS
from app.resources.prompts import PROMPT
from app.scopes import WRITE
from app.writes import Write, accepted

blp = Blueprint("batch", __name__, url_prefix="/api", description="What an agent spooled while it was offline.")

MOST_ITEMS = 1000
# In the order in which all batches store them, for `Database.write_all`.
KINDS = {
    write.type: write
    for write in (
        DEVICE_HEARTBEAT,
        BROWSER_REGISTER,
        BROWSER_HEARTBEAT,
        PROMPT,
        EXTENSION_STATUS,
        COMPLIANCE_EVENT,
    )
}


class Items(ma.fields.Field[list[Any]]):
    """1 to 1,000 items, each as it came: what is wrong with one must not cost the others."""

    default_error_messages = {"invalid": f"Must be a list of 1 to {MOST_ITEMS} items."}
    json_schema = {
        "type": "array",
        "minItems": 1,
        "maxItems": MOST_ITEMS,
        "items": {
            "type": "object",
            "required": ["type", "body"],
            "properties": {
                "type": {"type": "string", "enum": list(KINDS)},
                "body": {"type": "object", "description": "As the route of this type takes it."},
            },
        },
    }

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> list[Any]:
        if not isinstance(value, list) or not 1 <= len(value) <= MOST_ITEMS:
            raise self.make_error("invalid")
        return value


class BatchRequest(fields.Schema):
    items = Items(required=True)

    largest = LARGEST_BATCH

    def flaws(self, value: Any) -> Iterator[str]:
        """What is wrong outside of the items."""
        if not isinstance(value, dict) or not isinstance(value.get("items"), list):
            return flaws(value)
        shell = FlawedDict() if isinstance(value, FlawedDict) else {}
        shell.update({name: below for name, below in value.items() if name != "items"})
        return flaws(shell)


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
@require(*WRITE, share=REPORTS, largest=LARGEST_BATCH)
@blp.arguments(BatchRequest(), example=example("batch"))
@blp.response(200, BatchResponse())
@refusals()
def replay(batch: dict[str, Any]) -> Any:
    """Record up to 1,000 items of mixed kinds in one commit, each with its own result."""
    items, speaker = batch["items"], token()
    results: list[dict[str, Any]] = [{}] * len(items)
    sets: dict[Write, list[tuple[int, dict[str, Any]]]] = {write: [] for write in KINDS.values()}
    for index, item in enumerate(items):
        try:
            write, row = _row(item, speaker)
            sets[write].append((index, row))
        except problems.Problem as problem:
            results[index] = _refused(problem, None)
    filled = [(write, rows) for write, rows in sets.items() if rows]
    stored = db.write_all([(write, [row for _, row in rows]) for write, rows in filled])
    for (write, rows), answers in zip(filled, stored, strict=True):
        for (index, row), answer in zip(rows, answers, strict=True):
            try:
                if isinstance(answer, problems.Problem):
                    raise answer
                _, status = accepted(answer)
                results[index] = {"status": status, "id": row[write.id], "errors": None}
                if row.get("warnings"):
                    results[index]["warnings"] = row["warnings"]
            except problems.Problem as problem:
                if problem.status == 401:
                    # Of all items alike: the client needs another token, or to register again.
                    raise
                results[index] = _refused(problem, row[write.id])
    return jsonify(results=results)


def _row(item: Any, speaker: AccessToken) -> tuple[Write, dict[str, Any]]:
    """What kind of row an item is, and the row. Raises Problem 400 or 403."""
    # An item nests its body one level deeper than a POST of its own.
    for message in flaws(item, DEEPEST + 1):
        raise problems.invalid({"json": {"_schema": [message]}})
    type_ = item.get("type") if isinstance(item, dict) else None
    write = KINDS.get(type_) if isinstance(type_, str) else None
    if write is None:
        raise problems.invalid({"json": {"type": [f"Must be one of: {', '.join(KINDS)}."]}})
    if write.scope not in speaker.scopes:
        raise problems.Problem(403, "insufficient-scope", "Forbidden", f"The token lacks the scope {write.scope}.")
    try:
        return write, write.row(write.schema.load(item.get("body")), speaker)
    except ma.ValidationError as error:
        raise problems.invalid({"json": error.messages}) from None


def _refused(problem: problems.Problem, id_: str | None) -> dict[str, Any]:
    metrics.refused(problem.name, problem.status)
    errors = problem.errors or {"json": {"_schema": [problem.detail]}}
    return {"status": problem.status, "id": id_, "errors": problems.bounded(errors)}
