"""The AdaGCN study on a toy graph given as files: its rows, its selection, its sentences, and what it refuses."""

import csv
import dataclasses
import json
import re

import numpy as np
import pytest

from experiments import _adagcn_report as report
from experiments import _adagcn_rows as study_rows
from experiments import adagcn
from experiments.runner import Cell, Outcome, run
from jaxkit.evaluation.table import read_csv
from tests.graphs import toy

SMALL = ["--splits", "2", "--graph-splits", "2", "--layers", "3", "--hidden", "8", "--epochs", "10",
         "--graph-epochs", "10", "--labels-per-class", "4"]  # fmt: skip


WEIGHTINGS = ("samme_r", "uniform", "shuffled")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The toy graph as an edge list and a table of nodes."""
    folder = tmp_path_factory.mktemp("graph")
    x, y = toy.arrays()["x"], toy.arrays()["y"]
    edges, nodes = folder / "edges.csv", folder / "nodes.csv"
    with edges.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["source", "target"])
        writer.writerows(zip(x["senders"], x["receivers"], strict=True))
    with nodes.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", *(f"f{i}" for i in range(toy.FEATURES)), "label"])
        writer.writerows([i, *x["nodes"][i], f"block {y[i]}"] for i in range(toy.NODES))
    return ["--data", str(nodes), "--edges", str(edges)]


@pytest.fixture(scope="module")
def finished(files, tmp_path_factory):
    """A run of every kind of method on it."""
    folder = tmp_path_factory.mktemp("runs") / "all"
    words = ["--methods", "adagcn,mlp,sgc,gcn", "--weighting", ",".join(WEIGHTINGS), "--depths", "2",
             "--depth-splits", "2"]  # fmt: skip
    assert run(adagcn.STUDY, [*files, *SMALL, *words, "--out", str(folder)]) == 0
    return folder


def test_every_weighting_is_a_row_and_one_is_selected(finished):
    rows = [row for row in read_csv(finished / "table.csv") if row.metric == "test accuracy, %"]
    by_method = {row.method: row for row in rows}
    assert set(by_method) == {study_rows.TITLES[f"adagcn_{name}"] for name in WEIGHTINGS} | {
        study_rows.TITLES[name] for name in ("selected", "best_hop", "mlp", "sgc", "gcn")
    }
    assert all(row.n == 2 and 0 <= row.value <= 100 for row in rows)
    stopping = {row.method: row.value for row in read_csv(finished / "table.csv") if row.metric == study_rows.STOPPING}
    choice = re.search(r"\(selected: (\w+)\)", rows[0].setting)[1]
    best = max(WEIGHTINGS, key=lambda name: stopping[study_rows.TITLES[f"adagcn_{name}"]])
    assert stopping[study_rows.TITLES[f"adagcn_{choice}"]] == stopping[study_rows.TITLES[f"adagcn_{best}"]]
    assert by_method["AdaGCN, selected"].value == by_method[study_rows.TITLES[f"adagcn_{choice}"]].value


def test_the_tables_count_what_the_programs_hold(finished):
    with (finished / "tables" / "architecture.csv").open(newline="") as file:
        lines = {line["method"]: line for line in csv.DictReader(file)}
    one = toy.FEATURES * 8 + 8 * toy.CLASSES
    assert int(lines["AdaGCN"]["parameters"]) == 3 * one and int(lines["AdaGCN"]["sums a forward pass"]) == 0
    assert int(lines["AdaGCN"]["outside"]) == 2
    assert int(lines["MLP without a graph"]["parameters"]) == one and int(lines["MLP without a graph"]["outside"]) == 0
    assert int(lines["SGC"]["parameters"]) == toy.FEATURES * toy.CLASSES + toy.CLASSES
    assert int(lines["GCN"]["sums a forward pass"]) == 2  # one for each of two layers
    with (finished / "tables" / "ablation.csv").open(newline="") as file:
        pairs = list(csv.DictReader(file))
    assert {line["against"] for line in pairs} == {"uniform", "samme_r"}
    assert all(float(line["low"]) <= float(line["difference"]) <= float(line["high"]) for line in pairs)


def test_accuracy_by_depth_is_of_the_methods_asked_for(finished):
    with (finished / "tables" / "depth.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["method"] for line in lines] == [study_rows.TITLES["adagcn_samme_r"], "GCN", "SGC"]
    assert all(line["depth"] == "2" and 0 <= float(line["mean"]) <= 100 for line in lines)
    assert (finished / "figures" / "depth_own_nodes_csv.png").exists()


def test_a_finished_split_is_not_computed_again(tmp_path):
    from experiments import _adagcn_runs as runs

    seen = []
    each = lambda case: seen.append(case) or {"test": float(case)}
    assert runs.over_cases(each, [1, 2], tmp_path) == {"test": [1.0, 2.0]}
    assert runs.over_cases(each, [1, 2, 3], tmp_path) == {"test": [1.0, 2.0, 3.0]} and seen == [1, 2, 3]
    assert len(json.loads((tmp_path / "splits.json").read_text())) == 3


def outcome(weighting, test, stopping, setting="cora_ml"):
    result = {"test": test, "stopping": stopping, "best_hop": test, "best_hop_stopping": stopping}
    result |= {"depth": [[one, one] for one in test], "single": [[one, one] for one in test]}
    result |= {"ess": [[10.0, 5.0]] * len(test), "notes": [], "nodes": 10, "fixed": False, "sizes": [1, 1, 1]}
    result["architecture"] = {"parameters": 1, "per_step": 0, "before": 1}
    return Outcome(Cell(setting, f"adagcn_{weighting}", {"labels": 20}), "done", result)


def test_random_reweighting_is_called_by_its_name():
    config = adagcn.PRESETS["standard"]
    boosting, random = [0.81, 0.82, 0.83], [0.85, 0.86, 0.88]
    outcomes = [outcome("samme_r", boosting, boosting), outcome("uniform", boosting, boosting)]
    (said,) = report.remarks(config, [*outcomes, outcome("shuffled", random, random)])
    assert "'shuffled' is selected" in said and "not from boosting" in said
    assert "samme_r) is not distinguishable from that of a plain sum over hops: +0.00 points" in said
    assert "Its accuracy is above that of a plain sum over hops: +4.33 points" in said
    (said,) = report.remarks(config, [*outcomes, outcome("inverted", random, random)])
    assert "not from boosting" not in said
    better = [value + 0.05 + 0.001 * i for i, value in enumerate(boosting)]
    (said,) = report.remarks(config, [outcome("samme_r", better, better), outcomes[1]])
    assert "samme_r) is above that of a plain sum over hops: +5.10 points" in said


def test_published_figures_stand_beside_the_selected_row_and_are_never_claimed_for_another_setting():
    config = adagcn.PRESETS["standard"]
    values = [0.85, 0.86, 0.87]
    outcomes = [outcome("samme_r", [0.8] * 3, [0.8] * 3), outcome("official", values, values)]
    made = {row.method: row for row in study_rows.rows(config, outcomes) if row.metric == "test accuracy, %"}
    assert made["AdaGCN, selected"].published == 85.97 and made["AdaGCN, selected"].verdict == "other setting"
    assert made["AdaGCN, selected"].setting == "cora_ml (selected: official)"
    assert made["AdaGCN, samme_r"].published is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--dataset", "citseer"], "unknown dataset 'citseer'; did you mean 'citeseer'"),
        (["--dataset", "digits_knn", "--weighting", "sammer"], "unknown weighting 'sammer'; did you mean"),
        (["--dataset", "digits_knn", "--methods", "gnn"], "unknown method 'gnn'"),
        (["--dataset", "digits_knn", "--labels-per-class", "5,x"], "--labels-per-class takes whole numbers"),
        (
            ["--splits", "21", "--dataset", "digits_knn", "--methods", "mlp"],
            "--splits: the protocol has 20 split seeds",
        ),
        (["--dataset", "digits_knn", "--layers", "0"], "--layers must be at least 1"),
        (["--dataset", "digits_knn", "--restore", "last"], "unknown --restore 'last'"),
        (["--dataset", "digits_knn", "--graph-splits", "25"], "--graph-splits: the protocol has 20"),
        (["--dataset", "planetoid_cora", "--labels-per-class", "5"], "planetoid_cora has a fixed split"),
        (["--data", "nodes.csv"], "needs both --data"),
        (["--data", "nodes.csv", "--edges", "edges.csv"], "nodes.csv: no such file"),
        (
            ["--dataset", "digits_knn", "--methods", "mlp", "--labels-per-class", "500"],
            "class 0 has .* lower labels_per_class",
        ),
        (
            ["--dataset", "digits_knn", "--methods", "mlp", "--stopping", "1100"],
            "are left after training, and stopping=1100",
        ),
        (["--dataset", "digits_knn", "--methods", "mlp", "--known", "5000"], "known=5000 leaves no test node"),
    ],
)
def test_what_cannot_be_asked_is_said_in_one_line(words, message, capsys, tmp_path):
    assert run(adagcn.STUDY, [*words, "--out", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err.strip()
    assert re.search(message, said) and "\n" not in said


def test_weightings_of_other_settings_are_not_compared():
    values = [0.8, 0.81, 0.83]
    other = outcome("uniform", [0.9, 0.91, 0.93], [0.9] * 3)
    other = other._replace(cell=other.cell._replace(options={"labels": 20, "hidden": 5000}))
    assert study_rows.selected("cora_ml", [outcome("samme_r", values, values), other]) is None
    assert report.ablation_rows([outcome("samme_r", values, values), other]) == ()


def test_methods_are_compared_on_the_splits_that_both_have():
    values = [0.80, 0.82, 0.84, 0.86]
    baseline = outcome("samme_r", [0.79, 0.80, 0.83], [0.8] * 3)
    baseline = baseline._replace(cell=baseline.cell._replace(method="gcn"))
    (line,) = report.order_rows([outcome("samme_r", values, values), baseline])
    assert line[:3] == ("cora_ml", "AdaGCN, samme_r", "GCN") and line[6] == 3
    assert line[3] == pytest.approx(4 / 3)  # points: the mean of 1, 2 and 1


def test_an_edited_file_is_another_graph(files, tmp_path):
    from experiments import _adagcn_runs as runs

    nodes, edges = tmp_path / "nodes.csv", tmp_path / "edges.csv"
    edges.write_text("source,target\na,b\nb,c\n")
    nodes.write_text("id,f,label\na,1,x\nb,2,y\nc,3,x\n")
    config = dataclasses.replace(adagcn.PRESETS["quick"], data=nodes, edges=edges)
    one = runs.prepared("", config)
    nodes.write_text("id,f,g,label\na,1,1,x\nb,2,2,y\nc,3,3,x\n")
    two = runs.prepared("", config)
    assert one.graph.nodes.shape == (3, 1) and two.graph.nodes.shape == (3, 2)
    assert runs.hops_of(one, 2).shape == (2, 3, 1) and runs.hops_of(two, 2).shape == (2, 3, 2)


def test_labels_a_class_make_a_setting_each():
    config = dataclasses.replace(adagcn.PRESETS["quick"], dataset=("digits_knn",), labels_per_class=("5,10", "20"))
    settings = list(dict.fromkeys(cell.setting for cell in adagcn.cells(config)))
    assert settings == ["digits_knn, 5 labels a class", "digits_knn, 10 labels a class", "digits_knn"]


def test_the_paper_preset_takes_the_released_settings():
    options = {
        cell.setting: cell.options for cell in adagcn.cells(adagcn.PRESETS["paper"]) if "weighting" in cell.options
    }
    assert [options["pubmed"][name] for name in ("layers", "hidden", "dropout", "weight_decay")] == [
        20,
        5000,
        0.2,
        1e-4,
    ]
    assert options["citeseer"]["layers"] == 15 and options["ms_academic"]["hidden"] == 3000


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.parametrize(("dataset", "first_hop", "least"), [("cora_ml", 66.6, 80.5), ("citeseer", 63.4, 74.5)])
def test_the_algorithm_on_real_graphs(data_folder, tmp_path, dataset, first_hop, least):
    """Hop 0 within 2.5 points, and boosting at most 2 points below, of an independent prototype's three splits
    (82.47 and 76.50 with hidden 128, 8 hops, 100 epochs, a ReLU on the logits): the spread over splits is 0.5 to 2
    points."""
    words = ["--dataset", dataset, "--methods", "adagcn", "--weighting", "samme_r", "--splits", "3", "--hidden", "128",
             "--epochs", "100", "--output-relu", "--out", str(tmp_path / "run")]  # fmt: skip
    assert run(adagcn.STUDY, words) == 0
    (cell,) = (tmp_path / "run" / "cells").glob("*.json")
    result = json.loads(cell.read_text())["result"]
    assert abs(100 * np.mean(result["depth"], axis=0)[0] - first_hop) < 2.5
    assert 100 * np.mean(result["test"]) > least
