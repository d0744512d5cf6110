"""Alerting rules and the dashboard load, ask for metrics that there are, and each alert fires when it has to."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from app.api import problems
from app.telemetry import metrics
from tests.support.agent import Agent
from tests.support.service import ROOT

ALERTS = ROOT / "config" / "alerts.yml"
DASHBOARD = json.loads((ROOT / "config" / "dashboard.json").read_text())
RULES: list[dict[str, Any]] = yaml.safe_load(ALERTS.read_text())["groups"][0]["rules"]
TARGETS: list[dict[str, Any]] = [target for panel in DASHBOARD["panels"] for target in panel["targets"]]
EXPRESSIONS = [rule["expr"] for rule in RULES] + [
    target["expr"].replace("$__rate_interval", "5m").replace("$instance", ".*") for target in TARGETS
]


def selectors(node: Any) -> Iterator[Any]:
    """Every vector selector below a node of PromQL's syntax tree."""
    if isinstance(node, promql_parser.VectorSelector):
        yield node
        return
    for name in ("expr", "lhs", "rhs", "vector_selector"):
        if (below := getattr(node, name, None)) is not None:
            yield from selectors(below)
    for below in getattr(node, "args", None) or ():
        yield from selectors(below)


ASKED_FOR = [selector for text in EXPRESSIONS for selector in selectors(promql_parser.parse(text))]


@pytest.fixture
def exposed(client: Any, app: Any, bearer: Any, device: Agent, headers: Any, enrollment: Any) -> dict[str, list[Any]]:
    """What /metrics says after some work: samples by name."""
    body = {"device_id": device.device_id}
    assert client.post("/api/devices/heartbeat", json=body, headers=headers).status_code == 200
    assert client.post("/api/devices/heartbeat", json={}, headers=headers).status_code == 400
    taken = {**Agent().registration(), "device_id": device.device_id}
    assert client.post("/api/devices/register", json=taken, headers=bearer(enrollment())).status_code == 409
    metrics.database_error(TimeoutError())
    reader = app.extensions["auth"].sign("prometheus", "id", "metrics:read", 60)
    text = client.get("/metrics", headers=bearer(reader)).text
    families = [family for family in text_string_to_metric_families(text) if family.name.startswith("watchpost")]
    samples: dict[str, list[Any]] = {}
    for family in families:
        for sample in family.samples:
            samples.setdefault(sample.name, []).append(sample)
    return samples


def test_every_metric_and_label_that_is_asked_for_is_there_and_every_metric_is_asked_for(
    exposed: dict[str, list[Any]],
) -> None:
    assert len(ASKED_FOR) > len(EXPRESSIONS)
    for selector in ASKED_FOR:
        if selector.name == "up":
            continue
        samples = exposed[selector.name]
        for matcher in selector.matchers.matchers:
            if matcher.name == "instance":
                continue
            values = {sample.labels[matcher.name] for sample in samples}
            if matcher.name in ("kind", "record_type", "outcome") and str(matcher.op) == "MatchOp.Equal":
                assert matcher.value in values, (selector.name, matcher.name, matcher.value)
            if matcher.name == "problem":
                assert f'"{matcher.value}"' in Path(problems.__file__).read_text()
            if matcher.name == "reason":
                assert set(matcher.value.split("|")) <= values
    asked_for = {re.sub("_(bucket|sum|count)$", "", selector.name) for selector in ASKED_FOR}
    assert {re.sub("_(bucket|sum|count)$", "", name) for name in exposed if not name.endswith("_created")} <= asked_for


def test_each_alert_has_what_whoever_is_woken_needs() -> None:
    names = [rule["alert"] for rule in RULES]
    assert len(set(names)) == len(names)
    for rule in RULES:
        assert set(rule) - {"for"} == {"alert", "expr", "labels", "annotations"}
        assert rule["labels"].keys() == {"severity"}
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"].keys() == {"summary", "description"}
        assert all(len(text) > 20 for text in rule["annotations"].values())


def test_the_dashboard_is_one_that_grafana_loads() -> None:
    panels = DASHBOARD["panels"]
    ids = [panel["id"] for panel in panels]
    assert len(set(ids)) == len(ids)
    used: set[tuple[int, int]] = set()
    for panel in panels:
        assert panel["type"] in ("stat", "timeseries")
        assert panel["title"]
        grid = panel["gridPos"]
        places = {(x, y) for x in span(grid["x"], grid["w"]) for y in span(grid["y"], grid["h"])}
        assert max(x for x, _ in places) < 24
        assert not places & used, panel["title"]
        used |= places
        references = [target["refId"] for target in panel["targets"]]
        assert references
        assert len(set(references)) == len(references)
        for part in (panel, *panel["targets"]):
            assert part["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    variables = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
    assert (variables["datasource"]["type"], variables["datasource"]["query"]) == ("datasource", "prometheus")
    assert variables["instance"]["query"]["query"] == "label_values(watchpost_ready, instance)"
    assert set(re.findall(r"\$(\w+)", json.dumps(DASHBOARD))) == {"instance", "__rate_interval"}
    assert "id" not in DASHBOARD
    assert DASHBOARD["schemaVersion"] >= 39


def span(first: int, length: int) -> range:
    assert length > 0
    return range(first, first + length)


# Of each alert: series that make it fire within so many minutes, a sample a minute, in promtool's notation.
GROWS, MUCH, STILL = "0+60x90", "0+600x90", "0x90"
API = 'instance="a", route="/api/prompt", method="POST"'
SERVED = (f'watchpost_requests_total{{{API}, status="201"}}', MUCH)
FIRING: dict[str, list[tuple[str, str]]] = {
    "WatchpostDown": [('up{job="watchpost", instance="a"}', "0x90")],
    "WatchpostNotReady": [('watchpost_ready{instance="a"}', "0x90")],
    "WatchpostFaults": [SERVED, (f'watchpost_requests_total{{{API}, status="500"}}', GROWS)],
    **{
        alert: [SERVED, (f'watchpost_problems_total{{instance="a", problem="{problem}", status="{status}"}}', GROWS)]
        for alert, problem, status in (
            ("WatchpostUnavailable", "unavailable", 503),
            ("WatchpostOverloaded", "overloaded", 503),
            ("WatchpostTooManyRequests", "too-many-requests", 429),
        )
    },
    **{
        alert: [
            (f'watchpost_{name}_seconds_bucket{{instance="a", {labels}le="{le}"}}', counts)
            for le, counts in (("0.5", STILL), ("2.5", GROWS), ("+Inf", GROWS))
        ]
        for alert, name, labels in (
            ("WatchpostSlow", "request", 'route="/api/prompt", '),
            ("WatchpostQueueWait", "queue_wait", 'record_type="prompt", '),
            ("WatchpostPoolWait", "pool_wait", ""),
        )
    },
    "WatchpostMigrationsPending": [('watchpost_migrations_pending{instance="a"}', "2x90")],
    "WatchpostDatabaseErrors": [
        ('watchpost_database_errors_total{instance="a", error="DiskFull", sqlstate="53100"}', GROWS)
    ],
    "WatchpostTokensForged": [
        ('watchpost_tokens_refused_total{instance="a", kind="access", reason="signature"}', GROWS)
    ],
    "WatchpostNoHeartbeats": [
        ('watchpost_rows_total{instance="a", record_type="device_heartbeat", outcome="updated"}', "0+60x30 1800x60")
    ],
    "WatchpostRegistrationConflicts": [
        ('watchpost_rows_total{instance="a", record_type="device_register", outcome="key_conflict"}', "0x80 1x10")
    ],
    "WatchpostDefaultPartitionFilling": [
        ('watchpost_default_partition_bytes{instance="a", table="prompts"}', "30000000x90")
    ],
    "WatchpostPartitionsMissing": [
        ('watchpost_partitions_until_timestamp_seconds{instance="a", table="prompts"}', f"{40 * 86400}x90")
    ],
}
# The same while all is well; none may fire. SQLSTATE and the like: now and then one.
CALM = [
    ('up{job="watchpost", instance="a"}', "1x90"),
    ('watchpost_ready{instance="a"}', "1x90"),
    ('watchpost_migrations_pending{instance="a"}', "0x90"),
    SERVED,
    (f'watchpost_requests_total{{{API}, status="503"}}', GROWS),
    *(
        (f'watchpost_problems_total{{instance="a", problem="{problem}", status="503"}}', "0+4x90")
        for problem in ("unavailable", "overloaded", "too-many-requests", "invalid-body")
    ),
    *(
        (f'watchpost_{name}_seconds_bucket{{instance="a", {labels}le="{le}"}}', GROWS)
        for name, labels in (
            ("request", 'route="/api/prompt", '),
            ("queue_wait", 'record_type="prompt", '),
            ("pool_wait", ""),
        )
        for le in ("0.5", "+Inf")
    ),
    ('watchpost_database_errors_total{instance="a", error="DiskFull", sqlstate="53100"}', "0+1x90"),
    ('watchpost_tokens_refused_total{instance="a", kind="access", reason="expired"}', GROWS),
    ('watchpost_tokens_refused_total{instance="a", kind="access", reason="malformed"}', "0+5x90"),
    ('watchpost_rows_total{instance="a", record_type="device_heartbeat", outcome="updated"}', GROWS),
    ('watchpost_rows_total{instance="a", record_type="device_register", outcome="key_conflict"}', "3x90"),
    ('watchpost_default_partition_bytes{instance="a", table="prompts"}', "98304x90"),
    ('watchpost_partitions_until_timestamp_seconds{instance="a", table="prompts"}', f"{95 * 86400}x90"),
]


@pytest.fixture
def promtool(tmp_path: Path) -> Callable[..., str]:
    """Run Prometheus' own checker; Debian's package `prometheus` has it."""
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("promtool is not installed")

    def run(*arguments: str) -> str:
        done = subprocess.run([program, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False)
        return "" if done.returncode == 0 else done.stdout + done.stderr

    return run


def test_prometheus_takes_the_rules(promtool: Callable[..., str], tmp_path: Path) -> None:
    assert promtool("check", "rules", str(ALERTS)) == ""
    # And the dashboard's queries, as rules of their own.
    rules = [{"record": "a", "expr": text} for text in EXPRESSIONS]
    (tmp_path / "rules.yml").write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    assert promtool("check", "rules", "--lint=none", "rules.yml") == ""


def test_each_alert_fires_when_it_has_to_and_none_when_all_is_well(
    promtool: Callable[..., str], tmp_path: Path
) -> None:
    assert FIRING.keys() == {rule["alert"] for rule in RULES}
    cases = [case(tmp_path, alert, series, f'{{alertname="{alert}"}}', 1) for alert, series in FIRING.items()]
    assert promtool("test", "rules", *cases, case(tmp_path, "calm", CALM, "", 0)) == ""


def case(folder: Path, name: str, series: list[tuple[str, str]], alerts: str, firing: int) -> str:
    """A unit test of promtool's: after 85 minutes so many of these alerts fire."""
    test = {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series],
        "promql_expr_test": [
            {
                "expr": f'count(ALERTS{alerts} and ALERTS{{alertstate="firing"}}) or vector(0)',
                "eval_time": "85m",
                "exp_samples": [{"labels": "{}", "value": firing}],
            }
        ],
    }
    path = folder / f"{name}.yml"
    path.write_text(yaml.safe_dump({"rule_files": [str(ALERTS)], "evaluation_interval": "1m", "tests": [test]}))
    return str(path)
