"""How the body of a POST is read, and how it is refused."""

from __future__ import annotations

import gzip
import io
import json
import re
import uuid

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

MIB = 1024 * 1024
REGISTER = "/api/devices/register"
BATCH = "/api/batch"
SINGLE = [
    REGISTER,
    "/api/devices/heartbeat",
    "/api/prompt",
    "/api/browsers/register",
    "/api/browsers/heartbeat",
    "/api/extension/status",
    "/api/compliance/event",
]
every_route = pytest.mark.parametrize("path", [*SINGLE, BATCH])
MARKER = "a-marker-9e107d9d"


def nested(levels):
    return '{"in": ' * (levels - 1) + "{}" + "}" * (levels - 1)


@pytest.fixture
def body_of(device, now_ms):
    """A valid body of each route."""

    def body_of(path):
        prompt = {
            "device_id": device.device_id,
            "instance_id": "chrome-1",
            "site": "chatgpt.com",
            "url": "https://chatgpt.com/",
            "prompt": "Hello",
            "timestamp": now_ms,
        }
        return {
            REGISTER: device.registration(),
            "/api/devices/heartbeat": {"device_id": device.device_id},
            "/api/prompt": prompt,
            "/api/browsers/register": {
                "device_id": device.device_id,
                "instance_id": "chrome-1",
                "browser_name": "chrome",
            },
            "/api/browsers/heartbeat": {"instance_id": "chrome-1"},
            "/api/extension/status": {"instance_id": "chrome-1", "status": "enabled", "reported_at": now_ms},
            "/api/compliance/event": {
                "device_id": device.device_id,
                "event_type": "tamper_detected",
                "severity": "low",
                "detected_at": now_ms,
            },
            BATCH: {"items": [{"type": "prompt", "body": prompt}]},
        }[path]

    return body_of


@pytest.fixture
def enrolling(enrollment, bearer):
    return bearer(enrollment())


@pytest.fixture
def authorization(headers, enrolling):
    return lambda path: enrolling if path == REGISTER else headers


@pytest.fixture
def send(client, authorization):
    """POST a body as it is."""

    def send(path, data, content_type="application/json", **more):
        if isinstance(data, str):
            data = data.encode()
        return client.post(path, data=data, content_type=content_type, headers={**authorization(path), **more})

    return send


@pytest.fixture
def with_member(body_of):
    """The text of a valid body with one more member in front."""
    return lambda path, member: f"{{{member}, {json.dumps(body_of(path))[1:]}"


@pytest.fixture
def nothing_stored(rows):
    tables = ("browser_instances", "prompts", "extension_status", "compliance_events")

    def nothing_stored():
        return all(rows(f"SELECT FROM {table}") == [] for table in tables) and not rows(
            "SELECT FROM devices WHERE last_heartbeat IS NOT NULL"
        )

    return nothing_stored


def problem(answer, status):
    """Whether an answer is a problem as RFC 9457 has it, of this status."""
    body = answer.get_json(force=True, silent=True)
    return (
        answer.status_code == status
        and answer.content_type == "application/problem+json"
        and set(body) - {"errors"} == {"type", "title", "status", "detail", "request_id"}
        and body["status"] == status
        and body["request_id"] == answer.headers["X-Request-ID"]
        and all(isinstance(body[name], str) and body[name] for name in ("type", "title", "detail", "request_id"))
    )


def not_refused(answers, status):
    """Those of the answers that are not problems of this status."""
    return {
        name: (answer.status_code, answer.text[:200]) for name, answer in answers.items() if not problem(answer, status)
    }


def messages(errors):
    if isinstance(errors, dict):
        return [message for below in errors.values() for message in messages(below)]
    return errors


@every_route
def test_a_body_that_is_not_a_json_object_is_refused(send, body_of, nothing_stored, path):
    text = json.dumps(body_of(path)).encode()
    bodies = {
        "nothing": b"",
        "spaces": b"  ",
        "words": b"not JSON",
        "cut": text[:-1],
        "two": text + text,
        "comma": text[:-1] + b",}",
        "comment": text + b"// yes",
        "single quotes": text.replace(b'"', b"'"),
        "array": b"[]",
        "array of it": b"[" + text + b"]",
        "string": b'"text"',
        "number": b"1",
        "fraction": b"1.5",
        "true": b"true",
        "null": b"null",
        "latin-1 outside of a string": text[:-1] + b", \xe9: 1}",
        "UTF-16": text.decode().encode("utf-16"),
        "UTF-32": text.decode().encode("utf-32-le"),
        "byte order mark": b"\xef\xbb\xbf" + text,
        "raw control": text[:-1] + b', "x": "\x00"}',
        "form": b"device_id=1",
    }
    assert not_refused({name: send(path, data) for name, data in bodies.items()}, 400) == {}
    assert nothing_stored()


@pytest.mark.parametrize(
    ("broken", "stored"),
    [
        (b"\xe9", "\ufffd"),
        (b"\xc0\x80", "\ufffd\ufffd"),
        (b"\xed\xa0\x80", "\ufffd\ufffd\ufffd"),
        (b"\xf0\x9f!", "\ufffd!"),
        (b"\\ud800", "\ufffd"),
        (b"\\u0000", "\ufffd"),
    ],
    ids=["latin-1", "overlong", "surrogate bytes", "cut character", "lone surrogate", "NUL"],
)
def test_broken_characters_are_stored_as_replacement_characters(send, body_of, rows, broken, stored):
    text = json.dumps({**body_of("/api/prompt"), "prompt": "a@b", "metadata": {"@": "@"}}).encode()
    assert send("/api/prompt", text.replace(b"@", broken)).status_code == 201
    assert rows("SELECT prompt, metadata FROM prompts") == [{"prompt": f"a{stored}b", "metadata": {stored: stored}}]


def test_keys_that_become_equal_keep_their_values_under_numbered_keys(send, body_of, rows):
    pairs = '"x\\u0000": 1, "x\\ufffd": 2, "x\\ufffd#2": 3, "\\ud800": {"\\u0000": 4, "\\udfff": 5}'
    text = json.dumps({**body_of("/api/prompt"), "metadata": "@"}).replace('"@"', f"{{{pairs}}}")
    assert send("/api/prompt", text).status_code == 201
    assert rows("SELECT metadata FROM prompts") == [
        {"metadata": {"x\ufffd": 1, "x\ufffd#3": 2, "x\ufffd#2": 3, "\ufffd": {"\ufffd": 4, "\ufffd#2": 5}}}
    ]


def test_a_broken_character_makes_an_identifier_invalid(send, body_of, nothing_stored):
    text = json.dumps({**body_of("/api/prompt"), "instance_id": "a@"}).encode()
    assert problem(send("/api/prompt", text.replace(b"@", b"\xe9")), 400)
    assert nothing_stored()


@every_route
def test_more_values_than_a_body_may_hold_are_refused(send, with_member, nothing_stored, path):
    limit = 100_000 if path == BATCH else 20_000
    for values in ("[" + "0," * limit + "0]", "[" + '{"":0},' * limit + "0]", "[" + '"a",' * limit + "0]"):
        assert problem(send(path, with_member(path, f'"unknown": {values}')), 413)
    assert nothing_stored()


def test_separators_in_text_are_not_values(send, body_of, rows):
    text = '{[,"\\' * 40_000
    assert send("/api/prompt", json.dumps({**body_of("/api/prompt"), "prompt": text})).status_code == 201
    assert rows("SELECT prompt FROM prompts") == [{"prompt": text}]


def test_a_prompt_of_emoji_may_have_as_many_characters_as_any_other(send, body_of, rows):
    text = "\U0001f600" * 262_144
    body = json.dumps({**body_of("/api/prompt"), "prompt": text}, ensure_ascii=False)
    assert send("/api/prompt", body).status_code == 201
    assert rows("SELECT length(prompt) AS characters FROM prompts") == [{"characters": 262_144}]


@every_route
def test_json_that_the_contract_forbids_is_refused(send, with_member, nothing_stored, path):
    values = {
        "NaN": "NaN",
        "Infinity": "Infinity",
        "-Infinity": "-Infinity",
        "1e400": "1e400",
        "-1e400": "-1e400",
        "-2**63 - 1": str(-(2**63) - 1),
        "2**64": str(2**64),
        "5,000 digits": "9" * 5000,
        "5,000 digits before a point": "9" * 5000 + ".5",
        "the same key twice": '{"a": 1, "a": 1}',
        "the same key, escaped": '{"a": 1, "\\u0061": 2}',
        "32 levels below the first": nested(32),
        "32 arrays below the first": "[" * 32 + "]" * 32,
        "100,000 arrays": "[" * 100_000 + "]" * 100_000,
        "100,000 objects": nested(100_000),
    }
    for place in ("{}", '{{"deep": [{}]}}'):
        answers = {
            name: send(path, with_member(path, '"unknown": ' + place.format(value))) for name, value in values.items()
        }
        assert not_refused(answers, 400) == {}, place
    assert nothing_stored()


@every_route
def test_a_duplicate_json_key_is_refused(send, with_member, body_of, nothing_stored, path):
    name, value = next(iter(body_of(path).items()))
    answers = {
        "the same value": send(path, with_member(path, f'"{name}": {json.dumps(value)}')),
        "null": send(path, with_member(path, f'"{name}": null')),
        "unknown": send(path, with_member(path, '"unknown": 1, "unknown": 1')),
    }
    assert not_refused(answers, 400) == {}
    assert nothing_stored()


@pytest.mark.parametrize("brackets", ["[", '{"a":', '[{"a":'])
@every_route
def test_nesting_of_100000_open_brackets_is_refused(send, path, brackets):
    assert problem(send(path, brackets * 100_000), 400)


@every_route
def test_the_deepest_nesting_and_largest_numbers_of_the_contract_are_accepted(send, with_member, path):
    values = [
        str(2**64 - 1),
        str(-(2**63)),
        "1e308",
        "1e-400",
        nested(31),
        "[" * 31 + "]" * 31,
        "[" + "{}," * 99 + "{}]",
    ]
    answers = [send(path, with_member(path, f'"unknown": {value}')) for value in values]
    assert [answer.status_code for answer in answers if answer.status_code not in (200, 201)] == []


@pytest.mark.parametrize(
    ("path", "field"),
    [
        (REGISTER, "os"),
        ("/api/devices/heartbeat", "os"),
        ("/api/prompt", "metadata"),
        ("/api/extension/status", "metadata"),
        ("/api/compliance/event", "details"),
        ("/api/compliance/event", "user_context"),
    ],
)
def test_stored_objects_are_as_strict(send, with_member, nothing_stored, path, field):
    bad = ["NaN", "1e400", str(2**64), "9" * 5000, '{"a": 1, "a": 2}', nested(31)]
    answers = {value[:40]: send(path, with_member(path, f'"{field}": {{"in": {value}}}')) for value in bad}
    assert not_refused(answers, 400) == {}
    assert nothing_stored()
    assert send(path, with_member(path, f'"{field}": {{"in": {nested(30)}}}')).status_code in (200, 201)


@every_route
def test_only_json_in_utf8_is_a_media_type(send, body_of, nothing_stored, path):
    types = [
        None,
        "",
        "text/plain",
        "text/json",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/octet-stream",
        "application/jsonp",
        "application/json; charset=latin-1",
        "application/json; charset=utf-16",
        MARKER,
    ]
    text = json.dumps(body_of(path))
    assert not_refused({type_: send(path, text, type_) for type_ in types}, 415) == {}
    assert nothing_stored()


@every_route
def test_a_media_type_may_name_utf8(send, body_of, path):
    types = ["application/json; charset=utf-8", 'application/json;charset="UTF-8"', "Application/JSON"]
    answers = [send(path, json.dumps(body_of(path)), type_) for type_ in types]
    assert [answer.status_code for answer in answers if answer.status_code not in (200, 201)] == []


@pytest.mark.parametrize("path", SINGLE)
def test_a_body_of_up_to_1_mib_is_taken(send, body_of, nothing_stored, path):
    text = json.dumps(body_of(path)).encode()
    assert problem(send(path, text.ljust(2 * MIB + 1)), 413)
    assert nothing_stored()
    assert send(path, text.ljust(2 * MIB)).status_code in (200, 201)


@pytest.fixture
def send_chunks(client, authorization):
    """POST a body without saying how long it is."""
    return lambda path, data: client.post(
        path,
        input_stream=io.BytesIO(data),
        content_type="application/json",
        headers={**authorization(path), "Transfer-Encoding": "chunked"},
        environ_overrides={"wsgi.input_terminated": True},
    )


@every_route
def test_a_body_of_unannounced_length_is_taken(send_chunks, body_of, path):
    text = json.dumps(body_of(path)).encode()
    largest = 16 * MIB if path == BATCH else 2 * MIB
    assert [send_chunks(path, text.ljust(size)).status_code // 100 for size in (0, largest)] == [2, 2]


@every_route
def test_a_body_of_unannounced_length_is_limited_too(send_chunks, body_of, nothing_stored, path):
    text = json.dumps(body_of(path)).encode()
    largest = 16 * MIB if path == BATCH else 2 * MIB
    answers = {
        "a byte over": send_chunks(path, text.ljust(largest + 1)),
        "cut within": send_chunks(path, text.rjust(largest + 1)),
        "twice": send_chunks(path, text.ljust(2 * largest)),
    }
    assert not_refused(answers, 413) == {}
    assert nothing_stored()


@every_route
def test_gzip_is_accepted(send, body_of, path):
    text = json.dumps(body_of(path)).encode()
    half = len(text) // 2
    bytes_alone = [text[at : at + 1] for at in range(len(text))]
    bodies = {
        "one member": gzip.compress(text),
        "two members": gzip.compress(text[:half]) + gzip.compress(text[half:]),
        "an empty member": gzip.compress(text) + gzip.compress(b""),
        "a member a byte": b"".join(map(gzip.compress, bytes_alone)),
        "stored": gzip.compress(text, 0),
    }
    for encoding in ("gzip", "GZIP", "x-gzip"):
        answers = {name: send(path, data, **{"Content-Encoding": encoding}) for name, data in bodies.items()}
        assert {name: answer.text for name, answer in answers.items() if answer.status_code not in (200, 201)} == {}


@every_route
def test_broken_gzip_is_refused(send, body_of, nothing_stored, path):
    text = json.dumps(body_of(path)).encode()
    good = gzip.compress(text)
    bodies = {
        "nothing": b"",
        "garbage": b"garbage",
        "plain": text,
        "header alone": good[:10],
        "half": good[: len(good) // 2],
        "without the last byte": good[:-1],
        "without the checksum": good[:-8],
        "wrong checksum": good[:-8] + bytes(4) + good[-4:],
        "wrong length": good[:-4] + bytes(4),
        "garbage behind": good + b"garbage",
        "a cut member behind": good + good[:12],
        "zeros behind": good + bytes(8),
        "compressed twice": gzip.compress(good),
    }
    answers = {name: send(path, data, **{"Content-Encoding": "gzip"}) for name, data in bodies.items()}
    assert not_refused(answers, 400) == {}
    assert nothing_stored()


@every_route
def test_a_gzip_bomb_is_refused(send, body_of, nothing_stored, path):
    text = json.dumps(body_of(path)).encode()
    largest = 16 * MIB if path == BATCH else 2 * MIB
    bombs = {
        "a byte over": gzip.compress(text.ljust(largest + 1)),
        "ten times": gzip.compress(text.ljust(10 * largest)),
        "many members": gzip.compress(text) + gzip.compress(b" " * (largest // 4)) * 4,
    }
    answers = {name: send(path, data, **{"Content-Encoding": "gzip"}) for name, data in bombs.items()}
    assert not_refused(answers, 413) == {}
    assert nothing_stored()
    assert send(path, gzip.compress(text.ljust(largest)), **{"Content-Encoding": "gzip"}).status_code in (200, 201)


@every_route
def test_other_encodings_are_refused(send, body_of, nothing_stored, path):
    text = gzip.compress(json.dumps(body_of(path)).encode())
    encodings = ["br", "deflate", "zstd", "compress", "gzip, gzip", MARKER]
    answers = {encoding: send(path, text, **{"Content-Encoding": encoding}) for encoding in encodings}
    assert not_refused(answers, 415) == {}
    assert nothing_stored()


@every_route
def test_a_validation_error_names_fields_and_messages(send, path):
    answer = send(path, "{}")
    assert problem(answer, 400)
    assert list(answer.json["errors"]) == ["json"]
    for field, found in answer.json["errors"]["json"].items():
        assert isinstance(field, str)
        assert found
        assert all(isinstance(message, str) for message in found)


@pytest.mark.parametrize("given", ["a", "0af7651916cd43dd8448eb211c80319c", "A.b_c-9", "x" * 64])
def test_a_valid_request_id_is_echoed(client, send, body_of, given):
    more = {"X-Request-ID": given}
    answers = [
        send("/api/prompt", json.dumps(body_of("/api/prompt")), **more),
        send("/api/prompt", "{}", **more),
        send("/api/prompt", "{}", "text/plain", **more),
        client.post("/api/prompt", json={}, headers=more),
        client.get("/api/nothing", headers=more),
        client.put("/api/prompt", headers=more),
    ]
    assert [answer.status_code for answer in answers] == [201, 400, 415, 401, 404, 405]
    assert [answer.headers.getlist("X-Request-ID") for answer in answers] == [[given]] * 6
    assert [answer.json["request_id"] for answer in answers[1:]] == [given] * 5


@pytest.mark.parametrize(
    "given", [None, "", " ", "a b", "x" * 65, "a/b", "a,b", "caf\xe9", "<script>", "%0a", '{"a":1}']
)
def test_any_other_request_id_is_replaced(send, given):
    answers = [send("/api/prompt", "{}", **({} if given is None else {"X-Request-ID": given})) for _ in range(2)]
    ids = [answer.headers["X-Request-ID"] for answer in answers]
    assert all(problem(answer, 400) for answer in answers)
    assert len({*ids, given}) == 3
    assert all(re.fullmatch(r"[A-Za-z0-9._-]{1,64}", id) for id in ids)


@pytest.mark.parametrize(
    ("path", "field", "wrong"),
    [
        ("/api/devices/heartbeat", "browsers", 1),
        ("/api/devices/heartbeat", "browsers", ["zz"]),
        (REGISTER, "browsers", 1),
        (REGISTER, "browsers", None),
    ],
)
def test_a_validation_error_of_a_list_has_a_bounded_number_of_messages(send, body_of, path, field, wrong):
    answer = send(path, json.dumps({**body_of(path), field: [wrong] * 1000}))
    assert problem(answer, 400)
    assert 1 <= len(messages(answer.json["errors"])) <= 60
    assert len(answer.data) < 10_000


def marked(body):
    """Bodies that carry the marker where it can't be accepted."""
    text = json.dumps({**body, MARKER: MARKER})
    for name in body:
        for value in (f"{MARKER} \x00", [MARKER], {MARKER: MARKER}, f"{MARKER}\ud800 {'x' * 262_144}"):
            yield json.dumps({**body, name: value})
    yield json.dumps(dict.fromkeys(body, f"{MARKER} \x00"))
    yield json.dumps(MARKER)
    yield json.dumps([MARKER])
    yield text[:-1]
    yield text + MARKER
    yield MARKER
    yield f'{{"{MARKER}": 1, {text[1:]}'
    yield f'{{"{MARKER}": NaN, {text[1:]}'
    yield f'{{"x": {{"{MARKER}": {nested(40)}}}, {text[1:]}'
    yield f'{{"x": {MARKER}, {text[1:]}'


# First of all, so that the log is written to what capfd reads.
@pytest.fixture
def stderr(capfd):
    return capfd


@every_route
def test_a_validation_error_never_quotes_the_request(stderr, caplog, send, body_of, path):
    answers = [send(path, text) for text in marked(body_of(path))]
    text = json.dumps({MARKER: MARKER})
    answers += [
        send(path, text, MARKER),
        send(path, text, f"application/json; charset={MARKER}"),
        send(path, text, **{"Content-Encoding": MARKER}),
        send(path, text, **{"Content-Encoding": "gzip"}),
        send(path, text.ljust(17 * MIB)),
        send(path, text, **{"X-Request-ID": f"{MARKER} {MARKER}"}),
        send(f"{path}/{MARKER}", text),
        send(f"{path}?{MARKER}={MARKER}", text),
    ]
    assert {answer.status_code for answer in answers} - {200, 201} <= {400, 403, 404, 413, 415}
    assert [answer.text for answer in answers if MARKER in answer.text or MARKER in str(answer.headers)] == []
    log = stderr.readouterr()
    assert log.err.count('"status":400') > 10
    assert MARKER not in log.err + log.out + caplog.text


def test_a_stored_prompt_is_in_no_log(stderr, caplog, send, body_of):
    body = {**body_of("/api/prompt"), "prompt_id": str(uuid.uuid4())}
    texts = ("prompt", "url", "site", "username", "page_title")
    answers = [send("/api/prompt", json.dumps({**body, **dict.fromkeys(texts, MARKER + end)})) for end in ("", "", "!")]
    assert [answer.status_code for answer in answers] == [201, 200, 409]
    assert MARKER not in "".join(answer.text for answer in answers)
    log = stderr.readouterr()
    assert '"status":409' in log.err
    assert MARKER not in log.err + log.out + caplog.text


@pytest.mark.parametrize(
    "path", ["/", "/api", "/api/", "/api/nothing", "/api/prompt/", "/API/prompt", "/api/prompt%00", "/%ff"]
)
def test_a_404_is_a_problem_document(client, headers, path):
    assert problem(client.post(path, json={}, headers=headers), 404)


@pytest.mark.parametrize("path", ["/api//prompt", "/api/prompt//", "/./api/prompt", "/x/../api/prompt"])
def test_a_path_is_not_normalised(client, headers, body_of, nothing_stored, path):
    # The test client would tidy it up.
    overrides = {"PATH_INFO": path, "REQUEST_URI": path, "RAW_URI": path}
    answer = client.post("/", json=body_of("/api/prompt"), headers=headers, environ_overrides=overrides)
    assert problem(answer, 404)
    assert nothing_stored()


@every_route
def test_a_405_is_a_problem_document(client, authorization, path):
    for method in ("PUT", "PATCH", "DELETE"):
        answer = client.open(path, method=method, json={}, headers=authorization(path))
        assert problem(answer, 405), method
        assert "POST" in re.split(r",\s*", answer.headers["Allow"])


BODY = {
    "device_id",
    "instance_id",
    "site",
    "url",
    "prompt",
    "timestamp",
    "prompt_id",
    "action",
    "metadata",
    "username",
}
any_text = st.text(st.characters(exclude_categories=()), max_size=20)
any_json = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**65), 2**65) | st.floats() | any_text,
    lambda below: st.lists(below, max_size=4) | st.dictionaries(any_text, below, max_size=4),
    max_leaves=12,
)
any_members = st.dictionaries(st.sampled_from(sorted(BODY)) | any_text, any_json, max_size=6)
quickly = hypothesis_settings(
    max_examples=60,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@quickly
@given(body=any_json | any_members)
def test_no_json_causes_a_500(send, body):
    answer = send("/api/prompt", json.dumps(body))
    assert problem(answer, 400) or problem(answer, 403), answer.text


@quickly
@given(changes=any_members)
def test_no_change_to_a_valid_prompt_causes_a_500(send, body_of, changes):
    changed = {**body_of("/api/prompt"), "prompt_id": str(uuid.uuid4()), **changes}
    answer = send("/api/prompt", json.dumps(changed))
    assert answer.status_code in (200, 201, 400, 403), answer.text


@quickly
@given(metadata=st.dictionaries(any_text, any_json, max_size=4), text=any_text)
def test_a_prompt_is_stored_or_refused_and_a_duplicate_is_recognised(send, body_of, metadata, text):
    body = {**body_of("/api/prompt"), "prompt_id": str(uuid.uuid4()), "metadata": metadata, "prompt": text}
    first, again = send("/api/prompt", json.dumps(body)), send("/api/prompt", json.dumps(body))
    assert (first.status_code, again.status_code) in [(201, 200), (400, 400)], first.text


@quickly
@given(data=st.binary(max_size=200))
def test_no_bytes_cause_a_500(send, data):
    assert problem(send("/api/prompt", data), 400)
    assert problem(send("/api/prompt", data, **{"Content-Encoding": "gzip"}), 400)
