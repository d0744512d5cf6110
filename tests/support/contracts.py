"""Contract tests: what all report resources promise. The test class of a resource inherits one of these classes."""

from __future__ import annotations

import functools
import time
import uuid
from datetime import datetime
from types import SimpleNamespace

import pytest

from tests.support.checks import at_once
from tests.support.values import DAY_MS, EARLIEST_MS, HOSTILE, NESTED, stored_text, uuid7


def post_at_once(app, path, bodies, headers):
    """POST all bodies at the same moment, each from a client of its own."""
    return at_once([functools.partial(app.test_client().post, path, json=body, headers=headers) for body in bodies])


class ReportContract:
    """Tests of a report that is stored once, however often it is sent.

    path, scope, table: of the route. id, time: the fields that name a report. fields: all others but device_id, with
    values. required: those that must be there. wrong: field -> values that must be refused. other: a field and another
    value of it. texts, objects: fields of free text, of JSON.
    """

    path: str
    scope: str
    table: str
    id: str
    time: str
    fields: dict
    required: tuple
    wrong: dict
    other: dict
    texts: tuple = ()
    objects: tuple = ()

    @pytest.fixture
    def body(self, device, now_ms):
        return {"device_id": device.device_id, self.id: str(uuid.uuid4()), self.time: now_ms, **self.fields}

    @pytest.fixture
    def post(self, client, headers):
        def post(body, headers=headers):
            return client.post(self.path, json=body, headers=headers)

        return post

    @pytest.fixture
    def stored(self, rows):
        return lambda: rows(f"SELECT * FROM {self.table} ORDER BY created_at")

    def test_a_report_is_stored_as_it_was_sent(self, post, stored, body):
        answer = post(body)
        assert answer.status_code == 201, answer.text
        row = stored()[0]
        assert datetime.fromisoformat(answer.json["created_at"]) == row.pop("created_at")
        assert row == {**body, self.id: uuid.UUID(body[self.id]), "erased_at": None}

    def test_the_answer_carries_ids_and_times(self, post, body):
        answer = post(body).json
        names = {"device_id", "instance_id", self.id, self.time}
        assert {name: answer[name] for name in names} == {name: body[name] for name in names}
        assert answer["created_at"].endswith("Z")

    def test_a_duplicate_report_stores_nothing_new(self, post, stored, body):
        first = post(body)
        again = post(dict(reversed(body.items())))
        assert (first.status_code, again.status_code) == (201, 200)
        assert again.json == first.json
        assert len(stored()) == 1

    def test_validation_refuses_a_missing_required_field(self, post, stored, body):
        for field in self.required:
            for broken in ({name: value for name, value in body.items() if name != field}, {**body, field: None}):
                answer = post(broken)
                assert answer.status_code == 400, field
                assert list(answer.json["errors"]["json"]) == [field]
        assert stored() == []

    def test_validation_refuses_wrong_values(self, post, stored, body):
        for field, values in self.wrong.items():
            accepted = [value for value in values if post({**body, field: value}).status_code != 400]
            assert accepted == [], field
        assert stored() == []

    def test_every_column_of_the_table_is_tested_here(self, rows):
        columns = rows("SELECT column_name FROM information_schema.columns WHERE table_name = %s", self.table)
        names = {column["column_name"] for column in columns} - {"created_at", "erased_at", self.time}
        assert set(self.wrong) == names
        assert set(self.other) == set(self.fields) == names - {"device_id", self.id}

    def test_a_validation_error_names_the_field(self, post, body):
        for field, values in self.wrong.items():
            assert list(post({**body, field: values[0]}).json["errors"]["json"]) == [field]

    def test_an_optional_field_that_is_null_is_absent(self, post, stored, body):
        left_out = {name for name in body if name not in (*self.required, self.id, self.time, "device_id")}
        assert post({**body, **dict.fromkeys(left_out)}).status_code == 201
        assert {name: stored()[0][name] for name in left_out} == dict.fromkeys(left_out)
        assert post({name: value for name, value in body.items() if name not in left_out}).status_code == 200
        assert len(stored()) == 1

    def test_an_id_that_is_null_is_derived(self, post, stored, body):
        first = post({**body, self.id: None})
        again = post({name: value for name, value in body.items() if name != self.id})
        assert (first.status_code, again.status_code) == (201, 200)
        assert first.json == again.json
        assert len(stored()) == 1

    def test_a_token_without_the_scope_is_refused(self, post, stored, body, access, device):
        scopes = "devices:write browsers:write extension:write prompts:write compliance:write"
        answer = post(body, access(device, scopes.replace(self.scope, "").strip()))
        assert answer.status_code == 403
        assert stored() == []

    def test_the_scope_alone_suffices(self, post, stored, body, access, device):
        assert post(body, access(device, self.scope)).status_code == 201
        assert len(stored()) == 1

    def test_another_device_can_not_be_spoken_for(self, post, stored, body, register):
        for other in (register().device_id, "unheard-of"):
            assert post({**body, "device_id": other}).status_code == 403
        assert stored() == []

    def test_a_revoked_device_is_refused_at_once(self, operate, post, stored, body, device):
        assert post(body).status_code == 201
        operate("device", "revoke", device.device_id)
        assert post({**body, self.id: str(uuid.uuid4())}).status_code == 403
        # Not even a retry.
        assert post(body).status_code == 403
        assert len(stored()) == 1

    def test_a_deleted_device_is_refused(self, post, stored, body, device, rows):
        rows("DELETE FROM devices WHERE device_id = %s", device.device_id)
        answer = post(body)
        assert (answer.status_code, answer.json["type"]) == (401, "urn:watchpost:problem:invalid-token")
        assert stored() == []

    def test_unknown_fields_are_ignored(self, post, stored, body):
        assert post({**body, "from_a_newer_agent": {"a": [1]}, "created_at": 1, "ord": 7}).status_code == 201
        assert post(body).status_code == 200
        assert len(stored()) == 1

    def test_hostile_text_is_stored_verbatim(self, post, stored, body):
        for text in HOSTILE:
            hostile = {**body, self.id: str(uuid.uuid4()), **dict.fromkeys(self.texts, text)}
            hostile |= {key: {f"key {text}": [text, {"in": text}]} for key in self.objects}
            assert [post(hostile).status_code, post(hostile).status_code] == [201, 200]
            row, clean = stored()[-1], stored_text(text)
            assert {name: row[name] for name in self.texts} == dict.fromkeys(self.texts, clean)
            for name in self.objects:
                assert row[name] == {f"key {clean}": [clean, {"in": clean}]}
        assert len(stored()) == len(HOSTILE)

    def test_json_objects_come_back_as_sent(self, post, stored, body):
        assert post({**body, **dict.fromkeys(self.objects, NESTED)}).status_code == 201
        row = stored()[0]
        for name in self.objects:
            assert row[name] == NESTED
            assert [type(number) for number in row[name]["numbers"]] == [int] * 4 + [float] * 3

    def test_an_empty_object_is_not_null(self, post, stored, body):
        assert post({**body, **{key: {} for key in self.objects}}).status_code == 201
        assert {name: stored()[0][name] for name in self.objects} == {key: {} for key in self.objects}
        assert post({**body, **dict.fromkeys(self.objects)}).status_code == 409

    def test_the_same_id_with_other_content_is_a_conflict(self, post, stored, body):
        post(body)
        before = stored()
        for field, value in self.other.items():
            answer = post({**body, field: value})
            assert answer.status_code == 409, field
            assert answer.content_type == "application/problem+json"
        assert stored() == before

    def test_two_devices_may_use_the_same_id(self, post, stored, body, register, access):
        other = register()
        assert post(body).status_code == 201
        assert post({**body, "device_id": other.device_id, **self.other}, access(other)).status_code == 201
        assert {row["device_id"] for row in stored()} == {body["device_id"], other.device_id}

    def test_the_same_id_at_another_time_is_another_report(self, post, stored, body):
        assert post(body).status_code == 201
        assert post({**body, self.time: body[self.time] - 1}).status_code == 201
        assert len(stored()) == 2

    def test_an_id_left_out_is_derived_from_the_content(self, post, stored, body):
        del body[self.id]
        ids = {post(body).json[self.id]}
        for field, value in self.other.items():
            ids.add(post({**body, field: value}).json[self.id])
        assert len(ids) == len(stored()) == 1 + len(self.other)
        assert ids == {str(row[self.id]) for row in stored()}
        assert post(body).status_code == 200

    def test_derived_ids_of_two_devices_differ(self, post, body, register, access):
        del body[self.id]
        other = register()
        mine, theirs = post(body), post({**body, "device_id": other.device_id}, access(other))
        assert (mine.status_code, theirs.status_code) == (201, 201)
        assert mine.json[self.id] != theirs.json[self.id]

    def test_an_upper_case_id_is_the_same_id(self, post, stored, body):
        body[self.id] = "abcdefab-cdef-4abc-8def-abcdefabcdef"
        first = post({**body, self.id: body[self.id].upper()})
        assert (first.status_code, post(body).status_code) == (201, 200)
        assert first.json[self.id] == str(stored()[0][self.id]) == body[self.id]

    def test_32_concurrent_duplicates_are_one_row(self, app, stored, body, headers):
        answers = post_at_once(app, self.path, [body] * 32, headers)
        assert sorted(answer.status_code for answer in answers) == [200] * 31 + [201]
        assert len({answer.text for answer in answers}) == len(stored()) == 1

    def test_of_32_concurrent_conflicts_one_is_stored(self, app, stored, body, headers):
        bodies = [{**body, "instance_id": f"instance-{number}"} for number in range(32)]
        answers = post_at_once(app, self.path, bodies, headers)
        assert sorted(answer.status_code for answer in answers) == [201] + [409] * 31
        created = next(answer.json for answer in answers if answer.status_code == 201)
        assert [row["instance_id"] for row in stored()] == [created["instance_id"]]

    def test_32_concurrent_reports_are_32_rows(self, app, stored, body, headers):
        bodies = [{**body, self.id: str(uuid.uuid4())} for _ in range(32)]
        answers = post_at_once(app, self.path, bodies, headers)
        assert [answer.status_code for answer in answers] == [201] * 32
        # Each got the answer to its own.
        assert [answer.json[self.id] for answer in answers] == [body[self.id] for body in bodies]
        assert {str(row[self.id]) for row in stored()} == {body[self.id] for body in bodies}

    def test_timestamps_that_are_not_epoch_milliseconds_are_refused(self, post, stored, body, now_ms):
        # A minute more than a day, so that a slow machine does not catch up.
        absurd = [EARLIEST_MS - 1, 0, -now_ms, now_ms + DAY_MS + 60_000, now_ms * 1000, 2**63 - 1, now_ms // 1000]
        other_types = [float(now_ms), 1.0, str(now_ms), "", True, False, [now_ms], {}, "2026-01-01T00:00:00Z"]
        accepted = [time for time in absurd + other_types if post({**body, self.time: time}).status_code != 400]
        assert accepted == []
        assert stored() == []

    def test_timestamps_from_2015_to_a_day_ahead_are_stored(self, post, stored, body, now_ms):
        times = [EARLIEST_MS, now_ms + 23 * 3600 * 1000]
        assert [post({**body, self.time: time}).json[self.time] for time in times] == times
        assert {row[self.time] for row in stored()} == set(times)

    def test_identifiers_of_128_characters_are_stored(self, post, stored, body):
        longest = "".join(chr(code) for code in range(0x21, 0x7F)).ljust(128, "x")
        assert post({**body, "instance_id": longest}).status_code == 201
        assert stored()[0]["instance_id"] == longest


class TimelessReportContract(ReportContract):
    """Tests of a report whose time may be left out."""

    @pytest.fixture
    def timeless(self, body):
        return {name: value for name, value in body.items() if name != self.time}

    def test_a_report_without_a_timestamp_gets_the_servers(self, post, stored, timeless):
        before = int(time.time() * 1000)
        answer = post(timeless)
        after = int(time.time() * 1000)
        assert answer.status_code == 201
        assert before <= answer.json[self.time] <= after
        assert stored()[0][self.time] == answer.json[self.time]

    def test_a_report_without_timestamp_and_id_gets_both(self, post, stored, timeless):
        del timeless[self.id]
        answer = post({**timeless, self.time: None, self.id: None})
        assert answer.status_code == 201
        assert (str(stored()[0][self.id]), stored()[0][self.time]) == (answer.json[self.id], answer.json[self.time])

    def test_reports_without_timestamp_and_id_are_never_duplicates(self, post, stored, timeless, now_ms, monkeypatch):
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

    def test_32_concurrent_duplicates_with_a_uuid7_are_one_row(self, app, stored, timeless, headers, now_ms):
        timeless[self.id] = uuid7(now_ms)
        answers = post_at_once(app, self.path, [timeless] * 32, headers)
        assert sorted(answer.status_code for answer in answers) == [200] * 31 + [201]
        assert len(stored()) == 1
