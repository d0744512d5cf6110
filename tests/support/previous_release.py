"""The write statements and migrations of releases that may still run while this one is installed, from git."""

from __future__ import annotations

import subprocess
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# The last commit of each release whose workers may write while this one migrates.
RELEASES = (
    "c30dbc2fc202",  # before event tables were partitioned
    "8d95fc319945",  # before rows were refused by the key of their token
)
WRITES = (
    "browsers/upsert_heartbeats",
    "browsers/upsert_instances",
    "compliance/insert_events",
    "devices/register_devices",
    "devices/upsert_heartbeats",
    "extension/insert_statuses",
    "prompts/insert_prompts",
)


def statements(release: str) -> dict[str, str]:
    """Each write statement of a release, by its name, without comments. Skips the test without the history."""
    return {name: statement(release, name) for name in WRITES}


@cache
def statement(release: str, name: str) -> str:
    """One statement of a release, without comments. Skips the test without the history."""
    text = _git("show", f"{release}:sql/{name}.sql")
    return "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("--"))


@cache
def migrations(release: str) -> list[str]:
    """The names of a release's migrations, in order. Skips the test without the history."""
    files = _git("ls-tree", "--name-only", release, "migrations/").splitlines()
    return sorted(Path(file).stem for file in files if not file.endswith(".rollback.sql"))


def _git(*arguments: str) -> str:
    try:
        found = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("git is not installed: statements of previous releases are read from it")
    if found.returncode:
        pytest.skip(f"git {' '.join(arguments)}: {found.stderr.strip()}: needs a clone with its whole history")
    return found.stdout
