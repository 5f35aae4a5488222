"""The subsets of a zoo: those that a build draws, with their distributions, and those that are imported."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nws_dataset.format.recipe import LEGAL_VALUES


@dataclass(frozen=True)
class Choice:
    """One of the values, each as likely; values may be tuples when several fields are drawn together."""

    values: tuple[Any, ...]


@dataclass(frozen=True)
class Cycle:
    """The values in turn by model number: every value equally often."""

    values: tuple[Any, ...]


@dataclass(frozen=True)
class Uniform:
    """Uniform in low .. high."""

    low: float
    high: float


@dataclass(frozen=True)
class LogUniform:
    """Uniform in the logarithm, in low .. high."""

    low: float
    high: float


@dataclass(frozen=True)
class ByDataset:
    """A value that follows from the data set."""

    values: Mapping[str, Any]


Draw = Choice | Cycle | Uniform | LogUniform | ByDataset
# field (or several, comma-separated) of Recipe or Architecture -> Draw, or a constant
Family = Mapping[str, Any]


@dataclass(frozen=True)
class Subset:
    """A part of the zoo that was drawn from one distribution: one config of the data set."""

    name: str
    num_models: int
    families: tuple[Family, ...]  # model n belongs to family n modulo their number
    num_snapshots: int = 20
    # None: num_snapshots of the E exports, round(linspace(1, E, num_snapshots))
    snapshot_epochs: tuple[int, ...] | None = None
    description: str = ""


NWS_MAIN: Family = {
    "dataset": Choice(("mnist", "cifar10", "svhn", "stl10", "fashion_mnist")),
    "learning_rate": Uniform(0.0002, 0.005),
    "batch_size": Choice((32, 64, 128, 256)),
    "augmentation": Choice((False, True)),
    "optimizer": Choice(("adam", "rmsprop", "momentum")),
    "activation": Choice(("relu", "elu", "sigmoid", "tanh")),
    "initialization": Choice(("constant", "normal", "glorot_uniform", "glorot_normal")),
    "filter_size": Choice((3, 5, 7)),
    "depth_conv": Choice((3, 4, 5)),
    "depth_fc": Choice((2, 3, 4)),
    "width_conv": Choice((4, 8, 12)),
    "width_fc": Choice((64, 128, 192)),
    "batch_norm": True,
    "dropout": 0.5,
    "validation_fraction": 0.1,
    "balanced": True,
    "learning_rate_decay": 0.96,
    "max_epochs": 1000,
    "early_stopping": True,
}
NWS_FIXED: Family = {
    **NWS_MAIN,
    "filter_size": 5,
    "depth_conv": 3,
    "depth_fc": 2,
    "width_conv": 8,
    "width_fc": 128,
}
SMALL_CNN: Family = {
    "dataset": Cycle(("mnist", "fashion_mnist", "cifar10", "svhn")),
    "learning_rate": LogUniform(5e-4, 5e-2),
    "batch_size": 512,
    "optimizer": Choice(("adam", "sgd", "rmsprop")),
    "activation": Choice(("relu", "tanh")),
    "initialization": Choice(
        ("he_normal", "orthogonal", "glorot_normal", "random_normal", "truncated_normal")
    ),
    "init_std": LogUniform(1e-3, 0.5),
    "l2": LogUniform(1e-8, 1e-2),
    "dropout": Uniform(0.0, 0.7),
    "train_fraction": Choice((0.1, 0.25, 0.5, 1.0)),
    "max_epochs": 86,
    "filter_size": 3,
    "depth_conv": 3,
    "width_conv": 16,
    "width_growth": 1,
    "stride": 2,
    "padding": "valid",
    "pooling": "none",
    "head": "average",
    "depth_fc": 0,
    "width_fc": None,
    "batch_norm": False,
    "dropout_place": "conv",
    "image_channels": 1,
    "image_size": ByDataset(
        {"mnist": 28, "fashion_mnist": 28, "kmnist": 28, "digits": 28, "cifar10": 32, "svhn": 32, "stl10": 32}
    ),
    "pixel_min": -1,
}
# The demo: shapes that train in seconds, on images that come with scikit-learn. Both families draw every
# optimizer, activation and initialization, so that none of these can be told from the architecture alone.
DEMO: Family = {
    "dataset": "digits",
    "batch_size": Choice((32, 64, 128, 256)),
    "optimizer": Choice(LEGAL_VALUES["optimizer"]),
    "activation": Choice(LEGAL_VALUES["activation"]),
    "initialization": Choice(LEGAL_VALUES["initialization"]),
    "init_std": SMALL_CNN["init_std"],
    "batch_norm": Choice((True, False)),
    "validation_fraction": 0.1,
    "max_epochs": 20,
}
DEMO_SHAPE = "filter_size,depth_conv,width_conv,depth_fc,width_fc"
DEMO_SHAPES = Choice(((3, 3, 12, 2, 64), (5, 4, 4, 3, 192), (7, 3, 4, 4, 128), (3, 5, 8, 2, 128)))
DEMO_NWS: Family = {
    **{name: draw for name, draw in NWS_MAIN.items() if name not in DEMO_SHAPE.split(",")},
    **DEMO,
    DEMO_SHAPE: DEMO_SHAPES,
}
DEMO_SMALL_CNN: Family = {**SMALL_CNN, **DEMO}
SUBSETS: dict[str, Subset] = {
    subset.name: subset
    for subset in (
        Subset("main", 13_000, (NWS_MAIN,), description="random architectures (Eilertsen et al. 2020)"),
        Subset("fixed", 3_000, (NWS_FIXED,), description="one architecture (Eilertsen et al. 2020)"),
        Subset(
            "small_cnn",
            120_000,
            (SMALL_CNN,),
            num_snapshots=9,
            snapshot_epochs=(0, 1, 2, 3, 20, 40, 60, 80, 86),
            description="the Small CNN Zoo's recipe (Unterthiner et al. 2020)",
        ),
        Subset(
            "demo",
            208,
            (DEMO_NWS, DEMO_SMALL_CNN, DEMO_SMALL_CNN, DEMO_SMALL_CNN),
            description="both papers' families in small, on scikit-learn's digits",
        ),
    )
}
PRESETS: dict[str, tuple[str, ...]] = {
    "demo": ("demo",),
    "fixed": ("fixed",),
    "main": ("main",),
    "nws": ("main", "fixed"),
    "small_cnn": ("small_cnn",),
}


@dataclass(frozen=True)
class ImportedSubset:
    """A subset that was imported, not trained by the builder."""

    name: str
    release: str  # as `nws-build --import` names it
    recipe_of: str  # the subset of ours that draws the same recipes :a key of SUBSETS
    description: str
    source: str  # where the release is told of
    licence: str  # of the release
    notes: tuple[str, ...]  # in what its numbers differ from those of the builder's own subsets


_NWS = "Eilertsen et al. 2020, https://github.com/gabrieleilertsen/nws"
_NWS_LICENCE = "not told for the data; BSD for its code"
_NWS_NOTES = (
    "The split is the original's; nets that its split files leave out (very low test accuracy) are left "
    "out here too.",
    "Weights were float64 and are rounded to float32; dense layers after the flatten take channel, height, "
    "width order, as elsewhere here.",
    "The output layer has 20 units for 10 classes.",
    "Accuracies are the original's: taken with the batch's statistics, a partial last batch dropped; the "
    "training accuracy is the mean over"
    " the epoch's batches while it was trained (of the first snapshot: one batch). Losses and accuracies "
    "of single classes are not told.",
)
_SMALL_CNN = (
    "Unterthiner et al. 2020, "
    "https://github.com/google-research/google-research/tree/master/dnn_predict_accuracy"
)
_SMALL_CNN_LICENCE = "CC BY 4.0"
_SMALL_CNN_NOTES = (
    "The release has no split; models are split as everywhere here, by a hash of model_id and the seed.",
    "Losses are the release's, which add l2 * sum(w^2) over the kernels to the cross-entropy.",
    "Steps are counted from the epoch and the number of training images; seeds are the release's "
    "config.random_seed.",
    "Models without a row for each of the snapshots' epochs are left out.",
)
IMPORTED: dict[str, ImportedSubset] = {
    subset.name: subset
    for subset in (
        ImportedSubset(
            "main_2020",
            "nws",
            "main",
            "the original neural weight space, random architectures",
            _NWS,
            _NWS_LICENCE,
            _NWS_NOTES,
        ),
        ImportedSubset(
            "fixed_2020",
            "nws",
            "fixed",
            "the original neural weight space, one architecture",
            _NWS,
            _NWS_LICENCE,
            _NWS_NOTES,
        ),
        ImportedSubset(
            "small_cnn_2020",
            "small_cnn",
            "small_cnn",
            "the original Small CNN Zoo",
            _SMALL_CNN,
            _SMALL_CNN_LICENCE,
            _SMALL_CNN_NOTES,
        ),
    )
}
RELEASES = tuple(dict.fromkeys(subset.release for subset in IMPORTED.values()))


def subsets_of(release: str) -> dict[str, str]:
    """The subsets of a release: the subset of ours whose recipes each draws -> its name.

    Example:
        >>> subsets_of("nws")
        {'main': 'main_2020', 'fixed': 'fixed_2020'}
    """
    return {subset.recipe_of: subset.name for subset in IMPORTED.values() if subset.release == release}
