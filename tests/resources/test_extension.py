"""POST /api/extension/status, and what holds for reports that need not carry a time."""

from __future__ import annotations

import secrets
import time
import uuid
from types import SimpleNamespace

import pytest

from tests.resources.test_prompts import (
    DAY_MS,
    EARLIEST_MS,
    NOT_IDENTIFIER,
    NOT_OBJECT,
    NOT_UUID,
    EventTests,
    at_once,
    not_choice,
)


def uuid7(epoch_ms):
    """A UUIDv7 (RFC 9562, section 5.7) of this time."""
    return str(uuid.UUID(int=epoch_ms << 80 | 7 << 76 | secrets.randbits(12) << 64 | 2 << 62 | secrets.randbits(62)))


class TimelessTests(EventTests):
    """What holds for reports whose time may be left out."""

    @pytest.fixture
    def timeless(self, body):
        return {name: value for name, value in body.items() if name != self.time}

    def test_a_report_without_a_time_gets_the_servers(self, post, stored, timeless):
        before = int(time.time() * 1000)
        answer = post(timeless)
        after = int(time.time() * 1000)
        assert answer.status_code == 201
        assert before <= answer.json[self.time] <= after
        assert stored()[0][self.time] == answer.json[self.time]

    def test_a_report_without_time_and_id_gets_both(self, post, stored, timeless):
        del timeless[self.id]
        answer = post({**timeless, self.time: None, self.id: None})
        assert answer.status_code == 201
        assert (str(stored()[0][self.id]), stored()[0][self.time]) == (answer.json[self.id], answer.json[self.time])

    def test_reports_without_time_and_id_are_each_stored(self, post, stored, timeless, now_ms, monkeypatch):
        """Also those of one millisecond, as all of a batch may be."""
        monkeypatch.setattr("app.ingest.records.time", SimpleNamespace(time=lambda: now_ms / 1000))
        del timeless[self.id]
        assert [post(timeless).status_code for _ in range(3)] == [201] * 3
        assert [row[self.time] for row in stored()] == [now_ms] * 3

    def test_the_time_in_a_uuid7_counts_when_no_other_is_given(self, post, stored, timeless, now_ms):
        timeless[self.id] = uuid7(now_ms - DAY_MS)
        first, again, null = post(timeless), post(timeless), post({**timeless, self.time: None})
        assert [answer.status_code for answer in (first, again, null)] == [201, 200, 200]
        assert first.json[self.time] == now_ms - DAY_MS
        assert [row[self.time] for row in stored()] == [now_ms - DAY_MS]

    def test_other_content_under_a_uuid7_is_a_conflict(self, post, stored, timeless, now_ms):
        timeless[self.id] = uuid7(now_ms)
        assert post(timeless).status_code == 201
        assert post({**timeless, "instance_id": "other"}).status_code == 409
        assert len(stored()) == 1

    def test_a_given_time_counts_more_than_that_of_a_uuid7(self, post, stored, body, now_ms):
        body[self.id] = uuid7(now_ms - DAY_MS)
        assert post(body).status_code == 201
        assert stored()[0][self.time] == body[self.time]

    def test_a_uuid7_of_an_absurd_time_is_refused(self, post, stored, timeless, now_ms):
        for absurd in (0, EARLIEST_MS - 1, now_ms + DAY_MS + 60_000, 2**48 - 1):
            answer = post({**timeless, self.id: uuid7(absurd)})
            assert answer.status_code == 400, absurd
            assert list(answer.json["errors"]["json"]) == [self.id]
        assert stored() == []

    def test_a_uuid7_of_an_absurd_time_may_name_a_report_that_has_one(self, post, stored, body):
        assert post({**body, self.id: uuid7(0)}).status_code == 201
        assert stored()[0][self.time] == body[self.time]

    def test_the_same_uuid7_32_times_at_once_is_one_row(self, app, stored, timeless, headers, now_ms):
        timeless[self.id] = uuid7(now_ms)
        answers = at_once(app, self.path, [timeless] * 32, headers)
        assert sorted(answer.status_code for answer in answers) == [200] * 31 + [201]
        assert len(stored()) == 1


class TestExtensionStatus(TimelessTests):
    path = "/api/extension/status"
    scope = "extension:write"
    table = "extension_status"
    id = "status_id"
    time = "reported_at"
    fields = {
        "instance_id": "chrome-1",
        "status": "disabled",
        "reported_by": "agent",
        "metadata": {"why": "policy", "policies": [1, 2]},
    }
    required = ("instance_id", "status")
    objects = ("metadata",)
    wrong = {
        "device_id": NOT_IDENTIFIER,
        "instance_id": NOT_IDENTIFIER,
        "status": not_choice("enabled", "disabled"),
        "status_id": NOT_UUID,
        "reported_by": NOT_IDENTIFIER,
        "metadata": NOT_OBJECT,
    }
    other = {
        "instance_id": "chrome-2",
        "status": "enabled",
        "reported_by": "extension",
        "metadata": {"why": "by hand"},
    }

    @pytest.mark.parametrize("status", ["enabled", "disabled"])
    def test_either_status_is_stored(self, post, stored, body, status):
        assert post({**body, "status": status}).status_code == 201
        assert stored()[0]["status"] == status

    @pytest.mark.parametrize("given", [{}, {"device_id": None}])
    def test_the_device_is_taken_from_the_token(self, post, stored, body, device, given):
        del body["device_id"]
        answer = post({**body, **given})
        assert answer.status_code == 201
        assert answer.json["device_id"] == stored()[0]["device_id"] == device.device_id

    def test_a_report_may_say_the_device_or_not(self, post, stored, body):
        del body["status_id"]
        assert post(body).status_code == 201
        del body["device_id"]
        assert post(body).status_code == 200
        assert len(stored()) == 1

    @pytest.mark.parametrize("reported_by", ["extension", "watchdog-7/2"])
    def test_any_id_may_report(self, post, stored, body, reported_by):
        assert post({**body, "reported_by": reported_by}).status_code == 201
        assert stored()[0]["reported_by"] == reported_by
