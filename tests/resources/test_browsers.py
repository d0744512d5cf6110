"""POST /api/browsers/register and POST /api/browsers/heartbeat."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from datetime import datetime
from functools import partial
from typing import Any

import psycopg
import pytest

from tests.support.agent import Agent
from tests.support.checks import HOSTILE_IDS, HOSTILE_TEXT, STORED_TEXT, at_once, is_refused, statuses

REGISTER = "/api/browsers/register"
HEARTBEAT = "/api/browsers/heartbeat"
ROUTES = [REGISTER, HEARTBEAT]
# Every column but the times of the metadata.
COLUMNS = """instance_id, device_id, browser_name, browser_version, profile_name, profile_path, extension_id,
    extension_version, discovered_at, created_at, last_seen, archived_at, released_at"""
INSTANCES = f"SELECT {COLUMNS} FROM browser_instances"
INSTANCE = f"{INSTANCES} WHERE instance_id = %s"
METADATA = {
    "browser_name": "chrome",
    "browser_version": "126.0.6478.61",
    "profile_name": "Person 1",
    "profile_path": "C:\\Users\\person\\AppData\\Local\\Google\\Chrome\\User Data\\Default",
    "extension_id": "aapbdbdomjkkjkaonfhkkikfgjllcleb",
    "extension_version": "1.4.0",
    "discovered_at": 1_700_000_000_123,
}
CHANGED = {
    "browser_name": "firefox",
    "browser_version": "127.0",
    "profile_name": "Work",
    "profile_path": "/home/person/.mozilla/firefox/x.default",
    "extension_id": "watchpost@example.com",
    "extension_version": "1.5.0",
    "discovered_at": 1_700_000_000_122,
}
TEXTS = [name for name in METADATA if name != "discovered_at"]

every_route = pytest.mark.parametrize("route", ROUTES)


@pytest.fixture
def send(client: Any, device: Agent, headers: dict[str, str]) -> Callable[..., Any]:
    """POST about an instance of `device`: send(REGISTER, profile_name="new"), headers those of another if given."""

    def send(route: str, headers: dict[str, str] = headers, **more: Any) -> Any:
        body = {"instance_id": "instance", "device_id": device.device_id, "browser_name": "chrome", **more}
        return client.post(route, json=body, headers=headers)

    return send


@pytest.fixture
def instance(client: Any, device: Agent, headers: dict[str, str], rows: Any) -> dict[str, Any]:
    """The row of an instance that `device` has registered with all metadata."""
    body = {"instance_id": "instance", "device_id": device.device_id, **METADATA}
    assert client.post(REGISTER, json=body, headers=headers).status_code == 201
    return rows(INSTANCE, "instance")[0]


@pytest.fixture
def update(client: Any, device: Agent, headers: dict[str, str]) -> Callable[..., Any]:
    """POST only what a route requires, and what is given: update(HEARTBEAT, profile_name="new")."""

    def update(route: str, **more: Any) -> Any:
        needed = {"device_id": device.device_id, "browser_name": METADATA["browser_name"]} if route == REGISTER else {}
        return client.post(route, json={"instance_id": "instance", **needed, **more}, headers=headers)

    return update


def claim(app: Any, route: str, agent: Agent, headers: dict[str, str], instance_id: str = "instance") -> Any:
    body = {"instance_id": instance_id, "device_id": agent.device_id, "browser_name": agent.device_id}
    return partial(app.test_client().post, route, json=body, headers=headers)


def is_invalid(answer: Any, *fields: str) -> None:
    is_refused(answer, 400, "invalid-body")
    assert sorted(answer.json["errors"]["json"]) == sorted(fields)


@every_route
def test_a_new_instance_is_stored_with_every_column(send, device, rows, route):
    before = rows("SELECT now()")[0]["now"]
    answer = send(route, **METADATA)
    assert answer.status_code == 201
    stored = rows(INSTANCES)
    assert len(stored) == 1
    created_at, last_seen = stored[0].pop("created_at"), stored[0].pop("last_seen")
    assert stored == [
        {"instance_id": "instance", "device_id": device.device_id, **METADATA, "archived_at": None, "released_at": None}
    ]
    assert before <= created_at <= rows("SELECT now()")[0]["now"]
    assert last_seen == (created_at if route == HEARTBEAT else None)


def test_a_registration_answers_with_what_is_stored(send, device, rows):
    first = send(REGISTER).json
    created_at = rows(INSTANCE, "instance")[0]["created_at"]
    assert (first["instance_id"], first["device_id"], first["last_seen"]) == ("instance", device.device_id, None)
    assert first["created_at"].endswith("Z")
    assert datetime.fromisoformat(first["created_at"]) == created_at
    send(HEARTBEAT)
    again = send(REGISTER).json
    assert datetime.fromisoformat(again["created_at"]) == created_at
    assert datetime.fromisoformat(again["last_seen"]) == rows(INSTANCE, "instance")[0]["last_seen"]


def test_a_heartbeat_answers_with_what_is_stored(send, device, rows, now_ms):
    answer = send(HEARTBEAT).json
    assert (answer["instance_id"], answer["device_id"]) == ("instance", device.device_id)
    assert answer["last_seen"].endswith("Z")
    assert datetime.fromisoformat(answer["last_seen"]) == rows(INSTANCE, "instance")[0]["last_seen"]
    assert type(answer["server_time"]) is int
    assert now_ms <= answer["server_time"] <= time.time() * 1000


def test_a_heartbeat_tells_when_to_send_the_next(app, settings, send):
    assert send(HEARTBEAT).json["heartbeat_interval_s"] == settings.heartbeat_seconds
    app.extensions["writer"].settings = dataclasses.replace(settings, heartbeat_seconds=17)
    assert send(HEARTBEAT).json["heartbeat_interval_s"] == 17


@every_route
def test_only_the_needed_fields_are_needed(update, device, rows, route):
    assert update(route).status_code == 201
    row = rows(INSTANCE, "instance")[0]
    given = {"browser_name": "chrome"} if route == REGISTER else {}
    assert {name: row[name] for name in METADATA} == dict.fromkeys(METADATA) | given
    assert row["device_id"] == device.device_id


@every_route
def test_a_known_instance_is_updated(instance, update, rows, route):
    assert update(route, **CHANGED).status_code == 200
    stored = rows(INSTANCES)
    assert [row | {"last_seen": None} for row in stored] == [instance | CHANGED]


def test_a_registration_sent_again_changes_nothing(instance, send, rows):
    assert send(REGISTER, **METADATA).status_code == 200
    assert rows(INSTANCES) == [instance]


@every_route
@pytest.mark.parametrize("field", METADATA)
def test_only_what_is_given_is_overwritten(instance, update, rows, route, field):
    assert update(route, **{field: CHANGED[field]}).status_code == 200
    after = rows(INSTANCE, "instance")[0]
    assert after | {"last_seen": None} == instance | {field: CHANGED[field]}


@every_route
@pytest.mark.parametrize("field", ["device_id", *METADATA])
def test_an_optional_field_of_null_is_absent(instance, update, rows, route, field):
    if route == REGISTER and field in ("device_id", "browser_name"):
        is_invalid(update(route, **{field: None}), field)
    else:
        assert update(route, **{field: None}).status_code == 200
    assert rows(INSTANCE, "instance")[0] | {"last_seen": None} == instance


@every_route
def test_unknown_fields_are_ignored(instance, update, rows, route):
    more = {"color": "red", "created_at": "2000-01-01T00:00:00Z", "last_seen": "2100-01-01T00:00:00Z", "revoked_at": 5}
    assert update(route, **more).status_code == 200
    after = rows(INSTANCE, "instance")[0]
    assert after | {"last_seen": None} == instance
    assert after["last_seen"] is None or after["last_seen"] <= rows("SELECT now()")[0]["now"]


def test_a_registered_instance_was_not_seen_yet(send, rows):
    assert send(REGISTER).json["last_seen"] is None
    send(REGISTER)
    assert rows(INSTANCE, "instance")[0]["last_seen"] is None


def test_each_heartbeat_moves_last_seen_on(send, rows):
    send(HEARTBEAT)
    first = rows(INSTANCE, "instance")[0]
    assert send(HEARTBEAT).status_code == 200
    second = rows(INSTANCE, "instance")[0]
    assert second["last_seen"] > first["last_seen"]
    assert second["created_at"] == first["created_at"]


@every_route
def test_last_seen_never_moves_back(instance, update, rows, route):
    future = rows("UPDATE browser_instances SET last_seen = now() + interval '1 hour' RETURNING last_seen")[0]
    answer = update(route, profile_name="new")
    assert answer.status_code == 200
    assert datetime.fromisoformat(answer.json["last_seen"]) == future["last_seen"]
    assert rows(INSTANCE, "instance")[0] == instance | {"profile_name": "new"} | future


def test_a_heartbeats_device_is_the_tokens(client, device, headers, rows):
    answer = client.post(HEARTBEAT, json={"instance_id": "instance"}, headers=headers)
    assert (answer.status_code, answer.json["device_id"]) == (201, device.device_id)
    assert rows(INSTANCE, "instance")[0]["device_id"] == device.device_id


@every_route
def test_a_device_may_have_many_instances(send, device, rows, route):
    for instance_id in ("one", "two", "three"):
        assert send(route, instance_id=instance_id).status_code == 201
    stored = rows("SELECT instance_id, device_id FROM browser_instances ORDER BY instance_id")
    assert [row["instance_id"] for row in stored] == ["one", "three", "two"]
    assert {row["device_id"] for row in stored} == {device.device_id}


@every_route
def test_an_instance_of_another_device_is_a_conflict_and_unchanged(instance, register, access, send, rows, route):
    other = register()
    answer = send(route, access(other), **CHANGED | {"device_id": other.device_id})
    is_refused(answer, 409, "instance-conflict")
    assert rows(INSTANCES) == [instance]


def test_a_heartbeat_without_device_id_for_another_devices_instance_is_a_conflict(
    instance, client, register, access, rows
):
    answer = client.post(HEARTBEAT, json={"instance_id": "instance"}, headers=access(register()))
    is_refused(answer, 409, "instance-conflict")
    assert rows(INSTANCES) == [instance]


@every_route
def test_a_body_that_names_another_device_is_refused(instance, register, send, rows, route):
    is_refused(send(route, **CHANGED | {"device_id": register().device_id}), 403, "other-device")
    is_refused(send(route, instance_id="new", device_id="nobody"), 403, "other-device")
    assert rows(INSTANCES) == [instance]


@every_route
def test_a_revoked_device_is_refused_at_once_until_it_is_restored(instance, send, device, operate, rows, route):
    operate("device", "revoke", device.device_id)
    is_refused(send(route, **CHANGED), 403, "device-revoked")
    is_refused(send(route, instance_id="new"), 403, "device-revoked")
    assert rows(INSTANCES) == [instance]
    operate("device", "restore", device.device_id)
    assert send(route, **CHANGED).status_code == 200


@every_route
def test_a_device_whose_row_is_gone_is_refused_until_its_heartbeat(
    instance, client, device, headers, send, rows, route
):
    rows("DELETE FROM devices")
    is_refused(send(route, **CHANGED), 401, "invalid-token")
    is_refused(send(route, instance_id="new"), 401, "invalid-token")
    assert rows(INSTANCES) == [instance]
    client.post("/api/devices/heartbeat", json={"device_id": device.device_id}, headers=headers)
    assert send(route, **CHANGED).status_code == 200


@every_route
@pytest.mark.parametrize("scope", ["devices:write", "extension:write prompts:write compliance:write"])
def test_the_scope_is_needed(send, device, access, rows, route, scope):
    is_refused(send(route, access(device, scope)), 403, "insufficient-scope")
    assert rows(INSTANCES) == []


@every_route
def test_the_scope_alone_is_enough(send, device, access, route):
    assert send(route, access(device, "browsers:write")).status_code == 201


@every_route
def test_a_token_is_needed(send, rows, route):
    answer = send(route, {})
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"].startswith("Bearer error=")
    assert rows(INSTANCES) == []


@pytest.mark.parametrize(
    ("route", "field"),
    [(REGISTER, "instance_id"), (REGISTER, "device_id"), (REGISTER, "browser_name"), (HEARTBEAT, "instance_id")],
)
def test_a_required_field_must_be_there(client, device, headers, rows, route, field):
    body = {"instance_id": "instance", "device_id": device.device_id, "browser_name": "chrome"}
    del body[field]
    is_invalid(client.post(route, json=body, headers=headers), field)
    assert rows(INSTANCES) == []


@pytest.mark.parametrize(
    ("route", "field"),
    [(REGISTER, "instance_id"), (REGISTER, "device_id"), (REGISTER, "browser_name"), (HEARTBEAT, "instance_id")],
)
@pytest.mark.parametrize("value", [None, ""], ids=repr)
def test_a_required_field_must_not_be_empty(send, rows, route, field, value):
    is_invalid(send(route, **{field: value}), field)
    assert rows(INSTANCES) == []


@every_route
@pytest.mark.parametrize("value", [5, 1.5, True, ["a"], {"a": "b"}], ids=repr)
def test_each_text_that_is_no_text_is_named(instance, send, rows, route, value):
    fields = ["instance_id", "device_id", *TEXTS]
    is_invalid(send(route, **dict.fromkeys(fields, value)), *fields)
    assert rows(INSTANCES) == [instance]


@every_route
@pytest.mark.parametrize("field", ["instance_id", "device_id", *TEXTS])
def test_one_wrong_text_spoils_the_report(instance, send, rows, route, field):
    is_invalid(send(route, **CHANGED | {field: 5}), field)
    assert rows(INSTANCES) == [instance]


@every_route
@pytest.mark.parametrize(
    "value", [1_700_000_000, 0, -1, 9_999_999_999_999, 1_700_000_000_000.0, "1700000000000", True, {}], ids=repr
)
def test_a_discovery_must_be_at_plausible_epoch_milliseconds(instance, send, rows, route, value):
    is_invalid(send(route, discovered_at=value), "discovered_at")
    assert rows(INSTANCES) == [instance]


@every_route
@pytest.mark.parametrize("hours", [-1, 23])
def test_a_discovery_may_be_at_a_clock_that_is_off(send, rows, now_ms, route, hours):
    discovered_at = now_ms + hours * 3_600_000
    assert send(route, discovered_at=discovered_at).status_code == 201
    assert rows(INSTANCE, "instance")[0]["discovered_at"] == discovered_at


@every_route
@pytest.mark.parametrize("id", HOSTILE_IDS, ids=ascii)
def test_a_hostile_id_is_refused(send, rows, route, id):
    is_invalid(send(route, instance_id=id, device_id=id), "instance_id", "device_id")
    assert rows(INSTANCES) == []


@every_route
@pytest.mark.parametrize("instance_id", ["a", "~" * 128, "';DROP/**/TABLE/**/devices;--", "%(rows)s", "\\u0000"])
def test_an_odd_instance_id_is_only_text(send, rows, route, instance_id):
    assert send(route, instance_id=instance_id).json["instance_id"] == instance_id
    assert [row["instance_id"] for row in rows("SELECT instance_id FROM browser_instances")] == [instance_id]


@every_route
def test_characters_that_the_database_cannot_hold_are_replaced(client, device, headers, rows, route):
    body = json.dumps({"instance_id": "instance", "device_id": device.device_id, **dict.fromkeys(TEXTS, "TEXT")})
    data = body.encode().replace(b"TEXT", HOSTILE_TEXT)
    answer = client.post(route, data=data, content_type="application/json", headers=headers)
    assert answer.status_code == 201, answer.text
    row = rows(INSTANCE, "instance")[0]
    assert [row[name] for name in TEXTS] == [STORED_TEXT] * len(TEXTS)


@every_route
@pytest.mark.parametrize("body", [b"[]", b"null", b"{", b"", b"\xff", b'{"instance_id": "a", "instance_id": "a"}'])
def test_a_body_that_is_no_clean_object_is_400(client, headers, rows, route, body):
    answer = client.post(route, data=body, content_type="application/json", headers=headers)
    is_refused(answer, 400, "invalid-body")
    assert rows(INSTANCES) == []


@every_route
def test_two_devices_that_claim_an_instance_at_once_leave_it_to_one(app, register, access, rows, route):
    claims = [(agent, access(agent)) for agent in (register(), register())]
    names = [f"instance-{number}" for number in range(10)]
    answers = at_once([claim(app, route, agent, headers, name) for name in names for agent, headers in claims])
    for index, name in enumerate(names):
        pair = answers[2 * index : 2 * index + 2]
        assert statuses(pair) == [201, 409]
        winner = next(answer.json["device_id"] for answer in pair if answer.status_code == 201)
        row = rows(INSTANCE, name)[0]
        assert (row["device_id"], row["browser_name"]) == (winner, winner)


@every_route
def test_two_workers_leave_an_instance_to_one_device(app, other_worker, register, access, held, rows, route):
    requests = [claim(worker, route, agent, access(agent)) for worker in (app, other_worker) for agent in [register()]]
    answers = held("LOCK TABLE browser_instances IN SHARE MODE", requests)
    assert statuses(answers) == [201, 409]
    winner = next(answer.json["device_id"] for answer in answers if answer.status_code == 201)
    assert [row["device_id"] for row in rows("SELECT device_id FROM browser_instances")] == [winner]


@every_route
def test_one_instance_reported_often_at_once_is_created_once(app, device, headers, rows, route):
    assert statuses(at_once([claim(app, route, device, headers)] * 20)) == [200] * 19 + [201]
    assert len(rows(INSTANCES)) == 1


@every_route
def test_reports_of_one_instance_at_once_each_leave_what_they_give(app, device, headers, rows, route):
    body = {"instance_id": "instance", "device_id": device.device_id, "browser_name": "firefox"}
    requests = [
        partial(app.test_client().post, route, json=body | {name: value}, headers=headers)
        for name, value in CHANGED.items()
    ]
    assert statuses(at_once(requests)) == [200] * (len(requests) - 1) + [201]
    row = rows(INSTANCE, "instance")[0]
    assert {name: row[name] for name in CHANGED} == CHANGED


@every_route
def test_a_refused_device_costs_the_others_nothing(app, register, access, operate, route):
    agents = [register() for _ in range(9)]
    requests = [claim(app, route, agent, access(agent), f"of-{agent.device_id}") for agent in agents]
    operate("device", "revoke", agents[4].device_id)
    assert [answer.status_code for answer in at_once(requests)] == [201] * 4 + [403] + [201] * 4


def test_hundreds_of_devices_that_claim_one_instance_are_answered_in_one_go(app, register, access, rows):
    """Laptops cloned from one image: the owner is stored, everybody else is told, in a handful of statements."""
    from app.resources.browsers import BROWSER_HEARTBEAT

    rows(
        "INSERT INTO devices (device_id, key_thumbprint) SELECT 'clone-' || n, 'key-' || n"
        " FROM generate_series(1, 400) AS n"
    )
    claims = [
        {"instance_id": "shared", "device_id": f"clone-{n}", "key_thumbprint": f"key-{n}", "is_heartbeat": True}
        for n in range(1, 401)
    ]
    with app.app_context():
        stored = app.extensions["writer"].write_batch([(BROWSER_HEARTBEAT, claims)])[0]
        again = app.extensions["writer"].write_batch([(BROWSER_HEARTBEAT, claims[::-1])])[0]
    assert [row["outcome"] for row in stored] == ["created"] + ["instance_conflict"] * 399
    assert [row["outcome"] for row in again] == ["instance_conflict"] * 399 + ["updated"]


@every_route
@pytest.mark.parametrize("blank", ["", " ", "\t\n\u00a0\u3000"], ids=ascii)
def test_empty_or_blank_metadata_is_absent(instance, update, rows, route, blank):
    assert update(route, **{name: blank for name in TEXTS if name != "browser_name"}).status_code == 200
    assert rows(INSTANCE, "instance")[0] | {"last_seen": None} == instance
    answer = update(route, browser_name=blank)
    if route == REGISTER:
        is_invalid(answer, "browser_name")
    assert rows(INSTANCE, "instance")[0] | {"last_seen": None} == instance


@every_route
@pytest.mark.parametrize("field", TEXTS)
def test_replayed_metadata_does_not_overwrite_newer_metadata(instance, update, rows, now_ms, route, field):
    needed = {"browser_name": CHANGED["browser_name"]} if route == REGISTER else {}
    for observed_at, expected in (
        (now_ms - 3_600_000, METADATA[field]),  # older than the registration
        (now_ms + 3_600_000, CHANGED[field]),  # from a clock that is ahead: as if observed now
    ):
        assert update(route, **needed | {field: CHANGED[field], "observed_at": observed_at}).status_code == 200
        assert rows(INSTANCE, "instance")[0][field] == expected
    assert update(route, **needed | {field: METADATA[field]}).status_code == 200
    assert rows(INSTANCE, "instance")[0][field] == METADATA[field]


def test_replayed_metadata_is_applied_where_nothing_newer_is_known(client, send, update, rows, now_ms):
    """A live heartbeat, then the spool of the hour before: in any order each field ends as it was last observed."""
    send(HEARTBEAT, browser_name="live")
    update(HEARTBEAT, profile_name="second", observed_at=now_ms - 1000)
    update(HEARTBEAT, profile_name="first", extension_version="first", observed_at=now_ms - 2000)
    row = rows(INSTANCE, "instance")[0]
    assert (row["browser_name"], row["profile_name"], row["extension_version"]) == ("live", "second", "first")


def test_metadata_observed_now_is_applied_though_a_wrong_clock_left_a_time_in_the_future(instance, update, rows):
    rows("UPDATE browser_instances SET profile_name_at = now() + interval '1 hour'")
    assert update(HEARTBEAT, profile_name="new").status_code == 200
    assert rows(INSTANCE, "instance")[0]["profile_name"] == "new"


@every_route
def test_the_earliest_discovery_counts(instance, update, rows, route):
    for discovered_at in (METADATA["discovered_at"] + 1, METADATA["discovered_at"] - 1, METADATA["discovered_at"]):
        assert update(route, discovered_at=discovered_at).status_code == 200
    assert rows(INSTANCE, "instance")[0]["discovered_at"] == METADATA["discovered_at"] - 1


EVENTS = "SELECT device_id, instance_id, event_type, severity, details FROM compliance_events ORDER BY created_at"


@pytest.mark.parametrize("reason", ["released", "revoked", "erased", "archived", "gone"])
def test_an_instance_whose_device_is_no_more_moves_to_the_device_that_registers_it(
    instance, register, access, operate, device, send, rows, reason
):
    if reason == "released":
        operate("browser", "release", "instance")
    elif reason == "revoked":
        operate("device", "revoke", device.device_id)
    elif reason == "erased":
        operate("device", "erase", device.device_id, "--reason", "asked for")
    elif reason == "archived":
        rows("UPDATE devices SET archived_at = now()")
    else:
        rows("DELETE FROM devices")
    other = register()
    is_refused(send(HEARTBEAT, access(other), device_id=other.device_id), 409, "instance-conflict")
    rows("DELETE FROM compliance_events")
    answer = send(REGISTER, access(other), device_id=other.device_id, profile_name="moved")
    assert (answer.status_code, answer.json["device_id"]) == (200, other.device_id)
    row = rows(INSTANCE, "instance")[0]
    assert (row["device_id"], row["profile_name"], row["created_at"]) == (
        other.device_id,
        "moved",
        instance["created_at"],
    )
    details = {
        "instance_id": "instance",
        "from_device_id": device.device_id,
        "reason": reason if reason == "released" else f"device_{reason}",
    }
    assert rows(EVENTS) == [
        {
            "device_id": other.device_id,
            "instance_id": "instance",
            "event_type": "browser_instance_moved",
            "severity": "medium",
            "details": details,
        }
    ]
    assert send(HEARTBEAT, access(other), device_id=other.device_id).status_code == 200
    assert len(rows(EVENTS)) == 1


@every_route
def test_a_conflict_of_instances_is_one_event_for_each_pair_and_day(
    instance, device, register, access, send, rows, route
):
    others = [register(), register()]
    for other in others * 2:
        is_refused(send(route, access(other), device_id=other.device_id), 409, "instance-conflict")
    assert rows(EVENTS) == [
        {
            "device_id": device.device_id,
            "instance_id": "instance",
            "event_type": "browser_instance_conflict",
            "severity": "medium",
            "details": {"instance_id": "instance", "device_id": other.device_id},
        }
        for other in others
    ]
    rows("UPDATE conflict_notices SET noticed_on = noticed_on - 1")
    is_refused(send(route, access(others[0]), device_id=others[0].device_id), 409, "instance-conflict")
    assert len(rows(EVENTS)) == 3


def test_a_refused_registration_or_heartbeat_locks_no_row_of_its_owner(
    instance, device, register, access, database_url, rows
):
    """In the transaction of a batch, which may last."""
    from app.db import statement

    other = register()
    claim = {"ordinal": 0, "instance_id": "instance", "device_id": other.device_id, "browser_name": "mine"}
    claim["key_thumbprint"] = other.key.thumbprint()
    with psycopg.connect(database_url) as batch:
        for is_heartbeat in (False, True):
            for name in ("browsers/upsert_instances", "browsers/settle_claims"):
                parameters = {"rows": json.dumps([claim | {"is_heartbeat": is_heartbeat}]), "instances_per_device": 200}
                batch.execute(statement(name).text, parameters)
        rows("SELECT 1 FROM browser_instances WHERE instance_id = 'instance' FOR UPDATE NOWAIT")
        rows("SELECT 1 FROM devices FOR UPDATE NOWAIT")


@every_route
def test_a_device_has_no_more_instances_than_it_may(app, settings, send, register, access, rows, route):
    app.extensions["writer"].settings = dataclasses.replace(settings, instances_per_device=2)
    assert [send(route, instance_id=f"instance-{n}").status_code for n in range(2)] == [201, 201]
    is_refused(send(route, instance_id="instance-2"), 409, "instance-limit")
    assert [send(route, instance_id=f"instance-{n}").status_code for n in range(2)] == [200, 200]
    other = register()
    assert send(route, access(other), instance_id="instance-2", device_id=other.device_id).status_code == 201
    assert len(rows(INSTANCES)) == 3


def test_a_batch_fills_a_device_with_instances_up_to_the_limit(app, client, settings, device, headers, rows):
    app.extensions["writer"].settings = dataclasses.replace(settings, instances_per_device=3)
    items = [
        {"type": type_, "body": {"instance_id": f"instance-{n}", "device_id": device.device_id, "browser_name": "b"}}
        for type_ in ("browser_register", "browser_heartbeat")
        for n in range(3 if type_ == "browser_register" else 5)
    ]
    results = client.post("/api/batch", json={"items": items}, headers=headers).json["results"]
    assert [result["status"] for result in results] == [201] * 3 + [200] * 3 + [409] * 2
    assert len(rows(INSTANCES)) == 3


def test_moved_instances_count_against_the_limit(
    app, settings, instance, operate, device, register, access, send, rows
):
    app.extensions["writer"].settings = dataclasses.replace(settings, instances_per_device=1)
    other = register()
    headers = access(other)
    assert send(REGISTER, headers, instance_id="own", device_id=other.device_id).status_code == 201
    operate("device", "revoke", device.device_id)
    is_refused(send(REGISTER, headers, device_id=other.device_id), 409, "instance-limit")
    assert rows(INSTANCE, "instance") == [instance]


def test_two_devices_that_register_a_movable_instance_at_once_leave_it_to_one(
    app, other_worker, register, access, instance, operate, device, held, rows
):
    operate("device", "revoke", device.device_id)
    requests = [
        claim(worker, REGISTER, agent, access(agent)) for worker in (app, other_worker) for agent in [register()]
    ]
    answers = held("SELECT FROM browser_instances FOR UPDATE", requests)
    assert statuses(answers) == [200, 409]
    winner = next(answer.json["device_id"] for answer in answers if answer.status_code == 200)
    assert rows(INSTANCE, "instance")[0]["device_id"] == winner
    assert sorted(event["event_type"] for event in rows(EVENTS)) == [
        "browser_instance_conflict",
        "browser_instance_moved",
    ]


def test_a_released_instance_is_the_first_devices_that_registers_it(instance, operate, register, access, send, rows):
    operate("browser", "release", "instance")
    released_at = rows(INSTANCE, "instance")[0]["released_at"]
    operate("browser", "release", "instance")
    assert rows(INSTANCE, "instance")[0]["released_at"] == released_at
    # Its own device's heartbeats change nothing about it; its registration ends the release.
    assert send(HEARTBEAT).status_code == 200
    assert rows(INSTANCE, "instance")[0]["released_at"] == released_at
    assert send(REGISTER).status_code == 200
    assert rows(INSTANCE, "instance")[0]["released_at"] is None
    other = register()
    is_refused(send(REGISTER, access(other), device_id=other.device_id), 409, "instance-conflict")


@pytest.fixture
def done(app: Any) -> Callable[..., str]:
    """Run `flask browser ...` and return what it prints on standard output."""

    def done(*arguments: str) -> str:
        result = app.test_cli_runner().invoke(args=("browser", *arguments))
        assert result.exit_code == 0, result.output
        return result.stdout

    return done


def test_operators_list_and_show_browser_instances(done, send, device, instance):
    for instance_id in ("c", "a"):
        send(HEARTBEAT, instance_id=instance_id)
    listed = json.loads(done("list", "--json"))
    assert [(row["instance_id"], row["device_id"]) for row in listed] == [
        (instance_id, device.device_id) for instance_id in ("a", "c", "instance")
    ]
    assert len(json.loads(done("list", "--limit", "2", "--json"))) == 2
    assert [line.split()[0] for line in done("list").splitlines()] == ["INSTANCE_ID", "a", "c", "instance"]
    shown = json.loads(done("show", "instance", "--json"))
    assert {name: shown[name] for name in METADATA} == METADATA
    assert "profile_name       Person 1" in done("show", "instance")


def test_operators_release_a_browser_instance_and_the_audit_log_says_so(done, instance, rows):
    released = json.loads(done("release", "instance", "--json"))
    assert (released["instance_id"], released["device_id"]) == ("instance", instance["device_id"])
    audit = rows("SELECT action, target FROM audit_log WHERE action = 'browser.release'")
    assert audit == [{"action": "browser.release", "target": "instance"}]


@pytest.mark.parametrize("command", ["show", "release"])
@pytest.mark.parametrize("instance_id", ["nothing", "a\x1b"])
def test_a_browser_instance_that_does_not_exist_is_an_error(app, rows, command, instance_id):
    result = app.test_cli_runner().invoke(args=("browser", command, instance_id))
    assert (result.exit_code, result.stdout) == (1, "")
    assert "there is no such browser instance" in result.stderr
    assert rows("SELECT * FROM audit_log") == []
