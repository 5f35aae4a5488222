"""The experiments and their commands, an evaluation of users' methods, and all methods on one page."""
