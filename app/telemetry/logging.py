"""Logs are JSON lines on standard error: one object a line, UTC times, never a body, a token or a key.

On a terminal they are lines for a person instead, with the same content.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import time
import traceback
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import orjson

from app.telemetry.stderr import Output

# What no line shows need not be found out for each of them.
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
    def emit(self, record: logging.LogRecord) -> None:
        try:
            OUTPUT.write(self.format(record))
        except OSError:
            # Nobody reads it any more, so nobody can be told.
            return
        except Exception:
            self.handleError(record)


def write(logger: str, message: str, fields: dict[str, Any]) -> None:
    """Write a line of level info without a log record and handlers: quicker, for the line of each request."""
    # Like a logging handler, it does not fail when the line can't be written.
    with contextlib.suppress(OSError, ValueError):
        OUTPUT.write(_line(time.time(), "info", logger, message, fields))


def is_terminal() -> bool:
    """Whether a person reads standard error."""
    return _is_terminal(sys.stderr)


# A question to the kernel, which need not be asked for each line.
@lru_cache(maxsize=2)
def _is_terminal(stream: Any) -> bool:
    # It may be closed.
    with contextlib.suppress(AttributeError, ValueError, OSError):
        return bool(stream.isatty())
    return False


def _line(moment: float, level: str, logger: str, message: str, fields: dict[str, Any]) -> str:
    if is_terminal():
        return _readable(moment, level, logger, message, fields)
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


def _readable(moment: float, level: str, logger: str, message: str, fields: dict[str, Any]) -> str:
    shown = [f"{name}={value}" for name, value in fields.items() if value not in (None, "", [])]
    words = [datetime.fromtimestamp(moment).astimezone().strftime("%H:%M:%S"), level, logger, message, *shown]
    text = " ".join(word for word in words if word != "info")
    # What a client sent must not steer the terminal.
    return "".join(character if character.isprintable() else "\ufffd" for character in text)


def _dropped_line(count: int) -> str:
    return _line(time.time(), "warning", __name__, "log lines were dropped: nobody read them", {"dropped": count})


OUTPUT = Output(_dropped_line)


def config(level: str) -> dict[str, Any]:
    """The logging configuration (`logging.config.dictConfig`) of a worker, of gunicorn and of the command line."""
    quiet = "WARNING" if level == "INFO" else level
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"json": {"()": "app.telemetry.logging.JSONLines"}},
        "handlers": {"stderr": {"class": "app.telemetry.logging.StandardError", "formatter": "json"}},
        "root": {"level": level, "handlers": ["stderr"]},
        "loggers": {
            # What it says at a start a person is told by `make run`.
            "gunicorn.error": {"level": quiet if is_terminal() else level, "propagate": True, "handlers": []},
            # It may quote the address of a collector with its password; app/telemetry/tracing.py logs its failures.
            "opentelemetry": {"level": "CRITICAL"},
            "apscheduler": {"level": "WARNING"},
            "authlib": {"level": "WARNING"},
            "psycopg.pool": {"level": "ERROR"},
            "yoyo": {"level": "WARNING"},
        },
    }
