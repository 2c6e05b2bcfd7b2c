"""Metrics as pure functions of arrays, for use inside or outside ``jax.jit`` and ``jax.vmap``.

Throughout: ``outputs`` are logits ``[..., classes]`` (probabilities p enter as log p) or, where only decisions count,
predicted classes ``[...]`` of an integer type; ``labels`` are int ``[...]``; ``valid`` is bool ``[...]``, False for
rows of padding, which change nothing. Results are fractions (not per cent) in float32. A mean over nothing is nan.
Labels outside ``0..classes-1`` raise UsageError where they are concrete; traced ones are not looked at.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxkit import check
from jaxkit.evaluation import rows
from jaxkit.evaluation.calibration import expected_calibration_error
from jaxkit.evaluation.rows import Decisions, Labels, Logits, RowsValid, Valid, Values


def accuracy(outputs: Logits | Decisions, labels: Labels, valid: Valid | None = None) -> Float[Array, ""]:
    """The fraction of rows whose predicted class is the label; of equal logits the first class is predicted."""
    predicted, _ = rows.decide(outputs, labels, valid)
    return rows.mean(predicted == labels, valid)


def top_k(logits: Logits, labels: Labels, k: int, valid: Valid | None = None) -> Float[Array, ""]:
    """The fraction of rows whose label is among the ``k`` largest logits; ``k`` static, 1..classes."""
    _, classes = rows.decide(logits, labels, valid)
    if check.count("k", k) > rows.need_classes(classes):
        raise check.UsageError(f"k must be at most the number of classes, {classes}, got {k}")
    best = jax.lax.top_k(jnp.asarray(logits), k)[1]
    return rows.mean((best == jnp.asarray(labels)[..., None]).any(-1), valid)


def per_class_accuracy(
    outputs: Logits | Decisions, labels: Labels, valid: Valid | None = None, num_classes: int | None = None
) -> Float[Array, " classes"]:
    """Accuracy (recall) among the rows of each class; nan for a class without rows."""
    predicted, classes = rows.decide(outputs, labels, valid, num_classes)
    return rows.mean_by_index(predicted == labels, labels, rows.need_classes(classes), valid)


def macro_accuracy(
    outputs: Logits | Decisions, labels: Labels, valid: Valid | None = None, num_classes: int | None = None
) -> Float[Array, ""]:
    """The mean of the accuracies of the classes that have rows (balanced accuracy, macro recall)."""
    return jnp.nanmean(per_class_accuracy(outputs, labels, valid, num_classes))


def group_accuracy(
    outputs: Logits | Decisions, labels: Labels, groups: Labels, num_groups: int, valid: Valid | None = None
) -> Float[Array, " groups"]:
    """Accuracy within each of ``num_groups`` (static) groups; nan for a group without rows."""
    predicted, _ = rows.decide(outputs, labels, valid)
    rows.check_range("groups", groups, check.count("num_groups", num_groups), valid)
    return rows.mean_by_index(predicted == labels, groups, num_groups, valid)


def worst_group_accuracy(
    outputs: Logits | Decisions, labels: Labels, groups: Labels, num_groups: int, valid: Valid | None = None
) -> Float[Array, ""]:
    """The least accuracy among the groups that have rows (Sagawa et al. 2020, where a group is (label, attribute))."""
    return jnp.nanmin(group_accuracy(outputs, labels, groups, num_groups, valid))


def confusion_matrix(
    outputs: Logits | Decisions, labels: Labels, valid: Valid | None = None, num_classes: int | None = None
) -> Int[Array, "classes classes"]:
    """Counts: row = label, column = predicted class."""
    predicted, classes = rows.decide(outputs, labels, valid, num_classes)
    size = rows.need_classes(classes)
    ones = jnp.ones(jnp.shape(labels), jnp.int32) if valid is None else jnp.asarray(valid, jnp.int32)
    cell = jnp.asarray(labels).ravel() * size + predicted.ravel()
    return jax.ops.segment_sum(ones.ravel(), cell, size * size).reshape(size, size)


def negative_log_likelihood(logits: Logits, labels: Labels, valid: Valid | None = None) -> Float[Array, ""]:
    """The mean of -log softmax(logits)[label], in nats."""
    rows.decide(logits, labels, valid)
    log_p = jax.nn.log_softmax(jnp.asarray(logits), axis=-1)
    return rows.mean(-jnp.take_along_axis(log_p, jnp.asarray(labels)[..., None], axis=-1)[..., 0], valid)


def brier_score(logits: Logits, labels: Labels, valid: Valid | None = None) -> Float[Array, ""]:
    """The mean of sum_k (p_k - [label = k])^2, in [0, 2] (Brier 1950); for two classes twice (p_1 - y)^2."""
    _, classes = rows.decide(logits, labels, valid)
    error = jax.nn.softmax(jnp.asarray(logits), axis=-1) - jax.nn.one_hot(labels, rows.need_classes(classes))
    return rows.mean(jnp.sum(error**2, axis=-1), valid)


def mean_squared_error(predictions: Values, targets: Values, valid: RowsValid | None = None) -> jax.Array:
    """The mean of (prediction - target)^2 over rows and outputs; ``valid`` marks rows (axis 0)."""
    predictions, targets = _same_shape(predictions, targets)
    return rows.mean(_per_row((predictions - targets) ** 2), valid)


def r2(predictions: Values, targets: Values, valid: RowsValid | None = None) -> jax.Array:
    """The coefficient of determination 1 - sum (target - prediction)^2 / sum (target - mean target)^2.

    With several outputs: the mean over outputs. nan where a target is constant.
    """
    predictions, targets = _same_shape(predictions, targets)
    predictions, targets = (v.reshape(v.shape[0], -1).astype(jnp.float32) for v in (predictions, targets))
    keep = jnp.ones((targets.shape[0], 1), bool) if valid is None else jnp.asarray(valid)[:, None]
    mean = jnp.sum(jnp.where(keep, targets, 0), axis=0) / jnp.sum(keep)
    residual = jnp.sum(jnp.where(keep, (targets - predictions) ** 2, 0), axis=0)
    total = jnp.sum(jnp.where(keep, (targets - mean) ** 2, 0), axis=0)
    return jnp.mean(jnp.where(total > 0, 1 - residual / total, jnp.nan))


def _same_shape(predictions: Any, targets: Any) -> tuple[jax.Array, jax.Array]:
    predictions, targets = jnp.asarray(predictions), jnp.asarray(targets)
    if predictions.shape != targets.shape or predictions.ndim == 0:
        # Broadcasting [n, 1] against [n] would give a plausible wrong number.
        raise check.UsageError(
            f"predictions {predictions.shape} and targets {targets.shape} must have one shape [batch, ...]"
        )
    return predictions, targets


def _per_row(values: jax.Array) -> jax.Array:
    return values.reshape(values.shape[0], -1).mean(-1)


def classification(
    outputs: Mapping[str, Any],
    data: Mapping[str, Any],
    *,
    num_attributes: int | None = None,
    num_envs: int | None = None,
    num_bins: int = 15,
) -> dict[str, jax.Array]:
    """The usual metrics of a classifier, as the trainer's ``measure``: ``measure(outputs, data) -> {name: scalar}``.

    ``accuracy``, ``macro_accuracy``, ``nll`` and ``ece`` always; ``worst_group_accuracy`` over the groups (label,
    attribute) where ``num_attributes`` is given; ``worst_env_accuracy`` where ``num_envs`` is. Give the counts by
    ``functools.partial``.

    Args:
      outputs: with ``logits [batch, classes]``.
      data: with ``y``, and ``attribute``, ``env``, ``valid`` where there.
      num_attributes: static number of attribute values; needs ``data["attribute"]``.
      num_envs: static number of environments; needs ``data["env"]``.
      num_bins: of the calibration error.

    Raises:
      UsageError: ``logits``, ``y``, or an array that a count refers to is not there, or shapes differ.
    """
    logits, y = rows.entry("outputs", outputs, "logits"), rows.entry("data", data, "y")
    valid = data.get("valid")
    measured = {
        "accuracy": accuracy(logits, y, valid),
        "macro_accuracy": macro_accuracy(logits, y, valid),
        "nll": negative_log_likelihood(logits, y, valid),
        "ece": expected_calibration_error(logits, y, num_bins, valid),
    }
    if num_attributes is not None:
        attribute = rows.entry("data", data, "attribute")
        rows.check_range("attribute", attribute, check.count("num_attributes", num_attributes), valid)
        groups, size = jnp.asarray(y) * num_attributes + jnp.asarray(attribute), logits.shape[-1] * num_attributes
        measured["worst_group_accuracy"] = worst_group_accuracy(logits, y, groups, size, valid)
    if num_envs is not None:
        env = rows.entry("data", data, "env")
        measured["worst_env_accuracy"] = worst_group_accuracy(logits, y, env, num_envs, valid)
    return measured


def regression(outputs: Mapping[str, Any], data: Mapping[str, Any]) -> dict[str, jax.Array]:
    """``mse`` and ``r2`` of ``outputs["mean"]`` against ``data["y"]``, as the ``measure`` of the trainer.

    One target may stand as ``[batch]`` or as ``[batch, 1]`` in either.
    """
    mean, y = (
        jnp.squeeze(values, -1) if values.ndim == 2 and values.shape[-1] == 1 else values
        for values in (jnp.asarray(rows.entry("outputs", outputs, "mean")), jnp.asarray(rows.entry("data", data, "y")))
    )
    return {"mse": mean_squared_error(mean, y, data.get("valid")), "r2": r2(mean, y, data.get("valid"))}
