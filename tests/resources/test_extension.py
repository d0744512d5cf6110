"""POST /api/extension/status."""

from __future__ import annotations

import pytest

from tests.support.contracts import TimelessReportContract
from tests.support.values import NOT_IDENTIFIER, NOT_OBJECT, NOT_UUID, not_choice


class TestExtensionStatus(TimelessReportContract):
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
