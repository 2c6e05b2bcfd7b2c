"""OLTR: a memory of class centroids from which a row borrows what its own features lack.

Two stages: the network with the cross-entropy; then network, memory and a cosine classifier together on class-balanced
batches. The network's own head becomes the hallucinator, which says how much of each centroid a row takes.

Source: Liu et al. 2019, Large-scale long-tailed recognition in an open world, section 3, and its released code. A
reference row of the survey's study: the formula is tested, nothing is tuned.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from jaxkit import check
from jaxkit.data import class_balanced
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
from jaxkit.long_tailed import decoupled, loss_methods
from jaxkit.long_tailed.counts import Counts, Scalar, check_counts
from jaxkit.long_tailed.losses import softmax
from jaxkit.losses.vectors import normalize, squared_distances
from jaxkit.training import predict_all

SCALE = 16.0  # of the cosine classifier
REACH = 10.0  # over the distance to the nearest centroid
MARGIN = 10.0  # of the mean squared distance to the centroids of other classes
REPEL = 0.01  # weight of the repelling part


class Memory(NamedTuple):
    """The parameters under ``memory``.

    Attributes:
      centroids: M [C, F].
      selector: T [F, F], of the concept selector.
      selector_bias: [F].
      kernel: w of the cosine classifier, [F, C].
    """

    centroids: jax.Array
    selector: jax.Array
    selector_bias: jax.Array
    kernel: jax.Array


def memory_logits(
    features: Float[Array, "batch features"], hallucinator: Float[Array, "batch classes"], memory: Memory
) -> Float[Array, "batch classes"]:
    """z_c = 16 v / (1 + |v|) . w_c / |w_c|, v = (10 / min_c |x - M_c|) (x + tanh(T x + b) * softmax(h) M).

    No gradient goes to the centroids. v is computed so that a row that is its own centroid (a class of one row) has
    the limit and not 0 / 0.

    Args:
      features: x.
      hallucinator: h, logits of the network's own head.
      memory: M, T, b, w.
    """
    centroids = jax.lax.stop_gradient(memory.centroids)
    nearest = squared_distances(features, centroids).min(axis=-1, keepdims=True)
    distance = jnp.where(nearest > 0, jnp.sqrt(jnp.where(nearest > 0, nearest, 1.0)), 0.0)
    borrowed = jax.nn.softmax(hallucinator) @ centroids
    infused = features + jnp.tanh(features @ memory.selector + memory.selector_bias) * borrowed
    # v / (1 + |v|) of v = 10 u / d is 10 u / (d + 10 |u|).
    below = distance + REACH * jnp.sum(infused * normalize(infused), axis=-1, keepdims=True)
    squashed = REACH * infused / jnp.where(below > 0, below, 1.0)
    return SCALE * (squashed @ normalize(memory.kernel, axis=0))


def centroid_loss(
    features: Float[Array, "batch features"],
    labels: Int[Array, " batch"],
    centroids: Float[Array, "classes features"],
    valid: Bool[Array, " batch"] | None = None,
) -> Float[Array, ""]:
    """mean_i |x_i - M_{y_i}|^2 / 2 + 0.01 max(0, 10 - sum_i sum_{c != y_i} |x_i - M_c|^2 / (B C)).

    As in the released code, the gradient that the first part gives to M_c is divided by 1 + n_c, n_c the rows of class
    c in the batch (the update of the centre loss). Rows that are not valid count in nothing.
    """
    valid = jnp.ones(labels.shape, bool) if valid is None else valid
    features = jnp.where(valid[:, None], features, 0.0)
    own = jax.nn.one_hot(labels, centroids.shape[0]) * valid[:, None]
    rows = jnp.maximum(valid.sum(), 1)
    slow = 1.0 / (1.0 + own.sum(0))[:, None]
    fixed = jax.lax.stop_gradient(centroids)
    pulled = fixed + slow * (centroids - fixed)
    attract = 0.5 * jnp.sum(own * squared_distances(features, pulled)) / rows
    others = valid[:, None] * (1.0 - own)
    apart = jnp.sum(others * squared_distances(features, centroids)) / (rows * centroids.shape[0])
    return attract + REPEL * jnp.maximum(MARGIN - apart, 0.0)


def with_memory(network: Network, num_classes: int) -> Network:
    """The network with ``memory_logits`` for ``logits``; its parameters have ``memory`` beside backbone and head."""

    def init(key: Key, x: Any) -> tuple[Params, Any]:
        params, variables = network.init(key, x)
        return {**params, "memory": _new_memory(key, params["head"]["kernel"].shape[0], num_classes)}, variables

    def apply(params: Params, variables: Any, x: Any, **options: Any) -> tuple[Outputs, Any]:
        inner = {name: leaf for name, leaf in params.items() if name != "memory"}
        outputs, variables = network.apply(inner, variables, x, **options)
        return {**outputs, "logits": memory_logits(outputs["features"], outputs["logits"], params["memory"])}, variables

    return Network(init, apply)


def _new_memory(key: Key, features: int, num_classes: int) -> Memory:
    """Centroids 0, the rest uniform within 1 / sqrt(F)."""
    limit = features**-0.5
    draw = lambda number, *shape: jax.random.uniform(jax.random.fold_in(key, number), shape, jnp.float32, -limit, limit)
    centroids = jnp.zeros((num_classes, features), jnp.float32)
    return Memory(centroids, draw(0, features, features), draw(1, features), draw(2, features, num_classes))


def oltr(
    network: Network,
    optimizer: optax.GradientTransformation,
    *,
    class_counts: Counts,
    batch_size: int = 128,
    memory_weight: Scalar = 0.01,
    memory_optimizer: optax.GradientTransformation | None = None,
    memory_share: float = 2 / 3,
    gradient: Gradient = plain,
) -> Plan:
    """The cross-entropy, then CE of ``memory_logits`` + ``memory_weight`` ``centroid_loss`` on class-balanced batches.

    Stage 2 begins with the mean feature of each class for centroids and goes on with the network of stage 1.

    Args:
      network: with ``backbone`` and ``head``.
      optimizer: an optax transformation.
      class_counts: training rows of each class, above 0.
      batch_size: rows of a step.
      memory_weight: 0.01 in the released configuration.
      memory_optimizer: of stage 2; None: ``optimizer``, started anew.
      memory_share: share of the steps that stage 2 has; 60 of 90 epochs in the released configuration.
      gradient: how the gradient is taken.

    Raises:
      UsageError: counts that are none, a network that does not fit, a weight below 0, a share outside (0, 1).
    """
    counts = check_counts(class_counts)
    check.number("memory_weight", memory_weight, 0.0)
    if not 0 < check.fraction("memory_share", memory_share) < 1:
        raise check.UsageError(f"memory_share must lie between 0 and 1, for example 0.5, got {memory_share!r}")
    whole = with_memory(network, counts.size)

    def learner_of(network: Network) -> Learner:
        def loss(params, state, batch, key):
            outputs, variables = loss_methods.applied(network, params, state.variables, batch, key, counts)
            value = batch_mean(softmax(outputs["logits"], batch["y"]), batch)
            centroids = params["memory"].centroids
            spread = centroid_loss(outputs["features"], batch["y"], centroids, batch.get("valid"))
            return value + memory_weight * spread, (state._replace(variables=variables), {"centroids": spread})

        return from_loss(network, loss, memory_optimizer or optimizer, gradient=gradient)

    (first,) = decoupled.joint_training(
        network, optimizer, class_counts=counts, batch_size=batch_size, share=1.0 - memory_share, gradient=gradient
    )

    def begin(state: TrainState, data: Data, key: Key) -> TrainState:
        features = predict_all(first.learner.predict, state, data["x"])["features"]
        means = decoupled.class_means(features, jnp.asarray(data["y"]), counts.size)
        memory = _new_memory(key, features.shape[-1], counts.size)._replace(centroids=means)
        started = starting_from(whole, {**state.params, "memory": memory}, state.variables)
        return learner_of(started).init(key, data)

    source = class_balanced(batch_size, counts.size)
    return (first, Stage("memory", learner_of(whole), source, share=memory_share, begin=begin))
