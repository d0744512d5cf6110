"""Bodies: what can be made of the description, and what it forbids."""

from __future__ import annotations

from collections.abc import Iterator

from tests.resilience import Finding, Plan
from tests.support.conformance import examine
from tests.support.site import faults, inhabited


def run(plan: Plan) -> Iterator[Finding]:
    with inhabited(plan.folder, workers=2) as site:
        for round_ in range(1, plan.rounds // 2 + 1):
            found = examine(site, examples=100, seed=round_)
            said = ", ".join(f"{status}: {count:,}" for status, count in sorted(found.answers.items()))
            failed = len(faults(site.service))
            yield Finding(
                f"requests made of the description, seed {round_}",
                f"{found.answers.total():,} requests",
                f"{said}; not as described {len(found.complaints)}, faults {failed}"
                + "".join(f"; {complaint.splitlines()[0]}" for complaint in found.complaints[:5]),
                not found.complaints and not failed and found.answers.total() > 400,
            )
