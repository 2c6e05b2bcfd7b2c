"""One task after another without knowing how many will come: the stages of the next task, and room for its classes.

Nothing in a state knows how many tasks there will be, so the next task is a plan of its own on an open stream
(``stream.open_stream``) that begins with the state of the last (``fit(..., state=...)``). Tasks of equal shapes share
their compiled programs where the method does not read which classes came together.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxkit import check, networks
from jaxkit.class_incremental.given import plain, tupled
from jaxkit.class_incremental.incremental import steps_of
from jaxkit.class_incremental.memory import Keep, Memory
from jaxkit.class_incremental.stream import Stream, open_stream
from jaxkit.learner import Learner, Network, Plan, TrainState
from jaxkit.training import OPTIMIZERS, optimizer

FREE = (
    *("finetune", "replay", "ewc", "si", "mas", "lwf", "icarl", "wa", "lucir", "podnet", "foster", "l2p"),
    *("derpp", "simplecil", "ranpac", "acil", "fetril", "coil", "aanets"),
)
"""Methods that read nothing of tasks but which classes are new, and have no arrays by task: ``GROWING`` and
``SHARING``."""

GROWING = (*FREE, "gem", "agem")
"""Methods whose arrays have an axis of classes but none of tasks: they take any number of tasks, and more classes by
longer arrays. (Of the others BiC has a correction for each task, DER and MEMO a backbone, DyTox a token.)"""

SHARING = (*FREE, "der", "memo")
"""Methods whose programs do not depend on which classes came together, so that later tasks of equal shapes share them.
Others get the true bounds of their tasks, and compile for each task."""

CLOSED = {
    "joint": "joint needs the rows of all classes at each task; train it by fit on make_stream, or start a method with "
    "exemplars, such as replay",
    "rmm": "rmm's policy is for tasks that are known in advance; train it by fit on make_stream, or start foster or "
    "icarl, whose memory it manages",
}
"""Methods that cannot learn so, and what to do instead."""


class Program(NamedTuple):
    """What a model's programs are made from; hashable, so that models with equal ones share them.

    Attributes:
      method: its name in ``METHODS``.
      network: a name of ``jaxkit.networks``, or ``num_classes -> Network``.
      options: of a network by name.
      capacity: the classes for which arrays have room.
      tasks: the tasks for which they have room; counts for methods outside ``GROWING`` alone.
      keep: how many exemplars, and as what.
      batch_size: rows of a step.
      optimizer: a name of ``jaxkit.training.OPTIMIZERS``.
      learning_rate: of it.
      settings: the method's own.
    """

    method: str
    network: str | Callable[[int], Network]
    options: tuple[tuple[str, Any], ...]
    capacity: int
    tasks: int
    keep: Keep
    batch_size: int
    optimizer: str
    learning_rate: float
    settings: tuple[tuple[str, Any], ...]

    @property
    def grows(self) -> bool:
        """Whether its arrays can be made longer for more classes, and tasks need no room."""
        return self.method in GROWING

    def stream(self, known: tuple[int, ...], counts: Any) -> Stream:
        """The open stream of the task after ``known``."""
        return open_stream(known, counts, self.capacity, 0 if self.grows else self.tasks)


def make_program(**given: Any) -> Program:
    """The program from what ``model.start`` was given, with ``options`` and ``settings`` as dicts.

    Raises:
      UsageError: an unknown method or one that cannot learn so, a network that cannot grow, numbers out of range, or
        settings that cannot be compared.
    """
    from jaxkit.class_incremental import METHODS  # the registry stands above this file

    method, network = check.choose("method", given["method"], METHODS), given["network"]
    if method in CLOSED:
        raise check.UsageError(CLOSED[method])
    for name in ("stream", "storage"):
        if name in given["settings"]:
            raise check.UsageError(f"{name} follows from the rows; leave it out")
    if isinstance(network, Network) or not (isinstance(network, str) or callable(network)):
        raise check.UsageError(
            "network must be a name or a function of the number of classes, so that it can grow, such as "
            "lambda n: mlp(n, hidden=(64,))"
        )
    options, settings = (
        tuple(sorted((name, tupled(value)) for name, value in given[part].items())) for part in ("options", "settings")
    )
    if not plain(options):
        raise check.UsageError(
            "network_options must be numbers, text or tuples; for others give a function: network=lambda n: mlp(n, ...)"
        )
    program = Program(
        method=method,
        network=check.choose("network", network, networks.NETWORKS) if isinstance(network, str) else network,
        options=options,
        capacity=given["capacity"],
        tasks=check.count("tasks", given["tasks"]),
        keep=given["keep"],
        batch_size=check.count("batch_size", given["batch_size"]),
        optimizer=check.choose("optimizer", given["optimizer"], OPTIMIZERS),
        learning_rate=float(check.positive("learning_rate", given["learning_rate"])),
        settings=settings,
    )
    try:
        hash(program)
    except TypeError as error:
        raise check.UsageError(f"settings must be numbers, text, tuples or functions: {error}") from None
    return program


@functools.lru_cache(maxsize=64)
def plan_for(program: Program, stream: Stream) -> Plan:
    """The method's plan on a stream."""
    from jaxkit.class_incremental import METHODS  # the registry stands above this file

    if isinstance(program.network, str):
        network = networks.make(program.network, program.capacity, **dict(program.options))
    else:
        network = program.network(program.capacity)
    if not isinstance(network, Network):
        raise check.UsageError(
            f"network must be a name or a function from the number of classes to a Network, it gave a "
            f"{type(network).__name__}"
        )
    return METHODS[program.method].make(
        network,
        optimizer(program.optimizer, program.learning_rate),
        stream=stream,
        memory=program.keep,
        batch_size=program.batch_size,
        **dict(program.settings),
    )


def with_epochs(program: Program, epochs: float) -> Program:
    """The program with the epochs of a task among the settings of a method that reads them."""
    from jaxkit.class_incremental import METHODS  # the registry stands above this file

    if "epochs" not in inspect.signature(METHODS[program.method].make).parameters:
        return program
    return program._replace(settings=(*program.settings, ("epochs", epochs)))


def stages_of(plan: Plan, task: int) -> Plan:
    """The stages of a task, counted from 0."""
    return tuple(stage for stage in plan if stage.name.split(":")[0] == f"task {task + 1}")


def next_stages(program: Program, known: tuple[int, ...], counts: np.ndarray) -> Plan:
    """The stages of the task after ``known``, whose classes have ``counts`` rows.

    Raises:
      UsageError: no room for its classes, or for one more task.
    """
    stages = stages_of(plan_for(program, program.stream(known, counts)), len(known))
    if not known or program.method not in SHARING:
        return stages
    # After one class for all: names and shares are no part of a program.
    shared = stages_of(plan_for(program, program.stream((1,), counts)), 1)
    return tuple(one._replace(name=own.name, share=own.share) for one, own in zip(shared, stages, strict=True))


def steps_for(stages: Plan, epochs: float, batch_size: int) -> int:
    """The steps of a task: those that its stages fix, and ``steps_of`` the others, of which each gets one at least."""
    free = tuple(stage for stage in stages if stage.steps is None)
    fixed = sum(stage.steps for stage in stages if stage.steps is not None)
    if not free:
        return fixed
    shares = [stage.share for stage in free]
    return fixed + max(steps_of(free, epochs, batch_size), math.ceil(sum(shares) / min(shares)))


def reader(program: Program, known: tuple[int, ...]) -> Learner:
    """A learner whose ``predict`` reads the state after ``known``, and whose ``init`` has its shapes."""
    if program.method in SHARING or not known:
        stream = program.stream((), [1])
    else:
        stream = program.stream(known[:-1], np.ones(known[-1] - (known[-2] if len(known) > 1 else 0), int))
    return plan_for(program, stream)[-1].learner


@functools.lru_cache(maxsize=64)
def compiled(predict: Callable) -> Callable:
    """``(state, x, valid) -> outputs``, jitted once for a learner; without ``valid`` all rows are."""
    return jax.jit(lambda state, x, valid=None: predict(state, {"x": x} if valid is None else {"x": x, "valid": valid}))


def between_tasks(state: TrainState) -> TrainState:
    """The state without what every phase starts anew: of the optimizer, of the gradient, and the count of updates."""
    return state._replace(opt_state=(), grad_state=(), step=jnp.zeros((), jnp.int32))


def first_state(program: Program, shape: tuple[int, ...], key: jax.Array) -> TrainState:
    """A state before the first task, for rows of this shape; also for ``jax.eval_shape``."""
    batch = {"x": jnp.zeros((1, *shape), jnp.float32), "y": jnp.zeros((1,), jnp.int32)}
    return between_tasks(reader(program, ()).init(key, batch))


@functools.lru_cache(maxsize=64)
def shapes_of(program: Program, shape: tuple[int, ...]) -> TrainState:
    """The shapes of a state between tasks, for rows of this shape."""
    return jax.eval_shape(lambda: first_state(program, shape, jax.random.key(0)))


def quota(program: Program, shape: tuple[int, ...], classes: int) -> int:
    """Exemplars that each of so many classes must have rows for; 0 for a method without exemplars."""
    remembers = isinstance(shapes_of(program, shape).extra.memory, Memory)
    return int(program.keep.quota(classes)) if remembers and not program.keep.partial else 0


def with_room(program: Program, shape: tuple[int, ...], classes: int, tasks: int, growing: bool) -> Program:
    """The program with room for so many classes, and for one more task after ``tasks``: the same, or one whose room for
    classes is doubled until they fit.

    Raises:
      UsageError: no room and ``growing`` is False, no room for the task, or a memory smaller than one exemplar each.
    """
    if not program.grows and tasks >= program.tasks:
        raise check.UsageError(
            f"{program.method} has arrays for {program.tasks} tasks, and this is one more; start with "
            f"tasks={2 * program.tasks}"
        )
    total = program.keep.total
    if total is not None and classes > total and isinstance(shapes_of(program, shape).extra.memory, Memory):
        raise check.UsageError(
            f"a memory of {total} exemplars is less than one for each of {classes} classes; start with a larger "
            "memory, or with Keep(None, 20) for 20 exemplars of each class"
        )
    capacity = program.capacity
    if classes > capacity and not growing:
        why = "as it was started" if program.grows else f"and {program.method} does not grow"
        raise check.UsageError(
            f"the model has room for {capacity} classes, {why}, and there would be {classes}; start with "
            f"capacity={2 * classes}"
        )
    while capacity < classes:
        capacity *= 2
    return program._replace(capacity=capacity if total is None else max(min(capacity, total), program.capacity))


def widened(state: TrainState, fresh: TrainState) -> TrainState:
    """The state in the arrays of one with room for more classes: what it has at the front of each axis, what ``fresh``
    has behind."""

    def one(old: jax.Array, new: jax.Array) -> jax.Array:
        return old if old.shape == new.shape else new.at[tuple(slice(size) for size in old.shape)].set(old)

    return jax.tree.map(one, state, fresh)
