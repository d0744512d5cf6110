"""The OpenAPI description: valid, complete, and true."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

import pytest
import yaml
from flask.testing import FlaskClient
from openapi_schema_validator import OAS31Validator
from openapi_spec_validator import validate

from app.api import scopes
from app.api.fields import Schema
from app.application import Watchpost
from app.resources import batch, browsers, compliance, devices, extension, prompts
from tests.support.agent import Agent

FILE = Path(__file__).resolve().parents[2] / "docs" / "openapi.yaml"
TOKEN_ENDPOINT = "/api/auth/token"
REGISTER = "/api/devices/register"
BATCH = "/api/batch"
SCHEMAS: dict[str, Schema] = {
    REGISTER: devices.RegisterDeviceRequest(),
    "/api/devices/heartbeat": devices.DeviceHeartbeatRequest(),
    "/api/prompt": prompts.PromptRequest(),
    "/api/browsers/register": browsers.RegisterBrowserRequest(),
    "/api/browsers/heartbeat": browsers.BrowserHeartbeatRequest(),
    "/api/extension/status": extension.ExtensionStatusRequest(),
    "/api/compliance/event": compliance.ComplianceEventRequest(),
    BATCH: batch.BatchRequest(),
}
SCOPES = {
    REGISTER: {scopes.REGISTER},
    "/api/devices/heartbeat": {"devices:write"},
    "/api/prompt": {"prompts:write"},
    "/api/browsers/register": {"browsers:write"},
    "/api/browsers/heartbeat": {"browsers:write"},
    "/api/extension/status": {"extension:write"},
    "/api/compliance/event": {"compliance:write"},
    BATCH: set(scopes.WRITE),
}
REFUSALS = {"400", "401", "403", "413", "415", "500", "503"}
CONFLICTS = {REGISTER, "/api/prompt", "/api/browsers/register", "/api/extension/status", "/api/compliance/event"}
# Where to find what an example became.
STORED = {
    REGISTER: "SELECT hostname FROM devices WHERE device_id = 'laptop-7f3a' AND hostname IS NOT NULL",
    "/api/devices/heartbeat": "SELECT device_id FROM devices WHERE last_heartbeat IS NOT NULL",
    "/api/prompt": "SELECT prompt_id FROM prompts WHERE device_id = 'laptop-7f3a'",
    "/api/browsers/register": "SELECT instance_id FROM browser_instances WHERE device_id = 'laptop-7f3a'",
    "/api/browsers/heartbeat": "SELECT instance_id FROM browser_instances WHERE last_seen IS NOT NULL",
    "/api/extension/status": "SELECT status_id FROM extension_status WHERE device_id = 'laptop-7f3a'",
    "/api/compliance/event": "SELECT event_id FROM compliance_events WHERE device_id = 'laptop-7f3a'",
    BATCH: "SELECT prompt_id FROM prompts WHERE device_id = 'laptop-7f3a'",
}

Spec = dict[str, Any]
writes = pytest.mark.parametrize("path", SCHEMAS)


@pytest.fixture
def spec(client: FlaskClient) -> Spec:
    answer = client.get("/openapi.json")
    assert answer.status_code == 200
    return answer.json


def resolved(spec: Spec, node: Spec) -> Spec:
    """What a node is, or what it refers to."""
    while "$ref" in node:
        target: Any = spec
        for name in node["$ref"].removeprefix("#/").split("/"):
            target = target[name]
        node = target
    return node


def media(spec: Spec, path: str) -> Spec:
    return resolved(spec, spec["paths"][path]["post"]["requestBody"])["content"]["application/json"]


def body_example(spec: Spec, path: str) -> Any:
    found = media(spec, path)
    return found["example"] if "example" in found else next(iter(found["examples"].values()))["value"]


def complaints(spec: Spec, schema: Spec, value: Any) -> list[str]:
    """What a JSON Schema of the description has against a value."""
    validator = OAS31Validator({**schema, "components": spec["components"]})
    return [error.message for error in validator.iter_errors(value)]


def test_the_description_is_valid_openapi_3_1(spec: Spec) -> None:
    assert spec["openapi"].startswith("3.1.")
    validate(spec)


def test_every_route_but_the_description_itself_is_described(app: Watchpost, spec: Spec) -> None:
    routes = {rule.rule for rule in app.url_map.iter_rules()}
    assert routes - set(spec["paths"]) == {"/openapi.json", "/docs", "/docs/static/<path:name>"}
    assert set(spec["paths"]) <= routes


def test_every_write_is_described_and_tested_here(spec: Spec) -> None:
    posts = {path for path, methods in spec["paths"].items() if path.startswith("/api/") and "post" in methods}
    assert posts == {*SCHEMAS, TOKEN_ENDPOINT}


def test_every_operation_has_a_summary_and_a_tag(spec: Spec) -> None:
    operations = {path: found for path, methods in spec["paths"].items() for found in methods.values()}
    assert [path for path, found in operations.items() if not found.get("summary") or not found.get("tags")] == []


@writes
def test_a_write_names_its_scope(path: str, spec: Spec) -> None:
    ((name, wanted),) = (
        (name, set(wanted)) for need in spec["paths"][path]["post"]["security"] for name, wanted in need.items()
    )
    scheme = spec["components"]["securitySchemes"][name]
    assert (scheme["type"], scheme["scheme"], scheme["bearerFormat"]) == ("http", "bearer", "JWT")
    assert wanted == SCOPES[path]


def test_an_open_operation_asks_for_no_token(spec: Spec) -> None:
    rest = {path: methods for path, methods in spec["paths"].items() if path not in {*SCHEMAS, "/metrics"}}
    assert {path for path, methods in rest.items() for found in methods.values() if found.get("security")} == set()


@writes
def test_a_write_describes_every_status(path: str, spec: Spec) -> None:
    stored = {"200"} if path == BATCH else {"200", "201"}
    conflict = {"409"} if path in CONFLICTS else set()
    assert set(spec["paths"][path]["post"]["responses"]) >= REFUSALS | stored | conflict


def test_a_batch_as_a_whole_is_never_created_and_never_conflicts(spec: Spec) -> None:
    assert not {"201", "409"} & set(spec["paths"][BATCH]["post"]["responses"])


@writes
def test_refusals_are_described_as_problems(path: str, spec: Spec) -> None:
    responses = {status: resolved(spec, found) for status, found in spec["paths"][path]["post"]["responses"].items()}
    refused = {status: found for status, found in responses.items() if status[0] in "45"}
    assert {
        status for status, found in refused.items() if set(found["content"]) != {"application/problem+json"}
    } == set()
    schemas = [resolved(spec, found["content"]["application/problem+json"]["schema"]) for found in refused.values()]
    members = {"type", "title", "status", "detail", "errors", "request_id"}
    assert all(set(schema["properties"]) == members for schema in schemas)
    assert "WWW-Authenticate" in refused["401"]["headers"]
    assert "Retry-After" in refused["503"]["headers"]


def test_the_token_endpoint_is_described(spec: Spec) -> None:
    operation = spec["paths"][TOKEN_ENDPOINT]["post"]
    assert set(operation["responses"]) >= {"200", "400", "401", "413", "500", "503"}
    form = operation["requestBody"]["content"]["application/x-www-form-urlencoded"]["schema"]
    assert set(form["properties"]) == {"grant_type", "client_assertion_type", "client_assertion", "scope"}
    for status in ("400", "401"):
        error = resolved(spec, operation["responses"][status]["content"]["application/json"]["schema"])
        assert {"error", "error_description"} <= set(error["properties"])


@writes
def test_an_example_is_valid(path: str, spec: Spec) -> None:
    example = body_example(spec, path)
    assert SCHEMAS[path].load(example)
    assert complaints(spec, media(spec, path)["schema"], example) == []


@writes
def test_an_optional_field_may_be_null_and_a_required_one_may_not(path: str, spec: Spec) -> None:
    example, schema = body_example(spec, path), media(spec, path)["schema"]
    fields, required = resolved(spec, schema)["properties"], set(resolved(spec, schema)["required"])
    assert (
        complaints(spec, schema, dict.fromkeys(set(fields) - required) | {name: example[name] for name in required})
        == []
    )
    assert [name for name in required if not complaints(spec, schema, {**example, name: None})] == []
    assert required == {name for name, field in SCHEMAS[path].fields.items() if field.required}


@writes
def test_an_example_is_accepted_and_answered_as_described(
    path: str,
    spec: Spec,
    client: FlaskClient,
    register: Callable[..., Agent],
    access: Callable[..., dict[str, str]],
    enrollment: Callable[..., str],
    bearer: Callable[[str], dict[str, str]],
    rows: Callable[..., list[dict[str, Any]]],
) -> None:
    headers = bearer(enrollment()) if path == REGISTER else access(register(Agent("laptop-7f3a")))
    for expected in ({200, 201}, {200}):
        answer = client.post(path, json=body_example(spec, path), headers=headers)
        assert answer.status_code in expected, answer.text
        described = spec["paths"][path]["post"]["responses"][str(answer.status_code)]
        schema = resolved(spec, described)["content"]["application/json"]["schema"]
        assert complaints(spec, schema, answer.json) == []
        assert [result for result in answer.json.get("results", []) if result["errors"]] == []
    assert len(rows(STORED[path])) == 1


@writes
def test_a_refusal_is_as_described(path: str, spec: Spec, client: FlaskClient) -> None:
    answer = client.post(path, json={})
    described = resolved(spec, spec["paths"][path]["post"]["responses"]["401"])
    assert complaints(spec, described["content"][answer.mimetype]["schema"], answer.json) == []


@pytest.mark.skipif(not FILE.exists(), reason="docs/openapi.yaml is not there")
def test_docs_openapi_yaml_matches_the_code(app: Watchpost, spec: Spec) -> None:
    result = app.test_cli_runner().invoke(args=["spec", "--check"])
    assert result.exit_code == 0, result.stderr
    assert yaml.safe_load(FILE.read_text(encoding="utf-8")) == spec


# The pages


@pytest.fixture
def page(client: FlaskClient) -> str:
    answer = client.get("/docs")
    assert (answer.status_code, answer.mimetype) == (200, "text/html")
    return answer.text


def test_the_docs_page_needs_no_other_host(page: str) -> None:
    assert re.findall(r"""(?i)https?:[^\s"'<>]*|["'(=]\s*//[^\s"'<>]*""", page) == []


@pytest.mark.parametrize("address", ["https://host.example/docs", "https://host.example/watch/post/docs"])
def test_the_page_works_under_a_sub_path(address: str, page: str, client: FlaskClient, spec: Spec) -> None:
    """A proxy takes the sub-path away, so the page and the description must not name a path from the root."""
    prefix = urlsplit(address).path.removesuffix("/docs")
    config = json.loads(re.search(r"override_config = (\{.*\});", page)[1])
    names = [*re.findall(r"""(?:src|href)=["']([^"']+)["']""", page), config["url"]]
    assert len(names) >= 4
    for name in names:
        path = urlsplit(urljoin(address, name)).path
        assert path.startswith(prefix + "/"), name
        assert client.get(path.removeprefix(prefix)).status_code == 200, name
    (server,) = spec["servers"]
    assert urljoin(urljoin(address, config["url"]), server["url"]) == address.removesuffix("docs")


def test_every_file_of_the_docs_page_is_served(page: str, client: FlaskClient) -> None:
    linked = re.findall(r"""(?:src|href)=["']([^"']+)["']""", page)
    assert {name.rpartition(".")[2] for name in linked} >= {"css", "js"}
    answers = {name: client.get(urljoin("/docs", name)) for name in linked}
    assert {name: answer.status_code for name, answer in answers.items()} == dict.fromkeys(linked, 200)
    assert {answer.mimetype for name, answer in answers.items() if name.endswith(".css")} == {"text/css"}
    assert all("javascript" in answer.mimetype for name, answer in answers.items() if name.endswith(".js"))
    assert all(answer.data for answer in answers.values())


@pytest.mark.parametrize(
    "name",
    ["nothing.js", "", "../__init__.py", "..%2f__init__.py", "%2e%2e/__init__.py", "/etc/passwd", "..\\__init__.py"],
)
def test_the_docs_page_serves_no_other_file(name: str, client: FlaskClient) -> None:
    assert client.get(f"/docs/static/{name}").status_code == 404
