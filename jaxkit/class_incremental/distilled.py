"""The model before the task as a teacher: LwF, iCaRL, WA."""

from __future__ import annotations

from typing import Unpack

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from jaxkit import check
from jaxkit.class_incremental.baselines import new_classes, seen_classes
from jaxkit.class_incremental.incremental import plan_of
from jaxkit.class_incremental.phases import Phase, Settings, View, make_run
from jaxkit.class_incremental.readout import Bound, distillation
from jaxkit.learner import Batch, Data, Key, Network, Params, Plan, TrainState, batch_mean, path_name

Scalar = float | int | Array


def taught(view: View, batch: Batch, temperature: Scalar) -> Array:
    """mean_i of ``distillation`` from the model before the task."""
    return batch_mean(distillation(view.outputs["logits"], view.taught["logits"], view.task.old, temperature), batch)


def lwf(
    network: Network,
    optimizer: optax.GradientTransformation,
    *,
    strength: Scalar = 3.0,
    temperature: Scalar = 2.0,
    **settings: Unpack[Settings],
) -> Plan:
    """min CE(z_new) + strength KD(z_old, z_old before the task; T), no exemplars.

    Args:
      network, optimizer: of every task.
      strength: 3 in the released code of the survey. May be traced.
      temperature: T. May be traced.
      settings: see ``Settings``.

    Source: Li and Hoiem 2016, Learning without forgetting, ECCV.
    """
    check.number("strength", strength, 0.0), check.positive("temperature", temperature)

    def loss(view: View, batch: Batch):
        kept = taught(view, batch, temperature)
        return new_classes(view, batch) + strength * kept, {"distillation": kept}

    run = make_run(**{**settings, "memory": None})
    return plan_of(network, optimizer, (Phase("train", loss, "new"),), run, teacher=True)


def icarl(
    network: Network,
    optimizer: optax.GradientTransformation,
    *,
    temperature: Scalar = 2.0,
    **settings: Unpack[Settings],
) -> Plan:
    """min CE(z_seen) + KD(z_old, z_old before the task; T) on the task's rows and the exemplars; read out by
    ``logits_ncm``, the nearest mean of exemplars.

    The survey's code takes the cross-entropy where the paper has one binary cross-entropy for each class.

    Source: Rebuffi et al. 2017, iCaRL, CVPR, algorithms 1 to 5.
    """
    check.positive("temperature", temperature)

    def loss(view: View, batch: Batch):
        kept = taught(view, batch, temperature)
        return seen_classes(view, batch) + kept, {"distillation": kept}

    return plan_of(network, optimizer, (Phase("train", loss),), make_run(**settings), teacher=True)


def weight_alignment(
    kernel: Float[Array, "features classes"], old: Bound, seen: Bound
) -> Float[Array, "features classes"]:
    """w_c <- gamma w_c for new classes, gamma = mean_old |w_c| / mean_new |w_c|; as it is where no class is old.

    Source: Zhao et al. 2020, eq. 7 and 8.
    """
    place = jnp.arange(kernel.shape[1])
    before, new = place < old, (place >= old) & (place < seen)
    norms = jnp.linalg.norm(kernel, axis=0)
    mean = lambda mask: jnp.where(mask, norms, 0.0).sum() / jnp.maximum(mask.sum(), 1)
    gamma = jnp.where(jnp.asarray(old) > 0, mean(before) / jnp.maximum(mean(new), 1e-12), 1.0)
    return jnp.where(new, gamma * kernel, kernel)


def aligned(params: Params, old: Bound, seen: Bound) -> Params:
    """The parameters with ``weight_alignment`` of their head."""
    head = {**params["head"], "kernel": weight_alignment(params["head"]["kernel"], old, seen)}
    return {**params, "head": head}


def align(state: TrainState, data: Data, key: Key) -> TrainState:
    """The hook that aligns a state's head after a task."""
    return state._replace(params=aligned(state.params, state.extra.old, state.extra.seen))


def of_the_head(params: Params) -> Params:
    """Which leaves are the head's weights, for ``optax.masked``."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path_name(path) == "head/kernel", params)


def wa(
    network: Network,
    optimizer: optax.GradientTransformation,
    *,
    strength: Scalar = 2.0,
    temperature: Scalar = 2.0,
    clip: bool = False,
    **settings: Unpack[Settings],
) -> Plan:
    """min CE(z_seen) + strength KD(z_old, z_old before the task; T); after the task ``weight_alignment`` of the head.

    Args:
      network, optimizer: of every task.
      strength, temperature: of the distillation.
      clip: keep the weights of the head at 0 or above, by the projection of every step. Where the features are such
        (after a ReLU), the length of a class's weights then says how large its logits are, which the alignment
        supposes. The paper does so, the survey's released code does not.
      settings: stream, memory and batches; see ``make_run``.

    Source: Zhao et al. 2020, Maintaining discrimination and fairness in class incremental learning, CVPR, section 4.3;
    strength 2 of the survey's released code.
    """
    check.number("strength", strength, 0.0), check.positive("temperature", temperature)
    if clip:
        optimizer = optax.chain(optimizer, optax.masked(optax.keep_params_nonnegative(), of_the_head))

    def loss(view: View, batch: Batch):
        kept = taught(view, batch, temperature)
        return seen_classes(view, batch) + strength * kept, {"distillation": kept}

    return plan_of(network, optimizer, (Phase("train", loss, end=align),), make_run(**settings), teacher=True)
