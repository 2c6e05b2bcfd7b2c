"""Seeds per minute of a long-tailed training: one call of ``fit`` for all seeds, beside the same in PyTorch.

``python -m experiments.benchmarks.long_tailed [--out DIR] [--quick]``; PyTorch is the extra ``bench``.

**What is trained.** scikit-learn's digits, cut to the exponential profile from 120 rows to 2 (imbalance 60), with an
order of the classes and a subset of the rows of its own for every seed; a multilayer perceptron 64-64-10, by softmax
and by balanced softmax; SGD with momentum, batches of 64, eight seeds. The classes are numbered from the largest to the
smallest in every seed, so that the class counts, which a method is made with, are those of all seeds; nothing else of
the training knows what a class is called.

**Ours** is one ``training.fit(..., seeds=8, per_seed=True)``: begin, all steps of all seeds and the logits of the test
rows are one dispatch each. It also keeps the loss of every step and looks whether it is finite, which the peer does
not. Compiling is not counted in the ratios; ``with_compiling`` has the first call, which compiles (nothing is taken
from the cache on the disk), beside one call of the peer: what a person pays who runs eight seeds once. A program serves
any number of steps, and further calls; ``compiling_in_seeds`` is the number of seeds that the loop trains meanwhile.

**The peer** is ``_torch_long_tailed``: the loop that one writes, a seed after another, and as a second, stronger figure
all seeds as one model by ``torch.func.vmap`` (``vmapped``). Same rows, batches of the same size without the rest of
an epoch, number of steps, optimizer and distribution of the first parameters; the random numbers differ. Each form has
the number of threads, and SGD plain or fused, that is best for it in a trial before. On a CPU always.

Ratios are medians over rounds, with their range; in each round everything is called once, in turn. Seeds per minute are
those of this machine in these rounds. The accuracies on the test rows, means over rounds and seeds, are there to show
that the same thing was trained.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
import tyro
from jax.experimental.compilation_cache import compilation_cache

from experiments.benchmarks import _torch_long_tailed as peer
from experiments.benchmarks._timing import in_turn, quotient, seconds, write
from jaxkit import data, long_tailed, networks, training
from jaxkit.learner import Data, Learner

PROMISED = 4.0  # times as many seeds per minute as the loop
WITHOUT_TORCH = "torch is not installed: python -m pip install -e '.[bench]'"
LOSSES = ("softmax", "balanced_softmax")
CLASSES, IMBALANCE, LARGEST = 10, 60, 120


@dataclasses.dataclass(frozen=True)
class Config:
    """Options.

    Attributes:
      out: folder for the result.
      quick: two rounds of 200 steps.
    """

    out: Path | None = None
    quick: bool = False


class Budget(NamedTuple):
    """How much is measured.

    Attributes:
      seeds: trained in one call.
      steps: of each seed.
      rounds: timed calls of each.
      trial_steps: of the trial that chooses the peer's threads.
    """

    seeds: int = 8
    steps: int = 600
    rounds: int = 7
    trial_steps: int = 20


QUICK = Budget(steps=200, rounds=2)


class Problem(NamedTuple):
    """A long-tailed training set for each seed, and the test rows with the labels that each seed has for them."""

    train: Data
    test_x: np.ndarray
    test_y: np.ndarray
    class_counts: np.ndarray


def load(seeds: int) -> Problem:
    """Digits cut to the profile for each seed, classes numbered from the largest to the smallest."""
    pool, test = data.load("digits", "train")[0], data.load("digits", "test")[0]
    trains, labels = [], []
    for seed in range(seeds):
        task = long_tailed.long_tailed_task(
            pool,
            jax.random.key(seed),
            num_classes=CLASSES,
            imbalance=IMBALANCE,
            largest=LARGEST,
            shuffle_classes=True,
        )
        rank = np.argsort(task.order).astype(np.int32)
        x = np.asarray(task.train["x"], np.float32).reshape(len(task.train["y"]), -1)
        trains.append({"x": x, "y": rank[task.train["y"]]})
        labels.append(rank[test["y"]])
    stacked = {name: np.stack([each[name] for each in trains]) for name in ("x", "y")}
    test_x = np.asarray(test["x"], np.float32).reshape(len(test["y"]), -1)
    return Problem(stacked, test_x, np.stack(labels), np.bincount(stacked["y"][0], minlength=CLASSES))


def settings_of(problem: Problem, loss: str, steps: int) -> peer.Settings:
    """What both sides train."""
    prior = np.log(problem.class_counts / problem.class_counts.sum()).astype(np.float32)
    return peer.Settings((64, 64), prior if loss == "balanced_softmax" else None, CLASSES, steps=steps)


def learner_of(problem: Problem, loss: str, settings: peer.Settings) -> Learner:
    """Our side of ``settings``."""
    network = networks.mlp(CLASSES, hidden=settings.hidden)
    optimizer = optax.sgd(settings.learning_rate, settings.momentum)
    return long_tailed.METHODS[loss].make(network, optimizer, class_counts=problem.class_counts)


def our_run(problem: Problem, loss: str, settings: peer.Settings) -> Callable[[int], np.ndarray]:
    """All seeds as a function of the run's key: logits of the test rows, [seeds, tests, classes]."""
    learner, source = learner_of(problem, loss, settings), data.epochs(settings.batch_size)
    predict = jax.jit(lambda states, x: jax.lax.map(lambda state: learner.predict(state, {"x": x})["logits"], states))

    def run(key: int) -> np.ndarray:
        fitted = training.fit(
            learner,
            problem.train,
            source=source,
            key=key,
            steps=settings.steps,
            seeds=len(problem.test_y),
            per_seed=True,
            steps_per_dispatch=settings.steps,
            progress=False,
        )
        return np.asarray(predict(fitted.state, problem.test_x))

    return run


def best_form(problem: Problem, settings: peer.Settings, together: bool) -> dict[str, Any]:
    """The threads, and plain or fused SGD, with which this form of the peer is fastest in a trial, up to 5 %."""
    cores = os.cpu_count() or 1
    forms = list(itertools.product(sorted({1, min(2, cores), cores}), (False, True)))

    def trial(threads: int, fused: bool) -> Callable[[], Any]:
        options = {"first_seed": 0, "threads": threads, "fused": fused, "together": together}
        return lambda: peer.train(problem.train["x"], problem.train["y"], problem.test_x, settings, **options)

    least = {name: each.min() for name, each in in_turn({str(form): trial(*form) for form in forms}, 5).items()}
    # Threads that gain nothing wait for each other on a machine with other work: the fewest of those that are as good.
    threads, fused = next(form for form in forms if least[str(form)] <= 1.05 * min(least.values()))
    return {"threads": threads, "fused": fused}


def against_torch(problem: Problem, budget: Budget) -> dict[str, Any] | str:
    """Both losses on both sides; the reason where there is no torch."""
    if importlib.util.find_spec("torch") is None:
        return WITHOUT_TORCH
    with jax.default_device(jax.devices("cpu")[0]):
        trial = settings_of(problem, "softmax", budget.trial_steps)
        forms = {name: best_form(problem, trial, name == "vmapped") for name in ("loop", "vmapped")}
        compared = {loss: compare(problem, loss, budget, forms) for loss in LOSSES}
    return {"torch_takes": forms, "promised": PROMISED, **compared}


def compare(problem: Problem, loss: str, budget: Budget, forms: dict[str, Any]) -> dict[str, Any]:
    """One loss: seeds per minute, ratios, the first call, and the accuracies."""
    settings, logits = settings_of(problem, loss, budget.steps), dict[str, list[np.ndarray]]()
    ours, numbers = our_run(problem, loss, settings), {name: itertools.count() for name in ("ours", *forms)}

    def our_work() -> None:
        logits.setdefault("ours", []).append(ours(next(numbers["ours"])))

    def torch_work(name: str) -> Callable[[], None]:
        x, y = problem.train["x"], problem.train["y"]

        def work() -> None:
            first, together = next(numbers[name]) * budget.seeds, name == "vmapped"
            found = peer.train(x, y, problem.test_x, settings, first_seed=first, together=together, **forms[name])
            logits.setdefault(name, []).append(found)

        return work

    works = {"ours": our_work, **{name: torch_work(name) for name in forms}}
    first_call = seconds(our_work)  # compiles
    times = in_turn(works, budget.rounds, warm_up=False)
    per_minute = {name: 60 * budget.seeds / float(np.median(each)) for name, each in times.items()}
    print(f"{loss}, seeds per minute: {per_minute}", file=sys.stderr, flush=True)
    return {
        "seeds_per_minute": per_minute,
        "loop_over_ours": quotient(times["loop"], times["ours"]),
        "vmapped_over_ours": quotient(times["vmapped"], times["ours"]),
        "with_compiling": {
            "loop_over_ours": float(np.median(times["loop"])) / first_call,
            "vmapped_over_ours": float(np.median(times["vmapped"])) / first_call,
        },
        "compiling_in_seeds": (first_call - float(np.median(times["ours"]))) * per_minute["loop"] / 60,
        "test_accuracy": {name: judged(problem, np.stack(each)) for name, each in logits.items()},
    }


def judged(problem: Problem, logits: np.ndarray) -> dict[str, float]:
    """Accuracy on the test rows and on the classes with few training rows, means over rounds and seeds.

    Args:
      problem: its labels.
      logits: [rounds, seeds, tests, classes].
    """
    right = logits.argmax(-1) == problem.test_y
    few = np.flatnonzero(np.asarray(long_tailed.class_groups(problem.class_counts)) == 2)
    by_class = [right[:, problem.test_y == one].mean() for one in few]
    return {"accuracy": float(right.mean()), "few": float(np.mean(by_class))}


def short_of_promise(compared: dict[str, Any] | str) -> str | None:
    """The line that says that the promised ratio was not reached; None where it was, or nothing was compared."""
    if isinstance(compared, str):
        return None
    ratios = {loss: compared[loss]["loop_over_ours"]["ratio"] for loss in LOSSES}
    low = [f"{loss} {ratio:.1f}x" for loss, ratio in ratios.items() if ratio < PROMISED]
    return f"below the promised {PROMISED:.0f}x seeds per minute of the loop: {', '.join(low)}" if low else None


@contextmanager
def _without_disk_cache() -> Iterator[None]:
    """Programs are compiled, and not read from the cache on the disk."""
    before = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()  # JAX asks once whether it has a cache
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
        compilation_cache.reset_cache()


def main(config: Config, budget: Budget | None = None) -> None:
    budget = budget or (QUICK if config.quick else Budget())
    problem = load(budget.seeds)
    with _without_disk_cache():
        compared = against_torch(problem, budget)
    trained = {
        "class_counts": problem.class_counts.tolist(),
        "network": "64-64-10",
        "seeds": budget.seeds,
        "steps": budget.steps,
        "batch_size": peer.Settings._field_defaults["batch_size"],
    }
    write("long_tailed", {"quick": config.quick, **trained, "against_torch": compared}, config.out)
    line = short_of_promise(compared)
    if line is not None:
        print(line, file=sys.stderr)


if __name__ == "__main__":
    main(tyro.cli(Config))
