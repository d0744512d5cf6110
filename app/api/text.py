"""What text may be: for PostgreSQL, and for names in tokens and commands."""

from __future__ import annotations

import re
from typing import Any

# PostgreSQL can store neither NUL nor lone surrogates; browsers send both.
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


def sanitize(text: str) -> str:
    """Return the text with each NUL and lone surrogate replaced by U+FFFD."""
    return _UNSTORABLE.sub("\ufffd", text) if not text.isascii() or "\x00" in text else text


def is_name(value: Any, max_length: int = 256) -> bool:
    """Whether a value is printable ASCII text of 1 to `max_length` characters."""
    return isinstance(value, str) and 0 < len(value) <= max_length and value.isascii() and value.isprintable()
