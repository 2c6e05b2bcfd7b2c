"""Herding against its definition in NumPy, index by index."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxkit.class_incremental import herding


def reference(features: np.ndarray, count: int) -> list[int]:
    """The definition: of the rows that are left, the one that brings the mean closest to the mean of the class."""
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    mean, total, left, order = unit.mean(0), np.zeros(features.shape[1]), list(range(len(features))), []
    for k in range(1, count + 1):
        distances = [np.linalg.norm(mean - (total + unit[i]) / k) for i in left]
        chosen = left.pop(int(np.argmin(distances)))
        order.append(chosen)
        total = total + unit[chosen]
    return order


@pytest.mark.parametrize(("rows", "width", "count"), [(500, 64, 20), (40, 3, 40), (7, 16, 3)])
def test_equals_the_definition(rows, width, count):
    features = np.random.default_rng(rows).normal(size=(rows, width)).astype(np.float32)
    got = jax.jit(herding)(features, count)[:count]
    assert got.tolist() == reference(features.astype(np.float64), count)


def test_rows_close_together_are_told_apart():
    """After training the rows of a class point almost the same way; the definition is evaluated in float64."""
    rng = np.random.default_rng(0)
    features = (rng.normal(size=32) + 1e-3 * rng.normal(size=(200, 32))).astype(np.float32)
    assert jax.jit(herding)(features, 10)[:10].tolist() == reference(features.astype(np.float64), 10)


@given(seed=st.integers(0, 10**6), count=st.integers(1, 12), more=st.integers(0, 8))
def test_fewer_are_a_prefix_and_padding_is_never_taken(seed, count, more):
    features = jax.random.normal(jax.random.key(seed), (20, 5))
    valid = jnp.arange(20) % 4 != 1
    few, many = (jax.jit(herding)(features, jnp.int32(n), valid) for n in (count, count + more))
    taken = many[: min(count + more, 15)].tolist()
    np.testing.assert_array_equal(few[:count], many[:count])
    assert len(set(taken)) == len(taken)
    assert all(valid[i] for i in taken)
    without = jax.jit(herding)(features[valid], jnp.int32(count + more))
    np.testing.assert_array_equal(np.flatnonzero(valid)[without[: len(taken)]], taken)


class HerdingTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True, with_device=True)
    def test_over_classes_equals_class_by_class(self):
        features = jax.random.normal(jax.random.key(0), (3, 10, 4))
        together = self.variant(jax.vmap(lambda rows: herding(rows, 4)))(features)
        for one, order in zip(features, together, strict=True):
            np.testing.assert_array_equal(herding(one, 4)[:4], order[:4])
