"""Compliance events: tampering, blocked prompts."""

from __future__ import annotations

from typing import Any

import marshmallow as ma

from app import fields
from app.auth import require
from app.db import statement
from app.express import express
from app.openapi import example, refusals
from app.requests import Blueprint
from app.writes import Write

blp = Blueprint("compliance", __name__, url_prefix="/api/compliance", description="Tampering, blocked prompts.")


class ComplianceEventRequest(fields.Schema):
    device_id = fields.Identifier(required=True)
    event_type = fields.SnakeCase("tamper_detected", "prompt_blocked", required=True)
    severity = fields.Choice("low", "medium", "high", "critical", required=True)
    instance_id = fields.Identifier(load_default=None)
    event_id = fields.Uuid(load_default=None, metadata={"description": "Derived from the content when left out."})
    detected_at = fields.EpochMilliseconds(load_default=None)
    user_context = fields.Json(dict, str, load_default=None)
    details = fields.Json(dict, load_default=None)


class ComplianceEventResponse(fields.Answer):
    event_id = ma.fields.UUID(required=True)
    device_id = ma.fields.String(required=True)
    instance_id = ma.fields.String(allow_none=True)
    event_type = ma.fields.String(required=True)
    severity = ma.fields.String(required=True)
    detected_at = ma.fields.Integer(required=True)
    created_at = fields.Time(required=True)


COMPLIANCE_EVENT = Write(
    "compliance_event",
    scope="compliance:write",
    schema=ComplianceEventRequest(),
    answer=ComplianceEventResponse(),
    statement=statement("compliance/insert_events"),
    again=statement("compliance/select_events"),
    id="event_id",
    time="detected_at",
)


@blp.route("/event", methods=["POST"])
@express(COMPLIANCE_EVENT)
@require(COMPLIANCE_EVENT.scope, share=COMPLIANCE_EVENT.share)
@blp.arguments(COMPLIANCE_EVENT.schema, example=example("compliance_event"))
@blp.response(201, COMPLIANCE_EVENT.answer)
@refusals(ComplianceEventResponse, 409)
def report(event: dict[str, Any]) -> Any:
    """Record a compliance event."""
    return COMPLIANCE_EVENT.store(event)
