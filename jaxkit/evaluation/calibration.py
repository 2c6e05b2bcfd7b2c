"""Calibration errors: how far stated confidence lies from the frequency of being right.

Arguments as in ``metrics``: logits ``[..., classes]``, labels ``[...]``, ``valid`` False for padding. Results lie in
[0, 1].
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxkit import check
from jaxkit.evaluation import rows
from jaxkit.evaluation.rows import Labels, Logits, Valid


class Bins(NamedTuple):
    """Rows in bins of confidence, as a reliability diagram draws them.

    Attributes:
      accuracy: ``[bins]``, the fraction that was right in each; nan where a bin is empty.
      confidence: ``[bins]``, the mean confidence in each; nan where a bin is empty.
      share: ``[bins]``, the fraction of all rows in each.
    """

    accuracy: jax.Array
    confidence: jax.Array
    share: jax.Array


def _gather(confidence: jax.Array, correct: jax.Array, index: jax.Array, num_bins: int, valid: Any) -> Bins:
    counted = rows.weights(index, valid).ravel()
    share = jax.ops.segment_sum(counted, index.ravel(), num_bins) / counted.sum()
    means = [rows.mean_by_index(values, index, num_bins, valid) for values in (correct, confidence)]
    return Bins(means[0], means[1], share)


def _error(bins: Bins) -> jax.Array:
    gap = jnp.where(bins.share == 0, 0.0, jnp.abs(bins.accuracy - bins.confidence))
    return jnp.sum(bins.share * gap)


def _equal_width(confidence: jax.Array, num_bins: int) -> jax.Array:
    # Bin m holds (m/M, (m+1)/M], as in Guo et al.; a confidence of 0 falls into the first.
    return jnp.clip(jnp.ceil(confidence * num_bins).astype(jnp.int32) - 1, 0, num_bins - 1)


def _top(logits: Any, labels: Any, valid: Any) -> tuple[jax.Array, jax.Array]:
    predicted, _ = rows.decide(logits, labels, valid)
    return jax.nn.softmax(jnp.asarray(logits), axis=-1).max(-1), predicted == labels


def reliability(logits: Logits, labels: Labels, num_bins: int = 15, valid: Valid | None = None) -> Bins:
    """Accuracy, mean confidence and share of rows in ``num_bins`` equal-width bins of the top probability."""
    check.count("num_bins", num_bins)
    confidence, correct = _top(logits, labels, valid)
    return _gather(confidence, correct, _equal_width(confidence, num_bins), num_bins, valid)


def expected_calibration_error(
    logits: Logits, labels: Labels, num_bins: int = 15, valid: Valid | None = None
) -> Float[Array, ""]:
    """ECE = sum_m |B_m| / n |acc(B_m) - conf(B_m)|, equal-width bins of the top probability (Guo et al. 2017, eq 3)."""
    return _error(reliability(logits, labels, num_bins, valid))


def adaptive_calibration_error(
    logits: Logits, labels: Labels, num_bins: int = 15, valid: Valid | None = None
) -> Float[Array, ""]:
    """ECE over bins of equal mass: rows sorted by top probability, cut in ``num_bins`` (Nguyen and O'Connor 2015).

    Rows of equal confidence may fall into different bins, in their order in the batch.
    """
    check.count("num_bins", num_bins)
    confidence, correct = (values.ravel() for values in _top(logits, labels, valid))
    keep = None if valid is None else jnp.asarray(valid).ravel()
    order = jnp.argsort(confidence if keep is None else jnp.where(keep, confidence, jnp.inf))
    rank = jnp.zeros(order.shape, jnp.int32).at[order].set(jnp.arange(order.size, dtype=jnp.int32))
    count = order.size if keep is None else jnp.maximum(keep.sum(), 1)
    index = jnp.minimum(rank * num_bins // count, num_bins - 1)
    return _error(_gather(confidence, correct, index, num_bins, keep))


def classwise_calibration_error(
    logits: Logits, labels: Labels, num_bins: int = 15, valid: Valid | None = None
) -> Float[Array, ""]:
    """The mean over classes of the ECE of p_k against [label = k] (Kull et al. 2019, eq. 5), equal-width bins."""
    check.count("num_bins", num_bins)
    rows.decide(logits, labels, valid)
    p = jax.nn.softmax(jnp.asarray(logits), axis=-1)

    def one(p_k: jax.Array, k: jax.Array) -> jax.Array:
        return _error(_gather(p_k, jnp.asarray(labels) == k, _equal_width(p_k, num_bins), num_bins, valid))

    return jax.vmap(one, in_axes=(-1, 0))(p, jnp.arange(p.shape[-1])).mean()
