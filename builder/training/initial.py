"""Initial rows, made on the CPU from raw bits: the same on every machine."""

from __future__ import annotations

import math

import numpy as np

from builder import philox
from builder.plan import Model
from nws_dataset.format.layout import TensorSpec, layout_of
from nws_dataset.format.recipe import Recipe

CONSTANT = 0.1  # value of every weight under "constant"
NORM_WEIGHT_STD = 0.002  # batch-norm's weight starts at normal(1, 0.002), as in the original


def initial_row(model: Model) -> np.ndarray:
    """A model's row before its first step: [P], float32.

    Weights follow the recipe's initialization; biases and running means are 0, running variances 1,
    batch-norm's weights normal(1, 0.002). "glorot_normal" and "he_normal" are plain normal distributions with
    Glorot's and He's standard deviation; "truncated_normal" is cut at two standard deviations.
    """
    layout, key = layout_of(model.recipe.architecture), philox.key_of(model.seed, model.subset)
    row = np.zeros(layout.num_weights, np.float64)
    for block, spec in enumerate(layout.tensors):
        words = philox.draw(
            key, philox.Purpose.INITIAL, index=np.arange(spec.size), model=model.number, block=block
        )
        u = philox.unit_interval(words[0], words[1])
        if spec.role == "weight":
            row[spec.offset : spec.stop] = initial_weight(model.recipe, spec, u)
        elif spec.role == "norm_weight":
            row[spec.offset : spec.stop] = 1 + NORM_WEIGHT_STD * philox.normal(u)
        elif spec.role == "norm_variance":
            row[spec.offset : spec.stop] = 1
    return row.astype(np.float32)


def initial_weight(recipe: Recipe, spec: TensorSpec, u: np.ndarray) -> np.ndarray:
    """One weight tensor's initial numbers, [size] float64, from as many uniform ones."""
    fan_in, fan_out = spec.fans
    match recipe.initialization:
        case "constant":
            return np.full(spec.size, CONSTANT)
        case "normal":
            return philox.normal(u)
        case "glorot_uniform":
            return (2 * u - 1) * math.sqrt(6 / (fan_in + fan_out))
        case "glorot_normal":
            return philox.normal(u) * math.sqrt(2 / (fan_in + fan_out))
        case "he_normal":
            return philox.normal(u) * math.sqrt(2 / fan_in)
        case "orthogonal":
            return orthogonal(philox.normal(u).reshape(spec.shape[0], -1)).ravel()
        case "random_normal":
            return philox.normal(u) * recipe.init_std
        case "truncated_normal":
            return philox.truncated_normal(u) * recipe.init_std
    raise ValueError(f"no initialization {recipe.initialization!r}")


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
