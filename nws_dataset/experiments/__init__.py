"""The experiments and their commands; a method of one's own; all methods on one page."""
