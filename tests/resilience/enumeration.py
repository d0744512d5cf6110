"""Enumeration: whether a stranger learns which devices exist, from what the service says or from how long it takes."""

from __future__ import annotations

import asyncio
import math
import random
import statistics
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

import psycopg
from joserfc.jwk import ECKey, OKPKey, RSAKey

from app.dev import embedded
from tests.resilience import Finding, Plan, crowd
from tests.support.agent import Agent
from tests.support.service import serving

# An answer tells nothing when the chance that one takes longer than another is this close to one half; nor when the
# medians are so many milliseconds apart, which is what it takes to read a row, and a hundredth of how networks vary.
MOST_ADVANTAGE = 0.05
MOST_DIFFERENCE = 0.025

FILL_KEYS = """
UPDATE devices SET public_key_pem = %(pem)s, revoked_at = CASE WHEN %(revoked)s THEN now() END
WHERE substr(device_id, 8)::int %% 4 = %(group)s
"""


def mann_whitney(one: list[float], other: list[float]) -> tuple[float, float]:
    """How likely a value of one is below a value of the other, and how likely chance alone makes that so far from 1/2.

    The rank test of Mann and Whitney, two-sided, with the normal approximation, for samples of more than 20.
    """
    ranked = sorted([(value, True) for value in one] + [(value, False) for value in other])
    ranks = sum(rank for rank, (_, is_one) in enumerate(ranked, 1) if is_one)
    pairs = len(one) * len(other)
    above = ranks - len(one) * (len(one) + 1) / 2
    z = (above - pairs / 2) / math.sqrt(pairs * (len(one) + len(other) + 1) / 12)
    return 1 - above / pairs, math.erfc(abs(z) / math.sqrt(2))


async def ask(bind: str, requests: dict[str, list[bytes]]) -> tuple[dict[str, list[float]], dict[str, set[str]]]:
    """Send what is there of each kind, in any order. Returns the times of each, and how its answers differ."""
    caller = crowd.Caller(bind)
    seconds: dict[str, list[float]] = {kind: [] for kind in requests}
    said: dict[str, set[str]] = {kind: set() for kind in requests}
    left = [(kind, request) for kind, all_ in requests.items() for request in all_]
    random.shuffle(left)
    for kind, request in left:
        answer = await caller.send(request)
        seconds[kind].append(answer.seconds)
        body = answer.body.decode().replace(answer.headers["x-request-id"], "")
        headers = sorted(
            (name, value) for name, value in answer.headers.items() if name not in ("date", "x-request-id")
        )
        said[kind].add(f"{answer.status} {headers} {body}")
    caller.close()
    return seconds, said


def token_request(form: dict[str, str]) -> bytes:
    data = urllib.parse.urlencode(form).encode()
    head = "POST /api/auth/token HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-www-form-urlencoded\r\n"
    return f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data


def run(plan: Plan) -> Iterator[Finding]:
    tries = 100 * plan.rounds
    with serving(plan.folder, workers=1, address_rate=0, device_rate=0) as service:
        url = embedded.url(str(plan.folder / "data"))
        ids = crowd.fill(url, 4 * tries)
        keys = {
            "EC": ECKey.generate_key("P-256"),
            "RSA": RSAKey.generate_key(2048),
            "Ed25519": OKPKey.generate_key("Ed25519"),
            "EC, revoked": ECKey.generate_key("P-256"),
        }
        with psycopg.connect(url, autocommit=True) as connection:
            for group, (name, key) in enumerate(keys.items()):
                pem = Agent(key=key).public_key_pem
                connection.execute(FILL_KEYS, {"pem": pem, "revoked": "revoked" in name, "group": group})
            connection.execute("VACUUM ANALYZE devices")
        stranger = ECKey.generate_key("P-256")

        def assertions(devices: list[str]) -> list[bytes]:
            return [token_request(Agent(device, stranger).token_request(service.url)) for device in devices]

        unknown = [f"device-{number}" for number in range(4 * tries, 5 * tries)]
        asked = {"unknown": assertions(unknown)}
        asked |= {name: assertions(ids[group::4]) for group, name in enumerate(keys)}
        form = Agent("x", stranger).token_request(service.url)
        asked["no assertion at all"] = [token_request(form | {"client_assertion": "x.y.z"})] * tries
        seconds, said = asyncio.run(ask(service.bind, asked))
        signing_keys = Path(service.environment["WATCHPOST_DATA_DIR"]) / "signing-keys.json"
        token = crowd.tokens(signing_keys, service.url, ids[:1])[0]
        named = {
            kind: [crowd.post("/api/devices/heartbeat", {"device_id": device}, token) for device in devices]
            for kind, devices in (("unknown", unknown), ("known", ids[1 : tries + 1]))
        }
        named_seconds, named_said = asyncio.run(ask(service.bind, named))
    for kind in keys:
        yield _compared(f"token endpoint, wrong key: a known device ({kind}) beside an unknown", kind, seconds, said)
    yield _compared(
        "heartbeat that names another device: a known beside an unknown", "known", named_seconds, named_said
    )
    advantage, chance = mann_whitney(seconds["no assertion at all"], seconds["unknown"])
    yield Finding(
        "control: the same test tells what is no assertion from one that is",
        f"{tries:,} tries of each",
        f"quicker in {advantage:.1%} of pairs, by chance with p = {chance:.2g}",
        abs(advantage - 0.5) > MOST_ADVANTAGE and chance < 0.001,
    )


def _compared(what: str, kind: str, seconds: dict[str, list[float]], said: dict[str, set[str]]) -> Finding:
    advantage, chance = mann_whitney(seconds[kind], seconds["unknown"])
    medians = [statistics.median(seconds[name]) * 1000 for name in (kind, "unknown")]
    alike = said[kind] == said["unknown"] and len(said[kind]) == 1
    return Finding(
        what,
        f"{len(seconds[kind]):,} tries of each",
        f"{'same' if alike else 'DIFFERENT'} status, headers, body; medians {medians[0]:.3f} and {medians[1]:.3f} ms, "
        f"quicker in {advantage:.1%} of pairs, p = {chance:.2g}",
        alike and (abs(advantage - 0.5) <= MOST_ADVANTAGE or abs(medians[0] - medians[1]) <= MOST_DIFFERENCE),
    )
