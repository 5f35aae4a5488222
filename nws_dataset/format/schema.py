"""The columns of the data set: one Arrow schema for all subsets, derived from `Recipe` and `Architecture`.

`METADATA_SCHEMA` says what a snapshot is and how it came about. The index adds where its weights are, the
snapshots files add the weights.
"""

from __future__ import annotations

import dataclasses
import typing
from typing import Any

import pyarrow as pa

from nws_dataset.format.recipe import Architecture, Recipe

SPLITS = ("train", "validation", "test")
MAX_MODELS = 10**6  # model_id has six digits, so that its alphabetical order is that of the numbers

_ARROW_TYPES = {str: pa.string(), float: pa.float64(), int: pa.int64(), bool: pa.bool_()}
_CARD_TYPES = {
    pa.string(): "string",
    pa.float64(): "float64",
    pa.int64(): "int64",
    pa.bool_(): "bool",
    pa.large_binary(): "large_binary",
}


def model_id(subset: str, number: int) -> str:
    """The name of a model, unique in a repository.

    Raises:
        ValueError: if the number does not fit in six digits.

    Example:
        >>> model_id("main", 123)
        'main-000123'
    """
    if not 0 <= number < MAX_MODELS:
        raise ValueError(f"model number: expected 0 to {MAX_MODELS - 1}, found {number}")
    return f"{subset}-{number:06d}"


def _field(name: str, python_type: Any) -> pa.Field:
    """A column of a Python type; `X | None` allows null, and only that."""
    types = typing.get_args(python_type) or (python_type,)
    (plain,) = (k for k in types if k is not type(None))
    return pa.field(name, _ARROW_TYPES[plain], nullable=type(None) in types)


def _dataclass_fields(cls: type) -> list[pa.Field]:
    """A column for each field of a dataclass; `architecture` is not one, its own fields stand beside the
    recipe's.
    """
    types = typing.get_type_hints(cls)
    return [
        _field(field.name, types[field.name])
        for field in dataclasses.fields(cls)
        if field.name != "architecture"
    ]


METADATA_SCHEMA = pa.schema(
    [
        _field("model_id", str),
        _field("subset", str),
        _field("split", str),
        _field("model_number", int),
        _field("seed", int | None),
        _field("snapshot", int),
        _field("num_snapshots", int),
        _field("is_final", bool),
        _field("epoch", int),
        _field("step", int),
        *_dataclass_fields(Recipe),
        *_dataclass_fields(Architecture),
        _field("architecture", str),
        _field("architecture_json", str),
        _field("num_weights", int),
        _field("train_accuracy", float),
        _field("validation_accuracy", float | None),
        _field("test_accuracy", float),
        _field("train_loss", float | None),
        _field("validation_loss", float | None),
        _field("test_loss", float | None),
        pa.field("class_test_accuracy", pa.list_(pa.float64())),
        _field("converged", bool),
        _field("diverged", bool),
    ]
)
INDEX_SCHEMA = pa.schema(
    [
        *METADATA_SCHEMA,
        _field("file", str),
        _field("offset", int),
        _field("length", int),
        _field("sha256", str),
    ]
)
SNAPSHOTS_SCHEMA = pa.schema([*METADATA_SCHEMA, pa.field("weights", pa.large_binary(), nullable=False)])

COLUMNS: dict[str, str] = {
    "model_id": "name of the model, unique in the repository, e.g. main-000123",
    "subset": "part of the zoo that was drawn from one distribution",
    "split": "train, validation or test; all snapshots of a model are in one split",
    "model_number": "number of the model in its subset, from 0",
    "seed": "seed of the build, or of an imported model's training; null if an imported zoo does not tell it",
    "snapshot": "number of the snapshot of its model, 1 to num_snapshots",
    "num_snapshots": "snapshots of each model of the subset",
    "is_final": "whether this is the model's last snapshot",
    "epoch": "epochs trained before the snapshot",
    "step": "optimizer updates before the snapshot",
    "dataset": "images that the model was trained on",
    "learning_rate": "learning rate of the first epoch",
    "batch_size": "images in a training batch",
    "optimizer": "update rule: adam, rmsprop, momentum (0.95) or sgd",
    "activation": "activation function: relu, elu, sigmoid or tanh",
    "initialization": "distribution of the first weights",
    "init_std": "standard deviation of random_normal and truncated_normal initialization, else null",
    "augmentation": "whether training images were randomly changed",
    "dropout": "probability that a unit is dropped in training",
    "l2": "factor of the kernels' sum of squares in the loss",
    "train_fraction": "part of the training images that was used, 0 to 1",
    "validation_fraction": "part of those that was held out for validation, 0 to 1",
    "balanced": "whether each epoch was re-drawn to equal class counts",
    "learning_rate_decay": "factor of the learning rate per epoch",
    "max_epochs": "epochs after which training ends at the latest",
    "early_stopping": "whether training ends when the validation accuracy no longer rises",
    "filter_size": "height and width of the convolution kernels",
    "depth_conv": "number of convolutions",
    "width_conv": "channels of the first block of convolutions",
    "width_growth": "factor of the channels from block to block",
    "stride": "stride of the convolutions",
    "padding": "same or valid",
    "pooling": "max: each block ends in a 2x2 max-pool; or none",
    "head": "what follows the convolutions: flatten or global average",
    "depth_fc": "number of hidden dense layers",
    "width_fc": "units of the first hidden dense layer, halved at each further one; null without hidden "
    "layers",
    "batch_norm": "whether hidden layers have batch-norm",
    "dropout_place": "layers that dropout closes: dense or conv",
    "image_channels": "1 gray, 3 colour",
    "image_size": "height and width of the images in pixels",
    "pixel_min": "pixels enter the network scaled to pixel_min .. 1",
    "num_outputs": "units of the output layer; the first 10 stand for the classes",
    "architecture": "short name of the architecture; one name, one layout of the weights",
    "architecture_json": "fields of the architecture as JSON",
    "num_weights": "numbers in the network's row, batch-norm's running statistics included",
    "train_accuracy": "accuracy on the training images, 0 to 1",
    "validation_accuracy": "accuracy on the validation images, 0 to 1; null without a validation part",
    "test_accuracy": "accuracy on the test images, 0 to 1",
    "train_loss": "mean cross-entropy on the training images, in nats; null if an imported zoo does not "
    "tell it",
    "validation_loss": "mean cross-entropy on the validation images, in nats; null without a validation part",
    "test_loss": "mean cross-entropy on the test images, in nats; null if an imported zoo does not tell it",
    "class_test_accuracy": "accuracy on the test images of each of the 10 classes, 0 to 1; null if an "
    "imported zoo does not tell it",
    "converged": "whether the final test accuracy is at least 5 points above the majority class's rate",
    "diverged": "whether a loss or weight was not finite; the weights are then those of the last finite "
    "epoch's start",
    "file": "snapshots file that holds the weights, relative to the repository",
    "offset": "first byte of the weights' safetensors value in that file",
    "length": "bytes of that value",
    "sha256": "SHA-256 of that value",
    "weights": "the network as a complete safetensors file, named as the reference network's state_dict",
}


def card_features(schema: pa.Schema) -> list[dict[str, str]]:
    """The columns in the Hub's format, as a card's YAML lists them under `features:`.

    Args:
        schema: INDEX_SCHEMA or SNAPSHOTS_SCHEMA.

    Returns:
        One {"name": ..., "dtype": ...} per column; lists have "list" in place of "dtype".

    Example:
        >>> card_features(pa.schema([("epoch", pa.int64())]))
        [{'name': 'epoch', 'dtype': 'int64'}]
    """

    def card_type(column: pa.DataType) -> dict[str, str]:
        return (
            {"list": _CARD_TYPES[column.value_type]}
            if pa.types.is_list(column)
            else {"dtype": _CARD_TYPES[column]}
        )

    return [{"name": field.name, **card_type(field.type)} for field in schema]
