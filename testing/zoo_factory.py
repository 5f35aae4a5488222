"""A small valid zoo of random weights for tests, written by the package's own writers."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import yaml

from nws_dataset.files import sha256_file
from nws_dataset.format.manifest import COPIES, FileEntry, ImageSource, Manifest, SubsetEntry, configs
from nws_dataset.format.recipe import Recipe
from nws_dataset.format.schema import INDEX_SCHEMA, METADATA_SCHEMA, SPLITS, model_id
from nws_dataset.format.shards import pack, read_index, write_index, write_snapshots
from nws_dataset.networks.base import NUM_CLASSES, BaseArchitecture
from nws_dataset.networks.cnn import Architecture
from nws_dataset.networks.layout import layout_of

PLAIN = Architecture(
    filter_size=3, width_conv=4, width_growth=1, stride=2, padding="valid", pooling="none", head="average",
    depth_fc=0, width_fc=None,
    batch_norm=False, dropout_place="conv", image_channels=1, image_size=28, pixel_min=-1,
)  # fmt: skip
NORMED = Architecture(filter_size=3, width_conv=4, width_fc=16, image_size=16)
ARCHITECTURES = (PLAIN, NORMED)


def make_recipe(architecture: BaseArchitecture, number: int = 0) -> Recipe:
    """A legal recipe; its data set and activation follow from the model's number."""
    return Recipe(
        architecture,
        dataset=("mnist", "cifar10", "svhn")[number % 3],
        learning_rate=0.001 * (number + 1),
        batch_size=32,
        optimizer="adam",
        activation=("relu", "tanh")[number % 2],
        initialization="glorot_uniform",
        dropout=0.5,
        validation_fraction=0.1 if number % 2 else 0.0,
    )


def split_of(number: int) -> str:
    """A model's split: of five models three are train, one validation, one test."""
    return SPLITS[max(number % 5 - 2, 0)]


def make_metadata(
    recipe: Recipe,
    *,
    subset: str,
    number: int,
    snapshot: int,
    snapshots: int,
    split: str,
    random: np.random.Generator,
) -> dict[str, Any]:
    """The metadata of one snapshot, METADATA_SCHEMA as a dict, with random results."""
    architecture, held_out = recipe.architecture, recipe.validation_fraction > 0
    accuracies = random.random(3)
    return {
        "model_id": model_id(subset, number),
        "subset": subset,
        "split": split,
        "model_number": number,
        "seed": 7,
        "snapshot": snapshot,
        "num_snapshots": snapshots,
        "is_final": snapshot == snapshots,
        "epoch": snapshot,
        "step": 100 * snapshot,
        **recipe.columns(),
        "architecture": architecture.id,
        "architecture_json": architecture.to_json(),
        "num_weights": layout_of(architecture).num_weights,
        "train_accuracy": accuracies[0],
        "validation_accuracy": accuracies[1] if held_out else None,
        "test_accuracy": accuracies[2],
        "train_loss": random.random(),
        "validation_loss": random.random() if held_out else None,
        "test_loss": random.random(),
        "class_test_accuracy": random.random(NUM_CLASSES).tolist(),
        "converged": bool(accuracies[2] > 0.15),
        "diverged": False,
    }


def make_shard(
    folder: Path,
    relative: str,
    architecture: BaseArchitecture,
    *,
    subset: str = "demo",
    split: str = "train",
    numbers: Sequence[int] = (0, 2, 4),
    snapshots: int = 3,
    seed: int = 0,
) -> tuple[pa.Table, list[bytes]]:
    """Write a snapshots file of random networks; return its lines of the index and its values."""
    random = np.random.default_rng([seed, numbers[0]])
    num_weights = layout_of(architecture).num_weights
    metadata, values = [], []
    for snapshot, number in itertools.product(range(1, snapshots + 1), numbers):
        recipe = make_recipe(architecture, number)
        names: dict[str, Any] = {
            "subset": subset,
            "number": number,
            "snapshot": snapshot,
            "snapshots": snapshots,
            "split": split,
        }
        metadata.append(make_metadata(recipe, **names, random=random))
        values.append(pack(architecture, random.standard_normal(num_weights, np.float32)))
    index = write_snapshots(
        folder / relative, pa.Table.from_pylist(metadata, METADATA_SCHEMA), values, relative=relative
    )
    return index, values


def make_zoo(
    folder: Path, subsets: Sequence[str] = ("demo",), models: int = 10, snapshots: int = 3, seed: int = 0
) -> Path:
    """Write a zoo of random networks.

    Args:
        folder: where to write; created if missing.
        subsets: their names.
        models: models per subset; model n has ARCHITECTURES[n % 2] and is in `split_of(n)`.
        snapshots: snapshots per model.
        seed: of the random weights and results.

    Returns:
        The folder, with snapshots, index, nws.json and a card that stock `datasets` reads.
    """
    blank = Manifest("test", {}, {})
    paths: list[str] = []
    for subset, split in itertools.product(subsets, SPLITS):
        tables = []
        for parity, architecture in enumerate(ARCHITECTURES):
            numbers = [n for n in range(models) if n % 2 == parity and split_of(n) == split]
            if numbers:
                paths.append(
                    blank.snapshots_path.format(
                        subset=subset, split=split, architecture=architecture.id, block=0
                    )
                )
                part: dict[str, Any] = {
                    "subset": subset,
                    "split": split,
                    "numbers": numbers,
                    "snapshots": snapshots,
                    "seed": seed,
                }
                tables.append(make_shard(folder, paths[-1], architecture, **part)[0])
        if tables:
            paths.append(blank.index_path.format(subset=subset, split=split))
            write_index(folder / paths[-1], pa.concat_tables(tables))
    write_manifest(folder, subsets, models, paths)
    return folder


def use_copy(folder: Path) -> str:
    """Let nws.json say that CIFAR-10's images came from a copy; return the name of results on it."""
    manifest = Manifest.read(folder)
    images = {"cifar10": ImageSource("Parquet somewhere", COPIES[0].sha256)}
    subsets = {
        name: dataclasses.replace(entry, image_sets=images) for name, entry in manifest.subsets.items()
    }
    dataclasses.replace(manifest, subsets=subsets).write(folder)
    return COPIES[0].name


def write_manifest(folder: Path, subsets: Sequence[str], models: int, paths: Sequence[str]) -> Manifest:
    """Write nws.json and README.md for existing files."""
    images = {"mnist": ImageSource("random", hashlib.sha256(b"").hexdigest())}
    entries = {
        subset: SubsetEntry(7, models, {"epochs": None, "train_images": None}, images) for subset in subsets
    }
    files = {path: FileEntry((folder / path).stat().st_size, sha256_file(folder / path)) for path in paths}
    manifest = Manifest("test", entries, files)
    manifest.write(folder)
    index = pa.concat_tables(
        [INDEX_SCHEMA.empty_table(), *(read_index(folder / path) for path in manifest.index_files())]
    )
    (folder / "README.md").write_text(
        f"---\n{yaml.safe_dump(configs(manifest, index), sort_keys=False)}---\n"
    )
    return manifest
