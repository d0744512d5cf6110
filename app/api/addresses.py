"""MAC and IP addresses of devices: what can be read is kept as written, the rest is named in a warning."""

from __future__ import annotations

import ipaddress
import re
from typing import Any

from marshmallow import fields

from app.api.schemas import RequestField

MAX_ADDRESSES = 1000
MAX_WARNINGS = 50

_SEPARATOR = re.compile("[:.-]")
_HEXADECIMAL = re.compile("[0-9a-fA-F]+")
_ZONE = "(%[!-$&-.0-Z^-~]{1,64})?"
_IP = re.compile(
    rf"(\[(?P<bracketed>[0-9a-fA-F:.]{{2,45}}){_ZONE}\]|(?P<bare>[0-9a-fA-F:.]{{2,45}}){_ZONE})(/(?P<length>[0-9]{{1,3}}))?"
)


class Addresses(RequestField[list[Any]]):
    """A list, any items of which are taken: `readable` tells which are addresses. kind: mac or ip."""

    default_error_messages = {"invalid": "Must be a list."}
    _kinds = {
        "mac": ("MAC addresses", "not a MAC address"),
        "ip": ("IPv4 and IPv6 addresses", "not an IPv4 or IPv6 address"),
    }

    def __init__(self, kind: str, **kwargs: Any) -> None:
        name, self.fault = self._kinds[kind]
        description = f"{name}. What can't be read is left out and named in `warnings`."
        super().__init__(**kwargs, metadata={"description": description})
        self.is_address = is_mac if kind == "mac" else is_ip
        self.json_schema = {"type": "array", "items": {}}

    def read(self, value: Any) -> list[Any]:
        if not isinstance(value, list):
            raise self.make_error("invalid")
        return value

    def readable(self, items: list[Any]) -> tuple[list[str] | None, list[str]]:
        """The first MAX_ADDRESSES addresses, and a warning for each item that is left out, MAX_WARNINGS at most.

        The addresses are None where none of the items can be read, so that they overwrite nothing.
        """
        kept: list[str] = []
        warnings: list[str] = []
        for index, item in enumerate(items[:MAX_ADDRESSES]):
            if isinstance(item, str) and self.is_address(item):
                kept.append(item)
            elif len(warnings) < MAX_WARNINGS:
                warnings.append(f"{self.name}[{index}] is left out, {self.fault}: {ascii(item)[:80]}")
        if len(items) > MAX_ADDRESSES:
            warnings.append(f"{self.name}: items from the {MAX_ADDRESSES + 1}st on are left out")
        return (kept if kept or not items else None), warnings


class Warnings(fields.List[str]):
    """In an answer: sentences about addresses that were left out."""

    def __init__(self) -> None:
        description = "Addresses that could not be read and were left out."
        super().__init__(fields.String(), required=True, metadata={"description": description})


def is_mac(text: str) -> bool:
    """Whether a text is 6, 8 or 20 octets in hexadecimal, in groups of one or two with one separator, or in one."""
    groups = _SEPARATOR.split(text)
    sizes = set(map(len, groups))
    return (
        len(text) - len(groups) + 1 in (12, 16, 40)
        and len(set(_SEPARATOR.findall(text))) <= 1
        and (len(groups) == 1 or sizes in ({2}, {4}))
        and _HEXADECIMAL.fullmatch("".join(groups)) is not None
    )


def is_ip(text: str) -> bool:
    """Whether a text is an IPv4 or IPv6 address, with or without zone (RFC 4007), brackets and prefix length."""
    match = _IP.fullmatch(text)
    if match is None:
        return False
    try:
        address = ipaddress.ip_address(match["bracketed"] or match["bare"])
    except ValueError:
        return False
    return int(match["length"] or 0) <= address.max_prefixlen
