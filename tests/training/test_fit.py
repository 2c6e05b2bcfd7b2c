"""The loop: one compilation, seeds, best states, callbacks, histories, and what a caller gets wrong."""

import gc
import inspect

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkit import learner, training
from jaxkit.check import UsageError
from jaxkit.data import sources
from jaxkit.training import program
from tests.training import toy

SOURCE = sources.epochs(32)
DATA = toy.make_data()
LEARNER = toy.classifier()


def fit(method=LEARNER, data=DATA, *, source=SOURCE, key=0, steps=40, **settings):
    source = None if not isinstance(method, learner.Learner) else source
    return training.fit(method, data, key=key, steps=steps, source=source, progress=False, **settings)


def test_learns_and_tells_each_step():
    evaluation = training.Evaluation(DATA, toy.measure, every=16)
    result = fit(eval=evaluation)
    assert result.history.metrics["loss"].shape == (40,)
    assert result.history.metrics["loss"][-5:].mean() < 0.5 * result.history.metrics["loss"][:5].mean()
    np.testing.assert_array_equal(result.history.eval_steps, [16, 32, 40])
    by_hand = (LEARNER.predict(result.state, DATA)["logits"].argmax(-1) == DATA["y"]).mean()
    np.testing.assert_allclose(result.history.evals["accuracy"][-1], by_hand, rtol=1e-6)


def test_equals_a_loop_written_by_hand():
    keys = training.keys.streams(jax.random.key(0), 0)
    source_state = SOURCE.init(DATA, keys.source)
    state, update = None, jax.jit(LEARNER.update)
    for step in range(10):
        source_state, batch = SOURCE.next(DATA, source_state, state, jnp.int32(step), keys.source)
        state = LEARNER.init(keys.begin, batch) if state is None else state
        state, _ = update(state, batch, jax.random.fold_in(keys.update, step))
    chex.assert_trees_all_close(fit(steps=10).state, state, rtol=1e-5, atol=1e-7)


def test_the_length_of_a_dispatch_changes_no_bit():
    whole = fit()
    for pace in (1, 7, 40):
        assert toy.same(fit(steps_per_dispatch=pace), whole)


@pytest.mark.parametrize("mesh", [None, "8"])
def test_three_dispatches_compile_once(mesh):
    mesh = training.make_mesh(data=4, fsdp=2) if mesh else None
    method = toy.classifier()  # a new learner: nothing of it is compiled yet
    before = program.compile_steps.cache_info().misses
    fit(method, steps=25, steps_per_dispatch=10, mesh=mesh, rules=((".*", training.fsdp(0)),))
    assert program.compile_steps.cache_info().misses == before + 1
    compiled = fit_program(method, mesh)
    assert compiled._cache_size() == 1


def fit_program(method, mesh):
    """The compiled steps that ``fit`` used, out of the cache."""
    plan = (learner.Stage("train", method, SOURCE),)
    rules = ((".*", training.fsdp(0)),)
    layout = training.layout.Layout(plan, DATA, jax.random.key(0), mesh, rules, None)
    return layout.steps(0)


def test_stages_that_share_a_learner_share_a_program():
    method, source = toy.classifier(), sources.epochs(32)
    before = program.compile_steps.cache_info().misses
    fit(tuple(learner.Stage(f"task {number}", method, source) for number in range(5)), steps=20)
    assert program.compile_steps.cache_info().misses == before + 1


def test_a_stage_lets_go_of_the_state_before_it():
    method, size = toy.classifier(hidden=4000), 4 * (16 + 4) * 4000
    again = lambda state, data, key: jax.tree.map(jnp.copy, state)
    plan = tuple(learner.Stage(f"stage {i}", method, SOURCE, begin=None if i == 0 else again) for i in range(3))
    live = {}

    def look(event):
        gc.collect()
        live[event.stage] = sum(array.nbytes for array in jax.live_arrays())

    fit(plan, steps=6, steps_per_dispatch=2, callbacks=(look,))
    assert min(live.values()) > size and max(live.values()) - min(live.values()) < size / 2


def test_data_is_an_argument_of_the_program_and_costs_no_memory_in_it():
    method = toy.classifier()

    def program_of(rows):
        made = training.layout.Layout((learner.Stage("train", method, SOURCE),), toy.make_data(rows), jax.random.key(0))
        lowered = made.steps(0).lower(made.shapes[0], made.data, made.keys(0), np.int32(0), np.int32(1))
        return len(lowered.as_text()), lowered.compile().memory_analysis().temp_size_in_bytes

    (small_text, small_bytes), (large_text, large_bytes) = program_of(65536), program_of(262144)
    assert large_text < 1.02 * small_text  # the shapes are written with more digits, nothing else
    assert large_bytes - small_bytes < 65536  # not one byte a row more


def test_seeds_equal_single_runs():
    evaluation = training.Evaluation(DATA, toy.measure, every=10, best="accuracy")
    many = fit(seeds=3, eval=evaluation)
    assert many.history.metrics["loss"].shape == (3, 40) and many.history.evals["accuracy"].shape == (3, 4)
    for seed in range(3):
        one = fit(key=jax.random.fold_in(jax.random.key(0), seed), eval=evaluation)
        assert toy.same(jax.tree.map(lambda leaf, s=seed: leaf[s], many.state), one.state)
        np.testing.assert_array_equal(many.history.metrics["loss"][seed], one.history.metrics["loss"])
        assert many.best.value[seed] == one.best.value and many.best.step[seed] == one.best.step
        assert toy.same(jax.tree.map(lambda leaf, s=seed: leaf[s], many.best.state), one.best.state)


def of_seed(tree, seed):
    return jax.tree.map(lambda leaf: leaf[seed], tree)


@pytest.mark.parametrize("kind", ["learner", "plan"])
def test_seeds_with_data_of_their_own_equal_single_runs(kind, tmp_path):
    shift = np.arange(3, dtype=np.float32)[:, None, None]
    data = {"x": DATA["x"] * (1 + shift), "y": (DATA["y"] + np.arange(3)[:, None]).astype(np.int32) % 4}
    method, source = (LEARNER, sources.class_balanced(32, 4)) if kind == "learner" else (toy.plan(), None)
    each = lambda rows: training.Evaluation(rows, toy.measure)
    settings = {"seeds": 3, "per_seed": True, "source": source, "eval": each(data)}
    many = fit(method, data, **settings)
    for seed in range(3):
        key, own = jax.random.fold_in(jax.random.key(0), seed), of_seed(data, seed)
        one = fit(method, own, key=key, source=source, eval=each(own))
        assert toy.same(of_seed(many.state, seed), one.state)
        np.testing.assert_array_equal(many.history.evals["accuracy"][seed], one.history.evals["accuracy"])

    def interrupt(event):
        if event.step >= 30:
            raise InterruptedError

    kept = {**settings, "workdir": tmp_path, "checkpoint_every_s": 0.0, "steps_per_dispatch": 10}
    with pytest.raises(InterruptedError):
        fit(method, data, callbacks=[interrupt], **kept)
    assert toy.same(fit(method, data, resume=True, **kept).state, many.state)


def test_best_is_the_best_and_survives_donation():
    def worsening(outputs, data):  # falls as training goes on
        return {"score": -jnp.abs(outputs["logits"]).mean()}

    result = fit(eval=training.Evaluation(DATA, worsening, every=10, best="score"))
    at = int(np.argmax(result.history.evals["score"]))
    assert result.best.step == result.history.eval_steps[at] and result.best.value == result.history.evals["score"][at]
    again = worsening(LEARNER.predict(result.best.state, DATA), DATA)["score"]
    np.testing.assert_allclose(again, result.best.value, rtol=1e-5)
    least = fit(eval=training.Evaluation(DATA, worsening, every=10, best="score", higher=False))
    assert least.best.value == least.history.evals["score"].min()


def test_best_of_a_state_that_holds_a_key():
    def with_key(state, batch, key):
        inner, metrics = LEARNER.update(state["inner"], batch, key)
        return {"inner": inner, "key": jax.random.fold_in(state["key"], 0)}, metrics

    init = lambda key, batch: {"inner": LEARNER.init(key, batch), "key": key}
    method = learner.Learner(init, with_key, lambda state, batch: LEARNER.predict(state["inner"], batch))
    falling = training.Evaluation(DATA, lambda o, d: {"s": -jnp.abs(o["logits"]).mean()}, every=10, best="s")
    best = fit(method, eval=falling, seeds=2).best
    assert (best.step == 10).all() and np.asarray(jax.random.key_data(best.state["key"])).shape == (2, 2)


def test_a_first_evaluation_of_nan_is_not_the_best():
    late = lambda outputs, data: {"score": jnp.where(jnp.abs(outputs["logits"]).mean() < 1.5, jnp.nan, 1.0)}
    result = fit(eval=training.Evaluation(DATA, late, every=4, best="score"), steps=80)
    assert np.isnan(result.history.evals["score"][0]) and result.best.value == 1.0


def test_a_wrong_evaluation_is_told_before_the_first_step():
    seen = []
    with pytest.raises(UsageError, match="did you mean 'accuracy'"):
        fit(eval=training.Evaluation(DATA, toy.measure, best="acuracy"), callbacks=[seen.append])
    assert not seen


def test_a_stage_of_exactly_so_many_steps():
    stage = lambda name, **settings: learner.Stage(name, LEARNER, SOURCE, **settings)
    plan = (stage("closed form", steps=1), stage("a", share=0.25), stage("b", share=0.75))
    np.testing.assert_array_equal(np.bincount(fit(plan, steps=41).history.stage), [1, 10, 30])
    with pytest.raises(UsageError, match="'closed form' 1 are fixed"):
        fit(plan, steps=2)
    with pytest.raises(UsageError, match="steps=5 cannot be split over 1 stages of which 'closed form' 1 are fixed"):
        fit(plan[:1], steps=5)


def test_plan_changes_shapes_only_in_begin():
    result = training.fit(toy.plan(), DATA, key=0, steps=40, progress=False)
    assert result.state.params["head"]["w"].shape == (32, 8)
    np.testing.assert_array_equal(np.bincount(result.history.stage), [20, 20])


def test_shares_sum_to_the_steps():
    for steps in (3, 10, 101):
        counts = training.schedule.share_out(steps, [0.7, 0.2, 0.1])
        assert sum(counts) == steps and max(abs(np.array(counts) - steps * np.array([0.7, 0.2, 0.1]))) < 1


def test_callbacks_see_every_dispatch():
    seen = []
    fit(steps_per_dispatch=15, callbacks=[lambda event: seen.append((event.step, event.metrics["finite"]))])
    assert seen == [(15, 1.0), (30, 1.0), (40, 1.0)]


def test_predict_all_cuts_off_its_padding():
    state = fit(steps=1).state
    whole = LEARNER.predict(state, DATA)
    for batch_size in (100, 256, 1000):
        chex.assert_trees_all_close(
            training.predict_all(LEARNER.predict, state, DATA["x"], batch_size), whole, rtol=1e-5
        )


def test_host_source_is_read_from_the_step_it_resumes_at(tmp_path):
    opened, closed = [], []

    def batches(data, key, step):
        opened.append(step)
        try:
            while True:
                rows = np.random.default_rng(step).integers(0, 256, 32)
                yield {"x": np.asarray(data["x"])[rows], "y": np.asarray(data["y"])[rows]}
                step += 1
        finally:
            closed.append(step)

    source = learner.HostSource(batches)
    whole = fit(source=source)

    def interrupt(event):
        if event.step >= 21:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        fit(source=source, workdir=tmp_path, checkpoint_every_s=0.0, steps_per_dispatch=3, callbacks=[interrupt])
    assert toy.same(fit(source=source, workdir=tmp_path, resume=True), whole)
    assert opened[:2] == [0, 0] and opened[-1] == 18  # an example, the whole run; the checkpoint before the last steps
    assert len(closed) == len(opened)


def test_profile_traces_twenty_steps_after_the_compilation(tmp_path):
    ends = []
    fit(profile=tmp_path, steps=60, callbacks=[lambda event: ends.append(event.step)])
    assert list(tmp_path.rglob("*.xplane.pb")) and ends[:2] == [1, 21]


def test_metrics_are_written_line_by_line(tmp_path):
    fit(workdir=tmp_path, steps_per_dispatch=20, eval=training.Evaluation(DATA, toy.measure))
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 3 and '"step": 20' in lines[0] and '"accuracy"' in lines[2]


BAD = [
    ({"data": {"y": DATA["y"]}}, "dict of arrays with 'x'"),
    ({"data": {"x": DATA["x"], "y": DATA["y"][:-1]}}, "one row per example"),
    ({"data": {"x": DATA["x"][:0], "y": DATA["y"][:0]}}, "has no rows"),
    ({"steps": 0}, "steps must be at least 1"),
    ({"learner_or_plan": ()}, "a Learner or a non-empty tuple"),
    ({"learner_or_plan": toy.plan(), "source": None, "steps": 1}, "steps=1 cannot be split over 2 stages"),
    ({"key": jax.random.PRNGKey(0)}, "jax.random.key"),
    ({"resume": True}, "needs a workdir"),
    ({"workdir": __file__}, "cannot keep checkpoints in"),
    ({"eval": {"x": DATA["x"]}}, "must be a training.Evaluation"),
    ({"callbacks": print}, "callbacks must be"),
    ({"mesh": "8"}, "training.make_mesh"),
    ({"source": "epochs"}, "must be a Source such as"),
    ({"data": {"x": np.array(["a", "b"])}}, "must be numeric"),
    ({"data": {**DATA, "y": DATA["y"] + 9}}, "labels out of range"),
    ({"source": sources.by_environment(4, 2), "data": {**DATA, "env": DATA["y"] * 0}}, "must hold each of 0..1"),
    ({"source": sources.weighted(4, "w"), "data": {**DATA, "w": DATA["x"][:, 0] * 0}}, "not all of them 0"),
    ({"source": sources.class_balanced(4, 3)}, "must lie in 0..2, got 0..3"),
    ({"seeds": 2, "source": learner.HostSource(lambda data, key, step: iter(()))}, "not a HostSource"),
    ({"per_seed": True}, "per_seed=True needs seeds="),
    ({"per_seed": True, "seeds": 2}, r"data\['x'\] must have a leading axis of 2 seeds, got the shape \[256, 16\]"),
    ({"eval": training.Evaluation(DATA, toy.measure, best="acuracy")}, "did you mean 'accuracy'"),
]


@pytest.mark.parametrize(("wrong", "message"), BAD, ids=[message for _, message in BAD])
def test_mistakes_are_one_clear_line(wrong, message):
    settings = {"learner_or_plan": LEARNER, "data": DATA, "source": SOURCE, "key": 0, "steps": 2, "progress": False}
    mistake = training.NonFiniteError if message == "labels out of range" else UsageError
    with pytest.raises(mistake, match=message) as caught:
        inspect.unwrap(training.fit)(**settings | wrong)
    assert "\n" not in str(caught.value)


def test_nan_in_the_data_is_named():
    x = DATA["x"].copy()
    x[5, 3] = np.nan
    with pytest.raises(training.NonFiniteError, match=r"data\['x'\] has NaN"):
        fit(data={**DATA, "x": x})


def test_without_a_source_every_row_once_per_epoch():
    rows = toy.make_data(60)
    assert toy.same(fit(data=rows, source=None), fit(data=rows, source=sources.epochs(60)))


def test_optimizers_by_name():
    with pytest.raises(UsageError, match="did you mean 'adam'"):
        training.optimizer("adm", 1e-3)
    with pytest.raises(UsageError, match="learning_rate"):
        training.optimizer("adam", -1.0)
    with pytest.raises(UsageError, match="does not take"):
        training.optimizer("sgd", 0.1, wight_decay=1.0)
    rate = training.cosine(0.1, 100, warmup=0.1, final=0.01)
    np.testing.assert_allclose([rate(0), rate(10), rate(55), rate(100)], [0, 0.1, 0.0505, 0.001], rtol=1e-5, atol=1e-9)
