"""Reports of whether the browser extension is on."""

from __future__ import annotations

from typing import Any

import marshmallow as ma

from app.api import fields
from app.api.bodies import Blueprint
from app.api.openapi import refusals
from app.api.samples import INSTANCE_ID, TIME_MS
from app.auth import require
from app.db import statement
from app.ingest import pipeline
from app.ingest.fast_path import fast_path
from app.ingest.record_types import RecordType
from app.limits.admission import NORMAL

blp = Blueprint("extension", __name__, url_prefix="/api/extension", description="Whether the extension is on.")


class ExtensionStatusRequest(fields.Schema):
    instance_id = fields.Identifier(required=True)
    status = fields.Choice("enabled", "disabled", required=True)
    status_id = fields.Uuid(load_default=None, metadata={"description": "Derived from the content when left out."})
    reported_at = fields.EpochMilliseconds(load_default=None)
    reported_by = fields.Identifier(load_default=None, metadata={"description": "`agent`, `extension` or any id."})
    device_id = fields.Identifier(load_default=None, metadata={"description": "The token's; taken from there."})
    metadata = fields.Json(dict, load_default=None)


class ExtensionStatusResponse(fields.Answer):
    status_id = ma.fields.UUID(required=True)
    device_id = ma.fields.String(required=True)
    instance_id = ma.fields.String(required=True)
    status = ma.fields.String(required=True)
    reported_at = ma.fields.Integer(required=True)
    created_at = fields.Time(required=True)


EXTENSION_STATUS = RecordType(
    name="extension_status",
    table="extension_status",
    example={
        "instance_id": INSTANCE_ID,
        "status": "disabled",
        "reported_at": TIME_MS,
        "reported_by": "agent",
        "metadata": {"reason": "policy"},
    },
    retention="extension_status_days",
    scope="extension:write",
    schema=ExtensionStatusRequest(),
    answer=ExtensionStatusResponse(),
    statement=statement("extension/insert_statuses"),
    duplicate_check=statement("extension/select_statuses"),
    id_field="status_id",
    time_field="reported_at",
    priority=NORMAL,
)


@blp.route("/status", methods=["POST"])
@fast_path(EXTENSION_STATUS)
@require(EXTENSION_STATUS.scope, priority=EXTENSION_STATUS.priority)
@blp.arguments(EXTENSION_STATUS.schema, example=EXTENSION_STATUS.example)
@blp.response(201, EXTENSION_STATUS.answer)
@refusals(ExtensionStatusResponse, 409)
def report(status: dict[str, Any]) -> Any:
    """Record whether the extension is on."""
    return pipeline.store(EXTENSION_STATUS, status)
