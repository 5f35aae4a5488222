"""How a network was trained: `Recipe`, its legal values.

`nws_dataset.networks` says what a network is, `nws_dataset.format.subsets` what each subset draws. Columns,
cards, plans, tables and tests derive from these.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from nws_dataset import networks
from nws_dataset.errors import ZooError
from nws_dataset.networks.base import BaseArchitecture, check_legal

LEGAL_VALUES: dict[str, tuple[Any, ...]] = {
    "dataset": ("mnist", "cifar10", "svhn", "stl10", "fashion_mnist", "kmnist", "digits", "kmnist_10k"),
    "optimizer": ("adam", "rmsprop", "momentum", "sgd", "adamw"),
    "schedule": ("decay", "cosine", "triangle"),
    "augmentation_policy": ("nws", "flip_shift_cutout"),
    "convention": ("dws", "nfn", None),
    # of all kinds of networks, the convolutional ones' first
    **{
        name: tuple(
            dict.fromkeys(value for kind in networks.KINDS.values() for value in getattr(kind, f"{name}s"))
        )
        for name in ("activation", "initialization")
    },
    **{name: legal for kind in networks.KINDS.values() for name, legal in kind.legal_values.items()},
}
RECIPE_VALUES = ("dataset", "optimizer", "schedule", "augmentation_policy", "convention")
INITIALIZATIONS_WITH_STD = ("random_normal", "truncated_normal")


@dataclass(frozen=True)
class Recipe:
    """All hyper-parameters of one training.

    Its fields are columns of the index with the same names, beside the architecture's fields.

    Raises:
        ZooError: if a value is not legal, or two values contradict each other.

    Example:
        >>> from nws_dataset import Architecture
        >>> values = {"dataset": "mnist", "learning_rate": 0.001, "batch_size": 32, "optimizer": "adam"}
        >>> recipe = Recipe(Architecture(), **values, activation="relu", initialization="glorot_uniform")
        >>> columns = recipe.columns()
        >>> columns["learning_rate"], columns["filter_size"]
        (0.001, 5)
    """

    architecture: BaseArchitecture  # fixes the shapes
    dataset: str  # the image set, e.g. "mnist"
    learning_rate: float  # in the first epoch
    batch_size: int  # images in a step
    optimizer: str  # as in TensorFlow: adam (eps 1e-8), rmsprop (decay 0.9), momentum (0.95), sgd
    activation: str  # of all layers except the output
    initialization: str  # of the weights; biases start at 0
    init_std: float | None = None  # standard deviation, for random_normal and truncated_normal
    augmentation: bool = False  # whether images are changed at random before each use
    dropout: float = 0.0  # probability that a unit is dropped
    l2: float = 0.0  # adds l2 * sum(w^2) over the kernels to the loss
    train_fraction: float = 1.0  # the share of the training images that is used, from the first on
    validation_fraction: float = 0.0  # share of those that is held out, shuffled per model
    balanced: bool = False  # each epoch is redrawn with equal class counts
    learning_rate_decay: float = 1.0  # factor per epoch
    max_epochs: int = 1000  # training ends after this epoch at the latest
    early_stopping: bool = False  # the stopping rule of Eilertsen et al.
    # how images are changed: "nws" (Eilertsen et al.) or "flip_shift_cutout" (Lim et al. 2024)
    augmentation_policy: str = "nws"
    # of the learning rate: "decay", by learning_rate_decay; "cosine", to learning_rate_end; "triangle", up
    # from 0 within warmup_epochs, then down to 0
    schedule: str = "decay"
    learning_rate_end: float = 0.0  # where a cosine ends
    warmup_epochs: float = 0.0  # of a triangle
    weight_decay: float = 0.0  # of adamw
    label_noise: float = 0.0  # probability that a training image's label is drawn anew
    label_smoothing: float = 0.0  # part of a label's probability that all classes share
    convention: str | None = None  # of networks that represent an image: "dws" or "nfn"

    def __post_init__(self) -> None:
        check_legal(self, {name: LEGAL_VALUES[name] for name in RECIPE_VALUES})
        check_legal(
            self,
            {
                "activation": self.architecture.activations,
                "initialization": self.architecture.initializations,
            },
        )
        if (self.init_std is None) == (self.initialization in INITIALIZATIONS_WITH_STD):
            raise ZooError(
                "Recipe.init_std",
                expected=f"a number for {' and '.join(INITIALIZATIONS_WITH_STD)} only",
                found=str(self.init_std),
                do="set it",
            )

        if self.early_stopping and not self.validation_fraction:
            raise ZooError(
                "Recipe.early_stopping",
                expected="a validation part",
                found="validation_fraction 0",
                do="set it",
            )

    def columns(self) -> dict[str, Any]:
        """The recipe as columns of the index: its own fields and those of the architecture.

        Returns:
            column -> value.
        """
        fields = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name != "architecture"
        }
        return {**fields, **networks.columns_of(self.architecture)}
