"""Exemplars remembered with the logits they once had: DER++ (Dark Experience Replay)."""

from __future__ import annotations

from typing import NamedTuple, Unpack

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float

from jaxkit import check
from jaxkit.class_incremental import memory as memories
from jaxkit.class_incremental.distilled import Scalar
from jaxkit.class_incremental.incremental import plan_of
from jaxkit.class_incremental.phases import Phase, Run, Settings, View, make_run, needs_exemplars
from jaxkit.class_incremental.readout import AWAY, among
from jaxkit.class_incremental.task import Groups, pool_source
from jaxkit.learner import Batch, Data, Key, Network, Outputs, Params, Plan, PyTree, Source, TrainState
from jaxkit.losses import cross_entropy
from jaxkit.training import predict_all


class Dark(NamedTuple):
    """``Task.own`` of DER++.

    Attributes:
      logits: z' of the exemplar in each slot, [slots, classes], ``AWAY`` for classes not known when it was stored.
      counts: of the memory to which they belong, int32 [classes].
    """

    logits: Array
    counts: Array


def logit_error(logits: Float[Array, "batch classes"], stored: Float[Array, "batch classes"]) -> Float[Array, " batch"]:
    """mean_c (z_c - z'_c)^2 over the classes that were known when z' was stored, and 0 where none was."""
    known = stored > AWAY / 2
    error = jnp.square(jnp.where(known, logits, 0.0) - jnp.where(known, stored, 0.0))
    return error.sum(-1) / jnp.maximum(known.sum(-1), 1)


def mean_of(values: Float[Array, " batch"], mask: Bool[Array, " batch"]) -> Float[Array, ""]:
    """The mean over the rows of the mask, and 0 where there are none."""
    return jnp.where(mask, values, 0.0).sum() / jnp.maximum(mask.sum(), 1)


def with_exemplars(run: Run) -> Source:
    """Rows of the task, and twice as many exemplars behind them, of which the first half is ``dark``: B + B + B rows.

    A batch has, beside the usual, ``logits``, which the memory has for an exemplar (0 elsewhere), and ``dark``. In the
    first task there are no exemplars, and their rows are not valid.
    """
    size = run.batch_size
    new = pool_source("new", size, run.stream, run.keep, augment=run.augment)
    kept = pool_source("exemplars", 2 * size, run.stream, run.keep, augment=run.augment)
    dark = jnp.arange(3 * size) // size == 1

    def joined(one: Batch, two: Batch, logits: Array, valid: Array) -> Batch:
        batch = {name: jnp.concatenate([one[name], two[name]]) for name in one}
        rows = jnp.zeros((size, logits.shape[1]), logits.dtype)
        return {
            **batch,
            "logits": jnp.concatenate([rows, logits]),
            "dark": dark,
            "valid": jnp.concatenate([jnp.ones((size,), bool), valid]),
        }

    def next_(data: Data, groups: Groups, state: TrainState, step: Array, key: Key) -> tuple[Groups, Batch]:
        keys, task = jax.random.split(key), state.extra
        one = new.next(data, groups, state, step, keys[0])[1]
        two = kept.next(data, groups, state, step, keys[1])[1]
        valid = jnp.full((2 * size,), task.memory.counts.sum() > 0)
        slot = jnp.where(valid, two["index"] - len(data["y"]), 0)
        two = {**two, "y": jnp.where(valid, two["y"], 0), "index": jnp.where(valid, two["index"], 0)}
        return groups, joined(one, two, jnp.where(valid[:, None], task.own.logits[slot], 0.0), valid)

    def example(data: Data, groups: Groups, key: Key) -> Batch:
        logits, valid = jnp.zeros((2 * size, run.stream.num_classes)), jnp.zeros((2 * size,), bool)
        return joined(new.example(data, groups, key), kept.example(data, groups, key), logits, valid)

    return new._replace(next=next_, example=example)


def derpp(
    network: Network,
    optimizer: optax.GradientTransformation,
    *,
    alpha: Scalar = 0.2,
    beta: Scalar = 0.5,
    **settings: Unpack[Settings],
) -> Plan:
    """min CE(z_seen) on the task's rows + alpha ``logit_error`` on exemplars + beta CE(z_seen) on other exemplars.

    An exemplar is stored with its logits z', at the end of its task, and keeps them. A step has as many rows of each
    of the three kinds as the batch size says. The squared error bounds the learning rate, more tightly the larger the
    features and alpha: the released code takes 0.03, without momentum, for CIFAR-10.

    Args:
      network, optimizer: of every task.
      alpha, beta: 0.2 and 0.5 for CIFAR-10 with 500 exemplars in the released code, 0.1 and 0.5 with 200, 0.1 and 1
        with 5120. May be traced.
      settings: see ``Settings``.

    Raises:
      UsageError: a memory without exemplars.

    Source: Buzzega et al. 2020, Dark experience for general continual learning, NeurIPS, section 3. Exemplars are
    chosen by herding at the end of a task, where the paper samples a reservoir along the way.
    """
    check.number("alpha", alpha, 0.0), check.number("beta", beta, 0.0)
    run = needs_exemplars("derpp", make_run(**settings))
    slots, classes = run.keep.slots(run.stream.num_classes), run.stream.num_classes

    def nothing(params: Params, variables: PyTree) -> Dark:
        return Dark(jnp.full((slots, classes), AWAY, jnp.float32), jnp.zeros((classes,), jnp.int32))

    def loss(view: View, batch: Batch):
        logits, labels = view.outputs["logits"], batch["y"]
        valid = batch["valid"]
        exemplar, dark = labels < view.task.old, batch["dark"]
        losses = cross_entropy(logits, labels)
        new = mean_of(losses, valid & ~exemplar)
        remembered = mean_of(logit_error(logits, batch["logits"]), valid & exemplar & dark)
        replayed = mean_of(losses, valid & exemplar & ~dark)
        return new + alpha * remembered + beta * replayed, {"dark": remembered, "replay": replayed}

    def outputs(state: TrainState, batch: Batch) -> Outputs:
        found, _ = network.apply(state.params, state.variables, batch["x"], train=False, valid=batch.get("valid"))
        return {"logits": among(found["logits"], 0, state.extra.seen)}

    def keep_logits(state: TrainState, data: Data, key: Key) -> TrainState:
        """The logits of exemplars that stay, at their new slots; those of new exemplars by the model as it is now."""
        task = state.extra
        label, taken = memories.labels(task.memory)
        rank = jnp.arange(label.size, dtype=jnp.int32) - memories.starts(task.memory.counts)[label]
        before = jnp.clip(memories.starts(task.own.counts)[label] + rank, 0, label.size - 1)
        now = predict_all(outputs, state, memories.read(task.memory, jnp.arange(label.size)))["logits"]
        logits = jnp.where((label < task.old)[:, None], task.own.logits[before], now)
        own = Dark(jnp.where(taken[:, None], logits, AWAY), task.memory.counts)
        return state._replace(extra=task._replace(own=own))

    phase = Phase("train", loss, "new", after=keep_logits)
    source = with_exemplars(run)
    return tuple(stage._replace(source=source) for stage in plan_of(network, optimizer, (phase,), run, own=nothing))
