"""Where settings come from: the environment, else one file.

The file has the syntax of systemd's `EnvironmentFile`, so that a unit and the commands of an operator can share it.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from config.checks import PREFIX, SettingError

# Names the file.
CONFIG = PREFIX + "CONFIG"
# The file when CONFIG is not set, if it can be read.
DEFAULT_FILE = Path("/etc/watchpost/watchpost.env")
_LINE = re.compile(r"(?:export\s+)?([A-Za-z_][A-Za-z0-9_]*)\s*=\s*(.*)", re.DOTALL)
_QUOTED = re.compile(r"'([^']*)'|\"((?:[^\"\\]|\\.)*)\"", re.DOTALL)


def read(environ: Mapping[str, str]) -> dict[str, str]:
    """Return all WATCHPOST_ variables; a variable of the environment takes precedence over the file.

    Raises SettingError when the file that WATCHPOST_CONFIG names can't be read, or when a line of it is not NAME=value.
    """
    own = {name: value for name, value in environ.items() if name.startswith(PREFIX)}
    text = _text(environ)
    return own if text is None else {**_parsed(text, _file(environ)), **own}


def description(environ: Mapping[str, str]) -> str:
    """Say in which places settings were looked for, as the end of a sentence."""
    file = _file(environ)
    if environ.get(CONFIG):
        return f"in the environment and in {file}"
    reason = "" if _text(environ) is not None else ", which is missing or can't be read"
    return f"in the environment and in {file}{reason}"


def unknown(names: Iterable[str], known: Iterable[str]) -> list[tuple[str, str | None]]:
    """Return each WATCHPOST_ variable that is no setting, with the most similar known name if there is one."""
    candidates = {name.removeprefix(PREFIX): name for name in (*known, CONFIG)}
    found: list[tuple[str, str | None]] = []
    for name in sorted(names):
        if name.startswith(PREFIX) and name not in candidates.values():
            similar = difflib.get_close_matches(name.removeprefix(PREFIX), candidates, 1)
            found.append((name, candidates[similar[0]] if similar else None))
    return found


def _file(environ: Mapping[str, str]) -> Path:
    return Path(environ.get(CONFIG) or DEFAULT_FILE)


def _text(environ: Mapping[str, str]) -> str | None:
    try:
        return _file(environ).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        if environ.get(CONFIG):
            reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
            raise SettingError(f"{CONFIG} names a file that can't be read: {reason}.") from None
        return None


def _parsed(text: str, file: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    # A backslash at the end of a line continues it.
    lines = re.split(r"(?<!\\)\n", text.replace("\r\n", "\n"))
    for number, line in enumerate(lines, 1):
        entry = line.strip()
        if not entry or entry[0] in "#;":
            continue
        match = _LINE.fullmatch(entry)
        if match is None:
            raise SettingError(f"Entry {number} of {file} is not NAME=value.")
        if match[1].startswith(PREFIX):
            found[match[1]] = _unquoted(match[2].strip())
    return found


def _unquoted(value: str) -> str:
    quoted = _QUOTED.fullmatch(value)
    if quoted is None:
        return value.replace("\\\n", "")
    if quoted[1] is not None:
        return quoted[1]
    return re.sub(r"\\(.)", lambda escape: "" if escape[1] == "\n" else escape[1], quoted[2], flags=re.DOTALL)
