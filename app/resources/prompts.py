"""Prompts that were sent to AI sites."""

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
from app.limits.admission import NORMAL

blp = Blueprint("prompts", __name__, url_prefix="/api", description="Prompts that were sent to AI sites.")


class PromptRequest(fields.Schema):
    device_id = fields.Identifier(required=True)
    instance_id = fields.Identifier(required=True, metadata={"description": "Need not be registered yet."})
    site = fields.Text(required=True, empty=False)
    url = fields.Text(required=True, empty=False)
    prompt = fields.Text(required=True)
    timestamp = fields.EpochMilliseconds(required=True)
    prompt_id = fields.Uuid(load_default=None, metadata={"description": "Derived from the content when left out."})
    browser_name = fields.Text(load_default=None)
    browser_version = fields.Text(load_default=None)
    profile_name = fields.Text(load_default=None)
    username = fields.Text(load_default=None)
    page_title = fields.Text(load_default=None)
    conversation_id = fields.Text(load_default=None)
    model = fields.Text(load_default=None)
    action = fields.SnakeCase("allowed", "warned", "blocked", "redacted", load_default=None)
    metadata = fields.Json(dict, load_default=None)


class PromptResponse(fields.Answer):
    prompt_id = ma.fields.UUID(required=True)
    device_id = ma.fields.String(required=True)
    instance_id = ma.fields.String(required=True)
    timestamp = ma.fields.Integer(required=True)
    created_at = fields.Time(required=True)


PROMPT = RecordType(
    name="prompt",
    table="prompts",
    example={
        "device_id": DEVICE_ID,
        "instance_id": INSTANCE_ID,
        "site": "chatgpt.com",
        "url": "https://chatgpt.com/c/1",
        "prompt": "Summarise the attached minutes.",
        "timestamp": TIME_MS,
        "prompt_id": "0199a3b0-7c1e-7a53-9d5b-3f1c2f0e8a11",
        "model": "gpt-5",
        "action": "allowed",
        "metadata": {"attachments": 1},
    },
    retention="prompts_days",
    scope="prompts:write",
    schema=PromptRequest(),
    answer=PromptResponse(),
    statement=statement("prompts/insert_prompts"),
    duplicate_check=statement("prompts/select_prompts"),
    id_field="prompt_id",
    time_field="timestamp",
    priority=NORMAL,
)


@blp.route("/prompt", methods=["POST"])
@fast_path(PROMPT)
@require(PROMPT.scope, priority=PROMPT.priority)
@blp.arguments(PROMPT.schema, example=PROMPT.example)
@blp.response(201, PROMPT.answer)
@refusals(PromptResponse, 409)
def capture(prompt: dict[str, Any]) -> Any:
    """Record a prompt."""
    return pipeline.store(PROMPT, prompt)
