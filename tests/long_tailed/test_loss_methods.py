"""The methods that are a loss: each step is the gradient of its formula, and they coincide where the formulas do."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxkit
from jaxkit import fit, supervised
from jaxkit import long_tailed as lt
from jaxkit.check import UsageError
from jaxkit.data import epochs, full_batch
from jaxkit.learner import Learner
from jaxkit.networks import heads, mlp

RNG = np.random.default_rng(2)
CLASSES, FEATURES = 4, 3
COUNTS = np.array([24, 8, 4, 2])
Y = np.repeat(np.arange(CLASSES), COUNTS).astype(np.int32)
X = (np.eye(CLASSES, FEATURES)[Y] + 0.5 * RNG.normal(size=(len(Y), FEATURES))).astype(np.float32)
DATA = {"x": jnp.asarray(X), "y": jnp.asarray(Y)}
KEY = jax.random.key(3)
NETWORK = mlp(CLASSES, hidden=())
EQUAL = np.full(CLASSES, 7.0)


def make(name, **settings):
    settings = {"class_counts": COUNTS, **settings}
    return lt.METHODS[name].make(NETWORK, optax.sgd(1.0), **settings)


def step(learner, batch=DATA, key=KEY):
    """(the loss of a batch, the gradient with respect to the head) at the initial parameters."""
    state = learner.init(jax.random.key(0), batch)
    after, metrics = jax.jit(learner.update)(state, batch, key)
    moved = jax.tree.map(lambda a, b: a - b, state.params, after.params)
    return metrics["loss"], moved


def of_rows(function, class_weights=None):
    """(value, gradient) of the weighted mean of a row loss of the network's logits on DATA."""
    params, variables = NETWORK.init(jax.random.key(0), DATA["x"])

    def value(params):
        rows = function(NETWORK.apply(params, variables, DATA["x"])[0]["logits"], DATA["y"])
        weights = jnp.ones(len(rows)) if class_weights is None else jnp.asarray(class_weights)[DATA["y"]]
        return (weights * rows).sum() / weights.sum()

    return jax.value_and_grad(value)(params)


BY_FORMULA = {
    "softmax": (lt.softmax, None),
    "weighted_softmax": (lt.softmax, lt.inverse_weights(COUNTS)),
    "focal": (lt.focal, None),
    "class_balanced": (lt.softmax, lt.effective_number_weights(COUNTS)),
    "ldam": (lambda z, y: lt.ldam(z, y, COUNTS), None),
    "balanced_softmax": (lambda z, y: lt.balanced_softmax(z, y, COUNTS), None),
    "logit_adjusted": (lambda z, y: lt.logit_adjusted(z, y, COUNTS), None),
    "vector_scaling": (lambda z, y: lt.vector_scaling(z, y, COUNTS), None),
    "lade": (lambda z, y: lt.balanced_softmax(z, y, COUNTS) + 0.1 * lt.lade_regulariser(z, y, COUNTS), None),
    "seesaw": (lambda z, y: lt.seesaw(z, y, COUNTS), None),  # the batch is the training set: its counts are COUNTS
}


@pytest.mark.parametrize("name", BY_FORMULA)
def test_a_step_is_the_gradient_of_the_formula(name):
    chex.assert_trees_all_close(step(make(name)), of_rows(*BY_FORMULA[name]), rtol=1e-4, atol=1e-6)


SAME_AS_SOFTMAX = {
    "balanced_softmax": {"class_counts": EQUAL},
    "class_balanced": {"beta": 0.0},
    "esql": {"gamma": 0.0},
    "focal": {"gamma": 0.0},
    "lade": {"class_counts": EQUAL, "alpha": 0.0},
    "ldam": {"max_margin": 0.0},
    "logit_adjusted": {"tau": 0.0},
    "seesaw": {"p": 0.0, "q": 0.0},
    "vector_scaling": {"gamma": 0.0, "tau": 0.0},
    "weighted_softmax": {"class_counts": EQUAL},
}


@pytest.mark.parametrize("name", SAME_AS_SOFTMAX)
def test_without_its_correction_a_method_is_softmax(name):
    chex.assert_trees_all_close(step(make(name, **SAME_AS_SOFTMAX[name])), step(make("softmax")), rtol=1e-5, atol=1e-6)


def test_softmax_is_empirical_risk_minimisation():
    chex.assert_trees_all_equal(step(make("softmax")), step(supervised.erm(NETWORK, optax.sgd(1.0))))


def test_row_weights_scale_the_loss_and_padding_does_not_dilute_class_weights():
    for name in ("weighted_softmax", "class_balanced", "balanced_softmax"):
        learner = make(name)
        doubled = step(learner, {**DATA, "weight": jnp.full(len(Y), 2.0)})
        chex.assert_trees_all_close(doubled, jax.tree.map(lambda leaf: 2 * leaf, step(learner)), rtol=1e-5, atol=1e-6)
        valid = jnp.asarray(np.arange(len(Y)) % 3 > 0)
        alone = {entry: values[valid] for entry, values in DATA.items()}
        chex.assert_trees_all_close(step(learner, {**DATA, "valid": valid}), step(learner, alone), rtol=1e-5, atol=1e-6)
        nothing, still = step(learner, {**DATA, "valid": jnp.zeros(len(Y), bool)})
        assert nothing == 0 and not any(leaf.any() for leaf in jax.tree.leaves(still))


def test_seesaw_counts_the_rows_it_has_seen():
    learner = make("seesaw")
    state = learner.init(KEY, DATA)
    assert not state.extra.any()
    update = jax.jit(learner.update)
    for valid in (np.ones(len(Y), bool), np.ones(len(Y), bool), Y > 0):
        state, _ = update(state, {**DATA, "valid": jnp.asarray(valid)}, KEY)
    np.testing.assert_array_equal(state.extra, 2 * COUNTS + COUNTS * (np.arange(CLASSES) > 0))
    # With the counts given, the first half of the rows is weighed by all of them.
    half = {entry: values[::2] for entry, values in DATA.items()}
    fixed, accumulated = (step(make("seesaw", accumulate=given), half)[0] for given in (False, True))
    z = NETWORK.apply(*NETWORK.init(jax.random.key(0), half["x"]), half["x"])[0]["logits"]
    np.testing.assert_allclose(fixed, lt.seesaw(z, half["y"], COUNTS).mean(), rtol=1e-5)
    np.testing.assert_allclose(accumulated, lt.seesaw(z, half["y"], np.bincount(Y[::2])).mean(), rtol=1e-5)


def test_deferred_re_weighting_is_ldam_and_then_weighted_ldam():
    plan = make("ldam_drw", source=full_batch())
    assert [stage.share for stage in plan] == [0.8, pytest.approx(0.2)]
    fitted = fit(plan, DATA, key=KEY, steps=10, progress=False)
    assert np.bincount(fitted.history.stage).tolist() == [8, 2]
    # By hand from the initial parameters: eight steps of LDAM, two with weights.
    first, second = (stage.learner for stage in plan)
    weights = lt.effective_number_weights(COUNTS)
    params = fit(first, DATA, key=KEY, steps=8, source=full_batch(), progress=False).state.params
    variables = NETWORK.init(KEY, DATA["x"])[1]

    def weighted(params):
        rows = lt.ldam(NETWORK.apply(params, variables, DATA["x"])[0]["logits"], DATA["y"], COUNTS)
        return (weights[Y] * rows).sum() / weights[Y].sum()

    for _ in range(2):
        params = jax.tree.map(lambda p, g: p - g, params, jax.grad(weighted)(params))
    chex.assert_trees_all_close(fitted.state.params, params, rtol=1e-3, atol=1e-4)
    chex.assert_trees_all_equal_shapes(first.init(KEY, DATA), second.init(KEY, DATA))


def test_optimizer_state_goes_on_through_the_stages():
    optimizer = optax.sgd(optax.piecewise_constant_schedule(0.5, {4: 0.0}))
    plan = lt.METHODS["ldam_drw"].make(NETWORK, optimizer, class_counts=COUNTS, deferred=0.5, source=full_batch())
    fitted = fit(plan, DATA, key=KEY, steps=8, progress=False)
    before = fit(plan[0].learner, DATA, key=KEY, steps=4, source=full_batch(), progress=False)
    chex.assert_trees_all_close(fitted.state.params, before.state.params, rtol=1e-6)  # no rate is left after four


def test_a_sweep_over_imbalance_is_one_program():
    """The prior is an array: three profiles trained in one vmap give what three trainings give."""
    profiles = jnp.asarray([COUNTS, EQUAL, COUNTS[::-1]], jnp.float32)

    def train(name, counts):
        learner = lt.METHODS[name].make(NETWORK, optax.sgd(0.3), class_counts=counts)
        state = learner.init(KEY, DATA)
        return jax.lax.fori_loop(0, 5, lambda _, state: learner.update(state, DATA, KEY)[0], state).params

    for name in ("balanced_softmax", "class_balanced", "weighted_softmax", "ldam", "lade", "esql"):
        mapped = jax.jit(jax.vmap(lambda counts, name=name: train(name, counts)))(profiles)
        for number, counts in enumerate(profiles):
            alone = jax.jit(lambda counts, name=name: train(name, counts))(counts)
            chex.assert_trees_all_close(jax.tree.map(lambda leaf: leaf[number], mapped), alone, rtol=1e-4, atol=1e-5)


def test_ldam_with_the_papers_head():
    network = mlp(CLASSES, hidden=(8,), head=heads.cosine(scale=30.0, learn_scale=False))
    learner = lt.METHODS["ldam"].make(network, optax.adam(0.01), class_counts=COUNTS)
    fitted = fit(learner, DATA, key=KEY, steps=60, source=full_batch(), progress=False)
    assert fitted.history.metrics["loss"][-1] < 0.5 * fitted.history.metrics["loss"][0]


def test_ldam_of_plain_cosines_predicts_what_it_was_trained_on():
    """s in the loss or in the head: one training, and the same logits."""
    given = []
    for scale, settings in ((1.0, {"scale_logits": True}), (30.0, {})):
        network = mlp(CLASSES, hidden=(), head=heads.cosine(scale=scale, learn_scale=False))
        learner = lt.METHODS["ldam"].make(network, optax.sgd(0.01), class_counts=COUNTS, **settings)
        state = fit(learner, DATA, key=KEY, steps=5, source=full_batch(), progress=False).state
        given.append((state.params, learner.predict(state, {"x": DATA["x"]})["logits"]))
    chex.assert_trees_all_close(*given, rtol=1e-4, atol=1e-4)


def test_logits_of_balanced_softmax_are_for_a_uniform_prior():
    """Without features the network learns the prior: softmax gives log pi, balanced softmax a constant."""
    data = {"x": jnp.zeros_like(DATA["x"]), "y": DATA["y"]}
    given = {}
    for name in ("softmax", "balanced_softmax", "logit_adjusted"):
        learner = make(name) if name != "logit_adjusted" else make(name, tau=2.0)
        state = fit(learner, data, key=KEY, steps=600, source=full_batch(), progress=False).state
        given[name] = jax.nn.softmax(learner.predict(state, {"x": data["x"][:1]})["logits"])[0]
    pi = COUNTS / COUNTS.sum()
    np.testing.assert_allclose(given["softmax"], pi, atol=2e-3)
    np.testing.assert_allclose(given["balanced_softmax"], 1 / CLASSES, atol=2e-3)
    np.testing.assert_allclose(given["logit_adjusted"], (1 / pi) / (1 / pi).sum(), atol=2e-3)
    np.testing.assert_allclose(lt.for_prior(np.log(given["balanced_softmax"]), pi), np.log(pi / 4), atol=2e-2)


@pytest.mark.parametrize("name", sorted(lt.LOSS_METHODS))
def test_every_record_is_complete(name):
    record = lt.METHODS[name]
    assert record.title and record.paper and record.year and record.categories and record.evidence
    made = make(name)
    assert isinstance(made if isinstance(made, Learner) else made[0].learner, Learner)


def test_the_short_door_fills_in_the_counts():
    result = jaxkit.train(
        method="balanced-softmax", data=(X, Y), test=(X, Y), network=NETWORK, steps=30, batch_size=16, progress=False
    )
    assert result.method == "long_tailed.balanced_softmax"
    assert set(result.predict(X)) <= set(range(CLASSES))
    assert "macro_accuracy" in repr(result.table())


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: make("balanced_softmax", class_counts=np.array([3, 0, 1, 1])), "class 1 has no rows"),
        (lambda: make("class_balanced", beta=1.0), "beta must be below 1"),
        (lambda: make("class_balanced", class_counts=COUNTS / COUNTS.sum()), "give numbers of rows, not shares"),
        (lambda: make("weighted_softmax", form="log"), "unknown form 'log'"),
        (lambda: make("focal", gamma=-1.0), "gamma must lie in"),
        (lambda: make("ldam", scale=0.0), "scale must be a finite number above 0"),
        (lambda: make("ldam_drw", deferred=1.0), "deferred must be below 1"),
        (lambda: make("ldam_drw", deferred=0.0), "deferred must lie in"),
        (lambda: make("esql", threshold=2.0), "threshold must lie in"),
        (lambda: make("lade", alpha=-1.0), "alpha must lie in"),
        (lambda: make("seesaw", q=-1.0), "q must lie in"),
        (lambda: make("seesaw", accumulate=False, class_counts=COUNTS / COUNTS.sum()), "rows, not shares"),
        (
            lambda: step(make("softmax", class_counts=np.array([3, 1]))),
            "class_counts has 2 entries, the network gives .* of 4",
        ),
        (lambda: step(make("lade"), {"x": DATA["x"]}), "need whole-number labels 'y'"),
        (lambda: step(make("softmax"), {"x": DATA["x"], "y": jnp.ones(len(Y))}), "got y of dtype float32"),
    ],
)
def test_bad_input_is_one_line(call, message):
    with pytest.raises(UsageError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_a_batch_size_beyond_the_rows_is_told():
    with pytest.raises(UsageError):
        fit(make("ldam_drw", batch_size=64), DATA, key=KEY, steps=4, progress=False)
    assert fit(make("ldam_drw", source=epochs(8)), DATA, key=KEY, steps=10, progress=False).state.step == 10
