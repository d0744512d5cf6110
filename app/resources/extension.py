"""Reports of whether the browser extension is on."""

from __future__ import annotations

from typing import Any

import marshmallow as ma

from app.api import fields
from app.api.bodies import Blueprint
from app.api.openapi import example, refusals
from app.auth import require
from app.db import statement
from app.ingest.fast_path import express
from app.ingest.record_types import Write
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


EXTENSION_STATUS = Write(
    "extension_status",
    scope="extension:write",
    schema=ExtensionStatusRequest(),
    answer=ExtensionStatusResponse(),
    statement=statement("extension/insert_statuses"),
    again=statement("extension/select_statuses"),
    id="status_id",
    time="reported_at",
    priority=NORMAL,
)


@blp.route("/status", methods=["POST"])
@express(EXTENSION_STATUS)
@require(EXTENSION_STATUS.scope, priority=EXTENSION_STATUS.priority)
@blp.arguments(EXTENSION_STATUS.schema, example=example("extension_status"))
@blp.response(201, EXTENSION_STATUS.answer)
@refusals(ExtensionStatusResponse, 409)
def report(status: dict[str, Any]) -> Any:
    """Record whether the extension is on."""
    return EXTENSION_STATUS.store(status)
