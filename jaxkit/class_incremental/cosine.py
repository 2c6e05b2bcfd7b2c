"""Cosine classifiers that hold on to the features of the model before: LUCIR, PODNet."""

from __future__ import annotations

from typing import Any, Unpack

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from jaxkit import check
from jaxkit.class_incremental.baselines import seen_classes
from jaxkit.class_incremental.distilled import Scalar
from jaxkit.class_incremental.incremental import plan_of
from jaxkit.class_incremental.phases import Phase, Settings, View, make_run, needs_exemplars
from jaxkit.class_incremental.readout import AWAY, among, class_means
from jaxkit.learner import Batch, Data, Key, Network, Outputs, Params, Plan, PyTree, TrainState, batch_mean
from jaxkit.losses import cosine_distillation
from jaxkit.losses.vectors import normalize
from jaxkit.networks import part_of
from jaxkit.training import predict_all

_kernel_init = jax.nn.initializers.lecun_normal(in_axis=-2, out_axis=-1)


def proxy_scores(
    features: Float[Array, "batch features"], kernel: Float[Array, "proxies features classes"]
) -> Float[Array, "batch classes"]:
    """sum_k s_ck cos(f, theta_ck), s_c = softmax_k cos(f, theta_ck); with one proxy the cosine itself.

    Source: Douillard et al. 2020, eq. 9, the local similarity classifier.
    """
    cosines = jnp.einsum("bf,pfc->bpc", normalize(features), normalize(kernel, axis=1))
    return (jax.nn.softmax(cosines, axis=1) * cosines).sum(1)


def with_cosine_head(network: Network, num_classes: int, proxies: int, scale: float) -> Network:
    """The backbone under a cosine head with ``head/kernel`` [proxies, features, classes] and ``head/scale``.

    Outputs: ``logits`` = scale times ``scores``; and ``maps``, what comes out of each stage of the backbone.
    """
    stages = [part_of(network, i, i + 1) for i in range(network.stages)]
    backbone = part_of(network)

    def init(key: Key, x: PyTree) -> tuple[Params, Any]:
        keys = jax.random.split(key)
        params, variables = backbone.init(keys[0], x)
        features = jax.eval_shape(lambda: backbone.apply(params, variables, x)[0]["features"])
        kernel = _kernel_init(keys[1], (proxies, features.shape[-1], num_classes), jnp.float32)
        return {**params, "head": {"kernel": kernel, "scale": jnp.asarray(scale, jnp.float32)}}, variables

    def apply(params, variables, x, *, train: bool = False, key=None, valid=None) -> tuple[Outputs, Any]:
        inner = {"backbone": params["backbone"]}
        maps = []
        for number, stage in enumerate(stages):
            own_key = None if key is None else jax.random.fold_in(key, number)
            outputs, variables = stage.apply(inner, variables, x, train=train, key=own_key, valid=valid)
            x = outputs["features"]
            maps.append(x)
        scores = proxy_scores(x, params["head"]["kernel"])
        return {"logits": params["head"]["scale"] * scores, "scores": scores, "features": x, "maps": maps}, variables

    return Network(init, apply)


def imprinted(network: Network) -> Any:
    """The hook that gives each new class the mean of its normalised features as its weights, in all proxies."""

    def hook(state: TrainState, data: Data, key: Key) -> TrainState:
        task, labels = state.extra, jnp.asarray(data["y"])
        predict = lambda state, batch: network.apply(state.params, state.variables, batch["x"], train=False)[0]
        features = predict_all(predict, state, jnp.asarray(data["x"]))["features"]
        place = jnp.arange(task.means.shape[0])
        new = (place >= task.old) & (place < task.seen) & (task.old > 0)
        means = class_means(features, labels, place.size, new[labels])
        head = state.params["head"]
        kernel = jnp.where(new, means.T, head["kernel"])
        return state._replace(params={**state.params, "head": {**head, "kernel": kernel}})

    return hook


def margin_ranking(
    scores: Float[Array, "batch classes"],
    labels: Int[Array, " batch"],
    old: int | Int[Array, ""],
    seen: int | Int[Array, ""],
    *,
    margin: Scalar = 0.5,
    negatives: int = 2,
    valid: Bool[Array, " batch"] | None = None,
) -> Float[Array, ""]:
    """The mean over rows of old classes of sum_{k <= K} max(m - cos_y + cos_(k), 0), cos_(k) the K largest cosines of
    new classes.

    Source: Hou et al. 2019, eq. 8.
    """
    exemplar = labels < old
    exemplar = exemplar if valid is None else exemplar & valid
    truth = jnp.take_along_axis(scores, labels[:, None], axis=1)
    hardest = jax.lax.top_k(among(scores, old, seen), negatives)[0]
    rows = jnp.where(hardest > AWAY / 2, jnp.maximum(margin - truth + hardest, 0.0), 0.0).sum(-1)
    return jnp.where(exemplar, rows, 0.0).sum() / jnp.maximum(exemplar.sum(), 1)


def lucir(
    network: Network,
    optimizer: optax.GradientTransformation,
    *,
    strength: Scalar = 5.0,
    margin: Scalar = 0.5,
    negatives: int = 2,
    scale: float = 10.0,
    **settings: Unpack[Settings],
) -> Plan:
    """min CE(s cos) + strength sqrt(K_old / K_new) (1 - cos(f, f before the task)) + ``margin_ranking``, on a cosine
    head whose new weights are class means.

    Args:
      network: its backbone is used, of ``jaxkit.networks``.
      optimizer: of every task.
      strength: lambda_base, 5 for CIFAR-100 in the paper. May be traced.
      margin, negatives: m = 0.5 and K = 2 of the margin ranking loss; ``margin`` may be traced.
      scale: s at the start; it is learnt.
      settings: see ``Settings``.

    Source: Hou et al. 2019, Learning a unified classifier incrementally via rebalancing, CVPR, eq. 3, 6 and 8.
    """
    check.number("strength", strength, 0.0), check.number("margin", margin, 0.0), check.positive("scale", scale)
    run = make_run(**settings)
    negatives = min(check.count("negatives", negatives), run.stream.num_classes)
    cosine = with_cosine_head(network, run.stream.num_classes, 1, scale)

    def loss(view: View, batch: Batch):
        task = view.task
        weight = strength * jnp.sqrt(task.old / (task.seen - task.old))
        moved = batch_mean(cosine_distillation(view.outputs["features"], view.taught["features"]), batch)
        ranking = margin_ranking(
            view.outputs["scores"],
            batch["y"],
            task.old,
            task.seen,
            margin=margin,
            negatives=negatives,
            valid=batch.get("valid"),
        )
        return seen_classes(view, batch) + weight * moved + ranking, {"moved": moved, "ranking": ranking}

    phase = Phase("train", loss, begin=imprinted(cosine))
    return plan_of(cosine, optimizer, (phase,), run, teacher=True)


def nca(
    logits: Float[Array, "*batch classes"], labels: Int[Array, "*batch"], margin: Scalar = 0.6
) -> Float[Array, "*batch"]:
    """max(0, log sum_{c != y} exp(z_c) - (z_y - delta)) with z_c = eta s_c; classes at ``AWAY`` take no part.

    In the paper eta multiplies delta too. Where it is learnt, as in the released code of the survey, that has a minimum
    at eta < 0 while s_y < delta; so the margin is one of the logits. (That code takes the margin from all logits, where
    it has no effect, and cuts nothing at 0.)

    Source: Douillard et al. 2020, eq. 10.
    """
    truth = jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
    others = jnp.where(jnp.arange(logits.shape[-1]) == labels[..., None], AWAY, logits)
    return jnp.maximum(jax.nn.logsumexp(others, axis=-1) - (truth - margin), 0.0)


def pod_spatial(student: Float[Array, " batch *map"], teacher: Float[Array, " batch *map"]) -> Float[Array, " batch"]:
    """|v(h) - v(h_t)| with v the squared activations summed over the height, and over the width, side by side, divided
    by its norm; of a layer without a plane its squared activations so.

    Source: Douillard et al. 2020, eq. 5 and 6; squares, the joint norm and the mean over stages as in the released
    code.
    """

    def pooled(h: Array) -> Array:
        square = h * h
        if h.ndim != 4:
            return normalize(square.reshape(len(h), -1))
        sums = [square.sum(axis).reshape(len(h), -1) for axis in (1, 2)]
        return normalize(jnp.concatenate(sums, axis=-1))

    gap = jnp.square(pooled(student) - pooled(jax.lax.stop_gradient(teacher))).sum(-1)
    return jnp.where(gap > 0, jnp.sqrt(jnp.where(gap > 0, gap, 1.0)), 0.0)


def podnet(
    network: Network,
    optimizer: optax.GradientTransformation,
    *,
    spatial: Scalar = 5.0,
    flat: Scalar = 1.0,
    margin: Scalar = 0.6,
    proxies: int = 10,
    finetune_share: float = 0.125,
    finetune_optimizer: optax.GradientTransformation | None = None,
    **settings: Unpack[Settings],
) -> Plan:
    """min NCA + sqrt(K / K_new) (spatial mean_stages POD-spatial + flat (1 - cos(f, f before the task))), then the same
    on the exemplars alone; old proxies do not move.

    Args:
      network: its backbone is used, of ``jaxkit.networks``.
      optimizer: of every task.
      spatial, flat: lambda_c = 5 and lambda_f = 1 of the released code of the survey. May be traced.
      margin: delta of ``nca``. May be traced.
      proxies: of each class.
      finetune_share: epochs over the exemplars for one of training, 20 / 160 in the released code.
      finetune_optimizer: None is ``optimizer`` with updates of a tenth their size.
      settings: see ``Settings``.

    Source: Douillard et al. 2020, PODNet: pooled outputs distillation for small-tasks incremental learning, ECCV.
    """
    check.number("spatial", spatial, 0.0), check.number("flat", flat, 0.0), check.number("margin", margin, 0.0)
    run = needs_exemplars("podnet", make_run(**settings))
    classes = run.stream.num_classes
    pod = with_cosine_head(network, classes, check.count("proxies", proxies), 1.0)

    def loss(view: View, batch: Batch):
        task, outputs, head = view.task, view.outputs, view.params["head"]
        kernel = jnp.where(jnp.arange(classes) < task.old, jax.lax.stop_gradient(head["kernel"]), head["kernel"])
        scores = among(head["scale"] * proxy_scores(outputs["features"], kernel), 0, task.seen)
        value = batch_mean(nca(scores, batch["y"], margin), batch)
        pairs = list(zip(outputs["maps"][:-1], view.taught["maps"][:-1], strict=True))
        pooled = sum(batch_mean(pod_spatial(*pair), batch) for pair in pairs) / max(len(pairs), 1)
        moved = batch_mean(cosine_distillation(outputs["features"], view.taught["features"]), batch)
        weight = jnp.where(task.old > 0, jnp.sqrt(task.seen / (task.seen - task.old)), 0.0)
        return value + weight * (spatial * pooled + flat * moved), {"pod": pooled, "moved": moved}

    tenth = finetune_optimizer or optax.chain(optimizer, optax.scale(0.1))
    phases = (
        Phase("train", loss, exemplars=True),
        Phase("finetune", loss, "exemplars", finetune_share, tenth, tasks="later"),
    )
    return plan_of(pod, optimizer, phases, run, teacher=True)
