"""The toy problem of long-tailed learning, and a case on it."""

from __future__ import annotations

import functools
from typing import Any

import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_digits

from jaxkit import methods
from jaxkit.data.shifts import long_tail_counts
from jaxkit.learner import Data, Network
from jaxkit.networks import mlp
from jaxkit.training import optimizer
from tests.conformance.case import Case


@functools.lru_cache
def long_tailed_digits() -> Data:
    """321 of scikit-learn's digits: 120 of class 0 to 2 of class 9."""
    x, y = load_digits(return_X_y=True)
    kept = np.concatenate([np.flatnonzero(y == c)[:count] for c, count in enumerate(long_tail_counts(10, 120, 60.0))])
    return {"x": jnp.asarray(x[kept] / 16.0, jnp.float32), "y": jnp.asarray(y[kept], jnp.int32)}


def one(
    name: str,
    fall: tuple[float, ...] = (0.3,),
    swept: dict[str, tuple[float, float]] | None = None,
    network: Network | None = None,
    **fixed: Any,
) -> Case:
    """``long_tailed.<name>`` with the settings ``fixed``, by default on an MLP with batch normalisation."""
    make = methods.find(f"long_tailed.{name}").method.make
    network = mlp(10, hidden=(16,), norm="batch") if network is None else network
    counts = np.bincount(long_tailed_digits()["y"])
    return Case(
        f"long_tailed.{name}",
        lambda **settings: make(network, optimizer("momentum", 0.1), class_counts=counts, **fixed, **settings),
        long_tailed_digits,
        fall=fall,
        swept=swept or {},
        family="long_tailed",
    )
