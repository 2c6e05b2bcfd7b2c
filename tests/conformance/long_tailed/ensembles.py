"""Cases of ``jaxkit.long_tailed``: ensembles of experts."""

from __future__ import annotations

from jaxkit.long_tailed.ensembles import with_experts
from jaxkit.networks import mlp
from tests.conformance.case import Case
from tests.conformance.long_tailed.toy import one


def cases() -> tuple[Case, ...]:
    """Copies of a network, and for ResLT heads on one backbone."""
    shared = with_experts(mlp(10, hidden=(16,), norm="batch"), 3)
    routed = {"experts": 2, "deferred": 0.5, "router": True, "router_share": 1 / 3}
    return (
        # The second stage goes on with what the first has learnt, and the third has a loss of its own.
        one("ride", (0.3, 0.05, 0.3), {"diversity": (0.0, 0.2)}, batch_size=32, **routed),
        one("sade", swept={"tau": (0.0, 2.0)}),
        one("reslt", swept={"beta": (0.2, 0.99)}, network=shared, experts=None),
        one("bbn", batch_size=32, total_steps=60),
        one("lfme", swept={"temperature": (1.0, 4.0)}, batch_size=32, total_steps=30),
    )
