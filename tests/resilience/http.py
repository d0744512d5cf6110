"""HTTP: requests with a few bytes changed, so that two parsers might read them differently."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import psycopg

from tests.resilience import Finding, Plan
from tests.support.raw_http import CHUNKED, Case, RawConnection
from tests.support.site import Site, faults, inhabited

PIECES = [
    *(bytes([byte]) for byte in (0, 9, 10, 11, 13, 32, 34, 44, 48, 58, 59, 127, 128, 255)),
    *(b"\r\n", b"\n\n", b"\r\n\r\n", b"0\r\n\r\n", b"\r\n ", b"1\r\n", b"ffffffffffffffff\r\n", b"-", b"+", b"0x"),
    *(b"Content-Length: 3\r\n", b"Content-Length: 0\r\n", b"Transfer-Encoding: chunked\r\n", b"Connection: close\r\n"),
    *(b"Transfer-Encoding: identity\r\n", b"Expect: 100-continue\r\n", b"Upgrade: h2c\r\nConnection: upgrade\r\n"),
    *(b"Content-Encoding: gzip\r\n", b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n", b"HTTP/1.0", b"HTTP/2.0"),
]
EACH = 500


def run(plan: Plan) -> Iterator[Finding]:
    with inhabited(plan.folder, workers=2) as site:
        for seed in range(1, plan.rounds + 1):
            with ThreadPoolExecutor(8) as threads:
                outcomes = list(threads.map(lambda at, seed=seed: _one(site, seed * EACH + at), range(EACH)))
            statuses: Counter[int] = sum((answers for answers, _ in outcomes), Counter())
            wrong = sum(1 for _, is_right in outcomes if not is_right)
            failed = len(faults(site.service))
            alive = site.service.get("/livez").status == 200
            said = ", ".join(f"{status}: {count:,}" for status, count in sorted(statuses.items()))
            yield Finding(
                f"changed requests, seeds {seed * EACH} to {seed * EACH + EACH - 1}",
                f"{EACH:,} connections, {statuses.total():,} answers",
                f"{said}; stored without a 2xx or the reverse {wrong}, faults {failed}",
                alive and not wrong and not failed and {201, 400} <= set(statuses),
            )


def _one(site: Site, seed: int) -> tuple[Counter[int], bool]:
    """Statuses of the answers, and whether what is stored is what they say."""
    chance = random.Random(seed)
    case = Case(site)
    sent = case.head(case.length()) + case.body if seed % 2 else case.head(CHUNKED) + case.chunks
    # The token is most of the request, and has a scenario of its own.
    token = sent.index(site.token.encode())
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        at = chance.choice((chance.randrange(token), chance.randrange(token + len(site.token), len(sent))))
        match chance.randrange(4):
            case 0:
                sent = sent[:at] + chance.choice(PIECES) + sent[at:]
            case 1:
                sent = sent[:at] + sent[at + chance.randrange(1, 5) :]
            case 2:
                sent = sent[:at] + bytes([sent[at] ^ (1 << chance.randrange(8))]) + sent[at + 1 :]
            case _:
                sent = sent[: at + chance.randrange(1, 60)] + sent[at:]
    with RawConnection(site.service) as connection:
        connection.send(sent + case.get("after"), no_more=True)
        replies = connection.replies()
    answers = Counter(reply.status for reply in replies)
    with psycopg.connect(site.database) as database:
        ids = [json.loads(reply.body).get("prompt_id") for reply in replies if reply.status in (200, 201)]
        ids = [id_ for id_ in ids if id_]
        found = database.execute("SELECT FROM prompts WHERE prompt_id = ANY (%s::uuid[])", (ids,)).fetchall()
    # Without an answer that says so, nothing is stored; the text itself may have been changed.
    return answers, len(found) == len(ids) and (bool(ids) or not case.stored())
