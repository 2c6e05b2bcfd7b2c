"""The benchmark of long-tailed training: what each side computes and how it is written down, never how fast it is."""

from __future__ import annotations

import functools
import importlib.util
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmarks import _torch_long_tailed as peer
from experiments.benchmarks import long_tailed as benchmark
from jaxkit import check, data

SEEDS = 2
TINY = benchmark.Budget(seeds=SEEDS, steps=60, rounds=2, trial_steps=2)
COUNTS = [120, 76, 48, 30, 19, 12, 7, 4, 3, 2]  # floor(120 * 60 ** (-c / 9))


@functools.lru_cache
def problem() -> benchmark.Problem:
    return benchmark.load(SEEDS)


def with_torch():
    return pytest.importorskip("torch", reason="the PyTorch peer needs torch: python -m pip install -e '.[bench]'")


def test_every_seed_has_the_profile_with_its_own_classes_and_rows():
    given, digits = problem(), data.load("digits", "test")[0]["y"]
    assert given.class_counts.tolist() == COUNTS
    renamed = []
    for y, test_y in zip(given.train["y"], given.test_y, strict=True):
        assert np.bincount(y).tolist() == COUNTS
        names = {(old, new) for old, new in zip(digits.tolist(), test_y.tolist(), strict=True)}
        assert len(names) == 10  # old and new names of the classes are one to one
        renamed.append(sorted(names))
    assert renamed[0] != renamed[1]
    assert not np.array_equal(np.sort(given.train["x"][0], axis=0), np.sort(given.train["x"][1], axis=0))


def test_new_names_mean_the_same_in_training_and_test():
    """The nearest mean of the training rows finds the class of most test rows only where both are named alike."""
    given = problem()
    for x, y, test_y in zip(given.train["x"], given.train["y"], given.test_y, strict=True):
        means = np.stack([x[y == one].mean(0) for one in range(10)])
        nearest = np.square(given.test_x[:, None] - means).sum(-1).argmin(1)
        assert np.mean(nearest == test_y) > 0.6


def test_the_prior_goes_into_balanced_softmax_alone():
    assert benchmark.settings_of(problem(), "softmax", 5).log_prior is None
    prior = np.exp(benchmark.settings_of(problem(), "balanced_softmax", 5).log_prior)
    np.testing.assert_allclose(prior, np.asarray(COUNTS) / sum(COUNTS), rtol=1e-6)


def test_judged_is_the_accuracy_and_that_of_the_small_classes():
    given = problem()
    says = np.eye(10)[given.test_y]
    assert benchmark.judged(given, says[None]) == {"accuracy": 1.0, "few": 1.0}
    small = given.test_y >= COUNTS.index(19)  # fewer than 20 training rows
    wrong = np.where(small[..., None], np.roll(says, 1, axis=-1), says)
    found = benchmark.judged(given, np.stack([says, wrong]))
    assert found == {"accuracy": pytest.approx(1 - small.mean() / 2), "few": pytest.approx(0.5)}


def test_a_ratio_below_the_promise_is_said():
    ratios = lambda *values: {
        loss: {"loop_over_ours": {"ratio": value}} for loss, value in zip(benchmark.LOSSES, values, strict=True)
    }
    assert benchmark.short_of_promise(ratios(4.0, 4.1)) is None
    line = benchmark.short_of_promise(ratios(4.2, 3.9))
    assert line == "below the promised 4x seeds per minute of the loop: balanced_softmax 3.9x"
    assert benchmark.short_of_promise(benchmark.WITHOUT_TORCH) is None


def test_without_torch_the_result_says_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    used = jax.config.jax_enable_compilation_cache
    benchmark.main(benchmark.Config(out=tmp_path, quick=True), TINY)
    (written,) = tmp_path.glob("long_tailed-*.json")
    results = json.loads(written.read_text())
    assert results == json.loads(capsys.readouterr().out)
    assert results["benchmark"] == "long_tailed" and results["quick"] is True
    assert results["class_counts"] == COUNTS and results["seeds"] == SEEDS and results["steps"] == 60
    assert results["against_torch"] == benchmark.WITHOUT_TORCH
    assert jax.config.jax_enable_compilation_cache == used


def test_the_peer_without_torch_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    given = problem()
    with pytest.raises(check.UsageError, match="pip install"):
        settings = benchmark.settings_of(given, "softmax", 1)
        peer.train(given.train["x"], given.train["y"], given.test_x, settings, first_seed=0, threads=1)


@pytest.mark.slow
@pytest.mark.parametrize("loss", benchmark.LOSSES)
def test_our_update_and_the_peer_take_the_same_steps(loss):
    """From the peer's first parameters, on the peer's batches."""
    torch = with_torch()
    given = problem()
    settings = benchmark.settings_of(given, loss, 8)  # the sixth step begins a new epoch
    x, y = given.train["x"], given.train["y"]
    logits = peer.train(x, y, given.test_x, settings, first_seed=3, threads=1)

    learner = benchmark.learner_of(given, loss, settings)
    for seed in range(SEEDS):
        generator = torch.Generator().manual_seed(3 + seed)
        first = [np.asarray(each.detach()) for each in peer.network(64, settings, generator).parameters()]
        batches = [chosen[0].numpy() for chosen in peer.orders([generator], len(x[seed]), settings)]
        assert len(np.unique(np.concatenate(batches[:5]))) == 320 and len(batches) == 8
        state = learner.init(jax.random.key(0), {"x": x[seed, :64], "y": y[seed, :64]})
        layers = [{"kernel": jnp.asarray(w.T), "bias": jnp.asarray(b)} for w, b in zip(first[::2], first[1::2])]
        params = {"backbone": {"dense_0": layers[0], "dense_1": layers[1]}, "head": layers[2]}
        assert jax.tree.map(jnp.shape, state.params) == jax.tree.map(jnp.shape, params)
        state, update = state._replace(params=params), jax.jit(learner.update)
        for chosen in batches:
            batch = {"x": jnp.asarray(x[seed, chosen]), "y": jnp.asarray(y[seed, chosen])}
            state, _ = update(state, batch, jax.random.key(1))
        ours = learner.predict(state, {"x": jnp.asarray(given.test_x)})["logits"]
        np.testing.assert_allclose(logits[seed], ours, atol=1e-4)


@pytest.mark.slow
def test_the_peer_begins_as_our_network_does():
    torch, given = with_torch(), problem()
    settings = benchmark.settings_of(given, "softmax", 1)._replace(hidden=(400, 64))
    ours = benchmark.learner_of(given, "softmax", settings).init(jax.random.key(0), {"x": given.test_x})
    theirs = list(peer.network(64, settings, torch.Generator().manual_seed(0)).parameters())
    layers = [ours.params["backbone"]["dense_0"], ours.params["backbone"]["dense_1"], ours.params["head"]]
    for layer, weight, bias in zip(layers, theirs[::2], theirs[1::2], strict=True):
        assert np.ptp(layer["bias"]) == 0 == np.ptp(bias.detach().numpy())
        kernel, weight = np.asarray(layer["kernel"]), weight.detach().numpy()
        edge = 2 * len(kernel) ** -0.5 / 0.87962566  # variance 1 / inputs after the cut at two deviations
        assert max(np.abs(kernel).max(), np.abs(weight).max()) <= edge * 1.0001
        if kernel.size > 20_000:  # the standard error of a deviation is below 0.5 %
            for values in (kernel, weight):
                assert np.std(values) * len(kernel) ** 0.5 == pytest.approx(1, rel=0.02)


@pytest.mark.slow
def test_seeds_together_are_the_seeds_alone():
    with_torch()
    given = problem()
    settings = benchmark.settings_of(given, "balanced_softmax", 8)
    run = lambda **options: peer.train(
        given.train["x"], given.train["y"], given.test_x, settings, first_seed=0, threads=1, **options
    )
    alone = run()
    np.testing.assert_allclose(run(together=True), alone, atol=1e-4)
    np.testing.assert_allclose(run(fused=True), alone, atol=1e-4)
    assert np.abs(alone[0] - alone[1]).max() > 0.1


@pytest.mark.slow
def test_the_command_beside_torch_trains_the_same_thing(tmp_path, capsys):
    with_torch()
    benchmark.main(benchmark.Config(out=tmp_path), TINY)
    compared = json.loads(capsys.readouterr().out)["against_torch"]
    assert set(compared["torch_takes"]) == {"loop", "vmapped"}
    for loss in benchmark.LOSSES:
        found = compared[loss]
        assert set(found["seeds_per_minute"]) == set(found["test_accuracy"]) == {"ours", "loop", "vmapped"}
        assert all(0 < found[name]["low"] <= found[name]["ratio"] for name in ("loop_over_ours", "vmapped_over_ours"))
        # Twelve epochs of digits: nearest class means reach 0.6 above, chance is 0.1.
        assert all(each["accuracy"] > 0.5 for each in found["test_accuracy"].values())
