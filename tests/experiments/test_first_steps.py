"""The first study: its reference on digits, the user's own data, and what is said of data that is not there."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import numpy as np
import pytest
import scipy.stats

from experiments import first_steps, runner
from jaxkit import check


@pytest.fixture(autouse=True)
def in_tmp(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first_steps._read.cache_clear()


def table_rows(folder):
    with open(Path(folder) / "table.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_the_kernel_svm_on_digits_is_that_of_scikit_learns_documentation(capsys):
    assert runner.run(first_steps.STUDY, ["--settings", "digits", "--methods", "svm", "--out", "here"]) == 0
    (row,) = table_rows("here")
    # The example's classification report: 899 test rows, accuracy 0.97.
    assert (row["published"], row["verdict"], row["n"]) == ("0.97", "reproduced", "1")
    assert abs(float(row["value"]) - 0.97) <= 0.005
    assert "898 and 899 (first half, second half)" in Path("here/report.html").read_text()


def test_a_part_of_the_rows_is_not_judged_by_the_number_for_all_of_them():
    words = "--settings digits --methods svm --test-rows 100 --out here"
    assert runner.run(first_steps.STUDY, words.split()) == 0
    (row,) = table_rows("here")
    assert (row["published"], row["verdict"]) == ("0.97", "other setting")


def test_own_data_is_split_and_measured():
    generator = np.random.default_rng(0)
    with open("own.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["width", "height", "kind"])
        for number in range(100):
            x = generator.normal(size=2) + 8 * (number % 2)  # 8 sqrt(2) standard deviations apart
            writer.writerow([*x, "ab"[number % 2]])
    words = "--data own.csv --methods mlp,convnet,svm --seeds 2 --steps 60 --learning-rate 0.01 --profile --out here"
    assert runner.run(first_steps.STUDY, words.split()) == 0
    rows = {(row["method"], row["metric"]): row for row in table_rows("here")}
    ours = rows["ERM, MLP", "accuracy"]
    assert float(ours["value"]) > 0.9 and ours["n"] == "2"
    assert float(rows["kernel SVM (scikit-learn)", "accuracy"]["value"]) > 0.9
    assert rows["ERM, ConvNet", "accuracy"]["verdict"] == "missing"
    page = Path("here/report.html").read_text()
    assert "own: own.csv 80 and 20 (a fifth of each class held out, evenly spaced)" in page
    assert "a ConvNet needs images" in page and page.count("data:image/png;base64,") == 2
    assert any(Path("here/profile").rglob("*.xplane.pb"))
    assert [path.name for path in Path("here/cells").iterdir() if path.is_dir()] == []  # checkpoints are gone
    steps = [int(line) for line in re.findall(r'"step": (\d+)', Path("here/metrics.jsonl").read_text())]
    assert steps and max(steps) == 60


def test_a_convnet_is_not_asked_for_pictures_without_a_channel_axis():
    np.savez("grey.npz", x=np.zeros((20, 8, 8), np.uint8), y=np.arange(20) % 2)
    words = ["--data", "grey.npz", "--methods", "convnet", "svm", "--steps", "1", "--seeds", "1", "--out", "here"]
    assert runner.run(first_steps.STUDY, words) == 0
    assert {row["method"]: row["verdict"] for row in table_rows("here")}["ERM, ConvNet"] == "missing"


def test_data_that_cannot_be_had_is_a_missing_row_with_the_command_that_gets_it(monkeypatch):
    asked = []

    def load(name, split):
        asked.append(name)
        raise check.UsageError(f"data set {name!r} is not here; get it by `python -m jaxkit.data get {name}`")

    monkeypatch.setattr("jaxkit.data.load", load)
    words = ["--settings", "digits,fashion-mnist", "--methods", "svm", "sklearn_mlp", "--steps", "1", "--seeds", "1"]
    assert runner.run(first_steps.STUDY, [*words, "--out", "here"]) == 0
    missing = [row for row in table_rows("here") if row["verdict"] == "missing"]
    assert [(row["setting"], row["value"]) for row in missing] == [("fashion_mnist", "")] * 2
    assert "get it by `python -m jaxkit.data get fashion_mnist`" in Path("here/report.html").read_text()
    assert asked == ["fashion_mnist"]  # once, not for each cell


def test_notes_hold_paired_tests_over_the_seeds():
    a, b, c = [0.90, 0.92, 0.91, 0.935], [0.905, 0.93, 0.912, 0.95], [0.80, 0.83, 0.79, 0.84]
    sizes = {"train_rows": 100, "test_rows": 50, "split": "as given", "part": True, "cut": True}

    def cell(setting, method, accuracy):
        options = {"seeds": len(accuracy), "steps": 5}
        return runner.Outcome(runner.Cell(setting, method, options), "done", {"accuracy": accuracy, **sizes})

    outcomes = [
        cell("digits", "mlp", a),
        cell("digits", "convnet", b),
        cell("digits", "sklearn_mlp", c),
        cell("digits", "svm", [0.97]),
        cell("mnist5k", "mlp", a[:2]),  # two seeds: no test
        cell("mnist5k", "convnet", b[:2]),
        cell("fashion_mnist", "mlp", a),
        runner.Outcome(runner.Cell("fashion_mnist", "convnet", {}), "missing", reason="diverged"),
    ]
    pairs = [("ERM, ConvNet", b, "ERM, MLP", a)]
    pairs += [(name, x, "MLPClassifier (scikit-learn)", c) for name, x in (("ERM, MLP", a), ("ERM, ConvNet", b))]
    found = [scipy.stats.ttest_rel(x, y) for _, x, _, y in pairs]
    p, adjusted, most = np.array([one.pvalue for one in found]), np.empty(3), 0.0
    for place, number in enumerate(np.argsort(p)):  # Holm: the smallest times 3, then 2, then 1, never falling
        most = adjusted[number] = max(most, min(1.0, p[number] * (3 - place)))
    wanted = []
    for (x_name, x, y_name, y), test, corrected in zip(pairs, found, adjusted, strict=True):
        low, high = test.confidence_interval(0.95)
        difference = np.mean(x) - np.mean(y)
        wanted.append(f"{x_name} above {y_name} by {difference:.4f} ({low:.4f} to {high:.4f}), p = {corrected:.4f}")
    text = first_steps.notes(first_steps.PRESETS["quick"], outcomes)
    assert text.endswith(f"digits, 100 rows: {'; '.join(wanted)} (paired t, Holm).")
    assert text.count("paired t") == 1


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--settings", "digit"], "did you mean 'digits'"),
        (["--methods", "conv-net"], "did you mean 'convnet'"),
        (["--data", "absent.csv"], "absent.csv: no such file"),
        (["--data", "empty.csv"], "is empty"),
        (["--data", "one.csv"], "one class only"),
        (["--data", "gap.npz"], "--data gap.npz: classes without a row: 1"),
        (["--learning-rate", "0"], "above 0"),
        (["--train-rows", "3"], "--train-rows must be at least 10"),
    ],
)
def test_bad_input(words, says, capsys):
    Path("empty.csv").write_text("")
    Path("one.csv").write_text("a,kind\n" + "1,cat\n" * 20)
    np.savez("gap.npz", x=np.ones((20, 2)), y=np.arange(20) % 2 * 2)
    assert runner.run(first_steps.STUDY, words) == 2
    errors = capsys.readouterr().err.strip()
    assert says in errors and "\n" not in errors
    assert not Path("runs").exists()


def test_presets_are_the_four_and_the_estimate_of_standard_is_under_an_hour():
    assert tuple(first_steps.PRESETS) == runner.PRESETS
    for preset, most in (("quick", 180), ("standard", 3600)):
        config = first_steps.PRESETS[preset]
        assert sum(first_steps.seconds(cell, config) for cell in first_steps.cells(config)) < most
    assert set(first_steps.PUBLISHED) <= {(s, m) for s in first_steps.SETTINGS for m in first_steps.METHODS}
