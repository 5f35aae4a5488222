"""Initial rows, made on the CPU from raw bits: the same on every machine."""

from __future__ import annotations

import math

import numpy as np

from builder import philox
from builder.plan import Model
from nws_dataset.networks.base import Draw
from nws_dataset.networks.layout import TensorSpec, layout_of


def initial_row(model: Model) -> np.ndarray:
    """A model's row before its first step: [P], float32, as its architecture draws each tensor."""
    recipe, key = model.recipe, philox.key_of(model.seed, model.subset)
    layout = layout_of(recipe.architecture)
    row = np.zeros(layout.num_weights, np.float64)
    for block, spec in enumerate(layout.tensors):
        words = philox.draw(
            key, philox.Purpose.INITIAL, index=np.arange(spec.size), model=model.number, block=block
        )
        draw = recipe.architecture.initial(recipe.initialization, spec, recipe.init_std)
        row[spec.offset : spec.stop] = drawn(draw, spec, philox.unit_interval(words[0], words[1]))
    return row.astype(np.float32)


def drawn(draw: Draw, spec: TensorSpec, u: np.ndarray) -> np.ndarray:
    """A tensor's initial numbers, [size] float64, from as many uniform ones."""
    match draw.distribution:
        case "constant":
            numbers = np.ones(spec.size)
        case "uniform":
            numbers = 2 * u - 1
        case "normal":
            numbers = philox.normal(u)
        case "truncated_normal":
            numbers = philox.truncated_normal(u)
        case "orthogonal":
            numbers = orthogonal(philox.normal(u).reshape(spec.shape[0], -1)).ravel()
        case other:
            raise ValueError(f"no distribution {other!r}")
    return draw.mean + numbers * draw.scale


def orthogonal(matrix: np.ndarray) -> np.ndarray:
    """Orthonormalize a matrix [out, in] along its shorter axis (Gram-Schmidt).

    Sums are exactly rounded (math.fsum), as the order of summation in linear algebra libraries differs
    between machines.
    """
    wide = matrix.shape[0] <= matrix.shape[1]
    vectors = (matrix if wide else matrix.T).copy()
    for i, vector in enumerate(vectors):
        for _ in range(2):  # the second pass removes what rounding left
            for other in vectors[:i]:
                vector -= math.fsum(vector * other) * other
        vector /= math.sqrt(math.fsum(vector * vector))
    return vectors if wide else vectors.T
