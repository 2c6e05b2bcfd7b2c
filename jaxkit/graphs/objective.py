"""The loss of AdaGCN's protocol, which its baselines share: weighted cross-entropy and two L2 terms."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxkit import check, losses
from jaxkit.learner import Batch, Key, Learner, Network, Outputs, Params, from_loss, path_name
from jaxkit.networks.graph import drop

_FIRST_LAYER = r"backbone/(dense_0|layers_0)/kernel"


def first_layer(params: Params) -> str:
    """A pattern of the first layer's parameters in a network of ``jaxkit.networks``: of its head where it has nothing
    before it."""
    paths = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    return _FIRST_LAYER if any(re.search(_FIRST_LAYER, path) for path in paths) else "head/kernel"


def squared_norm(params: Params, pattern: str = "") -> jax.Array:
    """sum of squares of the parameters whose path matches the regular expression ``pattern``.

    Raises:
      UsageError: it matches none.
    """
    leaves = [leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params) if re.search(pattern, path_name(path))]
    if not leaves:
        known = ", ".join(path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params))
        raise check.UsageError(f"l2_on={pattern!r} matches no parameter; they are {known}")
    return sum((jnp.sum(jnp.square(leaf)) for leaf in leaves), jnp.zeros(()))


def first_layer_penalty(l2: Any, l2_on: str | None = None) -> Callable[[Params], jax.Array]:
    """params -> l2/2 ||theta_first||^2; see ``node_learner``."""

    def penalty(params: Params) -> jax.Array:
        if isinstance(l2, (int, float)) and l2 == 0:  # a network without such a layer can be trained then
            return jnp.zeros(())
        return l2 / 2 * squared_norm(params, first_layer(params) if l2_on is None else l2_on)

    return penalty


def dealt(weights: jax.Array, key: Key, valid: jax.Array | None = None) -> jax.Array:
    """The weights [n] in random order; those of invalid rows stay where they are."""
    chance = jax.random.uniform(key, weights.shape)
    if valid is None:
        return weights[jnp.argsort(chance)]
    places = jnp.argsort(~valid, stable=True)  # the valid rows, in order, before the others
    order = jnp.argsort(jnp.where(valid, chance, 2.0))  # the valid rows, at random, before the others
    return weights.at[places].set(jnp.where(valid[places], weights[order], weights[places]))


def node_learner(
    network: Network,
    optimizer: optax.GradientTransformation,
    *,
    l2: Any = 5e-3,
    l2_on: str | None = None,
    weight_decay: Any = 0.0,
    dropout: float = 0.0,
    output_relu: bool = False,
    deal_weights: bool = False,
) -> Learner:
    """min_theta sum_i w_i CE(f(x_i), y_i) + l2/2 ||theta_first||^2 + weight_decay/2 ||theta||^2, sum_i w_i = 1.

    A coupled weight decay (torch's ``Adam(weight_decay=...)``) and the L2 term have the same gradient, so both stand in
    the loss and the optimizer has none.

    Args:
      network: its ``logits`` [rows, classes].
      optimizer: an optax transformation.
      l2: of the parameters whose path matches ``l2_on``. May be traced.
      l2_on: a regular expression of parameter paths; None: the first layer (``first_layer``).
      weight_decay: of all parameters. May be traced.
      dropout: of the input.
      output_relu: a ReLU on the logits, as in AdaGCN's released code.
      deal_weights: deal the weights of the batch to its rows at random, anew at every step.

    The weights are the batch's ``weight``, equal where it has none, and are normalised over the valid rows.
    """
    check.number("l2", l2, 0.0)
    check.number("weight_decay", weight_decay, 0.0)
    check.number("dropout", dropout, 0.0, 0.99)
    finish = jax.nn.relu if output_relu else lambda logits: logits
    penalty = first_layer_penalty(l2, l2_on)

    def loss(params, state, batch: Batch, key: Key):
        network_key, drop_key, deal_key = jax.random.split(key, 3)
        x, valid = batch["x"], batch.get("valid")
        if dropout:
            x = drop(x, dropout, drop_key)
        outputs, variables = network.apply(params, state.variables, x, train=True, key=network_key, valid=valid)
        rows = losses.cross_entropy(finish(outputs["logits"]), batch["y"])
        weights = batch.get("weight", jnp.ones(rows.shape))
        if valid is not None:
            rows, weights = jnp.where(valid, rows, 0.0), jnp.where(valid, weights, 0.0)
        if deal_weights:
            weights = dealt(weights, deal_key, valid)
        value = jnp.sum(weights * rows) / jnp.maximum(weights.sum(), jnp.finfo(jnp.float32).tiny)
        value = value + penalty(params)
        if not (isinstance(weight_decay, (int, float)) and weight_decay == 0):
            value = value + weight_decay / 2 * squared_norm(params)
        return value, (state._replace(variables=variables), {})

    learner = from_loss(network, loss, optimizer)

    def predict(state: Any, batch: Batch) -> Outputs:
        outputs = learner.predict(state, batch)
        return {**outputs, "logits": finish(outputs["logits"])}

    return learner._replace(predict=predict)
