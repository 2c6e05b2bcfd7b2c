"""Cases of ``jaxkit.class_incremental``: digits 0 to 3 in two tasks."""

from __future__ import annotations

import functools
from typing import Any

import jax.numpy as jnp
from sklearn.datasets import load_digits

from jaxkit import methods
from jaxkit.class_incremental import make_stream
from jaxkit.learner import Data
from jaxkit.networks import mlp
from jaxkit.training import optimizer
from tests.conformance.case import Case


@functools.lru_cache
def four_digits() -> Data:
    """About 240 of scikit-learn's digits, those of classes 0 to 3."""
    x, y = load_digits(return_X_y=True)
    kept = y[:600] < 4
    return {"x": jnp.asarray(x[:600][kept] / 16.0, jnp.float32), "y": jnp.asarray(y[:600][kept], jnp.int32)}


def one(
    name: str, fall: tuple[float, ...] = (0.3, 0.3), swept: dict[str, tuple[float, float]] | None = None, **fixed: Any
) -> Case:
    """``class_incremental.<name>`` with the settings ``fixed``, on an MLP with batch normalisation."""
    make = methods.find(f"class_incremental.{name}").method.make
    network = mlp(4, hidden=(16, 16), norm="batch")
    stream = make_stream(four_digits()["y"], increment=2)
    return Case(
        f"class_incremental.{name}",
        lambda **settings: make(network, optimizer("momentum", 0.1), stream=stream, batch_size=32, **fixed, **settings),
        four_digits,
        fall=fall,
        swept=swept or {},
        family="class_incremental",
    )


def cases() -> tuple[Case, ...]:
    """Replay stands for the family in ``make test``: it has exemplars, herding and both read-outs. (Methods with a
    teacher keep equal bits under a map as users compile, in ``make test-slow``, but not without optimisation.)"""
    kd = {"strength": (0.0, 5.0), "temperature": (1.0, 4.0)}
    return (
        one("replay", memory=8),
        one("wa", swept=kd, memory=8),
        one("icarl", swept={"temperature": (1.0, 4.0)}, memory=8),
        one("lwf", swept=kd),
        one("finetune"),
        one("joint"),
        one("ewc", swept={"strength": (0.0, 1e5), "most": (1e-6, 1e-3)}),
        one("si", swept={"strength": (0.0, 1.0), "damping": (1e-2, 1.0), "most": (1e-3, 1.0)}),
        one("mas", swept={"strength": (0.0, 1.0), "most": (1e-3, 1.0)}),
        # The correction has two numbers to learn, on a few rows.
        one("bic", (0.3, 0.3, 0.0), {"temperature": (1.0, 4.0)}, memory=8),
        one("lucir", swept={"strength": (0.0, 5.0), "margin": (0.0, 1.0)}, memory=8),
        one("podnet", (0.3, 0.3, 0.0), {"spatial": (0.0, 5.0), "flat": (0.0, 5.0), "margin": (0.1, 0.9)}, memory=8),
        one("der", swept={"strength": (0.0, 1.0)}, memory=8),
        one("memo", swept={"strength": (0.0, 1.0)}, memory=8),
        one("foster", (0.3, 0.3, 0.1), {**kd, "beta_boosting": (0.0, 0.999), "beta_compression": (0.0, 0.999)}, memory=8),
        one("gem", swept={"margin": (0.0, 0.5)}, memory=8),
        one("agem", memory=8),
    )
