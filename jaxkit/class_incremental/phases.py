"""What a method says of itself: its phases, what a loss reads, and the settings that every method takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Required, TypedDict

import optax
from jaxtyping import Array

from jaxkit import check
from jaxkit.class_incremental import memory as memories
from jaxkit.class_incremental.memory import Keep
from jaxkit.class_incremental.stream import Stream
from jaxkit.class_incremental.task import Task
from jaxkit.data.transforms import Transform
from jaxkit.learner import Batch, Data, Gradient, Key, Metrics, Outputs, Params, PyTree, TrainState, plain

Hook = Callable[[TrainState, Data, Key], TrainState]

Quota = Callable[[Task, Array, Array], Array]
"""``(task, rows at hand of each class [C], mean cross-entropy of each new class [C]) -> exemplars of each class [C]``,
at the end of a task; for a class at most the rows at hand are kept, and together no more than the memory has slots."""


class View(NamedTuple):
    """What the loss of a phase reads besides the batch.

    Attributes:
      params, variables: of the network, before the step.
      outputs: of the network in training; logits of classes not yet seen are ``AWAY``.
      taught: of the model before the task, as in prediction, its logits among the old classes; None without a teacher.
      task: where in the stream.
      step: int32, updates done in this phase.
      key: for this step.
    """

    params: Params
    variables: PyTree
    outputs: Outputs
    taught: Outputs | None
    task: Task
    step: Array
    key: Key


TaskLoss = Callable[[View, Batch], tuple[Array, Metrics]]


class Phase(NamedTuple):
    """One stretch of every task.

    Attributes:
      name: of its stages, after the task's number.
      loss: ``(view, batch) -> (scalar, metrics)``.
      pool: the rows that it sees, one of ``task.POOLS``.
      share: its share of the steps of a task, by the rows it sees.
      optimizer: in place of the run's.
      freeze: as in ``from_loss``.
      gradient: in place of the run's.
      begin: after what every task's begin does.
      end: before exemplars are chosen.
      after: after they are, with the new memory in the state, for what a method keeps beside each exemplar.
      tasks: which have it: ``all``, the ``first``, or the ``later`` ones.
      train: whether the network computes as in training; False where the phase trains a correction of it.
      held: the share of rows left to the pool ``validation``.
      exemplars: whether the task's exemplars are chosen at its end already, for a later phase on exemplars alone.
    """

    name: str
    loss: TaskLoss
    pool: str = "replay"
    share: float = 1.0
    optimizer: optax.GradientTransformation | None = None
    freeze: str | None = None
    gradient: Gradient | None = None
    begin: Hook | None = None
    end: Hook | None = None
    after: Hook | None = None
    tasks: str = "all"
    train: bool = True
    held: float = 0.0
    exemplars: bool = False


class Settings(TypedDict, total=False):
    """What every method takes beside its own settings.

    Attributes:
      stream: which classes come when; required.
      memory: exemplars in all (2000), or a ``Keep``; methods without exemplars do not take it.
      batch_size: rows of a step (128).
      augment: ``(x, key) -> x`` on the rows of a batch.
      gradient: how gradients are taken.
      quota: how many exemplars of each class are kept in the slots of ``memory``; None: of all classes alike.
    """

    stream: Required[Stream]
    memory: int | Keep
    batch_size: int
    augment: Transform | None
    gradient: Gradient
    quota: Quota | None


class Run(NamedTuple):
    """The settings that every method takes, checked."""

    stream: Stream
    keep: Keep
    batch_size: int
    augment: Transform | None
    gradient: Gradient
    quota: Quota | None = None


def make_run(
    stream: Stream | None = None,
    memory: int | Keep | None = 2000,
    batch_size: int = 128,
    augment: Transform | None = None,
    gradient: Gradient = plain,
    quota: Quota | None = None,
    **unknown: Any,
) -> Run:
    """The settings of a run, see ``Settings``.

    Raises:
      UsageError: no stream, an unknown setting, a memory too small for its classes, a batch size out of range.
    """
    for name in unknown:
        check.choose("setting", name, Settings.__annotations__)
    if not isinstance(stream, Stream):
        raise check.UsageError(
            f"stream must come from class_incremental.make_stream(labels, increment), got {type(stream).__name__}"
        )
    keep = memories.check_keep(memories.make_keep(memory), stream)
    return Run(stream, keep, check.count("batch_size", batch_size), augment, gradient, quota)


def needs_exemplars(name: str, run: Run) -> Run:
    """The run of a method that needs exemplars.

    Raises:
      UsageError: none are kept.
    """
    if run.keep.slots(run.stream.num_classes) == 0:
        raise check.UsageError(f"{name} needs exemplars; take a memory above 0")
    return run
