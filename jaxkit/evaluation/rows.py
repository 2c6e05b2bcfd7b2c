"""What the metrics share: the types of their arguments, means over valid rows, and the checks at their doors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxkit import check

Logits = Float[Array | np.ndarray, "*batch classes"]
Decisions = Int[Array | np.ndarray, "*batch"]
Labels = Int[Array | np.ndarray, "*batch"]
Valid = Bool[Array | np.ndarray, "*batch"]
RowsValid = Bool[Array | np.ndarray, " rows"]
Values = Float[Array | np.ndarray, "..."]


def mean(values: jax.Array, valid: Any) -> jax.Array:
    """The float32 mean over the valid entries; nan over none."""
    if valid is None:
        return jnp.mean(values, dtype=jnp.float32)
    return jnp.sum(jnp.where(valid, values, 0), dtype=jnp.float32) / jnp.sum(valid)


def weights(labels: Any, valid: Any) -> jax.Array:
    """1 for each valid row, 0 for padding, in the shape of ``labels``."""
    return jnp.ones(jnp.shape(labels), jnp.float32) if valid is None else jnp.asarray(valid, jnp.float32)


def check_range(name: str, indices: Any, size: int, valid: Any) -> None:
    """UsageError unless every valid index lies in 0..size-1; traced and multi-process arrays are not looked at."""
    if any(isinstance(a, jax.core.Tracer) or not getattr(a, "is_fully_addressable", True) for a in (indices, valid)):
        return
    values = np.asarray(indices)
    values = values if valid is None else values[np.asarray(valid)]
    if values.size and (values.min() < 0 or values.max() >= size):
        raise check.UsageError(f"{name} must lie in 0..{size - 1}, got {values.min()}..{values.max()}")


def decide(outputs: Any, labels: Any, valid: Any, num_classes: int | None = None) -> tuple[jax.Array, int | None]:
    """Predicted classes and the number of classes (None where decisions came without one)."""
    outputs = jnp.asarray(outputs)
    if jnp.issubdtype(outputs.dtype, jnp.floating):
        classes = outputs.shape[-1] if outputs.ndim else 0
        if outputs.shape[:-1] != jnp.shape(labels) or classes == 0:
            raise check.UsageError(f"logits {outputs.shape} must be labels {jnp.shape(labels)} plus an axis of classes")
        if num_classes not in (None, classes):
            raise check.UsageError(f"num_classes={num_classes} but the logits have {classes}")
        check_range("labels", labels, classes, valid)
        return jnp.argmax(outputs, axis=-1), classes
    if outputs.shape != jnp.shape(labels):
        raise check.UsageError(f"predicted classes {outputs.shape} and labels {jnp.shape(labels)} must have one shape")
    if num_classes is not None:
        check_range("labels", labels, num_classes, valid)
        check_range("predicted classes", outputs, num_classes, valid)
    return outputs, num_classes


def need_classes(classes: int | None) -> int:
    """The number of classes, which decisions alone do not tell."""
    if classes is None:
        raise check.UsageError("predicted classes need num_classes=..., which logits say by themselves")
    return classes


def mean_by_index(values: jax.Array, index: Any, size: int, valid: Any) -> jax.Array:
    """Means of ``values`` over each of ``size`` indices; nan where an index has no row."""
    counted = weights(index, valid).ravel()
    index = jnp.asarray(index).ravel()
    total = jax.ops.segment_sum(jnp.where(counted > 0, values.ravel(), 0).astype(jnp.float32), index, size)
    return total / jax.ops.segment_sum(counted, index, size)


def entry(name: str, mapping: Mapping[str, Any], key: str) -> Any:
    """``mapping[key]``, or one clear line."""
    if key not in mapping:
        raise check.UsageError(f"{name} has no {key!r}, which this measure needs; it has {', '.join(sorted(mapping))}")
    return mapping[key]
