"""A proxy that does to connections what networks do: it delays, cuts, half-closes and falls silent."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
import threading
from collections.abc import Iterator
from typing import Any

CUT, HALF_CLOSE, SILENCE = "cut", "half-close", "silence"


class Proxy:
    """Listens on a free port of this host and passes on what comes.

    upstream: (host, port), or the path of a unix socket. fault: what happens to a connection, if anything. likelihood:
    of it, for each piece of data. delay: seconds by which a piece is late at most. broken: faults that happened.
    """

    def __init__(self, upstream: tuple[str, int] | str) -> None:
        self.upstream = upstream
        self.fault: str | None = None
        self.likelihood = 0.0
        self.delay = 0.0
        self.broken = 0
        self.address = ("127.0.0.1", 0)
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._over: asyncio.Event | None = None
        # asyncio itself keeps weak references only.
        self._tasks: set[asyncio.Task[None] | None] = set()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)

    def _is_due(self) -> bool:
        return self.fault is not None and random.random() < self.likelihood

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._over = asyncio.Event()
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0, backlog=1024)
        self.address = server.sockets[0].getsockname()
        self._ready.set()
        await self._over.wait()
        server.close()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        self._tasks.add(task)
        try:
            await self._join(reader, writer)
        finally:
            self._tasks.discard(task)

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if isinstance(self.upstream, str):
                far_reader, far_writer = await asyncio.open_unix_connection(self.upstream)
            else:
                far_reader, far_writer = await asyncio.open_connection(*self.upstream)
        except OSError:
            _reset(writer)
            return
        both = (writer, far_writer)
        try:
            await asyncio.gather(self._pass_on(reader, far_writer, both), self._pass_on(far_reader, writer, both))
        finally:
            for end in both:
                end.close()

    async def _pass_on(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, both: tuple[asyncio.StreamWriter, ...]
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                if self.delay:
                    await asyncio.sleep(random.uniform(0, self.delay))
                if self._is_due():
                    self.broken += 1
                    # Some of it arrives.
                    writer.write(data[: random.randrange(len(data) + 1)])
                    if self.fault == CUT:
                        for end in both:
                            _reset(end)
                        return
                    if self.fault == HALF_CLOSE:
                        break
                    # Nothing more arrives, and nobody is told, until one end gives up.
                    while await reader.read(65536):
                        pass
                    for end in both:
                        _reset(end)
                    return
                writer.write(data)
                await writer.drain()
            with contextlib.suppress(RuntimeError):
                writer.write_eof()

    def close(self) -> None:
        if self._over is not None:
            self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(60)


@contextlib.contextmanager
def proxying(upstream: tuple[str, int] | str) -> Iterator[Proxy]:
    proxy = Proxy(upstream)
    proxy._thread.start()
    assert proxy._ready.wait(60)
    try:
        yield proxy
    finally:
        proxy.close()


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close at once, with a reset and without what was not sent yet."""
    connection: Any = writer.get_extra_info("socket")
    if connection is not None:
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
