"""Three learners that prove the interface, each written as a user would write it.

A plan whose second stage freezes the backbone, grows the head and samples class-balanced; an adversary with an
optimizer of its own on batches by environment; an on-policy learner whose source reads State.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

from jaxkit import learner
from jaxkit.data import by_environment, class_balanced, rollouts, weighted
from jaxkit.learner import Batch, Data, Key, Learner, LossState, Metrics, Network, Outputs, Plan, Source, Stage
from jaxkit.networks import grow_head, mlp

OLD, CLASSES = 5, 10


def cross_entropy(outputs: Outputs, batch: Batch) -> jax.Array:
    """-log softmax(logits)_y for each row."""
    return optax.softmax_cross_entropy_with_integer_labels(outputs["logits"], batch["y"])


# A plan: few classes first, then all of them on a frozen backbone --------------------------------------------------


def imbalanced_digits() -> Data:
    """Scikit-learn's digits: 150 rows of each class 0..4 and 15 of each class 5..9."""
    x, y = load_digits(return_X_y=True)
    keep = jnp.concatenate([jnp.flatnonzero(y == c)[: 150 if c < OLD else 15] for c in range(CLASSES)])
    return {"x": jnp.asarray(x[keep] / 16.0, jnp.float32), "y": jnp.asarray(y[keep], jnp.int32)}


def two_stage(width: int = 32, batch_size: int = 32) -> Plan:
    """Train on classes 0..4; freeze the backbone, grow the head to ten classes, retrain it class-balanced (after Kang
    et al. 2020)."""
    small, large = mlp(OLD, hidden=(width,)), mlp(CLASSES, hidden=(width,))
    optimizer = optax.sgd(0.2, momentum=0.9)

    def second(network: Network) -> Learner:
        return learner.from_example_loss(network, cross_entropy, optimizer, freeze="backbone")

    def begin(state: learner.TrainState, data: Data, key: Key) -> learner.TrainState:
        params = grow_head(state.params, CLASSES, key)
        return second(learner.starting_from(large, params, state.variables)).init(key, data)

    old_rows = weighted(batch_size, lambda data: (data["y"] < OLD).astype(jnp.float32))
    return (
        Stage("old classes", learner.from_example_loss(small, cross_entropy, optimizer), old_rows, share=0.5),
        Stage("all classes", second(large), class_balanced(batch_size, CLASSES), share=0.5, begin=begin),
    )


# An adversary: two optimizers, one update --------------------------------------------------------------------------


class Adversarial(NamedTuple):
    """The state of ``domain_adversarial``."""

    params: Any
    variables: Any
    opt_state: Any
    adversary: Any
    adversary_opt_state: Any


def rows_of(batch: Batch) -> Batch:
    """[E, B, ...] as [E B, ...]."""
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), batch)


def domain_adversarial(
    network: Network,
    num_envs: int,
    optimizer: optax.GradientTransformation,
    adversary_optimizer: optax.GradientTransformation,
    *,
    penalty: float | jax.Array = 1.0,
) -> Learner:
    """min_f L_y(f) - penalty L_d(f, d) while min_d L_d(f, d): features from which no adversary d tells the environment.

    Ganin et al. 2016, equations 9 to 13, with one optimizer for each player in place of the reversed gradient.
    """
    adversary = mlp(num_envs, hidden=(32,))

    def losses(params, variables, opponent, batch, key):
        outputs, variables = network.apply(params, variables, batch["x"], train=True, key=key, valid=batch.get("valid"))
        guess, _ = adversary.apply(opponent, {}, outputs["features"])
        label_loss = learner.batch_mean(cross_entropy(outputs, batch), batch)
        env_loss = learner.batch_mean(cross_entropy(guess, {"y": batch["env"]}), batch)
        return label_loss, env_loss, variables

    def init(key: Key, batch: Batch) -> Adversarial:
        keys = jax.random.split(key)
        batch = rows_of(batch)
        params, variables = network.init(keys[0], batch["x"])
        features = network.apply(params, variables, batch["x"])[0]["features"]
        opponent, _ = adversary.init(keys[1], features)
        return Adversarial(params, variables, optimizer.init(params), opponent, adversary_optimizer.init(opponent))

    def update(state: Adversarial, batch: Batch, key: Key) -> tuple[Adversarial, Metrics]:
        batch = learner.clear_padding(rows_of(batch))

        def learner_objective(params):
            label_loss, env_loss, variables = losses(params, state.variables, state.adversary, batch, key)
            return label_loss - penalty * env_loss, (label_loss, variables)

        def adversary_objective(opponent):
            return losses(state.params, state.variables, opponent, batch, key)[1]

        (value, (label_loss, variables)), grads = jax.value_and_grad(learner_objective, has_aux=True)(state.params)
        env_loss, opponent_grads = jax.value_and_grad(adversary_objective)(state.adversary)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        opponent_updates, opponent_opt = adversary_optimizer.update(
            opponent_grads, state.adversary_opt_state, state.adversary
        )
        after = Adversarial(
            optax.apply_updates(state.params, updates),
            variables,
            opt_state,
            optax.apply_updates(state.adversary, opponent_updates),
            opponent_opt,
        )
        finite = jnp.isfinite(value) & jnp.isfinite(env_loss)
        return after, {"loss": label_loss, "env_loss": env_loss, "finite": finite.astype(jnp.float32)}

    def predict(state: Adversarial, batch: Batch) -> Outputs:
        return network.apply(state.params, state.variables, batch["x"], valid=batch.get("valid"))[0]

    return Learner(init, update, predict)


def marked_environments(rows: int = 256) -> Data:
    """Two classes told by coordinate 0, two environments told by coordinate 1; ten coordinates of noise."""
    keys = jax.random.split(jax.random.key(7), 3)
    y, env = (jax.random.bernoulli(key, shape=(rows,)).astype(jnp.int32) for key in keys[:2])
    x = 0.5 * jax.random.normal(keys[2], (rows, 12))
    return {"x": x.at[:, 0].add(2.0 * y - 1.0).at[:, 1].add(2.0 * env - 1.0), "y": y, "env": env}


def environments(batch_size_per_env: int = 16) -> Source:
    """The source of ``domain_adversarial`` on ``marked_environments``."""
    return by_environment(batch_size_per_env, 2)


# On policy: the source asks the learner what to do -----------------------------------------------------------------

CONTEXTS = 3
MEAN_REWARD = np.array([[0.1, 0.2, 0.9, 0.3], [0.8, 0.2, 0.1, 0.4], [0.3, 0.9, 0.2, 0.1]])  # [contexts, arms]
BEST = float(MEAN_REWARD.max(1).mean())
UNIFORM = float(MEAN_REWARD.mean())


class Baseline(NamedTuple):
    """The extra arrays of ``reinforce``: a running mean of the rewards."""

    reward: jax.Array


def reinforce(network: Network, optimizer: optax.GradientTransformation, *, decay: float | jax.Array = 0.9) -> Learner:
    """Ascend E[(r - b) log pi(a | x)] with b the running mean of the rewards (Williams 1992, section 3).

    Batches are trajectories ``[batch, time, ...]`` with ``action`` and ``reward``; each step is an episode.
    """

    def loss(params, state: LossState, batch: Batch, key: Key):
        x, reward = batch["x"], batch["reward"]
        outputs, variables = network.apply(params, state.variables, x.reshape(-1, x.shape[-1]), train=True, key=key)
        log_policy = jax.nn.log_softmax(outputs["logits"]).reshape(*x.shape[:-1], -1)
        chosen = jnp.take_along_axis(log_policy, batch["action"][..., None], axis=-1)[..., 0]
        value = learner.batch_mean(-((reward - state.extra.reward) * chosen).mean(1), batch)
        mean_reward = learner.batch_mean(reward.mean(1), batch)
        baseline = decay * state.extra.reward + (1 - decay) * mean_reward
        after = state._replace(variables=variables, extra=Baseline(baseline))
        return value, (after, {"reward": mean_reward})

    baseline = lambda params, variables: Baseline(jnp.zeros(()))
    observations = lambda batch: batch["x"][:, 0]  # of trajectories [batch, time, ...]
    return learner.from_loss(network, loss, optimizer, init_extra=baseline, example=observations)


def bandit(policy: Learner, num_envs: int = 16, length: int = 4) -> Source:
    """Play a contextual bandit with the policy that ``policy`` has learnt so far; rewards are 0 or 1."""

    def reset(key, params):
        context = jax.random.randint(key, (), 0, CONTEXTS)
        return jax.nn.one_hot(context, CONTEXTS), context

    def step(key, context, action, params):
        reward = jax.random.bernoulli(key, params[context, action])
        return jax.nn.one_hot(context, CONTEXTS), context, reward, True, False

    def act(state, observation, key):
        return jax.random.categorical(key, policy.predict(state, {"x": observation})["logits"]), {}

    return rollouts(reset, step, act, num_envs, length, params=jnp.asarray(MEAN_REWARD, jnp.float32))


def contexts() -> Data:
    """Every context once: what ``predict`` is asked for."""
    return {"x": jnp.eye(CONTEXTS)}
