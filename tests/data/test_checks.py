"""Every way in which Data can be wrong has one line."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkit.check import UsageError
from jaxkit.data import check_data

X = np.ones((6, 2), np.float32)
Y = np.array([0, 1, 2, 0, 1, 2], np.int32)


def holed(value):
    x = X.copy()
    x[4, 1] = value
    return x


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        ([X, Y], {}, "must be a dict"),
        ({}, {}, "data has no 'x'; it has nothing"),
        ({"y": Y}, {}, "data has no 'x'; it has y"),
        ({"x": X[:0]}, {}, "no rows"),
        ({"x": np.float32(1)}, {}, "single number"),
        ({"x": X, "y": Y[:5]}, {}, "'x' has 6 rows and 'y' has 5"),
        ({"x": {"a": X, "b": X[:4]}}, {}, "'x/a' has 6 rows and 'x/b' has 4"),
        ({"x": np.array(list("abcdef"))}, {}, "not numeric"),
        ({"x": X.astype(object)}, {}, "not numeric"),
        ({"x": holed(np.nan)}, {}, r"'x' has NaN or infinity in 1 of 6 rows \(the first is row 4\)"),
        ({"x": X, "y": holed(np.inf)}, {}, "'y' has NaN or infinity"),
        ({"x": jnp.asarray(holed(np.nan), jnp.bfloat16)}, {}, "NaN or infinity in 1 of 6"),
        ({"x": X, "y": Y}, {"num_classes": 2}, r"in 0..1, got 0..2 \(2 rows outside, the first is row 2\)"),
        ({"x": X, "y": Y - 1}, {"num_classes": 3}, r"in 0..2, got -1..1 \(2 rows outside, the first is row 0\)"),
        ({"x": X, "y": Y}, {"num_classes": 5}, r"classes without a row: 3, 4 \(of 5\)"),
        ({"x": X, "y": Y.astype(np.float32)}, {"num_classes": 3}, "whole numbers"),
        ({"x": X, "y": Y[:, None]}, {"num_classes": 3}, r"shape \[rows\], got \[6, 1\]"),
        ({"x": X}, {"num_classes": 3}, "data has no 'y'"),
        ({"x": X, "y": Y * 0}, {"num_classes": 1}, "one class only"),
        ({"x": X}, {"num_envs": 3}, "data has no 'env'"),
        ({"x": X, "env": Y}, {"num_envs": 4}, "environments without a row: 3"),
        ({"x": X, "env": Y - 1}, {}, "'env' must lie 0 or more, got -1..1"),
    ],
)
def test_one_line_each(data, options, message):
    with pytest.raises(UsageError, match=message) as caught:
        check_data(data, **options)
    assert "\n" not in str(caught.value)


def test_good_data_passes_concrete_and_traced():
    good = {"x": {"a": X, "b": Y}, "y": Y, "env": Y}
    assert check_data(good, num_classes=3, num_envs=3) is good
    assert check_data({"x": X, "y": X[:, 0]})["y"].dtype == np.float32  # float targets without num_classes
    jax.jit(lambda data: check_data(data, num_classes=3)["y"])(good)
