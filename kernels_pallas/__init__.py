"""Pallas GPU kernels with their references, search spaces and tuning tables; needs jax and nothing of jaxkit."""
