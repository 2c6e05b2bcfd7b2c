"""A learner made of a loss: against optax by hand, with variables, extra arrays, frozen parts and other gradients."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxkit.check import UsageError
from jaxkit.learner import (
    Gradient,
    LossState,
    Network,
    clear_padding,
    from_example_loss,
    from_loss,
    merge_params,
    split_params,
)
from jaxkit.training import optimizer

KEY = jax.random.key(0)
X = jax.random.normal(jax.random.key(1), (8, 3))
Y = X @ jnp.array([1.0, -2.0, 0.5]) + 1.0
BATCH = {"x": X, "y": Y}


def network() -> Network:
    """mean = (x - running mean) . w + b in two named parts; the running mean of x is its variable."""

    def init(key, x):
        params = {"backbone": {"w": jax.random.normal(key, (x.shape[-1], 2))}, "head": {"v": jnp.ones(2)}}
        return params, {"backbone": {"centre": jnp.zeros(x.shape[-1])}}

    def apply(params, variables, x, *, train=False, key=None, valid=None):
        centre = variables["backbone"]["centre"]
        features = (x - centre) @ params["backbone"]["w"]
        if train:
            variables = {"backbone": {"centre": 0.9 * centre + 0.1 * x.mean(0)}}
        return {"mean": features @ params["head"]["v"], "features": features}, variables

    return Network(init, apply)


def squared(outputs, batch):
    return (outputs["mean"] - batch["y"]) ** 2


def train(learner, steps, state=None, batch=BATCH):
    state = learner.init(KEY, batch) if state is None else state
    update = jax.jit(learner.update)
    for step in range(steps):
        state, metrics = update(state, batch, jax.random.fold_in(KEY, step))
    return state, metrics


def test_equals_optax_by_hand():
    net, adam = network(), optax.adamw(0.1, weight_decay=0.01)
    state, metrics = train(from_example_loss(net, squared, adam), 5)

    @jax.jit
    def by_hand(params, variables, moments):
        def loss(params):
            outputs, after = net.apply(params, variables, X, train=True)
            return ((outputs["mean"] - Y) ** 2).mean(), after

        (value, variables_after), grads = jax.value_and_grad(loss, has_aux=True)(params)
        updates, moments = adam.update(grads, moments, params)
        return optax.apply_updates(params, updates), variables_after, moments, value

    params, variables = net.init(KEY, X)
    moments = adam.init(params)
    for _ in range(5):
        params, variables, moments, value = by_hand(params, variables, moments)
    chex.assert_trees_all_close((state.params, state.variables), (params, variables), rtol=1e-6)
    chex.assert_trees_all_close(state.opt_state, moments, rtol=1e-5)
    np.testing.assert_allclose(metrics["loss"], value, rtol=1e-6)
    assert metrics.keys() == {"loss", "finite"} and metrics["finite"] == 1 and int(state.step) == 5


def test_variables_follow_the_batches_and_predict_leaves_them():
    learner = from_example_loss(network(), squared, optax.sgd(0.0))
    state, _ = train(learner, 4)
    expected = np.asarray(X).mean(0) * (1 - 0.9**4)  # the running mean from zero
    np.testing.assert_allclose(state.variables["backbone"]["centre"], expected, rtol=1e-5)
    features = learner.predict(state, {"x": X})["features"]
    np.testing.assert_allclose(features, (np.asarray(X) - expected) @ state.params["backbone"]["w"], atol=1e-5)


def test_the_loss_reads_step_and_hands_on_extra():
    def loss(params, state: LossState, batch, key):
        value = jnp.square(params["head"]["v"]).sum()
        extra = {"steps": state.extra["steps"] + state.step}
        return value, (state._replace(extra=extra), {"step": state.step, "draw": jax.random.uniform(key)})

    start = lambda params, variables: {"steps": jnp.zeros((), jnp.int32)}
    state, metrics = train(from_loss(network(), loss, optax.sgd(0.1), init_extra=start), 4)
    assert int(state.extra["steps"]) == 0 + 1 + 2 + 3
    assert metrics["step"] == 3 and metrics["step"].dtype == jnp.float32
    assert metrics["draw"] == jax.random.uniform(jax.random.fold_in(KEY, 3))
    np.testing.assert_allclose(state.params["head"]["v"], 0.8**4, rtol=1e-6)  # v - 0.1 * 2 v, four times


def test_frozen_parameters_have_no_optimizer_state_and_do_not_decay():
    learner = from_example_loss(network(), squared, optax.adamw(0.1, weight_decay=1.0), freeze="backbone")
    first = learner.init(KEY, BATCH)
    state, _ = train(learner, 3)
    assert sorted(leaf.size for leaf in jax.tree.leaves(first.opt_state)) == [1, 2, 2]  # count, two moments of v
    chex.assert_trees_all_equal(state.params["backbone"], first.params["backbone"])
    chex.assert_trees_all_equal(state.variables, first.variables)
    assert not np.array_equal(state.params["head"]["v"], first.params["head"]["v"])


def test_the_gradient_of_the_rest_is_that_of_the_whole():
    rest, _ = train(from_example_loss(network(), squared, optax.sgd(0.1), freeze="backbone"), 1)
    whole, _ = train(from_example_loss(network(), squared, optax.sgd(0.1)), 1)
    np.testing.assert_allclose(rest.params["head"]["v"], whole.params["head"]["v"], rtol=1e-6)


def test_freezing_everything_is_refused():
    learner = from_example_loss(network(), squared, optax.sgd(0.1), freeze="backbone|head")
    with pytest.raises(UsageError, match="nothing is left to train"):
        learner.init(KEY, BATCH)


@pytest.mark.parametrize("pattern", [None, "backbone", "w$", "nowhere", ".*"])
def test_split_and_merge_are_inverse(pattern):
    params, _ = network().init(KEY, X)
    trained, kept = split_params(params, pattern)
    chex.assert_trees_all_equal(merge_params(trained, kept), params)
    assert len(jax.tree.leaves(trained)) + len(jax.tree.leaves(kept)) == 2


def sign_compression() -> Gradient:
    """The sign of gradient plus error, scaled by its mean magnitude, the error fed back (Karimireddy et al. 2019)."""

    def apply(loss, error, params, carried, batch, key):
        (value, (carried, metrics)), grads = jax.value_and_grad(loss, has_aux=True)(params, carried, batch, key)
        wanted = jax.tree.map(jnp.add, grads, error)
        sent = jax.tree.map(lambda p: jnp.abs(p).mean() * jnp.sign(p), wanted)
        return jax.tree.map(jnp.subtract, wanted, sent), sent, carried, {"loss": value, **metrics}

    return Gradient(init=lambda params: jax.tree.map(jnp.zeros_like, params), apply=apply)


def test_a_gradient_with_state_equals_its_numpy_transcription():
    def apply(params, variables, x, *, train=False, key=None, valid=None):
        return {"mean": x @ params["w"]}, variables

    net = Network(lambda key, x: ({"w": jnp.zeros(x.shape[-1])}, ()), apply)
    state, _ = train(from_example_loss(net, squared, optax.sgd(0.1), gradient=sign_compression()), 6)
    x, y = np.asarray(X, np.float64), np.asarray(Y, np.float64)
    w, error = np.zeros(3), np.zeros(3)
    for _ in range(6):
        wanted = 2 * x.T @ (x @ w - y) / len(y) + error
        sent = np.abs(wanted).mean() * np.sign(wanted)
        w, error = w - 0.1 * sent, wanted - sent
    np.testing.assert_allclose(state.params["w"], w, rtol=1e-5)
    np.testing.assert_allclose(state.grad_state["w"], error, rtol=1e-4, atol=1e-5)


def test_a_gradient_sees_trained_parameters_only_and_may_overrule_finite():
    shapes = []

    def apply(loss, grad_state, params, carried, batch, key):
        shapes.append(jax.tree.map(jnp.shape, params))
        zeros = jax.tree.map(lambda p: jnp.full_like(p, jnp.nan), params)
        return grad_state, zeros, carried, {"loss": jnp.float32(0), "finite": True}

    skipping = Gradient(init=lambda params: (), apply=apply)
    learner = from_example_loss(network(), squared, optax.sgd(0.1), gradient=skipping, freeze="backbone")
    _, metrics = train(learner, 1)
    assert shapes[0] == {"backbone": {"w": None}, "head": {"v": (2,)}}
    assert metrics["finite"] == 1


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_a_loss_that_is_not_finite_says_so(bad):
    learner = from_example_loss(network(), squared, optax.sgd(0.1))
    _, metrics = train(learner, 1, batch={"x": X, "y": Y.at[0].set(bad)})
    assert metrics["finite"] == 0


def test_a_learning_rate_can_be_swept_inside_one_program():
    def final(rate):
        learner = from_example_loss(network(), squared, optimizer("momentum", rate))
        state = learner.init(KEY, BATCH)
        step = lambda number, state: learner.update(state, BATCH, KEY)[0]
        return jax.lax.fori_loop(0, 5, step, state).params

    rates = jnp.array([0.01, 0.05])
    together = jax.jit(lambda rates: jax.lax.map(final, rates))(rates)
    for number, rate in enumerate((0.01, 0.05)):
        mapped = jax.tree.map(lambda leaf: leaf[number], together)
        chex.assert_trees_all_close(mapped, jax.jit(lambda: final(rate))(), rtol=1e-5, atol=1e-6)


def test_nan_in_padding_reaches_nothing():
    batch = {"x": jnp.ones((4, 3)), "y": jnp.arange(4) % 2, "valid": jnp.array([True, True, False, False])}
    dirty = {**batch, "x": batch["x"].at[2:].set(jnp.nan), "second": {**batch, "x": batch["x"].at[3].set(jnp.inf)}}
    cleared = clear_padding(dirty)
    np.testing.assert_array_equal(cleared["x"], jnp.ones((4, 3)).at[2:].set(0))
    np.testing.assert_array_equal(cleared["second"]["x"], cleared["x"])
    assert clear_padding({"x": dirty["x"]})["x"] is dirty["x"]


def test_padding_clears_no_graph_and_no_held_out_node():
    """Four rows in a graph of four nodes and four edges, and four stopping nodes: lengths alone tell nothing apart."""
    ones, valid = jnp.ones((4, 3)), jnp.array([True, True, False, False])
    x = (jnp.arange(4), {"edges": ones[:, 0], "nodes": ones, "number of nodes": jnp.array([4])})
    batch = {"x": x, "weight": ones[:, 0], "stopping": {"x": ones, "y": jnp.arange(4)}, "valid": valid}
    cleared = clear_padding(batch)
    chex.assert_trees_all_equal(cleared, {**batch, "weight": jnp.array([1.0, 1.0, 0.0, 0.0])})
    together = clear_padding({"x": {"one": ones, "two": ones[:, :1]}, "valid": valid})["x"]
    chex.assert_trees_all_equal(together, {"one": ones.at[2:].set(0), "two": ones[:, :1].at[2:].set(0)})
