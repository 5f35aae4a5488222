"""Models and images for the tests of training: real digits, small networks, every value of the recipe."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping

import torch

from builder.images import load_image_set
from builder.plan import Model
from builder.training.backend import Segment
from builder.training.bank import Images, bank_of
from nws_dataset.format.recipe import INITIALIZATIONS_WITH_STD, Recipe
from nws_dataset.networks.cnn import Architecture

CPU = torch.device("cpu")
NWS = Architecture(filter_size=3, width_conv=4, width_fc=16, image_size=12)
NWS_PLAIN = Architecture(
    filter_size=5, depth_conv=4, width_conv=4, depth_fc=3, width_fc=16, batch_norm=False, image_size=13
)
SMALL_CNN = Architecture(
    filter_size=3,
    width_conv=8,
    width_growth=1,
    stride=2,
    padding="valid",
    pooling="none",
    head="average",
    depth_fc=0,
    width_fc=None,
    batch_norm=False,
    dropout_place="conv",
    image_channels=1,
    image_size=21,
    pixel_min=-1,
)
ARCHITECTURES = {"nws": NWS, "nws_plain": NWS_PLAIN, "small_cnn": SMALL_CNN}


@functools.cache
def images_for(
    architecture: Architecture, train_images: int | None = 60, dataset: str = "digits"
) -> dict[str, Images]:
    """Digits in an architecture's channels and size."""
    return bank_of({dataset: load_image_set("digits")}, architecture, CPU, train_images)


def make_model(architecture: Architecture, number: int = 0, **fields: object) -> Model:
    """A model with the given recipe; the rest are usual values."""
    values = {
        "dataset": "digits",
        "learning_rate": 0.002,
        "batch_size": 16,
        "optimizer": "adam",
        "activation": "relu",
        "initialization": "glorot_uniform",
        "augmentation": False,
        "dropout": 0.5,
        "validation_fraction": 0.1,
        "balanced": True,
        "learning_rate_decay": 0.96,
        "max_epochs": 3,
        "early_stopping": True,
        **fields,
    }
    if values["initialization"] in INITIALIZATIONS_WITH_STD:
        values.setdefault("init_std", 0.1)
    return Model("demo", number, seed=0, recipe=Recipe(architecture, **values), block=0)


def every_combination(architecture: Architecture) -> list[Model]:
    """A model of every optimizer, activation and initialization; augmentation, dropout, L2 and the balanced
    re-drawing alternate.
    """
    kinds = itertools.product(
        ("adam", "rmsprop", "momentum", "sgd"), Architecture.activations, Architecture.initializations
    )
    return [
        make_model(
            architecture,
            number,
            optimizer=optimizer,
            activation=activation,
            initialization=initialization,
            augmentation=number % 2 == 0,
            dropout=(0.5, 0.2, 0.0)[number % 3],
            l2=(1e-3, 0.0)[number // 2 % 2],
            balanced=number % 5 < 3,
            learning_rate=0.002 + 0.0001 * (number % 7),
        )
        for number, (optimizer, activation, initialization) in enumerate(kinds)
    ]


class IdleStep:
    """A `Backend` that notes its segments, and does nothing."""

    def __init__(self) -> None:
        self.calls: list[Mapping[int, Segment]] = []

    def train(self, state: tuple[torch.Tensor, ...], segments: Mapping[int, Segment]) -> torch.Tensor:
        self.calls.append(segments)
        return torch.zeros(len(segments))

    def evaluate(
        self, rows: torch.Tensor, activation: str, images: torch.Tensor, labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.zeros(len(rows), len(labels), dtype=torch.bool), torch.zeros(len(rows), len(labels))
