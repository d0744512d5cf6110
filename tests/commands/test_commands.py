"""The operator's command line: what it prints, what it changes, how it fails."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import json
from base64 import urlsafe_b64decode
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import Result
from flask.testing import FlaskClient

from app.api import scopes
from app.application import Watchpost
from app.commands import COMMANDS, load
from app.db import migrations
from config.settings import Settings
from tests.support.agent import Agent

NOBODY = "00000000-0000-4000-8000-000000000000"
TOKEN_ENDPOINT = "http://watchpost.test/api/auth/token"

Rows = Callable[..., list[dict[str, Any]]]
Run = Callable[..., Result]
Done = Callable[..., str]
Beat = Callable[[], int]


@pytest.fixture
def settings(settings: Settings, request: pytest.FixtureRequest) -> Settings:
    return dataclasses.replace(settings, **getattr(request, "param", {}))


@pytest.fixture
def run(app: Watchpost) -> Run:
    return lambda *arguments: app.test_cli_runner().invoke(args=arguments)


@pytest.fixture
def done(run: Run) -> Done:
    """Run a command that works; the value is what it prints."""

    def done(*arguments: str) -> str:
        result = run(*arguments)
        assert (result.exit_code, result.stderr) == (0, ""), result.output
        return result.stdout

    return done


@pytest.fixture
def beat(client: FlaskClient, device: Agent, headers: dict[str, str]) -> Beat:
    """Send a heartbeat of `device`; the value is the status."""

    def beat() -> int:
        body = {"device_id": device.device_id}
        return client.post("/api/devices/heartbeat", json=body, headers=headers).status_code

    return beat


@pytest.fixture
def join(client: FlaskClient, bearer: Callable[[str], dict[str, str]]) -> Callable[..., int]:
    """Register an agent with an enrolment token; the value is the status."""

    def join(token: str, agent: Agent | None = None) -> int:
        body = (agent or Agent()).registration()
        return client.post("/api/devices/register", json=body, headers=bearer(token)).status_code

    return join


def claims_of(token: str) -> dict[str, Any]:
    return json.loads(urlsafe_b64decode(token.split(".")[1] + "=="))


def assert_failed(result: Result, exit_code: int) -> None:
    assert (result.exit_code, result.stdout) == (exit_code, ""), result.output
    assert result.stderr.strip()
    assert "Traceback" not in result.stderr


def every_command(group: dict[str, click.Command], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, command in group.items():
        yield (*path, name)
        if isinstance(command, click.Group):
            yield from every_command(command.commands, (*path, name))


def command_at(path: tuple[str, ...]) -> click.Command:
    command = load(path[0])
    for name in path[1:]:
        assert isinstance(command, click.Group)
        command = command.commands[name]
    return command


PATHS = list(every_command({name: load(name) for name in COMMANDS}))


# All commands


def test_there_is_every_command_of_the_contract() -> None:
    promised = {
        "enrollment": ["create", "list", "revoke"],
        "device": ["list", "show", "revoke", "restore", "forget-key"],
        "browser": ["list", "show", "release"],
        "token": ["create"],
        "keys": ["list", "rotate", "add", "promote", "remove"],
    }
    assert {(group, name) for group, names in promised.items() for name in names} <= set(PATHS)


@pytest.mark.parametrize("path", PATHS, ids=" ".join)
def test_a_command_explains_itself(path: tuple[str, ...], done: Done) -> None:
    usage, _, explained = done(*path, "--help").partition("\n\n")
    assert usage.startswith("Usage: ")
    assert " ".join(path) in usage
    assert explained.split("Options:")[0].strip()


@pytest.mark.parametrize(
    "arguments",
    [
        ("enrollment", "create"),
        ("enrollment", "create", "--label", "x", "--max-uses", "1"),
        ("enrollment", "create", "--max-uses", "1", "--expires-in", "1d"),
        ("enrollment", "revoke"),
        ("enrollment", "revoke", "not-a-uuid"),
        ("enrollment", "nothing"),
        ("device", "show"),
        ("device", "revoke", "a", "b"),
        ("device", "list", "--limit", "0"),
        ("device", "list", "--limit", "many"),
        ("device", "list", "--nothing"),
        ("device", "show", "a", "--nothing"),
        ("enrollment", "create", "--label", "", "--max-uses", "1", "--expires-in", "1d"),
        ("enrollment", "create", "--label", " \t\n", "--max-uses", "1", "--expires-in", "1d"),
        ("enrollment", "revoke", "-7c41d6"),
        ("hold", "create", "--device", "a", "--reason", ""),
        ("hold", "create", "--device", "a", "--reason", " "),
        ("hold", "release", "-7c41d6"),
        ("user", "erase", "anna"),
        ("user", "erase", "anna", "--reason", ""),
        ("device", "erase", "a", "--reason", " "),
        ("token", "create", "--subject", "alice", "--scope", "prompts:read"),
        ("token", "create", "--scope", "prompts:read", "--expires-in", "1h"),
        ("keys", "remove"),
        ("keys", "rotate", "now"),
    ],
    ids=" ".join,
)
def test_a_command_that_is_called_wrongly_exits_with_2(arguments: tuple[str, ...], run: Run, rows: Rows) -> None:
    assert_failed(run(*arguments), 2)
    assert rows("SELECT enrollment_id FROM enrollments") == []


@pytest.mark.parametrize("more", [(), ("--json",)], ids=["text", "json"])
@pytest.mark.parametrize("name", ["show", "revoke", "restore", "forget-key"])
@pytest.mark.parametrize("device_id", ["nobody", "", "no body", "a\nb", "\x1b[2J", "\udcff", "é" * 200])
def test_an_unknown_device_exits_with_1(name: str, device_id: str, more: tuple[str, ...], run: Run, rows: Rows) -> None:
    result = run("device", name, *more, device_id)
    assert result.output == run("device", name, *more, "--", device_id).output
    assert_failed(result, 1)
    assert "\x1b" not in result.stderr
    assert rows("SELECT device_id FROM devices") == []


def test_an_unknown_enrolment_exits_with_1(run: Run) -> None:
    assert_failed(run("enrollment", "revoke", NOBODY), 1)


@pytest.mark.parametrize(
    "settings",
    [
        {
            "database_url": "postgresql://sesame:sesame@127.0.0.1:1/sesame",
            "owner_database_url": "",
            "pool_wait_seconds": 1,
        }
    ],
    indirect=True,
    ids=["no database"],
)
@pytest.mark.parametrize(
    "arguments", [("enrollment", "list"), ("device", "show", "a"), ("device", "list", "--json"), ("migrate",)]
)
def test_a_database_that_is_away_exits_with_1_and_names_no_password(arguments: tuple[str, ...], run: Run) -> None:
    result = run(*arguments)
    assert_failed(result, 1)
    assert "sesame" not in result.stderr


def test_a_database_without_a_schema_exits_with_1_and_says_what_to_do(run: Run, rows: Rows) -> None:
    rows("DROP SCHEMA public CASCADE")
    result = run("device", "list")
    assert_failed(result, 1)
    assert "migrate" in result.stderr


@pytest.mark.parametrize(
    "path", [path for path in PATHS if not isinstance(command_at(path), click.Group)], ids=" ".join
)
def test_every_command_prints_json_when_asked(path: tuple[str, ...]) -> None:
    assert "--json" in {name for param in command_at(path).params for name in param.opts}


# Arguments that look like options


@pytest.mark.parametrize(
    "device_id", ["-7c41d6", "-", "--help", "--json", "-h", "--limit=5", "--device", "---", "-x=1"]
)
def test_a_device_id_is_never_taken_for_an_option(
    device_id: str, done: Done, register: Callable[..., Agent], rows: Rows
) -> None:
    register(Agent(device_id))
    assert json.loads(done("device", "show", device_id, "--json"))["device_id"] == device_id
    if device_id not in ("--json", "--help"):
        assert json.loads(done("device", "show", "--json", device_id))["device_id"] == device_id
    assert json.loads(done("device", "show", "--json", "--", device_id))["device_id"] == device_id
    done("device", "revoke", device_id)
    assert rows("SELECT revoked_at IS NOT NULL AS revoked FROM devices") == [{"revoked": True}]
    done("device", "restore", device_id)
    done("device", "forget-key", device_id)
    assert rows("SELECT revoked_at, key_thumbprint FROM devices") == [{"revoked_at": None, "key_thumbprint": None}]
    done("hold", "release", done("hold", "create", "--device", device_id, "--reason", "-r").strip())
    assert rows("SELECT device_id, reason FROM legal_holds") == [{"device_id": device_id, "reason": "-r"}]
    done("device", "erase", device_id, "--reason", "--help")
    assert rows("SELECT target FROM audit_log WHERE action = 'device.erased'") == [{"target": device_id}]


def test_a_device_may_be_called_as_the_end_of_options(done: Done, register: Callable[..., Agent], rows: Rows) -> None:
    register(Agent("--"))
    for words in (["--"], ["--", "--"], ["--json", "--"], ["--json", "--", "--"]):
        assert "host-of---" in done("device", "show", *words)
    done("device", "revoke", "--")
    assert rows("SELECT revoked_at IS NOT NULL AS revoked FROM devices") == [{"revoked": True}]


@pytest.mark.parametrize("name", ["-anna", "--help", "--json", "--reason="])
def test_a_users_name_is_never_taken_for_an_option(name: str, done: Done, rows: Rows) -> None:
    done("user", "erase", name, "--reason", "-asked")
    target = "sha256:" + hashlib.sha256(name.encode()).hexdigest()
    assert {row["target"] for row in rows("SELECT target FROM audit_log WHERE action LIKE 'user.%'")} == {target}


def test_names_that_begin_with_a_hyphen_can_be_given_to_options(done: Done, rows: Rows) -> None:
    done("enrollment", "create", "--label", "--help", "--max-uses", "1", "--expires-in", "1d")
    assert [row["label"] for row in rows("SELECT label FROM enrollments")] == ["--help"]
    token = done("token", "create", "--subject", "-anna", "--scope", "prompts:read", "--expires-in", "1h")
    assert claims_of(token)["sub"] == "-anna"


# Enrolments


def test_an_enrolment_is_minted_and_only_its_token_is_printed(done: Done, join: Callable[..., int], rows: Rows) -> None:
    printed = done("enrollment", "create", "--label", "HQ rollout", "--max-uses", "500", "--expires-in", "30d")
    token = printed.removesuffix("\n")
    assert len(token.split(".")) == 3
    assert token == token.strip()
    claims = claims_of(token)
    (row,) = rows("SELECT *, extract(epoch FROM expires_at)::int AS expires FROM enrollments")
    assert (str(row["enrollment_id"]), claims["scope"]) == (claims["jti"], "devices:register")
    assert (row["label"], row["max_uses"], row["uses"], row["revoked_at"]) == ("HQ rollout", 500, 0, None)
    assert claims["exp"] - claims["iat"] == 30 * 86400
    assert abs(row["expires"] - claims["exp"]) <= 1
    assert token not in str(row)
    assert join(token) == 201


def test_an_enrolment_as_json_has_its_id_too(done: Done, join: Callable[..., int], rows: Rows) -> None:
    made = json.loads(done("enrollment", "create", "--label", "x", "--max-uses", "1", "--expires-in", "1h", "--json"))
    assert set(made) == {"enrollment_id", "token"}
    assert [str(row["enrollment_id"]) for row in rows("SELECT enrollment_id FROM enrollments")] == [
        made["enrollment_id"]
    ]
    assert join(made["token"]) == 201


@pytest.mark.parametrize("max_uses", ["0", "-1", "1.5", "many", "", str(2**31)])
def test_uses_are_a_number_of_at_least_one(max_uses: str, run: Run, rows: Rows) -> None:
    assert_failed(run("enrollment", "create", "--label", "x", "--max-uses", max_uses, "--expires-in", "1d"), 2)
    assert rows("SELECT enrollment_id FROM enrollments") == []


@pytest.mark.parametrize(
    "given", ["5", "0d", "-1d", "1.5h", "1y", "d", "", " 1d", "1d ", "1D", "\uff11d", "3651d", "9" * 99]
)
def test_an_invalid_duration_is_refused(given: str, run: Run, rows: Rows) -> None:
    assert_failed(run("enrollment", "create", "--label", "x", "--max-uses", "1", f"--expires-in={given}"), 2)
    assert_failed(run("token", "create", "--subject", "x", "--scope", "prompts:read", f"--expires-in={given}"), 2)
    assert rows("SELECT enrollment_id FROM enrollments") == []


@pytest.mark.parametrize(
    ("given", "seconds"),
    [("90s", 90), ("15m", 900), ("8h", 28800), ("30d", 2592000), ("2w", 1209600), ("3650d", 315360000)],
)
def test_durations_have_a_unit(given: str, seconds: int, done: Done) -> None:
    enrolment = claims_of(done("enrollment", "create", "--label", "x", "--max-uses", "1", "--expires-in", given))
    token = claims_of(done("token", "create", "--subject", "x", "--scope", "prompts:read", "--expires-in", given))
    assert enrolment["exp"] - enrolment["iat"] == token["exp"] - token["iat"] == seconds


def test_enrollment_list_counts_uses_and_shows_the_newest_first(
    done: Done, enrollment: Callable[..., str], join: Callable[..., int]
) -> None:
    first, second = enrollment(label="first", max_uses=5), enrollment(label="second")
    agent = Agent()
    assert [join(first, agent), join(first, agent), join(first)] == [201, 200, 201]
    listed = json.loads(done("enrollment", "list", "--json"))
    assert [(row["label"], row["uses"], row["max_uses"]) for row in listed] == [("second", 0, 1000), ("first", 2, 5)]
    assert [row["enrollment_id"] for row in listed] == [claims_of(second)["jti"], claims_of(first)["jti"]]
    assert all(datetime.fromisoformat(row["expires_at"]) > datetime.fromisoformat(row["created_at"]) for row in listed)
    heading, *lines = done("enrollment", "list").splitlines()
    columns = ["ENROLLMENT_ID", "LABEL", "USES", "MAX_USES", "CREATED_AT", "EXPIRES_AT", "REVOKED_AT"]
    assert heading.split() == columns
    assert [line.split()[1:4] for line in lines] == [["second", "0", "1000"], ["first", "2", "5"]]


def test_lists_of_nothing_are_a_heading_and_an_empty_list(done: Done) -> None:
    assert [len(done(name, "list").splitlines()) for name in ("enrollment", "device")] == [1, 1]
    assert [json.loads(done(name, "list", "--json")) for name in ("enrollment", "device")] == [[], []]


def test_enrollment_list_shows_no_token(done: Done, enrollment: Callable[..., str]) -> None:
    token = enrollment()
    assert token not in done("enrollment", "list") + done("enrollment", "list", "--json")


def test_with_a_revoked_enrolment_nobody_registers_and_devices_stay(
    done: Done,
    enrollment: Callable[..., str],
    join: Callable[..., int],
    access: Callable[..., dict[str, str]],
    rows: Rows,
) -> None:
    token, agent = enrollment(), Agent()
    assert join(token, agent) == 201
    revoked = done("enrollment", "revoke", claims_of(token)["jti"])
    assert claims_of(token)["jti"] in revoked
    assert join(token) == 403
    assert access(agent)
    assert [row["device_id"] for row in rows("SELECT device_id FROM devices")] == [agent.device_id]


def test_an_enrolment_stays_revoked_since_the_first_time(done: Done, enrollment: Callable[..., str]) -> None:
    id_ = claims_of(enrollment())["jti"]
    first, second = (json.loads(done("enrollment", "revoke", id_, "--json")) for _ in range(2))
    assert first == second
    assert first["enrollment_id"] == id_
    assert datetime.fromisoformat(first["revoked_at"])


# Devices


def test_devices_are_listed_by_id(done: Done, register: Callable[..., Agent]) -> None:
    for name in ("b", "c", "a"):
        register(Agent(name), hostname=f"host-{name}")
    listed = json.loads(done("device", "list", "--json"))
    assert [(row["device_id"], row["hostname"], row["has_key"]) for row in listed] == [
        (name, f"host-{name}", True) for name in "abc"
    ]
    assert {(row["last_heartbeat"], row["revoked_at"]) for row in listed} == {(None, None)}
    assert [line.split()[0] for line in done("device", "list").splitlines()] == ["DEVICE_ID", "a", "b", "c"]


def test_a_list_that_is_cut_short_says_so(run: Run, register: Callable[..., Agent]) -> None:
    for name in ("b", "a"):
        register(Agent(name))
    result = run("device", "list", "--limit", "1", "--json")
    assert result.exit_code == 0
    assert [row["device_id"] for row in json.loads(result.stdout)] == ["a"]
    assert "--limit" in result.stderr


def test_a_device_is_shown_with_what_is_known_and_without_its_key(
    done: Done, register: Callable[..., Agent], beat: Beat
) -> None:
    agent = register(macs=["a4:83:e7:11:22:33"], ips=["10.1.2.3"], os={"name": "macOS"}, browsers=["chrome"])
    shown = json.loads(done("device", "show", agent.device_id, "--json"))
    assert shown["device_id"] == agent.device_id
    assert (shown["macs"], shown["ips"]) == (["a4:83:e7:11:22:33"], ["10.1.2.3"])
    assert (shown["os"], shown["browsers"]) == ({"name": "macOS"}, ["chrome"])
    assert shown["key_thumbprint"] == agent.key.thumbprint()
    text = done("device", "show", agent.device_id)
    assert f"hostname        host-of-{agent.device_id}" in text.splitlines()
    assert "BEGIN" not in text + json.dumps(shown)


HOSTILE = "evil\x1b[2J\x1b]0;title\x07\r\n\x9b31m\u202e\u200b\x00\ud800end"


@pytest.mark.parametrize("field", ["hostname", "os", "browsers"])
def test_device_metadata_can_not_inject_terminal_escapes(
    field: str, done: Done, register: Callable[..., Agent]
) -> None:
    agent = register(Agent("hostile"), **{field: [HOSTILE] if field == "browsers" else HOSTILE})
    shown, listed = done("device", "show", agent.device_id), done("device", "list")
    assert "evil" in shown
    assert "end" in shown
    for text in (shown, listed, done("device", "show", "hostile", "--json"), done("device", "list", "--json")):
        assert [character for character in text if not character.isprintable() and character != "\n"] == []
    assert len(listed.splitlines()) == 2
    assert len(shown.splitlines()) == 11


def test_an_enrolment_label_can_not_inject_terminal_escapes(done: Done) -> None:
    done("enrollment", "create", "--label", "evil\x1b[2J\nend", "--max-uses", "1", "--expires-in", "1d")
    listed = done("enrollment", "list")
    assert "\x1b" not in listed
    assert len(listed.splitlines()) == 2


@pytest.mark.parametrize("more", [(), ("--json",)], ids=["text", "json"])
def test_a_revoked_device_is_refused_on_its_next_request_until_it_is_restored(
    more: tuple[str, ...], done: Done, device: Agent, beat: Beat, rows: Rows
) -> None:
    assert beat() == 200
    assert device.device_id in done("device", "revoke", device.device_id, *more)
    assert beat() == 403
    assert rows("SELECT revoked_at IS NOT NULL AS revoked FROM devices") == [{"revoked": True}]
    assert device.device_id in done("device", "restore", device.device_id, *more)
    assert beat() == 200
    assert rows("SELECT revoked_at FROM devices") == [{"revoked_at": None}]


def test_a_device_stays_revoked_since_the_first_time(done: Done, device: Agent) -> None:
    first, second = (json.loads(done("device", "revoke", device.device_id, "--json")) for _ in range(2))
    assert first == second
    assert datetime.fromisoformat(first["revoked_at"])


def test_a_device_that_is_not_revoked_can_be_restored(done: Done, device: Agent, beat: Beat) -> None:
    assert json.loads(done("device", "restore", device.device_id, "--json"))["revoked_at"] is None
    assert beat() == 200


def test_a_device_whose_key_is_forgotten_registers_once_with_a_new_one(
    done: Done, client: FlaskClient, device: Agent, enrollment: Callable[..., str], join: Callable[..., int], rows: Rows
) -> None:
    token = enrollment()
    reinstalled, thief = Agent(device.device_id), Agent(device.device_id)
    assert join(token, reinstalled) == 409
    assert done("device", "forget-key", device.device_id)
    assert rows("SELECT public_key_pem, key_thumbprint FROM devices") == [
        {"public_key_pem": None, "key_thumbprint": None}
    ]
    assert client.post("/api/auth/token", data=device.token_request(TOKEN_ENDPOINT)).status_code == 401
    assert join(token, reinstalled) in (200, 201)
    assert [join(token, thief), join(token, device)] == [409, 409]
    assert client.post("/api/auth/token", data=reinstalled.token_request(TOKEN_ENDPOINT)).status_code == 200
    assert rows("SELECT key_thumbprint FROM devices") == [{"key_thumbprint": reinstalled.key.thumbprint()}]


def test_a_forgotten_key_does_not_bring_a_revoked_device_back(
    done: Done, device: Agent, enrollment: Callable[..., str], join: Callable[..., int]
) -> None:
    done("device", "revoke", device.device_id)
    done("device", "forget-key", device.device_id)
    assert join(enrollment(), Agent(device.device_id)) == 403


# Tokens


def test_a_readers_token_is_minted_and_only_it_is_printed(done: Done) -> None:
    scope = "devices:read prompts:read"
    printed = done("token", "create", "--subject", "alice", "--scope", scope, "--expires-in", "8h")
    claims = claims_of(printed.removesuffix("\n"))
    assert (claims["sub"], claims["client_id"], claims["scope"]) == ("alice", "alice", scope)
    assert claims["exp"] - claims["iat"] == 8 * 3600
    assert "cnf" not in claims


def test_a_readers_token_as_json_says_what_it_allows(done: Done) -> None:
    scope = "prompts:read  metrics:read prompts:read"
    made = json.loads(done("token", "create", "--subject", "a", "--scope", scope, "--expires-in", "1h", "--json"))
    assert (made["scope"], made["expires_in"]) == ("prompts:read metrics:read", 3600)
    assert claims_of(made["token"])["scope"] == "prompts:read metrics:read"


@pytest.mark.parametrize("scope", scopes.READ)
def test_every_scope_for_reading_can_be_given(scope: str, done: Done) -> None:
    assert (
        claims_of(done("token", "create", "--subject", "a", "--scope", scope, "--expires-in", "1h"))["scope"] == scope
    )


@pytest.mark.parametrize(
    "scope",
    [
        *scopes.WRITE,
        "devices:register",
        "prompts:read prompts:write",
        "prompts:read devices:register",
        "",
        " ",
        "all",
        "*",
    ],
)
def test_token_create_refuses_any_other_scope(scope: str, run: Run) -> None:
    assert_failed(run("token", "create", "--subject", "alice", f"--scope={scope}", "--expires-in", "1h"), 2)


@pytest.mark.parametrize("subject", ["", "x" * 129, "é", "a\nb", "a\x00b", "\udcff"])
def test_a_subject_is_printable(subject: str, run: Run) -> None:
    assert_failed(run("token", "create", f"--subject={subject}", "--scope", "prompts:read", "--expires-in", "1h"), 2)


# Keys


def test_keys_rotate_prints_the_new_key_id_alone(done: Done) -> None:
    kid = done("keys", "rotate").removesuffix("\n")
    listed = json.loads(done("keys", "list", "--json"))
    assert [key["kid"] == kid for key in listed] == [True, False]
    other = json.loads(done("keys", "rotate", "--json"))
    assert json.loads(done("keys", "list", "--json"))[0]["kid"] == other["kid"]


def test_keys_remove_prints_the_removed_key_id(done: Done) -> None:
    kid = done("keys", "rotate").strip()
    done("keys", "rotate")
    assert done("keys", "remove", kid) == kid + "\n"
    assert kid not in done("keys", "list")


def test_a_key_whose_id_begins_with_a_hyphen_can_be_removed(done: Done, settings: Settings) -> None:
    done("keys", "rotate")
    path = Path(settings.signing_keys)
    keys = json.loads(path.read_text())["keys"]
    path.write_text(json.dumps({"keys": [keys[0], {**keys[1], "kid": "-nD4pZWr"}]}))
    assert done("keys", "remove", "-nD4pZWr") == "-nD4pZWr\n"


def test_listing_keys_needs_no_database(done: Done, rows: Rows) -> None:
    kid = done("keys", "rotate").strip()
    rows("DROP SCHEMA public CASCADE")
    assert kid in done("keys", "list")


# The database, the description


def test_migrate_prints_what_it_applied(done: Done, rows: Rows) -> None:
    assert done("migrate") == ""
    rows("DROP SCHEMA public CASCADE")
    rows("CREATE SCHEMA public AUTHORIZATION watchpost_owner")
    assert done("migrate").split() == list(migrations.names())
    assert done("migrate") == ""
    assert json.loads(done("device", "list", "--json")) == []


def test_the_generated_documents_are_written_and_compared(
    done: Done, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    monkeypatch.setattr(importlib.import_module("app.commands.spec"), "DOCS", docs)
    assert_failed(run("spec", "--check"), 1)
    assert list(docs.iterdir()) == []
    assert done("spec") == ""
    assert done("spec", "--check") == ""
    for name in ("openapi.yaml", "configuration.md"):
        text = (docs / name).read_text()
        (docs / name).write_text(text + "more: 1\n")
        assert_failed(run("spec", "--check"), 1)
        (docs / name).write_text(text)
    assert done("spec", "--check") == ""
