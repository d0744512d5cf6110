"""Standard error without waiting for whoever reads it: a stalled reader must not stop the service.

A line that does not fit is dropped and counted, and the next one that fits is preceded by a line that says how many
were. Files are written to as usual.
"""

from __future__ import annotations

import _socket
import contextlib
import os
import select
import socket
import stat
import sys
from collections.abc import Callable
from typing import Any

STANDARD_ERROR = 2


class Output:
    """Writes lines to what sys.stderr is at the time, which a test may have replaced.

    dropped_line: makes the line that says how many were dropped.
    """

    def __init__(self, dropped_line: Callable[[int], str]) -> None:
        self._dropped_line = dropped_line
        self._dropped = 0
        self._send: Callable[[bytes], int] | None = None
        # Of a line longer than the reader's buffer, what did not fit.
        self._rest = b""

    def write(self, line: str) -> None:
        """Write one line, or drop it. Raises OSError, ValueError when standard error is broken."""
        stream: Any = sys.stderr
        if stream is None:
            # Closed when the process started; its number may be another file's by now.
            return
        if stream is not sys.__stderr__:
            stream.write(line + "\n")
            stream.flush()
            return
        send = self._send = self._send or _sender(STANDARD_ERROR)
        try:
            if self._rest:
                self._rest = self._rest[send(self._rest) :]
            if self._rest:
                self._dropped += 1
                return
            if self._dropped:
                send((self._dropped_line(self._dropped) + "\n").encode())
                self._dropped = 0
            # In one piece, so that lines of several processes don't mix.
            data = (line + "\n").encode()
            self._rest = data[send(data) :]
        except BlockingIOError:
            self._dropped += 1


def _sender(descriptor: int) -> Callable[[bytes], int]:
    """What writes to a descriptor without waiting, and returns how many bytes it wrote. It raises BlockingIOError.

    The descriptor is shared with other processes, so it stays as it is.
    """
    kind = os.fstat(descriptor).st_mode
    if stat.S_ISSOCK(kind):
        # Of journald. Not gevent's, which would make it non-blocking for all.
        peer = _socket.socket(fileno=os.dup(descriptor))
        return lambda data: peer.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
    if not stat.S_ISFIFO(kind) and not stat.S_ISCHR(kind):
        return lambda data: os.write(descriptor, data)
    with contextlib.suppress(OSError):
        own = os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        return lambda data: os.write(own, data)
    # It belongs to another user, or this is not Linux. Two processes could take the same room, which is rare.
    return lambda data: _write_if_room(descriptor, data)


def _write_if_room(descriptor: int, data: bytes) -> int:
    if not select.select([], [descriptor], [], 0)[1]:
        raise BlockingIOError
    return os.write(descriptor, data)
