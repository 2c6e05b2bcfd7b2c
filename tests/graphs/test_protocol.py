"""The protocol's splits against NumPy's generator called step by step, and what is said where a graph is too small."""

from __future__ import annotations

import math

import numpy as np
import pytest

from jaxkit.check import UsageError
from jaxkit.data import CARDS, load, loading
from jaxkit.graphs.protocol import (
    DEFAULT_KNOWN,
    KNOWN,
    TEST_SEEDS,
    VALIDATION_SEEDS,
    half_widths,
    planetoid_split,
    ppnp_split,
    split_seeds,
)
from jaxkit.graphs.standardize import standardize


def transcribed(y, seed, per_class=20, stopping=500, known=1500):
    """The published procedure with Python lists: one generator for the known nodes, one for the split."""
    generator = np.random.RandomState(4143496719)
    seen = list(generator.permutation(len(y))[:known])
    test = [node for node in range(len(y)) if node not in set(seen)]
    generator = np.random.RandomState(seed)
    train = []
    for label in range(max(y[node] for node in seen) + 1):
        members = [node for node in seen if y[node] == label]
        train += [members[i] for i in generator.permutation(len(members))[:per_class]]
    rest = [node for node in seen if node not in set(train)]
    stop = [rest[i] for i in generator.permutation(len(rest))[:stopping]]
    return train, stop, [node for node in rest if node not in set(stop)], test


def labels(nodes=2600, classes=5, seed=0):
    return np.random.default_rng(seed).integers(0, classes, nodes).astype(np.int32)


@pytest.mark.parametrize("seed", [TEST_SEEDS[0], VALIDATION_SEEDS[6]])
def test_a_split_is_the_protocols_bit_for_bit(seed):
    y = labels()
    for part, expected in zip(ppnp_split(y, seed), transcribed(y, seed)):
        assert part.dtype == np.int32
        np.testing.assert_array_equal(part, expected)


def test_a_split_is_a_partition_with_a_fixed_test_part():
    y = labels()
    one, two = ppnp_split(y, TEST_SEEDS[0]), ppnp_split(y, TEST_SEEDS[1])
    np.testing.assert_array_equal(np.sort(np.concatenate(one)), np.arange(len(y)))
    np.testing.assert_array_equal(one.test, two.test)
    assert (one.train != two.train).any() and (np.bincount(y[one.train]) == 20).all()
    assert [len(part) for part in one] == [100, 500, 900, 1100]
    smaller = ppnp_split(y, 3, labels_per_class=5, stopping=50, known=200, known_seed=1)
    assert [len(part) for part in smaller] == [25, 50, 125, 2400]


def test_nodes_without_a_label_are_in_no_part():
    """The split of the labelled nodes alone, with their numbers."""
    y = labels()
    with_gaps = np.full(2 * len(y), -1, np.int32)
    with_gaps[1::2] = y
    for part, alone in zip(ppnp_split(with_gaps, TEST_SEEDS[2]), ppnp_split(y, TEST_SEEDS[2])):
        np.testing.assert_array_equal(part, 2 * alone + 1)


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("citeseer", (120, 500, 880, 610)),
        ("cora_ml", (140, 500, 860, 1310)),
        ("cora", (140, 500, 860, 985)),
        ("pubmed", (60, 500, 940, 18217)),
        ("ms_academic", (300, 500, 4200, 13333)),
    ],
)
def test_the_protocol_on_the_real_graphs(name, sizes, data_folder, monkeypatch):
    monkeypatch.setenv("JAXKIT_DATA", str(data_folder))
    if loading.missing(CARDS[name]):
        pytest.skip(f"{name} is not in the data folder")
    y = standardize(load(name, download=False)[0]).arrays["y"]
    known = KNOWN.get(name, DEFAULT_KNOWN)
    for seed in (TEST_SEEDS[0], TEST_SEEDS[19], VALIDATION_SEEDS[0]):
        split = ppnp_split(y, seed, known=known)
        assert tuple(map(len, split)) == sizes
        for part, expected in zip(split, transcribed(y, seed, known=known)):
            np.testing.assert_array_equal(part, expected)


@pytest.mark.data
def test_planetoids_split_of_the_whole_graph(data_folder, monkeypatch):
    monkeypatch.setenv("JAXKIT_DATA", str(data_folder))
    if loading.missing(CARDS["planetoid_citeseer"]):
        pytest.skip("planetoid_citeseer is not in the data folder")
    arrays = load("planetoid_citeseer", download=False)[0]
    split = planetoid_split(arrays["split"])
    assert tuple(map(len, split)) == (120, 500, 500, 1000) and (arrays["y"][np.concatenate(split)] >= 0).all()
    whole = standardize(arrays, largest_component=False).arrays
    np.testing.assert_array_equal(planetoid_split(whole["split"]).test, split.test)


def test_digits_have_a_number_of_known_nodes_of_their_own():
    split = ppnp_split(load("digits_knn")[0]["y"], TEST_SEEDS[0], known=KNOWN["digits_knn"])
    assert tuple(map(len, split)) == (200, 500, 500, 597)


def test_planetoid_split_reads_the_array():
    split = planetoid_split(np.array([0, 1, -1, 2, 0, 1, 2], np.int32))
    assert [part.tolist() for part in split] == [[0, 4], [1, 5], [1, 5], [3, 6]]
    assert all(part.dtype == np.int32 for part in split)


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ([0, 1, 3], "split must hold 0"),
        ([0, 1, 1], "split has no test node"),
    ],
)
def test_bad_planetoid_splits(split, message):
    with pytest.raises(UsageError, match=message):
        planetoid_split(np.array(split, np.int32))


def rare():
    y = labels()
    y[:] = np.where(y == 3, 0, y)
    y[:4] = 3
    return y


@pytest.mark.parametrize(
    ("y", "options", "message"),
    [
        (rare(), {}, r"class 3 has \d of the 1500 known nodes, and labels_per_class=20 .*; lower labels_per_class"),
        (labels(), {"stopping": 1401}, "of 1500 known nodes 1400 are left after training, and stopping=1401"),
        (labels(), {"known": 2600}, "known=2600 leaves no test node, 2600 nodes have a label; give known= below"),
        (labels(1000), {}, "known=1500 leaves no test node, 1000 nodes have a label"),
        (np.where(labels() == 2, 5, labels()), {}, "class 2 has no node"),
        (labels(), {"labels_per_class": 0}, "labels_per_class must be at least 1"),
        (labels(), {"known_seed": -1}, "known_seed must be at least 0"),
        (labels(), {"known_seed": 2**32}, r"known_seed must lie in 0..4294967295"),
        (np.full(2000, -1, np.int32), {}, "known=1500 leaves no test node, 0 nodes have a label"),
    ],
)
def test_a_graph_that_is_too_small_is_one_line(y, options, message):
    with pytest.raises(UsageError, match=message) as caught:
        ppnp_split(y, 0, **options)
    assert "\n" not in str(caught.value)


def test_stopping_may_take_all_that_is_left():
    split = ppnp_split(labels(), 0, stopping=1400)
    assert tuple(map(len, split)) == (100, 1400, 0, 1100)


def test_seeds():
    assert len(set(TEST_SEEDS)) == len(set(VALIDATION_SEEDS)) == 20 and not set(TEST_SEEDS) & set(VALIDATION_SEEDS)
    assert split_seeds(2) == (2144199730, 794209841) and split_seeds(20, test=False) == VALIDATION_SEEDS
    with pytest.raises(UsageError, match="20 split seeds, got count=21"):
        split_seeds(21)


def test_half_widths_are_two_different_figures():
    """The bootstrap's half-width of a mean is about 1.96 standard errors: its standard error has divisor n."""
    values = np.random.default_rng(1).normal(80, 2, 100)
    std, half = half_widths(values)
    assert std == pytest.approx(np.std(values, ddof=1), rel=1e-12)
    draws = np.random.default_rng(5).choice(values, (20000, 100)).mean(1)
    low, high = np.percentile(draws, [2.5, 97.5])
    # 1000 resamples fix an end to about 1/20 of the half-width (the standard error of a 2.5 % quantile of a normal is
    # sqrt(0.025 * 0.975 / 1000) / 0.0584 = 0.085 standard deviations, 0.043 of 1.96); three of them are allowed.
    assert half == pytest.approx(max(high - values.mean(), values.mean() - low), rel=0.13)
    assert half_widths(values) == (std, half)
    assert all(math.isnan(figure) for figure in half_widths([81.0]))
    assert half_widths([81.0, 81.0]) == (0.0, 0.0)
    with pytest.raises(UsageError, match="entry 1 of 2 is nan"):
        half_widths([1.0, math.nan])
