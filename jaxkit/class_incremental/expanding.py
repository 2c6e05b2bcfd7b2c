"""Networks that grow by a backbone, or by its last stages, with each task: DER and MEMO.

All backbones have one shape, so those of earlier tasks lie stacked in arrays with room for every task, as variables of
the network: they are not trained, and a loop with as many turns as there are computes their features. The program is
that of one task.
"""

from __future__ import annotations

from typing import Any, Unpack

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from jaxkit import check
from jaxkit.class_incremental.baselines import seen_classes
from jaxkit.class_incremental.distilled import Scalar, weight_alignment
from jaxkit.class_incremental.incremental import new_columns, plan_of
from jaxkit.class_incremental.phases import Phase, Settings, View, make_run
from jaxkit.class_incremental.readout import AWAY
from jaxkit.learner import Batch, Data, Key, Network, Outputs, Params, Plan, PyTree, TrainState, batch_mean
from jaxkit.losses import cross_entropy
from jaxkit.networks import part_of
from jaxkit.networks.heads import Linear


def expanding(
    network: Network, num_classes: int, num_tasks: int, shared_stages: int = 0, train_shared: bool = True
) -> Network:
    """A network of ``num_tasks`` backbones of which the newest is trained.

    Parameters: ``shared`` (the first ``shared_stages`` stages, one for all; absent for 0), ``backbone`` (the newest),
    ``head`` [tasks features, classes], ``aux`` [features, classes + 1]. Variables: those of ``shared`` and
    ``backbone``, and ``frozen``: (params, variables) of the earlier backbones with a leading axis of tasks - 1, and
    their number ``count``.

    ``features`` are those of all backbones side by side, 0 where there is none yet; ``logits_aux`` are of the newest.
    Without ``train_shared`` what is shared computes as in prediction once there are two backbones.
    """
    lower = part_of(network, 0, shared_stages) if shared_stages else None
    upper = part_of(network, shared_stages)
    head, aux = Linear(num_classes), Linear(num_classes + 1)
    room = max(num_tasks - 1, 1)

    def init(key: Key, x: PyTree) -> tuple[Params, Any]:
        keys = jax.random.split(key, 4)
        params, variables = {}, {}
        if lower is not None:
            params["shared"], variables["shared"] = lower.init(keys[0], x)
            x = lower.apply(params["shared"], variables["shared"], x)[0]["features"]
        params["backbone"], variables["backbone"] = upper.init(keys[1], x)
        width = jax.eval_shape(lambda: upper.apply(params["backbone"], variables["backbone"], x)[0]["features"])
        features = jnp.zeros((1, width.shape[-1]), jnp.float32)
        params["head"] = head.init(keys[2], jnp.tile(features, num_tasks))["params"]
        params["aux"] = aux.init(keys[3], features)["params"]
        stack = lambda leaf: jnp.zeros((room, *leaf.shape), leaf.dtype)
        frozen = jax.tree.map(stack, (params["backbone"], variables["backbone"]))
        return params, {**variables, "frozen": frozen, "count": jnp.zeros((), jnp.int32)}

    def apply(params, variables, x, *, train: bool = False, key=None, valid=None) -> tuple[Outputs, Any]:
        after = dict(variables)
        keys = (None, None) if key is None else jax.random.split(key)
        options = {"train": train, "valid": valid}
        if lower is not None:
            shared = lambda train: lower.apply(
                params["shared"], variables["shared"], x, train=train, key=keys[0], valid=valid
            )
            if train and not train_shared:
                outputs, after["shared"] = jax.lax.cond(
                    variables["count"] > 0, lambda: shared(False), lambda: shared(True)
                )
            else:
                outputs, after["shared"] = shared(train)
            x = outputs["features"]
        own = params["backbone"], variables["backbone"]
        outputs, after["backbone"] = upper.apply(*own, x, key=keys[1], **options)
        newest, count = outputs["features"], variables["count"]

        def one(number: Array) -> Array:
            frozen = jax.tree.map(lambda leaf: leaf[number], variables["frozen"])
            return upper.apply(*frozen, x, train=False, valid=valid)[0]["features"]

        place = jnp.zeros((num_tasks, *newest.shape), newest.dtype)
        earlier = looped(one, count, place) if lower is None else masked(one, count, place)
        features = earlier.at[count].set(newest)
        features = jnp.moveaxis(features, 0, 1).reshape(len(newest), -1)
        logits = head.apply({"params": params["head"]}, features)
        logits_aux = aux.apply({"params": params["aux"]}, newest)
        return {"logits": logits, "features": features, "logits_aux": logits_aux}, after

    return Network(init, apply)


def looped(one: Any, count: Array, place: Array) -> Array:
    """place[i] = one(i) for i < count, without a gradient, in as many turns."""
    return jax.lax.stop_gradient(jax.lax.fori_loop(0, count, lambda i, done: done.at[i].set(one(i)), place))


def masked(one: Any, count: Array, place: Array) -> Array:
    """The same with a gradient to what the backbones share: every turn is there, those past ``count`` are skipped."""
    empty = jnp.zeros_like(place[0])
    for i in range(len(place) - 1):
        place = place.at[i].set(jax.lax.cond(i < count, lambda i=i: one(jnp.asarray(i)), lambda: empty))
    return place


def add_backbone(state: TrainState, fresh: TrainState, key: Key) -> TrainState:
    """The newest backbone joins the frozen ones and goes on as its own successor; the head has fresh entries for the
    new features and the new classes, and the auxiliary head is new."""
    state = new_columns(state, fresh, key)
    variables, params, count = state.variables, state.params, state.variables["count"]
    newest = (params["backbone"], variables["backbone"])
    push = lambda stack, leaf: stack.at[count].set(leaf)
    frozen = jax.tree.map(push, variables["frozen"], newest)
    kernel, other = params["head"]["kernel"], fresh.params["head"]["kernel"]
    width = fresh.params["aux"]["kernel"].shape[0]
    of_new = jnp.arange(len(kernel)) // width == count + 1
    head = {**params["head"], "kernel": jnp.where(of_new[:, None], other, kernel)}
    params = {**params, "head": head, "aux": fresh.params["aux"]}
    return state._replace(params=params, variables={**variables, "frozen": frozen, "count": count + 1})


def align(state: TrainState, data: Data, key: Key) -> TrainState:
    """The hook of ``weight_alignment`` after a task, over the features of the backbones that there are."""
    kernel, width = state.params["head"]["kernel"], state.params["aux"]["kernel"].shape[0]
    there = (jnp.arange(len(kernel)) < (state.variables["count"] + 1) * width)[:, None]
    after = weight_alignment(jnp.where(there, kernel, 0.0), state.extra.old, state.extra.seen)
    head = {**state.params["head"], "kernel": jnp.where(there, after, kernel)}
    return state._replace(params={**state.params, "head": head})


def auxiliary(view: View, batch: Batch) -> Array:
    """mean_i CE of the newest backbone's own logits among the new classes and "an old class"; 0 in the first task."""
    logits, task = view.outputs["logits_aux"], view.task
    old_class = logits.shape[-1] - 1
    place = jnp.arange(logits.shape[-1])
    logits = jnp.where((place >= task.old) & (place < task.seen) | (place == old_class), logits, AWAY)
    labels = jnp.where(batch["y"] < task.old, old_class, batch["y"])
    return jnp.where(task.old > 0, batch_mean(cross_entropy(logits, labels), batch), 0.0)


def der(
    network: Network,
    optimizer: optax.GradientTransformation,
    *,
    strength: Scalar = 1.0,
    **settings: Unpack[Settings],
) -> Plan:
    """A backbone for each task, those of earlier tasks frozen: min CE(z_seen) + strength CE_aux, z of the features of
    all backbones side by side; ``weight_alignment`` of the head after the task.

    CE_aux has the newest backbone alone tell the new classes from each other and from "an old class".

    Args:
      network: of each backbone, of ``jaxkit.networks``; a new one starts from the one before.
      optimizer: of every task.
      strength: of CE_aux, 1 in the released code of the survey. May be traced.
      settings: see ``Settings``.

    Source: Yan et al. 2021, DER: dynamically expandable representation for class incremental learning, CVPR, eq. 3 to
    6, without the pruning by channel masks, as in the released code of the survey.
    """
    return _expanded(network, optimizer, 0, strength, settings)


def memo(
    network: Network,
    optimizer: optax.GradientTransformation,
    *,
    strength: Scalar = 1.0,
    shared_stages: int | None = None,
    train_shared: bool = True,
    **settings: Unpack[Settings],
) -> Plan:
    """DER with the first stages shared by all tasks: only the last ones are added for each.

    Args:
      network, optimizer: as for ``der``.
      strength: of CE_aux. May be traced.
      shared_stages: the stages for all tasks; None: all but the last, as for ResNet-32 in the paper.
      train_shared: whether they go on training after the first task (the released code's choice for an equal split of
        the classes; frozen where the first task has half of them).
      settings: see ``Settings``.

    Source: Zhou et al. 2023, A model or 603 exemplars, ICLR, eq. 6 and 7.
    """
    shared_stages = network.stages - 1 if shared_stages is None else check.count("shared_stages", shared_stages)
    if not 1 <= shared_stages < network.stages:
        raise check.UsageError(
            f"memo shares 1 to {network.stages - 1} stages of a network of {network.stages}, got {shared_stages}"
        )
    return _expanded(network, optimizer, shared_stages, strength, settings, train_shared)


def _expanded(network, optimizer, shared_stages, strength, settings, train_shared=True) -> Plan:
    check.number("strength", strength, 0.0)
    run = make_run(**settings)
    stream = run.stream

    def loss(view: View, batch: Batch):
        extra = auxiliary(view, batch)
        return seen_classes(view, batch) + strength * extra, {"auxiliary": extra}

    grown = expanding(network, stream.num_classes, stream.num_tasks, shared_stages, train_shared)
    phases: tuple[Phase, ...] = (Phase("train", loss, end=align),)
    if not train_shared:
        frozen = Phase("train", loss, freeze="^shared", tasks="later", end=align)
        phases = (phases[0]._replace(tasks="first"), frozen)
    return plan_of(grown, optimizer, phases, run, grow=add_backbone)
