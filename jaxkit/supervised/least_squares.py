"""Least squares: the mean squared error of a network's outputs."""

from __future__ import annotations

import jax
import optax

from jaxkit import check
from jaxkit.learner import Batch, Gradient, Learner, Network, Outputs, State, from_example_loss, plain


def regression_mean(outputs: Outputs) -> jax.Array:
    """The network's ``mean``, or else its ``logits``: ``[batch, targets]``, ``[batch]`` for one target."""
    mean = outputs["mean"] if "mean" in outputs else outputs["logits"]
    return mean[..., 0] if mean.ndim == 2 and mean.shape[-1] == 1 else mean


def squared_error(outputs: Outputs, batch: Batch) -> jax.Array:
    """sum_j (f_j(x) - y_j)^2 for each row ``[batch]``; ``y`` is ``[batch]`` or ``[batch, targets]``."""
    if "y" not in batch:
        raise check.UsageError(f"least_squares needs targets 'y', got a batch of {', '.join(sorted(batch))}")
    prediction, target = regression_mean(outputs), batch["y"]
    target = target[..., 0] if target.ndim == 2 and target.shape[-1] == 1 else target
    if prediction.shape != target.shape:
        raise check.UsageError(
            f"least_squares: the network predicts {list(prediction.shape[1:])} for each row, y has "
            f"{list(target.shape[1:])}; make them equal"
        )
    error = (prediction - target) ** 2
    return error if error.ndim == 1 else error.sum(-1)


def least_squares(network: Network, optimizer: optax.GradientTransformation, *, gradient: Gradient = plain) -> Learner:
    """min_theta 1/n sum_i ||f(x_i; theta) - y_i||^2.

    Args:
      network: with as many outputs as ``y`` has targets; its ``mean``, or else its ``logits``, is the prediction.
      optimizer: an optax transformation.
      gradient: how the gradient is taken.

    Returns:
      a Learner whose outputs hold ``mean``, ``[batch]`` for one target and ``[batch, targets]`` for several.

    Raises:
      UsageError: the network's outputs and the targets differ in number.
    """
    learner = from_example_loss(network, squared_error, optimizer, gradient=gradient)

    def predict(state: State, batch: Batch) -> Outputs:
        outputs = learner.predict(state, batch)
        return {**outputs, "mean": regression_mean(outputs)}

    return learner._replace(predict=predict)
