"""POST /api/compliance/event."""

from __future__ import annotations

import pytest

from tests.support.contracts import TimelessReportContract
from tests.support.values import (
    HOSTILE,
    NESTED,
    NOT_IDENTIFIER,
    NOT_OBJECT,
    NOT_SNAKE_CASE,
    NOT_UUID,
    not_choice,
    stored_text,
)


class TestComplianceEvent(TimelessReportContract):
    path = "/api/compliance/event"
    scope = "compliance:write"
    table = "compliance_events"
    id = "event_id"
    time = "detected_at"
    fields = {
        "instance_id": "chrome-1",
        "event_type": "tamper_detected",
        "severity": "high",
        "user_context": {"user": "alice", "groups": ["sales"]},
        "details": {"file": "manifest.json", "changed": True},
    }
    required = ("device_id", "event_type", "severity")
    objects = ("user_context", "details")
    wrong = {
        "device_id": NOT_IDENTIFIER,
        "instance_id": NOT_IDENTIFIER,
        "event_id": NOT_UUID,
        "event_type": NOT_SNAKE_CASE,
        "severity": not_choice("low", "medium", "high", "critical"),
        "user_context": [0, 1.5, True, False, [], ["alice"], [{}]],
        "details": NOT_OBJECT,
    }
    other = {
        "instance_id": "chrome-2",
        "event_type": "prompt_blocked",
        "severity": "low",
        "user_context": "alice",
        "details": {},
    }

    @pytest.mark.parametrize("severity", ["low", "medium", "high", "critical"])
    def test_every_severity_is_stored(self, post, stored, body, severity):
        assert post({**body, "severity": severity}).status_code == 201
        assert stored()[0]["severity"] == severity

    @pytest.mark.parametrize("event_type", ["t", "t" * 64, "prompt_blocked", "stage_2", "a__b_"])
    def test_an_event_type_is_any_lower_snake_case(self, post, stored, body, event_type):
        assert post({**body, "event_type": event_type}).status_code == 201
        assert stored()[0]["event_type"] == event_type

    @pytest.mark.parametrize("user_context", ["alice", "", "true", "{}", NESTED, *HOSTILE])
    def test_the_user_context_is_text_or_an_object(self, post, stored, body, user_context):
        body["user_context"] = user_context
        assert [post(body).status_code, post(body).status_code] == [201, 200]
        expected = stored_text(user_context) if isinstance(user_context, str) else user_context
        assert [row["user_context"] for row in stored()] == [expected]

    def test_an_event_may_be_about_no_instance(self, post, stored, body):
        del body["instance_id"]
        assert post(body).json["instance_id"] is None
        assert stored()[0]["instance_id"] is None
