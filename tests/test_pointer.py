"""The pointer of loading_script/nws: all that the stock library needs to load the repository on the Hub."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import pytest
from huggingface_hub import DatasetCard

from nws_dataset.format.manifest import INDEX_CONFIG
from nws_dataset.format.schema import SPLITS
from nws_dataset.format.subsets import SUBSETS
from nws_dataset.reading.zoo import DEFAULT_REPOSITORY, LOCAL_NAME, Zoo
from testing.loopback_hub import LoopbackHub
from testing.zoo_factory import make_zoo

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "loading_script" / LOCAL_NAME


@pytest.fixture
def zoo(hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A zoo that is on the Hub, as the default repository; the test runs in the folder that holds the
    pointer.
    """
    folder = make_zoo(tmp_path / "zoo")
    hub.put(DEFAULT_REPOSITORY, folder)
    monkeypatch.chdir(FOLDER.parent)
    return folder


def snapshots(dataset: Any) -> dict[str, list[dict[str, Any]]]:
    return {split: list(part) for split, part in dataset.items()}


def test_it_is_a_card_and_nothing_else() -> None:
    assert [path.name for path in FOLDER.iterdir()] == ["README.md"]
    configs = DatasetCard.load(FOLDER / "README.md").data.to_dict()["configs"]
    assert [config["config_name"] for config in configs] == [INDEX_CONFIG, *SUBSETS]
    assert [config["config_name"] for config in configs if config.get("default")] == [INDEX_CONFIG]
    assert all([entry["split"] for entry in config["data_files"]] == list(SPLITS) for config in configs)


def test_the_stock_library_loads_the_repository(zoo: Path, tmp_path: Path) -> None:
    cache = str(tmp_path / "cache")
    assert snapshots(datasets.load_dataset(LOCAL_NAME, cache_dir=cache)) == snapshots(
        datasets.load_dataset(str(zoo), cache_dir=cache)
    )
    streamed = datasets.load_dataset(LOCAL_NAME, "demo", streaming=True, cache_dir=cache)
    assert snapshots(streamed) == snapshots(datasets.load_dataset(str(zoo), "demo", cache_dir=cache))


def test_what_is_not_there_keeps_nothing_else_from_loading(
    zoo: Path, hub: LoopbackHub, tmp_path: Path
) -> None:
    make_zoo(zoo, ("main",), models=2)  # both in train
    hub.put(DEFAULT_REPOSITORY, zoo)
    cache = str(tmp_path / "cache")
    assert datasets.load_dataset(LOCAL_NAME, "main", split="train", cache_dir=cache).num_rows == 6
    streamed = datasets.load_dataset(LOCAL_NAME, "main", streaming=True, cache_dir=cache)
    assert {split: len(part) for split, part in snapshots(streamed).items()} == {
        "train": 6,
        "validation": 0,
        "test": 0,
    }
    assert datasets.load_dataset(LOCAL_NAME, split="test", cache_dir=cache).num_rows == 6
    with pytest.raises(ValueError, match="data_files"):
        datasets.load_dataset(LOCAL_NAME, "small_cnn", cache_dir=cache)


LATER = """
import functools, json, sys
import datasets, nws_dataset
options = {"split": "validation", "cache_dir": sys.argv[1]}
loads = (datasets.load_dataset, nws_dataset.load_dataset)
stock, ours = (functools.partial(load, "nws", **options) for load in loads)
anew = {"download_mode": "reuse_cache_if_exists", "verification_mode": "no_checks"}
loads = (stock, functools.partial(stock, streaming=True), functools.partial(stock, **anew), stock, ours)
print(json.dumps([[snapshot["sha256"] for snapshot in load()] for load in loads]))
"""


def test_the_repository_moves_on(zoo: Path, hub: LoopbackHub, tmp_path: Path) -> None:
    """What the pointer's text says: the library keeps what it prepared, since the text of the card alone is
    its key.
    """
    cache = str(tmp_path / "cache")
    before = [
        snapshot["sha256"]
        for snapshot in datasets.load_dataset(LOCAL_NAME, split="validation", cache_dir=cache)
    ]
    hub.put(DEFAULT_REPOSITORY, make_zoo(zoo, models=16))
    now = [snapshot["sha256"] for snapshot in Zoo(zoo).filter(split="validation")]
    assert len(now) > len(before)
    command, environment = [sys.executable, "-c", LATER, cache], {**os.environ, **hub.environment()}
    result = subprocess.run(command, cwd=FOLDER.parent, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == [before, now, now, now, now]
