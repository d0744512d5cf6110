"""Logs are JSON lines on standard error: one object a line, UTC times, never a body, a token or a key."""

from __future__ import annotations

import json
import logging
import sys
import traceback
from datetime import UTC, datetime
from typing import Any

import orjson

# What no line shows need not be found out for each of them.
logging.logThreads = False
logging.logProcesses = False
logging.logMultiprocessing = False
logging._srcfile = None


class JSONLines(logging.Formatter):
    """Formats a record as one JSON object.

    What a caller passes as `extra={"fields": {...}}` becomes members of the object. Of an exception only the type and
    the places in the code are written: its text may quote what a client sent.
    """

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line.update(getattr(record, "fields", {}))
        if record.exc_info and record.exc_info[0]:
            line["exception"] = record.exc_info[0].__name__
            line["at"] = [
                f"{frame.filename}:{frame.lineno} {frame.name}" for frame in traceback.extract_tb(record.exc_info[2])
            ][-12:]
        text = orjson.dumps(line).decode()
        # Escapes what is not ASCII: a terminal may take it for a command, a file may be of another encoding.
        return text if text.isascii() else json.dumps(line, separators=(",", ":"))


class StandardError(logging.StreamHandler[Any]):
    """Writes to what sys.stderr is at the time, which a supervisor or a test may have replaced."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> Any:
        return sys.stderr

    @stream.setter
    def stream(self, value: Any) -> None:
        """Assigned by StreamHandler; never kept."""


def config(level: str) -> dict[str, Any]:
    """The logging configuration (`logging.config.dictConfig`) of a worker, of gunicorn and of the command line."""
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"json": {"()": "config.logging.JSONLines"}},
        "handlers": {"stderr": {"class": "config.logging.StandardError", "formatter": "json"}},
        "root": {"level": level, "handlers": ["stderr"]},
        "loggers": {
            "gunicorn.error": {"level": level, "propagate": True, "handlers": []},
            "authlib": {"level": "WARNING"},
            "psycopg.pool": {"level": "ERROR"},
            "yoyo": {"level": "WARNING"},
        },
    }
