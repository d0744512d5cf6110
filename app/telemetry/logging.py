"""Logs: JSON lines on standard error, one object a line, with times in UTC; never a body, a token or a key."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import time
import traceback
from datetime import UTC, datetime
from typing import Any

import orjson

# No line shows these, so they are not determined for each record (Python's HOWTO on logging, "Optimization").
logging.logThreads = False
logging.logProcesses = False
logging.logMultiprocessing = False
logging._srcfile = None


class JSONLines(logging.Formatter):
    """Formats a record as one JSON object.

    The members of `extra={"fields": {...}}` become members of the object. An exception is its type and the places in
    the code: its text may quote a client.
    """

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = getattr(record, "fields", {})
        if record.exc_info and record.exc_info[0]:
            at = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in traceback.extract_tb(record.exc_info[2])]
            fields = {**fields, "exception": record.exc_info[0].__name__, "at": at[-12:]}
        return _line(record.created, record.levelname.lower(), record.name, record.getMessage(), fields)


class StandardError(logging.Handler):
    """Writes to the current sys.stderr, which a supervisor or a test may have replaced."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            _write(self.format(record))
        except Exception:
            self.handleError(record)


def write(logger: str, message: str, fields: dict[str, Any]) -> None:
    """Write a line of level info without a log record and handlers: quicker, for the line of each request."""
    # Like a logging handler, it does not fail when the line can't be written.
    with contextlib.suppress(OSError, ValueError):
        _write(_line(time.time(), "info", logger, message, fields))


def _write(line: str) -> None:
    # One write for the whole line, so that lines of several processes don't mix.
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def _line(moment: float, level: str, logger: str, message: str, fields: dict[str, Any]) -> str:
    line = {
        "time": datetime.fromtimestamp(moment, UTC).isoformat(timespec="milliseconds"),
        "level": level,
        "logger": logger,
        "message": message,
        **fields,
    }
    text = orjson.dumps(line).decode()
    # Other characters are escaped: a terminal may interpret them, and a file may have another encoding.
    return text if text.isascii() else json.dumps(line, separators=(",", ":"))


def config(level: str) -> dict[str, Any]:
    """Return the configuration for `logging.config.dictConfig` of a worker, of gunicorn and of the command line."""
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"json": {"()": "app.telemetry.logging.JSONLines"}},
        "handlers": {"stderr": {"class": "app.telemetry.logging.StandardError", "formatter": "json"}},
        "root": {"level": level, "handlers": ["stderr"]},
        "loggers": {
            "gunicorn.error": {"level": level, "propagate": True, "handlers": []},
            # It may quote a collector's address with its password; app/telemetry/tracing.py logs the failures.
            "opentelemetry": {"level": "CRITICAL"},
            "authlib": {"level": "WARNING"},
            "psycopg.pool": {"level": "ERROR"},
            "yoyo": {"level": "WARNING"},
        },
    }
