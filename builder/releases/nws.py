"""The layout of the original neural weight space (Eilertsen et al. 2020).

    nws_<part>_<split>.csv          one line per net: its recipe, and its folder `path`
    <path>/weights/001.bin ...      the snapshots, float64, layer by layer
    <path>/error.bin                five float64 per epoch: step, errors in percent (training, validation,
                                    test, smoothed validation)
    <path>/stat.bin                 four float64: number of exported epochs, last step, last epoch, seconds
    <path>/meta.csv                 the net's recipe

Axes: P weights, O units, H W height and width, C channels.
"""

from __future__ import annotations

import functools
import itertools
import operator
from pathlib import Path

import numpy as np

from builder.rules import chosen_exports
from nws_dataset.format.subsets import SUBSETS, subsets_of
from nws_dataset.networks.base import NUM_CLASSES
from nws_dataset.networks.cnn import Architecture
from nws_dataset.networks.layout import layout_of

PARTS = subsets_of("nws")  # "main" and "fixed", the release's names and our subsets' -> imported subset
LISTED_SPLITS = ("train", "test")  # each has a file that lists its nets
OUTPUTS = (20, NUM_CLASSES)  # of the release's nets, and of ours
DTYPE = np.dtype("<f8")
# order of a layer's tensors
ROLE_ORDER = ("weight", "bias", "norm_bias", "norm_weight", "norm_mean", "norm_variance")
ERROR_COLUMNS = 5  # of error.bin
STAT_NUMBERS = 4  # of stat.bin
DATASETS = {"fashion": "fashion_mnist"}  # the release's name -> ours, if different
# given as an index into the family's values, as a data set may be
CODED = ("optimizer", "activation", "initialization")
FLAGS = ("batch_norm", "augmentation")
SIZES = ("filter_size", "depth_conv", "depth_fc", "width_conv", "width_fc")
PROPERTIES = ("dataset", "lrate", "batch_size", *FLAGS, *CODED, *SIZES)  # in the order of meta.csv
WHOLE = ("batch_size", *FLAGS, *SIZES)
PATH = "path"  # a net's folder, in a split file
NUM_CONV, NUM_DENSE = COUNTS = ("weightn_conv", "weightn_fc")  # a net's numbers of weights, in a split file
META, ERRORS, STATISTICS = "meta.csv", "error.bin", "stat.bin"  # in a net's folder
WEIGHTS = "weights"  # folder of a net's snapshots


def split_file(root: Path, part: str, split: str) -> Path:
    """The file that lists the nets of a part's split."""
    return root / f"nws_{part}_{split}.csv"


def weights_file(folder: Path, snapshot: int) -> Path:
    """The file of a net's snapshot, counted from 0."""
    return folder / WEIGHTS / f"{snapshot + 1:03d}.bin"


def epochs_of(part: str, max_epochs: int, exports: int) -> list[int]:
    """The epochs of a net's snapshots, which readers derive from the number of exports."""
    return chosen_exports(SUBSETS[part], max_epochs, exports)


@functools.cache
def row_order(architecture: Architecture) -> np.ndarray:
    """Where each number of our row is in the release's: [P]."""
    found, start = {}, 0
    layout = layout_of(architecture)
    for _, layer in itertools.groupby(layout.tensors, operator.attrgetter("layer")):
        for spec in sorted(layer, key=lambda spec: ROLE_ORDER.index(spec.role)):
            found[spec.name] = np.arange(start, start + spec.size)
            start += spec.size
    size = architecture.map_sizes[-1]
    first_OHWC = found["dense1.weight"].reshape(-1, size, size, architecture.conv_widths[-1])
    found["dense1.weight"] = first_OHWC.transpose(0, 3, 1, 2).ravel()
    return np.concatenate([found[spec.name] for spec in layout.tensors])


def counts(architecture: Architecture) -> tuple[int, int]:
    """Numbers of weights in a net's convolutions and in its dense layers: `weightn_conv`, `weightn_fc`."""
    layout = layout_of(architecture)
    convolutions = sum(spec.size for spec in layout.tensors if spec.layer.startswith("conv"))
    return convolutions, layout.num_weights - convolutions
