"""What AdaGCN costs: time per epoch against depth beside GCN, GAT and APPNP, and a run beside the released layout.

``python -m experiments.benchmarks.adagcn [--out DIR] [--quick] [--dataset NAME]``; the graph is citeseer where the data
folder has it, else digits_knn, which needs no file.

**Time per epoch against depth** (``time_per_epoch``). An epoch is the same on all sides: one step of Adam on the
training nodes, the accuracy and loss of the stopping nodes after it, and the best state kept; all of a method's epochs
are one compiled scan. Depth is the number of layers of GCN and GAT, of propagations of APPNP, and of hops of AdaGCN,
each with the widths and the dropout of its own paper. AdaGCN's time is that of a whole run, with the propagation of the
features on the host and the rows' way to the device, divided by hops * epochs; ``propagation_share`` is the part of
these two (it falls with the epochs of a hop, which are given). The paper's claim is that AdaGCN's time per epoch is
flat in depth, where that of the others grows: ``growth`` has it. What the figures do not say: a run of AdaGCN trains
its epochs anew for every hop, so that its time in all grows with depth like that of the others; and a GCN or GAT of
depth 1 has no hidden layer, so that ``growth`` also starts from depth 2. Times are given as ratios, to AdaGCN of one
hop in the same round; milliseconds only where they were measured on an accelerator.

**A run beside the released code** (``against_torch``; needs the extra ``bench``). The peer is a transcription of the
released code's arithmetic and dense layout in PyTorch (``_official_adagcn``). Both sides compute the same function:
hops, width, epochs, split, the weighting ``official``, the ReLU on the logits, the L2 terms, Adam, the propagation of
the features included; they differ in the initialisation and in the stream of random numbers. It is always run on the
CPU, with all cores for both, and torch with the number of threads that is best for each layout in a trial before.
``sliced`` is the
peer with the rows of its nodes taken before the network, not after it, so that the part of the speed-up that anyone
gets by slicing rows is told from the rest (``share_of_row_slicing``, of the logarithm). ``rows_quotient`` is the ratio
of rows that the layouts multiply in an epoch, 3 N to 2 n + s for N nodes, n training and s stopping nodes: more than
that slicing alone cannot save. As in the released code on a CPU no best state is restored; nothing then depends on the
stopping nodes, and ours leaves their evaluation out, which the released code makes after every epoch all the same: the
result is the same, the work is not. ``..._restored`` repeats all of it with the best state of every hop restored, where
both sides evaluate: there the work is the same too. The peer
forms h on all nodes, ours on the test nodes, once for each hop. Compiling is not counted; the accuracies, means over
the rounds, are there to show that the same thing was trained.

Ratios are medians over rounds, with their range; in each round everything is called once, in turn.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
import math
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

from experiments.benchmarks import _official_adagcn as official
from experiments.benchmarks._timing import in_turn, quotient, write
from jaxkit import check, data, graphs, networks
from jaxkit.evaluation import Figure, learning_curves, save
from jaxkit.graphs import structure
from jaxkit.learner import Data, Learner, Network

PROMISED = 10.0  # times as fast as the dense transcription
WITHOUT_TORCH = "torch is not installed: python -m pip install -e '.[bench]'"
LEARNING_RATE, L2 = 0.01, 5e-3
WEIGHT_DECAY = {"citeseer": 1e-3}  # elsewhere 1e-4, as in the commands of the released code
TITLES = {"adagcn": "AdaGCN", "gcn": "GCN", "gat": "GAT", "appnp": "APPNP"}


@dataclasses.dataclass(frozen=True)
class Config:
    """Options.

    Attributes:
      out: folder for the result and the figure.
      quick: three depths, and short runs beside torch.
      dataset: a graph of ``python -m jaxkit.data``.
    """

    out: Path | None = None
    quick: bool = False
    dataset: str | None = None


class Budget(NamedTuple):
    """How much is measured.

    Attributes:
      depths: ascending, the first is 1.
      epochs: of each hop of AdaGCN.
      steps: epochs of a baseline in one call.
      rounds: timed calls of each.
      peer_hops: of the run beside torch, and its width, the epochs of a hop and the timed runs.
    """

    depths: tuple[int, ...] = tuple(range(1, 11))
    epochs: int = 100
    steps: int = 20
    rounds: int = 5
    peer_hops: int = 8
    peer_hidden: int = 128
    peer_epochs: int = 100
    peer_rounds: int = 3


QUICK = Budget(depths=(1, 2, 10), peer_epochs=20)


class Problem(NamedTuple):
    """A graph, the classes of its nodes and one split."""

    name: str
    graph: Any
    y: np.ndarray
    split: graphs.Split

    @property
    def classes(self) -> int:
        return int(self.y.max()) + 1

    @property
    def weight_decay(self) -> float:
        return WEIGHT_DECAY.get(self.name, 1e-4)


def load(name: str | None = None) -> Problem:
    """The problem on the first split of the protocol; without a name on citeseer, or on digits_knn where that is not
    here."""
    try:
        arrays, card = data.load(name or "citeseer", None, download=name is not None)
    except check.UsageError:
        if name is not None:
            raise
        arrays, card = data.load("digits_knn", None)
    arrays = graphs.standardize(arrays).arrays
    known = {"known": graphs.KNOWN[card.name]} if card.name in graphs.KNOWN else {}
    split = graphs.ppnp_split(arrays["y"], graphs.TEST_SEEDS[0], **known)
    return Problem(card.name, graphs.build(arrays["x"]), arrays["y"], split)


def hop_rows(problem: Problem, hops: int) -> graphs.HopRows:
    """The rows of all hops that a run reads, propagated on the host."""
    train, stopping, _, test = problem.split
    rows = graphs.hops(problem.graph, hops, np.concatenate([train, stopping, test]))
    parts = np.split(rows, np.cumsum([len(train), len(stopping)]), axis=1)
    y = lambda nodes: jnp.asarray(problem.y[nodes], jnp.int32)
    taken = [jnp.asarray(part) for part in parts]
    return graphs.HopRows(taken[0], y(train), taken[1], y(stopping), taken[2])


def adagcn_run(problem: Problem, hops: int, epochs: int, hidden: int, **rules: Any) -> Callable[[int], graphs.Run]:
    """A whole run as a function of its seed: the propagation, and hops * epochs epochs."""
    boosting = graphs.boosting_of(
        networks.mlp(problem.classes, hidden=(hidden,), bias=False),
        optax.adam(LEARNING_RATE),
        l2=L2,
        weight_decay=problem.weight_decay,
        **rules,
    )
    compiled = jax.jit(lambda rows, key: graphs.run(boosting, rows, key, epochs=epochs))
    return lambda seed: compiled(hop_rows(problem, hops), jax.random.key(seed))


def baseline(problem: Problem, method: str, depth: int) -> tuple[Learner, Data]:
    """A graph network of this depth, trained as in PPNP's protocol, and its data."""
    make: dict[str, Callable[[], Network]] = {
        "gcn": lambda: networks.gcn(problem.classes, hidden=64, depth=depth),
        "gat": lambda: networks.gat(problem.classes, hidden=8, heads=8, depth=depth),
        "appnp": lambda: networks.appnp(problem.classes, hidden=64, hops=depth),
    }
    learner = graphs.node_classification(make[method](), optax.adam(LEARNING_RATE), l2=L2)
    return learner, graphs.node_data(problem.graph, problem.y, problem.split.train, problem.split.stopping)


def training(learner: Learner, batch: Data, steps: int) -> Callable[[], Any]:
    """``steps`` updates on the whole graph as one compiled scan from a fresh state: (state, losses [steps])."""
    key = jax.random.key(0)
    start = jax.jit(learner.init)(key, batch)

    @jax.jit
    def train(state: Any, batch: Data):
        def step(state: Any, number: jax.Array):
            state, metrics = learner.update(state, batch, jax.random.fold_in(key, number))
            return state, metrics["loss"]

        return jax.lax.scan(step, state, jnp.arange(steps))

    return lambda: train(start, batch)


def time_per_epoch(problem: Problem, budget: Budget) -> dict[str, Any]:
    """The first part: every method at every depth, relative to AdaGCN of one hop in the same round."""
    run_of = lambda hops: adagcn_run(problem, hops, budget.epochs, hidden=64)
    unit, unit_ms = run_of(1), []
    relative: dict[str, dict[str, Any]] = {method: {} for method in TITLES}
    shares = {}
    for depth in budget.depths:
        run = unit if depth == 1 else run_of(depth)
        works = {
            "unit": lambda: unit(0),
            "adagcn": lambda: run(0),
            "propagation": lambda: hop_rows(problem, depth),
            **{method: training(*baseline(problem, method, depth), budget.steps) for method in list(TITLES)[1:]},
        }
        times = in_turn(works, budget.rounds)
        unit_ms.append(1e3 * np.median(times["unit"]) / budget.epochs)
        shares[str(depth)] = float(np.median(times["propagation"] / times["adagcn"]))
        for method in TITLES:
            epochs = depth * budget.epochs if method == "adagcn" else budget.steps
            relative[method][str(depth)] = quotient(times[method] / epochs, times["unit"] / budget.epochs)
        said = ", ".join(f"{title} {relative[method][str(depth)]['ratio']:.2f}" for method, title in TITLES.items())
        print(f"depth {depth}: {said} (AdaGCN of one hop = 1)", file=sys.stderr, flush=True)
    results = {
        "graph": problem.name,
        "epochs_of_a_hop": budget.epochs,
        "epochs_of_a_baseline": budget.steps,
        "relative_time": relative,
        "growth": growth(relative, budget.depths),
        "propagation_share": shares,
    }
    if jax.default_backend() != "cpu":
        results["ms_per_epoch_of_adagcn_of_one_hop"] = float(np.median(unit_ms))
    return results


def growth(relative: Mapping[str, Mapping[str, Any]], depths: tuple[int, ...]) -> dict[str, dict[str, float]]:
    """Time per epoch at the last depth over that at depths 1 and 2, where they were measured."""
    last = str(depths[-1])
    return {
        method: {
            f"{last} over {first}": by_depth[last]["ratio"] / by_depth[str(first)]["ratio"]
            for first in (1, 2)
            if first in depths and first != depths[-1]
        }
        for method, by_depth in relative.items()
    }


def figure_of(relative: Mapping[str, Mapping[str, Any]], graph: str) -> Figure:
    """Relative time per epoch against depth."""
    curves = {
        TITLES[method]: ([int(depth) for depth in by_depth], [each["ratio"] for each in by_depth.values()])
        for method, by_depth in relative.items()
    }
    return learning_curves(
        curves, "time per epoch (AdaGCN of one hop = 1)", title=f"Cost of depth on {graph}", xlabel="depth", log_y=True
    )


def against_torch(problem: Problem, budget: Budget) -> dict[str, Any] | str:
    """The second part: a run beside the PyTorch transcription, on the CPU; the reason where there is none."""
    if importlib.util.find_spec("torch") is None:
        return WITHOUT_TORCH
    with jax.default_device(jax.devices("cpu")[0]):
        return _against_torch(problem, budget)


def _against_torch(problem: Problem, budget: Budget) -> dict[str, Any]:
    graph, y, (train, stopping, _, test) = problem.graph, problem.y, problem.split
    features, adjacency = np.array(structure.dense_nodes(graph)), structure.matrix(graph)
    layers, epochs, hidden = budget.peer_hops, budget.peer_epochs, budget.peer_hidden
    correct: dict[str, list[float]] = {}

    def judged(name: str, logits: Any) -> None:
        correct.setdefault(name, []).append(float(np.mean(np.asarray(logits).argmax(-1) == y[test])))

    def peer(seed: int = 0, **options: Any) -> dict[str, Any]:
        given = {"layers": layers, "epochs": epochs, "hidden": hidden, "seed": seed, **options}
        decay = problem.weight_decay
        return official.run(features, adjacency, y, train, stopping, reg=L2, weight_decay=decay, **given)

    def best_threads(slice_rows: bool) -> dict[str, Any]:
        tried = {
            str(threads): lambda threads=threads: peer(layers=1, epochs=10, threads=threads, slice_rows=slice_rows)
            for threads in sorted({1, min(2, os.cpu_count() or 1), os.cpu_count() or 1})
        }
        times = {threads: float(np.median(times)) for threads, times in in_turn(tried, 3).items()}
        best = min(times, key=lambda threads: times[threads])
        return {"taken": int(best), "relative_time": {threads: time / times[best] for threads, time in times.items()}}

    threads = {"dense": best_threads(False), "sliced": best_threads(True)}

    def torch_work(name: str, **options: Any) -> Callable[[], None]:
        layout, seeds = ("sliced" if options.get("slice_rows") else "dense"), itertools.count()
        taken = threads[layout]["taken"]
        return lambda: judged(name, peer(next(seeds), threads=taken, **options)["logits"][test])

    def our_work(name: str, restore: str) -> Callable[[], None]:
        run = adagcn_run(problem, layers, epochs, hidden, weighting="official", restore=restore, output_relu=True)
        seeds = itertools.count()
        jax.block_until_ready(run(0))  # compiles
        return lambda: judged(name, jax.block_until_ready(run(next(seeds))).logits.sum(0))

    works = {
        "ours": our_work("ours", "none"),
        "dense": torch_work("dense"),
        "sliced": torch_work("sliced", slice_rows=True),
        "ours_restored": our_work("ours_restored", "hop"),
        "dense_restored": torch_work("dense_restored", restore=True),
        "sliced_restored": torch_work("sliced_restored", slice_rows=True, restore=True),
    }
    times = in_turn(works, budget.peer_rounds, warm_up=False)
    middle = {name: float(np.median(each)) for name, each in times.items()}
    return {
        "graph": problem.name,
        "hops": layers,
        "epochs_of_a_hop": epochs,
        "hidden": hidden,
        "torch_threads": threads,
        "dense_over_ours": quotient(times["dense"], times["ours"]),
        "sliced_over_ours": quotient(times["sliced"], times["ours"]),
        "dense_over_ours_restored": quotient(times["dense_restored"], times["ours_restored"]),
        "share_of_row_slicing": slicing_share(middle["dense"], middle["sliced"], middle["ours"]),
        "share_of_row_slicing_restored": slicing_share(
            middle["dense_restored"], middle["sliced_restored"], middle["ours_restored"]
        ),
        "rows_quotient": 3 * len(y) / (2 * len(train) + len(stopping)),
        "promised": PROMISED,
        "test_accuracy": {name: float(np.mean(each)) for name, each in correct.items()},
    }


def slicing_share(dense: float, sliced: float, ours: float) -> float | None:
    """log(dense / sliced) / log(dense / ours) of three times; None where ours is not the faster one."""
    return math.log(dense / sliced) / math.log(dense / ours) if ours < dense else None


def short_of_promise(compared: dict[str, Any] | str) -> str | None:
    """The line that says that the promised ratio was not reached; None where it was, or nothing was compared."""
    if isinstance(compared, str) or compared["dense_over_ours"]["ratio"] >= PROMISED:
        return None
    ratio = compared["dense_over_ours"]["ratio"]
    return f"below the promised {PROMISED:.0f}x: one run is {ratio:.1f} times as fast as the dense transcription"


def main(config: Config, budget: Budget | None = None, problem: Problem | None = None) -> None:
    budget = budget or (QUICK if config.quick else Budget())
    problem = problem or load(config.dataset)
    depth = time_per_epoch(problem, budget)
    compared = against_torch(problem, budget)
    write("adagcn", {"quick": config.quick, "time_per_epoch": depth, "against_torch": compared}, config.out)
    if config.out is not None:
        save(figure_of(depth["relative_time"], problem.name), config.out / "adagcn-depth.png", most_bytes=100_000)
    line = short_of_promise(compared)
    if line is not None:
        print(line, file=sys.stderr)


if __name__ == "__main__":
    main(tyro.cli(Config))
