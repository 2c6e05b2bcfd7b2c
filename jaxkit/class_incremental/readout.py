"""What a model of the classes seen so far answers: the classifier's logits, and the nearest mean."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxkit.losses import soft_cross_entropy
from jaxkit.losses.vectors import normalize, squared_distances

AWAY = -1e30
"""The logit of a class that does not take part: its softmax and its gradient are 0, where -inf would give NaN."""

Bound = int | Int[Array, "..."]
"""A number of classes; or one for each row, with an axis for the classes behind."""


def among(logits: Float[Array, "*batch classes"], low: Bound, high: Bound) -> Float[Array, "*batch classes"]:
    """The logits with nothing left for classes outside low..high-1."""
    place = jnp.arange(logits.shape[-1])
    return jnp.where((place >= low) & (place < high), logits, AWAY)


def taking_part(logits: Float[Array, "*batch classes"]) -> Bool[Array, " classes"]:
    """Which classes take part in some row."""
    return (logits > AWAY / 2).reshape(-1, logits.shape[-1]).any(0)


def distillation(
    student: Float[Array, "*batch classes"],
    teacher: Float[Array, "*batch classes"],
    old: Bound,
    temperature: float | int | Array = 2.0,
) -> Float[Array, "*batch"]:
    """- sum_{k < old} softmax(z^t / T)_k log softmax(z / T)_k over the old classes, and 0 where there is none.

    There is no factor T^2 (as in the released code of the survey); no gradient goes to the teacher.

    Source: Li and Hoiem 2016, eq. 2; Rebuffi et al. 2017.
    """
    target = jax.nn.softmax(among(jax.lax.stop_gradient(teacher), 0, old) / temperature)
    value = soft_cross_entropy(among(student, 0, old) / temperature, target)
    return jnp.where(jnp.asarray(old) > 0, value, 0.0)


def class_means(
    features: Float[Array, "rows features"],
    labels: Int[Array, " rows"],
    num_classes: int,
    valid: Bool[Array, " rows"] | None = None,
) -> Float[Array, "classes features"]:
    """The mean of the normalised features of each class, normalised again; 0 for a class without rows."""
    unit = normalize(features)
    unit = unit if valid is None else jnp.where(valid[:, None], unit, 0.0)
    return normalize(jax.ops.segment_sum(unit, labels, num_classes))


def nearest_mean(
    features: Float[Array, "*batch features"], means: Float[Array, "classes features"]
) -> Float[Array, "*batch classes"]:
    """-|phi / |phi| - mu_c|^2, the logits of the nearest-mean-of-exemplars read-out (Rebuffi et al. 2017, alg. 1)."""
    return -squared_distances(normalize(features), means)
