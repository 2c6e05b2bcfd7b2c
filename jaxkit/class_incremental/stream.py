"""Which classes come when: "Base-m, Inc-n" (Zhou et al. 2024, section 4.1).

Inside the part a class is its place in the stream: labels are 0..C-1 in the order in which classes come, so that the
classes of a task are a range, and another order of the classes is other data under the same program.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from jaxkit import check
from jaxkit.learner import Data

SURVEY_SEED = 1993


class Stream(NamedTuple):
    """A stream of classes as far as shapes and step counts depend on it; the rows are Data.

    Attributes:
      bounds: the classes known after each task, for example (2, 4, 6, 8, 10).
      most_rows: at least the training rows of any class.
      mean_rows: training rows of a class on average, by which steps are shared out.
      room: None where all tasks are known in advance. Else tasks come one at a time, Data has the rows of one task,
        ``begin`` reads from them which classes are new, and ``room`` classes is what the arrays are made for
        (``open_stream``).
    """

    bounds: tuple[int, ...]
    most_rows: int
    mean_rows: float
    room: int | None = None

    @property
    def num_classes(self) -> int:
        """C, the classes of all tasks, or those for which there is room."""
        return self.bounds[-1] if self.room is None else self.room

    @property
    def num_tasks(self) -> int:
        """B."""
        return len(self.bounds)

    @property
    def sizes(self) -> tuple[int, ...]:
        """New classes of each task."""
        return tuple(int(n) for n in np.diff((0, *self.bounds)))

    def task_of(self) -> np.ndarray:
        """The task of each class, int32 [C]; of a class not yet known the last one."""
        known = np.repeat(np.arange(self.num_tasks, dtype=np.int32), self.sizes)
        return np.pad(known, (0, self.num_classes - known.size), constant_values=self.num_tasks - 1)


def class_order(num_classes: int, seed: int = SURVEY_SEED) -> np.ndarray:
    """The order in which classes come: ``np.random.RandomState(seed).permutation(C)``, int64 [C].

    Seed 1993 gives 68, 56, 78, 8, 23, ... for CIFAR-100, the order of the survey and of iCaRL.
    """
    return np.random.RandomState(check.count("seed", seed, 0)).permutation(check.count("num_classes", num_classes))


def bounds_of(num_classes: int, increment: int, base: int = 0) -> tuple[int, ...]:
    """The classes known after each task: ``base`` first (0: ``increment``), then ``increment`` more at a time; the last
    task has what is left.

    Raises:
      UsageError: numbers out of range, or ``base`` beyond the classes.
    """
    num_classes, increment = check.count("num_classes", num_classes), check.count("increment", increment)
    base = check.count("base", base, 0) or increment
    if base > num_classes:
        raise check.UsageError(f"the first task would have {base} classes, the stream has {num_classes}; lower base")
    return (*range(base, num_classes, increment), num_classes)


def make_stream(labels: Any, increment: int, base: int = 0) -> Stream:
    """The stream of a training set by its labels, 0..C-1 with none absent.

    Args:
      labels: of the training rows, [rows].
      increment: new classes of a task ("Inc-n").
      base: classes of the first task ("Base-m"); 0 is the equal split.

    Raises:
      UsageError: labels that are not 0..C-1, or an absent class.
    """
    counts = class_counts(labels)
    return Stream(bounds_of(counts.size, increment, base), int(counts.max()), float(counts.mean()))


def open_stream(known: tuple[int, ...], counts: Any, room: int, num_tasks: int = 0) -> Stream:
    """The stream of which one task is at hand, the next after those with the bounds ``known``.

    Args:
      known: the classes known after each task so far; () before the first.
      counts: the training rows of each new class, [new classes].
      room: the classes for which the arrays have room.
      num_tasks: the tasks for which a method that has arrays by task has room; 0: no more than there are.

    Returns:
      A stream whose task ``len(known)`` is the one at hand; bounds after it repeat its own.

    Raises:
      UsageError: no room for the task.
    """
    counts = np.asarray(counts)
    seen = (known[-1] if known else 0) + check.count("new classes", counts.size)
    if seen > room:
        raise check.UsageError(f"there is room for {room} classes, and with this task there are {seen}")
    if num_tasks and len(known) >= num_tasks:
        raise check.UsageError(f"there is room for {num_tasks} tasks, and this is task {len(known) + 1}")
    bounds = (*known, *[seen] * (max(num_tasks, len(known) + 1) - len(known)))
    return Stream(bounds, int(counts.max()), float(counts.mean()), room)


def class_counts(labels: Any, num_classes: int | None = None) -> np.ndarray:
    """Rows of each class, [C].

    Raises:
      UsageError: no rows, labels that are no whole numbers from 0 on, or a class without rows.
    """
    labels = np.asarray(labels)
    if labels.ndim != 1 or labels.size == 0 or not np.issubdtype(labels.dtype, np.integer):
        raise check.UsageError(f"labels must be whole numbers [rows], got {labels.dtype}{list(labels.shape)}")
    last = labels.max() if num_classes is None else num_classes - 1
    if labels.min() < 0 or labels.max() > last:
        raise check.UsageError(f"labels must lie in 0..{last}, got {labels.min()}..{labels.max()}")
    counts = np.bincount(labels, minlength=last + 1)
    if (counts == 0).any():
        raise check.UsageError(
            f"class {int(np.argmin(counts))} has no rows; number the classes 0..{np.count_nonzero(counts) - 1} "
            "without a gap"
        )
    return counts


def in_order(data: Data, order: Int[np.ndarray, " classes"]) -> Data:
    """The data with ``y`` as places in the stream: class ``order[i]`` becomes i.

    Raises:
      UsageError: an order in which a class stands twice or is absent, or labels outside it.
    """
    order, labels = np.asarray(order), np.asarray(data["y"])
    if order.ndim != 1 or not np.array_equal(np.sort(order), np.arange(order.size)):
        raise check.UsageError(f"an order holds each of 0..{max(order.size - 1, 0)} once, got {order.tolist()}")
    if labels.size and (labels.min() < 0 or labels.max() >= order.size):
        raise check.UsageError(
            f"labels outside the order: it has {order.size} classes, the labels are {labels.min()}..{labels.max()}"
        )
    return {**data, "y": np.argsort(order).astype(np.int32)[labels]}
