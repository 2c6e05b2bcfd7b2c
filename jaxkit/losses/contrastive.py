"""Contrastive losses: rows are compared with the rows of their batch. Per row: [batch]."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxkit import check
from jaxkit.losses.vectors import clear, normalize

# The logit of what is not compared. Its softmax is 0, and so is 0 times its gradient; with -inf that would be NaN.
_AWAY = -1e30


def nt_xent(
    first: Float[Array, "batch features"],
    second: Float[Array, "batch features"],
    *,
    temperature: float | int | Array = 0.5,
    valid: Bool[Array, " batch"] | None = None,
) -> Float[Array, " batch"]:
    """The normalised temperature-scaled cross-entropy of SimCLR (Chen et al. 2020, eq. 1).

    With z the 2B unit vectors of both views and s_ij = z_i . z_j / tau, l_i = -s_ip + log sum_{j != i} exp(s_ij), p
    the other view of i; a row's loss is the mean of l over its two views, and the mean of rows is the paper's loss.

    Args:
      first: features of one view.
      second: features of the other view, row by row.
      temperature: tau.
      valid: rows that count; the others have loss 0 and stand against none.

    Raises:
      UsageError: a temperature that is not positive.
    """
    check.positive("temperature", temperature)
    rows = len(first)
    z = normalize(jnp.concatenate([clear(first, valid), clear(second, valid)]))
    counted = jnp.ones((rows,), bool) if valid is None else valid
    allowed = jnp.tile(counted, 2)[None, :] & ~jnp.eye(2 * rows, dtype=bool)
    logits = z @ z.T / temperature
    positives = jnp.concatenate([jnp.diagonal(logits, rows), jnp.diagonal(logits, -rows)])
    losses = jax.nn.logsumexp(jnp.where(allowed, logits, _AWAY), axis=1) - positives
    return jnp.where(counted, losses.reshape(2, rows).mean(0), 0.0)


def supervised_contrastive(
    features: Float[Array, "batch features"],
    labels: Int[Array, " batch"],
    *,
    temperature: float | int | Array = 0.1,
    valid: Bool[Array, " batch"] | None = None,
) -> Float[Array, " batch"]:
    """Supervised contrastive loss, the form with the sum outside the logarithm (Khosla et al. 2020, eq. 2).

    l_i = -1/|P(i)| sum_{p in P(i)} log( exp(s_ip) / sum_{a != i} exp(s_ia) ), s_ij = z_i . z_j / tau of unit vectors,
    P(i) the other rows of the label of i. A row without another of its label has loss 0. Two views are two rows of
    one label.

    Args:
      features: before normalisation.
      labels: of the rows.
      temperature: tau.
      valid: rows that count; the others have loss 0 and stand against none.

    Raises:
      UsageError: a temperature that is not positive.
    """
    check.positive("temperature", temperature)
    rows = len(features)
    z = normalize(clear(features, valid))
    counted = jnp.ones((rows,), bool) if valid is None else valid
    allowed = counted[None, :] & counted[:, None] & ~jnp.eye(rows, dtype=bool)
    positive = allowed & (labels[:, None] == labels[None, :])
    logits = z @ z.T / temperature
    log_p = logits - jax.nn.logsumexp(jnp.where(allowed, logits, _AWAY), axis=1, keepdims=True)
    return -jnp.where(positive, log_p, 0.0).sum(1) / jnp.maximum(positive.sum(1), 1)
