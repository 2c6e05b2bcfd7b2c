"""What GEM remembers: the gradient of each earlier task on all of its exemplars."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from jaxkit.class_incremental import Keep, make_stream
from jaxkit.class_incremental import memory as memories
from jaxkit.class_incremental.projected import memory_gradients
from jaxkit.class_incremental.task import Task
from jaxkit.losses import cross_entropy
from jaxkit.networks import mlp


@pytest.mark.parametrize(
    ("number", "counts"), [(1, [10, 11] + 6 * [0]), (2, [6, 5, 4, 6, 0, 0, 0, 0]), (3, 6 * [3] + [0, 0])]
)
@pytest.mark.parametrize("chunk", [1, 7, 40])
def test_every_earlier_task_has_the_gradient_of_its_exemplars(number, counts, chunk):
    random = np.random.default_rng(number)
    stream = make_stream(np.repeat(np.arange(8), 12), increment=2)
    network = mlp(8, hidden=(5,))
    x = jnp.asarray(random.uniform(size=(21, 6)), jnp.float32)
    params, variables = network.init(jax.random.key(0), x[:1])
    memory = memories.empty(Keep(21), 8, x)
    memory = memory._replace(x=memories.stored(x, memory), counts=jnp.asarray(counts, jnp.int32))
    place = jnp.asarray(number, jnp.int32)
    task = Task(place, 2 * place, 2 * place + 2, memory, jnp.zeros((8, 5)), (), ())
    found = jax.jit(
        lambda params: memory_gradients(network, params, variables, task, stream, chunk, jax.random.key(1))
    )(params)
    label = np.repeat(np.arange(8), counts)
    rows = np.round(np.asarray(x) * 255) / 255  # as they are stored
    for k in range(3):
        mine = np.flatnonzero(label // 2 == k)

        def mean_loss(params, mine=mine, k=k):
            logits = network.apply(params, variables, jnp.asarray(rows[mine]), train=False)[0]["logits"]
            return cross_entropy(logits[:, 2 * k : 2 * k + 2], jnp.asarray(label[mine] - 2 * k)).mean()

        wanted = ravel_pytree(jax.grad(mean_loss)(params))[0] if k < number else jnp.zeros(found.shape[1])
        np.testing.assert_allclose(found[k], wanted, atol=1e-6)
    assert number == 3 or not np.asarray(found[number:]).any()
