"""A whole AdaGCN run as one compiled function of a key: hops, epochs, early stopping and weight updates."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxkit.graphs import boosting
from jaxkit.graphs.adagcn import Boosting, accuracy_of
from jaxkit.graphs.stopping import BestState
from jaxkit.learner import Key, Params
from jaxkit.training.keys import streams


class HopRows(NamedTuple):
    """The rows of every hop that a run reads (``structure.hops``): the rest of the graph it never sees.

    Attributes:
      train: float32 [hops, n, F].
      y: int32 [n].
      stopping: float32 [hops, s, F].
      stopping_y: int32 [s].
      asked: float32 [hops, t, F], the nodes to classify.
    """

    train: Float[Array, "hops train features"]
    y: Int[Array, " train"]
    stopping: Float[Array, "hops stopping features"]
    stopping_y: Int[Array, " stopping"]
    asked: Float[Array, "hops asked features"]


class Run(NamedTuple):
    """What a run gives, hop by hop.

    Attributes:
      logits: h^(l) of the asked nodes, [hops, t, K]; their sum over the first l + 1 hops is AdaGCN of depth l + 1.
      stopping_logits: h^(l) of the stopping nodes, [hops, s, K].
      accuracy: of each hop's network alone on the stopping nodes, [hops].
      weights: of the labelled nodes with which each hop was trained, [hops, n].
      loss: of each epoch, [hops, epochs].
      params: of each hop's network, leaves [hops, ...].
    """

    logits: Array
    stopping_logits: Array
    accuracy: Array
    weights: Array
    loss: Array
    params: Params


def run(rules: Boosting, rows: HopRows, key: Key, *, epochs: int) -> Run:
    """AdaGCN in one jit: a scan over hops of a scan over epochs, the weight update between.

    It computes what ``fit(hop_plan(rules, hops), ..., key=key, steps=hops * epochs)`` computes, with the same random
    keys, but propagates nothing (the hops were precomputed once), gathers nothing (rows are sliced before the network),
    and dispatches once. Wrap it in ``jax.jit`` with ``rules`` and ``epochs`` static or closed over; ``jax.vmap`` or
    ``jax.lax.map`` over ``key`` trains many initialisations.
    """
    base, size = rules.base, rows.y.shape[0]
    count = rows.train.shape[0]

    def batch_of(train: Array, stopping: Array, weights: Array):
        return {"x": train, "y": rows.y, "weight": weights, "stopping": {"x": stopping, "y": rows.stopping_y}}

    def hop(carry: tuple[BestState, Array], given: tuple[Array, ...]):
        state, weights = carry
        number, train, stopping, asked = given
        keys = streams(key, number)
        batch = batch_of(train, stopping, weights)
        # The first hop's state was made before the scan; every later one starts from the hop before.
        started = rules.start(state, keys.begin, batch)
        state = jax.tree.map(lambda new, old: jnp.where(number > 0, new, old), started, state)

        def epoch(state: BestState, step: Array):
            state, metrics = base.update(state, batch, jax.random.fold_in(keys.update, step))
            return state, metrics["loss"]

        state, loss = jax.lax.scan(epoch, state, jnp.arange(epochs))
        state = rules.finish(state)
        after = boosting.next_weights(rules.weighting, weights, rules.log_p(state, train), rows.y)
        scores = lambda x: boosting.samme_r_scores(rules.log_p(state, x))
        held = scores(stopping)
        alone = accuracy_of(held, rows.stopping_y)
        return (state, after), Run(scores(asked), held, alone, weights, loss, state.params)

    weights = jnp.full((size,), 1 / size, jnp.float32)
    first = base.init(streams(key, 0).begin, batch_of(rows.train[0], rows.stopping[0], weights))
    _, out = jax.lax.scan(hop, (first, weights), (jnp.arange(count), rows.train, rows.stopping, rows.asked))
    return out


def ensemble(logits: Float[Array, "hops asked classes"]) -> Float[Array, "hops asked classes"]:
    """sum_{m <= l} h^(m) for every depth l + 1."""
    return jnp.cumsum(logits, axis=0)
