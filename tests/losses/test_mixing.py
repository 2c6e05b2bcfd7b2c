"""Mixed examples: every pixel is accounted for, keys decide, padding stays out."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from jaxkit import losses
from jaxkit.losses.mixing import partners

X = np.random.default_rng(0).uniform(size=(7, 8, 10, 3)).astype(np.float32)
Y = jnp.arange(7)
MIX = {"mixup": losses.mixup, "cutmix": losses.cutmix}
JITTED = {name: jax.jit(mix, static_argnames="alpha") for name, mix in MIX.items()}


def mix(name, seed, x, **options):
    """A mixed batch as NumPy arrays."""
    return jax.tree.map(np.asarray, JITTED[name](jax.random.key(seed), x, Y, **options))


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_mixup_is_the_formula(seed):
    mixed = mix("mixup", seed, jnp.asarray(X))
    share = float(mixed.share[0])
    assert 0 <= share <= 1 and (mixed.share == mixed.share[0]).all()
    np.testing.assert_array_equal(mixed.first, np.arange(7))
    assert sorted(mixed.second.tolist()) == list(range(7))
    np.testing.assert_allclose(mixed.x, share * X + (1 - share) * X[mixed.second], rtol=1e-5, atol=1e-6)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_cutmix_is_one_box(seed):
    mixed = mix("cutmix", seed, jnp.asarray(X))
    other = np.asarray(X[mixed.second])
    foreign = np.all(np.asarray(mixed.x) != np.asarray(X), axis=-1)
    np.testing.assert_array_equal(mixed.x, np.where(foreign[..., None], other, X))
    changed = foreign[np.asarray(mixed.second) != np.arange(7)]
    if len(changed):
        box = changed[0]
        assert (changed == box).all()  # one box for the batch
        np.testing.assert_allclose(mixed.share, 1 - box.mean(), atol=1e-6)
        np.testing.assert_array_equal(box, box.any(1)[:, None] & box.any(0)[None, :])
        for side in (box.any(0), box.any(1)):
            assert np.abs(np.diff(side.astype(int))).sum() <= 2  # in one piece


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), valid=st.lists(st.booleans(), min_size=7, max_size=7))
@pytest.mark.parametrize("name", MIX)
def test_padding(name, seed, valid):
    valid = np.asarray(valid)
    dirty, labels = np.where(valid[:, None, None, None], X, np.float32(np.nan)), np.arange(7)
    mixed = mix(name, seed, jnp.asarray(dirty), valid=jnp.asarray(valid))
    assert np.isfinite(mixed.x[valid]).all()
    np.testing.assert_array_equal(mixed.x[~valid], dirty[~valid])
    np.testing.assert_array_equal(mixed.second[~valid], labels[~valid])
    assert sorted(mixed.second[valid].tolist()) == sorted(labels[valid].tolist())


def test_partners_are_uniform():
    """Every valid row meets every valid row equally often: chi-squared over 2000 draws."""
    valid = jnp.array([True, False, True, True, False, True])
    drawn = jax.vmap(lambda key: partners(key, 6, valid))(jax.random.split(jax.random.key(0), 2000))
    counts = np.array([[int((drawn[:, i] == j).sum()) for j in (0, 2, 3, 5)] for i in (0, 2, 3, 5)])
    assert counts.sum() == 8000 and stats.chisquare(counts.ravel()).pvalue > 1e-3


def test_lambda_is_beta():
    keys, x = jax.random.split(jax.random.key(0), 2000), jnp.zeros((2, 1))
    shares = jax.jit(jax.vmap(lambda key: losses.mixup(key, x, Y[:2], alpha=0.4).share[0]))(keys)
    assert stats.kstest(np.asarray(shares), stats.beta(0.4, 0.4).cdf).pvalue > 1e-3


@pytest.mark.parametrize("name", MIX)
def test_keys_and_types(name):
    x = jnp.asarray(X)
    one = JITTED[name](jax.random.key(3), x, Y)
    chex.assert_trees_all_equal(JITTED[name](jax.random.key(3), x, Y), one)
    assert any(not np.array_equal(mix(name, seed, x).x, one.x) for seed in (4, 5))
    assert one.x.dtype == X.dtype and one.share.dtype == jnp.float32
    mixed = JITTED[name](jax.random.key(3), x, jax.nn.one_hot(Y, 7))
    np.testing.assert_array_equal(mixed.second.argmax(1), one.second)


def test_mixed_loss():
    """With cross-entropy it is the soft cross-entropy against the mixed labels."""
    logits = jax.random.normal(jax.random.key(2), (7, 7))
    mixed = JITTED["mixup"](jax.random.key(0), jnp.asarray(X), Y)
    given = losses.mixed_loss(losses.cross_entropy, logits, mixed)
    one_hot = functools.partial(jax.nn.one_hot, num_classes=7)
    targets = mixed.share[:, None] * one_hot(mixed.first) + (1 - mixed.share[:, None]) * one_hot(mixed.second)
    np.testing.assert_allclose(given, losses.soft_cross_entropy(logits, targets), rtol=1e-5)
