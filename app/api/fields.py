"""Field types of bodies: as strict as JSON, the contract and PostgreSQL."""

from __future__ import annotations

import re
import time
import uuid
from datetime import UTC
from typing import Any

import marshmallow as ma

from app.api.schemas import MAX_TEXT, AnswerField, RequestField
from app.api.schemas import Answer as Answer
from app.api.schemas import Schema as Schema
from app.api.text import sanitize as sanitize

# 2015-01-01T00:00:00Z, and the time that a client's clock may be ahead of ours.
EARLIEST_MS = 1_420_070_400_000
AHEAD_MS = 24 * 3600 * 1000
MAX_LIST = 1000

_IDENTIFIER = re.compile(r"[!-~]{1,128}")
_SNAKE_CASE = re.compile(r"[a-z][a-z0-9_]{0,63}")
_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


class Text(RequestField[str]):
    """Free text, any Unicode. A character that PostgreSQL can't store becomes U+FFFD: no evidence is lost over it."""

    is_plain_text = True

    default_error_messages = {
        "invalid": "Not a valid string.",
        "short": "Must not be empty.",
        "long": f"Longer than {MAX_TEXT} characters.",
    }

    def __init__(self, *, empty: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.empty = empty
        self.json_schema = {"type": "string", "minLength": 0 if empty else 1, "maxLength": MAX_TEXT}

    def read(self, value: Any) -> str:
        if not isinstance(value, str):
            raise self.make_error("invalid")
        if len(value) > MAX_TEXT:
            raise self.make_error("long")
        if not value and not self.empty:
            raise self.make_error("short")
        return value if value.isascii() and "\x00" not in value else sanitize(value)


class MetadataText(RequestField[str | None]):
    """Text that describes a device or a browser. Empty or blank text is absent: it never overwrites a stored value."""

    default_error_messages = Text.default_error_messages

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.text = Text()
        self.json_schema = {"type": "string", "minLength": 1 if self.required else 0, "maxLength": MAX_TEXT}

    def read(self, value: Any) -> str | None:
        text = self.text.read(value)
        if text and not text.isspace():
            return text
        if self.required:
            raise self.make_error("short")
        return None


class Pattern(RequestField[str]):
    """Text that matches a regular expression as a whole."""

    default_error_messages = {"invalid": "Not a valid value."}

    def __init__(self, pattern: str | re.Pattern[str], message: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.pattern = re.compile(pattern)
        self.error_messages["invalid"] = message
        self.json_schema = {"type": "string", "pattern": f"^{self.pattern.pattern}$"}

    def read(self, value: Any) -> str:
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
    """A UUID in its canonical form (RFC 9562); it is stored in lower case."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(_UUID, "Not a valid UUID.", **kwargs)
        self.json_schema = {"type": "string", "format": "uuid"}

    def read(self, value: Any) -> str:
        return super().read(value).lower()


class Choice(RequestField[str]):
    """One word of a fixed list."""

    default_error_messages = {"invalid": "Must be one of: {choices}."}

    def __init__(self, *choices: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.choices = choices
        self.json_schema = {"type": "string", "enum": list(choices)}

    def read(self, value: Any) -> str:
        if not isinstance(value, str) or value not in self.choices:
            raise self.make_error("invalid", choices=", ".join(self.choices))
        return value


class EpochMilliseconds(RequestField[int]):
    """A client's time: an integer, epoch milliseconds, from 2015-01-01 to 24 h ahead of the server's clock."""

    json_schema = {"type": "integer", "format": "int64", "minimum": EARLIEST_MS}

    default_error_messages = {
        "invalid": "Must be an integer, epoch milliseconds.",
        "range": "Must be epoch milliseconds from 2015-01-01 to 24 hours ahead.",
    }

    def read(self, value: Any) -> int:
        if type(value) is not int:
            raise self.make_error("invalid")
        if not is_plausible(value):
            raise self.make_error("range")
        return value


def is_plausible(epoch_ms: int) -> bool:
    return EARLIEST_MS <= epoch_ms <= time.time() * 1000 + AHEAD_MS


def uuid7_time(text: str) -> int | None:
    """Return the time in a UUIDv7 (RFC 9562, section 5.7), in epoch milliseconds; None for any other UUID."""
    value = uuid.UUID(text)
    return value.int >> 80 if value.version == 7 and value.variant == uuid.RFC_4122 else None


class Json(RequestField[Any]):
    """JSON of the given Python types, stored as it is except for characters that PostgreSQL can't store."""

    def __init__(self, *types: type, of: tuple[type, ...] = (), **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.types = types
        self.of = of
        names: dict[Any, str] = {dict: "an object", list: "a list", str: "a string"}
        self.error_messages["invalid"] = "Must be " + " or ".join(names[type_] for type_ in types) + "."
        self.error_messages["items"] = "Must be " + " or ".join(names[type_] for type_ in of) + "."
        self.error_messages["many"] = f"More than {MAX_LIST} items."
        json_types: dict[Any, str] = {dict: "object", list: "array", str: "string"}
        self.json_schema: dict[str, Any] = {"type": [json_types[type_] for type_ in types]}
        if of:
            self.json_schema |= {"items": {"type": [json_types[type_] for type_ in of]}, "maxItems": MAX_LIST}

    def read(self, value: Any) -> Any:
        if not isinstance(value, self.types):
            raise self.make_error("invalid")
        if isinstance(value, list):
            if len(value) > MAX_LIST:
                raise self.make_error("many")
            wrong = {
                index: [self.error_messages["items"]]
                for index, item in enumerate(value)
                if not isinstance(item, self.of)
            }
            if wrong:
                raise ma.ValidationError(wrong)
        return self._sanitize(value)

    def _sanitize(self, node: Any) -> Any:
        if isinstance(node, str):
            return sanitize(node)
        if isinstance(node, list):
            return [self._sanitize(item) for item in node]
        if isinstance(node, dict):
            clean = {sanitize(key): self._sanitize(item) for key, item in node.items()}
            return clean if len(clean) == len(node) else self._numbered(node)
        return node

    def _numbered(self, node: dict[str, Any]) -> dict[str, Any]:
        """An object of which two keys become equal: the later ones are called `key#2`, `key#3`, ..."""
        clean: dict[str, Any] = {}
        names = {sanitize(key) for key in node}
        numbers: dict[str, int] = {}
        for key, item in node.items():
            name = wanted = sanitize(key)
            while name in clean or (name != wanted and name in names):
                numbers[wanted] = numbers.get(wanted, 1) + 1
                name = f"{wanted}#{numbers[wanted]}"
            clean[name] = self._sanitize(item)
        return clean


class Time(AnswerField[str]):
    """A time of the database in an answer: RFC 3339 in UTC."""

    json_schema = {"type": "string", "format": "date-time"}

    def write(self, value: Any) -> str | None:
        if value is None:
            return None
        return str(value.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z"))
