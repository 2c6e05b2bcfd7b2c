"""Herding, GEM's step and iCaRL's epoch, beside how they are usually written.

``python -m experiments.benchmarks.class_incremental [--out DIR] [--quick]``; PyTorch is the extra ``bench``.

* **herding**: 20 exemplars of 500 rows of 64 features, as one compiled loop, beside the NumPy loop that copies the rows
  left by ``np.delete`` at each choice. ``classes``: of ten classes in one call, beside the loop class by class.
* **gem**: one step on digits with 50 exemplars, at the fifth of five tasks (four constraints): all on the device,
  beside the same gradients on the device, brought to the host, projected by SciPy's non-negative least squares there,
  and sent back. ``projection``: that part alone, with the gradients at hand on the side that needs them.
* **icarl**: one epoch of a task, 2,000 pictures of 28 x 28 pixels of two new classes and 200 exemplars (random numbers;
  nothing depends on what they show) on the small convolutional network, beside the transcription in PyTorch
  (``_torch_class_incremental``) with the number of threads that is best for it in a trial before. The loss is the same
  function of the logits on both sides, which a test asserts. On a CPU always.

Ours are calls of compiled programs; compiling is not counted. Ratios are the other side over ours, medians over rounds
with their range; in each round everything is called once, in turn. Seconds are those of this machine in these rounds.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from jax.flatten_util import ravel_pytree

from experiments.benchmarks import _torch_class_incremental as peer
from experiments.benchmarks._timing import in_turn, quotient, write
from jaxkit import class_incremental as cil
from jaxkit import data, networks
from jaxkit.class_incremental import memory as memories
from jaxkit.class_incremental.incremental import example_of
from jaxkit.class_incremental.projected import gem_projection
from jaxkit.learner import Data
from jaxkit.losses import cross_entropy
from jaxkit.training import optimizer

PROMISED = 5.0  # times as fast as the loop of np.delete
WITHOUT_TORCH = "torch is not installed: python -m pip install -e '.[bench]'"
ROWS, WIDTH, COUNT, CLASSES = 500, 64, 20, 10
SIDE, NEW, EXEMPLARS = 28, 2000, 200
CALLS = {"herding": 20, "classes": 4, "gem": 20, "projection": 50}
"""Calls that are timed as one, because one is too short."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Options.

    Attributes:
      out: folder for the result.
      quick: two rounds.
    """

    out: Path | None = None
    quick: bool = False


class Compared(NamedTuple):
    """Two ways of doing the same, each a call without arguments."""

    ours: Callable[[], Any]
    other: Callable[[], Any]


def repeated(work: Callable[[], Any], calls: int) -> Callable[[], Any]:
    """The work so many times, waited for each time: a step needs what the one before gave."""

    def all_calls() -> Any:
        for _ in range(calls):
            found = jax.block_until_ready(work())
        return found

    return all_calls


def herding_works() -> dict[str, Compared]:
    """Of one class, and of ten."""
    features = np.random.default_rng(0).normal(size=(CLASSES, ROWS, WIDTH)).astype(np.float32)
    one = jax.jit(lambda rows: cil.herding(rows, COUNT)[:COUNT])
    many = jax.jit(jax.vmap(lambda rows: cil.herding(rows, COUNT)[:COUNT]))
    on_device, first = jnp.asarray(features), jnp.asarray(features[0])
    return {
        "herding": Compared(lambda: one(first), lambda: peer.herd(features[0], COUNT)),
        "classes": Compared(lambda: many(on_device), lambda: [peer.herd(rows, COUNT) for rows in features]),
    }


class GemTask(NamedTuple):
    """GEM at the last of five tasks on digits: its plan, the state after its begin, and rows of the new classes."""

    plan: Any
    state: Any
    batch: Data


@functools.lru_cache(maxsize=1)
def gem_task() -> GemTask:
    """The fifth task begins with ten exemplars of each old class."""
    rows = cil.in_order(data.load("digits", "train")[0], cil.class_order(CLASSES))
    rows = {"x": jnp.asarray(rows["x"]), "y": jnp.asarray(rows["y"])}
    stream = cil.make_stream(np.asarray(rows["y"]), increment=2)
    plan = cil.METHODS["gem"].make(
        networks.mlp(CLASSES, hidden=(64, 64)), optimizer("momentum", 0.1), stream=stream, memory=50, batch_size=32
    )
    key, state = jax.random.key(0), None
    for number, stage in enumerate(plan):
        state = jax.jit(stage.begin)(state, rows, key)
        if number < len(plan) - 1:
            state = jax.jit(stage.end)(state, rows, key)
    new = np.flatnonzero(np.asarray(rows["y"]) >= CLASSES - 2)[:32]
    return GemTask(plan, state, {"x": rows["x"][new], "y": rows["y"][new]})


def constraints(task: GemTask) -> tuple[Any, Callable[..., Any]]:
    """(how a vector becomes parameters, a function of parameters: the batch's gradient and those on each earlier
    task's exemplars, [params] and [tasks, params])."""
    network, state = networks.mlp(CLASSES, hidden=(64, 64)), task.state
    label, taken = memories.labels(state.extra.memory)
    x = memories.read(state.extra.memory, jnp.arange(label.size))
    key = jax.random.key(1)

    def mean_loss(params: Any, x: Any, y: Any, low: int) -> Any:
        mine = (y >= low) & (y < low + 2)
        logits = network.apply(params, state.variables, x, train=True, key=key)[0]["logits"]
        losses = cross_entropy(cil.among(logits, low, low + 2), jnp.where(mine, y, low))
        return jnp.where(mine, losses, 0.0).sum() / jnp.maximum(mine.sum(), 1)

    def gradients(params: Any) -> tuple[Any, Any]:
        of = lambda x, y, low: ravel_pytree(jax.grad(mean_loss)(params, x, y, low))[0]
        earlier = [of(x, jnp.where(taken, label, -1), low) for low in range(0, CLASSES - 2, 2)]
        return of(task.batch["x"], task.batch["y"], CLASSES - 2), jnp.stack(earlier)

    return ravel_pytree(state.params)[1], gradients


def gem_works() -> dict[str, Compared]:
    """A whole step, and the projection alone."""
    task = gem_task()
    update = jax.jit(task.plan[-1].learner.update)
    key = jax.random.key(2)
    back, gradients = constraints(task)
    taken = jax.jit(gradients)
    descent = optimizer("momentum", 0.1)

    @jax.jit
    def applied(flat: Any, params: Any, opt_state: Any) -> Any:
        updates, opt_state = descent.update(back(flat), opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    params, opt_state = task.state.params, descent.init(task.state.params)

    def on_the_host() -> Any:
        grad, earlier = (np.asarray(part) for part in taken(params))
        return applied(jnp.asarray(peer.project(grad, earlier)), params, opt_state)

    grad, earlier = jax.block_until_ready(taken(params))
    # Turned so that it harms all four tasks and the program has something to solve.
    grad = grad - 2.0 * earlier.sum(0)
    host = np.asarray(grad), np.asarray(earlier)
    projection = jax.jit(gem_projection)
    return {
        "gem": Compared(lambda: update(task.state, task.batch, key), on_the_host),
        "projection": Compared(lambda: projection(grad, earlier), lambda: peer.project(*host)),
    }


def icarl_rows() -> tuple[np.ndarray, np.ndarray]:
    """The pool of the second task: pictures [rows, 28, 28, 1], and their classes."""
    random = np.random.default_rng(0)
    y = np.concatenate([np.repeat([2, 3], NEW // 2), np.repeat([0, 1], EXEMPLARS // 2)]).astype(np.int32)
    return random.uniform(size=(len(y), SIDE, SIDE, 1)).astype(np.float32), y


def icarl_epoch(settings: peer.Settings) -> Callable[[], Any]:
    """An epoch of the second task, its steps in one program; each call goes on from the state of the last."""
    x, y = icarl_rows()
    rows = {"x": jnp.asarray(np.concatenate([x, x[:1]])), "y": jnp.asarray(np.append(y, 0))}
    stream = cil.Stream((settings.old, settings.seen, settings.classes), NEW // 2, NEW / 2)
    descent = optax.chain(
        optax.add_decayed_weights(settings.weight_decay), optax.sgd(settings.learning_rate, settings.momentum)
    )
    network = networks.convnet(settings.classes, width=settings.width)
    plan = cil.METHODS["icarl"].make(
        network, descent, stream=stream, memory=EXEMPLARS, batch_size=settings.batch_size,
        temperature=settings.temperature,
    )  # fmt: skip
    learner, source, key = plan[0].learner, plan[0].source, jax.random.key(0)
    state = learner.init(key, example_of(rows))
    task = state.extra
    stored = jnp.round(rows["x"][NEW : NEW + EXEMPLARS] * 255).astype(task.memory.x.dtype)
    counts = jnp.zeros((settings.classes,), jnp.int32).at[: settings.old].set(EXEMPLARS // settings.old)
    full = task.memory._replace(x=stored, counts=counts)
    number = lambda value: jnp.asarray(value, jnp.int32)
    task = task._replace(number=number(1), old=number(settings.old), seen=number(settings.seen), memory=full)
    held = [state._replace(extra=task)]
    groups = source.init(rows, key)
    steps = (NEW + EXEMPLARS) // settings.batch_size

    @functools.partial(jax.jit, donate_argnums=0)
    def epoch(state: Any) -> Any:
        def step(state: Any, number: Any) -> Any:
            _, batch = source.next(rows, groups, state, number, key)
            return learner.update(state, batch, jax.random.fold_in(key, number))[0], None

        return jax.lax.scan(step, state, state.step + jnp.arange(steps))[0]

    def work() -> Any:
        held[0] = epoch(held[0])
        return held[0].params

    return work


def against_torch(rounds: int) -> dict[str, Any] | str:
    """iCaRL's epoch on both sides; the reason where there is no torch."""
    if importlib.util.find_spec("torch") is None:
        return WITHOUT_TORCH
    with jax.default_device(jax.devices("cpu")[0]):
        settings = peer.Settings()
        theirs = peer.Icarl(*icarl_rows(), settings)
        cores = os.cpu_count() or 1
        forms = {str(threads): lambda t=threads: theirs.epoch(t) for threads in sorted({1, min(2, cores), cores})}
        least = {name: times.min() for name, times in in_turn(forms, 3).items()}
        threads = int(min(least, key=lambda name: least[name]))
        times = in_turn({"ours": icarl_epoch(settings), "torch": lambda: theirs.epoch(threads)}, rounds)
    middle = {name: float(np.median(each)) for name, each in times.items()}
    return {"threads": threads, "seconds": middle, "torch_over_ours": quotient(times["torch"], times["ours"])}


def compare(name: str, works: Compared, rounds: int) -> dict[str, Any]:
    """Seconds of a call on both sides, and the other over ours."""
    calls = CALLS[name]
    times = in_turn({side: repeated(work, calls) for side, work in works._asdict().items()}, rounds)
    middle = {side: float(np.median(each)) / calls for side, each in times.items()}
    print(f"{name}: {middle}", file=sys.stderr, flush=True)
    return {"seconds": middle, "other_over_ours": quotient(times["other"], times["ours"])}


def short_of_promise(found: dict[str, Any]) -> str | None:
    """The line that says that the promised ratio of herding was not reached; None where it was."""
    ratio = found["herding"]["other_over_ours"]["ratio"]
    return None if ratio >= PROMISED else f"below the promised {PROMISED:.0f}x of the loop of np.delete: {ratio:.1f}x"


def main(config: Config, rounds: int | None = None) -> None:
    rounds = rounds or (2 if config.quick else 9)
    found = {name: compare(name, works, rounds) for name, works in {**herding_works(), **gem_works()}.items()}
    found["icarl"] = against_torch(rounds)
    write("class_incremental", {"quick": config.quick, "promised": PROMISED, **found}, config.out)
    line = short_of_promise(found)
    if line is not None:
        print(line, file=sys.stderr)


if __name__ == "__main__":
    main(tyro.cli(Config))
