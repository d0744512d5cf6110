"""One measurement: load, and what it cost, with a proof that what was answered is what is stored."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import re
import secrets
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import psycopg

from app.db import statement
from app.dev import embedded
from tests.bench import rows
from tests.bench.stage import BenchError, Site, Stage, Tools

LUA = Path(__file__).with_name("load.lua")
# wrk stops by itself when the load is done; this ends one that hangs.
DRAIN_SECONDS = 60


@dataclasses.dataclass(frozen=True)
class Target:
    """Whom to load with what.

    name: the contender, in tables. kind: of body, in rows.BODIES. path: the route. tokens: file of load.lua.
    url: of the database, for the check. table: where rows arrive. items: prompts in a batch, 0 for single bodies.
    updates: the rows are there before, so the answer is 200. since: the table is too large to be emptied; only rows
    newer than the measurement's begin are counted.
    """

    name: str
    site: Site
    kind: str
    path: str
    connections: int
    tokens: Path
    url: str
    table: str
    items: int = 0
    updates: bool = False
    since: bool = False


@dataclasses.dataclass
class Result:
    """What one measurement found; rows are prompts, heartbeats ... that were answered with success."""

    rows: int
    requests: int
    seconds: float
    p50_ms: float
    p99_ms: float
    web_cpu: float
    database_cpu: float
    wal_bytes: int
    wal_page_image_bytes: int | None
    peak_rss_mb: float
    checkpoints: int

    @property
    def figures(self) -> dict[str, float | None]:
        thousands = self.rows / 1000
        images = self.wal_page_image_bytes
        return {
            "rows_per_second": self.rows / self.seconds,
            "requests_per_second": self.requests / self.seconds,
            "p50_ms": self.p50_ms,
            "p99_ms": self.p99_ms,
            "web_cpu_s_per_1000_rows": self.web_cpu / thousands,
            "pg_cpu_s_per_1000_rows": self.database_cpu / thousands,
            "wal_bytes_per_row": self.wal_bytes / self.rows,
            "wal_bytes_per_row_without_page_images": None if images is None else (self.wal_bytes - images) / self.rows,
            "peak_worker_rss_mb": self.peak_rss_mb,
            "checkpoints": float(self.checkpoints),
        }


def spread(results: list[Result]) -> dict[str, dict[str, float] | None]:
    """Median, least and most of each figure."""
    summary: dict[str, dict[str, float] | None] = {}
    for name in results[0].figures:
        values = [value for result in results if (value := result.figures[name]) is not None]
        known = {"median": statistics.median(values), "min": min(values), "max": max(values)} if values else None
        summary[name] = known
    return summary


class Meter:
    """CPU, WAL and memory between two moments."""

    def __init__(self, stage: Stage, web: int | None) -> None:
        self.stage = stage
        self.web = web

    def begin(self) -> None:
        # Every measurement begins right behind a checkpoint, so that page images are due alike.
        self.stage.control.execute("CHECKPOINT")
        self.resume()

    def resume(self) -> None:
        """Begin without a checkpoint."""
        for process in self._workers():
            with contextlib.suppress(OSError):
                Path(f"/proc/{process.pid}/clear_refs").write_text("5")
        self._checkpoints = self._count_checkpoints()
        self._lsn = self._position()
        self._cpu = self._all_cpu()

    def end(self) -> dict[str, Any]:
        web, database = (after - before for after, before in zip(self._all_cpu(), self._cpu, strict=True))
        lsn = self._position()
        (difference,) = self._ask("SELECT %s::pg_lsn - %s::pg_lsn", lsn, self._lsn).values()
        return {
            "web_cpu": web,
            "database_cpu": database,
            "wal_bytes": int(difference),
            "wal_page_image_bytes": self._page_images(self._lsn, lsn),
            "peak_rss_mb": max((_peak_rss(process) for process in self._workers()), default=0) / 2**20,
            "checkpoints": self._count_checkpoints() - self._checkpoints,
        }

    def _ask(self, query: Any, *parameters: Any) -> dict[str, Any]:
        answer = self.stage.control.execute(query, parameters).fetchone()
        assert answer is not None
        return answer

    def _position(self) -> str:
        return str(self._ask("SELECT pg_current_wal_insert_lsn()::text AS lsn")["lsn"])

    def _count_checkpoints(self) -> int:
        return int(self._ask("SELECT num_timed + num_requested AS count FROM pg_stat_checkpointer")["count"])

    def _all_cpu(self) -> tuple[float, float]:
        return (tree_cpu(self.web) if self.web else 0.0), tree_cpu(self.stage.postmaster)

    def _workers(self) -> list[psutil.Process]:
        return psutil.Process(self.web).children(recursive=True) if self.web else []

    def _page_images(self, first: str, last: str) -> int | None:
        """Bytes of full-page images in a stretch of WAL; None where the server's package lacks pg_waldump."""
        program = embedded.programs() / "pg_waldump"
        if not program.exists() or first == last:
            return None
        # What was inserted may not have been written yet, and pg_waldump reads files: this commits, so it flushes.
        self.stage.control.execute("SELECT pg_logical_emit_message(true, 'bench', '')")
        command = [program, "--stats", "--start", first, "--end", last, "--path", self.stage.cluster / "pg_wal"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        found = re.search(r"^Total\s+\d+\s+\d+ \[[^]]*\]\s+(\d+)", done.stdout, re.MULTILINE)
        return int(found[1]) if found else None


def tree_cpu(root: int) -> float:
    """CPU seconds of a process, of those below it, and of those below that have ended."""
    total = 0.0
    top = psutil.Process(root)
    for process in [top, *top.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            total += sum(process.cpu_times()[:4])
    return total


def rss_mb(root: int) -> float:
    """The largest resident set among the processes below one."""
    return max(process.memory_info().rss for process in psutil.Process(root).children(recursive=True)) / 2**20


def _peak_rss(process: psutil.Process) -> int:
    with contextlib.suppress(OSError):
        found = re.search(r"^VmHWM:\s+(\d+) kB", Path(f"/proc/{process.pid}/status").read_text(), re.MULTILINE)
        return int(found[1]) * 1024 if found else 0
    return 0


def load(tools: Tools, stage: Stage, target: Target, seconds: float, limit: int = 0) -> dict[str, Any]:
    """Run wrk and return its report. Raises BenchError for any answer that is not the expected one."""
    template = stage.folder / f"{target.kind}.json"
    template.write_text(rows.template(target.kind))
    longest = math.ceil(seconds) + DRAIN_SECONDS if seconds else 900
    assert tools.wrk is not None
    command = [tools.wrk, "-t1", f"-c{target.connections}", f"-d{longest}s", "--timeout", "60s", "--latency"]
    command += ["-s", str(LUA), target.site.url, "--", str(target.connections), str(target.tokens), str(template)]
    command += [target.path, str(seconds), str(limit), str(target.items), secrets.token_hex(6)]
    done = _run(command, longest + 60)
    line = next((line for line in done.splitlines() if line.startswith("{")), None)
    if line is None:
        raise BenchError(f"{target.name}: wrk reported nothing:\n{done[-2000:]}")
    report: dict[str, Any] = json.loads(line)
    counted = report.get("items") if target.items else report.get("statuses")
    report["rows"] = sum((counted or {}).values())
    expected = {"200"} if target.updates else {"201"}
    errors = sum(report[name] for name in ("connect_errors", "read_errors", "write_errors", "timeouts"))
    complete = report["finished"] and report["sent"] == report["answered"] == report["timed"]
    if not complete or errors or not report["rows"] or set(counted or {}) != expected:
        raise BenchError(f"{target.name}: unexpected answers: {report}; log: {_tail(target.site.log)}")
    if target.items and report["rows"] != report["answered"] * target.items:
        raise BenchError(f"{target.name}: an answer lacks items: {report}")
    return report


def _run(command: list[str], seconds: float) -> str:
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            return process.communicate(timeout=seconds)[0]
        except subprocess.TimeoutExpired:
            raise BenchError(f"{command[0]} did not end in time") from None
        finally:
            if process.poll() is None:
                process.kill()


def _tail(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines()
    return "\n".join([line for line in lines if '"info"' not in line][-5:])


def measure(
    tools: Tools,
    stage: Stage,
    target: Target,
    seconds: float,
    *,
    touch: int = 0,
    limit: int = 0,
    checkpoint: bool = True,
) -> Result:
    """Load a target and say what it cost. Raises BenchError when stored rows and answers differ.

    touch: requests that are sent before, behind the checkpoint, so that pages have had their full images. limit: so
    many requests instead of so many seconds.
    """
    prepare(target)
    meter = Meter(stage, target.site.pid)
    if checkpoint:
        meter.begin()
    if touch:
        load(tools, stage, target, 0, limit=touch)
    check = checker(target)
    meter.resume()
    report = load(tools, stage, target, 0 if limit else seconds, limit)
    costs = meter.end()
    check(report)
    # What is left would be vacuumed during somebody else's measurement.
    prepare(target)
    return Result(
        rows=report["rows"],
        requests=report["answered"],
        seconds=report["seconds"],
        p50_ms=report["p50_us"] / 1000,
        p99_ms=report["p99_us"] / 1000,
        **costs,
    )


def prepare(target: Target) -> None:
    """Empty the table, so that no contender meets more rows than another."""
    if not target.updates and not target.since:
        with psycopg.connect(target.url, autocommit=True) as connection:
            connection.execute(f"TRUNCATE {target.table}")


def checker(target: Target) -> Callable[[dict[str, Any]], None]:
    """Call before a load; what it returns, after: it raises BenchError unless exactly the answered rows are stored."""
    with psycopg.connect(target.url, autocommit=True) as connection:
        began = connection.execute("SELECT clock_timestamp()").fetchone()[0]
        before = _stored(connection, target, began)

    def check(report: dict[str, Any]) -> None:
        with psycopg.connect(target.url, autocommit=True) as connection:
            found = _stored(connection, target, began) - before
        sent = report["rows"]
        if target.updates:
            with target.tokens.open() as file:
                sent = min(sent, sum(1 for _ in file))
        if found != sent:
            raise BenchError(f"{target.name}: {sent} rows were answered with success, {found} are stored")

    return check


def _stored(connection: psycopg.Connection[Any], target: Target, began: Any) -> int:
    """Rows that a load has stored; of heartbeats, devices or instances that were heard."""
    query = f"SELECT count(*) FROM {target.table}"
    if target.updates:
        column = "last_heartbeat" if target.table == "devices" else "last_seen"
        query += f" WHERE {column} >= %(began)s"
    elif target.since:
        # By the index, as rows of long ago are many. The load's times are of this machine's clock, as is `began`.
        query += ' WHERE "timestamp" >= floor(extract(epoch FROM %(began)s) * 1000)'
    answer = connection.execute(query, {"began": began}).fetchone()
    assert answer is not None
    return int(answer[0])


# The row is written as JSON by format(), which is as near to the service's one parameter as pgbench's language comes:
# the text goes over the wire with each execution, the ids and the time are put in by the server.
PGBENCH_ROW = (
    "('[' || format(:template::text, 'device-' || lpad((:device)::text, 7, '0'), "
    "'instance-' || lpad((:device)::text, 7, '0'), "
    "(extract(epoch FROM clock_timestamp()) * 1000)::bigint, gen_random_uuid(), (:fresh)::text, "
    "rpad(md5((:device)::text), 43, 'x')) || ']')"
)


def pgbench(tools: Tools, stage: Stage, url: str, devices: int, connections: int, seconds: float) -> Result:
    """The same statement with sets of one, straight into the database: the limit of what any service could store."""
    text = statement("prompts/insert_prompts").text
    assert text.count("%(rows)s") == 1
    assert ":" not in text.replace("::", "")
    script = stage.folder / "pgbench.sql"
    variables = f"\\set device random(1, {devices})\n\\set fresh random(1, 1000000000)\n"
    script.write_text(variables + text.replace("%(rows)s", PGBENCH_ROW) + ";\n")
    row = rows.template("prompt")[1:].replace("%", "%%")
    for place, name in enumerate(("device", "instance", "time", "uuid", "fresh"), start=1):
        row = row.replace(f"${name}", f"%{place}$s")
    row = '{"ordinal":0,"key_thumbprint":"%6$s",' + row
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("TRUNCATE prompts")
    log = stage.folder / "pgbench_log"
    meter = Meter(stage, None)
    meter.begin()
    # No vacuum, since it has no tables of its own; a log line a transaction, for the percentiles.
    command = [tools.pgbench, "-n", "-M", "prepared", "-c", str(connections), "-j", "1"]
    command += ["-T", str(max(1, round(seconds))), "-f", str(script), "-D", f"template={row}", "-l"]
    command += ["--log-prefix", str(log), url]
    output = _run(command, seconds + 120)
    costs = meter.end()
    found = re.search(r"number of transactions actually processed: (\d+)", output)
    failed = re.search(r"number of failed transactions: (\d+)", output)
    rate = re.search(r"tps = ([\d.]+) \(without initial", output)
    if not found or not rate or not int(found[1]) or (failed and int(failed[1])):
        raise BenchError(f"pgbench: {output[:1000]} ... {output[-1000:]}")
    latencies: list[int] = []
    for path in stage.folder.glob("pgbench_log*"):
        latencies += [int(line.split()[2]) for line in path.read_text().splitlines()]
        path.unlink()
    latencies.sort()
    with psycopg.connect(url, autocommit=True) as connection:
        stored = connection.execute("SELECT count(*) FROM prompts").fetchone()
        connection.execute("TRUNCATE prompts")
    count = int(found[1])
    if stored is None or stored[0] != count:
        raise BenchError(f"pgbench: {count} transactions, {stored} rows")
    return Result(
        rows=count,
        requests=count,
        seconds=count / float(rate[1]),
        p50_ms=latencies[len(latencies) // 2] / 1000,
        p99_ms=latencies[min(len(latencies) - 1, math.ceil(len(latencies) * 0.99))] / 1000,
        **costs,
    )


def updates(connection: psycopg.Connection[Any], table: str) -> tuple[int, int]:
    """Updates of a table so far, and how many of them were HOT."""
    query = "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = %s"
    answer = connection.execute(query, [table]).fetchone()
    assert answer is not None
    return int(answer[0]), int(answer[1])


def updates_after(
    connection: psycopg.Connection[Any], table: str, before: tuple[int, int], expected: int
) -> tuple[int, int]:
    """Updates since then and HOT ones, when the server's processes have reported theirs. Raises BenchError."""
    deadline = time.monotonic() + 30
    while True:
        now = updates(connection, table)
        since = now[0] - before[0], now[1] - before[1]
        if since[0] >= expected:
            break
        if time.monotonic() > deadline:
            break
        time.sleep(0.5)
    if since[0] != expected:
        raise BenchError(f"{expected} heartbeats were answered with success, {since[0]} updates of {table} happened")
    return since


def wal_statistics(connection: psycopg.Connection[Any]) -> dict[str, int]:
    """What the server says of all WAL so far: bytes, records, page images. Its processes report behind time."""
    query = "SELECT wal_bytes::bigint, wal_records, wal_fpi FROM pg_stat_wal"
    answer = connection.execute(query).fetchone()
    assert answer is not None
    return dict(zip(("wal_bytes", "wal_records", "wal_page_images"), answer, strict=True))


def machine(tools: Tools, stage: Stage) -> dict[str, Any]:
    """What the numbers belong to."""
    from importlib.metadata import version

    model = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    assert tools.wrk is not None
    wrk = subprocess.run([tools.wrk, "-v"], capture_output=True, text=True, check=False).stdout.split(" Copyright")[0]
    names = ("shared_buffers", "max_wal_size", "fsync", "synchronous_commit", "full_page_writes", "max_connections")
    asked = "SELECT name, current_setting(name) AS value FROM unnest(%s::text[]) AS name"
    packages = (
        "gunicorn",
        "gevent",
        "flask",
        "psycopg",
        "uvicorn",
        "uvloop",
        "fastapi",
        "pydantic",
        "asyncpg",
        "pyjwt",
    )
    server = stage.control.execute("SHOW server_version").fetchone()
    pgbench_version = subprocess.run([tools.pgbench, "--version"], capture_output=True, text=True, check=False)
    return {
        "cpu": model[1] if model else os.uname().machine,
        "cores": os.cpu_count(),
        "memory_mb": round(psutil.virtual_memory().total / 2**20),
        "kernel": os.uname().release,
        "load_average_at_start": os.getloadavg(),
        "versions": {
            "python": ".".join(map(str, __import__("sys").version_info[:3])),
            "postgresql": server["server_version"] if server else None,
            "wrk": wrk.strip(),
            "pgbench": pgbench_version.stdout.strip(),
            **{name: version(name) for name in packages},
        },
        "postgresql": {row["name"]: row["value"] for row in stage.control.execute(asked, [list(names)])},
    }
