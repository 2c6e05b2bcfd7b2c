"""SSP: self-supervised pre-training before any supervised training on the long tail.

The labels of a long tail say much about its large classes; a pretext task sees the rows without them. Stage 1 learns
the backbone by one, stage 2 trains as usual from there, with a new head.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, Shaped

from jaxkit import check
from jaxkit.data import epochs, transforms, views
from jaxkit.learner import (
    Data,
    Gradient,
    Key,
    Learner,
    Network,
    Outputs,
    Params,
    Plan,
    Stage,
    TrainState,
    batch_mean,
    from_loss,
    plain,
    starting_from,
)
from jaxkit.long_tailed.counts import Counts, Scalar, check_counts
from jaxkit.long_tailed.decoupled import ClassLoss, checked, joint_training
from jaxkit.long_tailed.loss_methods import second_of
from jaxkit.long_tailed.losses import softmax
from jaxkit.losses import cross_entropy, nt_xent
from jaxkit.networks import mlp

PRETEXTS = ("rotation", "contrastive")


def quarter_turns(
    x: Shaped[Array, "batch side side channels"], turns: Int[Array, " batch"]
) -> Shaped[Array, "batch side side channels"]:
    """Each picture turned counter-clockwise by ``turns`` times 90 degrees, turns in 0..3."""
    turned = jnp.stack([jnp.rot90(x, number, axes=(1, 2)) for number in range(4)])
    return turned[turns, jnp.arange(len(x))]


def with_pretext(network: Network, pretext: Network) -> Network:
    """The network with a second head on its features: ``pretext``, its parameters under that name, its output
    ``logits_pretext``."""

    def init(key: Key, x: Any) -> tuple[Params, Any]:
        params, variables = network.init(key, x)
        features = jnp.zeros((1, params["head"]["kernel"].shape[0]), jnp.float32)
        return {**params, "pretext": pretext.init(jax.random.fold_in(key, 1), features)[0]}, variables

    def apply(params: Params, variables: Any, x: Any, **options: Any) -> tuple[Outputs, Any]:
        inner = {name: leaf for name, leaf in params.items() if name != "pretext"}
        outputs, variables = network.apply(inner, variables, x, **options)
        second = pretext.apply(params["pretext"], {}, outputs["features"])[0]["logits"]
        return {**outputs, "logits_pretext": second}, variables

    return Network(init, apply)


def rotation(network: Network, optimizer: optax.GradientTransformation, *, gradient: Gradient = plain) -> Learner:
    """Which of four quarter turns a picture has been given: cross-entropy over 0, 90, 180 and 270 degrees.

    The turn of each row is drawn anew at every step. The head for the classes is not trained.

    Source: Gidaris et al. 2018, Unsupervised representation learning by predicting image rotations.
    """

    def square(key: Key, x: Any) -> tuple[Params, Any]:
        shape = getattr(x, "shape", ())
        if len(shape) != 4 or shape[1] != shape[2]:
            raise check.UsageError(
                f"pretext='rotation' needs square pictures [batch, side, side, channels], got the shape {list(shape)}; "
                "take pretext='contrastive'"
            )
        return network.init(key, x)

    given = with_pretext(network._replace(init=square), mlp(4, hidden=()))

    def loss(params, state, batch, key):
        key_turns, key_network = jax.random.split(key)
        turns = jax.vmap(lambda key: jax.random.randint(key, (), 0, 4))(jax.random.split(key_turns, len(batch["x"])))
        turned = quarter_turns(batch["x"], turns)
        options = {"train": True, "key": key_network, "valid": batch.get("valid")}
        outputs, variables = given.apply(params, state.variables, turned, **options)
        values = cross_entropy(outputs["logits_pretext"], turns)
        return batch_mean(values, batch), (state._replace(variables=variables), {})

    return from_loss(given, loss, optimizer, gradient=gradient, freeze="^head(/|$)")


def contrastive(
    network: Network,
    optimizer: optax.GradientTransformation,
    *,
    temperature: Scalar = 0.5,
    projection: int = 64,
    gradient: Gradient = plain,
) -> Learner:
    """``nt_xent`` between a row's two views, ``x`` and ``second`` of a batch, seen through a hidden layer and a linear
    one. The head for the classes is not trained.

    Source: Chen et al. 2020, A simple framework for contrastive learning of visual representations.
    """
    check.positive("temperature", temperature), check.count("projection", projection)
    given = with_pretext(network, mlp(projection, hidden=(projection,)))

    def loss(params, state, batch, key):
        valid, second = batch.get("valid"), second_of(batch, "contrastive pre-training", "jaxkit.data.views")
        both = jax.tree.map(lambda one, two: jnp.concatenate([one, two]), batch["x"], second["x"])
        twice = None if valid is None else jnp.tile(valid, 2)
        outputs, variables = given.apply(params, state.variables, both, train=True, key=key, valid=twice)
        one, two = jnp.split(outputs["logits_pretext"], 2)
        values = nt_xent(one, two, temperature=temperature, valid=valid)
        return batch_mean(values, batch), (state._replace(variables=variables), {})

    return from_loss(given, loss, optimizer, gradient=gradient, freeze="^head(/|$)")


def ssp(
    network: Network,
    optimizer: optax.GradientTransformation,
    *,
    class_counts: Counts,
    pretext: str = "contrastive",
    view: transforms.Transform | None = None,
    noise: Scalar = 0.1,
    temperature: Scalar = 0.5,
    projection: int = 64,
    batch_size: int = 128,
    sampler: str = "instance",
    total_steps: int | None = None,
    loss: ClassLoss = softmax,
    pretrain_optimizer: optax.GradientTransformation | None = None,
    pretrain_share: float = 0.5,
    gradient: Gradient = plain,
) -> Plan:
    """Stage 1 learns the backbone by a pretext task, without labels; stage 2 trains all of it with a new head.

    Args:
      network: with ``backbone`` and ``head``; for ``rotation``, of square pictures.
      optimizer: of stage 2, started anew.
      class_counts: training rows of each class, above 0.
      pretext: ``rotation``, the paper's on CIFAR, or ``contrastive``, for rows of any shape.
      view: draws each view of a row for ``contrastive``, as ``jaxkit.data.transforms`` make them; None adds normal
        noise.
      noise: its standard deviation, in units of x. May be traced.
      temperature: of ``contrastive``; 0.5 as in SimCLR. May be traced.
      projection: features that ``contrastive`` compares.
      batch_size: of both stages.
      sampler: of stage 2, see ``decoupled.joint_training``; stage 1 takes every row once per epoch.
      total_steps: of stage 2, for ``sampler="progressive"``: the steps after which it is class-balanced.
      loss: of a row in stage 2, by default the cross-entropy.
      pretrain_optimizer: of stage 1; None: ``optimizer``.
      pretrain_share: share of the steps that stage 1 has; on CIFAR the released code trains 200 epochs and 200.
      gradient: how the gradient is taken.

    Raises:
      UsageError: an unknown pretext task, a setting out of its range, rows that the task cannot take, counts that are
        none.

    Source: Yang and Xu 2020, Rethinking the value of labels for improving class-imbalanced learning, section 3.
    """
    pretext = check.choose("pretext task", pretext, PRETEXTS)
    if not 0 < check.fraction("pretrain_share", pretrain_share) < 1:
        raise check.UsageError(f"pretrain_share must lie between 0 and 1, for example 0.5, got {pretrain_share!r}")
    first = pretrain_optimizer or optimizer
    sized = checked(network, check_counts(class_counts).size)
    if pretext == "rotation":
        if view is not None:
            raise check.UsageError("view is for pretext='contrastive'; leave it out for 'rotation'")
        learner, source = rotation(sized, first, gradient=gradient), epochs(batch_size)
    else:
        settings = {"temperature": temperature, "projection": projection}
        learner = contrastive(sized, first, gradient=gradient, **settings)
        view = transforms.gaussian_noise(noise) if view is None else view
        source = views(epochs(batch_size), view, view)

    def supervised(network: Network) -> Stage:
        (stage,) = joint_training(
            network, optimizer, class_counts=class_counts, batch_size=batch_size, sampler=sampler,
            total_steps=total_steps, loss=loss, share=1.0 - pretrain_share, gradient=gradient,
        )  # fmt: skip
        return stage

    def begin(state: TrainState, data: Data, key: Key) -> TrainState:
        params = {**network.init(key, data["x"])[0], "backbone": state.params["backbone"]}
        return supervised(starting_from(network, params, state.variables)).learner.init(key, data)

    return (
        Stage("pre-training", learner, source, share=pretrain_share),
        supervised(network)._replace(name="supervised", begin=begin),
    )
