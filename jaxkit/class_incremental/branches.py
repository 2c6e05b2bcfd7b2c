"""AANets: a stable and a plastic branch at each stage of the network, and how much each counts."""

from __future__ import annotations

from typing import Any, Unpack

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from jaxkit import check
from jaxkit.class_incremental.baselines import seen_classes
from jaxkit.class_incremental.boosted import rows_of_classes
from jaxkit.class_incremental.cosine import imprinted, margin_ranking, proxy_scores, with_cosine_head
from jaxkit.class_incremental.distilled import Scalar
from jaxkit.class_incremental.incremental import new_columns, plan_of
from jaxkit.class_incremental.phases import Phase, Settings, View, make_run
from jaxkit.class_incremental.readout import among
from jaxkit.learner import Batch, Key, Network, Outputs, Params, Plan, PyTree, TrainState, batch_mean
from jaxkit.losses import cosine_distillation, cross_entropy
from jaxkit.networks import part_of


def scalings(params: Params) -> Params:
    """A factor of 1 for every output of each ``kernel`` in a tree of layers; for a convolution, one for every pair of
    input and output, over the places of its window."""
    found = {}
    for name, value in params.items():
        inner = scalings(value) if isinstance(value, dict) else {}
        if inner:
            found[name] = inner
        elif name == "kernel":
            shape = value.shape[2:] if value.ndim == 4 else value.shape[-1:]
            found[name] = jnp.ones(shape, value.dtype)
    return found


def rescaled(params: Params, factors: Params) -> Params:
    """The tree with its kernels times their factors. (Sun et al. 2019, Meta-transfer learning, CVPR.)"""
    each = lambda value, factor: rescaled(value, factor) if isinstance(value, dict) else value * factor
    return {name: each(value, factors[name]) if name in factors else value for name, value in params.items()}


def aggregating(network: Network, num_classes: int, scale: float) -> Network:
    """x_{l+1} = alpha_l stable_l(x_l) + (1 - alpha_l) plastic_l(x_l) over the stages l of the backbone, under a cosine
    head of one proxy.

    Parameters: ``stable`` and ``plastic``, each a backbone, ``factors`` of the kernels of ``stable``, ``alpha``
    [stages], which begins as 1, and ``head``. In training no gradient reaches ``alpha``.
    """
    stages = [part_of(network, i, i + 1) for i in range(network.stages)]
    whole = with_cosine_head(network, num_classes, 1, scale)

    def init(key: Key, x: PyTree) -> tuple[Params, Any]:
        params, variables = whole.init(key, x)
        copy = lambda tree: jax.tree.map(jnp.copy, tree)
        return {
            "stable": params["backbone"],
            "plastic": copy(params["backbone"]),
            "factors": scalings(params["backbone"]),
            "alpha": jnp.ones((network.stages,), jnp.float32),
            "head": params["head"],
        }, {"stable": variables, "plastic": copy(variables)}

    def apply(params, variables, x, *, train: bool = False, key=None, valid=None) -> tuple[Outputs, Any]:
        alpha = jax.lax.stop_gradient(params["alpha"]) if train else params["alpha"]
        branches = {"stable": rescaled(params["stable"], params["factors"]), "plastic": params["plastic"]}
        after = dict(variables)
        for number, stage in enumerate(stages):
            found = []
            for place, (name, own) in enumerate(branches.items()):
                own_key = None if key is None else jax.random.fold_in(key, 2 * number + place)
                inner = {"backbone": own}
                outputs, after[name] = stage.apply(inner, after[name], x, train=train, key=own_key, valid=valid)
                found.append(outputs["features"])
            x = alpha[number] * found[0] + (1.0 - alpha[number]) * found[1]
        scores = proxy_scores(x, params["head"]["kernel"])
        return {"logits": params["head"]["scale"] * scores, "scores": scores, "features": x}, after

    return Network(init, apply)


def with_branches(state: TrainState, fresh: TrainState, key: Key) -> TrainState:
    """A task begins; at the second one the plastic branch is a copy of the stable one, and both count a half."""
    state = new_columns(state, fresh, key)
    first = state.extra.number == 1
    copied = lambda to, source: jax.tree.map(lambda old, new: jnp.where(first, new, old), to, source)
    params, variables = state.params, state.variables
    plastic, alpha = copied(params["plastic"], params["stable"]), jnp.where(first, 0.5, params["alpha"])
    statistics = copied(variables["plastic"], variables["stable"])
    return state._replace(
        params={**params, "plastic": plastic, "alpha": alpha}, variables={**variables, "plastic": statistics}
    )


def balanced_mean(
    values: Float[Array, " batch"], labels: Int[Array, " batch"], counts: Float[Array, " classes"], batch: Batch
) -> Float[Array, ""]:
    """The mean of the rows each with weight 1 / n_y, n_y the rows of its class in the pool: what a pool in which all
    classes have as many rows would give on average."""
    weights = 1.0 / jnp.maximum(counts[labels], 1.0)
    ones = {name: value for name, value in batch.items() if name == "valid"}
    return batch_mean(weights * values, batch) / jnp.maximum(batch_mean(weights, ones), 1e-12)


def aanets(
    network: Network,
    optimizer: optax.GradientTransformation,
    *,
    strength: Scalar = 5.0,
    margin: Scalar = 0.5,
    negatives: int = 2,
    scale: float = 10.0,
    alpha_optimizer: optax.GradientTransformation | None = None,
    **settings: Unpack[Settings],
) -> Plan:
    """LUCIR on a network of two branches. The upper problem is min over alpha of CE on balanced rows, the lower one min
    over the others of LUCIR's loss on all rows; each step descends both.

    In the first task there is one branch, the stable one. Then its kernels are frozen and only rescaled
    (``scalings``), while its biases and normalisation, the plastic branch, and the head are trained.

    Args:
      network: its stages are those of each branch, of ``jaxkit.networks``.
      optimizer: of all but alpha.
      strength, margin, negatives, scale: as for ``lucir``; the first two may be traced.
      alpha_optimizer: of alpha; None: SGD at 1e-3 with momentum 0.9. The released code's default rate of 1e-8 leaves
        alpha at 0.5.
      settings: see ``Settings``.

    The released code draws balanced rows, exemplars and as many of each new class, once an epoch; here the rows of the
    step stand for them, each weighted by the inverse of the size of its class in the pool (``balanced_mean``).

    Source: Liu et al. 2021, Adaptive aggregation networks for class-incremental learning, CVPR; the
    factors of a convolution, one for each pair of channels, as in its released code.
    """
    check.number("strength", strength, 0.0), check.number("margin", margin, 0.0), check.positive("scale", scale)
    run = make_run(**settings)
    negatives = min(check.count("negatives", negatives), run.stream.num_classes)
    both = aggregating(network, run.stream.num_classes, scale)

    def first(view: View, batch: Batch):
        return seen_classes(view, batch), {}

    def later(view: View, batch: Batch):
        task, outputs = view.task, view.outputs
        weight = strength * jnp.sqrt(task.old / (task.seen - task.old))
        moved = batch_mean(cosine_distillation(outputs["features"], view.taught["features"]), batch)
        options = {"margin": margin, "negatives": negatives, "valid": batch.get("valid")}
        ranking = margin_ranking(outputs["scores"], batch["y"], task.old, task.seen, **options)
        value = seen_classes(view, batch) + weight * moved + ranking
        fixed = {**jax.lax.stop_gradient(view.params), "alpha": view.params["alpha"]}
        seen = both.apply(fixed, view.variables, batch["x"], train=False, valid=batch.get("valid"))[0]
        losses = cross_entropy(among(seen["logits"], 0, task.seen), batch["y"])
        upper = balanced_mean(losses, batch["y"], rows_of_classes(task, run), batch)
        return value + upper, {"moved": moved, "ranking": ranking, "upper": upper}

    by_name = lambda params: {name: "alpha" if name == "alpha" else "others" for name in params}
    two = optax.multi_transform({"others": optimizer, "alpha": alpha_optimizer or optax.sgd(1e-3, 0.9)}, by_name)
    phases = (
        Phase("train", first, freeze="^(plastic|factors|alpha)", tasks="first"),
        Phase("train", later, optimizer=two, freeze=r"^stable/.*kernel$", begin=imprinted(both), tasks="later"),
    )
    return plan_of(both, optimizer, phases, run, teacher=True, grow=with_branches)
