"""What all commands share: where they look for a database, what they say when it fails, what a terminal shows."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import pty
import struct
import subprocess
import sys
import termios
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
from click.testing import Result

from app.commands.application import create_app as create_command_app
from app.db import diagnosis, migrations
from app.dev import embedded
from config.settings import Settings
from tests.support.agent import Agent
from tests.support.application import create_app
from tests.support.service import ROOT, as_role

Rows = Callable[..., list[dict[str, Any]]]
PYTHON_M = [sys.executable, "-m", "app"]
FLASK = [str(Path(sys.executable).parent / "flask"), "--app", "wsgi"]


def invoke(settings: Settings, *arguments: str) -> Result:
    app = create_app(settings)
    try:
        return app.test_cli_runner().invoke(args=arguments)
    finally:
        app.extensions["db"].close()


@pytest.fixture
def environment(settings: Settings) -> dict[str, str]:
    """The environment of a command of its own process, on the test's database."""
    names = ("database_url", "owner_database_url", "issuer", "signing_keys", "data_dir")
    others = {name: value for name, value in os.environ.items() if not name.startswith("WATCHPOST_")}
    return {
        **others,
        **{f"WATCHPOST_{name.upper()}": str(getattr(settings, name)) for name in names},
        "WATCHPOST_PREPARE_STATEMENTS": str(settings.prepare_statements).lower(),
    }


def execute(command: list[str], environment: dict[str, str], **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=120, **options
    )


# Both ways to call a command


@pytest.mark.parametrize("program", [PYTHON_M, FLASK], ids=["python -m app", "flask"])
def test_a_command_of_its_own_process_works_on_the_database_of_its_settings(
    program: list[str], environment: dict[str, str], register: Callable[..., Agent], rows: Rows
) -> None:
    register(Agent("-7c41d6"))
    done = execute([*program, "device", "revoke", "-7c41d6", "--json"], environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["device_id"] == "-7c41d6"
    assert rows("SELECT revoked_at IS NOT NULL AS revoked FROM devices") == [{"revoked": True}]


def test_python_m_app_has_no_commands_of_flask(environment: dict[str, str]) -> None:
    listed = execute([*PYTHON_M, "--help"], environment).stdout
    assert "device" in listed
    assert "routes" not in listed
    assert execute([*PYTHON_M, "routes"], environment).returncode == 2


def test_flasks_own_commands_see_the_routes(environment: dict[str, str]) -> None:
    assert "/api/prompt" in execute([*FLASK, "routes"], environment).stdout


def test_settings_of_a_command_come_from_a_file(environment: dict[str, str], tmp_path: Path, rows: Rows) -> None:
    file = tmp_path / "watchpost.env"
    file.write_text(
        "".join(f"{name}={value}\n" for name, value in environment.items() if name.startswith("WATCHPOST_"))
    )
    others = {name: value for name, value in environment.items() if not name.startswith("WATCHPOST_")}
    arguments = ["enrollment", "create", "--label", "x", "--max-uses", "1", "--expires-in", "1d"]
    done = execute([*PYTHON_M, *arguments], {**others, "WATCHPOST_CONFIG": str(file)})
    assert done.returncode == 0, done.stderr
    assert [row["label"] for row in rows("SELECT label FROM enrollments")] == ["x"]


def test_a_mistyped_setting_is_named_before_the_command_runs(environment: dict[str, str]) -> None:
    done = execute([*PYTHON_M, "device", "list"], {**environment, "WATCHPOST_DATA_DRI": "sesame"})
    assert done.returncode == 0
    assert done.stderr == "Warning: WATCHPOST_DATA_DRI is not a setting: did you mean WATCHPOST_DATA_DIR?\n"


@pytest.mark.parametrize("program", [PYTHON_M, FLASK], ids=["python -m app", "flask"])
def test_a_wrong_setting_is_one_line(program: list[str], environment: dict[str, str]) -> None:
    done = execute([*program, "device", "list"], {**environment, "WATCHPOST_WORKERS": "x"})
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "Error: WATCHPOST_WORKERS must be a whole number.\n"
    assert execute([*program, "device", "--help"], {**environment, "WATCHPOST_WORKERS": "x"}).returncode == 0


@pytest.mark.parametrize("module", ["authlib", "flask_smorest", "webargs", "apispec", "marshmallow", "yoyo", "gevent"])
def test_a_command_does_not_import_what_only_the_service_needs(module: str, environment: dict[str, str]) -> None:
    done = execute([sys.executable, "-X", "importtime", "-m", "app", "device", "list"], environment)
    assert done.returncode == 0, done.stderr
    assert f"| {module}" not in "".join(done.stderr.replace("|   ", "| ").split("  "))


# No database is made


@pytest.mark.parametrize(
    "arguments",
    [
        ("device", "list"),
        ("user", "erase", "anna", "--reason", "r"),
        ("hold", "create", "--from", "2026-01-01", "--reason", "r"),
        ("retention", "run"),
        ("partitions", "ensure"),
        ("audit", "list"),
        ("review",),
        ("keys", "add"),
        ("enrollment", "create", "--label", "x", "--max-uses", "1", "--expires-in", "1d"),
    ],
    ids=lambda arguments: " ".join(arguments[:2]),
)
def test_a_command_refuses_to_make_a_database_and_says_where_it_looked(
    arguments: tuple[str, ...], tmp_path: Path
) -> None:
    folder = tmp_path / "data"
    result = invoke(Settings(data_dir=str(folder)), *arguments)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "WATCHPOST_DATABASE_URL" in result.stderr
    assert "/etc/watchpost/watchpost.env" in result.stderr
    assert str(folder) in result.stderr
    assert not folder.exists()


def test_migrate_makes_an_embedded_database_that_other_commands_use(folder: Path) -> None:
    settings = Settings(data_dir=str(folder / "data"))
    made = invoke(settings, "migrate", "--json")
    assert [row["name"] for row in json.loads(made.stdout)] == list(migrations.names())
    listed = invoke(settings, "device", "list", "--json")
    assert (listed.exit_code, listed.stdout) == (0, "[]\n")


# Messages


@pytest.fixture
def password_server(folder: Path) -> Any:
    """A server where watchpost_owner needs a password; the value is the superuser's URL."""
    with embedded.running(str(folder)) as url:
        migrations.apply(url)
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("ALTER ROLE watchpost_owner PASSWORD 'sesame'")
            (path,) = connection.execute("SELECT current_setting('hba_file')").fetchone() or ("",)
            hba = Path(path)
            hba.write_text("local all watchpost_owner scram-sha-256\n" + hba.read_text())
            connection.execute("SELECT pg_reload_conf()")
        yield url


def test_a_wrong_password_is_told_from_a_refused_connection_and_a_missing_privilege(password_server: str) -> None:
    owner = as_role(password_server, "owner")
    quick = {"pool_wait_seconds": 1, "database_url": as_role(password_server, "writer")}
    elsewhere = "postgresql://watchpost_owner:sesame@127.0.0.1:1/watchpost"
    urls = {
        "password": owner.replace("watchpost_owner@", "watchpost_owner:wrong@"),
        "nothing answers": elsewhere,
        "privilege": as_role(password_server, "writer"),
        "no such role": owner.replace("watchpost_owner@", "nobody@"),
        "no such database": as_role(password_server, "reader").replace("/watchpost?", "/nothing?"),
    }
    for reason, url in urls.items():
        result = invoke(Settings(owner_database_url=url, **quick), "enrollment", "list")
        assert (result.exit_code, result.stdout) == (1, ""), reason
        message = result.stderr.splitlines()[-1]
        assert reason in message
        assert "WATCHPOST_OWNER_DATABASE_URL" in message
        assert "sesame" not in result.stderr


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('connection failed: FATAL:  password authentication failed for user "x"', "password"),
        ('FATAL:  no pg_hba.conf entry for host "10.0.0.1", user "x"', "pg_hba.conf"),
        ('could not translate host name "db" to address: Name or service not known', "host name"),
        ("connection timeout expired", "in time"),
        ("FATAL:  sorry, too many clients already", "no free connection"),
        ("FATAL:  the database system is starting up", "starting"),
        ("something else about sesame", "can't be reached"),
    ],
)
def test_a_refusal_is_explained_without_its_text(text: str, reason: str) -> None:
    assert reason in diagnosis.refusal(text)
    assert "sesame" not in diagnosis.refusal(text)


def test_a_database_without_a_schema_says_what_to_do(settings: Settings, rows: Rows) -> None:
    rows("DROP SCHEMA public CASCADE")
    assert "migrate" in invoke(settings, "enrollment", "list").stderr


# Terminals


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
@pytest.mark.parametrize("command", [("device", "show", "wide"), ("device", "list"), ("enrollment", "list")])
def test_a_terminal_that_is_not_utf_8_ends_no_command(
    encoding: str,
    command: tuple[str, ...],
    environment: dict[str, str],
    register: Callable[..., Agent],
    enrollment: Callable[..., str],
) -> None:
    name = "Rechner \u5de5\u4f5c \U0001f600"
    register(Agent("wide"), hostname=name)
    enrollment(label=name)
    done = execute([*PYTHON_M, *command], {**environment, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"})
    assert done.returncode == 0, done.stderr
    # click writes UTF-8 to a terminal that says ASCII, since that is what misconfigured ones say.
    assert "Rechner " + ("\u5de5" if encoding == "ascii" else "\\u5de5") in done.stdout


def terminal(command: list[str], environment: dict[str, str], columns: int) -> str:
    """Run a command on a terminal of so many columns and return what it shows."""
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    variables = {name: value for name, value in environment.items() if name not in ("COLUMNS", "LINES")}
    with subprocess.Popen(
        command, cwd=ROOT, env=variables, stdin=follower, stdout=follower, stderr=follower
    ) as process:
        os.close(follower)
        shown = b""
        while True:
            try:
                chunk = os.read(leader, 65536)
            except OSError:
                # The other end is closed.
                break
            if not chunk:
                break
            shown += chunk
        process.wait(60)
    os.close(leader)
    assert process.returncode == 0, shown
    return shown.decode().replace("\r\n", "\n")


def test_a_long_cell_is_cut_on_a_terminal(environment: dict[str, str], register: Callable[..., Agent]) -> None:
    long_id = "laptop-" + "i" * 60
    register(Agent(long_id), hostname="h" * 5000)
    register(Agent("other"), hostname="short")
    lines = terminal([*PYTHON_M, "device", "list"], environment, 200).splitlines()
    assert len(lines) == 3
    assert max(map(len, lines)) <= 200
    assert lines[1].startswith(long_id + "  hhh")
    assert "h..." in lines[1]
    assert "short" in lines[2]


def test_nothing_is_cut_when_the_output_is_no_terminal(settings: Settings, register: Callable[..., Agent]) -> None:
    register(Agent("a"), hostname="h" * 5000)
    assert "h" * 5000 in invoke(settings, "device", "list").stdout


# Times


def test_times_are_alike_in_all_lists(settings: Settings, register: Callable[..., Agent], rows: Rows) -> None:
    register(Agent("a"))
    rows("UPDATE devices SET registered_at = '2026-01-02 03:04:05+00'")
    invoke(settings, "hold", "create", "--from", "2026-01-02", "--reason", "r")
    assert "2026-01-02 03:04:05 UTC" in invoke(settings, "device", "list").stdout
    assert "2026-01-02 00:00:00 UTC" in invoke(settings, "hold", "list").stdout
    shown = json.loads(invoke(settings, "device", "show", "a", "--json").stdout)
    assert shown["registered_at"] == "2026-01-02T03:04:05.000000Z"


def test_the_command_application_has_no_routes() -> None:
    assert [rule.rule for rule in create_command_app().url_map.iter_rules()] == []


def test_a_command_fails_alike_for_a_full_application(settings: Settings) -> None:
    broken = dataclasses.replace(settings, owner_database_url="postgresql://x@127.0.0.1:1/x", pool_wait_seconds=1)
    assert "nothing answers" in invoke(broken, "enrollment", "list").stderr
