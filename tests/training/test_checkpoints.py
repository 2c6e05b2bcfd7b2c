"""Nothing that was saved is lost, nothing unsound is saved, and a checkpoint of another run is refused."""

import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkit import learner, training
from jaxkit.check import UsageError
from jaxkit.data import sources
from jaxkit.training.checkpoints import Checkpoint, Checkpoints
from tests.training import toy

DATA = toy.make_data()
PLAN = toy.plan()
EVALUATION = training.Evaluation(DATA, toy.measure, every=8, best="accuracy")


def fit(plan=PLAN, **settings):
    return training.fit(plan, DATA, **{"key": 7, "steps": toy.STEPS, "progress": False} | settings)


class Interrupt(Exception):
    pass


def at(step, action):
    def callback(event):
        if event.step >= step:
            action()

    return callback


def stop():
    raise Interrupt


@pytest.fixture(scope="module")
def undisturbed():
    return fit(eval=EVALUATION)


@pytest.mark.parametrize("step", [30, 57])
def test_resume_is_bit_for_bit(step, undisturbed, tmp_path):
    settings = {"workdir": tmp_path, "eval": EVALUATION, "checkpoint_every_s": 0.0, "steps_per_dispatch": 6}
    with pytest.raises(Interrupt):
        fit(callbacks=[at(step, stop)], **settings)
    resumed = fit(resume=True, **settings)
    assert toy.same(resumed, undisturbed)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == len(set(lines))  # what was done twice is logged once


def test_resume_with_seeds(tmp_path):
    settings = {"workdir": tmp_path, "checkpoint_every_s": 0.0, "steps_per_dispatch": 7, "seeds": 2}
    with pytest.raises(Interrupt):
        fit(callbacks=[at(40, stop)], **settings)
    assert toy.same(fit(resume=True, **settings), fit(seeds=2))


def test_a_finished_run_resumes_to_its_end_at_once(undisturbed, tmp_path):
    fit(workdir=tmp_path, eval=EVALUATION)
    assert toy.same(fit(workdir=tmp_path, eval=EVALUATION, resume=True, callbacks=[stop]), undisturbed)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, None)])
def test_stop_signals_save_and_leave(number, code, undisturbed, tmp_path):
    leaves = pytest.raises(KeyboardInterrupt) if code is None else pytest.raises(SystemExit)
    once = iter([True])
    send = lambda: os.kill(os.getpid(), number) if next(once, False) else None
    with leaves as caught:
        fit(workdir=tmp_path, eval=EVALUATION, steps_per_dispatch=5, callbacks=[at(20, send)])
    assert code is None or caught.value.code == code
    saved = Checkpoints(tmp_path / "checkpoints").latest()
    assert 20 <= saved < 25  # at the first boundary after the signal
    assert toy.same(fit(workdir=tmp_path, eval=EVALUATION, resume=True), undisturbed)


def test_a_signal_in_the_last_dispatch_is_heeded(undisturbed, tmp_path):
    send = lambda: os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(SystemExit, match="143"):
        fit(workdir=tmp_path, eval=EVALUATION, callbacks=[at(toy.STEPS, send)])
    assert toy.same(fit(workdir=tmp_path, eval=EVALUATION, resume=True), undisturbed)


def test_nan_stops_and_names_step_rate_and_checkpoint(tmp_path):
    def explode(params, state, batch, key):
        outputs, _ = toy.network((32, 4)).apply(params, state.variables, batch["x"])
        loss = toy.cross_entropy(outputs, batch).mean()
        return loss * jnp.where(state.step == 23, jnp.nan, 1.0), (state, {})

    method = learner.from_loss(toy.network((32, 4)), explode, training.optimizer("adam", 0.02))
    stage = (learner.Stage("doomed", method, sources.epochs(32)),)
    with pytest.raises(training.NonFiniteError) as caught:
        fit(stage, workdir=tmp_path, checkpoint_every_s=0.0, steps_per_dispatch=10)
    assert "after 23 steps of stage 'doomed' at learning rate 0.02" in str(caught.value)
    assert f"last good checkpoint is of step 20, in {tmp_path}" in str(caught.value)
    with pytest.raises(training.NonFiniteError):  # the checkpoint is sound: the run goes on from it, to the same end
        fit(stage, workdir=tmp_path, resume=True)


def test_an_unsound_state_is_never_saved(tmp_path):
    method = toy.classifier()

    def poisoned(state, batch, key):  # a finite loss, and a parameter that is not
        state, metrics = method.update(state, batch, key)
        head = state.params["head"] | {"b": state.params["head"]["b"].at[0].set(jnp.inf)}
        return state._replace(params={**state.params, "head": head}), metrics | {"finite": jnp.ones(())}

    stage = (learner.Stage("poisoned", method._replace(update=poisoned), sources.epochs(32)),)
    with pytest.raises(training.NonFiniteError, match="not finite .* there is no checkpoint"):
        fit(stage, workdir=tmp_path, steps=5)
    ruin = lambda state, data, key: jax.tree.map(lambda leaf: leaf * jnp.nan, state.params)
    ruined = learner.Stage("ruined", method, sources.epochs(32), end=lambda s, d, k: s._replace(params=ruin(s, d, k)))
    with pytest.raises(training.NonFiniteError, match="a NaN or an infinite parameter .* there is no checkpoint"):
        fit((ruined,), workdir=tmp_path, steps=5)
    assert Checkpoints(tmp_path / "checkpoints").latest() is None


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    fit(workdir=tmp_path)
    for wrong, message in [
        ({}, "already holds a checkpoint of step 60"),
        ({"resume": True, "key": 8}, "its key is"),
        ({"resume": True, "steps": 61}, "its stages is"),
        ({"resume": True, "seeds": 2}, "its seeds is None"),
        ({"resume": True, "tag": "lr 0.1"}, "its tag is"),
        ({"resume": True, "plan": tuple(s._replace(source=sources.epochs(16)) for s in PLAN)}, "its batches is"),
    ]:
        with pytest.raises(UsageError, match=message):
            fit(workdir=tmp_path, **wrong)
    narrower = (
        PLAN[0],
        PLAN[1]._replace(learner=toy.classifier(6), begin=lambda s, d, k: toy.classifier(6).init(k, d)),
    )
    with pytest.raises(UsageError, match=r"state/.*head.* is \[.*8.*\] in the checkpoint and \[.*6.*\] in this plan"):
        fit(narrower, workdir=tmp_path, resume=True)


@pytest.mark.parametrize(("step", "on_mesh"), [(30, False), (40, True)])
def test_an_end_that_changes_shapes_resumes_too(step, on_mesh, tmp_path):
    herd = lambda state, data, key: state._replace(extra=data["x"][:6])
    first = learner.Stage("first", toy.classifier(), sources.epochs(32), end=herd)
    second = learner.Stage("second", first.learner, sources.epochs(32))
    mesh = training.make_mesh(data=4, fsdp=2) if on_mesh else None
    settings = {"mesh": mesh, "rules": ((".*", training.fsdp(0.0)),), "eval": EVALUATION}
    whole = fit((first, second), **settings)
    assert whole.state.extra.shape == (6, 16)
    saving = {"workdir": tmp_path, "checkpoint_every_s": 0.0, "steps_per_dispatch": 10}
    with pytest.raises(Interrupt):
        fit((first, second), callbacks=[at(step, stop)], **settings, **saving)
    assert toy.same(fit((first, second), resume=True, **settings, **saving), whole)


def test_every_kind_of_leaf_comes_back(tmp_path):
    tree = {
        "key": jax.random.key(3),
        "keys": jax.random.split(jax.random.key(4), 2),
        "bfloat16": jnp.arange(3, dtype=jnp.bfloat16),
        "flag": jnp.array(True),
        "empty": jnp.zeros((0, 3)),
        "pair": (jnp.int32(1), None),
    }
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, Checkpoint({"note": "x"}, {"state": tree, "nothing": ()}, {"loss": np.arange(2.0)}))
    checkpoints.wait()
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=one), tree)
    back = checkpoints.restore(1, {"state": like, "nothing": ()})
    data = lambda leaf: jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
    assert jax.tree.structure(back.trees["state"]) == jax.tree.structure(tree)
    assert toy.same(jax.tree.map(data, back.trees["state"]), jax.tree.map(data, tree))
    np.testing.assert_array_equal(back.history["loss"], [0.0, 1.0])
    checkpoints.close()
