"""Class counts and priors: what every method of this part knows about the training data, checked at the door.

``class_counts`` is an array argument throughout, [classes], so that imbalance can be mapped over (``jax.vmap``).
Values that are traced pass unchecked; shapes are always checked.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Real

from jaxkit import check

Counts = Real[Array | np.ndarray, " classes"]
Labels = Int[Array | np.ndarray, "*batch"]
Logits = Float[Array | np.ndarray, "*batch classes"]
Scalar = float | int | Array


def concrete(value: Any) -> bool:
    """Whether the values can be looked at: neither traced nor spread over processes."""
    return not isinstance(value, jax.core.Tracer) and getattr(value, "is_fully_addressable", True)


def check_counts(
    class_counts: Any, num_classes: int | None = None, *, least: float = 0.0, empty: bool = False
) -> Float[Array, " classes"]:
    """The counts as float32 [classes].

    Args:
      class_counts: training rows of each class.
      num_classes: how many there must be; None takes any number.
      least: the fewest rows that a class may have (1 tells counts from a prior).
      empty: whether a class may have no rows; a logarithm or a share needs some.

    Raises:
      UsageError: not a vector of numbers, another length than ``num_classes``, a count that is negative or not finite,
        a class without rows, or with fewer than ``least``.
    """
    counts = _vector("class_counts", class_counts, num_classes)
    if concrete(class_counts):
        bad = np.flatnonzero(~(np.isfinite(counts) & (counts >= 0)))
        if bad.size:
            raise check.UsageError(f"class_counts[{bad[0]}] is {counts[bad[0]]}; a class has a finite number of rows")
        none = np.flatnonzero(counts == 0)
        if none.size and (not empty or none.size == counts.size):
            raise check.UsageError(
                f"class {none[0]} has no rows in class_counts; leave it out, number the others 0, 1, ..., and train a "
                "network of so many outputs"
            )
        few = np.flatnonzero((counts > 0) & (counts < least))
        if few.size:
            raise check.UsageError(
                f"class_counts[{few[0]}] is {counts[few[0]]}, less than {least:g}; give numbers of rows, not shares"
            )
    return jnp.asarray(counts, jnp.float32)


def check_prior(name: str, prior: Any, num_classes: int | None = None) -> Float[Array, " classes"]:
    """A distribution over classes as float32 [classes].

    Raises:
      UsageError: not a vector of numbers, another length than ``num_classes``, an entry that is not above 0, or a sum
        other than 1 (by more than 1e-3).
    """
    values = _vector(name, prior, num_classes)
    if concrete(prior):
        bad = np.flatnonzero(~(values > 0))
        if bad.size:
            raise check.UsageError(f"{name}[{bad[0]}] is {values[bad[0]]}; every class needs a probability above 0")
        if not abs(values.sum() - 1) <= 1e-3:
            raise check.UsageError(f"{name} must sum to 1, it sums to {values.sum():.6g}; divide it by its sum")
    return jnp.asarray(values, jnp.float32)


def check_labels(labels: Any, num_classes: int) -> Any:
    """Return ``labels`` if they are whole numbers in 0..num_classes-1; raise UsageError otherwise."""
    if not hasattr(labels, "dtype"):
        labels = np.asarray(labels)
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise check.UsageError(f"labels must be whole numbers 0..{num_classes - 1}, got dtype {labels.dtype}")
    if concrete(labels) and labels.size:
        values = np.asarray(labels)
        if values.min() < 0 or values.max() >= num_classes:
            raise check.UsageError(
                f"labels must lie in 0..{num_classes - 1}, the classes of class_counts, got {values.min()}.."
                f"{values.max()}"
            )
    return labels


def prior(class_counts: Counts) -> Float[Array, " classes"]:
    """pi_c = n_c / sum_k n_k."""
    counts = check_counts(class_counts, empty=True)
    return counts / counts.sum()


def log_prior(class_counts: Counts) -> Float[Array, " classes"]:
    """log pi_c; every class needs rows."""
    counts = check_counts(class_counts)
    return jnp.log(counts) - jnp.log(counts.sum())


def _vector(name: str, values: Any, num_classes: int | None) -> Any:
    """``values`` as a vector of that length: NumPy float64 where they are concrete."""
    if concrete(values):
        try:
            values = np.asarray(values, np.float64)
        except (TypeError, ValueError):
            raise check.UsageError(f"{name} must be numbers, one for each class, got {values!r}") from None
    if values.ndim != 1 or values.size == 0:
        raise check.UsageError(f"{name} must hold one number for each class, got the shape {list(values.shape)}")
    if num_classes not in (None, values.size):
        raise check.UsageError(f"{name} has {values.size} entries, and there are {num_classes} classes")
    return values
