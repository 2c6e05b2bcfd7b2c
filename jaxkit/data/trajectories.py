"""On-policy trajectories as a source: the policy is read from the learner's state at every step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxkit import check
from jaxkit.learner import Batch, Data, Key, PyTree, Source, State

TRAJECTORY = ("x", "action", "reward", "next_x", "terminated", "truncated")


def _as(like: PyTree, tree: PyTree) -> PyTree:
    """``tree`` with the dtypes of ``like``, so that what a step returns can stand where a reset stood (weak types
    too)."""
    cast = lambda a, b: b if jnp.issubdtype(b.dtype, jax.dtypes.prng_key) else b.astype(a.dtype)
    return jax.tree.map(cast, like, jax.tree.map(jnp.asarray, tree))


def _strong(tree: PyTree) -> PyTree:
    plain = lambda leaf: leaf if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else jnp.array(leaf, leaf.dtype)
    return jax.tree.map(plain, jax.tree.map(jnp.asarray, tree))


def rollouts(
    reset: Callable[[Key, PyTree], tuple[PyTree, PyTree]],
    step: Callable[..., tuple[PyTree, PyTree, Any, Any, Any]],
    act: Callable[[State, PyTree, Key], tuple[PyTree, dict[str, Any]]],
    num_envs: int,
    length: int,
    *,
    params: PyTree = None,
    action: PyTree = 0,
    extras: dict[str, Any] | None = None,
) -> Source:
    """Trajectories ``[num_envs, length, ...]`` of the present policy, continued from batch to batch, with automatic
    reset.

    The batch holds, at each time t: ``x`` (the observation acted on), ``action``, ``reward`` (float32), ``next_x`` (the
    observation that the step returned, before any reset: what a value is bootstrapped from), ``terminated`` (the
    episode ended in the environment's terms: no value follows), ``truncated`` (it was cut short: a value follows), and
    what ``act`` adds.

    Args:
      reset: ``(key, params) -> (observation, env_state)`` for one environment.
      step: ``(key, env_state, action, params) -> (observation, env_state, reward, terminated, truncated)`` for one
        environment.
      act: ``(state, observations, key) -> (actions, extras)``; reads the learner's state; observations have the leading
        axis num_envs, and so must actions and extras (a dict: log-probabilities, values).
      num_envs: parallel environments.
      length: steps of each per batch.
      params: the environment's parameters.
      action: an action of one environment, for its shape and dtype (0: a discrete one, int32).
      extras: the extras of one environment, for their shapes and dtypes.

    Returns:
      A source with ``example``; its state is the environments' state and last observation.

    Raises:
      UsageError: ``act`` returns actions or extras of other names, shapes or dtypes than ``action`` and ``extras`` say.
    """
    num_envs, length = check.count("num_envs", num_envs), check.count("length", length)
    extras = {} if extras is None else dict(extras)
    clash = sorted(set(extras) & set(TRAJECTORY))
    if clash:
        raise check.UsageError(f"rollouts: extras may not be called {', '.join(clash)}; these are the trajectory's own")
    action = jax.tree.map(
        lambda leaf: jnp.asarray(leaf, jnp.int32) if isinstance(leaf, int) else jnp.asarray(leaf), action
    )
    extras = jax.tree.map(
        lambda leaf: jnp.asarray(leaf, jnp.float32) if isinstance(leaf, float) else jnp.asarray(leaf), extras
    )
    for_each = lambda tree: jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (num_envs, *leaf.shape)), tree)
    reset_all = jax.vmap(reset, in_axes=(0, None))
    step_all = jax.vmap(step, in_axes=(0, 0, 0, None))

    def same_form(name: str, wanted: PyTree, given: PyTree) -> PyTree:
        given = jax.tree.map(jnp.asarray, given)
        form = lambda tree: jax.tree.map(lambda leaf: f"{leaf.dtype}{list(leaf.shape)}", tree)
        if form(for_each(wanted)) != form(given):
            raise check.UsageError(
                f"rollouts: act returned {name} {form(given)}, expected {form(for_each(wanted))}; "
                f"give rollouts(..., {name}=) those of one environment"
            )
        return given

    def run(carry: PyTree, policy: Callable[[PyTree, Key], tuple[PyTree, PyTree]], key: Key) -> tuple[PyTree, Batch]:
        def one(carry, key):
            observation, env_state = carry
            act_key, step_key, reset_key = jax.random.split(key, 3)
            actions, added = policy(observation, act_key)
            stepped = step_all(jax.random.split(step_key, num_envs), env_state, actions, params)
            after, after_state = _as(carry, stepped[:2])
            reward, terminated, truncated = stepped[2:]
            terminated, truncated = jnp.asarray(terminated, bool), jnp.asarray(truncated, bool)
            fresh = reset_all(jax.random.split(reset_key, num_envs), params)
            done = terminated | truncated
            chosen = lambda new, old: jnp.where(done.reshape(done.shape + (1,) * (old.ndim - 1)), new, old)
            carry = jax.tree.map(chosen, _as(carry, fresh), (after, after_state))
            values = (observation, actions, jnp.asarray(reward, jnp.float32), after, terminated, truncated)
            return carry, {**dict(zip(TRAJECTORY, values, strict=True)), **added}

        carry, steps = jax.lax.scan(one, carry, jax.random.split(key, length))
        return carry, jax.tree.map(lambda leaf: jnp.swapaxes(leaf, 0, 1), steps)

    def init(data: Data, key: Key) -> PyTree:
        return _strong(reset_all(jax.random.split(jax.random.split(key)[0], num_envs), params))

    def next_(data: Data, source_state: PyTree, state: State, step: Any, key: Key) -> tuple[PyTree, Batch]:
        def policy(observation, key):
            actions, added = act(state, observation, key)
            return same_form("action", action, actions), same_form("extras", extras, added)

        # Under the key itself, step i would share its randomness with the first reset of environment i.
        return run(source_state, policy, jax.random.fold_in(jax.random.split(key)[1], step))

    def example(data: Data, source_state: PyTree, key: Key) -> Batch:
        return run(source_state, lambda observation, key: (for_each(action), for_each(extras)), key)[1]

    return Source(init, next_, example)
