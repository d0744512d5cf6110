"""The OpenAPI 3.1 description, made from the code: `/openapi.json`, `/docs`, `docs/openapi.yaml`."""

from __future__ import annotations

import http
import threading
from collections.abc import Callable
from copy import deepcopy
from functools import cache
from importlib.resources import files
from typing import Any, TypeVar

import marshmallow as ma
import orjson
import yaml
from flask import Blueprint, Flask, Response, send_from_directory
from flask_smorest import Api as SmorestApi
from flask_smorest import Blueprint as SmorestBlueprint
from flask_smorest.utils import deepupdate

from app import __version__
from app.api import problems, scopes

View = TypeVar("View", bound=Callable[..., Any])

TITLE = "Watchpost"
ABOUT = """\
The write API behind a dashboard that shows how a company uses AI tools. A native agent on each laptop and an extension
in each browser profile POST reports.

Every 2xx is sent after the database has committed. A client repeats a request after 429, 503 or a broken connection; a
repeated report is stored once. Bodies may be compressed with `Content-Encoding: gzip`.
"""


def documented(**operation: Any) -> Callable[[View], View]:
    """Add to the description of a view, without a wrapper that each request would pass through."""

    def decorate(view: View) -> View:
        info = deepcopy(getattr(view, "_apidoc", {}))
        info["manual_doc"] = deepupdate(info.get("manual_doc", {}), operation)
        view._apidoc = info  # type: ignore[attr-defined]
        return view

    return decorate


def refusals(repeated: type[ma.Schema] | None = None, *also: int) -> Callable[[View], View]:
    """Describe what a write may answer besides 201: 200 with this schema, and problems."""
    responses: dict[str, Any] = {str(status): _problem(status) for status in (400, 413, 415, 500, 503, *also)}
    if repeated is not None:
        content = {"application/json": {"schema": repeated()}}
        responses["200"] = {"description": "Stored before, or updated.", "content": content}
    return documented(responses=responses)


def _problem(status: int) -> str:
    return f"Problem{status}"


class Api(SmorestApi):
    """flask-smorest's Api with RFC 9457 problems and without an error handler of its own."""

    DEFAULT_ERROR_RESPONSE_NAME = None
    ERROR_SCHEMA = problems.ProblemSchema

    def __init__(self, app: Flask) -> None:
        self._described: Any = None
        self._undescribed: list[SmorestBlueprint] = []
        self._describing = threading.Lock()
        super().__init__(app)

    def register_blueprint(self, blp: SmorestBlueprint) -> None:
        """Register a blueprint. It is described when the description is needed: that takes longer than a start."""
        self._app.extensions["flask-smorest"]["blp_name_to_api"][blp.name] = self
        self._app.register_blueprint(blp)
        self._undescribed.append(blp)

    @property
    def spec(self) -> Any:
        with self._describing:
            for blp in self._undescribed:
                blp.register_views_in_doc(self, self._app, self._described, name=blp.name, parameters=None)
                self._described.tag({"name": blp.name, "description": blp.description})
            self._undescribed.clear()
        return self._described

    @spec.setter
    def spec(self, value: Any) -> None:
        self._described = value

    def _register_error_handlers(self) -> None:
        """app.api.problems handles errors."""

    def _register_responses(self) -> None:
        headers = {
            401: {"WWW-Authenticate": "The challenge of RFC 6750."},
            429: {"Retry-After": "Seconds to wait."},
            503: {"Retry-After": "Seconds to wait."},
        }
        self.spec.components.schema("Problem", schema=problems.ProblemSchema)
        for status in (400, 401, 403, 404, 405, 409, 413, 415, 429, 500, 503):
            response: dict[str, Any] = {
                "description": http.HTTPStatus(status).phrase,
                "content": {problems.MEDIA_TYPE: {"schema": problems.ProblemSchema}},
            }
            if status in headers:
                response["headers"] = {
                    name: {"description": text, "schema": {"type": "string"}} for name, text in headers[status].items()
                }
            self.spec.components.response(_problem(status), response)
            # flask-smorest refers to a refused body by this name.
            if status == 400:
                self.spec.components.response(http.HTTPStatus(status).name, response)


def _json_schema(self: Any, field: ma.fields.Field[Any], **kwargs: Any) -> dict[str, Any]:
    """The JSON schema that a field type of ours declares."""
    own = getattr(field, "json_schema", None)
    if own is None:
        return {}
    schema: dict[str, Any] = dict(own)
    if field.allow_none:
        types = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        schema["type"] = [*types, "null"]
        if "enum" in schema:
            schema["enum"] = [*schema["enum"], None]
    return schema


def init_app(app: Flask, blueprints: list[Any]) -> None:
    app.config.update(
        API_TITLE=TITLE,
        API_VERSION=__version__,
        OPENAPI_VERSION="3.1.0",
        OPENAPI_URL_PREFIX="/",
        OPENAPI_SWAGGER_UI_PATH="/docs",
        # Relative to /docs, so that a proxy may serve us under a path of its own.
        OPENAPI_SWAGGER_UI_URL="docs/static/",
        OPENAPI_SWAGGER_UI_CONFIG={"url": "openapi.json", "validatorUrl": None, "deepLinking": True},
        API_SPEC_OPTIONS={
            "info": {"description": ABOUT, "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"}},
            "servers": [{"url": "./", "description": "The folder of this description."}],
            "security": [],
        },
    )
    api = Api(app)
    api.spec.components.security_scheme(
        "bearer",
        {
            "type": "http",
            "scheme": "bearer",
            "bearerFormat": "JWT",
            "description": "An access token (RFC 9068), or to register a device an enrolment token. Scopes: "
            + ", ".join((scopes.REGISTER, *scopes.WRITE, *scopes.READ)),
        },
    )
    api.ma_plugin.converter.add_attribute_function(_json_schema)
    for blueprint in blueprints:
        api.register_blueprint(blueprint)
    app.extensions["api"] = api

    @cache
    def description() -> bytes:
        return orjson.dumps(api.spec.to_dict())

    # flask-smorest would make it anew for each request, and anybody may ask for it.
    app.view_functions["api-docs.openapi_json"] = lambda: Response(description(), mimetype="application/json")

    pages = Blueprint("docs", __name__)
    folder = str(files("flask_swagger_ui") / "dist")

    @pages.get("/docs/static/<path:name>")
    def static(name: str) -> Response:
        """A file of Swagger UI, from the package flask-swagger-ui, so that the page needs no other host."""
        return send_from_directory(folder, name, max_age=86400)

    app.register_blueprint(pages)


def as_yaml(app: Flask) -> str:
    """The description as docs/openapi.yaml holds it."""
    spec = app.extensions["api"].spec.to_dict()
    return str(yaml.safe_dump(spec, sort_keys=False, allow_unicode=True, width=120))
