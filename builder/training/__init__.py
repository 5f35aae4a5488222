"""Training models, many at once."""
