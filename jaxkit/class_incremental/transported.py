"""Coil: classifiers of new and old classes are carried over to each other by optimal transport between classes."""

from __future__ import annotations

from typing import NamedTuple, Unpack

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from jaxkit import check
from jaxkit.class_incremental.baselines import seen_classes
from jaxkit.class_incremental.boosted import rows_of_classes
from jaxkit.class_incremental.cosine import proxy_scores, with_cosine_head
from jaxkit.class_incremental.distilled import Scalar, taught
from jaxkit.class_incremental.incremental import plan_of
from jaxkit.class_incremental.phases import Phase, Settings, View, make_run
from jaxkit.class_incremental.readout import AWAY, Bound, among, class_means
from jaxkit.learner import Batch, Data, Key, Network, Params, Plan, PyTree, TrainState, batch_mean
from jaxkit.losses import soft_cross_entropy
from jaxkit.losses.vectors import normalize
from jaxkit.training import predict_all


def sinkhorn(
    cost: Float[Array, "n m"],
    a: Float[Array, " n"],
    b: Float[Array, " m"],
    regulariser: Scalar = 0.464,
    iterations: int = 100,
) -> Float[Array, "n m"]:
    """P = argmin sum_ij P_ij C_ij - epsilon H(P) over P >= 0 with the row sums a and the column sums b.

    By u <- a / (K v), v <- b / (K' u) with K = exp(-C / epsilon), in logarithms. The column sums are exact, the row
    sums after enough iterations. Rows and columns of mass 0 take no part; with no mass at all P is 0.

    Args:
      cost: C.
      a, b: masses of the rows and the columns, of the same sum.
      regulariser: epsilon; may be traced.
      iterations: of both updates.

    Source: Cuturi 2013, Sinkhorn distances, NeurIPS, algorithm 1.
    """
    check.positive("regulariser", regulariser), check.count("iterations", iterations)
    log = lambda mass: jnp.where(mass > 0, jnp.log(jnp.where(mass > 0, mass, 1.0)), AWAY)
    scaled, log_a, log_b = -cost / regulariser, log(a), log(b)

    def turn(log_v: Array, _: None) -> tuple[Array, Array]:
        log_u = log_a - jax.nn.logsumexp(scaled + log_v, axis=1)
        return log_b - jax.nn.logsumexp(scaled + log_u[:, None], axis=0), log_u

    log_v, log_us = jax.lax.scan(turn, jnp.where(b > 0, 0.0, AWAY), length=iterations)
    there = (a[:, None] > 0) & (b > 0)
    return jnp.where(there, jnp.exp(jnp.where(there, log_us[-1][:, None] + scaled + log_v, 0.0)), 0.0)


def distances(
    means: Float[Array, "classes features"], others: Float[Array, "classes features"], norm: float = 3.0
) -> Float[Array, "classes classes"]:
    """|mu_i - mu_j|_p, a row at a time, for memory's sake."""
    one = lambda mean: jnp.power(jnp.power(jnp.abs(mean - others), norm).sum(-1), 1.0 / norm)
    return jax.lax.map(one, means)


def class_transport(
    means: Float[Array, "classes features"],
    old: Bound,
    seen: Bound,
    *,
    regulariser: Scalar = 0.464,
    norm: float = 3.0,
    iterations: int = 100,
) -> Float[Array, "classes classes"]:
    """The plan from old classes (rows) to new ones (columns), each class with the same mass as others on its side and
    ``distances`` as costs; 0 elsewhere. (Zhou et al. 2021.)"""
    place = jnp.arange(len(means))
    before, new = place < old, (place >= old) & (place < seen)
    share = lambda member: member / jnp.maximum(member.sum(), 1)
    a = jnp.where(new.any(), share(before), 0.0)
    return sinkhorn(distances(means, means, norm), a, jnp.where(before.any(), share(new), 0.0), regulariser, iterations)


def prospective(
    kernel: Float[Array, "features classes"], plan: Float[Array, "classes classes"], old: Bound
) -> Float[Array, "features classes"]:
    """The columns of new classes from those of old ones: gamma K_old sum_i P_ij w_i / |w_i|, gamma such that the norms
    of both have the same mean; 0 for other classes. (Zhou et al. 2021.)"""
    before = jnp.arange(kernel.shape[1]) < old
    norms = jnp.linalg.norm(kernel, axis=0)
    carried = normalize(kernel, axis=0) @ plan * old
    length = jnp.linalg.norm(carried, axis=0)
    mean = lambda values, mask: jnp.where(mask, values, 0.0).sum() / jnp.maximum(mask.sum(), 1)
    return carried * mean(norms, before) / jnp.maximum(mean(length, length > 0), 1e-12)


def retrospective(
    kernel: Float[Array, "features classes"], plan: Float[Array, "classes classes"]
) -> Float[Array, "features classes"]:
    """The columns of old classes from those of new ones, up to a factor: sum_j P_ij w_j / |w_j|; 0 for other classes.
    (Zhou et al. 2021.)"""
    return normalize(kernel, axis=0) @ plan.T


class Transport(NamedTuple):
    """``Task.own``: the plan between classes, and the columns carried over to the new ones when the task began."""

    plan: Float[Array, "classes classes"]
    heads: Float[Array, "features classes"]


def coil(
    network: Network,
    optimizer: optax.GradientTransformation,
    *,
    epochs: Scalar = 160.0,
    prospective_strength: Scalar = 1e-3,
    retrospective_strength: Scalar = 1e-3,
    temperature: Scalar = 2.0,
    regulariser: Scalar = 0.464,
    norm: float = 3.0,
    scale: float = 1.0,
    **settings: Unpack[Settings],
) -> Plan:
    """min (1 - lambda) CE(z_seen) + lambda KD(z_old, z_old before the task; T) + transport, lambda = K_old / K, on a
    cosine head.

    A task begins with columns of its classes carried over from old ones (``prospective``). In its first epoch
    transport = s_p KD of the carried columns' cosines into the logits of the new classes; in epoch e after it
    s_r (e / E)^2 KD of the teacher's logits into the cosines of old columns carried back from the new ones
    (``retrospective``).

    Args:
      network: its backbone is used, of ``jaxkit.networks``.
      optimizer: of every task.
      epochs: E, as many as a task has; give the number that ``steps_of`` was given. May be traced.
      prospective_strength, retrospective_strength: s_p and s_r. May be traced.
      temperature: T. May be traced.
      regulariser: epsilon of ``sinkhorn``. May be traced.
      norm: p of ``distances`` between class means.
      scale: of the cosines at the start; it is learnt.
      settings: see ``Settings``.

    The released code carries over at the end of a task, with all training rows of its old classes and with those of
    the classes to come. Here it happens when these come, under the same model, with the exemplars of old classes. The
    plan is that of the task's begin, where the released code makes a new one every 200 steps.

    Source: Zhou et al. 2021, Co-transport for class-incremental learning, ACM MM; constants and the two losses as in
    the released code of the survey.
    """
    check.positive("epochs", epochs), check.positive("temperature", temperature), check.positive("scale", scale)
    check.number("prospective_strength", prospective_strength, 0.0), check.number("norm", norm, 1.0)
    check.number("retrospective_strength", retrospective_strength, 0.0), check.positive("regulariser", regulariser)
    run = make_run(**settings)
    classes = run.stream.num_classes
    cosine = with_cosine_head(network, classes, 1, scale)

    def nothing(params: Params, variables: PyTree) -> Transport:
        return Transport(jnp.zeros((classes, classes)), jnp.zeros(params["head"]["kernel"].shape[1:]))

    def carry_over(state: TrainState, data: Data, key: Key) -> TrainState:
        task, labels, head = state.extra, jnp.asarray(data["y"]), state.params["head"]
        predict = lambda state, batch: cosine.apply(state.params, state.variables, batch["x"], train=False)[0]
        features = predict_all(predict, state, jnp.asarray(data["x"]))["features"]
        place = jnp.arange(classes)
        new = (place >= task.old) & (place < task.seen) & (task.old > 0)
        means = jnp.where(new[:, None], class_means(features, labels, classes, new[labels]), task.means)
        plan = class_transport(means, task.old, task.seen, regulariser=regulariser, norm=norm)
        heads = prospective(head["kernel"][0], plan, task.old)
        params = {**state.params, "head": {**head, "kernel": jnp.where(new, heads, head["kernel"])}}
        return state._replace(params=params, extra=task._replace(own=Transport(plan, heads)))

    def cosines(features: Array, kernel: Array) -> Array:
        return proxy_scores(features, jax.lax.stop_gradient(kernel)[None]) / temperature

    def loss(view: View, batch: Batch):
        task, own, features = view.task, view.task.own, view.outputs["features"]
        share, old = task.old / task.seen, jnp.maximum(task.old, 1)
        kept = taught(view, batch, temperature)
        steps = jnp.maximum(rows_of_classes(task, run).sum() // run.batch_size, 1)
        epoch = jnp.floor(view.step / steps)
        back = retrospective(view.params["head"]["kernel"][0], own.plan)
        ahead = jax.nn.softmax(among(cosines(features, own.heads), task.old, task.seen))
        before = jax.nn.softmax(among(view.taught["logits"], 0, old) / temperature)
        forward = soft_cross_entropy(among(view.outputs["logits"] / temperature, task.old, task.seen), ahead)
        backward = soft_cross_entropy(among(cosines(features, back), 0, old), before)
        weight = retrospective_strength * jnp.square(jnp.minimum(epoch / epochs, 1.0))
        transport = jnp.where(epoch < 1, prospective_strength * forward, weight * backward)
        transport = batch_mean(jnp.where(task.old > 0, transport, 0.0), batch)
        value = (1.0 - share) * seen_classes(view, batch) + share * kept + transport
        return value, {"distillation": kept, "transport": transport}

    phase = Phase("train", loss, begin=carry_over)
    return plan_of(cosine, optimizer, (phase,), run, teacher=True, own=nothing)
