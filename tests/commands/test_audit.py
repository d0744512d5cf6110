"""What operators do is noted, in the transaction that does it, and nobody takes it back."""

from __future__ import annotations

import getpass
import hashlib
import json
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from tests.support.agent import Agent
from tests.support.service import as_role

Rows = Callable[..., list[dict[str, Any]]]
Command = Callable[..., Any]
ENTRIES = "SELECT actor, action, target, details FROM audit_log ORDER BY at, audit_id"


@pytest.fixture
def command(app: Any) -> Command:
    return lambda *arguments: app.test_cli_runner().invoke(args=[str(argument) for argument in arguments])


def test_every_action_leaves_an_entry(command: Command, device: Agent, rows: Rows, monkeypatch: Any) -> None:
    monkeypatch.delenv("SUDO_USER", raising=False)
    rows("TRUNCATE audit_log")
    minted = command("enrollment", "create", "--label", "l", "--max-uses", "1", "--expires-in", "1h", "--json")
    enrollment = json.loads(minted.stdout)
    command("enrollment", "revoke", enrollment["enrollment_id"])
    for action in ("revoke", "restore", "forget-key"):
        command("device", action, device.device_id)
    token = command("token", "create", "--subject", "alice", "--scope", "devices:read", "--expires-in", "1h").stdout
    old = json.loads(command("keys", "list", "--json").stdout)[0]["kid"]
    command("keys", "rotate")
    command("keys", "remove", old)
    hold = command("hold", "create", "--device", device.device_id, "--reason", "case 7").stdout.strip()
    command("hold", "release", hold)
    command("device", "erase", device.device_id, "--reason", "ticket 8")
    command("user", "erase", "--reason", "r", "Anna Muster")
    found = rows(ENTRIES)
    assert {entry["actor"] for entry in found} == {getpass.getuser()}
    assert [(entry["action"], entry["target"]) for entry in found if not entry["action"].startswith("token")] == [
        ("enrollment.create", enrollment["enrollment_id"]),
        ("enrollment.revoke", enrollment["enrollment_id"]),
        ("device.revoke", device.device_id),
        ("device.restore", device.device_id),
        ("device.forget_key", device.device_id),
        ("keys.rotate", None),
        ("keys.remove", old),
        ("hold.create", hold),
        ("hold.release", hold),
        ("device.erase", device.device_id),
        ("device.erased", device.device_id),
        ("user.erase", f"sha256:{hashlib.sha256(b'Anna Muster').hexdigest()}"),
        ("user.erased", found[-1]["target"]),
    ]
    minted_token = next(entry for entry in found if entry["action"] == "token.create")
    assert minted_token["details"] == {"subject": "alice", "scope": "devices:read", "expires_in": 3600}
    told = str(found)
    assert "Anna" not in told
    assert token.strip() not in told
    assert enrollment["token"] not in told
    listed = json.loads(command("audit", "list", "--json").stdout)
    assert [entry["action"] for entry in listed] == [entry["action"] for entry in found][::-1]


def test_a_repeat_is_an_act_too_and_what_finds_nothing_is_none(command: Command, device: Agent, rows: Rows) -> None:
    rows("TRUNCATE audit_log")
    for _ in range(2):
        command("device", "revoke", device.device_id)
    assert command("device", "revoke", "nobody").exit_code == 1
    assert command("keys", "remove", "nobody").exit_code == 1
    assert [entry["action"] for entry in rows(ENTRIES)] == ["device.revoke"] * 2


def test_the_operator_is_who_was_there_before_sudo(
    command: Command, device: Agent, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SUDO_USER", "olga")
    command("device", "revoke", device.device_id)
    assert rows(ENTRIES)[-1]["actor"] == "olga"


def test_what_can_not_be_noted_is_not_done(command: Command, device: Agent, rows: Rows) -> None:
    keys = command("keys", "list").stdout
    rows("ALTER TABLE audit_log RENAME TO audit_log_away")
    assert command("device", "revoke", device.device_id).exit_code == 1
    assert rows("SELECT revoked_at FROM devices") == [{"revoked_at": None}]
    assert command("keys", "rotate").exit_code == 1
    assert command("keys", "list").stdout == keys
    minted = command("token", "create", "--subject", "alice", "--scope", "devices:read", "--expires-in", "1h")
    assert minted.exit_code == 1
    assert minted.stdout == ""


@pytest.mark.parametrize("role", ["owner", "writer", "reader"])
@pytest.mark.parametrize(
    "query", ["UPDATE audit_log SET actor = 'nobody'", "DELETE FROM audit_log", "TRUNCATE audit_log"]
)
def test_no_role_changes_an_entry(database_url: str, device: Agent, rows: Rows, role: str, query: str) -> None:
    before = rows(ENTRIES)
    with psycopg.connect(as_role(database_url, role), autocommit=True) as connection:
        connection.execute("SET default_transaction_read_only = off")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute(query)
    assert rows(ENTRIES) == before != []


@pytest.mark.parametrize("role", ["writer", "reader"])
def test_only_the_owner_reads_and_writes_entries(database_url: str, role: str) -> None:
    with psycopg.connect(as_role(database_url, role), autocommit=True) as connection:
        connection.execute("SET default_transaction_read_only = off")
        for query in ("SELECT actor FROM audit_log", "INSERT INTO audit_log (audit_id) VALUES (gen_random_uuid())"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(query)
