"""Mixup, Remix and CMO: a step is the gradient of the formula, written out in NumPy from the same draws."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax, softmax

from jaxkit import fit, losses
from jaxkit import long_tailed as lt
from jaxkit.check import UsageError
from jaxkit.long_tailed import augmentation as a
from jaxkit.long_tailed.augmentation import oversampling
from jaxkit.networks import mlp

RNG = np.random.default_rng(7)
COUNTS = np.array([24, 8, 4, 2])
Y = np.repeat(np.arange(4), COUNTS).astype(np.int32)
ROWS = len(Y)
X = (np.eye(4, 3)[Y] + 0.5 * RNG.normal(size=(ROWS, 3))).astype(np.float32)
DATA = {"x": jnp.asarray(X), "y": jnp.asarray(Y)}
PICTURES = jnp.asarray(RNG.uniform(size=(ROWS, 6, 5, 1)), jnp.float32)
NETWORK, SGD = mlp(4, hidden=()), optax.sgd(1.0)
KEY = jax.random.key(3)
BYTES = {"x": jnp.ones((ROWS, 3), jnp.uint8), "y": DATA["y"]}


def step(learner, batch=DATA, key=KEY):
    """(the loss of a batch, the gradient with respect to the head) at the initial parameters."""
    state = learner.init(jax.random.key(0), batch)
    after, metrics = jax.jit(learner.update)(state, batch, key)
    return metrics["loss"], jax.tree.map(lambda a, b: a - b, state.params["head"], after.params["head"])


def in_numpy(x, own, other, share, weight=1.0):
    """The loss of mixed rows under the initial linear network, and its gradient, in float64."""
    x = np.asarray(x, np.float64).reshape(len(x), -1)
    head = NETWORK.init(jax.random.key(0), jnp.asarray(x, jnp.float32))[0]["head"]
    z = x @ np.asarray(head["kernel"], np.float64) + np.asarray(head["bias"])
    share = np.broadcast_to(np.asarray(share, np.float64), len(x))
    target = share[:, None] * np.eye(4)[own] + (1 - share)[:, None] * np.eye(4)[other]
    target = target * weight
    slope = (softmax(z, axis=1) * target.sum(1, keepdims=True) - target) / len(x)
    return -(target * log_softmax(z, axis=1)).sum() / len(x), {"kernel": x.T @ slope, "bias": slope.sum(0)}


def drawn(alpha):
    """The mixed rows of DATA as the methods draw them: (x, rows mixed in, lambda)."""
    mixed = losses.mixup(jax.random.fold_in(KEY, 1), DATA["x"], jnp.arange(ROWS), alpha=alpha)
    return np.asarray(mixed.x), np.asarray(mixed.second), float(mixed.share[0])


def test_mixup_is_its_formula():
    x, other, share = drawn(0.7)
    np.testing.assert_allclose(x, share * X + (1 - share) * X[other], rtol=1e-5)
    assert 0.01 < share < 0.99
    made = step(a.mixup(NETWORK, SGD, class_counts=COUNTS, alpha=0.7))
    chex.assert_trees_all_close(made, in_numpy(x, Y, Y[other], share), rtol=1e-4, atol=1e-6)


def released_share(share, first, second, kappa, tau):
    """Remix as its rule reads."""
    if first / second >= kappa and share < tau:
        return 0.0
    if first / second <= 1 / kappa and 1 - share < tau:
        return 1.0
    return share


@settings(max_examples=80, deadline=None)
@given(
    st.floats(0, 1, width=32),
    st.integers(1, 500),
    st.integers(1, 500),
    st.sampled_from([1.5, 3.0, 10.0]),
    st.floats(0, 0.5, width=32),
)
def test_remix_gives_a_row_to_the_rarer_class(share, first, second, kappa, tau):
    made = float(a.remix_share(share, first, second, kappa, tau))
    near = min(abs(first / second - kappa), abs(first / second - 1 / kappa)) < 1e-6 or abs(1 - share - tau) < 1e-6
    if not near:  # at the border rounding decides
        assert made == pytest.approx(released_share(share, first, second, kappa, tau))
    assert made == share or (made == 0 and first > second) or (made == 1 and first < second)
    assert float(a.remix_share(share, first, second, jnp.inf, tau)) == share
    assert float(a.remix_share(share, first, first, kappa, tau)) == share
    assert float(a.remix_share(share, first, second, kappa, 0.0)) == share


def test_remix_at_the_papers_values():
    share = a.remix_share(jnp.asarray([0.4, 0.6, 0.6, 0.4, 0.4]), *np.float32([[30] * 5, [10, 10, 90, 90, 11]]))
    np.testing.assert_array_equal(share, np.float32([0.0, 0.6, 1.0, 0.4, 0.4]))


def test_remix_is_its_formula():
    x, other, share = drawn(1.0)
    shares = [released_share(share, COUNTS[i], COUNTS[j], 2.5, 0.5) for i, j in zip(Y, Y[other], strict=True)]
    assert len(set(shares)) == 2  # some rows are given away
    made = step(a.remix(NETWORK, SGD, class_counts=COUNTS, kappa=2.5))
    chex.assert_trees_all_close(made, in_numpy(x, Y, Y[other], shares), rtol=1e-4, atol=1e-6)


def test_remix_without_its_rule_is_mixup():
    mixed = step(a.mixup(NETWORK, SGD, class_counts=COUNTS, alpha=1.0))
    one = lambda counts, kappa, tau: step(a.remix(NETWORK, SGD, class_counts=counts, kappa=kappa, tau=tau))
    one, counts = jax.jit(one), jnp.asarray(COUNTS)
    for settings_ in ((counts, jnp.inf, 0.5), (counts, 3.0, 0.0), (jnp.full_like(counts, 9), 3.0, 0.5)):
        chex.assert_trees_all_close(one(*settings_), mixed, rtol=1e-5)


def test_mixup_that_does_not_mix_is_the_loss_itself():
    """For alpha -> 0 lambda is 0 or 1: the rows, or the rows in another order."""
    for name, loss in (("softmax", lt.softmax), ("balanced_softmax", lt.balanced_softmax)):
        plain = step(lt.METHODS[name].make(NETWORK, SGD, class_counts=COUNTS))
        made = step(a.mixup(NETWORK, SGD, class_counts=COUNTS, alpha=1e-4, loss=loss))
        chex.assert_trees_all_close(made, plain, rtol=1e-4, atol=1e-6)


def test_weights_go_with_labels_and_padding_stays_out():
    weight = RNG.uniform(0.5, 2.0, ROWS).astype(np.float32)
    x, other, share = drawn(1.0)
    learner = a.mixup(NETWORK, SGD, class_counts=COUNTS, alpha=1.0)
    one = in_numpy(x, Y, Y, 1.0, share * weight[:, None])  # lambda w_i on y_i
    two = in_numpy(x, Y[other], Y[other], 1.0, (1 - share) * weight[other][:, None])
    made = step(learner, {**DATA, "weight": jnp.asarray(weight)})
    both = jax.tree.map(np.add, one, two)
    chex.assert_trees_all_close(made, both, rtol=1e-4, atol=1e-6)
    valid = jnp.arange(ROWS) % 4 > 0
    spoilt = {**DATA, "x": jnp.where(valid[:, None], DATA["x"], jnp.nan), "valid": valid}
    chex.assert_trees_all_equal(step(learner, spoilt), step(learner, {**DATA, "valid": valid}))
    nothing, still = step(learner, {**DATA, "valid": jnp.zeros(ROWS, bool)})
    assert nothing == 0 and not any(leaf.any() for leaf in jax.tree.leaves(still))


# CMO ---------------------------------------------------------------------------------------------------------------


def boxes(share, height=6, width=5):
    """The box of ``oversampling.box`` for a key, and the one that its law gives for the centre it shows."""
    made = [np.asarray(oversampling.box(jax.random.key(k), jnp.asarray(share), height, width)) for k in range(40)]
    possible = set()
    half = [int(side * np.sqrt(1 - share)) // 2 for side in (height, width)]
    for i in range(height):
        for j in range(width):
            box = np.zeros((height, width), bool)
            box[max(i - half[0], 0) : i + half[0], max(j - half[1], 0) : j + half[1]] = True
            possible.add(box.tobytes())
    return made, possible


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 1.0])
def test_the_box_is_cutmixs(share):
    made, possible = boxes(share)
    assert all(box.tobytes() in possible for box in made)
    assert share >= 0.9 or len({box.tobytes() for box in made}) > 1


def test_the_box_has_the_law_of_the_library():
    """Over many keys as many pixels are covered as by ``losses.cutmix``."""
    keys = jax.random.split(KEY, 2000)
    x = jnp.zeros((2, 6, 5, 1))
    cut = 1 - jax.vmap(lambda key: losses.cutmix(key, x, jnp.arange(2)).share[0])(keys)
    share = jax.vmap(lambda key: jax.random.beta(key, 1.0, 1.0))(keys)
    made = jax.vmap(lambda key, share: oversampling.box(jax.random.fold_in(key, 1), share, 6, 5).mean())(keys, share)
    spread = np.sqrt(np.var(cut) / 2000 + np.var(made) / 2000)
    assert abs(cut.mean() - made.mean()) < 4.9 * spread


def pasted_batch():
    """A batch of backgrounds, and foregrounds of the two rarest classes."""
    rare = np.flatnonzero(Y >= 2)[np.arange(ROWS) % 6]
    second = {"x": PICTURES[rare], "y": jnp.asarray(Y[rare])}
    return {"x": PICTURES, "y": jnp.asarray(Y), "second": second}


def no_second(plan):
    batch = {name: leaf for name, leaf in pasted_batch().items() if name != "second"}
    learner = plan[0].learner
    return jax.eval_shape(learner.update, jax.eval_shape(learner.init, KEY, batch), batch, KEY)


def test_cmo_pastes_the_second_batch_and_shares_its_label():
    batch = pasted_batch()
    (stage,) = a.cmo(NETWORK, SGD, class_counts=COUNTS, probability=1.0)
    loss, gradient = step(stage.learner, batch)
    seen = stage.learner.update(stage.learner.init(jax.random.key(0), batch), batch, KEY)[1]["pasted"]
    keys = jax.random.split(jax.random.fold_in(KEY, 1), 3)
    box = np.asarray(oversampling.box(keys[1], jax.random.beta(keys[0], 1.0, 1.0), 6, 5))
    assert 0 < box.mean() < 1 and seen == pytest.approx(box.mean())
    x = np.where(box[None, :, :, None], batch["second"]["x"], batch["x"])
    expected = in_numpy(x, Y, np.asarray(batch["second"]["y"]), 1 - box.mean())
    chex.assert_trees_all_close((loss, gradient), expected, rtol=1e-4, atol=1e-6)


def test_cmo_that_does_not_paste_is_the_loss_itself():
    batch = pasted_batch()
    plain = step(lt.METHODS["softmax"].make(NETWORK, SGD, class_counts=COUNTS), {"x": PICTURES, "y": DATA["y"]})
    (stage,) = a.cmo(NETWORK, SGD, class_counts=COUNTS, probability=0.0)
    chex.assert_trees_all_close(step(stage.learner, batch), plain, rtol=1e-5, atol=1e-6)
    # Nothing is pasted from padding either.
    (stage,) = a.cmo(NETWORK, SGD, class_counts=COUNTS, probability=1.0)
    batch["second"] |= {"valid": jnp.zeros(ROWS, bool), "x": jnp.full_like(PICTURES, jnp.nan)}
    chex.assert_trees_all_close(step(stage.learner, batch), plain, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("power", "share"), [(1.0, (1 / COUNTS) / (1 / COUNTS).sum()), (0.0, np.full(4, 0.25))])
def test_foregrounds_come_by_inverse_frequency(power, share):
    (stage,) = a.cmo(NETWORK, SGD, class_counts=COUNTS, power=power, batch_size=ROWS)
    data = {"x": PICTURES, "y": DATA["y"]}
    source_state = stage.source.init(data, KEY)
    one = lambda step: stage.source.next(data, source_state, None, step, KEY)[1]
    batches = jax.jit(jax.vmap(one))(jnp.arange(100))
    drawn = 100 * ROWS
    found = np.bincount(batches["second"]["y"].ravel(), minlength=4) / drawn
    assert (np.abs(found - share) < 4.9 * np.sqrt(share * (1 - share) / drawn)).all()
    np.testing.assert_array_equal(np.bincount(batches["y"].ravel(), minlength=4), 100 * COUNTS)  # as it is


def test_cmo_runs_with_another_loss():
    data = {"x": PICTURES, "y": DATA["y"]}
    plan = a.cmo(mlp(4, hidden=(8,)), optax.adam(0.01), class_counts=COUNTS, loss=lt.balanced_softmax, batch_size=16)
    run = fit(plan, data, key=KEY, steps=12, progress=False)
    assert (run.history.metrics["finite"] == 1).all() and run.history.metrics["pasted"].max() > 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: a.mixup(NETWORK, SGD, class_counts=COUNTS, alpha=0.0), "alpha must be a finite number above 0"),
        (lambda: a.mixup(NETWORK, SGD, class_counts=np.array([3, 0])), "class 1 has no rows"),
        (lambda: a.remix(NETWORK, SGD, class_counts=COUNTS, kappa=0.5), "kappa must lie in"),
        (lambda: a.remix(NETWORK, SGD, class_counts=COUNTS, tau=1.5), "tau must lie in"),
        (lambda: a.remix_share(0.5, 1, 1, kappa=0.0), "kappa must lie in"),
        (lambda: no_second(a.cmo(NETWORK, SGD, class_counts=COUNTS)), "cmo needs a second row for each"),
        (lambda: a.cmo(NETWORK, SGD, class_counts=COUNTS, probability=2.0), "probability must lie in"),
        (lambda: a.cmo(NETWORK, SGD, class_counts=COUNTS, alpha=-1.0), "alpha must be"),
        (lambda: step(a.mixup(NETWORK, SGD, class_counts=np.ones(3))), "has 3 entries"),
        (lambda: step(a.mixup(NETWORK, SGD, class_counts=COUNTS), BYTES), "got an array of uint8"),
        (lambda: a.cmo(NETWORK, SGD, class_counts=COUNTS)[0].learner.init(KEY, DATA), "cmo needs pictures x"),
        (lambda: a.cmo(NETWORK, SGD, class_counts=np.ones(5))[0].learner.init(KEY, pasted_batch()), "has 5 entries"),
    ],
)
def test_mistakes(make, message):
    with pytest.raises(UsageError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)
