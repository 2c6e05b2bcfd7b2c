"""Regularisers: of parameters, of predictions, and of the distance between two sets of features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxkit import check
from jaxkit.losses.vectors import clear, row_weights, squared_distances


def l2(params: Any) -> Float[Array, ""]:
    """(1/2) sum |w|^2 over all leaves; its gradient is w."""
    return 0.5 * sum((jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(params)), jnp.zeros(()))


def entropy(logits: Float[Array, "*batch classes"]) -> Float[Array, "*batch"]:
    """-sum_c p_c log p_c with p = softmax(z), in nats (Grandvalet and Bengio 2005). A class with z_c = -inf counts
    nothing.
    """
    log_p = jax.nn.log_softmax(logits)
    return -jnp.sum(jnp.exp(log_p) * jnp.where(jnp.isfinite(log_p), log_p, 0.0), axis=-1)


def mmd(
    x: Float[Array, "n features"],
    y: Float[Array, "m features"],
    *,
    gammas: Sequence[float] | Float[Array, " kernels"] = (0.001, 0.01, 0.1, 1.0, 10.0, 100.0, 1000.0),
    valid_x: Bool[Array, " n"] | None = None,
    valid_y: Bool[Array, " m"] | None = None,
) -> Float[Array, ""]:
    """The squared maximum mean discrepancy, biased estimate (Gretton et al. 2012, eq. 5).

    mean k(x, x') + mean k(y, y') - 2 mean k(x, y), with k(a, b) = sum_g exp(-g |a - b|^2) over ``gammas`` (those of
    DomainBed by default). It is 0 for equal sets and never negative but by rounding. A set without valid rows gives
    0.

    Raises:
      UsageError: a gamma that is not positive.
    """
    if not isinstance(gammas, jax.Array):
        for gamma in gammas:
            check.positive("gamma", gamma)
    weights_x, weights_y = row_weights(len(x), valid_x), row_weights(len(y), valid_y)
    x, y = clear(x, valid_x), clear(y, valid_y)
    gammas = jnp.asarray(gammas, x.dtype)

    def mean(a, b, weights_a, weights_b):
        kernel = jnp.exp(-gammas[:, None, None] * squared_distances(a, b)).sum(0)
        return weights_a @ kernel @ weights_b / jnp.maximum(weights_a.sum() * weights_b.sum(), 1.0)

    between = mean(x, y, weights_x, weights_y)
    within = mean(x, x, weights_x, weights_x) + mean(y, y, weights_y, weights_y)
    both = (weights_x.sum() > 0) & (weights_y.sum() > 0)
    return jnp.where(both, within - 2.0 * between, 0.0)


def coral(
    x: Float[Array, "n features"],
    y: Float[Array, "m features"],
    *,
    valid_x: Bool[Array, " n"] | None = None,
    valid_y: Bool[Array, " m"] | None = None,
) -> Float[Array, ""]:
    """|C_x - C_y|_F^2 / (4 d^2), C the sample covariance with divisor n - 1 (Sun and Saenko 2016, eq. 1).

    A set of fewer than two valid rows has the covariance 0.
    """
    features = x.shape[-1]
    difference = _covariance(x, valid_x) - _covariance(y, valid_y)
    return jnp.sum(jnp.square(difference)) / (4.0 * features**2)


def _covariance(x, valid):
    weights = row_weights(len(x), valid)
    x = clear(x, valid)
    total = weights.sum()
    centred = (x - weights @ x / jnp.maximum(total, 1.0)) * weights[:, None]
    return centred.T @ centred / jnp.maximum(total - 1.0, 1.0)


def centre(
    features: Float[Array, "batch features"], labels: Int[Array, " batch"], centres: Float[Array, "classes features"]
) -> Float[Array, " batch"]:
    """(1/2) |f_i - c_{y_i}|^2, per row (Wen et al. 2016, eq. 2); centres are trained, or moved by the caller."""
    return 0.5 * jnp.square(features - centres[labels]).sum(-1)
