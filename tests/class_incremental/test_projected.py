"""What GEM remembers, the gradient of each earlier task on all of its exemplars; and its projection where these are
nearly one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from scipy.optimize import nnls

from jaxkit.class_incremental import Keep, make_stream
from jaxkit.class_incremental import memory as memories
from jaxkit.class_incremental.projected import gem_projection, memory_gradients
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


SIZE = 60
PROJECTION = jax.jit(gem_projection)


def nearly_one(tasks, apart, seed):
    """(gradient, rows), float32: rows of any length with cosines 1 - ``apart``, and a gradient that turns away from
    what they share; with an odd seed it is so near to their cone's negative that several tasks hold it."""
    random = np.random.default_rng(seed)
    axes = np.linalg.qr(random.normal(size=(SIZE, SIZE)))[0]
    rows = np.sqrt(1 - apart) * axes[0] + np.sqrt(apart) * axes[1 : tasks + 1]
    grad = random.normal(size=SIZE) @ (axes if seed % 2 == 0 else axes * (np.arange(SIZE) > tasks)[:, None])
    grad -= 2.0 * axes[0] if seed % 2 == 0 else random.uniform(-0.5, 2.0, size=tasks) @ rows
    return np.float32(grad), np.float32(rows * 10.0 ** random.uniform(-2, 2, size=(tasks, 1)))


@pytest.mark.parametrize("tasks", [2, 5])
@pytest.mark.parametrize("apart", [1e-4, 1e-5, 1e-6])
def test_gradients_of_earlier_tasks_may_be_nearly_collinear(tasks, apart):
    several = 0
    for seed in range(8):
        grad, rows = nearly_one(tasks, apart, seed)
        unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        np.testing.assert_allclose(unit @ unit.T, np.where(np.eye(tasks), 1, 1 - apart), atol=1e-6)
        got, length = np.asarray(PROJECTION(grad, rows), np.float64), np.linalg.norm(grad)
        v = nnls(np.float64(rows.T), -np.float64(grad))[0]
        want = grad + np.float64(rows.T) @ v
        several += (v > 0).sum() > 1
        # A product with a row is a sum of 60 float32 products, each within 6e-8 of its size.
        assert (unit @ got >= -2e-6 * length).all()
        # What tells two rows apart has the length sqrt(2 apart), against which their rounding counts.
        near = 20 * 6e-8 / np.sqrt(2 * apart) * length
        np.testing.assert_allclose(got, want, atol=near)
        assert abs(np.linalg.norm(got - grad) - np.linalg.norm(want - grad)) <= near
    assert several >= 2


def test_a_task_may_be_remembered_twice():
    for seed in range(4):
        grad, rows = nearly_one(3, 0.3, seed)
        twice = rows[[0, 1, 0, 2, 2]]
        got, want = PROJECTION(grad, twice), grad + rows.T @ nnls(rows.T, -grad)[0]
        np.testing.assert_allclose(got, want, atol=1e-5)
        one = -rows[0] / np.linalg.norm(rows[0])
        np.testing.assert_allclose(PROJECTION(one, twice[[0, 2, 0, 2, 0]]), np.zeros(SIZE), atol=1e-6)


@pytest.mark.parametrize("margin", [0.1, 0.5])
def test_a_margin_is_the_least_share_of_every_task(margin):
    """v >= margin: with u = v - margin the problem is that of g + margin sum_k g_k."""
    random = np.random.default_rng(0)
    for _ in range(4):
        grad, rows = np.float32(random.normal(size=SIZE)), np.float32(random.normal(size=(5, SIZE)))
        rows[3:] = 0.0
        active, moved = jnp.arange(5) < 3, grad + margin * rows.sum(0)
        grad = grad if (rows @ grad < 0).any() else -grad
        moved = grad + margin * rows.sum(0)
        want = moved + rows[:3].T @ nnls(np.float64(rows[:3].T), -np.float64(moved))[0]
        np.testing.assert_allclose(PROJECTION(grad, rows, active, margin), want, atol=1e-5)
