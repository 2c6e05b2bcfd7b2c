"""Which classes come when."""

from __future__ import annotations

import numpy as np
import pytest

from jaxkit.check import UsageError
from jaxkit.class_incremental import bounds_of, class_order, in_order, make_stream
from jaxkit.class_incremental.stream import class_counts, open_stream


def test_the_order_of_the_survey():
    # iCaRL's order of CIFAR-100, and that of ten classes.
    assert class_order(100)[:12].tolist() == [68, 56, 78, 8, 23, 84, 90, 65, 74, 76, 40, 89]
    assert class_order(10).tolist() == [4, 2, 7, 6, 0, 3, 5, 8, 9, 1]


@pytest.mark.parametrize(
    ("classes", "increment", "base", "bounds"),
    [
        (10, 2, 0, (2, 4, 6, 8, 10)),
        (100, 10, 50, (50, 60, 70, 80, 90, 100)),
        (10, 3, 0, (3, 6, 9, 10)),
        (4, 2, 4, (4,)),
        (5, 9, 0, (5,)),
    ],
)
def test_bounds(classes, increment, base, bounds):
    if base or increment <= classes:
        assert bounds_of(classes, increment, base) == bounds
    else:
        with pytest.raises(UsageError, match="lower base"):
            bounds_of(classes, increment, base)


def test_a_stream_knows_its_tasks():
    stream = make_stream(np.repeat(np.arange(5), [4, 6, 5, 5, 5]), increment=2)
    assert stream.bounds == (2, 4, 5)
    assert stream.sizes == (2, 2, 1)
    assert stream.task_of().tolist() == [0, 0, 1, 1, 2]
    assert (stream.most_rows, stream.mean_rows) == (6, 5.0)


def test_labels_become_places():
    data = in_order({"x": np.zeros((4, 1)), "y": np.array([2, 0, 1, 2])}, np.array([2, 0, 1]))
    assert data["y"].tolist() == [0, 1, 2, 0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: in_order({"y": np.array([0, 1])}, np.array([0, 0])), "each of 0..1 once"),
        (lambda: in_order({"y": np.array([0, 2])}, np.array([1, 0])), "labels outside the order"),
        (lambda: make_stream(np.array([0, 2]), increment=1), "class 1 has no rows"),
        (lambda: make_stream(np.array([0.0, 1.0]), increment=1), "whole numbers"),
        (lambda: class_counts(np.array([-1, 0])), "lie in 0..0"),
        (lambda: class_order(0), "num_classes"),
        (lambda: bounds_of(4, 2, 5), "lower base"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(UsageError, match=message):
        call()


def test_an_open_stream_has_one_task_at_hand():
    stream = open_stream((4, 6), [10, 20], 16, num_tasks=5)
    assert stream.bounds == (4, 6, 8, 8, 8) and stream.sizes == (4, 2, 2, 0, 0)
    assert (stream.num_classes, stream.num_tasks, stream.most_rows, stream.mean_rows) == (16, 5, 20, 15.0)
    assert stream.task_of().tolist() == [0] * 4 + [1] * 2 + [2] * 2 + [4] * 8
    assert open_stream((), [3], 1).bounds == (1,) and open_stream((2,), [3, 3], 4).bounds == (2, 4)
    with pytest.raises(UsageError, match="room for 16 classes, and with this task there are 17"):
        open_stream((15,), [1, 1], 16)
    with pytest.raises(UsageError, match="room for 2 tasks, and this is task 3"):
        open_stream((1, 2), [1], 16, num_tasks=2)
