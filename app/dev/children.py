"""Child processes that are started again when they die, and that end when their parent does, however it ends."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

log = logging.getLogger("watchpost.serve")

# prctl(2)
PR_SET_PDEATHSIG = 1
RESTART_SECONDS = 1.0
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


class Child:
    """One child process. name: for the log."""

    def __init__(self, name: str, command: Sequence[str]) -> None:
        self.name = name
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None
        self._started_at = 0.0
        self._is_death_logged = False

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def start(self, pass_fds: Sequence[int]) -> None:
        """Start it. pass_fds: descriptors that it holds open for as long as it lives."""
        parent = os.getpid()

        def end_with_parent() -> None:
            # Ignored until the child handles it: a hangup before that must not end it.
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
            if _libc is not None:
                _libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
            if os.getppid() != parent:
                os._exit(1)

        self._is_death_logged = False
        self._started_at = time.monotonic()
        # This process has one thread, so that code may run between fork and exec.
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.DEVNULL,
            pass_fds=pass_fds,
            preexec_fn=end_with_parent,
        )

    def poll(self) -> int | None:
        """Its exit code; None while it runs."""
        return self._process.poll() if self._process else None

    def listens(self) -> bool:
        """Whether it has a listening socket: another service may answer at the same address."""
        import psutil

        with contextlib.suppress(psutil.Error):
            return any(it.status == psutil.CONN_LISTEN for it in psutil.Process(self.pid).net_connections())
        return False

    def start_again_if_dead(self, pass_fds: Sequence[int]) -> None:
        """Start it again, at most once in RESTART_SECONDS."""
        code = self.poll()
        if code is None:
            return
        if not self._is_death_logged:
            self._is_death_logged = True
            log.error("%s died and is started again", self.name, extra={"fields": {"status": code}})
        if time.monotonic() >= self._started_at + RESTART_SECONDS:
            self.start(pass_fds)

    def signal(self, number: int) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)

    def wait(self, deadline: float) -> None:
        """Return when it has ended; kill it at the deadline (by time.monotonic())."""
        if self._process is None:
            return
        try:
            self._process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            log.error("%s does not stop and is killed", self.name)
            self._process.kill()
            self._process.wait()
