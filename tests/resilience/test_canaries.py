"""Marked secrets pass through faults of many kinds and are found nowhere (tests/resilience/canaries.py has all)."""

from __future__ import annotations

import signal
from pathlib import Path

from tests.resilience import canaries


def test_no_marked_secret_leaks_into_logs_metrics_or_answers(folder: Path, database_url: str, server: str) -> None:
    search = canaries.Search(canaries.Marks())
    with (
        canaries.temporary_folder(folder) as temporary,
        # Requests wait for a lock for half of that, and in the meantime the worker has to be killed.
        canaries.site(folder, database_url, search, workers=1, statement_timeout_ms=1000) as site,
    ):
        canaries.bodies(site, ("/api/prompt",))
        canaries.callers(site)
        canaries.database(site, (signal.SIGKILL,))
        canaries.everywhere(site, Path(server) / "server.log", temporary)
    assert search.leaks == set()
    assert {"400", "401", "403", "404", "409", "413", "415", "500", "503", "cut"} <= set(search.faults)
    places = {place.split(" to ")[0] for place in search.searched}
    assert {"answer", "metrics", "the service's log", "PostgreSQL's log", "process list", "pg_stat_activity"} <= places


def test_the_search_finds_a_mark_in_whatever_form() -> None:
    search = canaries.Search(canaries.Marks())
    assert [name for name, is_found in canaries.controls(search).items() if not is_found] == []
    assert search.marks.found(b"2026 request canary-prompt-end") == set()
