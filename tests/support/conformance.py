"""The service against its own description: what schemathesis makes of docs/openapi.yaml, and what it finds."""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qsl

import schemathesis
from schemathesis import engine
from schemathesis.engine import events

from app.api import bodies, json_values
from app.api.fields import AHEAD_MS, is_plausible
from tests.support.agent import Agent
from tests.support.site import Site

HOUR_MS = 3600 * 1000
TIMES = ("timestamp", "registered_at", "discovered_at", "observed_at", "reported_at", "detected_at")
REGISTER = "/api/devices/register"


@dataclasses.dataclass
class Findings:
    """answers: by status. complaints: one text for each thing that is not as described."""

    answers: Counter[int] = dataclasses.field(default_factory=Counter)
    complaints: list[str] = dataclasses.field(default_factory=list)


def narrowed(spec: Any, agent: Agent) -> Any:
    """The description, with what JSON Schema can't say: the token's device, times near the clock, a key that is one."""
    known = {
        "device_id": {"enum": [agent.device_id]},
        "public_key_pem": {"enum": [agent.public_key_pem]},
        # A random text proves nothing, and is refused.
        "proof": {"enum": []},
    }
    for name, schema in spec["components"]["schemas"].items():
        if not name.endswith("Request"):
            continue
        for field, what in schema["properties"].items():
            if what.get("format") == "int64":
                what["maximum"] = _latest()
            elif field in known:
                nothing = [None] if "null" in what["type"] else []
                schema["properties"][field] = {"enum": [*known[field]["enum"], *nothing]}
    return spec


def examine(site: Site, examples: int, seed: int) -> Findings:
    """Send what the description makes one send, and what it forbids, with all of schemathesis' checks.

    examples: random requests of each operation, beside those that cover each keyword of its schema.
    """
    config = schemathesis.Config.from_dict(
        {
            "base-url": site.service.url,
            "seed": seed,
            "headers": {"Authorization": f"Bearer {site.token}"},
            "operations": [{"include-path": REGISTER, "headers": {"Authorization": f"Bearer {site.enrollment}"}}],
            "generation": {"max-examples": examples, "database": "none", "no-shrink": True},
            # There are no links between operations.
            "phases": {"stateful": {"enabled": False}},
        }
    )
    spec = narrowed(site.service.get("/openapi.json").json, site.agent)
    schema = schemathesis.openapi.from_dict(spec, config=config)
    findings = Findings()
    for event in engine.from_schema(schema).execute():
        if isinstance(event, events.ScenarioFinished):
            recorder = event.recorder
            for interaction in recorder.interactions.values():
                if interaction.response is not None:
                    findings.answers[interaction.response.status_code] += 1
            findings.complaints += _complaints(recorder)
        elif isinstance(event, events.NonFatalError):
            findings.complaints.append(f"{event.label}: {event.value}")
        elif isinstance(event, events.FatalError):
            findings.complaints.append(str(event.exception))
    return findings


def _complaints(recorder: Any) -> Iterator[str]:
    for case_id, checks in recorder.checks.items():
        interaction = recorder.interactions.get(case_id)
        for check in checks:
            if check.failure_info is None or (interaction is not None and _is_the_contract(check.name, interaction)):
                continue
            info = check.failure_info
            yield f"{recorder.label}: {check.name}: {info.failure.title}: {info.failure.message}\n{info.code_sample}"


def _is_the_contract(check: str, interaction: Any) -> bool:
    """Whether an answer that seems wrong is what the contract wants, and a schema can't express."""
    sent, answer = interaction.request, interaction.response
    if answer.status_code == 413:
        # schemathesis does not count it among the refusals.
        return len(sent.body or b"") > bodies.MAX_BODY
    if sent.uri.endswith("/api/auth/token"):
        # RFC 6749, section 3.2: no parameter may stand twice.
        names = [name for name, _ in parse_qsl((sent.body or b"").decode(), keep_blank_values=True)]
        return check == "positive_data_acceptance" and len(set(names)) < len(names)
    if check not in ("positive_data_acceptance", "negative_data_rejection"):
        return False
    try:
        value, suspicious = json_values.parse(sent.body or b"", 100_000)
    except ValueError:
        return False
    times = [value.get(name) for name in TIMES] if isinstance(value, dict) else []
    if check == "positive_data_acceptance":
        # Numbers beyond 64 bits and deep nesting, also in fields that nobody knows; 1.0 for 1.
        return (suspicious and any(json_values.violations(value))) or any(isinstance(given, float) for given in times)
    # A batch is taken, and its bad item is refused in its place.
    results = answer.json().get("results", []) if sent.uri.endswith("/api/batch") else []
    # The clock went on since the description was narrowed.
    return any(result["status"] >= 400 for result in results) or any(
        isinstance(given, int) and is_plausible(given) and given > _latest() - HOUR_MS for given in times
    )


def _latest() -> int:
    """A time that a client may well send: an hour before the last."""
    return int(time.time() * 1000) + AHEAD_MS - HOUR_MS
