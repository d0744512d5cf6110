"""The `.sql` files, read when a worker starts: a missing one stops it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[2] / "sql"


@dataclasses.dataclass(frozen=True)
class Statement:
    """One SQL statement.

    name: folder and file without ending, such as `prompts/insert_prompts`.
    text: what is sent. It begins with the name as a comment, so that pg_stat_activity and pg_stat_statements show
    which file it is; the file's other comments are left out, since psycopg would read placeholders in them.
    """

    name: str
    text: str


def statement(name: str) -> Statement:
    """Load the statement of the file `sql/<name>.sql`. Raises FileNotFoundError."""
    lines = (FOLDER / f"{name}.sql").read_text(encoding="utf-8").splitlines()
    code = "\n".join(line for line in lines if not line.lstrip().startswith("--"))
    return Statement(name, f"-- {name}\n{code.strip().removesuffix(';')}")
