"""The checks at the doors: what passes, what is refused, and that the message says how to mend it."""

import inspect
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxkit import check


@pytest.mark.parametrize("value", [0, 1, 0.25, np.float32(0.5), jnp.asarray(0.75)])
def test_what_is_inside_comes_back_as_it_was(value):
    assert check.fraction("share", value) is value


@pytest.mark.parametrize(
    "value", [-1e-9, 1.0001, math.nan, math.inf, -math.inf, "a", None, [0.5, 0.5], jnp.asarray(2.0)]
)
def test_what_is_outside_raises_with_its_name_and_value(value):
    with pytest.raises(check.UsageError, match="^share must ") as caught:
        check.fraction("share", value)
    assert "\n" not in str(caught.value)


def test_an_open_end_excludes_the_end():
    assert check.number("tau", 0.0, 0.0, 1.0) == 0.0
    with pytest.raises(check.UsageError, match=r"tau must lie in \(0, 1\], got 0\.0"):
        check.number("tau", 0.0, 0.0, 1.0, open_low=True)


@pytest.mark.parametrize("value", [0, -1, 0.0, math.nan, math.inf, "1e", None])
def test_positive_refuses(value):
    with pytest.raises(check.UsageError, match="^rate must "):
        check.positive("rate", value)


@given(st.floats(min_value=1e-300, max_value=1e300))
def test_positive_passes_every_finite_number_above_zero(value):
    assert check.positive("rate", value) == value


def test_traced_values_pass_unchecked():
    @jax.jit
    def scaled(rate):
        return check.positive("rate", rate) * check.fraction("rate", rate) * check.number("rate", rate, 5.0, 6.0)

    assert scaled(-2.0) == -8.0


@pytest.mark.parametrize("value", [1, np.int64(3), np.uint8(7)])
def test_count_gives_a_python_integer(value):
    assert type(check.count("steps", value)) is int
    assert check.count("steps", value) == value


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (0, "at least 1, got 0"),
        (True, "whole number"),
        (1.0, "whole number"),
        ("3", "whole number"),
        (None, "whole number"),
    ],
)
def test_count_refuses(value, message):
    with pytest.raises(check.UsageError, match=f"^steps must be .*{message}"):
        check.count("steps", value)


def test_count_has_the_lower_end_it_is_given():
    assert check.count("rest", 0, low=0) == 0
    with pytest.raises(check.UsageError, match="rest must be at least 2, got 1"):
        check.count("rest", 1, low=2)


OPTIONS = ["balanced_softmax", "cRT", "LDAM", "logit_adjustment"]


@pytest.mark.parametrize("name", ["crt", "CRT", " cRT "])
def test_a_name_is_found_in_any_case(name):
    assert check.choose("method", name, OPTIONS) == "cRT"


@pytest.mark.parametrize("name", ["Balanced-Softmax", "balanced softmax", "BALANCED_SOFTMAX"])
def test_a_name_is_found_with_any_separator(name):
    assert check.choose("method", name, OPTIONS) == "balanced_softmax"


@given(st.text())
def test_folding_twice_is_folding_once(name):
    assert check.fold(check.fold(name)) == check.fold(name)


def test_a_typing_error_is_answered_with_the_nearest_name():
    with pytest.raises(check.UsageError, match=r"unknown method 'balanced_sofmax'; did you mean 'balanced_softmax'"):
        check.choose("method", "balanced_sofmax", OPTIONS)


def test_a_name_far_from_all_is_answered_with_the_list():
    with pytest.raises(
        check.UsageError, match=r"unknown method 'zzz'; known: LDAM, balanced_softmax, cRT, logit_adjustment$"
    ):
        check.choose("method", "zzz", OPTIONS)
    with pytest.raises(check.UsageError, match=r", \.\.\.$"):
        check.choose("method", "zzz", [f"name{i}" for i in range(20)])


@pytest.mark.parametrize("name", [None, 3, ["cRT"]])
def test_a_name_that_is_no_text_is_an_error_of_the_same_kind(name):
    choose = inspect.unwrap(check.choose)  # as users call it, without the annotation checks of the tests
    with pytest.raises(check.UsageError, match="unknown method"):
        choose("method", name, OPTIONS)


def test_whole_numbers_come_as_a_tuple():
    assert check.counts("hidden", [64, 32]) == (64, 32) and check.counts("hidden", ()) == ()
    with pytest.raises(check.UsageError, match=r"hidden must be a tuple of whole numbers, such as \(64,\), got 64"):
        check.counts("hidden", 64)
    with pytest.raises(check.UsageError, match="hidden must be at least 1, got 0"):
        check.counts("hidden", (64, 0))


@pytest.mark.parametrize("value", [-1, 2**63, 2**64, 1.0, "1"])
def test_a_seed_is_what_jax_takes(value):
    assert check.seed("key", 2**63 - 1) == 2**63 - 1
    with pytest.raises(check.UsageError, match="key must be"):
        check.seed("key", value)


def test_a_usage_error_is_a_value_error():
    assert issubclass(check.UsageError, ValueError)
