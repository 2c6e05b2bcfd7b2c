"""Cases of ``jaxkit.long_tailed``: representation learning and classifier design."""

from __future__ import annotations

from jaxkit.networks import mlp
from tests.conformance.case import Case
from tests.conformance.long_tailed.toy import one


def cases() -> tuple[Case, ...]:
    """The normalised classifiers, the memory, the centres, and the re-calibrated posterior."""
    heads = {"alpha": (0.0, 3.0), "tau": (8.0, 16.0), "gamma": (0.01, 0.5)}
    contrast = {"alpha": (0.01, 0.2), "temperature": (0.07, 0.5)}
    layered = mlp(10, hidden=(16,), norm="layer")
    return (
        one("cosine_classifier", swept={"scale": (8.0, 16.0)}),
        one("de_confound", swept=heads),
        one("oltr", batch_size=32, memory_share=0.5),
        # The denominator grows with the keys while the queue fills. A cosine over 0.07 enlarges what batch statistics
        # summed in another order differ by, in 20 steps to 1.6e-5.
        one("paco", (0.1,), contrast, layered, batch_size=32, dim=8, queue_size=64, key_momentum=0.9),
        one("uno_ic", swept={"beta": (0.0, 1.0)}, batch_size=32),
    )
