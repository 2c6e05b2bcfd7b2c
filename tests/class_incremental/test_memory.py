"""The exemplar memory: prefixes of old classes, herded rows of new ones, in slots that never change their number."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from jaxkit.check import UsageError
from jaxkit.class_incremental import Keep, make_stream
from jaxkit.class_incremental import memory as m

STREAM = make_stream(np.repeat(np.arange(4), 6), increment=2)


def filled() -> m.Memory:
    """Two classes of three exemplars each; the value of an exemplar is 10 times its class plus its rank."""
    x = jnp.zeros((6, 1), jnp.float32)
    memory = m.Memory(x, jnp.zeros((4,), jnp.int32))
    data = {"x": jnp.array([[0.0], [1.0], [2.0], [10.0], [11.0], [12.0]])}
    counts = jnp.array([3, 3, 0, 0], jnp.int32)
    return m.remember(memory, counts, data, jnp.array([[0, 1, 2], [3, 4, 5]]), jnp.int32(0))


def test_exemplars_stand_class_by_class_in_the_order_of_herding():
    memory = filled()
    assert memory.x[:, 0].tolist() == [0, 1, 2, 10, 11, 12]
    label, taken = m.labels(memory)
    assert label.tolist() == [0, 0, 0, 1, 1, 1]
    assert bool(taken.all())


def test_old_classes_keep_a_prefix_when_new_ones_come():
    data = {"x": jnp.array([[20.0], [30.0]])}
    after = m.remember(
        filled(), jnp.array([2, 1, 1, 1], jnp.int32), data, jnp.array([[0, 0, 0], [1, 1, 1]]), jnp.int32(2)
    )
    assert after.x[:, 0].tolist() == [0, 1, 10, 20, 30, 0]
    label, taken = m.labels(after)
    assert label[taken].tolist() == [0, 0, 1, 2, 3]
    assert taken.tolist() == [True] * 5 + [False]


def test_uint8_holds_pixels_exactly():
    pixels = np.arange(256, dtype=np.uint8)[:, None]
    x = jnp.asarray(pixels, jnp.float32) / 255.0
    memory = m.empty(Keep(256), 4, x)
    memory = memory._replace(x=m.stored(x, memory))
    assert memory.x.dtype == jnp.uint8
    np.testing.assert_array_equal(memory.x, pixels)
    np.testing.assert_array_equal(m.read(memory, jnp.arange(256)), x)


def test_quotas():
    assert Keep(2000).quota(30) == 66
    assert Keep(None, 20).quota(30) == 20
    assert (Keep(2000).slots(100), Keep(None, 20).slots(100)) == (2000, 2000)
    assert m.make_keep(None).slots(10) == 0
    assert m.empty(m.NOTHING, 4, jnp.zeros((1, 2))) == ()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: m.check_keep(m.make_keep(3), STREAM), "less than one for each of 4 classes"),
        (lambda: m.make_keep(0), "memory must be at least 1"),
        (lambda: m.make_keep(Keep(storage="jpeg")), "unknown storage"),
        (
            lambda: m.check_rows(Keep(8), {"x": 255 * np.ones((2, 1)), "y": np.array([0, 1])}, (2, 4)),
            "x must lie in .0, 1.",
        ),
        (
            lambda: m.check_rows(Keep(8), {"x": np.ones((5, 1)), "y": np.array([0, 0, 0, 0, 1])}, (2, 4)),
            "class 1 has 1 rows, but 4 exemplars",
        ),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(UsageError, match=message):
        call()


def test_a_long_tail_may_have_fewer_rows_than_exemplars():
    m.check_rows(Keep(8, partial=True), {"x": np.ones((5, 1)), "y": np.array([0, 0, 0, 0, 1])}, (2, 4))
