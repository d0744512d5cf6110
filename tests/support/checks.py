"""Values and assertions that tests of several resources share."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

HOSTILE_IDS = [
    "",
    "a b",
    " a",
    "a\n",
    "a\tb",
    "a\x00b",
    "a\x7f",
    "caf\u00e9",
    "a\u202eb",
    "\ud800",
    "\U0001f4bb",
    "a" * 129,
]
HOSTILE_TEXT = rb"a\u0000b\ud800c\udc00d\ud83d\ude00e\u202e' %s"
STORED_TEXT = "a\ufffdb\ufffdc\ufffdd\U0001f600e\u202e' %s"


def at_once(requests: list[Callable[[], Any]]) -> list[Any]:
    start = threading.Barrier(len(requests))

    def run(request: Callable[[], Any]) -> Any:
        start.wait(120)
        return request()

    with ThreadPoolExecutor(len(requests)) as pool:
        return list(pool.map(run, requests))


def statuses(answers: list[Any]) -> list[int]:
    return sorted(answer.status_code for answer in answers)


def is_refused(answer: Any, status: int, name: str) -> None:
    assert (answer.status_code, answer.json["type"]) == (status, f"urn:watchpost:problem:{name}"), answer.text
    assert answer.content_type == "application/problem+json"
