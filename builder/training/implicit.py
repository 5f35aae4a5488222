"""Training of networks that represent one image each.

A network learns to map coordinates to pixel values. Every step sees all pixels, so an epoch is a step.

Axes: M models, B pixels, C channels, P weights, S snapshots.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch.func import functional_call, grad, vmap

from builder.image_sets import IMAGE_SETS
from builder.plan import Model
from builder.progress import Occupancy
from builder.rules import chosen_exports
from builder.trained import Trained
from builder.training import update
from builder.training.backend import State
from builder.training.bank import Bank, Images
from builder.training.device import one_thread
from builder.training.initial import initial_row
from nws_dataset.errors import ZooError
from nws_dataset.format.subsets import Subset
from nws_dataset.networks import kan, siren
from nws_dataset.networks.base import BaseArchitecture
from nws_dataset.networks.layout import layout_of
from nws_dataset.networks.network import Network, coordinates

STEPS = 100  # between two checks of a model for divergence and progress


class ImageBackend(Protocol):
    """Trains and evaluates networks of one architecture that represent one image each.

    A model's numbers do not depend on other models trained with it, except for rounding in plain torch on a
    GPU.
    """

    def train_images(self, state: State, targets: torch.Tensor, rates: list[float]) -> torch.Tensor:
        """Take training steps, in place.

        Args:
            state: rows, first and second moments, [M, P] each.
            targets: [M, B, C] values of the pixels, in the architecture's range.
            rates: each step's size, from `update.step_size`.

        Returns:
            [M]: the sum of each model's mean squared errors over the steps; not finite if one is not.
        """
        ...

    def evaluate_images(self, rows: torch.Tensor) -> torch.Tensor:
        """The networks' values at all pixels: rows [M, P] -> [M, B, C]."""
        ...


class TorchImageBackend:
    """`ImageBackend` in plain torch, for any kind and device.

    On a CPU, models are trained one by one, on a GPU together by vmap.

    Args:
        architecture: of the models.
        device: where the rows are.
        dtype: of the rows.
    """

    def __init__(
        self, architecture: BaseArchitecture, device: torch.device, dtype: torch.dtype = torch.float32
    ) -> None:
        self.architecture, self.device, self.layout = architecture, device, layout_of(architecture)
        self.coordinates = coordinates(architecture, dtype).to(device)
        with torch.device("meta"):
            self.network = Network(architecture)

    def train_images(self, state: State, targets: torch.Tensor, rates: list[float]) -> torch.Tensor:
        """See `ImageBackend.train_images`."""
        if self.device.type != "cpu":
            return self._train(state, targets, rates)
        alone = (slice(m, m + 1) for m in range(len(targets)))
        return torch.cat(
            [self._train((state[0][m], state[1][m], state[2][m]), targets[m], rates) for m in alone]
        )

    def _train(self, state: State, targets: torch.Tensor, rates: list[float]) -> torch.Tensor:
        rows, first, second = state

        def error(row: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            loss = F.mse_loss(self._values(row), target)
            return loss, loss

        gradient = vmap(grad(error, has_aux=True))
        losses = torch.zeros(len(rows), dtype=rows.dtype, device=rows.device)
        for rate in rates:
            slopes, loss = gradient(rows, targets)
            step = torch.full_like(losses, rate)[:, None]
            update.update("adam", rows, slopes, first, second, step)
            losses += loss
        return losses

    @torch.no_grad()
    def evaluate_images(self, rows: torch.Tensor) -> torch.Tensor:
        """See `ImageBackend.evaluate_images`."""
        return torch.stack([self._values(row) for row in rows])

    def _values(self, row: torch.Tensor) -> torch.Tensor:
        tensors = self.layout.views(row)
        values: torch.Tensor = functional_call(self.network, tensors, (self.coordinates,))
        return values


def make_image_backend(
    architecture: BaseArchitecture,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    *,
    name: str = "fast",
) -> ImageBackend:
    """The fastest backend for an architecture on a device, or plain torch if the name is "torch"."""
    if name == "fast" and device.type == "cpu":
        # imported only where needed, since compiling takes seconds
        if isinstance(architecture, siren.Architecture):
            from builder.training.cpu.siren import SirenBackend

            return SirenBackend(architecture, dtype)
        if isinstance(architecture, kan.Architecture):
            from builder.training.cpu.kan import KanBackend

            return KanBackend(architecture, dtype)
    return TorchImageBackend(architecture, device, dtype)


class ImageCohort:
    """Trains networks of one architecture that represent one image each.

    Args:
        subset: determines the epochs of snapshots.
        architecture: of all the models.
        bank: image sets by name, on the device.
        slots: how many models train together.
        dtype: float32; float64 for tests.
        on_epoch: called after each epoch of a model.
        backend: trains the models; None for the fastest.
        occupancy: records how many slots are in use.
    """

    def __init__(
        self,
        subset: Subset,
        architecture: BaseArchitecture,
        bank: Bank,
        *,
        device: torch.device,
        slots: int = 1,
        dtype: torch.dtype = torch.float32,
        on_epoch: Callable[[], None] = lambda: None,
        backend: ImageBackend | None = None,
        occupancy: Occupancy | None = None,
    ) -> None:
        self.subset, self.architecture, self.bank, self.device = subset, architecture, bank, device
        self.slots, self.dtype, self.on_epoch = slots, dtype, on_epoch
        self.backend = backend or make_image_backend(architecture, device, dtype)
        self.occupancy = occupancy or Occupancy()

    def train(self, models: Iterable[Model]) -> Iterator[Trained]:
        """Train models, as many at a time as there are slots, and yield each when it is finished."""
        queue = iter(models)
        with one_thread(self.device):
            while together := list(itertools.islice(queue, self.slots)):
                # models with other learning rates take their steps separately
                for group in _alike(together):
                    yield from self._train(group)

    def _train(self, models: list[Model]) -> Iterator[Trained]:
        recipe = models[0].recipe
        targets = torch.stack([self._target(model) for model in models])
        rows = torch.stack([torch.from_numpy(initial_row(model)) for model in models])
        rows = rows.to(self.device, self.dtype)
        state = rows, torch.zeros_like(rows), torch.zeros_like(rows)
        epochs = chosen_exports(self.subset, recipe.max_epochs, recipe.max_epochs + 1)
        finite = torch.ones(len(models), dtype=torch.bool)
        kept: list[torch.Tensor] = []  # [M, P] at each of the epochs
        ends = sorted({*epochs, *range(0, recipe.max_epochs, STEPS), recipe.max_epochs})
        for start, stop in itertools.pairwise([*ends, recipe.max_epochs]):
            if start in epochs:
                known = kept[-1] if kept else rows
                kept.append(torch.where(finite[:, None].to(rows.device), rows, known).clone())
            if start == stop:
                break
            rates = [
                update.step_size(recipe.optimizer, update.rate_of(recipe, step, 1), step + 1)
                for step in range(start, stop)
            ]
            losses = self.backend.train_images(state, targets, rates)
            finite &= (torch.isfinite(losses) & torch.isfinite(rows).all(1).to(losses.device)).cpu()
            self.occupancy.add(len(models) * len(rates), self.slots * len(rates))
            for _ in range(len(models) * len(rates)):
                self.on_epoch()
        for m, model in enumerate(models):
            yield self._finished(model, torch.stack([row[m] for row in kept]), epochs, bool(finite[m]))

    def _target(self, model: Model) -> torch.Tensor:
        """[B, C]: the pixel values that a model should learn."""
        pixels, _ = image_of(model, self.bank[model.recipe.dataset])
        return target_of(self.architecture, pixels, self.dtype)

    def _finished(self, model: Model, rows: torch.Tensor, epochs: list[int], finite: bool) -> Trained:
        pixels, label = image_of(model, self.bank[model.recipe.dataset])
        common = {"label": label, "diverged": not finite}
        columns = [
            {"epoch": epoch, "step": epoch, **common, **found}
            for epoch, found in zip(
                epochs, evaluate_image_rows(self.backend, self.architecture, rows, pixels), strict=True
            )
        ]
        return Trained(model, rows.cpu().float().numpy(), columns, model.recipe.max_epochs)


def _alike(models: list[Model]) -> list[list[Model]]:
    """Groups of models with the same step sizes."""
    groups: dict[Any, list[Model]] = {}
    for model in models:
        recipe = model.recipe
        key = recipe.learning_rate, recipe.schedule, recipe.learning_rate_end, recipe.max_epochs
        groups.setdefault((*key, recipe.learning_rate_decay), []).append(model)
    return list(groups.values())


def image_of(model: Model, images: Images) -> tuple[torch.Tensor, int]:
    """The image that a model represents, [C, H, W] uint8, and its class.

    Raises:
        ZooError: if the image set is not whole, or has no such image.
    """
    assert model.image is not None
    number, train = model.image, len(images.train_images)
    check_whole(model.recipe.dataset, train, len(images.test_images))
    count = train + len(images.test_images)
    if not 0 <= number < count:
        expected = f"an image of {model.recipe.dataset}, 0 to {count - 1}"
        raise ZooError(model.id, expected=expected, found=str(number), do="build it again")
    if number < train:
        return images.train_images[number], int(images.train_labels[number])
    return images.test_images[number - train], int(images.test_labels[number - train])


def check_whole(dataset: str, train_images: int, test_images: int) -> None:
    """Raise a ZooError unless an image set has all its images: networks are numbered by them."""
    facts = IMAGE_SETS[dataset]
    if (train_images, test_images) != (facts.train_images, facts.test_images):
        expected = f"{facts.train_images} + {facts.test_images} images: networks are numbered by them"
        found = f"{train_images} + {test_images}"
        raise ZooError(dataset, expected=expected, found=found, do="fetch the whole set")


def target_of(architecture: BaseArchitecture, pixels: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """[B, C]: the pixel values of an image [C, H, W] uint8 in the architecture's range."""
    scaled: torch.Tensor = architecture.scale(pixels.to(dtype) / 255)
    return scaled.flatten(1).T.contiguous()


def evaluate_image_rows(
    backend: ImageBackend, architecture: BaseArchitecture, rows: torch.Tensor, pixels: torch.Tensor
) -> list[dict[str, Any]]:
    """How well rows [S, P] of a model represent its image [C, H, W] uint8.

    Returns:
        S dicts of "train_loss", the mean squared error in the architecture's range, and "psnr" in dB.
    """
    target = target_of(architecture, pixels, torch.float64).cpu()
    found = backend.evaluate_images(rows).double().cpu()
    return [fit_of(architecture, values, target) for values in found]


def fit_of(architecture: BaseArchitecture, values: torch.Tensor, target: torch.Tensor) -> dict[str, Any]:
    """How well a network's values [B, C] give its image, as columns of the index."""
    mse, (low, high) = float(((values - target) ** 2).mean()), architecture.pixel_range
    return {"train_loss": mse, "psnr": psnr_of(mse, high - low)}


def psnr_of(mse: float, span: float) -> float | None:
    """The peak signal-to-noise ratio in dB for an error and the span of pixel values.

    None if the error is 0 or not finite.
    """
    return 10 * math.log10(span**2 / mse) if 0 < mse < math.inf else None
