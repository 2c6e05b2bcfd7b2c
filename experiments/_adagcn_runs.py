"""What a cell of the AdaGCN study computes: a graph under the protocol, and runs of one method over its splits."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.first_steps import fingerprint
from experiments.runner import Skip
from jaxkit import check, data, graphs, networks, training
from jaxkit.evaluation.files import write_atomic
from jaxkit.learner import Learner
from jaxkit.training.progress import trace

LEARNING_RATE = {"sgc": 0.2, "hop_regression": 0.2}  # of SGC's released code; of the others 0.01, as in PPNP
L2 = {  # factors of |W_0|^2 / 2 and of |theta|^2 / 2: the released codes' and papers'
    "mlp": {"l2": 5e-3},
    "hop_regression": {"weight_decay": 5e-5},
    "sgc": {"weight_decay": 5e-5},
    "gcn": {"l2": 5e-4},
    "gat": {"l2": 0.0, "weight_decay": 5e-4},
    "appnp": {"l2": 5e-3},
    "ppnp": {"l2": 5e-3},
    "jknet": {"l2": 0.0, "weight_decay": 5e-4},
    "gcnii": {"l2": 0.0, "weight_decay": 5e-4},
    "mixhop": {"l2": 0.0, "weight_decay": 5e-4},
}
HOPS = {"sgc": 2, "hop_regression": 4}
PATIENCE = 100
SMALL = 2000  # with fewer labelled nodes than this the protocol's 1500 known nodes would leave too few for testing


class Prepared(NamedTuple):
    """A graph ready for the protocol.

    Attributes:
      name: of the data set.
      graph: normalised.
      y: labels, -1 where there is none.
      classes: how many.
      notes: what was done to the graph.
      fixed: the one split of a Planetoid graph, else None.
      key: what tells graphs of one name apart.
    """

    name: str
    graph: Any
    y: np.ndarray
    classes: int
    notes: tuple[str, ...]
    fixed: graphs.Split | None
    key: tuple[str, ...] = ()


@functools.lru_cache(maxsize=2)
def named(name: str) -> Prepared | str:
    """A data set by name, or why it cannot be had (kept, so that a machine without a network is asked once)."""
    try:
        arrays, _ = data.load(name)
    except check.UsageError as error:
        return str(error)
    return _prepared(name, arrays)


@functools.lru_cache(maxsize=2)
def own(edges: Path, nodes: Path, sums: tuple[str, ...]) -> Prepared:
    """A graph of the user's own; ``sums`` of its files tell one content from another."""
    arrays, _ = data.from_edges(edges, nodes)
    return _prepared(f"own: {nodes.name}", arrays)._replace(key=sums)


def _prepared(name: str, arrays: dict[str, Any]) -> Prepared:
    split = arrays.get("split")
    made = graphs.standardize(arrays, largest_component=split is None)
    fixed = None if split is None else graphs.planetoid_split(made.arrays["split"])
    y = np.asarray(made.arrays["y"])
    return Prepared(name, graphs.build(made.arrays["x"]), y, int(y.max()) + 1, made.notes, fixed)


def prepared(setting: str, config: Any) -> Prepared:
    """The graph of a cell; Skip says why it is not here."""
    found = own(config.edges, config.data, sums_of(config)) if config.data is not None else named(setting)
    if isinstance(found, str):
        raise Skip(found)
    return found


def sums_of(config: Any) -> tuple[str, ...]:
    """SHA-256 of the user's files."""
    return fingerprint(config.data), fingerprint(config.edges)


def sizes(graph: Prepared, config: Any) -> tuple[int, int]:
    """(known, stopping) nodes: the protocol's, or on a small graph two thirds of the labelled nodes and a third of
    these."""
    labelled = int((graph.y >= 0).sum())
    usual = labelled >= SMALL or graph.name in graphs.KNOWN
    known = graphs.KNOWN.get(graph.name, 1500) if usual else round(2 / 3 * labelled)
    known = known if config.known is None else config.known
    return known, config.stopping if config.stopping is not None else 500 if usual else known // 3


class Case(NamedTuple):
    """One split: the nodes to train on, to stop by, and to measure on, and the numbers of its initialisations."""

    train: np.ndarray
    stopping: np.ndarray
    asked: np.ndarray
    inits: tuple[int, ...]


def cases(graph: Prepared, config: Any, labels: int, splits: int) -> list[Case]:
    """The splits of a cell; on a fixed split, as many times its initialisations. Skip where one cannot be drawn."""
    known, stopping = sizes(graph, config)
    made = []
    for number, seed in enumerate(graphs.split_seeds(splits, test=not config.validation)):
        if graph.fixed is not None:
            split = graph.fixed
        else:
            try:
                split = graphs.ppnp_split(graph.y, seed, labels_per_class=labels, stopping=stopping, known=known)
            except check.UsageError as error:
                raise Skip(str(error)) from None
        inits = tuple(range(number * config.seeds, (number + 1) * config.seeds))
        asked = split.validation if config.validation else split.test
        made.append(Case(split.train, split.stopping, asked, inits))
    return made


_hop_cache: dict[tuple[Any, ...], np.ndarray] = {}


def hops_of(graph: Prepared, layers: int) -> np.ndarray:
    """Every hop of all nodes, kept for the next cell of the same graph (one graph at a time)."""
    place = (graph.name, graph.key, layers)
    if place not in _hop_cache:
        _hop_cache.clear()
        _hop_cache[place] = graphs.hops(graph.graph, layers)
    return _hop_cache[place]


def over_cases(each: Callable[[Case], dict[str, Any]], todo: Sequence[Case], workdir: Path) -> dict[str, list]:
    """``each`` for every split, gathered by name; what is done is saved after each split and not done again."""
    saved = workdir / "splits.json"
    done: list[dict[str, Any]] = json.loads(saved.read_text()) if saved.exists() else []
    for case in todo[len(done) :]:
        done.append(each(case))
        write_atomic(saved, json.dumps(done))
    return {name: [one[name] for one in done] for name in done[0]}


def _accuracy(logits: jax.Array, y: np.ndarray) -> np.ndarray:
    return (np.asarray(logits).argmax(-1) == y).mean(-1)


def run_adagcn(
    graph: Prepared, todo: Sequence[Case], weighting: str, settings: Any, workdir: Path, profile: Path | None = None
) -> dict[str, list]:
    """AdaGCN by its compiled form, split by split.

    ``settings`` has layers, hidden, epochs, dropout, weight_decay, restore, output_relu. Per split, means over inits:
    ``test``, ``stopping`` (accuracy of the ensemble), ``depth`` and ``single`` (test accuracy of the ensemble of the
    first l + 1 hops, and of hop l alone), ``best_hop`` (test accuracy of the hop that the stopping nodes choose) and
    its ``best_hop_stopping``, ``ess`` (effective sample size with which each hop was trained).
    """
    signal = hops_of(graph, settings.layers)
    network = networks.mlp(graph.classes, hidden=(settings.hidden,), bias=False)
    rules = graphs.boosting_of(
        network,
        optax.adam(0.01),
        weighting=weighting,
        restore=settings.restore,
        output_relu=settings.output_relu,
        dropout=settings.dropout,
        weight_decay=settings.weight_decay,
    )
    train = jax.jit(lambda rows, key: graphs.run(rules, rows, key, epochs=settings.epochs)._replace(params=()))
    asked: dict[bytes, jax.Array] = {}  # the test nodes are the same in every split

    def rows_of(case: Case) -> graphs.HopRows:
        same = case.asked.tobytes()
        if same not in asked:
            asked.clear()
            asked[same] = jnp.asarray(signal[:, case.asked])
        label = lambda part: jnp.asarray(graph.y[part])
        cut = lambda part: jnp.asarray(signal[:, part])
        return graphs.HopRows(cut(case.train), label(case.train), cut(case.stopping), label(case.stopping), asked[same])

    def each(case: Case) -> dict[str, Any]:
        rows, found = rows_of(case), []
        for init in case.inits:
            with trace(profile if init == 1 else None):  # the first has the compilation in it
                out = jax.block_until_ready(train(rows, jax.random.key(init)))
            if not bool(jnp.isfinite(out.loss).all()):
                raise training.NonFiniteError(f"the loss of AdaGCN ({weighting}) is not finite")
            single = _accuracy(out.logits, graph.y[case.asked])
            depth = _accuracy(graphs.ensemble(out.logits), graph.y[case.asked])
            stopping = _accuracy(graphs.ensemble(out.stopping_logits), graph.y[case.stopping])
            best = int(np.argmax(out.accuracy))
            found.append(
                {
                    "test": depth[-1],
                    "stopping": stopping[-1],
                    "depth": depth,
                    "single": single,
                    "best_hop": single[best],
                    "best_hop_stopping": out.accuracy[best],
                    "ess": jax.vmap(graphs.effective_sample_size)(out.weights),
                }
            )
        return {name: np.mean([one[name] for one in found], axis=0).tolist() for name in found[0]}

    return over_cases(each, todo, workdir)


def baseline(method: str, graph: Prepared, settings: Any, depth: int | None = None) -> tuple[Any, Any]:
    """(learner or plan, its graph) of a baseline; ``depth`` is layers, or hops of propagation for SGC and APPNP."""
    optimizer = optax.adam(LEARNING_RATE.get(method, 0.01))
    how: dict[str, Any] = {**L2[method], "patience": PATIENCE}
    if method == "mlp":
        return graphs.node_mlp(
            networks.mlp(graph.classes, (settings.hidden,), bias=False), optimizer, **how
        ), graph.graph
    if method in HOPS:
        make = {"sgc": graphs.sgc, "hop_regression": graphs.hop_regression}[method]
        hops = HOPS[method] if depth is None else depth
        return make(networks.mlp(graph.classes, hidden=()), optimizer, hops=hops, **how), graph.graph
    alpha = 0.2 if graph.name == "ms_academic" else 0.1
    options: dict[str, Any] = {"appnp": {"alpha": alpha}}.get(method, {})
    if depth is not None:
        options["hops" if method == "appnp" else "depth"] = depth
    world = graphs.with_pagerank(graph.graph, alpha) if method == "ppnp" else graph.graph
    return graphs.node_classification(networks.make(method, graph.classes, **options), optimizer, **how), world


def run_baseline(
    method: str,
    graph: Prepared,
    todo: Sequence[Case],
    settings: Any,
    workdir: Path,
    depth: int | None = None,
    profile: Path | None = None,
) -> dict[str, list]:
    """A baseline through ``fit``, split by split; test and stopping accuracy of its best state, means over inits."""
    made, world = baseline(method, graph, settings, depth)
    is_plan = not isinstance(made, Learner)
    learner = made[-1].learner if is_plan else made
    source = None if is_plan else data.full_batch(whole=True)
    predict = jax.jit(learner.predict)

    def each(case: Case) -> dict[str, Any]:
        given = graphs.node_data(world, graph.y, case.train, case.stopping)
        found = []
        for init in case.inits:
            how = {"source": source, "progress": False, "profile": profile if init == 0 else None}
            fitted = training.fit(made, given, key=init, steps=settings.graph_epochs, **how)
            accuracy = lambda rows: float(
                _accuracy(predict(fitted.state, {"x": graphs.Nodes(jnp.asarray(rows), world)})["logits"], graph.y[rows])
            )
            found.append({"test": accuracy(case.asked), "stopping": accuracy(case.stopping)})
        return {name: float(np.mean([one[name] for one in found])) for name in found[0]}

    return over_cases(each, todo, workdir)


def run_depths(
    method: str, graph: Prepared, todo: Sequence[Case], settings: Any, workdir: Path
) -> dict[str, list[list[float]]]:
    """``depth``: test accuracies [depth][split] at ``settings.depths``.

    AdaGCN of every depth is one run, because its sum over fewer hops is AdaGCN of fewer layers; a baseline of depth d
    has d layers, or for SGC and APPNP d hops of propagation.
    """
    if method == "adagcn":
        settings.layers = max(settings.depths)
        out = run_adagcn(graph, todo, "samme_r", settings, workdir)
        return {"depth": [[split[depth - 1] for split in out["depth"]] for depth in settings.depths]}
    found = []
    for depth in settings.depths:
        folder = workdir / f"depth{depth}"
        found.append(run_baseline(method, graph, todo, settings, folder, depth)["test"])
    return {"depth": found}


class Architecture(NamedTuple):
    """What the table of architectures says of a method.

    Attributes:
      parameters: of the network; of all hops together for AdaGCN.
      per_step: sums over the edges of the graph in one forward pass, counted in its program.
      before: propagations of all features outside the training steps.
    """

    parameters: int
    per_step: int
    before: int


def architecture(method: str, graph: Prepared, settings: Any) -> dict[str, int]:
    """The architecture of a method on a graph, read off its shapes and its program."""
    if method.startswith("adagcn") or method == "released":
        layers = max(getattr(settings, "depths", [settings.layers]))
        width = graph.graph.nodes.shape[1]
        one = width * settings.hidden + settings.hidden * graph.classes
        return Architecture(layers * one, 0, layers - 1)._asdict()
    made, world = baseline(method, graph, settings)
    rows = np.flatnonzero(graph.y >= 0)
    given = graphs.node_data(world, graph.y, rows[:1], rows[1:2])
    if not isinstance(made, Learner):
        (stage,) = made
        state = jax.eval_shape(stage.begin, None, given, jax.random.key(0))
        return Architecture(_size(state.inner.params), 0, HOPS.get(method, 0))._asdict()
    state = jax.eval_shape(made.init, jax.random.key(0), given)
    nodes = jax.eval_shape(graphs.dense_nodes, world)  # a product with sparse features is no sum over edges
    dense = given["x"]._replace(graph=world._replace(nodes=nodes))
    program = jax.make_jaxpr(made.predict)(state, {"x": dense})
    return Architecture(_size(state.params), edge_sums(program.jaxpr), 0)._asdict()


def _size(params: Any) -> int:
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params))


def edge_sums(program: Any) -> int:
    """How many segment sums (scatter-add) a program makes, those in the body of a scan as often as it runs."""
    total = 0
    for equation in program.eqns:
        if equation.primitive.name == "scatter-add":
            total += 1
        times = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
        for value in equation.params.values():
            for inner in value if isinstance(value, (tuple, list)) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    total += times * edge_sums(inner)
    return total
