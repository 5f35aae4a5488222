"""Rows of weights as tensors, graphs, tokens, statistics and slices."""
