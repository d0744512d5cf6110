"""Compliance events: tampering, blocked prompts."""

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


COMPLIANCE_EVENT = RecordType(
    name="compliance_event",
    table="compliance_events",
    example={
        "device_id": DEVICE_ID,
        "event_type": "tamper_detected",
        "severity": "high",
        "instance_id": INSTANCE_ID,
        "detected_at": TIME_MS,
        "user_context": "anna",
        "details": {"file": "manifest.json"},
    },
    retention="compliance_events_days",
    scope="compliance:write",
    schema=ComplianceEventRequest(),
    answer=ComplianceEventResponse(),
    statement=statement("compliance/insert_events"),
    duplicate_check=statement("compliance/select_events"),
    id_field="event_id",
    time_field="detected_at",
)


@blp.route("/event", methods=["POST"])
@fast_path(COMPLIANCE_EVENT)
@require(COMPLIANCE_EVENT.scope, priority=COMPLIANCE_EVENT.priority)
@blp.arguments(COMPLIANCE_EVENT.schema, example=COMPLIANCE_EVENT.example)
@blp.response(201, COMPLIANCE_EVENT.answer)
@refusals(ComplianceEventResponse, 409)
def report(event: dict[str, Any]) -> Any:
    """Record a compliance event."""
    return pipeline.store(COMPLIANCE_EVENT, event)
