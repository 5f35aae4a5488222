"""The card: the Hub and `datasets` understand it, and it follows from nws.json and the index alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import DatasetCard

from builder.build import Request, build
from builder.card import render
from nws_dataset import Zoo
from nws_dataset.manifest import FileEntry, Manifest, SubsetEntry
from nws_dataset.recipe import PRESETS, SUBSETS
from nws_dataset.schema import COLUMNS
from zoo_factory import make_zoo


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
    assert (data["license"], data["pretty_name"], data["size_categories"]) == ("apache-2.0", "Neural weight space", ["n<1K"])
    assert [config["config_name"] for config in data["configs"]] == ["index", "demo"]
    assert [config.get("default", False) for config in data["configs"]] == [True, False]
    assert DatasetCard(str(card)).data.to_dict() == data


def test_configs_list_the_splits_that_have_rows(zoo: Zoo) -> None:
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
    assert f"4 models, {len(zoo.index)} snapshots; train {len(final.filter(split='train'))}, " in text
    assert f"mean {final['test_accuracy'].mean():.3f}, best {final['test_accuracy'].max():.4f}." in text
    assert f"{final['converged'].sum()} converged, {final['diverged'].sum()} diverged" in text
    assert f"| digits | scikit-learn digits | `{zoo.manifest.subsets['demo'].image_sets['digits'].sha256[:16]}` |" in text
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


@pytest.mark.parametrize(("rows", "expected"), [(999, "n<1K"), (1000, "1K<n<10K"), (260_000, "100K<n<1M"), (1_080_000, "1M<n<10M")])
def test_size_categories(zoo: Zoo, rows: int, expected: str) -> None:
    index = zoo.index.take([0] * rows)
    assert front_matter(render(zoo.manifest, [index]))["size_categories"] == [expected]


def test_a_zoo_without_models_has_a_card() -> None:
    manifest = Manifest("1", {"demo": SubsetEntry(0, 0, {"epochs": None, "train_images": None}, {})}, {"x": FileEntry(0, "")})
    assert "0 models, 0 snapshots" in render(manifest, [])
