"""Watchpost: the write API behind a dashboard that shows how a company uses AI tools.

One request: `resources/` (the view, read top to bottom) -> `auth/` (the guard) -> `requests.py` and `fields.py` (the
body) -> `writes.py` (the row) -> `db/` (the shared commit, one `.sql` file) -> the answer.
"""

from __future__ import annotations

import logging.config
import os
import re
from collections.abc import Callable
from typing import Any

import orjson
from flask import Flask
from flask.json.provider import DefaultJSONProvider
from flask.sessions import SecureCookieSession, SessionInterface
from flask_cors import CORS
from werkzeug.routing import MapAdapter

from app.api import openapi, problems
from app.api.bodies import MAX_BODY, Request
from app.auth import Auth, token_endpoint
from app.db import database
from app.ingest import readiness, writer
from app.ingest.fast_path import FastPath
from app.limits.rates import Limits
from app.resources import BLUEPRINTS
from app.telemetry import logging as log_config
from app.telemetry import request_log
from config import settings as config


class NoSessions(SessionInterface):
    """Clients carry tokens; nobody has a session."""

    _null = SecureCookieSession()

    def open_session(self, app: Flask, request: Any) -> SecureCookieSession:
        return self._null

    def is_null_session(self, obj: object) -> bool:
        return True


class Json(DefaultJSONProvider):
    """Flask's JSON, but answers are written by orjson."""

    sort_keys = False

    def response(self, *args: Any, **kwargs: Any) -> Any:
        body = orjson.dumps(self._prepare_response_obj(args, kwargs), option=orjson.OPT_NON_STR_KEYS)
        return self._app.response_class(body, mimetype=self.mimetype)  # type: ignore[arg-type]


class Watchpost(Flask):
    request_class = Request
    session_interface = NoSessions()
    json_provider_class = Json

    def ensure_sync(self, func: Callable[..., Any]) -> Callable[..., Any]:
        # No view is asynchronous; asking each one on every request costs as much as routing.
        return func

    def create_url_adapter(self, request: Any) -> MapAdapter | None:
        # No route depends on the host, so what a client sends as one need not be looked at.
        if request is None:
            return None
        return self.url_map.bind("watchpost", path_info=request.path, default_method=request.method)


def create_app(settings: config.Settings | None = None) -> Watchpost:
    """Make the application: settings, logs, errors, database, keys, routes, commands.

    Opens no connection and reads no key: both wait for the first use, which is after gunicorn's fork. Raises
    SettingError.
    """
    settings = settings or config.load()
    logging.config.dictConfig(log_config.config(settings.log_level))
    if settings.issuer.startswith("http://"):
        # Authlib insists on TLS otherwise. Whoever sets an http:// issuer has decided.
        os.environ["AUTHLIB_INSECURE_TRANSPORT"] = "1"

    app = Watchpost(__name__, static_folder=None)
    app.config.update(
        SETTINGS=settings,
        MAX_CONTENT_LENGTH=MAX_BODY,
        MAX_FORM_MEMORY_SIZE=MAX_BODY,
    )
    app.url_map.merge_slashes = False
    request_log.init_app(app)
    problems.init_app(app)
    database.init_app(app, settings)
    writer.init_app(app)
    readiness.init_app(app)
    Limits(settings).init_app(app)
    Auth(settings).init_app(app)
    token_endpoint.init_app(app)
    openapi.init_app(app, BLUEPRINTS)
    if settings.origins:
        CORS(
            app,
            resources=re.compile("/api/"),
            # Patterns that match a whole origin: flask-cors compares other entries without regard to case, or takes
            # them for the beginning of a match.
            origins=settings.origins,
            methods=["POST", "GET"],
            allow_headers=["Authorization", "Content-Type", "Content-Encoding", "X-Request-ID"],
            expose_headers=["X-Request-ID", "Retry-After", "WWW-Authenticate"],
            supports_credentials=False,
            # Only whom a browser asks for: each answer would name all origins otherwise.
            always_send=False,
            max_age=3600,
        )
    app.wsgi_app = FastPath(app)  # type: ignore[method-assign]
    if os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT") or os.environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"):
        # Who has no collector does without its imports too.
        from app.telemetry import tracing

        tracing.init_app(app)
    return app
