import itertools
import math

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import scipy.stats

from jaxkit import evaluation as ev
from jaxkit.check import UsageError

# Student (1908), after Cushny and Peebles: extra sleep under two drugs; t = -4.06 on 9 degrees of freedom, p = 0.0028.
FIRST = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
SECOND = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]


def test_paired_t_of_student():
    outcome = ev.paired_t_test(FIRST, SECOND)
    np.testing.assert_allclose([outcome.statistic, outcome.p], [-4.0621, 0.002833], rtol=1e-3)
    assert outcome.n == 10


def test_wilcoxon_and_sign_of_student():
    # Nine differences remain, all negative: W = 0; the sign test has p = 2 / 2^9.
    assert ev.sign_test(FIRST, SECOND) == ev.PairedTest(0.0, 2 / 2**9, 9)
    outcome = ev.wilcoxon_test(FIRST, SECOND)
    assert outcome.statistic == 0.0 and outcome.n == 9
    d = np.subtract(FIRST, SECOND)
    assert outcome.p == scipy.stats.wilcoxon(d[d != 0]).pvalue


def test_wilcoxon_is_exact_for_few_pairs():
    # Five positive differences of different size: W- = 0, of 2^5 sign patterns two are as extreme.
    np.testing.assert_allclose(ev.wilcoxon_test([1.0, 2.0, 3.0, 4.0, 5.0], [0.0] * 5).p, 2 / 32)
    np.testing.assert_allclose(ev.wilcoxon_test([1.0, 2.0, 3.0, 4.0, 5.0], [0.0] * 5, "greater").p, 1 / 32)


@pytest.mark.parametrize("alternative", ["two-sided", "greater", "less"])
def test_permutation_equals_the_full_enumeration(alternative):
    d = np.array([0.3, -0.1, 0.25, 0.6, 0.15, 0.05])
    means = np.array([np.mean(np.array(s) * d) for s in itertools.product([1, -1], repeat=6)])
    observed = d.mean()
    greater, less = np.mean(means >= observed - 1e-12), np.mean(means <= observed + 1e-12)
    expected = {"greater": greater, "less": less, "two-sided": min(1.0, 2 * min(greater, less))}[alternative]
    outcome = ev.permutation_test(d, np.zeros(6), alternative)
    np.testing.assert_allclose([outcome.statistic, outcome.p], [observed, expected], rtol=1e-9)


ALL = (ev.paired_t_test, ev.wilcoxon_test, ev.sign_test, ev.permutation_test)


@pytest.mark.parametrize("test", ALL)
def test_equal_vectors_give_p_1(test):
    assert test([0.1, 0.2, 0.3], [0.1, 0.2, 0.3]).p == 1.0


def test_one_pair():
    assert math.isnan(ev.paired_t_test([1.0], [0.0]).p)
    assert (
        ev.sign_test([1.0], [0.0]).p == ev.wilcoxon_test([1.0], [0.0]).p == ev.permutation_test([1.0], [0.0]).p == 1.0
    )
    assert ev.permutation_test([1.0], [0.0], "greater").p == 0.5


def test_equal_differences_are_certain_for_t():
    outcome = ev.paired_t_test([1.0, 2.0, 3.0], [0.0, 1.0, 2.0])
    assert outcome.statistic == math.inf and outcome.p == 0.0


@pytest.mark.parametrize("test", ALL)
def test_under_the_null_p_is_not_too_small(test):
    rng = np.random.default_rng(0)
    draws = 300
    small = sum(test(a, b).p <= 0.1 for a, b in rng.normal(size=(draws, 2, 6)))
    # At most 10 % of null p-values lie below 0.1; a valid test breaks this bound once in ten thousand seeds.
    assert scipy.stats.binomtest(small, draws, 0.1, alternative="greater").pvalue > 1e-4


def test_holm_on_worked_examples():
    # The example of the encyclopaedia's article (Holm-Bonferroni method), which rejects the first and the last at 0.05:
    # 4 * 0.005 = 0.02, 3 * 0.01 = 0.03, 2 * 0.03 = 0.06, 1 * 0.04 = 0.04 raised to 0.06.
    np.testing.assert_allclose(ev.holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(ev.holm([0.5, 0.9]), [1.0, 1.0])
    np.testing.assert_allclose(ev.holm([0.01, math.nan, 0.04]), [0.02, math.nan, 0.04])
    assert ev.holm([]).size == 0


@hypothesis.settings(max_examples=100, deadline=None)
@hypothesis.given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.randoms(use_true_random=False))
def test_holm_is_between_raw_and_bonferroni_and_equivariant(p, random):
    adjusted = ev.holm(p)
    assert (adjusted >= p).all() and (adjusted <= np.minimum(1.0, len(p) * np.array(p))).all()
    order = random.sample(range(len(p)), len(p))
    np.testing.assert_array_equal(ev.holm(np.array(p)[order]), adjusted[order])
    # Rejection at level a is Holm's step-down procedure.
    rejected, a = set(), 0.05
    for step, i in enumerate(np.argsort(p, kind="stable")):
        if p[i] > a / (len(p) - step) * (1 + 1e-12):
            break
        rejected.add(int(i))
    near = np.abs(adjusted - a) < 1e-9
    assert {int(i) for i in np.flatnonzero((adjusted <= a) & ~near)} == {i for i in rejected if not near[i]}


def test_compare_pairs_and_baseline():
    rng = np.random.default_rng(0)
    shared = rng.normal(size=8)
    values = {
        name: shared + shift + 0.1 * rng.normal(size=8) for name, shift in (("erm", 0), ("irm", 1), ("dro", 0.02))
    }
    every = ev.compare(values)
    assert [(c.method, c.against) for c in every] == [("erm", "irm"), ("erm", "dro"), ("irm", "dro")]
    np.testing.assert_allclose([c.p_holm for c in every], ev.holm([c.p for c in every]))
    against = ev.compare(values, "ERM", test="Wilcoxon")
    assert [(c.method, c.against) for c in against] == [("irm", "erm"), ("dro", "erm")]
    assert against[0].p == scipy.stats.wilcoxon(values["irm"], values["erm"]).pvalue
    for c in (*every, *against):
        d = values[c.method] - values[c.against]
        np.testing.assert_allclose([c.difference, c.low, c.high, c.n], ev.mean_interval(d), rtol=1e-12)


def test_compare_with_one_seed_has_no_interval_and_no_p():
    (only,) = ev.compare({"a": [0.5], "b": [0.4]})
    assert only.n == 1 and all(math.isnan(v) for v in (only.low, only.high, only.p, only.p_holm))
    np.testing.assert_allclose(only.difference, 0.1)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: ev.compare({"erm": [1.0]}), "at least two methods"),
        (lambda: ev.compare({"erm": [1.0, math.nan], "irm": [1.0, 2.0]}), "erm: entry 1 of 2 is nan"),
        (lambda: ev.compare({"erm": [1.0, 2.0], "irm": [1.0]}), "same seeds"),
        (lambda: ev.compare({"erm": [1.0], "irm": [1.0]}, "emr"), "did you mean 'erm'"),
        (lambda: ev.compare({"erm": [1.0], "irm": [1.0]}, test="wilcoxn"), "did you mean 'wilcoxon'"),
        (lambda: ev.paired_t_test([1.0], [1.0, 2.0]), "one length"),
        (lambda: ev.sign_test([1.0], [2.0], "up"), "alternative must be one of"),
        (lambda: ev.holm([0.5, 1.5]), r"numbers in \[0, 1\]"),
    ],
)
def test_mistakes(call, words):
    with pytest.raises(UsageError, match=words):
        call()
