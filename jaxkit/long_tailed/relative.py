"""Relative accuracy: how much of what a method could reach on balanced data it reaches on the long tail.

A_r = A_t / A_u with A_u = max(A_v, A_b) (Zhang et al. 2023, section 4.2), all on one balanced test set:

* A_t: the method, trained on the long-tailed set;
* A_b: the same method, trained on the balanced twin (as many rows in all, the same number of each class);
* A_v: plain softmax cross-entropy on the balanced twin, one training for each data set, schedule and seed, shared by
  all methods.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxkit import check
from jaxkit.evaluation import Interval, mean_interval
from jaxkit.evaluation.intervals import finite_vector
from jaxkit.long_tailed.counts import concrete

VANILLA = "softmax"


Accuracies = Float[Array | np.ndarray, "*runs"] | float


def upper_reference(vanilla: Accuracies, balanced: Accuracies) -> Float[Array, "*runs"]:
    """A_u = max(A_v, A_b)."""
    return jnp.maximum(jnp.asarray(vanilla), jnp.asarray(balanced))


def relative_accuracy(long_tailed: Accuracies, vanilla: Accuracies, balanced: Accuracies) -> Float[Array, "*runs"]:
    """A_r = A_t / max(A_v, A_b), a fraction, run by run.

    Args:
      long_tailed: A_t, any unit.
      vanilla: A_v, the same unit.
      balanced: A_b, the same unit.

    Raises:
      UsageError: fractions beside per cent, or a reference of 0, where these are concrete.
    """
    named = {"long_tailed": long_tailed, "vanilla": vanilla, "balanced": balanced}
    reference = upper_reference(vanilla, balanced)
    if all(concrete(values) for values in (*named.values(), reference)):
        _check_unit(named)
        if (np.asarray(reference) == 0).any():
            raise check.UsageError(
                "relative accuracy divides by max(vanilla, balanced), which is 0 for one of the runs"
            )
    return jnp.asarray(long_tailed) / reference


def _check_unit(named: Mapping[str, Any]) -> None:
    """That not some are fractions and others per cent, as far as one can see: 0 is either."""
    largest = {name: np.max(values, initial=0) for name, values in named.items()}
    fractions = [name for name, value in largest.items() if 0 < value <= 1]
    percent = [name for name, value in largest.items() if value > 1]
    if fractions and percent:
        raise check.UsageError(
            f"accuracies must be of one unit: {', '.join(fractions)} at most 1 and {', '.join(percent)} above 1; "
            "divide those in per cent by 100"
        )


def relative_interval(long_tailed: Any, vanilla: Any, balanced: Any, level: float | int = 0.95) -> Interval:
    """The mean over seeds of A_t / max(A_v, A_b) with its t-interval; the three of one seed share data and test set.

    Each seed gives one ratio, so what a seed does to all three accuracies cancels. The greater of two noisy accuracies
    is a little too high on average, hence A_r a little too low, the less so the more test rows there are.

    Args:
      long_tailed: A_t, one number per seed.
      vanilla: A_v, in the same order of seeds.
      balanced: A_b, likewise.
      level: coverage.

    Raises:
      UsageError: a value that is not finite or below 0, fractions beside per cent, reference accuracies of 0, or not
        the same number of seeds.
    """
    named = {"long_tailed": long_tailed, "vanilla": vanilla, "balanced": balanced}
    vectors = {name: finite_vector(name, values) for name, values in named.items()}
    sizes = {name: vector.size for name, vector in vectors.items()}
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"{name} {size}" for name, size in sizes.items())
        raise check.UsageError(f"relative accuracy pairs its three accuracies by seed, got {listed} values")
    for name, vector in vectors.items():
        if (vector < 0).any():
            raise check.UsageError(f"{name}: an accuracy is not negative, got {vector.min():g}")
    _check_unit(vectors)
    at, av, ab = vectors.values()
    reference = av.clip(min=ab)
    if (reference == 0).any():
        raise check.UsageError("relative accuracy divides by max(vanilla, balanced), which is 0 for one of the seeds")
    return mean_interval(at / reference, level, name="relative accuracy")


class Training(NamedTuple):
    """One training of a study.

    Attributes:
      data: the data set with its profile.
      schedule: what is trained how long.
      method: what is trained.
      seed: the run.
      balanced: on the balanced twin, else on the long tail.
    """

    data: str
    schedule: str
    method: str
    seed: int
    balanced: bool


def plan_trainings(
    methods: Sequence[str],
    *,
    seeds: int,
    data: Sequence[str] = ("",),
    schedules: Sequence[str] = ("",),
    relative: bool = True,
    vanilla: str = VANILLA,
) -> tuple[Training, ...]:
    """The trainings that a table of accuracies (and relative accuracies) needs, each once, long tail first.

    Every method on the long tail; with ``relative`` also every method, and ``vanilla``, on the balanced twin. The
    vanilla method's A_b is its A_v. With m methods besides vanilla that is 2 m + 1 trainings for each data set,
    schedule and seed, and one more where vanilla is itself a row.

    Args:
      methods: the rows of the table.
      seeds: runs of each.
      data: data sets.
      schedules: for example lengths of training.
      relative: whether relative accuracy is asked for.
      vanilla: the method that gives A_v.

    Raises:
      UsageError: no method, or one named twice.
    """
    check.count("seeds", seeds)
    for kind, named in (("methods", methods), ("data", data), ("schedules", schedules)):
        if isinstance(named, str) or not named or len(set(named)) < len(named):
            raise check.UsageError(f"{kind} must be different names, at least one, got {named!r}")
    twin_rows = list(dict.fromkeys([vanilla, *methods])) if relative else []
    return tuple(
        Training(one, schedule, method, seed, balanced)
        for balanced, named in ((False, methods), (True, twin_rows))
        for one in data
        for schedule in schedules
        for method in named
        for seed in range(seeds)
    )


def describe(trainings: Sequence[Training]) -> str:
    """How many trainings there are and what for, in one line to print before they start."""
    twin = sum(one.balanced for one in trainings)
    line = f"{len(trainings)} trainings: {len(trainings) - twin} on the long tail"
    if not twin:
        return f"{line}; no relative accuracy"
    return f"{line}, {twin} on the balanced twin for relative accuracy"
