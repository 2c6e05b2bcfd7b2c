"""The networks by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

from jaxkit import check
from jaxkit.learner import Network
from jaxkit.networks.graph import appnp, gat, gcn, gcnii, jknet, mixhop, ppnp
from jaxkit.networks.mlp import mlp
from jaxkit.networks.vision.convnet import convnet
from jaxkit.networks.vision.efficientnet import efficientnet_lite0
from jaxkit.networks.vision.resnet import resnet20, resnet32
from jaxkit.networks.vision.vit import vit


class Record(NamedTuple):
    """What is known of a network.

    Attributes:
      make: ``(num_classes, **options) -> Network``.
      title: what it is, with its source.
      input: the shape of x; ``Nodes(rows, graph)`` for a graph network.
      categories: for lists and tables.
    """

    make: Callable[..., Network]
    title: str
    input: str
    categories: tuple[str, ...] = ()


_IMAGES = "[batch, height, width, channels]"
_NODES = "Nodes(rows, graph)"

NETWORKS: dict[str, Record] = {
    "mlp": Record(mlp, "Multilayer perceptron", "[batch, ...], flattened", ("dense", "small")),
    "convnet": Record(convnet, "Two strided convolutions and a dense layer", _IMAGES, ("vision", "small")),
    "resnet20": Record(resnet20, "ResNet-20 for CIFAR (He et al. 2016)", "[batch, 32, 32, 3]", ("vision", "residual")),
    "resnet32": Record(resnet32, "ResNet-32 for CIFAR (He et al. 2016)", "[batch, 32, 32, 3]", ("vision", "residual")),
    "efficientnet_lite0": Record(
        efficientnet_lite0,
        "EfficientNet-Lite0 (Tan and Le 2019; Liu 2020)",
        "[batch, 224, 224, 3]",
        ("vision", "inverted residual", "pretrained"),
    ),
    "vit": Record(vit, "Vision transformer (Dosovitskiy et al. 2021)", _IMAGES, ("vision", "attention", "small")),
    "gcn": Record(gcn, "Graph convolutional network (Kipf and Welling 2017)", _NODES, ("graph", "convolution")),
    "gat": Record(gat, "Graph attention network (Velickovic et al. 2018)", _NODES, ("graph", "attention")),
    "appnp": Record(appnp, "APPNP (Gasteiger et al. 2019)", _NODES, ("graph", "propagation")),
    "ppnp": Record(ppnp, "PPNP (Gasteiger et al. 2019)", _NODES, ("graph", "propagation")),
    "jknet": Record(jknet, "Jumping knowledge network (Xu et al. 2018)", _NODES, ("graph", "deep")),
    "gcnii": Record(gcnii, "GCNII (Chen et al. 2020)", _NODES, ("graph", "deep", "residual")),
    "mixhop": Record(mixhop, "MixHop (Abu-El-Haija et al. 2019)", _NODES, ("graph", "convolution")),
}


def make(name: str, num_classes: int, **options: Any) -> Network:
    """The network ``name`` (any case, - or _) for ``num_classes`` outputs.

    Raises:
      UsageError: an unknown name or option (the nearest ones are offered), or a value out of range.
    """
    record = NETWORKS[check.choose("network", name, NETWORKS)]
    known = [option for option in inspect.signature(record.make).parameters if option != "num_classes"]
    return record.make(
        num_classes, **{check.choose("network option", option, known): value for option, value in options.items()}
    )
