"""Load that lasts, of every kind and with everything that goes wrong: memory, descriptors and threads stay flat."""

from __future__ import annotations

import contextlib
import random
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

import psutil

from tests.resilience import Finding, Plan
from tests.resilience.machine import Machine, machine
from tests.support.fleet import Fleet

# Of the whole time, what goes by before the first look: pools, caches and the allocator fill.
WARM_UP = 0.3
LONGEST_WARM_UP = 300
# What a worker may grow by afterwards: memory in MiB; descriptors, since a pool opens and closes as many connections as
# it has places; threads.
MOST_MEMORY = 8.0
MOST_DESCRIPTORS = 8
MOST_THREADS = 2
RATE = 10


@dataclass(frozen=True)
class Size:
    """Of one worker."""

    memory: float
    descriptors: int
    threads: int


def run(plan: Plan) -> Iterator[Finding]:
    with machine(plan.folder / "machine") as computer:
        yield from on(computer, plan)


def on(computer: Machine, plan: Plan) -> Iterator[Finding]:
    """The same on a machine that runs already."""
    fleet = Fleet(computer.service, rate=RATE)
    seconds = plan.minutes * 60
    with fleet.reporting(), _misbehaving(computer):
        fleet.until(plan.rows)
        time.sleep(min(LONGEST_WARM_UP, WARM_UP * seconds))
        before, workers = _sizes(computer), computer.workers()
        time.sleep(max(0.0, seconds - min(LONGEST_WARM_UP, WARM_UP * seconds)))
        after = _sizes(computer)
        is_same = workers == computer.workers()
    verdict = fleet.compare(computer.url)
    yield Finding(
        f"{plan.minutes:g} minutes of load",
        f"{fleet.stored.total():,} rows acknowledged, {sum(fleet.tally.answers.values()):,} answers",
        f"{verdict}; 503 {fleet.tally.answers[503]}" + (f"; {fleet.tally.wrong[:3]}" if fleet.tally.wrong else ""),
        verdict.is_exact and not fleet.tally.wrong and is_same,
    )
    grown = [
        (now.memory - then.memory, now.descriptors - then.descriptors, now.threads - then.threads)
        for then, now in zip(before, after, strict=True)
    ]
    memory, descriptors, threads = (max(values) for values in zip(*grown, strict=True))
    sizes = ", ".join(f"{size.memory:.0f} MiB, {size.descriptors} fds, {size.threads} threads" for size in before)
    yield Finding(
        "growth of the worker that grew most",
        f"from {sizes}",
        f"{memory:+.1f} MiB of at most {MOST_MEMORY:g}, {descriptors:+d} descriptors of {MOST_DESCRIPTORS}, "
        f"{threads:+d} threads of {MOST_THREADS}",
        memory <= MOST_MEMORY and descriptors <= MOST_DESCRIPTORS and threads <= MOST_THREADS,
    )


def _sizes(computer: Machine) -> list[Size]:
    """Of each worker, between two breaths of the load: a connection that is open just now is no leak."""
    sizes = []
    for worker in computer.workers():
        looks = []
        for _ in range(10):
            looks.append(Size(_memory(worker), worker.num_fds(), worker.num_threads()))
            time.sleep(0.05)
        sizes.append(
            Size(*(sorted(values)[len(values) // 2] for values in zip(*map(_parts, looks), strict=True)))  # type: ignore[arg-type]
        )
    return sizes


def _parts(size: Size) -> tuple[float, int, int]:
    return size.memory, size.descriptors, size.threads


def _memory(worker: psutil.Process) -> float:
    """The proportional set size in MiB: what it shares with others counts in part."""
    return float(worker.memory_full_info().pss) / 2**20


@contextlib.contextmanager
def _misbehaving(computer: Machine) -> Iterator[None]:
    """Meanwhile somebody sends what has to be refused, and leaves in the middle."""
    over = threading.Event()
    thread = threading.Thread(target=_misbehave, args=[computer, over], daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(60)


def _misbehave(computer: Machine, over: threading.Event) -> None:
    host, port = computer.service.bind.split(":")
    head = b"POST /api/prompt HTTP/1.1\r\nHost: watchpost\r\nAuthorization: Bearer %d\r\n"
    while not over.wait(0.1):
        nonsense = [
            b"not HTTP\r\n\r\n",
            b"GET /nothing HTTP/1.1\r\nHost: watchpost\r\n\r\n",
            b"GET /readyz HTTP/1.1\r\nHost: watchpost\r\n\r\n",
            # Each token is another one: a memory of the refused would grow.
            head % random.getrandbits(64) + b"Content-Length: 2\r\n\r\n{}",
            head % random.getrandbits(64) + b"Content-Length: 1000\r\n\r\n{",
            b"POST /api/auth/token HTTP/1.1\r\nHost: watchpost\r\nContent-Length: 3\r\n"
            b"Content-Type: application/x-www-form-urlencoded\r\n\r\na=b",
        ]
        with contextlib.suppress(OSError), socket.create_connection((host, int(port)), timeout=5) as line:
            line.sendall(random.choice(nonsense))
            if random.random() < 0.5:
                line.recv(100)
