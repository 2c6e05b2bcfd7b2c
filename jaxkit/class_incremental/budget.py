"""The memory budget: what a method keeps, in bytes, and how many exemplars make two methods equal.

The survey's rule counts the backbones that answer after the last task, four bytes a parameter, and the exemplars, a
byte a value. It leaves out heads, statistics, teachers, importances and the optimizer; ``full_bytes`` counts all of
them as they are. Megabytes are 2^20 bytes. Counts of exemplars are rounded down, so that a budget is never exceeded.

Source: Zhou et al. 2023, A model or 603 exemplars, ICLR; Zhou et al. 2024, Class-incremental learning: a survey, TPAMI,
section 5 and supplement.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from jaxkit import check
from jaxkit.class_incremental.memory import STORAGES
from jaxkit.class_incremental.parts import Parts
from jaxkit.class_incremental.task import Task
from jaxkit.learner import State

MEGABYTE = 2**20
PARAMETER_BYTES = 4


def model_bytes(parameters: int) -> int:
    """4 P, the bytes of P parameters."""
    return PARAMETER_BYTES * check.count("parameters", parameters, 0)


def exemplars_for(parameters: int, image_bytes: int) -> float:
    """4 P / bytes(exemplar), what a model weighs in exemplars, not rounded.

    603.5 CIFAR images for ResNet-32 and 296.99 of ImageNet for ResNet-18; the literature rounds the first down to 603
    and the second to 297.
    """
    return model_bytes(parameters) / check.count("image_bytes", image_bytes)


def exemplar_bytes(shape: tuple[int, ...], storage: str = "uint8") -> int:
    """The bytes of an exemplar of this shape: H W C as ``uint8``, four times as many as ``float32``."""
    for size in shape:
        check.count("an axis of an exemplar", size)
    storage = check.choose("storage", storage, STORAGES)
    return int(np.prod(shape, dtype=np.int64)) * np.dtype(storage).itemsize


def backbones(method: str, tasks: int) -> tuple[int, int]:
    """How often a method has each part of a backbone after so many tasks: (the shared stages, the others).

    One of both for a single network, to which FOSTER is compressed; T for DER; one and T for MEMO; two for AANets,
    whose scaling weights and fusion weights are not counted.

    Raises:
      UsageError: an unknown method, or no tasks.
    """
    from jaxkit.class_incremental import METHODS  # the registry stands above this file

    tasks = check.count("tasks", tasks)
    many = {"der": (tasks, tasks), "memo": (1, tasks), "aanets": (2, 2)}
    return many.get(check.choose("method", method, {**METHODS, **many}), (1, 1))


def kept_bytes(method: str, tasks: int, parameters: Parts, exemplars: int, image_bytes: int) -> int:
    """The survey's rule: 4 (parameters of the backbones of ``backbones``) + M bytes(exemplar), after so many tasks."""
    kept = int(parameters.times(*backbones(method, tasks)))
    return model_bytes(kept) + check.count("exemplars", exemplars, 0) * check.count("image_bytes", image_bytes)


def exemplars_within(total: int, method: str, tasks: int, parameters: Parts, image_bytes: int) -> int:
    """The most exemplars with which a method stays within ``total`` bytes by the survey's rule.

    Raises:
      UsageError: the backbones alone take more.
    """
    models = kept_bytes(method, tasks, parameters, 0, image_bytes)
    if models > total:
        raise check.UsageError(
            f"the backbones of {method} take {models} bytes after {tasks} tasks, more than the {total} of the budget; "
            "take a smaller network or a larger budget"
        )
    return (total - models) // image_bytes


def aligned_exemplars(
    method: str, tasks: int, parameters: Parts, image_bytes: int, *, base: int = 2000, reference: str = "der"
) -> int:
    """The exemplars with which a method takes the bytes of a reference method with ``base`` of them, within one.

    For a single network beside DER E = base + floor(4 P (T - 1) / bytes(exemplar)); for MEMO E = base +
    floor(4 (P T - (g + s T)) / bytes(exemplar)), g and s the parameters of its shared and its other stages. With
    ResNet-32 and CIFAR-100 that is 7,431 (T = 10) and 13,466 (T = 20); MEMO 3,312 and 4,771.

    Args:
      method: who gets exemplars.
      tasks: T.
      parameters: of the backbone, from ``parts.parameters_of``.
      image_bytes: of an exemplar, from ``exemplar_bytes``.
      base: exemplars of the reference.
      reference: whose bytes count.

    Raises:
      UsageError: as of ``exemplars_within``.
    """
    total = kept_bytes(reference, tasks, parameters, base, image_bytes)
    return exemplars_within(total, method, tasks, parameters, image_bytes)


def curve_bytes(tasks: int, parameters: Parts, image_bytes: int, *, base: int = 2000, points: int = 5) -> list[int]:
    """Budgets at equal distances, from a single network to DER, each with ``base`` exemplars.

    They are the ends of the survey's curve; DER itself fits only the last, and takes smaller backbones before.
    """
    least, most = (kept_bytes(name, tasks, parameters, base, image_bytes) for name in ("replay", "der"))
    return [int(total) for total in np.linspace(least, most, check.count("points", points, 2))]


def area_under_curve(
    megabytes: Float[np.ndarray, " points"], accuracy: Float[np.ndarray, "*runs budgets"], *, normalised: bool = False
) -> np.ndarray:
    """The area under accuracy against memory by the trapezoid rule: AUC-A of average, AUC-L of last accuracies.

    The survey's is not normalised, so in accuracy times MB: a constant accuracy of 0.271 from 7.6 to 23.5 MB is 4.31.
    The survey prints no formula; this one gives back its numbers for GEM, whose accuracy hardly changes.

    Args:
      megabytes: the budgets, increasing.
      accuracy: at each of them, as a fraction; axes for runs may stand before.
      normalised: divide by the range of the budgets, which gives a mean accuracy.

    Raises:
      UsageError: fewer than two budgets, budgets that do not increase, or accuracies that are no fractions.
    """
    m, a = np.asarray(megabytes, np.float64), np.asarray(accuracy, np.float64)
    if m.ndim != 1 or m.size < 2 or not (np.diff(m) > 0).all() or not np.isfinite(m).all():
        raise check.UsageError(f"megabytes must be two or more increasing numbers, got {m.tolist()}")
    if a.ndim < 1 or a.shape[-1] != m.size:
        raise check.UsageError(f"accuracy must have one value for each of {m.size} budgets, got {list(a.shape)}")
    if not ((a >= 0) & (a <= 1)).all():
        raise check.UsageError(f"accuracy must be a fraction in [0, 1], got {np.min(a):g}..{np.max(a):g}")
    area = np.asarray(np.trapezoid(a, m))
    return np.asarray(area / (m[-1] - m[0])) if normalised else area


class Bytes(NamedTuple):
    """What a state holds, in bytes, by kind.

    Attributes:
      backbones: trained parameters outside heads.
      heads: parameters under ``head``, ``aux`` or ``rectify``, and BiC's corrections of all tasks.
      frozen: networks of earlier tasks among the variables, with their room (DER, MEMO, FOSTER).
      statistics: the other variables.
      teacher: the model before the task.
      own: the method's arrays (importances).
      means: class means of the nearest-mean read-out.
      exemplars: the memory with all its slots, as stored, and its counts.
      counters: where in the stream and in training.
      optimizer: its state and the gradient's; only while training goes on, and not part of ``total``.
    """

    backbones: int = 0
    heads: int = 0
    frozen: int = 0
    statistics: int = 0
    teacher: int = 0
    own: int = 0
    means: int = 0
    exemplars: int = 0
    counters: int = 0
    optimizer: int = 0

    @property
    def total(self) -> int:
        """All but the optimizer."""
        return sum(self) - self.optimizer


def full_bytes(state: State) -> Bytes:
    """The full rule: every array of a state, or of its shapes (``jax.eval_shape``), as it is.

    States of several seeds side by side count as many times.

    Raises:
      UsageError: not the state of a class-incremental method.
    """
    task: Any = getattr(state, "extra", None)
    if not isinstance(task, Task):
        raise check.UsageError(
            f"full_bytes counts the state of a class-incremental method, fit(...).state, got {type(state).__name__}"
        )
    size = lambda tree: sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
    under = lambda tree, *names: size(
        [leaf for path, leaf in jax.tree.leaves_with_path(tree) if {getattr(k, "key", None) for k in path} & {*names}]
    )
    heads, table = under(state.params, "head", "aux", "rectify"), under(state.variables, "alpha", "beta")
    frozen = under(state.variables, "frozen", "old")
    return Bytes(
        backbones=size(state.params) - heads,
        heads=heads + table,
        frozen=frozen,
        statistics=size(state.variables) - frozen - table,
        teacher=size(task.teacher),
        own=size(task.own),
        means=size(task.means),
        exemplars=size(task.memory),
        counters=size((task.number, task.old, task.seen, state.step)),
        optimizer=size((state.opt_state, state.grad_state)),
    )


class Point(NamedTuple):
    """A budget of the survey's curves.

    Attributes:
      megabytes: as printed.
      exemplars: of single networks.
      backbone: of DER and MEMO.
      der, memo: their exemplars.
    """

    megabytes: float
    exemplars: int
    backbone: str
    der: int
    memo: int


POINTS = {
    "cifar100_b0_inc10": (
        Point(7.6, 2000, "ConvNet2", 2096, 2118),
        Point(12.4, 3634, "ResNet14", 2000, 2495),
        Point(16.0, 4900, "ResNet20", 2000, 2768),
        Point(19.8, 6165, "ResNet26", 2000, 3040),
        Point(23.5, 7431, "ResNet32", 2000, 3312),
    ),
    "imagenet100_b50_inc5": (
        Point(329, 2000, "ConvNet4", 2032, 2115),
        Point(493, 3136, "ResNet10", 2000, 2327),
        Point(755, 4970, "ResNet18", 2000, 2739),
        Point(872, 5779, "ResNet26", 2000, 2915),
        Point(1180, 7924, "ResNet34", 2000, 4170),
        Point(1273, 8574, "ResNet50", 2000, 4270),
    ),
}
"""Zhou et al. 2024, Tables 8 to 18. Counts are rounded down, but for the 4,970 of ImageNet-100, which is 4,969.95."""


def budget_points(setting: str) -> tuple[Point, ...]:
    """The budgets of the survey's curves for ``cifar100_b0_inc10`` or ``imagenet100_b50_inc5``."""
    return POINTS[check.choose("setting of the curve", setting, POINTS)]
