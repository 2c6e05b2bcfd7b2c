"""The conformance test fails where it should: each check on a learner with one defect, and on the same without."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkit.data import epochs
from jaxkit.learner import Learner, Stage, clear_padding
from tests.conformance import checks
from tests.conformance.cases import CASES, Case, first_of_family, registered


def line():
    x = jax.random.normal(jax.random.key(0), (64, 3))
    return {"x": x, "y": x @ jnp.array([1.0, -2.0, 0.5])}


def descent(rate=0.1, **defects):
    """Gradient descent of a linear model in a few lines, and what of it a test breaks."""

    def init(key, batch):
        return {"w": jnp.zeros(batch["x"].shape[-1]), "seen": jnp.zeros((), jnp.int32)}

    def loss(w, batch):
        error = (batch["x"] @ w - batch["y"]) ** 2
        valid = batch.get("valid", jnp.ones(error.shape, bool))
        return jnp.where(valid, error, 0.0).sum() / valid.sum()

    def update(state, batch, key):
        value, grad = jax.value_and_grad(loss)(state["w"], clear_padding(batch))
        after = {"w": state["w"] - rate * grad, "seen": state["seen"] + 1}
        return after, {"loss": value, "finite": jnp.isfinite(value).astype(jnp.float32)}

    def predict(state, batch):
        return {"mean": batch["x"] @ state["w"]}

    sound = Learner(init, update, predict)
    return sound._replace(**{name: wrap(sound) for name, wrap in defects.items()})


def after_update(change):
    """A defect: the pair (state, metrics) of update, changed."""
    return lambda sound: lambda state, batch, key: change(*sound.update(state, batch, key))


def case(**defects):
    return Case("test.case", lambda **settings: descent(**defects, **settings), line, epochs(16), steps=24, fall=(0.5,))


def padding_divides_all(sound):
    def update(state, batch, key):
        after, metrics = sound.update(state, batch, key)
        rows = batch["y"].shape[0]
        share = batch["valid"].sum() / rows if "valid" in batch else 1.0
        return {**after, "w": state["w"] + share * (after["w"] - state["w"])}, metrics

    return update


def reads_padding(sound):
    def update(state, batch, key):
        after, metrics = sound.update(state, batch, key)
        return {**after, "w": after["w"] + 1e-3 * jnp.tanh(batch["x"].mean(0))}, metrics

    return update


def centres_rows(sound):
    """Predictions that depend on the other rows of the batch."""
    return lambda state, batch: {"mean": (batch["x"] - batch["x"].mean(0)) @ state["w"]}


def draws_on_the_host(sound):
    """Randomness that no key names."""
    number = itertools.count()

    def update(state, batch, key):
        after, metrics = sound.update(state, batch, key)
        noise = jax.pure_callback(lambda: np.float32(next(number)), jax.ShapeDtypeStruct((), jnp.float32))
        return {**after, "w": after["w"] + 1e-6 * noise}, metrics

    return update


def counts_traces(sound):
    """A step that depends on how often update was traced before."""
    number = itertools.count()

    def update(state, batch, key):
        after, metrics = sound.update(state, batch, key)
        return {**after, "w": after["w"] * (1 + 1e-3 * next(number))}, metrics

    return update


DEFECTS = {
    "weak type": ("state", {"update": after_update(lambda s, m: ({**s, "seen": jnp.where(True, 1, 2)}, m))}),
    "another dtype": ("state", {"update": after_update(lambda s, m: ({**s, "w": s["w"].astype(jnp.bfloat16)}, m))}),
    "Python number": ("state", {"init": lambda sound: lambda key, batch: {**sound.init(key, batch), "seen": 0}}),
    "lost leaf": ("state", {"update": after_update(lambda s, m: ({"w": s["w"]}, m))}),
    "no finite": ("metrics", {"update": after_update(lambda s, m: (s, {"loss": m["loss"]}))}),
    "vector metric": ("metrics", {"update": after_update(lambda s, m: (s, {**m, "w": s["w"]}))}),
    "whole-number metric": ("metrics", {"update": after_update(lambda s, m: (s, {**m, "seen": s["seen"]}))}),
    "hidden randomness": ("repeat", {"update": draws_on_the_host}),
    "no progress": ("falls", {"update": lambda sound: lambda s, b, k: (s, sound.update(s, b, k)[1])}),
    "reads padding": ("padding", {"update": reads_padding}),
    "divides by all rows": ("padding absent", {"update": padding_divides_all}),
    "rows depend on rows": ("predict", {"predict": centres_rows}),
    "needs labels": ("predict", {"predict": lambda sound: lambda s, b: {"mean": b["y"]}}),
    "unknown output": ("predict", {"predict": lambda sound: lambda s, b: {"score": b["x"] @ s["w"]}}),
}


def test_the_sound_learner_passes():
    subject = checks.Subject(case()._replace(name="proof.line", swept={"rate": (0.05, 0.1)}))
    checks.conforms(subject, checks.TIER_1)
    checks.conforms(subject, {name: checks.TIER_2[name] for name in ("seeds", "swept")})


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_defect_is_found(defect):
    name, broken = DEFECTS[defect]
    with pytest.raises((AssertionError, KeyError, TypeError, ValueError)):
        checks.TIER_1[name](checks.Subject(case(**broken)))


def test_a_retrace_is_found():
    subject = checks.Subject(case())
    run, seen = subject.first_run
    subject.first_run = (run, [*seen[:-1], ("train", seen[-1][1] + 1)])
    with pytest.raises(AssertionError, match="traced again"):
        checks.check_retrace(subject)


def test_a_seed_that_depends_on_its_tracing_is_found():
    with pytest.raises(AssertionError, match="seed 0"):
        checks.check_seeds(checks.Subject(case(update=counts_traces)))


def test_a_setting_that_is_called_traced_must_be_swept():
    with pytest.raises(AssertionError, match=r"traced, the case sweeps \[\]"):
        checks.check_swept(checks.Subject(case()._replace(name="supervised.erm")))
    with pytest.raises(AssertionError, match="train to the same state"):
        checks.check_swept(checks.Subject(case()._replace(name="proof.x", swept={"rate": (0.1, 0.1)})))
    concrete = case()._replace(name="proof.x", build=lambda rate=0.1: descent(float(rate)), swept={"rate": (0.05, 0.1)})
    with pytest.raises(jax.errors.ConcretizationTypeError):
        checks.check_swept(checks.Subject(concrete))


def test_what_fails_is_raised_together_and_named():
    broken = {"update": after_update(lambda s, m: (s, {"loss": m["loss"]})), "predict": centres_rows}
    subject = checks.Subject(case(**broken))
    with pytest.raises(ExceptionGroup, match="test.case fails 2 checks") as group:
        checks.conforms(subject, {name: checks.TIER_1[name] for name in ("metrics", "predict")})
    assert "test.case fails the check 'predict'" in group.value.exceptions[1].__notes__[0]
    excused = checks.Subject(case(predict=centres_rows)._replace(exempt={"predict": "whitens each batch"}))
    checks.conforms(excused, {"predict": checks.check_predict})
    with pytest.raises(AssertionError, match="unknown checks"):
        checks.conforms(checks.Subject(case()._replace(exempt={"predicts": ""})), {})


def test_a_method_without_a_case_fails():
    with pytest.raises(AssertionError, match="method ood.irm has no conformance case"):
        registered("ood.irm", CASES)


def test_one_case_of_a_family_is_first():
    families = [case.family for case in CASES.values() if first_of_family(case, CASES)]
    assert len(families) == len(set(families)) and set(families) == {case.family for case in CASES.values()}


def test_padding_marks_the_last_third_of_rows():
    batch = {"x": jnp.arange(12.0).reshape(2, 6), "y": jnp.arange(12).reshape(2, 6), "env": jnp.arange(2)}
    padded = checks.with_padding(batch, 1, seed=0)
    np.testing.assert_array_equal(padded["valid"], [[True] * 4 + [False] * 2] * 2)
    np.testing.assert_array_equal(padded["x"][:, :4], batch["x"][:, :4])
    assert np.abs(padded["x"][:, 4:]).min() > 100 and np.isin(padded["y"], batch["y"]).all()
    np.testing.assert_array_equal(padded["env"], batch["env"])  # one number for each environment, no row
    assert checks.without_padding(batch, 1)["x"].shape == (2, 4)


def test_padding_of_nodes_spares_the_graph_and_the_stopping_nodes():
    """Two rows of a graph with two nodes and two edges: its leaves are as long as the batch but one."""
    graph = {"edges": jnp.ones(2), "nodes": jnp.ones((2, 3)), "sizes": jnp.array([2])}
    batch = {"x": (jnp.array([1, 0]), graph), "y": jnp.array([0, 1]), "stopping": {"y": jnp.array([1, 1])}}
    padded, cut = checks.with_padding(batch, 0, seed=1), checks.without_padding(batch, 0)
    for changed in (padded, cut):
        checks.assert_same(changed["x"][1], graph, "the graph")
        checks.assert_same(changed["stopping"], batch["stopping"], "the stopping nodes")
    np.testing.assert_array_equal(padded["valid"], [True, False])
    assert padded["x"][0][0] == 1 and padded["x"][0].shape == (2,)
    np.testing.assert_array_equal(cut["x"][0], [1])
    np.testing.assert_array_equal(cut["y"], [0])


def test_plans_are_walked_stage_by_stage():
    double = lambda state, data, key: {**state, "w": 2 * state["w"] + 1}
    plan = lambda: (Stage("a", descent(), epochs(16), end=double), Stage("b", descent(), epochs(16), begin=double))
    subject = checks.Subject(case()._replace(build=plan, source=None))
    np.testing.assert_array_equal(subject.views[1].state["w"], [3.0, 3.0, 3.0])
