"""Networks that represent images as the folders of DWSNets and NFN: the loaders below are written anew from
theirs (DWSNets' and neural-graphs' `INRDataset`, NFN's `SirenDataset`), and find each network in every bit.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from builder.cli import main as nws_build
from builder.exporters.exporting import export_zoo
from builder.image_order import image_order
from builder.image_sets import IMAGE_SETS
from builder.plan import Model, select
from nws_dataset import Zoo
from nws_dataset.errors import ZooError
from nws_dataset.format.subsets import IMAGE_SETS_OF_INRS
from testing.planned_zoo import make_planned_zoo

MODELS = 26
FURTHER = len(image_order("digits")[0]) * len(IMAGE_SETS_OF_INRS)  # from number to number of a copy
SHAPES = [(32, 2), (32,), (32, 32), (32,), (1, 32), (1,)]
SPLITS = {"train": "train", "val": "validation", "test": "test"}


def planned(folder: Path, subset: str, datasets: Sequence[str], models: int = MODELS, **options: Any) -> Zoo:
    return Zoo(
        make_planned_zoo(
            folder,
            subset,
            models,
            epochs=10,
            keep=lambda model: model.recipe.dataset in datasets,
            **options,
        )
    )


@pytest.fixture(scope="module")
def dws(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    return planned(tmp_path_factory.mktemp("dws") / "zoo", "siren", ("mnist", "fashion_mnist"))


@pytest.fixture(scope="module")
def nfn(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    return planned(tmp_path_factory.mktemp("nfn") / "zoo", "siren_nfn", ("mnist", "cifar10"))


def final(zoo: Zoo, dataset: str, split: str) -> dict[int, Any]:
    """Image -> the final snapshot of its first network, in a split by the loaders' name."""
    snapshots = zoo.filter(is_final=True, dataset=dataset, split=SPLITS[split])
    ordered = sorted(snapshots, key=lambda snapshot: -snapshot["model_number"])
    return {snapshot["image"]: snapshot for snapshot in ordered}


def row_of(state: dict[str, torch.Tensor]) -> np.ndarray:
    """The numbers of a state_dict in its order; each tensor has memory of its own."""
    assert all(tensor.untyped_storage().nbytes() == 4 * tensor.numel() for tensor in state.values())
    return torch.cat([tensor.flatten() for tensor in state.values()]).numpy()


# As DWSNets and those who follow it


class Inr(torch.nn.Module):
    """Their network: sine layers of frequency 30, a linear one, and one half more."""

    class Siren(torch.nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.sin(30 * super().forward(x))

    def __init__(self) -> None:
        super().__init__()
        self.seq = torch.nn.Sequential(self.Siren(2, 32), self.Siren(32, 32), torch.nn.Linear(32, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        values: torch.Tensor = self.seq(x) + 0.5
        return values


def load_like_dws(splits: Path, split: str) -> list[tuple[Path, dict[str, torch.Tensor], int]]:
    content = json.loads(splits.read_text())[split]
    assert len(content["path"]) == len(content["label"])
    paths = [splits.parent / path for path in content["path"]]
    states = [torch.load(path, weights_only=True) for path in paths]
    return list(zip(paths, states, map(int, content["label"]), strict=True))


@pytest.mark.parametrize(("dataset", "name"), [("mnist", "mnist"), ("fashion_mnist", "fmnist")])
def test_dws(dws: Zoo, tmp_path: Path, dataset: str, name: str) -> None:
    assert export_zoo("dws", dws.path, tmp_path) == f"{tmp_path}: 26 models of siren in DWSNets' layout"
    found, train_images = set(), IMAGE_SETS[dataset].train_images
    for split in SPLITS:
        wanted = final(dws, dataset, split)
        for path, state, label in load_like_dws(tmp_path / f"{name}_splits.json", split):
            file = path.relative_to(tmp_path).as_posix()
            if dataset == "mnist":  # the label as their script reads it off the folder
                assert path.parent.parent.stem.split("_")[-2] == str(label)
                part, number = re.fullmatch(
                    r"mnist_png_(\w+)_\d_(\d+)/checkpoints/model_final.pth", file
                ).groups()  # type: ignore[union-attr]
                assert ("train" in file) == (part == "training")
            else:
                part, number = re.fullmatch(r"fmnist_inrs/(\w+)/model_(\d+).pth", file).groups()  # type: ignore[union-attr]
            image = int(number) + train_images * (part in ("testing", "test"))
            snapshot = wanted.pop(image)
            assert label == snapshot["label"]
            assert list(state) == [f"seq.{n}.{role}" for n in range(3) for role in ("weight", "bias")]
            assert [tuple(tensor.shape) for tensor in state.values()] == SHAPES
            assert row_of(state).tobytes() == dws.row(snapshot).tobytes()
            found.add(image)
        assert not wanted
    assert len(found) == MODELS // 2


def test_dws_networks_give_the_same_images(dws: Zoo, tmp_path: Path) -> None:
    export_zoo("dws", dws.path, tmp_path)
    side = torch.linspace(-1, 1, 28)
    grid = torch.stack(torch.meshgrid(side, side, indexing="ij"), -1).reshape(-1, 2)
    network = Inr()
    path, state, _ = load_like_dws(tmp_path / "mnist_splits.json", "test")[0]
    network.load_state_dict(state)
    image = int(path.parts[-3].split("_")[-1]) + 60_000
    with torch.no_grad():
        pixels = (network(grid) * 255).round().clamp(0, 255).reshape(1, 28, 28).numpy()
    decoded = dws.images([final(dws, "mnist", "test")[image]])[0]
    assert np.abs(pixels - decoded.astype(float)).max() <= 1  # a tie may be rounded otherwise


# As NFN


class NfnLoader:
    """A split of their folder: networks are numbered through, and cut at two numbers."""

    def __init__(self, folder: Path, prefix: str, split: str, points: tuple[int, int]) -> None:
        self.paths: dict[int, Path] = {}
        self.labels: dict[int, int] = {}
        for path in folder.glob(f"{prefix}_[0-9]s/*.pth"):
            number = int(re.search(r"net(\d+)\.pth", str(path))[1])  # type: ignore[index]
            assert number not in self.paths
            self.paths[number] = path
            self.labels[number] = int(re.search(r"_(\d)s", str(path))[1])  # type: ignore[index]
        cuts = {"train": (0, points[0]), "val": points, "test": (points[1], len(self.paths))}
        self.numbers = list(range(*cuts[split]))

    def __iter__(self) -> Any:
        for number in self.numbers:
            yield torch.load(self.paths[number], weights_only=True), self.labels[number]


@pytest.mark.parametrize(
    ("dataset", "folder"), [("mnist", "siren_mnist_wts"), ("cifar10", "siren_cifar_wts")]
)
def test_nfn(nfn: Zoo, tmp_path: Path, dataset: str, folder: str) -> None:
    told = export_zoo("nfn", nfn.path, tmp_path / "wts")
    assert told == f"{tmp_path}/wts: 26 models of siren_nfn in NFN's layout"
    splits = json.loads((tmp_path / "wts" / folder / "splits.json").read_text())
    channels, count = IMAGE_SETS[dataset].channels, 0
    for split in SPLITS:
        loaded = list(
            NfnLoader(tmp_path / "wts" / folder, "randinit_smaller", split, tuple(splits["split_points"]))
        )
        wanted = [snapshot for _, snapshot in sorted(final(nfn, dataset, split).items())]  # by image
        for (state, label), snapshot in zip(loaded, wanted, strict=True):
            layers = ("net.0.linear", "net.1.linear", "net.2")
            assert list(state) == [f"{layer}.{role}" for layer in layers for role in ("weight", "bias")]
            assert [tuple(t.shape) for t in state.values()] == [*SHAPES[:4], (channels, 32), (channels,)]
            assert row_of(state).tobytes() == nfn.row(snapshot).tobytes()
            assert label == snapshot["label"]
        paths = [tmp_path / "wts" / folder / path for path in splits[split]["path"]]
        listed = [
            (torch.load(path, weights_only=True), label)
            for path, label in zip(paths, splits[split]["label"], strict=True)
        ]
        assert [(row_of(s).tobytes(), label) for s, label in listed] == [
            (row_of(s).tobytes(), label) for s, label in loaded
        ]
        count += len(loaded)
    assert count == MODELS // 2


def test_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NFN's layout has folders for further networks of the same images; that of DWSNets has none."""
    import testing.planned_zoo

    def two_copies(subset: Any, seed: int, *, models: int, epochs: int) -> list[Model]:
        once = select(subset, seed, datasets=("digits",), epochs=epochs, models=6)
        return [*once, *(replace(model, number=model.number + FURTHER) for model in once[:4])]

    monkeypatch.setattr(testing.planned_zoo, "select", two_copies)
    zoos = {name: planned(tmp_path / name, name, ("digits",), 10) for name in ("siren", "siren_nfn")}
    export_zoo("nfn", zoos["siren_nfn"].path, tmp_path / "nfn")
    folder = tmp_path / "nfn/siren_digits_wts"
    of_images = {n: path for path in folder.glob("randinit_smaller_[0-9]s/*") for n in [path.name]}
    of_copies = {n: path for path in folder.glob("randinit_smaller_aug0_[0-9]s/*") for n in [path.name]}
    assert len(of_images) == 6 and len(of_copies) == 4 and of_copies.keys() < of_images.keys()
    snapshots = list(zoos["siren_nfn"].filter(is_final=True))
    by_image = sorted({snapshot["image"] for snapshot in snapshots})
    for snapshot in snapshots:
        among = of_copies if snapshot["model_number"] >= FURTHER else of_images
        path = among[f"net{by_image.index(snapshot['image'])}.pth"]
        assert path.parent.name.endswith(f"_{snapshot['label']}s")
        state = torch.load(path, weights_only=True)
        assert row_of(state).tobytes() == zoos["siren_nfn"].row(snapshot).tobytes()
    with pytest.raises(ZooError, match=r"more than 1 of an image \(4\) models, e.g. siren-0000.*--partial"):
        export_zoo("dws", zoos["siren"].path, tmp_path / "dws")
    told = export_zoo("dws", zoos["siren"].path, tmp_path / "dws", partial=True)
    assert told.startswith(f"{tmp_path}/dws: 6 models of siren in DWSNets' layout\nleft out: more than 1")
    assert len(list((tmp_path / "dws").rglob("*.pth"))) == 6


# What is refused


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    with pytest.raises(SystemExit) as ended:
        nws_build([str(argument) for argument in arguments], standalone_mode=True)
    return int(ended.value.code or 0), capsys.readouterr().err


@pytest.mark.parametrize(
    ("layout", "subset", "dataset", "message"),
    [
        (
            "dws",
            "siren_nfn",
            "mnist",
            "models that DWSNets' layout can hold, found convention nfn (2) models",
        ),
        ("nfn", "siren", "mnist", "models that NFN's layout can hold, found convention dws (2) models"),
        ("dws", "siren", "cifar10", "found image_channels 3 (2) models, e.g. siren-00000002"),
        ("dws", "kan_inr", "mnist", "found kind kan (2) models"),
        ("nfn", "small_cnn", "mnist", "found kind cnn (2) models"),
        ("small_cnn", "siren", "mnist", "models that the Small CNN Zoo's layout can hold, found"),
        ("nws", "siren", "mnist", "models that the neural weight space's layout can hold, found"),
    ],
)
def test_what_a_layout_cannot_hold(
    layout: str,
    subset: str,
    dataset: str,
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    zoo = planned(tmp_path / "zoo", subset, (dataset,), 2)
    code, err = run(capsys, "--export", layout, zoo.path, tmp_path / "out")
    assert code == 2 and message in err and err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_folder_of_somebody_else(dws: Zoo, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "theirs.txt").write_text("mine")
    code, err = run(capsys, "--export", "dws", dws.path, tmp_path)
    assert code == 2 and "expected an empty folder, or one with an export of the same zoo" in err
    assert err.count("\n") == 1 and [path.name for path in tmp_path.iterdir()] == ["theirs.txt"]


def test_an_export_again_is_the_same(dws: Zoo, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Byte by byte, into the same folder or another; another zoo's is refused."""

    def content(folder: Path) -> dict[str, bytes]:
        return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}

    for folder in ("one", "two", "one"):
        export_zoo("dws", dws.path, tmp_path / folder)
    assert content(tmp_path / "one") == content(tmp_path / "two")
    assert len(content(tmp_path / "one")) == MODELS + 3
    other = planned(tmp_path / "other", "siren", ("mnist",), 2, seed=1)
    code, err = run(capsys, "--export", "dws", other.path, tmp_path / "one")
    assert code == 2 and "expected an empty folder, or one with an export of the same zoo" in err
    code, err = run(capsys, "--export", "dws", dws.path, tmp_path / "three", "--final-step", 86)
    assert code == 2 and "--final-step: expected the layout small_cnn, found dws" in err
