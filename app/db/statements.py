"""The `.sql` files, read when a worker starts: a missing one stops it."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[2] / "sql"
LABELS = ("Returns", "Fails", "Index", "Scans", "Calls", "Reads", "Locks", "Load")


@dataclasses.dataclass(frozen=True)
class Statement:
    """One SQL statement.

    name: folder and file without ending, such as `prompts/insert_prompts`.
    text: what is sent. The name follows its first word as a comment, so that pg_stat_activity and pg_stat_statements
    show which file it is; the file's other comments are left out, since psycopg would read placeholders in them.
    """

    name: str
    text: str


def statement(name: str) -> Statement:
    """Load the statement of the file `sql/<name>.sql`. Raises FileNotFoundError."""
    lines = _path(name).read_text(encoding="utf-8").splitlines()
    code = "\n".join(line for line in lines if not line.lstrip().startswith("--"))
    # Not before the first word: from PostgreSQL 18 on pg_stat_statements leaves out what comes before it.
    verb, rest = re.split(r"(?=\s)", code.strip().removesuffix(";"), maxsplit=1)
    return Statement(name, f"{verb} /* {name} */{rest}")


def names() -> list[str]:
    """The names of all statements."""
    return sorted(str(path.relative_to(FOLDER).with_suffix("")) for path in FOLDER.rglob("*.sql"))


def header(name: str) -> dict[str, str]:
    """What the header of a file says: the text behind each of its labels, in one line. Labels are those of LABELS."""
    said: dict[str, str] = {}
    label = ""
    for line in _path(name).read_text(encoding="utf-8").splitlines():
        if not line.startswith("--"):
            break
        if labelled := re.match(rf"-- ({'|'.join(LABELS)})\s+(.*)", line):
            label = labelled[1]
            said[label] = labelled[2]
        elif label:
            said[label] += " " + line.removeprefix("--").strip()
    return said


def _path(name: str) -> Path:
    return FOLDER / f"{name}.sql"
