"""RandAugment: the geometry against NumPy and SciPy, the pixels against Pillow, one key for each row."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps
from scipy import ndimage

from jaxkit.check import UsageError
from jaxkit.data import epochs, randaugment, views
from jaxkit.data.randaugment import OPERATIONS, rand_augment

KEY = jax.random.key(4)
BYTES = np.random.default_rng(0).integers(0, 256, (24, 20, 3), dtype=np.uint8)
BYTES[:, :, 1] = BYTES[:, :, 1] // 2 + 30  # a channel that does not fill its range
X = jnp.asarray(BYTES / 255.0, jnp.float32)
BATCH = jnp.stack([X, X[::-1], X[:, ::-1], X**2])
GEOMETRY = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")


@pytest.mark.parametrize("name", GEOMETRY)
def test_no_geometry_is_the_identity(name):
    np.testing.assert_array_equal(getattr(randaugment, name)(X, 0.0), X)


def test_quarter_turns_and_whole_shifts():
    square = X[:20]
    for turns in range(1, 4):
        turned = randaugment.rotate(square, 90.0 * turns)
        np.testing.assert_allclose(turned, np.rot90(square, turns), atol=2e-5)
    right, down = randaugment.translate_x(X, 3, fill=0.25), randaugment.translate_y(X, -2)
    np.testing.assert_array_equal(right[:, 3:], X[:, :-3])
    np.testing.assert_array_equal(right[:, :3], np.full((24, 3, 3), 0.25))
    np.testing.assert_array_equal(down[:-2], X[2:])
    np.testing.assert_array_equal(down[-2:], np.zeros((2, 20, 3)))


@pytest.mark.parametrize(
    ("name", "value", "matrix"),
    [
        ("shear_x", 0.3, [[1, 0], [0.3, 1]]),
        ("shear_y", -0.2, [[1, -0.2], [0, 1]]),
        ("rotate", 30.0, [[np.cos(np.pi / 6), 0.5], [-0.5, np.cos(np.pi / 6)]]),
    ],
)
def test_geometry_is_scipys_affine_transform(name, value, matrix):
    middle = (np.array(X.shape[:2]) - 1) / 2
    offset = middle - matrix @ middle if name == "rotate" else np.zeros(2)
    expected = np.stack(
        [
            ndimage.affine_transform(np.asarray(X[..., c], np.float64), matrix, offset, order=1, mode="grid-constant")
            for c in range(3)
        ],
        axis=-1,
    )
    np.testing.assert_allclose(getattr(randaugment, name)(X, value), expected, atol=2e-5)


PILLOW = {
    "brightness": (lambda x: randaugment.brightness(x, 1.6), lambda p: ImageEnhance.Brightness(p).enhance(1.6)),
    "color": (lambda x: randaugment.color(x, 0.3), lambda p: ImageEnhance.Color(p).enhance(0.3)),
    "contrast": (lambda x: randaugment.contrast(x, 1.7), lambda p: ImageEnhance.Contrast(p).enhance(1.7)),
    "sharpness": (lambda x: randaugment.sharpness(x, 1.9), lambda p: ImageEnhance.Sharpness(p).enhance(1.9)),
    "posterize": (lambda x: randaugment.posterize(x, 4), lambda p: ImageOps.posterize(p, 4)),
    "solarize": (lambda x: randaugment.solarize(x, 100 / 255), lambda p: ImageOps.solarize(p, 100)),
    "autocontrast": (randaugment.autocontrast, ImageOps.autocontrast),
    "equalize": (randaugment.equalize, ImageOps.equalize),
}


@pytest.mark.parametrize("name", PILLOW)
def test_pixels_are_pillows(name):
    """Pillow cuts to bytes, in the grey picture and its mean too: at most two levels, where a factor multiplies it."""
    ours, theirs = PILLOW[name]
    expected = np.asarray(theirs(Image.fromarray(BYTES)), np.float64)
    exact = name in ("posterize", "solarize", "equalize")
    np.testing.assert_allclose(255 * np.asarray(ours(X)), expected, atol=1e-3 if exact else 2.0)


def test_operations_that_change_nothing():
    np.testing.assert_allclose(randaugment.color(X[..., :1], 0.2), X[..., :1], atol=1e-6)  # grey is grey already
    for blended in (randaugment.brightness, randaugment.color, randaugment.contrast, randaugment.sharpness):
        np.testing.assert_allclose(blended(X, 1.0), X, atol=1e-6)
    flat = jnp.full((4, 4, 1), 0.3)
    np.testing.assert_array_equal(randaugment.autocontrast(flat), flat)
    np.testing.assert_array_equal(randaugment.equalize(X[:8, :8]), X[:8, :8])  # 64 pixels are too few: step is 0
    np.testing.assert_array_equal(randaugment.posterize(X / 3, 8), X / 3)
    np.testing.assert_array_equal(randaugment.solarize(X, 256 / 255), X)


def test_magnitude_zero_leaves_all_but_the_operations_without_one():
    names = [name for name in OPERATIONS if name not in ("autocontrast", "equalize")]
    out = jax.jit(rand_augment(1, 0.0, operations=names))(jnp.concatenate([BATCH] * 20), KEY)
    np.testing.assert_allclose(out, jnp.concatenate([BATCH] * 20), atol=1e-6)
    np.testing.assert_array_equal(rand_augment(0)(BATCH, KEY), BATCH)


def test_all_operations_are_drawn_in_both_directions_and_stay_in_range():
    small = X[:10, :8]
    out = np.asarray(jax.jit(rand_augment(1, 10.0))(jnp.stack([small] * 400), KEY))
    assert out.min() >= 0 and out.max() <= 1
    shape = small.shape
    for name, operation in OPERATIONS.items():
        for s in (jnp.float32(-1), jnp.float32(1)):
            alone = operation.pixels(randaugment.warp(small, operation.matrix(s, shape)), s)
            # Of 28 cases one is missing in 400 draws with a probability of 28 (27 / 28)^400 = 1.4e-5.
            assert (np.abs(out - np.asarray(alone)).max((1, 2, 3)) < 1e-4).any(), f"{name} {s}"


def test_operations_are_drawn_alike_and_rows_by_themselves():
    names = ("identity", "brightness", "solarize", "translate_x")
    transform = jax.jit(rand_augment(1, 5.0, operations=names))
    x = jnp.full((4000, 2, 2, 1), 0.9).at[:, :, 0].set(0.2)
    out = np.asarray(transform(x, KEY))
    kept = (np.abs(out - np.asarray(x)).max((1, 2, 3)) < 1e-6).mean()
    assert abs(kept - 0.25) < 4.9 * np.sqrt(0.25 * 0.75 / 4000)  # the identity; the others change this picture
    alone = transform(x.at[1:].set(0.5), KEY)
    np.testing.assert_array_equal(alone[0], out[0])


def test_it_is_a_transform_of_views_and_magnitude_may_be_traced():
    few = ("rotate", "solarize")
    source = views(epochs(2), rand_augment(1, 9.0, operations=few), rand_augment(1, 9.0, operations=few))
    data = {"x": BATCH, "y": jnp.zeros(4, jnp.int32)}
    batch = jax.jit(lambda key: source.next(data, source.init(data, key), None, 0, key)[1])(KEY)
    assert batch["x"].shape == batch["second"]["x"].shape == (2, 24, 20, 3)
    assert not np.allclose(batch["x"], batch["second"]["x"])
    traced = jax.jit(lambda magnitude: rand_augment(1, magnitude, operations=few)(BATCH, KEY))(7.0)
    np.testing.assert_allclose(traced, jax.jit(rand_augment(1, 7.0, operations=few))(BATCH, KEY), atol=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: rand_augment(-1), "num_ops must be at least 0"),
        (lambda: rand_augment(2, 11.0), "magnitude must lie in"),
        (lambda: rand_augment(fill=2.0), "fill must lie in"),
        (lambda: rand_augment(operations=["rotat"]), "did you mean 'rotate'"),
        (lambda: rand_augment(operations=[]), "at least one operation"),
        (lambda: rand_augment()(jnp.zeros((4, 8)), KEY), "needs pictures"),
        (lambda: rand_augment()(jnp.zeros((4, 8, 8, 1), jnp.uint8), KEY), "divide bytes by 255"),
        (lambda: rand_augment()(jnp.full((4, 8, 8, 1), 255.0), KEY), "values in .0, 1., got 255..255"),
    ],
)
def test_mistakes(make, message):
    with pytest.raises(UsageError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)
