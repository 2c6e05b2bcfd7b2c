"""The benchmark of AdaGCN on a toy graph: what it computes and how it is written down, never how fast it is."""

from __future__ import annotations

import functools
import importlib.util
import json

import chex
import jax
import numpy as np
import pytest

from experiments.benchmarks import adagcn as benchmark
from experiments.benchmarks._timing import in_turn, quotient
from jaxkit import graphs

NODES, CLASSES = 60, 3
TINY = benchmark.Budget(
    depths=(1, 2), epochs=3, steps=2, rounds=2, peer_hops=2, peer_hidden=8, peer_epochs=40, peer_rounds=2
)  # fmt: skip


@functools.lru_cache
def problem() -> benchmark.Problem:
    """Three rings of 20 nodes with one feature for each ring: the features of every hop tell the classes apart."""
    y = np.repeat(np.arange(CLASSES), NODES // CLASSES).astype(np.int32)
    places = np.arange(NODES).reshape(CLASSES, -1)
    ends = places.ravel(), np.roll(places, 1, axis=1).ravel()
    senders, receivers = np.concatenate(ends), np.concatenate(ends[::-1])
    x = {
        "nodes": np.eye(CLASSES, 4, dtype=np.float32)[y],
        "senders": senders.astype(np.int32),
        "receivers": receivers.astype(np.int32),
        "weights": np.ones(len(senders), np.float32),
    }
    parts = (places[:, part].ravel().astype(np.int32) for part in np.split(np.arange(20), [4, 8, 12]))
    return benchmark.Problem("rings", graphs.build(x), y, graphs.Split(*parts))


def test_rows_of_hops_are_those_of_the_dense_powers():
    given = problem()
    a_hat = np.zeros((NODES, NODES))
    a_hat[np.asarray(given.graph.receivers), np.asarray(given.graph.senders)] = np.asarray(given.graph.edges)
    x = np.asarray(given.graph.nodes, np.float64)
    rows = benchmark.hop_rows(given, 3)
    for hop in range(3):
        signal = np.linalg.matrix_power(a_hat, hop) @ x
        for part, nodes in zip((rows.train, rows.stopping, rows.asked), (*given.split[:2], given.split.test)):
            np.testing.assert_allclose(part[hop], signal[nodes], atol=1e-6)
    np.testing.assert_array_equal(rows.y, given.y[given.split.train])
    np.testing.assert_array_equal(rows.stopping_y, given.y[given.split.stopping])


def test_a_timed_scan_is_that_many_updates():
    learner, batch = benchmark.baseline(problem(), "gcn", 2)
    state, losses = benchmark.training(learner, batch, 2)()
    key = jax.random.key(0)
    by_hand, update = jax.jit(learner.init)(key, batch), jax.jit(learner.update)
    for step in range(2):
        by_hand, metrics = update(by_hand, batch, jax.random.fold_in(key, step))
        assert losses[step] == pytest.approx(float(metrics["loss"]), rel=1e-5)
    chex.assert_trees_all_close(state.inner.params, by_hand.inner.params, atol=1e-5)
    assert int(state.inner.step) == 2


def test_growth_starts_from_depth_1_and_2():
    relative = {"gcn": {str(depth): {"ratio": float(ratio)} for depth, ratio in ((1, 2), (2, 8), (10, 16))}}
    assert benchmark.growth(relative, (1, 2, 10)) == {"gcn": {"10 over 1": 8.0, "10 over 2": 2.0}}
    assert benchmark.growth(relative, (1,)) == {"gcn": {}}


@pytest.mark.parametrize("dense, sliced, ours, share", [(16, 4, 2, 2 / 3), (10, 10, 1, 0), (10, 1, 1, 1)])
def test_the_share_of_row_slicing(dense, sliced, ours, share):
    assert benchmark.slicing_share(dense, sliced, ours) == pytest.approx(share)


def test_a_slower_run_has_no_speed_up_to_share_out():
    assert benchmark.slicing_share(2.0, 1.0, 3.0) is None


def test_a_ratio_below_the_promise_is_said():
    assert "below the promised 10x" in benchmark.short_of_promise({"dense_over_ours": {"ratio": 9.9}})
    assert benchmark.short_of_promise({"dense_over_ours": {"ratio": 10.0}}) is None
    assert benchmark.short_of_promise(benchmark.WITHOUT_TORCH) is None


def test_rounds_are_taken_in_turn():
    calls = []
    works = {name: lambda name=name: calls.append(name) for name in "ab"}
    times = in_turn(works, 2)
    assert calls == list("ab") * 3 and {name: each.shape for name, each in times.items()} == {"a": (2,), "b": (2,)}
    in_turn(works, 1, warm_up=False)
    assert calls == list("ab") * 4


def test_a_quotient_is_taken_round_by_round():
    found = quotient(np.asarray([2.0, 6.0, 20.0]), np.asarray([1.0, 2.0, 10.0]))
    assert found == {"ratio": 2.0, "low": 2.0, "high": 3.0, "rounds": 3}


def test_without_torch_the_entry_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert benchmark.against_torch(problem(), TINY) == benchmark.WITHOUT_TORCH


@pytest.mark.slow
def test_the_run_beside_torch_trains_the_same_thing():
    pytest.importorskip("torch", reason="the PyTorch peer needs torch: python -m pip install -e '.[bench]'")
    compared = benchmark.against_torch(problem(), TINY)
    assert compared["rows_quotient"] == 3 * 60 / (2 * 12 + 12)
    assert set(compared["test_accuracy"]) == {
        "ours",
        "dense",
        "sliced",
        "ours_restored",
        "dense_restored",
    }
    # One feature for each class, on every hop: chance is 1/3, and a seed may lose a class to the ReLU of the logits.
    assert all(accuracy >= 0.6 for accuracy in compared["test_accuracy"].values())
    assert compared["test_accuracy"]["sliced"] == compared["test_accuracy"]["dense"]
    for layout in ("dense", "sliced"):
        threads = compared["torch_threads"][layout]
        assert threads["relative_time"][str(threads["taken"])] == 1.0 == min(threads["relative_time"].values())


@pytest.mark.slow
def test_the_command_times_every_method_at_every_depth(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    benchmark.main(benchmark.Config(out=tmp_path, quick=True), TINY, problem())
    (written,) = tmp_path.glob("adagcn-*.json")
    results = json.loads(written.read_text())
    assert results == json.loads(capsys.readouterr().out)
    assert results["benchmark"] == "adagcn" and results["quick"] is True
    assert results["against_torch"] == benchmark.WITHOUT_TORCH
    assert 0 < (tmp_path / "adagcn-depth.png").stat().st_size <= 100_000

    measured = results["time_per_epoch"]
    assert measured["graph"] == "rings"
    assert set(measured["relative_time"]) == {"adagcn", "gcn", "gat", "appnp"}
    for method, by_depth in measured["relative_time"].items():
        assert list(by_depth) == ["1", "2"]
        assert all(0 < each["low"] <= each["ratio"] <= each["high"] for each in by_depth.values())
        grown = by_depth["2"]["ratio"] / by_depth["1"]["ratio"]
        assert measured["growth"][method] == {"2 over 1": pytest.approx(grown)}
    assert all(0 < share for share in measured["propagation_share"].values())
    assert ("ms_per_epoch_of_adagcn_of_one_hop" in measured) == (jax.default_backend() != "cpu")


def test_without_the_file_of_citeseer_the_graph_is_digits_knn(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXKIT_DATA", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    given = benchmark.load()
    assert given.name == "digits_knn" and given.classes == 10
    assert len(given.split.train) == 200 and len(given.split.stopping) == 500
