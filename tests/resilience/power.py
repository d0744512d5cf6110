"""Power that fails under load: what had not been synced to the disk by then is gone, as after a pulled plug.

The machine's data lie on an ext4 file system of their own, in a file behind a loop device. `shutdown` makes it drop at
once whatever it has not written; mounted again, it replays its journal, and holds what a disk would hold.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import subprocess
import time
from collections.abc import Generator
from pathlib import Path

from tests.resilience import Finding, Plan, kills
from tests.resilience.machine import Machine
from tests.support.fleet import Fleet

# EXT4_IOC_SHUTDOWN and EXT4_GOING_FLAGS_NOLOGFLUSH of linux/fs/ext4/ext4.h: not even the journal is written.
SHUTDOWN, WITHOUT_THE_JOURNAL = 0x8004587D, 2
IMAGE_BYTES = 2**30


def run(plan: Plan) -> Generator[Finding, None, None]:
    what = "power failure: all that was not synced is gone"
    try:
        disk = Disk(plan.folder)
    except (OSError, subprocess.CalledProcessError):
        yield Finding(what, "-", "only root may mount a file system, and it needs a loop device", None)
        return
    with disk:
        computer = Machine(plan.folder)
        try:
            yield kills.rounds(what, plan, computer, Fleet(computer.service), disk.power_failure)
            yield _control(plan, computer, disk)
        finally:
            computer.kill_what_is_left()


class Disk(contextlib.AbstractContextManager["Disk"]):
    """A file system for a machine's data, that can lose its power. Raises OSError, CalledProcessError."""

    def __init__(self, folder: Path) -> None:
        self._image = folder / "disk.img"
        self._place = folder / "data"
        self._place.mkdir(mode=0o755)
        with self._image.open("wb") as file:
            file.truncate(IMAGE_BYTES)
        _run("mkfs.ext4", "-q", self._image)
        self._mount()

    def __exit__(self, *_: object) -> None:
        subprocess.run(["umount", "--lazy", self._place], check=False)

    def _mount(self) -> None:
        _run("mount", "-o", "loop", self._image, self._place)
        self._place.chmod(0o755)

    def power_failure(self, computer: Machine) -> None:
        """Drop what is not synced, end everything, and start it all again."""
        self.drop()
        computer.kill_all()
        deadline = time.monotonic() + 30
        # The killed may hold it for a moment still.
        while subprocess.run(["umount", self._place], stderr=subprocess.DEVNULL, check=False).returncode:
            assert time.monotonic() < deadline, "the file system is in use"
            time.sleep(0.05)
        self._mount()
        computer.start()

    def drop(self) -> None:
        place = os.open(self._place, os.O_RDONLY)
        try:
            fcntl.ioctl(place, SHUTDOWN, struct.pack("I", WITHOUT_THE_JOURNAL))
        finally:
            os.close(place)


def _control(plan: Plan, computer: Machine, disk: Disk) -> Finding:
    """The same with a server that syncs nothing: a harness that finds nothing here is blind."""
    os.sync()
    computer.set(fsync="off")
    fleet = Fleet(computer.service)
    with fleet.reporting():
        fleet.until(plan.rows)
        disk.power_failure(computer)
        fleet.until(1)
    verdict = fleet.compare(computer.url)
    count = f"1 round, {len(fleet.acknowledged):,} rows acknowledged"
    return Finding("control: the same with fsync=off", count, f"lost {verdict.lost}, as it has to", verdict.lost > 0)


def _run(*command: str | Path) -> None:
    subprocess.run(command, capture_output=True, check=True)
