"""A network, data and a plan small enough that a test's time is the trainer's; also run as a process that gets killed.

``python toy.py OUT.npz WORKDIR STEPS_PER_DISPATCH KILL_AT WHERE`` trains the plan, resuming what is in WORKDIR, and
writes its
leaves. It kills itself (SIGKILL) when KILL_AT steps are done: ``callback`` after the dispatch, ``save`` while the
checkpoint of that step is being written, ``never`` not at all.
"""

import os
import signal
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxkit import learner, training
from jaxkit.data import sources

STEPS = 60


def network(sizes: tuple[int, ...]) -> learner.Network:
    """A multilayer perceptron in plain JAX, its last layer called head."""
    names = [*(f"layer{number}" for number in range(len(sizes) - 1)), "head"]

    def init(key, x):
        widths = [x.shape[-1], *sizes]
        keys = jax.random.split(key, len(sizes))
        dense = lambda k, a, b: {"w": jax.random.normal(k, (a, b)) / np.sqrt(a), "b": jnp.zeros((b,))}
        layers = zip(names, keys, widths[:-1], widths[1:], strict=True)
        return {name: dense(k, a, b) for name, k, a, b in layers}, {}

    def apply(params, variables, x, *, train=False, key=None, valid=None):
        for name in names[:-1]:
            x = jax.nn.relu(x @ params[name]["w"] + params[name]["b"])
        return {"logits": x @ params["head"]["w"] + params["head"]["b"], "features": x}, variables

    return learner.Network(init, apply)


def cross_entropy(outputs, batch):
    return optax.softmax_cross_entropy_with_integer_labels(outputs["logits"], batch["y"])


def measure(outputs, data):
    """Accuracy."""
    return {"accuracy": (outputs["logits"].argmax(-1) == data["y"]).mean()}


def make_data(rows: int = 256, classes: int = 4, width: int = 16) -> dict[str, np.ndarray]:
    """Gaussian classes."""
    random = np.random.default_rng(0)
    y = np.arange(rows, dtype=np.int32) % classes
    centres = random.normal(size=(classes, width))
    return {"x": (centres[y] + random.normal(size=(rows, width))).astype(np.float32), "y": y}


def classifier(classes: int = 4, learning_rate=1e-2, hidden: int = 32, **settings) -> learner.Learner:
    return learner.from_example_loss(
        network((hidden, classes)), cross_entropy, training.optimizer("adam", learning_rate), **settings
    )


def plan() -> learner.Plan:
    """Two stages: the second has a wider head, so that the shape of State changes between them."""
    narrow, wide = classifier(4), classifier(8)

    def grow(state, data, key):
        fresh = wide.init(key, {name: values[:1] for name, values in data.items()})
        head = {name: fresh.params["head"][name].at[..., :4].set(old) for name, old in state.params["head"].items()}
        return fresh._replace(params={**state.params, "head": head})

    def shrink(state, data, key):
        return state._replace(params=jax.tree.map(lambda leaf: leaf * 0.5, state.params))

    source = sources.epochs(32)
    return (
        learner.Stage("narrow", narrow, source, share=0.5, end=shrink),
        learner.Stage("wide", wide, source, share=0.5, begin=grow),
    )


def same(a, b) -> bool:
    """Whether two trees are equal bit for bit."""
    a, b = jax.tree.leaves(a), jax.tree.leaves(b)
    return len(a) == len(b) and all(np.array_equal(x, y, equal_nan=True) for x, y in zip(a, b, strict=True))


def _main(out: str, workdir: str, steps_per_dispatch: int, kill_at: int, where: str) -> None:
    die = lambda: os.kill(os.getpid(), signal.SIGKILL)
    if where == "save":
        save = training.checkpoints.Checkpoints.save

        def save_and_die(self, step, checkpoint):
            save(self, step, checkpoint)
            if step >= kill_at:
                die()

        training.checkpoints.Checkpoints.save = save_and_die
    callback = lambda event: die() if where == "callback" and event.step >= kill_at else None
    result = training.fit(
        plan(), make_data(), key=7, steps=STEPS, workdir=workdir, resume=True, checkpoint_every_s=0.0,
        steps_per_dispatch=steps_per_dispatch, callbacks=[callback], progress=False,
    )  # fmt: skip
    losses = result.history.metrics["loss"]
    np.savez(out, losses, *jax.tree.leaves(result.state))


if __name__ == "__main__":
    _main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5])
    assert Path(sys.argv[1]).exists()
