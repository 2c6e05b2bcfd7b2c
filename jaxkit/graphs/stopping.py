"""The best state on the stopping nodes, kept inside the compiled step."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxkit import check, losses
from jaxkit.learner import Batch, Key, Learner, Metrics, Outputs, Params, State


class BestState(NamedTuple):
    """The state of ``keep_best``.

    Attributes:
      inner: the wrapped learner's state after the last step.
      params: its best parameters; zero until there are any (``best_params``).
      accuracy: on the stopping nodes, of the best parameters; -1 before the first step.
      loss: their mean cross-entropy there, and the penalty.
      waited: steps since accuracy or loss was last as good as its best.
      lowest: the lowest loss so far, and ``highest`` the highest accuracy.
      metrics: of the last step, repeated once training has stopped.
    """

    inner: State
    params: Params
    accuracy: jax.Array
    loss: jax.Array
    waited: jax.Array
    highest: jax.Array
    lowest: jax.Array
    metrics: Metrics


def forget(state: BestState) -> BestState:
    """The state without its best: the next step's parameters become it."""
    worst, infinite = jnp.full((), -1.0, jnp.float32), jnp.full((), jnp.inf, jnp.float32)
    return state._replace(
        accuracy=worst, highest=worst, loss=infinite, lowest=infinite, waited=jnp.zeros((), jnp.int32)
    )


def best_params(state: BestState) -> Params:
    """The parameters with which to predict: the best ones, and before the first step those it starts from."""
    return jax.tree.map(lambda best, now: jnp.where(state.accuracy < 0, now, best), state.params, state.inner.params)


def with_params(state: BestState, params: Params) -> BestState:
    """The state with these parameters as its present and its best ones."""
    return state._replace(inner=state.inner._replace(params=params), params=params)


def keep_best(
    learner: Learner,
    held_out: Callable[[Batch], Batch],
    *,
    patience: int | None = None,
    penalty: Callable[[Params], jax.Array] = lambda params: jnp.zeros(()),
) -> Learner:
    """Predict with the parameters that were best on held-out nodes: highest accuracy, among equals the lowest loss.

    They are measured after every step, on the nodes that ``held_out(batch)`` gives (``x`` as the learner takes it, and
    ``y``). With ``patience`` the state stands still once neither the accuracy nor the loss has come up to its best for
    so many steps (a tie counts as coming up). The loss is the mean cross-entropy of the held-out nodes plus
    ``penalty(params)``, in PPNP the L2 term of the objective: accuracies on some hundred nodes tie often, and then it
    decides. This is PPNP's early stopping. (Gasteiger et al. 2019, appendix B and released code.)

    The wrapped state must have a field ``params`` (every learner of ``from_loss`` has).
    """
    if patience is not None:
        check.count("patience", patience)

    def init(key: Key, batch: Batch) -> BestState:
        inner = learner.init(key, batch)
        shapes = jax.eval_shape(learner.update, inner, batch, key)[1]
        metrics = {name: jnp.ones((), jnp.float32) for name in (*shapes, "stopping_accuracy", "stopping_loss")}
        zero = jnp.zeros(())
        start = BestState(inner, inner.params, zero, zero, jnp.zeros((), jnp.int32), zero, zero, metrics)
        # No copy of the parameters: XLA would compute their random numbers twice, in fusions whose last bits depend on
        # the program around them, and seeds trained together would not equal single runs.
        return forget(start._replace(params=jax.tree.map(jnp.zeros_like, inner.params)))

    def step(state: BestState, batch: Batch, key: Key) -> BestState:
        inner, metrics = learner.update(state.inner, batch, key)
        held = held_out(batch)
        logits = learner.predict(inner, held)["logits"]
        accuracy = (logits.argmax(-1) == held["y"]).mean(dtype=jnp.float32)
        loss = losses.cross_entropy(logits, held["y"]).mean() + penalty(inner.params)
        better = (accuracy > state.accuracy) | ((accuracy == state.accuracy) & (loss < state.loss))
        up = (accuracy >= state.highest) | (loss <= state.lowest)
        return BestState(
            inner,
            jax.tree.map(lambda new, old: jnp.where(better, new, old), inner.params, state.params),
            jnp.where(better, accuracy, state.accuracy),
            jnp.where(better, loss, state.loss),
            jnp.where(up, 0, state.waited + 1).astype(jnp.int32),
            jnp.maximum(accuracy, state.highest),
            jnp.minimum(loss, state.lowest),
            {**metrics, "stopping_accuracy": accuracy, "stopping_loss": loss},
        )

    def update(state: BestState, batch: Batch, key: Key) -> tuple[BestState, Metrics]:
        if patience is None:
            state = step(state, batch, key)
        else:
            state = jax.lax.cond(state.waited >= patience, lambda: state, lambda: step(state, batch, key))
        return state, state.metrics

    def predict(state: BestState, batch: Batch) -> Outputs:
        return learner.predict(state.inner._replace(params=best_params(state)), batch)

    return Learner(init, update, predict)
