"""Cases of ``jaxkit.long_tailed``: ensembles of experts."""

from __future__ import annotations

from tests.conformance.case import Case


def cases() -> tuple[Case, ...]:
    return ()
