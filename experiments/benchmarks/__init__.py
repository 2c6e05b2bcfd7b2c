"""Benchmarks: ratios measured side by side in one run on the same work, medians over repeats."""
