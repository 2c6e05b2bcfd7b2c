"""The peer of the long-tailed benchmark: the same trainings written the usual way in PyTorch.

``train`` trains the seeds one after another: a ``Sequential`` of linear layers, the rows of a batch indexed out of a
tensor in a new random order every epoch (no DataLoader, no worker), ``torch.optim.SGD`` with momentum, the logits of
the test rows at the end. With ``together`` all seeds are one model, by ``torch.func`` as PyTorch's guide to ensembles
has it: parameters stacked over seeds, the network mapped over them by ``vmap``, one backward pass and one optimizer
step for all. Each seed then computes what it computes alone.

Nothing is read back or printed within the loop, and no loss is kept. ``torch.compile`` is not used: it needs a C++
compiler on the machine.

Needs NumPy and torch, and nothing else of this project.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from experiments.benchmarks._torch import threads_of, torch_or_error

if TYPE_CHECKING:
    from jaxtyping import Float32, Int

CUT_DEVIATION = 0.87962566  # of a standard normal distribution cut at +-2


class Settings(NamedTuple):
    """What both sides train.

    Attributes:
      hidden: widths of the hidden layers.
      log_prior: [classes], added to the logits in training (balanced softmax); None adds nothing (softmax).
      classes: outputs of the network.
      learning_rate: of SGD.
      momentum: of SGD.
      batch_size: rows of a step; an epoch leaves out what does not fill a batch.
      steps: of each seed.
    """

    hidden: tuple[int, ...]
    log_prior: np.ndarray | None
    classes: int = 10
    learning_rate: float = 0.1
    momentum: float = 0.9
    batch_size: int = 64
    steps: int = 600


def train(
    x: Float32[np.ndarray, "seeds rows features"],
    y: Int[np.ndarray, "seeds rows"],
    test_x: Float32[np.ndarray, "tests features"],
    settings: Settings,
    *,
    first_seed: int,
    threads: int,
    fused: bool = False,
    together: bool = False,
) -> Float32[np.ndarray, "seeds tests classes"]:
    """Train one network for each seed and give its logits of the test rows.

    Args:
      x: the training rows of each seed.
      y: their classes.
      test_x: the same for all seeds.
      settings: see ``Settings``.
      first_seed: seed i draws its parameters, then its orders, from the generator ``first_seed + i``.
      threads: torch's threads within an operation.
      fused: SGD's fused form.
      together: all seeds as one model, else one after another.

    Raises:
      UsageError: torch is not installed.
    """
    torch = torch_or_error()
    rows, labels = torch.as_tensor(x), torch.as_tensor(y, dtype=torch.int64)
    tests = torch.as_tensor(test_x)
    generators = [torch.Generator().manual_seed(first_seed + number) for number in range(len(x))]
    with threads_of(torch, threads):
        models = [network(x.shape[-1], settings, generator) for generator in generators]
        if together:
            return _together(torch, models, generators, rows, labels, tests, settings, fused)
        return np.stack(
            [
                _alone(torch, model, generator, rows[number], labels[number], tests, settings, fused)
                for number, (model, generator) in enumerate(zip(models, generators, strict=True))
            ]
        )


def network(features: int, settings: Settings, generator: Any) -> Any:
    """A multilayer perceptron that begins as ours does: weights of variance 1 / inputs, a normal distribution cut at
    two of its deviations, and biases of 0."""
    torch = torch_or_error()
    layers, inputs = [], features
    for width in (*settings.hidden, settings.classes):
        layer = torch.nn.utils.skip_init(torch.nn.Linear, inputs, width)
        scale = inputs**-0.5 / CUT_DEVIATION
        torch.nn.init.trunc_normal_(layer.weight, 0.0, scale, -2 * scale, 2 * scale, generator=generator)
        torch.nn.init.zeros_(layer.bias)
        layers += [layer, torch.nn.ReLU()]
        inputs = width
    return torch.nn.Sequential(*layers[:-1])


def orders(generators: Sequence[Any], rows: int, settings: Settings) -> Iterator[Any]:
    """The rows of each step, [seeds, batch_size]: of each seed a random order that is new every epoch."""
    torch = torch_or_error()
    size, step = settings.batch_size, 0
    while step < settings.steps:
        shuffled = torch.stack([torch.randperm(rows, generator=generator) for generator in generators])
        for start in range(0, rows - size + 1, size):
            if step < settings.steps:
                yield shuffled[:, start : start + size]
            step += 1


def _alone(torch: Any, model: Any, generator: Any, x: Any, y: Any, tests: Any, settings: Settings, fused: bool):
    optimizer = torch.optim.SGD(model.parameters(), settings.learning_rate, settings.momentum, fused=fused)
    prior = None if settings.log_prior is None else torch.as_tensor(settings.log_prior)
    for (chosen,) in orders([generator], len(x), settings):
        logits = model(x[chosen])
        loss = torch.nn.functional.cross_entropy(logits if prior is None else logits + prior, y[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        return model(tests).numpy()


def _together(torch: Any, models: Any, generators: Any, x: Any, y: Any, tests: Any, settings: Settings, fused: bool):
    params, buffers = torch.func.stack_module_state(models)
    one = lambda params, buffers, x: torch.func.functional_call(models[0], (params, buffers), (x,))
    forward, predict = torch.func.vmap(one), torch.func.vmap(one, in_dims=(0, 0, None))
    optimizer = torch.optim.SGD(params.values(), settings.learning_rate, settings.momentum, fused=fused)
    prior = None if settings.log_prior is None else torch.as_tensor(settings.log_prior)
    seed = torch.arange(len(models))[:, None]
    for chosen in orders(generators, x.shape[1], settings):
        logits = forward(params, buffers, x[seed, chosen])
        logits = (logits if prior is None else logits + prior).flatten(0, 1)
        # The mean over all rows times the seeds: every seed's parameters get the gradient of its own mean.
        loss = len(models) * torch.nn.functional.cross_entropy(logits, y[seed, chosen].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        return predict(params, buffers, tests).numpy()
