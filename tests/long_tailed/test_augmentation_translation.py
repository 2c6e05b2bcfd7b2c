"""M2m: seeds, translation and acceptance against NumPy, and what each stage hands on."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.special import softmax

from jaxkit import fit
from jaxkit import long_tailed as lt
from jaxkit.check import UsageError
from jaxkit.long_tailed import augmentation as a
from jaxkit.long_tailed.augmentation import translation as t
from jaxkit.networks import mlp

RNG = np.random.default_rng(3)
COUNTS = np.array([400, 80, 16, 4])
KEY = jax.random.key(1)
NETWORK, SGD = mlp(4, hidden=()), optax.sgd(0.5)
Y = np.repeat(np.arange(4), [20, 8, 4, 2]).astype(np.int32)
X = np.clip(0.6 * np.eye(4, 6)[Y] + 0.3 * RNG.uniform(size=(len(Y), 6)), 0, 1).astype(np.float32)
DATA = {"x": jnp.asarray(X), "y": jnp.asarray(Y)}


def bits(tree):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def test_seeds_come_from_larger_classes_as_often_as_written():
    keys = jax.random.split(KEY, 3000)
    valid = jnp.asarray(np.arange(len(Y)) != 3)
    draw = jax.jit(jax.vmap(lambda key: t.draw_seeds(key, DATA["y"], COUNTS, 0.99, valid)))
    seeds, chance = (np.asarray(part) for part in draw(keys))
    n = COUNTS[Y].astype(float)
    table = (1 - 0.99 ** np.maximum(n[None, :] - n[:, None], 0)) * np.asarray(valid)[None, :]
    for row in (0, 21, 29, 33):  # one of each class
        if Y[row] == 0:  # no class is larger
            assert not chance[:, row].any()
            continue
        np.testing.assert_allclose(chance[:, row], table[row][seeds[:, row]], rtol=1e-4)
        share = table[row] / table[row].sum()
        found = np.bincount(seeds[:, row], minlength=len(Y)) / 3000
        assert (np.abs(found - share) <= 4.9 * np.sqrt(share * (1 - share) / 3000)).all()


@pytest.mark.parametrize("bounds", [(0.0, 1.0), None])
def test_translation_is_normalised_descent(bounds):
    weights = [RNG.normal(size=(6, 4)) for _ in range(2)]
    g, f = (lambda x, w=w: x @ w.astype(np.float32) for w in weights)
    rows, source, target = RNG.uniform(size=(5, 6)), np.array([0, 0, 1, 2, 0]), np.array([1, 3, 2, 3, 2])
    x = rows.copy()
    for _ in range(4):
        slope = (softmax(x @ weights[0], axis=1) - np.eye(4)[target]) @ weights[0].T + 0.7 * weights[1][:, source].T
        x = x - 0.2 * slope / np.linalg.norm(slope, axis=1, keepdims=True)
        x = x if bounds is None else np.clip(x, *bounds)
    labels = jnp.asarray(source), jnp.asarray(target)
    made = t.translate(g, f, jnp.asarray(rows, jnp.float32), *labels, away=0.7, rate=0.2, steps=4, bounds=bounds)
    np.testing.assert_allclose(made, x, rtol=1e-4, atol=1e-5)
    assert np.abs(x - rows).max() > 0.2


def plan(**options):
    return a.m2m(NETWORK, SGD, **{"class_counts": COUNTS, "batch_size": 16, **options})


def test_the_stages_hand_on_the_first_network_and_train_the_second():
    made = plan()
    assert [stage.name for stage in made] == ["seer", "classifier", "translation"]
    np.testing.assert_allclose([stage.share for stage in made], [0.5, 0.4, 0.1])
    seer = fit((made[0]._replace(steps=5),), DATA, key=KEY, steps=5, progress=False).state
    began = jax.jit(made[1].begin)(seer, DATA, KEY)
    assert bits(began.extra.params) == bits(seer.params) and bits(began.params) != bits(seer.params)
    assert int(began.step) == 0
    whole = fit(made, DATA, key=KEY, steps=10, progress=False)
    assert bits(whole.state.extra.params) == bits(seer.params)  # five steps of g, then none
    assert bits(whole.state.params) != bits(seer.params)


def stage_three(batch=DATA, **options):
    """(loss, share of rows translated, how the head moved) in a step of stage 3, g and f as drawn."""
    learner = plan(**options)[2].learner
    state = learner.init(KEY, batch)
    after, metrics = jax.jit(learner.update)(state, batch, jax.random.key(8))
    moved = jax.tree.map(lambda one, two: one - two, state.params, after.params)
    return float(metrics["loss"]), float(metrics["translated"]), moved


def test_without_translations_a_step_is_the_loss_itself():
    plainly = lt.METHODS["softmax"].make(NETWORK, SGD, class_counts=COUNTS)
    state = plainly.init(KEY, DATA)
    loss = float(plainly.update(state, DATA, KEY)[1]["loss"])
    for options in ({"gamma": 1.0}, {"beta": 1.0}, {"class_counts": np.full(4, 9)}):
        made, share, _ = stage_three(**options)
        assert share == 0 and made == pytest.approx(loss, rel=1e-6)
    made, share, _ = stage_three(gamma=0.0)
    assert share > 0 and abs(made - loss) > 1e-4


def test_rows_are_replaced_as_often_as_written():
    """gamma = 0 and beta = 0 accept whatever comes from a larger class: a row goes with 1 - n / n_max."""
    batch = {"x": jnp.tile(DATA["x"], (60, 1)), "y": jnp.tile(DATA["y"], 60)}
    expected = (1 - COUNTS / COUNTS.max())[Y].mean()
    spread = np.sqrt(expected * (1 - expected) / (60 * len(Y)))
    share = stage_three(batch, gamma=0.0, beta=0.0, translation_steps=1)[1]
    assert abs(share - expected) < 4.9 * spread


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta": 1.5}, "beta must lie"),
        ({"gamma": -0.1}, "gamma must lie"),
        ({"away": -1.0}, "away must lie"),
        ({"rate": 0.0}, "rate must be"),
        ({"noise": -1.0}, "noise must lie"),
        ({"translation_steps": 0}, "translation_steps must be at least 1"),
        ({"bounds": (1.0, 0.0)}, "bounds must be a smaller and a larger number"),
        ({"seer_share": 1.0}, "seer_share must lie between 0 and 1"),
        ({"deferred": 0.0}, "deferred must lie between 0 and 1"),
        ({"class_counts": np.array([3, 0])}, "class 1 has no rows"),
    ],
)
def test_mistakes(options, message):
    with pytest.raises(UsageError, match=message) as caught:
        plan(**options)
    assert "\n" not in str(caught.value)
