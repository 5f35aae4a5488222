"""Models and images for the tests of training: real digits, small networks, every value of the recipe.

Also the state of networks that represent an image, and the plain step that theirs are compared with.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping

import torch
import torch.nn.functional as F

from builder.images import load_image_set
from builder.plan import Model
from builder.training import update
from builder.training.backend import Segment
from builder.training.bank import Images, bank_of
from nws_dataset.format.recipe import INITIALIZATIONS_WITH_STD, Recipe
from nws_dataset.networks.base import BaseArchitecture
from nws_dataset.networks.cnn import Architecture
from nws_dataset.networks.layout import layout_of
from nws_dataset.networks.network import Network, coordinates

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


State = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # rows, first and second moments, [M, P] each


@functools.cache
def images_for(
    architecture: BaseArchitecture, train_images: int | None = 60, dataset: str = "digits"
) -> dict[str, Images]:
    """Digits in an architecture's channels and size."""
    return bank_of({dataset: load_image_set("digits")}, architecture, CPU, train_images)


def make_model(
    architecture: BaseArchitecture, number: int = 0, image: int | None = None, **fields: object
) -> Model:
    """A model with the given recipe, perhaps of an image; the rest are usual values."""
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
    return Model("demo", number, seed=0, recipe=Recipe(architecture, **values), block=0, image=image)


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


# Networks that represent an image


def state_of(architecture: BaseArchitecture, models: int, dtype: torch.dtype = torch.float64) -> State:
    """Rows and moments of networks that have trained a while; the weights send inputs to all intervals of a
    KAN's grid and beyond, and through many turns of a sine.
    """
    draw = torch.Generator().manual_seed(models)
    size = models, layout_of(architecture).num_weights
    row = torch.randn(size, dtype=torch.float64, generator=draw) * 0.3
    first = torch.randn(size, dtype=torch.float64, generator=draw) * 1e-3
    second = torch.rand(size, dtype=torch.float64, generator=draw) * 1e-5
    return row.to(dtype), first.to(dtype), second.to(dtype)


def targets_of(
    architecture: BaseArchitecture, models: int, dtype: torch.dtype = torch.float64
) -> torch.Tensor:
    draw = torch.Generator().manual_seed(7)
    shape = models, architecture.image_size**2, architecture.image_channels
    return architecture.scale(torch.rand(shape, dtype=torch.float64, generator=draw)).to(dtype)


def plain_step(architecture: BaseArchitecture, state: State, target: torch.Tensor, rate: float) -> float:
    """A step of one model, in place; returns the loss before it."""
    network = Network(architecture).double().load_row(state[0])
    loss = F.mse_loss(network(coordinates(architecture, torch.float64)), target)
    loss.backward()
    gradients = [network.get_parameter(spec.name).grad for spec in layout_of(architecture).tensors]
    gradient = torch.cat([g.reshape(-1) for g in gradients if g is not None])
    row, first, second = (x[None] for x in state)
    update.update("adam", row, gradient[None], first, second, torch.tensor([[rate]], dtype=torch.float64))
    return loss.item()


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
