"""Invalid values by type of field, and unusual values that are stored unchanged."""

from __future__ import annotations

import secrets
import uuid

DAY_MS = 24 * 3600 * 1000
EARLIEST_MS = 1_420_070_400_000

NOT_TEXT = [0, 1, 1.5, True, False, [], ["text"], {}, {"text": "text"}]
NOT_IDENTIFIER = [*NOT_TEXT, "", "a b", " a", "a\x00", "a\n", "a\x1f", "a\x7f", "caf\xe9", "\ud800", "x" * 129]
NOT_UUID = [
    *NOT_TEXT,
    "",
    "1",
    "g" * 36,
    uuid.uuid4().hex,
    f"{{{uuid.uuid4()}}}",
    f"{uuid.uuid4()}\n",
    "\ud800",
    "\x00",
]
NOT_OBJECT = [0, 1.5, True, False, "text", [], [{}]]
HOSTILE = [
    "NUL \x00, high \ud83d and low \ude00 alone, \x00\x00",
    '\'; DROP TABLE prompts; -- %s %(rows)s {0} $1 \\ \\u0000 "quoted"',
    "\U0001f600 \u202eleft \u2066 e\u0301 \ufeff \ufffe \uffff \U0010ffff \u2028 \x01\x7f\x85",
    "<script>alert(1)</script>\r\n\ttab ${jndi:ldap://x} ../../etc/passwd",
]
NESTED = {
    "numbers": [0, -1, 2**63 - 1, -(2**63), 0.1, -2.5, 1e-7],
    "text": {"\u00fcml\u00e4ut \U0001f600": "\u65e5\u672c\u8a9e", "": ""},
    "booleans": [True, False],
    "nothing": None,
    "empty": [{}, []],
    "deep": {"a": [{"b": [{"c": None}]}]},
}


NOT_SNAKE_CASE = [
    *NOT_TEXT,
    "",
    "Allowed",
    "not-allowed",
    "not allowed",
    "allowed\n",
    "allowed\x00",
    "_allowed",
    "1st_allowed",
    "t\xe4mper",
    "\ud800",
    "t" * 65,
]


def not_choice(*choices):
    return [*NOT_TEXT, "", "other", choices[0].upper(), choices[0] + " ", choices[0] + "\x00", "\ud800"]


def stored_text(text):
    """What becomes of text that PostgreSQL can't hold."""
    return "".join(
        "\ufffd" if character == "\x00" or "\ud800" <= character <= "\udfff" else character for character in text
    )


def uuid7(epoch_ms):
    """A UUIDv7 (RFC 9562, section 5.7) of this time."""
    return str(uuid.UUID(int=epoch_ms << 80 | 7 << 76 | secrets.randbits(12) << 64 | 2 << 62 | secrets.randbits(62)))
