"""The protocol of long-tailed learning: published counts, groups, relative accuracy, test-agnostic evaluation."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from jaxkit.check import UsageError
from jaxkit.data.shifts import long_tail_counts
from jaxkit.evaluation import per_class_accuracy
from jaxkit.long_tailed import groups as g
from jaxkit.long_tailed import profiles as p
from jaxkit.long_tailed import published
from jaxkit.long_tailed import relative as r

KEY = jax.random.key(3)


def pool(per_class=60, classes=10):
    y = np.random.default_rng(0).permutation(np.repeat(np.arange(classes), per_class)).astype(np.int32)
    return {"x": np.arange(len(y), dtype=np.float32)[:, None], "y": y}


# Groups ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("imbalance", "images", "split"),
    [(10, 19573, (69, 31, 0)), (50, 12608, (41, 41, 18)), (100, 10847, (35, 35, 30)), (200, 9502, (30, 31, 39))],
)
def test_cifar100_lt_has_its_published_size_and_groups(imbalance, images, split):
    counts = long_tail_counts(100, 500, imbalance)
    assert counts.sum() == images
    assert tuple(np.bincount(g.class_groups(counts), minlength=3)) == split


def test_the_limits_of_the_groups_belong_to_the_medium_one():
    np.testing.assert_array_equal(g.class_groups(np.array([101, 100, 20, 19, 0])), [0, 1, 1, 2, 2])


def test_groups_by_rank_are_thirds_whatever_the_counts():
    counts = np.array([7, 120, 3, 48, 2, 76, 30, 4, 19, 12])
    by_rank = np.asarray(g.class_groups(counts, by="rank"))
    descending = np.argsort(-counts)
    for number, third in enumerate(np.array_split(descending, 3)):  # 4, 3 and 3 classes
        assert set(np.flatnonzero(by_rank == number)) == set(third)
    np.testing.assert_array_equal(g.class_groups(np.full(6, 5), by="rank"), [0, 0, 1, 1, 2, 2])
    np.testing.assert_array_equal(jax.jit(lambda c: g.class_groups(c, by="rank"))(counts), by_rank)


@given(st.integers(0, 1000), st.sampled_from(["shots", "rank"]))
def test_group_accuracies_are_means_over_classes(seed, by):
    random = np.random.default_rng(seed)
    counts = random.integers(1, 200, 8)
    labels = np.concatenate([np.arange(8), random.integers(0, 8, 40)]).astype(np.int32)
    predicted = random.integers(0, 8, 48).astype(np.int32)
    ours = g.group_accuracies(predicted, labels, counts, by=by)
    by_class = np.array([(predicted[labels == c] == c).mean() for c in range(8)])
    names = np.array(g.GROUPS)[np.asarray(g.class_groups(counts, by=by))]
    np.testing.assert_allclose(ours["accuracy"], (predicted == labels).mean(), rtol=1e-6)
    for name in g.GROUPS:
        inside = by_class[names == name]
        np.testing.assert_allclose(ours[name], inside.mean() if inside.size else np.nan, rtol=1e-6)


def test_group_accuracies_of_logits_inside_jit_and_without_padding():
    logits = jax.random.normal(KEY, (30, 3))
    labels = jnp.arange(30) % 3
    counts = jnp.array([300, 50, 5])
    inside = jax.jit(lambda l, c: g.group_accuracies(l, labels, c))(logits, counts)
    for name, label in zip(g.GROUPS, range(3)):
        expected = (np.argmax(logits, -1) == np.asarray(labels))[np.asarray(labels) == label].mean()
        np.testing.assert_allclose(inside[name], expected, rtol=1e-6)
    measured = g.measure({"logits": logits}, {"y": labels}, class_counts=counts)
    np.testing.assert_allclose([measured[name] for name in inside], list(inside.values()), rtol=1e-6)
    padded = jnp.concatenate([logits, jnp.full((6, 3), jnp.nan)])
    valid = jnp.arange(36) < 30
    masked = g.group_accuracies(padded, jnp.concatenate([labels, jnp.full(6, 2)]), counts, valid=valid)
    for name in ("accuracy", *g.GROUPS):
        np.testing.assert_allclose(masked[name], inside[name], rtol=1e-6)


def test_an_empty_group_is_none_on_the_host():
    labels = jnp.arange(10)
    one = g.group_accuracies(labels, labels, long_tail_counts(10, 5000, 100))  # the smallest class has 50 rows
    assert math.isnan(one["few"]) and g.present(one)["few"] is None
    assert float(g.present(one)["many"]) == 1.0
    runs = g.present({"many": np.array([0.5, 0.75]), "few": np.array([np.nan, np.nan])})
    assert runs["few"] is None and runs["many"].tolist() == [0.5, 0.75]
    with pytest.raises(UsageError, match="'few' is empty in 1 of 2 runs"):
        g.present({"few": np.array([np.nan, 0.5])})


# Tasks and test distributions --------------------------------------------------------------------------------------


@pytest.mark.parametrize("shuffle", [False, True])
def test_a_task_and_its_twin(shuffle):
    data = pool()
    task = p.long_tailed_task(data, KEY, num_classes=10, imbalance=20, shuffle_classes=shuffle)
    profile = long_tail_counts(10, 60, 20)
    np.testing.assert_array_equal(np.bincount(task.train["y"]), task.class_counts)
    np.testing.assert_array_equal(task.class_counts[task.order], profile)
    assert (task.order == np.arange(10)).all() != shuffle
    share = profile.sum() // 10
    np.testing.assert_array_equal(np.bincount(task.twin["y"]), np.full(10, share))
    for part in (task.train, task.twin):
        assert part.keys() == data.keys()
        np.testing.assert_array_equal(data["y"][part["x"][:, 0].astype(int)], part["y"])
        assert len(np.unique(part["x"])) == len(part["x"])
    for c in range(10):  # of each class, the smaller set lies within the larger
        one, two = (set(part["x"][part["y"] == c, 0]) for part in (task.train, task.twin))
        assert one <= two or two <= one
    again = p.long_tailed_task(data, KEY, num_classes=10, imbalance=20, shuffle_classes=shuffle)
    other = p.long_tailed_task(data, jax.random.key(4), num_classes=10, imbalance=20, shuffle_classes=shuffle)
    assert again.digest == task.digest != other.digest


@pytest.mark.parametrize(("direction", "imbalance"), p.AGNOSTIC)
def test_the_prior_of_a_test_set(direction, imbalance):
    counts = np.array([5, 80, 20, 20, 300])  # from the largest: 4, 1, 2, 3, 0
    rank = {"forward": np.array([4, 1, 2, 3, 0]), "backward": np.array([0, 3, 2, 1, 4]), "uniform": np.zeros(5)}
    expected = float(imbalance) ** (-rank[direction] / 4)
    prior = p.shifted_prior(counts, direction, imbalance)
    np.testing.assert_allclose(prior, expected / expected.sum(), rtol=1e-5)
    np.testing.assert_allclose(prior.max() / prior.min(), imbalance, rtol=1e-5)
    traced = jax.jit(lambda c, rho: p.shifted_prior(c, direction, rho))(counts, float(imbalance))
    np.testing.assert_allclose(traced, prior, rtol=1e-5)


def test_row_weights_and_accuracy_under_agree_with_counting():
    random = np.random.default_rng(1)
    labels, predicted = random.integers(0, 4, 200), random.integers(0, 4, 200)
    prior = np.array([0.5, 0.3, 0.2, 0.0])
    weights = p.row_weights(labels, prior)
    right = (predicted == labels).astype(float)
    expected = sum(prior[c] * right[labels == c].mean() for c in range(4))
    np.testing.assert_allclose(np.average(right, weights=weights), expected, rtol=1e-5)
    np.testing.assert_allclose(np.mean(weights), 1.0, rtol=1e-5)
    by_class = per_class_accuracy(predicted, labels, None, 4)
    np.testing.assert_allclose(g.accuracy_under(by_class, prior), expected, rtol=1e-5)
    uniform = g.accuracy_under(jnp.stack([by_class, by_class]), jnp.full(4, 0.25))
    np.testing.assert_allclose(uniform, [np.mean(by_class)] * 2, rtol=1e-5)


def test_drawn_test_rows_have_the_counts_of_the_profile():
    data, counts = pool(50, 5), np.array([5, 80, 20, 19, 300])
    profile = long_tail_counts(5, 50, 10)
    for direction, order in (("forward", [4, 1, 2, 3, 0]), ("backward", [0, 3, 2, 1, 4])):
        drawn = p.shifted_test(data, KEY, counts, direction, 10)
        np.testing.assert_array_equal(np.bincount(drawn["y"])[order], profile)
    np.testing.assert_array_equal(np.bincount(p.shifted_test(data, KEY, counts, "uniform")["y"]), [50] * 5)


# Relative accuracy -------------------------------------------------------------------------------------------------


def test_the_surveys_relative_accuracies_follow_from_its_accuracies():
    assert len(published.IMAGENET_LT) == 23
    cells = {(m, e): published.cell(m, e) for m in published.IMAGENET_LT for e in published.EPOCHS}
    assert len(cells) == 46
    vanilla = {e: published.cell("softmax", e).upper for e in published.EPOCHS}
    wrong = set()
    for (method, epochs), cell in cells.items():
        assert cell.upper >= vanilla[epochs]  # a maximum with A_v in it
        ours = 100 * float(r.relative_accuracy(cell.accuracy, vanilla[epochs], cell.upper))
        if abs(ours - cell.relative) > 0.1:
            wrong.add((method, epochs))
    assert wrong == set(published.MISPRINTS) == {("uno_ic", 90), ("rsg", 90), ("paco", 90)}
    uno = published.cell("UNO-IC", 90)
    assert round(100 * uno.accuracy / uno.upper, 2) == 79.76 and uno.relative == 81.4
    with pytest.raises(UsageError, match="did you mean 'balanced_softmax'"):
        published.cell("balancedsoftmax", 90)
    with pytest.raises(UsageError, match="90 or 200 epochs"):
        published.cell("softmax", 100)


def test_the_interval_of_relative_accuracy_is_over_paired_ratios():
    at, av, ab = np.array([0.70, 0.74, 0.69]), np.array([0.90, 0.93, 0.88]), np.array([0.92, 0.91, 0.89])
    ratios = at / np.maximum(av, ab)
    interval = r.relative_interval(at, av, ab)
    half = stats.t.ppf(0.975, 2) * stats.sem(ratios)
    np.testing.assert_allclose(interval[:3], [ratios.mean(), ratios.mean() - half, ratios.mean() + half])
    assert interval.n == 3
    np.testing.assert_allclose(r.relative_accuracy(at, av, ab), ratios, rtol=1e-6)
    one = r.relative_interval([0.5], [0.8], [0.9])
    np.testing.assert_allclose(one.value, 0.5 / 0.9)
    assert math.isnan(one.low)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (([0.5, 0.6], [0.9], [0.9, 0.9]), "pairs its three accuracies by seed, got long_tailed 2, vanilla 1"),
        (([0.5], [0.0], [0.0]), "is 0 for one of the seeds"),
        (([-0.5], [0.9], [0.9]), "not negative"),
        (([50.0, 51.0], [0.6, 0.7], [0.6, 0.6]), "vanilla, balanced at most 1 and long_tailed above 1; divide"),
        (([math.nan], [0.9], [0.9]), "entry 0 of 1 is nan"),
    ],
)
def test_relative_accuracy_refuses(values, message):
    with pytest.raises(UsageError, match=message):
        r.relative_interval(*values)


def test_relative_accuracy_of_one_run_refuses_the_same():
    with pytest.raises(UsageError, match="of one unit"):
        r.relative_accuracy(50.0, 0.6, 0.6)
    with pytest.raises(UsageError, match="is 0 for one of the runs"):
        r.relative_accuracy(jnp.array([0.5, 0.0]), jnp.array([0.5, 0.0]), jnp.array([0.5, 0.0]))
    assert r.relative_accuracy(0.0, 60.0, 62.0) == 0  # 0 is 0 per cent
    assert np.isnan(jax.jit(r.relative_accuracy)(0.0, 0.0, 0.0))


def test_the_planner_trains_the_vanilla_reference_once():
    methods = ["softmax", "focal", "ldam"]
    plan = r.plan_trainings(methods, seeds=4, data=["digits"], schedules=["90", "200"])
    assert len(plan) == len(set(plan)) == 2 * 4 * (3 + 3)  # softmax's A_b is A_v
    twin = [one for one in plan if one.balanced]
    for schedule in ("90", "200"):
        for seed in range(4):
            here = [one.method for one in twin if (one.schedule, one.seed) == (schedule, seed)]
            assert sorted(here) == sorted(methods)
    without = r.plan_trainings(["focal", "ldam"], seeds=4)
    assert len(without) == 4 * (2 + 3)
    assert r.describe(without) == "20 trainings: 8 on the long tail, 12 on the balanced twin for relative accuracy"
    alone = r.plan_trainings(["focal", "ldam"], seeds=4, relative=False)
    assert r.describe(alone) == "8 trainings: 8 on the long tail; no relative accuracy"
    with pytest.raises(UsageError, match="methods must be different names"):
        r.plan_trainings(["focal", "focal"], seeds=1)
    with pytest.raises(UsageError, match="methods must be different names"):
        r.plan_trainings("focal", seeds=1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: p.long_tailed_task(pool(), KEY, num_classes=10, imbalance=20, profile="paretto"), "mean 'pareto'"),
        (lambda: p.long_tailed_task(pool(), KEY, num_classes=5, imbalance=20), "labels must lie in 0..4"),
        (lambda: p.long_tailed_task(pool(), KEY, num_classes=10, imbalance=20, largest=90), "has 60 rows"),
        (lambda: p.shifted_prior(np.ones(3), "sideways", 2.0), "unknown direction"),
        (lambda: p.shifted_prior(np.ones(3), "forward", 0.5), "imbalance must lie"),
        (lambda: p.shifted_prior(np.ones(3), "uniform", 10.0), "uniform test set has imbalance 1"),
        (lambda: p.row_weights(np.array([0, 0, 1]), np.array([0.5, 0.4, 0.1])), "class 2 has prior 0.1"),
        (lambda: p.row_weights(np.array([0, 3]), np.array([0.5, 0.5])), "labels must lie in 0..1"),
        (lambda: p.row_weights(np.array([0, 1]), np.array([1.5, -0.5])), r"prior\[1\] is -0.5"),
        (lambda: p.row_weights(np.array([0, 1]), np.zeros(2)), "prior is 0 for every class"),
        (lambda: p.row_weights(np.array([0, 1]), np.array([0.5, np.nan])), r"prior\[1\] is nan"),
        (lambda: g.accuracy_under(np.full(2, 0.5), np.array([1.5, -0.5])), r"prior\[1\] is -0.5"),
        (lambda: g.accuracy_under(np.full(2, 0.5), np.zeros(2)), "prior is 0 for every class"),
        (lambda: g.class_groups(np.array([0.7, 0.3])), "give numbers of rows, not shares"),
        (lambda: p.shifted_test(pool(5, 2), KEY, np.array([3, 2, 1]), "forward", 2.0), "no test row"),
        (lambda: g.class_groups(np.array([3, -1])), "class_counts"),
        (lambda: g.class_groups(np.array([3, 1]), by="thirds"), "unknown groups rule"),
    ],
)
def test_mistakes(make, message):
    with pytest.raises(UsageError, match=message):
        make()
