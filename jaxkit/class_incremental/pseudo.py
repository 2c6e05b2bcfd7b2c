"""Pseudo-tasks: streams of classes made of training rows alone, to choose on what no test row may choose.

Source: Liu et al. 2021, RMM: reinforced memory management for class-incremental learning, NeurIPS, where they are made
of the data of the first phase.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from jaxkit import check
from jaxkit.class_incremental.stream import Stream, class_counts
from jaxkit.learner import Data


class Pseudo(NamedTuple):
    """A pseudo-task.

    Attributes:
      train, validation: x and y, labels as places in the pseudo-stream; ``index`` is the row of the data it is made of.
      order: the class at each place.
    """

    train: Data
    validation: Data
    order: Int[np.ndarray, " classes"]


def pseudo_stream(stream: Stream, classes: int | None = None, held: float = 0.2) -> Stream:
    """The stream of a pseudo-task: as many tasks as ``stream`` has, in the same proportions, of ``classes`` classes.

    Args:
      stream: that the policy is for.
      classes: how many, the first ones of the stream; None: all. The paper's are those of the first task.
      held: the share of the rows of each class that ``pseudo_task`` keeps for validation.

    Raises:
      UsageError: fewer classes than tasks or more than there are.
    """
    classes = stream.num_classes if classes is None else check.count("classes", classes, stream.num_tasks)
    if classes > stream.num_classes:
        raise check.UsageError(f"classes={classes}, but the stream has {stream.num_classes}; take no more")
    _held(held)
    bounds: list[int] = []
    for task, bound in enumerate(stream.bounds):  # at least one class for each task before and after
        last = classes - (stream.num_tasks - 1 - task)
        bounds.append(min(max(round(bound * classes / stream.num_classes), (bounds or [0])[-1] + 1), last))
    return Stream(tuple(bounds), stream.most_rows, stream.mean_rows * (1.0 - held))


def pseudo_task(data: Data, seed: int, *, classes: int | None = None, held: float = 0.2) -> Pseudo:
    """A pseudo-task: the classes in an order drawn anew, and of each class ``held`` of the rows, at least one, drawn
    for validation.

    Args:
      data: training rows, x [rows, ...] and y, places in the stream.
      seed: of the order and the split.
      classes, held: as of ``pseudo_stream``.

    Raises:
      UsageError: labels that are not 0..C-1, more classes than there are, or a class with one row.
    """
    random, labels, _ = np.random.default_rng(check.count("seed", seed, 0)), np.asarray(data["y"]), _held(held)
    counts = class_counts(labels)
    classes = counts.size if classes is None else check.count("classes", classes)
    if classes > counts.size:
        raise check.UsageError(f"classes={classes}, but data has {counts.size}; take no more")
    if counts[:classes].min() < 2:
        raise check.UsageError(
            f"class {int(counts[:classes].argmin())} has one row; a pseudo-task takes one for training and one for "
            "validation of each class"
        )
    order, kept, judged = random.permutation(classes), [], []
    for c in range(classes):
        rows = random.permutation(np.flatnonzero(labels == c))
        back = max(int(held * rows.size), 1)
        judged.append(rows[:back]), kept.append(rows[back:])
    place = np.argsort(order).astype(np.int32)
    part = lambda rows: {"x": np.asarray(data["x"])[rows], "y": place[labels[rows]], "index": rows.astype(np.int32)}
    return Pseudo(part(np.concatenate(kept)), part(np.concatenate(judged)), order)


def _held(held: float) -> None:
    """A share that leaves rows for training."""
    check.number("held", held, 0.0, 0.9, open_low=True)
