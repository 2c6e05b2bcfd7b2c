import math

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import scipy.stats

from jaxkit import evaluation as ev
from jaxkit.check import UsageError


def test_t_interval_of_a_textbook_sample():
    # Student's own example (1908): hours of sleep gained, mean 1.58, standard deviation 1.230; t_{9,0.975} = 2.262.
    extra = [1.2, 2.4, 1.3, 1.3, 0.0, 1.0, 1.8, 0.8, 4.6, 1.4]
    value, low, high, n = ev.mean_interval(extra)
    np.testing.assert_allclose([value, low, high], [1.58, 0.70, 2.46], atol=0.005)
    assert n == 10
    ends = scipy.stats.ttest_1samp(extra, 0.0).confidence_interval(0.9)
    np.testing.assert_allclose(ev.mean_interval(extra, 0.9)[1:3], ends, rtol=1e-12)


def test_t_interval_covers_as_often_as_it_says():
    rng = np.random.default_rng(0)
    draws, level = 2000, 0.9
    inside = 0
    for sample in rng.normal(3.0, 2.0, size=(draws, 5)):
        _, low, high, _ = ev.mean_interval(sample, level)
        inside += low <= 3.0 <= high
    # An exact method falls outside these bounds once in ten thousand seeds.
    assert scipy.stats.binomtest(inside, draws, level).pvalue > 1e-4


def test_one_value_has_no_interval_and_equal_values_have_width_0():
    for interval in (ev.mean_interval([2.0]), ev.mean_interval(2.0), ev.bootstrap_interval([2.0])):
        assert interval.value == 2.0 and math.isnan(interval.low) and math.isnan(interval.high) and interval.n == 1
    for interval in (ev.mean_interval([0.5] * 4), ev.bootstrap_interval([0.5] * 4)):
        assert interval == ev.Interval(0.5, 0.5, 0.5, 4)


@hypothesis.settings(max_examples=50, deadline=None)
@hypothesis.given(
    st.lists(st.integers(-100, 100), min_size=2, max_size=8), st.integers(-50, 50), st.sampled_from([0.25, 2.0, 8.0])
)
def test_t_interval_moves_with_shift_and_scale(values, shift, scale):
    plain = np.array(ev.mean_interval(values)[:3])
    moved = np.array(ev.mean_interval(scale * np.array(values) + shift)[:3])
    np.testing.assert_allclose(moved, scale * plain + shift, rtol=1e-9, atol=1e-9)
    assert plain[1] <= plain[0] <= plain[2]


@pytest.mark.parametrize("method", ["bca", "percentile", "basic", "BCa"])
def test_bootstrap_is_repeatable_and_near_the_normal_interval(method):
    values = np.random.default_rng(1).normal(10.0, 2.0, size=200)
    interval = ev.bootstrap_interval(values, method=method, seed=3)
    assert interval == ev.bootstrap_interval(values, method=method, seed=3)
    half = 1.96 * values.std() / math.sqrt(200)
    ends = [values.mean() - half, values.mean() + half]
    # Monte Carlo error of a 2.5 % quantile over 9999 resamples is about 2 % of the half width; skewness adds as much.
    np.testing.assert_allclose([interval.low, interval.high], ends, atol=0.1 * half)


def test_bootstrap_percentile_agrees_with_a_transcription():
    values, seed, resamples = np.random.default_rng(2).exponential(size=30), 5, 2000
    rows = np.random.default_rng(seed).integers(0, 30, size=(resamples, 30))
    expected = np.quantile(values[rows].mean(-1), [0.025, 0.975])
    interval = ev.bootstrap_interval(values, method="percentile", resamples=resamples, seed=seed)
    # Another stream of random numbers may be drawn: they agree within Monte Carlo error (about 0.015).
    np.testing.assert_allclose([interval.low, interval.high], expected, atol=0.05)


def test_bootstrap_draws_rows_together():
    rng = np.random.default_rng(3)
    y = rng.normal(size=60)
    correlation = lambda a, b: np.corrcoef(a, b)[0, 1]
    interval = ev.bootstrap_interval(y, 2 * y, statistic=correlation, method="percentile", resamples=50)
    np.testing.assert_allclose([interval.low, interval.high], 1.0, rtol=1e-12)


def test_wilson_against_its_formula():
    for successes, trials in ((0, 10), (9, 10), (50, 100), (81, 263)):
        z, p = scipy.stats.norm.ppf(0.975), successes / trials
        centre = (p + z**2 / (2 * trials)) / (1 + z**2 / trials)
        half = z / (1 + z**2 / trials) * math.sqrt(p * (1 - p) / trials + z**2 / (4 * trials**2))
        interval = ev.wilson_interval(successes, trials)
        np.testing.assert_allclose(interval[:3], [p, centre - half, centre + half], rtol=1e-9, atol=1e-12)
    # Newcombe (1998), Table I, method 3: 81 of 263.
    np.testing.assert_allclose(ev.wilson_interval(81, 263)[1:3], [0.2553, 0.3662], atol=5e-5)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: ev.mean_interval([1.0, math.nan], name="erm, seed"), "erm, seed: entry 1 of 2 is nan"),
        (lambda: ev.mean_interval([]), "at least one number"),
        (lambda: ev.mean_interval([[1.0, 2.0]]), "vector"),
        (lambda: ev.mean_interval("high"), "must be numbers"),
        (lambda: ev.mean_interval([1.0, 2.0], 95), "level must lie strictly between"),
        (lambda: ev.bootstrap_interval(), "at least one vector"),
        (lambda: ev.bootstrap_interval([1.0, 2.0], [1.0]), "one length"),
        (lambda: ev.bootstrap_interval([1.0, 2.0], method="percentil"), "did you mean 'percentile'"),
        (lambda: ev.wilson_interval(3, 2), "at most trials"),
        (lambda: ev.wilson_interval(-1, 2), "successes must be at least 0"),
        (lambda: ev.wilson_interval(0, 0), "trials must be at least 1"),
    ],
)
def test_mistakes(call, words):
    with pytest.raises(UsageError, match=words):
        call()
