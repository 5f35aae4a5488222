"""The card: the Hub and `datasets` understand it, and it follows from nws.json and the index alone."""

from __future__ import annotations

import dataclasses
import logging
import re
from pathlib import Path
from typing import Any

import datasets
import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import yaml
from datasets.info import DatasetInfosDict
from datasets.utils.metadata import MetadataConfigs
from huggingface_hub import DatasetCard, DatasetCardData, metadata_load

from builder.build import build
from builder.card import (
    EXPLORER_PAGE,
    EXPLORER_PICTURE,
    GROUPED_BY,
    MANY_ARCHITECTURES,
    OVERVIEW,
    PLOTS,
    _size_category,
    render,
)
from builder.image_sets import IMAGE_SETS
from builder.plan import Request
from nws_dataset.console import size
from nws_dataset.files import sha256_file
from nws_dataset.format.manifest import INDEX_CONFIG, FileEntry, Manifest, SubsetEntry
from nws_dataset.format.recipe import LEGAL_VALUES
from nws_dataset.format.schema import COLUMNS, INDEX_SCHEMA, SNAPSHOTS_SCHEMA, SPLITS
from nws_dataset.format.subsets import IMPORTED, PRESETS, SUBSETS
from nws_dataset.reading.zoo import Zoo
from testing.loopback_hub import LoopbackHub
from testing.zoo_factory import make_zoo, use_copy


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    out = tmp_path_factory.mktemp("card") / "nws"
    build(Request("demo", 4, epochs=1), out, device="cpu", workers=1)
    return Zoo(out)


def front_matter(text: str) -> dict[str, Any]:
    return yaml.safe_load(text.split("---\n")[1])


def test_the_hub_takes_it(zoo: Zoo) -> None:
    card = DatasetCard((zoo.path / "README.md").read_text())
    data = card.data.to_dict()
    assert (data["license"], data["pretty_name"], data["size_categories"]) == (
        "apache-2.0",
        "Neural weight space",
        ["n<1K"],
    )
    assert [config["config_name"] for config in data["configs"]] == ["index", "demo"]
    assert [config.get("default", False) for config in data["configs"]] == [True, False]
    assert DatasetCard(str(card)).data.to_dict() == data
    known = DatasetCardData(**data)
    assert (known.task_categories, known.annotations_creators, known.source_datasets) == (
        ["other"],
        ["machine-generated"],
        ["original"],
    )
    assert metadata_load(zoo.path / "README.md") == data == DatasetCard(f"---\n{known}\n---\n").data.to_dict()


def test_datasets_understands_it(
    zoo: Zoo, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("datasets"), "propagate", True)
    data = DatasetCard.load(zoo.path / "README.md").data
    assert MetadataConfigs.from_dataset_card_data(data).get_default_config_name() == INDEX_CONFIG
    for name, info in DatasetInfosDict.from_dataset_card_data(data).items():
        schema = INDEX_SCHEMA if name == INDEX_CONFIG else SNAPSHOTS_SCHEMA
        assert info.features == datasets.Features.from_arrow_schema(schema), name
        counts = {split: len(zoo.filter(split=split)) for split in SPLITS if len(zoo.filter(split=split))}
        assert {split.name: split.num_examples for split in info.splits.values()} == {
            split: count for split, count in counts.items() if count
        }
        assert info.description == f"nws.json sha256 {sha256_file(zoo.path / 'nws.json')}"
    assert not caplog.records


def test_configs_list_the_splits_that_have_snapshots(zoo: Zoo) -> None:
    splits = set(zoo.index["split"].to_pylist())
    assert splits != {"train", "validation", "test"}, "choose a zoo with an empty split"
    for config in front_matter((zoo.path / "README.md").read_text())["configs"]:
        assert {entry["split"] for entry in config["data_files"]} == splits
        for entry in config["data_files"]:
            assert list(zoo.path.glob(entry["path"]))


def test_it_follows_from_manifest_and_index(zoo: Zoo) -> None:
    text = (zoo.path / "README.md").read_text()
    assert render(zoo.manifest, [zoo.index]) == text
    assert render(Manifest.read(zoo.path), [zoo.index.slice(i, 1) for i in range(len(zoo.index))]) == text


def test_it_tells_the_counts(zoo: Zoo) -> None:
    text = (zoo.path / "README.md").read_text()
    final = zoo.filter(is_final=True)
    assert (
        f"4 models, {len(zoo.index)} snapshots (2 a model); train {len(final.filter(split='train'))}, "
    ) in text
    assert f"mean {final['test_accuracy'].mean():.3f}, best {final['test_accuracy'].max():.4f}." in text
    assert f"{final['converged'].sum()} converged, {final['diverged'].sum()} diverged" in text
    assert (
        "| digits | scikit-learn digits | "
        f"`{zoo.manifest.subsets['demo'].image_sets['digits'].sha256[:16]}` |"
    ) in text
    assert "**Departs from the preset: epochs capped at 1.**" in text
    assert "train_images capped" not in text
    for column, meaning in COLUMNS.items():
        assert f"| `{column}` | {meaning} |" in text


@pytest.mark.parametrize("name", SUBSETS)
def test_it_tells_what_a_subset_draws(name: str) -> None:
    text = render(Manifest("1", {name: SubsetEntry(0, 0, {}, {})}, {}), [])
    rows = dict(line.strip("| ").split(" | ") for line in text.splitlines() if line.count(" | ") == 1)
    for family in SUBSETS[name].families:
        for field in family:
            assert rows[field.replace(",", ", ")], field
    assert not any("Choice" in row or "Cycle" in row or "Draw" in row for row in rows.values())
    assert SUBSETS[name].description in text


def test_all_subsets_in_one_card(tmp_path: Path) -> None:
    zoo = Zoo(make_zoo(tmp_path / "nws", subsets=PRESETS["nws"]))
    data = DatasetCard(render(zoo.manifest, [zoo.index])).data.to_dict()
    assert [config["config_name"] for config in data["configs"]] == ["index", *sorted(PRESETS["nws"])]


def test_results_on_a_copy_of_an_image_set(tmp_path: Path) -> None:
    zoo = make_zoo(tmp_path / "nws")
    opened = Zoo(zoo)
    plain = render(opened.manifest, [opened.index])
    name = use_copy(zoo)
    opened = Zoo(zoo)
    text = render(opened.manifest, [opened.index])
    for start in ("| {} | 3 | ", "| {} | no explicit licence |"):  # results, terms
        assert start.format("cifar10") in plain and start.format(name) in text
        assert start.format("cifar10") not in text and "| svhn | 3 | " in text
    assert "images of `cifar10` are a copy with other pixels than the original" in text
    assert f'results on them are called "{name}"' in text
    assert "JPEG" not in plain and "a copy with other pixels" not in plain
    assert set(opened.filter()["dataset"]) == {"mnist", "cifar10", "svhn"}


def as_subset(zoo: Zoo, name: str) -> pa.Table:
    """The index with all models in one subset, whose seed is not told."""
    told = {"subset": pa.array([name] * len(zoo.index)), "seed": pa.nulls(len(zoo.index), pa.int64())}
    return pa.table([told.get(field.name, zoo.index[field.name]) for field in INDEX_SCHEMA], INDEX_SCHEMA)


@pytest.mark.parametrize("name", [*IMPORTED, "unheard_of"])
def test_a_subset_that_was_imported(zoo: Zoo, name: str) -> None:
    entry = SubsetEntry(None, 4, {"source": "a shelf"}, {})
    text = render(dataclasses.replace(zoo.manifest, subsets={name: entry}), [as_subset(zoo, name)])
    assert f"`{name}` was not trained for this repository" in text
    source, notes = (IMPORTED[name].source, IMPORTED[name].notes) if name in IMPORTED else ("a shelf", ())
    assert f"Source: {source}." in text
    assert all(f"- {note}\n" in text for note in notes)
    assert front_matter(text)["license"] == ["apache-2.0", "unknown"]
    for word in (
        "Seed",
        "None",
        "| field | drawn from |",
        "all nets stay in",
        "sha256 of images",
        "differs from the papers",
        "TensorFlow",
    ):
        assert word not in text, word


@pytest.mark.parametrize(
    ("options", "told", "where"),
    [
        ({"device": "cpu", "tf32": False}, "", "on CPUs."),
        ({"backend": "fast", "device": "cpu", "tf32": False}, "", "on CPUs."),
        (
            {"device": "cuda", "tf32": True},
            "Trained on a GPU with TF32 products: the same seed gives other last bits on a CPU.",
            "on a GPU.",
        ),
        (
            {"backend": "torch", "device": "mps"},
            "other last bits for the same seed, and so would other models beside it.",
            "on a GPU, by plain torch.",
        ),
    ],
)
def test_what_trained_it(zoo: Zoo, options: dict[str, Any], told: str, where: str) -> None:
    entry = dataclasses.replace(zoo.manifest.subsets["demo"], options=options)
    text = render(dataclasses.replace(zoo.manifest, subsets={"demo": entry}), [zoo.index])
    assert f"- `demo` was trained {where}\n" in text
    assert told in text if told else "other last bits" not in text


def test_composition(zoo: Zoo) -> None:
    text = (zoo.path / "README.md").read_text()
    final = zoo.filter(is_final=True)
    by_split = " | ".join(str(len(final.filter(split=split))) for split in SPLITS)
    assert f"| `demo` | 4 | {len(zoo.index)} | {by_split} | {final['converged'].sum()} | " in text
    accuracy = final["test_accuracy"]
    assert (
        f"| digits | 4 | {final['converged'].sum()} | {accuracy.mean():.3f} | {accuracy.max():.4f} |"
    ) in text
    architectures = pc.value_counts(final.table["architecture"]).to_pylist()
    assert all(f"| `{found['values']}` | {found['counts']} |" in text for found in architectures)
    many = [f"architecture {number}" for number in range(MANY_ARCHITECTURES + 1)]
    table = pa.concat_tables([final.table] * len(many)).slice(0, len(many))
    table = table.set_column(
        table.schema.get_field_index("architecture"), INDEX_SCHEMA.field("architecture"), pa.array(many)
    )
    assert f"{len(many)} architectures; the most frequent one has 1 models." in render(zoo.manifest, [table])


def test_terms_of_the_images(zoo: Zoo) -> None:
    text = (zoo.path / "README.md").read_text()
    assert f"| digits | {IMAGE_SETS['digits'].terms} |" in text
    assert IMAGE_SETS["svhn"].terms not in text


def test_plots_are_shown_when_there_are_models(zoo: Zoo) -> None:
    text = (zoo.path / "README.md").read_text()
    shown = dict(re.findall(r"!\[(.+?)\]\((.+?)\)", text))
    of_classifiers = {path: text for path, text in PLOTS.items() if path != "plots/images.png"}
    assert {path: text for text, path in shown.items()} == of_classifiers
    assert f"]({EXPLORER_PICTURE})]({EXPLORER_PAGE})" in text, "the picture leads to the page"
    assert "![" not in render(dataclasses.replace(zoo.manifest, files={}), [])


def test_its_examples_run(hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the Hub; polars and DuckDB, whose `hf://` takes no other server, on the local copy."""
    zoo = Zoo(make_zoo(tmp_path / "zoo"))
    card = render(zoo.manifest, [zoo.index])
    (zoo.path / "README.md").write_text(card)
    hub.put("org/nws", zoo.path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    on_hub, local = "hf://datasets/ORG/NAME/index", f"{zoo.path}/index"
    code = "".join(re.findall(r"```python\n(.*?)```", card, re.DOTALL))
    (query,) = re.findall(r"```sql\n(.*?)```", card, re.DOTALL)
    assert card.count(on_hub) == 3 and query.count(on_hub) == 1
    code = code.replace(f'scan_parquet("{on_hub}', f'scan_parquet("{local}').replace("ORG/NAME", "org/nws")
    names: dict[str, Any] = {}
    exec(code.replace("https://huggingface.co", hub.environment()["HF_ENDPOINT"]), names)
    final = zoo.filter(is_final=True)
    assert names["index"].num_rows == len(zoo.filter(split="train"))
    first = next(iter(names["stream"]))
    (snapshot,) = zoo.filter(model_id=first["model_id"], snapshot=first["snapshot"])
    assert first["weights"] == bytes(zoo.value(snapshot))
    alike = final.filter(architecture=names["snapshots"][0]["architecture"])
    assert (names["weights"] == zoo.weights(alike)).all()
    assert (names["tensors"]["output.bias"] == zoo.state_dict(names["snapshot"])["output.bias"].numpy()).all()
    assert names["dataset"][0]["weights"].size == names["dataset"][0]["num_weights"]

    means = {
        name: final.filter(activation=name)["test_accuracy"].mean() for name in sorted({*final["activation"]})
    }
    answer = duckdb.sql(query.replace(on_hub, local)).fetchall()
    assert answer == [
        (name, round(mean, 3), 5) for name, mean in sorted(means.items(), key=lambda pair: -pair[1])
    ]
    curve = [(e, zoo.filter(epoch=e)["test_accuracy"].mean()) for e in (1, 2, 3)]
    assert names["curve"].rows() == [(epoch, pytest.approx(mean)) for epoch, mean in curve]
    assert names["best"]["test_accuracy"].tolist() == sorted(final["test_accuracy"], reverse=True)[:5]


def test_its_first_screen(zoo: Zoo) -> None:
    """What it is, a picture, how to load it, its size and licence: in this order, above all else."""
    body = (zoo.path / "README.md").read_text().split("---\n", 2)[2]
    held = size(sum(entry.size for entry in zoo.manifest.files.values()))
    order = ["4 small image classifiers", f"]({OVERVIEW})", 'load_dataset("ORG/NAME"', "**4 networks**"]
    order += [f"**{len(zoo.index)} snapshots**", f"**{held}**", "**Apache-2.0**", "## "]
    places = [body.index(text) for text in order]
    assert places == sorted(places)


def test_its_links_lead_to_its_sections(zoo: Zoo) -> None:
    text = (zoo.path / "README.md").read_text()
    sections = {title.lower().replace(" ", "-") for title in re.findall(r"^#+ (.+)$", text, re.MULTILINE)}
    assert len(links := re.findall(r"\]\(#(.+?)\)", text)) > 5 and sections >= {*links}


def test_questions_suit_the_zoo(zoo: Zoo) -> None:
    """They compare what differs, by a score that the networks have."""
    index = zoo.index
    for name in GROUPED_BY[:3]:
        index = with_column(index, name, [LEGAL_VALUES[name][0]])
    index = with_column(index, "test_accuracy", [None])
    index = with_column(with_column(index, "psnr", [20.0]), "label", [0, 1])
    text = render(zoo.manifest, [index])
    assert "SELECT label, round(avg(psnr), 3)" in text and '"label", "psnr"]]' in text
    for name in GROUPED_BY:
        index = with_column(index, name, [index[name][0].as_py()])
    assert "SELECT subset, round(avg(psnr), 3)" in render(zoo.manifest, [index])


def with_column(index: pa.Table, name: str, values: list[Any]) -> pa.Table:
    """The index with other values of a column, in turn."""
    told = pa.array([values[i % len(values)] for i in range(len(index))], INDEX_SCHEMA.field(name).type)
    return index.set_column(INDEX_SCHEMA.get_field_index(name), INDEX_SCHEMA.field(name), told)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (999, "n<1K"),
        (1000, "1K<n<10K"),
        (260_000, "100K<n<1M"),
        (1_080_000, "1M<n<10M"),
        (10**7, "10M<n<100M"),
    ],
)
def test_size_categories(rows: int, expected: str) -> None:
    assert _size_category(rows) == expected


def test_a_zoo_without_models_has_a_card() -> None:
    manifest = Manifest(
        "1", {"demo": SubsetEntry(0, 0, {"epochs": None, "train_images": None}, {})}, {"x": FileEntry(0, "")}
    )
    text = render(manifest, [])
    assert "0 models, 0 snapshots" in text and "## Ask the index" not in text
