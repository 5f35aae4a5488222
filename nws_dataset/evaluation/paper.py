"""What Unterthiner et al. 2020 (arXiv 2002.11448) found, to stand beside what is found here.

R2 of test accuracy predicted from networks of the Small CNN Zoo; the file best_configs.json of
google-research/dnn_predict_accuracy.
"""

from __future__ import annotations

SUBSET = "small_cnn"  # whose recipe these networks have
NUM_TRAIN = 15_000  # networks of each data set that the paper's predictors learned from
DATASETS = ("mnist", "fashion_mnist", "cifar10", "svhn")
METHODS = ("linear", "boosting", "dense net")
CAUTION = (
    f"The paper's R2 is of {NUM_TRAIN:,} networks of each data set, which all start from the same random "
    "seed: weights of two networks can"
    " be compared one by one. Here every network has a seed of its own, and all weights say less, above "
    "all to the linear predictor."
)
FIRST_LAST = "first + last"
LAST = "layer output"
# Input -> data set by data set, one R2 a method.
R2: dict[str, tuple[tuple[float, float, float], ...]] = {
    "weights": ((0.847, 0.988, 0.980), (0.733, 0.989, 0.980), (0.662, 0.970, 0.954), (0.786, 0.971, 0.931)),
    "layers": ((0.920, 0.993, 0.993), (0.804, 0.993, 0.992), (0.727, 0.984, 0.980), (0.852, 0.986, 0.985)),
    FIRST_LAST: ((0.902, 0.989, 0.988), (0.775, 0.989, 0.988), (0.633, 0.971, 0.968), (0.779, 0.971, 0.971)),
    LAST: ((0.842, 0.973, 0.973), (0.713, 0.976, 0.975), (0.605, 0.941, 0.933), (0.755, 0.946, 0.946)),
    "whole": ((0.780, 0.953, 0.948), (0.516, 0.955, 0.938), (0.186, 0.914, 0.897), (0.384, 0.908, 0.904)),
    "hyperparameters": (
        (0.692, 0.918, 0.898),
        (0.614, 0.924, 0.888),
        (0.685, 0.934, 0.903),
        (0.636, 0.935, 0.879),
    ),
}


def r2(subset: str, dataset: str, input_name: str, method: str) -> float | None:
    """The paper's R2, where it has one.

    Example:
        >>> r2("small_cnn", "mnist", "layers", "boosting"), r2("main", "mnist", "layers", "boosting")
        (0.993, None)
    """
    if subset != SUBSET or dataset not in DATASETS or input_name not in R2 or method not in METHODS:
        return None
    return R2[input_name][DATASETS.index(dataset)][METHODS.index(method)]
