"""Losses of one prediction against one target, per row: [batch]."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Num

from jaxkit import check

ABSENT = -1e30
"""The logit of a class that takes no part; with -inf its gradient would be NaN."""


def cross_entropy(
    logits: Float[Array, "*batch classes"], labels: Int[Array, "*batch"], *, smoothing: float | int | Array = 0.0
) -> Float[Array, "*batch"]:
    """-sum_c q_c log softmax(z)_c with q = (1 - eps) onehot(y) + eps / C; eps = 0 is -log softmax(z)_y.

    Labels outside 0..C-1 are the caller's mistake and give NaN, so that it shows. (Szegedy et al. 2016, section 7.)

    Args:
      logits: z.
      labels: y.
      smoothing: eps in [0, 1]; may be traced.

    Raises:
      UsageError: eps outside [0, 1].
    """
    check.fraction("smoothing", smoothing)
    log_p = jax.nn.log_softmax(logits)
    # mode="fill" gives NaN beyond the last class; a negative label would count from the end.
    picked = jnp.take_along_axis(log_p, labels[..., None], axis=-1, mode="fill", fill_value=jnp.nan)[..., 0]
    picked = jnp.where(labels < 0, jnp.nan, picked)
    if isinstance(smoothing, (int, float)) and smoothing == 0:
        return -picked
    return -(1.0 - smoothing) * picked - smoothing * log_p.mean(-1)


def balanced_cross_entropy(
    logits: Float[Array, "*batch classes"], labels: Int[Array, "*batch"], class_counts: Num[Array, " classes"]
) -> Float[Array, "*batch"]:
    """-log( n_y e^{z_y} / sum_c n_c e^{z_c} ), the cross-entropy of z + log pi with the prior pi = n / sum n.

    A class without rows takes no part, so that classes yet to come may stand in the same logits.

    Args:
      logits: z.
      labels: y, of classes with rows.
      class_counts: n; only their ratios count. May be traced.

    Source: Ren et al. 2020, Balanced meta-softmax for long-tailed visual recognition, theorem 1.
    """
    counts = jnp.asarray(class_counts, jnp.float32)
    there = counts > 0
    log_prior = jnp.log(jnp.where(there, counts, 1.0)) - jnp.log(counts.sum())
    return cross_entropy(jnp.where(there, logits + log_prior, ABSENT), labels)


def soft_cross_entropy(
    logits: Float[Array, "*batch classes"], targets: Float[Array, "*batch classes"]
) -> Float[Array, "*batch"]:
    """-sum_c t_c log softmax(z)_c for a distribution t over classes; a class with t_c = 0 counts nothing even where
    z_c = -inf.
    """
    log_p = jax.nn.log_softmax(logits)
    return -jnp.sum(jnp.where(targets == 0, 0.0, targets * jnp.where(targets == 0, 0.0, log_p)), axis=-1)


def binary_cross_entropy(logits: Float[Array, "*batch"], targets: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """-t log s(z) - (1 - t) log s(-z), s the logistic function, for t in [0, 1]."""
    return -targets * jax.nn.log_sigmoid(logits) - (1.0 - targets) * jax.nn.log_sigmoid(-logits)


def squared_error(
    predictions: Float[Array, " batch *outputs"], targets: Float[Array, " batch *outputs"]
) -> Float[Array, " batch"]:
    """The mean of (m - t)^2 over all axes but the first."""
    return jnp.square(predictions - targets).reshape(len(predictions), -1).mean(-1)
