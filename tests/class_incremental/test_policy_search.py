"""The search of RMM's policy: what REINFORCE finds where the optimum is known, its gradient, and the pseudo-tasks."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments import _class_incremental_data as tasks
from experiments import _class_incremental_search as search
from experiments import class_incremental as study
from experiments.runner import run
from jaxkit.check import UsageError
from jaxkit.class_incremental import Keep, make_stream
from jaxkit.class_incremental.policy_search import (
    C_ACTIONS,
    M_ACTIONS,
    Policy,
    advantages,
    first_policy,
    log_probabilities,
    log_probability,
    reinforce,
    sample,
    search_policy,
    trainings,
)
from jaxkit.class_incremental.pseudo import pseudo_stream, pseudo_task
from jaxkit.class_incremental.rmm import rmm, shares_of
from jaxkit.class_incremental.stream import Stream
from jaxkit.networks import mlp
from jaxkit.training import optimizer

RNG = np.random.default_rng(0)


def some_policy(tasks=3, m_actions=4, c_actions=2):
    shapes = first_policy(tasks, m_actions, c_actions)
    return Policy(*(jnp.asarray(RNG.normal(size=part.shape), jnp.float32) for part in shapes))


def numbers(high, shape):
    return jnp.asarray(RNG.integers(0, high, shape), jnp.int32)


def test_the_better_rate_of_each_task_is_found():
    """Rewards fall with the distance from a target of each task; the noise is as large as what a step away costs."""
    m_best, c_best = np.array([0.0, 0.4, 0.8, 0.4]), np.array([0.2, 0.0, 0.1, 0.2])
    noise = np.random.default_rng(1)

    def reward(m_rates, c_rates, iteration):
        far = (m_rates - m_best) ** 2 + 20 * (c_rates - c_best) ** 2
        return 0.9 - 0.5 * far + noise.normal(size=far.shape) * 0.02

    found = search_policy(reward, 4, iterations=80, episodes=16)
    assert found.m_rates == tuple(m_best) and found.c_rates == tuple(c_best)
    assert found.history.shape == (80,) and found.history[-10:].mean() > found.history[:10].mean()
    assert np.exp(log_probabilities(found.policy)[0]).max(1).min() > 0.5


def test_a_rate_that_pays_only_later_is_found_by_later_rewards():
    """Task 1's m costs a little at once and brings more at task 2; a discount of 0 sees the cost alone."""

    def reward(m_rates, c_rates, iteration):
        first = m_rates[:, 0] > 0
        return np.stack([0.8 - 0.1 * first, 0.5 + 0.3 * first], axis=1)

    search = lambda discount: search_policy(
        reward, 2, m_actions=(0.0, 0.5), c_actions=(0.0,), iterations=40, discount=discount
    )
    assert search(1.0).m_rates[0] == 0.5
    assert search(0.0).m_rates[0] == 0.0


def test_the_second_level_may_depend_on_the_first():
    """c = 0.2 is right where m = 0.5 and wrong where m = 0; the first level is without a preference but for that."""

    def reward(m_rates, c_rates, iteration):
        return 0.5 + 0.2 * np.where(m_rates > 0, c_rates > 0, 0.5 * (c_rates == 0)) + 0.0 * m_rates

    found = search_policy(reward, 2, m_actions=(0.0, 0.5), c_actions=(0.0, 0.2), iterations=60, episodes=16)
    assert found.m_rates == (0.5, 0.5) and found.c_rates == (0.2, 0.2)
    second = np.exp(log_probabilities(found.policy)[1])
    assert (second[:, 1, 1] > second[:, 0, 1]).all()


def test_the_log_probability_is_that_of_two_softmaxes():
    policy = some_policy()
    first, second = (np.asarray(part, np.float64) for part in policy)
    m, c = numbers(4, (5, 3)), numbers(2, (5, 3))
    want = np.zeros((5, 3))
    for i in range(5):
        for t in range(3):
            one = first[0] + first[1 + t]
            two = second[0] + second[1 + t] + second[4 + m[i, t]]
            want[i, t] = one[m[i, t]] - np.log(np.exp(one).sum()) + two[c[i, t]] - np.log(np.exp(two).sum())
    np.testing.assert_allclose(log_probability(policy, m, c), want, rtol=2e-5, atol=2e-6)


def test_the_gradient_is_the_score_times_the_advantage():
    """d log softmax(z)_a / d z = onehot(a) - softmax(z), in NumPy, summed over what an indicator is on for."""
    policy, episodes, tasks = some_policy(), 6, 3
    m, c = numbers(4, (episodes, tasks)), numbers(2, (episodes, tasks))
    weights = RNG.normal(size=(episodes, tasks))
    found = jax.grad(reinforce)(policy, m, c, jnp.asarray(weights, jnp.float32))
    softmax = lambda z: np.exp(z) / np.exp(z).sum()
    first, second = (np.asarray(part, np.float64) for part in policy)
    want = Policy(np.zeros_like(first), np.zeros_like(second))
    for i in range(episodes):
        for t in range(tasks):
            one = -weights[i, t] / episodes * (np.eye(4)[m[i, t]] - softmax(first[0] + first[1 + t]))
            z = second[0] + second[1 + t] + second[4 + m[i, t]]
            two = -weights[i, t] / episodes * (np.eye(2)[c[i, t]] - softmax(z))
            for row in (0, 1 + t):
                want.first[row] += one
            for row in (0, 1 + t, 4 + m[i, t]):
                want.second[row] += two
    np.testing.assert_allclose(found.first, want.first, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found.second, want.second, rtol=1e-4, atol=1e-6)


def test_actions_come_as_often_as_their_probabilities_say():
    policy = some_policy()
    m, c = sample(policy, jax.random.key(0), 20_000)
    first, second = (np.exp(part) for part in log_probabilities(policy))
    for t in range(3):
        together = np.histogram2d(m[:, t], c[:, t], bins=(np.arange(5), np.arange(3)))[0] / 20_000
        want = first[t][:, None] * second[t]
        assert (np.abs(together - want) < 5 * np.sqrt(want / 20_000) + 1e-4).all()


@settings(max_examples=25, deadline=None)
@given(
    rewards=st.lists(st.lists(st.integers(0, 100), min_size=3, max_size=3), min_size=4, max_size=4),
    discount=st.sampled_from([0.0, 0.5, 1.0]),
)
def test_advantages_are_centred_and_without_scale(rewards, discount):
    rewards = np.asarray(rewards, np.float32) / 100
    found = np.asarray(advantages(jnp.asarray(rewards), discount))
    np.testing.assert_allclose(found.mean(0), 0, atol=1e-4)
    returns = np.stack([sum(discount ** (u - t) * rewards[:, u] for u in range(t, 3)) for t in range(3)], axis=1)
    centred = returns - returns.mean(0)
    scale = np.sqrt((centred**2).mean())
    if scale > 1e-3:
        np.testing.assert_allclose(found, centred / scale, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(advantages(jnp.asarray(7 * rewards + 2), discount), found, rtol=1e-2, atol=1e-3)


def numbered(counts=(10, 11, 12, 13, 10, 10)):
    """Rows whose first value tells them apart."""
    y = RNG.permutation(np.repeat(np.arange(len(counts)), counts)).astype(np.int32)
    x = RNG.random((y.size, 3)).astype(np.float32)
    x[:, 0] = np.arange(y.size) / 100
    return {"x": x, "y": y}


@pytest.mark.parametrize("classes", [None, 4])
def test_a_pseudo_task_is_made_of_training_rows_and_judged_on_others(classes):
    data, number = numbered(), classes or 6
    pseudo = pseudo_task(data, 3, classes=classes, held=0.25)
    parts = {}
    for name in ("train", "validation"):
        rows = getattr(pseudo, name)
        np.testing.assert_array_equal(rows["x"], data["x"][rows["index"]])
        np.testing.assert_array_equal(pseudo.order[rows["y"]], data["y"][rows["index"]])
        assert rows["y"].dtype == np.int32 and set(rows["y"].tolist()) == set(range(number))
        parts[name] = set(rows["index"].tolist())
        assert len(parts[name]) == rows["index"].size
    assert not parts["train"] & parts["validation"]
    assert parts["train"] | parts["validation"] == set(np.flatnonzero(data["y"] < number).tolist())
    have = np.bincount(data["y"])[pseudo.order]
    assert np.bincount(pseudo.validation["y"]).tolist() == [int(0.25 * n) for n in have]
    again, other = pseudo_task(data, 3, classes=classes, held=0.25), pseudo_task(data, 4, classes=classes, held=0.25)
    assert again.train["index"].tolist() == pseudo.train["index"].tolist()
    assert other.train["index"].tolist() != pseudo.train["index"].tolist()
    assert [part["x"].shape for part in other[:2]] == [part["x"].shape for part in pseudo[:2]]  # one program serves all


def test_a_pseudo_stream_has_the_tasks_of_the_stream_in_proportion():
    cifar = Stream((50, 60, 70, 80, 90, 100), 500, 500.0)
    assert pseudo_stream(cifar).bounds == cifar.bounds
    assert pseudo_stream(cifar, classes=50).bounds == (25, 30, 35, 40, 45, 50)
    assert pseudo_stream(cifar, held=0.2).mean_rows == pytest.approx(400)
    for classes in range(6, 30):
        bounds = pseudo_stream(cifar, classes=classes).bounds
        assert len(bounds) == 6 and bounds[-1] == classes and (np.diff((0, *bounds)) >= 1).all()


def test_rewards_are_the_accuracies_of_trainings():
    y = np.repeat(np.arange(4), 25).astype(np.int32)
    x = np.clip(np.eye(4, 5)[y] * 0.6 + 0.2 + RNG.normal(size=(100, 5)) * 0.05, 0, 1).astype(np.float32)
    data, zeros = {"x": x, "y": y}, (0.0, 0.0)
    stream = pseudo_stream(make_stream(y, 2))
    plan = rmm(mlp(4, hidden=(16,)), optimizer("momentum", 0.1), stream=stream, memory=Keep(8), batch_size=8,
               base="icarl", m_rates=zeros, c_rates=zeros, highest=0.8)  # fmt: skip
    score = trainings(plan, stream, 8, lambda i: pseudo_task(data, i), steps=80)
    rewards = score(np.array([[0.0, 0.0], [0.8, 0.8]]), np.zeros((2, 2)), 0)
    assert rewards.shape == (2, 2) and ((rewards >= 0) & (rewards <= 1)).all()
    assert (rewards[:, 0] > 0.8).all()  # four standard deviations and more between the classes
    np.testing.assert_array_equal(score(np.array([[0.0, 0.0], [0.8, 0.8]]), np.zeros((2, 2)), 0), rewards)


NOTHING = lambda m, c, i: np.zeros(m.shape)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: search_policy(NOTHING, 0), "tasks must be at least 1"),
        (lambda: search_policy(NOTHING, 2, episodes=1), "episodes must be at least 2"),
        (lambda: search_policy(NOTHING, 2, iterations=0), "iterations must be at least 1"),
        (lambda: search_policy(NOTHING, 2, discount=1.5), "discount must lie in"),
        (lambda: search_policy(NOTHING, 2, m_actions=(0.0, 1.0)), "m_actions must lie in"),
        (lambda: search_policy(NOTHING, 2, c_actions=()), "one or more rates, each once"),
        (lambda: search_policy(NOTHING, 2, c_actions=(0.1, 0.1)), "one or more rates, each once"),
        (lambda: search_policy(lambda m, c, i: m[:, :1], 2), r"got \[8, 1\]"),
        (lambda: search_policy(lambda m, c, i: m * np.nan, 2), "values that are not finite"),
        (lambda: pseudo_stream(Stream((2, 4), 5, 5.0), classes=5), "the stream has 4"),
        (lambda: pseudo_stream(Stream((2, 4), 5, 5.0), classes=1), "classes must be at least 2"),
        (lambda: pseudo_stream(Stream((2, 4), 5, 5.0), held=0.0), "held must lie in"),
        (lambda: pseudo_task(numbered((3, 1)), 0), "class 1 has one row"),
        (lambda: pseudo_task(numbered((3, 3)), 0, classes=3), "data has 2"),
        (lambda: pseudo_task({"x": np.zeros((2, 1)), "y": np.array([0, 2])}, 0), "class 1 has no rows"),
        (lambda: trainings((), Stream((2,), 5, 5.0), 8, len, steps=1, read_out="mean"), "unknown read_out"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(UsageError, match=message):
        call()


def test_the_flag_is_for_rmm_and_its_cells_alone():
    cells = study.cells(study.Config(methods=("replay", "rmm"), search_policy=True))
    assert {cell.method for cell in cells if "search_policy" in cell.options} == {"rmm"}
    without = study.cells(study.Config(methods=("rmm",)))[0]
    assert "search_policy" not in without.options
    with_search = next(cell for cell in cells if cell.method == "rmm" and cell.setting == without.setting)
    assert study.seconds(with_search, None) > 4 * study.seconds(without, None)
    with pytest.raises(UsageError, match="--search-policy is of rmm"):
        study.cells(study.Config(methods=("replay",), search_policy=True))


def test_the_classes_of_the_first_task_make_the_pseudo_tasks_where_they_suffice():
    assert search.classes_of(Stream((50, 60, 70, 80, 90, 100), 500, 500.0)) == 50
    assert search.classes_of(Stream((2, 4, 6, 8, 10), 500, 500.0)) == 10


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_study_searches_and_trains_with_what_it_found(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(search, "ITERATIONS", 2)
    monkeypatch.setattr(search, "EPISODES", 4)
    words = ["--methods", "rmm", "--search-policy", "--seeds", "2", "--memory", "50", "--epochs", "8"]
    assert run(study.STUDY, [*words, "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "for each of 2 orders 8 trainings of 2 epochs on pseudo-tasks of its training rows" in said
    (record,) = (json.loads(path.read_text()) for path in (tmp_path / "cells").glob("*.json"))
    policy = record["result"]["policy"]
    assert np.shape(policy["m_rates"]) == np.shape(policy["c_rates"]) == (2, 5)
    assert set(np.ravel(policy["m_rates"])) <= set(M_ACTIONS) and set(np.ravel(policy["c_rates"])) <= set(C_ACTIONS)
    assert np.shape(policy["rewards"]) == (2, 2) and 0.3 < np.mean(policy["rewards"]) <= 1
    # Two new classes a task, one with more exemplars than the other, then as many as later tasks leave an old class.
    stream = tasks.task_of("digits", 2, None, 2, 0, None).stream
    kept = []
    for m, c in zip(policy["m_rates"], policy["c_rates"], strict=True):
        shares = shares_of(stream, 50, tuple(m), tuple(c))
        later = [min((*shares.even[t + 1 :], 10**9)) for t in range(5)]
        kept.append(sum(min(n, later[t]) for t in range(5) for n in (shares.more[t], shares.less[t])))
    assert record["result"]["kept"]["exemplars"] == pytest.approx(np.mean(kept))
    page = (tmp_path / "report.html").read_text()
    assert "Found, by order: m " in page and "mean accuracy went from" in page
