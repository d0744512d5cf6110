"""A person's rows say nothing any more, still count, and don't come back; what is held is not touched."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from app.commands import erasure, pages
from app.db.statements import names, statement
from config.settings import Settings
from tests.support.agent import Agent
from tests.support.service import ROOT

Rows = Callable[..., list[dict[str, Any]]]
NOW = int(time.time() * 1000)
SECRET = "Kündigung Anna Muster"


@pytest.fixture
def command(app: Any) -> Callable[..., Any]:
    return lambda *arguments: app.test_cli_runner().invoke(args=list(arguments))


@pytest.fixture(autouse=True)
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "ROWS", 3)
    monkeypatch.setattr(pages, "PAUSE_SECONDS", 0.05)


@pytest.fixture
def reported(client: Any, register: Any, access: Any) -> tuple[Agent, Agent, Callable[[Agent], list[Any]]]:
    """Two devices, each with ten prompts of two people, events, a status and a browser profile."""
    agents = register(), register()
    tokens = {agent.device_id: access(agent) for agent in agents}

    def report(agent: Agent) -> list[Any]:
        def post(path: str, **body: Any) -> Any:
            return client.post(path, json={"device_id": agent.device_id, **body}, headers=tokens[agent.device_id])

        answers = [
            post(
                "/api/prompt",
                instance_id="i",
                site="chatgpt.com",
                url=f"https://x/{SECRET}",
                prompt=f"{SECRET} {n}",
                timestamp=NOW - n,
                username=("anna", "ben")[n % 2],
                page_title=SECRET,
                profile_name=SECRET,
                conversation_id=SECRET,
                metadata={"who": SECRET},
            )
            for n in range(10)
        ]
        for n, who in enumerate(("anna", {"name": "anna"}, {"user": {"login": "anna"}}, "ben", None)):
            event = {"event_type": "prompt_blocked", "severity": "low", "detected_at": NOW - n}
            answers.append(post("/api/compliance/event", **event, user_context=who, details={"text": SECRET, "n": n}))
        status = {"instance_id": "i", "status": "disabled", "reported_at": NOW, "metadata": {"who": SECRET}}
        answers.append(post("/api/extension/status", **status))
        instance = {"instance_id": f"i-{agent.device_id}", "browser_name": "chrome", "profile_path": SECRET}
        answers.append(post("/api/browsers/register", **instance, profile_name="anna"))
        answers.append(post("/api/devices/heartbeat", hostname=SECRET))
        return answers

    for agent in agents:
        assert {answer.status_code for answer in report(agent)} <= {200, 201}
    return *agents, report


def said(rows: Rows, device_id: str) -> str:
    """Everything that is stored about a device."""
    tables = ("prompts", "compliance_events", "extension_status", "browser_instances", "devices")
    return json.dumps(
        [rows(f"SELECT * FROM {table} WHERE device_id = %s", device_id) for table in tables],
        default=str,
        ensure_ascii=False,
    )


def test_a_device_is_erased_and_still_counts(reported: Any, command: Any, rows: Rows) -> None:
    one, other, _ = reported
    count = "SELECT site, count(*) AS n FROM prompts GROUP BY site"
    before, others = rows(count), said(rows, other.device_id)
    result = command("device", "erase", one.device_id, "--reason", "ticket 7", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == {
        "prompts": 10,
        "compliance_events": 5,
        "extension_status": 1,
        "browser_instances": 1,
    }
    text = said(rows, one.device_id)
    assert SECRET not in text
    assert "anna" not in text
    assert rows(count) == before
    assert said(rows, other.device_id) == others
    assert rows("SELECT details FROM audit_log WHERE action = 'device.erase'") == [{"details": {"reason": "ticket 7"}}]
    assert rows("SELECT count(*) AS n FROM devices WHERE device_id = %s AND key_thumbprint IS NOT NULL", one.device_id)
    again = command("device", "erase", one.device_id, "--reason", "again", "--json")
    assert set(json.loads(again.stdout).values()) == {0}


def test_a_replay_of_what_was_erased_brings_nothing_back(reported: Any, command: Any, rows: Rows) -> None:
    one, _, report = reported
    assert command("device", "erase", one.device_id, "--reason", "r").exit_code == 0
    stored = rows('SELECT * FROM prompts ORDER BY "timestamp", device_id')
    statuses = [answer.status_code for answer in report(one)]
    assert set(statuses[:10]) == {409}
    assert rows('SELECT * FROM prompts ORDER BY "timestamp", device_id') == stored


def test_a_person_is_erased_on_every_device(reported: Any, command: Any, rows: Rows) -> None:
    result = command("user", "erase", "--reason", "r", "anna", "--json")
    erased = {"prompts": 10, "compliance_events": 6, "extension_status": 0, "browser_instances": 2}
    assert json.loads(result.stdout) == erased
    assert rows("SELECT count(*) AS n FROM prompts WHERE prompt != '' AND username = 'ben'") == [{"n": 10}]
    assert rows("SELECT count(*) AS n FROM prompts WHERE prompt = '' AND username IS NULL") == [{"n": 10}]
    left = rows("SELECT user_context, count(*) AS n FROM compliance_events WHERE erased_at IS NULL GROUP BY 1")
    assert {(entry["user_context"], entry["n"]) for entry in left} == {("ben", 2), (None, 2)}
    assert "anna" not in str(rows("SELECT target, details FROM audit_log WHERE action LIKE 'user%%'"))


def everywhere(rows: Rows, word: str) -> list[str]:
    """The tables that have a word anywhere in a row."""
    tables = [
        row["name"]
        for row in rows("""
        SELECT oid::regclass::text AS name FROM pg_class
        WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p')
    """)
    ]
    has = "SELECT count(*) AS n FROM {} AS one WHERE strpos(lower(one::text), lower(%s)) > 0"
    return [table for table in tables if rows(has.format(table), word)[0]["n"]]


@pytest.fixture
def named(client: Any, register: Any, access: Any, headers: Any, device: Agent, rows: Rows) -> Agent:
    """A device that says WORD wherever it can, this month and in a month that has no partition."""
    one = register(Agent("named"), hostname="WORD", os={"u": "WORD"}, browsers=["WORD"])
    told = access(one)

    def post(path: str, **body: Any) -> None:
        assert client.post(path, json={"device_id": "named", **body}, headers=told).status_code in (200, 201)

    for at in (NOW, NOW - 400 * 86_400_000):
        said = {"instance_id": "i", "site": "s", "url": "https://x/WORD", "prompt": "WORD", "page_title": "WORD"}
        said |= {"conversation_id": "WORD", "timestamp": at}
        post("/api/prompt", **said, username="WORD")
        post("/api/prompt", **said, profile_name="WORD")
        post("/api/prompt", **said, metadata={"accounts": [{"login": "WORD"}]})
        event = {"event_type": "e", "severity": "low", "detected_at": at}
        post("/api/compliance/event", **event, user_context={"user": "WORD"}, details={"text": "of WORD"})
        post("/api/compliance/event", **event, details={"who": ["WORD"]})
        status = {"instance_id": "i", "status": "enabled", "reported_at": at}
        post("/api/extension/status", **status, metadata={"who": "WORD"})
        post("/api/extension/status", **status, reported_by="WORD")
    post("/api/browsers/register", instance_id="n1", browser_name="chrome", profile_name="WORD")
    post("/api/browsers/register", instance_id="n2", browser_name="chrome", profile_path="/Users/WORD/Library")
    post("/api/browsers/register", instance_id="n3", browser_name="chrome", profile_path="C:\\Users\\WORD\\AppData")
    assert "prompts_default" in everywhere(rows, "WORD")
    return one


def test_nothing_that_a_device_said_is_left_anywhere(
    named: Agent, command: Any, client: Any, enrollment: Any, bearer: Any, device: Agent, rows: Rows
) -> None:
    # What it claimed of another device's key stands in that device's events.
    command("device", "forget-key", "named")
    claim = {**named.registration(hostname="WORD"), "public_key_pem": device.public_key_pem}
    assert client.post("/api/devices/register", json=claim, headers=bearer(enrollment())).status_code == 409
    assert rows("SELECT device_id FROM compliance_events WHERE details ->> 'hostname' = 'WORD'") == [
        {"device_id": device.device_id}
    ]
    assert command("device", "erase", "named", "--reason", "r").exit_code == 0
    assert everywhere(rows, "WORD") == []


def test_nothing_that_names_a_person_is_left_but_the_laptops_name(named: Agent, command: Any, rows: Rows) -> None:
    result = command("user", "erase", "--reason", "r", "WORD", "--json")
    assert json.loads(result.stdout) == {
        "prompts": 6,
        "compliance_events": 4,
        "extension_status": 4,
        "browser_instances": 3,
    }
    assert everywhere(rows, "WORD") == ["devices"]


def test_every_event_table_has_a_statement_that_erases_and_a_function_that_says_who_is_meant(rows: Rows) -> None:
    tables = {row["table_name"] for row in rows("SELECT table_name FROM event_tables()")}
    assert {f"erasure/erase_{table}" for table in tables} <= set(names())
    meant = rows("SELECT proargtypes[0]::regtype::text AS of FROM pg_proc WHERE proname = 'is_about'")
    assert {row["of"] for row in meant} == {*tables, "browser_instances"}


@pytest.mark.parametrize("ending", ["\n", "\r\n", ""])
def test_a_name_may_come_from_standard_input(named: Agent, app: Any, rows: Rows, ending: str) -> None:
    """Where no list of processes shows it."""
    result = app.test_cli_runner().invoke(args=["user", "erase", "--reason", "r", "-"], input=f"WORD{ending}")
    assert result.exit_code == 0, result.output
    assert "WORD" not in result.output
    assert everywhere(rows, "WORD") == ["devices"]


def test_at_a_terminal_the_name_is_asked_for(named: Agent, settings: Settings, rows: Rows) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WATCHPOST_")}
    for name in ("database_url", "owner_database_url", "signing_keys", "data_dir"):
        environment[f"WATCHPOST_{name.upper()}"] = getattr(settings, name)
    terminal, end = pty.openpty()
    try:
        os.write(terminal, b"WORD\n")
        command = [str(Path(sys.executable).parent / "flask"), "--app", "wsgi", "user", "erase", "--reason", "r", "-"]
        done = subprocess.run(
            command, cwd=ROOT, env=environment, stdin=end, capture_output=True, text=True, timeout=60, check=False
        )
    finally:
        os.close(terminal)
        os.close(end)
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("Name: ")
    blanked = {line.split()[0] for line in done.stdout.splitlines()}
    assert blanked == {"prompts", "extension_status", "compliance_events", "browser_instances"}
    assert everywhere(rows, "WORD") == ["devices"]


@pytest.mark.parametrize("given", [b"", b"\n", b"anna\nben\n", b"ann\xe4\n", b"anna\x00\n"])
def test_what_can_be_nobodys_name_is_refused(reported: Any, app: Any, rows: Rows, given: bytes) -> None:
    result = app.test_cli_runner().invoke(args=["user", "erase", "--reason", "r", "-"], input=given)
    assert result.exit_code == 2
    assert "NAME" in result.stderr
    assert rows("SELECT * FROM prompts WHERE erased_at IS NOT NULL") == []


def test_the_audit_log_says_in_each_transaction_what_was_blanked(named: Agent, command: Any, rows: Rows) -> None:
    assert command("device", "erase", "named", "--reason", "r").exit_code == 0
    noted = rows("""
        SELECT action, sum((details ->> 'rows')::int)::int AS n FROM audit_log
        WHERE target = 'named' AND details ? 'rows' GROUP BY action ORDER BY action
    """)
    assert [(entry["action"], entry["n"]) for entry in noted] == [
        ("compliance_events.erase", 4),
        ("extension_status.erase", 4),
        ("prompts.erase", 6),
    ]


def test_a_profile_on_a_device_that_is_held_is_not_blanked(reported: Any, command: Any, rows: Rows) -> None:
    """Though neither a prompt nor an event of that device is the person's."""
    one, _, _ = reported
    rows("UPDATE browser_instances SET profile_name = 'carla' WHERE device_id = %s", one.device_id)
    hold = command("hold", "create", "--device", one.device_id, "--reason", "r").stdout.strip()
    refused = command("user", "erase", "--reason", "r", "carla")
    assert refused.exit_code == 1
    assert hold in refused.stderr
    assert rows("SELECT count(*) AS n FROM browser_instances WHERE profile_name = 'carla'") == [{"n": 1}]


def test_a_hold_that_comes_between_the_look_and_the_erasure_keeps_everything(
    reported: Any, command: Any, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, _, _ = reported
    before = said(rows, one.device_id)
    made = "INSERT INTO legal_holds (hold_id, device_id, reason) VALUES (gen_random_uuid(), %s, 'r')"
    monkeypatch.setattr(erasure, "_refuse_held", lambda _: rows(made, one.device_id))
    refused = command("device", "erase", one.device_id, "--reason", "r")
    assert refused.exit_code == 1
    assert "hold was made meanwhile" in refused.stderr
    command("user", "erase", "--reason", "r", "anna")
    assert said(rows, one.device_id) == before


def test_a_hold_of_an_unknown_device_is_refused_without_future(app: Any, command: Any, rows: Rows) -> None:
    arguments = ["hold", "create", "--device", "laptop-typo", "--reason", "r"]
    result = app.test_cli_runner().invoke(args=arguments)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "--future" in result.stderr
    assert rows("SELECT hold_id FROM legal_holds") == []
    command(*arguments, "--future")
    assert rows("SELECT device_id FROM legal_holds") == [{"device_id": "laptop-typo"}]


@pytest.mark.parametrize(
    "hold",
    [
        ("--device", "{device}"),
        ("--from", "2026-01-01", "--to", "2126-01-01"),
        ("--device", "{device}", "--from", "2026-01-01"),
    ],
)
def test_what_is_held_is_not_erased(reported: Any, command: Any, rows: Rows, hold: tuple[str, ...]) -> None:
    one, other, _ = reported
    arguments = [argument.format(device=one.device_id) for argument in hold]
    hold_id = command("hold", "create", *arguments, "--reason", "case 9").stdout.strip()
    before = said(rows, one.device_id)
    for refused in (("device", "erase", one.device_id, "--reason", "r"), ("user", "erase", "--reason", "r", "anna")):
        result = command(*refused)
        assert result.exit_code == 1
        assert hold_id in result.stderr
        assert result.stdout == ""
    assert said(rows, one.device_id) == before
    assert rows("SELECT action FROM audit_log WHERE action LIKE '%%.erase%%'") == []
    if "--device" in hold:
        assert command("device", "erase", other.device_id, "--reason", "r").exit_code == 0
    command("hold", "release", hold_id)
    assert command("device", "erase", one.device_id, "--reason", "r").exit_code == 0
    assert SECRET not in said(rows, one.device_id)


def test_a_hold_of_another_time_is_in_nobodys_way(reported: Any, command: Any) -> None:
    one, _, _ = reported
    command("hold", "create", "--to", "2020-01-01", "--reason", "old")
    assert command("device", "erase", one.device_id, "--reason", "r").exit_code == 0


def test_a_hold_that_comes_during_an_erasure_stops_it_at_the_next_row(reported: Any, rows: Rows, app: Any) -> None:
    """The statements look for holds themselves, whatever the command saw before."""
    one, _, _ = reported
    rows("INSERT INTO legal_holds (hold_id, device_id, reason) VALUES (gen_random_uuid(), %s, 'r')", one.device_id)
    with app.app_context():
        whose = {"device_id": one.device_id, "username": None}
        assert pages.through(statement("erasure/erase_prompts"), "prompts", pages.FIRST_EVENT, **whose) == 0
        app.extensions["owner"].close()


@pytest.mark.parametrize(
    "arguments",
    [
        ("hold", "create", "--reason", "r"),
        ("hold", "create", "--device", "d"),
        ("hold", "create", "--device", "", "--from", "2026-01-01", "--reason", "r"),
        ("hold", "create", "--device", "d\udcff", "--reason", "r"),
        ("hold", "create", "--from", "2026-02-01", "--to", "2026-01-01", "--reason", "r"),
        ("hold", "create", "--from", "yesterday", "--reason", "r"),
        ("device", "erase", "d"),
        ("user", "erase", "--reason", "r", ""),
    ],
)
def test_a_command_that_is_called_wrongly_exits_with_2(command: Any, rows: Rows, arguments: tuple[str, ...]) -> None:
    assert command(*arguments).exit_code == 2
    assert rows("SELECT * FROM legal_holds") == []


def test_a_reason_need_not_be_utf_8(reported: Any, command: Any, rows: Rows) -> None:
    one, _, _ = reported
    assert command("device", "erase", one.device_id, "--reason", "ticket \udcff").exit_code == 0
    assert rows("SELECT details FROM audit_log WHERE action = 'device.erase'") == [
        {"details": {"reason": "ticket \ufffd"}}
    ]


def test_a_device_that_there_is_not_can_not_be_erased(command: Any, rows: Rows) -> None:
    assert command("device", "erase", "nobody", "--reason", "r").exit_code == 1
    assert rows("SELECT * FROM audit_log") == []


def test_holds_are_listed(command: Any) -> None:
    first = command("hold", "create", "--device", "d", "--future", "--reason", "one").stdout.strip()
    second = command("hold", "create", "--from", "2026-01-01", "--reason", "two").stdout.strip()
    command("hold", "release", second)
    listed = json.loads(command("hold", "list", "--json").stdout)
    assert [hold["hold_id"] for hold in listed] == [first, second]
    assert listed[1]["from_ms"] == 1767225600000
    assert listed[1]["released_at"]
    assert command("hold", "release", "00000000-0000-0000-0000-000000000000").exit_code == 1
