"""Losses against transcriptions in float64 NumPy, value and gradient, and against each other where they coincide."""

import chex
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from absl.testing import parameterized
from scipy import special

from jaxkit import long_tailed as lt
from jaxkit.check import UsageError
from jaxkit.losses import cross_entropy

WRONG = (UsageError, jaxtyping.TypeCheckError)  # the annotations may speak before the function does

RNG = np.random.default_rng(0)
CLASSES, ROWS = 5, 12
COUNTS = np.array([400, 120, 31, 9, 2])
EQUAL = np.full(CLASSES, 40)
Z = (3 * RNG.normal(size=(ROWS, CLASSES))).astype(np.float32)
Y = np.array([0, 1, 2, 3, 4, 0, 1, 2, 0, 0, 3, 4], np.int32)
VALID = np.arange(ROWS) < 8
KEY = jax.random.key(5)
PI = COUNTS / COUNTS.sum()
OWN = np.eye(CLASSES)[Y]

# Transcriptions: float64, (z, y) -> one value per row ---------------------------------------------------------------


def entropy(z, y):
    return special.logsumexp(z, axis=1) - z[np.arange(len(y)), y]


def frozen_entropy(z, y):
    """The same for logits that were made from the float32 ones above, so that finite differences do not see them."""
    return entropy(Z.astype(np.float64), y)


def released_weighted(z, y):
    return (1 - np.log(PI / PI.max()))[y] * entropy(z, y)


def focal(gamma, frozen=False):
    def loss(z, y):
        p = np.exp(-(frozen_entropy if frozen else entropy)(z, y))
        return (1 - p) ** gamma * entropy(z, y)

    return loss


def balanced_weights(beta):
    weights = (1 - beta) / (1 - beta ** COUNTS.astype(np.float64))
    return weights / weights.sum() * CLASSES


def ldam(z, y, max_margin=0.5, scale=30.0, whole=False):
    margin = COUNTS**-0.25
    margin = margin * max_margin / margin.max()
    z = z.copy()
    z[np.arange(len(y)), y] -= margin[y] if whole else scale * margin[y]
    return entropy(scale * z if whole else z, y)


def equalization(z, y, gamma=0.9, threshold=0.43 / CLASSES):
    drawn = np.asarray(jax.random.bernoulli(KEY, gamma, z.shape))
    left_out = drawn & (PI <= threshold) & ~OWN.astype(bool)
    return entropy(np.where(left_out, -1e7, z), y)


def vector_scaling(z, y, gamma=0.3, tau=1.0):
    spread = (1 / COUNTS) ** gamma
    return entropy(z / (spread / spread.min()) + tau * np.log(PI), y)


def seesaw(z, y, p=0.8, q=2.0, smallest=1e-2):
    sigma = special.softmax(Z.astype(np.float64), axis=1)  # no gradient goes through it
    out = np.zeros(len(y))
    for i, label in enumerate(y):
        shifted = z[i].copy()
        for j in range(CLASSES):
            if j == label:
                continue
            mitigation = (COUNTS[j] / COUNTS[label]) ** p if COUNTS[j] < COUNTS[label] else 1.0
            ratio = sigma[i, j] / max(sigma[i, label], smallest)
            compensation = ratio**q if ratio > 1 else 1.0
            shifted[j] += np.log(mitigation * compensation)
        out[i] = special.logsumexp(shifted) - shifted[label]
    return out


def lade(z, y, penalty=0.1):
    value = 0.0
    for c in range(CLASSES):
        members = z[y == c, c]
        first = members.mean() if len(members) else 0.0
        second = special.logsumexp(z[:, c] - np.log(PI[c]) + np.log(1 / CLASSES)) - np.log(len(y))
        value -= PI[c] * (first - second - penalty * second**2)
    return value


def with_counts(loss, **settings):
    return lambda z, y: loss(z, y, jnp.asarray(COUNTS), **settings)


LOSSES = {
    "softmax": (with_counts(lt.softmax), entropy),
    "weighted": (with_counts(lt.weighted_softmax), released_weighted),
    "weighted, paper": (with_counts(lt.weighted_softmax, form="paper"), lambda z, y: entropy(z, y) / PI[y]),
    "focal": (with_counts(lt.focal), focal(2)),
    "focal 0.5": (with_counts(lt.focal, gamma=0.5), focal(0.5)),
    "focal, survey": (with_counts(lt.focal, gamma=3.0, detach=True), focal(3, frozen=True)),
    "class balanced": (with_counts(lt.class_balanced), lambda z, y: balanced_weights(0.9999)[y] * entropy(z, y)),
    "class balanced 0.9": (
        with_counts(lt.class_balanced, beta=0.9),
        lambda z, y: balanced_weights(0.9)[y] * entropy(z, y),
    ),
    "ldam": (with_counts(lt.ldam), ldam),
    "ldam, whole": (
        with_counts(lt.ldam, max_margin=0.3, scale=4.0, scale_logits=True),
        lambda z, y: ldam(z, y, 0.3, 4.0, True),
    ),
    "equalization": (lambda z, y: lt.equalization(z, y, jnp.asarray(COUNTS), KEY), equalization),
    "balanced": (with_counts(lt.balanced_softmax), lambda z, y: entropy(z + np.log(PI), y)),
    "adjusted": (with_counts(lt.logit_adjusted, tau=1.7), lambda z, y: entropy(z + 1.7 * np.log(PI), y)),
    "vector scaling": (with_counts(lt.vector_scaling), vector_scaling),
    "seesaw": (with_counts(lt.seesaw), seesaw),
    "lade": (with_counts(lt.lade_regulariser), lade),
}


def slope(function, z, y, step=1e-5):
    """The gradient of the sum by central differences in float64."""
    found = np.zeros_like(z)
    for place in np.ndindex(*z.shape):
        moved = np.zeros_like(z)
        moved[place] = step
        found[place] = (np.sum(function(z + moved, y)) - np.sum(function(z - moved, y))) / (2 * step)
    return found


class Transcriptions(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    @parameterized.named_parameters((name, *case) for name, case in LOSSES.items())
    def test_value_and_gradient(self, loss, transcription):
        wanted = transcription(Z.astype(np.float64), Y)
        z, y = jnp.asarray(Z), jnp.asarray(Y)
        value = self.variant(loss)(z, y)
        assert value.dtype == jnp.float32 and value.shape == np.shape(wanted)
        np.testing.assert_allclose(value, wanted, rtol=1e-5, atol=1e-5)
        gradient = self.variant(jax.grad(lambda z, y: loss(z, y).sum()))(z, y)
        expected = slope(transcription, Z.astype(np.float64), Y)
        np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


IDENTITIES = {
    "balanced softmax, equal counts": lambda z, y: lt.balanced_softmax(z, y, EQUAL),
    "logit adjusted, tau 0": lambda z, y: lt.logit_adjusted(z, y, COUNTS, tau=0.0),
    "logit adjusted, equal counts": lambda z, y: lt.logit_adjusted(z, y, EQUAL, tau=2.0),
    "weighted, equal counts": lambda z, y: lt.weighted_softmax(z, y, EQUAL),
    "weighted by the paper, equal counts": lambda z, y: lt.weighted_softmax(z, y, EQUAL, form="paper") / CLASSES,
    "focal, gamma 0": lambda z, y: lt.focal(z, y, gamma=0.0),
    "class balanced, beta 0": lambda z, y: lt.class_balanced(z, y, COUNTS, beta=0.0),
    "class balanced, equal counts": lambda z, y: lt.class_balanced(z, y, EQUAL),
    "ldam, no margin": lambda z, y: lt.ldam(z, y, COUNTS, max_margin=0.0),
    "ldam, no margin, scale 1": lambda z, y: lt.ldam(z, y, COUNTS, max_margin=0.0, scale=1.0, scale_logits=True),
    "equalization, gamma 0": lambda z, y: lt.equalization(z, y, COUNTS, KEY, gamma=0.0),
    "equalization, threshold 0": lambda z, y: lt.equalization(z, y, COUNTS, KEY, threshold=0.0),
    "vector scaling, gamma and tau 0": lambda z, y: lt.vector_scaling(z, y, COUNTS, gamma=0.0, tau=0.0),
    "seesaw, p and q 0": lambda z, y: lt.seesaw(z, y, COUNTS, p=0.0, q=0.0),
    "seesaw, equal counts, q 0": lambda z, y: lt.seesaw(z, y, EQUAL, q=0.0),
}


@pytest.mark.parametrize("name", IDENTITIES)
def test_identities_with_the_cross_entropy(name):
    y = jnp.asarray(Y)
    ours, wanted = (
        jax.jit(jax.value_and_grad(lambda z: loss(z, y).sum()))(jnp.asarray(Z))
        for loss in (IDENTITIES[name], cross_entropy)
    )
    chex.assert_trees_all_close(ours, wanted, rtol=1e-5, atol=1e-6)


def test_identities_between_losses():
    z, y = jnp.asarray(Z), jnp.asarray(Y)
    np.testing.assert_array_equal(lt.balanced_softmax(z, y, COUNTS), lt.logit_adjusted(z, y, COUNTS, tau=1.0))
    np.testing.assert_allclose(
        lt.vector_scaling(z, y, COUNTS, gamma=0.0, tau=1.3), lt.logit_adjusted(z, y, COUNTS, tau=1.3), rtol=1e-6
    )
    # s (z - Delta) is s z - s Delta: the two forms of LDAM are one function of their own logits.
    np.testing.assert_allclose(
        lt.ldam(z, y, COUNTS, scale=7.0, scale_logits=True), lt.ldam(7.0 * z, y, COUNTS, scale=7.0), rtol=1e-5
    )
    # Only ratios of counts count where the prior is all that is used.
    for loss in (lt.balanced_softmax, lt.ldam, lt.weighted_softmax, lt.vector_scaling):
        np.testing.assert_allclose(loss(z, y, PI.astype(np.float32)), loss(z, y, COUNTS), rtol=2e-5)


def test_published_weights():
    # The survey's form at an imbalance of 100 spans 1 + ln 100; the text's spans 100.
    released, paper = (lt.inverse_weights(np.array([500, 5]), form=form) for form in ("released", "paper"))
    np.testing.assert_allclose(released, [1.0, 1.0 + np.log(100)], rtol=1e-6)
    np.testing.assert_allclose(paper[1] / paper[0], 100.0, rtol=1e-6)
    # beta -> 1 weighs by 1 / n (Cui et al. 2019, section 4).
    np.testing.assert_allclose(
        lt.effective_number_weights(COUNTS, beta=1 - 1e-9), CLASSES / COUNTS / (1 / COUNTS).sum(), rtol=1e-5
    )
    margins = np.asarray(lt.ldam_margins(COUNTS))
    assert margins.argmax() == COUNTS.argmin() and margins.max() == 0.5
    np.testing.assert_allclose(margins[0] / margins[4], (2 / 400) ** 0.25, rtol=1e-6)


def test_equalization_leaves_out_what_it_says():
    """Half of the classes rare, logits 0: -log softmax is the logarithm of how many classes are left."""
    counts = np.array([100, 100, 1, 1])
    z, y = jnp.zeros((4000, 4)), jnp.zeros((4000,), jnp.int32)
    rows = lt.equalization(z, y, counts, jax.random.key(0), gamma=0.9, threshold=0.01)
    left = np.exp(np.asarray(rows)) - 2  # of the two rare classes
    assert set(left.round(3)) == {0.0, 1.0, 2.0}
    # Each of 8000 is left in with probability 0.1: the mean has the standard error 0.0034.
    assert abs(left.mean() / 2 - 0.1) < 5 * 0.0034
    rare = lt.equalization(z, jnp.full((4000,), 2), counts, jax.random.key(0), gamma=1.0, threshold=0.01)
    np.testing.assert_allclose(rare, np.log(3), rtol=1e-6)  # the label itself stays, the other rare class goes


@pytest.mark.parametrize("name", [name for name in LOSSES if name not in ("equalization", "lade")])
def test_extreme_logits_have_finite_gradients(name):
    loss = LOSSES[name][0]
    for z in (1e4 * Z, jnp.zeros_like(Z), 200.0 * OWN.astype(np.float32)):
        chex.assert_tree_all_finite(jax.jit(jax.value_and_grad(lambda z: loss(z, jnp.asarray(Y)).sum()))(z))


def test_focal_has_a_gradient_where_a_row_is_right_for_certain():
    z = jnp.asarray(200.0 * OWN, jnp.float32)
    for gamma in (0.0, 0.5, 2.0):
        assert not jax.grad(lambda z: lt.focal(z, jnp.asarray(Y), gamma=gamma).sum())(z).any()


def test_labels_that_are_traced_and_out_of_range_give_nan():
    labels = jnp.asarray([0, 5, -1, 4])
    z = jnp.zeros((4, CLASSES))
    for loss in (lt.softmax, lt.weighted_softmax, lt.class_balanced, lt.ldam, lt.balanced_softmax, lt.seesaw, lt.focal):
        rows = jax.jit(lambda labels: loss(z, labels, jnp.asarray(COUNTS)))(labels)
        assert np.isnan(rows).tolist() == [False, True, True, False], loss


PROFILES = np.stack([COUNTS, EQUAL, COUNTS[::-1]]).astype(np.float32)
BY_PROFILE = {
    "weighted": lt.weighted_softmax,
    "class balanced": lt.class_balanced,
    "ldam": lt.ldam,
    "equalization": lambda z, y, counts: lt.equalization(z, y, counts, KEY),
    "balanced": lt.balanced_softmax,
    "vector scaling": lt.vector_scaling,
    "seesaw": lt.seesaw,
    "lade": lt.lade_regulariser,
    "post-hoc": lambda z, y, counts: lt.logit_adjustment(z, counts),
}


@pytest.mark.parametrize("name", BY_PROFILE)
def test_mapped_over_class_counts(name):
    one = lambda counts: BY_PROFILE[name](jnp.asarray(Z), jnp.asarray(Y), counts)
    mapped = jax.jit(jax.vmap(one))(jnp.asarray(PROFILES))
    np.testing.assert_allclose(mapped, np.stack([one(counts) for counts in PROFILES]), rtol=1e-5, atol=1e-6)


def test_numbers_can_be_traced():
    z, y = jnp.asarray(Z), jnp.asarray(Y)
    swept = {
        "gamma": (lambda v: lt.focal(z, y, gamma=v), [0.5, 2.0]),
        "beta": (lambda v: lt.class_balanced(z, y, COUNTS, beta=v), [0.0, 0.9]),
        "tau": (lambda v: lt.logit_adjusted(z, y, COUNTS, tau=v), [0.0, 1.5]),
        "max_margin": (lambda v: lt.ldam(z, y, COUNTS, max_margin=v), [0.0, 0.5]),
        "threshold": (lambda v: lt.equalization(z, y, COUNTS, KEY, threshold=v), [0.0, 0.1]),
        "p": (lambda v: lt.seesaw(z, y, COUNTS, p=v), [0.0, 0.8]),
    }
    for name, (loss, values) in swept.items():
        mapped = jax.jit(jax.vmap(loss))(jnp.asarray(values))
        np.testing.assert_allclose(mapped, [loss(v) for v in values], rtol=2e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("junk", [np.nan, 1e6])
def test_lade_sees_valid_rows_only(junk):
    dirty = jnp.where(VALID[:, None], Z, junk)
    loss = lambda z, valid: lt.lade_regulariser(z, jnp.asarray(Y), COUNTS, valid=valid)
    padded, gradient = jax.jit(jax.value_and_grad(loss))(dirty, jnp.asarray(VALID))
    np.testing.assert_allclose(padded, lade(Z[VALID].astype(np.float64), Y[VALID]), rtol=1e-5)
    chex.assert_tree_all_finite(gradient)
    assert not gradient[~VALID].any()
    assert loss(jnp.asarray(Z), jnp.zeros(ROWS, bool)) == 0


def test_priors():
    np.testing.assert_allclose(lt.prior(COUNTS), PI, rtol=1e-6)
    np.testing.assert_allclose(lt.log_prior(COUNTS), np.log(PI), rtol=1e-6)
    np.testing.assert_allclose(lt.prior(np.array([3, 0, 1])), [0.75, 0, 0.25])
    assert lt.check_counts([4, 2], 2).dtype == jnp.float32


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: lt.check_counts([3, 0, 1]), "class 1 has no rows"),
        (lambda: lt.check_counts([0, 0], empty=True), "class 0 has no rows"),
        (lambda: lt.check_counts([3, -1]), r"class_counts\[1\] is -1"),
        (lambda: lt.check_counts([3, np.nan]), r"class_counts\[1\] is nan"),
        (lambda: lt.check_counts([3, 1], 3), "class_counts has 2 entries, and there are 3 classes"),
        (lambda: lt.check_counts([[3, 1]]), r"shape \[1, 2\]"),
        (lambda: lt.check_counts("many"), "class_counts must"),
        (lambda: lt.check_counts(["a", "b"]), "must be numbers"),
        (lambda: lt.check_prior("target_prior", [0.5, 0.6]), "target_prior must sum to 1"),
        (lambda: lt.check_prior("target_prior", [1.0, 0.0]), r"target_prior\[1\] is 0"),
        (lambda: lt.effective_number_weights(PI), "give numbers of rows, not shares"),
        (lambda: lt.effective_number_weights(COUNTS, beta=1.0), "beta must be below 1"),
        (lambda: lt.effective_number_weights(COUNTS, beta=1.5), "beta must lie in"),
        (lambda: lt.balanced_softmax(Z, Y, np.array([3, 0, 1, 1, 1])), "class 1 has no rows"),
        (lambda: lt.balanced_softmax(Z, Y + 1, COUNTS), "labels must lie in 0..4, .* got 1..5"),
        (lambda: lt.softmax(Z, Y - 1), "labels must lie in 0..4"),
        (lambda: lt.focal(Z, Y, gamma=-1.0), "gamma must lie in"),
        (lambda: lt.logit_adjusted(Z, Y, COUNTS, tau=np.nan), "tau must lie in"),
        (lambda: lt.ldam(Z, Y, COUNTS, max_margin=-0.1), "max_margin must lie in"),
        (lambda: lt.ldam(Z, Y, COUNTS, scale=0.0), "scale must be a finite number above 0"),
        (lambda: lt.weighted_softmax(Z, Y, COUNTS, form="papers"), "unknown form 'papers'; did you mean 'paper'"),
        (lambda: lt.equalization(Z, Y, COUNTS, KEY, gamma=1.1), "gamma must lie in"),
        (lambda: lt.equalization(Z, Y, COUNTS, KEY, threshold=2.0), "threshold must lie in"),
        (lambda: lt.seesaw(Z, Y, COUNTS, p=-1.0), "p must lie in"),
        (lambda: lt.seesaw(Z, Y, COUNTS / COUNTS.sum()), "give numbers of rows, not shares"),
        (lambda: lt.lade_regulariser(jnp.asarray(Z), jnp.asarray(Y), COUNTS, penalty=-1.0), "penalty must lie in"),
    ],
)
def test_bad_input_is_one_line(call, message):
    with pytest.raises(UsageError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "call",
    [
        lambda: lt.balanced_softmax(Z, Y, COUNTS[:4]),
        lambda: lt.balanced_softmax(Z, Y[:3], COUNTS),
        lambda: lt.softmax(Z, Y.astype(np.float32)),
    ],
)
def test_shapes_and_types_that_do_not_fit(call):
    with pytest.raises(WRONG):
        call()


def test_lade_of_labels_out_of_range_is_nan_inside_jit():
    regulariser = jax.jit(lambda y, valid: lt.lade_regulariser(jnp.asarray(Z), y, COUNTS, valid=valid))
    for wrong in (-1, CLASSES):
        beyond = jnp.asarray(Y).at[-1].set(wrong)
        assert np.isnan(regulariser(beyond, np.ones(ROWS, bool)))
        np.testing.assert_array_equal(regulariser(beyond, VALID), regulariser(jnp.asarray(Y), VALID))  # padding
