"""The layout of the Small CNN Zoo (Unterthiner et al. 2020): a folder per image set, with three files.

    weights.npy       float32, one row per snapshot, tensors in Keras' shapes: kernels height, width, in, out
    layout.csv        which numbers of a row belong to which tensor
    metrics.csv.gz    one line per snapshot, in the rows' order: the recipe (config.*), the model (modeldir),
                      the epoch (step), the results; the first column, without a name, is the checkpoint's

The authors' notebook calls the first and the last all_weights.npy and all_metrics.csv, and needs no
layout.csv.

Axes: P weights, O units, I inputs, H W height and width.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nws_dataset.files import path_type
from nws_dataset.format.subsets import SUBSETS, Family, subsets_of
from nws_dataset.networks.cnn import Architecture
from nws_dataset.networks.layout import Layout, layout_of

((LIKE, SUBSET),) = subsets_of("small_cnn").items()
PLAN = SUBSETS[LIKE]
FAMILY: Family
(FAMILY,) = PLAN.families
WEIGHTS, LAYOUT, METRICS = FILES = ("weights.npy", "layout.csv", "metrics.csv.gz")
NOTEBOOK_WEIGHTS, NOTEBOOK_METRICS = NOTEBOOK_FILES = ("all_weights.npy", "all_metrics.csv")
SPLIT = "split.csv"  # the order of rows from which NFN and its successors take splits
CHECKPOINT = ""  # name of the metrics' first column
CHECKPOINT_NAME = re.compile(r"(?P<model>.*)/[^/]*-(?P<epoch>\d{1,9})/?")  # .../permanent_ckpt-86
MODEL, STEP = "modeldir", "step"
DATASETS = {"svhn_cropped": "svhn"}  # the release's name -> ours, if different
INITIALIZATIONS = {"RandomNormal": "random_normal", "TruncatedNormal": "truncated_normal"}
TEXTS = {
    "config.dataset": "dataset",
    "config.optimizer": "optimizer",
    "config.activation": "activation",
    "config.w_init": "initialization",
}
NUMBERS = {
    "config.learning_rate": "learning_rate",
    "config.init_std": "init_std",
    "config.l2reg": "l2",
    "config.dropout": "dropout",
    "config.train_fraction": "train_fraction",
}
EPOCHS = "config.epochs"  # planned epochs of a model
RANDOM_SEED = "config.random_seed"  # of a model's training
# the same for all networks of the release
CONSTANT = {
    "config.b_init": "zeros",
    "config.dnn_architecture": "cnn",
    "config.epochs_between_checkpoints": 20,
    "config.num_layers": 3,
    "config.num_units": 16,
}
RESULTS = ("test_accuracy", "test_loss", "train_accuracy", "train_loss")
LAYOUT_COLUMNS = ("varname", "start_idx", "end_idx", "shape")


def checkpoint_name(model: str, epoch: int) -> str:
    """The metrics' first column."""
    return f"{model}/permanent_ckpt-{epoch}"


def file_of(folder: Path, name: str, notebook_name: str) -> Path:
    """A file of an image set, under the release's name or the notebook's."""
    if path_type(folder / name) == "nothing" and path_type(folder / notebook_name) != "nothing":
        return folder / notebook_name
    return folder / name


@functools.cache
def num_weights() -> int:
    """P, the same for all image sets."""
    fields = {field.name for field in dataclasses.fields(Architecture)}
    shape = {name: value for name, value in FAMILY.items() if name in fields}
    (size, *_) = shape["image_size"].values.values()
    return layout_of(Architecture(**{**shape, "image_size": size})).num_weights


@dataclass(frozen=True)
class Entry:
    """A line of layout.csv: one tensor."""

    name: str  # Keras' name, e.g. sequential/conv2d/kernel:0
    start: int
    stop: int
    shape: tuple[int, ...]

    @property
    def kind(self) -> str:
        """ "kernel" or "bias"."""
        return self.name.split("/")[-1].split(":")[0]


def published_entries(layout: Layout) -> list[Entry]:
    """The lines of the release's layout.csv: layer by layer the bias, then the kernel."""
    entries: list[Entry] = []
    counts: dict[str, int] = {}
    for layer in layout.layers:
        shape_OI = layout[f"{layer}.weight"].shape
        kind = "conv2d" if len(shape_OI) == 4 else "dense"
        counts[kind] = counts.get(kind, 0) + 1
        name = kind if counts[kind] == 1 else f"{kind}_{counts[kind] - 1}"
        for tensor, shape in (("bias", shape_OI[:1]), ("kernel", keras_shape(shape_OI))):
            start = entries[-1].stop if entries else 0
            entries.append(Entry(f"sequential/{name}/{tensor}:0", start, start + math.prod(shape), shape))
    return entries


def keras_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """[O, I] or [O, I, H, W] -> [I, O] or [H, W, I, O]."""
    return (*shape[2:], *shape[1::-1])


def row_order(entries: Sequence[Entry], num_weights: int) -> np.ndarray:
    """Where each number of our row is in the release's: [P].

    Args:
        entries: kernels and biases, each kind in the order of the layers.
        num_weights: P.
    """
    indices_P = np.arange(num_weights)
    kernels, biases = ([entry for entry in entries if entry.kind == kind] for kind in ("kernel", "bias"))
    parts = []
    for kernel, bias in zip(kernels, biases, strict=True):
        indices_HWIO = indices_P[kernel.start : kernel.stop].reshape(kernel.shape)
        parts += [np.moveaxis(indices_HWIO, (-1, -2), (0, 1)).ravel(), indices_P[bias.start : bias.stop]]
    return np.concatenate(parts)
