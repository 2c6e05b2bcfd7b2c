"""Optimizers by name, with their hyper-parameters inside the state, where a sweep can trace them and an error can
name them."""

from __future__ import annotations

from collections.abc import Callable

import jax
import optax

from jaxkit import check

OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "sgd": optax.sgd,
    "momentum": lambda learning_rate, momentum=0.9, nesterov=False: optax.sgd(learning_rate, momentum, nesterov),
    "adam": optax.adam,
    "adamw": optax.adamw,
    "rmsprop": optax.rmsprop,
    "lion": optax.lion,
}


def optimizer(
    name: str, learning_rate: float | optax.Schedule | jax.Array, **settings: float
) -> optax.GradientTransformation:
    """``OPTIMIZERS[name]`` with every hyper-parameter an array in its state (``optax.inject_hyperparams``).

    Args:
      name: any case.
      learning_rate: a number, a traced array, or a schedule from steps to a number.
      settings: the optimizer's own (``momentum``, ``weight_decay``, ``b1``, ...).

    Raises:
      UsageError: unknown name, unknown setting, or a learning rate that is not above 0.
    """
    make = OPTIMIZERS[check.choose("optimizer", name, OPTIMIZERS)]
    if not callable(learning_rate):
        check.positive("learning_rate", learning_rate)
    try:
        return optax.inject_hyperparams(make)(learning_rate=learning_rate, **settings)
    except TypeError as error:
        raise check.UsageError(f"optimizer {name!r} does not take these settings: {error}") from None


def cosine(learning_rate: float, steps: int, warmup: float = 0.0, final: float = 0.0) -> optax.Schedule:
    """Linear warm-up over the share ``warmup`` of ``steps``, then a half cosine down to ``final`` times the learning
    rate.

    lr(t) = lr (final + (1 - final) (1 + cos(pi t' / T')) / 2) with t', T' counted from the end of the warm-up
    (Loshchilov and Hutter 2017).
    """
    check.positive("learning_rate", learning_rate), check.count("steps", steps)
    check.fraction("warmup", warmup), check.fraction("final", final)
    ramp = round(warmup * steps)
    fall = optax.cosine_decay_schedule(learning_rate, max(steps - ramp, 1), final)
    return optax.join_schedules([optax.linear_schedule(0.0, learning_rate, ramp), fall], [ramp]) if ramp else fall


def learning_rate_of(state: object) -> float | None:
    """The learning rate that a state holds (an ``optimizer`` of this room puts it there); None where it holds none."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        if path and getattr(path[-1], "key", None) == "learning_rate":
            return float(leaf.reshape(-1)[0])
    return None
