"""POST /api/batch."""

from __future__ import annotations

import dataclasses
import gzip
import json
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest

PATH = "/api/batch"
MIB = 1024 * 1024
TABLES = ("browser_instances", "prompts", "extension_status", "compliance_events")
SCOPES = {
    "device_heartbeat": "devices:write",
    "browser_register": "browsers:write",
    "browser_heartbeat": "browsers:write",
    "prompt": "prompts:write",
    "extension_status": "extension:write",
    "compliance_event": "compliance:write",
}
CRITICAL = {
    "prompt": ("prompts", "prompt_id"),
    "extension_status": ("extension_status", "status_id"),
    "compliance_event": ("compliance_events", "event_id"),
}


def item_of(kind, device_id, now_ms, /, **more):
    """An item of a batch that is good, but for what `more` changes."""
    instance_id = f"chrome-of-{device_id}"
    bodies = {
        "device_heartbeat": {"device_id": device_id, "hostname": "laptop"},
        "browser_register": {"device_id": device_id, "instance_id": instance_id, "browser_name": "chrome"},
        "browser_heartbeat": {"instance_id": instance_id, "profile_name": "Work"},
        "prompt": {
            "device_id": device_id,
            "instance_id": instance_id,
            "site": "chatgpt.com",
            "url": "https://chatgpt.com/",
            "prompt": "Hello",
            "timestamp": now_ms,
            "prompt_id": str(uuid.uuid4()),
        },
        "extension_status": {
            "instance_id": instance_id,
            "status": "enabled",
            "reported_at": now_ms,
            "status_id": str(uuid.uuid4()),
        },
        "compliance_event": {
            "device_id": device_id,
            "event_type": "tamper_detected",
            "severity": "low",
            "detected_at": now_ms,
            "event_id": str(uuid.uuid4()),
        },
    }
    return {"type": kind, "body": {**bodies[kind], **more}}


def nested(levels):
    return {"in": nested(levels - 1)} if levels > 1 else {}


@pytest.fixture
def item(device, now_ms):
    return lambda kind="prompt", **more: item_of(kind, device.device_id, now_ms, **more)


@pytest.fixture
def replay(client, headers):
    """POST items and return their results."""

    def replay(items, headers=headers):
        answer = client.post(PATH, json={"items": items}, headers=headers)
        assert answer.status_code == 200, answer.text
        assert list(answer.json) == ["results"]
        assert [set(result) for result in answer.json["results"]] == [{"status", "id", "errors"}] * len(items)
        return answer.json["results"]

    return replay


@pytest.fixture
def send(client, headers):
    """POST a body as it is."""
    return lambda data, **more: client.post(
        PATH, data=data, headers={"Content-Type": "application/json", **headers, **more}
    )


@pytest.fixture
def count(rows):
    return lambda table="prompts": rows(f"SELECT count(*) AS number FROM {table}")[0]["number"]


def statuses(results):
    return [result["status"] for result in results]


def test_items_of_all_record_types_are_stored_and_answered_in_order(replay, item, rows, device, now_ms):
    kinds = ["compliance_event", "browser_heartbeat", "prompt", "browser_register", "extension_status"]
    items = [item(kind) for kind in [*kinds, "device_heartbeat"]]
    results = replay(items)
    # Registrations go first, whatever the order: then the heartbeat finds the instance.
    assert statuses(results) == [201, 200, 201, 201, 201, 200]
    assert [result["errors"] for result in results] == [None] * 6
    names = ["event_id", "instance_id", "prompt_id", "instance_id", "status_id", "device_id"]
    assert [result["id"] for result in results] == [item["body"][name] for item, name in zip(items, names, strict=True)]
    for table, id in CRITICAL.values():
        assert [str(row[id]) for row in rows(f"SELECT {id} FROM {table} WHERE device_id = %s", device.device_id)] == [
            item["body"][id] for item in items if id in item["body"]
        ]
    instance = rows("SELECT * FROM browser_instances")[0]
    assert (instance["browser_name"], instance["profile_name"]) == ("chrome", "Work")
    assert instance["last_seen"] is not None
    laptop = rows("SELECT hostname, last_heartbeat FROM devices")[0]
    assert laptop["hostname"] == "laptop"
    assert laptop["last_heartbeat"] is not None


@pytest.mark.parametrize("kind", SCOPES)
def test_an_item_is_stored_as_its_own_route_would(replay, client, headers, item, kind):
    paths = {
        "device_heartbeat": "/api/devices/heartbeat",
        "browser_register": "/api/browsers/register",
        "browser_heartbeat": "/api/browsers/heartbeat",
        "prompt": "/api/prompt",
        "extension_status": "/api/extension/status",
        "compliance_event": "/api/compliance/event",
    }
    given = item(kind)
    assert statuses(replay([given])) == [200 if kind == "device_heartbeat" else 201]
    assert client.post(paths[kind], json=given["body"], headers=headers).status_code == 200


@pytest.mark.parametrize(
    "bad",
    [
        None,
        1,
        "prompt",
        [],
        {},
        {"type": "prompt"},
        {"type": "prompt", "body": None},
        {"type": "prompt", "body": []},
        {"type": "prompt", "body": "text"},
        {"type": "prompt", "body": 1},
        {"type": "prompt", "body": {}},
        {"type": "device_register", "body": {}},
        {"type": "unknown", "body": {}},
        {"type": ["prompt"], "body": {}},
        {"type": {"prompt": 1}, "body": {}},
        {"type": None, "body": {}},
        {"type": "prompt\x00", "body": {}},
        {"body": {}},
    ],
    ids=repr,
)
def test_an_item_of_the_wrong_shape_does_not_cost_the_others(replay, item, count, bad):
    results = replay([item(), bad, item()])
    assert statuses(results) == [201, 400, 201]
    assert results[1]["id"] is None
    assert list(results[1]["errors"]) == ["json"]
    assert count() == 2


@pytest.mark.parametrize("kind", SCOPES)
def test_an_invalid_body_does_not_cost_the_others(replay, item, count, kind):
    field = {"device_heartbeat": "device_id"}.get(kind, "instance_id")
    results = replay([item(), item(kind, **{field: "a b"}), item()])
    assert statuses(results) == [201, 400, 201]
    assert list(results[1]["errors"]["json"]) == [field]
    assert count() == 2


@pytest.mark.parametrize(
    "flaw",
    [
        "NaN",
        "-Infinity",
        "1e400",
        str(2**64),
        str(-(2**63) - 1),
        "[" * 20_000 + "]" * 20_000,
        "9" * 5000,
        '{"a": {"b": 1, "b": 1}}',
        '[{"a": NaN}]',
        json.dumps(nested(32)),
    ],
    ids=lambda flaw: flaw[:20],
)
@pytest.mark.parametrize("where", ["metadata", "unknown", "item"])
def test_json_that_is_refused_costs_one_item_alone(send, item, count, flaw, where):
    good, bad = json.dumps(item()), json.dumps(item())
    # An item may nest a level deeper than a body.
    member = f'"{where}": {{"deeper": {flaw}}}, '
    bad = f"{{{member}{bad[1:]}" if where == "item" else bad.replace('"body": {', f'"body": {{{member}')
    answer = send(f'{{"items": [{good}, {bad}, {json.dumps(item())}]}}')
    assert answer.status_code == 200, answer.text
    assert statuses(answer.json["results"]) == [201, 400, 201]
    assert count() == 2


def test_an_item_with_a_duplicate_json_key_is_refused_alone(send, item, count):
    twice = '{"type": "prompt", ' + json.dumps(item())[1:]
    answer = send(f'{{"items": [{twice}, {json.dumps(item())}]}}')
    assert statuses(answer.json["results"]) == [400, 201]
    assert count() == 1


def test_an_item_may_nest_as_deep_as_a_body_of_its_own(replay, item, rows):
    # The body is the first of 32 levels.
    assert statuses(replay([item(metadata=nested(31)), item(metadata=nested(32))])) == [201, 400]
    assert [row["metadata"] for row in rows("SELECT metadata FROM prompts")] == [nested(31)]


@pytest.mark.parametrize(
    "flaw", ["NaN", str(2**64), '{"a": 1, "a": 1}', json.dumps(nested(32))], ids=lambda flaw: flaw[:20]
)
def test_an_error_outside_of_the_items_refuses_the_whole_batch(send, item, count, flaw):
    assert send(f'{{"unknown": {flaw}, "items": [{json.dumps(item())}]}}').status_code == 400
    assert count() == 0


def test_a_duplicate_items_member_is_refused(send, item, count):
    items = json.dumps([item()])
    assert send(f'{{"items": {items}, "items": {items}}}').status_code == 400
    assert count() == 0


@pytest.mark.parametrize("kind", SCOPES)
def test_another_device_can_not_be_spoken_for(replay, item, count, register, kind):
    results = replay([item(), item(kind, device_id=register().device_id), item(kind, device_id="unheard-of"), item()])
    assert statuses(results) == [201, 403, 403, 201]
    assert results[1]["errors"]
    assert count() == 2


@pytest.mark.parametrize("kind", SCOPES)
def test_each_item_needs_the_scope_of_its_record_type(replay, item, access, device, kind, rows):
    items = [item(each) for each in SCOPES]
    results = replay(items, access(device, SCOPES[kind]))
    allowed = [SCOPES[each] == SCOPES[kind] for each in SCOPES]
    assert [status != 403 for status in statuses(results)] == allowed
    assert all(result["status"] in (200, 201) or result["errors"] for result in results)
    for other, (table, _) in CRITICAL.items():
        assert len(rows(f"SELECT FROM {table}")) == (other == kind)


def test_a_token_without_a_write_scope_is_refused(app, client, item, count, bearer):
    arguments = ["token", "create", "--subject", "alice", "--scope", "prompts:read", "--expires-in", "1h"]
    reader = app.test_cli_runner().invoke(args=arguments).stdout.strip()
    assert client.post(PATH, json={"items": [item()]}, headers=bearer(reader)).status_code == 403
    assert count() == 0


def test_a_revoked_device_is_refused_at_once(operate, replay, item, device, count, rows):
    replay([item("browser_register")])
    before = rows("SELECT * FROM browser_instances"), rows("SELECT last_heartbeat, hostname FROM devices")
    operate("device", "revoke", device.device_id)
    results = replay([item(kind, **({"profile_name": "Other"} if "browser" in kind else {})) for kind in SCOPES])
    assert statuses(results) == [403] * 6
    assert before == (rows("SELECT * FROM browser_instances"), rows("SELECT last_heartbeat, hostname FROM devices"))
    assert [count(table) for table, _ in CRITICAL.values()] == [0, 0, 0]


def test_events_of_a_deleted_device_are_refused_until_it_is_heard_again(
    client, headers, replay, item, device, count, rows
):
    rows("DELETE FROM devices WHERE device_id = %s", device.device_id)
    items = [item("prompt"), item("browser_register"), {"type": "unknown", "body": {}}]
    # The whole batch: the agent has to register again, whatever else there is to say of an item.
    answer = client.post(PATH, json={"items": items}, headers=headers)
    assert (answer.status_code, answer.json["type"]) == (401, "urn:watchpost:problem:invalid-token")
    assert answer.headers["WWW-Authenticate"].startswith('Bearer error="invalid_token"')
    assert count() == 0
    # Heartbeats go first, and bring the device back for the others.
    assert statuses(replay([item("prompt"), item("device_heartbeat")])) == [201, 201]
    assert count() == 1


@pytest.mark.parametrize("kind", CRITICAL)
def test_a_duplicate_report_in_a_batch_is_one_row(replay, item, count, kind):
    given = item(kind)
    results = replay([given, given, given])
    assert statuses(results) == [201, 200, 200]
    assert len({result["id"] for result in results}) == 1
    assert count(CRITICAL[kind][0]) == 1


@pytest.mark.parametrize("kind", CRITICAL)
def test_a_duplicate_report_without_an_id_in_a_batch_is_one_row(replay, item, rows, kind):
    table, id = CRITICAL[kind]
    given = item(kind, **{id: None})
    results = replay([given, given])
    assert statuses(results) == [201, 200]
    assert [str(row[id]) for row in rows(f"SELECT {id} FROM {table}")] == [results[0]["id"]]


@pytest.mark.parametrize("kind", CRITICAL)
def test_other_content_under_the_same_id_is_a_conflict(replay, item, rows, kind):
    table, id = CRITICAL[kind]
    given = item(kind)
    other = {"type": kind, "body": {**given["body"], "instance_id": "other"}}
    results = replay([given, other, given, item()])
    assert statuses(results) == [201, 409, 200, 201]
    assert results[1]["id"] == given["body"][id]
    assert results[1]["errors"]
    # And so it is when the first was stored long before.
    assert statuses(replay([other, given])) == [409, 200]
    key = uuid.UUID(given["body"][id])
    assert [row["instance_id"] for row in rows(f"SELECT instance_id FROM {table} WHERE {id} = %s", key)] == [
        given["body"].get("instance_id")
    ]


def test_another_devices_instance_is_a_conflict(replay, item, register, access, now_ms, rows):
    replay([item("browser_register")])
    thief = register()
    stolen = item("browser_register")["body"]["instance_id"]
    items = [
        item_of(kind, thief.device_id, now_ms, instance_id=stolen, profile_name="stolen")
        for kind in ("browser_register", "browser_heartbeat")
    ]
    items.append(item_of("prompt", thief.device_id, now_ms))
    results = replay(items, access(thief))
    assert statuses(results) == [409, 409, 201]
    assert [result["id"] for result in results[:2]] == [stolen, stolen]
    assert [row["profile_name"] for row in rows("SELECT profile_name FROM browser_instances")] == [None]


def test_of_several_heartbeats_the_last_given_of_each_field_counts(replay, item, rows):
    results = replay(
        [
            item("device_heartbeat", hostname="first", os={"name": "Linux"}, ips=["10.0.0.1"]),
            item("device_heartbeat", hostname="second", macs=["00:11:22:33:44:55"], browsers=["chrome"]),
            item("device_heartbeat", hostname=None, ips=["10.0.0.2", "::1"]),
        ]
    )
    assert statuses(results) == [200, 200, 200]
    assert rows("SELECT hostname, os, ips, macs, browsers, last_heartbeat IS NOT NULL AS alive FROM devices") == [
        {
            "hostname": "second",
            "os": {"name": "Linux"},
            "ips": ["10.0.0.2", "::1"],
            "macs": ["00:11:22:33:44:55"],
            "browsers": ["chrome"],
            "alive": True,
        }
    ]


def test_the_same_instance_several_times_is_one_row(replay, item, rows, now_ms):
    results = replay(
        [
            item("browser_register", profile_name="first", discovered_at=now_ms),
            item("browser_register", browser_version="143", profile_name="second"),
            item("browser_heartbeat", profile_name="third", extension_version="1.1"),
            item("browser_heartbeat", profile_name=None, extension_version="1.2"),
        ]
    )
    assert statuses(results) == [201, 200, 200, 200]
    instances = rows("SELECT * FROM browser_instances")
    assert len(instances) == 1
    assert (
        instances[0]
        | {
            "browser_name": "chrome",
            "browser_version": "143",
            "profile_name": "third",
            "extension_version": "1.2",
            "discovered_at": now_ms,
        }
        == instances[0]
    )


def test_a_thousand_items_are_stored(replay, item, count):
    items = [item(list(CRITICAL)[number % 3]) for number in range(1000)]
    assert statuses(replay(items)) == [201] * 1000
    assert sum(count(table) for table, _ in CRITICAL.values()) == 1000
    assert statuses(replay(items[::-1])) == [200] * 1000


@pytest.mark.parametrize("items", [None, [], {}, "items", 1, True, {"0": {}}], ids=repr)
def test_a_batch_without_items_is_refused(client, headers, items):
    answer = client.post(PATH, json={"items": items}, headers=headers)
    assert answer.status_code == 400
    assert list(answer.json["errors"]["json"]) == ["items"]


def test_more_than_a_thousand_items_are_refused(client, headers, item, count):
    answer = client.post(PATH, json={"items": [item() for _ in range(1001)]}, headers=headers)
    assert answer.status_code == 400
    assert list(answer.json["errors"]["json"]) == ["items"]
    assert count() == 0


def test_a_replayed_batch_is_all_duplicates(replay, item, rows):
    items = [item(kind) for kind in SCOPES for _ in range(5)]
    results = replay(items)
    tables = [rows(f"SELECT * FROM {table} ORDER BY created_at, device_id") for table, _ in CRITICAL.values()]
    again = replay(items)
    assert statuses(again) == [200] * 30
    assert [result["id"] for result in again] == [result["id"] for result in results]
    assert tables == [rows(f"SELECT * FROM {table} ORDER BY created_at, device_id") for table, _ in CRITICAL.values()]


def test_overlapping_batches_in_opposite_order_store_each_item_once(app, settings, item, headers, count):
    app.extensions["writer"].settings = dataclasses.replace(settings, instances_per_device=1000)
    rounds, copies = 50, 4
    start = threading.Barrier(copies, timeout=120)

    def batch(number):
        items = [item(kind) for kind in CRITICAL for _ in range(8)]
        items.append(item("device_heartbeat", hostname=f"laptop-{number}"))
        for each in range(8):
            instance_id = f"chrome-{number}-{each}"
            items += [item(kind, instance_id=instance_id) for kind in ("browser_register", "browser_heartbeat")]
        return items

    batches = [batch(number) for number in range(rounds)]

    def replay(worker):
        client, answers = app.test_client(), []
        for items in batches:
            start.wait()
            answers.append(client.post(PATH, json={"items": items[:: -1 if worker % 2 else 1]}, headers=headers))
        return answers

    with ThreadPoolExecutor(copies) as pool:
        answers = list(pool.map(replay, range(copies)))
    for given in zip(*answers, strict=True):
        assert [answer.status_code for answer in given] == [200] * copies
        found = [status for answer in given for status in statuses(answer.json["results"])]
        assert set(found) == {200, 201}
        # 24 events and 8 instances are created once each; whatever else says so was only updated.
        assert found.count(201) == 24 + 8
    assert [count(table) for table in TABLES] == [rounds * 8] * 4


def test_concurrent_single_reports_and_batches_store_no_duplicate(app, item, headers, count):
    items = [item() for _ in range(16)]
    start = threading.Barrier(18, timeout=120)

    def post(path, body):
        client = app.test_client()
        start.wait()
        return client.post(path, json=body, headers=headers)

    bodies = [("/api/prompt", item["body"]) for item in items] + [
        (PATH, {"items": items}),
        (PATH, {"items": items[::-1]}),
    ]
    with ThreadPoolExecutor(18) as pool:
        answers = list(pool.map(lambda given: post(*given), bodies))
    found = [answer.status_code for answer in answers[:16]]
    found += [status for answer in answers[16:] for status in statuses(answer.json["results"])]
    assert sorted(found) == [200] * 32 + [201] * 16
    assert count() == 16


def test_a_body_of_up_to_8_mib_is_taken(send, item, count):
    items = [item(prompt="x" * 200_000) for _ in range(8)]
    text = json.dumps({"items": items}).encode()
    assert len(text) > MIB
    assert statuses(send(text.ljust(16 * MIB)).json["results"]) == [201] * 8
    assert count() == 8


@pytest.mark.parametrize("encoding", ["identity", "gzip"])
def test_a_body_over_8_mib_is_refused(send, item, count, encoding):
    text = json.dumps({"items": [item()]}).encode().ljust(16 * MIB + 1)
    answer = send(gzip.compress(text, 1) if encoding == "gzip" else text, **{"Content-Encoding": encoding})
    assert answer.status_code == 413
    assert answer.content_type == "application/problem+json"
    assert count() == 0


def test_a_batch_may_be_gzip(send, item, count):
    text = json.dumps({"items": [item(prompt="x" * 200_000) for _ in range(8)]}).encode()
    answer = send(gzip.compress(text), **{"Content-Encoding": "gzip"})
    assert statuses(answer.json["results"]) == [201] * 8
    assert count() == 8


def test_a_prompt_of_262144_characters_of_four_bytes_is_stored(send, item, rows):
    text = json.dumps(
        {"items": [item(prompt="\U0001f600" * 262_144), item(prompt="\U0001f600" * 262_145)]}, ensure_ascii=False
    )
    assert statuses(send(text.encode()).json["results"]) == [201, 400]
    assert [row["length"] for row in rows("SELECT length(prompt) FROM prompts")] == [262_144]


def test_hostile_text_in_one_item_does_not_cost_the_others(replay, item, rows):
    items = [item(prompt="a\x00b\ud800c"), item(prompt="plain"), item(username="\x00", metadata={"\ud800": "\x00"})]
    assert statuses(replay(items)) == [201, 201, 201]
    assert statuses(replay(items)) == [200, 200, 200]
    assert {row["prompt"] for row in rows("SELECT prompt FROM prompts")} == {"a\ufffdb\ufffdc", "plain", "Hello"}


def test_a_bad_item_has_a_bounded_number_of_messages_and_repeats_nothing(client, headers, item):
    given = [item("device_heartbeat", browsers=[["a-marker"]] * 1000), item(action="a-marker"), {"type": "a-marker"}]
    answer = client.post(PATH, json={"items": given}, headers=headers)
    assert statuses(answer.json["results"]) == [400, 400, 400]
    assert 1 <= len(answer.json["results"][0]["errors"]["json"]["browsers"]) <= 60
    assert "a-marker" not in answer.text
