"""Networks that see: a small ConvNet, the CIFAR ResNets, EfficientNet-Lite0, a vision transformer."""
