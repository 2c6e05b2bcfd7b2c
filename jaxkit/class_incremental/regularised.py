"""Parameters that mattered for earlier tasks are held: EWC, SI, MAS."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Unpack

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from jaxkit import check
from jaxkit.class_incremental.baselines import new_classes
from jaxkit.class_incremental.distilled import Scalar
from jaxkit.class_incremental.incremental import plan_of
from jaxkit.class_incremental.memory import NOTHING
from jaxkit.class_incremental.phases import Phase, Run, Settings, View, make_run
from jaxkit.class_incremental.readout import among
from jaxkit.class_incremental.task import Task, pool_source
from jaxkit.learner import (
    Batch,
    Data,
    Gradient,
    Key,
    Network,
    Params,
    Plan,
    PyTree,
    TrainState,
)
from jaxkit.losses import cross_entropy

MOST = 10.0
"""The largest importance of a parameter for SI and MAS. It grows from task to task, and descent at rate eta diverges
where eta times strength times twice the importance exceeds 2 (with momentum m, 2 + 2 m). The papers have no bound."""


class Importance(NamedTuple):
    """``Task.own``: how much each parameter mattered, and its value at the end of the last task (for SI at the start of
    this one, which differs in the columns of new classes alone)."""

    weight: Params
    anchor: Params


def nothing_important(params: Params, variables: PyTree) -> Importance:
    """At the start of the first task."""
    return Importance(jax.tree.map(jnp.zeros_like, params), jax.tree.map(jnp.copy, params))


def penalty(params: Params, importance: Importance) -> Array:
    """sum_i Omega_i (theta_i - theta*_i)^2."""
    each = lambda p, w, a: jnp.sum(w * jnp.square(p - a))
    return sum(jax.tree.leaves(jax.tree.map(each, params, importance.weight, importance.anchor)))


def of_task(view: View, batch: Batch, strength: Scalar):
    """CE(z_new) + strength ``penalty``."""
    held = penalty(view.params, view.task.own)
    return new_classes(view, batch) + strength * held, {"penalty": held}


def batch_average(function: Callable[[Batch], PyTree], state: TrainState, data: Data, key: Key, run: Run) -> PyTree:
    """The mean of ``function`` over the batches of one epoch of the task's rows."""
    source = pool_source("new", run.batch_size, run.stream, NOTHING)
    groups = source.init(data, key)
    task: Task = state.extra
    place = jnp.arange(groups.counts.size)
    rows = jnp.where((place >= task.old) & (place < task.seen), groups.counts, 0).sum()
    batches = jnp.maximum(rows // run.batch_size, 1)
    batch_at = lambda step: source.next(data, groups, state, step, key)[1]
    shapes = jax.eval_shape(lambda: function(batch_at(jnp.zeros((), jnp.int32))))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    add = lambda step, sums: jax.tree.map(jnp.add, sums, function(batch_at(step)))
    return jax.tree.map(lambda leaf: leaf / batches, jax.lax.fori_loop(0, batches, add, zeros))


def merged(old: Params, new: Params, task: Task) -> Params:
    """alpha old + (1 - alpha) new with alpha = K_old / K; new classes' columns of the head are new alone."""
    alpha, classes = task.old / task.seen, task.means.shape[0]
    columns = jnp.arange(classes) >= task.old

    def each(path: tuple, a: Array, b: Array) -> Array:
        both = alpha * a + (1.0 - alpha) * b
        of_head = path[0].key == "head" and a.ndim and a.shape[-1] == classes
        return jnp.where(columns, b, both) if of_head else both

    return jax.tree_util.tree_map_with_path(each, old, new)


def ewc(
    network: Network,
    optimizer: optax.GradientTransformation,
    *,
    strength: Scalar = 1000.0,
    most: Scalar = 1e-4,
    **settings: Unpack[Settings],
) -> Plan:
    """min CE(z_new) + strength / 2 sum_i F_i (theta_i - theta*_i)^2, no exemplars.

    After each task F <- alpha F + (1 - alpha) min(F_t, most), alpha = K_old / K, F_t the mean over batches of the
    squared gradient of the batch's CE(z_seen).

    Args:
      network, optimizer: of every task.
      strength: lambda, 1000 in the survey. May be traced.
      most: the largest F_i. May be traced.
      settings: see ``Settings``.

    Source: Kirkpatrick et al. 2017, Overcoming catastrophic forgetting in neural networks, PNAS, eq. 3; F as in the
    released code of the survey (the paper's is the mean over rows).
    """
    check.number("strength", strength, 0.0), check.positive("most", most)
    run = make_run(**{**settings, "memory": None})

    def fisher(state: TrainState, data: Data, key: Key) -> TrainState:
        def squared(batch: Batch) -> Params:
            def objective(params: Params) -> Array:
                outputs, _ = network.apply(params, state.variables, batch["x"], train=True, key=key)
                return cross_entropy(among(outputs["logits"], 0, state.extra.seen), batch["y"]).mean()

            return jax.tree.map(jnp.square, jax.grad(objective)(state.params))

        task: Task = state.extra
        new = jax.tree.map(lambda leaf: jnp.minimum(leaf, most), batch_average(squared, state, data, key, run))
        own = Importance(merged(task.own.weight, new, task), jax.tree.map(jnp.copy, state.params))
        return state._replace(extra=task._replace(own=own))

    phase = Phase("train", lambda view, batch: of_task(view, batch, strength / 2), "new", end=fisher)
    return plan_of(network, optimizer, (phase,), run, own=nothing_important)


def mas(
    network: Network,
    optimizer: optax.GradientTransformation,
    *,
    strength: Scalar = 1.0,
    most: Scalar = MOST,
    **settings: Unpack[Settings],
) -> Plan:
    """min CE(z_new) + strength sum_i Omega_i (theta_i - theta*_i)^2, no exemplars.

    After each task Omega <- min(Omega + mean_b | d mean_{x in b} |z(x)|^2 / d theta |, most): how much the outputs
    depend on a parameter, without labels; over batches b as in the released code.

    Args:
      network, optimizer: of every task.
      strength: lambda. May be traced.
      most: see ``MOST``. May be traced.
      settings: see ``Settings``.

    Source: Aljundi et al. 2018, Memory aware synapses, ECCV, eq. 3 to 5.
    """
    check.number("strength", strength, 0.0), check.positive("most", most)
    run = make_run(**{**settings, "memory": None})

    def sensitivity(state: TrainState, data: Data, key: Key) -> TrainState:
        task: Task = state.extra
        seen = jnp.arange(task.means.shape[0]) < task.seen

        def of_batch(batch: Batch) -> Params:
            def size(params: Params) -> Array:
                outputs, _ = network.apply(params, state.variables, batch["x"], train=False)
                return jnp.where(seen, jnp.square(outputs["logits"]), 0.0).sum(-1).mean()

            return jax.tree.map(jnp.abs, jax.grad(size)(state.params))

        more = batch_average(of_batch, state, data, key, run)
        weight = jax.tree.map(lambda w, new: jnp.minimum(w + new, most), task.own.weight, more)
        own = Importance(weight, jax.tree.map(jnp.copy, state.params))
        return state._replace(extra=task._replace(own=own))

    phase = Phase("train", lambda view, batch: of_task(view, batch, strength), "new", end=sensitivity)
    return plan_of(network, optimizer, (phase,), run, own=nothing_important)


class Path(NamedTuple):
    """The gradient state of SI: what has been gained so far, and where the last step started."""

    gained: Params
    params: Params
    grads: Params


def along_path(strength: Scalar) -> Gradient:
    """``plain``, and the sum over steps of -g (theta_after - theta_before), g the gradient without the penalty."""

    def init(params: Params) -> Path:
        zeros = lambda: jax.tree.map(jnp.zeros_like, params)
        return Path(zeros(), jax.tree.map(jnp.copy, params), zeros())

    def apply(loss, path: Path, params, carried, batch, key):
        (value, (carried, metrics)), grads = jax.value_and_grad(loss, has_aux=True)(params, carried, batch, key)
        importance = carried[1].own
        of_penalty = lambda p, w, a: 2.0 * strength * w * (p - a)
        penalised = jax.tree.map(of_penalty, params, importance.weight, importance.anchor)
        bare = jax.tree.map(jnp.subtract, grads, penalised)
        return Path(walked(path, params), params, bare), grads, carried, {"loss": value, **metrics}

    return Gradient(init, apply)


def walked(path: Path, params: Params) -> Params:
    """What has been gained when the parameters have come to ``params``."""
    return jax.tree.map(lambda w, g, now, then: w - g * (now - then), path.gained, path.grads, params, path.params)


def si(
    network: Network,
    optimizer: optax.GradientTransformation,
    *,
    strength: Scalar = 1.0,
    damping: Scalar = 0.1,
    most: Scalar = MOST,
    **settings: Unpack[Settings],
) -> Plan:
    """min CE(z_new) + c sum_i Omega_i (theta_i - theta*_i)^2, no exemplars.

    After each task Omega_i <- min(Omega_i + max(omega_i, 0) / (Delta_i^2 + xi), most): omega_i is what parameter i
    contributed to the fall of the loss in the task, summed along the path, and Delta_i how far it went there.

    Args:
      network, optimizer: of every task.
      strength: c. May be traced.
      damping: xi, 0.1 for permuted and 1e-3 for split MNIST in the paper. May be traced.
      most: see ``MOST``. May be traced.
      settings: see ``Settings``; its ``gradient`` must be left as it is.

    Source: Zenke et al. 2017, Continual learning through synaptic intelligence, ICML, eq. 4 and 5.
    """
    check.number("strength", strength, 0.0), check.positive("damping", damping), check.positive("most", most)
    if "gradient" in settings:
        raise check.UsageError("si takes its own gradient, along whose path parameters gain importance; leave it out")
    run = make_run(**{**settings, "memory": None})

    def departure(state: TrainState, data: Data, key: Key) -> TrainState:
        # The columns of new classes are fresh: Delta_i counts from here, not from the end of the last task.
        own = state.extra.own._replace(anchor=jax.tree.map(jnp.copy, state.params))
        return state._replace(extra=state.extra._replace(own=own))

    def contribution(state: TrainState, data: Data, key: Key) -> TrainState:
        task: Task = state.extra
        gained = walked(state.grad_state, state.params)
        more = lambda g, now, then: jnp.maximum(g, 0.0) / (jnp.square(now - then) + damping)
        each = lambda w, g, now, then: jnp.minimum(w + more(g, now, then), most)
        weight = jax.tree.map(each, task.own.weight, gained, state.params, task.own.anchor)
        own = Importance(weight, jax.tree.map(jnp.copy, state.params))
        return state._replace(extra=task._replace(own=own))

    phase = Phase(
        "train",
        lambda view, batch: of_task(view, batch, strength),
        "new",
        gradient=along_path(strength),
        begin=departure,
        end=contribution,
    )
    return plan_of(network, optimizer, (phase,), run, own=nothing_important)
