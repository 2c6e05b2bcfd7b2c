"""Class-incremental learning: every method of the survey under one protocol, both read-outs, memory as you like it.

Classes come task after task, and the rows of the old ones are gone but for exemplars. All methods of a setting share
data, network, optimizer, epochs and batch size; order i of the classes, and the split that goes with it, is the same
for all methods, so that differences are paired. Nothing is chosen on test rows: every setting of a method is its
paper's or its code's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments import _class_incremental_report as report
from experiments import _class_incremental_rows as table
from experiments import _class_incremental_search as search
from experiments import run_folder
from experiments.first_steps import fingerprint
from experiments.runner import Cell, Context, Options, Study, choices, run
from jaxkit import check


class Setting(NamedTuple):
    """A stream of classes and how everything is trained on it.

    Attributes:
      classes: how many.
      rows: of each class for training, drawn for each order; at least so many there are.
      all_rows: whether a class is taken whole where it has more.
      shape: of a row.
      increment: classes of a task.
      network: of ``_class_incremental_budget.network_of``.
      memory: exemplars in all, the settings that are run.
      epochs: over the rows of a task.
      batch_size: rows of a step.
      learning_rate, weight_decay: of SGD with momentum 0.9.
      storage: of exemplars.
    """

    classes: int
    rows: int
    all_rows: bool
    shape: tuple[int, ...]
    increment: int
    network: str
    memory: tuple[int, ...]
    epochs: float
    batch_size: int = 32
    learning_rate: float = 0.1
    weight_decay: float = 5e-4
    storage: str = "uint8"


SETTINGS = {
    "digits": Setting(10, 124, True, (8, 8, 1), 2, "mlp", (50, 20), 40, 32, 0.07, 1e-3),
    "mnist5k": Setting(10, 400, True, (28, 28, 1), 2, "convnet", (200,), 20, 64, 0.05),
    "fashion_mnist": Setting(10, 1000, False, (28, 28, 1), 2, "convnet", (200,), 15, 64, 0.05),
    "features": Setting(10, 500, True, (1280,), 2, "linear", (200,), 20, 32, 0.05, 0.0, "float32"),
    "cifar10_features": Setting(10, 5000, True, (1280,), 2, "linear", (2000,), 5, 128, 0.05, 0.0, "float32"),
    "cifar10": Setting(10, 5000, True, (32, 32, 3), 2, "resnet32", (2000,), 170, 128, 0.1),
    "cifar100": Setting(100, 500, True, (32, 32, 3), 10, "resnet32", (2000,), 170, 128, 0.1),
}
STEP_SECONDS = {"mlp": 0.00012, "linear": 0.0003, "convnet": 0.0033, "vit7": 0.03, "vit4": 0.1, "resnet32": 0.5}
"""Of a step of one order with the setting's batch, on two CPU cores."""
COST = {
    "der": 2.5, "memo": 2.2, "foster": 2.5, "gem": 3.0, "agem": 3.0, "podnet": 2.0, "coil": 1.6, "rmm": 2.5,
    "aanets": 2.5, "dytox": 2.5, "icarl": 1.3, "wa": 1.3, "bic": 1.4, "lucir": 1.6, "lwf": 1.3, "derpp": 2.0,
}  # fmt: skip
RECIPE_EPOCHS = 170
COMPILING = {"mlp": 5.0, "linear": 4.0, "convnet": 12.0, "vit7": 20.0, "vit4": 20.0, "resnet32": 60.0}


@dataclasses.dataclass(frozen=True)
class Config(Options):
    """Methods for classes that come task after task, or your own data and the methods that apply to it."""

    settings: tuple[str, ...] = ("digits",)
    """digits, mnist5k, fashion_mnist, features (linear heads on EfficientNet's features of 500 rows a class of
    CIFAR-10), cifar10_features (of all its rows, which are computed once); for a GPU cifar10, cifar100."""
    methods: tuple[str, ...] = ()
    """Names, or the survey's categories (data_replay, knowledge_distillation, ...), or all. By default the preset's:
    tour five, quick nine, standard all; balanced_replay with --long-tailed."""
    seeds: int = 8
    """How many orders of the classes, each with its own split and its own first parameters."""
    memory: tuple[int, ...] = ()
    """Exemplars in all, one or more; none given: the setting's."""
    increment: int | None = None
    """Classes of a task; None: the setting's."""
    base: int = 0
    """Classes of the first task; 0: as many as of the others."""
    budget: str = "fixed"
    """fixed: the same exemplars for every method; aligned:der: as many as make it as large as DER; curve: accuracy
    against memory, from the size of a single network to that of DER."""
    long_tailed: float | None = None
    """Rows of the largest class over those of the smallest; None: no long tail."""
    epochs: float | None = None
    """Over the rows of a task; None: the setting's."""
    recipe: str = "study"
    """study: SGD at the setting's one rate; paper: the survey's text, 170 epochs, the rate a tenth after 80 and 120;
    code: its released code, where every method has its own epochs and rates."""
    search_policy: bool = False
    """Search the rates of rmm on pseudo-tasks of training rows before it trains; else they are the published ones."""
    data: Path | None = None
    """Your own data: an .npz or .csv file, or a folder with one folder of images for each class."""


PRESETS = {
    "tour": Config(seeds=4, memory=(20,)),
    "quick": Config(seeds=8),
    "standard": Config(settings=("mnist5k", "fashion_mnist", "features"), seeds=3),
    "paper": Config(settings=("cifar10", "cifar100"), seeds=3, recipe="paper"),
}


def cells(config: Config) -> list[Cell]:
    """One cell for each method and memory; one for all memories where a method keeps no exemplars."""
    from experiments._class_incremental_budget import shares_of
    from jaxkit import class_incremental as cil

    for size in config.memory:
        check.count("--memory", size)
    if config.epochs is not None:
        check.positive("--epochs", config.epochs)
    if config.long_tailed is not None:
        check.number("--long-tailed", config.long_tailed, 1.0)
    if not config.memory == tuple(dict.fromkeys(config.memory)):
        raise check.UsageError(f"--memory names {config.memory} twice; give each size once")
    recipe = check.choose("--recipe", config.recipe, ("study", *cil.RECIPES))
    known_methods, made = table.catalogue(), []
    for name, known, source in settings_of(config):
        increment = known.increment if config.increment is None else check.count("--increment", config.increment)
        bounds = cil.bounds_of(known.classes, increment, check.count("--base", config.base, 0))
        if len(bounds) < 2:
            raise check.UsageError(f"--increment {increment} leaves one task of {known.classes} classes; take fewer")
        title = titled(name, known, config, increment)
        partial = config.long_tailed is not None or check.fold(config.budget) != "fixed" or bool(source)
        methods = table.methods_of(config, known.network)
        if not methods:
            raise check.UsageError(f"none of the methods asked for runs on {name}: {table.what_runs(known.network)}")
        search.check_methods(config, methods, name)
        options = {
            "stream": title, "seeds": config.seeds, "increment": increment, "base": config.base,
            "rows": None if known.all_rows else known.rows, "long_tailed": config.long_tailed, "partial": partial,
            "epochs": known.epochs if config.epochs is None else config.epochs,
            "batch_size": known.batch_size, "learning_rate": known.learning_rate, "weight_decay": known.weight_decay,
            **source,
        }  # fmt: skip
        if recipe != "study":
            options |= {"recipe": recipe, "epochs": config.epochs}
        patch = 7 if known.shape[0] % 7 == 0 else 4
        kind = lambda method, known=known, patch=patch: f"vit{patch}" if method in table.PICTURES else known.network
        free = {**options, "memory": None, "width": None}
        made += [Cell(title, m, {**free, "network": kind(m)}) for m in methods if not known_methods[m].exemplars]
        memory = config.memory or known.memory
        shares = shares_of(config.budget, memory, known.network, known.shape, known.storage, len(bounds))
        for share in shares:
            for method in (m for m in methods if known_methods[m].exemplars):
                size, width = share.give(method)
                check_memory(size, known, bounds, partial)
                own = {"memory": size, "width": width, "network": kind(method), **search.asked(config, method)}
                made.append(Cell(f"{title}, {share.label}", method, {**options, **own}))
    return made


def check_memory(size: int, known: Setting, bounds: tuple[int, ...], partial: bool) -> None:
    """Whether so many exemplars can be kept.

    Raises:
      UsageError: fewer than one for each class, or more of a class than it has rows.
    """
    if size < bounds[-1]:
        raise check.UsageError(f"--memory {size} is less than one exemplar for each of {bounds[-1]} classes")
    if not partial and size // bounds[0] > known.rows:
        raise check.UsageError(
            f"--memory {size}: {size // bounds[0]} exemplars of each class after the first task, of {known.rows} rows; "
            "take a smaller memory"
        )


def settings_of(config: Config) -> list[tuple[str, Setting, dict[str, Any]]]:
    """The settings asked for, or the user's data as one: (name, what it is, what tells its content)."""
    if config.data is None:
        return [(name, SETTINGS[name], {}) for name in choices("setting", config.settings, SETTINGS)]
    if config.long_tailed is not None:
        raise check.UsageError("--long-tailed cuts a data set; --data is taken as it is")
    from experiments import _class_incremental_data as tasks

    checksum = fingerprint(config.data)
    increment = 2 if config.increment is None else config.increment
    task = tasks.own_task(config.data, checksum, config.seeds, increment, config.base)  # says what is wrong with it
    rows, classes, shape = task.train["y"].shape[1], task.stream.num_classes, task.train["x"].shape[2:]
    network = "convnet" if len(shape) == 3 else "mlp"
    memory = max(classes, min(20 * classes, rows // 5))
    known = Setting(classes, 1, True, shape, 2, network, (memory,), 40, min(32, rows // classes), storage=task.storage)
    return [(f"own: {config.data.name}", known, {"data": str(config.data), "sha256": checksum})]


def titled(name: str, known: Setting, config: Config, increment: int) -> str:
    """The stream of a setting with what is not its own."""
    said = [name]
    if increment != known.increment or config.base:
        said.append(f"B{config.base}-{increment}")
    if config.long_tailed is not None:
        said.append(f"long tail {config.long_tailed:g}")
    if config.epochs is not None and config.epochs != known.epochs:
        said.append(f"{config.epochs:g} epochs")
    if check.fold(config.recipe) != "study":
        said.append(f"{check.fold(config.recipe)} recipe")
    return ", ".join(said)


def run_cell(cell: Cell, config: Config, context: Context) -> dict[str, Any]:
    """One training on all orders at once, and what is measured after each task."""
    from experiments import _class_incremental_runs as runs

    task = task_of(cell)
    found = runs.in_pairs(cell, following(cell, config, context), task_of, context)
    mean = lambda read_out: 100 * sum(seen[-1] for seen in found["curves"][read_out]["seen"]) / len(task.orders)
    about = {
        "bounds": list(task.stream.bounds),
        "orders": task.orders.tolist(),
        "train_rows": int(task.train["y"].shape[1]),
        "test_rows": int(task.test["y"].shape[1]),
        "source": task.source,
    }
    headline = f"last {mean('classifier'):.1f} %, nearest mean {mean('nearest_mean'):.1f} %"
    return {**found, **about, "headline": headline}


def following(cell: Cell, config: Config, context: Context) -> Cell | None:
    """The next cell of the grid that is not done; None where there is none, or a trace is written."""
    grid = cells(config)
    for other in grid[grid.index(cell) + 1 :] if cell in grid and context.profile is None else ():
        record = context.workdir.parent / f"{run_folder.cell_id(STUDY.name, other)}.json"
        if not record.exists() or run_folder.read_json(record)["status"] != "done":
            return other
    return None


def task_of(cell: Cell) -> Any:
    """The data of a cell."""
    from experiments import _class_incremental_data as tasks

    o = cell.options
    if "data" in o:
        return tasks.own_task(Path(o["data"]), o["sha256"], o["seeds"], o["increment"], o["base"])
    name = o["stream"].split(",")[0]
    return tasks.task_of(name, o["seeds"], o["rows"], o["increment"], o["base"], o["long_tailed"])


def said(config: Config, todo: Sequence[Cell]) -> list[str]:
    """What is printed before the first cell: how many trainings there are, and for own data its classes."""
    lines = []
    if config.data is not None:
        task = task_of(todo[0])
        sizes = ", ".join(map(str, task.stream.sizes))
        lines.append(f"{task.stream.num_classes} classes, {task.train['y'].shape[1]:,} training rows; tasks of {sizes}")
    orders = config.seeds
    lines.append(f"{len(todo)} trainings of {orders} order{'s' * (orders != 1)} of the classes each")
    return lines + search.said(todo)


def seconds(cell: Cell, config: Config) -> float:
    """Roughly how long a cell takes on two CPU cores: compiling, and steps as they were measured there."""
    o = cell.options
    known = SETTINGS.get(o["stream"].split(",")[0])
    classes, rows = (10, 100) if known is None else (known.classes, known.rows)
    tasks = max(classes // o["increment"], 1)
    seen = classes * rows * ((tasks + 1) / 2 if cell.method == "joint" else 1) + (tasks - 1) * (o["memory"] or 0)
    steps = (o["epochs"] or RECIPE_EPOCHS) * seen / o["batch_size"]
    step = STEP_SECONDS[o["network"]] * COST.get(cell.method, 1.0)
    searched = search.times(cell)
    return COMPILING[o["network"]] * (4 if searched else 1) + (1 + searched) * o["seeds"] * steps * step


STUDY = Study(
    name="class_incremental",
    title="Class-incremental learning: the survey's methods under one protocol",
    one_line="Classes come task after task: accuracy, forgetting, both read-outs, memory made equal; or your own data.",
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
    wide=("average", "last", "last_ncm"),
    not_reproduced="CIFAR-100 and ImageNet with ResNet-32 and ResNet-18, to which the survey's figures belong, without "
    "a GPU and the data; its per-method learning-rate schedules; what of each method is not here stands in "
    "METHODS[name].not_reproduced.",
)

if __name__ == "__main__":
    raise SystemExit(run(STUDY))
