"""A fit that begins with the state of another: it goes on, leaves that state as it is, and refuses one that does not
fit."""

import jax
import numpy as np
import pytest

from jaxkit import learner, training
from jaxkit.check import UsageError
from jaxkit.data import sources
from jaxkit.training import program
from tests.training import toy

DATA = toy.make_data()
PLAN = toy.plan()
LEARNER = toy.classifier()


def fit(method, **settings):
    source = sources.full_batch() if isinstance(method, learner.Learner) else None
    return training.fit(method, DATA, **{"key": 3, "steps": 20, "source": source, "progress": False} | settings)


def test_it_goes_on_where_the_other_stopped():
    # All rows at every step and no randomness in the loss: twice 20 steps are 40, moments of the optimizer and all.
    one = fit(LEARNER)
    assert toy.same(fit(LEARNER, state=one.state).state, fit(LEARNER, steps=40).state)


def test_the_state_given_stays_as_it_is():
    one = fit(PLAN[:1])
    before = jax.tree.map(np.array, one.state)
    grown = fit(PLAN[1:], state=one.state)
    assert grown.state.params["head"]["w"].shape == (32, 8)
    assert toy.same(one.state, before)  # neither changed nor donated
    assert toy.same(fit(PLAN[1:], state=before).state, grown.state)


def test_begin_gets_it():
    one = fit(PLAN[:1])
    seen = []

    def begin(state, data, key):
        seen.append(state is None)
        return PLAN[1].begin(state, data, key)

    stage = PLAN[1]._replace(begin=begin)
    begun = training.layout.Layout((stage,), DATA, jax.random.key(3), start=one.state).begin(0, one.state).state
    np.testing.assert_array_equal(begun.params["head"]["w"][:, :4], one.state.params["head"]["w"])
    assert seen == [False]


def test_each_seed_begins_with_its_own():
    many = fit(PLAN[:1], seeds=2)
    after = fit(PLAN[1:], seeds=2, state=many.state).state
    for seed in range(2):
        own = jax.tree.map(lambda leaf, seed=seed: leaf[seed], many.state)
        single = fit(PLAN[1:], key=jax.random.fold_in(jax.random.key(3), seed), state=own).state
        assert toy.same(jax.tree.map(lambda leaf, seed=seed: leaf[seed], after), single)


def test_resume_is_bit_for_bit(tmp_path):
    start = fit(PLAN[:1]).state
    stages = (PLAN[1]._replace(name="first"), learner.Stage("second", PLAN[1].learner, PLAN[1].source))
    whole = fit(stages, state=start)

    def interrupt(event):
        if event.step >= 6:
            raise InterruptedError

    settings = {"workdir": tmp_path, "checkpoint_every_s": 0.0, "steps_per_dispatch": 3, "state": start}
    with pytest.raises(InterruptedError):
        fit(stages, callbacks=[interrupt], **settings)
    assert toy.same(fit(stages, resume=True, **settings), whole)


def test_two_fits_of_one_shape_share_their_programs():
    start = fit(PLAN[:1]).state
    traces = []

    def update(state, batch, key):
        traces.append(1)
        return PLAN[1].learner.update(state, batch, key)

    stage = PLAN[1]._replace(learner=PLAN[1].learner._replace(update=update))
    before = program.compile_steps.cache_info().misses
    first = fit((stage,), state=start).state
    traced = len(traces)
    fit((stage,), state=fit(PLAN[:1], key=4).state)
    assert len(traces) == traced > 0 and program.compile_steps.cache_info().misses == before + 1
    assert first.params["head"]["w"].shape == (32, 8)


STATE = jax.eval_shape(LEARNER.init, jax.random.key(0), DATA)
ZEROS = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), STATE)
OTHER = toy.classifier(6).init(jax.random.key(0), DATA)


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        (
            LEARNER,
            {"state": OTHER},
            r"stage 'train': its params/head/b is \[\[6\], 'float32'\], that of the",
        ),
        (LEARNER, {"state": ZEROS.params}, "state does not fit stage 'train'"),
        (LEARNER, {"state": tuple(ZEROS)}, "stage 'train'"),
        (LEARNER, {"state": ZEROS._replace(step=0)}, "state/step must be an array, got int"),
        (LEARNER, {"state": ZEROS, "seeds": 2}, "each leaf of state has a leading axis of 2"),
        (PLAN[1:], {"state": ZEROS.params}, "state does not fit stage 'wide': AttributeError"),
        (PLAN[1:], {"state": OTHER}, "state does not fit stage 'wide'"),
    ],
)
def test_a_state_that_does_not_fit_is_told(method, settings, message):
    with pytest.raises(UsageError, match=message) as caught:
        fit(method, **settings)
    assert "\n" not in str(caught.value)
