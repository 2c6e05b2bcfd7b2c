"""Cases of ``jaxkit.long_tailed``: the losses and the decoupled methods."""

from __future__ import annotations

from tests.conformance.case import Case
from tests.conformance.long_tailed.toy import one


def cases() -> tuple[Case, ...]:
    """The losses and the decoupled methods."""
    margin = {"max_margin": (0.0, 0.5), "scale": (10.0, 30.0)}
    return (
        one("balanced_softmax"),
        one("softmax"),
        one("weighted_softmax"),
        one("focal", swept={"gamma": (0.5, 2.0)}),
        one("class_balanced", swept={"beta": (0.0, 0.999)}),
        one("ldam", swept=margin),
        # The second stage goes on with what the first has learnt.
        one("ldam_drw", (0.3, 0.05), {**margin, "beta": (0.0, 0.999)}, batch_size=32, deferred=0.5),
        one("esql", swept={"gamma": (0.1, 0.9), "threshold": (0.01, 0.1)}),
        one("lade", swept={"alpha": (0.0, 0.1), "penalty": (0.0, 0.1)}),
        one("logit_adjusted", swept={"tau": (0.0, 1.5)}),
        one("vector_scaling", swept={"gamma": (0.0, 0.3), "tau": (0.0, 1.5)}),
        one("seesaw", swept={"p": (0.0, 0.8), "q": (0.0, 2.0)}),
        one("class_balanced_sampling", batch_size=32),
        one("square_root_sampling", batch_size=32),
        one("progressive_sampling", batch_size=32, total_steps=60),
        one("crt", batch_size=32, classifier_share=0.5),
        # A scale for each class changes little where the backbone and the head do not.
        one("lws", (0.3, 0.1), batch_size=32, classifier_share=0.5),
        one("tau_norm", swept={"tau": (0.0, 1.0)}, batch_size=32),
        one("ncm", batch_size=32),
    )
