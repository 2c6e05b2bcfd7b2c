"""The step may not raise the loss on what is remembered of earlier tasks: GEM, A-GEM."""

from __future__ import annotations

from collections.abc import Callable
from typing import Unpack

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float

from jaxkit import check
from jaxkit.class_incremental import memory as memories
from jaxkit.class_incremental.baselines import new_classes
from jaxkit.class_incremental.distilled import Scalar
from jaxkit.class_incremental.incremental import plan_of
from jaxkit.class_incremental.phases import Phase, Run, Settings, View, make_run, needs_exemplars
from jaxkit.class_incremental.readout import among
from jaxkit.class_incremental.stream import Stream
from jaxkit.class_incremental.task import Task
from jaxkit.learner import Batch, Gradient, Key, Network, Params, Plan, PyTree
from jaxkit.losses import cross_entropy

TURNS = 10
"""The most turns of ``nearest_in_cone`` for each of its columns; it takes about one."""


def nearest_in_cone(point: Float[Array, " dims"], columns: Float[Array, "dims tasks"]) -> Float[Array, " dims"]:
    """The nearest y to ``point`` with <y, r_k> >= 0 for every column r_k of length 1 (or 0, which counts nothing):
    y = point + R u, u = argmin_{u >= 0} |point + R u|.

    By the active-set method, whose least squares are those of R itself: columns that differ by little are told apart as
    far as float32 does, where the square matrix R^T R would have lost them.

    Source: Lawson and Hanson 1974, Solving least squares problems, chapter 23.
    """
    tasks = columns.shape[1]
    rounding = 1e-6 * jnp.linalg.norm(point)

    def turn(carry: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
        u, used, _, turns = carry
        aim = jnp.where(used, jnp.linalg.lstsq(columns * used, -point)[0], 0.0)
        negative = used & (aim <= 0)
        share = jnp.where(negative, u / jnp.maximum(u - aim, 1e-30), 1.0)  # of the way, to where u_k would be 0
        used = used & ~(negative & (share <= share.min()))
        u = jnp.where(used, u + share.min() * (aim - u), 0.0)
        harm = jnp.where(used, jnp.inf, (point + columns @ u) @ columns)
        more = ~negative.any() & (harm.min() < -rounding)
        return u, used | (more & (jnp.arange(tasks) == harm.argmin())), negative.any() | more, turns + 1

    start = jnp.zeros((tasks,), columns.dtype), jnp.zeros((tasks,), bool), jnp.asarray(True), jnp.zeros((), jnp.int32)
    goes_on = lambda carry: carry[2] & (carry[3] < TURNS * tasks)
    return point + columns @ jax.lax.while_loop(goes_on, turn, start)[0]


def gem_projection(
    grad: Float[Array, " params"],
    memory_grads: Float[Array, "tasks params"],
    active: Bool[Array, " tasks"] | None = None,
    margin: Scalar = 0.0,
) -> Float[Array, " params"]:
    """The nearest g~ to g with <g~, g_k> >= 0 for every earlier task k: g~ = g + G^T v*.

    v* = argmin_{v >= margin} 1/2 v^T G G^T v + (G g)^T v, by ``nearest_in_cone`` within the span of the g_k, so on the
    device. g where no <g, g_k> is negative.

    Args:
      grad: g, of the batch.
      memory_grads: G, a row for each earlier task.
      active: which rows count.
      margin: least v of a task, 0.5 in the released code of GEM for MNIST. May be traced.

    Source: Lopez-Paz and Ranzato 2017, eq. 8 to 11.
    """
    active = jnp.ones((len(memory_grads),), bool) if active is None else active
    G = jnp.where(active[:, None], memory_grads, 0.0)

    def solved() -> Array:
        moved = grad + margin * G.sum(0)  # v = margin + u with u >= 0
        unit = G / jnp.maximum(jnp.linalg.norm(G, axis=1, keepdims=True), 1e-12)  # a row of rounding counts nothing
        basis, columns = jnp.linalg.qr(unit.T)
        within = basis.T @ moved
        return moved + basis @ (nearest_in_cone(within, columns) - within)

    return jax.lax.cond((active & (G @ grad < 0)).any(), solved, lambda: grad)


def agem_projection(grad: Float[Array, " params"], memory_grad: Float[Array, " params"]) -> Float[Array, " params"]:
    """g - (<g, g_ref> / <g_ref, g_ref>) g_ref where <g, g_ref> < 0, else g. (Chaudhry et al. 2019, eq. 11.)"""
    along = grad @ memory_grad
    return jnp.where(along < 0, grad - along / jnp.maximum(memory_grad @ memory_grad, 1e-12) * memory_grad, grad)


def _projected(project: Callable[[Array, Params, PyTree, Key], Array]) -> Gradient:
    """``plain`` with its gradient, as one vector, put through ``project(grad, params, (variables, task), key)``."""

    def apply(loss, grad_state, params, carried, batch, key):
        (value, (after, metrics)), grads = jax.value_and_grad(loss, has_aux=True)(params, carried, batch, key)
        flat, back = ravel_pytree(grads)
        safe = project(flat, params, carried, key)
        metrics = {"loss": value, "projected": jnp.any(safe != flat), **metrics}
        return grad_state, back(safe), after, metrics

    return Gradient(lambda params: (), apply)


def _memory_grad(
    network: Network, params: Params, variables: PyTree, rows: Batch, low: Array, high: Array, total: Array
) -> Array:
    """The gradient, as one vector, of 1 / total times the cross-entropies of the valid rows among the classes
    low..high-1."""

    def objective(params: Params) -> Array:
        outputs, _ = network.apply(params, variables, rows["x"], train=True, key=rows["key"], valid=rows["valid"])
        logits = among(outputs["logits"], low[:, None], high[:, None])
        losses = jnp.where(rows["valid"], cross_entropy(logits, rows["y"]), 0.0)
        return losses.sum() / jnp.maximum(total, 1)

    return ravel_pytree(jax.grad(objective)(params))[0]


def memory_gradients(
    network: Network, params: Params, variables: PyTree, task: Task, stream: Stream, chunk: int, key: Key
) -> Float[Array, "tasks params"]:
    """A row for each task but the last: of a task before this one the gradient of the mean cross-entropy of its
    exemplars among its classes, else 0. ``chunk`` exemplars go through the network at once."""
    bounds = jnp.asarray((0, *stream.bounds), jnp.int32)
    label, _ = memories.labels(task.memory)
    ends = jnp.concatenate([jnp.zeros((1,), jnp.int32), jnp.cumsum(task.memory.counts)])[bounds]  # slots, by task

    def part(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        k, slot, grads = carry
        slots = slot + jnp.arange(chunk, dtype=jnp.int32)
        mine, slots = slots < ends[k + 1], jnp.minimum(slots, label.size - 1)
        low, high = jnp.full((chunk,), bounds[k]), jnp.full((chunk,), bounds[k + 1])
        rows = {"x": memories.read(task.memory, slots), "y": jnp.where(mine, label[slots], low), "valid": mine}
        rows["key"] = jax.random.fold_in(key, slot)
        more = _memory_grad(network, params, variables, rows, low, high, ends[k + 1] - ends[k])
        done = slot + chunk >= ends[k + 1]
        return k + done, jnp.where(done, ends[k + 1], slot + chunk), grads.at[k].add(more)

    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    nothing = jnp.zeros((max(stream.num_tasks - 1, 1), size), jnp.float32)
    start = jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32), nothing
    return jax.lax.while_loop(lambda carry: carry[0] < task.number, part, start)[2]


def gem(
    network: Network,
    optimizer: optax.GradientTransformation,
    *,
    margin: Scalar = 0.0,
    **settings: Unpack[Settings],
) -> Plan:
    """min CE(z_new) on the task's rows, each step along ``gem_projection``: g_k is the gradient of the cross-entropy of
    all exemplars of task k among its classes. (They go through the network in parts, as many rows as a task has at the
    end of the stream, so that a step costs the same in every task; batch statistics are those of a part.)

    Args:
      network, optimizer: of every task.
      margin: of ``gem_projection``. May be traced.
      settings: see ``Settings``; its ``gradient`` must be left as it is.

    Source: Lopez-Paz and Ranzato 2017, Gradient episodic memory for continual learning, NeurIPS.
    """
    check.number("margin", margin, 0.0)
    run = own_gradient("gem", settings)
    earlier = max(run.stream.num_tasks - 1, 1)
    chunk = -(-run.keep.slots(run.stream.num_classes) // earlier)  # what a task has at the end of the stream

    def project(grad, params, carried, key):
        variables, task = carried
        grads = memory_gradients(network, params, variables, task, run.stream, chunk, key)
        return gem_projection(grad, grads, jnp.arange(earlier) < task.number, margin)

    return _plan(network, optimizer, run, project)


def agem(
    network: Network,
    optimizer: optax.GradientTransformation,
    *,
    memory_batch: int = 256,
    **settings: Unpack[Settings],
) -> Plan:
    """GEM with one constraint: g_ref is the gradient on ``memory_batch`` exemplars drawn at each step.

    Args:
      network, optimizer: of every task.
      memory_batch: exemplars of a step, 256 in the paper.
      settings: see ``Settings``; its ``gradient`` must be left as it is.

    Source: Chaudhry et al. 2019, Efficient lifelong learning with A-GEM, ICLR.
    """
    size = check.count("memory_batch", memory_batch)
    run = own_gradient("agem", settings)
    bounds = jnp.asarray((0, *run.stream.bounds), jnp.int32)
    task_of = jnp.asarray(run.stream.task_of())

    def project(grad, params, carried, key):
        variables, task = carried
        label, taken = memories.labels(task.memory)
        draw_key, key = jax.random.split(key)
        slots = jax.random.randint(draw_key, (size,), 0, jnp.maximum(taken.sum(), 1))
        label = label[slots]
        rows = {"x": memories.read(task.memory, slots), "y": label, "key": key}
        rows["valid"] = jnp.full((size,), task.number > 0)
        number = task_of[label]
        ends = bounds[number], bounds[number + 1]
        reference = _memory_grad(network, params, variables, rows, *ends, jnp.asarray(size))
        return jnp.where(task.number > 0, agem_projection(grad, reference), grad)

    return _plan(network, optimizer, run, project)


def own_gradient(name: str, settings: Settings) -> Run:
    """The run of a method that takes its own gradient, and needs exemplars."""
    if "gradient" in settings:
        raise check.UsageError(f"{name} takes its own gradient, which it projects; leave gradient out")
    return needs_exemplars(name, make_run(**settings))


def _plan(network: Network, optimizer: optax.GradientTransformation, run: Run, project: Callable) -> Plan:
    def loss(view: View, batch: Batch):
        return new_classes(view, batch), {}

    phase = Phase("train", loss, "new", gradient=_projected(project))
    return plan_of(network, optimizer, (phase,), run)
