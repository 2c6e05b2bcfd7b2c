"""Cases of ``jaxkit.long_tailed``: information augmentation."""

from __future__ import annotations

from tests.conformance.case import Case


def cases() -> tuple[Case, ...]:
    return ()
