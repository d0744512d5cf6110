"""Parse JSON as strictly as the contract asks, and say where a value can't be accepted."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from typing import Any

MAX_DEPTH = 32


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


def parse(body: bytes) -> tuple[Any, bool]:
    """Parse JSON (RFC 8259).

    Returns the value, and whether `violations` may find something in it: a number that is not finite or beyond 64 bits,
    a duplicate key, nesting too deep. Raises ValueError for anything that is not JSON in UTF-8.
    """
    text = body.decode("utf-8")
    try:
        try:
            # Without 33 brackets there can't be 33 levels.
            return _STRICT.decode(text), body.count(b"{") + body.count(b"[") > MAX_DEPTH
        except _Found:
            return _LOCATING.decode(text), True
    except RecursionError:
        raise ValueError("nested too deep") from None


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
        if len(text) <= 20 and -(2**63) <= (number := int(text)) < 2**63:
            return number
        return violation("An integer is beyond 64 bits.")

    def fraction(text: str) -> Any:
        number = float(text)
        return number if math.isfinite(number) else violation("A number is too large.")

    def members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        object_ = dict(pairs)
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


def _raise_found(message: str) -> Any:
    raise _Found(message)


_STRICT = _decoder(_raise_found)
_LOCATING = _decoder(Violation)
