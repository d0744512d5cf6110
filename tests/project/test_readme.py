"""The README is true: its table of settings, and its first steps run as they stand."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from app.server import connection
from config.settings import Settings, variable
from tests.support.service import ROOT, serving

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_table_of_settings_is_that_of_the_code() -> None:
    expected = []
    for field in dataclasses.fields(Settings):
        default = str(field.default).lower() if isinstance(field.default, bool) else str(field.default)
        shown = f"`{default}`" if default else "empty"
        meta = field.metadata
        expected.append(f"| `{variable(field)}` | {shown} | {meta['unit'] or '-'} | {meta['meaning']} |")
    assert re.findall(r"^\| `WATCHPOST_.*$", README, re.MULTILINE) == expected


def test_the_first_steps_run_as_they_stand(database_url: str, tmp_path: Path) -> None:
    block = re.search(r"runs this block as it stands. -->\n```sh\n(.*?)```", README, re.DOTALL)
    assert block is not None
    folder = Path(tempfile.mkdtemp(prefix="wp-"))
    try:
        with serving(folder, database_url=database_url) as service:
            # Beside the project's files, so that the commands find .venv and wsgi.py.
            for name in ("wsgi.py", "app", "config", "sql", "migrations"):
                (tmp_path / name).symlink_to(ROOT / name)
            (tmp_path / ".venv").mkdir()
            (tmp_path / ".venv" / "bin").symlink_to(Path(sys.executable).parent)
            done = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", block[1]],
                cwd=tmp_path,
                env={**os.environ, **service.environment, "URL": service.url},
                capture_output=True,
                text=True,
                check=False,
                timeout=300,
            )
            assert done.returncode == 0, done.stdout + done.stderr
            assert re.search(r"\"created_at\".*\s+\(201\)", done.stdout)
            assert re.search(r"\"created_at\".*\s+\(200\)", done.stdout)
            assert "revoked_at" in done.stdout
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def test_every_file_and_folder_that_it_names_exists() -> None:
    for name in re.findall(r"`((?:app|config|sql|migrations|tests|docs)/[\w./-]*)`", README):
        if "things" not in name and "NNNN" not in name:
            assert (ROOT / name).exists(), name


def test_every_make_target_that_it_names_exists() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"\bmake (run|test|demo|check|format|spec|bench|\w+)\b(?=`| )", README)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE) or target in ("needs", "and"), target


def test_its_proxy_names_the_caller_and_closes_idle_connections_first() -> None:
    text = README
    idle = re.search(r"keepalive_timeout (\d+)s;", text)
    assert idle is not None
    assert int(idle[1]) < connection.SILENCE_SECONDS - 1
    assert "proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;" in text
    assert "\nWATCHPOST_PROXIES=1\n" in text
