"""AdaGCN: boosting or not? The paper's algorithm, its released code and its baselines under PPNP's protocol.

Every weighting of AdaGCN is a row under its own name, on the same splits, so that the table says what the gain comes
from. Hyper-parameters are the released code's, but for the width (128, not 5000), the hops (8) and the epochs (100 a
hop, not 500) of the standard preset. Stopping nodes choose the best state of each hop; test nodes choose nothing.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

from experiments import _adagcn_report as report
from experiments import _adagcn_rows
from experiments.runner import Cell, Context, Options, Study, choices, run
from jaxkit import check

WEIGHTINGS = ("samme_r", "uniform", "official", "inverted", "shuffled")
GRAPH_NETWORKS = ("gcn", "gat", "appnp", "ppnp", "jknet", "gcnii", "mixhop")
METHODS = ("adagcn", "released", "mlp", "hop_regression", "sgc", *GRAPH_NETWORKS)
DATASETS = ("citeseer", "cora_ml", "pubmed", "ms_academic", "cora", "digits_knn", "karate",
            "planetoid_cora", "planetoid_citeseer", "planetoid_pubmed")  # fmt: skip
EMBEDDED = "digits_knn"
DEPTH_METHODS = ("adagcn", "gcn", "sgc", "appnp")
PROTOCOL_SPLITS = 20
SLOWLY = 3  # times as many epochs for APPNP and PPNP: on Cora-ML they still rise after 200


class Paper(NamedTuple):
    """The commands of the released code's README."""

    layers: int
    hidden: int
    dropout: float
    weight_decay: float


PAPER = {
    "citeseer": Paper(15, 5000, 0.0, 1e-3),
    "cora_ml": Paper(12, 5000, 0.0, 1e-4),
    "pubmed": Paper(20, 5000, 0.2, 1e-4),
    "ms_academic": Paper(5, 3000, 0.2, 1e-4),
}
RELEASED = {"weighting": "official", "restore": "none", "output_relu": True}
ELSEWHERE = Paper(12, 5000, 0.0, 1e-4)  # for graphs that the README does not have: Cora-ML's


@dataclasses.dataclass(frozen=True)
class Config(Options):
    """AdaGCN, its ablations and its baselines on graphs with few labels, or on your own graph."""

    methods: tuple[str, ...] = METHODS
    """adagcn, released (AdaGCN as its released code computes it on a CPU: the weighting official, a ReLU on the
    logits, no best state restored), mlp, hop_regression, sgc, gcn, gat, appnp, ppnp, jknet, gcnii, mixhop."""
    weighting: tuple[str, ...] = WEIGHTINGS
    """Of adagcn: samme_r (the paper's), uniform, official (the released code's weights), inverted, shuffled."""
    dataset: tuple[str, ...] = ("auto",)
    """citeseer, cora_ml, pubmed, ms_academic, cora, digits_knn, karate, planetoid_cora, planetoid_citeseer,
    planetoid_pubmed; auto: citeseer where it can be had, else digits_knn, which is embedded."""
    labels_per_class: tuple[str, ...] = ("20",)
    """Training nodes of each class; several (5,10,20) make a setting each."""
    splits: int = 20
    """Splits of the protocol for AdaGCN and for networks on precomputed features (it has 20)."""
    graph_splits: int = 5
    """The same for networks that propagate at every step, which cost more."""
    seeds: int = 1
    """Initialisations of each split; the interval is over splits."""
    layers: int | None = 8
    """Hops of AdaGCN; None: those of the released code for this data set."""
    hidden: int | None = 64
    """Width of AdaGCN's network; None: as released."""
    epochs: int = 100
    """Epochs of each hop."""
    graph_epochs: int = 300
    """Epochs of a baseline at most; it stops after 100 without an improvement on the stopping nodes. APPNP and PPNP,
    which learn slowly, have three times as many."""
    weight_decay: float | None = None
    """Of AdaGCN; None: as released for this data set."""
    dropout: float | None = None
    """Of AdaGCN's features; None: as released for this data set."""
    restore: str = "hop"
    """The state a hop ends with: the best of the hop, or the released code's: of the run (GPU), none (CPU)."""
    depths: tuple[int, ...] = ()
    """Depths of the figure of accuracy against depth, drawn for the first data set: those of adagcn, gcn, sgc and appnp
    that are among the methods; one initialisation a split."""
    depth_splits: int = 3
    """Splits of that figure."""
    output_relu: bool = False
    """A ReLU on AdaGCN's logits, as in the released code."""
    validation: bool = False
    """Measure on the validation nodes of the protocol's 20 other splits: for choosing hyper-parameters."""
    data: Path | None = None
    """Your own nodes: a table with an id, features and a label (empty where unknown); needs --edges."""
    edges: Path | None = None
    """Your own edges: a table with two columns of node ids."""
    known: int | None = None
    """Nodes whose labels may be seen; None: the protocol's 1500, two thirds on a small graph."""
    stopping: int | None = None
    """Nodes for early stopping; None: the protocol's 500, a third of the known ones on a small graph."""


QUICK = ("adagcn", "mlp", "hop_regression", "sgc", "gcn")
PRESETS = {
    "tour": Config(
        methods=("adagcn", "hop_regression", "sgc", "gcn"),
        weighting=("samme_r", "uniform", "official"),
        splits=3,
        graph_splits=3,
        layers=5,
        epochs=50,
        graph_epochs=100,
    ),
    "quick": Config(methods=QUICK, splits=5, graph_splits=5, epochs=60, graph_epochs=200),
    "standard": Config(
        dataset=("citeseer", "cora_ml"),
        hidden=128,
        graph_splits=3,
        graph_epochs=200,
        depths=tuple(range(1, 11)),
        depth_splits=1,
    ),
    "paper": Config(
        dataset=("citeseer", "cora_ml", "pubmed", "ms_academic"),
        graph_splits=20,
        seeds=5,
        layers=None,
        hidden=None,
        epochs=500,
        graph_epochs=10_000,
        depths=tuple(range(1, 11)),
        depth_splits=20,
    ),
}


def cells(config: Config) -> list[Cell]:
    """One cell for each (data set, labels a class, method or weighting), then those of the depth figure."""
    for name in ("splits", "graph_splits", "epochs", "graph_epochs", "depth_splits"):
        check.count(f"--{name.replace('_', '-')}", getattr(config, name))
    for name in ("layers", "hidden", "known", "stopping"):
        if getattr(config, name) is not None:
            check.count(f"--{name}", getattr(config, name))
    for name, high in (("weight_decay", 1.0), ("dropout", 0.99)):
        if getattr(config, name) is not None:
            check.number(f"--{name.replace('_', '-')}", getattr(config, name), 0.0, high)
    for name in ("splits", "graph_splits", "depth_splits"):
        if getattr(config, name) > PROTOCOL_SPLITS:
            raise check.UsageError(f"--{name.replace('_', '-')}: the protocol has {PROTOCOL_SPLITS} split seeds")
    restore = check.choose("--restore", config.restore, ("hop", "run", "none"))
    methods = choices("method", config.methods, METHODS)
    weightings = choices("weighting", config.weighting, WEIGHTINGS)
    common = {"validation": config.validation, "known": config.known, "stopping": config.stopping}
    made, asked = [], labels_asked(config)
    for name, source in settings(config).items():
        if name.startswith("planetoid_") and (asked != (20,) or config.known or config.stopping):
            raise check.UsageError(f"{name} has a fixed split: leave out --labels-per-class, --known and --stopping")
        for labels in asked:
            shared = {**common, **source, "labels": labels, "seeds": config.seeds}
            boosted = {**resolved(config, name)._asdict(), "epochs": config.epochs}
            asked_for = {"restore": restore, "output_relu": config.output_relu}
            for method in methods:
                setting = titled(name, labels, config.validation)
                if method == "adagcn":
                    for weighting in weightings:
                        options = {**shared, **boosted, **asked_for, "weighting": weighting, "splits": config.splits}
                        made.append(Cell(setting, f"adagcn_{weighting}", options))
                elif method == "released":
                    options = {**shared, **boosted, **RELEASED, "splits": config.splits}
                    made.append(Cell(setting, "released", options))
                else:
                    splits = config.graph_splits if method in GRAPH_NETWORKS else config.splits
                    epochs = config.graph_epochs * (SLOWLY if method in ("appnp", "ppnp") else 1)
                    options = {**shared, "graph_epochs": epochs, "splits": splits}
                    made.append(Cell(setting, method, options | _width(config, name, method)))
        first = not any(cell.method.endswith("_depth") for cell in made)
        for method in [one for one in DEPTH_METHODS if one in methods] if config.depths and first else ():
            shared = {**common, **source, "labels": asked[0], "seeds": 1, "splits": config.depth_splits}
            depths = sorted({check.count("--depths", depth) for depth in config.depths})
            epochs = {**boosted, **asked_for} if method == "adagcn" else {"graph_epochs": config.graph_epochs}
            made.append(Cell(f"{name}, depth", f"{method}_depth", {**shared, **epochs, "depths": depths}))
    return made


def settings(config: Config) -> dict[str, dict[str, Any]]:
    """The data sets asked for, each with what tells its content."""
    if (config.data is None) != (config.edges is None):
        raise check.UsageError("your own graph needs both --data (a table of nodes) and --edges (a table of edges)")
    if config.data is not None:
        from experiments._adagcn_runs import own, sums_of

        sums = sums_of(config)
        own(config.edges, config.data, sums)  # what is wrong with it is said before anything runs
        return {f"own: {config.data.name}": dict(zip(("nodes", "edges"), sums, strict=True))}
    return {_found(name): {} for name in choices("dataset", config.dataset, ("auto", *DATASETS))}


def _found(name: str) -> str:
    """``auto`` is citeseer where it is here or comes from the network, else the embedded graph."""
    if name != "auto":
        return name
    from jaxkit import data

    try:
        data.get("citeseer")
    except check.UsageError:
        return EMBEDDED
    return "citeseer"


def labels_asked(config: Config) -> tuple[int, ...]:
    """The numbers of training nodes a class: whole numbers, commas too."""
    words = [word.strip() for text in config.labels_per_class for word in text.split(",") if word.strip()]
    if not words or not all(word.isdecimal() and int(word) > 0 for word in words):
        raise check.UsageError(
            f"--labels-per-class takes whole numbers above 0 such as 5,10,20, got {' '.join(config.labels_per_class)!r}"
        )
    return tuple(dict.fromkeys(int(word) for word in words))


def resolved(config: Config, name: str) -> Paper:
    """AdaGCN's settings for a data set: those asked for, and the released code's for the others."""
    paper = PAPER.get(name, ELSEWHERE)
    given = {field: getattr(config, field) for field in Paper._fields}
    return paper._replace(**{field: value for field, value in given.items() if value is not None})


def _width(config: Config, name: str, method: str) -> dict[str, int]:
    return {"hidden": resolved(config, name).hidden} if method == "mlp" else {}


def titled(name: str, labels: int, validation: bool) -> str:
    """The setting's name; 20 labels a class and the test nodes are the protocol's and go without saying."""
    words = [name] + [f"{labels} labels a class"] * (labels != 20) + ["validation nodes"] * validation
    return ", ".join(words)


def run_cell(cell: Cell, config: Config, context: Context) -> dict[str, Any]:
    """One method on all splits of one setting."""
    from types import SimpleNamespace

    from experiments import _adagcn_runs as runs

    graph = runs.prepared(cell.setting.split(",")[0] if config.data is None else "", config)
    options = SimpleNamespace(**cell.options)
    todo = runs.cases(graph, config, options.labels, options.splits)
    about = {
        "notes": list(graph.notes),
        "nodes": len(graph.y),
        "fixed": graph.fixed is not None,
        "sizes": [len(todo[0].train), len(todo[0].stopping), len(todo[0].asked)],
        "architecture": runs.architecture(cell.method.removesuffix("_depth"), graph, options),
    }
    if cell.method.endswith("_depth"):
        found = runs.run_depths(cell.method.removesuffix("_depth"), graph, todo, options, context.workdir)
        shown = ", ".join(f"{depth}: {sum(v) / len(v):.3f}" for depth, v in zip(options.depths, found["depth"]))
        return {**found, **about, "headline": f"accuracy at depth {shown}"}
    if cell.method.startswith("adagcn_") or cell.method == "released":
        found = runs.run_adagcn(graph, todo, options.weighting, options, context.workdir, context.profile)
    else:
        found = runs.run_baseline(cell.method, graph, todo, options, context.workdir, profile=context.profile)
    mean = sum(found["test"]) / len(found["test"])
    what = "validation" if config.validation else "test"
    return {**found, **about, "headline": f"{what} accuracy {100 * mean:.2f} % over {len(todo)} splits"}


def seconds(cell: Cell, config: Config) -> float:
    """Roughly how long a cell takes on two CPU cores; a step's time was measured on Cora-ML."""
    small = 0.2 if cell.setting.startswith(("digits", "karate", "own")) else 1.0
    options, method = cell.options, cell.method.removesuffix("_depth")
    runs = options["splits"] * options["seeds"]
    if method.startswith("adagcn") or method == "released":
        layers = max(options.get("depths", [options["layers"]]))
        share = 0.5 if method == "released" else 1.0  # it keeps no best state, so it looks at no stopping nodes
        return 8 + share * runs * layers * options["epochs"] * small * (0.002 + 1.5e-5 * options["hidden"])
    step = {"mlp": 0.003, "sgc": 0.002, "hop_regression": 0.004, "gcn": 0.014, "gat": 0.025, "appnp": 0.018,
            "ppnp": 0.015, "jknet": 0.033, "gcnii": 0.08, "mixhop": 0.048}[method]  # fmt: skip
    depths = options.get("depths", [1])
    share = sum(1 + depth / 5 for depth in depths) if method == "gcn" and len(depths) > 1 else len(depths)
    return share * (3 + runs * 0.8 * options["graph_epochs"] * step * small)


STUDY = Study(
    name="adagcn",
    title="AdaGCN: boosting or not?",
    one_line="AdaGCN, its released code and its baselines on citation graphs; what its gain comes from.",
    Config=Config,
    presets=PRESETS,
    cells=cells,
    run_cell=run_cell,
    rows=_adagcn_rows.rows,
    figures=report.figures,
    tables=report.tables,
    remarks=report.remarks,
    notes=report.notes,
    seconds=seconds,
    not_reproduced="below the paper preset at most 8 hops, 128 hidden units and 100 epochs a hop, not 15, 5000 and "
    "500; the paper's adaptive threshold for the number of layers; Reddit.",
)

if __name__ == "__main__":
    raise SystemExit(run(STUDY))
