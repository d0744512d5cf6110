"""flask enrollment create | list | revoke"""

from __future__ import annotations

import time
import uuid

import click

from app.api import scopes
from app.api.text import sanitize
from app.auth import signing
from app.commands.audit import audited
from app.commands.shell import Duration, NotFound, Words, as_json, group, settings, show, show_one, with_database
from app.commands.signing import signing_keys
from app.db import owner, statement

INSERT_ENROLLMENT = statement("auth/insert_enrollment")
SELECT_ENROLLMENTS = statement("auth/select_enrollments")
REVOKE_ENROLLMENT = statement("auth/revoke_enrollment")


@group()
def enrollment() -> None:
    """Enrolment tokens: an installer ships one so that devices can register."""


@enrollment.command()
@click.option("--label", required=True, type=Words(), help="A name for people.")
@click.option("--max-uses", required=True, type=click.IntRange(1, 2**31 - 1), help="Devices that may register.")
@click.option("--expires-in", required=True, type=Duration(), help="Such as 12h or 30d.")
@as_json
@with_database
def create(label: str, max_uses: int, expires_in: int, as_json: bool) -> None:
    """Mint an enrolment token and print it. It is never shown again."""
    enrollment_id = str(uuid.uuid4())
    expires_at = int(time.time()) + expires_in
    with signing_keys() as keys:
        subject = f"enrollment:{enrollment_id}"
        token = signing.access_token(keys, settings().issuer, subject, enrollment_id, scopes.REGISTER, expires_in)
    audited(
        "enrollment.create",
        enrollment_id,
        INSERT_ENROLLMENT,
        enrollment_id=enrollment_id,
        label=sanitize(label),
        max_uses=max_uses,
        expires_at=expires_at,
    )
    if as_json:
        show_one({"enrollment_id": enrollment_id, "token": token}, as_json)
    else:
        click.echo(token)


@enrollment.command("list")
@as_json
@with_database
def list_(as_json: bool) -> None:
    """List the enrolments, newest first."""
    columns = ("enrollment_id", "label", "uses", "max_uses", "created_at", "expires_at", "revoked_at")
    show(owner.run(SELECT_ENROLLMENTS), columns, as_json)


@enrollment.command()
@click.argument("enrollment_id", metavar="ID", type=click.UUID)
@as_json
@with_database
def revoke(enrollment_id: uuid.UUID, as_json: bool) -> None:
    """Revoke an enrolment: no device can register with it. Devices already registered stay."""
    found = audited("enrollment.revoke", str(enrollment_id), REVOKE_ENROLLMENT, enrollment_id=enrollment_id)
    if not found:
        raise NotFound(f"there is no enrolment {enrollment_id}")
    show_one(found[0], as_json)
