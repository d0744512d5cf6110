"""The locks are what the ranges ask for, and an audit tells a vulnerability from a source that is away."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests import supply
from tests.support.service import ROOT, free_port


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    for name in [*supply.LOCKS, *supply.LOCKS.values()]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_the_locks_are_what_the_ranges_ask_for() -> None:
    assert list(supply.disagreements()) == []


def test_a_range_that_excludes_its_pin_is_found(copy: Path) -> None:
    edit(copy / "requirements.txt", "gevent>=26.9,<27", "gevent>=99")
    found = list(supply.disagreements(copy))
    assert [line.split(":")[0] for line in found] == list(supply.LOCKS.values())
    assert all("gevent" in line and "gevent>=99" in line for line in found)


def test_packages_that_were_added_or_taken_away_are_found(copy: Path) -> None:
    edit(copy / "requirements.txt", "gevent>=26.9,<27\n", "numpy\n")
    found = list(supply.disagreements(copy))
    assert [line.split()[1] for line in found] == ["gevent", "numpy"] * 2


def test_a_pin_without_a_hash_or_of_another_version_in_the_other_lock_is_found(copy: Path) -> None:
    lock = copy / "config" / "requirements.lock"
    edit(lock, "flask==", "flask==0.0.1 \\\n    # via -r requirements.txt\nflask==")
    found = {line.partition(": ")[2] for line in supply.disagreements(copy)}
    assert found >= {"flask has no hash", "flask 3.1.3 is not the version of the other lock"}


def test_the_locks_name_neither_a_host_nor_a_folder_of_the_machine_they_were_made_on() -> None:
    for lock in supply.LOCKS.values():
        text = (ROOT / lock).read_text()
        assert "://" not in text
        assert not any(word in text for word in ("index-url", "find-links", "trusted-host", " /", "file:"))


@contextmanager
def advisories(answer: Callable[[dict[str, Any]], bytes]) -> Iterator[str]:
    """A source that speaks OSV's API; `answer` makes the body for a query."""

    class Source(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Source)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1/query"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def advisory(name: str, fixed: str) -> bytes:
    versions = {"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": fixed}]}
    affected = [{"package": {"name": name, "ecosystem": "PyPI"}, "ranges": [versions]}]
    return json.dumps({"vulns": [{"id": f"PYSEC-{name}", "summary": "Bad.", "affected": affected}]}).encode()


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    """A lock of two of our pins: what is asked of a source is the same for each."""
    kept = [
        f"{pin} \\\n{rest}"
        for pin, rest in supply._pins(ROOT / "config" / "requirements.lock")
        if pin.name in ("blinker", "jinja2")
    ]
    path = tmp_path / "requirements.lock"
    path.write_text("".join(kept))
    return path


def old_jinja(query: dict[str, Any]) -> bytes:
    return advisory("jinja2", "2.11.3") if query == supply.KNOWN_VULNERABLE else b"{}"


def test_an_audit_fails_for_a_known_vulnerability_only(lock: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with advisories(old_jinja) as source:
        assert supply.audit(lock, source) == 0
    assert capsys.readouterr() == ("", "2 packages audited, 0 vulnerabilities\n")
    with advisories(lambda query: advisory(query["package"]["name"], "99")) as source:
        assert supply.audit(lock, source) == 1
    found = capsys.readouterr().out
    assert [line.split()[0] for line in found.splitlines()] == ["blinker", "jinja2"]
    assert "PYSEC-jinja2, fixed in 99" in found


def test_an_audit_says_that_no_source_can_be_reached(lock: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert supply.audit(lock, f"http://127.0.0.1:{free_port()}/v1/query") == 0
    assert capsys.readouterr().err.startswith("NOT AUDITED: no advisory source can be reached")
    # A gateway that answers everything with a page, or with nothing, is no source either.
    for body in (b"<html>", b"{}", b"[]"):
        with advisories(lambda _, body=body: body) as source:
            assert supply.audit(lock, source) == 0
        assert capsys.readouterr().err.startswith("NOT AUDITED")


def test_an_audit_that_breaks_off_fails(lock: Path) -> None:
    def breaks_off(query: dict[str, Any]) -> bytes:
        return old_jinja(query) if query == supply.KNOWN_VULNERABLE else b"<html>"

    with advisories(breaks_off) as source, pytest.raises(RuntimeError, match="pip-audit failed"):
        supply.audit(lock, source)
