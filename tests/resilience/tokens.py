"""Tokens: every bit turned over, every member of another type, every known flaw of a signature; none is believed."""

from __future__ import annotations

import json
import time
import urllib.parse
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from joserfc.jwk import ECKey, OKPKey, RSAKey

from tests.resilience import Finding, Plan
from tests.support import forgery
from tests.support.agent import ALGORITHMS, ASSERTION_TYPE, Agent
from tests.support.service import Answer
from tests.support.site import FORM, Site, faults, inhabited

KEYS: dict[str, Callable[[], forgery.Key]] = {
    "ES256": lambda: ECKey.generate_key("P-256"),
    "RS256": lambda: RSAKey.generate_key(2048),
    "EdDSA": lambda: OKPKey.generate_key("Ed25519"),
}
Forged = Iterable[tuple[str, str]]


def run(plan: Plan) -> Iterator[Finding]:
    with inhabited(plan.folder, workers=2) as site:
        for algorithm, make in KEYS.items():
            agent = Agent(key=make())
            assert site.service.post("/api/devices/register", agent.registration(), site.enrollment).status == 201
            header, claims = assertion(site, agent)
            yield from tried(site, f"client assertion, {algorithm}", agent.key, header, claims, asking(site))
            good = asking(site)(forgery.signed(agent.key, *assertion(site, agent)))
            yield Finding(f"client assertion, {algorithm}: a good one", "1", f"{good.status}", good.status == 200)
        key, header, claims = access_token(site)
        yield from tried(site, "access token, ES256", key, header, claims, knocking(site))
        good = knocking(site)(forgery.signed(key, header, claims))
        yield Finding("access token: a good one", "1", f"{good.status}", good.status == 200)
        of_enrollment = json.loads(forgery.unpart(site.enrollment.split(".")[1]))
        yield from tried(site, "enrolment token, ES256", key, header, of_enrollment, registering(site))


def assertion(site: Site, agent: Agent) -> tuple[dict[str, Any], dict[str, Any]]:
    now = int(time.time())
    claims = {"iss": agent.device_id, "sub": agent.device_id, "aud": site.service.url, "jti": uuid.uuid4().hex}
    return {"alg": ALGORITHMS[agent.key.key_type], "typ": "JWT"}, {**claims, "iat": now, "exp": now + 300}


def access_token(site: Site) -> tuple[forgery.Key, dict[str, Any], dict[str, Any]]:
    """The service's own key, and header and claims of the device's token."""
    path = site.service.environment["WATCHPOST_DATA_DIR"] + "/signing-keys.json"
    with open(path, encoding="utf-8") as file:
        key = ECKey.import_key(json.load(file)["keys"][0])
    header, claims = (json.loads(forgery.unpart(text)) for text in site.token.split(".")[:2])
    return key, header, {**claims, "exp": int(time.time()) + 3600}


Send = Callable[[str], Answer]


def asking(site: Site) -> Send:
    def ask(text: str) -> Answer:
        form = {"grant_type": "client_credentials", "client_assertion_type": ASSERTION_TYPE, "client_assertion": text}
        return site.service.post("/api/auth/token", urllib.parse.urlencode(form).encode(), **FORM)

    return ask


def knocking(site: Site) -> Send:
    body = {"device_id": site.agent.device_id}
    return lambda text: site.service.post("/api/devices/heartbeat", body, text)


def registering(site: Site) -> Send:
    return lambda text: site.service.post("/api/devices/register", site.agent.registration(), text)


def tried(site: Site, what: str, key: forgery.Key, header: Any, claims: Any, send: Send) -> Iterator[Finding]:
    """Send all that can be made of a good token, and count what became of it."""
    token = forgery.signed(key, header, claims)
    text = token.rpartition(".")[0]
    signatures = forgery.forged(key, text.encode()).items()
    families: dict[str, Forged] = {
        "a bit turned over": forgery.flipped(token),
        "cut": ((name, part) for name, part in forgery.cut(token) if part.strip(".")),
        "a member of another type": forgery.mistyped(key, header, claims),
        "a known flaw of signatures": ((name, f"{text}.{forgery.part(signature)}") for name, signature in signatures),
        "another spelling": (
            # A header's value has no line ends, and spaces around it are not part of it.
            (name, spelt)
            for name, spelt in forgery.respelled(token).items()
            if spelt.isprintable() and spelt.isascii() and not spelt.startswith(" ")
        ),
    }
    for family, forged in families.items():
        before = len(faults(site.service))
        with ThreadPoolExecutor(8) as threads:
            named = list(forged)
            answers = list(threads.map(lambda pair: send(pair[1]), named))
        statuses = Counter(answer.status for answer in answers)
        accepted = [name for (name, _), answer in zip(named, answers, strict=True) if answer.status < 400]
        challenged = sum(
            1 for answer in answers if answer.headers.get("WWW-Authenticate", "").startswith("Bearer error=")
        )
        said = ", ".join(f"{status}: {count:,}" for status, count in sorted(statuses.items()))
        failed = len(faults(site.service)) - before
        result = f"{said}; accepted {len(accepted)}, faults {failed}, without a challenge {len(named) - challenged}"
        result += "".join(f"; accepted: {name}" for name in accepted[:5])
        passed = bool(named) and set(statuses) == {401} and challenged == len(named) and not failed
        yield Finding(f"{what}: {family}", f"{len(named):,} tokens", result, passed)
