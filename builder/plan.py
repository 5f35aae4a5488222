"""The plan: every model's recipe, split and shard, from (seed, subset, model number) alone."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from builder import philox
from builder.image_order import image_order
from nws_dataset import networks
from nws_dataset.errors import ZooError
from nws_dataset.format import shards
from nws_dataset.format.recipe import INITIALIZATIONS_WITH_STD, Recipe
from nws_dataset.format.schema import DIGITS, SPLITS, model_id
from nws_dataset.format.subsets import (
    CONVENTIONS,
    PRESETS,
    SUBSETS,
    ByDataset,
    Choice,
    Cycle,
    Draw,
    Family,
    LogUniform,
    Subset,
    Uniform,
)
from nws_dataset.networks.base import BaseArchitecture

if TYPE_CHECKING:
    import torch

DEVICES = ("cpu", "cuda", "mps")  # "cuda" includes AMD GPUs; "mps" is Apple's
BACKENDS = ("fast", "torch")  # our own kernels for CPU and CUDA; plain stacked PyTorch
SEEDS = 2**63  # the index holds seeds as int64

SPLIT_SHARES = (("train", 0.8), ("validation", 0.1), ("test", 0.1))
SHARD_BYTES = 500_000_000  # most bytes of weights in one shard
PLAN_BLOCK = 4096  # models drawn at once


@dataclass(frozen=True)
class Model:
    """One planned network."""

    subset: str
    number: int
    seed: int  # the build's seed
    recipe: Recipe
    block: int  # which of the shards of its subset, split and architecture
    digits: int = DIGITS  # of its number in its name
    image: int | None = None  # that it represents (`builder.image_order`)
    image_split: str | None = None  # of that image

    @property
    def id(self) -> str:
        return model_id(self.subset, self.number, self.digits)

    @property
    def split(self) -> str:
        return self.image_split or split_of(self.id, self.seed)

    @property
    def cohort(self) -> tuple[BaseArchitecture, int]:
        """What models that train together have in common."""
        return self.recipe.architecture, self.recipe.batch_size


def split_of(identifier: str, seed: int) -> str:
    """A model's split, from a hash of its id and the seed."""
    digest = hashlib.sha256(f"{identifier}:{seed}".encode()).digest()
    position = int.from_bytes(digest[:8], "little") / 2**64
    for name, share in SPLIT_SHARES[:-1]:
        if position < share:
            return name
        position -= share
    return SPLIT_SHARES[-1][0]


def models_per_shard(architecture: BaseArchitecture, num_snapshots: int) -> int:
    """Models of an architecture whose snapshots fill one shard."""
    return max(1, SHARD_BYTES // (num_snapshots * shards.value_bytes(architecture)))


def plan(subset: Subset, seed: int, copies: int = 1) -> Iterator[Model]:
    """Yield all models of a subset in the order of their numbers; the first n are always the same.

    Args:
        subset: what to draw from.
        seed: the build's seed; any integer.
        copies: networks that represent each image, where they represent images.
    """
    counts: Counter[tuple[str, str]] = Counter()
    recipes: dict[str, Recipe] = {}
    num_models = subset.num_models * copies if subset.of_images else subset.num_models
    for start in range(0, num_models, PLAN_BLOCK):
        numbers = np.arange(start, min(start + PLAN_BLOCK, num_models))
        drawn = [
            _draw_family(family, philox.key_of(seed, subset.name), numbers) for family in subset.families
        ]
        for i, number in enumerate(numbers.tolist()):
            fields = {name: values[i] for name, values in drawn[number % len(drawn)].items()}
            if subset.of_images:  # whose recipes follow from the image set
                dataset = fields["dataset"]
                copy, image, image_split = _image(subset, dataset, number)
                if copy >= copies:
                    continue
                if dataset not in recipes:
                    recipes[dataset] = recipe_of(fields)
                recipe, split = recipes[dataset], image_split
            else:
                recipe, image, image_split = recipe_of(fields), None, None
                split = split_of(model_id(subset.name, number, subset.digits), seed)
            key = split, recipe.architecture.id
            block = counts[key] // models_per_shard(recipe.architecture, subset.num_snapshots)
            counts[key] += 1
            yield Model(subset.name, number, seed, recipe, block, subset.digits, image, image_split)


def _image(subset: Subset, dataset: str, number: int) -> tuple[int, int, str]:
    """Which copy of which image a model is, and the image's split."""
    images, splits = image_order(dataset)
    copy, place = divmod(number // len(image_sets_of(subset)), len(images))
    return copy, int(images[place]), SPLITS[splits[place]]


def select(
    subset: Subset,
    seed: int,
    *,
    models: int | None = None,
    datasets: Collection[str] | None = None,
    epochs: int | None = None,
    copies: int = 1,
) -> list[Model]:
    """The first planned models on the given image sets, with their epochs capped.

    Selecting redraws nothing: a model is the same in every selection.
    """
    selected: list[Model] = []
    for model in plan(subset, seed, copies) if models != 0 else ():
        dataset = model.recipe.dataset
        if dataset in subset.on_request if datasets is None else dataset not in datasets:
            continue
        selected.append(_capped(model, epochs))
        if len(selected) == models:
            break
    return selected


def up_to(subset: Subset, seed: int, last: int, epochs: int | None = None) -> Iterator[Model]:
    """The models of the plan up to a number, of all image sets and copies, their epochs capped."""
    copies = 1 + last // subset.num_models
    for model in plan(subset, seed, copies) if last >= 0 else ():
        if model.number > last:
            break
        yield _capped(model, epochs)


def _capped(model: Model, epochs: int | None) -> Model:
    if epochs is None or epochs >= model.recipe.max_epochs:
        return model
    return dataclasses.replace(model, recipe=dataclasses.replace(model.recipe, max_epochs=epochs))


def _draw_family(family: Family, key: philox.Key, numbers: np.ndarray) -> dict[str, list[Any]]:
    """One value of each field for each model number; `_recipe` resolves `ByDataset`."""
    columns: dict[str, list[Any]] = {}
    for field, distribution in family.items():
        values = _draw_field(field, distribution, key, numbers)
        names = field.split(",")
        for position, name in enumerate(names):
            columns[name] = [value[position] for value in values] if len(names) > 1 else values
    return columns


def _draw_field(field: str, distribution: object, key: philox.Key, numbers: np.ndarray) -> list[Any]:
    words = philox.draw(
        key,
        philox.Purpose.RECIPE,
        index=np.zeros_like(numbers),
        model=numbers,
        block=philox.field_block(field),
    )
    u = philox.unit_interval(words[0], words[1])
    match distribution:
        case Choice(values):
            return [values[i] for i in (u * len(values)).astype(np.int64)]
        case Cycle(values):
            return [values[n % len(values)] for n in numbers]
        case Uniform(low, high):
            return (low + u * (high - low)).tolist()
        case LogUniform(low, high):
            return philox.log_uniform(u, low, high).tolist()
        case ByDataset(values) if any(isinstance(value, Draw) for value in values.values()):
            drawn = {name: _draw_field(field, value, key, numbers) for name, value in values.items()}
            return [
                ByDataset({name: column[i] for name, column in drawn.items()}) for i in range(len(numbers))
            ]
    return [distribution] * len(numbers)


def recipe_of(fields: dict[str, Any]) -> Recipe:
    """Make a recipe from the fields of Recipe and Architecture.

    A `ByDataset` is looked up; init_std is kept only where it has a meaning.
    """
    fields = {n: v.values[fields["dataset"]] if isinstance(v, ByDataset) else v for n, v in fields.items()}
    if fields["initialization"] not in INITIALIZATIONS_WITH_STD:
        fields["init_std"] = None
    kind = networks.KINDS[fields.pop("kind", networks.DEFAULT_KIND)]
    names = {field.name for field in dataclasses.fields(kind)}
    shape = {name: fields.pop(name) for name in names & fields.keys()}
    return Recipe(architecture=kind(**shape), **fields)


@dataclass(frozen=True)
class Request:
    """What a zoo's folder should contain."""

    preset: str
    models: int | None = None  # only the first N selected models; None: all
    datasets: tuple[str, ...] | None = None  # only models on these image sets; None: all
    epochs: int | None = None  # the most epochs a model trains
    train_images: int | None = None  # train on the first N images only
    seed: int = 0
    tf32: bool = False  # allow a GPU to round the factors of products to 10 bits
    backend: str = "fast"  # what trains: one of BACKENDS
    copies: int | None = None  # networks of each image, where they represent images; None: one
    convention: str | None = None  # one of CONVENTIONS of the preset; None: the first

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise ZooError(
                "--preset",
                expected=f"one of {', '.join(PRESETS)}",
                found=self.preset,
                do="choose one of them",
            )
        if self.backend not in BACKENDS:
            raise ZooError(
                "--backend",
                expected=f"one of {', '.join(BACKENDS)}",
                found=self.backend,
                do="choose one of them",
            )
        self._check_images()
        for name in ("models", "epochs", "train_images", "copies"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ZooError(
                    f"--{name.replace('_', '-')}", expected="at least 1", found=str(value), do="choose more"
                )
        if not -SEEDS <= self.seed < SEEDS:
            raise ZooError(
                "--seed", expected="an integer of 64 bits", found=str(self.seed), do="choose a smaller one"
            )
        drawn = list(dict.fromkeys(name for subset in self.subsets for name in image_sets_of(subset)))
        wrong = [name for name in self.datasets or () if name not in drawn]
        if wrong or self.datasets == ():
            expected, found = (
                f"image sets that preset {self.preset} draws ({', '.join(drawn)})",
                ", ".join(wrong) or "none",
            )
            raise ZooError("--datasets", expected=expected, found=found, do="choose among them")

    def _check_images(self) -> None:
        """Raise a ZooError for options that have no meaning for what the preset's networks learn."""
        conventions = CONVENTIONS.get(self.preset, {})
        if self.convention is not None and self.convention not in conventions:
            expected = f"one of {', '.join(conventions)}" if conventions else f"none for {self.preset}"
            do = "choose one of them" if conventions else "leave it out"
            raise ZooError("--convention", expected=expected, found=self.convention, do=do)
        of_images = all(subset.of_images for subset in self.subsets)
        for option, value, legal in (
            ("--copies", self.copies, of_images),
            ("--train-images", self.train_images, not of_images),
        ):
            if value is not None and not legal:
                expected = f"none for {self.preset}"
                raise ZooError(option, expected=expected, found=str(value), do="leave it out")

    @property
    def subsets(self) -> list[Subset]:
        """What is built."""
        conventions = CONVENTIONS.get(self.preset)
        if conventions is None:
            return [SUBSETS[name] for name in PRESETS[self.preset]]
        return [SUBSETS[conventions[self.convention or next(iter(conventions))]]]

    def plan(self) -> list[tuple[Subset, list[Model]]]:
        """The selected models of each of the preset's subsets; `models` counts across all subsets."""
        plans, left = [], self.models
        for subset in self.subsets:
            models = select(
                subset,
                self.seed,
                models=left,
                datasets=self.datasets,
                epochs=self.epochs,
                copies=self.copies or 1,
            )
            left = None if left is None else left - len(models)
            if models:
                plans.append((subset, models))
        return plans

    def check_device(self, device: torch.device) -> None:
        """Raise a ZooError if the device does not support the request."""
        if self.tf32 and (device.type == "cpu" or self.backend == "torch"):
            found = "a CPU" if device.type == "cpu" else "plain torch, which trains in float32"
            raise ZooError("--tf32", expected="a GPU and the fast backend", found=found, do="leave it out")

    def options(self, device: torch.device) -> dict[str, Any]:
        """What the weights depend on besides preset and seed, for nws.json and the card."""
        return {
            "backend": self.backend,
            "device": device.type,
            "epochs": self.epochs,
            "tf32": self.tf32,
            "train_images": self.train_images,
        }


def image_sets_of(subset: Subset) -> list[str]:
    """The image sets that a subset draws from."""
    draws = (family["dataset"] for family in subset.families)
    return [name for draw in draws for name in (draw.values if isinstance(draw, Choice | Cycle) else (draw,))]


def datasets_of(text: str | None) -> tuple[str, ...] | None:
    """Parse a comma-separated list of image sets; None if there is none."""
    return (
        None
        if text is None
        else tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    )
