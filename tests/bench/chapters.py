"""What is measured: everybody side by side, WAL of heartbeats, growth, memory."""

from __future__ import annotations

import dataclasses
import fnmatch
import random
from collections.abc import Callable
from functools import cache
from typing import Any

import psycopg

from app.db import Statement, statement
from app.db.database import dumps
from tests.bench import measure, rows
from tests.bench.measure import Result, Target, load, pgbench, spread
from tests.bench.stage import BenchError, Site, Stage, Tools, say

SPEAKERS = 500
WARM_SECONDS = 2
ROUTES = {
    "prompt": ("/api/prompt", "prompts"),
    "device-register": ("/api/devices/register", "devices"),
    "device-heartbeat": ("/api/devices/heartbeat", "devices"),
    "browser-register": ("/api/browsers/register", "browser_instances"),
    "browser-heartbeat": ("/api/browsers/heartbeat", "browser_instances"),
    "extension-status": ("/api/extension/status", "extension_status"),
    "compliance-event": ("/api/compliance/event", "compliance_events"),
}
# In this order, the next round in the opposite one: rivals run next to each other. Connections; 0 for pgbench's own.
CONTENDERS: dict[str, tuple[str, str, int, int]] = {
    "pgbench-16": ("pgbench", "prompt", 16, 0),
    "ours-prompt-1": ("ours", "prompt", 1, 0),
    "peer-prompt-1": ("peer", "prompt", 1, 0),
    "ours-prompt-16": ("ours", "prompt", 16, 0),
    "peer-prompt-16": ("peer", "prompt", 16, 0),
    "ours-prompt-64": ("ours", "prompt", 64, 0),
    "peer-prompt-64": ("peer", "prompt", 64, 0),
    "ours-batch-100": ("ours", "prompt", 16, 100),
    "ours-batch-1000": ("ours", "prompt", 16, 1000),
    **{
        f"ours-{kind}-{connections}": ("ours", kind, connections, 0)
        for kind in ROUTES
        if kind != "prompt"
        for connections in (1, 16, 64)
    },
}
CHAPTERS = ("heartbeat-wal", "growth", "memory")
NAMES = (*CONTENDERS, *CHAPTERS)


@dataclasses.dataclass(frozen=True)
class Plan:
    """How much of everything. quick: numbers ten times smaller, to see whether it runs."""

    rounds: int
    seconds: float
    chosen: frozenset[str]
    quick: bool

    def scaled(self, number: int) -> int:
        return number // 10 if self.quick else number


def choose(patterns: str | None) -> frozenset[str]:
    """Names that match any of the patterns, such as `ours-prompt-*,growth`. Raises BenchError when one matches none."""
    if not patterns:
        return frozenset(NAMES)
    chosen: set[str] = set()
    for pattern in patterns.split(","):
        found = fnmatch.filter(NAMES, pattern.strip())
        if not found:
            raise BenchError(f"nothing is called {pattern.strip()}; there are: {', '.join(NAMES)}")
        chosen.update(found)
    return frozenset(chosen)


class Bench:
    """The whole run on one stage.

    All contenders share one database: they have the same files, cache and settings, and each finds its table emptied.
    Only growth and the WAL of heartbeats, which need other numbers of rows, have databases of their own.
    """

    def __init__(self, tools: Tools, stage: Stage, plan: Plan) -> None:
        self.tools = tools
        self.stage = stage
        self.plan = plan
        self.devices = plan.scaled(10_000)
        say(f"filling: {self.devices} devices")
        rows.fill(stage.url, self.devices)
        self.home = stage.ours(stage.url)
        self.some = stage.mint.write(stage.folder / "some.tokens", _spread_out(SPEAKERS, self.devices))

    def target(self, name: str, site: Site, kind: str, connections: int, **more: Any) -> Target:
        path, table = ROUTES[kind.removesuffix("-metadata")]
        items = more.get("items", 0)
        given = {"tokens": self.some, "url": self.stage.url, "updates": kind.rpartition("heartbeat")[1] != ""}
        path = "/api/batch" if items else path
        return Target(name, site, kind, path, connections, table=table, **(given | more))

    def measure(self, target: Target, **more: Any) -> Result:
        return measure.measure(self.tools, self.stage, target, self.plan.seconds, **more)

    def interleaved(self, runs: dict[str, Callable[[], Result]]) -> dict[str, Any]:
        """Rounds of all runs, every second one in the opposite order."""
        results: dict[str, list[Result]] = {name: [] for name in runs}
        for number in range(self.plan.rounds):
            order = list(runs)
            for name in order if number % 2 == 0 else order[::-1]:
                result = runs[name]()
                results[name].append(result)
                rate = result.rows / result.seconds
                say(f"round {number + 1} of {self.plan.rounds}: {name}: {rate:.0f} rows/s, p50 {result.p50_ms:.2f} ms")
        return {
            name: {"spread": spread(found), "rounds": [one.figures for one in found]} for name, found in results.items()
        }

    def side_by_side(self) -> dict[str, Any]:
        runs: dict[str, Callable[[], Result]] = {}
        warm: list[Target] = []
        sites = {"ours": self.home}
        for name, (who, kind, connections, items) in CONTENDERS.items():
            if name not in self.plan.chosen:
                continue
            if who == "pgbench":
                runs[name] = self._pgbench
                continue
            if who not in sites:
                sites[who] = self.stage.peer(self.stage.url)
            more = self._registry() if kind == "device-register" else {"site": sites[who]}
            target = self.target(name, kind=kind, connections=connections, items=items, **more)
            runs[name] = lambda target=target: self._one(target)
            warm.append(dataclasses.replace(target, connections=16))
        if warm:
            say("warming up")
        for target in warm:
            self._restore(target)
            measure.prepare(target)
            load(self.tools, self.stage, target, WARM_SECONDS)
            measure.prepare(target)
        return self.interleaved(runs)

    @cache  # noqa: B019
    def _registry(self) -> dict[str, Any]:
        """A service whose devices may be emptied, with more new keys than can be registered in one measurement."""
        url = self.stage.database("registry")
        # All of them come with one enrolment, and from one address.
        site = self.stage.ours(url, enrollment_rate=0)
        assert site.flask is not None
        uses = ["--max-uses", "1000000000", "--expires-in", "1d"]
        token = site.flask("enrollment", "create", "--label", "bench", *uses)
        keys = self.plan.scaled(10_000 * max(1, round(self.plan.seconds)))
        say(f"making {keys} keys")
        tokens = rows.write_registrations(self.stage.folder / "registrations.tokens", token, keys)
        return {"site": site, "url": url, "tokens": tokens}

    def _pgbench(self) -> Result:
        return pgbench(self.tools, self.stage, self.stage.url, self.devices, 16, self.plan.seconds)

    def _one(self, target: Target) -> Result:
        self._restore(target)
        return self.measure(target)

    def _restore(self, target: Target) -> None:
        """Have the instances that heartbeats come from, which registrations emptied the table of."""
        if target.updates and target.table == "browser_instances":
            with psycopg.connect(target.url, autocommit=True) as connection:
                connection.execute("TRUNCATE browser_instances")
                connection.execute(rows.FILL_INSTANCES, {"count": self.devices, **rows.INSTANCE})
                connection.execute("VACUUM ANALYZE browser_instances")

    def heartbeat_wal(self) -> dict[str, Any]:
        """Heartbeats of a fleet, one of each device, when every page has had its image since the checkpoint."""
        fleet = self.plan.scaled(100_000)
        say(f"heartbeat-wal: filling {fleet} devices, signing as many tokens")
        url = self.stage.database("fleet")
        rows.fill(url, fleet)
        tokens = self.stage.mint.write(self.stage.folder / "fleet.tokens", _spread_out(fleet, fleet))
        found: dict[str, Any] = {"devices": fleet}
        with self.stage.ours_for_a_while(url) as site, psycopg.connect(url, autocommit=True) as connection:
            for kind in (
                "device-heartbeat",
                "device-heartbeat-metadata",
                "browser-heartbeat",
                "browser-heartbeat-metadata",
            ):
                target = self.target(kind, site, kind, 16, url=url, tokens=tokens)
                heard = statement(
                    "devices/upsert_heartbeats" if target.table == "devices" else "browsers/upsert_instances"
                )
                before = measure.updates(connection, target.table)
                self.stage.control.execute("CHECKPOINT")
                self._touch(connection, heard, fleet)
                before = self._settled(connection, target.table, before, fleet)
                wal = measure.wal_statistics(connection)
                result = self.measure(target, limit=fleet, checkpoint=False)
                total, hot = measure.updates_after(connection, target.table, before, result.rows)
                # Reported together with the updates.
                written = {
                    f"{name}_per_heartbeat": (after - wal[name]) / total
                    for name, after in measure.wal_statistics(connection).items()
                }
                found[kind] = result.figures | written | {"hot_share": hot / total, "heartbeats": total}
                say(
                    f"heartbeat-wal: {kind}: {result.wal_bytes / result.rows:.0f} bytes of WAL a heartbeat, "
                    f"{written['wal_bytes_per_heartbeat']:.0f} by pg_stat_wal, {hot / total:.2%} HOT"
                )
        return found

    def _settled(
        self, connection: psycopg.Connection[Any], table: str, before: tuple[int, int], expected: int
    ) -> tuple[int, int]:
        since = measure.updates_after(connection, table, before, expected)
        return before[0] + since[0], before[1] + since[1]

    def _touch(self, connection: psycopg.Connection[Any], heard: Statement, count: int) -> None:
        """A heartbeat of everybody, in sets that the service's own statement stores.

        The devices of a set lie far apart, as those that happen to send at the same time do.
        """
        sets = max(1, count // 1000)
        for start in range(1, sets + 1):
            given = [
                {
                    "ordinal": ordinal,
                    "device_id": rows.device(number),
                    "instance_id": f"instance-{number:07}",
                    "key_thumbprint": rows.thumbprint(number),
                    "is_heartbeat": True,
                }
                for ordinal, number in enumerate(range(start, count + 1, sets))
            ]
            connection.execute(heard.text, {"rows": dumps(given), "instances_per_device": 200})
        connection.execute("SELECT pg_stat_force_next_flush()")

    def growth(self) -> dict[str, Any]:
        """The same load on few rows and on many, side by side."""
        many, stored = self.plan.scaled(1_000_000), self.plan.scaled(10_000_000)
        say(f"growth: filling {many} devices")
        crowd = self.stage.database("crowd")
        rows.fill(crowd, many)
        say(f"growth: filling {stored} prompts")
        archive = self.stage.database("archive")
        rows.fill(archive, self.devices, stored)
        tokens = {
            count: self.stage.mint.write(self.stage.folder / f"{count}.tokens", _spread_out(self.devices, count))
            for count in {self.devices, many}
        }
        with self.stage.ours_for_a_while(crowd) as crowded, self.stage.ours_for_a_while(archive) as archived:
            few = {"tokens": tokens[self.devices]}
            self._fleet_again()
            targets = {
                f"heartbeat-at-{self.devices}": self.target("growth", self.home, "device-heartbeat", 16, **few),
                f"heartbeat-at-{many}": self.target(
                    "growth", crowded, "device-heartbeat", 16, url=crowd, tokens=tokens[many]
                ),
                "prompt-at-0": self.target("growth", self.home, "prompt", 16, **few),
                f"prompt-at-{many}-devices": self.target(
                    "growth", crowded, "prompt", 16, url=crowd, tokens=tokens[many]
                ),
                f"prompt-at-{stored}": self.target("growth", archived, "prompt", 16, url=archive, since=True, **few),
            }
            say("growth: warming up")
            for target in targets.values():
                measure.prepare(target)
                # Twice: either worker is to have met most tokens.
                load(self.tools, self.stage, target, 0, limit=2 * self.devices)
                measure.prepare(target)
            found = self.interleaved(
                {
                    name: lambda target=target: self.measure(target, touch=self.devices if target.updates else 0)
                    for name, target in targets.items()
                }
            )
        return {"devices": [self.devices, many], "prompts": [0, stored], "results": found}

    def _fleet_again(self) -> None:
        with psycopg.connect(self.stage.url, autocommit=True) as connection:
            connection.execute("TRUNCATE browser_instances, prompts")
            connection.execute("VACUUM ANALYZE devices")

    def memory(self) -> dict[str, Any]:
        """One worker that remembers as many tokens as it may, each presented once with a heartbeat."""
        count = self.plan.scaled(100_000)
        say(f"memory: signing {count} tokens")
        numbers = (number % self.devices + 1 for number in range(count))
        tokens = self.stage.mint.write(self.stage.folder / "memory.tokens", numbers)
        with self.stage.ours_for_a_while(self.stage.url, workers=1) as site:
            first = self.target("memory", site, "device-heartbeat", 16)
            load(self.tools, self.stage, first, 0, limit=2000)
            before = measure.rss_mb(site.pid)
            everybody = dataclasses.replace(first, tokens=tokens)
            report = load(self.tools, self.stage, everybody, 0, limit=count)
            after = measure.rss_mb(site.pid)
        if report["rows"] != count:
            raise BenchError(f"memory: {count} tokens, {report['rows']} answers")
        say(f"memory: {before:.0f} MB, with {count} more tokens {after:.0f} MB")
        return {"tokens": count, "rss_mb_before": before, "rss_mb_after": after}

    def run(self) -> dict[str, Any]:
        found: dict[str, Any] = {"contenders": self.side_by_side()}
        chosen = self.plan.chosen
        for name, chapter in zip(CHAPTERS, (self.heartbeat_wal, self.growth, self.memory), strict=True):
            if name in chosen:
                found[name] = chapter()
        return found


def _spread_out(count: int, among: int) -> list[int]:
    """Numbers from 1 on, evenly spread, in an order that is not the tables': devices send when they like."""
    numbers = [index * among // count + 1 for index in range(count)]
    random.Random(1).shuffle(numbers)
    return numbers
