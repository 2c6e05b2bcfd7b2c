"""SADE: three experts for three test distributions, and their weights found on unlabelled test rows.

Zhang et al. 2022, Self-supervised aggregation of diverse experts for test-agnostic long-tailed recognition, NeurIPS,
and the released code. Training:

>>> plan = sade(network, optimizer, class_counts=counts)

At test the experts are averaged, which is for equally frequent classes. For another, unknown class prior:

>>> weights = aggregation_weights(view_1["logits_experts"], view_2["logits_experts"])
>>> logits = aggregate(outputs["logits_experts"], weights)
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float

from jaxkit import check
from jaxkit.learner import Batch, Gradient, Key, Learner, Network, Outputs, PyTree, State, batch_mean, from_loss, plain
from jaxkit.long_tailed import loss_methods
from jaxkit.long_tailed.counts import Counts, Scalar, check_counts, concrete, log_prior
from jaxkit.long_tailed.ensembles.experts import ExpertLogits, ensemble_of
from jaxkit.losses import cross_entropy
from jaxkit.losses.vectors import clear, normalize, row_weights
from jaxkit.training import predict_all

ExpertWeights = Float[Array | np.ndarray, " _"]  # as many as there are experts: checked where they meet them
View = Float[Array | np.ndarray, "_ _ _"]  # [batch, experts, classes], both views alike

EXPERTS = 3


def reversed_prior(class_counts: Counts) -> Float[Array, " classes"]:
    """The prior turned round: the largest class gets the share of the smallest, the second that of the second
    smallest, and so on; of equal counts the order of the labels decides.
    """
    counts = check_counts(class_counts)
    order = jnp.argsort(counts, stable=True)
    rank = jnp.argsort(order, stable=True)
    return counts[order][counts.size - 1 - rank] / counts.sum()


def expert_adjustments(class_counts: Counts, *, tau: Scalar = 2.0) -> Float[Array, "3 classes"]:
    """What is added to the logits of each expert in training: 0, log pi, log pi - tau log pi_reversed.

    The three learn logits for the training prior, for equally frequent classes, and for a prior that is turned round
    (more than that, with tau = 2).

    Args:
      class_counts: n.
      tau: 2 in the released code. May be traced.

    Source: Zhang et al. 2022, eq. 2-4, and the released code.
    """
    check.number("tau", tau, 0.0)
    log_pi = log_prior(class_counts)
    return jnp.stack([jnp.zeros_like(log_pi), log_pi, log_pi - tau * jnp.log(reversed_prior(class_counts))])


def sade(
    network: Network,
    optimizer: optax.GradientTransformation,
    *,
    class_counts: Counts,
    experts: int | None = EXPERTS,
    tau: Scalar = 2.0,
    gradient: Gradient = plain,
) -> Learner:
    """min CE(z_1) + CE(z_2 + log pi) + CE(z_3 + log pi - tau log pi_reversed); ``predict`` averages z_1, z_2, z_3.

    Args:
      network: one expert, with a cosine head in the paper; or, with ``experts=None``, a network that has three.
      optimizer: SGD with Nesterov momentum 0.9 and a learning rate of 0.1 in the paper.
      class_counts: n.
      experts: 3 copies of the network (``replicated``), or None (``with_experts``).
      tau: see ``expert_adjustments``. May be traced.
      gradient: how the gradient is taken.

    Raises:
      UsageError: counts that are none, a negative tau, another number of experts.

    Source: Zhang et al. 2022, section 4.2, and the released code.
    """
    counts = check_counts(class_counts)
    adjustments = expert_adjustments(class_counts, tau=tau)
    ensemble = ensemble_of(network, experts, needed=EXPERTS)

    def loss(params, state, batch, key):
        outputs, variables = loss_methods.applied(ensemble, params, state.variables, batch, key, counts)
        logits = outputs["logits_experts"] + adjustments
        values = cross_entropy(logits, jnp.broadcast_to(batch["y"][:, None], logits.shape[:2]))
        return batch_mean(values.sum(1), batch), (state._replace(variables=variables), {})

    return from_loss(ensemble, loss, optimizer, gradient=gradient)


def aggregate(logits_experts: ExpertLogits, weights: ExpertWeights) -> Float[Array, "*batch classes"]:
    """sum_e w_e z_e.

    Raises:
      UsageError: as many weights as there are experts are needed, not negative, with the sum 1.
    """
    logits_experts, weights = (
        values if hasattr(values, "shape") else np.asarray(values, np.float32) for values in (logits_experts, weights)
    )
    experts = logits_experts.shape[-2]
    if weights.shape != (experts,):
        raise check.UsageError(f"there are {experts} experts; give one weight for each, got {list(weights.shape)}")
    if concrete(weights) and not (bool((weights >= 0).all()) and abs(float(weights.sum()) - 1) <= 1e-3):
        raise check.UsageError(f"weights of experts are not negative and sum to 1, got {weights.tolist()}")
    return jnp.einsum("...ec,e->...c", logits_experts, weights)


def view_similarity(
    first: View,
    second: View,
    weights: ExpertWeights,
    valid: Bool[Array | np.ndarray, " batch"] | None = None,
) -> Float[Array, ""]:
    """The mean over rows of cos(p, p'), p = softmax(sum_e w_e z_e) of one view and p' of the other.

    Source: Zhang et al. 2022, eq. 5.
    """
    first, second = jnp.asarray(first), jnp.asarray(second)
    valid = None if valid is None else jnp.asarray(valid)
    p, q = (jax.nn.softmax(jnp.einsum("bec,e->bc", clear(view, valid), weights)) for view in (first, second))
    counted = row_weights(len(first), valid)
    return (counted * jnp.sum(normalize(p) * normalize(q), axis=-1)).sum() / jnp.maximum(counted.sum(), 1.0)


def aggregation_weights(
    first: View,
    second: View,
    *,
    steps: int = 400,
    rate: Scalar = 0.1,
    momentum: float = 0.9,
    least: Scalar = 0.05,
    valid: Bool[Array | np.ndarray, " batch"] | None = None,
) -> Float[Array, " experts"]:
    """Weights of the experts under which two augmented views of unlabelled test rows agree most.

    An expert that knows the frequent classes of the test rows is stable under augmentation on them. w = softmax(v)
    climbs ``view_similarity`` by gradient ascent with Nesterov momentum from equal weights; once a weight is below
    ``least``, they stay.

    Args:
      first: logits of the experts on one view of the test rows.
      second: on another view of the same rows.
      steps: of ascent, each on all rows. The released configuration goes five times through the test set in batches
        of 128, which for 10,000 rows are 395 steps.
      rate: learning rate, 0.1 in the released configuration. May be traced.
      momentum: 0.9 in the released configuration.
      least: 0.05 in the released code, which looks at the weights once per epoch; here after each step. May be traced.
      valid: rows that count.

    Returns:
      w, [E], not negative, with the sum 1.

    Raises:
      UsageError: views of different shapes, settings out of range.

    Source: Zhang et al. 2022, section 4.3 and algorithm 2, and the released code, whose weight decay of 5e-4 on v is
    left out.
    """
    first, second = (view if hasattr(view, "shape") else np.asarray(view, np.float32) for view in (first, second))
    if first.ndim != 3:
        raise check.UsageError(f"views are logits [rows, experts, classes], got {list(first.shape)}")
    if first.shape != second.shape:
        raise check.UsageError(f"two views of the same rows are needed, got {list(first.shape)}, {list(second.shape)}")
    check.count("steps", steps, 0), check.positive("rate", rate), check.fraction("least", least)
    ascent = optax.sgd(rate, momentum=check.number("momentum", momentum, 0.0, 0.999), nesterov=True)
    objective = lambda v: -view_similarity(first, second, jax.nn.softmax(v), valid)

    def step(_, carry):
        v, moments = carry
        updates, after = ascent.update(jax.grad(objective)(v), moments, v)
        stay = jax.nn.softmax(v).min() < least
        return jax.tree.map(lambda old, new: jnp.where(stay, old, new), carry, (v + updates, after))

    first, second = jnp.asarray(first), jnp.asarray(second)
    start = jnp.full((first.shape[1],), 1.0 / first.shape[1], first.dtype)
    v, _ = jax.lax.fori_loop(0, steps, step, (start, ascent.init(start)))
    return jax.nn.softmax(v)


def adapted_weights(
    learner: Learner, state: State, x: PyTree, augment: Callable[[PyTree, Key], PyTree], key: Key, **settings
) -> Float[Array, " experts"]:
    """``aggregation_weights`` of a trained learner on unlabelled rows x and their views under ``augment(x, key)``.

    Args:
      learner: its ``predict`` gives ``logits_experts``.
      state: trained.
      x: test rows; no label is read.
      augment: one of ``jaxkit.data.transforms``, or any ``(x, key) -> x``.
      key: draws the two views.
      settings: those of ``aggregation_weights``.

    Raises:
      UsageError: a learner without experts.
    """
    views = [predict_all(learner.predict, state, augment(x, one)) for one in jax.random.split(key)]
    if "logits_experts" not in views[0]:
        raise check.UsageError(f"the learner gives {', '.join(sorted(views[0]))}; its logits_experts are needed")
    return aggregation_weights(*(view["logits_experts"] for view in views), **settings)


def with_aggregation(learner: Learner, weights: ExpertWeights) -> Learner:
    """The learner with ``logits`` = ``aggregate(logits_experts, weights)`` in ``predict``; training is as before."""

    def predict(state: State, batch: Batch) -> Outputs:
        outputs = learner.predict(state, batch)
        return {**outputs, "logits": aggregate(outputs["logits_experts"], weights)}

    return learner._replace(predict=predict)
