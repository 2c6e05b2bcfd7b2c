"""AdaGCN: one small network trained on features propagated hop after hop, the hops combined by boosting.

Sun, Zhu and Lin 2021, AdaGCN: Adaboosting Graph Convolutional Networks into Deep Models, ICLR (not Dai et al.'s
AdaGCN of 2022). With B^(0) = X and B^(l) = A-hat B^(l-1), for l = 0, 1, ...:

1. theta^(l) = argmin sum_i w_i CE(f_theta(B^(l)_i), y_i), from theta^(l-1);
2. h^(l) = (K - 1) (log p^(l) - mean_k log p^(l)_k), p^(l) = softmax f(B^(l));
3. w_i <- w_i exp(-h^(l)_{y_i}(x_i) / (K - 1)), normalised.

Prediction: argmax_k sum_l h^(l)_k(x). A step multiplies a few rows by dense weights; the sparse products, one for
each hop, stand between the stages.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxkit import check
from jaxkit.data import full_batch
from jaxkit.graphs import boosting
from jaxkit.graphs.objective import first_layer_penalty, node_learner
from jaxkit.graphs.stopping import BestState, best_params, forget, keep_best, with_params
from jaxkit.graphs.structure import dense_nodes, propagate
from jaxkit.learner import Batch, Data, Key, Learner, Metrics, Network, Outputs, Params, Plan, Stage

COMBINATIONS = ("sum", "best")
RESTORES = ("hop", "run", "none")


class HopState(NamedTuple):
    """The state of a plan of hops.

    Attributes:
      base: the network of the present hop and its best parameters.
      signal: B^(l) of all nodes, [N, F].
      stopping: B^(l) of the stopping nodes, [s, F].
      weights: of the labelled nodes, [n], sum 1.
      params: of the networks of the hops so far, each leaf with a leading axis [hops].
      scores: accuracy of each hop's network on the stopping nodes, [hops]; -1 for hops to come.
      hop: the present one, counted from 0.
    """

    base: BestState
    signal: jax.Array
    stopping: jax.Array
    weights: jax.Array
    params: Params
    scores: jax.Array
    hop: jax.Array


class Boosting(NamedTuple):
    """What AdaGCN is made of, for the plan and for the compiled run alike (``boosting_of``).

    Attributes:
      rows: learns from batches of rows, ``x`` [n, F], ``y``, ``weight``.
      base: the same with the best state on the batch's ``stopping`` ``{"x", "y"}`` kept.
      weighting: one of ``boosting.WEIGHTINGS``.
      restore: which best parameters a hop ends with, one of ``RESTORES``.
      warm_start: whether a hop starts from the network and the optimizer of the hop before.
    """

    rows: Learner
    base: Learner
    weighting: str
    restore: str
    warm_start: bool

    def start(self, before: BestState, key: Key, batch: Batch) -> BestState:
        """The state with which a hop after the first starts."""
        if not self.warm_start:
            fresh = self.base.init(key, batch)
            return fresh if self.restore != "run" else before._replace(inner=fresh.inner)
        return before if self.restore == "run" else forget(before)

    def finish(self, state: BestState) -> BestState:
        """The state at the end of a hop: its network is the one that the hop contributes."""
        return with_params(state, state.inner.params if self.restore == "none" else best_params(state))

    def log_p(self, state: BestState, rows: jax.Array) -> jax.Array:
        """log p, clipped, at rows [n, F] of the network of a finished hop.

        It reads nothing of the stopping nodes: where no best state is restored, XLA leaves out their evaluation.
        """
        return boosting.log_probabilities(self.rows.predict(state.inner, {"x": rows})["logits"])


def accuracy_of(scores: jax.Array, y: jax.Array) -> jax.Array:
    """The share of rows whose largest score is at their label; float32."""
    return (scores.argmax(-1) == y).mean(dtype=jnp.float32)


def boosting_of(
    network: Network,
    optimizer: optax.GradientTransformation,
    *,
    weighting: str = "samme_r",
    warm_start: bool = True,
    restore: str = "hop",
    output_relu: bool = False,
    dropout: float = 0.0,
    l2: Any = 5e-3,
    l2_on: str | None = None,
    weight_decay: Any = 1e-4,
    patience: int | None = None,
) -> Boosting:
    """The base learner and the rules between hops; arguments as in ``adagcn``."""
    weighting = check.choose("weighting", weighting, boosting.WEIGHTINGS)
    restore = check.choose("restore", restore, RESTORES)
    learner = node_learner(
        network,
        optimizer,
        l2=l2,
        l2_on=l2_on,
        weight_decay=weight_decay,
        dropout=dropout,
        output_relu=output_relu,
        deal_weights=weighting in boosting.SHUFFLED,
    )
    penalty = first_layer_penalty(l2, l2_on)
    base = keep_best(learner, lambda batch: batch["stopping"], patience=patience, penalty=penalty)
    return Boosting(learner, base, weighting, restore, bool(warm_start))


def adagcn(
    network: Network,
    optimizer: optax.GradientTransformation,
    *,
    layers: int = 8,
    weighting: str = "samme_r",
    combine: str = "sum",
    include_layer0: bool = True,
    warm_start: bool = True,
    restore: str = "hop",
    output_relu: bool = False,
    dropout: float = 0.0,
    l2: Any = 5e-3,
    l2_on: str | None = None,
    weight_decay: Any = 1e-4,
    patience: int | None = None,
) -> Plan:
    """AdaGCN as a plan of ``layers`` stages, one for each hop; the ``steps`` of ``fit`` are the epochs of all hops.

    Args:
      network: the base classifier on rows of features; the paper's has one hidden layer and no bias
        (``mlp(classes, hidden=(5000,), bias=False)``).
      optimizer: Adam with learning rate 0.01 in the paper.
      layers: number of hops L.
      weighting: how sample weights change from hop to hop (``boosting.WEIGHTINGS``). ``samme_r`` is the paper's
        algorithm, ``uniform`` a plain sum over hops, ``official`` the released code's weights (all its behaviour: with
        ``output_relu=True`` and ``restore="none"``, on a GPU ``"run"``).
      combine: ``sum`` of h over the hops, or the network of the ``best`` single hop by its accuracy on the stopping
        nodes.
      include_layer0: the hops are 0..L-1 with it (as in the released code), 1..L without it.
      warm_start: each hop starts from the network and the optimizer state of the one before.
      restore: a hop ends with the parameters that were best on the stopping nodes within this ``hop``, or within the
        ``run`` so far (the released code on a GPU), or with its last ones (``none``: the released code on a CPU).
      output_relu: a ReLU on the logits, as in the released code; the paper's classifier has none, and a class whose
        logits are all negative at the start of training is lost with it.
      dropout: of the features.
      l2: factor of 1/2 ||W_0||^2 (whatever ``l2_on`` matches). May be traced.
      l2_on: regular expression of parameter paths; None: the first layer.
      weight_decay: factor of 1/2 ||theta||^2, which is torch's coupled weight decay. May be traced.
      patience: epochs without a tie with the best on the stopping nodes after which a hop stands still; None: never.

    Data is ``node_data(graph, y, train, stopping)``. The outputs are ``logits``: sum_l h^(l), zero-sum over classes.

    Raises:
      UsageError: an unknown name or a number out of range; data without stopping nodes.
    """
    layers = check.count("layers", layers)
    combine = check.choose("combine", combine, COMBINATIONS)
    rules = boosting_of(
        network,
        optimizer,
        weighting=weighting,
        warm_start=warm_start,
        restore=restore,
        output_relu=output_relu,
        dropout=dropout,
        l2=l2,
        l2_on=l2_on,
        weight_decay=weight_decay,
        patience=patience,
    )
    return hop_plan(rules, layers, combine=combine, first=0 if include_layer0 else 1)


def hop_plan(rules: Boosting, layers: int, *, combine: str = "sum", first: int = 0) -> Plan:
    """The plan of hops ``first`` .. ``first + layers - 1``; see ``adagcn``. All stages are one compiled program."""
    base = rules.base

    def rows_of(batch: Batch, signal: jax.Array, stopping: jax.Array, weights: jax.Array) -> Batch:
        rows = {"x": signal[batch["x"].rows], "y": batch["y"], "weight": weights[batch["index"]]}
        held = {"stopping": {"x": stopping, "y": batch["stopping"]["y"]}}
        return {**rows, **held, **({"valid": batch["valid"]} if "valid" in batch else {})}

    def with_signal(state: HopState, signal: jax.Array, data: Data) -> HopState:
        return state._replace(signal=signal, stopping=signal[data["stopping"]["rows"]])

    def init(key: Key, batch: Batch) -> HopState:
        if "stopping" not in batch:
            raise check.UsageError("the plan needs stopping nodes: node_data(graph, y, rows, stopping)")
        signal = jnp.zeros(batch["x"].graph.nodes.shape, jnp.float32)
        stopping = jnp.zeros((len(batch["stopping"]["rows"]), signal.shape[1]), jnp.float32)
        size = len(batch["y"])
        weights = jnp.full((size,), 1 / size, jnp.float32)
        inner = base.init(key, rows_of({"index": jnp.arange(size), **batch}, signal, stopping, weights))
        params = jax.tree.map(lambda leaf: jnp.zeros((layers, *leaf.shape), leaf.dtype), inner.params)
        scores = jnp.full((layers,), -1.0, jnp.float32)
        return HopState(inner, signal, stopping, weights, params, scores, jnp.zeros((), jnp.int32))

    def begin(state: HopState | None, data: Data, key: Key) -> HopState:
        signal = dense_nodes(data["x"].graph)
        for _ in range(first):
            signal = propagate(data["x"].graph, signal)
        return with_signal(init(key, data), signal, data)

    def begin_next(state: HopState, data: Data, key: Key) -> HopState:
        state = with_signal(state, propagate(data["x"].graph, state.signal), data)
        size = len(data["y"])
        batch = rows_of({**data, "index": jnp.arange(size)}, state.signal, state.stopping, state.weights)
        return state._replace(base=rules.start(state.base, key, batch), hop=state.hop + 1)

    def update(state: HopState, batch: Batch, key: Key) -> tuple[HopState, Metrics]:
        inner = rows_of(batch, state.signal, state.stopping, state.weights)
        inner["weight"] = jnp.where(batch["valid"], inner["weight"], 0.0) if "valid" in batch else inner["weight"]
        after, metrics = base.update(state.base, inner, key)
        return state._replace(base=after), metrics

    def end(state: HopState, data: Data, key: Key) -> HopState:
        after = rules.finish(state.base)
        log_p = rules.log_p(after, state.signal[data["x"].rows])
        return state._replace(
            base=after,
            weights=boosting.next_weights(rules.weighting, state.weights, log_p, data["y"]),
            params=jax.tree.map(lambda all, one: all.at[state.hop].set(one), state.params, after.params),
            scores=state.scores.at[state.hop].set(
                accuracy_of(rules.log_p(after, state.stopping), data["stopping"]["y"])
            ),
        )

    def predict(state: HopState, batch: Batch) -> Outputs:
        nodes = batch["x"]
        numbers, current = jnp.arange(layers), best_params(state.base)
        unfinished = (numbers == state.hop) & (state.scores < 0)
        scores = jnp.where(unfinished, state.base.accuracy, state.scores)
        chosen = numbers == scores.argmax() if combine == "best" else numbers <= state.hop

        def one(signal: jax.Array, hop: tuple[jax.Array, Params, jax.Array]) -> tuple[jax.Array, jax.Array]:
            number, finished, counts = hop
            present = number == state.hop
            params = jax.tree.map(lambda a, b: jnp.where(present, a, b), current, finished)
            log_p = rules.log_p(with_params(state.base, params), signal[nodes.rows])
            return propagate(nodes.graph, signal), jnp.where(counts, boosting.samme_r_scores(log_p), 0.0)

        signal = dense_nodes(nodes.graph)
        for _ in range(first):
            signal = propagate(nodes.graph, signal)
        _, scored = jax.lax.scan(one, signal, (numbers, state.params, chosen))
        return {"logits": scored.sum(0)}

    learner, source = Learner(init, update, predict), full_batch(whole=True)
    return tuple(
        Stage(f"hop {first + number}", learner, source, begin=begin_next if number else begin, end=end)
        for number in range(layers)
    )
