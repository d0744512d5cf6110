"""The service's signing keys: the file, the JWKS, rotation and removal."""

from __future__ import annotations

import contextlib
import json
import stat
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient
from joserfc import jws, jwt
from joserfc.jwk import KeySet

from app.application import Watchpost, create_app
from app.auth.keys import SigningKeys
from config.settings import Settings
from tests.support.agent import Agent

TOKEN_ENDPOINT = "http://watchpost.test/api/auth/token"
PRIVATE = {"d", "p", "q", "dp", "dq", "qi", "oth", "k"}

Rows = Callable[..., list[dict[str, Any]]]
Command = Callable[..., str]
Beat = Callable[..., int]


@pytest.fixture
def command(app: Watchpost) -> Command:
    def command(*arguments: str) -> str:
        result = app.test_cli_runner().invoke(args=arguments)
        assert result.exit_code == 0, result.output
        return result.stdout.strip()

    return command


@pytest.fixture
def file(settings: Settings) -> Path:
    return settings.signing_keys_path


@pytest.fixture
def beat(client: FlaskClient, device: Agent) -> Beat:
    """Send a heartbeat of `device`; the value is the status."""

    def beat(headers: dict[str, str], through: FlaskClient = client) -> int:
        answer = through.post("/api/devices/heartbeat", json={"device_id": device.device_id}, headers=headers)
        return answer.status_code

    return beat


@pytest.fixture
def neighbour(app: Watchpost, settings: Settings) -> Iterator[FlaskClient]:
    """Another worker of the same service."""
    other = create_app(settings)
    with contextlib.closing(other.extensions["db"]):
        yield other.test_client()


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def kids(client: FlaskClient) -> list[str]:
    return [key["kid"] for key in client.get("/.well-known/jwks.json").json["keys"]]


def kid_of(headers: dict[str, str]) -> str:
    return jws.extract_compact(headers["Authorization"].removeprefix("Bearer ").encode()).headers()["kid"]


def test_the_first_use_creates_a_private_signing_key_file(tmp_path: Path) -> None:
    path = tmp_path / "new" / "keys.json"
    SigningKeys(path).ensure()
    assert mode(path) == 0o600
    (key,) = json.loads(path.read_text())["keys"]
    assert (key["kty"], key["crv"], key["alg"]) == ("EC", "P-256", "ES256")


def test_the_signing_key_file_stays_private_after_each_command(file: Path, command: Command) -> None:
    file.chmod(0o644)
    kid = json.loads(file.read_text())["keys"][0]["kid"]
    command("keys", "rotate")
    assert mode(file) == 0o600
    command("keys", "remove", kid)
    assert mode(file) == 0o600


def test_a_key_rotation_leaves_no_private_key_behind(file: Path, command: Command) -> None:
    command("keys", "rotate")
    others = [path for path in file.parent.iterdir() if path != file and path.is_file()]
    assert [path.name for path in others if '"d"' in path.read_text(errors="replace")] == []


def test_existing_signing_keys_are_kept(file: Path) -> None:
    before = file.read_bytes()
    SigningKeys(file).ensure()
    assert file.read_bytes() == before


def test_concurrent_key_rotations_lose_no_key(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: SigningKeys(path).rotate(), range(8)))
    assert sorted(key["kid"] for key in SigningKeys(path).listed()) == sorted(made)
    assert len(set(made)) == 8


def test_concurrent_starts_create_one_signing_key(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: SigningKeys(path).ensure(), range(8)))
    assert len(SigningKeys(path).listed()) == 1


def test_the_jwks_shows_the_public_keys_and_nothing_private(client: FlaskClient, command: Command, file: Path) -> None:
    command("keys", "rotate")
    answer = client.get("/.well-known/jwks.json")
    assert answer.status_code == 200
    assert answer.mimetype == "application/json"
    assert "max-age" in answer.headers["Cache-Control"]
    assert [set(key) & PRIVATE for key in answer.json["keys"]] == [set(), set()]
    assert [(key["kty"], key["crv"], key["alg"], key["use"]) for key in answer.json["keys"]] == [
        ("EC", "P-256", "ES256", "sig")
    ] * 2
    assert not [key["d"] for key in json.loads(file.read_text())["keys"] if key["d"] in answer.text]


def test_the_jwks_verifies_what_the_service_signed(client: FlaskClient, headers: dict[str, str]) -> None:
    keys = KeySet.import_key_set(client.get("/.well-known/jwks.json").json)
    token = jwt.decode(headers["Authorization"].removeprefix("Bearer "), keys, algorithms=["ES256"])
    assert token.header["kid"] == kids(client)[0]


def test_after_a_rotation_the_new_key_signs_and_old_tokens_stay_valid(
    client: FlaskClient,
    device: Agent,
    headers: dict[str, str],
    access: Callable[..., dict[str, str]],
    beat: Beat,
    command: Command,
    rows: Rows,
) -> None:
    old = kids(client)
    new = command("keys", "rotate")
    assert kids(client) == [new, *old]
    fresh = access(device)
    assert (kid_of(headers), kid_of(fresh)) == (old[0], new)
    assert [beat(headers), beat(fresh)] == [200, 200]
    assert rows("SELECT last_heartbeat IS NOT NULL AS seen FROM devices") == [{"seen": True}]


def test_another_worker_sees_a_key_rotation_at_once(
    device: Agent,
    headers: dict[str, str],
    access: Callable[..., dict[str, str]],
    beat: Beat,
    command: Command,
    neighbour: FlaskClient,
) -> None:
    assert beat(headers, neighbour) == 200
    new = command("keys", "rotate")
    assert kids(neighbour)[0] == new
    assert beat(access(device), neighbour) == 200
    assert beat(headers, neighbour) == 200
    answer = neighbour.post("/api/auth/token", data=device.token_request(TOKEN_ENDPOINT)).json
    assert kid_of({"Authorization": "Bearer " + answer["access_token"]}) == new


def test_tokens_of_a_removed_key_are_refused_at_once_by_every_worker(
    client: FlaskClient,
    headers: dict[str, str],
    beat: Beat,
    command: Command,
    neighbour: FlaskClient,
) -> None:
    (old,) = kids(client)
    assert [beat(headers), beat(headers, neighbour)] == [200, 200]
    new = command("keys", "rotate")
    assert command("keys", "remove", old) == old
    assert [beat(headers), beat(headers, neighbour)] == [401, 401]
    assert kids(client) == kids(neighbour) == [new]


def test_an_enrolment_of_a_removed_key_is_refused(
    client: FlaskClient,
    enrollment: Callable[..., str],
    bearer: Callable[[str], dict[str, str]],
    command: Command,
    rows: Rows,
) -> None:
    token = enrollment()
    (old,) = kids(client)
    command("keys", "rotate")
    command("keys", "remove", old)
    answer = client.post("/api/devices/register", json=Agent().registration(), headers=bearer(token))
    assert answer.status_code == 401
    assert rows("SELECT device_id FROM devices") == []


def test_the_key_that_signs_can_not_be_removed(app: Watchpost, client: FlaskClient, file: Path) -> None:
    before = file.read_bytes()
    result = app.test_cli_runner().invoke(args=["keys", "remove", kids(client)[0]])
    assert (result.exit_code, result.stdout) == (1, "")
    assert "rotate" in result.stderr
    assert file.read_bytes() == before


def test_a_key_that_is_not_there_can_not_be_removed(app: Watchpost, file: Path) -> None:
    before = file.read_bytes()
    result = app.test_cli_runner().invoke(args=["keys", "remove", "nobody"])
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr
    assert file.read_bytes() == before


def test_the_list_shows_which_key_signs_and_nothing_private(command: Command, client: FlaskClient, file: Path) -> None:
    new = command("keys", "rotate")
    listed = json.loads(command("keys", "list", "--json"))
    assert [key["kid"] for key in listed] == kids(client)
    assert [(key["kid"] == new, key["signs"]) for key in listed] == [(True, True), (False, False)]
    assert [set(key) for key in listed] == [{"kid", "alg", "created_at", "signs"}] * 2
    table = command("keys", "list")
    assert [line.split()[-1] for line in table.splitlines()] == ["SIGNS", "yes", "no"]
    assert not [key["d"] for key in json.loads(file.read_text())["keys"] if key["d"] in table]


def test_the_list_makes_a_key_where_there_is_none(file: Path, command: Command) -> None:
    file.unlink()
    assert len(json.loads(command("keys", "list", "--json"))) == 1
    assert mode(file) == 0o600
