"""Prompts that were sent to AI sites."""

from __future__ import annotations

from typing import Any

import marshmallow as ma

from app import fields
from app.auth import require
from app.db import statement
from app.express import express
from app.limits import REPORTS
from app.openapi import example, refusals
from app.requests import Blueprint
from app.writes import Write

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


PROMPT = Write(
    "prompt",
    scope="prompts:write",
    schema=PromptRequest(),
    answer=PromptResponse(),
    statement=statement("prompts/insert_prompts"),
    again=statement("prompts/select_prompts"),
    id="prompt_id",
    time="timestamp",
    share=REPORTS,
)


@blp.route("/prompt", methods=["POST"])
@express(PROMPT)
@require(PROMPT.scope, share=PROMPT.share)
@blp.arguments(PROMPT.schema, example=example("prompt"))
@blp.response(201, PROMPT.answer)
@refusals(PromptResponse, 409)
def capture(prompt: dict[str, Any]) -> Any:
    """Record a prompt."""
    return PROMPT.store(prompt)
