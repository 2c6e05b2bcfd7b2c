"""The residual networks for CIFAR of He et al. 2016, section 4.2, with shortcuts of option A (no parameters)."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxkit import check
from jaxkit.learner import Network
from jaxkit.networks.adapter import Classifier, compute_dtype, from_flax
from jaxkit.networks.heads import Head, make_head
from jaxkit.networks.layers import CONVOLUTIONS, Conv, batch_norm, images
from jaxkit.networks.weights import fill, read
from jaxkit.networks.weights.convert import torch_leaf


class Block(nn.Module):
    """relu(shortcut(x) + bn(conv(relu(bn(conv(x)))))); the shortcut takes every second pixel and pads the channels
    with zeros.
    """

    features: int
    stride: int
    method: str
    dtype: Any

    @nn.compact
    def __call__(self, x, train: bool, valid=None):
        conv = lambda stride, name: Conv(self.features, 3, stride, 1, method=self.method, dtype=self.dtype, name=name)
        y = nn.relu(batch_norm(conv(self.stride, "conv1")(x), train, valid, name="bn1", dtype=self.dtype))
        y = batch_norm(conv(1, "conv2")(y), train, valid, name="bn2", dtype=self.dtype)
        if self.features != x.shape[-1]:
            more = self.features - x.shape[-1]
            x = jnp.pad(x[:, :: self.stride, :: self.stride], ((0, 0),) * 3 + ((more // 2, more - more // 2),))
        return nn.relu(x + y)


class ResNetBackbone(nn.Module):
    """conv 3x3 (16), then three stages of ``blocks`` blocks with 16, 32 and 64 channels, then the mean over pixels."""

    blocks: int
    method: str
    dtype: Any

    @nn.compact
    def __call__(self, x, train: bool, valid=None, start: int = 0, stop: int | None = None):
        x = images(x, self.dtype)
        if start == 0:
            x = Conv(16, 3, 1, 1, method=self.method, dtype=self.dtype, name="conv1")(x)
            x = nn.relu(batch_norm(x, train, valid, name="bn1", dtype=self.dtype))
        for stage, features in list(enumerate((16, 32, 64), start=1))[start:stop]:
            for i in range(self.blocks):
                stride = 2 if stage > 1 and i == 0 else 1
                x = Block(features, stride, self.method, self.dtype, name=f"layer{stage}_{i}")(x, train, valid)
        return x if stop is not None and stop < 3 else x.mean((1, 2), dtype=jnp.float32)


def _resnet(depth: int, num_classes: int, head: str | Head, method: str, precision: str) -> Network:
    method = check.choose("method", method, CONVOLUTIONS)
    backbone = ResNetBackbone((depth - 2) // 6, method, compute_dtype(precision))
    return from_flax(Classifier(backbone, make_head(head, num_classes)), stages=3)


def resnet20(
    num_classes: int, head: str | Head = "linear", *, method: str = "auto", precision: str = "float32"
) -> Network:
    """ResNet-20 for [batch, 32, 32, 3]: 269,722 parameters for 10 classes (published error on CIFAR-10: 8.75 %).

    Args:
      num_classes: the number of outputs.
      head: ``linear``, ``cosine``, or a function of the number of classes.
      method: of the convolution (``layers.convolve``): ``auto``, ``slices`` or ``lax``.
      precision: ``float32`` or ``bfloat16`` (of the computation; parameters stay float32).

    Raises:
      UsageError: a name out of range; x not of four axes.
    """
    return _resnet(20, num_classes, head, method, precision)


def resnet32(
    num_classes: int, head: str | Head = "linear", *, method: str = "auto", precision: str = "float32"
) -> Network:
    """ResNet-32 for [batch, 32, 32, 3]: 464,154 parameters for 10 classes (published error on CIFAR-10: 7.51 %).

    Arguments and errors as of ``resnet20``.
    """
    return _resnet(32, num_classes, head, method, precision)


MEAN, STD = np.array([0.485, 0.456, 0.406], np.float32), np.array([0.229, 0.224, 0.225], np.float32)
"""What the weights of ``cifar_weights`` expect of their input: (x / 255 - MEAN) / STD."""


def cifar_weights(network: Network, path: str | Path) -> tuple[Any, Any]:
    """(params, variables) from a file with the names of PyTorch (``layer1.0.conv1.weight``; ``linear.weight`` is the
    head).

    This is the layout of github.com/akamaster/pytorch_resnet_cifar10; names may begin with ``module.`` or
    ``state_dict.module.``.

    Args:
      network: ``resnet20(10)`` or ``resnet32(10)``.
      path: of an .npz, .th, .pth or .safetensors file.

    Raises:
      UsageError: the file is missing or damaged, or does not fit the network.
    """
    template = jax.eval_shape(network.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32))
    return fill(template, _short(read(path)), _place)


def _short(arrays: Iterable[tuple[str, np.ndarray]]) -> Iterable[tuple[str, np.ndarray]]:
    return ((name.removeprefix("state_dict.").removeprefix("module."), array) for name, array in arrays)


def _place(name: str, array: np.ndarray) -> tuple[str, np.ndarray] | None:
    *module, leaf = name.split(".")
    if module == ["linear"]:
        return torch_leaf("head", leaf, array, norm=False)
    if module[0].startswith("layer"):
        module = ["_".join(module[:2]), *module[2:]]
    return torch_leaf("/".join(["backbone", *module]), leaf, array, norm=module[-1].startswith("bn"))
