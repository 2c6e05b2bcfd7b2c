"""UNO-IC as a method: plain training, and at its end the re-calibration of the posterior for a uniform prior.

Tian et al. 2020, Posterior re-calibration for imbalanced datasets, NeurIPS. ``posthoc.uno_ic`` is the formula by
itself, for logits of any model; ``choose_beta`` takes beta from validation rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from jaxkit import check
from jaxkit.data import epochs
from jaxkit.learner import Batch, Data, Gradient, Key, Network, Outputs, Plan, Stage, TrainState, plain
from jaxkit.long_tailed import loss_methods, posthoc
from jaxkit.long_tailed.counts import Counts, Logits, Scalar, check_counts, check_labels, concrete

BETAS = tuple(number / 20 for number in range(21))


class Shift(NamedTuple):
    """``TrainState.extra`` after the end of ``uno_ic``: what is added to the logits, [C]."""

    logits: jax.Array


def choose_beta(
    logits: Logits,
    labels: Int[Any, " rows"],
    class_counts: Counts,
    betas: Sequence[float] | Float[Any, " betas"] = BETAS,
) -> tuple[Float[Array, ""], Float[Array, " betas"]]:
    """The beta of ``posthoc.uno_ic`` with the highest mean accuracy of classes; of equal ones the first.

    Args:
      logits: z [rows, C] of rows that were not trained on.
      labels: [rows]; a class without rows is left out of the mean.
      class_counts: training rows of each class.
      betas: what to choose from, in [0, 1].

    Returns:
      beta, and the mean accuracy of classes for each of ``betas``.

    Raises:
      UsageError: betas that are none or out of range; logits, labels and counts that do not belong together; no row, or
        (where they are concrete) logits that are not finite.

    Source: Tian et al. 2020; beta is chosen on validation data there.
    """
    given = jnp.asarray(betas, jnp.float32)
    if given.ndim != 1 or given.size == 0:
        raise check.UsageError(f"betas must be a list of numbers in [0, 1], got the shape {list(given.shape)}")
    if concrete(given):
        for beta in given:
            check.fraction("beta", beta)
    logits = jnp.asarray(logits)
    if logits.ndim != 2 or logits.size == 0:
        raise check.UsageError(f"logits must have the shape [rows, classes], got {list(logits.shape)}")
    labels = jnp.asarray(check_labels(labels, logits.shape[-1]))
    if labels.shape != logits.shape[:1]:
        raise check.UsageError(f"logits {list(logits.shape)} and labels {list(labels.shape)} must have the same rows")
    if concrete(logits):
        bad = np.flatnonzero(~np.isfinite(np.asarray(logits)).all(1))
        if bad.size:
            raise check.UsageError(f"logits of row {bad[0]} are not finite; leave such rows out")
    check_counts(class_counts, logits.shape[-1])
    number = jnp.bincount(labels, length=logits.shape[-1])
    weight = 1.0 / (jnp.maximum(number, 1)[labels] * (number > 0).sum())

    def score(beta: jax.Array) -> jax.Array:
        right = posthoc.uno_ic(logits, class_counts, beta=beta).argmax(-1) == labels
        return jnp.where(right, weight, 0.0).sum()

    scores = jax.lax.map(score, given)
    # Sums of the same rows in float32 differ in their last bits: what differs by less is equal.
    return given[jnp.argmax(scores >= scores.max() - 1e-6)], scores


def uno_ic(
    network: Network,
    optimizer: optax.GradientTransformation,
    *,
    class_counts: Counts,
    beta: Scalar = 1.0,
    target_prior: Any = None,
    batch_size: int = 128,
    gradient: Gradient = plain,
) -> Plan:
    """The cross-entropy; at its end z <- z + beta (log pi_t - log pi), and z of before as ``logits_head``.

    Args:
      network: its ``logits``.
      optimizer: an optax transformation.
      class_counts: n, above 0.
      beta: in [0, 1]; 0 is softmax, 1 the whole shift of the prior. ``choose_beta`` takes it from validation rows. May
        be traced.
      target_prior: pi_t [C]; None: uniform.
      batch_size: rows of a step.
      gradient: how the gradient is taken.

    Raises:
      UsageError: counts that are none, a beta outside [0, 1], a target prior that is none.

    Source: Tian et al. 2020, Posterior re-calibration for imbalanced datasets.
    """
    counts = check_counts(class_counts)
    shift = posthoc.uno_ic(jnp.zeros(counts.shape), counts, beta=beta, target_prior=target_prior)
    learner = loss_methods.softmax(network, optimizer, class_counts=counts, gradient=gradient)

    def end(state: TrainState, data: Data, key: Key) -> TrainState:
        return state._replace(extra=Shift(shift))

    def predict(state: TrainState, batch: Batch) -> Outputs:
        outputs = learner.predict(state, batch)
        if not isinstance(state.extra, Shift):
            return outputs
        return {**outputs, "logits": outputs["logits"] + state.extra.logits, "logits_head": outputs["logits"]}

    return (Stage("train", learner._replace(predict=predict), epochs(batch_size), end=end),)
