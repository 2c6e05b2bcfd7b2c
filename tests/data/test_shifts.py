"""Shifts: the counts, rates and identities that their definitions state."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from jaxkit.check import UsageError
from jaxkit.data import shifts as s

KEY = jax.random.key(5)


def labelled(per_class=60, classes=10):
    y = np.tile(np.arange(classes), per_class)
    return {"x": np.arange(len(y), dtype=np.float32)[:, None], "y": y.astype(np.int32)}


def test_long_tail_counts_are_the_published_profile():
    # CIFAR-100-LT and CIFAR-10-LT at ratio 100, the counts of Cui et al.'s code.
    np.testing.assert_array_equal(
        s.long_tail_counts(10, 5000, 100), [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]
    )
    assert s.long_tail_counts(100, 500, 100).sum() == 10847
    np.testing.assert_array_equal(s.long_tail_counts(5, 40, 1), [40] * 5)
    assert s.long_tail_counts(1, 7, 3).tolist() == [7]


@pytest.mark.parametrize(
    ("imbalance", "hundred", "ten"),
    [(10, 19573, 20431), (50, 12608, 13996), (100, 10847, 12406), (200, 9502, 11203)],
)
def test_cifar_lt_has_its_published_sizes(imbalance, hundred, ten):
    assert s.long_tail_counts(100, 500, imbalance).sum() == hundred
    assert s.long_tail_counts(10, 5000, imbalance).sum() == ten


def test_step_profile():
    np.testing.assert_array_equal(s.long_tail_counts(4, 500, 100, "step"), [500, 500, 5, 5])
    np.testing.assert_array_equal(s.long_tail_counts(5, 30, 10, "step"), [30, 30, 30, 3, 3])


def test_pareto_profile_is_a_power_law_between_its_ends():
    for power in (1.0, 2.0, 6.0):
        counts = s.long_tail_counts(1000, 1280, 256, "pareto", power=power)
        assert counts[0] == 1280 and counts[-1] == 5 and (np.diff(counts) <= 0).all()
        # n^(-1/alpha) is linear in the rank; rounding down moves n by less than 1.
        line = lambda n: n ** (-1 / power)
        straight = np.interp(np.arange(1000), [0, 999], [line(1280.0), line(5.0)])
        assert (line(counts + 1.0) <= straight + 1e-9).all() and (straight <= line(counts.astype(float)) + 1e-9).all()
    assert s.long_tail_counts(1000, 1280, 256, "pareto").sum() == 166769  # as the docstring says; not ImageNet-LT's
    exponential = s.long_tail_counts(10, 5000, 90)
    np.testing.assert_allclose(s.long_tail_counts(10, 5000, 90, "pareto", power=1e8), exponential, atol=1)


def test_balanced_twin_has_about_the_size_of_the_tail():
    counts = s.long_tail_counts(100, 500, 100)
    twin = s.balanced_counts(counts)
    assert twin.tolist() == [108] * 100 and 0 <= counts.sum() - twin.sum() < 100
    assert s.balanced_counts(np.array([120, 76, 48, 30, 19, 12, 7, 4, 3, 2])).tolist() == [32] * 10


def test_draw_classes_nests():
    data = labelled()
    few, many = (s.draw_classes(data, KEY, np.full(10, n)) for n in (7, 20))
    assert set(few["x"][:, 0]) < set(many["x"][:, 0])
    without = s.draw_classes(data, KEY, np.array([5, 0, *[1] * 8]))
    np.testing.assert_array_equal(np.bincount(without["y"], minlength=10), [5, 0, *[1] * 8])


def test_the_order_says_which_class_is_large():
    order = np.random.default_rng(0).permutation(10)
    cut = s.long_tail(labelled(), KEY, num_classes=10, imbalance=20, profile="step", order=order)
    np.testing.assert_array_equal(np.bincount(cut["y"])[order], [60] * 5 + [3] * 5)


def test_long_tail_cuts_to_the_profile():
    data = labelled()
    cut = s.long_tail(data, KEY, num_classes=10, imbalance=20)
    np.testing.assert_array_equal(np.bincount(cut["y"]), s.long_tail_counts(10, 60, 20))
    np.testing.assert_array_equal(data["y"][cut["x"][:, 0].astype(int)], cut["y"])
    assert (np.diff(cut["x"][:, 0]) > 0).all()
    other = s.long_tail(data, jax.random.key(6), num_classes=10, imbalance=20)
    assert not np.array_equal(cut["x"], other["x"])
    with pytest.raises(UsageError, match="class 0 has 60 rows, the profile asks for 90"):
        s.long_tail(data, KEY, num_classes=10, imbalance=20, largest=90)


@pytest.mark.parametrize(("initial", "increment", "sizes"), [(None, 2, [2] * 5), (4, 3, [4, 3, 3]), (10, 1, [10])])
def test_class_stream_partitions_the_rows(initial, increment, sizes):
    data = labelled(6)
    stream = s.class_stream(data, KEY, num_classes=10, increment=increment, initial=initial)
    assert [len(task) for task in stream.tasks] == sizes and sorted(stream.order) == list(range(10))
    seen = 0
    for task, part in zip(stream.tasks, stream.data, strict=True):
        np.testing.assert_array_equal(np.unique(part["y"]), np.arange(seen, seen + len(task)))  # labels follow on
        old = data["y"][part["x"][:, 0].astype(int)]
        np.testing.assert_array_equal(stream.order[part["y"]], old)
        seen += len(task)
    assert sum(len(part["y"]) for part in stream.data) == 60
    np.testing.assert_array_equal(s.class_stream(data, None, num_classes=10, increment=5).order, np.arange(10))
    with pytest.raises(UsageError, match="10 classes do not divide into 3 and then 3"):
        s.class_stream(data, KEY, num_classes=10, increment=3)


def test_label_noise_has_its_rate_and_is_symmetric():
    data = labelled(2000)
    noisy = jax.jit(lambda key, rate: s.label_noise(data, key, num_classes=10, rate=rate))(KEY, 0.3)
    y, clean = np.asarray(noisy["y"]), np.asarray(noisy["clean"])
    np.testing.assert_array_equal(clean, data["y"])
    wrong = y != clean
    n = len(y)
    assert abs(wrong.mean() - 0.3) < 4 * np.sqrt(0.3 * 0.7 / n)
    moved = np.bincount((y - clean)[wrong] % 10, minlength=10)
    assert moved[0] == 0 and np.abs(moved[1:] - wrong.sum() / 9).max() < 4 * np.sqrt(wrong.sum() / 9)
    np.testing.assert_array_equal(s.label_noise(data, KEY, num_classes=10, rate=0.0)["y"], data["y"])
    assert (np.asarray(s.label_noise(data, KEY, num_classes=10, rate=1.0)["y"]) != data["y"]).all()


def test_missing_fills_what_was_lost():
    x = np.full((400, 25), 3.0, np.float32)
    out = s.missing({"x": x}, KEY, rate=0.2, fill=-1.0)
    observed = np.asarray(out["observed"])
    np.testing.assert_array_equal(out["x"], np.where(observed, 3.0, -1.0))
    assert abs(observed.mean() - 0.8) < 4 * np.sqrt(0.16 / x.size)


def test_coloured_follows_the_published_construction():
    data = labelled(2000)
    data["x"] = np.ones((20000, 2, 2, 1), np.float32)
    out = jax.tree.map(np.asarray, s.coloured(data, KEY))
    y, env, colour = out["y"], out["env"], out["attribute"]
    assert out["x"].shape == (20000, 2, 2, 2) and np.unique(y).tolist() == [0, 1]
    np.testing.assert_array_equal(out["x"].sum((1, 2)), 4 * np.eye(2)[colour])
    noise = y != (data["y"] >= 5)
    assert abs(noise.mean() - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 20000)
    for e, rate in enumerate((0.2, 0.1)):
        disagree = (y != colour)[env == e]
        assert abs(disagree.mean() - rate) < 4 * np.sqrt(rate * (1 - rate) / len(disagree))
    plain = jax.tree.map(np.asarray, s.coloured(data, KEY, disagreement=(0.0, 1.0), flip=0.0))
    np.testing.assert_array_equal(plain["attribute"], plain["y"] ^ plain["env"])


def test_rotation_is_scipys_and_quarter_turns_are_exact():
    x = np.random.default_rng(0).random((9, 9, 2)).astype(np.float32)
    np.testing.assert_array_equal(s.rotate(jnp.asarray(x), 0.0), x)
    np.testing.assert_allclose(s.rotate(jnp.asarray(x), 90.0), np.rot90(x), atol=1e-5)
    for degrees in (15.0, 40.0):
        expected = ndimage.rotate(x, degrees, reshape=False, order=1, mode="constant", axes=(1, 0))
        inside = (slice(2, 7), slice(2, 7))  # at the border the two differ in what lies half outside
        np.testing.assert_allclose(np.asarray(s.rotate(jnp.asarray(x), degrees))[inside], expected[inside], atol=1e-4)


def test_rotated_environments():
    x = np.random.default_rng(0).random((6, 5, 5, 1)).astype(np.float32)
    out = s.rotated({"x": x}, degrees=(0.0, 180.0))
    np.testing.assert_array_equal(out["env"], [0, 1, 0, 1, 0, 1])
    np.testing.assert_array_equal(out["x"][::2], x[::2])
    np.testing.assert_allclose(out["x"][1::2], x[1::2, ::-1, ::-1], atol=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: s.long_tail_counts(10, 100, 0.5), "imbalance must lie"),
        (lambda: s.long_tail_counts(10, 100, 5, "exponent"), "unknown profile 'exponent'; did you mean 'exponential'"),
        (lambda: s.long_tail_counts(10, 100, 5, "pareto", power=0), "power must be"),
        (lambda: s.balanced_counts(np.array([1, 1, 0])), "2 rows give none to each of 3 classes"),
        (lambda: s.draw_classes(labelled(), KEY, np.full(9, 3)), "labels must lie in 0..8"),
        (lambda: s.long_tail(labelled(), KEY, num_classes=10, imbalance=5, order=np.arange(9)), "order must hold"),
        (lambda: s.long_tail(labelled(), KEY, num_classes=10, imbalance=5, order=np.zeros(10, int)), "order must hold"),
        (lambda: s.label_noise(labelled(), KEY, num_classes=1, rate=0.1), "two classes"),
        (lambda: s.label_noise(labelled(), KEY, num_classes=10, rate=1.1), "rate must lie"),
        (lambda: s.missing(labelled(), KEY, rate=-0.1), "rate must lie"),
        (lambda: s.coloured(labelled(), KEY), "grey images"),
        (lambda: s.rotated(labelled()), "needs images"),
        (lambda: s.class_stream(labelled(), KEY, num_classes=5, increment=1), "labels must lie in 0..4"),
    ],
)
def test_mistakes(make, message):
    with pytest.raises(UsageError, match=message):
        make()
