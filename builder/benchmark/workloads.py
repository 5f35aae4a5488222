"""What the benchmark trains: models of the real plan, across sizes and recipes, and their images."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from builder.forecasting.costs import forward_flops
from builder.forecasting.pace import Case
from builder.image_sets import IMAGE_SETS
from builder.images import ImageSet, has_image_set, load_image_set
from builder.plan import Model, select
from builder.training import bank
from builder.training.bank import Bank
from builder.training.batches import with_label_noise
from nws_dataset.format.subsets import SUBSETS

SEED = 0  # of the plan
SMALL_CNN_BATCHES = 64, 512
SMALL_CNN_MODELS = 4000  # of the plan, to choose from
CASES = {"fixed": 4, "main": 12}  # models that represent a subset
KINDS = "siren", "kan_inr", "kan", "resnet"  # subsets of the other kinds of networks, a model each
VARIED = "augmentation", "optimizer", "activation", "batch_size"  # all their values occur among them
DIGITS_REPEATED = 8  # so that an epoch has many steps and the images do not fit into a core's cache


def cases(cohort: int = 1) -> list[Case]:
    """All cases of convolutional networks, in the order of the report.

    Args:
        cohort: most models that train together.
    """
    found = []
    small = [
        m for m in select(SUBSETS["small_cnn"], SEED, models=SMALL_CNN_MODELS) if m.recipe.train_fraction == 1
    ]
    first = next(m for m in small if (m.recipe.optimizer, m.recipe.activation) == ("adam", "relu"))
    together = _together(first, small, cohort)
    for batch in SMALL_CNN_BATCHES:
        models = (
            dataclasses.replace(m, recipe=dataclasses.replace(m.recipe, batch_size=batch)) for m in together
        )
        found.append(Case(f"small_cnn {batch}", tuple(models)))
    for name, count in CASES.items():
        plan = select(SUBSETS[name], SEED)
        found += [Case(name, _together(model, plan, cohort)) for model in representative(plan, count)]
    return found


def cases_of_kinds() -> list[Case]:
    """The first model of each of the other kinds of networks."""
    return [Case(name, tuple(select(SUBSETS[name], SEED, models=1))) for name in KINDS]


def _together(first: Model, models: Iterable[Model], count: int) -> tuple[Model, ...]:
    """A model and others of its cohort."""
    others = (model for model in models if model.cohort == first.cohort and model.number != first.number)
    return first, *itertools.islice(others, count - 1)


def representative(models: Sequence[Model], count: int) -> list[Model]:
    """Choose models that represent all: one from each of `count` equally large groups by cost.

    From each group comes the model whose values of the fields `VARIED` were seen least so far and, among
    equals, the one nearest to the group's middle.
    """
    by_cost = sorted(models, key=lambda model: (forward_flops(model.recipe.architecture), model.number))
    seen: Counter[tuple[str, object]] = Counter()
    chosen = []
    for i in range(count):
        group = by_cost[i * len(models) // count : (i + 1) * len(models) // count]
        middle = len(group) // 2
        best = min(
            range(len(group)),
            key=lambda p: (sum(seen[value] for value in _values(group[p])), abs(p - middle)),
        )
        chosen.append(group[best])
        seen.update(_values(group[best]))
    return chosen


def _values(model: Model) -> Iterator[tuple[str, object]]:
    return ((field, getattr(model.recipe, field)) for field in VARIED)


# Images


def write_images(cases: Sequence[Case], directory: Path | None, folder: Path) -> None:
    """Write the images of all cases where every process can map them.

    Args:
        cases: what will be trained.
        directory: the real image sets; scikit-learn's digits replace those that it lacks.
        folder: where to write; read by `bank_of_case`.
    """
    inputs: dict[str, set[tuple[int, int]]] = {}
    for recipe in (model.recipe for case in cases for model in case.models):
        key = recipe.architecture.image_channels, recipe.architecture.image_size
        if key not in inputs.setdefault(recipe.dataset, set()):
            inputs[recipe.dataset].add(key)
            name = recipe.dataset
            image_set = load_image_set(name, directory) if is_real(name, directory) else stand_in(name)
            bank.save(image_set, recipe.architecture, None, folder)


def is_real(name: str, directory: Path | None) -> bool:
    """Whether a folder has an image set; if not, digits stand in for it."""
    return directory is not None and has_image_set(name, directory)


def stand_in(name: str) -> ImageSet:
    """Digits in place of another image set; coloured if that is, so that augmentation has all its work."""
    digits = load_image_set("digits")
    images = np.tile(digits.train_images, (DIGITS_REPEATED, 1, 1, 1)), digits.test_images
    if IMAGE_SETS[name].channels == 3:
        images = _coloured(images[0]), _coloured(images[1])
    labels = np.tile(digits.train_labels, DIGITS_REPEATED)
    return ImageSet(
        name, images[0], labels, images[1], digits.test_labels, f"{digits.source} in place of {name}"
    )


def _coloured(images: np.ndarray) -> np.ndarray:
    return np.concatenate([images, 255 - images, images // 2], axis=1)


def bank_of_case(case: Case, device: torch.device, folder: Path) -> Bank:
    """The images of a case, as written by `write_images`, with the label noise of its model."""
    names = {model.recipe.dataset for model in case.models}
    loaded = {name: bank.load(name, case.model.recipe.architecture, device, folder) for name in names}
    return {name: with_label_noise(case.model, images) for name, images in loaded.items()}
