"""Samplers: class probabilities against NumPy's, frequencies by chi-square, batches as functions of (key, step).

A chi-square test fails a right sampler with probability 1e-4; the keys are fixed, so a test that passes once passes for
ever.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxkit.check import UsageError
from jaxkit.data import example_of
from jaxkit.long_tailed import samplers as s

KEY = jax.random.key(21)
FALSE_ALARM = 1e-4
COUNTS = np.array([400, 100, 0, 40, 9, 1])  # class 2 has no row
TOTAL = 200
HAS = COUNTS > 0


def data():
    y = np.random.default_rng(2).permutation(np.repeat(np.arange(6), COUNTS)).astype(np.int32)
    return {"x": jnp.arange(len(y), dtype=jnp.float32)[:, None], "y": jnp.asarray(y)}


def expected(power):
    weights = np.where(HAS, np.maximum(COUNTS, 1).astype(float) ** power, 0.0)
    return weights / weights.sum()


def drawn(source, step, batches=100, key=KEY):
    """Batches of one step under many keys."""

    @jax.jit
    def run(rows, keys):
        source_state = source.init(rows, key)
        return jax.lax.map(lambda k: source.next(rows, source_state, None, step, k)[1], keys)

    return jax.tree.map(np.asarray, run(data(), jax.random.split(key, batches)))


SOURCES = {
    "square root": (s.square_root(128, 6), 0, expected(0.5)),
    "reversed": (s.reversed_sampling(128, 6), 0, expected(-1.0)),
    "progressive, first step": (s.progressively_balanced(128, 6, TOTAL), 0, COUNTS / COUNTS.sum()),
    "progressive, a quarter": (s.progressively_balanced(128, 6, TOTAL), 50, 0.75 * expected(1) + 0.25 * HAS / 5),
    "progressive, the end": (s.progressively_balanced(128, 6, TOTAL), TOTAL, HAS / 5),
    "progressive, beyond": (s.progressively_balanced(128, 6, TOTAL), 3 * TOTAL, HAS / 5),
    "own weights": (s.by_class_weight(128, 6, lambda n, t: jnp.arange(6.0)), 7, np.array([0, 1, 0, 3, 4, 5]) / 13),
}


@pytest.mark.parametrize("name", SOURCES)
def test_frequencies_are_those_of_the_formula(name):
    source, step, probabilities = SOURCES[name]
    batch = drawn(source, step)
    labels = np.asarray(data()["y"])
    np.testing.assert_array_equal(batch["y"], labels[batch["index"]])
    np.testing.assert_array_equal(batch["x"][..., 0], batch["index"])
    frequency = np.bincount(batch["y"].ravel(), minlength=6)
    assert (frequency[probabilities == 0] == 0).all()
    seen = probabilities > 0
    assert (frequency[seen].sum() * probabilities[seen] >= 5).all()  # chi-square is no approximation to speak of
    assert stats.chisquare(frequency[seen], frequency.sum() * probabilities[seen]).pvalue > FALSE_ALARM
    for c in (1, 3, 4):  # uniform within a class
        rows = np.bincount(batch["index"][batch["y"] == c], minlength=len(labels))[labels == c]
        if rows.sum() >= 5 * rows.size:
            assert stats.chisquare(rows).pvalue > FALSE_ALARM


@pytest.mark.parametrize("power", [1.0, 0.5, 0.0, -1.0])
def test_power_weights(power):
    weights = jax.jit(s.power_weights)(COUNTS, power)
    np.testing.assert_allclose(weights, expected(power), rtol=1e-5)
    assert weights[2] == 0


def test_power_weights_of_shares_are_those_of_the_counts():
    for power in (1.0, 0.5, 0.0, -1.0):
        np.testing.assert_allclose(s.power_weights(COUNTS / COUNTS.sum(), power), expected(power), rtol=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: s.power_weights(COUNTS, np.nan), "power must lie"),
        (lambda: s.power_weights(-COUNTS, 1.0), "class_counts"),
        (lambda: s.progressive_weights(COUNTS, 3, 0), "total_steps must be a finite number above 0"),
        (lambda: s.progressive_weights(COUNTS, -1, 5), "step must lie"),
    ],
)
def test_weights_of_bad_input(make, message):
    with pytest.raises(UsageError, match=message):
        make()


def test_labels_that_are_no_classes_are_told():
    for labels in (np.array([0.0, 1.0]), np.zeros(0, np.int32)):
        with pytest.raises(UsageError, match=r"must be whole numbers 0\.\.5, at least one"):
            s.square_root(8, 6).validate({"x": np.zeros((len(labels), 1)), "y": labels})


def test_the_progressive_mixture_ends_where_the_paper_says():
    at = lambda step: np.asarray(s.progressive_weights(COUNTS, step, TOTAL))
    np.testing.assert_allclose(at(0), COUNTS / COUNTS.sum(), rtol=1e-6)
    np.testing.assert_allclose(at(TOTAL), HAS / 5, rtol=1e-6)
    np.testing.assert_allclose(at(50), 0.75 * at(0) + 0.25 * at(TOTAL), rtol=1e-5)


def test_a_batch_is_a_function_of_key_and_step():
    source, rows = s.progressively_balanced(16, 6, TOTAL), data()
    one = jax.jit(lambda step, key: source.next(rows, source.init(rows, key), None, step, key)[1])
    again = source.next(rows, source.init(rows, jax.random.key(0)), None, 9, KEY)[1]
    np.testing.assert_array_equal(one(9, KEY)["index"], again["index"])
    assert (one(10, KEY)["index"] != again["index"]).any()
    assert (one(9, jax.random.key(22))["index"] != again["index"]).any()
    example = example_of(source, rows, source.init(rows, KEY), KEY)
    assert jax.tree.map(jnp.shape, example) == jax.tree.map(jnp.shape, again)
    seeds = jax.random.split(KEY, 3)
    mapped = jax.vmap(lambda key: source.next(rows, source.init(rows, key), None, 9, key)[1]["index"])(seeds)
    np.testing.assert_array_equal(mapped[1], one(9, seeds[1])["index"])


def test_samplers_by_name():
    for name in s.SAMPLERS:
        source = s.sampler(name, 8, 6, TOTAL if name == "progressive" else None)
        source.validate and source.validate(data())
        batch = source.next(data(), source.init(data(), KEY), None, 0, KEY)[1]
        assert batch["y"].shape == (8,)
    with pytest.raises(UsageError, match="did you mean 'square_root'"):
        s.sampler("squareroot", 8, 6)
    with pytest.raises(UsageError, match="'progressive' needs total_steps"):
        s.sampler("progressive", 8, 6)
    with pytest.raises(UsageError, match="leave it out for 'instance'"):
        s.sampler("instance", 8, 6, 10)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (s.square_root(8, 5), "must lie in 0..4, got 0..5"),
        (s.by_class_weight(8, 6, lambda n, t: -n), "weight must be finite"),
        (s.by_class_weight(8, 6, lambda n, t: jnp.where(n > 0, 0.0, 1.0)), "weight must be finite"),
        (s.by_class_weight(8, 6, lambda n, t: n[:3]), "one number for each class"),
    ],
)
def test_what_a_source_refuses(source, message):
    with pytest.raises(UsageError, match=message):
        source.validate(data())


def test_a_source_needs_labels():
    with pytest.raises(UsageError, match="needs data\\['y'\\]"):
        s.square_root(8, 6).init({"x": jnp.ones((3, 1))}, KEY)
