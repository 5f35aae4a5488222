"""The results of Unterthiner et al. 2020 (arXiv 2002.11448), and where ours differ.

R2 of predicted test accuracy on the Small CNN Zoo, from best_configs.json of
google-research/dnn_predict_accuracy.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from nws_dataset.console import Table
from nws_dataset.evaluation.inputs import FIRST_LAST, words_of
from nws_dataset.evaluation.scores import ALL, SIZED, Score, groups, select

SUBSET = "small_cnn"  # the subset with the recipe of these networks
NUM_TRAIN = 15_000  # training networks of each data set
DATASETS = ("mnist", "fashion_mnist", "cifar10", "svhn")
METHODS = ("linear", "boosting", "dense net")
CAUTION = (
    f"The paper's predictors learned from {NUM_TRAIN:,} networks of each data set, which all start from the "
    "same random seed: weights of two networks can be compared one by one. Here every network has its own "
    "seed, so all weights are less informative, above all for the linear predictor."
)
LAST = "layer output"
DEPARTURE = 0.005  # of R2; smaller differences in the paper are ignored
MIN_FOR_TREND = 3  # sizes
# Input -> for each data set, an R2 for each method.
R2: dict[str, tuple[tuple[float, float, float], ...]] = {
    "weights": ((0.847, 0.988, 0.980), (0.733, 0.989, 0.980), (0.662, 0.970, 0.954), (0.786, 0.971, 0.931)),
    "layers": ((0.920, 0.993, 0.993), (0.804, 0.993, 0.992), (0.727, 0.984, 0.980), (0.852, 0.986, 0.985)),
    FIRST_LAST: ((0.902, 0.989, 0.988), (0.775, 0.989, 0.988), (0.633, 0.971, 0.968), (0.779, 0.971, 0.971)),
    LAST: ((0.842, 0.973, 0.973), (0.713, 0.976, 0.975), (0.605, 0.941, 0.933), (0.755, 0.946, 0.946)),
    "whole": ((0.780, 0.953, 0.948), (0.516, 0.955, 0.938), (0.186, 0.914, 0.897), (0.384, 0.908, 0.904)),
    "hyperparameters": (
        *((0.692, 0.918, 0.898), (0.614, 0.924, 0.888), (0.685, 0.934, 0.903), (0.636, 0.935, 0.879)),
    ),
}


def r2(subset: str, dataset: str, input_name: str, method: str) -> float | None:
    """The paper's R2; None if it has none."""
    if subset != SUBSET or dataset not in DATASETS or input_name not in R2 or method not in METHODS:
        return None
    return R2[input_name][DATASETS.index(dataset)][METHODS.index(method)]


def departures(scores: Sequence[Score]) -> list[Table]:
    """A table of the pairs of inputs or methods whose order differs from the paper's."""
    of_r2 = select(scores, metric="r2", nets=ALL)
    rows = []
    for (dataset,), part in groups(select(of_r2, experiment="accuracy"), "dataset").items():
        own = select(of_r2, dataset=dataset)
        papers = {(s.first.input, s.first.method): s.first.paper for s in part}
        known = {pair: value for pair, value in papers.items() if value is not None}
        for better, worse in itertools.permutations(known, 2):
            related = (better[0] == worse[0]) != (better[1] == worse[1])
            if not related or known[better] - known[worse] < DEPARTURE:
                continue
            (sizes, high), (_, low) = _curve(own, *better), _curve(own, *worse)
            gaps = (low - high).mean(axis=1)
            if gaps[-1] > 0:
                pair = (f"{words_of(name)}, {method}" for name, method in (better, worse))
                words = trend(sizes, gaps, float(np.std((low - high)[-1])))
                rows.append((dataset, *pair, f"{known[better] - known[worse]:.3f}", words))
    columns = ("data set", "ahead in the paper", "of", "in R2 by", "but here behind")
    return [Table("Another order than the paper's", columns, rows)] if rows else []


def _curve(scores: Sequence[Score], name: str, method: str) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of networks [S] and R2 [S, seeds] of a learning curve; its end is the main result."""
    own = select(scores, input=name, method=method)
    part = [score for score in own if score.first.experiment in (SIZED, "accuracy")]
    by_size = {score.first.num_train or 0: score.values() for score in part}
    sizes, seeds = sorted(by_size), min(map(len, by_size.values()))
    return np.array(sizes), np.array([by_size[size][:seeds] for size in sizes])


def trend(sizes: np.ndarray, gaps: np.ndarray, spread: float) -> str:
    """Whether a learning curve suggests that more networks would close an unexpected gap in R2.

    Args:
        sizes: [S] numbers of networks, ascending.
        gaps: [S] leads in R2 of the one that is behind in the paper; the last is positive.
        spread: standard deviation of the last gap over seeds.

    Example:
        >>> trend(np.array([200, 400, 800]), np.array([0.06, 0.04, 0.02]), 0.0)
        'by 0.020 with 800 networks (0.060 with 200); a line over the logarithm closes it at about 1,600: more
        networks would mend it.'
    """
    words = f"by {gaps[-1]:.3f} with {sizes[-1]:,} networks"
    if gaps[-1] <= 2 * spread:
        return f"{words}, within twice the spread over seeds ({spread:.3f}): no departure."
    if len(sizes) < MIN_FOR_TREND:
        return f"{words}; too few networks for a learning curve."
    words += f" ({gaps[-MIN_FOR_TREND]:.3f} with {sizes[-MIN_FOR_TREND]:,})"
    slope, start = np.polyfit(np.log2(sizes[-MIN_FOR_TREND:]), gaps[-MIN_FOR_TREND:], 1)
    if slope >= 0:
        return f"{words}; the gap does not close: more networks alone would not mend it."
    closed = 2 ** min(-start / slope, 40.0)
    if closed > NUM_TRAIN:
        return (
            f"{words}; the gap closes too slowly: it would take more than the paper's {NUM_TRAIN:,} networks."
        )
    at = f"{round(closed, -2):,.0f}"
    return f"{words}; a line over the logarithm closes it at about {at}: more networks would mend it."
