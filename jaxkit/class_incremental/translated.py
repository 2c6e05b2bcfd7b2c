"""Features of old classes from those of new ones, moved from mean to mean: FeTrIL."""

from __future__ import annotations

from typing import NamedTuple, Unpack

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from jaxkit import check
from jaxkit.class_incremental.baselines import seen_classes
from jaxkit.class_incremental.incremental import plan_of, rows_seen
from jaxkit.class_incremental.memory import NOTHING
from jaxkit.class_incremental.phases import Phase, Run, Settings, View, make_run
from jaxkit.class_incremental.readout import Bound
from jaxkit.class_incremental.task import Groups, grouped, pool_source, rows_of_new
from jaxkit.learner import Batch, Data, Key, Network, Outputs, Params, Plan, PyTree, Source, TrainState, batch_mean
from jaxkit.losses import cross_entropy
from jaxkit.training import predict_all


class Means(NamedTuple):
    """``Task.own`` of FeTrIL.

    Attributes:
      mean: mu_c, the mean of the features of each class, [classes, features].
      nearest: n(c), the new class with the nearest mean, c itself for a new class; int32 [classes].
    """

    mean: Array
    nearest: Array


def nearest_new(mean: Float[Array, "classes features"], old: Bound, seen: Bound) -> Array:
    """n(c) = argmin over new classes n of |mu_c - mu_n|, int32 [classes]; a class that is not old has itself."""
    place = jnp.arange(len(mean), dtype=jnp.int32)
    new = (place >= old) & (place < seen)
    distance = jax.lax.map(lambda one: jnp.square(mean - one).sum(-1), mean)
    distance = jnp.where(new, distance, jnp.inf)
    return jnp.where(place < old, jnp.argmin(distance, axis=1).astype(jnp.int32), place)


def translated_rows(run: Run) -> Source:
    """Draws with replacement: a class c among those seen, ``y``, and a row of the new class n(c), ``x``."""
    pool = pool_source("new", run.batch_size, run.stream, NOTHING)

    def next_(data: Data, groups: Groups, state: TrainState, step: Array, key: Key) -> tuple[Groups, Batch]:
        task = state.extra
        class_key, row_key = jax.random.split(jax.random.fold_in(key, step))
        label = jax.random.randint(class_key, (run.batch_size,), 0, task.seen)
        donor = task.own.nearest[label]
        rank = jax.random.randint(row_key, (run.batch_size,), 0, jnp.maximum(groups.counts[donor], 1))
        row = groups.order[groups.starts[donor] + rank]
        return groups, {"x": jnp.asarray(data["x"])[row], "y": label, "index": row}

    return pool._replace(next=next_)


def fetril(network: Network, optimizer: optax.GradientTransformation, **settings: Unpack[Settings]) -> Plan:
    """min CE(z_seen) on the first task; from then on the features are frozen, and the linear head is trained on
    phi(x) + mu_c - mu_{n(c)} with label c, x a row of the new class n(c) whose mean is nearest to that of c: features
    made up for old classes, those of its rows for a new one, as many of each.

    The head has fresh columns for new classes and is trained on from what it was. There are no exemplars; mu_c is kept
    of each class. ``augment`` acts on the rows of the first task alone.

    Args:
      network: with a linear head. Pre-trained features, already extracted, are ``mlp(classes, hidden=())``.
      optimizer: of every task; in later tasks only the head is trained.
      settings: see ``Settings``.

    Raises:
      UsageError: a head that is not linear, at the first step.

    Source: Petit et al. 2023, FeTrIL: feature translation for exemplar-free class-incremental learning, WACV, section
    3; the nearest mean by Euclidean distance, as in its released code.
    """
    run = make_run(**{**settings, "memory": None})
    most, sizes = run.stream.most_rows, [size for size in run.stream.sizes if size]
    widest = max(sizes) if run.stream.room is None else sizes[-1]  # of an open stream one task is at hand

    def none(params: Params, variables: PyTree) -> Means:
        kernel = params["head"].get("kernel")
        if kernel is None or kernel.ndim != 2 or set(params["head"]) - {"kernel", "bias"}:
            raise check.UsageError(f"fetril needs a linear head, got one with {', '.join(sorted(params['head']))}")
        return Means(jnp.zeros((kernel.shape[1], kernel.shape[0])), jnp.arange(kernel.shape[1], dtype=jnp.int32))

    def features(state: TrainState, batch: Batch) -> Outputs:
        return network.apply(state.params, state.variables, batch["x"], train=False, valid=batch.get("valid"))[0]

    def relate(state: TrainState, data: Data, key: Key) -> TrainState:
        """The means of the new classes, and the new class of each old one."""
        task, classes = state.extra, run.stream.num_classes
        rows, there = rows_of_new(grouped(data["y"], classes), task.old, widest, most)
        label = jnp.repeat(task.old + jnp.arange(widest, dtype=jnp.int32), most)
        there = there.reshape(-1) & (label < task.seen)
        label = jnp.where(there, label, 0)
        phi = predict_all(features, state, jnp.asarray(data["x"])[rows.reshape(-1)])["features"]
        total = jax.ops.segment_sum(jnp.where(there[:, None], phi, 0.0), label, classes)
        count = jax.ops.segment_sum(there.astype(jnp.float32), label, classes)
        mean = jnp.where(count[:, None] > 0, total / jnp.maximum(count, 1.0)[:, None], task.own.mean)
        own = Means(mean, nearest_new(mean, task.old, task.seen))
        return state._replace(extra=task._replace(own=own))

    def translated(view: View, batch: Batch):
        mean, nearest = view.task.own
        moved = mean[batch["y"]] - mean[nearest[batch["y"]]]
        logits = view.outputs["logits"] + moved @ view.params["head"]["kernel"]
        return batch_mean(cross_entropy(logits, batch["y"]), batch), {}

    phases = (
        Phase("embed", lambda view, batch: (seen_classes(view, batch), {}), "new", end=relate, tasks="first"),
        Phase("translate", translated, "new", freeze="^backbone", begin=relate, tasks="later", train=False),
    )
    first, *later = plan_of(network, optimizer, phases, run, own=none)
    source = translated_rows(run)
    shares = [rows_seen("all", run, task) for task in range(1, run.stream.num_tasks)]
    return (first, *(stage._replace(source=source, share=share) for stage, share in zip(later, shares, strict=True)))
