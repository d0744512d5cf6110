"""What is installed: the locks are what the ranges ask for, and no version in them is known to be vulnerable.

`check` compares config/requirements.lock and tests/requirements.lock with the ranges that people edit, and asks nobody.
`audit` asks an advisory source about every locked version; where none can be reached it says so, and ends well.
"""

from __future__ import annotations

import argparse
import http.client
import json
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
# The ranges, and the lock that is made of them.
LOCKS = {"requirements.txt": "config/requirements.lock", "tests/requirements.txt": "tests/requirements.lock"}
OSV = "https://api.osv.dev/v1/query"
# A version with many advisories: a source that knows none of them is none, whatever it answers.
KNOWN_VULNERABLE = {"package": {"name": "jinja2", "ecosystem": "PyPI"}, "version": "2.4.1"}


def disagreements(root: Path = ROOT) -> Iterator[str]:
    """Where a lock is not what its ranges ask for; each line names the package."""
    pinned: dict[str, str] = {}
    for ranges, lock in LOCKS.items():
        wanted = {canonicalize_name(requirement.name): requirement for requirement in _ranges(root / ranges)}
        asked_for = set()
        for pin, comment in _pins(root / lock):
            name, version = canonicalize_name(pin.name), str(pin.specifier).removeprefix("==")
            if pinned.setdefault(name, version) != version:
                yield f"{lock}: {name} {version} is not the version of the other lock"
            if name in wanted and not wanted[name].specifier.contains(version, prereleases=True):
                yield f"{lock}: {name} {version} is not within {ranges}: {wanted[name]}"
            if re.search(r"-r \S+\.txt\b", comment):
                asked_for.add(name)
            if "--hash=sha256:" not in comment:
                yield f"{lock}: {name} has no hash"
        for name in sorted(wanted.keys() ^ asked_for):
            yield f"{lock}: {name} is in only one of it and {ranges}"


def _ranges(path: Path) -> Iterator[Requirement]:
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("-r "):
            yield from _ranges(path.parent / line.removeprefix("-r ").strip())
        elif line:
            yield Requirement(line)


def _pins(path: Path) -> Iterator[tuple[Requirement, str]]:
    """Each pin, and what stands below it: hashes, and who asked for it."""
    entries = re.split(r"^(?=[A-Za-z0-9])", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    for entry in entries[1:]:
        head, _, rest = entry.partition("\\\n")
        yield Requirement(head.strip()), rest


def audit(lock: Path, source: str) -> int:
    """Ask the source, which speaks OSV's API, about every pin. Returns 1 when there is a vulnerability, else 0.

    Raises RuntimeError when the source can be reached and a pin could not be audited all the same.
    """
    if reason := _unreachable(source):
        print(f"NOT AUDITED: no advisory source can be reached ({reason})", file=sys.stderr)
        return 0
    command = [sys.executable, "-m", "pip_audit", "--vulnerability-service=osv", f"--osv-url={source}"]
    command += ["--disable-pip", "--require-hashes", "--format=json", "--progress-spinner=off", f"--requirement={lock}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    # pip-audit ends with 1 for a vulnerability and for a failure of its own; only the former has a report.
    try:
        packages = json.loads(done.stdout)["dependencies"]
    except ValueError:
        raise RuntimeError(f"pip-audit failed:\n{done.stderr}") from None
    if skipped := [package["name"] for package in packages if "skip_reason" in package]:
        raise RuntimeError(f"not audited: {', '.join(skipped)}")
    found = [(package, flaw) for package in packages for flaw in package["vulns"]]
    for package, flaw in found:
        fixed = ", ".join(flaw["fix_versions"]) or "no version yet"
        print(f"{package['name']} {package['version']}: {flaw['id']}, fixed in {fixed}")
    print(f"{len(packages)} packages audited, {len(found)} vulnerabilities", file=sys.stderr)
    return 1 if found else 0


def _unreachable(source: str) -> str | None:
    """Why this is no advisory source: it can't be reached, or does not know what every source knows."""
    request = urllib.request.Request(source, json.dumps(KNOWN_VULNERABLE).encode())
    try:
        with urllib.request.urlopen(request, timeout=15) as answer:
            return None if json.load(answer).get("vulns") else "it knows no advisory"
    except (OSError, http.client.HTTPException, ValueError, AttributeError) as error:
        return str(error)[:200] or type(error).__name__


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.supply", description=__doc__)
    parser.add_argument("command", choices=["check", "audit"])
    parser.add_argument("--source", default=OSV, help="where advisories come from; speaks OSV's API (%(default)s)")
    parser.add_argument("--lock", type=Path, default=ROOT / "tests" / "requirements.lock")
    given = parser.parse_args()
    if given.command == "audit":
        try:
            return audit(given.lock, given.source)
        except RuntimeError as error:
            print(error, file=sys.stderr)
            return 1
    found = list(disagreements())
    for line in found:
        print(line, file=sys.stderr)
    if found:
        print("`make lock` makes the locks anew", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
