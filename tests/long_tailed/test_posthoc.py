"""Corrections of trained models: their identities, and a rescue whose right answer is known."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import special, stats

from jaxkit import evaluation, learner
from jaxkit import long_tailed as lt
from jaxkit.check import UsageError
from jaxkit.long_tailed.rescue import class_weights, fold_of, proportion_interval, stratified_interval
from jaxkit.networks import mlp

RNG = np.random.default_rng(1)
CLASSES, ROWS = 4, 7
COUNTS = np.array([300, 60, 12, 4])
PI = COUNTS / COUNTS.sum()
TARGET = np.array([0.1, 0.2, 0.3, 0.4])
Z = (2 * RNG.normal(size=(ROWS, CLASSES))).astype(np.float32)
P = special.softmax(Z.astype(np.float64), axis=1)


def normalised(p):
    return p / p.sum(1, keepdims=True)


class Formulas(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    def test_against_transcriptions(self):
        adjusted = self.variant(lambda z: lt.logit_adjustment(z, COUNTS, 1.3))(jnp.asarray(Z))
        np.testing.assert_allclose(adjusted, Z - 1.3 * np.log(PI), rtol=1e-5)
        for target in (None, TARGET):
            given = self.variant(lambda z, target=target: lt.uno_ic(z, COUNTS, beta=0.4, target_prior=target))(Z)
            shifted = normalised(P / PI * (1 / CLASSES if target is None else target))
            wanted = normalised(P**0.6 * shifted**0.4)
            np.testing.assert_allclose(special.softmax(given, axis=1), wanted, rtol=1e-5)
        given = self.variant(lambda z: lt.for_prior(z, TARGET))(jnp.asarray(Z))
        np.testing.assert_allclose(special.softmax(given, axis=1), normalised(P * TARGET), rtol=1e-5)


def test_identities():
    np.testing.assert_array_equal(lt.logit_adjustment(Z, COUNTS, 0.0), Z)
    np.testing.assert_array_equal(lt.uno_ic(Z, COUNTS, beta=0.0), Z)
    # beta = 1 is Bayes' rule for a new prior.
    np.testing.assert_allclose(
        special.softmax(lt.uno_ic(Z, COUNTS, beta=1.0, target_prior=TARGET), axis=1),
        normalised(P * TARGET / PI),
        rtol=1e-5,
    )
    np.testing.assert_allclose(
        jax.nn.softmax(lt.uno_ic(Z, COUNTS, beta=0.7)), jax.nn.softmax(lt.logit_adjustment(Z, COUNTS, 0.7)), rtol=1e-5
    )
    # The target that is the training prior takes nothing away, and a uniform one is none.
    np.testing.assert_allclose(lt.uno_ic(Z, COUNTS, beta=0.7, target_prior=PI), Z, atol=1e-5)
    np.testing.assert_allclose(jax.nn.softmax(lt.for_prior(Z, np.full(CLASSES, 0.25))), P, rtol=1e-5)
    # Balanced softmax trains z + log pi; taking log pi off again is the post-hoc adjustment with tau = 1.
    labels = np.arange(ROWS, dtype=np.int32) % CLASSES
    np.testing.assert_allclose(
        lt.softmax(Z, labels), lt.balanced_softmax(lt.logit_adjustment(Z, COUNTS), labels, COUNTS), rtol=1e-5
    )


def test_numbers_can_be_mapped_over():
    taus = np.array([0.0, 0.5, 2.0], np.float32)
    mapped = jax.jit(jax.vmap(lambda tau: lt.logit_adjustment(jnp.asarray(Z), COUNTS, tau)))(taus)
    np.testing.assert_allclose(mapped, [lt.logit_adjustment(Z, COUNTS, float(tau)) for tau in taus], rtol=1e-6)
    betas = np.array([0.0, 0.5, 1.0], np.float32)
    mapped = jax.jit(jax.vmap(lambda beta: lt.uno_ic(jnp.asarray(Z), COUNTS, beta=beta)))(betas)
    np.testing.assert_allclose(mapped, [lt.uno_ic(Z, COUNTS, beta=float(beta)) for beta in betas], rtol=1e-6)


def test_tau_normalisation():
    network, x = mlp(CLASSES, hidden=(6,)), jnp.asarray(RNG.normal(size=(5, 3)), jnp.float32)
    params, variables = network.init(jax.random.key(0), x)
    params["head"]["bias"] = jnp.arange(4.0)
    norms = lambda params: np.linalg.norm(params["head"]["kernel"], axis=0)
    np.testing.assert_allclose(norms(lt.tau_normalize(params, 1.0)), 1.0, rtol=1e-6)
    np.testing.assert_allclose(norms(lt.tau_normalize(params, 0.3)), norms(params) ** 0.7, rtol=1e-5)
    chex.assert_trees_all_equal(lt.tau_normalize(params, 0.0, keep_bias=True), params)
    even = lt.tau_normalize(params, 1.0)
    assert not even["head"]["bias"].any() and (params["head"]["bias"] == jnp.arange(4.0)).all()
    chex.assert_trees_all_equal(even["backbone"], params["backbone"])
    # Its logits are |f| times the cosine between features and class.
    outputs, _ = network.apply(even, variables, x)
    features, kernel = np.asarray(outputs["features"], np.float64), np.asarray(params["head"]["kernel"], np.float64)
    np.testing.assert_allclose(outputs["logits"], features @ (kernel / np.linalg.norm(kernel, axis=0)), atol=1e-5)
    zero = {**params, "head": {"kernel": jnp.zeros((6, 4))}}
    assert not lt.tau_normalize(zero, 1.0)["head"]["kernel"].any()
    cosine, _ = mlp(CLASSES, hidden=(6,), head="cosine").init(jax.random.key(0), x)
    for wrong in (cosine, params["head"], [params]):
        with pytest.raises(UsageError, match="tau_normalize needs params with a linear head"):
            lt.tau_normalize(wrong, 1.0)
    with pytest.raises(UsageError, match="tau must lie in"):
        lt.tau_normalize(params, -0.1)


# Rescue -------------------------------------------------------------------------------------------------------------


def gaussians(rows, counts, seed, sharpness=1.0):
    """Logits of the Bayes classifier for the training prior, times ``sharpness``, on rows of equally frequent classes.

    x | y is normal about 1.5 e_y with unit covariance: log p(x | y) is 1.5 x_y up to a constant, so that the best
    correction for a uniform prior is known: tau = sharpness, temperature = sharpness.
    """
    rng = np.random.default_rng(seed)
    y = np.arange(rows, dtype=np.int32) % len(counts)
    x = 1.5 * np.eye(len(counts))[y] + rng.normal(size=(rows, len(counts)))
    return sharpness * (1.5 * x + np.log(counts / counts.sum())), y


def test_rescue_finds_the_bayes_correction():
    z, y = gaussians(6000, COUNTS, 0, sharpness=2.0)
    found = lt.rescue(z, y, COUNTS, resamples=300)
    # The likelihood in T is flat to first order at its minimum: its standard error here is below 0.05; the accuracy is
    # flat in tau, of which a tenth either way costs less than an error of the accuracy.
    assert abs(found.temperature - 2.0) < 0.2
    assert abs(found.tau - 2.0) < 0.4
    fresh, labels = gaussians(20_000, COUNTS, 1, sharpness=2.0)
    best = np.mean((fresh / 2 - np.log(PI)).argmax(1) == labels)
    rescued = np.mean(np.asarray(found.apply(fresh)).argmax(1) == labels)
    assert best - 0.01 < rescued <= best + 0.01
    # What was said of the validation rows holds for fresh ones: both intervals are of 95 % and 6000 rows.
    for logits, part in ((fresh, found.before), (np.asarray(found.apply(fresh)), found.after)):
        accuracy = np.mean(logits.argmax(1) == labels)
        assert part["accuracy"].low - 0.01 < accuracy < part["accuracy"].high + 0.01
    assert found.change["macro_accuracy"].low > 0 and found.change["few"].low > found.change["many"].high
    assert found.after["ece"].value < 0.03 < found.before["ece"].low
    # The expected negative log-likelihood of the true distribution is the least there is.
    truth = -special.log_softmax(fresh / 2 - np.log(PI), axis=1)[np.arange(len(labels)), labels].mean()
    assert found.after["nll"].low < truth < found.after["nll"].high


def test_rescue_measures_what_the_library_measures():
    z, y = gaussians(1200, COUNTS, 3, sharpness=1.5)  # as many rows of each class: all weights are equal
    found = lt.rescue(z, y, COUNTS, resamples=200, seed=4)
    z32 = z.astype(np.float32)
    wanted = {
        "accuracy": evaluation.accuracy(z32, y),
        "macro_accuracy": evaluation.macro_accuracy(z32, y),
        "nll": evaluation.negative_log_likelihood(z32, y),
        "ece": evaluation.expected_calibration_error(z32, y),
    }
    by_class = evaluation.per_class_accuracy(z32, y)
    wanted |= {"many": by_class[0], "medium": by_class[1], "few": by_class[2:].mean()}
    assert set(found.before) == set(found.after) == set(found.change) == set(wanted)
    for name, value in wanted.items():
        np.testing.assert_allclose(found.before[name].value, value, atol=2e-5, err_msg=name)
        assert found.before[name].low <= found.before[name].value <= found.before[name].high
        change = found.after[name].value - found.before[name].value
        np.testing.assert_allclose(found.change[name].value, change, atol=1e-12, err_msg=name)
    # By hand: each row adjusted by what was chosen without it.
    fold = fold_of(y, 5, 4)
    tau, temperature = (np.asarray(values)[fold][:, None] for values in (found.fold_taus, found.fold_temperatures))
    adjusted = (z - tau * np.log(PI)) / temperature
    assert found.after["accuracy"].value == np.mean(adjusted.argmax(1) == y)
    np.testing.assert_allclose(
        found.after["ece"].value, evaluation.expected_calibration_error(adjusted.astype(np.float32), y), atol=1e-4
    )


def test_a_fold_is_not_chosen_on_its_own_rows():
    """Labels of one fold turned round change what is chosen without the others, not what is chosen without it."""
    z, y = gaussians(400, COUNTS, 5)
    fold = fold_of(y, 4, 0)
    plain = lt.rescue(z, y, COUNTS, folds=4, resamples=20)
    for number in range(4):
        moved = z.copy()
        moved[fold == number] = moved[fold == number][:, ::-1]
        other = lt.rescue(moved, y, COUNTS, folds=4, resamples=20)
        assert other.fold_taus[number] == plain.fold_taus[number]
        assert other.fold_temperatures[number] == plain.fold_temperatures[number]
        assert other.fold_temperatures != plain.fold_temperatures


def test_folds_and_weights():
    y = np.repeat(np.arange(3), (40, 11, 3))
    fold = fold_of(y, 5, 0)
    assert np.ptp(np.bincount(fold, minlength=5)) <= 1
    for label in range(3):
        assert np.ptp(np.bincount(fold[y == label], minlength=5)) <= 1
    assert (fold != fold_of(y, 5, 1)).any()
    weight = class_weights(y, 4)  # of the fourth class there is no row
    np.testing.assert_allclose([weight[y == label].sum() for label in range(3)], 1 / 3)


def test_rescue_of_a_model_that_needs_none():
    """Equal counts: tau changes nothing, so the smallest is taken, and only the temperature moves."""
    z, y = gaussians(800, np.full(4, 50), 6, sharpness=3.0)
    found = lt.rescue(z, y, np.full(4, 50), resamples=50)
    assert found.tau == 0 and set(found.fold_taus) == {0.0}
    assert found.change["accuracy"].value == 0 and np.isnan(found.change["accuracy"].low)  # no spread, no interval
    assert "+0.0 [-]" in found.table()
    assert found.change["nll"].high < 0
    assert "not shown to be above 0" in found.table() and "| many           | -" in found.table()
    np.testing.assert_allclose(found.apply(z.astype(np.float32)), z / found.temperature, rtol=1e-4, atol=1e-4)


def test_rescue_table_says_when_tau_is_at_its_edge():
    z, y = gaussians(800, COUNTS, 7, sharpness=2.0)
    table = lt.rescue(z, y, COUNTS, taus=(0.0, 0.5), resamples=50).table()
    assert "tau 0.5 (0.5 to 0.5 over the folds)" in table and "give larger taus" in table
    assert "give larger taus" not in lt.rescue(z, y, COUNTS, resamples=50).table()
    for name in ("accuracy", "macro_accuracy", "many", "medium", "few", "nll", "ece"):
        assert f"| {name} " in table

    one = lt.rescue(z, y, COUNTS, taus=(0.0,), resamples=50).table()
    assert "tau 0 (" in one and "give" not in one  # nothing to choose from, nothing to say
    assert "give smaller taus" in lt.rescue(z, y, COUNTS, taus=(2.0, 4.0), resamples=50).table()
    assert "temperature is at the end of 0.05 to 20" in lt.rescue(1e-3 * z, y, COUNTS, resamples=50).table()
    assert "temperature is at the end" not in table


def test_the_interval_of_macro_accuracy_covers_the_truth():
    """Unequal rows of the classes: 95 % of the intervals hold the mean of the classes' true accuracies."""
    truth, rows, rng = np.array([0.95, 0.6, 0.1]), (300, 40, 10), np.random.default_rng(12)
    y, trials, held = np.repeat(np.arange(3), rows), 1000, 0
    for _ in range(trials):
        found = proportion_interval((rng.uniform(size=y.size) < truth[y]).astype(float), y)
        held += found.low <= truth.mean() <= found.high
    assert abs(held / trials - 0.95) < 3.3 * np.sqrt(0.95 * 0.05 / trials)  # two-sided, 1 in 1000 for exact ones


def test_intervals_know_nothing_of_how_many_rows_a_class_happens_to_have():
    """300 rows of A, all right, and 4 of B, all wrong: no class can be taken for the other."""
    right, y = np.repeat([1.0, 0.0], (300, 4)), np.repeat([0, 1], (300, 4))
    found, (a, b) = (
        proportion_interval(right, y),
        (stats.binomtest(k, n).proportion_ci(method="wilson") for k, n in ((300, 300), (0, 4))),
    )
    assert found.value == 0.5 and found.n == 304
    np.testing.assert_allclose(found.low, 0.5 - (1 - a.low) / 2, rtol=1e-6)  # A's alone: B has no accuracy below 0
    np.testing.assert_allclose(found.high, 0.5 + b.high / 2, rtol=1e-6)
    three = stats.binomtest(3, 3).proportion_ci(method="wilson")
    np.testing.assert_allclose(proportion_interval(np.ones(3), np.zeros(3, int))[:3], [1.0, three.low, 1.0], rtol=1e-6)
    unknown = stratified_interval(right, y, resamples=50, seed=0)
    assert unknown.value == 0.5 and np.isnan([unknown.low, unknown.high]).all()
    few = stratified_interval(np.array([1.0, 0.0, -1.0]), np.zeros(3, int), resamples=50, seed=0, least=5)
    assert few.value == 0 and np.isnan(few.low)


def test_the_bootstrap_within_classes_has_the_variance_of_the_mean():
    rng, rows = np.random.default_rng(3), (200, 20, 12)
    y = np.repeat(np.arange(3), rows)
    values = rng.normal(size=y.size) + 50.0 * y  # what is between the classes is not in the interval
    found = stratified_interval(values, y, resamples=4000, seed=1)
    half = 1.96 * np.sqrt(sum(values[y == c].var(ddof=1) / n for c, n in enumerate(rows))) / 3
    np.testing.assert_allclose(found.value, np.mean([values[y == c].mean() for c in range(3)]))
    np.testing.assert_allclose([found.low, found.high], [found.value - half, found.value + half], atol=0.1 * half)


def test_rescue_of_a_group_with_few_rows():
    """Three few-shot rows that are all right: a wide interval before and after, and none for the change."""
    y = np.repeat([0, 1, 2], (60, 30, 3))
    z = 4.0 * np.eye(3)[y] + np.random.default_rng(0).normal(size=(93, 3))
    z[y == 2, 2] += 20.0
    found = lt.rescue(z, y, np.array([300, 60, 4]), resamples=50)
    assert found.before["few"].value == 1 and found.before["few"].low < 0.5 and found.before["few"].n == 3
    assert np.isnan(found.change["few"].low)
    (line,) = (line for line in found.table().splitlines() if line.startswith("| few "))
    low = 100 * stats.binomtest(3, 3).proportion_ci(method="wilson").low
    assert line.count(f"100.0 [{low:.1f}, 100.0]") == 2 and "+0.0 [-]" in line


def test_rescue_lifts_a_trained_network():
    """A linear model trained on 300 to 4 rows of four normal classes, validated on 400 rows, tested on 4000."""
    rng = np.random.default_rng(8)
    means = 1.5 * np.eye(CLASSES)

    def draw(counts):
        y = np.repeat(np.arange(CLASSES), counts).astype(np.int32)
        return jnp.asarray(means[y] + rng.normal(size=(len(y), CLASSES)), jnp.float32), jnp.asarray(y)

    x, y = draw(COUNTS)
    network = mlp(CLASSES, hidden=())
    softmax = lt.METHODS["softmax"].make(network, optax.adam(0.05), class_counts=COUNTS)
    assert isinstance(softmax, learner.Learner)
    update = jax.jit(lambda state: softmax.update(state, {"x": x, "y": y}, jax.random.key(0))[0])
    state = softmax.init(jax.random.key(0), {"x": x, "y": y})
    for _ in range(300):
        state = update(state)
    logits = lambda x: softmax.predict(state, {"x": x})["logits"]
    x, y = draw([100] * CLASSES)
    found = lt.rescue(logits(x), y, COUNTS, resamples=200)
    x, y = draw([1000] * CLASSES)
    plain, better = (evaluation.accuracy(z, y) for z in (logits(x), found.apply(logits(x))))
    # Bayes: of the plain prior 0.25 + little, of the uniform one some 0.7; the claim is the interval's.
    assert found.change["accuracy"].low > 0 and better - plain > found.change["accuracy"].low - 0.03


@pytest.mark.parametrize(
    "change, message",
    [
        ({"logits": Z[0]}, "logits must have the shape"),
        ({"logits": np.where(np.arange(ROWS)[:, None] == 3, np.nan, Z)}, "logits of row 3 are not finite"),
        ({"labels": np.zeros(3, np.int32)}, "labels must be one for each of the 7 rows"),
        ({"labels": np.full(ROWS, 4)}, "labels must lie in 0..3"),
        ({"labels": np.zeros(ROWS)}, "labels must be whole numbers"),
        ({"class_counts": COUNTS[:3]}, "class_counts has 3 entries, and there are 4 classes"),
        ({"class_counts": np.array([3, 0, 1, 1])}, "class 1 has no rows"),
        ({"folds": 8}, "folds=8 needs as many rows, got 7"),
        ({"folds": 1}, "folds must be at least 2"),
        ({"taus": ()}, "taus must be finite numbers"),
        ({"taus": (0.0, np.inf)}, "taus must be finite numbers"),
        ({"taus": "abc"}, "taus must be finite numbers"),
        ({"logits": [[1.0, 2.0], [1.0]]}, "logits must be numbers"),
        ({"logits": [["a", "b"]]}, "logits must be numbers"),
        ({"groups": "shot"}, "did you mean 'shots'"),
    ],
)
def test_rescue_of_bad_input(change, message):
    given = {"logits": Z, "labels": np.arange(ROWS) % CLASSES, "class_counts": COUNTS, **change}
    with pytest.raises((UsageError), match=message) as caught:
        lt.rescue(**given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: lt.logit_adjustment(Z, np.array([1, 0, 1, 1])), "class 1 has no rows"),
        (lambda: lt.logit_adjustment(Z, COUNTS, np.nan), "tau must lie in"),
        (lambda: lt.uno_ic(Z, COUNTS, beta=1.2), "beta must lie in"),
        (lambda: lt.uno_ic(Z, COUNTS, beta=0.5, target_prior=COUNTS), "target_prior must sum to 1"),
        (lambda: lt.for_prior(Z, [0.5, 0.5]), "target_prior has 2 entries, and there are 4 classes"),
    ],
)
def test_corrections_of_bad_input(call, message):
    with pytest.raises(UsageError, match=message):
        call()
