"""A network that is never trained, and its head, which comes in closed form: one step on all rows of a task."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from jaxkit.class_incremental.baselines import seen_classes
from jaxkit.class_incremental.incremental import advanced, example_of, learner_of, remembered, restarted
from jaxkit.class_incremental.memory import NOTHING
from jaxkit.class_incremental.phases import Hook, Phase, Run
from jaxkit.class_incremental.stream import Stream
from jaxkit.class_incremental.task import pool_source, rows_of_new
from jaxkit.learner import (
    Batch,
    Data,
    Key,
    Learner,
    Metrics,
    Network,
    Outputs,
    Params,
    Plan,
    PyTree,
    Source,
    Stage,
    TrainState,
    clear_padding,
)
from jaxkit.networks import num_classes_of

BLOCK = 256
"""Rows whose hidden features are in memory at a time."""

Carry = TypeVar("Carry")
Solve = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
"""``(state, the task's rows) -> (state with the new head, metrics)``."""


def with_head(
    network: Network, hidden: Callable[[PyTree, Array], Array], draw: Callable[[Key, int], PyTree], score: Callable
) -> Network:
    """The network with another head, ``score(hidden(fixed, features), kernel)``, its kernel 0 at first.

    Parameters: those of the network, ``head`` with ``kernel`` [hidden, classes]. Variables: those of the network, what
    is ``fixed``, drawn once by ``draw(key, features)``, and the network's own head. Outputs: ``logits``, ``features``,
    and ``features_hidden``.
    """

    def init(key: Key, x: PyTree) -> tuple[Params, Any]:
        params, variables = network.init(key, x)
        features = jax.eval_shape(lambda: network.apply(params, variables, x)[0]["features"])
        fixed = draw(jax.random.fold_in(key, 1), features.shape[-1])
        width = jax.eval_shape(hidden, fixed, features).shape[-1]
        kernel = jnp.zeros((width, num_classes_of(params)), jnp.float32)
        kept = {"network": variables, "head": params["head"], "fixed": fixed}
        return {**params, "head": {"kernel": kernel}}, kept

    def apply(params, variables, x, *, train: bool = False, key=None, valid=None) -> tuple[Outputs, Any]:
        inner = {**params, "head": variables["head"]}
        features = network.apply(inner, variables["network"], x, train=False, valid=valid)[0]["features"]
        seen = hidden(variables["fixed"], features)
        logits = score(seen, params["head"]["kernel"])
        return {"logits": logits, "features": features, "features_hidden": seen}, variables

    return Network(init, apply)


def random_relu(network: Network, width: int, draw: Callable[[Key, tuple[int, int]], Array]) -> Network:
    """h = relu(phi W), z = h K: W [features, ``width``] is drawn once and stays, K is the head."""
    return with_head(
        network,
        lambda projection, features: jax.nn.relu(features @ projection),
        lambda key, features: draw(key, (features, width)),
        lambda seen, kernel: seen @ kernel,
    )


def task_rows(stream: Stream, width: int) -> Source:
    """All rows of a task of ``width`` classes at every step; ``valid`` is False where a class has fewer than most."""
    pool, size = pool_source("new", 1, stream, NOTHING), width * stream.most_rows

    def next_(data: Data, groups: PyTree, state: TrainState, step: Array, key: Key) -> tuple[PyTree, Batch]:
        task = state.extra
        rows, there = rows_of_new(groups, task.old, width, stream.most_rows)
        label = task.old + jnp.arange(width, dtype=jnp.int32)
        valid = there & (label < task.seen)[:, None]
        label = jnp.broadcast_to(jnp.minimum(label, stream.num_classes - 1)[:, None], rows.shape)
        index = rows.reshape(size)
        x = jax.tree.map(lambda leaf: jnp.asarray(leaf)[index], data["x"])
        return groups, {"x": x, "y": label.reshape(size), "index": index, "valid": valid.reshape(size)}

    def example(data: Data, groups: PyTree, key: Key) -> Batch:
        rows = jnp.zeros((size,), jnp.int32)
        x = jax.tree.map(lambda leaf: jnp.asarray(leaf)[rows], data["x"])
        return {"x": x, "y": rows, "index": rows, "valid": jnp.zeros((size,), bool)}

    return pool._replace(next=next_, example=example, axis=None)


def in_blocks(add: Callable[[Carry, Batch], Carry], start: Carry, batch: Batch, size: int = BLOCK) -> Carry:
    """``add(... add(start, rows 0..size-1) ..., the last rows)``; the last block is filled up with rows not valid."""
    rows = len(batch["y"])
    size = min(size, rows)
    blocks = -(-rows // size)
    batch = {**batch, "valid": batch.get("valid", jnp.ones((rows,), bool))}

    def split(leaf: Array) -> Array:
        room = jnp.zeros((blocks * size - rows, *leaf.shape[1:]), leaf.dtype)
        return jnp.concatenate([leaf, room]).reshape(blocks, size, *leaf.shape[1:])

    return jax.lax.scan(lambda carry, part: (add(carry, part), None), start, jax.tree.map(split, batch))[0]


def closed_form(network: Network, run: Run, solve: Solve, own: Callable[[Params, PyTree], PyTree]) -> Plan:
    """The plan with one step for each task, ``solve`` on all its rows.

    A stage has no share of the steps of a run: ``steps_of`` gives as many steps as there are tasks.
    """
    phase = Phase("solve", lambda view, batch: (seen_classes(view, batch), {}))
    untrained = learner_of(network, optax.identity(), phase, run, False, own)

    def update(state: TrainState, batch: Batch, key: Key) -> tuple[TrainState, Metrics]:
        with jax.default_matmul_precision("highest"):  # an accelerator may have fewer digits for a product
            state, metrics = solve(state, clear_padding(batch))
        metrics = {"finite": jnp.isfinite(metrics["loss"]), **metrics}
        metrics = {name: jnp.asarray(value, jnp.float32) for name, value in metrics.items()}
        return state._replace(step=state.step + 1), metrics

    learner = Learner(untrained.init, update, untrained.predict)

    def begin(state: TrainState | None, data: Data, key: Key) -> TrainState:
        state = learner.init(key, example_of(data)) if state is None else state
        return restarted(advanced(state, run.stream, data), optax.identity(), run.gradient, phase, data, key)

    def end_of(width: int) -> Hook:
        return lambda state, data, key: remembered(state, data, learner, run, width)

    widths = set(run.stream.sizes)
    sources = {width: task_rows(run.stream, width) for width in widths}
    ends = {width: end_of(width) for width in widths}
    return tuple(
        Stage(f"task {task + 1}", learner, sources[width], 0.0, begin, ends[width], steps=1)
        for task, width in enumerate(run.stream.sizes)
    )


def with_kernel(state: TrainState, kernel: Array) -> TrainState:
    """The state with this head."""
    return state._replace(params={**state.params, "head": {"kernel": kernel}})


def hidden_of(network: Network, state: TrainState, part: Batch, output: str = "features_hidden") -> Array:
    """The hidden features of a block, 0 where a row is not valid."""
    outputs, _ = network.apply(state.params, state.variables, part["x"], valid=part["valid"])
    return jnp.where(part["valid"][:, None], outputs[output], 0.0)


def targets(part: Batch, num_classes: int) -> Array:
    """y as unit vectors, 0 where a row is not valid."""
    return jnp.where(part["valid"][:, None], jax.nn.one_hot(part["y"], num_classes), 0.0)


def row_mean(error: Callable[[Batch], Array], batch: Batch) -> Array:
    """The mean of ``error`` [rows] over the valid rows, block by block."""

    def add(sums: tuple[Array, Array], part: Batch) -> tuple[Array, Array]:
        return sums[0] + jnp.where(part["valid"], error(part), 0.0).sum(), sums[1] + part["valid"].sum()

    total, rows = in_blocks(add, (jnp.zeros(()), jnp.zeros((), jnp.int32)), batch)
    return total / jnp.maximum(rows, 1)


def squared_error(network: Network, state: TrainState, batch: Batch) -> Array:
    """mean_i |z_i - y_i|^2 over all classes, the loss of a closed form."""
    kernel = state.params["head"]["kernel"]
    each = lambda part: jnp.square(hidden_of(network, state, part) @ kernel - targets(part, kernel.shape[1])).sum(-1)
    return row_mean(each, batch)
