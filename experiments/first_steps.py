"""First steps: empirical risk minimisation on three small image sets, beside scikit-learn and published numbers.

Every method is trained on the training rows for a fixed number of steps, and its row in the table is measured on the
test rows after the last one: nothing is chosen by the test rows. Digits are split as in scikit-learn's own example
(first half, second half), so that its published accuracy stands beside ours on the same rows.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments.runner import Cell, Context, Options, Outcome, Skip, Study, choices, run
from jaxkit import check

HIDDEN = (256, 256)


class Entry(NamedTuple):
    """A method of this study: what the table calls it, whose it is, and whether its result depends on a seed."""

    title: str
    kind: str
    seeded: bool = True


METHODS = {
    "mlp": Entry("ERM, MLP", "jaxkit"),
    "convnet": Entry("ERM, ConvNet", "jaxkit"),
    "sklearn_mlp": Entry("MLPClassifier (scikit-learn)", "scikit-learn"),
    "svm": Entry("kernel SVM (scikit-learn)", "scikit-learn", seeded=False),
}
SETTINGS = ("digits", "mnist5k", "fashion_mnist")
STEP_SECONDS = {"mlp": 0.0025, "convnet": 0.012, "sklearn_mlp": 0.0025}  # of 128 rows of 28x28
LEAST_SEEDS = 3  # below it a t test says next to nothing
SVM_ROWS = 12_000  # above it the kernel matrix makes an hour of a minute


class Published(NamedTuple):
    """A number in print: where it stands, and how far from it still counts as reproduced (None: not judged)."""

    value: float
    tag: str
    tolerance: float | None = None


PUBLISHED = {
    ("digits", "svm"): Published(0.97, "scikit-learn documentation, plot_digits_classification", 0.005),
    ("fashion_mnist", "sklearn_mlp"): Published(
        0.871, "Fashion-MNIST README, MLPClassifier (100), full set, from memory"
    ),
    ("fashion_mnist", "convnet"): Published(0.876, "Fashion-MNIST README, 2 conv + pooling, full set, from memory"),
}


@dataclasses.dataclass(frozen=True)
class Config(Options):
    """ERM on small image sets, or on your own data."""

    methods: tuple[str, ...] = tuple(METHODS)
    """mlp, convnet, sklearn_mlp (the same network in scikit-learn), svm."""
    settings: tuple[str, ...] = SETTINGS
    """Data sets: digits, mnist5k, fashion_mnist."""
    steps: int = 300
    """Training steps of a method."""
    train_rows: int | None = None
    """Use so many training rows at most (drawn at random, the same for every method)."""
    test_rows: int | None = None
    """Use so many test rows at most."""
    batch_size: int = 128
    """Rows of a step."""
    learning_rate: float = 1e-3
    """Of Adam."""
    data: Path | None = None
    """Your own labelled data, a file or a folder, instead of the data sets; a fifth of each class is held out."""


PRESETS = {
    "tour": Config(seeds=3, steps=80, train_rows=2000, test_rows=1000, methods=("mlp", "convnet", "svm")),
    "quick": Config(seeds=8, steps=250, train_rows=4000, test_rows=1000),
    "standard": Config(seeds=8, steps=6000),
    "paper": Config(seeds=8, steps=24_000),
}


def cells(config: Config) -> list[Cell]:
    """One cell for each (data set, method); all seeds of a method are one compiled program."""
    check.count("--steps", config.steps), check.count("--batch-size", config.batch_size)
    check.positive("--learning-rate", config.learning_rate)
    for name in ("train_rows", "test_rows"):
        if getattr(config, name) is not None:
            check.count(f"--{name.replace('_', '-')}", getattr(config, name), 10)
    methods = choices("method", config.methods, METHODS)
    if config.data is not None:
        settings: tuple[str, ...] = (f"own: {config.data.name}",)
        source = {"data": str(config.data), "sha256": fingerprint(config.data)}
        own_data(config.data)  # what is wrong with it is said before anything runs
    else:
        settings, source = choices("setting", config.settings, SETTINGS), {}
    made = []
    for setting in settings:
        for method in methods:
            options = {
                name: getattr(config, name)
                for name in ("steps", "train_rows", "test_rows", "batch_size", "learning_rate")
            }
            seeds = config.seeds if METHODS[method].seeded else 1
            made.append(Cell(setting, method, {**options, **source, "seeds": seeds}))
    return made


def fingerprint(path: Path) -> str:
    """SHA-256 of a file, or of the names and sizes in a folder."""
    if not path.exists():
        raise check.UsageError(f"--data {path}: no such file or folder")
    digest = hashlib.sha256()
    if path.is_dir():
        for file in sorted(path.rglob("*")):
            digest.update(f"{file.relative_to(path)} {file.stat().st_size}\n".encode())
    else:
        with path.open("rb") as file:
            while piece := file.read(1 << 20):
                digest.update(piece)
    return digest.hexdigest()


class Rows(NamedTuple):
    """Training and test rows of a setting (x float32, in [0, 1] for images; y int32), and how they were split."""

    train: dict[str, Any]
    test: dict[str, Any]
    split: str


@functools.lru_cache(maxsize=4)
def own_data(path: Path) -> Rows:
    """The user's own data: a fifth of each class held out."""
    from jaxkit import data

    (train, card), (test, _) = (data.from_file(path, split=split) for split in ("train", "test"))
    if card.task != "classification":
        raise check.UsageError(f"--data {path}: the targets are floats; this study needs classes")
    try:
        data.check_data(train, num_classes=len(card.classes))
    except check.UsageError as error:
        raise check.UsageError(f"--data {path}: {error}") from None
    return Rows(train, test, "a fifth of each class held out, evenly spaced")


def read_rows(setting: str) -> Rows:
    """The rows of a data set; Skip says how to get one that is not here."""
    found = _read(setting)
    if isinstance(found, str):
        raise Skip(found)
    return found


@functools.lru_cache(maxsize=4)
def _read(setting: str) -> Rows | str:
    """The rows, or why they cannot be had (kept too: a machine without a network is asked once, not for each cell)."""
    from jaxkit import data

    if setting == "digits":  # in the order of scikit-learn's file, as its example splits it
        from sklearn.datasets import load_digits

        digits = load_digits()
        x, y = (digits.images[..., None] / 16).astype("float32"), digits.target.astype("int32")
        half = len(y) // 2
        return Rows({"x": x[:half], "y": y[:half]}, {"x": x[half:], "y": y[half:]}, "first half, second half")
    try:
        train, test = data.load(setting, "train")[0], data.load(setting, "test")[0]
    except check.UsageError as error:
        return str(error)
    mine = "jaxkit's split" if setting == "mnist5k" else "the official split"
    return Rows(train, test, mine)


def limited(rows: Rows, train_rows: int | None, test_rows: int | None) -> Rows:
    """At most so many rows of each part, drawn at random once for all methods and seeds."""
    import numpy as np

    def draw(part: dict[str, Any], limit: int | None, seed: int) -> dict[str, Any]:
        if limit is None or limit >= len(part["y"]):
            return part
        chosen = np.sort(np.random.default_rng(seed).choice(len(part["y"]), limit, replace=False))
        return {name: values[chosen] for name, values in part.items()}

    return Rows(draw(rows.train, train_rows, 0), draw(rows.test, test_rows, 1), rows.split)


def run_cell(cell: Cell, config: Config, context: Context) -> dict[str, Any]:
    """Train one method on one data set with all its seeds."""
    whole = own_data(config.data) if config.data is not None else read_rows(cell.setting)
    rows = limited(whole, config.train_rows, config.test_rows)
    if cell.method == "convnet" and rows.train["x"].ndim != 4:
        shape = list(rows.train["x"].shape[1:])
        raise Skip(f"a ConvNet needs images [height, width, channels]; the rows of this data are {shape}")
    part = len(rows.train["y"]) < len(whole.train["y"])
    cut = part or len(rows.test["y"]) < len(whole.test["y"])
    runs = (
        _jaxkit(cell, rows, config, context) if METHODS[cell.method].kind == "jaxkit" else _sklearn(cell, rows, config)
    )
    sizes = {"train_rows": len(rows.train["y"]), "test_rows": len(rows.test["y"]), "split": rows.split}
    sizes |= {"part": part, "cut": cut}
    mean = sum(runs["accuracy"]) / len(runs["accuracy"])
    return {**runs, **sizes, "headline": f"accuracy {mean:.4f}, {len(runs['accuracy'])} x {sizes['train_rows']:,} rows"}


def _jaxkit(cell: Cell, rows: Rows, config: Config, context: Context) -> dict[str, Any]:
    from jaxkit import evaluation, networks, training
    from jaxkit.data import epochs
    from jaxkit.supervised import erm

    classes = int(rows.train["y"].max()) + 1
    settings = {"hidden": HIDDEN} if cell.method == "mlp" else {}
    network = networks.make(cell.method, num_classes=classes, **settings)
    learner = erm(network, training.optimizer("adam", config.learning_rate))
    source = epochs(min(config.batch_size, len(rows.train["y"])))
    measure = training.Evaluation(rows.test, evaluation.classification, every=max(1, config.steps // 10))
    folders = {"workdir": context.workdir, "resume": context.resume, "profile": context.profile}
    how = {"steps": config.steps, "seeds": config.seeds, "eval": measure, **folders}
    fitted = training.fit(learner, rows.train, key=0, source=source, **how)
    evals = fitted.history.evals
    return {
        "accuracy": evals["accuracy"][:, -1].tolist(),
        "ece": evals["ece"][:, -1].tolist(),
        "steps": fitted.history.eval_steps.tolist(),
        "curve": evals["accuracy"].tolist(),
    }


def _sklearn(cell: Cell, rows: Rows, config: Config) -> dict[str, Any]:
    """The same question asked of scikit-learn, on the same rows."""
    import warnings

    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPClassifier
    from sklearn.svm import SVC
    from threadpoolctl import threadpool_limits

    flat = lambda part: part["x"].reshape(len(part["y"]), -1)
    if cell.method == "svm":
        if len(rows.train["y"]) > SVM_ROWS:
            raise Skip(f"the kernel SVM grows with the square of the rows; it runs up to {SVM_ROWS:,} (--train-rows)")
        # gamma = 0.001 on pixels of 0..16 is 0.001 * 16^2 on pixels of 0..1; elsewhere scikit-learn's own default.
        model = SVC(gamma=0.001 * 16**2 if cell.setting == "digits" else "scale")
        return {
            "accuracy": [float(model.fit(flat(rows.train), rows.train["y"]).score(flat(rows.test), rows.test["y"]))]
        }
    per_epoch = max(1, len(rows.train["y"]) // config.batch_size)
    scores = []
    for seed in range(config.seeds):
        model = MLPClassifier(
            HIDDEN,
            batch_size=min(config.batch_size, len(rows.train["y"])),
            learning_rate_init=config.learning_rate,
            alpha=0.0,
            max_iter=max(1, round(config.steps / per_epoch)),
            n_iter_no_change=config.steps,
            tol=0.0,
            random_state=seed,
        )
        # Two BLAS threads that wait for each other are slower than one on matrices this small.
        with threadpool_limits(1), warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # the number of steps is the budget, not convergence
            scores.append(float(model.fit(flat(rows.train), rows.train["y"]).score(flat(rows.test), rows.test["y"])))
    return {"accuracy": scores}


def seconds(cell: Cell, config: Config) -> float:
    """Roughly how long a cell takes on two CPU cores, from the times of a step that were measured there."""
    small = cell.setting == "digits"
    if cell.method == "svm":
        return 0.5 if small else 10.0
    step = {"mlp": 0.001, "convnet": 0.0023, "sklearn_mlp": 0.001} if small else STEP_SECONDS
    compiling = 5.0 if METHODS[cell.method].kind == "jaxkit" else 0.0
    return compiling + config.seeds * config.steps * step[cell.method]


def named_setting(setting: str, outcomes: Sequence[Outcome]) -> str:
    """The setting with the number of training rows where they are a part only: never taken for the whole."""
    sizes = [one.result for one in outcomes if one.result is not None and one.cell.setting == setting]
    part = next((one["train_rows"] for one in sizes if one["part"]), None)
    return setting if part is None else f"{setting}, {part:,} rows"


def rows(config: Config, outcomes: Sequence[Outcome]) -> list[Any]:
    """Accuracy of every cell, calibration error of ours."""
    from jaxkit.evaluation import make_row

    made = []
    for one in outcomes:
        setting, method = named_setting(one.cell.setting, outcomes), METHODS[one.cell.method].title
        published = PUBLISHED.get((one.cell.setting, one.cell.method))
        known = {} if published is None else published._asdict()
        comparable = one.result is None or not one.result["cut"]
        made.append(
            make_row(
                "first_steps",
                setting,
                method,
                "accuracy",
                one.result and one.result["accuracy"],
                comparable=comparable,
                **_as_row(known),
            )
        )
        if one.result is not None and "ece" in one.result:
            made.append(make_row("first_steps", setting, method, "calibration error", one.result["ece"]))
    return made


def _as_row(published: dict[str, Any]) -> dict[str, Any]:
    return {{"value": "published"}.get(name, name): value for name, value in published.items()}


def figures(config: Config, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """All accuracies with their intervals, and for each data set the learning curves."""
    from jaxkit.evaluation import bars_with_published, learning_curves

    drawn = {
        "accuracy": (bars_with_published(rows(config, outcomes), "accuracy"), "Test accuracy, mean and 95 % interval.")
    }
    trained = [one for one in outcomes if "curve" in one.result]
    for setting in dict.fromkeys(one.cell.setting for one in trained):
        members = [one for one in trained if one.cell.setting == setting]
        curves = {METHODS[one.cell.method].title: (one.result["steps"], one.result["curve"]) for one in members}
        title, result = named_setting(setting, outcomes), members[0].result
        figure = learning_curves(curves, "test accuracy", title=title)
        name = "curves_" + re.sub(r"[^a-z0-9]+", "_", setting.lower()).strip("_")
        drawn[name] = (
            figure,
            f"{title}: {result['train_rows']:,} training and {result['test_rows']:,} test rows ({result['split']}).",
        )
    return drawn


def notes(config: Config, outcomes: Sequence[Outcome]) -> str:
    """How the numbers were made, and on which rows."""
    done = {one.cell.setting: one.result for one in outcomes if one.result is not None}
    sizes = [f"{name} {r['train_rows']:,} and {r['test_rows']:,} ({r['split']})" for name, r in done.items()]
    return (
        "Accuracy on the test rows after the last step (nothing is chosen by them), mean and 95 % interval over seeds. "
        "MLPClassifier is the same network, optimiser, batch size and number of epochs in scikit-learn; the kernel SVM "
        f"has no seed. Training and test rows: {'; '.join(sizes)}."
        + "".join(f" {one}" for one in comparisons(outcomes))
    )


def comparisons(outcomes: Sequence[Outcome]) -> list[str]:
    """One sentence per setting: paired t tests of the accuracies of every pair of methods with the same seeds.

    Compared are methods with the same options and at least three seeds; p is corrected by Holm over the sentence.
    """
    from jaxkit.evaluation import compare

    families: dict[tuple[str, str], dict[str, list[float]]] = {}
    for one in outcomes:
        if one.result is not None and len(one.result["accuracy"]) >= LEAST_SEEDS:
            same = one.cell.setting, json.dumps(one.cell.options, sort_keys=True)
            families.setdefault(same, {})[METHODS[one.cell.method].title] = one.result["accuracy"]
    said = []
    for (setting, _), values in families.items():
        if len(values) < 2:
            continue
        pairs = []
        for pair in compare(values):
            a, b, low, high = pair.method, pair.against, pair.low, pair.high
            if pair.difference < 0:
                a, b, low, high = b, a, -high, -low
            p = "p < 0.0001" if pair.p_holm < 0.0001 else f"p = {pair.p_holm:.4f}"
            found = f"{a} above {b} by {abs(pair.difference):.4f}" if pair.difference else f"{a} equals {b}"
            pairs.append(f"{found} ({low:z.4f} to {high:z.4f}), {p}")
        said.append(f"{named_setting(setting, outcomes)}: {'; '.join(pairs)} (paired t, Holm).")
    return said


STUDY = Study(
    name="first_steps",
    title="First steps: ERM on small images",
    one_line="An MLP and a ConvNet on digits, MNIST-5k and Fashion-MNIST, with intervals, beside scikit-learn.",
    Config=Config,
    presets=PRESETS,
    cells=cells,
    run_cell=run_cell,
    rows=rows,
    figures=figures,
    seconds=seconds,
    notes=notes,
    not_reproduced="the Fashion-MNIST README's numbers are from memory, so they are shown and not judged; MNIST-5k has "
    "no published number.",
)

if __name__ == "__main__":
    raise SystemExit(run(STUDY))
