"""Predictions for many rows, and the measurement of a state during training."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxkit import check
from jaxkit.learner import Data, Outputs

PyTree = Any


class Evaluation(NamedTuple):
    """What ``fit`` measures between dispatches.

    Attributes:
      data: the rows to predict, with what ``measure`` compares them to.
      measure: ``(outputs, data) -> dict of scalars``, pure.
      every: steps between measurements; None measures at the end of each stage only, where every fit measures anyway.
      best: the metric whose best state ``Fit.best`` keeps; None keeps none.
      higher: whether more of it is better.
      batch_size: rows predicted at once; None predicts all rows as one batch (a graph).
    """

    data: Data
    measure: Callable[[Outputs, Data], dict[str, jax.Array]]
    every: int | None = None
    best: str | None = None
    higher: bool = True
    batch_size: int | None = 1024


def predict_all(predict: Callable, state: PyTree, x: PyTree, batch_size: int | None = 1024) -> Outputs:
    """``predict(state, batch)`` for all rows of ``x``, ``batch_size`` at a time; the padding of the last batch is cut
    off."""
    rows = int(jax.tree.leaves(x)[0].shape[0])
    if batch_size is None:
        return predict(state, {"x": x})
    batch_size = min(check.count("batch_size", batch_size), rows)
    chunks = -(-rows // batch_size)
    if chunks == 1:
        return predict(state, {"x": x})
    padded = chunks * batch_size - rows

    def split(leaf: Any) -> jax.Array:
        filled = jnp.concatenate([leaf, jnp.broadcast_to(leaf[:1], (padded, *leaf.shape[1:]))]) if padded else leaf
        return filled.reshape(chunks, batch_size, *leaf.shape[1:])

    valid = (jnp.arange(chunks * batch_size) < rows).reshape(chunks, batch_size)
    outputs = jax.lax.map(lambda batch: predict(state, batch), {"x": jax.tree.map(split, x), "valid": valid})
    return jax.tree.map(lambda leaf: leaf.reshape(chunks * batch_size, *leaf.shape[2:])[:rows], outputs)


@functools.lru_cache(maxsize=64)
def compile_evaluation(
    predict: Callable, measure: Callable, batch_size: int | None, seeds: int | None, per_seed: bool = False
) -> Callable:
    """``(state, data) -> dict of scalars`` in one dispatch; [seeds] each when the state has a seed axis, which the data
    has too with ``per_seed``."""

    def one(state: PyTree, data: Data) -> dict[str, jax.Array]:
        return measure(predict_all(predict, state, data["x"], batch_size), data)

    if seeds is None:
        return jax.jit(one)
    if per_seed:
        return jax.jit(lambda state, data: jax.lax.map(lambda own: one(*own), (state, data)))
    return jax.jit(lambda state, data: jax.lax.map(lambda s: one(s, data), state))
