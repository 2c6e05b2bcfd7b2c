"""Transforms: identities, stated distributions, and one key per row."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkit.check import UsageError
from jaxkit.data import transforms as t

KEY = jax.random.key(3)
X = jax.random.uniform(jax.random.key(0), (40, 6, 5, 2))


def test_identities():
    for transform in (
        t.random_crop(0),
        t.horizontal_flip(0.0),
        t.brightness(0.0),
        t.normalise(0.0, 1.0),
        t.gaussian_noise(0.0),
        t.chain(),
    ):
        np.testing.assert_array_equal(jax.jit(transform)(X, KEY), X)
    np.testing.assert_array_equal(t.horizontal_flip(1.0)(X, KEY), X[:, :, ::-1])
    there_and_back = t.chain(t.normalise([1.0, 2.0], [3.0, 4.0]), t.normalise([-1 / 3, -2 / 4], [1 / 3, 1 / 4]))
    np.testing.assert_allclose(there_and_back(X, KEY), X, atol=1e-5)


def test_crop_is_a_shift_of_the_padded_image():
    out = np.asarray(jax.jit(t.random_crop(2))(X, KEY))
    wide = np.pad(np.asarray(X), ((0, 0), (2, 2), (2, 2), (0, 0)))
    places = []
    for row, image in enumerate(out):
        found = [(i, j) for i in range(5) for j in range(5) if (wide[row, i : i + 6, j : j + 5] == image).all()]
        assert len(found) == 1
        places += found
    assert len(set(places)) > 12  # 40 draws of 25 places: 20 expected


def test_flip_mirrors_about_half():
    x = jax.random.uniform(KEY, (2000, 2, 3, 1))
    out = np.asarray(t.horizontal_flip()(x, KEY))
    same, mirrored = (out == x).all((1, 2, 3)), (out == x[:, :, ::-1]).all((1, 2, 3))
    assert (same ^ mirrored).all()
    assert abs(mirrored.mean() - 0.5) < 4 * 0.5 / np.sqrt(2000)


def test_brightness_is_one_factor_of_a_row():
    x = jax.random.uniform(KEY, (2000, 2, 2, 3), minval=0.1, maxval=0.5)
    factors = np.asarray(t.brightness(0.4)(x, KEY) / x).reshape(2000, -1)
    np.testing.assert_allclose(factors, np.repeat(factors[:, :1], 12, axis=1), rtol=1e-5)
    assert factors.min() >= 0.6 - 1e-5 and factors.max() <= 1.4 + 1e-5
    assert abs(factors[:, 0].mean() - 1.0) < 4 * (0.8 / np.sqrt(12)) / np.sqrt(2000)
    assert np.asarray(t.brightness(3.0)(jnp.full((50, 1, 1, 1), 0.9), KEY)).max() == 1.0  # cut, not wrapped
    with pytest.raises(UsageError, match="strength"):
        t.brightness(-0.1)


def test_noise_has_its_scale_and_a_key_per_row():
    x = jnp.zeros((500, 20))
    out = np.asarray(t.gaussian_noise(0.5)(x, KEY))
    assert abs(out.mean()) < 4 * 0.5 / 100 and abs(out.std() - 0.5) < 4 * 0.5 / np.sqrt(2 * 10000)
    assert len(np.unique(out, axis=0)) == 500
    # A row's draw is named by its own key: it does not change with what stands in the other rows.
    other = t.gaussian_noise(0.5)(x.at[1:].set(7.0), KEY)
    np.testing.assert_array_equal(other[0], out[0])
    traced = jax.jit(lambda std: t.gaussian_noise(std)(x, KEY))(0.5)
    np.testing.assert_allclose(traced, out, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: t.random_crop(-1), "padding must be at least 0"),
        (lambda: t.random_crop(1, "reflekt"), "did you mean 'reflect'"),
        (lambda: t.horizontal_flip(1.5), "probability must lie"),
        (lambda: t.normalise([0.0, 0.0], [1.0, 0.0]), "std must be"),
        (lambda: t.gaussian_noise(-1.0), "std must lie"),
        (lambda: t.random_crop(1)(jnp.zeros((4, 8)), KEY), "needs images"),
    ],
)
def test_mistakes(make, message):
    with pytest.raises(UsageError, match=message):
        make()
