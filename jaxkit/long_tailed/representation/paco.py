"""PaCo: supervised contrastive learning in which each class has a learnable centre, so that a batch compares its rows
with every class whatever classes it holds.

Source: Cui et al. 2021, Parametric contrastive learning, section 3, and its released code. Momentum encoder and queue
are those of MoCo (He et al. 2020).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from jaxkit import check
from jaxkit.data import epochs, views
from jaxkit.data.transforms import Transform, gaussian_noise, random_crop
from jaxkit.learner import (
    Gradient,
    Key,
    Network,
    Outputs,
    Params,
    Plan,
    PyTree,
    Stage,
    batch_mean,
    from_loss,
    plain,
)
from jaxkit.long_tailed import decoupled, loss_methods
from jaxkit.long_tailed.counts import Counts, Labels, Logits, Scalar, check_counts, check_labels, log_prior
from jaxkit.losses.vectors import clear, normalize

EMPTY = -1  # the label of a place in the queue that holds no key yet


class Queue(NamedTuple):
    """The last keys: unit vectors [K, D], their labels [K] (``EMPTY`` where there is none yet), the next place []."""

    keys: jax.Array
    labels: jax.Array
    place: jax.Array


class Contrast(NamedTuple):
    """``TrainState.extra`` of ``paco``: the parameters of the momentum encoder, and the queue of its keys."""

    key_params: Params
    queue: Queue


def paco_loss(
    logits: Logits,
    labels: Labels,
    class_counts: Counts,
    features: Float[Array | np.ndarray, "batch dim"],
    keys: Float[Array | np.ndarray, "keys dim"],
    key_labels: Int[Array | np.ndarray, " keys"],
    *,
    alpha: Scalar = 0.05,
    beta: Scalar = 1.0,
    gamma: Scalar = 1.0,
    temperature: Scalar = 0.07,
    valid: Bool[Array | np.ndarray, " batch"] | None = None,
) -> Float[Array, " batch"]:
    """-sum_a w_ia log p_ia / sum_a w_ia over what row i is compared with: C centres, the other rows, the keys.

    A centre c has the logit s = z_ic + log pi_c and the weight w = beta if c = y_i; a row or key j has
    s = q_i . k_j / T (unit vectors) and w = alpha if it has the label of i; all other w are 0.
    p_ia = e^{s_ia} / (sum_centres e^s + gamma sum_others e^s). alpha = gamma = 0 is balanced softmax, and so is a
    row alone without keys.

    Args:
      logits: z [batch, C] of the centres.
      labels: y [batch].
      class_counts: n [C], pi = n / sum n.
      features: q, before normalisation; a row is compared with the others of the batch, and the gradient goes to both.
      keys: k, before normalisation.
      key_labels: [keys]; a key with a negative label is compared with none.
      alpha: weight of a positive row or key. May be traced.
      beta: weight of the centre. May be traced.
      gamma: of rows and keys in the denominator. May be traced.
      temperature: T. May be traced.
      valid: rows that count; the others have loss 0 and are compared with none.

    Raises:
      UsageError: a setting out of range; labels beyond C; rows that are not as many.
    """
    check.number("alpha", alpha, 0.0), check.positive("beta", beta), check.number("gamma", gamma, 0.0)
    check.positive("temperature", temperature)
    rows, classes = logits.shape
    if labels.shape != (rows,) or len(features) != rows or key_labels.shape != keys.shape[:1]:
        raise check.UsageError(
            f"logits {list(logits.shape)}, labels {list(labels.shape)} and features {list(features.shape)} must have "
            f"the same rows, and keys {list(keys.shape)} a label each, got {list(key_labels.shape)}"
        )
    check_labels(labels, classes), check_counts(class_counts, classes)
    logits, labels, key_labels = jnp.asarray(logits), jnp.asarray(labels), jnp.asarray(key_labels)
    counted = jnp.ones((rows,), bool) if valid is None else jnp.asarray(valid)
    query = normalize(clear(jnp.asarray(features), counted))
    others = jnp.concatenate([query, normalize(jnp.asarray(keys))])
    other_labels = jnp.concatenate([labels, key_labels])
    itself = jnp.eye(rows, len(others), dtype=bool)
    compared = jnp.concatenate([counted, key_labels >= 0]) & ~itself
    positive = compared & (other_labels == labels[:, None])
    scores = jnp.concatenate([logits + log_prior(class_counts), query @ others.T / temperature], axis=1)
    weight = jnp.concatenate([beta * jax.nn.one_hot(labels, classes), alpha * positive], axis=1)
    share = jnp.concatenate([jnp.ones((rows, classes)), gamma * compared], axis=1)
    log_p = scores - jax.nn.logsumexp(scores, axis=1, b=share, keepdims=True)
    # A padding row may have a label that is no class, and then no weight.
    return jnp.where(counted, -jnp.sum(weight * log_p, axis=1) / jnp.where(counted, weight.sum(1), 1.0), 0.0)


def enqueue(
    queue: Queue,
    keys: Float[Array, "batch dim"],
    labels: Int[Array, " batch"],
    valid: Bool[Array, " batch"] | None = None,
) -> Queue:
    """The queue with the valid keys in the place of its oldest; at most as many as it has places."""
    valid = jnp.ones(labels.shape, bool) if valid is None else valid
    size = len(queue.labels)
    place = (queue.place + jnp.cumsum(valid) - 1) % size
    place = jnp.where(valid, place, size)  # outside, where nothing is written
    return Queue(
        queue.keys.at[place].set(keys, mode="drop"),
        queue.labels.at[place].set(labels.astype(jnp.int32), mode="drop"),
        ((queue.place + valid.sum()) % size).astype(jnp.int32),
    )


def default_view(x: jax.Array, key: Key) -> jax.Array:
    """Images [batch, height, width, channels]: a random crop after padding by an eighth of the height. Other rows:
    Gaussian noise of standard deviation 0.1.

    Both presume x of about unit scale. What is right depends on the data (a mirrored photograph shows the same, a
    mirrored digit does not): for photographs take ``transforms.chain(random_crop(4), horizontal_flip())``.
    """
    if x.ndim == 4:
        return random_crop(max(1, x.shape[1] // 8))(x, key)
    return gaussian_noise(0.1)(x, key)


def with_projector(network: Network, dim: int) -> Network:
    """The network with ``features_projected`` [batch, dim], V relu(U f + a) + b; U, a, V, b under ``projector``."""

    def init(key: Key, x: Any) -> tuple[Params, Any]:
        params, variables = network.init(key, x)
        width = params["head"]["kernel"].shape[0]
        first, second = jax.random.split(jax.random.fold_in(key, 1))
        draw = lambda key, out: jax.random.normal(key, (width, out), jnp.float32) * width**-0.5
        projector = {
            "kernel_0": draw(first, width), "bias_0": jnp.zeros((width,), jnp.float32),
            "kernel_1": draw(second, dim), "bias_1": jnp.zeros((dim,), jnp.float32),
        }  # fmt: skip
        return {**params, "projector": projector}, variables

    def apply(params: Params, variables: Any, x: Any, **options: Any) -> tuple[Outputs, Any]:
        inner = {name: leaf for name, leaf in params.items() if name != "projector"}
        outputs, variables = network.apply(inner, variables, x, **options)
        p = params["projector"]
        hidden = jax.nn.relu(outputs["features"] @ p["kernel_0"] + p["bias_0"])
        return {**outputs, "features_projected": hidden @ p["kernel_1"] + p["bias_1"]}, variables

    return Network(init, apply)


def paco(
    network: Network,
    optimizer: optax.GradientTransformation,
    *,
    class_counts: Counts,
    batch_size: int = 128,
    alpha: Scalar = 0.05,
    beta: Scalar = 1.0,
    gamma: Scalar = 1.0,
    temperature: Scalar = 0.07,
    dim: int = 128,
    queue_size: int = 8192,
    key_momentum: float = 0.999,
    view: Transform | None = None,
    gradient: Gradient = plain,
) -> Plan:
    """``paco_loss`` of two views of each row: the first through the network, the second through its moving average,
    whose projections are the keys. The head's weights are the centres, and its ``logits`` are what ``predict`` gives.

    Args:
      network: with ``backbone`` and ``head``.
      optimizer: an optax transformation.
      class_counts: training rows of each class, above 0.
      batch_size: rows of a step.
      alpha: see ``paco_loss``; 0.05 on ImageNet-LT, 0.01 on CIFAR-100-LT in the released code. May be traced.
      beta: see ``paco_loss``; only alpha / beta counts.
      gamma: see ``paco_loss``.
      temperature: 0.07 in the survey's run, 0.05 on CIFAR-100-LT. May be traced.
      dim: of the projections; 128, and 32 on CIFAR-100-LT.
      queue_size: K, at least a batch; 8192, and 1024 on CIFAR-100-LT. It fills in K / batch_size steps.
      key_momentum: m of key_params <- m key_params + (1 - m) params. In a few hundred steps an average with 0.999
        hardly leaves its start: take 0.99 or less there.
      view: ``(x, key) -> x``, drawn twice for each row; None: ``default_view``.
      gradient: how the gradient is taken.

    Raises:
      UsageError: counts that are none, a setting out of range, a queue smaller than a batch, a network that does not
        fit.
    """
    counts = check_counts(class_counts)
    check.number("alpha", alpha, 0.0), check.positive("beta", beta), check.number("gamma", gamma, 0.0)
    check.positive("temperature", temperature), check.fraction("key_momentum", key_momentum)
    dim, batch_size = check.count("dim", dim), check.count("batch_size", batch_size)
    if check.count("queue_size", queue_size) < batch_size:
        raise check.UsageError(f"queue_size={queue_size} must be at least batch_size={batch_size}")
    settings = {"alpha": alpha, "beta": beta, "gamma": gamma, "temperature": temperature}
    projected = with_projector(decoupled.checked(network, counts.size), dim)

    def loss(params, state, batch, key):
        valid, second = batch.get("valid"), loss_methods.second_of(batch, "paco", "jaxkit.data.views")
        query_key, other_key = jax.random.split(key)
        outputs, variables = loss_methods.applied(projected, params, state.variables, batch, query_key, counts)
        average = lambda old, new: key_momentum * old + (1.0 - key_momentum) * jax.lax.stop_gradient(new)
        key_params, queue = jax.tree.map(average, state.extra.key_params, params), state.extra.queue
        given, _ = projected.apply(key_params, state.variables, second["x"], train=True, key=other_key, valid=valid)
        keys = normalize(clear(given["features_projected"], valid))
        labels = batch["y"] if valid is None else jnp.where(valid, batch["y"], EMPTY)
        all_keys, all_labels = jnp.concatenate([keys, queue.keys]), jnp.concatenate([labels, queue.labels])
        values = paco_loss(
            outputs["logits"], batch["y"], counts, outputs["features_projected"], all_keys, all_labels,
            valid=valid, **settings,
        )  # fmt: skip
        extra = Contrast(key_params, enqueue(queue, keys, labels, valid))
        return batch_mean(values, batch), (state._replace(variables=variables, extra=extra), {})

    def start(params: Params, variables: PyTree) -> Contrast:
        keys, labels = jnp.zeros((queue_size, dim), jnp.float32), jnp.full((queue_size,), EMPTY, jnp.int32)
        return Contrast(jax.tree.map(jnp.copy, params), Queue(keys, labels, jnp.zeros((), jnp.int32)))

    view = default_view if view is None else view
    learner = from_loss(projected, loss, optimizer, gradient=gradient, init_extra=start)
    return (Stage("contrast", learner, views(epochs(batch_size), view, view)),)
