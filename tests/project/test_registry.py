"""What a new column and a new record type touch, counted in a scratch copy of the tree that then serves them."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest

from tests.support.databases import Template, create
from tests.support.service import ROOT, as_role

NEW = Path(__file__).with_name("record_type")
# Serves requests to the copy's application, in a process that has imported nothing of this tree.
SCRIPT = """
import json, sys
from app.commands.application import create_app as create_commands
from app.application import create_app
from tests.support.agent import Agent
from config.settings import load

def run(*arguments):
    result = create_commands().test_cli_runner().invoke(args=arguments)
    assert result.exit_code == 0, result.output
    return result.stdout.strip()

settings = load()
run("migrate")
run("keys", "add")
client, agent = create_app(settings).test_client(), Agent()
token = run("enrollment", "create", "--label", "l", "--max-uses", "1", "--expires-in", "1d")
bearer = lambda token: {"Authorization": f"Bearer {token}"}
answer = client.post("/api/devices/register", json=agent.registration(), headers=bearer(token))
assert answer.status_code == 201, answer.text
form = agent.token_request(settings.issuer + "/api/auth/token")
headers = bearer(client.post("/api/auth/token", data=form).json["access_token"])
path, type_, body, other = json.loads(sys.argv[1])
body["device_id"] = agent.device_id
send = lambda body: client.post(path, json=body, headers=headers).status_code
replay = lambda body: client.post("/api/batch", json={"items": [{"type": type_, "body": body}]}, headers=headers)
statuses = [send(body), send(body), send(body | other), replay(body).json["results"][0]["status"]]
print(json.dumps({
    "statuses": statuses,
    "spec": path in client.get("/openapi.json").json["paths"],
    "retention": run("retention", "run", "--dry-run", "--json"),
    "erasure": run("device", "erase", agent.device_id, "--reason", "r", "--json"),
}))
"""


@pytest.fixture
def scratch(folder: Path) -> Path:
    """A copy of what is in the tree, without what was made there."""
    left_out = shutil.ignore_patterns(".*", "__pycache__")
    copy = folder / "scratch"
    copy.mkdir()
    for name in ("app", "config", "docs", "migrations", "sql", "tests", "wsgi.py"):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, copy / name, ignore=left_out)
        else:
            shutil.copy(source, copy / name)
    return copy


@pytest.fixture
def served(server: str, scratch: Path, folder: Path) -> Callable[..., dict[str, object]]:
    """Migrate a database with the copy, send a body of its type to it, and return what came of it."""

    def serve(path: str, record_type: str, body: dict[str, object], other: dict[str, object]) -> dict[str, object]:
        template: Template = create(server, f"scratch_{os.getpid()}")
        url = template.url(template.name)
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("WATCHPOST_")},
            "PYTHONPATH": str(scratch),
            "WATCHPOST_DATABASE_URL": as_role(url, "writer"),
            "WATCHPOST_OWNER_DATABASE_URL": url,
            "WATCHPOST_DATA_DIR": str(folder / "data"),
            "WATCHPOST_NOTES_DAYS": "30",
            "WATCHPOST_PROMPTS_DAYS": "30",
        }
        try:
            done = subprocess.run(
                [sys.executable, "-c", SCRIPT, json.dumps([path, record_type, body, other])],
                cwd=scratch,
                env=environment,
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, done.stderr[-3000:]
            return dict(json.loads(done.stdout))
        finally:
            with psycopg.connect(template.url("postgres"), autocommit=True) as admin:
                admin.execute(f"DROP DATABASE {template.name} WITH (FORCE)")

    return serve


def edit(file: Path, *changes: tuple[str, str]) -> None:
    """Replace each text, which must be there, where it stands first."""
    text = file.read_text(encoding="utf-8")
    for old, new in changes:
        assert old in text, (file, old)
        text = text.replace(old, new, 1)
    file.write_text(text, encoding="utf-8")


def changed(scratch: Path) -> set[str]:
    """Files of the copy that are not as in the tree, but for those that `make spec` writes."""
    found = set()
    for path in scratch.rglob("*"):
        name = path.relative_to(scratch)
        original = ROOT / name
        if (
            path.is_file()
            and "__pycache__" not in name.parts
            and (not original.exists() or original.read_bytes() != path.read_bytes())
        ):
            found.add(str(name))
    return found


def test_a_new_column_touches_at_most_4_files(scratch: Path, served: Callable[..., dict[str, object]]) -> None:
    (scratch / "migrations" / "0900.add-language.sql").write_text("ALTER TABLE prompts ADD COLUMN language text;\n")
    (scratch / "migrations" / "0900.add-language.rollback.sql").write_text(
        "ALTER TABLE prompts DROP COLUMN language;\n"
    )
    insert = scratch / "sql" / "prompts" / "insert_prompts.sql"
    edit(insert, ("metadata jsonb", "metadata jsonb, language text"))
    insert.write_text(re.sub(r"\baction, metadata\n", "action, metadata, language\n", insert.read_text()))
    edit(
        scratch / "app" / "resources" / "prompts.py",
        ("    metadata = fields", "    language = fields.Text(load_default=None)\n    metadata = fields"),
    )
    assert len(changed(scratch)) <= 4, changed(scratch)
    body = {"instance_id": "i", "site": "s", "url": "u", "prompt": "p", "timestamp": 1_700_000_000_000}
    found = served("/api/prompt", "prompt", {**body, "language": "en"}, {"language": "de"})
    # The column is stored: a repeat is the same report, and with another language another one of the same key.
    assert found["statuses"] == [201, 200, 201, 200]
    found_again = served(
        "/api/prompt",
        "prompt",
        {**body, "language": "en", "prompt_id": "0199a3b0-7c1e-4a53-9d5b-3f1c2f0e8a11"},
        {"language": "de"},
    )
    assert found_again["statuses"] == [201, 200, 409, 200]


def test_a_new_record_type_touches_at_most_8_files(scratch: Path, served: Callable[..., dict[str, object]]) -> None:
    shutil.copy(NEW / "notes.py.txt", scratch / "app" / "resources" / "notes.py")
    (scratch / "sql" / "notes").mkdir()
    shutil.copy(NEW / "insert_notes.sql", scratch / "sql" / "notes")
    shutil.copy(NEW / "select_notes.sql", scratch / "sql" / "notes")
    shutil.copy(NEW / "erase_notes.sql", scratch / "sql" / "erasure")
    shutil.copy(NEW / "0900.create-notes.sql", scratch / "migrations")
    shutil.copy(NEW / "0900.create-notes.rollback.sql", scratch / "migrations")
    edit(
        scratch / "app" / "resources" / "__init__.py",
        ("extension, prompts", "extension, notes, prompts"),
        ("    compliance.blp,\n", "    compliance.blp,\n    notes.blp,\n"),
    )
    edit(
        scratch / "config" / "settings.py",
        ("    prompts_days: int", '    notes_days: int = setting(0, "age of notes", "days", 0)\n    prompts_days: int'),
    )
    new = {name for name in changed(scratch) if not name.startswith("tests/")}
    assert len(new) <= 8, new
    body = {"instance_id": "i", "noted_at": 1_700_000_000_000, "text": "t"}
    found = served("/api/notes", "note", body, {"text": "other", "note_id": "0199a3b0-7c1e-4a53-9d5b-3f1c2f0e8a11"})
    assert found["statuses"] == [201, 200, 201, 200]
    assert found["spec"] is True
    assert "notes" in {line["table"] for line in json.loads(str(found["retention"]))}
    assert json.loads(str(found["erasure"]))["notes"] == 2
