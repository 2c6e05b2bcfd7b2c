"""Decoupled training: learn the representation on the long tail, then balance the classifier alone.

Kang et al. 2020, Decoupling representation and classifier for long-tailed recognition, ICLR. Stage 1 trains the whole
network with one of the samplers of ``jaxkit.long_tailed.samplers``; what follows leaves the backbone as it is:

* ``crt``: a new head, trained class-balanced;
* ``lws``: the head is kept too, and one scale for each class is trained class-balanced;
* ``tau_norm``: w_c / |w_c|^tau, no training;
* ``ncm``: the class whose mean feature is nearest, no training.

In stage 2 the backbone computes as in prediction: no dropout, batch normalisation by its running statistics. A frozen
backbone is then one fixed map of x. (The released code freezes the parameters alone and leaves batch normalisation in
training mode.) The network needs parameters under ``backbone`` and ``head``, as all of ``jaxkit.networks`` have them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from jaxkit import check
from jaxkit.data import class_balanced
from jaxkit.learner import (
    Batch,
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
    from_example_loss,
    from_loss,
    plain,
    starting_from,
)
from jaxkit.long_tailed.counts import Counts, Scalar, check_counts, check_labels
from jaxkit.long_tailed.losses import softmax
from jaxkit.long_tailed.posthoc import tau_normalize
from jaxkit.long_tailed.samplers import sampler as make_sampler
from jaxkit.losses import cross_entropy
from jaxkit.networks import num_classes_of
from jaxkit.networks.heads import normalize
from jaxkit.training import predict_all

ClassLoss = Callable[[Array, Array, Array], Array]
"""``(logits [batch, C], labels [batch], class_counts [C]) -> [batch]``, as every loss of ``jaxkit.long_tailed``."""

READ_OUTS = ("cosine", "euclidean")


def checked(network: Network, num_classes: int) -> Network:
    """The network; its ``init`` says where there is no head, or one of another number of classes."""

    def init(key: Key, x: Any) -> tuple[Params, Any]:
        params, variables = network.init(key, x)
        if num_classes_of(params) != num_classes:
            raise check.UsageError(
                f"class_counts has {num_classes} entries and the network {num_classes_of(params)} classes; "
                "make the network for as many classes as there are counts"
            )
        return params, variables

    return network._replace(init=init)


def joint_training(
    network: Network,
    optimizer: optax.GradientTransformation,
    *,
    class_counts: Counts,
    batch_size: int = 128,
    sampler: str = "instance",
    total_steps: int | None = None,
    loss: ClassLoss = softmax,
    share: float = 1.0,
    gradient: Gradient = plain,
) -> Plan:
    """The whole network on re-sampled batches: min E_{(x, y) ~ sampler} loss(f(x), y); stage 1 of the others.

    Args:
      network: with ``backbone`` and ``head``.
      optimizer: an optax transformation.
      class_counts: training rows of each class, above 0.
      batch_size: rows of a step.
      sampler: one of ``samplers.SAMPLERS``: ``instance`` (every row once per epoch), ``class_balanced``,
        ``square_root``, ``progressive``, ``reversed``.
      total_steps: for ``progressive``: the steps after which it is class-balanced, those of this stage.
      loss: of a row, by default the cross-entropy.
      share: of the steps of a plan.
      gradient: how the gradient is taken.

    Raises:
      UsageError: counts that are none, an unknown sampler, ``progressive`` without ``total_steps``.

    Source: Kang et al. 2020, section 3.
    """
    counts = check_counts(class_counts)
    example_loss = lambda outputs, batch: loss(outputs["logits"], batch["y"], counts)
    learner = from_example_loss(checked(network, counts.size), example_loss, optimizer, gradient=gradient)
    source = make_sampler(sampler, batch_size, counts.size, total_steps)
    return (Stage("representation", learner, source, share=share),)


def _classifier_stage(
    network: Network,
    optimizer: optax.GradientTransformation,
    params_of: Callable[[TrainState, Data, Key], Params],
    *,
    counts: Array,
    batch_size: int,
    freeze: str,
    share: float,
    gradient: Gradient,
) -> Stage:
    """Stage 2: cross-entropy on class-balanced batches over a backbone that does not change.

    ``params_of(state, data, key)`` are its first parameters, from the state of stage 1.
    """

    def learner_of(network: Network) -> Learner:
        def loss(params, state, batch, key):
            outputs, _ = network.apply(params, state.variables, batch["x"], train=False, valid=batch.get("valid"))
            return batch_mean(cross_entropy(outputs["logits"], batch["y"]), batch), (state, {})

        return from_loss(network, loss, optimizer, gradient=gradient, freeze=freeze)

    def begin(state: TrainState, data: Data, key: Key) -> TrainState:
        started = starting_from(network, params_of(state, data, key), state.variables)
        return learner_of(started).init(key, data)

    source = class_balanced(batch_size, counts.size)
    return Stage("classifier", learner_of(network), source, share=share, begin=begin)


def crt(
    network: Network,
    optimizer: optax.GradientTransformation,
    *,
    class_counts: Counts,
    batch_size: int = 128,
    sampler: str = "instance",
    total_steps: int | None = None,
    loss: ClassLoss = softmax,
    classifier_optimizer: optax.GradientTransformation | None = None,
    classifier_share: float = 0.1,
    gradient: Gradient = plain,
) -> Plan:
    """Classifier re-training: a head drawn anew on the frozen backbone, trained class-balanced.

    Args:
      network, optimizer, class_counts, batch_size, sampler, total_steps, loss, gradient: as in ``joint_training``, of
        stage 1; ``total_steps`` are the steps of stage 1.
      classifier_optimizer: of stage 2; None: ``optimizer``, started anew.
      classifier_share: share of the steps that stage 2 has; the paper's 10 of 100 epochs.

    Raises:
      UsageError: as ``joint_training``; a share outside (0, 1).

    Source: Kang et al. 2020, section 4.
    """
    check_share(classifier_share)
    counts = check_counts(class_counts)

    def new_classifier(state: TrainState, data: Data, key: Key) -> Params:
        return {**state.params, "head": network.init(key, data["x"])[0]["head"]}

    first = joint_training(
        network, optimizer, class_counts=class_counts, batch_size=batch_size, sampler=sampler, total_steps=total_steps,
        loss=loss, share=1.0 - classifier_share, gradient=gradient,
    )  # fmt: skip
    second = _classifier_stage(
        network, classifier_optimizer or optimizer, new_classifier, counts=counts, batch_size=batch_size,
        freeze="^backbone(/|$)", share=classifier_share, gradient=gradient,
    )  # fmt: skip
    return (*first, second)


def with_class_scale(network: Network, num_classes: int) -> Network:
    """The network with z_c <- s_c z_c; s under ``class_scale`` [C], 1 at first."""

    def init(key: Key, x: Any) -> tuple[Params, Any]:
        params, variables = network.init(key, x)
        return {**params, "class_scale": jnp.ones((num_classes,), jnp.float32)}, variables

    def apply(params: Params, variables: Any, x: Any, **options: Any) -> tuple[Outputs, Any]:
        inner = {name: leaf for name, leaf in params.items() if name != "class_scale"}
        outputs, variables = network.apply(inner, variables, x, **options)
        return {**outputs, "logits": outputs["logits"] * params["class_scale"]}, variables

    return Network(init, apply)


def lws(
    network: Network,
    optimizer: optax.GradientTransformation,
    *,
    class_counts: Counts,
    batch_size: int = 128,
    sampler: str = "instance",
    total_steps: int | None = None,
    loss: ClassLoss = softmax,
    classifier_optimizer: optax.GradientTransformation | None = None,
    classifier_share: float = 0.05,
    gradient: Gradient = plain,
) -> Plan:
    """Learnable weight scaling: z_c = s_c (w_c . f + b_c); backbone and head frozen, s trained class-balanced.

    Args:
      network, optimizer, class_counts, batch_size, sampler, total_steps, loss, gradient: as in ``crt``.
      classifier_optimizer: of stage 2; None: ``optimizer``, started anew.
      classifier_share: share of the steps that stage 2 has; the released code's 5 epochs after 90.

    Raises:
      UsageError: as ``crt``.

    Source: Kang et al. 2020, section 4; the bias is scaled with the weights, as in the released code.
    """
    check_share(classifier_share)
    counts = check_counts(class_counts)

    def same_classifier(state: TrainState, data: Data, key: Key) -> Params:
        return {**state.params, "class_scale": jnp.ones((counts.size,), jnp.float32)}

    first = joint_training(
        network, optimizer, class_counts=class_counts, batch_size=batch_size, sampler=sampler, total_steps=total_steps,
        loss=loss, share=1.0 - classifier_share, gradient=gradient,
    )  # fmt: skip
    second = _classifier_stage(
        with_class_scale(network, counts.size), classifier_optimizer or optimizer, same_classifier, counts=counts,
        batch_size=batch_size, freeze="^(backbone|head)(/|$)", share=classifier_share, gradient=gradient,
    )  # fmt: skip
    return (*first, second)


def tau_norm(
    network: Network,
    optimizer: optax.GradientTransformation,
    *,
    class_counts: Counts,
    tau: Scalar = 0.7,
    batch_size: int = 128,
    sampler: str = "instance",
    total_steps: int | None = None,
    loss: ClassLoss = softmax,
    gradient: Gradient = plain,
) -> Plan:
    """Joint training; at its end w_c <- w_c / |w_c|^tau and b <- 0.

    Args:
      network, optimizer, class_counts, batch_size, sampler, total_steps, loss, gradient: as in ``joint_training``; the
        head is linear.
      tau: at least 0; may be traced. The paper chooses it on validation data: map ``tau_normalize`` over
        values of tau on one trained state.

    Raises:
      UsageError: as ``joint_training``; tau below 0.

    Source: Kang et al. 2020, section 4.
    """
    check.number("tau", tau, 0.0)
    (stage,) = joint_training(
        network, optimizer, class_counts=class_counts, batch_size=batch_size, sampler=sampler, total_steps=total_steps,
        loss=loss, gradient=gradient,
    )  # fmt: skip

    def end(state: TrainState, data: Data, key: Key) -> TrainState:
        return state._replace(params=tau_normalize(state.params, tau))

    return (stage._replace(end=end),)


class ClassMeans(NamedTuple):
    """``TrainState.extra`` after the end of ``ncm``: the mean feature of each class, [C, F]."""

    means: jax.Array


def class_means(
    features: Float[Array, "rows features"], labels: Int[Array, " rows"], num_classes: int
) -> Float[Array, "classes features"]:
    """m_c = sum_{y_i = c} f_i / n_c; 0 for a class without rows.

    Raises:
      UsageError: labels that are not one for each row, no whole numbers, or (where they are concrete) out of range.
    """
    labels = check_labels(labels, num_classes)
    if labels.shape != features.shape[:1]:
        raise check.UsageError(
            f"features {list(features.shape)} and labels {list(labels.shape)} must have the same rows"
        )
    total = jax.ops.segment_sum(features, labels, num_classes)
    count = jax.ops.segment_sum(jnp.ones(labels.shape, features.dtype), labels, num_classes)
    return total / jnp.maximum(count, 1.0)[:, None]


def nearest_mean(
    features: Float[Array, "*batch features"], means: Float[Array, "classes features"], read_out: str = "cosine"
) -> Float[Array, "*batch classes"]:
    """How near each class mean is: cos(f, m_c), or -|f - m_c|^2 for ``euclidean``; scores, not log-probabilities.

    (The distance between f and m_c / |m_c|, which the paper also names, decides as the cosine does.)
    """
    if check.choose("read-out", read_out, READ_OUTS) == "cosine":
        return normalize(features) @ normalize(means).T
    return -jnp.sum((features[..., None, :] - means) ** 2, axis=-1)


def ncm(
    network: Network,
    optimizer: optax.GradientTransformation,
    *,
    class_counts: Counts,
    read_out: str = "cosine",
    batch_size: int = 128,
    sampler: str = "instance",
    total_steps: int | None = None,
    loss: ClassLoss = softmax,
    gradient: Gradient = plain,
) -> Plan:
    """Nearest class mean: joint training; at its end the mean feature of each class, which then decides.

    After the end ``predict`` gives the read-out as ``logits`` and the trained head's as ``logits_head``; before it, the
    head's as ``logits``.

    Args:
      network, optimizer, class_counts, batch_size, sampler, total_steps, loss, gradient: as in ``joint_training``.
      read_out: ``cosine`` or ``euclidean`` (``nearest_mean``).

    Raises:
      UsageError: as ``joint_training``; an unknown read-out.

    Source: Kang et al. 2020, section 4; Snell et al. 2017.
    """
    read_out = check.choose("read-out", read_out, READ_OUTS)
    num_classes = check_counts(class_counts).size
    (stage,) = joint_training(
        network, optimizer, class_counts=class_counts, batch_size=batch_size, sampler=sampler, total_steps=total_steps,
        loss=loss, gradient=gradient,
    )  # fmt: skip
    joint = stage.learner

    def end(state: TrainState, data: Data, key: Key) -> TrainState:
        features = predict_all(joint.predict, state, data["x"])["features"]
        return state._replace(extra=ClassMeans(class_means(features, jnp.asarray(data["y"]), num_classes)))

    def predict(state: TrainState, batch: Batch) -> Outputs:
        outputs = joint.predict(state, batch)
        if not isinstance(state.extra, ClassMeans):
            return outputs
        scores = nearest_mean(outputs["features"], state.extra.means, read_out)
        return {**outputs, "logits": scores, "logits_head": outputs["logits"]}

    return (stage._replace(learner=joint._replace(predict=predict), end=end),)


class_balanced_sampling = functools.partial(joint_training, sampler="class_balanced")
"""Joint training on class-balanced batches."""

square_root_sampling = functools.partial(joint_training, sampler="square_root")
"""Joint training on batches with p_c proportional to sqrt(n_c)."""

progressive_sampling = functools.partial(joint_training, sampler="progressive")
"""Joint training on batches that go from instance- to class-balanced over ``total_steps``."""


def check_share(share: float) -> None:
    if not 0 < check.fraction("classifier_share", share) < 1:
        raise check.UsageError(f"classifier_share must lie between 0 and 1, for example 0.1, got {share!r}")
