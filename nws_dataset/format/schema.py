"""The columns of the data set: one Arrow schema for all subsets, derived from `Recipe` and the
architectures of all kinds.

`METADATA_SCHEMA` says what a snapshot is and how it was trained. The index adds where its weights are, the
snapshots files add the weights themselves.
"""

from __future__ import annotations

import dataclasses
import typing
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from nws_dataset.format.recipe import Recipe
from nws_dataset.networks import cnn, columns_of_architectures

SPLITS = ("train", "validation", "test")
DIGITS = 6  # of a model_id, unless its subset has more models: its alphabetical order is that of the numbers

_ARROW_TYPES = {str: pa.string(), float: pa.float64(), int: pa.int64(), bool: pa.bool_()}
_CARD_TYPES = {
    pa.string(): "string",
    pa.float64(): "float64",
    pa.int64(): "int64",
    pa.bool_(): "bool",
    pa.large_binary(): "large_binary",
}


def model_id(subset: str, number: int, digits: int = DIGITS) -> str:
    """The name of a model, unique in a repository.

    Raises:
        ValueError: if the number does not fit in so many digits.

    Example:
        >>> model_id("main", 123)
        'main-000123'
    """
    if not 0 <= number < 10**digits:
        raise ValueError(f"model number: expected 0 to {10**digits - 1}, found {number}")
    return f"{subset}-{number:0{digits}d}"


def _field(name: str, python_type: Any) -> pa.Field:
    """A column of a Python type; `X | None` allows null, and only that."""
    types = typing.get_args(python_type) or (python_type,)
    (plain,) = (k for k in types if k is not type(None))
    return pa.field(name, _ARROW_TYPES[plain], nullable=type(None) in types)


def _recipe_columns() -> list[tuple[str, Any]]:
    """The recipe's fields and their types; the architecture's stand beside them."""
    hints = typing.get_type_hints(Recipe)
    names = (field.name for field in dataclasses.fields(Recipe))
    return [(name, hints[name]) for name in names if name != "architecture"]


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
        *(_field(name, hint) for name, hint in _recipe_columns()),
        _field("kind", str),
        *(_field(name, hint) for name, hint in columns_of_architectures().items()),
        _field("architecture", str),
        _field("architecture_json", str),
        _field("num_weights", int),
        _field("edge_threshold", float | None),
        _field("image", int | None),
        _field("label", int | None),
        _field("psnr", float | None),
        _field("train_accuracy", float | None),
        _field("validation_accuracy", float | None),
        _field("test_accuracy", float | None),
        _field("train_loss", float | None),
        _field("validation_loss", float | None),
        _field("test_loss", float | None),
        pa.field("class_test_accuracy", pa.list_(pa.float64())),
        _field("converged", bool | None),
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
        _field("edge_scores_offset", int | None),
        _field("edge_scores_length", int | None),
        _field("edge_scores_sha256", str | None),
    ]
)
VALUES = ("weights", "edge_scores")  # columns of the snapshots files that hold a safetensors file each
SNAPSHOTS_SCHEMA = pa.schema(
    [
        *METADATA_SCHEMA,
        pa.field("weights", pa.large_binary(), nullable=False),
        pa.field("edge_scores", pa.large_binary()),
    ]
)

# Version 2 of the format knew convolutional networks alone. Columns that it lacks, and what they are there.
_ADDED_TO_RECIPE = (
    *("augmentation_policy", "schedule", "learning_rate_end", "warmup_epochs", "weight_decay"),
    *("label_noise", "label_smoothing", "convention"),
)
ADDED_IN_3: dict[str, Any] = {
    **{f.name: f.default for f in dataclasses.fields(Recipe) if f.name in _ADDED_TO_RECIPE},
    "kind": cnn.Architecture.kind,
    **dict.fromkeys(
        columns_of_architectures().keys() - {field.name for field in dataclasses.fields(cnn.Architecture)}
    ),
    **dict.fromkeys(("edge_threshold", "image", "label", "psnr", "edge_scores")),
    **dict.fromkeys(name for name in INDEX_SCHEMA.names if name.startswith("edge_scores_")),
}


def of_version_2(schema: pa.Schema) -> pa.Schema:
    """The same columns as version 2 of the format had them."""
    return pa.schema([field for field in schema if field.name not in ADDED_IN_3])


def is_of_version_2(found: pa.Schema, schema: pa.Schema) -> bool:
    """Whether a file's columns are those of version 2; which of them may be null has changed since."""
    expected = of_version_2(schema)
    return found.names == expected.names and found.types == expected.types


def from_version_2(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Snapshots of version 2 with the columns of today; `schema` names those that are wanted."""
    columns = []
    for field in schema:
        if field.name in ADDED_IN_3:
            column = pa.repeat(pa.scalar(ADDED_IN_3[field.name], field.type), len(table))
        else:
            column = table[field.name]
            column = with_kind(column) if field.name == "architecture_json" else column
        columns.append(column)
    return pa.table(columns, schema=schema)


def with_kind(texts: Any) -> Any:
    """Architectures of version 2 as JSON that names their kind; an array of text, encoded or not."""
    if isinstance(texts, pa.ChunkedArray):
        return pa.chunked_array([with_kind(chunk) for chunk in texts.chunks], texts.type)
    if isinstance(texts, pa.DictionaryArray):
        return pa.DictionaryArray.from_arrays(texts.indices, with_kind(texts.dictionary))
    return pc.replace_substring_regex(texts, r"^\{", f'{{"kind":"{cnn.Architecture.kind}",')


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
    "optimizer": "update rule: adam, rmsprop, momentum (0.95), sgd or adamw",
    "activation": "activation function: relu, elu, sigmoid, tanh; sine of sirens, silu of kans",
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
    "augmentation_policy": "how images are changed if augmentation is true: nws (Eilertsen et al.) or "
    "flip_shift_cutout",
    "schedule": "of the learning rate: decay by a factor per epoch, cosine, or triangle",
    "learning_rate_end": "learning rate at the end of a cosine",
    "warmup_epochs": "epochs in which the learning rate of a triangle rises from 0",
    "weight_decay": "decoupled weight decay of adamw",
    "label_noise": "probability that a training image's label was drawn anew",
    "label_smoothing": "part of a label's probability that all classes shared in training",
    "convention": "of networks that represent an image: dws or nfn; else null",
    "kind": "kind of network: cnn, siren, kan or resnet",
    "filter_size": "height and width of the convolution kernels",
    "depth_conv": "number of convolutions",
    "width_conv": "channels of the first block of convolutions",
    "width_growth": "factor of the channels from block to block",
    "stride": "stride of the convolutions",
    "padding": "same or valid",
    "pooling": "max: each block ends in a 2x2 max-pool; or none",
    "head": "what follows the convolutions: flatten, or average (over all positions)",
    "depth_fc": "number of hidden dense layers",
    "width_fc": "units of the first hidden dense layer, halved at each further one; null without hidden "
    "layers",
    "batch_norm": "whether hidden layers have batch-norm",
    "dropout_place": "layers that dropout follows: dense or conv",
    "image_channels": "1 gray, 3 colour",
    "image_size": "height and width of the images in pixels",
    "pixel_min": "pixels enter the network scaled to pixel_min .. 1",
    "num_outputs": "units of the output layer; the first 10 stand for the classes",
    "width_hidden": "units of each hidden layer of a siren or kan",
    "depth_hidden": "hidden layers of a siren or kan",
    "frequency_first": "frequency of a siren's first layer",
    "frequency_hidden": "frequency of a siren's other hidden layers",
    "output_offset": "number added to a siren's output",
    "reads": "what a kan reads: images, which it classifies, or coordinates of an image's pixels",
    "grid": "intervals of a kan's grid",
    "spline_order": "degree of a kan's splines",
    "grid_min": "where a kan's grid begins",
    "grid_max": "where a kan's grid ends",
    "architecture": "short name of the architecture; one name, one layout of the weights",
    "architecture_json": "fields of the architecture as JSON",
    "num_weights": "numbers in the network's row, batch-norm's running statistics included",
    "edge_threshold": "score from which an edge is kept; null where edges have no scores",
    "image": "number of the image that the network represents: training images first, then test images; null "
    "for classifiers",
    "label": "class of that image, from 0; null for classifiers",
    "psnr": "peak signal-to-noise ratio of the network's image, in dB; null for classifiers",
    "train_accuracy": "accuracy on the training images, 0 to 1; null for networks that represent an image",
    "validation_accuracy": "accuracy on the validation images, 0 to 1; null without a validation part",
    "test_accuracy": "accuracy on the test images, 0 to 1; null for networks that represent an image",
    "train_loss": "mean cross-entropy on the training images, in nats; of networks that represent an image "
    "the mean squared error; null if an imported zoo does not tell it",
    "validation_loss": "mean cross-entropy on the validation images, in nats; null without a validation part",
    "test_loss": "mean cross-entropy on the test images, in nats; null if an imported zoo does not tell it",
    "class_test_accuracy": "accuracy on the test images of each of the 10 classes, 0 to 1; null if an "
    "imported zoo does not tell it",
    "converged": "whether the final test accuracy is at least 5 points above the majority class's rate; null "
    "for networks that represent an image",
    "diverged": "whether a loss or weight was not finite; the weights are then those of the last finite "
    "epoch's start",
    "file": "snapshots file that holds the weights, relative to the repository",
    "offset": "first byte of the weights' safetensors value in that file",
    "length": "bytes of that value",
    "sha256": "SHA-256 of that value",
    "edge_scores_offset": "first byte of the edge scores' safetensors value in that file; null where there "
    "are none",
    "edge_scores_length": "bytes of that value",
    "edge_scores_sha256": "SHA-256 of that value",
    "weights": "the network as a complete safetensors file, named as the reference network's state_dict",
    "edge_scores": "a score of each edge as a safetensors file, layer by layer [out, in]: of a kan that "
    "classifies the mean of |phi(x)| over training images; else null",
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
