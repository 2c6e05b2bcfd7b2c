"""How RMM finds its policy: REINFORCE on pseudo-tasks, which are streams made of training rows alone (``pseudo``).

>>> pseudo = pseudo_stream(stream)
>>> plan = rmm(network, optimizer, stream=pseudo, memory=50, m_rates=zeros, c_rates=zeros, highest=max(M_ACTIONS))
>>> draw = lambda iteration: pseudo_task(train, seed=iteration)
>>> found = search_policy(trainings(plan, pseudo, 50, draw, steps=500), stream.num_tasks)
>>> rmm(network, optimizer, stream=stream, memory=50, m_rates=found.m_rates, c_rates=found.c_rates)

Two levels of actions, as in the paper: how the memory is split between new rows and exemplars (m), then between new
classes (c). The policies of one update train side by side in one compiled plan (``rmm.stacked``).

Source: Liu et al. 2021, RMM: reinforced memory management for class-incremental learning, NeurIPS: pseudo-tasks from
the data of the first phase, two levels of actions, the accuracy after each phase as the reward. The policy here is a
linear softmax over discrete rates and learns by REINFORCE (Williams 1992); the PyCIL toolbox, from whose code the
reward after each task and the two rates are, has DDPG on continuous rates and test rows as the judge.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from jaxkit import check
from jaxkit.class_incremental.protocol import READ_OUTS, curves, measure
from jaxkit.class_incremental.pseudo import Pseudo
from jaxkit.class_incremental.rmm import Rates, shares_of, stacked
from jaxkit.class_incremental.stream import Stream
from jaxkit.learner import Key, Plan
from jaxkit.training import Evaluation, fit

M_ACTIONS = (0.0, 0.2, 0.4, 0.6, 0.8)
C_ACTIONS = (0.0, 0.1, 0.2)
"""Rates to choose from, over the range of the published ones."""

Numbers = Int[Array, "episodes tasks"]
"""Of actions."""

Score = Callable[[np.ndarray, np.ndarray, int], Any]
"""``(m_rates [episodes, tasks], c_rates [episodes, tasks], iteration) -> rewards [episodes, tasks]``: the accuracy
after each task of a pseudo-task, the same one for all episodes of an iteration."""


class Policy(NamedTuple):
    """Weights of a two-level softmax policy on indicators: of nothing (a bias that all tasks share) and of the task,
    which is the state; for the second level also of the first action.

    Attributes:
      first: of level 1, [1 + tasks, m actions].
      second: of level 2, [1 + tasks + m actions, c actions].
    """

    first: Float[Array, "..."]
    second: Float[Array, "..."]


class Searched(NamedTuple):
    """What a search found.

    Attributes:
      m_rates, c_rates: the most probable action of each task; of level 2 given that of level 1.
      policy: as it was learnt.
      history: the mean reward over episodes and tasks, [iterations].
    """

    m_rates: Rates
    c_rates: Rates
    policy: Policy
    history: np.ndarray


def first_policy(tasks: int, m_actions: int, c_actions: int) -> Policy:
    """Every action as probable as any other."""
    return Policy(jnp.zeros((1 + tasks, m_actions)), jnp.zeros((1 + tasks + m_actions, c_actions)))


def log_probabilities(policy: Policy) -> tuple[Float[Array, "tasks m"], Float[Array, "tasks m c"]]:
    """(log pi(m | task), log pi(c | task, m))."""
    tasks = policy.first.shape[0] - 1
    first = policy.first[0] + policy.first[1:]
    of_task, of_action = policy.second[1 : 1 + tasks], policy.second[1 + tasks :]
    second = policy.second[0] + of_task[:, None] + of_action[None]
    return jax.nn.log_softmax(first), jax.nn.log_softmax(second)


def log_probability(policy: Policy, m: Numbers, c: Numbers) -> Float[Array, "episodes tasks"]:
    """log pi(m_t | t) + log pi(c_t | t, m_t) of the actions numbered ``m`` and ``c``."""
    first, second = log_probabilities(policy)
    task = jnp.arange(first.shape[0])
    return first[task, m] + second[task, m, c]


def sample(policy: Policy, key: Key, episodes: int) -> tuple[Numbers, Numbers]:
    """Actions of both levels, drawn independently for each episode and task."""
    first, second = log_probabilities(policy)
    of_first, of_second = jax.random.split(key)
    m = jax.random.categorical(of_first, first, shape=(episodes, first.shape[0]))
    return m, jax.random.categorical(of_second, second[jnp.arange(first.shape[0]), m])


def advantages(rewards: Float[Array, "episodes tasks"], discount: float = 1.0) -> Float[Array, "episodes tasks"]:
    """(G_t - mean G_t) / s with G_t = sum_{u >= t} discount^{u - t} r_u, the mean over episodes as the baseline and
    s^2 the mean over tasks of the variances over episodes, so that the scale of rewards is no matter."""

    def back(later: Array, now: Array) -> tuple[Array, Array]:
        total = now + discount * later
        return total, total

    returns = jax.lax.scan(back, jnp.zeros(rewards.shape[0]), rewards.T, reverse=True)[1].T
    centred = returns - returns.mean(0)
    return centred / (jnp.sqrt((centred**2).mean()) + 1e-8)


def reinforce(policy: Policy, m: Numbers, c: Numbers, weights: Float[Array, "episodes tasks"]) -> Float[Array, ""]:
    """- mean over episodes of sum_t weights_t log pi(a_t | t), whose gradient is that of REINFORCE for weights that are
    advantages."""
    return -(weights * log_probability(policy, m, c)).sum(-1).mean()


def search_policy(
    train_and_score: Score,
    tasks: int,
    *,
    m_actions: Sequence[float] = M_ACTIONS,
    c_actions: Sequence[float] = C_ACTIONS,
    iterations: int = 20,
    episodes: int = 8,
    learning_rate: float = 0.1,
    discount: float = 1.0,
    key: Key | int = 0,
) -> Searched:
    """max E[sum_t r_t] over policies, by Adam on the gradient of ``reinforce``.

    Args:
      train_and_score: see ``Score``; ``trainings`` makes it.
      tasks: of the stream.
      m_actions, c_actions: rates to choose from, in [0, 0.99].
      iterations: updates of the policy.
      episodes: policies tried for an update, at least two.
      learning_rate: of Adam, on the policy's weights.
      discount: of later rewards.
      key: for the actions.

    Raises:
      UsageError: numbers out of range, or rewards that are not finite or not [episodes, tasks].
    """
    tasks, iterations = check.count("tasks", tasks), check.count("iterations", iterations)
    episodes = check.count("episodes", episodes, 2)
    check.positive("learning_rate", learning_rate), check.fraction("discount", discount)
    rates = [_actions("m_actions", m_actions), _actions("c_actions", c_actions)]
    policy = first_policy(tasks, rates[0].size, rates[1].size)
    optimizer = optax.adam(learning_rate)
    state, key = optimizer.init(policy), jax.random.key(key) if isinstance(key, int) else key
    draw = jax.jit(sample, static_argnums=2)

    @jax.jit
    def improve(policy: Policy, state: Any, m: Array, c: Array, rewards: Array) -> tuple[Policy, Any]:
        grads = jax.grad(reinforce)(policy, m, c, advantages(rewards, discount))
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(policy, updates), state

    history = []
    for iteration in range(iterations):
        m, c = draw(policy, jax.random.fold_in(key, iteration), episodes)
        rewards = np.asarray(train_and_score(rates[0][m], rates[1][c], iteration), np.float32)
        if rewards.shape != (episodes, tasks) or not np.isfinite(rewards).all():
            raise check.UsageError(
                f"train_and_score must give finite rewards [{episodes}, {tasks}], one for each episode and task; got "
                f"{list(rewards.shape)}" + " with values that are not finite" * (not np.isfinite(rewards).all())
            )
        policy, state = improve(policy, state, m, c, rewards)
        history.append(float(rewards.mean()))
    first, second = (np.asarray(part) for part in log_probabilities(policy))
    best = first.argmax(-1)
    then = second[np.arange(tasks), best].argmax(-1)
    return Searched(tuple(rates[0][best].tolist()), tuple(rates[1][then].tolist()), policy, np.asarray(history))


def _actions(name: str, rates: Sequence[float]) -> np.ndarray:
    """The rates to choose from, checked."""
    for rate in rates:
        check.number(name, rate, 0.0, 0.99)
    if len(rates) == 0 or len(set(rates)) != len(rates):
        raise check.UsageError(f"{name} must name one or more rates, each once, got {tuple(rates)}")
    return np.asarray(rates, np.float64)


def trainings(
    plan: Plan,
    stream: Stream,
    memory: int,
    draw: Callable[[int], Pseudo],
    *,
    steps: int,
    read_out: str = "classifier",
    key: int = 0,
) -> Score:
    """Rewards by training: iteration i trains ``plan`` on the rows of ``draw(i)``, once for each policy and all in one
    call of ``fit``, and measures the accuracy on its validation rows after each task. The search compiles once.

    Args:
      plan: ``rmm`` on the pseudo-stream, with ``highest`` not below the m-rates that come.
      stream: the pseudo-stream.
      memory: exemplars in all, of the plan.
      draw: ``iteration -> Pseudo``, all of one shape.
      steps: of a training.
      read_out: of ``protocol.READ_OUTS``.
      key: for the trainings.
    """
    read_out = check.choose("read_out", read_out, READ_OUTS)
    measured = measure(stream)

    def score(m_rates: np.ndarray, c_rates: np.ndarray, iteration: int) -> np.ndarray:
        task = draw(iteration)
        shares = [shares_of(stream, memory, tuple(m), tuple(c)) for m, c in zip(m_rates, c_rates, strict=True)]
        fitted = fit(
            plan, task.train, key=jax.random.fold_in(jax.random.key(key), iteration), steps=steps, seeds=len(shares),
            state=stacked(shares), eval=Evaluation(task.validation, measured), progress=False,
        )  # fmt: skip
        return curves(fitted.history, plan, stream)[read_out].seen

    return score
