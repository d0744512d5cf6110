"""Browser instances: one for each browser profile that has the extension."""

from __future__ import annotations

from typing import Any

import marshmallow as ma

from app.api import fields
from app.api.bodies import Blueprint
from app.api.openapi import refusals
from app.api.samples import DEVICE_ID, INSTANCE_ID, TIME_MS
from app.auth import require
from app.db import statement
from app.ingest import pipeline
from app.ingest.fast_path import fast_path
from app.ingest.record_types import RecordType
from app.limits.admission import LOW, NORMAL

blp = Blueprint("browsers", __name__, url_prefix="/api/browsers", description="Browser profiles with the extension.")


class RegisterBrowserRequest(fields.Schema):
    instance_id = fields.Identifier(required=True)
    device_id = fields.Identifier(required=True)
    browser_name = fields.MetadataText(required=True)
    browser_version = fields.MetadataText(load_default=None)
    profile_name = fields.MetadataText(load_default=None)
    profile_path = fields.MetadataText(load_default=None)
    extension_id = fields.MetadataText(load_default=None)
    extension_version = fields.MetadataText(load_default=None)
    discovered_at = fields.EpochMilliseconds(load_default=None, metadata={"description": "The earliest counts."})
    observed_at = fields.EpochMilliseconds(
        load_default=None, metadata={"description": "Metadata observed then does not overwrite newer metadata."}
    )


class BrowserHeartbeatRequest(RegisterBrowserRequest):
    device_id = fields.Identifier(load_default=None, metadata={"description": "The token's; taken from there."})
    browser_name = fields.MetadataText(load_default=None)

    def load(self, data: Any, **kwargs: Any) -> Any:
        """As a registration, marked for the statement that stores both."""
        return {**super().load(data, **kwargs), "is_heartbeat": True}


class RegisterBrowserResponse(fields.Answer):
    instance_id = ma.fields.String(required=True)
    device_id = ma.fields.String(required=True)
    discovered_at = ma.fields.Integer(allow_none=True)
    created_at = fields.Time(required=True)
    last_seen = fields.Time(allow_none=True)


class BrowserHeartbeatResponse(fields.Answer):
    instance_id = ma.fields.String(required=True)
    device_id = ma.fields.String(required=True)
    last_seen = fields.Time(required=True)
    server_time = ma.fields.Integer(required=True, metadata={"description": "Epoch milliseconds."})
    heartbeat_interval_s = ma.fields.Integer(required=True, metadata={"description": "When to send the next."})


UPSERT_INSTANCES = statement("browsers/upsert_instances")
SETTLE_CLAIMS = statement("browsers/settle_claims")

BROWSER_REGISTER = RecordType(
    name="browser_register",
    table="browser_instances",
    example={
        "instance_id": INSTANCE_ID,
        "device_id": DEVICE_ID,
        "browser_name": "chrome",
        "browser_version": "143.0",
        "profile_name": "Work",
        "extension_version": "2.4.0",
        "discovered_at": TIME_MS,
    },
    scope="browsers:write",
    schema=RegisterBrowserRequest(),
    answer=RegisterBrowserResponse(),
    statement=UPSERT_INSTANCES,
    duplicate_check=SETTLE_CLAIMS,
    id_field="instance_id",
    priority=NORMAL,
)
BROWSER_HEARTBEAT = RecordType(
    name="browser_heartbeat",
    table="browser_instances",
    example={"instance_id": INSTANCE_ID, "browser_version": "143.1"},
    scope="browsers:write",
    schema=BrowserHeartbeatRequest(),
    answer=BrowserHeartbeatResponse(),
    statement=UPSERT_INSTANCES,
    duplicate_check=SETTLE_CLAIMS,
    id_field="instance_id",
    priority=LOW,
    is_heartbeat=True,
)


@blp.route("/register", methods=["POST"])
@fast_path(BROWSER_REGISTER)
@require(BROWSER_REGISTER.scope, priority=BROWSER_REGISTER.priority)
@blp.arguments(BROWSER_REGISTER.schema, example=BROWSER_REGISTER.example)
@blp.response(201, BROWSER_REGISTER.answer)
@refusals(RegisterBrowserResponse, 409)
def register(instance: dict[str, Any]) -> Any:
    """Register a browser instance, or update its metadata."""
    return pipeline.store(BROWSER_REGISTER, instance)


@blp.route("/heartbeat", methods=["POST"])
@fast_path(BROWSER_HEARTBEAT)
@require(BROWSER_HEARTBEAT.scope, priority=BROWSER_HEARTBEAT.priority)
@blp.arguments(BROWSER_HEARTBEAT.schema, example=BROWSER_HEARTBEAT.example)
@blp.response(201, BROWSER_HEARTBEAT.answer)
@refusals(BrowserHeartbeatResponse, 409)
def heartbeat(instance: dict[str, Any]) -> Any:
    """Record a browser instance's heartbeat."""
    return pipeline.store(BROWSER_HEARTBEAT, instance)
