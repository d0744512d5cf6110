"""Logs are JSON lines on standard error: one object a line, UTC times, never a body, a token or a key."""

from __future__ import annotations

import contextlib
import json
import logging
import select
import sys
import time
import traceback
from datetime import UTC, datetime
from typing import Any

import orjson
from gevent import monkey

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
        fields: dict[str, Any] = getattr(record, "fields", {})
        if record.exc_info and record.exc_info[0]:
            at = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in traceback.extract_tb(record.exc_info[2])]
            fields = {**fields, "exception": record.exc_info[0].__name__, "at": at[-12:]}
        return _line(record.created, record.levelname.lower(), record.name, record.getMessage(), fields)


class StandardError(logging.Handler):
    """Writes to what sys.stderr is at the time, which a supervisor or a test may have replaced."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            _write(self.format(record))
        except Exception:
            self.handleError(record)


def write(logger: str, message: str, fields: dict[str, Any]) -> None:
    """Write a line of level info: what is written for every request need not pass through records and handlers."""
    # As logging has it: that a line can't be written is no reason to fail.
    with contextlib.suppress(OSError, ValueError):
        _write(_line(time.time(), "info", logger, message, fields))


class _Output:
    """Standard error, which never blocks: a line that its reader has no room for is dropped and counted.

    A pipe that poll(2) calls writable takes 4096 bytes at once (POSIX, PIPE_BUF): several processes' lines.
    """

    def __init__(self) -> None:
        self._stream: Any = None
        self._descriptor: int | None = None
        self._dropped = 0

    def write(self, line: str) -> None:
        stream = sys.stderr
        if stream is None:
            # It was closed before the process began.
            return
        if stream is not self._stream:
            self._watch(stream)
        if self._descriptor is not None and not _is_writable(self._descriptor):
            self._dropped += 1
            return
        if self._dropped:
            fields, self._dropped = {"lines": self._dropped}, 0
            line = f"{_line(time.time(), 'warning', 'watchpost.logging', 'dropped log lines', fields)}\n{line}"
        # In one piece, so that lines of several processes don't mix.
        stream.write(line + "\n")
        stream.flush()

    def _watch(self, stream: Any) -> None:
        self._stream, self._descriptor = stream, None
        with contextlib.suppress(OSError, ValueError):
            self._descriptor = stream.fileno()


def _is_writable(descriptor: int) -> bool:
    # gevent's own poll would let other greenlets run.
    poll = monkey.get_original("select", "poll")()
    poll.register(descriptor, select.POLLOUT)
    return bool(poll.poll(0))


_write = _Output().write


def _line(moment: float, level: str, logger: str, message: str, fields: dict[str, Any]) -> str:
    line = {
        "time": datetime.fromtimestamp(moment, UTC).isoformat(timespec="milliseconds"),
        "level": level,
        "logger": logger,
        "message": message,
        **fields,
    }
    text = orjson.dumps(line).decode()
    # Escapes what is not ASCII: a terminal may take it for a command, a file may be of another encoding.
    return text if text.isascii() else json.dumps(line, separators=(",", ":"))


def config(level: str) -> dict[str, Any]:
    """The logging configuration (`logging.config.dictConfig`) of a worker, of gunicorn and of the command line."""
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"json": {"()": "app.telemetry.logging.JSONLines"}},
        "handlers": {"stderr": {"class": "app.telemetry.logging.StandardError", "formatter": "json"}},
        "root": {"level": level, "handlers": ["stderr"]},
        "loggers": {
            "gunicorn.error": {"level": level, "propagate": True, "handlers": []},
            # It may quote the address of a collector with its password; app/telemetry/tracing.py logs its failures.
            "opentelemetry": {"level": "CRITICAL"},
            "authlib": {"level": "WARNING"},
            "psycopg.pool": {"level": "ERROR"},
            "yoyo": {"level": "WARNING"},
        },
    }
