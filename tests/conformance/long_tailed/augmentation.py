"""Cases of ``jaxkit.long_tailed``: information augmentation."""

from __future__ import annotations

import functools

import numpy as np

from jaxkit import methods
from jaxkit.learner import Data
from jaxkit.networks import mlp
from jaxkit.training import optimizer
from tests.conformance.case import Case
from tests.conformance.long_tailed.toy import long_tailed_digits, one

PARTNERS = "the partners of rows are drawn anew for another number of rows"


@functools.lru_cache
def pictures() -> Data:
    """The digits as pictures of 8 x 8, which the toy's network flattens."""
    data = long_tailed_digits()
    return {**data, "x": data["x"].reshape(-1, 8, 8, 1)}


def translations() -> Case:
    """M2m whose g need not be sure: in the few steps of a case it cannot be."""
    make, counts = methods.find("long_tailed.m2m").method.make, np.bincount(long_tailed_digits()["y"])
    given = {"gamma": 0.1, "rate": 0.3, "translation_steps": 3, "batch_size": 32, "deferred": 0.5}
    return Case(
        "long_tailed.m2m",
        lambda **settings: make(
            mlp(10, hidden=(16,), norm="batch"),
            optimizer("momentum", 0.1),
            class_counts=counts,
            **{**given, **settings},
        ),
        long_tailed_digits,
        fall=(0.3, 0.3, 0.1),
        swept={"gamma": (0.1, 0.3), "away": (0.0, 0.5)},
        family="long_tailed",
        exempt={"padding absent": PARTNERS},
    )


def cases() -> tuple[Case, ...]:
    """Methods that mix rows, paste, translate or generate them, or pre-train without labels."""
    mixed = {"exempt": {"padding absent": PARTNERS}}
    return (
        one("mixup", (0.2,), {"alpha": (0.2, 1.0)})._replace(**mixed),
        one("remix", (0.2,), {"alpha": (0.2, 1.0), "kappa": (1.5, 10.0), "tau": (0.1, 0.5)})._replace(**mixed),
        one("cmo", (0.2,), {"alpha": (0.5, 1.0), "probability": (0.1, 0.9)}, batch_size=32)._replace(data=pictures),
        translations(),
        one("ssp", (0.1, 0.3), {"noise": (0.05, 0.2), "temperature": (0.2, 0.5)}, batch_size=32, projection=8),
        one(
            "rsg",
            (0.3, 0.05),
            {"centre_weight": (0.0, 0.1), "vector_weight": (0.0, 0.01)},
            batch_size=32,
            width=8,
            deferred=0.5,
        ),
        one(
            "mislas",
            (0.2, 0.05),
            {"smooth_head": (0.0, 0.3), "head_rate": (0.05, 0.5)},
            batch_size=32,
            classifier_share=0.5,
        )._replace(**mixed),
    )
