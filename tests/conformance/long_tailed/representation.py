"""Cases of ``jaxkit.long_tailed``: representation learning and classifier design."""

from __future__ import annotations

from tests.conformance.case import Case


def cases() -> tuple[Case, ...]:
    return ()
