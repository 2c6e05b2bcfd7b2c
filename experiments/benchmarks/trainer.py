"""``fit()`` against a scan written by hand: the same network, batches, optimizer and number of steps.

``python -m experiments.benchmarks.trainer [--out DIR] [--steps N]`` prints the ratio of their speeds (hand-written
time over fit's
time: 1 is as fast, 0.9 is what the project promises), the length of the compiled step's program text for two sizes of
Data, and the bytes of arrays that are alive beside Data after a fit.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

from experiments.benchmarks._timing import interleaved, write
from jaxkit import networks, training
from jaxkit.data import sources
from jaxkit.learner import Learner, Source, Stage, from_example_loss

CLASSES, WIDTH, BATCH = 10, 784, 128


@dataclasses.dataclass(frozen=True)
class Config:
    """Options.

    Attributes:
      out: folder for the result.
      steps: training steps of one call.
      pairs: pairs of timed calls.
    """

    out: Path | None = None
    steps: int = 1000
    pairs: int = 15


def make_data(rows: int) -> dict[str, np.ndarray]:
    """Noise in the shape of MNIST: the time of a step does not depend on what the pixels show."""
    random = np.random.default_rng(0)
    x = random.random((rows, WIDTH), np.float32)
    return {"x": x, "y": random.integers(0, CLASSES, rows).astype(np.int32)}


def make_learner() -> Learner:
    """Empirical risk minimisation with a multilayer perceptron of two hidden layers of 256."""
    loss = lambda outputs, batch: optax.softmax_cross_entropy_with_integer_labels(outputs["logits"], batch["y"])
    return from_example_loss(networks.make("mlp", CLASSES), loss, optax.adam(1e-3))


def by_hand(learner: Learner, source: Source, steps: int):
    """The loop that a person would write: one jitted scan over all steps."""

    @partial(jax.jit, donate_argnums=0)
    def train(state: Any, data: dict, source_key: jax.Array, update_key: jax.Array):
        def step(state, number):
            _, batch = source.next(data, (), state, number, source_key)
            state, metrics = learner.update(state, batch, jax.random.fold_in(update_key, number))
            return state, metrics["loss"]

        return jax.lax.scan(step, state, jnp.arange(steps))

    begin = jax.jit(learner.init)

    def run(data: dict, key: jax.Array):
        keys = training.keys.streams(key, 0)
        state = begin(keys.begin, {name: values[:BATCH] for name, values in data.items()})
        return train(state, data, keys.source, keys.update)

    return run


def program_text(learner: Learner, source: Source, rows: int) -> int:
    """Characters of the compiled step's StableHLO for ``rows`` rows of data."""
    plan = (Stage("train", learner, source),)
    layout = training.layout.Layout(plan, make_data(rows), jax.random.key(0), None, training.DEFAULT, None)
    step = layout.steps(0).lower(layout.shapes[0], layout.data, layout.keys(0), np.int32(0), np.int32(1))
    return len(step.as_text())


def bytes_beside(learner: Learner, source: Source, rows: int, steps: int) -> int:
    """Bytes of live arrays that a fit adds to its data: the state that it returns."""
    data = jax.device_put(make_data(rows))
    before = sum(array.nbytes for array in jax.live_arrays())
    fitted = training.fit(learner, data, key=0, steps=steps, source=source, progress=False)
    jax.block_until_ready(fitted.state)
    return sum(array.nbytes for array in jax.live_arrays()) - before


def main(config: Config) -> None:
    learner, source, data = make_learner(), sources.epochs(BATCH), jax.device_put(make_data(5000))
    hand = by_hand(learner, source, config.steps)
    ours = partial(training.fit, learner, data, steps=config.steps, source=source, progress=False)
    key = jax.random.key(0)
    timed = interleaved(lambda: hand(data, key), lambda: ours(key=key).state, config.pairs)
    small, large = 65536, 4 * 65536
    results = {
        "speed_of_fit_over_hand_written": timed,
        "steps": config.steps,
        "program_text": {str(rows): program_text(learner, source, rows) for rows in (small, large)},
        "bytes_beside_data": {str(rows): bytes_beside(learner, source, rows, 20) for rows in (2000, 8000)},
    }
    write("trainer", results, config.out)


if __name__ == "__main__":
    main(tyro.cli(Config))
