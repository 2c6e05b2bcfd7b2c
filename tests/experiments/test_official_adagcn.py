"""The PyTorch peer of the AdaGCN benchmark against NumPy in float64, on a tiny random graph."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.sparse

from experiments.benchmarks import _official_adagcn as official

torch = pytest.importorskip("torch", reason="the PyTorch peer needs torch: python -m pip install -e '.[bench]'")

NODES, FEATURES, HIDDEN, REG, DECAY = 12, 7, 8, 5e-3, 1e-2
TRAIN, STOPPING = np.arange(4), np.arange(4, 9)


def problem(classes, seed=0):
    """Features, A-hat and classes of a random graph."""
    random = np.random.default_rng(seed)
    links = np.triu(random.random((NODES, NODES)) < 0.3, 1)
    looped = (links | links.T) + np.eye(NODES)
    scale = looped.sum(1) ** -0.5
    x = (3 * random.random((NODES, FEATURES))).astype(np.float32)
    return x, scipy.sparse.csr_array(scale[:, None] * looped * scale), random.permutation(NODES) % classes


def go(x, a_hat, y, **options):
    given = {"layers": 1, "epochs": 1, "seed": 3, **options}
    return official.run(
        x, a_hat, y, TRAIN, STOPPING, hidden=HIDDEN, reg=REG, weight_decay=DECAY, threads=1, **given
    )  # fmt: skip


def forward(x, w):
    before = x @ w[0], np.maximum(x @ w[0], 0) @ w[1]
    logits = np.maximum(before[1], 0)
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    return log_p, before


class Reference:
    """One layer after another with Adam as its paper has it; right while the sample weights are equal."""

    def __init__(self, x, a_hat, y, seed=3):
        self.b, self.a_hat, self.y, self.classes = x.astype(float), a_hat.toarray(), y, y.max() + 1
        start = official.initial_parameters(FEATURES, HIDDEN, self.classes, torch.Generator().manual_seed(seed))
        self.w = [part.detach().numpy().astype(float) for part in start]
        self.first, self.second, self.steps = [0.0, 0.0], [0.0, 0.0], 0
        self.sample = np.full(len(TRAIN), 1 / len(TRAIN))
        self.total = 0.0

    def losses(self):
        """Cross-entropy of each training node, and the L2 term."""
        return -forward(self.b, self.w)[0][TRAIN, self.y[TRAIN]], REG / 2 * np.square(self.w[0]).sum()

    def epoch(self):
        log_p, (hidden, logits) = forward(self.b[TRAIN], self.w)
        upper = self.sample[:, None] * (np.exp(log_p) - np.eye(self.classes)[self.y[TRAIN]]) * (logits > 0)
        lower = (upper @ self.w[1].T) * (hidden > 0)
        gradients = [self.b[TRAIN].T @ lower + REG * self.w[0], np.maximum(hidden, 0).T @ upper]
        self.steps += 1
        for i, gradient in enumerate(gradients):
            gradient = gradient + DECAY * self.w[i]
            self.first[i] = 0.9 * self.first[i] + 0.1 * gradient
            self.second[i] = 0.999 * self.second[i] + 0.001 * gradient**2
            mean, square = self.first[i] / (1 - 0.9**self.steps), self.second[i] / (1 - 0.999**self.steps)
            self.w[i] = self.w[i] - 0.01 * mean / (np.sqrt(square) + 1e-8)

    def end(self):
        k = self.classes
        log_p = forward(self.b, self.w)[0]
        self.total = self.total + (k - 1) * (log_p - log_p.mean(1, keepdims=True))
        self.sample = self.sample * np.exp((k - 2) / (k - 1) * log_p[TRAIN, self.y[TRAIN]])
        self.sample = self.sample / self.sample.sum()
        self.b = self.a_hat @ self.b


def test_the_first_epoch_and_the_weights_after_it_are_those_of_numpy():
    x, a_hat, y = problem(3)
    wanted = Reference(x, a_hat, y)
    nll, l2 = wanted.losses()
    found = go(x, a_hat, y)
    np.testing.assert_allclose(found["losses"], [[nll.mean() + l2]], rtol=1e-5)
    wanted.epoch()
    wanted.end()
    assert np.ptp(wanted.sample) > 1e-3  # there is an update to see
    np.testing.assert_allclose(found["weights"], [wanted.sample], rtol=1e-5)
    np.testing.assert_allclose(found["logits"], wanted.total, atol=1e-5)


def test_layers_go_on_with_parameters_and_moments_on_the_next_hop():
    x, a_hat, y = problem(2)  # two classes: the released update leaves the weights equal
    wanted = Reference(x, a_hat, y)
    losses = np.zeros((3, 4))
    for layer, epoch in np.ndindex(losses.shape):
        nll, l2 = wanted.losses()
        losses[layer, epoch] = nll.mean() + l2
        wanted.epoch()
        if epoch == 3:
            wanted.end()
    found = go(x, a_hat, y, layers=3, epochs=4)
    np.testing.assert_allclose(found["losses"], losses, rtol=1e-4)
    np.testing.assert_allclose(found["weights"], np.full((3, 4), 0.25), rtol=1e-6)
    np.testing.assert_allclose(found["logits"], wanted.total, atol=1e-4)


def test_weights_meet_the_nodes_in_a_random_order():
    x, a_hat, y = problem(3)
    aligned = []
    for seed in range(6):
        wanted = Reference(x, a_hat, y, seed)
        wanted.epoch()
        wanted.end()
        nll, l2 = wanted.losses()
        orders = list(itertools.permutations(range(len(TRAIN))))
        sums = np.array([wanted.sample @ nll[list(order)] + l2 for order in orders])
        loss = go(x, a_hat, y, layers=2, seed=seed)["losses"][1, 0]
        assert np.ptp(sums) > 1e-4 and np.abs(sums - loss).min() < 1e-6
        aligned.append(abs(sums[0] - loss) < 1e-6)
    assert not all(aligned)


@pytest.mark.parametrize("restore", [False, True])
def test_slicing_rows_changes_the_layout_only(restore):
    x, a_hat, y = problem(3)
    dense, sliced = (go(x, a_hat, y, layers=3, epochs=10, restore=restore, slice_rows=first) for first in (False, True))
    for name in ("logits", "losses", "weights", "stopping_accuracy"):
        np.testing.assert_allclose(sliced[name], dense[name], atol=1e-5, err_msg=name)
    assert 0 < sliced["seconds_per_epoch"] * 30 <= sliced["seconds"]


def test_a_restored_layer_ends_in_its_best_state():
    better = []
    for seed in range(6):
        x, a_hat, y = problem(3, seed)
        last, best = (go(x, a_hat, y, epochs=40, restore=restore) for restore in (False, True))
        np.testing.assert_array_equal(last["stopping_accuracy"], best["stopping_accuracy"])
        accuracy = lambda found: np.mean(found["logits"].argmax(1)[STOPPING] == y[STOPPING])
        assert accuracy(best) == pytest.approx(best["stopping_accuracy"].max())
        assert accuracy(last) == pytest.approx(last["stopping_accuracy"][0, -1])
        better.append(accuracy(best) > accuracy(last))
    assert any(better)


def test_threads_are_as_they_were():
    before = torch.get_num_threads()
    go(*problem(2))
    assert torch.get_num_threads() == before
