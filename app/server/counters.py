"""The folder in which gunicorn's workers count for `/metrics`, see app/telemetry/metrics.py.

The master makes it, so this module must not import what gevent patches in a worker.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from pathlib import Path

PREFIX = "watchpost-counters-"


def make_folder() -> str:
    """Make the folder of this service, and remove those of services that were killed.

    A lock on it says that it is in use; the kernel releases it when master and workers are gone.
    """
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        # It may be another user's.
        with contextlib.suppress(OSError):
            _remove_if_unused(folder)
    while True:
        made = tempfile.mkdtemp(prefix=PREFIX)
        with contextlib.suppress(FileNotFoundError):
            # Never closed, and inherited by the workers.
            fcntl.flock(os.open(made, os.O_RDONLY | os.O_DIRECTORY), fcntl.LOCK_SH)
            # Another start may have taken it for one that nobody uses.
            if Path(made).exists():
                return made


def _remove_if_unused(folder: Path) -> None:
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(opened)
