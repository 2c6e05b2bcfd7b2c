"""Cases of ``jaxkit.class_incremental``: digits 0 to 3 in two tasks."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import optax
from sklearn.datasets import load_digits

from jaxkit import methods
from jaxkit.class_incremental import make_stream
from jaxkit.learner import Data, Network
from jaxkit.networks import mlp, vit
from jaxkit.training import optimizer
from tests.conformance.case import Case


@functools.lru_cache
def four_digits() -> Data:
    """About 240 of scikit-learn's digits, those of classes 0 to 3."""
    x, y = load_digits(return_X_y=True)
    kept = y[:600] < 4
    return {"x": jnp.asarray(x[:600][kept] / 16.0, jnp.float32), "y": jnp.asarray(y[:600][kept], jnp.int32)}


def as_images() -> Data:
    """The same as images of 8x8 pixels."""
    return {**four_digits(), "x": four_digits()["x"].reshape(-1, 8, 8, 1)}


def one(
    name: str,
    fall: tuple[float, ...] = (0.3, 0.3),
    swept: dict[str, tuple[float, float]] | None = None,
    *,
    network: Network | None = None,
    descent: optax.GradientTransformation | None = None,
    data: Callable[[], Data] = four_digits,
    **fixed: Any,
) -> Case:
    """``class_incremental.<name>`` with the settings ``fixed``, on an MLP with batch normalisation unless a network is
    given."""
    make = methods.find(f"class_incremental.{name}").method.make
    network = network or mlp(4, hidden=(16, 16), norm="batch")
    descent = descent or optimizer("momentum", 0.1)
    stream = make_stream(four_digits()["y"], increment=2)
    return Case(
        f"class_incremental.{name}",
        lambda **settings: make(network, descent, stream=stream, batch_size=32, **{**fixed, **settings}),
        data,
        fall=fall,
        swept=swept or {},
        family="class_incremental",
    )


def closed(name: str, swept: dict[str, tuple[float, float]] | None = None, **fixed: Any) -> Case:
    """A method with one step for each task, in which no loss can fall."""
    reasons = {
        "retrace": "a stage is one step, and so one dispatch",
        "resume": "nothing can be interrupted within a step; test_analytic.py interrupts between tasks",
        "devices": "20 steps cannot be split over stages of one step each",
    }
    return one(name, (0.0,), swept, **fixed)._replace(steps=2, exempt=reasons)


KEY_BIAS = {"devices": "the biases of attention's keys have a gradient of rounding alone, of which Adam makes steps"}


def cases() -> tuple[Case, ...]:
    """Replay stands for the family in ``make test``: it has exemplars, herding and both read-outs. (Methods with a
    teacher keep equal bits under a map as users compile, in ``make test-slow``, but not without optimisation.)"""
    kd = {"strength": (0.0, 5.0), "temperature": (1.0, 4.0)}
    # A bias of the attention's keys has no gradient but rounding, which Adam with its usual eps turns into whole steps.
    small = {
        "network": vit(4, patch=4, width=8, depth=1, heads=2),
        "descent": optimizer("adam", 0.01, eps=1e-3),
        "data": as_images,
    }
    return (
        one("replay", memory=8),
        one("wa", swept=kd, memory=8),
        one("icarl", swept={"temperature": (1.0, 4.0)}, memory=8),
        one("lwf", swept=kd),
        one("finetune"),
        one("joint"),
        one("ewc", swept={"strength": (0.0, 1e5), "most": (1e-6, 1e-3)}),
        one("si", swept={"strength": (0.0, 1.0), "damping": (1e-2, 1.0), "most": (1e-3, 1.0)}),
        # A large importance makes more of the rounding in which devices differ.
        one("mas", swept={"strength": (0.0, 1.0), "most": (1e-3, 1.0)}, strength=0.1),
        # The correction has two numbers to learn, on a few rows.
        one("bic", (0.3, 0.3, 0.0), {"temperature": (1.0, 4.0)}, memory=8),
        one("lucir", swept={"strength": (0.0, 5.0), "margin": (0.0, 1.0)}, memory=8),
        # Of 60 steps an eighth over eight exemplars would be none, and an interruption needs some fifteen.
        one(
            "podnet",
            (0.3, 0.3, 0.0),
            {"spatial": (0.0, 5.0), "flat": (0.0, 5.0), "margin": (0.1, 0.9)},
            memory=8,
            finetune_share=12.0,
        ),
        one("der", swept={"strength": (0.0, 1.0)}, memory=8),
        one("memo", swept={"strength": (0.0, 1.0)}, memory=8),
        one(
            "foster", (0.3, 0.3, 0.1), {**kd, "beta_boosting": (0.0, 0.999), "beta_compression": (0.0, 0.999)}, memory=8
        ),
        # Each row chooses its own prompts: where the batch votes, a prediction depends on the other rows.
        one("l2p", swept={"strength": (0.0, 1.0)}, pool=4, length=2, top_k=2, batchwise=False, **small)._replace(
            exempt=KEY_BIAS
        ),
        # The finetuning has eight exemplars, which replay has learnt before; twelve epochs are three dispatches.
        one("dytox", (0.1, 0.1, 0.0), kd, memory=8, heads=2, finetune_share=12.0, **small)._replace(exempt=KEY_BIAS),
        one("gem", swept={"margin": (0.0, 0.5)}, memory=8),
        one("agem", memory=8),
        one("derpp", swept={"alpha": (0.0, 1.0), "beta": (0.0, 1.0)}, memory=8)._replace(
            exempt={
                "seeds": "under a map XLA rounds the sum of the step's three batches otherwise (3e-7 after 60 steps)"
            }
        ),
        one("fetril"),
        closed("simplecil"),
        closed("ranpac", width=24, ridges=(1.0, 10.0, 100.0)),
        closed("acil", {"ridge": (0.1, 10.0)}, width=24),
        # Distillation into four classes keeps the entropy of its targets; the cosines' scale starts at 1.
        one(
            "coil",
            (0.2, 0.05),
            {
                "epochs": (1.0, 50.0),
                "prospective_strength": (0.0, 1.0),
                "retrospective_strength": (0.0, 10.0),
                "temperature": (1.0, 4.0),
                "regulariser": (0.1, 3.0),
            },
            memory=8,
        ),
        one("rmm", (0.3, 0.3, 0.1), {"temperature": (1.0, 4.0)}, memory=8),
        one("aanets", swept={"strength": (0.0, 5.0), "margin": (0.0, 1.0)}, memory=8),
    )
