"""Re-sampling: sources that draw a class by its weight, then a row uniformly from the class.

P(row i) = p_{y_i} / n_{y_i}, where p is a distribution over the classes that have rows:

======================  ============================================================================================
``square_root``         p_c proportional to sqrt(n_c)
``reversed_sampling``   p_c proportional to 1 / n_c
``progressively_``      p_c = (1 - t / T) n_c / N + (t / T) / C at step t of T
``balanced``
``by_class_weight``     p_c proportional to any function of the counts and the step
======================  ============================================================================================

Instance-balanced sampling (p_c = n_c / N) without replacement is ``jaxkit.data.epochs``, class-balanced sampling
(p_c = 1 / C) ``jaxkit.data.class_balanced``. Draws are with replacement; a batch is a function of (key, step) alone.

Source: Kang et al. 2020, Decoupling representation and classifier for long-tailed recognition, ICLR, section 3.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxkit import check
from jaxkit.data import class_balanced, epochs, take
from jaxkit.learner import Batch, Data, Key, PyTree, Source
from jaxkit.long_tailed.counts import Counts, Scalar, check_counts

SAMPLERS = ("instance", "class_balanced", "square_root", "progressive", "reversed")

ClassWeight = Callable[[Float[Array, " classes"], Int[Array, ""]], Float[Array, " classes"]]


def power_weights(class_counts: Counts, power: Scalar) -> Float[Array, " classes"]:
    """p_c = n_c^q / sum_k n_k^q over the classes that have rows, 0 elsewhere.

    q = 1 is instance-balanced, 1/2 square-root, 0 class-balanced, -1 reversed sampling. (Kang et al. 2020, eq. 1.)
    Only the ratios of the counts matter, so shares do as well.

    Raises:
      UsageError: counts that are none, a power that is no number.
    """
    check.number("power", power)
    counts = check_counts(class_counts, empty=True)
    weights = jnp.where(counts > 0, jnp.where(counts > 0, counts, 1.0) ** power, 0.0)
    return weights / weights.sum()


def progressive_weights(class_counts: Counts, step: Scalar, total_steps: Scalar) -> Float[Array, " classes"]:
    """p_c = (1 - t / T) n_c / N + (t / T) / C over the C classes that have rows; from step T on 1 / C.

    (Kang et al. 2020, eq. 2, with the step for the epoch.)

    Raises:
      UsageError: counts that are none, a step below 0, ``total_steps`` that is not above 0.
    """
    check.number("step", step, 0.0), check.positive("total_steps", total_steps)
    progress = jnp.minimum(jnp.asarray(step, jnp.float32) / total_steps, 1.0)
    return (1.0 - progress) * power_weights(class_counts, 1.0) + progress * power_weights(class_counts, 0.0)


def by_class_weight(batch_size: int, num_classes: int, weight: ClassWeight) -> Source:
    """Each row of the batch by itself: a class c with P(c) proportional to w_c, then a row uniformly from the class.

    The rows of each class are found once, in ``init``. Probabilities of classes are exact to 2^-23.

    Args:
      batch_size: rows of a batch.
      num_classes: C.
      weight: ``(class_counts [C] float32, step) -> w [C]``, not negative and not all zero; the weight of a class
        without rows is ignored.

    Raises:
      UsageError: Data has no ``y``; and from ``validate``: labels beyond C, or weights that are negative, not finite or
        all zero at step 0.
    """
    batch_size, num_classes = check.count("batch_size", batch_size), check.count("num_classes", num_classes)

    def labels_of(data: Data) -> PyTree:
        if "y" not in data:
            raise check.UsageError(f"sampling by class needs data['y']; the data has {', '.join(sorted(data))}")
        return data["y"]

    def init(data: Data, key: Key) -> PyTree:
        labels = jnp.asarray(labels_of(data))
        order = jnp.argsort(labels, stable=True).astype(jnp.int32)
        bounds = jnp.searchsorted(labels[order], jnp.arange(num_classes + 1, dtype=labels.dtype)).astype(jnp.int32)
        return {"order": order, "counts": jnp.diff(bounds), "starts": bounds[:-1]}

    def next_(data: Data, source_state: PyTree, state: PyTree, step: int | Array, key: Key) -> tuple[PyTree, Batch]:
        class_key, row_key = jax.random.split(jax.random.fold_in(key, step))
        counts = source_state["counts"]
        weights = jnp.where(counts > 0, weight(counts.astype(jnp.float32), jnp.asarray(step, jnp.int32)), 0.0)
        # Sums that rise at positive weights only (XLA's need not), and u * total < total: no empty class is drawn.
        sums = jax.lax.cummax(jnp.where(weights > 0, jnp.cumsum(weights), 0.0))
        drawn = jax.random.uniform(class_key, (batch_size,), jnp.float32) * sums[-1]
        label = jnp.searchsorted(sums, drawn, side="right")
        within = jax.random.randint(row_key, (batch_size,), 0, jnp.maximum(counts[label], 1))
        return source_state, take(data, source_state["order"][source_state["starts"][label] + within])

    def validate(data: Data) -> None:
        labels = np.asarray(labels_of(data))
        if not np.issubdtype(labels.dtype, np.integer) or labels.size == 0:
            raise check.UsageError(
                f"sampling by class: data['y'] must be whole numbers 0..{num_classes - 1}, at least one, got "
                f"{labels.size} of dtype {labels.dtype}"
            )
        if labels.min() < 0 or labels.max() >= num_classes:
            raise check.UsageError(
                f"sampling by class: data['y'] must lie in 0..{num_classes - 1}, got {labels.min()}..{labels.max()}"
            )
        counts = np.bincount(labels, minlength=num_classes)
        known = np.asarray(weight(jnp.asarray(counts, jnp.float32), jnp.int32(0)))
        if known.shape != (num_classes,):
            raise check.UsageError(f"weight must give one number for each class, [{num_classes}], got {known.shape}")
        known = known[counts > 0]
        if not (np.isfinite(known).all() and (known >= 0).all() and known.sum() > 0):
            raise check.UsageError("weight must be finite and at least 0, and above 0 for a class that has rows")

    return Source(init, next_, validate=validate)


def square_root(batch_size: int, num_classes: int) -> Source:
    """p_c proportional to sqrt(n_c). (Mahajan et al. 2018; Kang et al. 2020.)"""
    return by_class_weight(batch_size, num_classes, lambda counts, step: power_weights(counts, 0.5))


def reversed_sampling(batch_size: int, num_classes: int) -> Source:
    """p_c proportional to 1 / n_c: the smallest class most. (Zhou et al. 2020, BBN.)"""
    return by_class_weight(batch_size, num_classes, lambda counts, step: power_weights(counts, -1.0))


def progressively_balanced(batch_size: int, num_classes: int, total_steps: int) -> Source:
    """Instance-balanced at the first step, class-balanced from step ``total_steps`` on, linear between.

    (Kang et al. 2020, eq. 2, with the step for the epoch; their code is class-balanced in the last epoch.)
    """
    total = check.count("total_steps", total_steps)
    return by_class_weight(batch_size, num_classes, lambda counts, step: progressive_weights(counts, step, total))


def sampler(name: str, batch_size: int, num_classes: int, total_steps: int | None = None) -> Source:
    """A source by name, one of ``SAMPLERS``.

    Args:
      name: ``instance`` draws without replacement (``jaxkit.data.epochs``), the others with.
      batch_size: rows of a batch.
      num_classes: C.
      total_steps: T, for ``progressive`` alone.

    Raises:
      UsageError: an unknown name; ``progressive`` without ``total_steps``, or another with it.
    """
    name = check.choose("sampler", name, SAMPLERS)
    if (name == "progressive") != (total_steps is not None):
        raise check.UsageError(
            "sampler='progressive' needs total_steps=..., the steps after which it is class-balanced"
            if total_steps is None
            else f"total_steps is for sampler='progressive'; leave it out for {name!r}"
        )
    if total_steps is not None:
        return progressively_balanced(batch_size, num_classes, total_steps)
    if name == "instance":
        return epochs(batch_size)
    make = {"class_balanced": class_balanced, "square_root": square_root, "reversed": reversed_sampling}[name]
    return make(batch_size, num_classes)
