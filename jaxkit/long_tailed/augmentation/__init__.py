"""Information augmentation on long-tailed data."""

from jaxkit.learner import Method

METHODS: dict[str, Method] = {}

__all__ = ["METHODS"]
