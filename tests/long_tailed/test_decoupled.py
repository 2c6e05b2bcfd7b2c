"""Decoupled training: what each second step leaves alone and what it computes, against NumPy."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.datasets import load_digits

from jaxkit import fit
from jaxkit.check import UsageError
from jaxkit.data.shifts import long_tail
from jaxkit.learner import Network
from jaxkit.long_tailed import decoupled as d
from jaxkit.networks import heads, mlp
from jaxkit.training.schedule import share_out

KEY = jax.random.key(5)
STEPS = 40
OPTIMIZER = optax.sgd(0.1, momentum=0.9)


@functools.lru_cache
def digits():
    """Scikit-learn's digits cut to an imbalance of 20: 120 to 6 rows."""
    x, y = load_digits(return_X_y=True)
    pool = {"x": (x / 16).astype(np.float32), "y": y.astype(np.int32)}
    return long_tail(pool, KEY, num_classes=10, imbalance=20, largest=120)


def counts():
    return np.bincount(digits()["y"], minlength=10)


def network(**options):
    return mlp(10, hidden=(16,), norm="batch", dropout=0.2, **options)


def leaves(tree):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def parts_of(plan, steps=STEPS):
    """The state after stage 1 alone, and after the plan; equal keys give equal first stages."""
    first, _ = share_out(steps, [stage.share for stage in plan])
    alone = fit((plan[0]._replace(steps=first),), digits(), key=KEY, steps=first, progress=False)
    return alone.state, fit(plan, digits(), key=KEY, steps=steps, progress=False).state


def test_crt_keeps_the_backbone_and_draws_a_new_head():
    plan = d.crt(network(), OPTIMIZER, class_counts=counts(), batch_size=32)
    assert [stage.name for stage in plan] == ["representation", "classifier"]
    assert [stage.share for stage in plan] == [0.9, 0.1]
    before, after = parts_of(plan)
    assert leaves(before.params["backbone"]) == leaves(after.params["backbone"])
    assert leaves(before.variables) == leaves(after.variables)  # statistics of batch normalisation too
    began = jax.jit(plan[1].begin)(before, digits(), jax.random.key(1))
    other = jax.jit(plan[1].begin)(before, digits(), jax.random.key(2))
    kernels = [state.params["head"]["kernel"] for state in (before, began, other, after)]
    for i in range(4):
        for j in range(i):
            assert not np.allclose(kernels[i], kernels[j])
    assert int(began.step) == 0 and jax.tree.leaves(began.params["backbone"])
    trained = {leaf.shape for leaf in jax.tree.leaves(began.opt_state)}
    assert trained == {(16, 10), (10,)}  # momentum for the head alone


def test_crt_samples_class_balanced_in_its_second_stage():
    plan = d.crt(network(), OPTIMIZER, class_counts=counts(), batch_size=500)
    source, data = plan[1].source, jax.tree.map(jnp.asarray, digits())
    labels = np.asarray(source.next(data, source.init(data, KEY), None, 0, KEY)[1]["y"])
    # 50 rows of each class are expected; 4.9 standard deviations are passed once in 10^6 for each of 10 classes.
    assert np.abs(np.bincount(labels, minlength=10) - 50).max() < 4.9 * np.sqrt(500 * 0.1 * 0.9)


def test_the_second_stage_of_crt_is_logistic_regression_on_fixed_features():
    """One step of plain gradient descent on a known batch, against the gradient written out in NumPy."""
    rate = 0.5
    plan = d.crt(network(), OPTIMIZER, class_counts=counts(), classifier_optimizer=optax.sgd(rate))
    data = jax.tree.map(jnp.asarray, digits())
    batch = jax.tree.map(lambda leaf: leaf[:64], data)
    learner = plan[0].learner
    state = plan[1].begin(learner.update(learner.init(KEY, data), batch, KEY)[0], data, KEY)
    after, metrics = plan[1].learner.update(state, batch, jax.random.key(9))

    features = np.asarray(learner.predict(state, batch)["features"], np.float64)
    head = {name: np.asarray(leaf, np.float64) for name, leaf in state.params["head"].items()}
    logits = features @ head["kernel"] + head["bias"]
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    residual = (p - np.eye(10)[np.asarray(batch["y"])]) / 64
    np.testing.assert_allclose(metrics["loss"], -np.log(p[np.arange(64), batch["y"]]).mean(), rtol=1e-5)
    kernel = head["kernel"] - rate * features.T @ residual
    np.testing.assert_allclose(after.params["head"]["kernel"], kernel, rtol=1e-4, atol=1e-6)
    bias = head["bias"] - rate * residual.sum(0)
    np.testing.assert_allclose(after.params["head"]["bias"], bias, rtol=1e-4, atol=1e-6)


def test_lws_learns_scales_alone():
    plan = d.lws(network(), OPTIMIZER, class_counts=counts(), batch_size=32, classifier_share=0.25)
    before, after = parts_of(plan)
    for part in ("backbone", "head"):
        assert leaves(before.params[part]) == leaves(after.params[part])
    assert leaves(before.variables) == leaves(after.variables)
    scale = np.asarray(after.params["class_scale"])
    assert scale.shape == (10,) and (scale != 1).all()
    assert scale[-3:].mean() > scale[:3].mean()  # class-balanced batches hold more of the classes that had few rows
    batch = {"x": jnp.asarray(digits()["x"][:50])}
    one, two = plan[0].learner.predict(before, batch), plan[1].learner.predict(after, batch)
    np.testing.assert_allclose(two["logits"], np.asarray(one["logits"]) * scale, rtol=1e-5, atol=1e-6)


def test_the_tau_norm_plan_is_joint_training_and_then_tau_norm():
    plan = d.tau_norm(network(), OPTIMIZER, class_counts=counts(), tau=0.5, batch_size=32)
    joint = fit((plan[0]._replace(end=None),), digits(), key=KEY, steps=STEPS, progress=False).state
    state = fit(plan, digits(), key=KEY, steps=STEPS, progress=False).state
    assert leaves(joint.params["backbone"]) == leaves(state.params["backbone"])
    kernel = np.asarray(joint.params["head"]["kernel"], np.float64)
    expected = kernel / np.sqrt(np.linalg.norm(kernel, axis=0))
    x = jnp.asarray(digits()["x"][:40])
    outputs = plan[0].learner.predict(state, {"x": x})
    np.testing.assert_allclose(outputs["logits"], np.asarray(outputs["features"]) @ expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("read_out", d.READ_OUTS)
def test_ncm_is_the_nearest_mean_of_numpy(read_out):
    plan = d.ncm(network(), OPTIMIZER, class_counts=counts(), read_out=read_out, batch_size=32)
    run = fit(plan, digits(), key=KEY, steps=STEPS, progress=False)
    y, batch = digits()["y"], {"x": jnp.asarray(digits()["x"])}
    outputs = jax.tree.map(np.asarray, plan[0].learner.predict(run.state, batch))
    features = outputs["features"].astype(np.float64)
    means = np.stack([features[y == c].mean(0) for c in range(10)])
    np.testing.assert_allclose(run.state.extra.means, means, rtol=1e-4, atol=1e-5)
    if read_out == "cosine":
        lengths = np.linalg.norm(features, axis=1)[:, None] * np.linalg.norm(means, axis=1)
        expected = features @ means.T / lengths
    else:
        expected = -((features[:, None] - means) ** 2).sum(-1)
    np.testing.assert_allclose(outputs["logits"], expected, rtol=1e-3, atol=1e-4)
    head = run.state.params["head"]
    np.testing.assert_allclose(
        outputs["logits_head"], features @ np.asarray(head["kernel"]) + np.asarray(head["bias"]), rtol=1e-3, atol=1e-4
    )


def test_ncm_reads_out_the_head_before_its_end():
    (stage,) = d.ncm(network(), OPTIMIZER, class_counts=counts(), batch_size=32)
    data = jax.tree.map(jnp.asarray, digits())
    state = stage.learner.init(KEY, data)
    assert stage.learner.predict(state, {"x": data["x"]}).keys() == {"logits", "features"}


@pytest.mark.parametrize("make", [d.crt, d.lws])
def test_a_cosine_head_is_decoupled_too(make):
    head = heads.cosine(scale=16.0, learn_scale=False)
    plan = make(network(head=head), OPTIMIZER, class_counts=counts(), batch_size=32, classifier_share=0.25)
    before, after = parts_of(plan, 20)
    assert leaves(before.params["backbone"]) == leaves(after.params["backbone"])


@pytest.mark.parametrize("sampler", ["class_balanced", "square_root", "progressive", "reversed"])
def test_stage_one_takes_its_sampler(sampler):
    total = 100 if sampler == "progressive" else None
    plan = d.crt(network(), OPTIMIZER, class_counts=counts(), batch_size=1000, sampler=sampler, total_steps=total)
    data = jax.tree.map(jnp.asarray, digits())
    source = plan[0].source
    step = total or 0  # at its end the progressive sampler is class-balanced
    labels = np.asarray(source.next(data, source.init(data, KEY), None, step, KEY)[1]["y"])
    n = counts()
    weight = {"square_root": n**0.5, "reversed": 1.0 / n}.get(sampler, np.ones(10))
    share = (weight / weight.sum())[-3:].sum()  # of the three smallest classes
    # 4.9 standard deviations: a false alarm in 10^6.
    assert abs((labels >= 7).sum() - 1000 * share) < 4.9 * np.sqrt(1000 * share * (1 - share))


def test_the_loss_of_stage_one_gets_the_class_counts():
    seen = []

    def loss(logits, labels, class_counts):
        seen.append(np.asarray(class_counts))
        return optax.softmax_cross_entropy_with_integer_labels(logits + jnp.log(class_counts), labels)

    (stage,) = d.joint_training(network(), OPTIMIZER, class_counts=counts(), batch_size=32, loss=loss)
    data = jax.tree.map(jnp.asarray, digits())
    state = stage.learner.init(KEY, data)
    _, metrics = stage.learner.update(state, data, KEY)
    np.testing.assert_array_equal(seen[0], counts())
    plain = d.joint_training(network(), OPTIMIZER, class_counts=counts(), batch_size=32)[0].learner
    assert abs(float(metrics["loss"]) - float(plain.update(state, data, KEY)[1]["loss"])) > 1e-3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: d.class_means(jnp.ones((3, 2)), jnp.array([0, 1, 2]), 2), r"labels must lie in 0\.\.1"),
        (lambda: d.crt(network(), OPTIMIZER, class_counts=np.ones(10), sampler="squareroot"), "'square_root'"),
        (lambda: d.crt(network(), OPTIMIZER, class_counts=np.ones(10), sampler="progressive"), "needs total_steps"),
        (lambda: d.crt(network(), OPTIMIZER, class_counts=np.ones(10), classifier_share=1.0), "between 0 and 1"),
        (lambda: d.lws(network(), OPTIMIZER, class_counts=np.ones(10), classifier_share=0), "between 0 and 1"),
        (lambda: d.lws(network(), OPTIMIZER, class_counts=np.array([3, 0, 1])), "class 1 has no rows"),
        (lambda: d.tau_norm(network(), OPTIMIZER, class_counts=np.ones(10), tau=-0.1), "tau must lie"),
        (lambda: d.ncm(network(), OPTIMIZER, class_counts=np.ones(10), read_out="manhattan"), "unknown read-out"),
        (lambda: d.progressive_sampling(network(), OPTIMIZER, class_counts=np.ones(10)), "needs total_steps"),
    ],
)
def test_mistakes(make, message):
    with pytest.raises(UsageError, match=message):
        make()


def test_a_network_that_does_not_fit_is_refused_before_training():
    headless = Network(lambda key, x: ({"w": jnp.ones((64, 10))}, {}), lambda p, v, x, **_: ({"logits": x @ p["w"]}, v))
    data = jax.tree.map(jnp.asarray, digits())
    with pytest.raises(UsageError, match="expected params with head/kernel"):
        d.crt(headless, OPTIMIZER, class_counts=counts())[0].learner.init(KEY, data)
    with pytest.raises(UsageError, match="has 5 entries and the network 10 classes"):
        d.crt(network(), OPTIMIZER, class_counts=np.ones(5))[0].learner.init(KEY, data)
