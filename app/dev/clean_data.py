"""`make clean-data`: remove the data directory, after a question, and not while anything uses it.

It needs the standard library only, so that it works after `make clean`.
"""

from __future__ import annotations

import contextlib
import fcntl
import shutil
import socket
import sys
from pathlib import Path

from config.settings import SettingError, load

# app/dev/embedded.py holds it while the server is in use.
LOCK = "postgres.lock"
# The setting may name a folder that holds other things too.
OURS = ("postgresql", "postgresql.new", "signing-keys.json", "signing-keys.json.new", "postgres.starting", LOCK)


def main() -> int:
    try:
        settings = load()
    except SettingError as error:
        return _fail(str(error))
    folder = Path(settings.data_dir).resolve()
    found = [folder / name for name in OURS if (folder / name).exists()]
    if not found:
        sys.stdout.write(f"There is no data in {folder}.\n")
        return 0
    if _answers(settings.bind):
        return _fail(f"a service answers at {settings.bind}: stop it first")
    with open(folder / LOCK, "a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return _fail(f"a service uses {folder}: stop it first")
        sys.stdout.write(f"Remove all data and the signing keys in {folder}? Type yes: ")
        sys.stdout.flush()
        if sys.stdin.readline().strip() != "yes":
            return _fail("nothing was removed")
        for path in found:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        (folder / LOCK).unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        folder.rmdir()
    sys.stdout.write("Removed.\n")
    return 0


def _answers(bind: str) -> bool:
    host, _, port = bind.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=1).close()
    except (OSError, ValueError):
        return False
    return True


def _fail(reason: str) -> int:
    sys.stderr.write(f"{reason}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
