"""The report, as Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator
from typing import Any

NOT_MEASURED = """\
- Network, TLS and a proxy: everything talks over the loopback interface, and PostgreSQL over a unix socket.
- A machine of its own for each part: load generator, service and PostgreSQL share these cores, so that each slows the
  others, and the load generator's share is in no column.
- The token endpoint, the read side, gzip, refused and repeated requests.
- The peer's batches: it has none. It accepts a few bodies that the service refuses; its docstring names them.
- Hours: vacuum of what was inserted (tables are emptied behind each measurement), checkpoints under load, partitions.
  Each measurement begins right behind a checkpoint and is shorter than the time between two.
- pgbench's rows are assembled by the server's format(), which the services' rows are not; it checks no token and no
  field."""


def markdown(found: dict[str, Any]) -> str:
    plan = found["plan"]
    lines = [
        f"{plan['rounds']} rounds of {plan['seconds']:g} s, interleaved: median (least..most)."
        + (" Quick run: the numbers say whether it works, not how fast it is." if plan["quick"] else ""),
        "",
        *_contenders(found["contenders"]),
        *_ratios(found["contenders"]),
        *_heartbeats(found.get("heartbeat-wal")),
        *_growth(found.get("growth")),
        *_memory(found.get("memory")),
        "### Not measured",
        "",
        NOT_MEASURED,
        "",
        "### Machine",
        "",
        *_machine(found["machine"]),
    ]
    return "\n".join(lines)


def _contenders(contenders: dict[str, Any]) -> Iterator[str]:
    if not contenders:
        return
    yield (
        "| contender | connections | rows/s | p50 ms | p99 ms | web CPU s/1000 rows | PG CPU s/1000 rows"
        " | WAL bytes/row | without page images | peak MB |"
    )
    yield "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|"
    yield from _rows(contenders)
    yield ""
    yield (
        "A row is a prompt, heartbeat ... that was answered with success and found in the database; latency is a"
        " request's, of batches a whole batch's. Peak MB is the largest web worker's resident memory."
    )
    yield ""


def _rows(contenders: dict[str, Any]) -> Iterator[str]:
    for name, found in contenders.items():
        figures = found["spread"]
        is_pgbench = name.startswith("pgbench")
        yield _row(
            name,
            found["connections"],
            _spread(figures["rows_per_second"], 0),
            _spread(figures["p50_ms"], 2),
            _spread(figures["p99_ms"], 2),
            "" if is_pgbench else _median(figures["web_cpu_s_per_1000_rows"], 3),
            _median(figures["pg_cpu_s_per_1000_rows"], 3),
            _median(figures["wal_bytes_per_row"], 0),
            _median(figures["wal_bytes_per_row_without_page_images"], 0),
            "" if is_pgbench else _most(figures["peak_worker_rss_mb"]),
        )


def _ratios(contenders: dict[str, Any]) -> Iterator[str]:
    pairs = [
        *((f"ours-prompt-{count}", f"peer-prompt-{count}") for count in (1, 16, 64)),
        *((f"ours-batch-{size}", f"peer-prompt-{count}") for size in (100, 1000) for count in (16, 64)),
        ("ours-prompt-64", "pgbench-16"),
        ("ours-batch-100", "pgbench-16"),
        ("ours-batch-1000", "pgbench-16"),
        ("peer-prompt-64", "pgbench-16"),
    ]
    pairs = [pair for pair in pairs if set(pair) <= set(contenders)]
    if pairs:
        yield "### Ratios"
        yield ""
        yield from _pairs(contenders, pairs)


def _pairs(results: dict[str, Any], pairs: Iterable[tuple[str, str]]) -> Iterator[str]:
    """A ratio of medians, and the median, least and most of those of the rounds, which the machine's moods share."""
    yield "| | rows/s | by round | p50 | p99 | CPU of web and PG a row | by round |"
    yield "|---|--:|--:|--:|--:|--:|--:|"
    for first, second in pairs:
        one, other = results[first], results[second]
        has_web = "pgbench" not in first + second
        rounds = list(zip(one["rounds"], other["rounds"], strict=True))
        rates = [mine["rows_per_second"] / theirs["rows_per_second"] for mine, theirs in rounds]
        costs = [_cpu(mine) / _cpu(theirs) for mine, theirs in rounds if has_web and _cpu(theirs)]
        medians = [
            {name: figure["median"] for name, figure in each["spread"].items() if figure} for each in (one, other)
        ]
        yield _row(
            f"{first} : {second}",
            f"{_ratio(one, other, 'rows_per_second'):.2f}",
            _of_rounds(rates),
            f"{_ratio(one, other, 'p50_ms'):.2f}",
            f"{_ratio(one, other, 'p99_ms'):.2f}",
            f"{_cpu(medians[0]) / _cpu(medians[1]):.2f}" if costs else "",
            _of_rounds(costs),
        )
    yield ""


def _of_rounds(ratios: list[float]) -> str:
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f}..{max(ratios):.2f})" if ratios else ""


def _heartbeats(found: dict[str, Any] | None) -> Iterator[str]:
    if not found:
        return
    yield f"### Heartbeats: WAL between checkpoints, {found['devices']:,} devices, one heartbeat of each"
    yield ""
    yield "| heartbeat | WAL bytes | without page images | by pg_stat_wal | records | HOT | heartbeats |"
    yield "|---|--:|--:|--:|--:|--:|--:|"
    for name, figures in found.items():
        if name != "devices":
            bare = figures["wal_bytes_per_row_without_page_images"]
            yield _row(
                name,
                f"{figures['wal_bytes_per_row']:.0f}",
                "" if bare is None else f"{bare:.0f}",
                f"{figures['wal_bytes_per_heartbeat']:.0f}",
                f"{figures['wal_records_per_heartbeat']:.2f}",
                f"{figures['hot_share']:.2%}",
                f"{figures['heartbeats']:,}",
            )
    yield ""


def _growth(found: dict[str, Any] | None) -> Iterator[str]:
    if not found:
        return
    results = found["results"]
    yield "### Growth, 16 connections"
    yield ""
    yield "| | rows/s | p50 ms | p99 ms | PG CPU s/1000 rows | web CPU s/1000 rows | WAL bytes/row |"
    yield "|---|--:|--:|--:|--:|--:|--:|"
    for name, result in results.items():
        figures = result["spread"]
        yield _row(
            name,
            _spread(figures["rows_per_second"], 0),
            _spread(figures["p50_ms"], 2),
            _spread(figures["p99_ms"], 2),
            _spread(figures["pg_cpu_s_per_1000_rows"], 3),
            _median(figures["web_cpu_s_per_1000_rows"], 3),
            _median(figures["wal_bytes_per_row"], 0),
        )
    yield ""
    heartbeat, heartbeat_many, prompt, prompt_many, prompt_stored = results
    pairs = ((heartbeat_many, heartbeat), (prompt_many, prompt), (prompt_stored, prompt))
    yield from _pairs(results, pairs)


def _memory(found: dict[str, Any] | None) -> Iterator[str]:
    if not found:
        return
    more = found["rss_mb_after"] - found["rss_mb_before"]
    yield "### Memory"
    yield ""
    yield (
        f"A worker that remembers {found['tokens']:,} tokens: {found['rss_mb_after']:.0f} MB,"
        f" {found['rss_mb_before']:.0f} MB before; {more * 2**20 / found['tokens']:.0f} bytes a token."
    )
    yield ""


def _machine(machine: dict[str, Any]) -> Iterator[str]:
    yield f"- {machine['cpu']}, {machine['cores']} cores, {machine['memory_mb']} MB, Linux {machine['kernel']}"
    yield "- " + ", ".join(f"{name} {value}" for name, value in machine["versions"].items())
    yield "- " + ", ".join(f"{name} {value}" for name, value in machine["postgresql"].items())


def _row(*cells: object) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def _spread(figure: dict[str, float], digits: int) -> str:
    return f"{figure['median']:,.{digits}f} ({figure['min']:,.{digits}f}..{figure['max']:,.{digits}f})"


def _median(figure: dict[str, float] | None, digits: int) -> str:
    return "" if figure is None else f"{figure['median']:,.{digits}f}"


def _most(figure: dict[str, float]) -> str:
    return f"{figure['max']:.0f}"


def _ratio(one: dict[str, Any], other: dict[str, Any], name: str) -> float:
    divisor = other["spread"][name]["median"]
    return float(one["spread"][name]["median"] / divisor) if divisor else float("nan")


def _cpu(figures: dict[str, float]) -> float:
    return figures["web_cpu_s_per_1000_rows"] + figures["pg_cpu_s_per_1000_rows"]
