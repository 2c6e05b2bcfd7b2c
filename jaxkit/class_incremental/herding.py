"""Herding: the exemplars whose mean follows the mean of their class most closely.

Welling 2009; Rebuffi et al. 2017, iCaRL, algorithm 4; with the details of the survey's released code.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxkit.losses.vectors import normalize


def herding(
    features: Float[Array, "rows features"],
    count: int | Int[Array, ""],
    valid: Bool[Array, " rows"] | None = None,
) -> Int[Array, " rows"]:
    """The rows of a class in the order in which herding takes them.

    With f_i = phi_i / |phi_i| and mu = mean_i f_i (not normalised again),

        p_k = argmin over rows not yet taken of | mu - (f_i + f_{p_1} + ... + f_{p_{k-1}}) / k |

    so that a prefix of the order is what herding gives for fewer exemplars.

    Args:
      features: phi, of one class, by the network without augmentation.
      count: how many to take; may be traced.
      valid: False rows are padding and never taken.

    Returns:
      int32 [rows]; entries from ``count``, or from the number of valid rows, on are 0 and mean nothing.
    """
    rows = features.shape[0]
    valid = jnp.ones((rows,), bool) if valid is None else valid
    unit = jnp.where(valid[:, None], normalize(features), 0.0)
    mean = unit.sum(0) / jnp.maximum(valid.sum(), 1)
    # With e_i = f_i - mu the distance is |e_i + e_{p_1} + ... + e_{p_{k-1}}| / k. Of its square only |e_i|^2 and twice
    # e_i's product with the sum so far differ between rows; without the mean, rows close together stay apart.
    around = unit - mean
    squares, numbers = jnp.square(around).sum(-1), jnp.arange(rows, dtype=jnp.int32)

    def take(k: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        order, free, total = carry
        distance = squares + 2.0 * jnp.dot(around, total, precision="highest")
        distance = jnp.where(free, distance, jnp.inf)
        chosen = jnp.where(distance == distance.min(), numbers, rows - 1).min()  # argmin; XLA's own is slow on a CPU
        return order.at[k].set(chosen), free & (numbers != chosen), total + around[chosen]

    start = (jnp.zeros((rows,), jnp.int32), valid, jnp.zeros_like(mean))
    return jax.lax.fori_loop(0, jnp.minimum(jnp.asarray(count, jnp.int32), valid.sum()), take, start)[0]
