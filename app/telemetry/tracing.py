"""Traces by OpenTelemetry, sent over OTLP/HTTP: a span for each request under /api/ and for each of its statements.

Imported only when a collector is configured; OpenTelemetry's own variables (OTEL_*) configure the rest. No span has a
body, a parameter, a token, a host or an address, nor the text of an error, which may quote a row.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from flask import Flask
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.environment_variables import OTEL_SERVICE_NAME
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExportResult
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from werkzeug.exceptions import HTTPException

from app.telemetry import request_log

log = logging.getLogger(__name__)

Environ = dict[str, Any]


def init_app(app: Flask) -> None:
    """Trace the requests of an application, and the statements that its database runs for them."""
    os.environ.setdefault(OTEL_SERVICE_NAME, "watchpost")
    provider = TracerProvider(resource=Resource.create())
    provider.add_span_processor(BatchSpanProcessor(_Exporter()))
    tracer = provider.get_tracer("watchpost")
    app.extensions["db"].span = _statement_span(tracer)
    app.wsgi_app = _Requests(app, tracer)  # type: ignore[method-assign]


class _Requests:
    """The application by WSGI, with a span for each request (OpenTelemetry's conventions for HTTP servers)."""

    def __init__(self, app: Flask, tracer: trace.Tracer) -> None:
        self._app = app.wsgi_app
        self._url_map = app.url_map
        self._tracer = tracer
        self._propagator = TraceContextTextMapPropagator()

    def __call__(self, environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        path, method = environ["PATH_INFO"], environ["REQUEST_METHOD"]
        if not path.startswith("/api/"):
            return self._app(environ, start_response)
        # Of a client's trace context only the ids (W3C Trace Context): tracestate and baggage may be anything.
        parent = self._propagator.extract({"traceparent": environ.get("HTTP_TRACEPARENT", "")})
        method = method if method in request_log.METHODS else "_OTHER"
        route = self._route(path, method)
        attributes = {"http.request.method": method, **({"http.route": route} if route else {})}
        name = f"{method} {route}" if route else method
        kind = trace.SpanKind.SERVER
        with self._tracer.start_as_current_span(
            name, parent, kind, attributes, record_exception=False, set_status_on_exception=False
        ) as span:

            def begin(status: str, *more: Any) -> Any:
                code = int(status[:3])
                span.set_attribute("http.response.status_code", code)
                if code >= 500:
                    span.set_attribute("error.type", str(code))
                    span.set_status(trace.StatusCode.ERROR)
                return start_response(status, *more)

            return self._app(environ, begin)

    def _route(self, path: str, method: str) -> str | None:
        """Return the rule; a path may be anything."""
        try:
            rule, _ = self._url_map.bind("watchpost").match(path, method, return_rule=True)
        except HTTPException:
            return None
        return rule.rule


def _statement_span(tracer: trace.Tracer) -> Callable[[str], AbstractContextManager[Callable[[int], None]]]:
    """A span for each statement, named like its file (OpenTelemetry's conventions for PostgreSQL)."""

    @contextmanager
    def statement_span(name: str) -> Iterator[Callable[[int], None]]:
        attributes = {"db.system.name": "postgresql", "db.query.summary": name}
        kind = trace.SpanKind.CLIENT
        with tracer.start_as_current_span(
            name, None, kind, attributes, record_exception=False, set_status_on_exception=False
        ) as span:
            try:
                yield lambda rows: span.set_attribute("db.response.returned_rows", rows)
            except Exception as error:
                sqlstate = getattr(error, "sqlstate", None)
                span.set_attribute("error.type", sqlstate or type(error).__name__)
                if sqlstate:
                    span.set_attribute("db.response.status_code", sqlstate)
                span.set_status(trace.StatusCode.ERROR)
                raise

    return statement_span


class _Exporter(OTLPSpanExporter):
    """Logs once that the collector is away, and once that it is back; OpenTelemetry's own loggers are off."""

    _is_away = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = super().export(spans)
        is_away = result is not SpanExportResult.SUCCESS
        if is_away and not self._is_away:
            log.warning("the collector of traces is away: spans are dropped")
        elif self._is_away and not is_away:
            log.info("the collector of traces is back")
        self._is_away = is_away
        return result
