"""Frozen embeddings: equal to one pass over all rows, cached by content, never trusted blindly."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkit import networks
from jaxkit.check import UsageError
from jaxkit.networks.features import features

KEY = jax.random.key(0)
X = np.random.default_rng(0).normal(size=(11, 6)).astype(np.float32)


@pytest.fixture
def model():
    """A network that counts its traces, with batch normalisation that has seen something."""
    network = networks.mlp(3, (4,), norm="batch")
    params, variables = network.init(KEY, X)
    _, variables = network.apply(params, variables, X, train=True)
    traces = []

    def apply(*args, **options):
        traces.append(1)
        return network.apply(*args, **options)

    return network._replace(apply=apply), params, variables, traces


@pytest.mark.parametrize("batch_size", [1, 4, 11, 64])
def test_equals_one_pass(model, batch_size):
    network, params, variables, traces = model
    given = features(network, params, variables, X, batch_size=batch_size)
    assert len(traces) <= 2  # one for the shapes, one for the program; not one per chunk
    expected = network.apply(params, variables, X)[0]
    assert given.shape == (11, 4) and given.dtype == np.float32
    np.testing.assert_allclose(given, expected["features"], rtol=1e-5, atol=1e-6)
    logits = features(network, params, variables, X, batch_size=batch_size, output="logits")
    np.testing.assert_allclose(logits, expected["logits"], rtol=1e-5, atol=1e-6)


def test_cache_by_content(model, tmp_path):
    network, params, variables, traces = model
    run = lambda params=params, variables=variables, x=X, **more: features(
        network, params, variables, x, cache=tmp_path, **more
    )
    first, once = run(), len(traces)
    np.testing.assert_array_equal(run(), first)
    np.testing.assert_array_equal(run(x=jnp.asarray(X), batch_size=3), first)
    assert len(traces) == once and len(list(tmp_path.iterdir())) == 1
    changed = X.copy()
    changed[3, 3] += 1e-3
    others = [
        run(x=changed),
        run(params=jax.tree.map(lambda leaf: leaf * 1.001, params)),
        run(variables=jax.tree.map(lambda leaf: leaf * 1.001, variables)),
        run(tag="other"),
        run(output="logits"),
    ]
    assert len(list(tmp_path.iterdir())) == 1 + len(others)
    assert all(not np.array_equal(first, other) for other in others[:3])
    np.testing.assert_array_equal(others[3], first)


@pytest.mark.parametrize("damage", ["cut", "flip", "text", "other"])
def test_damaged_entry_is_computed_again(model, tmp_path, damage):
    network, params, variables, _ = model
    first = features(network, params, variables, X, cache=tmp_path)
    (entry,) = tmp_path.iterdir()
    data = bytearray(entry.read_bytes())
    if damage == "cut":
        entry.write_bytes(data[:-30])
    elif damage == "flip":
        data[data.index(b"\x93NUMPY") + 140] ^= 255
        entry.write_bytes(data)
    elif damage == "text":
        entry.write_text("not an archive")
    else:
        with open(entry, "wb") as file:
            np.savez(file, values=first + 1, sha256=np.array("0"))
    with pytest.warns(UserWarning, match="damaged"):
        again = features(network, params, variables, X, cache=tmp_path)
    np.testing.assert_array_equal(again, first)
    np.testing.assert_array_equal(features(network, params, variables, X, cache=tmp_path), first)  # no warning: mended
    assert [path.name for path in tmp_path.iterdir()] == [entry.name]


def test_errors(model, tmp_path):
    network, params, variables, _ = model
    for wrong, message in (
        (X[:0], "1 or more rows"),
        ({"a": X, "b": X[:3]}, "common first axis"),
        ({}, "first axis"),
    ):
        with pytest.raises(UsageError, match=message):
            features(network, params, variables, wrong)
    with pytest.raises(UsageError, match="no output 'feature'; it has features, logits"):
        features(network, params, variables, X, output="feature")
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="another cache folder"):
        features(network, params, variables, X, cache=tmp_path / "file" / "x")
