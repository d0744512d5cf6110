"""How PostgreSQL runs a statement: its plan, for parameters of the types that the service sends."""

from __future__ import annotations

import json
import re
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
from psycopg import sql
from psycopg.adapt import PyFormat, Transformer
from psycopg.rows import tuple_row

from app.db.statements import Statement

Plan = dict[str, Any]
ID = uuid.UUID("00000000-0000-8000-8000-000000000001")


def examples(rows: int = 1, first: int = 1) -> dict[str, Any]:
    """A value for each parameter that a statement has. A set has so many rows, each of a device, from this one on."""
    now, today = int(time.time() * 1000), datetime.now(UTC).date()
    return {
        "rows": json.dumps([_row(ordinal, first + ordinal, now) for ordinal in range(rows)]),
        "instances_per_device": 200,
        "device_id": "device-1",
        "instance_id": "instance-1",
        "enrollment_id": ID,
        "dummy_key": "pem",
        "jti": "jti",
        "use_id": ID,
        "expires_at": time.time() + 60,
        "label": "label",
        "max_uses": 1,
        "after": "device-1",
        "amount": 100,
        "after_time": datetime.now(UTC) - timedelta(days=1),
        "table_name": "prompts",
        "after_ms": now - 150 * 86_400_000,
        "after_device": "device-1",
        "after_id": ID,
        "username": "anna",
        "seconds": 90 * 86_400,
        "part": "prompts_200001",
        "expired_before_ms": now - 120 * 86_400_000,
        "is_dry_run": True,
        "audit_id": ID,
        "actor": "anna",
        "action": "device.revoke",
        "target": "device-1",
        "details": None,
        "hold_id": ID,
        "from_ms": now,
        "to_ms": now + 1,
        "reason": "reason",
        "months_ahead": 3,
        "months_back": 1,
        "month": today + timedelta(days=60),
        "months": f"{{{today}}}",
        "rebuild": 0,
    }


def _row(ordinal: int, number: int, now: int) -> dict[str, Any]:
    id = str(uuid.UUID(int=ID.int + ordinal))
    return {
        "ordinal": ordinal,
        "device_id": f"device-{number}",
        "instance_id": f"instance-{number}",
        "timestamp": now - ordinal,
        "reported_at": now - ordinal,
        "detected_at": now - ordinal,
        "prompt_id": id,
        "status_id": id,
        "event_id": id,
        "enrollment_id": str(ID),
        "key_thumbprint": f"thumbprint-{number}",
        "public_key_pem": "pem",
        "hostname": "host",
        "site": "site",
        "url": "url",
        "prompt": "prompt",
        "status": "enabled",
        "event_type": "tamper_detected",
        "severity": "low",
    }


def explain(
    connection: psycopg.Connection[Any], wanted: Statement, parameters: dict[str, Any], generic: bool, options: str
) -> Any:
    """Ask for a plan, and return what EXPLAIN with these options returns: a text, or JSON.

    generic: the plan for any values, which a prepared statement may get from its sixth use on; else the one for these.
    Raises psycopg.Error, such as InsufficientPrivilege when the connection's role may not run the statement.
    """
    names = list(dict.fromkeys(re.findall(r"%\((\w+)\)s", wanted.text)))
    values = [parameters[name] for name in names]
    types = Transformer(connection)
    types.dump_sequence(values, [PyFormat.AUTO] * len(values))
    given = sql.SQL("({})").format(sql.SQL(", ").join(map(sql.Literal, values))) if names else sql.SQL("")
    text = re.sub(r"%\((\w+)\)s", lambda found: f"${names.index(found[1]) + 1}", wanted.text).replace("%%", "%")
    known = [connection.adapters.types.get(oid) for oid in types.types or ()]
    declared = f" ({', '.join(type.name if type else 'unknown' for type in known)})" if names else ""
    with connection.transaction(force_rollback=True), psycopg.ClientCursor(connection, row_factory=tuple_row) as cursor:
        # What is prepared outlives a transaction.
        cursor.execute("DEALLOCATE ALL")
        cursor.execute(f"SET LOCAL plan_cache_mode = force_{'generic' if generic else 'custom'}_plan")
        cursor.execute(f"PREPARE explained{declared} AS {text}")
        found = cursor.execute(sql.SQL(f"EXPLAIN ({options}) EXECUTE explained") + given).fetchall()
    lines = [line[0] for line in found]
    return lines[0][0]["Plan"] if isinstance(lines[0], list) else "\n".join(lines)


def nodes(plan: Plan) -> Iterator[Plan]:
    """Every node of a plan in JSON."""
    yield plan
    for child in plan.get("Plans", []):
        yield from nodes(child)
