"""What the tests of the ensembles share: a small problem, a linear network, and softmax in NumPy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxkit.long_tailed import METHODS
from jaxkit.networks import mlp

RNG = np.random.default_rng(5)
CLASSES, FEATURES = 4, 3
COUNTS = np.array([24, 8, 4, 2])
Y = np.repeat(np.arange(CLASSES), COUNTS).astype(np.int32)
X = (np.eye(CLASSES, FEATURES)[Y] + 0.5 * RNG.normal(size=(len(Y), FEATURES))).astype(np.float32)
DATA = {"x": jnp.asarray(X), "y": jnp.asarray(Y)}
KEY = jax.random.key(4)
NETWORK = mlp(CLASSES, hidden=())  # features are x, so that logits are x W + b
ONE_HOT = np.eye(CLASSES)[Y]


def make(name, **settings):
    """A method on the linear network with plain gradient descent of rate 1."""
    return METHODS[name].make(NETWORK, optax.sgd(1.0), **{"class_counts": COUNTS, **settings})


def start(learner, key=KEY):
    """The first state of a learner."""
    return jax.jit(learner.init)(key, DATA)


def step(learner, state, batch=DATA, key=KEY):
    """(metrics, gradient): parameters before a step of rate 1 less those after it."""
    after, metrics = jax.jit(learner.update)(state, batch, key)
    return metrics, jax.tree.map(lambda a, b: np.asarray(a - b), state.params, after.params)


def logits_of(params, x=X, names=("expert_0", "expert_1", "expert_2")):
    """[batch, E, C] in float64 from the parameters of copies of the linear network."""
    heads = [params[name]["head"] for name in names]
    return np.stack([np.asarray(x, np.float64) @ np.asarray(h["kernel"]) + np.asarray(h["bias"]) for h in heads], 1)


def log_softmax(z):
    z = np.asarray(z, np.float64)
    z = z - z.max(-1, keepdims=True)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def softmax(z):
    return np.exp(log_softmax(z))


def cross_entropy(z, y=Y):
    """-log softmax(z)_y for logits [batch, C]."""
    return -log_softmax(z)[np.arange(len(y)), y]


def bias_gradients(gradient, names=("expert_0", "expert_1", "expert_2")):
    """The gradient of the loss with respect to the bias of each expert, [E, C]."""
    return np.stack([gradient[name]["head"]["bias"] for name in names])


def kernel_gradients(gradient, names=("expert_0", "expert_1", "expert_2")):
    """The gradient of the loss with respect to the kernel of each expert, [E, F, C]."""
    return np.stack([gradient[name]["head"]["kernel"] for name in names])
