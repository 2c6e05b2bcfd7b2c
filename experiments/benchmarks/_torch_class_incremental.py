"""The peer of the class-incremental benchmark: iCaRL written the usual way in PyTorch, and what is written beside it.

``Icarl`` holds a convolutional network, its frozen copy from before the task, and the pool of the task's rows and the
exemplars; ``epoch`` goes once over the pool: rows indexed out of a tensor in a new random order, cross-entropy over the
classes seen plus distillation over the old ones, ``torch.optim.SGD`` with momentum and weight decay. No DataLoader, no
worker, nothing read back or printed within the loop. ``torch.compile`` is not used: it needs a C++ compiler.

``herd`` is the loop of public toolboxes in NumPy: the rows that are left are copied by ``np.delete`` at each choice.
``project`` is GEM's quadratic program solved on the host by SciPy.

Needs NumPy, SciPy and, for ``Icarl``, torch; nothing else of this project.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from scipy.optimize import nnls

from experiments.benchmarks._torch import threads_of, torch_or_error

if TYPE_CHECKING:
    from jaxtyping import Float, Float32, Int


def herd(features: Float[np.ndarray, "rows features"], count: int) -> np.ndarray:
    """``count`` rows in the order of herding, [count]; the rows left are made anew at each choice."""
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    mean, left, numbers, taken, chosen = unit.mean(0), unit, np.arange(len(unit)), [], []
    for k in range(1, count + 1):
        total = np.sum(taken, axis=0) if taken else 0.0
        best = int(np.argmin(np.sqrt(np.sum((mean - (left + total) / k) ** 2, axis=1))))
        taken.append(left[best].copy())
        chosen.append(int(numbers[best]))
        left, numbers = np.delete(left, best, axis=0), np.delete(numbers, best)
    return np.asarray(chosen)


def project(
    grad: Float[np.ndarray, " params"], memory_grads: Float[np.ndarray, "tasks params"]
) -> Float32[np.ndarray, " params"]:
    """g + G^T v, v = argmin_{v >= 0} 1/2 |G^T v + g|^2, by non-negative least squares; g where it harms no task."""
    if not len(memory_grads) or (memory_grads @ grad >= 0).all():
        return np.asarray(grad, np.float32)
    gram = memory_grads @ memory_grads.T
    # |G^T v + g|^2 = |R v + R^-T G g|^2 + const with R^T R = G G^T: a program of as many numbers as there are tasks.
    root = np.linalg.cholesky(gram + 1e-6 * np.trace(gram) / len(gram) * np.eye(len(gram))).T
    v, _ = nnls(root, np.linalg.solve(root.T, -(memory_grads @ grad)))
    return np.asarray(grad + memory_grads.T @ v, np.float32)


class Settings(NamedTuple):
    """What both sides train.

    Attributes:
      classes: outputs of the network.
      old, seen: classes known before the task and with it.
      width: channels of the first convolution.
      temperature: of the distillation.
      learning_rate, momentum, weight_decay: of SGD.
      batch_size: rows of a step.
    """

    classes: int = 10
    old: int = 2
    seen: int = 4
    width: int = 16
    temperature: float = 2.0
    learning_rate: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 5e-4
    batch_size: int = 64


def network(side: int, settings: Settings) -> Any:
    """Two strided 3x3 convolutions, a dense layer of four times the width, and a head; pictures of one channel."""
    torch = torch_or_error()
    nn, width = torch.nn, settings.width
    left = (side + 3) // 4  # two strides of 2, rounded up
    features = nn.Sequential(
        nn.Conv2d(1, width, 3, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, stride=2, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(2 * width * left * left, 4 * width), nn.ReLU(),
    )  # fmt: skip
    return nn.Sequential(features, nn.Linear(4 * width, settings.classes))


class Icarl:
    """A task in progress: the network, the one before, an optimizer, the pool."""

    def __init__(
        self,
        x: Float32[np.ndarray, "rows side side one"],
        y: Int[np.ndarray, " rows"],
        settings: Settings,
        seed: int = 0,
    ) -> None:
        torch = torch_or_error()
        torch.manual_seed(seed)
        self.settings, self.x = settings, torch.as_tensor(np.moveaxis(x, -1, 1).copy())
        self.y = torch.as_tensor(y, dtype=torch.int64)
        self.model, self.before = network(x.shape[1], settings), network(x.shape[1], settings)
        self.before.load_state_dict(self.model.state_dict())
        self.generator = torch.Generator().manual_seed(seed)
        self.optimizer = torch.optim.SGD(
            self.model.parameters(), settings.learning_rate, settings.momentum, weight_decay=settings.weight_decay
        )

    def loss(self, chosen: Any) -> Any:
        """CE(z_seen) + KD(z_old, z_old before; T) of some rows of the pool, without a factor T^2."""
        torch = torch_or_error()
        s, rows = self.settings, self.x[chosen]
        logits = self.model(rows)[:, : s.seen]
        with torch.no_grad():
            target = torch.softmax(self.before(rows)[:, : s.old] / s.temperature, dim=1)
        kept = -(target * torch.log_softmax(logits[:, : s.old] / s.temperature, dim=1)).sum(1).mean()
        return torch.nn.functional.cross_entropy(logits, self.y[chosen]) + kept

    def epoch(self, threads: int) -> None:
        """Once over the pool, without the rows that do not fill a batch."""
        torch = torch_or_error()
        with threads_of(torch, threads):
            order, size = torch.randperm(len(self.y), generator=self.generator), self.settings.batch_size
            for start in range(0, len(order) - size + 1, size):
                loss = self.loss(order[start : start + size])
                self.optimizer.zero_grad()
                loss.backward()
                self.optimizer.step()
