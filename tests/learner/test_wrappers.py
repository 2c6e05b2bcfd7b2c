"""Learners around learners, the batch mean, batches from the host, and methods by name."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxkit.check import UsageError
from jaxkit.data import epochs, example_of, host
from jaxkit.learner import Learner, Method, Network, batch_mean, find_method, from_example_loss, frozen, with_ema
from jaxkit.training import fit

KEY = jax.random.key(0)
DATA = {"x": jax.random.normal(jax.random.key(1), (32, 3))}
DATA["y"] = DATA["x"] @ jnp.array([1.0, -2.0, 0.5])


def linear(rate=0.1, optimizer=None) -> Learner:
    def apply(params, variables, x, *, train=False, key=None, valid=None):
        return {"mean": x @ params["w"] + params["b"]}, variables

    net = Network(lambda key, x: ({"w": jnp.ones(x.shape[-1]), "b": jnp.ones(())}, ()), apply)
    error = lambda outputs, batch: (outputs["mean"] - batch["y"]) ** 2
    return from_example_loss(net, error, optimizer or optax.sgd(rate))


def run(learner, steps):
    """The states before and after each of some steps."""
    update = jax.jit(learner.update)
    states = [jax.jit(learner.init)(KEY, DATA)]
    for _ in range(steps):
        states.append(update(states[-1], DATA, KEY)[0])
    return states


def test_ema_is_the_average_that_numpy_computes():
    learner = with_ema(linear(), decay=0.8)
    states = run(learner, 5)
    average = np.ones(3)
    for state in states[1:]:
        average = 0.8 * average + 0.2 * np.asarray(state.inner.params["w"], np.float64)
    np.testing.assert_allclose(states[-1].average["w"], average, rtol=1e-5)
    chex.assert_trees_all_equal(states[-1].inner.params, run(linear(), 5)[-1].params)
    state = states[-1]
    by_average = DATA["x"] @ state.average["w"] + state.average["b"]
    np.testing.assert_allclose(learner.predict(state, DATA)["mean"], by_average, rtol=1e-5, atol=1e-6)


def test_ema_with_decay_zero_is_the_learner_itself():
    state = run(with_ema(linear(), decay=0.0), 3)[-1]
    chex.assert_trees_all_equal(state.average, state.inner.params)


def test_ema_refuses_what_it_cannot_average():
    with pytest.raises(UsageError, match="decay"):
        with_ema(linear(), decay=1.5)
    bare = linear()._replace(init=lambda key, batch: (jnp.zeros(()),))
    with pytest.raises(UsageError, match="a field 'params', got tuple"):
        with_ema(bare).init(KEY, DATA)


def test_frozen_holds_leaves_whatever_the_update_does():
    decaying = optax.adamw(0.1, weight_decay=1.0)
    states = run(frozen(linear(optimizer=decaying), "params/w"), 3)
    np.testing.assert_array_equal(states[-1].params["w"], states[0].params["w"])
    assert states[-1].params["b"] != states[0].params["b"]
    assert int(states[-1].step) == 3


def test_frozen_refuses_a_pattern_without_a_leaf():
    with pytest.raises(UsageError, match="'params/kernel' matches no leaf"):
        frozen(linear(), "params/kernel").init(KEY, DATA)


numbers = st.floats(-100, 100, width=32)
rows = st.lists(
    st.tuples(numbers, st.floats(0, 10, width=32), st.booleans()), min_size=6, max_size=6
)  # one size, one compilation


@settings(max_examples=40, deadline=None)
@given(rows)
def test_the_batch_mean_is_its_formula(rows):
    values, weight, valid = (np.array(column) for column in zip(*rows, strict=True))
    values, weight = values.astype(np.float32), weight.astype(np.float32)
    mean = lambda **batch: float(batch_mean(jnp.asarray(values), {k: jnp.asarray(v) for k, v in batch.items()}))
    count = max(valid.sum(), 1)
    expected = (valid * weight * values.astype(np.float64)).sum() / count
    scale = 1e-5 * (1 + float(np.abs(weight * values).max()))
    assert mean(weight=weight, valid=valid) == pytest.approx(expected, abs=scale)
    assert mean(weight=2 * weight, valid=valid) == pytest.approx(2 * expected, abs=2 * scale)
    assert mean(weight=np.ones_like(weight)) == pytest.approx(mean(), abs=1e-4)
    assert mean(valid=np.ones_like(valid)) == pytest.approx(mean(), abs=1e-4)
    assert mean(valid=np.zeros_like(valid)) == 0.0
    if valid.any():
        alone = float(batch_mean(jnp.asarray(values[valid]), {"weight": jnp.asarray(weight[valid])}))
        assert mean(weight=weight, valid=valid) == pytest.approx(alone, abs=scale)


def test_padding_of_any_value_gives_the_batch_mean_no_gradient():
    batch = {"valid": jnp.array([True, False, True])}
    values = jnp.array([1.0, jnp.inf, 3.0])
    assert batch_mean(values, batch) == 2.0
    np.testing.assert_array_equal(jax.grad(batch_mean)(values, batch), [0.5, 0.0, 0.5])


def opened(data, key, step):
    """Batches of the host: those of ``epochs(8)``, from any step on."""
    source = epochs(8)
    draw = jax.jit(lambda number: source.next(data, (), None, number, key)[1])
    return (jax.tree.map(np.asarray, draw(number)) for number in itertools.count(step))


def test_batches_from_the_host_train_as_batches_from_the_program(tmp_path):
    learner = linear(0.05)
    inside = fit(learner, DATA, key=3, steps=24, source=epochs(8), progress=False)
    outside = fit(learner, DATA, key=3, steps=24, source=host(opened), progress=False)
    chex.assert_trees_all_close(inside.state, outside.state, rtol=1e-6)
    np.testing.assert_allclose(inside.history.metrics["loss"], outside.history.metrics["loss"], rtol=1e-5)

    class Interrupted(Exception):
        pass

    def interrupt(event):
        if event.step >= 16:
            raise Interrupted

    options = {"workdir": tmp_path, "checkpoint_every_s": 0.0, "steps_per_dispatch": 8, "progress": False}
    with pytest.raises(Interrupted):
        fit(learner, DATA, key=3, steps=24, source=host(opened), callbacks=[interrupt], **options)
    resumed = fit(learner, DATA, key=3, steps=24, source=host(opened), resume=True, **options)
    chex.assert_trees_all_equal(resumed.state, outside.state)


def test_a_host_source_must_not_end():
    short = lambda data, key, step: itertools.islice(opened(data, key, step), 3)
    with pytest.raises(UsageError, match="must not end"):
        fit(linear(), DATA, key=0, steps=10, source=host(short), steps_per_dispatch=5, progress=False)
    with pytest.raises(UsageError, match="needs a source inside the step"):
        fit(linear(), DATA, key=0, steps=10, source=host(opened), seeds=2, progress=False)


def test_an_example_has_the_shapes_of_a_batch():
    source = epochs(8)
    example = example_of(source, DATA, source.init(DATA, KEY), KEY)
    _, batch = source.next(DATA, (), None, jnp.int32(3), KEY)
    chex.assert_trees_all_equal_shapes_and_dtypes(example, batch)


METHODS = {"group_dro": Method(linear, "Group DRO", "", 2020), "irm": Method(linear, "IRM", "", 2019)}


@pytest.mark.parametrize("name", ["group_dro", "Group-DRO", " GROUP DRO "])
def test_a_method_is_found_in_any_spelling(name):
    assert find_method(METHODS, name).year == 2020


def test_an_unknown_method_is_answered_with_the_nearest():
    with pytest.raises(UsageError, match=r"unknown method 'groupdr'; did you mean 'group_dro'\?"):
        find_method(METHODS, "groupdr")
    with pytest.raises(UsageError, match="known: group_dro, irm"):
        find_method(METHODS, "zzz")
