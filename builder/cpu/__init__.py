"""The CPU's step: one model a core, sixteen images in the lanes of a vector, the whole step in the core's cache; compiled by Numba."""
