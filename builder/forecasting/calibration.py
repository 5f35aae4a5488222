"""Measures how fast a device does a build's work, so that a dry run can say how long it will take."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from builder.forecasting.costs import (
    drawn_images,
    epoch_flops,
    epoch_steps,
    evaluated_images,
    forward_flops,
)
from builder.forecasting.pace import Case, CohortSteps, Contender, ImageSteps
from builder.image_sets import IMAGE_SETS
from builder.plan import Model
from builder.progress import compiling
from builder.rules import TRAIN_EVALUATION_IMAGES, min_epochs
from builder.training.backend import Backend
from builder.training.bank import Images, labels_on
from builder.training.batches import epoch_order, split_images
from builder.training.device import cores, make_backend, one_thread, slots_of, streams_of
from builder.training.implicit import make_image_backend
from builder.training.initial import initial_row
from builder.training.train import evaluate_rows
from nws_dataset.networks.base import NUM_CLASSES, BaseArchitecture

STRATA = 6  # groups of models, each with its own speed
SEGMENTS = 20_000  # most segments whose lengths are averaged, for a cohort on a GPU
SECONDS = 0.3  # shortest measurement
IMAGES = 16_384  # random training images, more than fit into caches
# a core takes 64 at a time, a GPU more
EVALUATED_IMAGES = {"cpu": 256, "cuda": TRAIN_EVALUATION_IMAGES, "mps": TRAIN_EVALUATION_IMAGES}


@dataclass(frozen=True)
class Pace:
    """Seconds that one worker needs per FLOP while all work."""

    training: Mapping[bool, float]  # with or without augmentation
    evaluation: float


@dataclass(frozen=True)
class Seconds:
    """The time that one or more models take on a worker."""

    training: float
    evaluation: float

    @property
    def total(self) -> float:
        return self.training + self.evaluation


@dataclass(frozen=True)
class Calibration:
    """How fast a device trains the models of a subset."""

    device: torch.device
    workers: int  # that train separate models at once: processes of a CPU, streams of a GPU
    paces: Mapping[int, Pace]  # by the model's number
    order: float  # seconds per image to put an epoch in order
    split: float  # seconds per image to choose the validation images
    nodes: int | None = None  # of a cluster; None: this machine

    @property
    def description(self) -> str:
        """Where it trains, in words."""
        on_nodes = "" if self.nodes is None else f" on {self.nodes} node{'s' * (self.nodes > 1)}"
        on_gpu = "a GPU" if self.nodes is None else "all GPUs"
        return (
            f"{self.workers} CPU process{'es' * (self.workers > 1)}" if self.device.type == "cpu" else on_gpu
        ) + on_nodes

    def seconds(self, model: Model, train_images: int | None, epochs: int) -> Seconds:
        """The time that a model takes to train for some epochs, given `--train-images`."""
        recipe, pace = model.recipe, self.paces[model.number]
        drawn = drawn_images(model, train_images)
        ordering = drawn * self.split + epochs * drawn * (1 - recipe.validation_fraction) * self.order
        training = epochs * epoch_flops(model, train_images) * pace.training[recipe.augmentation]
        evaluated = evaluated_images(model, train_images, epochs) * forward_flops(recipe.architecture)
        return Seconds(training + ordering, evaluated * pace.evaluation)


def calibrate(
    models: Sequence[Model],
    train_images: int | None,
    device: torch.device,
    *,
    backend: str = "fast",
    tf32: bool = False,
    processes: int | None = None,
) -> Calibration:
    """Measure for a few seconds how fast a device trains and evaluates models, on random pixels.

    Args:
        models: models of one subset.
        train_images: the value of `--train-images`.
        device: where the build would train.
        backend: what would train.
        tf32: the value of `--tf32`.
        processes: processes that would train on a CPU; None: one per core.
    """
    if device.type == "cpu" and backend == "fast":
        # a node without Numba imports this module, and reports that itself
        from builder.training.cpu.backend import compile_step

        with compiling():
            compile_step(models[0].recipe.architecture.kind)
    workers = (
        min(processes or cores(), len(models))
        if device.type == "cpu"
        else min(streams_of(backend), len({model.cohort for model in models}))
    )
    at_once = workers if backend == "fast" else 1  # torch's Python threads would wait for each other
    backend_of = functools.partial(make_backend, device=device, name=backend, tf32=tf32)
    paces: dict[int, Pace] = {}
    measured: dict[Any, Pace] = {}
    with one_thread(device):
        for stratum in strata(models, train_images):
            middle = stratum[len(stratum) // 2]
            augmentations = frozenset(model.recipe.augmentation for model in stratum)
            # strata that differ in nothing that costs time share a measurement
            alike = middle.cohort, middle.recipe.activation, middle.recipe.optimizer, augmentations
            if alike not in measured:
                if middle.image is not None:
                    measured[alike] = _image_pace(middle, device, at_once, backend)
                else:
                    measured[alike] = _pace(stratum, models, train_images, device, at_once, backend_of)
            paces |= dict.fromkeys((model.number for model in stratum), measured[alike])
        middle = models[len(models) // 2]
        order, split = (0.0, 0.0) if middle.image is not None else _host_seconds(middle, device)
    return Calibration(device, workers, paces, order, split)


def combined(calibrations: Sequence[Calibration]) -> Calibration:
    """The calibration of a cluster of such nodes, with workers of equal speed and the same total speed."""
    workers, (first, *_) = [each.workers for each in calibrations], calibrations

    def mean(seconds: Sequence[float]) -> float:
        return sum(workers) / sum(count / each for count, each in zip(workers, seconds, strict=True))

    paces = {
        number: Pace(
            {
                augmented: mean([each.paces[number].training[augmented] for each in calibrations])
                for augmented in pace.training
            },
            mean([each.paces[number].evaluation for each in calibrations]),
        )
        for number, pace in first.paces.items()
    }
    order, split = mean([each.order for each in calibrations]), mean([each.split for each in calibrations])
    return Calibration(first.device, sum(workers), paces, order, split, nodes=len(calibrations))


def strata(models: Sequence[Model], train_images: int | None) -> list[list[Model]]:
    """Sort models by cost per image, then batch size; cut into at most STRATA groups of similar FLOPs."""
    ordered = sorted(
        models,
        key=lambda model: (forward_flops(model.recipe.architecture), model.recipe.batch_size, model.number),
    )
    flops = [min_epochs(model.recipe) * epoch_flops(model, train_images) for model in ordered]
    ends = list(itertools.accumulate(flops))
    groups = [int(STRATA * (end - own / 2) / ends[-1]) for own, end in zip(flops, ends, strict=True)]
    return [
        [model for _, model in group]
        for _, group in itertools.groupby(zip(groups, ordered, strict=True), key=lambda pair: pair[0])
    ]


def mean_segment(models: Sequence[Model], slots: int, train_images: int | None) -> float:
    """Mean steps from one end of an epoch to the next while models train as a cohort on a GPU.

    Models that stop by their accuracy are assumed to train for one to two times their minimum of epochs: they
    do not stop together, so the next models in their slots do not start together.

    Args:
        models: the cohort's models, in the order in which they train.
        slots: how many train together.
        train_images: the value of `--train-images`.
    """
    waiting = iter([(epoch_steps(model, train_images), _some_epochs(model)) for model in models])
    # steps left in an epoch, steps per epoch, epochs left
    training = [[length, length, epochs] for length, epochs in itertools.islice(waiting, slots)]
    steps = segments = 0
    while training and segments < SEGMENTS:
        count = min(left for left, _, _ in training)
        steps, segments = steps + count, segments + 1
        for slot in training:
            slot[0] -= count
            if slot[0] == 0:
                _, length, epochs = slot
                length, epochs = (length, epochs - 1) if epochs > 1 else next(waiting, (0, 0))
                slot[:] = length, length, epochs
        training = [slot for slot in training if slot[2]]
    return steps / segments


def _some_epochs(model: Model) -> int:
    least = min_epochs(model.recipe)
    return min(model.recipe.max_epochs, least + model.number % least)


# Measurements


def _pace(
    stratum: Sequence[Model],
    models: Sequence[Model],
    train_images: int | None,
    device: torch.device,
    workers: int,
    backend_of: Callable[[BaseArchitecture], Backend],
) -> Pace:
    """The speed of a stratum's middle model, without and with augmentation if the stratum has both.

    On a GPU it trains with its cohort, in segments of the cohort's mean length.
    """
    middle = stratum[len(stratum) // 2]
    cohort, apart = [middle], 0
    if device.type != "cpu":
        members = [model for model in models if model.cohort == middle.cohort]
        cohort = members[: slots_of(len(members))]
        apart = max(1, round(mean_segment(members, len(cohort), train_images)))
    architecture = middle.recipe.architecture
    images = _random_images(architecture, device, gray=IMAGE_SETS[middle.recipe.dataset].channels == 1)
    bank = {model.recipe.dataset: images for model in cohort}
    training = {}
    for augmentation in sorted({model.recipe.augmentation for model in stratum}):
        case = Case(middle.subset, tuple(_on_all_images(model, augmentation) for model in cohort))
        seconds = seconds_per_step(
            [CohortSteps(case, bank, device, backend_of(architecture), apart=apart) for _ in range(workers)],
            device,
        )
        training[augmentation] = seconds / (case.step_flops * len(cohort))
    seconds = seconds_per_step(
        [_Evaluation(middle, images, device, backend_of(architecture)) for _ in range(workers)], device
    )
    return Pace(training, seconds / (EVALUATED_IMAGES[device.type] * forward_flops(architecture)))


def _image_pace(model: Model, device: torch.device, workers: int, backend: str) -> Pace:
    """The same of networks that represent images; a FLOP of their evaluation takes as long as of training."""
    case, architecture = Case(model.subset, (model,)), model.recipe.architecture
    bank = {model.recipe.dataset: _random_images(architecture, device, gray=False)}
    backends = [make_image_backend(architecture, device, name=backend) for _ in range(workers)]
    seconds = seconds_per_step([ImageSteps(case, bank, device, each) for each in backends], device)
    pace = seconds / case.step_flops
    return Pace({False: pace, True: pace}, pace)


def _random_images(architecture: BaseArchitecture, device: torch.device, *, gray: bool) -> Images:
    shape = IMAGES, architecture.image_channels, architecture.image_size, architecture.image_size
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, shape, np.uint8)).to(device)
    labels = torch.arange(IMAGES, device=labels_on(device)) % NUM_CLASSES
    return Images(pixels, labels, pixels, labels, gray=gray)


def _on_all_images(model: Model, augmentation: bool) -> Model:
    """Let the model train on all random images, so that its epochs are long."""
    recipe = dataclasses.replace(model.recipe, augmentation=augmentation, train_fraction=1.0, balanced=False)
    return dataclasses.replace(model, recipe=recipe)


class _Evaluation:
    """Evaluates a model's row as in validation; that is one step."""

    models = 1

    def __init__(self, model: Model, images: Images, device: torch.device, backend: Backend) -> None:
        self.model, self.images, self.backend = model, images, backend
        self.row = torch.from_numpy(initial_row(model)).to(device)[None]
        self.index = torch.arange(EVALUATED_IMAGES[device.type], device=labels_on(device))

    def run(self, steps: int) -> None:
        for _ in range(steps):
            evaluate_rows(self.backend, self.row, self.model, self.images, self.index)


def seconds_per_step(contenders: Sequence[Contender], device: torch.device) -> float:
    """Seconds per step of one contender while all run, each in its own thread."""
    if device.type == "cuda":
        for contender in contenders:
            contender.run(1)  # compiles
        torch.cuda.synchronize()
    steps, counts = 1, False  # the first call is slower
    with ThreadPoolExecutor(len(contenders)) as pool:
        while True:
            runs = [functools.partial(contender.run, steps) for contender in contenders]
            elapsed = statistics.fmean(pool.map(_elapsed, runs, itertools.repeat(device)))
            if counts and elapsed >= SECONDS:
                return elapsed / steps
            # a bit more, so that the next run is the last
            steps, counts = math.ceil(1.2 * steps * SECONDS / elapsed), True


def _host_seconds(model: Model, device: torch.device) -> tuple[float, float]:
    """Seconds per image to make an epoch's order, and to choose the validation images."""
    labels = torch.arange(IMAGES, device=labels_on(device)) % NUM_CLASSES
    model = dataclasses.replace(model, recipe=dataclasses.replace(model.recipe, train_fraction=1.0))
    parts = split_images(model, labels)
    order = functools.partial(epoch_order, model, parts, labels, 0)
    split = functools.partial(split_images, model, labels)
    order()  # the first call is slower
    return _elapsed(order, device) / len(parts.train), _elapsed(split, device) / IMAGES


def _elapsed(action: Callable[[], object], device: torch.device) -> float:
    """Seconds of an action; on CUDA in its own stream, as cohorts run."""
    with torch.cuda.stream(torch.cuda.Stream(device)) if device.type == "cuda" else nullcontext():
        start = time.perf_counter()
        action()
        if device.type == "cuda":
            torch.cuda.current_stream(device).synchronize()
        elif device.type == "mps":
            torch.mps.synchronize()
        return time.perf_counter() - start
