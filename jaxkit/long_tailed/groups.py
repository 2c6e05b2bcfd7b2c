"""Many-, medium- and few-shot classes, and accuracy within each.

The groups follow the number of training rows of a class: many n > 100, medium 20 <= n <= 100, few n < 20 (Liu et al.
2019; Kang et al. 2020; Zhang et al. 2023). A set of ten classes may have no class in one of them: ``by="rank"`` takes
thirds of the classes by their count instead. The two are different figures; a table names the one that it shows.

A group's accuracy is the mean of the accuracies of its classes, as in the published code; on a balanced test set that
is the accuracy of its rows. A group without a class (or whose classes have no test row) is nan on the device, None on
the host and ``-`` in a table, and is in no mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxkit import check
from jaxkit.evaluation import accuracy, per_class_accuracy
from jaxkit.evaluation.rows import Decisions, Labels, Logits, Valid, entry
from jaxkit.long_tailed.counts import Counts, check_counts, concrete

MANY, FEW = 100, 20
"""A class is many-shot above 100 training rows and few-shot below 20."""

GROUPS = ("many", "medium", "few")
RULES = ("shots", "rank")


def class_groups(class_counts: Counts, *, by: str = "shots") -> Int[Array, " classes"]:
    """The group of each class: 0 many, 1 medium, 2 few.

    Args:
      class_counts: training rows of each class; may be traced.
      by: ``shots``: many n > 100, medium 20 <= n <= 100, few n < 20. ``rank``: thirds of the classes from the largest
        to the smallest (of equal counts the lower label first); where C is no multiple of 3, the first are larger.

    Raises:
      UsageError: counts that are none, shares in their place for ``shots``, or an unknown rule.
    """
    by = check.choose("groups rule", by, RULES)
    counts = check_counts(class_counts, empty=True, least=1.0 if by == "shots" else 0.0)
    if by == "shots":
        return jnp.where(counts > MANY, 0, jnp.where(counts >= FEW, 1, 2)).astype(jnp.int32)
    rank = jnp.argsort(jnp.argsort(-counts, stable=True))
    return (rank * len(GROUPS) // counts.size).astype(jnp.int32)


def group_accuracies(
    outputs: Logits | Decisions, labels: Labels, class_counts: Counts, *, by: str = "shots", valid: Valid | None = None
) -> dict[str, Float[Array, ""]]:
    """``accuracy`` of all rows, and of ``many``, ``medium`` and ``few`` the mean accuracy of their classes.

    Inside jit and vmap too; an empty group is nan.

    Args:
      outputs: logits [batch, C] or predicted classes [batch].
      labels: [batch].
      class_counts: training rows of each class.
      by: the rule of ``class_groups``.
      valid: False for rows of padding.

    Raises:
      UsageError: labels or counts that do not belong together.
    """
    groups = class_groups(class_counts, by=by)
    by_class = per_class_accuracy(outputs, labels, valid, groups.size)
    seen = ~jnp.isnan(by_class)

    def mean_of(number: int) -> Float[Array, ""]:
        inside = seen & (groups == number)
        return jnp.where(inside, by_class, 0.0).sum() / inside.sum()  # 0 / 0 is nan

    return {"accuracy": accuracy(outputs, labels, valid), **{g: mean_of(i) for i, g in enumerate(GROUPS)}}


def measure(
    outputs: Mapping[str, Any], data: Mapping[str, Any], *, class_counts: Counts, by: str = "shots"
) -> dict[str, Float[Array, ""]]:
    """``group_accuracies`` as the trainer's measure: ``Evaluation(test, functools.partial(measure, class_counts=n))``.

    Raises:
      UsageError: outputs without ``logits``, or data without ``y``.
    """
    logits, y = entry("outputs", outputs, "logits"), entry("data", data, "y")
    return group_accuracies(logits, y, class_counts, by=by, valid=data.get("valid"))


def present(accuracies: Mapping[str, Any]) -> dict[str, np.ndarray | None]:
    """The host's view of ``group_accuracies``, of one run or of several (arrays over seeds): float64, None where a
    group is empty.

    Raises:
      UsageError: a group is empty in some of the runs only: they are no repetitions of one setting.
    """
    view: dict[str, np.ndarray | None] = {}
    for name, values in accuracies.items():
        array = np.asarray(values, np.float64)
        empty = np.isnan(array)
        if empty.any() and not empty.all():
            raise check.UsageError(
                f"group {name!r} is empty in {int(empty.sum())} of {array.size} runs; compare runs of one profile"
            )
        view[name] = None if empty.all() else array
    return view


def accuracy_under(
    class_accuracy: Float[Array | np.ndarray, "*runs classes"], prior: Float[Array | np.ndarray, " classes"]
) -> Float[Array, "*runs"]:
    """sum_c prior_c a_c: the accuracy that a test set with this class prior would show.

    From the accuracies of the classes on any test set; no row is drawn, so its error is that of the whole test set. A
    class that has prior but no accuracy (nan) gives nan. A prior that does not sum to 1 is divided by its sum.

    Raises:
      UsageError: a prior of another length, or (where it is concrete) one that is negative, not finite or all zero.
    """
    class_accuracy = jnp.asarray(class_accuracy)
    prior = check_shares("prior", prior, class_accuracy.shape[-1])
    return jnp.where(prior > 0, class_accuracy * prior, 0.0).sum(-1) / prior.sum()


def check_shares(name: str, prior: Any, num_classes: int | None = None) -> Float[Array, " classes"]:
    """``prior`` as an array, if it may be a prior but for its sum; some classes may have none.

    Raises:
      UsageError: not a vector of ``num_classes`` numbers; negative, not finite or all zero, where it is concrete.
    """
    given = jnp.asarray(prior)
    if given.ndim != 1 or num_classes not in (None, given.size):
        wanted = "one number for each class" if num_classes is None else f"{num_classes} numbers, one for each class"
        raise check.UsageError(f"{name} must be {wanted}, got the shape {list(given.shape)}")
    if concrete(given):
        values = np.asarray(given)
        bad = np.flatnonzero(~(np.isfinite(values) & (values >= 0)))
        if bad.size:
            raise check.UsageError(
                f"{name}[{bad[0]}] is {values[bad[0]]}; the share of a class is finite and at least 0"
            )
        if not values.sum() > 0:
            raise check.UsageError(f"{name} is 0 for every class; give one of them a share")
    return given
