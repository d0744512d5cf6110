"""A real nginx with the example of docs/deployment.md, in front of a service under test."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.service import ROOT, Service, free_port

PROGRAM = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
MISSING = "nginx is missing: `make test-nginx` as root installs it, or apt-get install nginx-light"


@dataclass
class Nginx:
    """A running one: its ports with and without TLS, and its error log."""

    tls_port: int
    port: int
    log: Path

    @property
    def address(self) -> tuple[str, int]:
        return "127.0.0.1", self.port


def example() -> str:
    """The configuration that the deployment page shows."""
    found = re.search(r"```nginx\n(.*?)```", (ROOT / "docs" / "deployment.md").read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    return found[1]


@contextmanager
def running(service: Service, folder: Path, changes: dict[str, str] | None = None) -> Iterator[Nginx]:
    """Have nginx run in front of a service.

    changes: further texts of the example -> what they become. Ports, certificate and folders always become the test's.
    """
    assert PROGRAM is not None, MISSING
    home = folder / "nginx"
    home.mkdir()
    certificate, key = home / "certificate.pem", home / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ed25519", "-nodes", "-days", "1", "-subj", "/CN=watchpost"]
    subprocess.run([*command, "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True)
    nginx = Nginx(free_port(), free_port(), home / "error.log")
    text = example()
    for old, new in {
        "127.0.0.1:8000": service.bind,
        "listen 443 ssl;": f"listen 127.0.0.1:{nginx.tls_port} ssl reuseport; listen {nginx.port} reuseport;",
        "/etc/ssl/watchpost.pem": str(certificate),
        "/etc/ssl/private/watchpost.key": str(key),
        **(changes or {}),
    }.items():
        assert old in text, old
        text = text.replace(old, new)
    temporary = "".join(f"{name}_temp_path {home}/{name};\n" for name in ("client_body", "proxy"))
    main = f"daemon off;\npid {home}/pid;\nworker_processes 1;\nevents {{ worker_connections 1000; }}\n"
    (home / "nginx.conf").write_text(f"{main}http {{\naccess_log off;\n{temporary}{text}}}\n")
    # As root, nginx's workers are another user and write there too.
    home.chmod(0o755)
    process = subprocess.Popen(
        [PROGRAM, "-c", str(home / "nginx.conf"), "-e", str(nginx.log)], stdin=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 60
        while not (home / "pid").exists():
            assert process.poll() is None, nginx.log.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield nginx
    finally:
        process.terminate()
        process.wait(60)
