"""The limits of each field, from just inside to just outside, one field at a time."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import marshmallow as ma
import pytest
from flask.testing import FlaskClient
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from app.api import fields
from app.api.schemas import Answer, AnswerField, RequestField, Schema
from tests.support.agent import Agent

# A value, and whether it is to be taken.
Probe = tuple[Any, bool]
EARLIEST = 1_420_070_400_000
DAY = 24 * 3600 * 1000
PRINTABLE = "".join(chr(code) for code in range(0x21, 0x7F))
# No character of more than three bytes: 262,145 of them must not make the body too large.
ANY_TEXT = "aZ0'\"\\/%;<\u00e9\u05d0\u202e\u3042\ufffd\n\t"
WRONG_TYPES: list[Probe] = [(value, False) for value in (True, 1.5, [], ["a"], {"a": "b"})]


def of_length(characters: str, lengths: dict[int, bool]) -> st.SearchStrategy[Probe]:
    """Text of these lengths, each with whether it is taken."""
    return st.tuples(st.sampled_from(sorted(lengths)), st.text(characters, min_size=3, max_size=7)).map(
        lambda drawn: ((drawn[1] * (drawn[0] // len(drawn[1]) + 1))[: drawn[0]], lengths[drawn[0]])
    )


def but(*values: Any) -> st.SearchStrategy[Probe]:
    """What is refused."""
    return st.sampled_from([(value, False) for value in values])


def fine(*values: Any) -> st.SearchStrategy[Probe]:
    return st.sampled_from([(value, True) for value in values])


IDENTIFIER = (
    of_length(PRINTABLE, {0: False, 1: True, 127: True, 128: True, 129: False})
    | but("a b", "a\n", "\u00e9", "a\x00", "a\x7f", "\u202ea")
    | st.sampled_from(WRONG_TYPES)
    | but(7)
)
TEXT = (
    of_length(ANY_TEXT, {0: True, 1: True, 262_143: True, 262_144: True, 262_145: False})
    | st.sampled_from(WRONG_TYPES)
    | but(7)
)
NONEMPTY_TEXT = of_length(ANY_TEXT, {0: False, 1: True, 262_144: True, 262_145: False}) | st.sampled_from(WRONG_TYPES)
# Blank metadata is absent, which a required field must not be.
NONBLANK_TEXT = NONEMPTY_TEXT.map(lambda probe: (probe[0], probe[1] and not probe[0].isspace())) | but(" ", "\n\t")
TIME = st.builds(
    lambda probe: (probe[0]() if callable(probe[0]) else probe[0], probe[1]),
    fine(EARLIEST, EARLIEST + 1, lambda: int(time.time() * 1000) + DAY - 60_000)
    | but(EARLIEST - 1, lambda: int(time.time() * 1000) + DAY + 60_000, lambda: int(time.time()), 0, -1, 2**63 - 1)
    | but("1700000000000", 1.7e12, True, [], {}),
)
UUID = (
    # Of version 4: one of version 7 says when it was made, and may be too old.
    st.uuids(version=4).map(lambda value: (str(value).upper(), True))
    | but("", "0", "g" * 36, "{00000000-0000-4000-8000-000000000000}", "0" * 32, "urn:uuid:" + str(uuid.UUID(int=0)), 7)
    | st.sampled_from(WRONG_TYPES)
)
OBJECT = fine({}, {"": ""}, {"a": [1, {"b": None}]}, {"n": 2**64 - 1, "m": -(2**63), "f": 1.5e300}) | but(
    [], "text", 7, True, {"n": 2**64}, {"n": -(2**63) - 1}, {"n": float("nan")}, {"n": float("inf")}
)


def choice(*words: str) -> st.SearchStrategy[Probe]:
    return fine(*words) | but(words[0].upper(), words[0] + " ", "", 7, True, [words[0]])


def items(good: str, *wrong: Any) -> st.SearchStrategy[Probe]:
    return fine([], [good], [good] * 1000) | but([good] * 1001, good, {}, 7, True, [7], [[good]], *wrong)


def addresses(good: str, *unreadable: Any) -> st.SearchStrategy[Probe]:
    """What can't be read is left out, and costs no heartbeat."""
    taken = fine([], [good], [good] * 1000, [good] * 1001, [7], [None], [[good]], [""], *unreadable)
    return taken | but(good, {}, 7, True)


MACS = addresses("02:00:5e:10:00:01", ["02:00:5e:10:00"], ["02:00:5e:10:00:0g"])
IPS = addresses("fe80::1", ["10.0.0.256"], ["10.0.0.0/8"])
OS = fine("macOS 26", {"name": "macOS"}) | but(7, True, ["macOS"])
BROWSERS = items("chrome") | fine([{"name": "chrome"}, "edge"]) | but([None], [True])
METADATA = {"macs": MACS, "ips": IPS, "os": OS, "browsers": BROWSERS}
BROWSER = dict.fromkeys(("browser_version", "profile_name", "profile_path", "extension_id", "extension_version"), TEXT)

# path, table, a good body, required fields, a strategy for each field.
ROUTES: dict[str, tuple[str, dict[str, Any], set[str], dict[str, st.SearchStrategy[Probe]]]] = {
    "/api/prompt": (
        "prompts",
        {"device_id": ..., "instance_id": "i", "site": "s", "url": "u", "prompt": "p", "timestamp": EARLIEST},
        {"instance_id", "site", "url", "prompt", "timestamp"},
        {
            "instance_id": IDENTIFIER,
            "site": NONEMPTY_TEXT,
            "url": NONEMPTY_TEXT,
            "prompt": TEXT,
            "timestamp": TIME,
            "prompt_id": UUID,
            "action": fine("allowed", "a", "a_9", "a" * 64) | but("", "A", "9a", "_a", "a-b", "a b", "a" * 65, 7, True),
            "metadata": OBJECT,
            **dict.fromkeys(
                (
                    "browser_name",
                    "browser_version",
                    "profile_name",
                    "username",
                    "page_title",
                    "conversation_id",
                    "model",
                ),
                TEXT,
            ),
        },
    ),
    "/api/browsers/register": (
        "browser_instances",
        {"device_id": ..., "instance_id": "i", "browser_name": "b"},
        {"instance_id", "browser_name"},
        {"instance_id": IDENTIFIER, "browser_name": NONBLANK_TEXT, "discovered_at": TIME, **BROWSER},
    ),
    "/api/browsers/heartbeat": (
        "browser_instances",
        {"instance_id": "i"},
        {"instance_id"},
        {"instance_id": IDENTIFIER, "browser_name": TEXT, "discovered_at": TIME, **BROWSER},
    ),
    "/api/devices/heartbeat": ("devices", {"device_id": ...}, set(), {"hostname": TEXT, **METADATA}),
    "/api/extension/status": (
        "extension_status",
        {"instance_id": "i", "status": "enabled"},
        {"instance_id", "status"},
        {
            "instance_id": IDENTIFIER,
            "status": choice("enabled", "disabled"),
            "status_id": UUID,
            "reported_at": TIME,
            "reported_by": IDENTIFIER,
            "metadata": OBJECT,
        },
    ),
    "/api/compliance/event": (
        "compliance_events",
        {"device_id": ..., "event_type": "tamper_detected", "severity": "low"},
        {"event_type", "severity"},
        {
            "instance_id": IDENTIFIER,
            "event_type": of_length("abc_9", {0: False, 65: False})
            | fine("a", "a_9", "a" * 64)
            | but("A", "9a", "_a", "a-b", "a b", "a\n", 7, True),
            "severity": choice("low", "medium", "high", "critical"),
            "event_id": UUID,
            "detected_at": TIME,
            "user_context": fine("anna", {}, {"a": 1}) | but(7, True, []),
            "details": OBJECT,
        },
    ),
}


@pytest.mark.parametrize("path", ROUTES)
def test_a_field_is_accepted_up_to_its_limits_and_no_further(
    client: FlaskClient, device: Agent, headers: dict[str, str], rows: Callable[..., list[dict[str, Any]]], path: str
) -> None:
    table, good, required, fields = ROUTES[path]
    count = f"SELECT count(*) AS stored FROM {table}"
    probes = st.one_of(
        *(st.tuples(st.just(name), probe | st.just((None, name not in required))) for name, probe in fields.items())
    )

    @settings(
        max_examples=12 * len(fields),
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(probes)
    def check(drawn: tuple[str, Probe]) -> None:
        name, (value, is_good) = drawn
        body = {key: device.device_id if known is ... else known for key, known in good.items()} | {name: value}
        before = rows(count)[0]["stored"]
        data = json.dumps(body, ensure_ascii=False).encode()
        answer = client.post(path, data=data, content_type="application/json", headers=headers)
        stored = rows(count)[0]["stored"] - before
        assert answer.status_code in ((200, 201) if is_good else (400,)), (name, answer.text)
        assert stored == (answer.status_code == 201)
        if not is_good:
            assert name in answer.json["errors"]["json"] or "_schema" in answer.json["errors"]["json"]

    check()


def test_marshmallow_still_calls_the_private_methods_that_our_fields_override() -> None:
    class Doubled(RequestField[int]):
        def read(self, value: Any) -> int:
            if type(value) is not int:
                raise ma.ValidationError("no")
            return value * 2

    class Shouted(AnswerField[str]):
        def write(self, value: Any) -> str:
            return f"{value}!"

    class Body(ma.Schema):
        number = Doubled(required=True)

    class Told(ma.Schema):
        at = Shouted()

    assert Body().load({"number": 2}) == {"number": 4}
    with pytest.raises(ma.ValidationError, match="no"):
        Body().load({"number": "2"})
    with pytest.raises(ma.ValidationError, match="required"):
        Body().load({})
    assert Told().dump({"at": 1.5}) == {"at": "1.5!"}


def test_our_schemas_load_and_dump_as_marshmallow_does() -> None:
    class Body(Schema):
        text = fields.Text(required=True)
        number = ma.fields.Integer(load_default=None, validate=ma.validate.Range(max=5))

    class Told(Answer):
        at = fields.Time()
        ratio = ma.fields.Float()
        missing = ma.fields.String(allow_none=True)

    assert Body().load({"text": "a", "number": 5, "other": 1}) == {"text": "a", "number": 5}
    with pytest.raises(ma.ValidationError) as refusal:
        Body().load({"text": "", "number": 6})
    assert refusal.value.messages == {"number": ["Must be less than or equal to 5."]}
    at = datetime(2026, 1, 2, tzinfo=UTC)
    told = {"at": "2026-01-02T00:00:00.000000Z", "ratio": 0.5, "missing": None}
    assert Told().dump({"at": at, "ratio": 0.5, "missing": None}) == told
