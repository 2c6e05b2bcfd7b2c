"""Recipes: the rates and lengths of the survey's text and code, and that every stage of a plan keeps to them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxkit.check import UsageError
from jaxkit.class_incremental import METHODS, by_recipe, make_stream
from jaxkit.class_incremental.recipes import CODE, Paced, Stretch, paced, rate, recipe_of, task_and_phase
from jaxkit.networks import mlp
from jaxkit.training import fit


def rates_of_torch(stretch: Stretch) -> np.ndarray:
    """The rate of each epoch as the documentation of MultiStepLR and CosineAnnealingLR states it."""
    epoch = np.arange(stretch.epochs)
    if stretch.milestones:
        return stretch.learning_rate * 0.1 ** np.searchsorted(stretch.milestones, epoch, side="right")
    return stretch.learning_rate * (1 + np.cos(np.pi * epoch / stretch.epochs)) / 2


@pytest.mark.parametrize(
    "stretch", [CODE["wa"].first, CODE["lwf"].later, CODE["memo"].later, CODE["podnet"].phases[0][1]]
)
@pytest.mark.parametrize("steps_of_epoch", [1, 7])
def test_the_rate_of_each_epoch(stretch, steps_of_epoch):
    steps = stretch.epochs * steps_of_epoch
    found = jax.vmap(lambda step: rate(stretch, step / steps))(jnp.arange(steps))
    np.testing.assert_allclose(found, np.repeat(rates_of_torch(stretch), steps_of_epoch), rtol=2e-5, atol=1e-8)


def test_it_descends_as_sgd_with_momentum_and_weight_decay():
    stretches = (Stretch(4, (2,), 0.01, 0.5), Stretch(3, (), 0.1, 0.2))
    params = {"w": jnp.asarray([1.0, -2.0])}
    optimizer = paced(stretches)
    state = optimizer.init(params)._replace(steps=jnp.asarray(3), place=jnp.asarray(1))
    by_hand, trace = np.asarray(params["w"], np.float64), np.zeros(2)
    for epoch in range(3):
        grads = {"w": jnp.sin(params["w"])}
        updates, state = optimizer.update(grads, state, params)
        trace = 0.9 * trace + np.sin(by_hand) + 0.1 * by_hand
        by_hand = by_hand - rates_of_torch(stretches[1])[epoch] * trace
        params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(params["w"], by_hand, rtol=1e-5)


def test_the_recipes_differ_where_the_survey_and_its_code_do():
    for method in ("wa", "der", "ewc"):
        text, code = recipe_of("paper", method), recipe_of("code", method)
        assert text.first == text.later == Stretch(170, (80, 120), 5e-4)
        assert code.first.epochs == 200 and code.first != text.first
    assert set(CODE) <= set(METHODS)
    assert recipe_of("code", "memo").later.milestones == ()  # cosine in the scripts
    with pytest.raises(UsageError, match="no recipe for l2p"):
        recipe_of("code", "l2p")
    with pytest.raises(UsageError, match="recipe"):
        recipe_of("thesis", "wa")


def rows():
    random = np.random.default_rng(0)
    y = np.repeat(np.arange(6), 20).astype(np.int32)
    x = random.uniform(0.2, 0.8, size=(6, 5))[y] + random.uniform(-0.2, 0.2, size=(120, 5))
    return {"x": x.astype(np.float32), "y": y}


def test_every_stage_has_the_steps_of_its_epochs():
    data = rows()
    stream = make_stream(data["y"], increment=2)
    plan, steps = by_recipe("foster", "code", mlp(6, hidden=(8,)), stream=stream, memory=12, batch_size=16)
    assert steps == sum(stage.steps for stage in plan)
    named = {task_and_phase(stage): stage.steps for stage in plan}
    # 2 classes of 20 rows, and 12 exemplars: 200 epochs of 40 rows, then 170 and 130 of 52
    assert named[0, "train"] == 200 * 40 / 16
    assert [named[task, "boost"] for task in (1, 2)] == [np.ceil(170 * 52 / 16)] * 2
    assert [named[task, "compress"] for task in (1, 2)] == [np.ceil(130 * 52 / 16)] * 2


@pytest.mark.parametrize("method", ["podnet", "rmm"])
def test_a_stage_begins_with_its_own_length_and_rates(method):
    data = rows()
    stream = make_stream(data["y"], increment=2)
    options = {"stream": stream, "memory": 12, "batch_size": 16, "epochs": 2}
    plan, steps = by_recipe(method, "code", mlp(6, hidden=(8,)), **options)
    seen: dict[str, tuple[int, int, int]] = {}
    whole = fit(plan, data, key=0, steps=steps, progress=False)
    state, key = None, jax.random.key(0)
    for stage in plan:
        state = jax.jit(stage.begin)(state, data, key)
        (own,) = [part for part in jax.tree.leaves(state.opt_state, is_leaf=_paced) if _paced(part)]
        seen[stage.name] = int(own.step), int(own.steps), int(own.place)
        state = state if stage.end is None else jax.jit(stage.end)(state, data, key)
    assert [steps for _, steps, _ in seen.values()] == [stage.steps for stage in plan]
    assert {step for step, _, _ in seen.values()} == {0}
    recipe = recipe_of("code", method)
    stretches = list(dict.fromkeys((recipe.first, recipe.later, *dict(recipe.phases).values())))
    assert [stretches[place] for _, _, place in seen.values()] == [recipe.of(*task_and_phase(stage)) for stage in plan]
    ended = [part for part in jax.tree.leaves(whole.state.opt_state, is_leaf=_paced) if _paced(part)]
    assert int(ended[0].step) == plan[-1].steps  # the rate has come to its end


def _paced(part):
    return isinstance(part, Paced)


def test_what_cannot_be():
    data = rows()
    stream = make_stream(data["y"], increment=2)
    with pytest.raises(UsageError, match="epochs"):
        by_recipe("wa", "code", mlp(6, hidden=(8,)), stream=stream, memory=12, epochs=0)
    with pytest.raises(UsageError, match="method"):
        by_recipe("waa", "code", mlp(6, hidden=(8,)), stream=stream, memory=12)
    with pytest.raises(UsageError, match="no phases of descent"):
        by_recipe("simplecil", "paper", mlp(6, hidden=()), stream=stream)
