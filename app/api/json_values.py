"""Parse JSON as strictly as the contract asks, and say where a value can't be accepted."""

from __future__ import annotations

import json
import math
import re
import secrets
from collections.abc import Callable, Iterator
from typing import Any

MAX_DEPTH = 32
MAX_INTEGER = 2**64 - 1
MIN_INTEGER = -(2**63)
# Values in a text that is looked through for what is nested too deep.
MAX_SCANNED_VALUES = 400_000

_STRING = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)
_STRING_OR_BRACKET = re.compile(r'"(?:[^"\\]|\\.)*"|[\[{\]}]', re.DOTALL)


class Violation:
    """Stands in a parsed body for a value that can't be accepted, so that a batch refuses just the item around it."""

    __slots__ = ("message",)

    def __init__(self, message: str) -> None:
        self.message = message


class DuplicateKeyDict(dict[str, Any]):
    """An object that names a key twice."""

    message = "An object has the same key twice."


class _Found(ValueError):
    """A violation was found: the body is parsed once more, to say where."""


class TooManyValues(ValueError):
    """The text holds more values than it may."""


def parse(body: bytes, max_values: int) -> tuple[Any, bool]:
    """Parse JSON (RFC 8259). Bytes that are not UTF-8 become U+FFFD.

    Returns the value, and whether `violations` may find something in it: a number that is not finite or beyond 64 bits,
    a duplicate key, nesting too deep. Raises ValueError for anything that is not JSON, TooManyValues.
    """
    text = body.decode("utf-8", "replace")
    if _has_more_values(body, max_values):
        if _has_more_values(body, MAX_SCANNED_VALUES):
            raise TooManyValues
        # What is nested too deep costs its item, and does not count.
        text = _without_depths(text)
        if _has_more_values(text.encode("utf-8", "replace"), max_values):
            raise TooManyValues
        return _locate(text), True
    try:
        # Without 33 brackets there can't be 33 levels.
        return _STRICT.decode(text), body.count(b"{") + body.count(b"[") > MAX_DEPTH
    except _Found:
        return _locate(text), True
    except RecursionError:
        return _locate(_without_depths(text)), True


def _locate(text: str) -> Any:
    try:
        return _LOCATING.decode(text)
    except RecursionError:
        return _LOCATING.decode(_without_depths(text))


def _without_depths(text: str) -> str:
    """The text with a Violation in the place of what is nested so deep that a recursive parser would give up.

    Two levels more than allowed stay, so that a batch finds the item around it.
    """
    pieces: list[str] = []
    depth = position = 0
    for match in _STRING_OR_BRACKET.finditer(text):
        bracket = match[0]
        if bracket in "[{":
            depth += 1
            if depth == MAX_DEPTH + 4:
                pieces += (text[position : match.start()], _TOO_DEEP)
        elif bracket in "]}":
            if depth == MAX_DEPTH + 4:
                position = match.end()
            depth -= 1
    if depth > 0 and depth >= MAX_DEPTH + 4:
        raise ValueError("not closed")
    pieces.append(text[position:])
    return "".join(pieces)


def _has_more_values(body: bytes, limit: int) -> bool:
    """Whether a JSON text holds more values than `limit`, told by its separators, without parsing it."""
    if body.count(b",") + body.count(b"{") + body.count(b"[") <= limit:
        return False
    # A value comes with four quotes at most, two of its key and two of its own.
    if body.count(b'"') - body.count(b'\\"') > 4 * limit + 4:
        return True
    # Separators in strings don't count.
    text = _STRING.sub("", body.decode("latin-1"))
    return text.count(",") + text.count("{") + text.count("[") > limit


def violations(value: Any, max_depth: int = MAX_DEPTH) -> Iterator[str]:
    """What can't be accepted in a parsed value: its Violations, duplicate keys, nesting deeper than allowed."""
    if not _may_have_violations(value, max_depth):
        return
    level: list[Any] = [value]
    depth = 0
    while level:
        containers = [node for node in level if isinstance(node, (dict, list))]
        for node in level:
            if isinstance(node, (Violation, DuplicateKeyDict)):
                yield node.message
        depth += bool(containers)
        if containers and depth > max_depth:
            yield f"Nested deeper than {max_depth} levels."
            return
        level = [child for node in containers for child in (node.values() if isinstance(node, dict) else node)]


def _may_have_violations(value: Any, max_depth: int) -> bool:
    """Whether there is a Violation in a parsed value, or so many objects and lists that they might lie too deep."""
    if type(value) in (DuplicateKeyDict, Violation):
        return True
    left = [value] if type(value) in (dict, list) else []
    containers = len(left)
    while left:
        node = left.pop()
        for child in node.values() if type(node) is dict else node:
            kind = type(child)
            if kind is dict or kind is list:
                left.append(child)
                containers += 1
            elif kind is Violation or kind is DuplicateKeyDict:
                return True
        if containers > max_depth:
            return True
    return False


def _decoder(violation: Callable[[str], Any]) -> json.JSONDecoder:
    """A decoder that puts what `violation` returns in the place of a fault, unless that raises."""

    def integer(text: str) -> Any:
        # 20 characters hold every 64-bit integer; longer ones would be costly to convert.
        if len(text) <= 20 and MIN_INTEGER <= (number := int(text)) <= MAX_INTEGER:
            return number
        return violation("An integer is beyond 64 bits.")

    def fraction(text: str) -> Any:
        number = float(text)
        return number if math.isfinite(number) else violation("A number is too large.")

    def members(pairs: list[tuple[str, Any]]) -> Any:
        object_ = dict(pairs)
        if _TOO_DEEP_KEY in object_:
            return Violation(f"Nested deeper than {MAX_DEPTH} levels.")
        if len(object_) != len(pairs):
            violation(DuplicateKeyDict.message)
            return DuplicateKeyDict(object_)
        return object_

    return json.JSONDecoder(
        object_pairs_hook=members,
        parse_int=integer,
        parse_float=fraction,
        parse_constant=lambda name: violation(f"{name} is not JSON."),
    )


# An object that no client can send, since its key is random.
_TOO_DEEP_KEY = secrets.token_hex(16)
_TOO_DEEP = f'{{"{_TOO_DEEP_KEY}": 0}}'


def _raise_found(message: str) -> Any:
    raise _Found(message)


_STRICT = _decoder(_raise_found)
_LOCATING = _decoder(Violation)
