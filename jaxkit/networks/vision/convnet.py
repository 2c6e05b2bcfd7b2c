"""A small convolutional network for images of up to 28x28."""

from __future__ import annotations

from typing import Any

from flax import linen as nn

from jaxkit import check
from jaxkit.learner import Network
from jaxkit.networks.adapter import Classifier, compute_dtype, from_flax
from jaxkit.networks.heads import Head, make_head
from jaxkit.networks.layers import CONVOLUTIONS, NORMS, Conv, images, normalization


class ConvNetBackbone(nn.Module):
    """conv 3x3/2 (width), conv 3x3/2 (2 width), dense (4 width), each with normalisation if any and ReLU. Batch
    normalisation takes a bias away again, so there is none before it."""

    width: int
    norm: str
    method: str
    dtype: Any

    @nn.compact
    def __call__(self, x, train: bool, valid=None, start: int = 0, stop: int | None = None):
        x, bias = images(x, self.dtype), self.norm != "batch"
        for i, width in list(enumerate((self.width, 2 * self.width)))[start:stop]:
            x = Conv(width, stride=2, bias=bias, method=self.method, dtype=self.dtype, name=f"conv_{i}")(x)
            x = nn.relu(normalization(self.norm, self.dtype, f"norm_{i}", x, train, valid))
        if stop is not None and stop <= 2:
            return x
        x = nn.Dense(4 * self.width, bias, dtype=self.dtype, name="dense")(x.reshape(x.shape[0], -1))
        return nn.relu(normalization(self.norm, self.dtype, "norm_2", x, train, valid))


def convnet(
    num_classes: int,
    width: int = 32,
    head: str | Head = "linear",
    *,
    norm: str = "none",
    method: str = "auto",
    precision: str = "float32",
) -> Network:
    """Two strided 3x3 convolutions and a dense layer of 4 ``width`` features; x is [batch, height, width, channels].

    Strides stand for pooling because a step then takes a fraction of the time on CPU cores.

    Args:
      num_classes: the number of outputs.
      width: channels of the first convolution.
      head: ``linear``, ``cosine``, or a function of the number of classes.
      norm: ``none``, ``batch`` or ``layer`` (over channels), before each ReLU.
      method: of the convolution (``layers.convolve``): ``auto``, ``slices`` or ``lax``.
      precision: ``float32`` or ``bfloat16`` (of the computation; parameters stay float32).

    Raises:
      UsageError: a name or width out of range; x not of four axes.
    """
    width = check.count("width", width)
    norm, method = check.choose("norm", norm, NORMS), check.choose("method", method, CONVOLUTIONS)
    backbone = ConvNetBackbone(width, norm, method, compute_dtype(precision))
    return from_flax(Classifier(backbone, make_head(head, num_classes)), stages=3)
