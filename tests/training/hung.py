"""A run whose step never returns."""

import time

import jax

from jaxkit import training
from jaxkit.data import sources
from tests.training import toy

method = toy.classifier()


def update(state, batch, key):
    state, metrics = method.update(state, batch, key)
    jax.debug.callback(lambda: time.sleep(1000), ordered=True)
    return state, metrics


if __name__ == "__main__":
    training.fit(
        method._replace(update=update), toy.make_data(), key=0, steps=5, source=sources.epochs(32), progress=False
    )
