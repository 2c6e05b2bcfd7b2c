"""The long-tailed study: its data, its rows and their arithmetic, own data, what it refuses, and the digits gates."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.datasets import load_digits

from experiments import _long_tailed_data as tasks
from experiments import _long_tailed_report as report
from experiments import _long_tailed_rows as table
from experiments import _long_tailed_runs as runs
from experiments import long_tailed as study
from experiments.runner import Cell, Outcome, Skip, run
from jaxkit import check
from jaxkit.evaluation.table import read_csv

ROWS = ("softmax", "logit_adjustment", "balanced_softmax", "balanced_softmax_la")
SMALL = ["--methods", ",".join(ROWS), "--seeds", "2", "--steps", "30", "--imbalance", "20", "--largest", "40"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of two trainings and their corrections, and what it printed first."""
    folder = tmp_path_factory.mktemp("runs") / "all"
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        assert run(study.STUDY, [*SMALL, "--agnostic", "--out", str(folder)]) == 0
    return folder, said.getvalue()


def results(folder):
    cells = [json.loads(path.read_text()) for path in (folder / "cells").glob("*.json")]
    return {one["cell"]["method"]: one["result"] for one in cells}


def test_every_row_has_its_measures_and_the_surveys_figures_beside_them(finished):
    rows = {(row.method, row.metric): row for row in read_csv(finished[0] / "table.csv")}
    assert {method for method, _ in rows} == set(ROWS)
    assert {metric for _, metric in rows} == {*table.METRICS, *table.SHIFTED}
    assert all(row.setting == "digits, imbalance 20, largest 40" and row.n == 2 for row in rows.values())
    published = {metric: rows["softmax", metric].published for metric in table.METRICS}
    assert published == {"accuracy": 46.8, "many": 66.9, "medium": 40.4, "few": 12.6, "relative_accuracy": 81.0,
                         "calibration_error": None}  # fmt: skip
    assert rows["balanced_softmax", "accuracy"].verdict == "other setting"
    assert rows["logit_adjustment", "accuracy"].published is None
    assert ("softmax", "forward50_told") not in rows  # its logits are for the training prior


def test_relative_accuracy_is_that_of_each_seed_on_the_same_rows(finished):
    found, rows = results(finished[0]), read_csv(finished[0] / "table.csv")
    vanilla = np.array(found["softmax"]["readouts"][""]["twin_accuracy"])
    for name, base in (("balanced_softmax", "balanced_softmax"), ("balanced_softmax_la", "balanced_softmax")):
        own = found[base]["readouts"]["" if name == base else name]
        ratio = np.array(own["accuracy"]) / np.maximum(vanilla, own["twin_accuracy"])
        (row,) = [one for one in rows if (one.method, one.metric) == (name, "relative_accuracy")]
        assert row.value == pytest.approx(100 * ratio.mean(), abs=1e-3)
    assert found["softmax"]["digests"] == found["balanced_softmax"]["digests"]
    assert len(set(found["softmax"]["digests"])) == 2


def test_what_is_read_off_logits_is_numpy_s():
    generator, counts = np.random.default_rng(0), np.array([120, 50, 30, 5])
    logits, labels = generator.normal(size=(2, 40, 4)).astype(np.float32), np.tile(np.arange(4), (2, 10))
    found = runs.measures("balanced_softmax", logits, labels, counts, "shots")
    right = logits.argmax(-1) == labels
    of_class = np.stack([(right & (labels == c)).sum(1) / 10 for c in range(4)], 1)
    assert np.allclose(found["accuracy"], right.mean(1)) and np.allclose(found["class_accuracy"], of_class)
    assert np.allclose(found["medium"], of_class[:, 1:3].mean(1)) and np.allclose(found["few"], of_class[:, 3])
    prior = 10.0 ** -(np.arange(4)[::-1] / 3)  # the smallest class is the most frequent one
    prior /= prior.sum()
    assert np.allclose(found["backward10"], of_class @ prior, atol=1e-6)
    told = (logits + np.log(prior)).argmax(-1) == labels
    told = np.stack([(told & (labels == c)).sum(1) / 10 for c in range(4)], 1)
    assert np.allclose(found["backward10_told"], told @ prior, atol=1e-6)
    assert np.allclose(runs.adjusted(logits, counts), logits - np.log(counts / counts.sum()), atol=1e-5)
    empty = runs.measures("ncm", logits, labels, np.array([50, 40, 30, 5]), "shots")
    assert empty["many"] is None and "calibration_error" not in empty and "backward10_told" not in empty


def test_tables_and_figures_are_written_and_a_finished_run_computes_nothing_again(finished, capsys):
    folder, said = finished
    assert "8 trainings: 4 on the long tail, 4 on the balanced twin for relative accuracy" in said
    names = {"classes_digits__imbalance_20__largest_40.png", "methods_digits__imbalance_20__largest_40.png"}
    assert {path.name for path in (folder / "figures").iterdir()} == names
    with (folder / "tables" / "paired.csv").open(newline="") as file:
        pairs = {line["method"]: line for line in csv.DictReader(file)}
    found = results(folder)
    one, two = (np.array(found[name]["readouts"][""]["accuracy"]) for name in ("balanced_softmax", "softmax"))
    assert float(pairs["balanced_softmax"]["accuracy"]) == pytest.approx(100 * (one - two).mean(), abs=1e-3)
    with (folder / "tables" / "trainings.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 4
    assert "fits" in (folder / "table.md").read_text()
    capsys.readouterr()
    assert run(study.STUDY, [*SMALL, "--agnostic", "--out", str(folder), "--resume"]) == 0
    assert "0 cells to run, 2 done before" in capsys.readouterr().out


def test_seeds_differ_in_rows_and_order_of_classes_but_not_in_counts():
    task = tasks.task_of("digits", 3, 120, 60.0, "exponential", True)
    assert task.counts.tolist() == [120, 76, 48, 30, 19, 12, 7, 4, 3, 2] and task.twin_counts.tolist() == [32] * 10
    digits = load_digits()
    known = {image.tobytes(): y for image, y in zip((digits.images / 16).astype(np.float32), digits.target)}
    orders = []
    for seed in range(3):
        for part, counts in ((task.train, task.counts), (task.twin, task.twin_counts), (task.test, [50] * 10)):
            assert np.bincount(part["y"][seed]).tolist() == list(counts)
        images = {name: [x.tobytes() for x in part["x"][seed][..., 0]] for name, part in
                  (("train", task.train), ("twin", task.twin), ("test", task.test))}  # fmt: skip
        assert not set(images["test"]) & (set(images["train"]) | set(images["twin"]))
        names = {}  # the number that a class has in this seed -> the digit, by every row of every part
        for name, part in (("train", task.train), ("twin", task.twin), ("test", task.test)):
            for image, y in zip(images[name], part["y"][seed].tolist(), strict=True):
                assert names.setdefault(y, known[image]) == known[image]
        orders.append(tuple(names[c] for c in range(10)))
    assert len(set(orders)) == 3 and len(set(task.digests)) == 3


OPTIONS = {"batch_size": 64, "steps": 600, "learning_rate": 0.05, "groups": "rank"}


@pytest.mark.parametrize("network", ["mlp", "resnet32"])
def test_every_row_of_the_catalogue_makes_a_plan(network):
    counts = np.array([120, 76, 48, 30, 19, 12, 7, 4, 3, 2])
    known = table.catalogue()
    assert set(table.families()["all"]) == set(known) >= {"crt", "decouple_pb_crt", "sade", "mixup", "uno_ic"}
    for name in {line.training for line in known.values()}:
        for twin, sizes in ((False, counts), (True, np.full(10, 32))):
            plan = runs.plan_of(name, SimpleNamespace(network=network, **OPTIONS), sizes, twin=twin)
            assert plan and all(stage.source is not None for stage in plan), name


def outcome(method, accuracy, few, many=None, twin=0.9, seeds=4, **more):
    """A finished cell with values around these means, whose noise the methods of a seed share."""
    noise = np.linspace(-0.01, 0.01, seeds)
    means = {"accuracy": accuracy, "few": few, "many": 0.9, "medium": 0.8, "twin_accuracy": twin,
             "macro_accuracy": accuracy, "calibration_error": 0.1}  # fmt: skip
    values: dict = {name: (mean + noise).tolist() for name, mean in means.items()}
    values["class_accuracy"] = [[0.9, 0.5]] * seeds
    if many is None:
        values["many"] = None
    result = {"readouts": {"": values, **more}, "counts": [30, 3], "names": [], "digests": ["a"], "test_rows": 20,
              "source": "toy", "fit": {"tail": [1.0] * seeds}, "seconds": {"tail": 1.0}}  # fmt: skip
    options = {"relative": True, "groups": "shots", "seeds": seeds, "steps": 10, "batch_size": 8, "network": "mlp",
               "learning_rate": 0.1}  # fmt: skip
    return Outcome(Cell("toy", method, options), "done", result)


def test_an_empty_group_is_a_dash_and_in_no_row():
    config = study.PRESETS["quick"]
    outcomes = [outcome("softmax", 0.70, 0.3), outcome("focal", 0.71, 0.31)]
    assert {row.metric for row in table.rows(config, outcomes)} == set(table.METRICS) - {"many"}
    made = report.tables(config, outcomes)["survey"]
    assert [row[made.header.index("many")] for row in made.rows] == ["-", "-"]
    assert "0, 1 and 1 classes" in made.caption


def test_remarks_say_what_holds_and_what_does_not():
    config = study.PRESETS["quick"]
    wiggle = np.array([0.004, -0.004, 0.002, -0.002])

    def shifted(method, accuracy, few, **more):
        one = outcome(method, accuracy, few, 0.9, **more)
        values = one.result["readouts"][""]
        for name in ("accuracy", "few", "many"):
            values[name] = (np.array(values[name]) + wiggle).tolist()
        return one

    again = {"accuracy": [0.6, 0.61, 0.62, 0.63], "class_accuracy": [[0.9, 0.5]] * 4}
    outcomes = [
        outcome("softmax", 0.70, 0.30, 0.9),
        shifted("balanced_softmax", 0.80, 0.50, balanced_softmax_la=again),
        shifted("focal", 0.701, 0.30),
        shifted("weighted_softmax", 0.74, 0.40),
        shifted("crt", 0.75, 0.4),
        shifted("decouple_cb_crt", 0.78, 0.4),
        Outcome(Cell("toy", "esql", {"relative": True}), "missing", reason="not run yet"),
    ]
    said = report.remarks(config, outcomes)
    assert all(text.startswith("toy: ") for text in said)
    assert "more accurate than softmax: balanced_softmax +10.0" in said[0]
    assert "no difference shown: focal +0.1" in said[0] and "esql" not in said[0]
    assert any("gains on few-shot classes holds: +20.0 points" in text for text in said)
    assert any("exclude each other (survey, Table 7) holds" in text for text in said)
    assert any("spoils the representation (survey, Table 5) does not hold" in text for text in said)
    # In print softmax has 46.8, weighted 49.1, focal 47.2 and balanced 51.2: the same order.
    assert any("Kendall's tau 1.00 over 4 methods" in text for text in said)


def own_csv(path, sizes=(60, 20, 6), seed=0):
    generator = np.random.default_rng(seed)
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["a", "b", "kind"])
        for number, size in enumerate(sizes):
            for _ in range(size):
                writer.writerow([*(generator.normal(size=2) + 6 * np.array([number, -number])), f"kind {number}"])
    return str(path)


def test_own_data_prints_its_tail_and_runs_the_five_cheapest(tmp_path, capsys):
    path = own_csv(tmp_path / "own.csv")
    words = ["--data", path, "--seeds", "2", "--steps", "60", "--out", str(tmp_path / "run")]
    assert run(study.STUDY, words) == 0
    said = capsys.readouterr().out
    assert "training rows of each class: kind 0 48, kind 1 16, kind 2 5" in said  # a fifth of 60, 20 and 6 held out
    # Gini of 5, 16, 48: (-2 * 5 + 0 * 16 + 2 * 48) / (3 * 69)
    assert f"69 rows, 3 classes, imbalance 9.6, Gini {86 / 207:.2f}" in said
    assert "does not apply: cmo, it needs pictures" in said
    assert "8 trainings: " in said or "4 cells to run" in said
    rows = {(row.method, row.metric): row for row in read_csv(tmp_path / "run" / "table.csv")}
    assert {method for method, _ in rows} == set(table.OWN_METHODS)
    assert rows["softmax", "accuracy"].value > 90  # the classes are 6 sqrt(2) standard deviations apart
    assert rows["softmax", "accuracy"].published is None
    assert ("softmax", "relative_accuracy") not in rows and ("softmax", "macro_accuracy") in rows


def test_data_that_cannot_be_had_is_said_once(monkeypatch):
    def load(name, split):
        raise check.UsageError(f"data set {name!r} is not here; get it by `python -m jaxkit.data get {name}`")

    monkeypatch.setattr("jaxkit.data.load", load)
    tasks._pool.cache_clear(), tasks.task_of.cache_clear()
    try:
        with pytest.raises(Skip, match="jaxkit.data get fashion_mnist"):
            tasks.task_of("fashion_mnist", 1, 1000, 100.0, "exponential", True)
        with pytest.raises(Skip, match="no card"):
            tasks.task_of("cifar100_lt", 1, 500, 100.0, "exponential", False)
    finally:
        tasks._pool.cache_clear(), tasks.task_of.cache_clear()


def test_a_method_that_needs_a_group_says_which_is_empty():
    task = tasks.task_of("digits", 2, 40, 20.0, "exponential", True)
    assert "none is many-shot; take --groups rank" in runs.unsuited("lfme", task, "shots")
    assert runs.unsuited("lfme", task, "rank") == "" and runs.unsuited("cmo", task, "shots") == ""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--settings", "digit"], "unknown setting 'digit'; did you mean 'digits'"),
        (["--methods", "balancedsoftmax"], "unknown method 'balancedsoftmax'; did you mean 'balanced_softmax'"),
        (["--tail", "linear"], "unknown --tail 'linear'"),
        (["--groups", "size"], "unknown --groups 'size'"),
        (["--imbalance", "0.5"], "--imbalance must lie in"),
        (["--largest", "500"], "--largest 500: a class of digits has 124 rows to train on"),
        (["--steps", "0"], "--steps must be at least 10"),
        (["--settings", "features", "--methods", "sade"], "on features this study runs softmax"),
        (["--data", "no.csv"], "no.csv: no such file or folder"),
        (["--data", "OWN", "--imbalance", "5"], "--data is taken as it is"),
        (["--data", "ONE"], "there is one class"),
        (["--data", "FEW"], "1 class with one row, of which none can be held out: kind 2"),
        (["--data", "FLOATS"], "the targets are floats"),
        (["--data", "GAP"], "class '1' has no rows"),
        (["--data", "EMPTY"], "has no subfolders"),
        (["--data", "LARGE"], "pictures of 128x128 are too large"),
    ],
)
def test_what_cannot_be_asked_is_said_in_one_line(words, message, capsys, tmp_path):
    made = {
        "OWN": lambda path: own_csv(path.with_suffix(".csv")),
        "ONE": lambda path: own_csv(path.with_suffix(".csv"), (30,)),
        "FEW": lambda path: own_csv(path.with_suffix(".csv"), (40, 20, 1)),
        "FLOATS": lambda path: saved(path, np.ones((9, 2)), np.linspace(0.1, 0.9, 9)),
        "GAP": lambda path: saved(path, np.ones((9, 2)), np.array([0, 2] * 4 + [0])),
        "EMPTY": lambda path: path.mkdir() or str(path),
        "LARGE": lambda path: saved(path, np.zeros((8, 128, 128, 1), np.uint8), np.arange(8) % 2),
    }

    def saved(path, x, y):
        np.savez(path.with_suffix(".npz"), x=x, y=y)
        return str(path.with_suffix(".npz"))

    words = [made[word](tmp_path / word) if word in made else word for word in words]
    assert run(study.STUDY, [*words, "--out", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err.strip()
    assert re.search(re.escape(message), said) and "\n" not in said


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_digits_gates(tmp_path):
    """Of an independent NumPy prototype on eight paired seeds: few-shot gain of balanced softmax 24.5 +- 3.7 (gate 15),
    many-shot loss 2.0 +- 0.7 (gate 4), focal within 2, a second adjustment costs 2.6 +- 1.8 (gate 0), and the order of
    relative accuracies."""
    words = ["--methods", "softmax,weighted_softmax,focal,balanced_softmax,balanced_softmax_la"]
    assert run(study.STUDY, [*words, "--out", str(tmp_path / "run")]) == 0
    found = results(tmp_path / "run")
    vanilla = np.array(found["softmax"]["readouts"][""]["twin_accuracy"])

    def of(method, metric, readout=""):
        values = found[method]["readouts"][readout]
        if metric == "relative":
            return np.array(values["accuracy"]) / np.maximum(vanilla, values["twin_accuracy"])
        return 100 * np.array(values[metric])

    assert of("softmax", "accuracy").shape == (8,) and min(found["softmax"]["fit"]["tail"]) >= 0.99
    gain = lambda metric: (of("balanced_softmax", metric) - of("softmax", metric)).mean()
    assert gain("few") >= 15 and gain("many") >= -4
    assert abs((of("focal", "accuracy") - of("softmax", "accuracy")).mean()) <= 2
    twice = of("balanced_softmax", "accuracy", "balanced_softmax_la") - of("balanced_softmax", "accuracy")
    assert twice.mean() < 0
    relative = [of(name, "relative").mean() for name in ("balanced_softmax", "weighted_softmax", "softmax")]
    assert relative[0] > relative[1] > relative[2]
