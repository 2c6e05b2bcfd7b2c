"""A method's first two tasks step by step, for tests that write its loss out in NumPy.

Six classes come as three, two and one: no ratio of old, new and seen classes of the second task equals another one's
inverse, and there is a class that nobody has seen.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import log_softmax, softmax

from jaxkit.class_incremental import METHODS, Stream
from jaxkit.learner import Batch, Learner, Network, Source, TrainState
from jaxkit.networks import convnet, mlp, part_of
from jaxkit.training import optimizer

CLASSES, OLD, SEEN = 6, 3, 5
EACH, MEMORY, BATCH = 16, 12, 16
STREAM = Stream((OLD, SEEN, CLASSES), EACH, float(EACH))
MLP, CONVNET = mlp(CLASSES, hidden=(12, 8), norm="batch"), convnet(CLASSES, width=4, norm="batch")
BACKBONE = part_of(MLP)
KEY = jax.random.key(0)
CLOSE = {"rtol": 2e-5}  # float32 sums of a few hundred terms


def _images() -> dict[str, jax.Array]:
    rng = np.random.default_rng(0)
    y = np.repeat(np.arange(CLASSES), EACH)
    centres = rng.uniform(0.3, 0.7, size=(CLASSES, 8, 8, 1))
    x = centres[y] + rng.uniform(-0.3, 0.3, size=(len(y), 8, 8, 1))
    return {"x": jnp.asarray(x, jnp.float32), "y": jnp.asarray(y, jnp.int32)}


DATA = _images()


class Step(NamedTuple):
    """What a step started from, what it saw, and what it said its loss was."""

    state: TrainState
    batch: Batch
    loss: float


class Walk(NamedTuple):
    """A stage of a plan: its steps, the state after the last one, and the state after the stage's end, whose key is
    ``key``."""

    steps: list[Step]
    last: TrainState
    ended: TrainState
    key: jax.Array


@functools.lru_cache
def program(learner: Learner, source: Source):
    @jax.jit
    def step(state, data, number, key):
        batch = source.next(data, source.init(data, key), state, number, key)[1]
        after, metrics = learner.update(state, batch, jax.random.fold_in(key, number))
        return after, batch, metrics

    return step


@functools.lru_cache
def plan_of(name: str, network: Network = MLP, **settings: Any):
    if name not in ("lwf", "ewc", "si", "mas"):
        settings = {"memory": MEMORY, **settings}
    return METHODS[name].make(network, optimizer("momentum", 0.1), stream=STREAM, batch_size=BATCH, **settings)


def walk(plan, number: int, before: TrainState | None, steps: int = 5, end: bool = True) -> Walk:
    """Stage ``number`` of the plan, begun from the state ``before``."""
    stage, key = plan[number], jax.random.fold_in(KEY, number)
    state, taken = jax.jit(stage.begin)(before, DATA, key), []
    for turn in range(steps):
        after, batch, metrics = program(stage.learner, stage.source)(state, DATA, turn, key)
        taken.append(Step(state, {name: np.asarray(leaf) for name, leaf in batch.items()}, float(metrics["loss"])))
        state = after
    return Walk(taken, state, jax.jit(stage.end)(state, DATA, key) if end and stage.end else state, key)


@functools.lru_cache
def first_two(name: str, network: Network = MLP, end: bool = False, **settings: Any) -> tuple[Walk, Walk]:
    """The first stage of each of the first two tasks; the second one's end with ``end``."""
    plan = plan_of(name, network, **settings)
    one = walk(plan, 0, None)
    return one, walk(plan, 1, one.ended, end=end)


def epoch(plan, number: int, walked: Walk, batches: int) -> list[Batch]:
    """The batches that the stage's source gives with the key of the stage's end."""
    step = program(plan[number].learner, plan[number].source)
    return [step(walked.last, DATA, turn, walked.key)[1] for turn in range(batches)]


@functools.partial(jax.jit, static_argnames=("network", "train"))
def _features(params, variables, x, network, train):
    return network.apply(params, variables, x, train=train)[0]["features"]


def features(params, variables, x, *, train: bool, network: Network = BACKBONE) -> np.ndarray:
    """What comes out of (a part of) a backbone, float64."""
    return np.asarray(_features(params, variables, x, network, train), np.float64)


def linear(head, inputs: np.ndarray) -> np.ndarray:
    return inputs @ np.asarray(head["kernel"], np.float64) + np.asarray(head["bias"], np.float64)


def logits(state, x, *, train: bool) -> np.ndarray:
    """Of the MLP, for all classes."""
    return linear(state.params["head"], features(state.params, state.variables, x, train=train))


def ce(z: np.ndarray, y: np.ndarray) -> np.ndarray:
    """-log softmax(z)_y of each row."""
    return -np.take_along_axis(log_softmax(z, axis=1), y[:, None], 1)[:, 0]


def kd(z: np.ndarray, taught: np.ndarray, temperature: float = 2.0) -> np.ndarray:
    """-sum_k softmax(z^t / T)_k log softmax(z / T)_k of each row, without T^2."""
    return -(softmax(taught / temperature, axis=1) * log_softmax(z / temperature, axis=1)).sum(1)


def unit(x: np.ndarray, axis: int = -1) -> np.ndarray:
    return x / np.linalg.norm(x, axis=axis, keepdims=True)
