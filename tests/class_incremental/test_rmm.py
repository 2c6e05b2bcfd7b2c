"""RMM: what a policy comes to, in exemplars and in rows."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxkit.check import UsageError
from jaxkit.class_incremental import Keep, make_stream, steps_of
from jaxkit.class_incremental import memory as memories
from jaxkit.class_incremental.distilled import icarl
from jaxkit.class_incremental.rmm import PUBLISHED, Shares, published_policy, quotas, rmm, shares_of, stacked, thinned
from jaxkit.class_incremental.stream import Stream, open_stream
from jaxkit.class_incremental.task import Task, pool_source
from jaxkit.learner import TrainState
from jaxkit.networks import mlp
from jaxkit.training import fit, optimizer

RNG = np.random.default_rng(0)
CIFAR = Stream(tuple(range(10, 101, 10)), 500, 500.0)


def task_at(number, old, seen, memory=(), own=()):
    integer = lambda value: jnp.asarray(value, jnp.int32)
    return Task(integer(number), integer(old), integer(seen), memory, (), (), own)


def test_the_published_policy_on_cifar_100():
    m_rates, c_rates = published_policy("foster", 10)
    assert m_rates == (0.3, 0.3, 0.3, 0.3, 0.4, 0.6, 0.6, 0.5, 0.5, 0.5)
    assert c_rates == (0.2, 0.2, 0.1, 0.0, 0.1, 0.1, 0.1, 0.0, 0.0, 0.1)
    shares = shares_of(CIFAR, 2000, m_rates, c_rates)
    # 2000 + 0.3 * 10 * 500, over 10, 20, ... classes; the last is 2000 + 0.5 * 10 * 500 over 100.
    assert shares.totals == (3500, 3500, 3500, 3500, 4000, 5000, 5000, 4500, 4500, 4500)
    assert shares.even == (350, 175, 116, 87, 80, 83, 71, 56, 50, 45)
    assert (shares.less[0], shares.more[0]) == (280, 420)
    assert (shares.less[9], shares.more[9]) == (40, 49)
    assert shares.rows == pytest.approx((1.0, 0.7, 0.7, 0.7, 0.6, 0.4, 0.4, 0.5, 0.5, 0.5))


def test_no_more_is_kept_than_there_is():
    shares = shares_of(Stream((2, 4), 10, 10.0), 18, (0.9, 0.0), (0.0, 0.0))
    assert shares.totals == (19, 18)


def test_policies_of_other_lengths():
    for base, found in PUBLISHED.items():
        for tasks, rates in found.items():
            assert all(len(r) == tasks for r in rates)
            assert published_policy(base, tasks) == rates
    ten = PUBLISHED["foster"][10]
    assert published_policy("icarl", 10) == ten
    assert published_policy("foster", 4) == (ten[0][:4], ten[1][:4])
    assert published_policy("foster", 12)[0] == (*ten[0], 0.5, 0.5)


@settings(max_examples=25, deadline=None)
@given(
    losses=st.lists(st.integers(0, 5), min_size=3, max_size=4),
    total=st.integers(10, 300),
    rate=st.sampled_from([0.0, 0.1, 0.25, 0.5]),
)
def test_easier_classes_get_more_and_all_together_no_more_than_the_memory_has(losses, total, rate):
    width, old = len(losses), 3
    stream = Stream((old, old + width), 100, 100.0)
    shares = shares_of(stream, total, (0.0, 0.0), (rate, rate))
    counts = np.asarray(quotas(shares, task_at(1, old, old + width), jnp.asarray([0] * old + losses, jnp.float32)))
    even = shares.totals[1] // (old + width)
    assert counts.sum() <= shares.totals[1]
    assert (counts[:old] == even).all()
    more, less = int(even * (1 + rate)), max(int(even * (1 - rate)), 1)
    half = width // 2
    if more + less <= 2 * even:
        want = sorted([less] * half + [even] * (width % 2) + [more] * half)
        assert sorted(counts[old:].tolist()) == want
    order = np.argsort(losses, kind="stable")
    assert (np.diff(counts[old:][order]) <= 0).all() or len(set(losses)) < width


def test_fewer_rows_of_new_classes_and_all_exemplars():
    y = jnp.asarray(np.repeat(np.arange(4), 10), jnp.int32)
    data = {"x": jnp.asarray(RNG.random((40, 3)), jnp.float32), "y": y}
    keep = Keep(8)
    memory = memories.Memory(jnp.zeros((8, 3), jnp.uint8), jnp.asarray([4, 4, 0, 0], jnp.int32))
    source = thinned(pool_source("replay", 11, make_stream(y, 2), keep))
    own = Shares(jnp.asarray((1.0, 0.7), jnp.float32), (), (), (), ())
    init, key = jax.jit(source.init), jax.random.key(0)
    groups = init(data, key)

    @jax.jit
    def draw(task, step):
        state = TrainState({}, {}, (), (), task, step)
        return source.next(data, groups, state, step, key)[1]

    batches = [draw(task_at(1, 2, 4, memory, own), step) for step in range(6)]
    index, labels = (np.concatenate([b[name] for b in batches]) for name in ("index", "y"))
    of_class = [set(index[labels == c].tolist()) for c in range(4)]
    assert [len(found) for found in of_class] == [4, 4, 7, 7]
    assert (np.asarray(y)[sorted(of_class[2] | of_class[3])] >= 2).all()
    assert min(of_class[0] | of_class[1]) >= 40  # exemplars
    assert groups.order.tolist() != list(range(40))  # which rows stay out is drawn, for all phases of a task alike
    assert init(data, jax.random.key(1)).order.tolist() == groups.order.tolist()
    first = task_at(0, 0, 2, memory._replace(counts=jnp.zeros(4, jnp.int32)), own)
    index = np.concatenate([draw(first, step)["index"] for step in range(40)])
    assert sorted(set(index.tolist())) == list(range(20))  # the first task has all its rows


@functools.lru_cache
def rows():
    y = np.repeat(np.arange(6), 12).astype(np.int32)
    x = RNG.normal(size=(6, 5))[y] * 0.1 + 0.5 + RNG.normal(size=(72, 5)) * 0.05
    return {"x": jnp.asarray(np.clip(x, 0, 1), jnp.float32), "y": jnp.asarray(y)}


def plan_on(method, **settings):
    stream = make_stream(rows()["y"], 2)
    settings = {"stream": stream, "memory": 12, "batch_size": 8, **settings}
    return method(mlp(6, hidden=(8,)), optimizer("momentum", 0.1), **settings)


def test_a_run_keeps_what_the_policy_says():
    plan = plan_on(rmm, base="icarl", m_rates=(0.5, 0.5, 0.25), c_rates=(0.0, 0.25, 0.5))
    fitted = fit(plan, rows(), key=0, steps=30, progress=False)
    task = fitted.state.extra
    # 12 + 0.5 * 2 * 12 = 24 at first and 12 + 6 = 18 at last, three for each of six classes, or one and four.
    assert task.memory.x.shape[0] == 24
    counts = task.memory.counts.tolist()
    assert counts[:4] == [3, 3, 3, 3]
    assert sorted(counts[4:]) == [1, 4]


def test_without_rates_it_is_the_base_method():
    zeros = (0.0, 0.0, 0.0)
    managed, base = plan_on(rmm, base="icarl", m_rates=zeros, c_rates=zeros), plan_on(icarl)
    assert steps_of(managed, 5, 8) == steps_of(base, 5, 8)
    for one, other in zip(managed, base, strict=True):
        assert one.share == pytest.approx(other.share)
    shares = shares_of(make_stream(rows()["y"], 2), 12, zeros, zeros)
    assert shares.even == shares.more == shares.less == (6, 3, 2)


def test_policies_given_at_the_start_train_at_once_as_each_would_alone():
    zeros = (0.0, 0.0, 0.0)
    policies = [((0.5, 0.5, 0.25), (0.0, 0.25, 0.5)), (zeros, zeros)]
    plan = plan_on(rmm, base="icarl", m_rates=zeros, c_rates=zeros, highest=0.5)
    stream = make_stream(rows()["y"], 2)
    given = stacked([shares_of(stream, 12, *policy) for policy in policies])
    together = fit(plan, rows(), key=0, steps=30, seeds=2, state=given, progress=False).state.extra
    assert together.memory.x.shape[:2] == (2, 24)  # room for 12 + 0.5 * 2 * 12
    own = plan_on(rmm, base="icarl", m_rates=policies[0][0], c_rates=policies[0][1])
    own = tuple(one._replace(share=stage.share) for one, stage in zip(own, plan, strict=True))  # as many steps
    alone = fit(own, rows(), key=jax.random.fold_in(jax.random.key(0), 0), steps=30, progress=False).state.extra
    assert together.memory.counts[0].tolist() == alone.memory.counts.tolist()
    taken = int(alone.memory.counts.sum())
    np.testing.assert_array_equal(together.memory.x[0, :taken], alone.memory.x[:taken])
    np.testing.assert_allclose(together.means[0], alone.means, rtol=1e-5, atol=1e-6)
    assert together.memory.counts[1].tolist() == [2] * 6
    with pytest.raises(UsageError, match="begins with a policy"):
        fit(plan, rows(), key=0, steps=30, seeds=2, state=given.rows, progress=False)


def test_the_steps_go_by_the_rows():
    plan = plan_on(rmm, m_rates=(0.0, 0.5, 0.5), c_rates=(0.0, 0.0, 0.0))
    # All 24 rows; then half of 24, and 6 exemplars of each of 2 classes, or 6 of each of 4 (12 + 0.5 * 24 over 4).
    boost = [stage.share for stage in plan if "compress" not in stage.name]
    assert boost == pytest.approx([24, 12 + 2 * 6, 12 + 4 * 6])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: plan_on(rmm, base="wa"), "unknown base 'wa'"),
        (lambda: plan_on(rmm, m_rates=(0.1,)), "m_rates has 1 entries, the stream 3 tasks"),
        (lambda: plan_on(rmm, c_rates=(0.1, 0.1, 1.0)), "c_rates must lie in"),
        (lambda: plan_on(rmm, m_rates=(0.5, 0.1, 0.1), highest=0.4), "highest must lie in"),
        (lambda: plan_on(rmm, memory=Keep(None, 3)), "shares out a number of exemplars in all"),
        (lambda: plan_on(rmm, memory=5), "less than one for each of 6 classes"),
        (lambda: plan_on(rmm, quota=lambda *_: None), "leave quota out"),
        (lambda: plan_on(rmm, stream=open_stream((), [12, 12], 6)), "tasks that are known in advance"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(UsageError, match=message):
        call()
