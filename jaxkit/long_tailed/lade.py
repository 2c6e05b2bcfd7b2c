"""LADE: balanced softmax and a regulariser that holds each class's logits to an estimate of its density ratio."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxkit import check
from jaxkit.long_tailed.counts import Counts, Scalar, check_counts, check_labels, log_prior
from jaxkit.long_tailed.losses import as_labels, as_logits

# The logit of a row that does not count: its exponential is 0.
_AWAY = -1e30


def lade_regulariser(
    logits: Float[Array, "batch classes"],
    labels: Int[Array, " batch"],
    class_counts: Counts,
    *,
    penalty: Scalar = 0.1,
    valid: Bool[Array, " batch"] | None = None,
) -> Float[Array, ""]:
    """-sum_c pi_c [ mean_{i: y_i = c} z_ic - t_c - penalty t_c^2 ] over a batch of N rows.

    t_c = log( 1/N sum_i exp(z_ic - log pi_c - log C) ) estimates the logarithm of an expectation over the uniform
    prior from rows of the training prior, so that the bracket is a regularised Donsker-Varadhan bound. A class without
    a row in the batch has the mean 0, as in the released code.

    Args:
      logits: z of the whole batch; the mean of the regularisers of two halves is another number.
      labels: y.
      class_counts: n; every class needs rows.
      penalty: 0.1 as in the released code. May be traced.
      valid: rows that count; of none the regulariser is 0.

    Raises:
      UsageError: a negative penalty, arrays that do not belong together, a class without rows, labels out of range
        where they are concrete; traced ones of valid rows give NaN.

    Source: Hong et al. 2021, Disentangling label distribution for long-tailed visual recognition; released code.
    """
    check.number("penalty", penalty, 0.0)
    logits, labels = as_logits(logits), as_labels(labels)
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:
        raise check.UsageError(
            f"logits must be [batch, classes] and labels [batch], got {list(logits.shape)} and {list(labels.shape)}"
        )
    rows, classes = logits.shape
    check_labels(labels, classes), check_counts(class_counts, classes)
    valid, labels = jnp.ones((rows,), bool) if valid is None else jnp.asarray(valid), jnp.asarray(labels)
    if valid.shape != (rows,):
        raise check.UsageError(f"valid must be [{rows}], one for each row, got {list(valid.shape)}")
    logits = jnp.where(valid[:, None], logits, 0.0)
    log_pi = log_prior(class_counts)

    own = jnp.where(valid[:, None], jax.nn.one_hot(labels, classes, dtype=logits.dtype), 0.0)
    own_mean = (own * logits).sum(0) / jnp.maximum(own.sum(0), 1.0)
    spread = jnp.where(valid[:, None], logits - log_pi - jnp.log(float(classes)), _AWAY)
    log_mean = jax.nn.logsumexp(spread, axis=0) - jnp.log(jnp.maximum(valid.sum(), 1))
    log_mean = jnp.where(valid.any(), log_mean, 0.0)
    value = -jnp.sum(jnp.exp(log_pi) * (own_mean - log_mean - penalty * log_mean**2))
    beyond = valid & ((labels < 0) | (labels >= classes))
    return jnp.where(beyond.any(), jnp.nan, value)
