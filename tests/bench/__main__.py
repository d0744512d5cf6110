"""Measures Watchpost's write routes beside a peer's and beside the database alone, all in one run.

Needs wrk; prints Markdown on standard output and progress on standard error.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from pathlib import Path
from typing import Any

from tests.bench.chapters import CONTENDERS, NAMES, Bench, Plan, choose
from tests.bench.measure import machine
from tests.bench.report import markdown
from tests.bench.stage import PEER_POOL, WORKERS, BenchError, Tools, stage


def main() -> int:
    plan, json_path = _arguments()
    for number in (signal.SIGTERM, signal.SIGHUP):
        # As Ctrl-C does, these end what was started too.
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    try:
        found = _run(plan)
    except BenchError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    if json_path:
        json_path.write_text(json.dumps(found, indent=1) + "\n")
    print(markdown(found))
    return 0


def _arguments() -> tuple[Plan, Path | None]:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything, each round included, as JSON")
    parser.add_argument("--rounds", type=int, help="rounds of everything (5; quick: 2)")
    parser.add_argument("--seconds", type=float, help="length of one measurement (10; quick: 3)")
    parser.add_argument("--only", metavar="NAME,...", help=f"some of: {', '.join(NAMES)}; * and ? stand for any")
    parser.add_argument("--quick", action="store_true", help="ten times fewer rows: does it run?")
    given = parser.parse_args()
    try:
        chosen = choose(given.only)
    except BenchError as error:
        parser.error(str(error))
    rounds = given.rounds or (2 if given.quick else 5)
    seconds = given.seconds or (3 if given.quick else 10)
    if rounds < 1 or seconds < 1:
        parser.error("--rounds and --seconds must be at least 1")
    return Plan(rounds, seconds, chosen, given.quick), given.json


def _run(plan: Plan) -> dict[str, Any]:
    tools = Tools()
    with stage() as made:
        facts = machine(tools, made)
        found = Bench(tools, made, plan).run()
    for name, contender in found["contenders"].items():
        _, contender["body"], contender["connections"], contender["items"] = CONTENDERS[name]
    settings = {"rounds": plan.rounds, "seconds": plan.seconds, "quick": plan.quick}
    settings |= {"workers": WORKERS, "peer_pool_per_worker": PEER_POOL}
    return {"machine": facts, "plan": settings, **found}


if __name__ == "__main__":
    sys.exit(main())
