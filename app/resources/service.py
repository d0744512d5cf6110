"""Whether the service lives, and whether it can work."""

from __future__ import annotations

import contextlib
from typing import Any

from flask import Response, jsonify
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4

from app import __version__
from app.api import problems
from app.api.bodies import Blueprint
from app.api.openapi import documented
from app.auth import auth, require, token_endpoint
from app.db import DatabaseError, db, statement
from app.ingest.readiness import readiness
from app.telemetry import metrics

blp = Blueprint("service", __name__, description="Whether the service lives, and whether it can work.")

SELECT_PARTITIONS = statement("partitions/select_partitions")
_OK = {"200": {"description": "OK", "content": {"application/json": {"schema": {"type": "object"}}}}}


@blp.route("/livez")
@documented(responses=_OK)
def livez() -> Any:
    """Say that the worker runs."""
    return jsonify(status="ok", version=__version__)


@blp.route("/readyz")
@documented(responses={**_OK, "503": "Problem503"})
def readyz() -> Any:
    """Say whether the signing keys can be read and the database stores rows with the newest schema."""
    if auth.keys.fault:
        raise token_endpoint.signing_keys_unavailable()
    if problem := problems.not_ready(*readiness.probe()):
        raise problem
    return jsonify(status="ok")


@blp.route("/metrics")
@require("metrics:read")
@documented(
    responses={
        "200": {"description": "OK", "content": {"text/plain": {"schema": {"type": "string"}}}},
        "500": "Problem500",
    }
)
def read_metrics() -> Response:
    """Count requests, rows, waits and refusals, and look at the database's state, for Prometheus."""
    pending, partitions = None, []
    # What can't be found out is left out; the counts matter most while the database is away.
    with contextlib.suppress(DatabaseError):
        pending = readiness.look().pending
        partitions = db.run(SELECT_PARTITIONS)
    return Response(metrics.exposition(metrics.State(pending, partitions)), content_type=CONTENT_TYPE_PLAIN_0_0_4)
