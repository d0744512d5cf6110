"""POST /api/prompt."""

from __future__ import annotations

import json

import pytest

from tests.support.contracts import ReportContract
from tests.support.values import NOT_IDENTIFIER, NOT_OBJECT, NOT_SNAKE_CASE, NOT_TEXT, NOT_UUID


class TestPrompt(ReportContract):
    path = "/api/prompt"
    scope = "prompts:write"
    table = "prompts"
    id = "prompt_id"
    time = "timestamp"
    fields = {
        "instance_id": "chrome-1",
        "site": "chatgpt.com",
        "url": "https://chatgpt.com/c/1?q=a%20b",
        "prompt": "Summarise the minutes,\nplease.",
        "browser_name": "chrome",
        "browser_version": "143.0.1",
        "profile_name": "Work",
        "username": "alice@example.com",
        "page_title": "ChatGPT",
        "conversation_id": "c-1",
        "model": "gpt-5",
        "action": "warned",
        "metadata": {"length": 30, "tags": ["minutes"], "pasted": False},
    }
    required = ("device_id", "instance_id", "site", "url", "prompt", "timestamp")
    texts = (
        "site",
        "url",
        "prompt",
        "browser_name",
        "browser_version",
        "profile_name",
        "username",
        "page_title",
        "conversation_id",
        "model",
    )
    objects = ("metadata",)
    wrong = {
        "device_id": NOT_IDENTIFIER,
        "instance_id": NOT_IDENTIFIER,
        "prompt_id": NOT_UUID,
        "action": NOT_SNAKE_CASE,
        "metadata": NOT_OBJECT,
        **dict.fromkeys(texts, NOT_TEXT),
    }
    other = {
        "instance_id": "chrome-2",
        "action": "blocked",
        "metadata": {"length": 31},
        **dict.fromkeys(texts, "something else"),
    }

    @pytest.mark.parametrize("action", ["allowed", "warned", "blocked", "redacted", "t", "t" * 64, "asked_2", "a__b_"])
    def test_what_the_extension_did_is_stored(self, post, stored, body, action):
        assert post({**body, "action": action}).status_code == 201
        assert stored()[0]["action"] == action

    def test_a_prompt_comes_before_its_instance_is_registered(self, post, stored, body, rows):
        assert rows("SELECT instance_id FROM browser_instances") == []
        assert post(body).status_code == 201
        assert stored()[0]["instance_id"] == body["instance_id"]

    @pytest.mark.parametrize("character", ["x", "\xe9", "\u65e5"])
    def test_a_prompt_may_have_262144_characters(self, client, headers, stored, body, character):
        def post(length):
            text = json.dumps({**body, "prompt": character * length}, ensure_ascii=False)
            return client.post(self.path, data=text.encode(), content_type="application/json", headers=headers)

        too_long = post(262_145)
        assert too_long.status_code == 400
        assert list(too_long.json["errors"]["json"]) == ["prompt"]
        assert post(262_144).status_code == 201
        assert [row["prompt"] for row in stored()] == [character * 262_144]

    def test_a_prompt_made_of_broken_characters_alone_is_kept(self, post, stored, body):
        assert post({**body, "prompt": "\x00\udfff"}).status_code == 201
        assert stored()[0]["prompt"] == "\ufffd\ufffd"

    def test_a_conflict_does_not_tell_what_is_stored(self, post, body):
        post({**body, "prompt": "the first secret"})
        answer = post({**body, "prompt": "the second secret"})
        assert answer.status_code == 409
        assert "secret" not in answer.text
