"""The service does what its description says, whatever one makes of the description."""

from __future__ import annotations

from tests.support.conformance import examine
from tests.support.site import Site


def test_what_the_description_makes_one_send_is_answered_as_described(site: Site) -> None:
    # Few random requests beside the many that cover the schemas; the battery sends thousands.
    found = examine(site, examples=3, seed=1)
    assert found.complaints == []
    assert found.answers.total() > 300
    assert {200, 201, 400, 401, 403, 405, 415} <= set(found.answers)
