"""The router of RIDE: after each expert a binary classifier says whether the next one is needed.

Wang et al. 2021, Long-tailed recognition by routing diverse distribution-aware experts, ICLR, section 3.3, and the
released code.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
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
    PyTree,
    Stage,
    TrainState,
    batch_mean,
    from_loss,
    plain,
    starting_from,
)
from jaxkit.long_tailed.counts import Counts, Labels, Scalar, check_counts
from jaxkit.long_tailed.ensembles.experts import ExpertLogits
from jaxkit.losses.vectors import normalize

HIDDEN, TOP = 16, 30
"""Units of the router's hidden layers, as in the released code, and how many of the largest logits it sees (at most C),
as in its configuration for CIFAR-100-LT; the code's own default is 5."""

RouterLogits = Float[Array | np.ndarray, "*batch routers"]


def running_means(logits_experts: ExpertLogits) -> Float[Array, "*batch experts classes"]:
    """The logits of the first expert, of the first two together, ..., of all: z_k = mean_{e <= k} z_e."""
    number = jnp.arange(1, logits_experts.shape[-2] + 1, dtype=logits_experts.dtype)
    return jnp.cumsum(logits_experts, axis=-2) / number[:, None]


def expert_needed(logits_experts: ExpertLogits, labels: Labels) -> Bool[Array, "*batch routers"]:
    """What router k = 1..E-1 shall say: the first k experts are wrong together, and some longer row is right."""
    right = running_means(logits_experts).argmax(-1) == jnp.asarray(labels)[..., None]
    later = jnp.flip(jax.lax.cummax(jnp.flip(right, -1).astype(jnp.int32), axis=right.ndim - 1), -1) > 0
    return ~right[..., :-1] & later[..., 1:]


def routing_loss(
    logits_router: RouterLogits, needed: Bool[Array | np.ndarray, "*batch routers"], *, positive_weight: Scalar = 100.0
) -> Float[Array, "*batch"]:
    """The mean over routers of -w t log s(q) - (1 - t) log s(-q), s the logistic function.

    Args:
      logits_router: q.
      needed: t, see ``expert_needed``; seldom true, hence the weight.
      positive_weight: w; 100 in the released configuration for CIFAR-100-LT, 20 where none is given to the released
        code. May be traced.
    """
    check.positive("positive_weight", positive_weight)
    logits_router = jnp.asarray(logits_router)
    wanted = positive_weight * jax.nn.log_sigmoid(logits_router)
    return -jnp.where(needed, wanted, jax.nn.log_sigmoid(-logits_router)).mean(-1)


def experts_used(logits_router: RouterLogits, *, threshold: Scalar = 0.5) -> Int[Array, "*batch"]:
    """How many experts a row asks: one, and another as long as the router says so with probability > threshold."""
    check.fraction("threshold", threshold)
    further = jax.nn.sigmoid(jnp.asarray(logits_router)) > threshold
    return 1 + jnp.cumprod(further.astype(jnp.int32), axis=-1).sum(-1)


def with_router(ensemble: Network, *, threshold: Scalar = 0.5) -> Network:
    """The ensemble with a router; its ``logits`` are those of the experts that a row asks.

    Router k sees the normalised features f_k of expert k and the largest logits of the first k experts together:
    q_k = v . [top(z_k), relu(W_k f_k + b_k)] + c, where v and c are the same for all k.

    Parameters: ``experts``, those of the ensemble, and ``router``. Outputs besides those of the ensemble:
    ``logits_router`` [batch, E - 1] and ``value_experts_used`` [batch], whole numbers 1..E. All experts are computed;
    what a row would save is told by ``value_experts_used``.

    Raises:
      UsageError: from ``init``, an ensemble without ``features_experts``.
    """
    check.fraction("threshold", threshold)
    draw = jax.nn.initializers.lecun_normal()

    def init(key: Key, x: PyTree) -> tuple[Params, PyTree]:
        inner, variables = ensemble.init(key, x)
        outputs = jax.eval_shape(lambda params, variables: ensemble.apply(params, variables, x)[0], inner, variables)
        if "features_experts" not in outputs:
            raise check.UsageError("a router needs an ensemble that gives features_experts [batch, experts, features]")
        _, experts, features = outputs["features_experts"].shape
        keys = jax.random.split(jax.random.fold_in(key, experts), experts)
        inputs = min(TOP, outputs["logits"].shape[-1]) + HIDDEN
        router = {
            "hidden": jnp.stack([draw(one, (features, HIDDEN), jnp.float32) for one in keys[1:]]),
            "hidden_bias": jnp.zeros((experts - 1, HIDDEN), jnp.float32),
            "kernel": draw(keys[0], (inputs, 1), jnp.float32)[:, 0],
            "bias": jnp.zeros((), jnp.float32),
        }
        return {"experts": inner, "router": router}, variables

    def apply(params: Params, variables: PyTree, x: PyTree, **options: Any) -> tuple[Outputs, PyTree]:
        outputs, variables = ensemble.apply(params["experts"], variables, x, **options)
        router, together = params["router"], running_means(outputs["logits_experts"])
        features = normalize(outputs["features_experts"][:, :-1])
        hidden = jax.nn.relu(jnp.einsum("bef,efh->beh", features, router["hidden"]) + router["hidden_bias"])
        largest = jax.lax.top_k(together[:, :-1], min(TOP, together.shape[-1]))[0]
        asked = jnp.concatenate([largest, hidden], axis=-1) @ router["kernel"] + router["bias"]
        used = experts_used(asked, threshold=threshold)
        logits = jnp.take_along_axis(together, (used - 1)[:, None, None], axis=1)[:, 0]
        return {**outputs, "logits": logits, "logits_router": asked, "value_experts_used": used}, variables

    return Network(init, apply)


def routing_stage(
    ensemble: Network,
    optimizer: optax.GradientTransformation,
    *,
    class_counts: Counts,
    positive_weight: Scalar = 100.0,
    threshold: Scalar = 0.5,
    batch_size: int = 128,
    share: float = 1.0,
    gradient: Gradient = plain,
) -> Stage:
    """The stage that trains a router for an ensemble of the stage before; the experts stay as they are.

    The batches are class-balanced, as in the released code; the experts compute as in prediction.

    Args:
      ensemble: of the stage before, with at least two experts.
      optimizer: of the router, started anew.
      class_counts: n, for the number of classes.
      positive_weight: see ``routing_loss``. May be traced.
      threshold: see ``experts_used``; for ``predict``.
      batch_size: rows of a step.
      share: of the steps of the plan.
      gradient: how the gradient is taken.
    """
    check.positive("positive_weight", positive_weight)
    classes = check_counts(class_counts).size
    routed = with_router(ensemble, threshold=threshold)

    def learner_of(network: Network) -> Learner:
        def loss(params, state, batch, key):
            outputs, _ = network.apply(params, state.variables, batch["x"], train=False, valid=batch.get("valid"))
            needed = expert_needed(outputs["logits_experts"], batch["y"])
            values = routing_loss(outputs["logits_router"], needed, positive_weight=positive_weight)
            used = batch_mean(outputs["value_experts_used"].astype(jnp.float32), batch)
            return batch_mean(values, batch), (state, {"experts_used": used})

        return from_loss(network, loss, optimizer, gradient=gradient, freeze="^experts(/|$)")

    def begin(state: TrainState, data: Data, key: Key) -> TrainState:
        params = {"experts": state.params, "router": routed.init(key, data["x"])[0]["router"]}
        return learner_of(starting_from(routed, params, state.variables)).init(key, data)

    return Stage("routing", learner_of(routed), class_balanced(batch_size, classes), share=share, begin=begin)
