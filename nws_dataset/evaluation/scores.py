"""Metrics of predictions, their 95 % intervals, and records of scores.

Axes: M held-out models.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.stats import kendalltau
from sklearn.metrics import roc_auc_score

from nws_dataset.errors import ZooError

Z_95 = 1.959963984540054  # two-sided 95 % quantile of the normal distribution
RESAMPLES = 300
MIN_FOR_BOOTSTRAP = 10  # models; resampling fewer means little
MAX_EXAMPLES = 24  # networks
MAX_DECIMALS = 6
MIN_SCORED = 3  # models needed to score predicted accuracies
ALL, CONVERGED = "all", "converged"
NETS = {ALL: "All networks", CONVERGED: "Converged networks"}
SIZED = "learning_curve"  # the experiment whose records also differ in num_train
Interval = tuple[float, float]
Seed = int | float | str  # result files of others may use any name
Examples = list[Any]  # [model ID, true, predicted] of each network


@dataclass(frozen=True)
class Record:
    """One score of one method, as in a result file; fields without a default are required."""

    experiment: str
    target: str  # what is predicted: a column of the index
    method: str
    input: str  # what the method reads from a network
    nets: str  # which held-out models are scored: ALL, or the CONVERGED among them
    metric: str
    value: float | None  # None: no score
    task: str | None = None  # the target in words
    seed: Seed | None = None
    dataset: str | None = None  # of the networks
    across: str | None = None  # column whose values differ between training and test
    trained_on: str | None = None
    tested_on: str | None = None
    num_train: int | None = None  # models
    num_test: int | None = None
    snapshot: int | None = None  # the one read; None: the final one
    epoch: int | None = None
    position: float | None = None  # of the slice read: 0 at the row's beginning, 1 at its end
    layer: str | None = None  # if only one is read
    interval_95: Interval | None = None
    chance: float | None = None  # the score of a constant guess
    from_architecture: float | None = None  # the score of a guess from the architecture alone
    ceiling: float | None = None  # the score of a perfect ranking without ties
    kept: float | None = None  # the share of edges that are kept, of all networks scored
    seconds: float | None = field(default=None, compare=False)  # of the processor, fitting and predicting
    paper: float | None = None  # the score in Unterthiner et al. 2020
    num_features: int | None = None
    setting: str | None = None  # of the method
    feature: str | None = None  # whose importance the value is
    # some held-out networks: classes told wrong, or the kept edges of a network, as in `hex_of_edges`
    examples: Examples | None = None
    pairs: Any = None  # true and predicted numbers of all held-out models

    def to_json(self) -> dict[str, Any]:
        """The fields that have a value."""
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass(frozen=True)
class Predictions:
    """A method's predictions for the held-out networks."""

    dataset: str
    input: str
    method: str
    seed: int
    model_id: list[str]
    true: list[float]
    predicted: list[float]


def wilson_interval(correct: int, total: int) -> Interval:
    """95 % interval of a proportion (Wilson 1927); count models, as snapshots of one are not independent."""
    if total == 0:
        return 0.0, 1.0
    p, z2 = correct / total, Z_95**2
    centre = (p + z2 / (2 * total)) / (1 + z2 / total)
    half = Z_95 / (1 + z2 / total) * math.sqrt(p * (1 - p) / total + z2 / (4 * total**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def bootstrap_interval(
    statistic: Callable[[np.ndarray, np.ndarray], float], truth: np.ndarray, predicted: np.ndarray, seed: int
) -> Interval | None:
    """95 % bootstrap interval of a statistic over the models; None if there are too few."""
    if len(truth) < MIN_FOR_BOOTSTRAP:
        return None
    random = np.random.default_rng(seed)
    draws = (random.integers(len(truth), size=len(truth)) for _ in range(RESAMPLES))
    values = np.array([statistic(truth[i], predicted[i]) for i in draws])
    values = values[np.isfinite(values)]
    return (float(np.quantile(values, 0.025)), float(np.quantile(values, 0.975))) if len(values) else None


def accuracy(truth: np.ndarray, predicted: np.ndarray) -> float:
    """The share of models whose class was predicted correctly."""
    return int((truth == predicted).sum()) / len(truth)


def mae(truth: np.ndarray, predicted: np.ndarray) -> float:
    """The mean absolute error."""
    return float(np.abs(truth - predicted).mean())


def r2(truth: np.ndarray, predicted: np.ndarray) -> float:
    """The explained fraction of the variance; NaN if the truth is constant."""
    total = np.sum((truth - truth.mean()) ** 2)
    return float(1 - np.sum((truth - predicted) ** 2) / total) if total > 0 else float("nan")


def kendall_tau(truth: np.ndarray, predicted: np.ndarray) -> float:
    """Kendall's tau-b; NaN if either is constant."""
    return float(kendalltau(truth, predicted).statistic)


def tau_ceiling(truth: np.ndarray) -> float:
    """Kendall's tau-b of a perfect ranking without ties, which is below 1 if true values are equal."""
    counts = np.unique(truth, return_counts=True)[1]
    pairs = len(truth) * (len(truth) - 1)
    return math.sqrt(1 - int((counts * (counts - 1)).sum()) / pairs)


def mse(truth: np.ndarray, predicted: np.ndarray) -> float:
    """The mean squared error."""
    return float(np.mean((truth - predicted) ** 2))


def true_rank_of_best(truth: np.ndarray, predicted: np.ndarray) -> float:
    """The true rank, from 1, of the model predicted best."""
    return float(1 + np.sum(truth > truth[np.argmax(predicted)]))


@dataclass(frozen=True)
class Metric:
    """How the values of a metric are shown."""

    words: str
    explanation: str
    scale: float = 1.0  # values are multiplied by this when shown
    decimals: int = 3
    lower_is_better: bool = False
    is_share: bool = True  # from 0 to 1, so that a bar can show it
    any_unit: bool = False  # small values get more decimals, up to MAX_DECIMALS

    def text(self, value: float) -> str:
        """Format a value; zero has no minus sign."""
        decimals, scaled = self.decimals, value * self.scale
        if self.any_unit and scaled:
            digits = self.decimals - 1 - math.floor(math.log10(abs(scaled)))  # as many significant ones
            decimals = min(max(decimals, digits), MAX_DECIMALS)
        shown = round(scaled, decimals) + 0.0
        return f"{shown:.{decimals}f}".replace("-", "\N{MINUS SIGN}")


METRICS = {
    "accuracy": Metric(
        "accuracy, %", "The share of held-out networks whose property was predicted correctly.", 100, 1
    ),
    "edge_accuracy": Metric(
        "edges right, %", "The share of the edges of held-out networks that were told right.", 100, 2
    ),
    "balanced_accuracy": Metric(
        "balanced, %",
        "The mean of the shares of kept and of pruned edges that were told right: 50 for any constant guess.",
        *(100, 2),
    ),
    "roc_auc": Metric(
        "AUC",
        "The probability that a kept edge gets a higher score than a pruned one: 0.5 is chance.",
        *(1, 4),
    ),
    "r2": Metric(
        "R²",
        "The part of the variance of the true values that is explained: 1 is perfect, 0 is no better than "
        "always predicting the mean, and negative is worse.",
    ),
    "kendall_tau": Metric(
        "τ",
        "Kendall's rank correlation of true and predicted values: 1 if all pairs of networks are in the "
        "right order, 0 for a random order.",
    ),
    "mse": Metric(
        "MSE \N{MULTIPLICATION SIGN} 10³",
        "The mean squared error of predicted accuracies (from 0 to 1), times 1,000.",
        *(1000, 2, True, False),
    ),
    "mae": Metric(
        "mean error", "The mean absolute error, in the number's own unit.", 1, 3, True, False, True
    ),
    "true_rank_of_best": Metric(
        "rank of best",
        "The true rank, from 1, of the held-out network with the highest predicted accuracy.",
        *(1, 1, True, False),
    ),
}
OF_ACCURACIES = {"r2": r2, "kendall_tau": kendall_tau, "mse": mse, "true_rank_of_best": true_rank_of_best}
WITH_INTERVAL = ("r2", "kendall_tau")


def metric_of(name: str) -> Metric:
    """How a metric is shown; an unknown one keeps its name."""
    return METRICS.get(name) or Metric(name, "A measure that this page does not explain.", is_share=False)


def property_scores(
    truth: np.ndarray,
    predicted: np.ndarray,
    guessed: np.ndarray,
    constant: np.ndarray,
    *,
    is_number: bool,
    seed: int,
) -> dict[str, Any]:
    """The score fields of a record on predicted classes or numbers [M].

    Chance is the share of the most frequent class, or the error of a constant guess.
    """
    if is_number:
        score, chance = mae, mae(truth, constant)
        interval = bootstrap_interval(mae, truth, predicted, seed)
    else:
        score, chance = accuracy, float(np.unique(truth, return_counts=True)[1].max() / len(truth))
        interval = wilson_interval(int((truth == predicted).sum()), len(truth))
    return {
        "metric": score.__name__,
        "value": score(truth, predicted),
        "interval_95": interval,
        "chance": chance,
        "from_architecture": score(truth, guessed),
    }


def records_of_accuracies(
    labels: Mapping[str, Any],
    truth: np.ndarray,
    predicted: np.ndarray,
    converged: np.ndarray,
    *,
    intervals: bool = False,
) -> list[Record]:
    """Score predicted accuracies by each metric, on all models and on the converged ones.

    Undefined scores (constant truth, or fewer than three models) are left out.

    Args:
        labels: fields that all records share; "seed" also seeds the intervals.
        truth: [M] test accuracies, from 0 to 1.
        predicted: [M] predicted accuracies.
        converged: [M] whether each model converged.
        intervals: add 95 % intervals of R2 and tau.
    """
    records = []
    for nets, part in ((ALL, np.ones(len(truth), bool)), (CONVERGED, converged)):
        for name, score in OF_ACCURACIES.items() if part.sum() >= MIN_SCORED else ():
            value = score(truth[part], predicted[part])
            if not np.isfinite(value):
                continue
            own: dict[str, Any] = {"nets": nets, "num_test": int(part.sum()), "metric": name, "value": value}
            if name == "kendall_tau":
                own["ceiling"] = tau_ceiling(truth[part])
            if intervals and name in WITH_INTERVAL:
                own["interval_95"] = bootstrap_interval(score, truth[part], predicted[part], labels["seed"])
            records.append(Record(**labels, **own))
    return records


def records_of_edges(
    labels: Mapping[str, Any], truth: np.ndarray, predicted: np.ndarray, *, intervals: bool = False
) -> list[Record]:
    """Score predictions of which edges are kept.

    Args:
        labels: fields that all records share; "seed" also seeds the interval.
        truth: [M, E] bool, whether each edge is kept.
        predicted: [M, E] the probability that it is.
        intervals: add a 95 % interval of the accuracy over networks.
    """
    right, kept = (predicted > 0.5) == truth, float(truth.mean())
    of_networks = right.mean(axis=1)
    values = {
        "edge_accuracy": (float(of_networks.mean()), max(kept, 1 - kept)),
        "balanced_accuracy": (float(right[truth].mean() + right[~truth].mean()) / 2, 0.5),
        "roc_auc": (float(roc_auc_score(truth.ravel(), predicted.ravel())), 0.5),
    }
    records = []
    for name, (value, chance) in values.items():
        own: dict[str, Any] = {"nets": ALL, "num_test": len(truth), "metric": name, "value": value}
        own |= {"chance": chance, "kept": kept}
        if intervals and name == "edge_accuracy":
            own["interval_95"] = bootstrap_interval(
                lambda values, _: float(values.mean()), of_networks, of_networks, labels["seed"]
            )
        records.append(Record(**labels, **own))
    return records


def hex_of_edges(kept: np.ndarray) -> str:
    """Which edges [E] are kept, as hexadecimal digits.

    Example:
        >>> hex_of_edges(np.array([True, False, False, False, True, True]))
        '8c'
    """
    return np.packbits(kept).tobytes().hex()


def edges_of_hex(digits: str, num_edges: int) -> np.ndarray:
    """[E] bool from `hex_of_edges`.

    Raises:
        ZooError: if they are not the digits of this many edges.

    Example:
        >>> edges_of_hex("8c", 6).tolist()
        [True, False, False, False, True, True]
    """
    try:
        packed = np.frombuffer(bytes.fromhex(digits), np.uint8)
    except ValueError:
        packed = np.empty(0, np.uint8)
    if len(packed) != -(-num_edges // 8):
        expected, do = f"digits of {num_edges} edges", "evaluate this zoo again"
        raise ZooError("results", expected=expected, found=f"{len(digits)} digits", do=do)
    return np.unpackbits(packed, count=num_edges).astype(bool)


# Means over seeds

# Records that agree in these differ only by their seed.
IDENTITY = (
    *("experiment", "target", "method", "input", "nets", "metric", "dataset", "across"),
    *("trained_on", "tested_on", "snapshot", "position", "layer", "feature"),
)


@dataclass(frozen=True)
class Score:
    """Records that differ only by their seed."""

    records: Mapping[Seed, Record]

    @property
    def first(self) -> Record:
        return next(iter(self.records.values()))

    @property
    def metric(self) -> Metric:
        return metric_of(self.first.metric)

    @property
    def nets(self) -> str:
        """The networks scored, in words."""
        return NETS.get(self.first.nets, self.first.nets)

    @property
    def words(self) -> str:
        """The target in words."""
        return (self.first.task or self.first.target).replace("_", " ")

    def values(self, field: str = "value") -> list[Any]:
        """A field of all records that have it."""
        values = [getattr(record, field) for record in self.records.values()]
        return [value for value in values if value is not None]

    def mean(self, field: str = "value") -> float | None:
        """The mean of a field over seeds; None if no record has it."""
        values = self.values(field)
        return sum(values) / len(values) if values else None

    @property
    def value(self) -> float:
        """The mean over seeds."""
        mean = self.mean()
        assert mean is not None, "records without a value have no score"
        return mean

    @property
    def spread(self) -> float | None:
        """The standard deviation over seeds; None for a single one."""
        return float(np.std(self.values(), ddof=1)) if len(self.records) > 1 else None

    @property
    def interval_95(self) -> Interval | None:
        """The interval of the first seed that has one."""
        return next(iter(self.values("interval_95")), None)

    @property
    def interval(self) -> str:
        """`interval_95` as text."""
        return " to ".join(map(self.metric.text, self.interval_95 or ()))

    @property
    def source(self) -> str:
        """Where the number comes from: seeds, interval, splits, setting."""
        text, first = self.metric.text, self.first
        values = ((seed, record.value) for seed, record in self.records.items())
        seeds = ", ".join(f"{text(value)} (seed {seed})" for seed, value in values if value is not None)
        parts = [f"{self.nets}, {self.metric.words}: {seeds}"]
        parts += [f"95 % interval {self.interval}"] if self.interval else []
        sides = (("trained", first.trained_on, first.num_train), ("tested", first.tested_on, first.num_test))
        for verb, models, number in sides:
            networks = "" if number is None else f" ({number} networks)"
            parts += [f"{verb} on {models}{networks}"] if models else []
        return "; ".join(parts + ([first.setting] if first.setting else []))


def scores_of(records: Iterable[Record]) -> list[Score]:
    """Group records that differ only by their seed, in their order.

    Raises:
        ZooError: if two records contradict each other.
    """
    groups: dict[tuple[Any, ...], dict[Seed, Record]] = {}
    for record in records:
        key = *(getattr(record, name) for name in IDENTITY), record.experiment == SIZED and record.num_train
        seed = "unknown" if record.seed is None else record.seed
        known = groups.setdefault(key, {}).setdefault(seed, record)
        if known.value != record.value:
            what = ", ".join(str(part) for part in key if part not in (None, False))
            found = f"{known.value} and {record.value} for {what}, seed {seed}"
            do = "give results of one run only (--results)"
            raise ZooError("results", expected="one value for each seed", found=found, do=do)
    return [Score(group) for group in groups.values()]


def select(scores: Iterable[Score], **conditions: Any) -> list[Score]:
    """Select the scores whose records have these values."""
    wanted = conditions.items()
    return [s for s in scores if all(getattr(s.first, name) == value for name, value in wanted)]


def groups(scores: Iterable[Score], *names: str) -> dict[tuple[Any, ...], list[Score]]:
    """Group scores by their values of some fields; groups and scores keep their order."""
    found: dict[tuple[Any, ...], list[Score]] = {}
    for score in scores:
        found.setdefault(tuple(getattr(score.first, name) for name in names), []).append(score)
    return found


def distinct(scores: Iterable[Score], name: str) -> list[Any]:
    """The distinct values of a field, in their order."""
    return [value for (value,) in groups(scores, name)]
