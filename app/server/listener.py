"""The seam to gevent's server: how a worker accepts connections. tests/server/test_seams.py watches over it."""

from __future__ import annotations

import contextlib
import time

from gevent.server import StreamServer
from gunicorn.workers import ggevent

# Connections in quick succession, less than a second between two of them, after which they count as an accept burst;
# and how many a worker then accepts in one loop tick.
BURST = 64
BURST_ACCEPTS = 64


class Listener(StreamServer):
    """gevent's server, with faster accepts in a burst, and without connections that a stop resets.

    Workers that accept one connection in a loop tick share them evenly. Behind a burst of thousands, though, a request
    for /livez would wait for as many ticks. At a stop the kernel resets connections that nobody has accepted.
    """

    _in_succession, _last = 0, 0.0

    def _do_read(self) -> None:
        now = time.monotonic()
        self._in_succession, self._last = (self._in_succession + 1 if now < self._last + 1 else 0), now
        self.max_accept = BURST_ACCEPTS if self._in_succession > BURST else 1
        super()._do_read()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            while not self.closed and not self.full() and (client := self.do_read()):
                self.do_handle(*client)
        super().close()


def install() -> None:
    """Have gunicorn's gevent worker use it: its `run` takes the class from its module."""
    ggevent.StreamServer = Listener
