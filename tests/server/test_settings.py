"""Settings: where they come from, and what stops the start."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from app import __version__
from config import sources
from config.settings import SettingError, load, prepare_start, unknown_variables
from tests.support.service import Service, serving


@pytest.fixture
def default_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stands for /etc/watchpost/watchpost.env, and is not there yet."""
    path = tmp_path / "watchpost.env"
    monkeypatch.setattr(sources, "DEFAULT_FILE", path)
    return path


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("BIND", "127.0.0.1:99999"),
        ("BIND", "127.0.0.1:0"),
        ("BIND", "nonsense"),
        ("BIND", "127.0.0.1"),
        ("BIND", ":8000"),
        ("BIND", "127.0.0.1:"),
        ("BIND", "127.0.0.1:eighty"),
        ("BIND", "::1:8000"),
        ("BIND", "[::g]:8000"),
        ("BIND", "256.0.0.1:8000"),
        ("BIND", "http://127.0.0.1:8000"),
        ("BIND", "127.0.0.1:8000,nonsense"),
        ("REDIS_URL", "foo"),
        ("REDIS_URL", "http://host"),
        ("REDIS_URL", "redis://host:port"),
        ("REDIS_URL", "redis://"),
        ("WORKERS", "x"),
        ("WORKERS", "-1"),
        ("WORKERS", "1.5"),
        ("WORKERS", "1_0"),
        ("WORKERS", "99999999"),
        ("POOL_SIZE", "9" * 30),
        ("POOL_SIZE", "\uff11"),
        ("PROMPTS_DAYS", "1000000"),
        ("STATEMENT_TIMEOUT_MS", "3000000000"),
        ("ISSUER", "https://"),
        ("ISSUER", "https://host name"),
        ("ISSUER", "https://sesame@host"),
        ("ISSUER", "https://host?query"),
        ("ISSUER", "https://host:99999"),
        ("DATABASE_URL", "postgresql://u:sesame@host:99999/d"),
        ("DATABASE_URL", "postgresql://u:sesame@a,b:0/d"),
        ("OWNER_DATABASE_URL", "postgresql://u:sesame@host/d"),
        ("DATA_DIR", "a\nb"),
        ("LOG_LEVEL", "verbose"),
        ("PREPARE_STATEMENTS", "2"),
    ],
)
def test_a_wrong_setting_is_named_in_one_sentence_without_its_value(name: str, value: str) -> None:
    with pytest.raises(SettingError) as refusal:
        load({f"WATCHPOST_{name}": value})
    message = str(refusal.value)
    assert message.startswith(f"WATCHPOST_{name} ")
    assert message.endswith(".")
    assert "\n" not in message
    assert "sesame" not in message


@pytest.mark.parametrize(
    "bind", ["0.0.0.0:80", "[::]:65535", "localhost:8000", "127.0.0.1:1,[::1]:2", "unix:/run/watchpost.sock"]
)
def test_an_address_to_serve_on_is_host_and_port(bind: str) -> None:
    assert load({"WATCHPOST_BIND": bind, "WATCHPOST_ISSUER": "https://host/path"}).bind == bind


@pytest.mark.parametrize("url", ["redis://host", "rediss://:password@host:6380/1", "unix:///run/redis.sock"])
def test_a_redis_url_is_taken(url: str) -> None:
    assert load({"WATCHPOST_REDIS_URL": url}).redis_url == url


@pytest.mark.parametrize(
    ("environ", "name"),
    [
        ({"WATCHPOST_DATA_DIR": "/proc/nope"}, "WATCHPOST_DATA_DIR"),
        ({"WATCHPOST_DATA_DIR": "/dev/null/x"}, "WATCHPOST_DATA_DIR"),
        ({"WATCHPOST_BIND": "192.0.2.1:8000"}, "WATCHPOST_BIND"),
        ({"WATCHPOST_BIND": "nothing.invalid:8000"}, "WATCHPOST_BIND"),
    ],
)
def test_what_this_machine_lacks_is_named_at_the_start(environ: dict[str, str], name: str) -> None:
    with pytest.raises(SettingError, match=name):
        prepare_start(load(environ))


@pytest.mark.parametrize(
    "settings",
    [
        {"bind": "127.0.0.1:99999"},
        {"bind": "nonsense"},
        {"data_dir": "/proc/nope"},
        {"redis_url": "foo"},
        {"workers": "x"},
        {"cors_origins": "*"},
        {"config": "/nowhere/watchpost.env"},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_a_service_with_a_wrong_setting_ends_with_one_line(settings: dict[str, Any], folder: Path) -> None:
    service = Service(folder, **settings)
    assert service.process.wait(60) not in (0, None)
    (line,) = service.log.read_text().splitlines()
    assert line.startswith(f"WATCHPOST_{next(iter(settings)).upper()} ")


# Sources


def test_settings_come_from_the_default_file(default_file: Path) -> None:
    default_file.write_text("WATCHPOST_POOL_SIZE=3\n")
    assert load({}).pool_size == 3


def test_the_environment_takes_precedence_over_the_file(default_file: Path) -> None:
    default_file.write_text("WATCHPOST_POOL_SIZE=3\nWATCHPOST_WORKERS=5\n")
    settings = load({"WATCHPOST_POOL_SIZE": "4"})
    assert (settings.pool_size, settings.workers) == (4, 5)


def test_the_file_that_is_named_takes_the_place_of_the_default(default_file: Path, tmp_path: Path) -> None:
    default_file.write_text("WATCHPOST_POOL_SIZE=3\nWATCHPOST_WORKERS=5\n")
    named = tmp_path / "other.env"
    named.write_text("WATCHPOST_POOL_SIZE=6\n")
    settings = load({"WATCHPOST_CONFIG": str(named)})
    assert (settings.pool_size, settings.workers) == (6, 0)


@pytest.mark.usefixtures("default_file")
def test_without_a_default_file_the_defaults_count() -> None:
    assert load({}).pool_size == 8


def test_a_default_file_that_can_not_be_read_is_left_out(default_file: Path) -> None:
    default_file.mkdir()
    assert load({}).pool_size == 8
    assert "can't be read" in sources.description({})


@pytest.mark.parametrize("content", [None, b"\xff\xfe"])
def test_a_named_file_that_can_not_be_read_is_refused(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "named.env"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SettingError, match="WATCHPOST_CONFIG"):
        load({"WATCHPOST_CONFIG": str(path)})


def test_the_file_has_the_syntax_of_systemd(default_file: Path) -> None:
    default_file.write_text(
        "# A comment\n; another\n\n"
        "  WATCHPOST_DATABASE_URL = 'postgresql://u:p%40@h/d?a=b' \r\n"
        'export WATCHPOST_ISSUER="https://\\h"\n'
        "OTEL_SERVICE_NAME=other\n"
        "WATCHPOST_CORS_ORIGINS=https://a.example \\\n  https://b.example\n"
        "WATCHPOST_DATA_DIR=/srv/a#b\n"
        "WATCHPOST_LOG_LEVEL=\n"
    )
    settings = load({})
    assert settings.database_url == "postgresql://u:p%40@h/d?a=b"
    assert settings.issuer == "https://h"
    assert len(settings.origins) == 2
    assert (settings.data_dir, settings.log_level) == ("/srv/a#b", "INFO")


def test_a_line_of_the_file_that_is_none_is_refused_by_its_number(default_file: Path) -> None:
    default_file.write_text("WATCHPOST_POOL_SIZE=3\nsesame\n")
    with pytest.raises(SettingError, match=r"Entry 2 of .*watchpost\.env") as refusal:
        load({})
    assert "sesame" not in str(refusal.value)


# Unknown variables


@pytest.mark.parametrize(
    ("name", "similar"),
    [
        ("WATCHPOST_DATABASE_ULR", "WATCHPOST_DATABASE_URL"),
        ("WATCHPOST_SIGNING_KEY", "WATCHPOST_SIGNING_KEYS"),
        ("WATCHPOST_WORKER", "WATCHPOST_WORKERS"),
        ("WATCHPOST_CONFG", "WATCHPOST_CONFIG"),
    ],
)
def test_an_unknown_variable_is_named_with_the_nearest_known_name(name: str, similar: str) -> None:
    assert unknown_variables({name: "sesame"}) == [f"{name} is not a setting: did you mean {similar}?"]


def test_an_unknown_variable_that_resembles_none_is_named_too() -> None:
    assert unknown_variables({"WATCHPOST_X": "sesame", "OTHER": "x"}) == ["WATCHPOST_X is not a setting."]


def test_known_variables_are_not_warned_of(tmp_path: Path) -> None:
    path = tmp_path / "named.env"
    path.write_text("WATCHPOST_POOL_SIZE=3\n")
    assert unknown_variables({"WATCHPOST_CONFIG": str(path), "WATCHPOST_WORKERS": "1"}) == []


def test_an_unknown_variable_of_the_file_is_named(default_file: Path) -> None:
    default_file.write_text("WATCHPOST_POOL=3\n")
    assert [sentence.split()[0] for sentence in unknown_variables({})] == ["WATCHPOST_POOL"]


def test_a_service_says_its_version_and_names_unknown_variables(folder: Path, database_url: str) -> None:
    with serving(folder, database_url=database_url, databse_url="sesame") as service:
        lines = [json.loads(line) for line in service.log.read_text().splitlines()]
        assert lines[0]["version"] == __version__
        assert service.get("/livez").json == {"status": "ok", "version": __version__}
        assert service.get("/openapi.json").json["info"]["version"] == __version__
        (warning,) = [line for line in lines if "WATCHPOST_DATABSE_URL" in line["message"]]
        assert (warning["level"], warning["message"].endswith("did you mean WATCHPOST_DATABASE_URL?")) == (
            "warning",
            True,
        )
        assert "sesame" not in service.log.read_text()


@pytest.mark.parametrize("content", [None, "", '{"keys": ['])
def test_a_service_does_not_start_without_usable_signing_keys(
    content: str | None, folder: Path, database_url: str
) -> None:
    path = folder / "keys.json"
    if content is not None:
        path.write_text(content)
    service = Service(folder, database_url=database_url, make_keys=False, signing_keys=path)
    try:
        assert service.process.wait(60) == 3
    finally:
        service.kill_everything()
    assert str(path) in service.log.read_text()
    assert (path.read_text() if path.exists() else None) == content
