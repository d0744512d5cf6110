"""Browser instances: one for each browser profile that has the extension."""

from __future__ import annotations

from typing import Any

import marshmallow as ma

from app import fields
from app.auth import require
from app.db import statement
from app.express import express
from app.limits import HEARTBEATS, REPORTS
from app.openapi import example, refusals
from app.requests import Blueprint
from app.writes import Write

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

BROWSER_REGISTER = Write(
    "browser_register",
    scope="browsers:write",
    schema=RegisterBrowserRequest(),
    answer=RegisterBrowserResponse(),
    statement=UPSERT_INSTANCES,
    again=SETTLE_CLAIMS,
    id="instance_id",
    share=REPORTS,
)
BROWSER_HEARTBEAT = Write(
    "browser_heartbeat",
    scope="browsers:write",
    schema=BrowserHeartbeatRequest(),
    answer=BrowserHeartbeatResponse(),
    statement=UPSERT_INSTANCES,
    again=SETTLE_CLAIMS,
    id="instance_id",
    share=HEARTBEATS,
    beats=True,
)


@blp.route("/register", methods=["POST"])
@express(BROWSER_REGISTER)
@require(BROWSER_REGISTER.scope, share=BROWSER_REGISTER.share)
@blp.arguments(BROWSER_REGISTER.schema, example=example("browser_register"))
@blp.response(201, BROWSER_REGISTER.answer)
@refusals(RegisterBrowserResponse, 409)
def register(instance: dict[str, Any]) -> Any:
    """Register a browser instance, or update its metadata."""
    return BROWSER_REGISTER.store(instance)


@blp.route("/heartbeat", methods=["POST"])
@express(BROWSER_HEARTBEAT)
@require(BROWSER_HEARTBEAT.scope, share=BROWSER_HEARTBEAT.share)
@blp.arguments(BROWSER_HEARTBEAT.schema, example=example("browser_heartbeat"))
@blp.response(201, BROWSER_HEARTBEAT.answer)
@refusals(BrowserHeartbeatResponse, 409)
def heartbeat(instance: dict[str, Any]) -> Any:
    """Record a browser instance's heartbeat."""
    return BROWSER_HEARTBEAT.store(instance)
