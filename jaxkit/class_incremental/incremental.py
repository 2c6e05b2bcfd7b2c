"""A class-incremental run as a plan: one or more stages for each task, under one learner for all tasks.

``plan_of`` makes it from phases. A phase is a loss and the rows it sees; what every method needs stands here: the head
has room for all classes and those not yet seen take no part, ``begin`` moves on to the next task, gives its classes
fresh columns and copies the teacher, ``end`` chooses exemplars and class means. Since the task is a number in the state
and not a shape, the tasks share one compiled program.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from jaxkit import check
from jaxkit.class_incremental import memory as memories
from jaxkit.class_incremental.herding import herding
from jaxkit.class_incremental.memory import Memory
from jaxkit.class_incremental.phases import Hook, Phase, Run, View
from jaxkit.class_incremental.readout import among, class_means, nearest_mean
from jaxkit.class_incremental.stream import Stream
from jaxkit.class_incremental.task import Task, grouped, pool_source, rows_of_new
from jaxkit.learner import (
    Batch,
    Data,
    Gradient,
    Key,
    Learner,
    LossState,
    Network,
    Outputs,
    Params,
    Plan,
    PyTree,
    Stage,
    State,
    TrainState,
    from_loss,
    split_params,
)
from jaxkit.losses import cross_entropy
from jaxkit.training import predict_all


def plan_of(
    network: Network,
    optimizer: optax.GradientTransformation,
    phases: tuple[Phase, ...],
    run: Run,
    *,
    teacher: bool = False,
    own: Callable[[Params, PyTree], PyTree] = lambda params, variables: (),
    grow: Callable[[TrainState, TrainState, Key], TrainState] | None = None,
) -> Plan:
    """The plan of a method.

    Args:
      network: with ``logits`` for all classes of the stream, and ``features``.
      optimizer: started anew at each phase.
      phases: of each task; exemplars and class means are those at the end of a task's last phase.
      run: what every method takes.
      teacher: whether the model before the task is kept for the loss.
      own: ``(params, variables) -> arrays`` of the method, at the start of the first task.
      grow: ``(state, fresh, key) -> state`` at the start of later tasks, for what a method adds to a network;
        ``fresh`` is a first state with other random numbers. None: fresh columns of the head for the new classes.
    """
    stream, keep = run.stream, run.keep
    learners = [learner_of(network, optimizer, phase, run, teacher, own) for phase in phases]
    sources = [
        pool_source(phase.pool, run.batch_size, stream, keep, augment=run.augment, held=phase.held) for phase in phases
    ]

    def opened(number: int) -> Hook:
        """The start of a task: the next number, the teacher, columns for its classes, then the phase's own begin."""
        learner, phase = learners[number], phases[number]

        def begin(state: TrainState | None, data: Data, key: Key) -> TrainState:
            fresh = learner.init(key, example_of(data))
            if state is None:
                state = advanced(fresh, stream, data)
            else:
                state = advanced(state, stream, data)
                if teacher:
                    copied = jax.tree.map(jnp.copy, (state.params, state.variables))
                    state = state._replace(extra=state.extra._replace(teacher=copied))
                state = (grow or new_columns)(state, fresh, key)
            return restarted(state, optimizer, run.gradient, phase, data, key)

        return begin

    def went_on(number: int) -> Hook:
        return lambda state, data, key: restarted(state, optimizer, run.gradient, phases[number], data, key)

    begins = {number: went_on(number) for number in range(len(phases))}
    firsts = {number: opened(number) for number in range(len(phases))}
    ends: dict[tuple[int, int], Hook] = {}

    def closed(number: int, width: int, last: bool) -> Hook | None:
        if not last and not phases[number].exemplars:
            return phases[number].end
        if (number, width) not in ends:
            own_end, after = phases[number].end, phases[number].after

            def end(state: TrainState, data: Data, key: Key) -> TrainState:
                state = state if own_end is None else own_end(state, data, key)
                if phases[number].pool == "all":
                    state = with_means_of_all(state, data, learners[number], run)
                else:
                    state = remembered(state, data, learners[number], run, width)
                return state if after is None else after(state, data, key)

            ends[number, width] = end
        return ends[number, width]

    stages = []
    for task, width in enumerate(stream.sizes):
        here = [number for number, phase in enumerate(phases) if phase.tasks in ("all", "later" if task else "first")]
        for number in here:
            name = f"task {task + 1}" + (f": {phases[number].name}" if len({p.name for p in phases}) > 1 else "")
            stages.append(
                Stage(
                    name,
                    learners[number],
                    sources[number],
                    share=phases[number].share * rows_seen(phases[number].pool, run, task),
                    begin=firsts[number] if number == here[0] else begins[number],
                    end=closed(number, width, number == here[-1]),
                )
            )
    return tuple(stages)


def example_of(data: Data) -> Batch:
    """A batch of one row."""
    return {"x": jnp.asarray(data["x"])[:1], "y": jnp.zeros((1,), jnp.int32)}


def rows_seen(pool: str, run: Run, task: int) -> float:
    """About how many rows an epoch of a task has, for a class of average size."""
    bounds = (0, *run.stream.bounds)
    old, seen, mean = bounds[task], bounds[task + 1], run.stream.mean_rows
    kept = 0.0 if run.keep.slots(seen) == 0 else min(float(run.keep.quota(seen)), mean)
    before = 0.0 if not old or run.keep.slots(seen) == 0 else min(float(run.keep.quota(old)), mean)
    return {
        "new": (seen - old) * mean,
        "replay": (seen - old) * mean + old * before,
        "exemplars": seen * kept or (seen - old) * mean,
        "all": seen * mean,
        "validation": (seen - old) * mean + old * before,
    }[pool]


def steps_of(plan: Plan, epochs: float, batch_size: int) -> int:
    """The steps with which ``fit`` goes about ``epochs`` times over the rows of each phase of share 1.

    The shares of a plan of this part are rows: ``fit(plan, data, steps=steps_of(plan, 40, batch_size=64), ...)``.
    """
    check.positive("epochs", epochs)
    rows = sum(stage.share for stage in plan)
    return max(round(epochs * rows / check.count("batch_size", batch_size)), len(plan))


def learner_of(
    network: Network,
    optimizer: optax.GradientTransformation,
    phase: Phase,
    run: Run,
    teacher: bool,
    own: Callable[[Params, PyTree], PyTree],
) -> Learner:
    """The learner of a phase; its state has a ``Task`` in ``extra``."""
    classes = run.stream.num_classes

    def masked(outputs: Outputs, high: Array) -> Outputs:
        return {**outputs, "logits": among(outputs["logits"], 0, high)}

    def loss(params: Params, state: LossState, batch: Batch, key: Key):
        task, valid = state.extra, batch.get("valid")
        outputs, variables = network.apply(params, state.variables, batch["x"], train=phase.train, key=key, valid=valid)
        taught = None
        if teacher:
            predict = lambda: network.apply(*task.teacher, batch["x"], train=False, valid=valid)[0]
            nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(predict))
            taught = masked(jax.lax.stop_gradient(jax.lax.cond(task.old > 0, predict, lambda: nothing)), task.old)
        view = View(params, state.variables, masked(outputs, task.seen), taught, task, state.step, key)
        value, metrics = phase.loss(view, batch)
        return value, (state._replace(variables=variables), metrics)

    learner = from_loss(
        network, loss, phase.optimizer or optimizer, gradient=phase.gradient or run.gradient, freeze=phase.freeze
    )

    def init(key: Key, batch: Batch) -> TrainState:
        state = learner.init(key, batch)
        shapes = jax.eval_shape(lambda: network.apply(state.params, state.variables, batch["x"], train=False)[0])
        if shapes["logits"].shape[-1] != classes:
            raise check.UsageError(
                f"the network has {shapes['logits'].shape[-1]} classes, the stream {classes}; make it for all of them"
            )
        zero = jnp.zeros((), jnp.int32)
        copies = jax.tree.map(jnp.copy, (state.params, state.variables)) if teacher else ()
        task = Task(
            number=zero - 1,
            old=zero,
            seen=zero,
            memory=memories.empty(run.keep, classes, jnp.asarray(batch["x"])),
            means=jnp.zeros((classes, shapes["features"].shape[-1]), jnp.float32),
            teacher=copies,
            own=own(state.params, state.variables),
        )
        return state._replace(extra=task)

    def predict(state: State, batch: Batch) -> Outputs:
        task = state.extra
        outputs = learner.predict(state, batch)
        distances = nearest_mean(outputs["features"], task.means)
        read_outs = {"logits": outputs["logits"], "logits_ncm": distances}
        return {name: among(z, 0, task.seen) for name, z in read_outs.items()} | {"features": outputs["features"]}

    return Learner(init, learner.update, predict)


def advanced(state: TrainState, stream: Stream, data: Data) -> TrainState:
    """At the next task: its number, and the classes known before and with it, which of an open stream are those of the
    rows at hand."""
    task: Task = state.extra
    if stream.room is not None:
        number, seen = task.number + 1, jnp.maximum(task.seen, jnp.max(jnp.asarray(data["y"])).astype(jnp.int32) + 1)
    else:
        number = jnp.minimum(task.number + 1, stream.num_tasks - 1)
        seen = jnp.asarray(stream.bounds, jnp.int32)[number]
    return state._replace(extra=task._replace(number=number, old=task.seen, seen=seen))


def new_columns(state: TrainState, fresh: TrainState, key: Key) -> TrainState:
    """Fresh columns of the head for the new classes, whatever training did to them before."""
    task = state.extra
    classes = task.means.shape[0]
    place = jnp.arange(classes)
    new = (place >= task.old) & (place < task.seen)
    pick = lambda old, other: jnp.where(new, other, old) if old.ndim and old.shape[-1] == classes else old
    head = jax.tree.map(pick, state.params["head"], fresh.params["head"])
    return state._replace(params={**state.params, "head": head})


def restarted(
    state: TrainState,
    optimizer: optax.GradientTransformation,
    gradient: Gradient,
    phase: Phase,
    data: Data,
    key: Key,
) -> TrainState:
    """With the phase's own begin done, a fresh optimizer and no update counted."""
    optimizer = phase.optimizer or optimizer
    state = state if phase.begin is None else phase.begin(state, data, key)
    trained, _ = split_params(state.params, phase.freeze)
    gradient = phase.gradient or gradient
    step = jnp.zeros((), jnp.int32)
    return state._replace(opt_state=optimizer.init(trained), grad_state=gradient.init(trained), step=step)


def with_means_of_all(state: TrainState, data: Data, learner: Learner, run: Run) -> TrainState:
    """With the class means of all rows of the classes seen so far."""
    task, labels = state.extra, jnp.asarray(data["y"])
    features = predict_all(learner.predict, state, jnp.asarray(data["x"]))["features"]
    means = class_means(features, labels, run.stream.num_classes, labels < task.seen)
    return state._replace(extra=task._replace(means=means))


def remembered(state: TrainState, data: Data, learner: Learner, run: Run, width: int) -> TrainState:
    """With the exemplars of the task's classes chosen by herding, and all class means.

    Without a memory the means of new classes are those of their training rows, and the others stay.
    """
    task: Task = state.extra
    classes = task.means.shape[0]
    groups = grouped(data["y"], classes)
    rows, there = rows_of_new(groups, task.old, width, run.stream.most_rows)
    features = lambda x: predict_all(learner.predict, state, x)["features"]
    outputs = predict_all(learner.predict, state, jnp.asarray(data["x"])[rows.reshape(-1)])
    flat = outputs["features"]
    place = jnp.arange(classes)
    if not isinstance(task.memory, Memory):
        label = jnp.repeat(task.old + jnp.arange(width, dtype=jnp.int32), rows.shape[1])
        means = class_means(flat, jnp.minimum(label, classes - 1), classes, there.reshape(-1))
        new = (place >= task.old) & (place < task.seen)
        return state._replace(extra=task._replace(means=jnp.where(new[:, None], means, task.means)))
    have = jnp.where(place < task.old, task.memory.counts, jnp.where(place < task.seen, groups.counts, 0))
    quota = run.keep.quota(task.seen)
    if run.quota is not None:
        quota = run.quota(task, have, losses_of_new(outputs["logits"], there, task.old))
    counts = jnp.minimum(have, quota).astype(jnp.int32)
    most = jnp.max(jnp.asarray(quota))
    picked = jax.vmap(herding, in_axes=(0, None, 0))(flat.reshape(*rows.shape, flat.shape[-1]), most, there)
    chosen = jnp.take_along_axis(rows, picked, axis=1)
    memory = memories.remember(task.memory, counts, data, chosen, task.old)
    label, taken = memories.labels(memory)
    x = memories.read(memory, jnp.arange(label.size))
    means = class_means(features(x), label, classes, taken)
    return state._replace(extra=task._replace(memory=memory, means=means))


def losses_of_new(logits: Array, there: Array, old: Array) -> Array:
    """The mean cross-entropy of each new class, [C] and 0 for other classes, from logits of rows laid out as ``there``
    [new classes, rows of each]."""
    label = old + jnp.arange(len(there), dtype=jnp.int32)
    losses = cross_entropy(logits.reshape(*there.shape, -1), jnp.broadcast_to(label[:, None], there.shape))
    means = jnp.where(there, losses, 0.0).sum(1) / jnp.maximum(there.sum(1), 1)
    return jnp.zeros((logits.shape[-1],), jnp.float32).at[label].set(means, mode="drop")
