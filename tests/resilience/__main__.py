"""Run the resilience scenarios and print a table; exit with 1 when a line failed."""

from __future__ import annotations

import argparse
import importlib
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

from tests.resilience import Finding, Plan

# In this order; each is a module beside this one.
SCENARIOS: tuple[str, ...] = (
    "kills",
    "power",
    "restarts",
    "proxy",
    "database",
    "network",
    "clocks",
    "tokens",
    "bodies",
    "http",
    "herd",
    "flood",
    "enumeration",
    "canaries",
    "soak",
)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.resilience", description=__doc__)
    parser.add_argument("--only", metavar="NAME,...", help=f"some of: {', '.join(SCENARIOS)}")
    parser.add_argument("--rounds", type=int, default=20, help="repetitions of each fault (%(default)s)")
    parser.add_argument("--minutes", type=float, default=30, help="length of a scenario that needs time (%(default)g)")
    parser.add_argument("--rows", type=int, default=1500, help="rows acknowledged before each fault (%(default)s)")
    given = parser.parse_args()
    chosen = given.only.split(",") if given.only else list(SCENARIOS)
    if unknown := set(chosen) - set(SCENARIOS):
        parser.error(f"nothing is called {', '.join(sorted(unknown))}; there are: {', '.join(SCENARIOS)}")
    for number in (signal.SIGTERM, signal.SIGHUP):
        # As Ctrl-C does, these end what was started too.
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    folder = Path(tempfile.mkdtemp(prefix="wp-resilience-"))
    folder.chmod(0o755)
    passed = True
    print("| scenario | what | count | result | |\n|---|---|---|---|---|", flush=True)
    try:
        for name in chosen:
            (folder / name).mkdir(mode=0o755)
            began = time.monotonic()
            for finding in _findings(name, Plan(given.rounds, given.minutes, folder / name, given.rows)):
                passed = passed and finding.passed is not False
                verdict = {True: "passed", False: "FAILED", None: "skipped"}[finding.passed]
                print(f"| {name} | {finding.what} | {finding.count} | {finding.result} | {verdict} |", flush=True)
            print(f"{name}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return 0 if passed else 1


def _findings(name: str, plan: Plan) -> Iterator[Finding]:
    """A scenario's findings. When it breaks off, that is a finding too, and the next scenarios still run."""
    try:
        yield from importlib.import_module(f"tests.resilience.{name}").run(plan)
    except Exception as error:
        traceback.print_exc()
        said = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        yield Finding("the scenario broke off", "-", said.replace("|", "/"), False)


if __name__ == "__main__":
    sys.exit(main())
