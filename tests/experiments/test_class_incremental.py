"""The class-incremental study: its data, its rows and their arithmetic, budgets, what it refuses, the digits gates."""

from __future__ import annotations

import contextlib
import csv
import io
import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_digits

from experiments import _class_incremental_budget as budgets
from experiments import _class_incremental_data as tasks
from experiments import _class_incremental_figures as figures
from experiments import _class_incremental_report as report
from experiments import _class_incremental_rows as table
from experiments import _class_incremental_runs as runs
from experiments import class_incremental as study
from experiments.runner import Cell, Outcome, Skip, run
from jaxkit import check
from jaxkit import class_incremental as cil
from jaxkit.class_incremental.memory import Memory
from jaxkit.evaluation.table import read_csv

SMALL = ["--methods", "finetune,replay", "--seeds", "2", "--epochs", "2", "--memory", "20"]
SETTING = "digits, 2 epochs, memory 20"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of two methods on two orders, and what it printed first."""
    folder = tmp_path_factory.mktemp("runs") / "all"
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        assert run(study.STUDY, [*SMALL, "--out", str(folder)]) == 0
    return folder, said.getvalue()


def results(folder):
    cells = [json.loads(path.read_text()) for path in (folder / "cells").glob("*.json")]
    return {(one["cell"]["setting"], one["cell"]["method"]): one["result"] for one in cells}


def lines(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_method_has_its_metrics_and_the_surveys_figures_beside_them(finished):
    rows = {(row.method, row.metric): row for row in read_csv(finished[0] / "table.csv")}
    assert {method for method, _ in rows} == {"finetune", "replay"}
    assert {metric for _, metric in rows} == set(table.METRICS) - {"intransigence"}  # there is no joint training
    assert all(row.setting == SETTING and row.n == 2 for row in rows.values())
    assert rows["replay", "last"].published == 41.01 and rows["replay", "last"].verdict == "other setting"
    assert rows["replay", "forgetting"].published == pytest.approx(50.4)
    assert rows["replay", "last_ncm"].published is None


def test_metrics_are_those_of_the_curves(finished):
    found = results(finished[0])[SETTING, "replay"]
    rows = {row.metric: row for row in read_csv(finished[0] / "table.csv") if row.method == "replay"}
    for read_out, suffix in (("classifier", ""), ("nearest_mean", "_ncm")):
        seen, by_task = (np.array(found["curves"][read_out][name]) for name in ("seen", "by_task"))
        assert seen.shape == (2, 5) and by_task.shape == (2, 5, 5)
        assert rows[f"average{suffix}"].value == pytest.approx(100 * seen.mean(), abs=1e-3)
        assert rows[f"last{suffix}"].value == pytest.approx(100 * seen[:, -1].mean(), abs=1e-3)
        # 50 test rows of each class: all tasks weigh alike in the accuracy on all classes seen.
        np.testing.assert_allclose(seen[:, -1], by_task[:, -1].mean(1), atol=1e-5)
    a = np.array(found["curves"]["classifier"]["by_task"])
    confused = np.array(found["confusion"])
    np.testing.assert_allclose(confused.sum(1), 1, atol=1e-4)
    assert (np.diagonal(confused) >= a[:, -1].mean(0) - 1e-4).all()  # the right task, maybe another class
    lost = [[max(one[j:4, j]) - one[4, j] for j in range(4)] for one in a]
    assert rows["forgetting"].value == pytest.approx(100 * np.mean(lost), abs=1e-3)
    joint = {"curves": {"classifier": {"by_task": a.tolist()}}}
    assert np.allclose(table.measures(found, joint)["intransigence"], 0)


def test_what_is_kept_is_counted(finished):
    kept = {line["method"]: line for line in lines(finished[0] / "tables" / "memory.csv")}
    parameters = 64 * 64 + 64 + 64 * 64 + 64  # the hidden layers of 64-64-64-10
    for name, exemplars in (("finetune", 0), ("replay", 20)):
        assert float(kept[name]["model MB"]) == pytest.approx(4 * parameters / 2**20, abs=1e-4)
        assert int(kept[name]["exemplars"]) == exemplars
        assert float(kept[name]["exemplar MB"]) == pytest.approx(64 * exemplars / 2**20, abs=1e-4)
    found = results(finished[0])
    full = found[SETTING, "replay"]["kept"]["full_bytes"]
    head, means, counts, counters = 4 * 65 * 10, 4 * 10 * 64, 4 * 10, 4 * 4
    assert full == 4 * parameters + head + means + 64 * 20 + counts + counters


def test_tables_and_figures_are_written_and_a_finished_run_computes_nothing_again(finished, capsys):
    folder, said = finished
    assert "2 trainings of 2 orders" in said
    slug = "digits__2_epochs__memory_20"
    drawn = {path.name for path in (folder / "figures").iterdir()}
    assert drawn == {f"{kind}_{slug}.png" for kind in ("tasks", "compute", "confusion")}
    (claim,) = lines(folder / "tables" / "claims.csv")
    found = results(folder)
    last = lambda key: np.array(found[key]["curves"]["classifier"]["seen"])[:, -1]
    gain = 100 * (last((SETTING, "replay")) - last(("digits, 2 epochs", "finetune"))).mean()
    assert (claim["above"], claim["below"]) == ("replay", "finetune")
    assert float(claim["difference"]) == pytest.approx(gain, abs=1e-2)
    capsys.readouterr()
    assert run(study.STUDY, [*SMALL, "--out", str(folder), "--resume"]) == 0
    assert "0 cells to run, 2 done before" in capsys.readouterr().out


def test_orders_differ_in_classes_and_rows_but_not_in_sizes():
    task = tasks.task_of("digits", 3, None, 2, 0, None)
    assert task.orders[0].tolist() == [4, 2, 7, 6, 0, 3, 5, 8, 9, 1]  # seed 1993, as in print
    assert task.train["x"].shape == (3, 1297, 8, 8, 1) and task.test["y"].shape == (3, 500)
    assert task.stream.bounds == (2, 4, 6, 8, 10) and task.storage == "uint8"
    digits = load_digits()
    known = {image.tobytes(): y for image, y in zip((digits.images / 16).astype(np.float32), digits.target)}
    for number, order in enumerate(task.orders):
        images = {}
        for name, part in (("train", task.train), ("test", task.test)):
            images[name] = [x.tobytes() for x in part["x"][number][..., 0]]
            assert [known[image] for image in images[name]] == order[part["y"][number]].tolist()
        assert not set(images["train"]) & set(images["test"])
        assert np.bincount(task.test["y"][number]).tolist() == [50] * 10
        assert np.bincount(task.train["y"][number]).max() <= task.stream.most_rows
    assert len({tuple(order) for order in task.orders}) == 3


def test_a_long_tail_has_its_profile_on_other_places_in_each_order():
    task = tasks.task_of("digits", 3, None, 2, 0, 10.0)
    counts = [np.bincount(y, minlength=10) for y in task.train["y"]]
    profile = np.floor(124 * 10.0 ** (-np.arange(10) / 9) + 1e-9)  # 174 rows of the smallest class less 50
    assert all((np.sort(one)[::-1] == profile).all() for one in counts)
    assert len({tuple(one) for one in counts}) == 3 and task.stream.most_rows == 124


def test_balanced_replay_counts_the_rows_of_its_pool():
    task = tasks.task_of("digits", 1, None, 2, 0, 10.0)
    rows = {name: jnp.asarray(value[0]) for name, value in task.train.items()}
    options = {"network": "mlp", "width": None, "memory": 20, "partial": True, "batch_size": 32, "learning_rate": 0.1,
               "epochs": 2}  # fmt: skip
    plan, _ = runs.make_plan("balanced_replay", SimpleNamespace(**options, weight_decay=0.0), task.stream, "uint8")
    state = jax.jit(lambda key: plan[0].begin(None, rows, key))(jax.random.key(0))
    have = np.bincount(task.train["y"][0], minlength=10)
    assert state.extra.own.tolist() == [*have[:2], *[0] * 8]
    state = jax.jit(plan[0].end)(state, rows, jax.random.key(1))
    state = jax.jit(plan[1].begin)(state, rows, jax.random.key(2))
    assert state.extra.own.tolist() == [*np.minimum(have[:2], 10), *have[2:4], *[0] * 6]


@pytest.mark.parametrize("network", ["mlp", "vit7", "linear"])
def test_every_method_makes_a_plan_on_its_network_and_keeps_exemplars_or_not(network):
    config, known = study.Config(methods=("all", "balanced_replay")), table.catalogue()
    methods = table.methods_of(config, "convnet" if network == "vit7" else network)
    methods = [name for name in methods if (name in table.PICTURES) == (network == "vit7")]
    assert network == "vit7" or {"finetune", "replay", "icarl", "joint"} <= set(methods)
    shape = {"mlp": (8, 8, 1), "vit7": (28, 28, 1), "linear": (1280,)}[network]
    batch = {"x": jax.ShapeDtypeStruct((8, *shape), jnp.float32), "y": jax.ShapeDtypeStruct((8,), jnp.int32)}
    for method in methods:
        options = SimpleNamespace(network=network, width=None, memory=8 if known[method].exemplars else None, epochs=2,
                                  partial=False, batch_size=8, learning_rate=0.1, weight_decay=0.0)  # fmt: skip
        plan, _ = runs.make_plan(method, options, cil.Stream((2, 4), 30, 30.0), "float32")
        state = jax.eval_shape(plan[0].learner.init, jax.random.key(0), batch)
        assert isinstance(state.extra.memory, Memory) == known[method].exemplars, method


def test_budgets_make_methods_equal():
    shape, tasks_, base = (28, 28, 1), 5, 200
    (aligned,) = budgets.shares_of("aligned:der", (base,), "convnet", shape, "uint8", tasks_)
    parameters = 9 * 16 + 16 + 9 * 16 * 32 + 32 + 7 * 7 * 32 * 64 + 64
    assert aligned.give("der") == (base, None) and aligned.bytes == 4 * 5 * parameters + base * 784
    size, width = aligned.give("wa")
    assert width is None and size == base + 4 * 4 * parameters // 784
    curve = budgets.shares_of("curve", (base,), "convnet", shape, "uint8", tasks_)
    assert len(curve) == budgets.POINTS and curve[0].give("wa") == (base, None) and curve[-1].give("wa")[0] == size
    for share in curve:
        for method, copies in (("wa", 1), ("der", 5)):
            size, width = share.give(method)
            kept = 4 * copies * budgets.parts_of("convnet", shape, width).whole + 784 * size
            assert share.bytes - 784 < kept <= share.bytes and size >= base
    assert curve[-1].give("der")[1] == budgets.WIDTHS["convnet"] > curve[0].give("der")[1]


def test_a_recipe_has_its_own_steps_and_another_setting():
    config = study.Config(methods=("replay", "wa", "l2p"), recipe="Code", memory=(50,))
    cell, wa = study.cells(config)
    assert cell.setting == "digits, code recipe, memory 50" and cell.options["epochs"] is None
    task = study.task_of(cell)
    plan, steps = runs.make_plan(cell.method, SimpleNamespace(**cell.options), task.stream, "uint8")
    rows = [stage.share for stage in plan]
    assert steps == sum(np.ceil(epochs * n / 32) for epochs, n in zip([200, 70, 70, 70, 70], rows))
    longer, _ = runs.make_plan("wa", SimpleNamespace(**wa.options), task.stream, "uint8")
    assert longer[1].steps == np.ceil(170 * rows[1] / 32)
    assert "released code" in report.trained(cell.options) and "0.07" not in report.trained(cell.options)


def outcome(method, last, ncm=0.5, setting="toy, memory 9", orders=4, memory=9):
    """A finished cell with curves around these last accuracies, whose noise the methods of an order share."""
    noise = np.linspace(-0.01, 0.01, orders)[:, None]
    seen = lambda value: (np.array([[1.0, (1 + value) / 2, value]]) + noise).tolist()
    by_task = np.tril(np.full((orders, 3, 3), last)).tolist()
    curves = {"classifier": {"seen": seen(last), "by_task": by_task},
              "nearest_mean": {"seen": seen(ncm), "by_task": by_task}}  # fmt: skip
    kept = {"exemplars": memory or 0, "model_bytes": 1000, "exemplar_bytes": 9, "full_bytes": 2000}
    result = {"curves": curves, "confusion": np.eye(3).tolist(), "kept": kept, "tflops": 0.1,
              "steps": 5, "seconds": 1.0, "bounds": [2, 4, 6], "train_rows": 60, "test_rows": 20,
              "source": "toy"}  # fmt: skip
    options = {"stream": "toy", "seeds": orders, "memory": memory, "width": None, "network": "mlp", "epochs": 2,
               "batch_size": 8, "learning_rate": 0.1, "weight_decay": 0.0, "long_tailed": None}  # fmt: skip
    return Outcome(Cell("toy" if memory is None else setting, method, options), "done", result, seconds=1.0)


def test_remarks_say_what_holds_and_what_does_not():
    outcomes = [
        outcome("finetune", 0.30, memory=None),
        outcome("replay", 0.60),
        outcome("icarl", 0.58, 0.85),
        outcome("wa", 0.55),
        outcome("der", 0.80),
        outcome("joint", 0.95, memory=None),
        Outcome(Cell("toy, memory 9", "bic", {"stream": "toy", "long_tailed": None, "memory": 9}), "missing"),
    ]
    said = report.remarks(study.PRESETS["quick"], outcomes)
    assert all(text.startswith("toy, memory 9: ") for text in said)
    holds, fails, joint, order = said
    assert "holds: replay above finetune (+30.0" in holds and "icarl, nearest mean above replay (+25.0" in holds
    assert "der above wa (+25.0" in holds and "does not hold: wa above replay (-5.0" in fails
    assert "joint training is above all: 95.0 %, and next icarl, nearest mean, 85.0 %" in joint
    # In print finetune 9.09 < replay 41.01 < iCaRL 49.52 (nearest mean) < WA 52.30 < DER 58.59. Ours, in this order:
    # 30, 60, 85, 55, 80: of ten pairs 4 + 2 + 0 + 1 agree and 1 + 2 do not.
    assert "Kendall's tau 0.40 over 5 methods" in order
    rows = table.rows(study.PRESETS["quick"], outcomes)
    assert {row.setting for row in rows} == {"toy, memory 9"}
    missing = [row for row in rows if row.method == "bic"]
    assert missing and all(row.value is None for row in missing)


def test_more_room_than_rows_is_said():
    outcomes = [outcome("replay", 0.6, memory=61), outcome("wa", 0.7, memory=60)]
    assert report.remarks(study.PRESETS["quick"], outcomes)[-1].endswith("which are all kept: replay (61).")


def test_transformers_and_other_recipes_are_not_comparable():
    def row(method, stream, **options):
        one = outcome(method, 0.5, setting=f"{stream}, memory 2000", memory=2000)
        one.cell.options.update(stream=stream, **options)
        found = {(row.method, row.metric): row for row in table.rows(study.PRESETS["paper"], [one])}
        return found[method, "last"]

    alike = row("wa", "cifar100, code recipe", recipe="code")
    assert alike.published == 52.3 and alike.verdict != "other setting"
    for other in (row("wa", "cifar100"), row("wa", "cifar100, B50-10, code recipe", recipe="code")):
        assert other.published == 52.3 and other.verdict == "other setting"
    transformer = row("dytox", "cifar100, paper recipe", recipe="paper")
    assert transformer.verdict == "other setting" and transformer.tag.endswith("not comparable")


def test_a_curve_over_budgets_has_areas():
    points = [(f"toy, {m} MB", last) for m, last in (("1", 0.4), ("2", 0.6), ("4", 0.6))]
    outcomes = [outcome("wa", last, setting=setting) for setting, last in points]
    made = report.tables(study.PRESETS["quick"], outcomes)
    (row,) = made["areas"].rows
    # The trapezoid: (0.4 + 0.6) / 2 + 2 * 0.6 of last accuracy over 3 MB; the survey has 10.80 and 8.92.
    assert row[:2] == ("toy", "wa") and row[3] == pytest.approx(1.7) and row[5] == pytest.approx(0.567)
    assert row[6:] == (10.80, 8.92)
    assert set(report.figures(study.PRESETS["quick"], outcomes)) >= {"memory_toy", "tasks_toy__1_mb"}


def test_labels_of_points_side_by_side_do_not_cover_each_other():
    x, y = [0.0, 0.01, 0.02, 0.5, 0.5], [75.0, 76.0, 74.5, 75.0, 90.0]
    placed = figures.heights(x, y, gap=3.0, near=0.1)
    assert placed == [77.5, 80.5, 74.5, 75.0, 90.0]
    assert figures.heights([], [], gap=3.0, near=0.1) == []


def test_own_data_says_its_tasks_and_runs(tmp_path, capsys):
    generator = np.random.default_rng(0)
    y = np.repeat(np.arange(4), 15)
    x = (generator.normal(size=(60, 3)) + 6 * np.eye(4, 3)[y]).astype(np.float32)
    np.savez(tmp_path / "own.npz", x=x, y=y)
    words = ["--data", str(tmp_path / "own.npz"), "--methods", "replay", "--seeds", "2", "--epochs", "20"]
    assert run(study.STUDY, [*words, "--out", str(tmp_path / "run")]) == 0
    assert "4 classes, 48 training rows; tasks of 2, 2" in capsys.readouterr().out
    rows = {(row.method, row.metric): row for row in read_csv(tmp_path / "run" / "table.csv")}
    # The means of classes are 6 standard deviations apart or more; the nearest mean takes little.
    assert rows["replay", "last_ncm"].value > 85 and rows["replay", "last"].published is None


def test_data_that_cannot_be_had_is_said(monkeypatch):
    def load(name, split):
        raise check.UsageError(f"data set {name!r} is not here; get it by `python -m jaxkit.data get {name}`")

    monkeypatch.setattr("jaxkit.data.load", load)
    tasks.pool_of.cache_clear(), tasks.task_of.cache_clear()
    try:
        with pytest.raises(Skip, match="jaxkit.data get fashion_mnist"):
            tasks.task_of("fashion_mnist", 1, 1000, 2, 0, None)
        with pytest.raises(Skip, match="no card"):
            tasks.task_of("cifar100", 1, None, 10, 0, None)
    finally:
        tasks.pool_of.cache_clear(), tasks.task_of.cache_clear()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--settings", "digit"], "unknown setting 'digit'; did you mean 'digits'"),
        (["--methods", "icarrl"], "unknown method 'icarrl'; did you mean 'icarl'"),
        (["--methods", "wa", "--settings", "features"], "runs on features: frozen features take finetune, replay"),
        (["--methods", "l2p"], "l2p and dytox need pictures, such as --settings mnist5k"),
        (["--memory", "9"], "--memory 9 is less than one exemplar for each of 10 classes"),
        (["--memory", "500"], "--memory 500: 250 exemplars of each class after the first task, of 124 rows"),
        (["--memory", "0"], "--memory must be at least 1"),
        (["--memory", "20", "20"], "give each size once"),
        (["--increment", "10"], "leaves one task of 10 classes"),
        (["--base", "12"], "the first task would have 12 classes"),
        (["--budget", "aligned:wa"], "unknown --budget aligned: 'wa'"),
        (["--budget", "equal"], "unknown --budget 'equal'"),
        (["--budget", "curve", "--settings", "cifar10"], "resnet32 has one width"),
        (["--budget", "curve", "--settings", "features"], "a linear model keeps no backbone"),
        (["--recipe", "codes"], "unknown --recipe 'codes'; did you mean 'code'"),
        (["--long-tailed", "0.5"], "--long-tailed must lie in"),
        (["--epochs", "0"], "--epochs must be"),
        (["--data", "no.npz"], "no.npz: no such file or folder"),
        (["--data", "ONE"], "there is one class"),
        (["--data", "OWN", "--long-tailed", "5"], "--data is taken as it is"),
    ],
)
def test_what_cannot_be_asked_is_said_in_one_line(words, message, capsys, tmp_path):
    labels = {"OWN": np.arange(40) % 4, "ONE": np.zeros(20, int)}
    for name, y in labels.items():
        np.savez(tmp_path / f"{name}.npz", x=np.ones((len(y), 2), np.float32), y=y)
    words = [str(tmp_path / f"{word}.npz") if word in labels else word for word in words]
    assert run(study.STUDY, [*words, "--out", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err.strip()
    assert message in said and "\n" not in said


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_digits_gates(tmp_path):
    """Of an independent NumPy prototype on paired orders: replay above finetune by 38 points with 50 exemplars (gate
    20), WA above replay by 14.0 +- 2.9 (8), DER by 13.3 +- 5.5 (5), iCaRL's nearest mean above its classifier by 23.0
    +- 4.9 (12) with 20."""
    words = ["--methods", "finetune,ewc,lwf,replay,icarl,wa,der,joint", "--seeds", "6"]
    assert run(study.STUDY, [*words, "--out", str(tmp_path / "run")]) == 0
    found = results(tmp_path / "run")

    def last(method, memory=None, read_out="classifier"):
        setting = "digits" if memory is None else f"digits, memory {memory}"
        return 100 * np.array(found[setting, method]["curves"][read_out]["seen"])[:, -1]

    for name in ("finetune", "ewc", "lwf"):
        assert (last("replay", 50) - last(name)).mean() >= 20, name
    assert (last("wa", 20) - last("replay", 20)).mean() >= 8
    assert (last("der", 20) - last("replay", 20)).mean() >= 5
    assert (last("icarl", 20, "nearest_mean") - last("icarl", 20)).mean() >= 12
    for setting, method in found:
        if method != "joint":
            memory = int(setting.rsplit(" ", 1)[1]) if "memory" in setting else None
            for read_out in ("classifier", "nearest_mean"):
                assert last("joint").mean() > last(method, memory, read_out).mean(), (setting, method, read_out)
    claims = lines(tmp_path / "run" / "tables" / "claims.csv")
    asked = {(one["above"], one["below"]) for one in claims if float(one["asked"]) > 0}
    assert len(asked) == 6 and all(one[""] == "holds" for one in claims if float(one["asked"]) > 0)
