"""The published numbers agree with each other where one follows from others."""

from __future__ import annotations

import numpy as np
import pytest

from jaxkit.check import UsageError
from jaxkit.class_incremental import METHODS
from jaxkit.class_incremental import published as tables
from jaxkit.class_incremental.budget import aligned_exemplars, budget_points
from jaxkit.class_incremental.parts import Parts
from jaxkit.class_incremental.published import published

TEN_TASKS = "cifar100_b0_inc10"


@pytest.mark.parametrize("method", sorted(tables.CIFAR100_BY_TASK))
def test_the_accuracies_by_task_are_those_of_the_table(method):
    row = tables.CIFAR100_BY_TASK[method]
    assert len(row) == 10
    assert row[-1] == published(method, TEN_TASKS, "last").value
    gap = np.mean(row) - published(method, TEN_TASKS, "average").value
    if method in tables.OTHER_AVERAGE:
        assert 0.04 < gap < 0.16
    else:
        assert abs(gap) <= 0.0051  # two decimals


@pytest.mark.parametrize("method", sorted({*tables.AREAS} - {"der", "memo"}))
def test_an_area_lies_between_those_of_the_accuracies_at_its_ends(method):
    """A single network has 2,000 exemplars at one end and 7,431 at the other. DER and MEMO have other networks between.

    GEM's rows are of two read-outs: between its ends its areas are those of the aligned table alone.
    """
    first, *_, last = budget_points(TEN_TASKS)
    width = (last.megabytes - first.megabytes) / 100
    for metric, area in (("average", "auc_average"), ("last", "auc_last")):
        ends = (TEN_TASKS, f"{TEN_TASKS}_aligned")
        low, high = (published(method, setting, metric).value * width for setting in ends)
        found = published(method, TEN_TASKS, area).value
        if method == "gem":
            assert found == pytest.approx(high, abs=0.02)
            assert low > 1.4 * found
        else:
            assert low < found < high


def test_exemplars_of_the_aligned_table_are_those_of_the_budget():
    resnet32 = Parts(112_016, 351_488)
    for setting, tasks in (("cifar100_b0_inc5_aligned", 20), ("cifar100_b0_inc10_aligned", 10)):
        for method in METHODS.keys() & tables.ALIGNED.keys():
            printed = published(method, setting, "exemplars").value
            assert printed == aligned_exemplars(method, tasks, resnet32, 3072)


def test_every_number_is_in_its_range_and_says_where_it_stands():
    ranges = {"average": (0, 100), "last": (0, 100), "forgetting": (0, 1), "intransigence": (-1, 1)}
    numbers = tables.numbers()
    for (method, setting, metric), number in numbers.items():
        assert metric in tables.METRICS
        assert number.tag
        low, high = ranges.get(metric, (0, np.inf))
        assert low <= number.value <= high
        if metric == "average":
            assert numbers[method, setting, "last"].value < number.value


def test_the_tables_have_the_rows_of_the_survey():
    assert len(tables.CIFAR100) == 17
    assert len(tables.IMAGENET100) == 15
    assert len(tables.ALIGNED) == len(tables.AREAS) == 10
    assert len(tables.FORGETTING) == 15
    assert {len(row) for row in tables.CIFAR100.values()} == {len(tables.CIFAR100_SETTINGS)}
    assert {len(row) for row in tables.IMAGENET100.values()} == {len(tables.IMAGENET100_SETTINGS)}


def test_a_number_is_looked_up():
    number = published("WA", "CIFAR100-B0-Inc10", "last")
    assert number.value == 52.30
    assert number.tag == "Zhou et al. 2024, Table 5: CIFAR-100, ResNet-32"
    assert published("wa", TEN_TASKS, "intransigence").value == 0.001
    assert published("memo", TEN_TASKS, "parameters").value == 3.62
    assert published("foster", "imagenet100_b50_inc5", "auc_average").value == 638.7
    assert published("icarl", "split_mnist", "last").value == 94.0
    assert published("wa", "cifar100_b50_inc25", "average") is None
    assert published("gem", "imagenet100_b0_inc10", "last") is None
    assert "nearest mean" in published("gem", TEN_TASKS, "last").note
    assert "classifier" in published("gem", f"{TEN_TASKS}_aligned", "last").note


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("iclar", TEN_TASKS, "last"), "unknown published method 'iclar'; did you mean 'icarl'"),
        (("wa", "cifar100_inc7", "last"), "unknown setting 'cifar100_inc7'"),
        (("wa", TEN_TASKS, "lasst"), "unknown metric 'lasst'; did you mean 'last'"),
    ],
)
def test_an_unknown_name_is_named(names, message):
    with pytest.raises(UsageError) as caught:
        published(*names)
    assert message in str(caught.value)
