"""Losses against independent transcriptions in float64 NumPy, SciPy, scikit-learn and optax, with and without jit."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl.testing import parameterized
from scipy import special, stats
from scipy.spatial.distance import cdist
from sklearn.metrics.pairwise import rbf_kernel

from jaxkit import losses
from jaxkit.check import UsageError

RNG = np.random.default_rng(0)
Z = RNG.normal(size=(6, 4)).astype(np.float32)
T = RNG.normal(size=(6, 4)).astype(np.float32)
Y = np.array([0, 1, 1, 3, 0, 2], np.int32)
SOFT = RNG.dirichlet(np.ones(4), 6).astype(np.float32)
SOFT[0] = [0, 1, 0, 0]
A, B = RNG.normal(size=(6, 5)).astype(np.float32), RNG.normal(1, 2, size=(9, 5)).astype(np.float32)
VALID = np.array([1, 1, 1, 0, 1, 0], bool)


def log_softmax(z):
    return special.log_softmax(np.asarray(z, np.float64), axis=-1)


def smoothed(eps):
    q = (1 - eps) * np.eye(4)[Y] + eps / 4
    return -(q * log_softmax(Z)).sum(1)


def cosine(a, b):
    return 1 - cdist(a, b, "cosine").diagonal()


def nt_xent_by_loops(first, second, tau):
    z = np.concatenate([first, second]).astype(np.float64)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    n, total = len(first), np.zeros(len(z))
    for i in range(len(z)):
        others = [np.exp(z[i] @ z[j] / tau) for j in range(len(z)) if j != i]
        total[i] = -np.log(np.exp(z[i] @ z[(i + n) % (2 * n)] / tau) / sum(others))
    return (total[:n] + total[n:]) / 2


def supervised_by_loops(features, labels, tau):
    z = features.astype(np.float64)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    out = np.zeros(len(z))
    for i in range(len(z)):
        scale = sum(np.exp(z[i] @ z[a] / tau) for a in range(len(z)) if a != i)
        same = [p for p in range(len(z)) if p != i and labels[p] == labels[i]]
        out[i] = -np.mean([np.log(np.exp(z[i] @ z[p] / tau) / scale) for p in same]) if same else 0
    return out


def mmd_by_sklearn(x, y, gammas):
    kernel = lambda a, b: sum(rbf_kernel(a.astype(np.float64), b.astype(np.float64), gamma=g) for g in gammas)
    return kernel(x, x).mean() + kernel(y, y).mean() - 2 * kernel(x, y).mean()


def coral_by_numpy(x, y):
    return ((np.cov(x, rowvar=False) - np.cov(y, rowvar=False)) ** 2).sum() / (4 * x.shape[1] ** 2)


KL = stats.entropy(special.softmax(T / 3.0, -1), special.softmax(Z / 3.0, -1), axis=-1)

CASES = {
    "cross_entropy": (losses.cross_entropy, (Z, Y), smoothed(0.0)),
    "smoothing": (lambda z, y: losses.cross_entropy(z, y, smoothing=0.1), (Z, Y), smoothed(0.1)),
    "balanced": (
        lambda z, y: losses.balanced_cross_entropy(z, y, jnp.array([8, 2, 1, 5])),
        (Z, Y),
        -np.log((np.array([8, 2, 1, 5]) * np.exp(Z))[np.arange(6), Y] / (np.array([8, 2, 1, 5]) * np.exp(Z)).sum(1)),
    ),
    "balanced, absent": (  # class 2, of which row 5 is taken to be of class 0
        lambda z, y: losses.balanced_cross_entropy(z, jnp.where(y == 2, 0, y), jnp.array([8, 2, 0, 5])),
        (Z, Y),
        -log_softmax(Z[:, [0, 1, 3]] + np.log([8, 2, 5]))[np.arange(6), [0, 1, 1, 2, 0, 0]],
    ),
    "soft": (losses.soft_cross_entropy, (Z, SOFT), -(SOFT * log_softmax(Z)).sum(1)),
    "binary": (losses.binary_cross_entropy, (Z, SOFT), optax.sigmoid_binary_cross_entropy(Z, SOFT)),
    "squared": (losses.squared_error, (Z, T), np.mean((Z - T) ** 2, 1)),
    "kd": (lambda s, t: losses.kd(s, t, temperature=3.0), (Z, T), 9 * KL),
    "feature": (losses.feature_distillation, (Z, T), cdist(Z, T, "sqeuclidean").diagonal()),
    "feature, unit": (lambda s, t: losses.feature_distillation(s, t, unit=True), (Z, T), 2 - 2 * cosine(Z, T)),
    "cosine": (losses.cosine_distillation, (Z, T), 1 - cosine(Z, T)),
    "nt_xent": (losses.nt_xent, (Z, T), nt_xent_by_loops(Z, T, 0.5)),
    "supervised": (losses.supervised_contrastive, (Z, Y), supervised_by_loops(Z, Y, 0.1)),
    "l2": (lambda a, b: losses.l2({"a": a, "b": [b]}), (A, B), (np.sum(A**2) + np.sum(B**2)) / 2),
    "entropy": (losses.entropy, (Z,), stats.entropy(special.softmax(Z, -1), axis=-1)),
    "mmd": (lambda a, b: losses.mmd(a, b, gammas=(0.1, 1.0)), (A, B), mmd_by_sklearn(A, B, (0.1, 1.0))),
    "coral": (losses.coral, (A, B), coral_by_numpy(A, B)),
    "centre": (losses.centre, (Z, Y, T), np.sum((Z - T[Y]) ** 2, 1) / 2),
}


class Values(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    @parameterized.named_parameters((name, *case) for name, case in CASES.items())
    def test_against_transcription(self, function, arguments, expected):
        given = self.variant(function)(*map(jnp.asarray, arguments))
        assert given.dtype == jnp.float32 and given.shape == np.shape(expected)
        np.testing.assert_allclose(given, expected, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize(
    "name, arguments",
    [
        ("nt_xent", (Z, Z)),  # both views equal
        ("nt_xent", (np.ones_like(Z), np.ones_like(Z))),  # all rows equal
        ("nt_xent", (np.zeros_like(Z), Z)),
        ("supervised", (np.ones_like(Z), Y)),
        ("supervised", (np.zeros_like(Z), Y)),
        ("supervised", (Z, np.arange(6, dtype=np.int32))),  # no row has a partner
        ("cosine", (np.zeros_like(Z), T)),
        ("feature, unit", (np.zeros_like(Z), T)),
        ("mmd", (A, A)),
        ("mmd", (np.zeros_like(A), np.zeros_like(B))),
        ("coral", (np.ones_like(A), np.ones_like(B))),
        ("coral", (A[:1], B)),
        ("entropy", (1e4 * Z,)),
        ("kd", (1e4 * Z, 1e4 * T)),
        ("cross_entropy", (1e4 * Z, Y)),
        ("balanced, absent", (1e4 * Z, Y)),
        ("binary", (1e4 * Z, SOFT)),
    ],
)
def test_gradients_at_the_edges(name, arguments):
    first, *rest = map(jnp.asarray, arguments)
    chex.assert_tree_all_finite(jax.jit(jax.value_and_grad(lambda first: CASES[name][0](first, *rest).sum()))(first))


def rows(function, *arguments, valid=VALID, junk=np.nan):
    """The same loss with junk in padding rows, and of the valid rows alone."""
    mask = lambda a: (
        np.where(valid.reshape(-1, *(1,) * (a.ndim - 1)), a, junk).astype(a.dtype) if a.dtype != np.int32 else a
    )
    padded = function(*(jnp.asarray(mask(a)) for a in arguments), valid=jnp.asarray(valid))
    return padded, function(*(jnp.asarray(a[valid]) for a in arguments), valid=None)


@pytest.mark.parametrize("name, arguments", [("nt_xent", (Z, T)), ("supervised_contrastive", (Z, Y))])
@pytest.mark.parametrize("junk", [np.nan, 100.0])
def test_padding_of_contrastive(name, arguments, junk):
    function = jax.jit(getattr(losses, name))
    padded, alone = rows(function, *arguments, junk=junk)
    np.testing.assert_allclose(padded[VALID], alone, rtol=1e-5, atol=1e-6)
    assert not padded[~VALID].any()
    dirty, other, valid = jnp.where(VALID[:, None], arguments[0], junk), jnp.asarray(arguments[1]), jnp.asarray(VALID)
    slope = jax.jit(jax.grad(lambda first: function(first, other, valid=valid).sum()))(dirty)
    chex.assert_tree_all_finite(slope)
    assert not slope[~VALID].any()
    assert not function(jnp.asarray(arguments[0]), other, valid=jnp.zeros(6, bool)).any()


@pytest.mark.parametrize("function", [losses.mmd, losses.coral])
def test_padding_of_distances(function):
    valid = np.array([1, 0, 1, 1, 1, 1, 1, 0, 1], bool)
    dirty = lambda a, valid: jnp.where(valid[:, None], a, jnp.nan)
    padded = lambda x: function(x, dirty(B, valid), valid_x=jnp.asarray(VALID), valid_y=jnp.asarray(valid))
    given, slope = jax.jit(jax.value_and_grad(padded))(dirty(A, VALID))
    np.testing.assert_allclose(given, function(jnp.asarray(A[VALID]), jnp.asarray(B[valid])), rtol=1e-5)
    assert np.isfinite(slope).all() and not slope[~VALID].any()
    assert np.isfinite(function(jnp.asarray(A), jnp.asarray(B), valid_x=jnp.zeros(6, bool)))


def test_identities():
    np.testing.assert_allclose(losses.kd(jnp.asarray(Z), jnp.asarray(Z)), 0, atol=1e-6)
    np.testing.assert_allclose(losses.mmd(jnp.asarray(A), jnp.asarray(A)), 0, atol=1e-5)
    np.testing.assert_allclose(losses.entropy(jnp.zeros((2, 8))), np.log(8), rtol=1e-6)
    np.testing.assert_allclose(losses.entropy(jnp.array([[0.0, -jnp.inf]])), 0, atol=1e-7)
    np.testing.assert_allclose(
        losses.soft_cross_entropy(jnp.array([[0.0, -jnp.inf, 0.0]]), jnp.array([[0.5, 0.0, 0.5]])), np.log(2), rtol=1e-6
    )
    np.testing.assert_allclose(jax.grad(losses.l2)(jnp.asarray(A)), A)
    with_hard = losses.soft_cross_entropy(jnp.asarray(Z), jax.nn.one_hot(Y, 4))
    np.testing.assert_allclose(with_hard, losses.cross_entropy(jnp.asarray(Z), jnp.asarray(Y)), rtol=1e-6)


def test_gradient_of_kd_at_high_temperature():
    """T^2 makes the gradient tend to (z_s - z_t) / C for centred logits as T grows (Hinton et al. 2015, eq. 4)."""
    z, t = (jnp.asarray(a - a.mean(1, keepdims=True)) for a in (Z, T))
    slope = jax.grad(lambda z: losses.kd(z, t, temperature=1e3).sum())(z)
    np.testing.assert_allclose(slope, (z - t) / 4, atol=5e-3)
    teacher = jax.grad(lambda t: losses.kd(z, t).sum())(t)
    assert not teacher.any()


def test_labels_outside_give_nan():
    given = losses.cross_entropy(jnp.zeros((4, 3)), jnp.array([0, 3, -1, 2]))
    np.testing.assert_array_equal(np.isnan(given), [False, True, True, False])


def test_one_clear_line():
    z, y = jnp.asarray(Z), jnp.asarray(Y)
    wrong = {
        "smoothing": lambda: losses.cross_entropy(z, y, smoothing=1.5),
        "temperature": lambda: losses.kd(z, z, temperature=0.0),
        "gamma": lambda: losses.mmd(z, z, gammas=(1.0, -1.0)),
        "alpha": lambda: losses.mixup(jax.random.key(0), z, y, alpha=0.0),
    }
    for name, call in wrong.items():
        with pytest.raises(UsageError, match=name):
            call()


def test_traced_hyper_parameters():
    """A sweep is one compiled program."""
    sweep = jax.jit(jax.vmap(lambda t: losses.nt_xent(jnp.asarray(Z), jnp.asarray(T), temperature=t).mean()))
    taus = jnp.array([0.1, 0.5, 2.0])
    np.testing.assert_allclose(sweep(taus), [nt_xent_by_loops(Z, T, t).mean() for t in (0.1, 0.5, 2.0)], rtol=1e-4)
    smooth = jax.jit(jax.vmap(lambda e: losses.cross_entropy(jnp.asarray(Z), jnp.asarray(Y), smoothing=e)))
    np.testing.assert_allclose(smooth(jnp.array([0.0, 0.3])), [smoothed(0.0), smoothed(0.3)], rtol=1e-5)
