"""Field types of what clients send, as strict as the database and JSON themselves."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Iterator
from datetime import UTC
from typing import Any

import marshmallow as ma
from marshmallow import fields

from app import requests

# 2015-01-01T00:00:00Z, and how far a client's clock may run ahead.
EARLIEST_MS = 1_420_070_400_000
AHEAD_MS = 24 * 3600 * 1000
LONGEST_TEXT = 262_144
LONGEST_LIST = 1000

# PostgreSQL can hold neither; browsers produce both.
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
_IDENTIFIER = re.compile(r"[!-~]{1,128}")
_SNAKE_CASE = re.compile(r"[a-z][a-z0-9_]{0,63}")
_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


class Schema(ma.Schema):
    """A body. Newer agents talk to older servers: unknown fields are ignored.

    largest: bytes of a body, inflated.
    """

    largest = requests.LARGEST_BODY

    class Meta:
        unknown = ma.EXCLUDE

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._nothing: dict[str, Any] = dict.fromkeys(self.load_fields)
        self._texts = {name for name, field in self.load_fields.items() if type(field) is Text}
        self._readers = {name: field._deserialize for name, field in self.load_fields.items()}
        self._required = [name for name, field in self.load_fields.items() if field.required]

    def load(self, data: Any, **kwargs: Any) -> Any:
        """As marshmallow does, which is asked only when something is wrong: to find nothing takes it longer."""
        if type(data) is not dict:
            return super().load(data, **kwargs)
        loaded = self._nothing.copy()
        readers, texts = self._readers, self._texts
        try:
            for name, value in data.items():
                if value is None:
                    continue
                # Most of what is sent is plain text, and calls would cost more than these looks at it.
                if name in texts and type(value) is str and value.isascii() and "\x00" not in value:
                    if not 0 < len(value) <= LONGEST_TEXT:
                        value = readers[name](value, name, data)
                    loaded[name] = value
                elif name in readers:
                    loaded[name] = readers[name](value, name, data)
        except ma.ValidationError:
            return super().load(data, **kwargs)
        for name in self._required:
            if loaded[name] is None:
                return super().load(data, **kwargs)
        return loaded

    def flaws(self, value: Any) -> Iterator[str]:
        """What makes a parsed body unacceptable as a whole."""
        return requests.flaws(value)


class Answer(ma.Schema):
    """A body of an answer, made of a row."""

    def dump(self, obj: Any, *, many: bool | None = None) -> Any:
        """As marshmallow does; what is text or a number already is taken as it is."""
        answer = {}
        for name, field in self.dump_fields.items():
            value = obj[name]
            answer[name] = value if type(value) in (str, int) else field._serialize(value, name, obj)
        return answer


def storable(text: str) -> str:
    """The text with each NUL and lone surrogate as U+FFFD."""
    return _UNSTORABLE.sub("\ufffd", text) if not text.isascii() or "\x00" in text else text


class Text(fields.Field[str]):
    """Free text, any Unicode. What the database can't hold becomes U+FFFD: evidence is not lost over a character."""

    default_error_messages = {
        "invalid": "Not a valid string.",
        "short": "Must not be empty.",
        "long": f"Longer than {LONGEST_TEXT} characters.",
    }

    def __init__(self, *, empty: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.empty = empty
        self.json_schema = {"type": "string", "minLength": 0 if empty else 1, "maxLength": LONGEST_TEXT}

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> str:
        if not isinstance(value, str):
            raise self.make_error("invalid")
        if len(value) > LONGEST_TEXT:
            raise self.make_error("long")
        if not value and not self.empty:
            raise self.make_error("short")
        return value if value.isascii() and "\x00" not in value else storable(value)


class MetadataText(Text):
    """Text that describes a device or a browser. Empty or blank text is absent: it never overwrites a stored value."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.json_schema["minLength"] = 1 if self.required else 0

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> str | None:  # type: ignore[override]
        text = super()._deserialize(value, attr, data, **kwargs)
        if text and not text.isspace():
            return text
        if self.required:
            raise self.make_error("short")
        return None


class Pattern(fields.Field[str]):
    """Text of one form, the whole of it."""

    default_error_messages = {"invalid": "Not a valid value."}

    def __init__(self, pattern: str | re.Pattern[str], message: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.pattern = re.compile(pattern)
        self.error_messages["invalid"] = message
        self.json_schema = {"type": "string", "pattern": f"^{self.pattern.pattern}$"}

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> str:
        if not isinstance(value, str) or not self.pattern.fullmatch(value):
            raise self.make_error("invalid")
        return value


class Identifier(Pattern):
    """device_id, instance_id, reported_by."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(_IDENTIFIER, "Must be 1 to 128 printable ASCII characters without spaces.", **kwargs)


class SnakeCase(Pattern):
    """action, event_type: an enumeration that newer clients may extend."""

    def __init__(self, *known: str, **kwargs: Any) -> None:
        described = ", ".join(f"`{value}`" for value in known)
        message = "Must be lower_snake_case, 1 to 64 characters."
        super().__init__(_SNAKE_CASE, message, metadata={"description": f"Such as {described}."}, **kwargs)


class Uuid(Pattern):
    """A UUID in its canonical form (RFC 9562), in lower case from here on."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(_UUID, "Not a valid UUID.", **kwargs)
        self.json_schema = {"type": "string", "format": "uuid"}

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> str:
        return super()._deserialize(value, attr, data, **kwargs).lower()


class Choice(fields.Field[str]):
    """One of a few words."""

    default_error_messages = {"invalid": "Must be one of: {choices}."}

    def __init__(self, *choices: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.choices = choices
        self.json_schema = {"type": "string", "enum": list(choices)}

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> str:
        if not isinstance(value, str) or value not in self.choices:
            raise self.make_error("invalid", choices=", ".join(self.choices))
        return value


class EpochMilliseconds(fields.Field[int]):
    """A client's time: an integer, epoch milliseconds, from 2015-01-01 to 24 h ahead of the server's clock."""

    json_schema = {"type": "integer", "format": "int64", "minimum": EARLIEST_MS}

    default_error_messages = {
        "invalid": "Must be an integer, epoch milliseconds.",
        "range": "Must be epoch milliseconds from 2015-01-01 to 24 hours ahead.",
    }

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> int:
        if type(value) is not int:
            raise self.make_error("invalid")
        if not is_plausible(value):
            raise self.make_error("range")
        return value


def is_plausible(epoch_ms: int) -> bool:
    return EARLIEST_MS <= epoch_ms <= time.time() * 1000 + AHEAD_MS


def uuid7_time(text: str) -> int | None:
    """Epoch milliseconds that a UUIDv7 carries (RFC 9562, section 5.7); None for any other UUID."""
    value = uuid.UUID(text)
    return value.int >> 80 if value.version == 7 and value.variant == uuid.RFC_4122 else None


class Json(fields.Field[Any]):
    """JSON of the given Python types, stored as it is but for characters that the database can't hold."""

    def __init__(self, *types: type, of: tuple[type, ...] = (), **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.types = types
        self.of = of
        names: dict[Any, str] = {dict: "an object", list: "a list", str: "a string"}
        self.error_messages["invalid"] = "Must be " + " or ".join(names[type_] for type_ in types) + "."
        self.error_messages["items"] = "Must be " + " or ".join(names[type_] for type_ in of) + "."
        self.error_messages["many"] = f"More than {LONGEST_LIST} items."
        json_types: dict[Any, str] = {dict: "object", list: "array", str: "string"}
        self.json_schema: dict[str, Any] = {"type": [json_types[type_] for type_ in types]}
        if of:
            self.json_schema |= {"items": {"type": [json_types[type_] for type_ in of]}, "maxItems": LONGEST_LIST}
        self.error_messages["same"] = "Two keys are the same once unstorable characters are replaced."

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> Any:
        if not isinstance(value, self.types):
            raise self.make_error("invalid")
        if isinstance(value, list):
            if len(value) > LONGEST_LIST:
                raise self.make_error("many")
            wrong = {
                index: [self.error_messages["items"]]
                for index, item in enumerate(value)
                if not isinstance(item, self.of)
            }
            if wrong:
                raise ma.ValidationError(wrong)
        return self._storable(value)

    def _storable(self, node: Any) -> Any:
        if isinstance(node, str):
            return storable(node)
        if isinstance(node, list):
            return [self._storable(item) for item in node]
        if isinstance(node, dict):
            clean = {storable(key): self._storable(item) for key, item in node.items()}
            if len(clean) != len(node):
                raise self.make_error("same")
            return clean
        return node


class Time(fields.Field[str]):
    """A time of the database in an answer: RFC 3339 in UTC."""

    json_schema = {"type": "string", "format": "date-time"}

    def _serialize(self, value: Any, attr: str | None, obj: Any, **kwargs: Any) -> str | None:
        if value is None:
            return None
        return str(value.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z"))
