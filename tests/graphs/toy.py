"""A graph small enough for every test: a stochastic block model with noisy features that hops make clean."""

from __future__ import annotations

import functools

import numpy as np

from jaxkit.graphs import build, node_data

NODES, CLASSES, FEATURES = 72, 3, 6


@functools.lru_cache
def arrays() -> dict:
    """Three blocks of 24 nodes, features = one-hot of the block + noise, in the form of a card."""
    random = np.random.default_rng(5)
    y = np.repeat(np.arange(CLASSES), NODES // CLASSES).astype(np.int32)
    chance = np.where(y[:, None] == y[None], 0.25, 0.02)
    upper = np.triu(random.random((NODES, NODES)) < chance, 1)
    one, two = np.nonzero(upper | np.eye(NODES, k=1, dtype=bool))  # a path joins everything
    senders, receivers = np.concatenate([one, two]), np.concatenate([two, one])
    x = np.eye(CLASSES, FEATURES)[y] + 0.8 * random.random((NODES, FEATURES))
    nodes = (x / x.sum(1, keepdims=True)).astype(np.float32)
    weights = np.ones(len(senders), np.float32)
    return {"x": {"nodes": nodes, "senders": senders, "receivers": receivers, "weights": weights}, "y": y}


@functools.lru_cache
def graph():
    """Its normalised GraphsTuple."""
    return build(arrays()["x"])


@functools.lru_cache
def adjacency() -> np.ndarray:
    """Its dense A-hat by the definition, float64."""
    x = arrays()["x"]
    dense = np.eye(NODES)
    dense[x["receivers"], x["senders"]] = 1.0
    scale = 1 / np.sqrt(dense.sum(1))
    return scale[:, None] * dense * scale[None]


def split() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(train, stopping, test): 8, 8 and 8 nodes of each block."""
    numbers = np.arange(NODES).reshape(CLASSES, 3, -1)
    return tuple(numbers[:, part].ravel() for part in range(3))


@functools.lru_cache
def data() -> dict:
    """What ``fit`` takes."""
    train, stopping, _ = split()
    return node_data(graph(), arrays()["y"], train, stopping)
