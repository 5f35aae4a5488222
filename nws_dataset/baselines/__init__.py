"""The baselines: estimators that learn from rows, slices and statistics."""
