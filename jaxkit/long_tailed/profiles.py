"""A long-tailed task from a balanced pool: its training rows, its balanced twin, and test sets of another balance.

The profiles themselves (``long_tail_counts``: exponential, step, Pareto) are in ``jaxkit.data.shifts``. Everything that
chooses rows runs on the host before training.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Num

from jaxkit import check
from jaxkit.data import rows
from jaxkit.data.shifts import balanced_counts, draw_classes, in_order, long_tail_counts
from jaxkit.learner import Data, Key
from jaxkit.long_tailed.counts import Counts, check_counts, check_labels
from jaxkit.long_tailed.groups import check_shares

DIRECTIONS = ("forward", "uniform", "backward")
AGNOSTIC = (
    ("forward", 50), ("forward", 25), ("forward", 10), ("forward", 5), ("forward", 2), ("uniform", 1),
    ("backward", 2), ("backward", 5), ("backward", 10), ("backward", 25), ("backward", 50),
)  # fmt: skip
"""The eleven test distributions of SADE's released code (Zhang et al. 2022): direction and imbalance."""


class LongTail(NamedTuple):
    """A long-tailed training set and its balanced twin, drawn from one pool.

    Attributes:
      train: the long-tailed rows.
      twin: as many rows (but for at most C - 1), the same number of each class; for relative accuracy.
      class_counts: of ``train``, int [C].
      order: the classes from the largest to the smallest, [C].
      digest: of the rows of ``train`` (sha256, 12 hexadecimal digits): runs with one digest saw the same subset.
    """

    train: Data
    twin: Data
    class_counts: np.ndarray
    order: np.ndarray
    digest: str


def long_tailed_task(
    pool: Data,
    key: Key,
    *,
    num_classes: int,
    imbalance: float,
    largest: int | None = None,
    profile: str = "exponential",
    power: float = 6.0,
    shuffle_classes: bool = False,
) -> LongTail:
    """Cut a pool to a profile, and draw the balanced twin from the same pool.

    Args:
      pool: all training rows, with labels ``y``.
      key: chooses the rows (``draw_classes``: of each class, the smaller set lies within the larger) and the order.
      num_classes: C.
      imbalance: rho.
      largest: n_max; None: the rows of the pool's smallest class.
      profile: one of ``jaxkit.data.shifts.PROFILES``; ``power`` is alpha of ``pareto``.
      shuffle_classes: which class is large is drawn by the key; else class 0 is the largest, as in CIFAR-LT.

    Raises:
      UsageError: an unknown profile, or a class with too few rows for the profile or for the twin.
    """
    y = np.asarray(pool["y"])
    if y.min() < 0 or y.max() >= num_classes:
        raise check.UsageError(f"labels must lie in 0..{num_classes - 1}, got {y.min()}..{y.max()}")
    row_key, class_key = jax.random.split(key)
    order = np.asarray(jax.random.permutation(class_key, num_classes)) if shuffle_classes else np.arange(num_classes)
    smallest = int(np.bincount(y, minlength=num_classes).min())
    by_rank = long_tail_counts(num_classes, smallest if largest is None else largest, imbalance, profile, power=power)
    counts = in_order(by_rank, order)
    numbered = {**pool, "_row": np.arange(rows(pool))}
    train = draw_classes(numbered, row_key, counts)
    digest = hashlib.sha256(train.pop("_row").astype("<i8").tobytes()).hexdigest()[:12]
    return LongTail(train, draw_classes(pool, row_key, balanced_counts(counts)), counts, order, digest)


def shifted_prior(class_counts: Counts, direction: str, imbalance: float | Array = 1.0) -> Float[Array, " classes"]:
    """The class prior of a test set that is long-tailed itself: p_c proportional to rho^(-r_c / (C - 1)).

    r_c is the rank of class c among the training counts: from the largest on for ``forward`` (what is frequent in
    training is frequent in the test), from the smallest on for ``backward``; of equal counts the lower label comes
    first. ``uniform`` is 1 / C. (Zhang et al. 2022, SADE.)

    Args:
      class_counts: training rows of each class; may be traced.
      direction: one of ``DIRECTIONS``.
      imbalance: rho of the test set; may be traced.

    Raises:
      UsageError: an unknown direction, an imbalance below 1, or one beside ``uniform``.
    """
    counts = check_counts(class_counts, empty=True)
    direction = check.choose("direction", direction, DIRECTIONS)
    check.number("imbalance", imbalance, 1.0)
    if direction == "uniform" and not isinstance(imbalance, jax.core.Tracer) and imbalance != 1:
        raise check.UsageError(f"a uniform test set has imbalance 1, got {imbalance}; take forward or backward")
    rank = _rank(counts)
    place = (rank if direction == "forward" else rank.size - 1 - rank) / max(rank.size - 1, 1)
    prior = jnp.asarray(imbalance, jnp.float32) ** -place if direction != "uniform" else jnp.ones(rank.size)
    return prior / prior.sum()


def row_weights(
    labels: Int[Array | np.ndarray, " rows"], prior: Float[Array | np.ndarray, " classes"]
) -> Float[Array, " rows"]:
    """Weights of test rows under which their classes have this prior: w_i = n prior_{y_i} / n_{y_i}, n_c in ``labels``.

    The weighted mean of [prediction right] is ``accuracy_under(per_class_accuracy, prior)``; so it goes for any mean
    over rows (likelihood, calibration). The mean weight is 1 if each class with prior has rows.

    Raises:
      UsageError: labels that are no whole numbers; and where these are concrete: labels beyond the prior, a prior that
        is negative, not finite or all zero, a class that has prior and no row.
    """
    prior = check_shares("prior", prior)
    labels = jnp.asarray(check_labels(labels, prior.size))
    counts = jnp.bincount(labels, length=prior.size)
    if not any(isinstance(array, jax.core.Tracer) for array in (labels, prior)):
        empty = np.flatnonzero((np.asarray(prior) > 0) & (np.asarray(counts) == 0))
        if empty.size:
            raise check.UsageError(
                f"class {empty[0]} has prior {float(prior[empty[0]]):.3g} and no test row; give it rows"
            )
    return (prior * labels.size / prior.sum() / jnp.maximum(counts, 1))[labels]


def shifted_test(data: Data, key: Key, class_counts: Counts, direction: str, imbalance: float = 1.0) -> Data:
    """Test rows drawn to the counts of ``shifted_prior``, as SADE's released test sets are; the largest class keeps as
    many as the smallest class of ``data`` has.

    It holds few rows of the rare classes; ``row_weights`` uses all of them.

    Raises:
      UsageError: as ``shifted_prior``; a class without test rows.
    """
    counts = np.asarray(check_counts(class_counts, empty=True))
    direction = check.choose("direction", direction, DIRECTIONS)
    largest = int(np.bincount(np.asarray(data["y"]), minlength=counts.size).min())
    if largest == 0:
        raise check.UsageError("shifted_test: a class has no test row; give it rows")
    if direction == "uniform" and imbalance != 1:
        raise check.UsageError(f"a uniform test set has imbalance 1, got {imbalance}; take forward or backward")
    order = np.argsort(-counts, kind="stable")
    order = order if direction == "forward" else order[::-1]
    return draw_classes(data, key, in_order(long_tail_counts(counts.size, largest, imbalance), order))


def _rank(class_counts: Num[Array, " classes"]) -> Int[Array, " classes"]:
    """0 for the class with most rows; of equal counts the lower label comes first."""
    return jnp.argsort(jnp.argsort(-class_counts, stable=True))
