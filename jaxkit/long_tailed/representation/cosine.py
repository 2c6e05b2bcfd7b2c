"""The cosine classifier: softmax on scaled cosines between a row's features and one vector for each class.

Joint training lets |w_c| grow with the size of a class; a cosine does not see it. The classifier stands on the features
of any network of ``jaxkit.networks`` and takes its ``head/kernel`` [features, C] for the vectors, whatever its head is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from jaxkit import check
from jaxkit.learner import Gradient, Learner, Network, Outputs, Params, plain
from jaxkit.long_tailed import decoupled
from jaxkit.long_tailed.counts import Counts, Scalar, check_counts
from jaxkit.long_tailed.loss_methods import learner_of
from jaxkit.long_tailed.losses import softmax
from jaxkit.losses.vectors import normalize

Features = Float[Array | np.ndarray, "*batch features"]
Kernel = Float[Array | np.ndarray, "features classes"]


def with_read_out(network: Network, num_classes: int, read_out: Callable[[Features, Kernel], Array]) -> Network:
    """The network with ``read_out(features, head/kernel)`` for ``logits``.

    A bias or a scale that its own head has is neither used nor trained.

    Raises:
      UsageError: from ``init`` when the network has no head, or one of another number of classes.
    """

    def apply(params: Params, variables: Any, x: Any, **options: Any) -> tuple[Outputs, Any]:
        outputs, variables = network.apply(params, variables, x, **options)
        return {**outputs, "logits": read_out(outputs["features"], params["head"]["kernel"])}, variables

    return Network(decoupled.checked(network, num_classes).init, apply)


def cosine_logits(features: Features, kernel: Kernel, *, scale: Scalar = 16.0) -> Float[Array, "*batch classes"]:
    """z_c = s cos(f, w_c), w_c the columns of ``kernel``; a vector that is 0 has cosine 0.

    Raises:
      UsageError: a scale that is not positive.
    """
    check.positive("scale", scale)
    return scale * (normalize(jnp.asarray(features)) @ normalize(jnp.asarray(kernel), axis=0))


def cosine_classifier(
    network: Network,
    optimizer: optax.GradientTransformation,
    *,
    class_counts: Counts,
    scale: Scalar = 16.0,
    gradient: Gradient = plain,
) -> Learner:
    """The cross-entropy of ``cosine_logits`` of the network's features.

    Where the scale shall be learnt, or another loss shall stand on cosines, take the head instead:
    ``mlp(C, head=heads.cosine(scale=16.0))`` with any method.

    Args:
      network: with ``backbone`` and ``head``.
      optimizer: an optax transformation.
      class_counts: as many as there are classes; their values do not count.
      scale: s; 16 as in the released code of OLTR and De-confound. May be traced.
      gradient: how the gradient is taken.

    Raises:
      UsageError: a scale that is not positive; a network without a head, or of another number of classes.

    Source: Gidaris and Komodakis 2018, Dynamic few-shot visual learning without forgetting, eq. 2, with s fixed.
    """
    check.positive("scale", scale)
    counts = check_counts(class_counts, empty=True)
    read_out = lambda features, kernel: cosine_logits(features, kernel, scale=scale)
    row_loss = lambda logits, labels, key: softmax(logits, labels)
    wrapped = with_read_out(network, counts.size, read_out)
    return learner_of(wrapped, optimizer, counts, row_loss, gradient=gradient)
