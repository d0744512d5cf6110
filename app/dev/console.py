"""What `make run` says about itself: a few lines for a person at a terminal, else JSON lines for a log."""

from __future__ import annotations

import contextlib
import logging
from typing import Any

from app.telemetry.logging import OUTPUT, is_terminal
from config.settings import Settings

log = logging.getLogger("watchpost.serve")

MINT = '.venv/bin/flask --app wsgi enrollment create --label "First laptop" --max-uses 1 --expires-in 1d'


class Console:
    def __init__(self) -> None:
        self._is_terminal = is_terminal()

    def step(self, part: str, text: str, **fields: Any) -> None:
        """Say what one part of the service has just done."""
        if self._is_terminal:
            _write(f"{part:<12} {text}")
        else:
            log.info("%s: %s", part, text, extra={"fields": fields})

    def ready(self, settings: Settings) -> None:
        """Say that the service answers, where, and what to do next."""
        address = f"http://{settings.bind}"
        if not self._is_terminal:
            log.info("the service answers", extra={"fields": {"address": address, "docs": f"{address}/docs"}})
            return
        _write(
            f"{'service':<12} answers at {address}\n\n"
            f"  Documentation of the API:       {address}/docs\n"
            "  An enrolment for a laptop, in another terminal in this folder:\n"
            f"    {MINT}\n"
            "  Stop: Ctrl-C\n"
        )


def _write(text: str) -> None:
    # A terminal that is gone is no reason to stop.
    with contextlib.suppress(ValueError, OSError):
        OUTPUT.write(text)
