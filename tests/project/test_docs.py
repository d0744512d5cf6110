"""The documents are true: blocks run as they are, what they name exists, and each page stays short enough to read."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from app.application import Watchpost
from app.commands.spec import configuration
from tests.support.service import ROOT, serving

README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
# What the page on adding an endpoint adds.
EXAMPLES = ("things", "NNNN")


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def blocks(page: Path, language: str = "") -> list[str]:
    return [text for name, text in FENCE.findall(text_of(page)) if name == language]


def named(pattern: str) -> Iterator[tuple[str, str]]:
    """Every match of a pattern in any page, with the page's name."""
    for page in PAGES:
        for found in re.findall(pattern, text_of(page), re.MULTILINE):
            yield page.name, found


def runnable_block(page: Path) -> str:
    found = re.search(r"<!-- A test runs this block. -->\n```sh\n(.*?)```", text_of(page), re.DOTALL)
    assert found is not None
    return found[1]


def test_the_readme_has_at_most_120_lines() -> None:
    assert len(text_of(README).splitlines()) <= 120


def test_the_glossary_has_at_most_15_entries_in_order() -> None:
    terms = re.findall(r"^\| (?!term |---)([^|]+) \|", text_of(ROOT / "docs" / "glossary.md"), re.MULTILINE)
    assert 0 < len(terms) <= 15
    assert terms == sorted(terms)


def test_the_page_of_settings_is_that_of_the_code() -> None:
    assert text_of(ROOT / "docs" / "configuration.md") == configuration()


def test_every_page_is_linked_from_the_readme() -> None:
    for page in PAGES[1:]:
        assert f"](docs/{page.name}" in text_of(README), page.name


def test_every_relative_link_leads_to_a_file_and_a_heading() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)\s]+)\)", text_of(page)):
            if re.match(r"[a-z]+:", target):
                continue
            path, _, anchor = target.partition("#")
            place = (page.parent / path).resolve() if path else page
            assert place.exists(), f"{page.name}: {target}"
            if anchor:
                headings = re.findall(r"^#+ (.+)$", FENCE.sub("", text_of(place)), re.MULTILINE)
                anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
                assert anchor in anchors, f"{page.name}: {target}"


def test_every_file_and_folder_that_a_page_names_exists() -> None:
    for page, name in named(r"\b((?:app|config|docs|migrations|sql|tests)/[\w./-]*\w/?)"):
        if not any(example in name for example in EXAMPLES):
            assert (ROOT / name).exists(), f"{page}: {name}"
    for page, test in named(r"`(tests/\S+\.py)`"):
        assert test.endswith("test_things.py") or (ROOT / test).is_file(), f"{page}: {test}"


def test_every_make_target_that_a_page_names_exists() -> None:
    makefile = text_of(ROOT / "Makefile")
    for page, target in named(r"`make ([a-z][a-z0-9-]*)[ `]"):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"{page}: make {target}"


def test_every_setting_that_a_page_names_exists() -> None:
    settings = {*re.findall(r"^\| `(WATCHPOST_\w+)`", configuration(), re.MULTILINE), "WATCHPOST_CONFIG"}
    for page, name in named(r"\b(WATCHPOST_\w+)\b"):
        assert name in settings, f"{page}: {name}"


def test_every_command_that_a_page_names_exists(app: Watchpost) -> None:
    for page, line in named(r"flask --app wsgi ([a-z][^`#\n]*)"):
        for alternative in alternatives(line):
            command: click.Command = app.cli
            for word in alternative:
                if not isinstance(command, click.Group):
                    break
                found = command.get_command(click.Context(command), word)
                assert found is not None, f"{page}: {' '.join(alternative)}"
                command = found


def alternatives(line: str) -> Iterator[list[str]]:
    """`device list | show ID` names `device list` and `device show ID`."""
    words = [re.sub(r"\W+$", "", word) for word in line.split()]
    first, *others = [shlex.join(words)] if "|" not in line else [part.strip() for part in line.split("|")]
    yield first.split()
    for other in others:
        yield [first.split()[0], *other.split()]


def test_make_alone_prints_every_target_with_one_line() -> None:
    makefile = text_of(ROOT / "Makefile")
    targets = set(re.findall(r"^([a-z][a-z0-9-]*):", makefile, re.MULTILINE))
    for arguments in ([], ["help"]):
        done = subprocess.run(["make", "-s", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
        printed = [re.fullmatch(r"make (\S+) +(\S.*)", line) for line in done.stdout.splitlines()]
        assert {found[1] for found in printed if found} == targets
        assert len(printed) == len(targets)


@pytest.mark.parametrize(
    ("page", "expected"),
    [
        ("README.md", [r'"registered_at".* \(201\)']),
        (
            "docs/first-post.md",
            [r'"registered_at"', r'"created_at".*\s+\(201\)', r'"created_at".*\s+\(200\)', "revoked_at"],
        ),
    ],
)
def test_the_first_steps_run_as_they_are_and_leave_no_file(
    database_url: str, tmp_path: Path, page: str, expected: list[str]
) -> None:
    folder = Path(tempfile.mkdtemp(prefix="wp-"))
    try:
        with serving(folder, database_url=database_url) as service:
            # Beside the project's files, so that the commands find .venv and wsgi.py.
            for name in ("wsgi.py", "app", "config", "sql", "migrations"):
                (tmp_path / name).symlink_to(ROOT / name)
            (tmp_path / ".venv").mkdir()
            (tmp_path / ".venv" / "bin").symlink_to(Path(sys.executable).parent)
            temporary = tmp_path / "tmp"
            temporary.mkdir()
            before = sorted(tmp_path.rglob("*"))
            # The address comes from WATCHPOST_BIND.
            done = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", runnable_block(ROOT / page)],
                cwd=tmp_path,
                env={**os.environ, **service.environment, "TMPDIR": str(temporary)},
                capture_output=True,
                text=True,
                check=False,
                timeout=300,
            )
            assert done.returncode == 0, done.stdout + done.stderr
            for pattern in expected:
                assert re.search(pattern, done.stdout), done.stdout
            assert sorted(tmp_path.rglob("*")) == before
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def test_the_settings_of_the_deployment_page_believe_its_proxy() -> None:
    page = text_of(ROOT / "docs" / "deployment.md")
    assert "proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;" in page
    assert "\nWATCHPOST_PROXIES=1\n" in page


def test_the_units_of_the_deployment_page_read_the_settings_file_and_have_a_temporary_folder() -> None:
    units = blocks(ROOT / "docs" / "deployment.md", "ini")
    assert len(units) == 2
    for unit in units:
        assert "EnvironmentFile=/etc/watchpost/watchpost.env\n" in unit
        # ProtectSystem=strict leaves no writable temporary folder otherwise.
        assert "ProtectSystem=strict\n" in unit
        assert "PrivateTmp=true\n" in unit
