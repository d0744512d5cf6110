"""What a disk keeps when the power fails, and folders that nobody else may write to."""

from __future__ import annotations

import logging
import os
import stat
from pathlib import Path

log = logging.getLogger(__name__)


def sync(path: Path) -> None:
    """Return when a file's content, or the names in a folder, are on the disk (fsync(2))."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def make_folder(folder: Path) -> None:
    """Have a folder, parents included, that only its owner may write to, whatever the umask is.

    One that exists is changed accordingly if it is ours, unless it is shared on purpose (sticky, as /tmp is).
    """
    for missing in [path for path in (*reversed(folder.parents), folder) if not path.exists()]:
        missing.mkdir(mode=0o755, exist_ok=True)
    found = folder.stat()
    if found.st_uid == os.geteuid() and found.st_mode & 0o002 and not found.st_mode & stat.S_ISVTX:
        log.warning("closed a folder to other users", extra={"fields": {"folder": str(folder)}})
        folder.chmod(stat.S_IMODE(found.st_mode) & ~0o002)
