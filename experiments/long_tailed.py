"""Long-tailed learning: every method of the survey under one protocol, with relative accuracy, on small long tails.

All methods of a setting share data, network, optimizer, batch size and number of steps; seed i of each sees the same
training rows, the same order of classes and the same test rows, so that differences are paired. Nothing is chosen on
test rows: every setting is its paper's or its code's, the same for all data.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments import _long_tailed_report as report
from experiments import _long_tailed_rows as table
from experiments.first_steps import fingerprint
from experiments.runner import Cell, Context, Options, Study, choices, run
from jaxkit import check


class Setting(NamedTuple):
    """A data set cut to a long tail, and how everything is trained on it.

    Attributes:
      classes: how many.
      pool: training rows that every class has at least.
      largest: of the long tail.
      imbalance: the largest class over the smallest.
      network: of ``_long_tailed_runs.network_of``.
      steps: of a method in all.
      batch_size: rows of a step.
      learning_rate: of SGD with momentum.
      groups: many, medium and few by training rows (``shots``), or in thirds where a group would hold one class.
      shuffle: whether each seed draws which class is large.
    """

    classes: int
    pool: int
    largest: int
    imbalance: float
    network: str
    steps: int
    batch_size: int = 64
    learning_rate: float = 0.05
    groups: str = "shots"
    shuffle: bool = True


SETTINGS = {
    "digits": Setting(10, 124, 120, 60.0, "mlp", 600, groups="rank"),
    "mnist5k": Setting(10, 400, 400, 100.0, "convnet", 600),
    "fashion_mnist": Setting(10, 6000, 1000, 100.0, "convnet", 1200),
    "features": Setting(10, 500, 500, 100.0, "linear", 600),
    "cifar10_lt": Setting(10, 5000, 5000, 100.0, "resnet32", 19_400, 128, 0.1, shuffle=False),
    "cifar100_lt": Setting(100, 500, 500, 100.0, "resnet32", 17_000, 128, 0.1, shuffle=False),
    "imagenet_lt": Setting(1000, 1280, 1280, 256.0, "resnet32", 90_000, 256, 0.1, shuffle=False),
}
FEATURE_METHODS = (*table.OWN_METHODS, "lws", "ncm")
COST = {  # of a step, in steps of softmax
    "ride": 3.0, "sade": 3.0, "reslt": 3.0, "bbn": 4.0, "lfme": 2.5, "paco": 3.5, "rsg": 1.5, "ssp": 2.0, "m2m": 3.0,
}  # fmt: skip
STEP_SECONDS = {"mlp": 0.00015, "linear": 0.0004, "convnet": 0.0033, "resnet32": 0.5}  # of 64 rows, one seed


@dataclasses.dataclass(frozen=True)
class Config(Options):
    """Methods for long-tailed data, or your own data and the methods that apply to it."""

    settings: tuple[str, ...] = ("digits",)
    """digits, mnist5k, fashion_mnist, features (a linear head on EfficientNet's features of CIFAR-10: softmax,
    balanced_softmax, logit_adjustment, crt, lws, tau_norm, ncm); for a GPU cifar10_lt, cifar100_lt, imagenet_lt."""
    methods: tuple[str, ...] = ()
    """Names, or losses, decoupled, posthoc, augmentation, representation, ensembles, all. By default the preset's: tour
    six, quick losses, decoupled and posthoc, standard all; for --data the five cheapest."""
    steps: int | None = None
    """Training steps of a method; None: the setting's."""
    imbalance: float | None = None
    """Rows of the largest class over those of the smallest; None: the setting's."""
    largest: int | None = None
    """Rows of the largest class; None: the setting's."""
    tail: str = "exponential"
    """The profile of the class counts: exponential, step, pareto."""
    groups: str = "auto"
    """Many, medium and few: shots (above 100, 20 to 100, below 20 training rows), rank (thirds of the classes), or
    auto: shots, on digits rank, because by shots one of its ten classes is many-shot."""
    relative: bool = True
    """Train on the balanced twin too, for relative accuracy."""
    agnostic: bool = False
    """Rows for test sets that are long-tailed themselves (forward, backward at 50, 10, 2)."""
    data: Path | None = None
    """Your own data: an .npz or .csv file, or a folder with one folder of images for each class."""


PRESETS = {
    "tour": Config(seeds=3),
    "quick": Config(seeds=8),
    "standard": Config(settings=("mnist5k", "fashion_mnist", "features"), seeds=5, agnostic=True),
    "paper": Config(settings=("cifar10_lt", "cifar100_lt", "imagenet_lt"), seeds=3, agnostic=True),
}


def cells(config: Config) -> list[Cell]:
    """One cell for each (setting, training); a correction of a trained model is a read-out of its cell."""
    if config.steps is not None:
        check.count("--steps", config.steps, 10)
    if config.imbalance is not None:
        check.number("--imbalance", config.imbalance, 1.0)
    if config.largest is not None:
        check.count("--largest", config.largest)
    tail = check.choose("--tail", config.tail, ("exponential", "step", "pareto"))
    groups = check.choose("--groups", config.groups, ("auto", "shots", "rank"))
    catalogue = table.catalogue()
    made: list[Cell] = []
    for name, known, source in settings_of(config):
        shape = {
            "imbalance": float(known.imbalance if config.imbalance is None else config.imbalance),
            "largest": known.largest if config.largest is None else config.largest,
            "tail": tail,
        }
        if config.data is None and shape["largest"] > known.pool:
            raise check.UsageError(f"--largest {shape['largest']}: a class of {name} has {known.pool} rows to train on")
        options = {
            "seeds": config.seeds,
            "steps": known.steps if config.steps is None else config.steps,
            "groups": known.groups if groups == "auto" else groups,
            "relative": config.relative and config.data is None,
            **{key: getattr(known, key) for key in ("network", "batch_size", "learning_rate", "shuffle")},
            **(shape if config.data is None else source),
        }
        rows = [m for m in table.methods_of(config) if name != "features" or m in FEATURE_METHODS]
        if not rows:
            raise check.UsageError(f"on features this study runs {', '.join(FEATURE_METHODS)}; name some of them")
        trained = {catalogue[method].training for method in rows} | ({"softmax"} if options["relative"] else set())
        title = titled(name, known, options)
        made += [Cell(title, method, options) for method in catalogue if method in trained]
    return made


def settings_of(config: Config) -> list[tuple[str, Setting, dict[str, Any]]]:
    """The settings asked for, or the user's data as one: (name, what it is, what tells its content)."""
    if config.data is None:
        return [(name, SETTINGS[name], {}) for name in choices("setting", config.settings, SETTINGS)]
    if config.imbalance is not None or config.largest is not None or config.tail != "exponential":
        raise check.UsageError("--imbalance, --largest and --tail cut a data set; --data is taken as it is")
    from experiments import _long_tailed_data as tasks

    checksum = fingerprint(config.data)
    task = tasks.own_task(config.data, checksum, config.seeds)  # what is wrong with it is said before anything runs
    rows = int(task.counts.sum())
    network = "convnet" if task.train["x"].ndim == 5 else "mlp"
    steps = min(max(600, 30 * rows // 64), 3000)
    groups = "shots" if min(table.group_sizes(task.counts, "shots")) > 1 else "rank"
    known = Setting(task.counts.size, 0, int(task.counts[0]), 1.0, network, steps, min(64, rows), groups=groups)
    return [(f"own: {config.data.name}", known, {"data": str(config.data), "sha256": checksum})]


def titled(name: str, known: Setting, options: dict[str, Any]) -> str:
    """The setting with what is not its own: imbalance, tail, groups."""
    said = [name]
    if options.get("imbalance", known.imbalance) != known.imbalance:
        said.append(f"imbalance {options['imbalance']:g}")
    if options.get("largest", known.largest) != known.largest:
        said.append(f"largest {options['largest']}")
    if options.get("tail", "exponential") != "exponential":
        said.append(options["tail"])
    if options["groups"] != known.groups:
        said.append(f"groups by {options['groups']}")
    return ", ".join(said)


def run_cell(cell: Cell, config: Config, context: Context) -> dict[str, Any]:
    """One training of every seed on the long tail, one on the balanced twin, and what is read off them."""
    from types import SimpleNamespace

    from experiments import _long_tailed_runs as runs

    options = SimpleNamespace(**cell.options)
    task = task_of(cell)
    readouts = {"": lambda logits, counts: logits}
    readouts |= {name: runs.adjusted for name, row in table.catalogue().items() if row.posthoc == cell.method}
    found = runs.train_and_measure(cell.method, task, options, readouts, context)
    mean = 100 * sum(found["readouts"][""]["accuracy"]) / options.seeds
    about = {
        "counts": task.counts.tolist(),
        "names": list(task.names),
        "digests": list(task.digests),
        "test_rows": int(task.test["y"].shape[1]),
        "source": task.source,
    }
    return {**found, **about, "headline": f"accuracy {mean:.1f} %, fits {100 * min(found['fit']['tail']):.1f} %"}


def task_of(cell: Cell) -> Any:
    """The data of a cell."""
    from experiments import _long_tailed_data as tasks

    options = cell.options
    if "data" in options:
        return tasks.own_task(Path(options["data"]), options["sha256"], options["seeds"])
    cut = {name: options[name] for name in ("seeds", "largest", "imbalance", "tail", "shuffle")}
    return tasks.task_of(cell.setting.split(",")[0], **cut)


def said(config: Config, todo: Sequence[Cell]) -> list[str]:
    """What is printed before the first cell: how many trainings there are, and for own data its tail."""
    from jaxkit.long_tailed import describe, plan_trainings

    lines = report.tail_profile(task_of(todo[0]), todo[0].options["groups"]) if config.data is not None else []
    trainings: list[Any] = []
    for setting in dict.fromkeys(cell.setting for cell in todo):
        members = [cell for cell in todo if cell.setting == setting]
        options, names = members[0].options, [cell.method for cell in members]
        # Softmax is among the methods wherever it is needed, and not here where it was done before.
        relative = {"relative": options["relative"], "vanilla": names[0]}
        trainings += plan_trainings(names, seeds=options["seeds"], data=(setting,), **relative)
    return [*lines, describe(trainings)]


def seconds(cell: Cell, config: Config) -> float:
    """Roughly how long a cell takes on two CPU cores: compiling, and steps as they were measured there.

    The twin is trained at the same time as the long tail, on the other core.
    """
    options = cell.options
    step = STEP_SECONDS[options["network"]] * COST.get(cell.method, 1.0) * options["batch_size"] / 64
    return (1.2 if options["relative"] else 1.0) * (4.0 + options["seeds"] * options["steps"] * step)


STUDY = Study(
    name="long_tailed",
    title="Long-tailed learning: the survey's methods under one protocol",
    one_line="Methods for long-tailed data: many-, medium-, few-shot and relative accuracy; or your own data.",
    Config=Config,
    presets=PRESETS,
    cells=cells,
    run_cell=run_cell,
    rows=table.rows,
    figures=report.figures,
    tables=report.tables,
    remarks=report.remarks,
    notes=report.notes,
    seconds=seconds,
    said=said,
    wide=("accuracy",),
    not_reproduced="ImageNet-LT, Places-LT and iNaturalist with ResNet-50, ResNet-152 and ResNeXt-50, to which the "
    "survey's figures belong; what of each method is not here stands in METHODS[name].not_reproduced.",
)

if __name__ == "__main__":
    raise SystemExit(run(STUDY))
