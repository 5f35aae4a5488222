"""A cohort's images on its device: uint8, in the architecture's channels and size, gathered by index."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from builder.images import ImageSet, prepare
from nws_dataset.networks.base import BaseArchitecture


@dataclass(frozen=True)
class Images:
    """One image set as a network sees it."""

    train_images: torch.Tensor  # [N, C, H, W] uint8
    train_labels: torch.Tensor  # [N] int64
    test_images: torch.Tensor
    test_labels: torch.Tensor
    gray: bool  # all channels of an image are equal

    @classmethod
    def on(cls, device: torch.device, arrays: Mapping[str, np.ndarray], *, gray: bool) -> Images:
        """Move the arrays of ARRAYS to a device."""
        tensors = {key: torch.from_numpy(array) for key, array in arrays.items()}
        return cls(
            **{
                key: x.to(device if key.endswith("images") else labels_on(device))
                for key, x in tensors.items()
            },
            gray=gray,
        )

    @property
    def majority_rate(self) -> float:
        """Share of the most common class among the test images: the accuracy of a constant answer."""
        return int(torch.bincount(self.test_labels).max()) / len(self.test_labels)


def labels_on(device: torch.device) -> torch.device:
    """Where to keep a device's 64-bit data (labels, orders, random words): never on Apple's GPUs."""
    return torch.device("cpu") if device.type == "mps" else device


Bank = Mapping[str, Images]  # data set -> its images

ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")


def bank_of(
    image_sets: Mapping[str, ImageSet],
    architecture: BaseArchitecture,
    device: torch.device,
    train_images: int | None = None,
) -> Bank:
    """Prepare image sets for an architecture's input, on a device.

    Args:
        image_sets: name -> images in their own size and channels.
        architecture: gives image_channels and image_size.
        device: where to put the images.
        train_images: how many of the training images to keep, the first ones; None: all.
    """
    bank = {}
    for name, images in image_sets.items():
        arrays = prepared(images, architecture, train_images)
        bank[name] = Images.on(device, arrays, gray=images.train_images.shape[1] == 1)
    return bank


def prepared(
    images: ImageSet, architecture: BaseArchitecture, train_images: int | None = None
) -> dict[str, np.ndarray]:
    """The four arrays of `Images`, prepared for an architecture's input."""
    channels, size = architecture.image_channels, architecture.image_size
    return {
        "train_images": prepare(images.train_images[:train_images], channels, size),
        "train_labels": images.train_labels[:train_images],
        "test_images": prepare(images.test_images, channels, size),
        "test_labels": images.test_labels,
    }


def save(images: ImageSet, architecture: BaseArchitecture, train_images: int | None, folder: Path) -> None:
    """Write an image set's arrays where worker processes can map them, once per input."""
    target = _folder(folder, images.name, architecture)
    if not target.exists():
        target.mkdir(parents=True)
        for key, array in prepared(images, architecture, train_images).items():
            np.save(target / f"{key}.npy", array)
        np.save(target / "gray.npy", images.train_images.shape[1] == 1)


def load(dataset: str, architecture: BaseArchitecture, device: torch.device, folder: Path) -> Images:
    """Load the images that `save` wrote; on the CPU all processes share one copy of the pixels."""
    source = _folder(folder, dataset, architecture)
    # Mode "c" maps copy-on-write: torch wants writable memory, though nothing here writes.
    arrays = {key: np.load(source / f"{key}.npy", mmap_mode="c") for key in ARRAYS}
    return Images.on(device, arrays, gray=bool(np.load(source / "gray.npy")))


def _folder(folder: Path, dataset: str, architecture: BaseArchitecture) -> Path:
    return folder / f"{dataset}-{architecture.image_channels}x{architecture.image_size}"
