"""The service does what its description says, whatever one makes of the description."""

from __future__ import annotations

from tests.support.conformance import examine
from tests.support.site import Site


def test_the_service_conforms_to_its_openapi_description(site: Site) -> None:
    # Few random requests beside the many that cover the schemas; `make battery` sends thousands.
    found = examine(site, examples=12, seed=1)
    assert found.complaints == []
    assert found.answers.total() > 300
    assert {200, 201, 400, 401, 403, 405, 415} <= set(found.answers)
