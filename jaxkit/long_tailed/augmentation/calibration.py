"""MiSLAS: mixup for the representation, then a classifier trained class-balanced with smoother labels for larger
classes.

Zhong et al. 2021, Improving calibration for long-tailed recognition, CVPR, and its released code, which freezes the
whole backbone in stage 2 and lets the head learn at a fraction of the rate of the scales.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from jaxkit import check
from jaxkit.data import class_balanced, epochs
from jaxkit.learner import (
    Data,
    Gradient,
    Key,
    Learner,
    Network,
    Params,
    Plan,
    Stage,
    TrainState,
    batch_mean,
    from_loss,
    plain,
    starting_from,
)
from jaxkit.long_tailed import losses
from jaxkit.long_tailed.augmentation.mixing import mixup
from jaxkit.long_tailed.counts import Counts, Labels, Logits, Scalar, check_counts
from jaxkit.long_tailed.decoupled import check_share, checked, with_class_scale

SHAPES = ("concave", "linear", "convex", "exp")


def smoothing_of(
    class_counts: Counts, head: Scalar = 0.3, tail: Scalar = 0.0, shape: str = "concave", power: Scalar = 2.0
) -> Float[Array, " classes"]:
    """eps_c, from ``tail`` for the smallest class to ``head`` for the largest, by r = (n_c - n_min) / (n_max - n_min):

    ``concave`` tail + (head - tail) sin(pi r / 2), ``linear`` tail + (head - tail) r, ``convex`` head - (head - tail)
    cos(pi r / 2), ``exp`` tail + (head - tail) r^power. Where all classes are of one size, eps = ``tail``.

    Args:
      class_counts: n.
      head: 0.3 as in the released code for CIFAR-10-LT and ImageNet-LT. In [0, 1]; may be traced.
      tail: 0 as there. In [0, 1]; may be traced.
      shape: one of ``SHAPES``.
      power: of ``exp``, above 0.

    Raises:
      UsageError: an unknown shape, a smoothing outside [0, 1], a power not above 0, counts that are none.

    Source: Zhong et al. 2021, and the released code's shapes.
    """
    _check_smoothing(head, tail), check.positive("power", power)
    shape = check.choose("shape", shape, SHAPES)
    counts = check_counts(class_counts)
    span = counts.max() - counts.min()
    ratio = (counts - counts.min()) / jnp.where(span > 0, span, 1.0)
    rise = {
        "concave": lambda: jnp.sin(jnp.pi / 2 * ratio),
        "linear": lambda: ratio,
        "convex": lambda: 1.0 - jnp.cos(jnp.pi / 2 * ratio),
        "exp": lambda: ratio**power,
    }[shape]()
    return tail + (head - tail) * rise


def _check_smoothing(head: Scalar, tail: Scalar) -> None:
    check.fraction("head smoothing", head), check.fraction("tail smoothing", tail)


def label_aware_smoothing(
    logits: Logits,
    labels: Labels,
    class_counts: Counts,
    head: Scalar = 0.3,
    tail: Scalar = 0.0,
    shape: str = "concave",
    power: Scalar = 2.0,
) -> losses.Rows:
    """-(1 - eps_y) log p_y - eps_y / C sum_c log p_c with eps of ``smoothing_of``; head = tail = 0 is CE(z).

    eps_y is spread over all C classes, the row's own among them, as in the released code.

    Raises:
      UsageError: as ``smoothing_of``; labels outside 0..C-1.

    Source: Zhong et al. 2021, and the released code.
    """
    entropy = losses.softmax(logits, labels, class_counts)
    smoothing = smoothing_of(class_counts, head, tail, shape, power)[labels]
    return (1.0 - smoothing) * entropy - smoothing * jax.nn.log_softmax(logits).mean(-1)


def scaled(
    optimizer: optax.GradientTransformation, factor: Scalar, pattern: str = "head"
) -> optax.GradientTransformation:
    """The optimizer with the updates of ``params[pattern]`` times ``factor``: its learning rate there is so much
    less."""

    def update(grads, state, params=None):
        updates, state = optimizer.update(grads, state, params)
        slower = jax.tree.map(lambda leaf: factor * leaf, updates[pattern])
        return {**updates, pattern: slower}, state

    return optax.GradientTransformation(optimizer.init, update)


def mislas(
    network: Network,
    optimizer: optax.GradientTransformation,
    *,
    class_counts: Counts,
    alpha: Scalar = 0.2,
    smooth_head: Scalar = 0.3,
    smooth_tail: Scalar = 0.0,
    shape: str = "concave",
    head_rate: Scalar = 0.05,
    shift: bool = True,
    batch_size: int = 128,
    classifier_optimizer: optax.GradientTransformation | None = None,
    classifier_share: float = 0.05,
    gradient: Gradient = plain,
) -> Plan:
    """Stage 1: ``mixup``. Stage 2, class-balanced: ``label_aware_smoothing`` of z_c = s_c (w_c . f + b_c) in s and,
    slowly, in w and b; the backbone's parameters are fixed, and its batch normalisation runs on.

    Args:
      network: with ``backbone`` and ``head``.
      optimizer: an optax transformation.
      class_counts: training rows of each class, above 0.
      alpha: of mixup; 0.2 as on ImageNet-LT (1 on CIFAR-LT).
      smooth_head: eps of the largest class. May be traced.
      smooth_tail: eps of the smallest class.
      shape: of the smoothing between them, see ``smoothing_of``.
      head_rate: the head's share of the learning rate of s in stage 2; 0.05 as on ImageNet-LT, 0.2 to 0.5 on CIFAR-LT.
        May be traced.
      shift: whether batch normalisation is in training mode in stage 2, so that its statistics become those of
        class-balanced batches (the paper's shift learning; not on CIFAR-10-LT).
      batch_size: of both stages.
      classifier_optimizer: of stage 2; None: ``optimizer``, started anew.
      classifier_share: share of the steps that stage 2 has; the paper's 10 epochs after 180 or 200.
      gradient: how the gradient is taken.

    Raises:
      UsageError: a setting out of its range, x that is no array of floats, counts that are none.

    Source: Zhong et al. 2021, and the released code.
    """
    (
        check_share(classifier_share),
        _check_smoothing(smooth_head, smooth_tail),
        check.number("head_rate", head_rate, 0),
    )
    shape, counts = check.choose("shape", shape, SHAPES), check_counts(class_counts)
    with_scale = with_class_scale(network, counts.size)
    descent = scaled(classifier_optimizer or optimizer, head_rate)

    def classifier(network: Network) -> Learner:
        def loss(params, state, batch, key):
            options = {"train": bool(shift), "key": key, "valid": batch.get("valid")}
            outputs, variables = with_scale.apply(params, state.variables, batch["x"], **options)
            logits = outputs["logits"]
            values = label_aware_smoothing(logits, batch["y"], counts, smooth_head, smooth_tail, shape)
            return batch_mean(values, batch), (state._replace(variables=variables), {})

        return from_loss(network, loss, descent, gradient=gradient, freeze="^backbone(/|$)")

    def begin(state: TrainState, data: Data, key: Key) -> TrainState:
        params: Params = {**state.params, "class_scale": jnp.ones((counts.size,), jnp.float32)}
        return classifier(starting_from(with_scale, params, state.variables)).init(key, data)

    first = mixup(checked(network, counts.size), optimizer, class_counts=counts, alpha=alpha, gradient=gradient)
    second = classifier(with_scale)
    return (
        Stage("mixup", first, epochs(batch_size), share=1.0 - classifier_share),
        Stage("classifier", second, class_balanced(batch_size, counts.size), share=classifier_share, begin=begin),
    )
