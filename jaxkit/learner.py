"""The one idea: a learning algorithm is three pure functions, and most algorithms are a loss.

``State`` is a pytree of arrays and nothing else, so every learner can be jitted, scanned, mapped over seeds and
hyper-parameters, sharded, checkpointed, and compared bit for bit. A ``Batch`` is a dict with fixed meaning:

==============  ====================================================================================================
``x``           an array or a pytree (tokens, observation) whose leaves share the leading axis; or rows and what they
                stand in (a graph, ``jaxkit.graphs.Nodes``), where the first leaf alone has one entry for each row
``y``           int32 labels or float targets
``env``         int32 environment, 0..E-1
``attribute``   int32 spurious attribute
``index``       int32 row in Data
``weight``      float loss weight
``valid``       bool; False is padding, which changes no output, loss or statistic of a valid row
``second``      a second view or sampler, a Batch again
``stopping``    held-out nodes of the same graph, by which the best state is chosen (``jaxkit.graphs``)
==============  ====================================================================================================

Trajectories are ``[batch, time, ...]`` with ``terminated`` and ``truncated``. Multi-environment methods take ``[E, B,
...]``.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxkit import check

PyTree = Any
Key = jax.Array
State = PyTree
Params = PyTree
Data = dict[str, PyTree]
Batch = dict[str, PyTree]
Outputs = dict[str, PyTree]
Metrics = dict[str, jax.Array]


class Learner(NamedTuple):
    """A learning algorithm as three pure functions, after optax's (init, update).

    Attributes:
      init: ``(key, batch) -> state``; reads the shapes of one example batch, never its values.
      update: ``(state, batch, key) -> (state, metrics)``; one step. The new state has the shapes and dtypes of the
        old one; metrics
        is a flat dict of float32 scalars with the same keys at every step, ``loss`` and ``finite`` (1 or 0: whether
        training may go on) among them.
      predict: ``(state, batch) -> outputs``; deterministic, from a batch without labels. Outputs is a dict:
        ``logits``, ``mean``,
        ``features``, ``value``, ``carry``; a second read-out has a name of its own (``logits_ncm``).
    """

    init: Callable[[Key, Batch], State]
    update: Callable[[State, Batch, Key], tuple[State, Metrics]]
    predict: Callable[[State, Batch], Outputs]


class Network(NamedTuple):
    """A neural network as two pure functions, whatever library wrote it.

    Attributes:
      init: ``(key, x) -> (params, variables)``; variables are what is not trained (normalisation statistics).
      apply: ``(params, variables, x, *, train=False, key=None, valid=None) -> (outputs, variables)``; ``valid`` marks
        the rows that count in batch statistics; with ``train=False`` the variables come back unchanged.
      stages: into how many parts ``jaxkit.networks.part_of`` can cut it.
    """

    init: Callable[..., tuple[Params, PyTree]]
    apply: Callable[..., tuple[Outputs, PyTree]]
    stages: int = 1


class Source(NamedTuple):
    """Which examples a step sees, and in which layout; pure, and inside the compiled step.

    Attributes:
      init: ``(data, key) -> source_state``.
      next: ``(data, source_state, state, step, key) -> (source_state, batch)``; ``key`` is the same at every step, so
        that a stateless
        source is a function of (key, step) and the data order needs no checkpoint. ``state`` is the learner's, for
        sources that act by it.
      example: ``(data, source_state, key) -> batch`` with the shapes that ``next`` will give, for sources whose
        ``next`` reads ``state``.
      axis: the axis of a batch that is split over devices (1 where batches are ``[E, B, ...]``); None where every
        device gets the whole batch (a graph).
      validate: ``data -> None``; raises UsageError for concrete data that the source cannot draw from. ``fit`` calls it
        before anything is compiled.
    """

    init: Callable[[Data, Key], PyTree]
    next: Callable[..., tuple[PyTree, Batch]]
    example: Callable[[Data, PyTree, Key], Batch] | None = None
    axis: int | None = 0
    validate: Callable[[Data], None] | None = None


class HostSource(NamedTuple):
    """Batches made outside the compiled step (a loader with workers, a pool of actors).

    Attributes:
      open: ``(data, key, step) -> iterator of batches`` from step ``step`` on, so that a resumed run sees what the
        first would have seen.
      axis: as in Source.
    """

    open: Callable[..., Any]
    axis: int = 0


class Stage(NamedTuple):
    """One stretch of training in which no shape changes; a plan is a tuple of stages.

    Attributes:
      name: shown in progress, history and errors.
      learner: what learns.
      source: what it sees.
      share: its share of the steps of the plan that no stage has fixed.
      steps: exactly so many steps instead (a closed form is one step on the full batch).
      begin: ``(state | None, data, key) -> state``, pure. None: a first stage starts from ``learner.init``, a later one
        takes the state as it is.
      end: ``(state, data, key) -> state``, pure. Only in begin and end may the shapes of State change.
    """

    name: str
    learner: Learner
    source: Source | HostSource
    share: float = 1.0
    begin: Callable[[State | None, Data, Key], State] | None = None
    end: Callable[[State, Data, Key], State] | None = None
    steps: int | None = None


Plan = tuple[Stage, ...]


class Gradient(NamedTuple):
    """The seam between a loss and an update, as a value.

    Attributes:
      init: ``params -> grad_state`` (error feedback, loss scale, stale parameters).
      apply: ``(loss, grad_state, params, carried, batch, key) -> (grad_state, grads, carried, metrics)`` where
        ``loss(params, carried, batch, key) -> (scalar, (carried, metrics))``. A ``finite`` in its metrics overrides
        the check of ``from_loss`` (a gradient that skips overflows on purpose says so).
    """

    init: Callable[[Params], PyTree]
    apply: Callable[..., tuple[PyTree, Params, PyTree, Metrics]]


def _plain(loss, grad_state, params, carried, batch, key):
    (value, (carried, metrics)), grads = jax.value_and_grad(loss, has_aux=True)(params, carried, batch, key)
    return grad_state, grads, carried, {"loss": value, **metrics}


plain = Gradient(init=lambda params: (), apply=_plain)
"""The gradient of the whole batch: ``jax.value_and_grad``."""


class LossState(NamedTuple):
    """What a loss reads and hands on besides the parameters.

    Attributes:
      variables: the network's untrained variables.
      extra: the method's own arrays (queues, centres, duals, a teacher).
      step: int32, the number of updates done; read only.
    """

    variables: PyTree
    extra: PyTree
    step: jax.Array


class TrainState(NamedTuple):
    """The state of a learner made by ``from_loss``."""

    params: Params
    variables: PyTree
    opt_state: PyTree
    grad_state: PyTree
    extra: PyTree
    step: jax.Array


Loss = Callable[[Params, LossState, Batch, Key], tuple[jax.Array, tuple[LossState, Metrics]]]


def path_name(path: tuple[Any, ...]) -> str:
    """A leaf's path as text: ``params/backbone/Dense_0/kernel``."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def split_params(params: Params, pattern: str | None) -> tuple[Params, Params]:
    """Split a tree by path: (leaves whose path does not match ``pattern``, leaves whose path does), None where a leaf
    is not."""
    if pattern is None:
        return params, jax.tree.map(lambda leaf: None, params)
    matches = lambda path: re.search(pattern, path_name(path)) is not None
    by_path = jax.tree_util.tree_map_with_path
    return (
        by_path(lambda path, leaf: None if matches(path) else leaf, params),
        by_path(lambda path, leaf: leaf if matches(path) else None, params),
    )


def merge_params(trained: Params, kept: Params) -> Params:
    """The inverse of ``split_params``."""
    return jax.tree.map(lambda a, b: b if a is None else a, trained, kept, is_leaf=lambda leaf: leaf is None)


def clear_padding(batch: Batch) -> Batch:
    """The batch with zeros in place of floats in rows that are not valid.

    A NaN in a padding row would reach the gradient through 0 * NaN, however its loss is weighted. ``from_loss`` clears
    its batches; an update written by hand does it itself.

    What is not a row is left alone, also where it happens to be as long as the batch: ``stopping``, and an ``x`` whose
    leaves do not share the leading axes of ``valid`` (nodes and edges of a graph; a node that is no valid row is still
    a neighbour).
    """
    if "valid" not in batch:
        return batch
    valid = batch["valid"]
    of_rows = lambda leaf: leaf.shape[: valid.ndim] == valid.shape

    def clear(leaf: jax.Array) -> jax.Array:
        if not jnp.issubdtype(leaf.dtype, jnp.inexact) or not of_rows(leaf):
            return leaf
        return jnp.where(valid.reshape(valid.shape + (1,) * (leaf.ndim - valid.ndim)), leaf, 0)

    def part(name: str, value: PyTree) -> PyTree:
        if name == "second":
            return clear_padding(value)
        if name == "stopping" or (name == "x" and not all(of_rows(leaf) for leaf in jax.tree.leaves(value))):
            return value
        return jax.tree.map(clear, value)

    return {name: part(name, value) for name, value in batch.items()}


def from_loss(
    network: Network,
    loss: Loss,
    optimizer: optax.GradientTransformation,
    *,
    gradient: Gradient = plain,
    init_extra: Callable[[Params, PyTree], PyTree] = lambda params, variables: (),
    freeze: str | None = None,
    example: Callable[[Batch], PyTree] = lambda batch: batch["x"],
) -> Learner:
    """The learner that descends a loss: params <- params + optimizer(d loss / d params).

    Args:
      network: initialised from ``example(batch)`` and used by ``predict``; the loss calls ``network.apply`` itself.
      loss: ``(params, loss_state, batch, key) -> (scalar, (loss_state, metrics))``.
      optimizer: an optax transformation; it may need ``params``.
      gradient: how the gradient is taken; see ``Gradient``.
      init_extra: ``(params, variables) -> extra``, the method's own arrays at the start.
      freeze: a regular expression; parameters whose path matches get no gradient and no optimizer state, and
        variables whose path
        matches keep their value. Batch normalisation in the frozen part still normalises by the batch unless the loss
        says ``train=False``.
      example: the rows of a batch as the network takes them, for its shapes:
        ``lambda batch: batch["x"][0]`` where batches are ``[E, B, ...]``.

    Raises:
      UsageError: ``freeze`` leaves nothing to train.
    """

    def init(key: Key, batch: Batch) -> TrainState:
        params, variables = network.init(key, example(batch))
        trained, _ = split_params(params, freeze)
        if not jax.tree.leaves(trained):
            raise check.UsageError(f"freeze={freeze!r} matches every parameter; nothing is left to train")
        extra = init_extra(params, variables)
        return TrainState(
            params, variables, optimizer.init(trained), gradient.init(trained), extra, jnp.zeros((), jnp.int32)
        )

    def update(state: TrainState, batch: Batch, key: Key) -> tuple[TrainState, Metrics]:
        trained, kept = split_params(state.params, freeze)
        batch = clear_padding(batch)

        def objective(trained, carried, batch, key):
            variables, extra = carried
            given = LossState(variables, extra, state.step)
            value, (after, metrics) = loss(merge_params(trained, kept), given, batch, key)
            return value, ((after.variables, after.extra), metrics)

        carried = (state.variables, state.extra)
        grad_state, grads, carried, metrics = gradient.apply(objective, state.grad_state, trained, carried, batch, key)
        updates, opt_state = optimizer.update(grads, state.opt_state, trained)
        params = merge_params(optax.apply_updates(trained, updates), kept)
        variables, extra = carried
        if freeze is not None:
            variables = merge_params(split_params(variables, freeze)[0], split_params(state.variables, freeze)[1])
        metrics = {"finite": jnp.isfinite(metrics["loss"]), **metrics}
        metrics = {name: jnp.asarray(value, jnp.float32) for name, value in metrics.items()}
        return TrainState(params, variables, opt_state, grad_state, extra, state.step + 1), metrics

    def predict(state: TrainState, batch: Batch) -> Outputs:
        return network.apply(state.params, state.variables, batch["x"], train=False, valid=batch.get("valid"))[0]

    return Learner(init, update, predict)


def starting_from(network: Network, params: Params, variables: PyTree) -> Network:
    """The network with these values in place of random ones, for the ``begin`` of a later stage.

    ``from_loss(starting_from(network, params, variables), ...).init(key, batch)`` is a state with them and a fresh
    optimizer.
    """
    return network._replace(init=lambda key, x: (params, variables))


def batch_mean(values: jax.Array, batch: Batch) -> jax.Array:
    """The loss of a batch from the loss of its rows: sum_i valid_i weight_i values_i / sum_i valid_i.

    ``valid`` and ``weight`` are 1 where the batch has none. The divisor counts rows, so that doubling every weight
    doubles the loss.
    """
    valid = batch.get("valid")
    if "weight" in batch:
        values = values * batch["weight"]
    if valid is None:
        return values.mean()
    return jnp.where(valid, values, 0.0).sum() / jnp.maximum(valid.sum(), 1)


def from_example_loss(
    network: Network,
    example_loss: Callable[[Outputs, Batch], jax.Array],
    optimizer: optax.GradientTransformation,
    *,
    gradient: Gradient = plain,
    freeze: str | None = None,
) -> Learner:
    """``from_loss`` for the most frequent case: the batch mean of ``example_loss(outputs, batch) -> [batch]``."""

    def loss(params, state, batch, key):
        outputs, variables = network.apply(
            params, state.variables, batch["x"], train=True, key=key, valid=batch.get("valid")
        )
        return batch_mean(example_loss(outputs, batch), batch), (state._replace(variables=variables), {})

    return from_loss(network, loss, optimizer, gradient=gradient, freeze=freeze)


class EmaState(NamedTuple):
    """The state of ``with_ema``: the wrapped learner's, and the average of its parameters."""

    inner: State
    average: Params


def with_ema(learner: Learner, decay: float | jax.Array = 0.999) -> Learner:
    """Predict with an exponential moving average of the parameters: a <- decay a + (1 - decay) params, from the
    initial ones.

    The wrapped state must have a field ``params`` (every learner of ``from_loss`` has). (Polyak and Juditsky 1992.)
    """
    check.fraction("decay", decay)

    def init(key: Key, batch: Batch) -> EmaState:
        inner = learner.init(key, batch)
        if not hasattr(inner, "params"):
            raise check.UsageError(f"with_ema needs a state with a field 'params', got {type(inner).__name__}")
        return EmaState(inner, jax.tree.map(jnp.copy, inner.params))

    def update(state: EmaState, batch: Batch, key: Key) -> tuple[EmaState, Metrics]:
        inner, metrics = learner.update(state.inner, batch, key)
        average = jax.tree.map(lambda a, p: (decay * a + (1 - decay) * p).astype(a.dtype), state.average, inner.params)
        return EmaState(inner, average), metrics

    def predict(state: EmaState, batch: Batch) -> Outputs:
        return learner.predict(state.inner._replace(params=state.average), batch)

    return Learner(init, update, predict)


def frozen(learner: Learner, pattern: str) -> Learner:
    """Any learner with part of its state held fixed: leaves of State whose path matches ``pattern`` come out of
    update as they went in.

    It holds for whatever the update does (weight decay, statistics). Where the learner is a loss, ``from_loss(...,
    freeze=pattern)`` also saves the backward pass and the optimizer's memory.
    """

    def update(state: State, batch: Batch, key: Key) -> tuple[State, Metrics]:
        after, metrics = learner.update(state, batch, key)
        return merge_params(split_params(after, pattern)[0], split_params(state, pattern)[1]), metrics

    def init(key: Key, batch: Batch) -> State:
        state = learner.init(key, batch)
        if not jax.tree.leaves(split_params(state, pattern)[1]):
            raise check.UsageError(f"frozen: the pattern {pattern!r} matches no leaf of the state")
        return state

    return Learner(init, update, learner.predict)


class Method(NamedTuple):
    """The record of one published method; the command line, the tables, the docs and the conformance test read it.

    Attributes:
      make: ``(network, optimizer, **settings) -> Learner | Plan``; the paper's defaults, keyword only.
      title: what the method is called.
      paper: authors, title, venue.
      year: of publication.
      categories: the branches of the survey it stands on.
      evidence: where formula and defaults come from (paper, equation, official code).
      traced: names of settings that may be traced arrays, so that a sweep is one compiled program.
      not_reproduced: what of the paper is not here; empty when all of it is.
      layout: the batches that its learner takes: ``rows`` [B, ...], ``environments`` [E, B, ...], ``all`` rows at once,
        or a whole ``graph`` (``jaxkit.data.for_layout`` makes the source; a plan brings its own sources).
    """

    make: Callable[..., Learner | Plan]
    title: str
    paper: str
    year: int
    categories: tuple[str, ...] = ()
    evidence: str = ""
    traced: tuple[str, ...] = ()
    not_reproduced: str = ""
    layout: str = "rows"


def find_method(methods: dict[str, Method], name: str) -> Method:
    """``methods[name]`` in any case, with - or _; an unknown name raises UsageError with the nearest ones."""
    return methods[check.choose("method", name, methods)]
