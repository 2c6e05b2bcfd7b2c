"""What the three learners of ``proofs`` learn, against scikit-learn's classifiers and the bandit's best arms."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from jaxkit.data import take
from jaxkit.learner import Stage, from_example_loss
from jaxkit.networks import mlp
from jaxkit.training import fit
from tests.conformance import checks, proofs

OLD, CLASSES = proofs.OLD, proofs.CLASSES


@pytest.fixture(scope="module")
def digits():
    return proofs.imbalanced_digits()


@pytest.fixture(scope="module")
def two_stages(digits):
    """The plan, the state after its first stage, the state with which the second begins, the state at the end."""
    plan = proofs.two_stage()
    old = fit(plan[:1], digits, key=5, steps=300, progress=False).state
    whole = fit(plan, digits, key=5, steps=600, progress=False)
    key = jax.random.fold_in(jax.random.key(5), 1)
    return plan, old, jax.jit(plan[1].begin)(old, digits, key), whole


def test_the_second_stage_keeps_the_backbone_bits(two_stages):
    _, old, _, whole = two_stages
    chex.assert_trees_all_equal(whole.state.params["backbone"], old.params["backbone"])
    assert not np.array_equal(whole.state.params["head"]["kernel"][:, :OLD], old.params["head"]["kernel"])


def test_the_grown_head_keeps_the_rows_of_the_old_classes(two_stages):
    _, old, begun, _ = two_stages
    assert begun.params["head"]["kernel"].shape == (32, CLASSES)
    np.testing.assert_array_equal(begun.params["head"]["kernel"][:, :OLD], old.params["head"]["kernel"])
    np.testing.assert_array_equal(begun.params["head"]["bias"], np.r_[old.params["head"]["bias"], np.zeros(5)])
    assert int(begun.step) == 0 and int(old.step) == 300
    moments = jax.tree.leaves(begun.opt_state)  # the momentum of the head alone
    assert sum(leaf.size for leaf in moments if leaf.ndim) == 33 * CLASSES


def test_the_sources_choose_the_classes(two_stages, digits):
    plan, _, begun, _ = two_stages
    old_labels, labels = [], []
    for stage, seen in zip(plan, (old_labels, labels), strict=True):
        source_state = stage.source.init(digits, jax.random.key(1))
        draw = lambda step: stage.source.next(digits, source_state, begun, step, jax.random.key(1))[1]["y"]
        seen.extend(np.asarray(jax.jit(lambda steps: jax.lax.map(draw, steps))(jnp.arange(100))).reshape(-1))
    assert max(old_labels) == OLD - 1
    expected = len(labels) / CLASSES
    chi_square = ((np.bincount(labels, minlength=CLASSES) - expected) ** 2 / expected).sum()
    assert chi_square < 27.9  # the 99.9 % point for 9 degrees of freedom
    assert np.bincount(digits["y"]).max() == 10 * np.bincount(digits["y"]).min()


def test_the_grown_head_classifies_as_logistic_regression_on_the_frozen_features(two_stages, digits):
    plan, _, _, whole = two_stages
    x, y = load_digits(return_X_y=True)
    predict = jax.jit(plan[1].learner.predict)
    features = predict(whole.state, {"x": digits["x"]})["features"]
    theirs = LogisticRegression(class_weight="balanced", max_iter=2000).fit(features, digits["y"])
    outputs = predict(whole.state, {"x": jnp.asarray(x / 16.0, jnp.float32)})
    ours = (np.asarray(outputs["logits"]).argmax(-1) == y).mean()
    assert ours > theirs.score(outputs["features"], y) - 0.03
    assert ours > (y < OLD).mean() + 0.2  # more than the first stage's five classes could ever give


def separability(learner, state, data):
    """Accuracy with which a logistic regression tells the environment from the features, on the rows it saw."""
    features = jax.jit(learner.predict)(state, {"x": data["x"]})["features"]
    return LogisticRegression(max_iter=2000).fit(features, data["env"]).score(features, data["env"])


def test_the_adversary_hides_the_environment_and_keeps_the_label():
    data, network, source = proofs.marked_environments(), mlp(2, hidden=(16,)), proofs.environments()
    told, right = {}, {}
    for penalty in (0.0, 1.0):
        learner = proofs.domain_adversarial(network, 2, optax.adam(0.01), optax.adam(0.01), penalty=penalty)
        states = [fit(learner, data, key=key, steps=400, source=source, progress=False).state for key in range(3)]
        logits = [np.asarray(learner.predict(state, {"x": data["x"]})["logits"]) for state in states]
        told[penalty] = np.mean([separability(learner, state, data) for state in states])
        right[penalty] = np.mean([(values.argmax(-1) == data["y"]).mean() for values in logits])
    # Both coordinates are N(+-1, 0.5^2): the best rule is right with probability Phi(2) = 0.977.
    assert min(right.values()) > 0.95
    assert told[0.0] > 0.85
    assert told[1.0] < told[0.0] - 0.1


def test_without_a_penalty_the_adversarial_learner_is_erm():
    data, network = proofs.marked_environments(64), mlp(2, hidden=(8,))
    learner = proofs.domain_adversarial(network, 2, optax.sgd(0.1), optax.sgd(0.1), penalty=0.0)
    erm = from_example_loss(network, proofs.cross_entropy, optax.sgd(0.1))
    batch = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(take(data, jnp.arange(e, 64, 2)) for e in range(2)))
    state, rows = jax.jit(learner.init)(jax.random.key(0), batch), proofs.rows_of(batch)
    plain = jax.jit(erm.init)(jax.random.key(0), rows)._replace(params=state.params)
    update, erm_update = jax.jit(learner.update), jax.jit(erm.update)
    for step in range(3):
        state, metrics = update(state, batch, jax.random.key(step))
        plain, theirs = erm_update(plain, rows, jax.random.key(step))
        np.testing.assert_allclose(metrics["loss"], theirs["loss"], rtol=1e-6)
    chex.assert_trees_all_close(state.params, plain.params, rtol=1e-5, atol=1e-7)


def test_the_policy_finds_the_best_arm_of_each_context():
    learner = proofs.reinforce(mlp(4, hidden=(16,)), optax.adam(0.03))
    data = proofs.contexts()
    fitted = fit(learner, data, key=0, steps=400, source=proofs.bandit(learner), progress=False)
    reward = fitted.history.metrics["reward"]
    # 64 rewards of variance at most 1/4 a step: 50 steps have a standard error of at most 0.009.
    assert abs(reward[:3].mean() - proofs.UNIFORM) < 0.15
    assert reward[-50:].mean() > proofs.BEST - 0.05
    logits = learner.predict(fitted.state, data)["logits"]
    np.testing.assert_array_equal(np.asarray(logits).argmax(-1), proofs.MEAN_REWARD.argmax(1))


def test_the_bandit_plays_the_policy_that_it_is_given():
    learner = proofs.reinforce(mlp(4, hidden=()), optax.sgd(0.1))
    stage = Stage("train", learner, proofs.bandit(learner))
    data, key = proofs.contexts(), jax.random.key(2)
    state = jax.jit(lambda: checks.first_state(stage, None, data, key))()
    play = jax.jit(lambda state: checks.first_batch(stage, state, data, key))
    for arm in range(4):
        head = {"kernel": jnp.zeros((3, 4)), "bias": 50.0 * jax.nn.one_hot(arm, 4)}
        batch = play(state._replace(params={**state.params, "head": head}))
        assert batch["action"].shape == (16, 4) and (batch["action"] == arm).all()
