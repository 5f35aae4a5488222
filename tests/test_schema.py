"""The columns: pinned in order and type, all described, and told to the Hub as the Hub understands them."""

import dataclasses

import datasets
import pyarrow as pa
import pytest

from nws_dataset.format.recipe import Recipe
from nws_dataset.format.schema import (
    COLUMNS,
    INDEX_SCHEMA,
    METADATA_SCHEMA,
    SNAPSHOTS_SCHEMA,
    card_features,
    model_id,
)
from nws_dataset.networks import KINDS, columns_of_architectures
from nws_dataset.networks.cnn import Architecture
from testing.zoo_factory import NORMED, PLAIN, make_recipe

IDENTITY = [
    "model_id",
    "subset",
    "split",
    "model_number",
    "seed",
    "snapshot",
    "num_snapshots",
    "is_final",
    "epoch",
    "step",
]
ARCHITECTURE = ["architecture", "architecture_json", "num_weights"]
IMAGE = ["edge_threshold", "image", "label", "psnr"]
WEIGHTS = ["offset", "length", "sha256"]
EDGE_SCORES = [f"edge_scores_{name}" for name in WEIGHTS]
MEASURES = [
    "train_accuracy",
    "validation_accuracy",
    "test_accuracy",
    "train_loss",
    "validation_loss",
    "test_loss",
]
MARKS = ["class_test_accuracy", "converged", "diverged"]
OF_ALL_KINDS = {"image_channels", "image_size"}  # fields of every kind's architecture
NULLABLE = {
    *IMAGE,
    *(columns_of_architectures().keys() - OF_ALL_KINDS),
    "convention",
    "train_accuracy",
    "test_accuracy",
    "converged",
    "seed",
    "train_loss",
    "test_loss",
    "class_test_accuracy",
    "init_std",
    "validation_accuracy",
    "validation_loss",
}


def test_columns_and_their_order() -> None:
    recipe = list(make_recipe(PLAIN).columns())
    assert METADATA_SCHEMA.names == [*IDENTITY, *recipe, *ARCHITECTURE, *IMAGE, *MEASURES, *MARKS]
    assert INDEX_SCHEMA.names == [*METADATA_SCHEMA.names, "file", *WEIGHTS, *EDGE_SCORES]
    assert SNAPSHOTS_SCHEMA.names == [*METADATA_SCHEMA.names, "weights", "edge_scores"]


def test_types_follow_the_annotations() -> None:
    assert METADATA_SCHEMA.field("learning_rate").type == pa.float64()
    assert METADATA_SCHEMA.field("init_std").type == pa.float64()
    assert METADATA_SCHEMA.field("batch_size").type == pa.int64()
    assert METADATA_SCHEMA.field("width_fc").type == pa.int64()
    assert METADATA_SCHEMA.field("augmentation").type == pa.bool_()
    assert METADATA_SCHEMA.field("optimizer").type == pa.string()
    assert METADATA_SCHEMA.field("class_test_accuracy").type == pa.list_(pa.float64())
    assert SNAPSHOTS_SCHEMA.field("weights").type == pa.large_binary()


def test_only_what_may_not_apply_is_nullable() -> None:
    for schema in (INDEX_SCHEMA, SNAPSHOTS_SCHEMA):
        of_schema = NULLABLE | ({*EDGE_SCORES, "edge_scores"} & set(schema.names))
        assert {field.name for field in schema if field.nullable} == of_schema


@pytest.mark.parametrize("architecture", [PLAIN, NORMED])
def test_every_recipe_field_is_a_column_that_holds_it(architecture: Architecture) -> None:
    columns = make_recipe(architecture).columns()
    fields = {f.name for cls in (Recipe, *KINDS.values()) for f in dataclasses.fields(cls)}
    assert set(columns) == fields - {"architecture"} | {"kind"}
    schema = pa.schema([METADATA_SCHEMA.field(name) for name in columns])
    assert pa.Table.from_pylist([columns], schema).to_pylist() == [columns]


def test_every_column_is_described() -> None:
    assert list(COLUMNS) == list(dict.fromkeys([*INDEX_SCHEMA.names, *SNAPSHOTS_SCHEMA.names]))
    assert all(text and "\n" not in text for text in COLUMNS.values())


@pytest.mark.parametrize("schema", [INDEX_SCHEMA, SNAPSHOTS_SCHEMA], ids=["index", "snapshots"])
def test_card_features_are_the_hubs(schema: pa.Schema) -> None:
    features = datasets.Features.from_arrow_schema(schema)
    assert card_features(schema) == features._to_yaml_list()
    assert datasets.Features._from_yaml_list(card_features(schema)) == features


def test_model_id() -> None:
    assert model_id("small_cnn", 119_999) == "small_cnn-119999"
    assert sorted(model_id("main", n) for n in (10, 9, 100_000)) == [
        "main-000009",
        "main-000010",
        "main-100000",
    ]
    for number in (-1, 10**6):
        with pytest.raises(ValueError, match="expected 0 to 999999"):
            model_id("main", number)
