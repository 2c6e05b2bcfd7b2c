"""The peer of the AdaGCN benchmark: what the released code of AdaGCN (Sun et al., ICLR 2021) computes, in PyTorch.

A transcription of its arithmetic and of its dense layout, not of its text, and with its deviations from the paper:

* every epoch the network runs on all N nodes, and the rows of the training (or stopping) nodes are taken afterwards;
* the weights are down where the paper's are up, w_i <- w_i exp(-(K-2)/(K-1) nll_i), and every epoch they meet the
  training nodes in a new random order;
* the logits pass a ReLU; neither layer has a bias; layer 0 has the features themselves;
* the L2 term of the loss and Adam's coupled weight decay act together;
* parameters and Adam's moments go on from layer to layer, and on a CPU the best state is not restored.

Two things differ: every layer runs all its epochs (the released code has one patience for all layers), and h is formed
from log softmax, where the released code takes the logarithm of a softmax, which is -inf where that underflows.

Needs NumPy, SciPy and torch, and nothing else of this project, so that an environment without JAX can time it.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from experiments.benchmarks._torch import threads_of, torch_or_error

if TYPE_CHECKING:
    import scipy.sparse
    from jaxtyping import Float32, Int

LEARNING_RATE = 0.01


class _Rows(NamedTuple):
    """The nodes of one set as the network gets them: ``inputs[take]`` after, or instead of, the layers."""

    inputs: Any  # [N, F], or [n, F] where rows are sliced first
    take: Any  # [n], into the network's output
    y: Any  # [n]


def run(
    features: Float32[np.ndarray, "nodes features"],
    adjacency: scipy.sparse.csr_array | scipy.sparse.csr_matrix,
    y: Int[np.ndarray, " nodes"],
    train: Int[np.ndarray, " train"],
    stopping: Int[np.ndarray, " stopping"],
    *,
    layers: int,
    epochs: int,
    hidden: int,
    reg: float,
    weight_decay: float,
    seed: int,
    threads: int,
    slice_rows: bool = False,
    restore: bool = False,
) -> dict[str, Any]:
    """Train ``layers`` layers of ``epochs`` epochs and return the sum of h over them, with the times.

    Layer l trains logits = ReLU(ReLU(B W0) W1) on B = A-hat^l X with the loss of one epoch

        sum_i w_i CE(logits_i, y_i) + reg / 2 ||W0||^2

    over the training nodes, w_i = 1/n at first; Adam, learning rate 0.01. After every epoch accuracy and loss (not
    weighted) of the stopping nodes are computed. At its end h = (K-1) (log p - mean_k log p) is formed on all nodes.

    Args:
      features: X, dense.
      adjacency: A-hat, [nodes, nodes].
      y: class of each node, 0..K-1; what stands at nodes of neither set only counts towards K.
      train: the training nodes.
      stopping: the nodes that ``restore`` chooses by.
      layers: the number of layers, hops 0..layers-1.
      epochs: epochs of each layer.
      hidden: width of the hidden layer.
      reg: weight of the L2 term.
      weight_decay: Adam's, on both matrices.
      seed: of the parameters and of the orders.
      threads: torch's threads within an operation.
      slice_rows: take the rows of the training and stopping nodes once a layer, before the network, not after it; the
        result is the same up to rounding, so that the times tell what row slicing alone is worth.
      restore: end each layer in its best state by stopping accuracy, then stopping loss.

    Returns:
      ``logits`` float32 [nodes, K], the sum of h; ``seconds_per_epoch``, mean over all epochs with the stopping
      evaluation; ``seconds`` in all, propagation and h included; ``losses`` and ``stopping_accuracy`` [layers, epochs];
      ``weights`` [layers, n], each layer's w at its end.

    Raises:
      UsageError: torch is not installed.
    """
    torch = torch_or_error()
    begin = time.perf_counter()
    functional = torch.nn.functional
    classes = int(y.max()) + 1
    generator = torch.Generator().manual_seed(seed)
    w0, w1 = initial_parameters(features.shape[1], hidden, classes, generator)
    optimizer = torch.optim.Adam([w0, w1], lr=LEARNING_RATE, weight_decay=weight_decay)
    entries = adjacency.tocoo()
    places, values = np.stack([entries.row, entries.col]), torch.as_tensor(entries.data, dtype=torch.float32)
    a_hat = torch.sparse_coo_tensor(places, values, adjacency.shape, check_invariants=True).coalesce()
    network = lambda inputs: torch.relu(torch.relu(inputs @ w0) @ w1)
    l2 = lambda: reg / 2 * w0.square().sum()
    b = torch.as_tensor(features, dtype=torch.float32)
    nodes = [torch.as_tensor(rows, dtype=torch.int64) for rows in (train, stopping)]
    labels = torch.as_tensor(y, dtype=torch.int64)
    weights = torch.full((len(train),), 1 / len(train))
    total = torch.zeros(len(y), classes)
    losses, accuracies, kept, seconds = np.zeros((layers, epochs)), np.zeros((layers, epochs)), [], 0.0

    def step(rows: _Rows) -> float:
        order = torch.randperm(len(rows.y), generator=generator)  # the nodes are shuffled, the weights are not
        optimizer.zero_grad()
        logits = network(rows.inputs)[rows.take[order]]
        loss = (weights * functional.cross_entropy(logits, rows.y[order], reduction="none")).sum() + l2()
        loss.backward()
        optimizer.step()
        return loss.item()

    @torch.no_grad()
    def evaluate(rows: _Rows) -> tuple[float, float]:
        logits = network(rows.inputs)[rows.take]
        loss = functional.cross_entropy(logits, rows.y, reduction="sum") + l2()
        return (logits.argmax(1) == rows.y).float().mean().item(), -loss.item()

    with threads_of(torch, threads):
        for layer in range(layers):
            fit, stop = (
                _Rows(b[rows], torch.arange(len(rows)), labels[rows]) if slice_rows else _Rows(b, rows, labels[rows])
                for rows in nodes
            )
            best: tuple[tuple[float, float], Any] | None = None
            began = time.perf_counter()
            for epoch in range(epochs):
                losses[layer, epoch] = step(fit)
                score = evaluate(stop)
                accuracies[layer, epoch] = score[0]
                if restore and (best is None or score > best[0]):
                    best = score, (w0.detach().clone(), w1.detach().clone())
            seconds += time.perf_counter() - began
            with torch.no_grad():
                if best is not None:
                    for parameter, value in zip((w0, w1), best[1], strict=True):
                        parameter.copy_(value)
                log_p = functional.log_softmax(network(b), dim=1)
                total += (classes - 1) * (log_p - log_p.mean(1, keepdim=True))
                nll = -log_p[nodes[0], labels[nodes[0]]]
                weights = weights * torch.exp(-(classes - 2) / (classes - 1) * nll)
                weights = weights / weights.sum()
                kept.append(weights.numpy())
                if layer + 1 < layers:
                    b = torch.sparse.mm(a_hat, b)
    return {
        "logits": total.numpy(),
        "seconds_per_epoch": seconds / (layers * epochs),
        "seconds": time.perf_counter() - begin,
        "losses": losses,
        "stopping_accuracy": accuracies,
        "weights": np.stack(kept),
    }


def initial_parameters(features: int, hidden: int, classes: int, generator: Any) -> tuple[Any, Any]:
    """W0 [features, hidden] and W1 [hidden, classes], uniform in +-1/sqrt(rows) as torch's linear layers begin."""
    torch = torch_or_error()
    draw = lambda rows, columns: (2 * torch.rand(rows, columns, generator=generator) - 1) / rows**0.5
    return draw(features, hidden).requires_grad_(), draw(hidden, classes).requires_grad_()
