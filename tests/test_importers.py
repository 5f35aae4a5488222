"""The original releases become subsets of a zoo: the same functions, recipes and splits; resumable, growing,
and damage is named.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas
import pytest
import torch

from builder import card, plan
from builder.build import build
from builder.checks import Verifier
from builder.cli import main as nws_build
from builder.image_sets import IMAGE_SETS
from builder.importers.importing import import_zoo
from builder.plan import Request
from builder.rules import CONVERGED_MARGIN
from builder.store import NEXT, Store
from builder.verify import main as verify
from nws_dataset import console
from nws_dataset.errors import ZooError, listed
from nws_dataset.format.manifest import Manifest
from nws_dataset.format.subsets import IMPORTED, NWS_MAIN, RELEASES, SMALL_CNN, SUBSETS, subsets_of
from nws_dataset.networks.layout import layout_of
from nws_dataset.reading.snapshots import Snapshots
from nws_dataset.reading.zoo import Zoo
from testing import release_factory as factory
from testing.loopback_hub import LoopbackHub

ROOT = Path(__file__).parent.parent
TOLERANCE = 1e-5
FIXED = {"filter_size": 5, "depth_conv": 3, "depth_fc": 2, "width_conv": 8, "width_fc": 128}
MAIN_SPLITS = {"train": (0, 1, 2, 3, 5), "test": (4, 6)}  # numbers of the factory's nets
MAIN_ORDER = (0, 4, 1, 6, 2, 3, 5)  # in turn from train and test: their model numbers
UNLISTED = 8

Damage = Callable[[Path], object]


def write_main(root: Path, splits: dict[str, tuple[int, ...]]) -> Path:
    return factory.write_nws(
        root, "main", {split: {n: factory.nws_meta(n) for n in numbers} for split, numbers in splits.items()}
    )


def write_fixed(root: Path) -> Path:
    nets = {"train": {0: factory.nws_meta(0, **FIXED)}, "test": {1: factory.nws_meta(1, **FIXED)}}
    return factory.write_nws(root, "fixed", nets)


@pytest.fixture(scope="module")
def nws_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_main(tmp_path_factory.mktemp("nws_source"), MAIN_SPLITS)
    factory.write_nws_net(root / f"main/{UNLISTED:04d}", UNLISTED, factory.nws_meta(UNLISTED))
    return write_fixed(root)


@pytest.fixture(scope="module")
def nws_zoo(nws_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    out = tmp_path_factory.mktemp("nws") / "nws"
    assert import_zoo("nws", nws_source, out).splitlines() == [
        "main_2020: 7 models, 7 of them imported now",
        "fixed_2020: 2 models, 2 of them imported now",
        "left out: 1 nets that no split file lists: main/0008",
    ]
    return Zoo(out, check=True)


@pytest.fixture(scope="module")
def small_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = tmp_path_factory.mktemp("small_source")
    for dataset, models in (("mnist", 12), ("svhn_cropped", 10)):
        factory.write_small_cnn(source / dataset, dataset, models)
    return source


@pytest.fixture(scope="module")
def small_zoo(small_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    out = tmp_path_factory.mktemp("small") / "nws"
    assert import_zoo("small_cnn", small_source, out) == "small_cnn_2020: 22 models, 22 of them imported now"
    return Zoo(out, check=True)


def digests(out: Path) -> dict[str, str]:
    return {
        str(p.relative_to(out)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(out.rglob("*"))
        if p.is_file()
    }


def several_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make shards so small that a few models fill one."""
    monkeypatch.setattr(plan, "SHARD_BYTES", 500_000)


# The networks are the originals


@pytest.mark.parametrize("snapshot", [1, 20])
@pytest.mark.parametrize("number", range(len(MAIN_ORDER)))
def test_nws_networks_compute_what_the_originals_do(nws_zoo: Zoo, number: int, snapshot: int) -> None:
    images = np.random.default_rng(1).random((3, 32, 32, 3))
    net = factory.NwsNet(factory.nws_meta(MAIN_ORDER[number]), (MAIN_ORDER[number], snapshot))
    (found,) = nws_zoo.filter(subset="main_2020", model_number=number, snapshot=snapshot)
    compare(nws_zoo.network(found), images, net(images))


def test_fixed_networks_compute_what_the_originals_do(nws_zoo: Zoo) -> None:
    images = np.random.default_rng(2).random((3, 32, 32, 3))
    (snapshot,) = nws_zoo.filter(subset="fixed_2020", model_number=1, snapshot=7)
    compare(nws_zoo.network(snapshot), images, factory.NwsNet(factory.nws_meta(1, **FIXED), (1, 7))(images))


@pytest.mark.parametrize(("dataset", "name", "size"), [("mnist", "mnist", 28), ("svhn", "svhn_cropped", 32)])
def test_small_networks_compute_what_the_originals_do(
    small_zoo: Zoo, dataset: str, name: str, size: int
) -> None:
    images = np.random.default_rng(3).random((4, size, size, 1))
    position = SMALL_CNN["dataset"].values.index(dataset)
    for number, snapshot in ((0, 1), (1, 5), (7, 9)):
        activation = str(factory.small_config(name, number)["config.activation"])
        net = factory.SmallNet(activation, (number, snapshot - 1))
        (found,) = small_zoo.filter(model_number=4 * number + position, snapshot=snapshot)
        compare(small_zoo.network(found), images, net(2 * images - 1))


@torch.no_grad()
def compare(network: torch.nn.Module, images_BHWC: np.ndarray, expected: np.ndarray) -> None:
    found = network(torch.from_numpy(images_BHWC.transpose(0, 3, 1, 2).astype(np.float32))).numpy()
    assert found.shape == expected.shape
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(found, expected, rtol=TOLERANCE, atol=TOLERANCE)


# Recipes, splits and results


def test_nws_snapshots_have_the_recipe_and_the_split(nws_zoo: Zoo) -> None:
    for number, original in enumerate(MAIN_ORDER):
        meta, snapshots = factory.nws_meta(original), nws_zoo.filter(subset="main_2020", model_number=number)
        assert len(snapshots) == 20
        assert set(snapshots["split"]) == {"test" if original in MAIN_SPLITS["test"] else "train"}
        snapshot = snapshots[0]
        assert (
            snapshot["seed"],
            snapshot["num_outputs"],
            snapshot["class_test_accuracy"],
            snapshot["test_loss"],
        ) == (
            None,
            20,
            None,
            None,
        )
        assert snapshot["dataset"] == {"fashion": "fashion_mnist"}.get(str(meta["dataset"]), meta["dataset"])
        assert snapshot["learning_rate"] == pytest.approx(meta["lrate"])
        assert snapshot["optimizer"] == ("adam", "rmsprop", "momentum")[int(str(meta["optimizer"]))]
        assert snapshot["activation"] == ("relu", "elu", "sigmoid", "tanh")[int(str(meta["activation"]))]
        assert (
            snapshot["initialization"]
            == ("constant", "normal", "glorot_uniform", "glorot_normal")[int(str(meta["initialization"]))]
        )
        for name in ("batch_size", "batch_norm", "augmentation", *FIXED):
            assert snapshot[name] == meta[name]
        for name in ("dropout", "validation_fraction", "balanced", "learning_rate_decay", "early_stopping"):
            assert snapshot[name] == NWS_MAIN[name]


def test_nws_snapshots_have_the_results_of_their_epochs(nws_zoo: Zoo) -> None:
    for number, original in enumerate(MAIN_ORDER):
        snapshots = nws_zoo.filter(subset="main_2020", model_number=number)
        exports = np.round(np.linspace(1, factory.nws_exports(original), 20)).astype(int)
        errors = factory.nws_errors(original)[exports - 1]
        assert snapshots["snapshot"].tolist() == list(range(1, 21))
        assert snapshots["epoch"].tolist() == (exports - 1).tolist()
        assert snapshots["step"].tolist() == errors[:, 0].tolist()
        for column, name in enumerate(("train_accuracy", "validation_accuracy", "test_accuracy"), 1):
            np.testing.assert_allclose(snapshots[name], 1 - errors[:, column] / 100)


def test_small_snapshots_have_the_recipe_and_the_results(small_zoo: Zoo) -> None:
    for number in range(10):
        config = factory.small_config("svhn_cropped", number)
        snapshots = small_zoo.filter(model_number=4 * number + 3)
        snapshot = snapshots[0]
        assert (snapshot["dataset"], snapshot["seed"], snapshot["batch_size"], snapshot["num_outputs"]) == (
            "svhn",
            number % 3,
            512,
            10,
        )
        assert (
            snapshot["initialization"]
            == ("he_normal", "orthogonal", "glorot_normal", "random_normal", "truncated_normal")[number % 5]
        )
        assert snapshot["init_std"] == (pytest.approx(config["config.init_std"]) if number % 5 > 2 else None)
        named = {
            "dropout": "dropout",
            "l2": "l2reg",
            "learning_rate": "learning_rate",
            "train_fraction": "train_fraction",
        }
        for name, column in {**named, "optimizer": "optimizer", "activation": "activation"}.items():
            assert snapshot[name] == pytest.approx(config[f"config.{column}"])
        assert snapshots["epoch"].tolist() == list(factory.SMALL_EPOCHS)
        per_epoch = int(73257 * float(str(config["config.train_fraction"]))) // 512
        assert snapshots["step"].tolist() == [epoch * per_epoch for epoch in factory.SMALL_EPOCHS]
        for name in ("train_accuracy", "test_accuracy", "train_loss", "test_loss"):
            np.testing.assert_allclose(
                snapshots[name], [factory.small_results(number, s)[name] for s in range(9)]
            )
        assert set(snapshots["split"]) == {plan.split_of(snapshot["model_id"], 42)}


def test_converged_is_as_in_the_builder(small_zoo: Zoo, nws_zoo: Zoo) -> None:
    seen = set()
    for zoo in (small_zoo, nws_zoo):
        for snapshot in zoo.filter(is_final=True):
            expected = (
                snapshot["test_accuracy"] >= IMAGE_SETS[snapshot["dataset"]].majority_rate + CONVERGED_MARGIN
            )
            assert set(zoo.filter(model_id=snapshot["model_id"])["converged"]) == {expected}
            seen.add(expected)
            assert not snapshot["diverged"]
    assert seen == {True, False}


def test_what_is_imported_is_declared_once() -> None:
    assert RELEASES == ("nws", "small_cnn")
    assert not set(IMPORTED) & set(SUBSETS)
    assert {subset.recipe_of for subset in IMPORTED.values()} <= set(SUBSETS)
    assert subsets_of("nws") == {"main": "main_2020", "fixed": "fixed_2020"}


# What is not finite


def test_a_snapshot_that_is_not_finite_repeats_the_last_one(tmp_path: Path) -> None:
    def change(weights: np.ndarray, lines: list[dict[str, object]]) -> None:
        weights[6 * 4 + 0, 100] = np.nan  # model 0 from its seventh snapshot; what follows stays as it was
        weights[8 * 4 + 1, 0] = np.inf  # model 1: the last
        lines[5 * 4 + 2]["test_loss"] = ""  # model 2: a loss that is not a number
        lines[4 * 4 + 3]["test_accuracy"] = "nan"

    import_zoo("small_cnn", factory.write_small_cnn(tmp_path / "mnist", "mnist", 4, change), tmp_path / "out")
    zoo = Zoo(tmp_path / "out")
    for number, whole in zip(range(4), (6, 8, 5, 4), strict=True):
        snapshots = zoo.filter(model_number=4 * number)
        assert set(snapshots["diverged"]) == {True}
        np.testing.assert_array_equal(snapshots["epoch"][:whole], factory.SMALL_EPOCHS[:whole])
        for name in ("epoch", "step", "test_accuracy", "train_loss", "sha256"):
            assert len(set(snapshots[name][whole - 1 :])) == 1
        assert len(set(snapshots["sha256"])) == whole
        assert snapshots["test_accuracy"][-1] == pytest.approx(
            factory.small_results(number, whole - 1)["test_accuracy"]
        )


def test_weights_that_float32_cannot_hold_are_not_finite(tmp_path: Path) -> None:
    root = write_main(tmp_path / "source", {"train": (0,), "test": (5,)})
    overwrite(root / "main/0005/weights/013.bin", 77, 1e39)
    import_zoo("nws", root, tmp_path / "out")
    zoo = Zoo(tmp_path / "out")
    assert set(zoo.filter(model_number=0)["diverged"]) == {False}
    snapshots = zoo.filter(model_number=1)
    assert set(snapshots["diverged"]) == {True}
    assert len(set(snapshots["sha256"])) == len(set(snapshots["sha256"][:12])) == 12


def overwrite(file: Path, index: int, value: float) -> None:
    numbers = np.fromfile(file, "<f8")
    numbers[index] = value
    numbers.tofile(file)


# The zoo that comes out


def run_verify(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of nws-verify."""
    with pytest.raises(SystemExit) as ended:
        verify([str(argument) for argument in arguments], standalone_mode=True)
    captured = capsys.readouterr()
    return int(ended.value.code or 0), captured.out, captured.err


def test_verify_accepts_imported_zoos(
    nws_zoo: Zoo, small_zoo: Zoo, capsys: pytest.CaptureFixture[str]
) -> None:
    for zoo, names in ((nws_zoo, "fixed_2020, main_2020"), (small_zoo, "small_cnn_2020")):
        code, out, err = run_verify(capsys, zoo.path)
        assert (code, err) == (0, "")
        assert f"without a plan, skipped: {names}\n" in out
        for option in ("--reevaluate", "--retrain"):
            code, _, err = run_verify(capsys, zoo.path, option, 1)
            assert code == 2
            assert (
                f"Error: {option}: expected models that nws build trained, found imported ones only "
                f"({names}); leave it out\n"
            ) == err


def test_imported_models_stand_beside_trained_ones(
    small_source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "nws"
    build(Request("demo", 1, epochs=1), out, device="cpu", workers=1)
    import_zoo("small_cnn", small_source, out, models=3)
    code, printed, _ = run_verify(capsys, out, "--reevaluate", 2, "--retrain", 1)
    assert code == 0
    assert (
        "1 models with the plan's recipes, 4 with one split each; without a plan, skipped: small_cnn_2020\n"
    ) in printed
    assert (
        "1 models trained again alone, equal in every bit; without a plan, skipped: small_cnn_2020\n"
    ) in printed


def test_verify_sees_an_imported_model_in_two_splits(
    small_zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    verifier = Verifier(small_zoo.path)
    table = small_zoo.index
    splits = table["split"].to_pylist()
    splits[-1] = "test" if splits[-1] == "train" else "train"
    verifier.snapshots = Snapshots(
        table.set_column(table.column_names.index("split"), table.schema.field("split"), [splits])
    )
    with pytest.raises(ZooError, match=r"expected the plan's recipe and split, found another split"):
        verifier.plan()


def test_the_stock_library_loads_it(nws_zoo: Zoo, tmp_path: Path) -> None:
    loaded = datasets.load_dataset(str(nws_zoo.path), cache_dir=str(tmp_path))
    assert {split: len(part) for split, part in loaded.items()} == {"train": 120, "test": 60}
    loaded = datasets.load_dataset(str(nws_zoo.path), "fixed_2020", split="test", streaming=True)
    snapshot = next(iter(loaded))
    assert snapshot["weights"] == bytes(
        nws_zoo.value(nws_zoo.filter(subset="fixed_2020", split="test", snapshot=1)[0])
    )


def test_rows_are_the_originals_numbers(nws_zoo: Zoo, small_zoo: Zoo) -> None:
    """Kernels are not moved where the release has them as we do; no number is lost or made."""
    (snapshot,) = nws_zoo.filter(subset="main_2020", model_number=0, is_final=True)
    numbers = factory.NwsNet(factory.nws_meta(0), (0, 20)).numbers().astype(np.float32)
    first = layout_of(nws_zoo.architecture(snapshot))["conv1.weight"].size
    np.testing.assert_array_equal(nws_zoo.row(snapshot)[:first], numbers[:first])
    np.testing.assert_array_equal(np.sort(nws_zoo.row(snapshot)), np.sort(numbers))
    (snapshot,) = small_zoo.filter(model_number=0, is_final=True)
    np.testing.assert_array_equal(
        np.sort(small_zoo.row(snapshot)), np.sort(factory.SmallNet("relu", (0, 8)).numbers())
    )


# Stopped, resumed, grown

KILLER = """
import os, signal, sys
from pathlib import Path
from builder import plan
from builder.importers.importing import import_zoo
plan.SHARD_BYTES, replace, left = 500_000, os.replace, int(sys.argv[3])
def dying(source, target):
    global left
    left -= str(target).endswith(".parquet")
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)
os.replace = dying
import_zoo("small_cnn", Path(sys.argv[1]), Path(sys.argv[2]))
"""


@pytest.mark.parametrize("files", [0, 2])
def test_a_killed_import_goes_on(
    small_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: int
) -> None:
    several_shards(monkeypatch)
    whole, out = tmp_path / "whole", tmp_path / "out"
    import_zoo("small_cnn", small_source, whole)
    killed = subprocess.run(
        [sys.executable, "-c", KILLER, str(small_source), str(out), str(files)], cwd=ROOT, check=False
    )
    assert killed.returncode == -signal.SIGKILL
    times = {path.name: path.stat().st_mtime_ns for path in (out / NEXT).rglob("snapshots/**/[!.]*.parquet")}
    assert len(times) == files and not (out / "snapshots").exists()  # readers see none of them yet
    import_zoo("small_cnn", small_source, out)
    assert digests(out) == digests(whole)
    assert (
        times.items()
        <= {path.name: path.stat().st_mtime_ns for path in out.rglob("snapshots/**/*.parquet")}.items()
    )


def test_interrupted_between_shards_the_folder_is_whole(
    small_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    several_shards(monkeypatch)
    put, count = Store.put, iter(range(10**6))

    def interrupted(self: Store, *arguments: Any) -> None:
        if next(count) == 2:
            raise KeyboardInterrupt
        put(self, *arguments)

    monkeypatch.setattr(Store, "put", interrupted)
    with pytest.raises(KeyboardInterrupt):
        import_zoo("small_cnn", small_source, tmp_path / "out")
    assert len(Zoo(tmp_path / "out").filter(is_final=True)) > 0
    assert run_verify(capsys, tmp_path / "out")[0] == 0


def test_imports_grow(
    nws_source: Path, small_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One model after another, one image set or part after another, in any order: the same bytes as all at
    once.
    """
    several_shards(monkeypatch)
    whole, grown, parts = tmp_path / "whole", tmp_path / "grown", tmp_path / "parts"
    import_zoo("nws", nws_source, whole)
    import_zoo("small_cnn", small_source, whole)
    import_zoo("small_cnn", small_source / "svhn_cropped", grown, models=3)
    assert import_zoo("small_cnn", small_source / "svhn_cropped", grown) == (
        "small_cnn_2020: 10 models, 7 of them imported now"
    )
    for part in ("fixed", "main"):
        shutil.copytree(nws_source / part, parts / part)
        for split in ("train", "test"):
            shutil.copy(nws_source / f"nws_{part}_{split}.csv", parts)
        import_zoo("nws", parts, grown, models=1)
    import_zoo("nws", parts, grown, models=4)
    import_zoo("small_cnn", small_source / "mnist", grown)
    import_zoo("nws", parts, grown)
    assert digests(grown) == digests(whole)
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*")}
    lines = import_zoo("nws", nws_source, whole).splitlines()
    assert lines[:2] == [
        "main_2020: 7 models, 0 of them imported now",
        "fixed_2020: 2 models, 0 of them imported now",
    ]
    assert {path: path.stat().st_mtime_ns for path in whole.rglob("*") if path.is_file()} == {
        p: t for p, t in before.items() if p.is_file()
    }


def test_the_first_models_are_of_both_splits(nws_source: Path, tmp_path: Path) -> None:
    import_zoo("nws", nws_source, tmp_path / "out", models=4)
    assert Counter(Zoo(tmp_path / "out").filter(is_final=True)["split"].tolist()) == {"train": 2, "test": 2}


def test_shards_stay_below_their_limit(
    small_zoo: Zoo, small_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    several_shards(monkeypatch)
    import_zoo("small_cnn", small_source, tmp_path / "out")
    files = Zoo(tmp_path / "out").manifest.files
    sizes = [entry.size for path, entry in files.items() if path.startswith("snapshots")]
    assert len(sizes) > 8
    assert max(sizes) < 800_000  # weights, and pages of metadata around them


def test_incomplete_models_are_left_out_and_counted(tmp_path: Path) -> None:
    def change(weights: np.ndarray, lines: list[dict[str, object]]) -> None:
        lines[-1]["step"] = 85

    source = factory.write_small_cnn(tmp_path / "mnist", "mnist", 3, change)
    told = import_zoo("small_cnn", source, tmp_path / "out").splitlines()
    assert told[0] == "small_cnn_2020: 2 models, 2 of them imported now"
    assert told[1].startswith("left out: 1 models on mnist without a row for each of the epochs [0, 1, 2,")
    assert set(Zoo(tmp_path / "out").filter()["model_number"]) == {0, 4}


def test_other_epochs(tmp_path: Path) -> None:
    """Of a release with fewer snapshots, all that it has."""

    def change(weights: np.ndarray, lines: list[dict[str, object]]) -> None:
        for line in lines:
            line["step"] = 10 * int(str(line["step"]))

    source = factory.write_small_cnn(tmp_path / "mnist", "mnist", 2, change)
    told = import_zoo("small_cnn", source, tmp_path / "out").splitlines()
    assert told[1].startswith(
        "models on mnist are of the epochs [0, 10, 20, 30, 200, 400, 600, 800, 860], "
        "not of the plan's [0, 1, "
    )
    assert set(Zoo(tmp_path / "out").filter()["epoch"]) == {0, 10, 20, 30, 200, 400, 600, 800, 860}


def test_one_split_file_is_enough(tmp_path: Path) -> None:
    source = write_main(tmp_path / "source", MAIN_SPLITS)
    (source / "nws_main_test.csv").unlink()
    import_zoo("nws", source, tmp_path / "out")
    assert set(Zoo(tmp_path / "out").filter()["split"]) == {"train"}


@pytest.mark.slow
def test_the_command(tmp_path: Path, hub: LoopbackHub) -> None:
    source = factory.write_small_cnn(tmp_path / "mnist", "mnist", 2)
    arguments = [
        "--import",
        "small_cnn",
        str(source),
        "--out",
        str(tmp_path / "out"),
        "--upload",
        "--repo-id",
        "org/nws",
    ]
    nws_build(arguments, standalone_mode=False)
    there = Zoo("org/nws", cache_dir=tmp_path / "cache")
    assert there.index.equals(Zoo(tmp_path / "out").index)
    verify([str(tmp_path / "out")], standalone_mode=False)


# Bad input


def edit(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))


def edit_line(file: Path, line: int, column: str, value: str) -> None:
    with open(file, newline="") as handle:
        rows = list(csv.reader(handle))
    rows[line - 1][rows[0].index(column)] = value
    with open(file, "w", newline="") as handle:
        csv.writer(handle).writerows(rows)


def save(file: Path, array: np.ndarray, **options: Any) -> None:
    file.unlink()
    np.save(file, array, **options)


NWS_DAMAGE: dict[str, tuple[Damage, str]] = {
    "no split files": (
        lambda s: [f.unlink() for f in s.glob("*.csv")],
        r"source: expected split files, "
        r"such as nws_main_train.csv",
    ),
    "empty split files": (
        lambda s: [path.write_text("") for path in s.glob("*.csv")],
        r"source: expected split files, such as .*, found .*nws_main_train.csv is cut short: 0 whole lines",
    ),
    "bytes that are no text": (
        lambda s: (s / "nws_main_test.csv").write_bytes(b"\xff\xfe\x00"),
        r"nws_main_test.csv: expected a table",
    ),
    "no column": (
        lambda s: edit(s / "nws_main_train.csv", "optimizer", "optimiser"),
        r"train.csv line 2: "
        r".* found no optimizer",
    ),
    "an unknown code": (
        lambda s: edit_line(s / "nws_main_train.csv", 2, "optimizer", "3"),
        r"line 2: expected optimizer 0 to 2, found 3",
    ),
    "a negative code": (
        lambda s: edit_line(s / "nws_main_train.csv", 2, "activation", "-1"),
        r"expected activation 0 to 3, found -1",
    ),
    "an unknown data set": (
        lambda s: edit_line(s / "nws_main_test.csv", 2, "dataset", "pascal"),
        r"expected dataset mnist or .*'pascal'",
    ),
    "a foreign width": (
        lambda s: edit_line(s / "nws_main_test.csv", 2, "width_conv", "5"),
        r"expected width_conv 4 or 8 or 12, found 5",
    ),
    "no batch norm": (
        lambda s: edit_line(s / "nws_main_test.csv", 2, "batch_norm", "False"),
        r"expected batch_norm True, found 0",
    ),
    "no number": (
        lambda s: edit_line(s / "nws_main_test.csv", 2, "lrate", "fast"),
        r"expected a number as "
        r"lrate, found 'fast'",
    ),
    "half a layer": (
        lambda s: edit_line(s / "nws_main_test.csv", 2, "depth_fc", "2.5"),
        r"expected a whole number as depth_fc",
    ),
}

NET_DAMAGE: dict[str, tuple[Damage, str]] = {
    "no snapshot": (
        lambda s: (s / "main/0005/weights/020.bin").unlink(),
        r"weights/020.bin: expected \d+ "
        r"bytes .* found no file",
    ),
    "a short snapshot": (
        lambda s: os.truncate(s / "main/0005/weights/003.bin", 80),
        r"003.bin: expected "
        r"\d+ bytes .* found 80 bytes",
    ),
    "no errors": (
        lambda s: (s / "main/0005/error.bin").unlink(),
        r"error.bin: expected \d+ bytes \(errors "
        r"of 65 epochs\), found no file",
    ),
    "short errors": (
        lambda s: os.truncate(s / "main/0005/error.bin", 400),
        r"error.bin: expected 2600 "
        r"bytes .* found 400 bytes",
    ),
    "long statistics": (
        lambda s: os.truncate(s / "main/0005/stat.bin", 40),
        r"stat.bin: expected 32 bytes "
        r".* found 40 bytes",
    ),
    "few epochs": (
        lambda s: overwrite(s / "main/0005/stat.bin", 0, 19),
        r"stat.bin: expected 20 or more "
        r"exported epochs, found 19",
    ),
    "no epochs": (
        lambda s: overwrite(s / "main/0005/stat.bin", 0, np.nan),
        r"stat.bin: expected 20 or "
        r"more exported epochs, found nan",
    ),
    "no percent": (
        lambda s: overwrite(s / "main/0005/error.bin", 3, 1e9),
        r"error.bin: expected a whole "
        r"step and errors in percent",
    ),
    "half a step": (
        lambda s: overwrite(s / "main/0005/error.bin", 0, 0.5),
        r"error.bin: expected a whole "
        r"step",
    ),
    "no start": (
        lambda s: overwrite(s / "main/0005/weights/001.bin", 9, np.inf),
        r"0005/weights/001.bin: "
        r"expected finite weights",
    ),
}  # to one of two nets


@pytest.fixture(scope="module")
def small_nws(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_main(tmp_path_factory.mktemp("small_nws"), {"train": (0,), "test": (5,)})


@pytest.mark.parametrize("case", NWS_DAMAGE)
def test_damaged_nws_releases_are_refused(small_nws: Path, tmp_path: Path, case: str) -> None:
    damage, message = NWS_DAMAGE[case]
    source = Path(shutil.copytree(small_nws, tmp_path / "source"))
    damage(source)
    refused("nws", source, tmp_path / "out", message)


@pytest.mark.parametrize("case", NET_DAMAGE)
def test_damaged_nets_are_left_out_and_named(
    small_nws: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    damage, message = NET_DAMAGE[case]
    source = Path(shutil.copytree(small_nws, tmp_path / "source"))
    damage(source)
    told = import_zoo("nws", source, tmp_path / "out").splitlines()
    assert told[0] == "main_2020: 1 models, 1 of them imported now"
    assert re.fullmatch(
        rf"left out: 1 models of main_2020 whose files are missing or damaged \(the first: .*{message}.*\): "
        r"main/0005",
        told[1],
    )
    assert set(Zoo(tmp_path / "out").filter()["split"]) == {"train"}
    assert run_verify(capsys, tmp_path / "out")[0] == 0
    before = digests(tmp_path / "out")
    again = import_zoo("nws", source, tmp_path / "out").splitlines()
    assert again == ["main_2020: 1 models, 0 of them imported now", *told[1:]]
    assert digests(tmp_path / "out") == before
    shutil.rmtree(source)
    shutil.copytree(small_nws, source)  # fetched again
    import_zoo("nws", source, tmp_path / "out")
    import_zoo("nws", small_nws, tmp_path / "whole")
    assert digests(tmp_path / "out") == digests(tmp_path / "whole")


def test_a_missing_net_is_left_out_and_named(
    small_nws: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = Path(shutil.copytree(small_nws, tmp_path / "source"))
    shutil.rmtree(source / "main/0005")
    assert import_zoo("nws", source, tmp_path / "out").splitlines() == [
        "main_2020: 1 models, 1 of them imported now",
        "left out: 1 nets whose folder is missing or ambiguous: main/0005",
    ]
    assert run_verify(capsys, tmp_path / "out")[0] == 0
    shutil.rmtree(source / "main/0000")
    refused(
        "nws", source, tmp_path / "none", r"expected nets that can be imported, found none but 2 nets who"
    )


def test_a_release_of_damaged_nets_alone_is_refused(small_nws: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(small_nws, tmp_path / "source"))
    for number in ("0000", "0005"):
        (source / f"main/{number}/weights/003.bin").unlink()
    refused("nws", source, tmp_path / "out", r"main/0000/weights/003.bin: expected \d+ bytes")


PATHS = {
    "absolute": "/data/zoo/main/{}",
    "of Windows": "D:\\zoo\\main\\{}",
    "with a foreign root": "nws_release/v2/main/{}",
    "with backslashes": "main\\{}",
    "upwards": "../main/{}",
    "of the last name alone": "/{}",
}


@pytest.mark.parametrize("form", PATHS)
def test_paths_of_another_machine_find_their_folder(small_nws: Path, tmp_path: Path, form: str) -> None:
    source = Path(shutil.copytree(small_nws, tmp_path / "source"))
    for split, number in (("train", "0000"), ("test", "0005")):
        edit_line(source / f"nws_main_{split}.csv", 2, "path", PATHS[form].format(number))
    assert import_zoo("nws", source, tmp_path / "out") == "main_2020: 2 models, 2 of them imported now"
    import_zoo("nws", small_nws, tmp_path / "whole")
    assert digests(tmp_path / "out") == digests(tmp_path / "whole")


def test_a_path_that_fits_several_folders_tells_none(tmp_path: Path) -> None:
    source = write_fixed(write_main(tmp_path / "source", {"train": (0,), "test": (5,)}))
    edit_line(source / "nws_main_train.csv", 2, "path", "/elsewhere/0000")
    edit_line(source / "nws_main_test.csv", 2, "path", "/elsewhere/main/0005")
    edit_line(source / "nws_fixed_test.csv", 2, "path", "/elsewhere/gone")
    assert import_zoo("nws", source, tmp_path / "out").splitlines() == [
        "main_2020: 1 models, 1 of them imported now",
        "fixed_2020: 1 models, 1 of them imported now",
        "left out: 2 nets whose folder is missing or ambiguous: /elsewhere/0000, /elsewhere/gone",
        "left out: 2 nets that no split file lists: fixed/0001, main/0000",
    ]


def test_a_path_never_leads_out_of_the_release(small_nws: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(small_nws, tmp_path / "source"))
    shutil.move(source / "main/0005", tmp_path / "0005")
    (source / "main/0005").symlink_to(tmp_path / "0005")
    for path in ("main/0005", "../0005", str(tmp_path / "0005")):
        edit_line(source / "nws_main_test.csv", 2, "path", path)
        told = import_zoo("nws", source, tmp_path / "out").splitlines()
        assert told[0].startswith("main_2020: 1 models") and told[1].endswith(f"ambiguous: {path}")


def test_a_missing_net_is_never_another_of_the_same_name(small_nws: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(small_nws, tmp_path / "source"))
    for root in ("", "/data/zoo/", "D:\\zoo\\"):
        edit_line(source / "nws_main_test.csv", 2, "path", f"{root}main/0005")
        if not root:
            shutil.move(source / "main/0005", source / "fixed/0005")
        assert import_zoo("nws", source, tmp_path / "out").splitlines()[1:] == [
            f"left out: 1 nets whose folder is missing or ambiguous: {root}main/0005",
            "left out: 1 nets that no split file lists: fixed/0005",
        ]


def test_names_are_shown_as_one_line(small_nws: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(small_nws, tmp_path / "source"))
    edit_line(source / "nws_main_test.csv", 2, "path", "main/\n\x1b[2J")
    told = import_zoo("nws", source, tmp_path / "out").splitlines()
    assert told[1].endswith(": main/ \\x1b[2J") and len(told) == 3


def test_a_net_that_is_listed_twice_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its split cannot be told."""
    source = write_main(tmp_path / "source", MAIN_SPLITS)
    edit_line(source / "nws_main_test.csv", 2, "path", "main/0000")
    assert import_zoo("nws", source, tmp_path / "out").splitlines() == [
        "main_2020: 5 models, 5 of them imported now",
        "left out: 1 nets that the split files list twice: main/0000",
        "left out: 1 nets that no split file lists: main/0004",
    ]
    assert run_verify(capsys, tmp_path / "out")[0] == 0


def test_an_index_column_of_pandas(small_nws: Path, small_source: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(small_nws, tmp_path / "source"))
    small = Path(shutil.copytree(small_source, tmp_path / "small"))
    for file in (*source.glob("*.csv"), *small.glob("*/layout.csv")):
        pandas.read_csv(file).to_csv(file)
    import_zoo("nws", source, tmp_path / "out")
    import_zoo("nws", small_nws, tmp_path / "whole")
    import_zoo("small_cnn", small, tmp_path / "out")
    import_zoo("small_cnn", small_source, tmp_path / "whole")
    assert digests(tmp_path / "out") == digests(tmp_path / "whole")


@pytest.mark.parametrize("columns", ["all", "without modeldir and step"])
def test_the_notebook_s_names(small_source: Path, tmp_path: Path, columns: str) -> None:
    """The weights and a table without compression, by the checkpoints' names; no layout.csv."""
    source = tmp_path / "source"
    for folder in small_source.iterdir():
        metrics = pandas.read_csv(folder / "metrics.csv.gz", index_col=0, dtype=str)  # every digit
        metrics.index = [
            f"{name}/permanent_ckpt-{step}"
            for name, step in zip(metrics["modeldir"], metrics["step"], strict=True)
        ]
        if columns != "all":
            metrics = metrics.drop(columns=["modeldir", "step"])
        (source / folder.name).mkdir(parents=True)
        metrics.to_csv(source / folder.name / "all_metrics.csv")
        shutil.copy(folder / "weights.npy", source / folder.name / "all_weights.npy")
    import_zoo("small_cnn", source, tmp_path / "out")
    import_zoo("small_cnn", small_source, tmp_path / "whole")
    assert digests(tmp_path / "out") == digests(tmp_path / "whole")


def test_a_table_that_begins_with_a_byte_order_mark(small_nws: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(small_nws, tmp_path / "source"))
    for file in source.glob("*.csv"):
        file.write_text(file.read_text(), encoding="utf-8-sig")
    assert import_zoo("nws", source, tmp_path / "out").startswith("main_2020: 2 models, 2 of")


@pytest.mark.parametrize("size", [0, 150, -1, -40])
def test_a_split_file_whose_download_stopped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], size: int
) -> None:
    """Before its first line, within its names, before its last number or line break is whole."""
    source = write_main(tmp_path / "source", {"train": (0, 1), "test": (5,)})
    file = source / "nws_main_train.csv"
    os.truncate(file, size if size >= 0 else file.stat().st_size + size)
    told = import_zoo("nws", source, tmp_path / "out").splitlines()
    missing = ["main/0000"] * (size >= 0) + ["main/0001"]
    there = 2 - len(missing)
    assert told == [
        f"main_2020: {1 + there} models, {1 + there} of them imported now",
        f"left out: {len(missing)} nets that no split file lists: {', '.join(missing)}",
        f"{file} is cut short: {there} whole lines are left",
    ]
    assert run_verify(capsys, tmp_path / "out")[0] == 0


def by_model(models: int) -> Callable[[np.ndarray, list[dict[str, object]]], None]:
    """Put the rows in the order of the models, so that a file that is cut short has whole ones."""

    def change(weights: np.ndarray, lines: list[dict[str, object]]) -> None:
        order = np.arange(len(lines)).reshape(-1, models).T.ravel()
        weights[:] = weights[order]
        lines[:] = [lines[row] for row in order]

    return change


@pytest.mark.parametrize(
    ("cut", "size"),
    [("weights.npy", 60), ("weights.npy", 128), ("weights.npy", 80_000), ("metrics.csv.gz", 10)],
)
def test_an_image_set_of_which_too_little_is_there(
    small_source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], cut: str, size: int
) -> None:
    """The others are imported as they would be beside it, and it is when it is whole."""
    source = Path(shutil.copytree(small_source, tmp_path / "source"))
    os.truncate(source / "mnist" / cut, size)
    told = import_zoo("small_cnn", source, tmp_path / "out").splitlines()
    assert len(told) == 2 and told[1].startswith("left out: 1 image sets that cannot be read (the first: ")
    assert told[1].endswith(f"): {source}/mnist")
    assert run_verify(capsys, tmp_path / "out")[0] == 0
    import_zoo("small_cnn", small_source, tmp_path / "out")
    import_zoo("small_cnn", small_source, tmp_path / "whole")
    assert digests(tmp_path / "out") == digests(tmp_path / "whole")


@pytest.mark.parametrize("cut", ["weights", "metrics", "notebook's metrics", "an image set"])
def test_a_download_that_stopped(tmp_path: Path, capsys: pytest.CaptureFixture[str], cut: str) -> None:
    source = factory.write_small_cnn(tmp_path / "source/mnist", "mnist", 4, by_model(4))
    if cut == "weights":
        os.truncate(source / "weights.npy", 128 + 4 * 4970 * 20 + 77)
    elif cut == "metrics":
        os.truncate(source / "metrics.csv.gz", (source / "metrics.csv.gz").stat().st_size * 3 // 4)
    elif cut == "notebook's metrics":
        text = gzip.decompress((source / "metrics.csv.gz").read_bytes())
        (source / "all_metrics.csv").write_bytes(b"\n".join(text.splitlines()[:21]) + b"\n20,relu")
        (source / "metrics.csv.gz").unlink()
    else:
        other = factory.write_small_cnn(tmp_path / "source/svhn", "svhn_cropped", 4)
        (other / "metrics.csv.gz").unlink()
    told = import_zoo("small_cnn", tmp_path / "source", tmp_path / "out").splitlines()
    if cut == "an image set":
        assert told == [
            "small_cnn_2020: 4 models, 4 of them imported now",
            f"left out: 1 image sets with a missing file: {tmp_path}/source/svhn (no metrics.csv.gz)",
        ]
    else:
        assert told[0] == "small_cnn_2020: 2 models, 2 of them imported now"
        assert told[1].startswith("left out: ") and "without a row for each" in told[1]
        assert "mnist/2" in told[1]
        assert re.search(r" is cut short: \d+ whole (rows|lines) are left$", told[2])
        assert set(Zoo(tmp_path / "out").filter()["model_number"]) == {0, 4}
    assert run_verify(capsys, tmp_path / "out")[0] == 0


def test_models_that_cannot_be_used_are_left_out_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One without a start, one that is there twice, one whose last snapshots are not finite."""

    def change(weights: np.ndarray, lines: list[dict[str, object]]) -> None:
        weights[0, 7] = np.nan  # the start of model 0
        lines[2 * 5 + 1]["modeldir"] = "mnist/2"  # a second snapshot 3 of model 2, and none of model 1
        weights[7 * 5 + 3] = np.inf  # model 3

    source = factory.write_small_cnn(tmp_path / "mnist", "mnist", 5, change)
    assert import_zoo("small_cnn", source, tmp_path / "out").splitlines() == [
        "small_cnn_2020: 2 models, 2 of them imported now",
        "small_cnn_2020: 1 models have snapshots that are not finite, which repeat the last finite one: "
        "mnist/3",
        "left out: 1 models on mnist without a row for each of the epochs [0, 1, 2, 3, 20, 40, 60, 80, 86]: "
        "mnist/1",
        "left out: 1 models on mnist with an epoch twice: mnist/2",
        "left out: 1 models of small_cnn_2020 whose files are missing or damaged (the first: "
        f"{source}/weights.npy row 0: expected finite weights and results of the initial network, found a "
        "number that is not finite in float32, or no number; fetch the release again): mnist/0",
    ]
    assert set(Zoo(tmp_path / "out").filter()["model_number"]) == {12, 16}
    assert run_verify(capsys, tmp_path / "out")[0] == 0


def test_the_check_before_an_import_is_shown(
    small_nws: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console, "LINE_SECONDS", 0.0)
    import_zoo("nws", small_nws, tmp_path / "out")
    assert re.search(r"^Checking: 1/2 models, .*\nChecking: 2/2 models, ", capsys.readouterr().err)


def test_many_names_are_counted() -> None:
    assert listed([str(n) for n in range(14)]) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 4 more"


def refused(kind: str, source: Path, out: Path, message: str) -> None:
    """The import fails in one line that says what to do, and leaves nothing half-written."""
    with pytest.raises(ZooError, match=message) as raised:
        import_zoo(kind, source, out)
    assert len(str(raised.value).splitlines()) == 1
    assert (
        ": expected " in str(raised.value) and ", found " in str(raised.value) and "; " in str(raised.value)
    )
    assert not [
        path
        for path in out.rglob("*.parquet")
        if path.parent.name != "index" and path.relative_to(out).as_posix() not in listed_files(out)
    ]


def listed_files(out: Path) -> set[str]:
    return set(Manifest.read(out).files)


def config(line: int, column: str, value: object, models: int = 2) -> Damage:
    """Write the image set with another value in a line of the metrics (counted from 0)."""

    def change(weights: np.ndarray, lines: list[dict[str, object]]) -> None:
        lines[line][column] = value

    return lambda s: factory.write_small_cnn(s, "mnist", models, change)


def archive(source: Path) -> None:
    np.savez(source / "weights", a=np.zeros(3))
    (source / "weights.npz").replace(source / "weights.npy")


def without_column(source: Path) -> None:
    text = gzip.decompress((source / "metrics.csv.gz").read_bytes()).decode()
    (source / "metrics.csv.gz").write_bytes(gzip.compress(text.replace("modeldir", "model", 1).encode()))


SMALL_DAMAGE: dict[str, tuple[Damage, str]] = {
    "no files": (
        lambda s: [(s / name).unlink() for name in ("weights.npy", "layout.csv", "metrics.csv.gz")],
        r"expected folders with wei",
    ),
    "no weights": (
        lambda s: (s / "weights.npy").unlink(),
        r"weights.npy: expected an array \[18, 4970\] "
        r"of float32",
    ),
    "no layout": (lambda s: (s / "layout.csv").unlink(), r"layout.csv: expected a table that can be read"),
    "no metrics": (
        lambda s: (s / "metrics.csv.gz").unlink(),
        r"metrics.csv.gz: expected a table with the "
        r"columns modeldir",
    ),
    "float64": (
        lambda s: save(s / "weights.npy", np.zeros((18, 4970))),
        r"weights.npy: .* found \[18, "
        r"4970\] of float64",
    ),
    "few columns": (
        lambda s: save(s / "weights.npy", np.zeros((18, 4969), np.float32)),
        r"found \[18, "
        r"4969\] of float32",
    ),
    "few rows": (
        lambda s: save(s / "weights.npy", np.zeros((17, 4970), np.float32)),
        r"weights.npy: .* "
        r"found \[17, 4970\] of float32",
    ),
    "pickled": (
        lambda s: save(s / "weights.npy", np.array([{}] * 3, object), allow_pickle=True),
        r"weights.npy: expected an array",
    ),
    "a pickle": (
        lambda s: (s / "weights.npy").write_bytes(pickle.dumps({"a": 1})),
        r"weights.npy: "
        r"expected an array",
    ),
    "empty": (lambda s: (s / "weights.npy").write_bytes(b""), r"weights.npy: expected an array"),
    "cut short": (lambda s: os.truncate(s / "weights.npy", 10_000), r"weights.npy: expected an array"),
    "an archive": (archive, r"weights.npy: expected an array"),
    "a gap": (lambda s: edit(s / "layout.csv", ":0,0,16,", ":0,16,32,"), r"layout.csv: expected kernels"),
    "another shape": (
        lambda s: edit(s / "layout.csv", '"(3, 3, 1, 16)"', '"(3, 3, 16, 1)"'),
        r"layout.csv: expected kernels",
    ),
    "another size": (
        lambda s: edit(s / "layout.csv", '"(16, 10)"', '"(16, 11)"'),
        r"layout.csv line 9: "
        r"expected a kernel or bias, and",
    ),
    "another tensor": (
        lambda s: edit(s / "layout.csv", "conv2d/bias", "conv2d/gamma"),
        r"layout.csv line "
        r"2: expected a kernel or bias",
    ),
    "no index": (
        lambda s: edit(s / "layout.csv", ",4970,", ",end,"),
        r"layout.csv line 9: expected a "
        r"number as end_idx, found 'end'",
    ),
    "no shape": (lambda s: edit(s / "layout.csv", "shape", "form"), r"layout.csv line 2: .* found no shape"),
    "no table": (
        lambda s: (s / "metrics.csv.gz").write_bytes(b"not gzip"),
        r"metrics.csv.gz: expected a "
        r"table",
    ),
    "half a table": (lambda s: os.truncate(s / "metrics.csv.gz", 200), r"metrics.csv.gz: expected a table"),
    "no modeldir": (without_column, r"metrics.csv.gz: expected a table with the columns modeldir"),
    "an unknown start": (
        config(0, "config.w_init", "lecun_normal"),
        r"metrics.csv.gz line 2: expected "
        r"initialization he_normal or",
    ),
    "an unknown optimizer": (
        config(1, "config.optimizer", "nadam"),
        r"line 3: expected optimizer adam or "
        r"sgd or rmsprop, found 'nadam'",
    ),
    "an unknown fraction": (
        config(0, "config.train_fraction", 0.3),
        r"expected train_fraction 0.1 or 0.25 "
        r"or 0.5 or 1.0, found 0.3",
    ),
    "no rate": (
        config(0, "config.learning_rate", ""),
        r"line 2: expected a number as "
        r"config.learning_rate, found",
    ),
    "two data sets": (
        config(0, "config.dataset", "cifar10"),
        r"expected complete models of one image set, "
        r"found cifar10, mnist",
    ),
    "an unknown data set": (
        config(0, "config.dataset", "kmnist"),
        r"line 2: expected dataset mnist or .*, "
        r"found 'kmnist'",
    ),
    "no whole step": (
        lambda s: factory.write_small_cnn(s, "mnist", 1, lambda w, lines: lines[3].update(step=2.5)),
        r"expected whole numbers up to 1000000 as step",
    ),
    "text as a loss": (config(4, "test_loss", "low"), r"metrics.csv.gz: expected a table"),
}


@pytest.mark.parametrize("case", SMALL_DAMAGE)
def test_damaged_small_cnn_releases_are_refused(tmp_path: Path, case: str) -> None:
    damage, message = SMALL_DAMAGE[case]
    source = factory.write_small_cnn(tmp_path / "source", "mnist", 2)
    damage(source)
    refused("small_cnn", source, tmp_path / "out", message)
    assert not (tmp_path / "out").exists()


def test_an_image_set_twice_is_refused(tmp_path: Path) -> None:
    for name in ("a", "b"):
        factory.write_small_cnn(tmp_path / "source" / name, "mnist", 1)
    refused(
        "small_cnn",
        tmp_path / "source",
        tmp_path / "out",
        r"source/b: expected networks of another "
        r"image set than .*a, found mnist",
    )


def test_other_mistakes_are_told(small_source: Path, tmp_path: Path) -> None:
    refused(
        "large_cnn",
        small_source,
        tmp_path / "out",
        r"--import: expected one of nws, small_cnn, found "
        r"'large_cnn'",
    )
    refused(
        "nws",
        tmp_path / "none",
        tmp_path / "out",
        r"none: expected the folder of a release, found "
        r"nothing",
    )


def test_a_disk_that_fails_is_told(small_nws: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(file: Path, dtype: np.dtype) -> np.ndarray:
        raise OSError(5, "Input/output error", str(file))

    monkeypatch.setattr(np, "fromfile", fail)
    refused(
        "nws",
        small_nws,
        tmp_path / "out",
        r"stat.bin: expected files that can be read and written, "
        r"found .*Input/output error",
    )
    assert not (tmp_path / "out").exists()


def test_another_selection_of_models_is_refused(tmp_path: Path) -> None:
    """It would take models away that are in the shard."""
    train = [
        number for number in range(20) if plan.split_of(f"small_cnn_2020-{4 * number:06d}", 42) == "train"
    ]
    for source, missing in zip(("a", "b"), train, strict=False):
        config(20 * 8 + missing, "step", 85, models=20)(tmp_path / source)
    import_zoo("small_cnn", tmp_path / "a", tmp_path / "out")
    before = digests(tmp_path / "out")
    refused(
        "small_cnn",
        tmp_path / "b",
        tmp_path / "out",
        r"expected models that this release has too, found "
        r"1 others; import into another",
    )
    assert digests(tmp_path / "out") == before


def test_the_card_tells_what_was_imported(nws_zoo: Zoo) -> None:
    text = (nws_zoo.path / "README.md").read_text()
    assert card.render(nws_zoo.manifest, [nws_zoo.index]) == text
    assert "`main_2020`" in text
