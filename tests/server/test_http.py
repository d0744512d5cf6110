"""HTTP/1.1 as it comes out of a socket (RFC 9112): what is ambiguous is refused, and nothing hides behind it.

A request that one reader ends earlier than another carries a second one past a proxy. So each case says what has to
come back, whether the connection goes on, and which requests the service may have seen at all.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import socket
import struct
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.support.raw_http import CHUNKED, Case, Reply, Wire, chunk
from tests.support.site import Site, faults


@pytest.fixture
def case(site: Site) -> Case:
    return Case(site)


def is_problem(reply: Reply) -> None:
    """RFC 9457, and nothing of the request in it."""
    assert reply.headers["content-type"] == "application/problem+json", reply
    assert json.loads(reply.body)["status"] == reply.status


Make = Callable[[Case], bytes]


def with_lines(*lines: bytes, behind: Make = lambda case: case.body) -> Make:
    return lambda case: case.head(*lines) + behind(case)


def starting(line: bytes) -> Make:
    return lambda case: case.head(start=line, trusted=False)


def with_chunks(make: Make) -> Make:
    return lambda case: case.head(b"Transfer-Encoding: chunked") + make(case)


# What can be read in two ways, and what is no HTTP: one refusal, then the connection is closed.
REFUSED: dict[str, Make] = {
    "a length and chunks": lambda case: case.head(case.length(), CHUNKED) + case.chunks,
    "chunks and a length": lambda case: case.head(CHUNKED, case.length()) + case.chunks,
    "CL.TE": lambda case: case.head(b"Content-Length: %d" % (5 + len(case.body)), CHUNKED) + b"0\r\n\r\n" + case.body,
    "TE.CL": lambda case: case.head(b"Content-Length: 4", CHUNKED) + chunk(case.get("hidden")) + b"0\r\n\r\n",
    "a length of 0 and chunks": lambda case: case.head(b"Content-Length: 0", CHUNKED) + case.chunks,
    "two lengths": lambda case: case.head(case.length(), b"Content-Length: 3") + case.body,
    "two lengths, the short one first": lambda case: case.head(b"Content-Length: 3", case.length()) + case.body,
    "the same length twice": lambda case: case.head(case.length(), case.length()) + case.body,
    "a list of lengths": lambda case: case.head(case.length() + b", %d" % len(case.body)) + case.body,
    "a list of two lengths": lambda case: case.head(case.length() + b", 3") + case.body,
    "a length with a plus": lambda case: case.head(b"Content-Length: +%d" % len(case.body)) + case.body,
    "a length below 0": with_lines(b"Content-Length: -5"),
    "a length in hexadecimal": lambda case: case.head(b"Content-Length: 0x%x" % len(case.body)) + case.body,
    "a length with a fraction": lambda case: case.head(case.length() + b".0") + case.body,
    "a length with an exponent": with_lines(b"Content-Length: 1e2"),
    "a length with a space": with_lines(b"Content-Length: 1 00"),
    "a length with an underscore": with_lines(b"Content-Length: 1_00"),
    "no length at all": with_lines(b"Content-Length:"),
    "a length in words": with_lines(b"Content-Length: many"),
    "a length in quotes": lambda case: case.head(b'Content-Length: "%d"' % len(case.body)) + case.body,
    "a length in other digits": with_lines("Content-Length: \uff11\uff10".encode()),
    "a length of a superscript": with_lines(b"Content-Length: \xb2"),
    "a length with a NUL": lambda case: case.head(case.length() + b"\x00") + case.body,
    "a length of 5,000 digits": with_lines(b"Content-Length: " + b"9" * 5000),
    "a space before the colon of a length": lambda case: case.head(b"Content-Length : 3", case.length()) + case.body,
    "chunked twice in one line": with_lines(b"Transfer-Encoding: chunked, chunked", behind=lambda case: case.chunks),
    "chunked in two lines": with_lines(CHUNKED, CHUNKED, behind=lambda case: case.chunks),
    "chunked, then identity": with_lines(b"Transfer-Encoding: chunked, identity", behind=lambda case: case.chunks),
    "chunked, then identity, in two lines": with_lines(
        CHUNKED, b"Transfer-Encoding: identity", behind=lambda case: case.chunks
    ),
    "chunked, then gzip": with_lines(b"Transfer-Encoding: chunked, gzip", behind=lambda case: case.chunks),
    "gzip without chunks": lambda case: case.head(b"Transfer-Encoding: gzip", case.length()) + case.body,
    "identity and a length": lambda case: case.head(b"Transfer-Encoding: identity", case.length()) + case.body,
    "an unknown transfer coding": lambda case: case.head(b"Transfer-Encoding: xchunked", case.length()) + case.body,
    "chunked with a tail": lambda case: case.head(b"Transfer-Encoding: chunkedx", case.length()) + case.body,
    "chunked with a vertical tab": lambda case: case.head(b"Transfer-Encoding: \x0bchunked", case.length()) + case.body,
    "chunked with a NUL": lambda case: case.head(b"Transfer-Encoding: chunked\x00", case.length()) + case.body,
    "chunked in quotes": lambda case: case.head(b'Transfer-Encoding: "chunked"', case.length()) + case.body,
    "chunked with a parameter": lambda case: case.head(b"Transfer-Encoding: chunked;q=1", case.length()) + case.body,
    "an empty transfer coding": lambda case: case.head(b"Transfer-Encoding:", case.length()) + case.body,
    "a space before the colon of chunked": lambda case: (
        case.head(b"Transfer-Encoding : chunked", case.length()) + case.body
    ),
    "a tab before the colon": lambda case: case.head(b"Transfer-Encoding\t: chunked", case.length()) + case.body,
    "chunks of HTTP/1.0": lambda case: case.head(CHUNKED, start=b"POST /api/prompt HTTP/1.0") + case.chunks,
    "a folded line": lambda case: case.head(b"X-Long: a", b" b", case.length()) + case.body,
    "a folded transfer coding": lambda case: case.head(b"Transfer-Encoding:", b" chunked", case.length()) + case.body,
    "a folded line with a tab": lambda case: case.head(b"X-Long: a", b"\t" + CHUNKED, case.length()) + case.body,
    "a first line that is folded": lambda case: (
        b"POST /api/prompt HTTP/1.1\r\n " + case.head(case.length()).partition(b"\r\n")[2] + case.body
    ),
    "lines that end with LF": lambda case: case.head(case.length()).replace(b"\r\n", b"\n") + case.body,
    "a head that ends with LF": lambda case: case.head(case.length())[:-2] + b"\n" + case.body,
    "one line that ends with LF": lambda case: case.head(b"X-One: 1\nX-Two: 2", case.length()) + case.body,
    "a request line that ends with LF": lambda case: case.head(case.length()).replace(b"\r\n", b"\n", 1) + case.body,
    "a header hidden behind LF": lambda case: case.head(b"X-One: 1\n" + CHUNKED, case.length()) + case.body,
    "a header hidden behind CR": lambda case: case.head(b"X-One: 1\r" + CHUNKED, case.length()) + case.body,
    "CR in a value": lambda case: case.head(b"X-One: a\rb", case.length()) + case.body,
    "NUL in a value": lambda case: case.head(b"X-One: a\x00b", case.length()) + case.body,
    "NUL in a name": lambda case: case.head(b"X-O\x00ne: a", case.length()) + case.body,
    "a control character in a value": lambda case: case.head(b"X-One: a\x01b", case.length()) + case.body,
    "a space in a name": lambda case: case.head(b"X One: a", case.length()) + case.body,
    "a bracket in a name": lambda case: case.head(b"X(One): a", case.length()) + case.body,
    "a name that is not ASCII": lambda case: case.head(b"X-\xdfne: a", case.length()) + case.body,
    "an empty name": lambda case: case.head(b": a", case.length()) + case.body,
    "a line without a colon": lambda case: case.head(b"X-One", case.length()) + case.body,
    "two hosts": lambda case: case.head(b"Host: else.example", case.length()) + case.body,
    "no version": starting(b"GET /livez"),
    "HTTP/2.0": starting(b"GET /livez HTTP/2.0"),
    "HTTP/0.9": starting(b"GET /livez HTTP/0.9"),
    "HTTP/1.10": starting(b"GET /livez HTTP/1.10"),
    "HTTP/11": starting(b"GET /livez HTTP/11"),
    "http/1.1": starting(b"GET /livez http/1.1"),
    "HTTP/1.1 with a tail": starting(b"GET /livez HTTP/1.1 x"),
    "a space behind the version": starting(b"GET /livez HTTP/1.1 "),
    "another protocol": starting(b"GET /livez ICY/1.1"),
    "tabs for spaces": starting(b"GET\t/livez\tHTTP/1.1"),
    "a space in the target": starting(b"GET /li vez HTTP/1.1"),
    "NUL in the target": starting(b"GET /livez\x00 HTTP/1.1"),
    "DEL in the target": starting(b"GET /livez\x7f HTTP/1.1"),
    "a target that is not ASCII": starting(b"GET /liv\xc3\xa9z HTTP/1.1"),
    "no target": starting(b"GET HTTP/1.1"),
    "an empty target": starting(b"GET  HTTP/1.1"),
    "a target without a slash": starting(b"GET livez HTTP/1.1"),
    "a host for a target": starting(b"GET watchpost.test:80 HTTP/1.1"),
    "a method with a bracket": starting(b"GE(T /livez HTTP/1.1"),
    "a method with NUL": starting(b"G\x00T /livez HTTP/1.1"),
    "no method": starting(b" /livez HTTP/1.1"),
    "HTTP/2 at once": lambda _: b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "TLS": lambda _: bytes.fromhex("16030100a5010000a10303") + bytes(range(160)) + b"\r\n\r\n",
    "an answer": lambda _: b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    "SSH": lambda _: b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
    "JSON alone": lambda case: case.body + b"\r\n\r\n",
    "another expectation": lambda case: case.head(b"Expect: 200-ok", case.length()) + case.body,
    "two expectations": lambda case: case.head(b"Expect: 100-continue, x", case.length()) + case.body,
    "a long request line": starting(b"GET /livez?" + b"a" * 5000 + b" HTTP/1.1"),
    "a long line": lambda case: case.head(b"X-Long: " + b"a" * 17000, case.length()) + case.body,
    "a long name": lambda case: case.head(b"X-" + b"a" * 17000 + b": 1", case.length()) + case.body,
    "200 lines": lambda case: case.head(*[b"X-%d: 1" % at for at in range(200)], case.length()) + case.body,
    "a head of 4 MiB": lambda case: case.head(*[b"X-%d: " % at + b"a" * 8000 for at in range(524)], case.length()),
    "a head of 4 MiB without an end": lambda case: case.head(b"X-Long: " + b"a" * 2**22)[:-4],
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_ambiguous_or_no_http_is_refused_and_nothing_hides_behind_it(name: str, case: Case) -> None:
    with Wire(case.site.service) as wire:
        wire.send(REFUSED[name](case) + case.get("hidden"), no_more=True)
        replies = wire.replies()
    assert [reply.status in (400, 414, 417, 431, 501, 505) for reply in replies] == [True], replies
    assert replies[0].headers["connection"] == "close"
    is_problem(replies[0])
    assert case.mark.encode() not in replies[0].body
    assert "hidden" not in case.seen()
    assert not case.stored()


# How a body in chunks may go wrong; it is found out while the body is read, so the requests before it are answered.
BAD_CHUNKS: dict[str, Make] = {
    "a size with a plus": lambda case: chunk(case.body, b"+%x" % len(case.body)) + b"0\r\n\r\n",
    "a size below 0": lambda case: chunk(case.body, b"-%x" % len(case.body)) + b"0\r\n\r\n",
    "a size with 0x": lambda case: chunk(case.body, b"0x%x" % len(case.body)) + b"0\r\n\r\n",
    "a size with a space before it": lambda case: chunk(case.body, b" %x" % len(case.body)) + b"0\r\n\r\n",
    "a size with an underscore": lambda case: chunk(case.body, b"0_%x" % len(case.body)) + b"0\r\n\r\n",
    "a size in other digits": lambda case: chunk(case.body, "\uff11".encode()) + b"0\r\n\r\n",
    "no size": lambda case: chunk(case.body, b"") + b"0\r\n\r\n",
    "an extension without a size": lambda case: chunk(case.body, b";a=b") + b"0\r\n\r\n",
    "a size that ends with LF": lambda case: b"%x\n" % len(case.body) + case.body + b"\r\n0\r\n\r\n",
    "a size that ends with CR": lambda case: b"%x\r" % len(case.body) + case.body + b"\r\n0\r\n\r\n",
    "a size of 17 digits": lambda case: chunk(case.body, b"1" + b"0" * 14 + b"%x" % len(case.body)) + b"0\r\n\r\n",
    "a size of 5,000 digits": lambda case: chunk(case.body, b"f" * 5000) + b"0\r\n\r\n",
    "a size that is too large": lambda case: chunk(case.body, b"%x" % (len(case.body) + 1)) + b"0\r\n\r\n",
    "a size that is too small": lambda case: chunk(case.body, b"%x" % (len(case.body) - 1)) + b"0\r\n\r\n",
    "a chunk that ends with LF": lambda case: b"%x\r\n" % len(case.body) + case.body + b"\n0\r\n\r\n",
    "a chunk that ends with other bytes": lambda case: b"%x\r\n" % len(case.body) + case.body + b"XX0\r\n\r\n",
    "an extension with CR": lambda case: chunk(case.body, b"%x;a\rb" % len(case.body)) + b"0\r\n\r\n",
    "an extension with LF": lambda case: chunk(case.body, b"%x;a\nb" % len(case.body)) + b"0\r\n\r\n",
    "an extension with NUL": lambda case: chunk(case.body, b"%x;a\x00" % len(case.body)) + b"0\r\n\r\n",
    "an extension of a mebibyte": lambda case: (
        chunk(case.body, b"%x;a=" % len(case.body) + b"b" * 2**20) + b"0\r\n\r\n"
    ),
    "no last chunk": lambda case: chunk(case.body),
    "a last chunk without its end": lambda case: chunk(case.body) + b"0\r\n",
    "a trailer without its end": lambda case: chunk(case.body) + b"0\r\nX-One: 1\r\n",
    "a trailer that is no header": lambda case: chunk(case.body) + b"0\r\nnothing\r\n\r\n",
    "a trailer with LF": lambda case: chunk(case.body) + b"0\r\nX-One: 1\nX-Two: 2\r\n\r\n",
}


@pytest.mark.parametrize("name", BAD_CHUNKS)
def test_a_body_in_bad_chunks_is_not_taken_and_nothing_hides_behind_it(name: str, case: Case) -> None:
    with Wire(case.site.service) as wire:
        wire.send(case.head(CHUNKED) + BAD_CHUNKS[name](case), no_more=True)
        replies = wire.replies()
    # 503: the body stopped before its end.
    assert [reply.status in (400, 413, 431, 503) for reply in replies] == [True], replies
    is_problem(replies[0])
    assert not case.stored()
    # Again, now with a request behind it, that may have become a part of the body but no more.
    with Wire(case.site.service) as wire:
        wire.send(case.head(CHUNKED) + BAD_CHUNKS[name](case) + case.get("hidden"), no_more=True)
        replies = wire.replies()
    assert len(replies) == 1, replies
    assert "hidden" not in case.seen()
    assert not case.stored()


@pytest.mark.parametrize("name", BAD_CHUNKS)
def test_bad_chunks_that_nobody_reads_hide_nothing_either(name: str, case: Case) -> None:
    with Wire(case.site.service) as wire:
        wire.send(case.head(CHUNKED, trusted=False) + BAD_CHUNKS[name](case) + case.get("hidden"), no_more=True)
        replies = wire.replies()
    # What is behind the answer can't be read, and may be refused too.
    assert [reply.status for reply in replies] in ([401], [400], [401, 400]), replies
    assert case.seen() <= {"first"}


TAKEN: dict[str, Make] = {
    "a length": lambda case: case.head(case.length()) + case.body,
    "a length with zeros in front": lambda case: case.head(b"Content-Length: 00%d" % len(case.body)) + case.body,
    "a length with spaces around": lambda case: case.head(b"Content-Length: \t%d \t" % len(case.body)) + case.body,
    "names in capitals": lambda case: case.head(case.length().upper()) + case.body,
    "names in small letters": lambda case: case.head(case.length().lower()) + case.body,
    "no space behind the colon": lambda case: case.head(case.length().replace(b" ", b"")) + case.body,
    "a value that is not ASCII": lambda case: case.head(b"X-One: caf\xe9 \xc3\xa9", case.length()) + case.body,
    "an empty value": lambda case: case.head(b"X-One:", case.length()) + case.body,
    "90 lines": lambda case: case.head(*[b"X-%d: 1" % at for at in range(90)], case.length()) + case.body,
    "a line of 16,000 bytes": lambda case: case.head(b"X-Long: " + b"a" * 16000, case.length()) + case.body,
    "a query of 4,000 bytes": lambda case: (
        case.head(case.length(), start=b"POST /api/prompt?" + b"a" * 4000 + b" HTTP/1.1") + case.body
    ),
    "an empty line in front": lambda case: b"\r\n" + case.head(case.length()) + case.body,
    "the whole address": lambda case: (
        case.head(case.length(), start=b"POST http://else.example:81/api/prompt HTTP/1.1") + case.body
    ),
    "a path in percents": lambda case: case.head(case.length(), start=b"POST /api/%70rompt HTTP/1.1") + case.body,
    "chunks": with_chunks(lambda case: case.chunks),
    "chunks, in capitals": lambda case: case.head(b"TRANSFER-ENCODING: CHUNKED") + case.chunks,
    "chunks of one byte": with_chunks(
        lambda case: b"".join(chunk(case.body[at : at + 1]) for at in range(len(case.body))) + b"0\r\n\r\n"
    ),
    "sizes with zeros in front": with_chunks(lambda case: chunk(case.body, b"000%x" % len(case.body)) + b"000\r\n\r\n"),
    "sizes in capitals": with_chunks(lambda case: chunk(case.body.ljust(0xBC), b"BC") + b"0\r\n\r\n"),
    "an extension": with_chunks(lambda case: chunk(case.body, b"%x;a=b" % len(case.body)) + b"0;c\r\n\r\n"),
    "an extension in quotes": with_chunks(lambda case: chunk(case.body, b'%x;a=";x"' % len(case.body)) + b"0\r\n\r\n"),
    "a trailer": with_chunks(lambda case: chunk(case.body) + b"0\r\nX-One: 1\r\n\r\n"),
    # Which names are the same as an environment has them, and as a header has them, is not the same.
    "another name for the length": lambda case: case.head(case.length(), b"Content_Length: 3") + case.body,
    "another name, before it": lambda case: case.head(b"Content_Length: 3", case.length()) + case.body,
    "another name for chunks": lambda case: case.head(b"Transfer_Encoding: chunked", case.length()) + case.body,
    "another name for the type": lambda case: case.head(b"Content_Type: text/plain", case.length()) + case.body,
    "another name for the encoding": lambda case: case.head(b"Content_Encoding: gzip", case.length()) + case.body,
    "another name for the token": lambda case: case.head(b"Authorization_: Bearer x", case.length()) + case.body,
    "a proxy's word": lambda case: (
        case.head(b"X-Forwarded-For: 1.2.3.4", b"X-Forwarded-Proto: https", b"Forwarded: for=1", case.length())
        + case.body
    ),
    "names of the environment": lambda case: (
        case.head(b"SCRIPT_NAME: /api", b"PATH_INFO: /livez", b"SCRIPT-NAME: /api", b"PATH-INFO: /x", case.length())
        + case.body
    ),
    "another path": lambda case: case.head(b"X-Original-URL: /livez", b"X-Rewrite-URL: /x", case.length()) + case.body,
    "another method": lambda case: case.head(b"X-HTTP-Method-Override: DELETE", case.length()) + case.body,
    "an upgrade to HTTP/2": lambda case: (
        case.head(b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABk", case.length())
        + case.body
    ),
    "an upgrade to HTTP/2 with chunks": lambda case: (
        case.head(b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABk", CHUNKED)
        + case.chunks
    ),
    "an upgrade to a web socket": lambda case: (
        case.head(b"Connection: Upgrade", b"Upgrade: websocket", b"Sec-WebSocket-Key: eA==", case.length()) + case.body
    ),
}


@pytest.mark.parametrize("name", TAKEN)
def test_what_is_unusual_but_clear_is_taken_and_the_connection_goes_on(name: str, case: Case) -> None:
    with Wire(case.site.service) as wire:
        wire.send(TAKEN[name](case) + case.get("after"))
        replies = [wire.reply(), wire.reply()]
    assert [(reply.status, reply.id) for reply in replies if reply] == [
        (201, case.id("first")),
        (200, case.id("after")),
    ]
    assert case.seen() == {"first", "after"}
    assert case.stored()


def test_requests_that_come_at_once_are_answered_in_their_order(case: Case) -> None:
    names = [f"r{at}" for at in range(20)]
    with Wire(case.site.service) as wire:
        posts = case.head(case.length()) + case.body
        wire.send(b"".join(map(case.get, names[:10])) + posts + b"".join(map(case.get, names[10:])))
        replies = [wire.reply() for _ in range(21)]
    assert [reply.id for reply in replies if reply] == [case.id(name) for name in (*names[:10], "first", *names[10:])]
    assert [reply.status for reply in replies if reply] == [200] * 10 + [201] + [200] * 10


def test_a_request_that_offers_other_protocols_is_one_of_many(case: Case) -> None:
    upgrade = (b"Connection: Upgrade", b"Upgrade: websocket")
    with Wire(case.site.service) as wire:
        post = case.head(*upgrade, case.length()) + case.body
        wire.send(case.get("r1", *upgrade) + post + case.get("r2", *upgrade) + case.get("r3"), slowly=0.0002)
        replies = [wire.reply() for _ in range(4)]
    assert [(reply.status, reply.id) for reply in replies if reply] == [
        (200, case.id("r1")),
        (201, case.id("first")),
        (200, case.id("r2")),
        (200, case.id("r3")),
    ]


UNREAD: dict[str, tuple[bytes, bool]] = {
    "refused for want of a token": (b"POST /api/prompt HTTP/1.1", False),
    "refused for its address": (b"POST /nothing HTTP/1.1", False),
    "refused for its method": (b"PUT /api/prompt HTTP/1.1", True),
    "a GET": (b"GET /livez HTTP/1.1", False),
    "a DELETE": (b"DELETE /livez HTTP/1.1", False),
    "an OPTIONS": (b"OPTIONS /api/prompt HTTP/1.1", False),
}


@pytest.mark.parametrize("framed", ["length", "chunks"])
@pytest.mark.parametrize("name", UNREAD)
def test_a_body_that_nobody_reads_is_no_request(name: str, framed: str, case: Case) -> None:
    start, trusted = UNREAD[name]
    hidden = case.get("hidden")
    if framed == "length":
        sent = case.head(b"Content-Length: %d" % len(hidden), start=start, trusted=trusted) + hidden
    else:
        sent = case.head(CHUNKED, start=start, trusted=trusted) + chunk(hidden) + b"0\r\n\r\n"
    with Wire(case.site.service) as wire:
        wire.send(sent + case.get("after"), no_more=True)
        replies = wire.replies()
    assert [reply.id for reply in replies] in (
        [case.id("first"), case.id("after")],
        [case.id("first")],
    ), replies
    assert "hidden" not in case.seen()


@pytest.mark.parametrize(
    "lines",
    [
        (b"Connection: close",),
        (b"Connection: Close",),
        (b"connection:close",),
        (b"Connection: x, close",),
        (b"Connection: keep-alive, close",),
        (b"Connection: keep-alive", b"Connection: close"),
    ],
)
def test_who_wants_the_connection_closed_gets_it_closed(lines: tuple[bytes, ...], case: Case) -> None:
    with Wire(case.site.service) as wire:
        wire.send(case.get("first", *lines) + case.get("hidden"))
        replies = wire.replies()
    assert [(reply.status, reply.id) for reply in replies] == [(200, case.id("first"))]
    assert replies[0].headers["connection"] == "close"
    assert case.seen() == {"first"}


def test_http_1_0_is_answered_and_closed(case: Case) -> None:
    with Wire(case.site.service) as wire:
        wire.send(case.head(case.length(), start=b"POST /api/prompt HTTP/1.0") + case.body + case.get("hidden"))
        replies = wire.replies()
    assert [(reply.status, reply.id) for reply in replies] == [(201, case.id("first"))]
    assert case.stored()
    assert case.seen() == {"first"}


def test_http_1_1_without_a_host_is_refused(case: Case) -> None:
    sent = case.get("first").replace(b"Host: watchpost.test\r\n", b"")
    with Wire(case.site.service) as wire:
        wire.send(sent, no_more=True)
        replies = wire.replies()
    assert [reply.status for reply in replies] == [400]


@pytest.mark.parametrize("start", [b"GET * HTTP/1.1", b"GET /livez  HTTP/1.1"])
def test_what_is_clear_but_wrong_may_be_refused_or_taken(start: bytes, case: Case) -> None:
    with Wire(case.site.service) as wire:
        wire.send(case.head(start=start, trusted=False), no_more=True)
        replies = wire.replies()
    assert [reply.status in (200, 400, 404) for reply in replies] == [True], replies


def test_connect_opens_no_tunnel(case: Case) -> None:
    with Wire(case.site.service) as wire:
        wire.send(case.head(start=b"CONNECT else.example:443 HTTP/1.1", trusted=False) + case.get("hidden"))
        replies = wire.replies()
    assert [reply.status in (400, 404, 405, 501) for reply in replies] == [True]
    assert "hidden" not in case.seen()


@pytest.mark.parametrize("method", ["TRACE", "TRACK", "DEBUG", "PROPFIND", "get", "A" * 100, "X" * 3000])
def test_other_methods_do_nothing_and_give_nothing_back(method: str, case: Case) -> None:
    with Wire(case.site.service) as wire:
        sent = case.head(case.length(), start=method.encode() + b" /api/prompt HTTP/1.1") + case.body
        wire.send(sent, no_more=True)
        replies = wire.replies()
    assert [reply.status in (400, 404, 405, 414, 501) for reply in replies] == [True]
    is_problem(replies[0])
    assert case.site.token.encode() not in replies[0].body
    assert not case.stored()


def test_an_answer_to_head_has_no_body(case: Case) -> None:
    head = case.get("first").replace(b"GET", b"HEAD", 1)
    with Wire(case.site.service) as wire:
        wire.send(head + case.get("after"))
        first, after = wire.reply(head_only=True), wire.reply()
    assert first is not None
    assert after is not None
    assert (first.status, first.id) == (200, case.id("first"))
    assert (after.status, after.id, json.loads(after.body)["status"]) == (200, case.id("after"), "ok")


def test_a_token_that_is_named_twice_counts_for_nothing(case: Case) -> None:
    again = b"Authorization: Bearer " + case.site.token.encode()
    for second in (again, b"Authorization: Bearer x", b"authorization: Basic YTpi"):
        with Wire(case.site.service) as wire:
            wire.send(case.head(second, case.length()) + case.body, no_more=True)
            replies = wire.replies()
        assert [reply.status in (400, 401) for reply in replies] == [True], replies
    assert not case.stored()


def test_a_trailer_is_no_header(case: Case) -> None:
    token = b"Authorization: Bearer " + case.site.token.encode()
    with Wire(case.site.service) as wire:
        sent = case.head(CHUNKED, b"Content-Type: application/json", b"Trailer: Authorization", trusted=False)
        wire.send(sent + chunk(case.body) + b"0\r\n" + token + b"\r\n\r\n", no_more=True)
        replies = wire.replies()
    assert [reply.status for reply in replies] in ([401], [401, 400])
    with Wire(case.site.service) as wire:
        # What would make the body unreadable if it counted.
        wire.send(case.head(CHUNKED) + chunk(case.body) + b"0\r\nContent-Encoding: gzip\r\n\r\n", no_more=True)
        replies = wire.replies()
    assert [reply.status for reply in replies] == [201]


def test_who_waits_for_100_continue_gets_it_and_then_the_answer(case: Case) -> None:
    with Wire(case.site.service) as wire:
        wire.send(case.head(b"Expect: 100-Continue", case.length()))
        first = wire.reply()
        assert first is not None
        assert first.status == 100
        wire.send(case.body + case.get("after"))
        replies = [wire.reply(), wire.reply()]
    assert [(reply.status, reply.id) for reply in replies if reply] == [
        (201, case.id("first")),
        (200, case.id("after")),
    ]
    assert case.stored()


def test_who_waits_for_100_continue_and_goes_away_is_not_our_fault(case: Case) -> None:
    for head in (
        case.head(b"Expect: 100-continue", case.length()),
        case.head(b"Expect: 100-continue", b"Content-Encoding: gzip", case.length()),
        case.get(
            "first", b"Content-Type: application/x-www-form-urlencoded", b"Content-Length: 9", b"Expect: 100-continue"
        ).replace(b"GET /livez", b"POST /api/auth/token"),
    ):
        for _ in range(10):
            with Wire(case.site.service) as wire:
                # Closed with a reset.
                wire.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                wire.send(head)
    assert case.site.service.get("/livez").status == 200
    assert faults(case.site.service) == []


def test_http_1_0_gets_no_100_continue(case: Case) -> None:
    with Wire(case.site.service) as wire:
        start = b"POST /api/prompt HTTP/1.0"
        wire.send(case.head(b"Expect: 100-continue", case.length(), start=start) + case.body)
        assert [reply.status for reply in wire.replies()] == [201]


def test_bytes_may_come_one_by_one(case: Case) -> None:
    with Wire(case.site.service) as wire:
        wire.send(case.head(CHUNKED) + case.chunks, slowly=0.0005)
        first = wire.reply()
        wire.send(case.get("after"))
        after = wire.reply()
    assert [(reply.status, reply.id) for reply in (first, after) if reply] == [
        (201, case.id("first")),
        (200, case.id("after")),
    ]


def test_wherever_a_request_is_cut_it_is_not_taken_and_the_service_goes_on(case: Case) -> None:
    """A client that goes away, politely and not."""
    sent = [case.head(case.length()) + case.body, case.head(CHUNKED) + case.chunks]
    for request, politely in itertools.product(sent, (True, False)):
        for at in range(1, len(request), max(1, len(request) // 40)):
            with Wire(case.site.service) as wire:
                wire.send(request[:at], no_more=politely)
                replies = wire.replies() if politely else []
            assert [reply.status for reply in replies] in ([], [400], [503]), at
    assert case.site.service.get("/livez").status == 200
    assert not case.stored()


def test_who_does_not_wait_for_the_answer_is_not_our_fault(case: Case) -> None:
    for _ in range(20):
        with Wire(case.site.service) as wire:
            wire.send((case.head(case.length()) + case.body) * 3)
    assert case.site.service.get("/livez").status == 200


def test_large_answers_that_nobody_reads_hold_up_nobody(case: Case) -> None:
    wires = [Wire(case.site.service) for _ in range(10)]
    try:
        for wire in wires:
            # More than the buffers between the two of them can hold.
            wire.send(case.get("first").replace(b"/livez", b"/docs/static/swagger-ui-bundle.js") * 10)
        with Wire(case.site.service) as wire:
            wire.send(case.head(case.length()) + case.body)
            reply = wire.reply()
        assert reply is not None
        assert reply.status == 201
    finally:
        for wire in wires:
            wire.socket.close()


@pytest.mark.parametrize("lines", [(), (b"X: " + b"x" * 16000,) * 4], ids=["small", "large"])
def test_who_sends_requests_without_end_holds_up_nobody(case: Case, lines: tuple[bytes, ...]) -> None:
    data = case.get("first", *lines) * 20
    is_over = threading.Event()

    def pour(wire: Wire) -> None:
        while not is_over.is_set():
            wire.send(data)

    def drain(wire: Wire) -> None:
        with contextlib.suppress(OSError):
            while wire.socket.recv(2**20):
                pass

    with Wire(case.site.service) as wire, ThreadPoolExecutor(2) as threads:
        try:
            threads.submit(drain, wire)
            threads.submit(pour, wire)
            time.sleep(0.5)
            began = time.monotonic()
            with Wire(case.site.service, 20) as other:
                other.send(case.get("other"))
                assert other.reply() is not None
            # It goes on for as long as the other waits.
            assert time.monotonic() - began < 20
        finally:
            is_over.set()
            with contextlib.suppress(OSError):
                wire.socket.shutdown(socket.SHUT_RDWR)


def test_nothing_of_a_refused_request_is_logged(case: Case, site: Site) -> None:
    secret = f"SECRET-{case.mark}".encode()
    for make in (
        lambda: case.head(b"Transfer-Encoding: " + secret) + secret,
        lambda: case.head(b"X-" + secret + b"\x00: 1"),
        lambda: case.head(b"Content-Length: " + secret),
        lambda: case.head(start=b"GET /" + secret + b"\x7f HTTP/1.1"),
        lambda: secret + b" / HTTP/1.1\r\n\r\n",
        lambda: case.head(CHUNKED) + secret + b"\r\n",
    ):
        with Wire(site.service) as wire:
            wire.send(make(), no_more=True)
            replies: list[Any] = wire.replies()
        assert len(replies) == 1
        assert secret not in replies[0].body + str(replies[0].headers).encode()
    assert secret.decode() not in site.service.log.read_text()
