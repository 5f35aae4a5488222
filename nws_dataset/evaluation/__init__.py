"""Experiments on any zoo: what its weights tell of their training, and how accurate its networks are."""
