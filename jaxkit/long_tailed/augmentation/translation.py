"""M2m: rows of frequent classes are translated into rows of rare ones, by descent on what a trained network sees."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from jaxkit import check
from jaxkit.data import class_balanced, epochs
from jaxkit.learner import (
    Batch,
    Data,
    Gradient,
    Key,
    Learner,
    LossState,
    Network,
    Params,
    Plan,
    Stage,
    TrainState,
    batch_mean,
    from_loss,
    plain,
)
from jaxkit.long_tailed import loss_methods
from jaxkit.long_tailed.augmentation.mixing import mixable
from jaxkit.long_tailed.counts import Counts, Scalar, check_counts
from jaxkit.long_tailed.decoupled import ClassLoss, checked, joint_training
from jaxkit.long_tailed.losses import softmax
from jaxkit.losses import cross_entropy

Rows = Float[Array, "batch *shape"]
Labels = Int[Array, " batch"]
Logits = Callable[[Array], Array]


class Seer(NamedTuple):
    """``TrainState.extra`` in the last stages of ``m2m``: the network g that says what a row looks like."""

    params: Params
    variables: Any


def acceptance(counts_from: Array, counts_to: Array, beta: Scalar) -> Array:
    """1 - beta^(n_from - n_to)_+: 0 unless the class translated from is larger."""
    return 1.0 - beta ** jnp.maximum(counts_from - counts_to, 0.0)


def draw_seeds(
    key: Key, labels: Labels, class_counts: Counts, beta: Scalar, valid: Bool[Array, " batch"]
) -> tuple[Labels, Float[Array, " batch"]]:
    """For each row a row of the batch from which one of its class may come: (which, with what probability it may).

    Row j is drawn for row i in proportion to ``acceptance`` of y_j into y_i. The probability is 0 where no class of the
    batch is larger.
    """
    counts = jnp.asarray(class_counts, jnp.float32)[labels]
    chance = jnp.where(valid[None, :], acceptance(counts[None, :], counts[:, None], beta), 0.0)
    seeds = jax.random.categorical(key, jnp.where(chance > 0, jnp.log(jnp.maximum(chance, 1e-30)), -jnp.inf), axis=-1)
    return seeds, jnp.take_along_axis(chance, seeds[:, None], axis=1)[:, 0]


def translate(
    seer: Logits,
    classifier: Logits,
    x: Rows,
    labels_from: Labels,
    labels_to: Labels,
    *,
    away: Scalar = 0.5,
    rate: Scalar = 0.1,
    steps: int = 10,
    bounds: tuple[float, float] | None = (0.0, 1.0),
) -> Rows:
    """``steps`` of x <- x - rate d / |d|, d the gradient of CE(g(x), y_to) + away f(x)_{y_from}, kept in ``bounds``.

    Both networks compute as in prediction. (The sign of the second term is the paper's; its code has the other.)

    Args:
      seer: g, as logits of rows.
      classifier: f, which is trained, as logits of rows.
      x: where the descent begins.
      labels_from: y_from, the class that f should no longer see.
      labels_to: y_to, the class that g should see.
      away: lambda.
      rate: the length of a step.
      steps: T.
      bounds: least and largest value of x; None: there are none.
    """

    def objective(x: Array) -> Array:
        left = jnp.take_along_axis(classifier(x), labels_from[:, None], axis=1)[:, 0]
        return jnp.sum(cross_entropy(seer(x), labels_to) + away * left)

    def one(_: Any, x: Array) -> Array:
        slope = jax.grad(objective)(x)
        norm = jnp.sqrt(jnp.sum(slope.reshape(len(x), -1) ** 2, axis=1)).reshape((-1,) + (1,) * (x.ndim - 1))
        x = x - rate * slope / (norm + 1e-10)
        return x if bounds is None else jnp.clip(x, *bounds)

    return jax.lax.fori_loop(0, steps, one, x)


def m2m(
    network: Network,
    optimizer: optax.GradientTransformation,
    *,
    class_counts: Counts,
    beta: Scalar = 0.999,
    gamma: Scalar = 0.9,
    away: Scalar = 0.5,
    rate: Scalar = 0.1,
    translation_steps: int = 10,
    noise: Scalar = 0.5,
    bounds: tuple[float, float] | None = (0.0, 1.0),
    batch_size: int = 128,
    loss: ClassLoss = softmax,
    seer_share: float = 0.5,
    deferred: float = 0.8,
    gradient: Gradient = plain,
) -> Plan:
    """Stage 1 trains g by cross-entropy; stage 2 f, from new values, by ``loss``; stage 3 goes on with f on
    class-balanced batches, in which rows are replaced by translations of rows of larger classes into theirs.

    A row of class k is to be replaced with probability 1 - n_k / n_max. A seed is drawn (``draw_seeds``), displaced by
    noise and translated (``translate``). The result takes the row's place, with the probability that ``draw_seeds``
    tells, if g gives it class k by at least gamma; else the row stays, which is over-sampling.

    Args:
      network: g and f are two of it.
      optimizer: of each network, started anew for f.
      class_counts: training rows of each class, above 0.
      beta: 0.999 as in the paper.
      gamma: 0.9 as in the released script for CIFAR-10-LT. May be traced.
      away: lambda, 0.5 as there. May be traced.
      rate: 0.1 as there, in units of x.
      translation_steps: T, 10 as there.
      noise: the largest length of the displacement before translation, 0.5 as there.
      bounds: least and largest value of x, see ``translate``.
      batch_size: of all stages.
      loss: of a row of f, by default the cross-entropy.
      seer_share: share of all steps that g is trained; 200 epochs for each network.
      deferred: share of the steps of f before rows are translated; 160 of 200 epochs.
      gradient: how the gradient is taken.

    Raises:
      UsageError: a setting out of its range, x that is no array of floats, counts that are none.

    Source: Kim et al. 2020, M2m: imbalanced classification via major-to-minor translation, algorithm 1.
    """
    check.fraction("beta", beta), check.fraction("gamma", gamma), check.number("away", away, 0.0)
    check.positive("rate", rate), check.number("noise", noise, 0.0), check.count("translation_steps", translation_steps)
    for name, share in (("seer_share", seer_share), ("deferred", deferred)):
        if not 0 < check.fraction(name, share) < 1:
            raise check.UsageError(f"{name} must lie between 0 and 1, for example 0.5, got {share!r}")
    if bounds is not None and not bounds[0] < bounds[1]:
        raise check.UsageError(f"bounds must be a smaller and a larger number, or None, got {bounds!r}")
    counts, settings = check_counts(class_counts), {"away": away, "rate": rate, "steps": translation_steps}

    def translated(params: Params, state: LossState, batch: Batch, key: Key) -> tuple[Array, Array]:
        x, labels, keys = mixable(batch["x"]), batch["y"], jax.random.split(key, 4)
        valid = batch.get("valid", jnp.ones(labels.shape, bool))
        seeds, chance = draw_seeds(keys[0], labels, counts, beta, valid)
        flat = jax.random.uniform(keys[1], (len(x), x[0].size), minval=-0.5, maxval=0.5)
        longest = jnp.maximum(jnp.linalg.norm(flat, axis=1, keepdims=True), 1e-10)
        start = x[seeds] + (flat * jnp.minimum(1.0, noise / longest)).reshape(x.shape)
        start = start if bounds is None else jnp.clip(start, *bounds)
        see = lambda x: network.apply(state.extra.params, state.extra.variables, x, train=False)[0]["logits"]
        own = lambda x: network.apply(params, state.variables, x, train=False)[0]["logits"]
        made = translate(see, own, start, labels[seeds], labels, bounds=bounds, **settings)
        likely = jnp.take_along_axis(jax.nn.softmax(see(made)), labels[:, None], axis=1)[:, 0] >= gamma
        wanted = jax.random.uniform(keys[2], labels.shape) < 1.0 - counts[labels] / counts.max()
        taken = valid & wanted & likely & (jax.random.uniform(keys[3], labels.shape) < chance)
        return jnp.where(taken.reshape((-1,) + (1,) * (x.ndim - 1)), made, x), taken

    def learner(translating: bool) -> Learner:
        def objective(params, state, batch, key):
            taken = jnp.zeros(len(batch["y"]))
            if translating:
                fixed = jax.lax.stop_gradient(params)
                x, taken = translated(fixed, state, batch, jax.random.fold_in(key, 1))
                batch = {**batch, "x": x}
            outputs, variables = loss_methods.applied(network, params, state.variables, batch, key, counts)
            value = batch_mean(loss(outputs["logits"], batch["y"], counts), batch)
            plainly = {"valid": batch["valid"]} if "valid" in batch else {}
            metrics = {"translated": batch_mean(taken.astype(jnp.float32), plainly)}
            return value, (state._replace(variables=variables), metrics)

        seer = lambda params, variables: jax.tree.map(jnp.copy, Seer(params, variables))
        return from_loss(checked(network, counts.size), objective, optimizer, gradient=gradient, init_extra=seer)

    def begin(state: TrainState, data: Data, key: Key) -> TrainState:
        return learner(False).init(key, data)._replace(extra=Seer(state.params, state.variables))

    (first,) = joint_training(
        network, optimizer, class_counts=counts, batch_size=batch_size, share=seer_share, gradient=gradient
    )
    left = 1.0 - seer_share
    return (
        first._replace(name="seer"),
        Stage("classifier", learner(False), epochs(batch_size), share=left * deferred, begin=begin),
        Stage("translation", learner(True), class_balanced(batch_size, counts.size), share=left * (1.0 - deferred)),
    )
