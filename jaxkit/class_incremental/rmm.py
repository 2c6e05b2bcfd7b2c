"""RMM: a policy says how the memory is split between new rows and exemplars, and between classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from jaxkit import check
from jaxkit.class_incremental.boosted import foster
from jaxkit.class_incremental.distilled import Scalar, icarl
from jaxkit.class_incremental.incremental import rows_seen
from jaxkit.class_incremental.memory import Keep
from jaxkit.class_incremental.phases import Settings, make_run
from jaxkit.class_incremental.stream import Stream
from jaxkit.class_incremental.task import Groups, Task
from jaxkit.learner import Batch, Data, Key, Learner, Network, Plan, PyTree, Source, Stage, TrainState

Rates = tuple[float, ...]

PUBLISHED: dict[str, dict[int, tuple[Rates, Rates]]] = {
    "foster": {
        2: ((0.9, 0.2), (0.2, 0.1)),
        3: ((0.4, 0.4, 0.5), (0.0, 0.1, 0.1)),
        5: ((0.4, 0.4, 0.4, 0.5, 0.5), (0.0, 0.0, 0.0, 0.1, 0.1)),
        6: ((0.3, 0.3, 0.3, 0.4, 0.4, 0.4), (0.0, 0.0, 0.1, 0.1, 0.1, 0.0)),
        10: ((0.3, 0.3, 0.3, 0.3, 0.4, 0.6, 0.6, 0.5, 0.5, 0.5), (0.2, 0.2, 0.1, 0.0, 0.1, 0.1, 0.1, 0.0, 0.0, 0.1)),
        20: (
            (0.2, 0.3, 0.3, 0.3, 0.3, 0.6, 0.6, 0.5, 0.5, 0.5, 0.5, 0.5, 0.6, 0.6, 0.6, 0.6, 0.6, 0.5, 0.6, 0.6),
            (0.0, 0.1, 0.1, 0.0, 0.1, 0.1, 0.1, 0.0, 0.0, 0.1, 0.1, 0.1, 0.1, 0.0, 0.0, 0.0, 0.0, 0.1, 0.1, 0.1),
        ),
    },
    "icarl": {6: ((0.8, 0.8, 0.6, 0.6, 0.6, 0.6), (0.0, 0.0, 0.1, 0.1, 0.1, 0.0))},
}
"""(m_rates, c_rates) by the number of tasks, as found for CIFAR-100 by the survey's authors (B0 with 20, 10, 5 and 2
tasks, B50 with 6 and 3). They are settings of its released scripts, and for iCaRL of its toolbox."""


def published_policy(base: str, tasks: int) -> tuple[Rates, Rates]:
    """The published rates for so many tasks; where there are none, FOSTER's for as many, or those for 10 tasks, cut or
    with the last one repeated."""
    found = {**PUBLISHED["foster"], **PUBLISHED[base]}
    if tasks in found:
        return found[tasks]
    last = lambda rates: (rates + (rates[-1],) * tasks)[:tasks]
    return last(found[10][0]), last(found[10][1])


class Shares(NamedTuple):
    """What a policy comes to, each with one entry for each task; in a state ``Task.own``, as arrays.

    Attributes:
      rows: the share of the rows of each new class that are trained on.
      totals: M_t, the exemplars kept at the end of the task.
      more, even, less: exemplars of a new class with a low mean cross-entropy, of other classes, and of a new class
        with a high one.
    """

    rows: Any
    totals: Any
    more: Any
    even: Any
    less: Any


def shares_of(stream: Stream, total: int, m_rates: Rates, c_rates: Rates) -> Shares:
    """M_t = min(K n - 1, M + floor(m_t K_new n)) exemplars for all K classes seen, E = floor(M_t / K) for each;
    floor((1 - m_t) n) rows of each new class in training after the first task; floor((1 + c_t) E) exemplars of the
    easier half of the new classes and floor((1 - c_t) E) of the harder half, at least one.

    n is the number of rows of an average class and K_new that of the new classes of a task after the first.
    """
    n, increment = stream.mean_rows, stream.sizes[min(1, stream.num_tasks - 1)]
    floor = lambda value: int(value + 1e-6)  # 0.7 * 500 is 349.99999999999994
    by_task = zip(stream.bounds, m_rates, strict=True)
    totals = [min(floor(seen * n) - 1, total + floor(m * increment * n)) for seen, m in by_task]
    even = [m // k for m, k in zip(totals, stream.bounds, strict=True)]
    less = [max(floor(e * (1 - c)), 1) for e, c in zip(even, c_rates, strict=True)]
    more = [min(floor(e * (1 + c)), 2 * e - low) for e, c, low in zip(even, c_rates, less, strict=True)]
    rows = (1.0, *(1.0 - m for m in m_rates[1:]))
    return Shares(rows, tuple(totals), tuple(more), tuple(even), tuple(less))


def stacked(policies: Sequence[Shares]) -> Shares:
    """Several policies as arrays, [policies, tasks] each: ``fit(plan, data, state=stacked(...), seeds=len(policies))``
    trains a plan of ``rmm`` with all of them at once, seed i with the i-th."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *[_arrays(one) for one in policies])


def _arrays(shares: Shares) -> Shares:
    """One policy as arrays."""
    counts = (jnp.asarray(values, jnp.int32) for values in shares[1:])
    return Shares(jnp.asarray(shares.rows, jnp.float32), *counts)


def quotas(shares: Shares, task: Task, losses: Float[Array, " classes"]) -> Int[Array, " classes"]:
    """Exemplars of each class at the end of a task. Of an odd number of new classes the middle one gets as many as an
    old class, so that the total is at most M_t."""
    place, new_classes = jnp.arange(losses.size), task.seen - task.old
    at = lambda values: jnp.asarray(values, jnp.int32)[task.number]
    new = (place >= task.old) & (place < task.seen)
    losses = jnp.where(new, losses, -jnp.inf)
    harder = (losses[None, :] > losses[:, None]) | ((losses[None, :] == losses[:, None]) & (place < place[:, None]))
    rank = (harder & new).sum(1)
    of_new = jnp.where(rank < new_classes // 2, at(shares.less), at(shares.even))
    of_new = jnp.where(rank >= new_classes - new_classes // 2, at(shares.more), of_new)
    return jnp.where(new, of_new, jnp.where(place < task.old, at(shares.even), 0))


def thinned(source: Source) -> Source:
    """The source with ``floor(rows[task] n)`` rows, at least one, of each new class, drawn without replacement;
    ``rows`` of the ``Shares`` in the state."""

    def init(data: Data, key: Key) -> Groups:
        groups = source.init(data, key)
        shuffled = jax.random.permutation(jax.random.key(0), groups.order)  # the same in every phase of a task
        return groups._replace(order=shuffled[jnp.argsort(jnp.asarray(data["y"])[shuffled], stable=True)])

    def next_(data: Data, groups: Groups, state: TrainState, step: Array, key: Key) -> tuple[PyTree, PyTree]:
        task = state.extra
        place = jnp.arange(groups.counts.size)
        fewer = jnp.floor(groups.counts * task.own.rows[task.number] + 1e-3).astype(jnp.int32)
        counts = jnp.where((place >= task.old) & (place < task.seen), jnp.maximum(fewer, 1), groups.counts)
        return groups, source.next(data, groups._replace(counts=counts), state, step, key)[1]

    return source._replace(init=init, next=next_)


def rmm(
    network: Network,
    optimizer: optax.GradientTransformation,
    *,
    base: str = "foster",
    m_rates: Sequence[float] | None = None,
    c_rates: Sequence[float] | None = None,
    highest: float | None = None,
    temperature: Scalar = 2.0,
    **settings: Unpack[Settings],
) -> Plan:
    """FOSTER or iCaRL with a memory that a policy manages: a share m_t of the rows of new classes gives way to
    exemplars of all classes, and of the new classes the easier ones get more exemplars than the harder ones, by c_t
    (``shares_of``). While m_t stays the same, rows in training and exemplars together are as many as under the base
    method: ``memory`` exemplars and all rows of the new classes. So the memory itself is larger than M.

    Args:
      network, optimizer: of the base method.
      base: ``foster`` or ``icarl``.
      m_rates, c_rates: one for each task, from 0 to below 1; None: ``published_policy``; ``policy_search`` finds them.
      highest: the m-rate for which the memory has room where a policy is given to ``fit`` as its ``state``
        (``stacked``), by which one compiled plan trains any policy, with the steps of ``m_rates``; None: there is room
        for ``m_rates`` alone.
      temperature: T of the base method. May be traced.
      settings: see ``Settings``; ``memory`` is M, a number of exemplars in all.

    Source: Liu et al. 2021, RMM: reinforced memory management for class-incremental learning, NeurIPS; the two rates,
    and beta = 0.97 of FOSTER, as in the released code of the survey. There rows are drawn with replacement, and the
    middle one of an odd number of new classes counts as an easy one.
    """
    base = check.choose("base", base, PUBLISHED)
    if settings.get("quota") is not None:
        raise check.UsageError("rmm decides how many exemplars of each class are kept; leave quota out")
    given = make_run(**settings)
    stream, keep = given.stream, given.keep
    if stream.room is not None:
        raise check.UsageError("rmm's policy is for tasks that are known in advance; train it by fit on make_stream")
    if keep.total is None:
        raise check.UsageError("rmm shares out a number of exemplars in all; give memory=2000 or Keep(2000)")
    published = published_policy(base, stream.num_tasks)
    m_rates = _rates("m_rates", m_rates, published[0], stream)
    c_rates = _rates("c_rates", c_rates, published[1], stream)
    shares = shares_of(stream, keep.total, m_rates, c_rates)
    if min(shares.even) < 1:
        raise check.UsageError(f"a memory of {keep.total} exemplars is less than one of each class; take more")
    most = shares if highest is None else shares_of(stream, keep.total, *_highest(highest, m_rates, c_rates))
    room = keep._replace(total=max(*shares.totals, *most.totals), partial=True)
    settings = {**settings, "memory": room, "quota": lambda task, have, losses: quotas(task.own, task, losses)}
    if base == "icarl":
        plan = icarl(network, optimizer, temperature=temperature, **settings)
    else:
        plan = foster(network, optimizer, temperature=temperature, beta_boosting=0.97, **settings)
    return _managed(plan, stream, room, shares)


def _managed(plan: Plan, stream: Stream, room: Keep, shares: Shares) -> Plan:
    """The plan with the policy in its state, with fewer rows of new classes, and steps by the rows that there are."""
    run = make_run(stream=stream, memory=room)
    sources = {id(stage.source): thinned(stage.source) for stage in plan}
    learners = {id(stage.learner): _with_policy(stage.learner, shares) for stage in plan}
    before, mean = (0, *stream.bounds), stream.mean_rows
    stages = []
    for stage in plan:
        task = int(stage.name.split(":")[0].removeprefix("task ")) - 1
        exemplars = before[task] * min(shares.even[task - 1], mean) if task else 0.0
        rows = stream.sizes[task] * mean * shares.rows[task] + exemplars
        share = stage.share / rows_seen("replay", run, task) * rows
        own = {"learner": learners[id(stage.learner)], "source": sources[id(stage.source)]}
        stages.append(stage._replace(share=share, **own))
    return (_begun_with(stages[0], shares), *stages[1:])


def _with_policy(learner: Learner, shares: Shares) -> Learner:
    """The learner whose first state has the policy in it."""

    def init(key: Key, batch: Batch) -> TrainState:
        state = learner.init(key, batch)
        return state._replace(extra=state.extra._replace(own=_arrays(shares)))

    return learner._replace(init=init)


def _begun_with(stage: Stage, shares: Shares) -> Stage:
    """The first stage, which puts a policy into the state: the one that ``fit`` is given as its state, or this one."""
    begin = stage.begin

    def with_policy(given: PyTree, data: Data, key: Key) -> TrainState:
        if not isinstance(given, Shares | None):
            raise check.UsageError(f"rmm begins with a policy (rmm.stacked) or nothing, not a {type(given).__name__}")
        state = begin(None, data, key)
        own = _arrays(shares) if given is None else given
        return state._replace(extra=state.extra._replace(own=own))

    return stage._replace(begin=with_policy)


def _highest(highest: float, m_rates: Rates, c_rates: Rates) -> tuple[Rates, Rates]:
    """The policy that needs the most room."""
    check.number("highest", highest, max(m_rates), 0.99)
    return (float(highest),) * len(m_rates), c_rates


def _rates(name: str, rates: Sequence[float] | None, published: Rates, stream: Stream) -> Rates:
    """The rates, checked."""
    if rates is None:
        return published
    rates = tuple(float(check.number(name, rate, 0.0, 0.99)) for rate in rates)
    if len(rates) != stream.num_tasks:
        raise check.UsageError(
            f"{name} has {len(rates)} entries, the stream {stream.num_tasks} tasks; give one for each"
        )
    return rates
