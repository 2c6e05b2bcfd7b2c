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
from jaxkit.long_tailed.counts import Counts, check_counts

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
      UsageError: counts that are none, or an unknown rule.
    """
    counts = check_counts(class_counts, empty=True)
    if check.choose("groups rule", by, RULES) == "shots":
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
    class that has prior but no accuracy (nan) gives nan.
    """
    class_accuracy, prior = jnp.asarray(class_accuracy), jnp.asarray(prior)
    return jnp.where(prior > 0, class_accuracy * prior, 0.0).sum(-1) / prior.sum()
