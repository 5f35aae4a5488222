"""A zoo in the layouts of the original releases: loaders that were written for a release read it as it is, an
import finds the same models again, and nobody's files are lost.

The loaders below are written anew from the published formats, as NFN and those who follow it, the authors'
notebook and the neural weight space's own script read them.
"""

from __future__ import annotations

import fcntl
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import torch
from huggingface_hub import constants

from builder.cli import main as nws_build
from builder.exporters.exporting import export_zoo
from builder.exporters.nws import percent
from builder.exporters.small_cnn import split_order
from builder.importers.importing import import_zoo
from builder.verify import main as verify
from nws_dataset import http
from nws_dataset.errors import ZooError
from nws_dataset.format.recipe import Recipe
from nws_dataset.format.schema import METADATA_SCHEMA
from nws_dataset.networks.layout import layout_of
from nws_dataset.reading.zoo import Zoo
from test_hub import weight_requests
from testing import release_factory as factory
from testing.loopback_hub import LoopbackHub
from testing.planned_zoo import make_planned_zoo
from testing.zoo_factory import make_zoo

ROOT = Path(__file__).parent.parent
MODELS = 40
RECIPE = [
    name for name in METADATA_SCHEMA.names if name in Recipe.__dataclass_fields__ or name == "num_outputs"
]
DIVERGED = {3: 29, 7: 0, 12: 85}  # place among the models -> the last finite epoch
SMALL_NWS = 45_000  # weights, of the nets that are drawn here


@pytest.fixture(scope="module")
def small_zoo(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    return Zoo(
        make_planned_zoo(tmp_path_factory.mktemp("small") / "nws", "small_cnn", MODELS, diverged=DIVERGED)
    )


@pytest.fixture(scope="module")
def mnist_zoo(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    """Forty models of one image set."""
    folder = tmp_path_factory.mktemp("mnist") / "nws"
    return Zoo(
        make_planned_zoo(folder, "small_cnn", MODELS, keep=lambda model: model.recipe.dataset == "mnist")
    )


@pytest.fixture(scope="module")
def nws_zoo(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    folder = tmp_path_factory.mktemp("main") / "nws"

    def is_small(model: Any) -> bool:
        return layout_of(model.recipe.architecture).num_weights < SMALL_NWS

    return Zoo(make_planned_zoo(folder, "main", MODELS, diverged={1: 5, 2: 33}, keep=is_small))


@pytest.fixture(scope="module")
def small_export(small_zoo: Zoo, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("small_export") / "out"
    told = export_zoo("small_cnn", small_zoo.path, out).splitlines()
    assert told[0] == f"{out}: 40 models of small_cnn in the Small CNN Zoo's layout"
    return out


@pytest.fixture(scope="module")
def nws_export(nws_zoo: Zoo, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("nws_export") / "out"
    told = export_zoo("nws", nws_zoo.path, out)
    assert told == f"{out}: 40 models of main in the neural weight space's layout"
    return out


def content(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# Loaders, written anew

# pandas alone may be off by the last bit
EXACT = dict.fromkeys((*factory.small_results(0, 0), "config.l2reg", "config.dropout", "lrate"), float)


def load_like_nfn(
    folder: Path, mode: str, final_step: int = 86
) -> tuple[dict[str, np.ndarray], pandas.DataFrame]:
    """A split of an image set as NFN, neural-graphs, ScaleGMN and ProbeGen take it: tensors in PyTorch's
    shapes, each [N, ...], and the metrics of their rows.
    """
    weights = np.load(folder / "weights.npy")
    order = pandas.read_csv(folder / "split.csv", header=None).values.flatten()
    metrics = pandas.read_csv(folder / "metrics.csv.gz", compression="gzip", converters=EXACT)
    weights, metrics = weights[order], metrics.iloc[order]
    final = (metrics["step"] == final_step).to_numpy()
    weights, metrics = weights[final], metrics[final]
    assert np.isfinite(weights).all()
    half = int(0.5 * len(weights))
    first = list(range(half))
    random.Random(0).shuffle(first)
    cut = int(0.8 * half)
    parts = {"train": first[:cut], "val": first[cut:], "test": list(range(half, len(weights)))}
    weights, metrics = weights[parts[mode]], metrics.iloc[parts[mode]]
    tensors = {}
    for line in pandas.read_csv(folder / "layout.csv").itertuples():
        shape = tuple(int(size) for size in line.shape.strip("()").split(",") if size.strip())
        assert line.size == np.prod(shape) == line.end_idx - line.start_idx
        tensor = weights[:, line.start_idx : line.end_idx].reshape(-1, *shape)
        if line.varname.endswith("kernel:0"):
            tensor = tensor.transpose(0, 4, 3, 1, 2) if tensor.ndim == 5 else tensor.transpose(0, 2, 1)
        else:
            assert line.varname.endswith("bias:0")
        tensors[line.varname] = tensor
    return tensors, metrics


def load_like_the_notebook(folder: Path) -> tuple[np.ndarray, pandas.DataFrame]:
    """The last checkpoint of each run, by the checkpoints' names; the rows of a run stand together."""
    weights = np.load(folder / "all_weights.npy")
    metrics = pandas.read_csv(folder / "all_metrics.csv", index_col=0, converters=EXACT)
    runs = [name.split("/")[-2] for name in metrics.index]
    epochs = [int(name.split("/")[-1].split("-")[-1]) for name in metrics.index]
    last: dict[str, int] = {}
    for row, run in enumerate(runs):
        assert run not in last or runs[row - 1] == run
        if run not in last or epochs[row] > epochs[last[run]]:
            last[run] = row
    chosen = list(last.values())
    return weights[chosen], metrics.iloc[chosen]


def load_like_nws(root: Path, table: str) -> dict[str, dict[str, Any]]:
    """The nets of a split file as the original's script imports them: path -> properties, weights, errors."""
    nets = {}
    for row in pandas.read_csv(root / table, converters=EXACT).to_dict("records"):
        folder = root / row["path"]
        errors = np.fromfile(folder / "error.bin").reshape(-1, 5)
        exports = np.fromfile(folder / "stat.bin")[0]
        errors = errors[np.round(np.linspace(0, exports - 1, 20)).astype("uint32")]
        weights = [np.fromfile(folder / f"weights/{s:03d}.bin", "double") for s in range(1, 21)]
        assert {len(vector) for vector in weights} == {row["weightn_conv"] + row["weightn_fc"]}
        assert pandas.read_csv(folder / "meta.csv")["activation"][0] == row["activation"]
        nets[row["path"]] = {**row, "weights": np.stack(weights), "errors": errors}
    return nets


KERAS = {"conv1": "conv2d", "conv2": "conv2d_1", "conv3": "conv2d_2", "output": "dense"}
NUMBER = "nws.model_number"


def test_loaders_take_the_rows_of_our_splits(mnist_zoo: Zoo, tmp_path: Path) -> None:
    export_zoo("small_cnn", mnist_zoo.path, tmp_path / "out")
    finals = mnist_zoo.filter(is_final=True)
    seen = {}
    for mode, split in (("train", "train"), ("val", "validation"), ("test", "test")):
        tensors, metrics = load_like_nfn(tmp_path / "out/mnist", mode)
        seen[split] = set(metrics[NUMBER])
        assert set(metrics["nws.split"]) == {split}
        for place, row in enumerate(metrics.to_dict("records")):
            (snapshot,) = finals.filter(model_number=row[NUMBER])
            assert (row["step"], row["test_accuracy"]) == (snapshot["epoch"], snapshot["test_accuracy"])
            for name, tensor in mnist_zoo.state_dict(snapshot).items():
                layer, kind = name.split(".")
                keras = f"sequential/{KERAS[layer]}/{'kernel' if kind == 'weight' else 'bias'}:0"
                np.testing.assert_array_equal(tensors[keras][place], tensor)
    assert {split: set(finals.filter(split=split)["model_number"]) for split in seen} == seen
    train = load_like_nfn(tmp_path / "out/mnist", "train")[1][NUMBER]
    assert sorted(train) == sorted(finals.filter(split="train")["model_number"])  # each once


@pytest.mark.parametrize(
    ("train", "validation", "test"),
    [
        (1, 1, 1),
        (4, 1, 1),
        (4, 1, 5),
        (8, 1, 1),
        (80, 10, 10),
        (81, 9, 10),
        (3, 5, 2),
        (2, 1, 9),
        (800, 99, 101),
    ],
)
def test_the_order_of_rows_keeps_the_splits(train: int, validation: int, test: int) -> None:
    rows = list(range(train + validation + test))
    parts = rows[:train], rows[train : train + validation], rows[train + validation :]
    order = split_order(*parts)
    half = int(0.5 * len(order))
    first = list(range(half))
    random.Random(0).shuffle(first)
    cut = int(0.8 * half)
    assert {order[place] for place in first[:cut]} == set(parts[0])
    assert {order[place] for place in first[cut:]} == set(parts[1])
    assert set(order[half:]) == set(parts[2])


def test_the_notebook_s_way_of_loading(small_zoo: Zoo, small_export: Path) -> None:
    found = {}
    for folder in ("mnist", "fashion_mnist", "cifar10", "svhn_cropped"):
        weights, metrics = load_like_the_notebook(small_export / folder)
        assert set(metrics["config.dataset"]) == {folder}
        for row, vector in zip(metrics.to_dict("records"), weights, strict=True):
            found[row[NUMBER]] = row, vector
    finals = small_zoo.filter(is_final=True)
    assert len(found) == len(finals) == MODELS
    for snapshot in finals:
        row, vector = found[snapshot["model_number"]]
        assert (row["step"], row["config.epochs"]) == (snapshot["epoch"], 86)
        for column in ("test_accuracy", "train_accuracy", "test_loss", "train_loss"):
            assert row[column] == snapshot[column]
        for column, name in (("l2reg", "l2"), ("dropout", "dropout"), ("activation", "activation")):
            assert row[f"config.{column}"] == snapshot[name]
        np.testing.assert_array_equal(np.sort(vector), np.sort(small_zoo.row(snapshot)))


def test_networks_of_an_export_compute_the_same(small_zoo: Zoo, small_export: Path) -> None:
    """In the release's own conventions, by the plain numpy of its factory."""
    images = np.random.default_rng(0).random((2, 32, 32, 1))
    weights, metrics = load_like_the_notebook(small_export / "svhn_cropped")
    row, vector = metrics.iloc[0], weights[0]
    net = factory.SmallNet(row["config.activation"], (0, 0))
    parts = np.split(
        vector, np.cumsum([n for shape in factory.SMALL_KERNELS for n in (shape[-1], np.prod(shape))])[:-1]
    )
    net.biases = parts[::2]
    net.kernels = [
        part.reshape(shape) for part, shape in zip(parts[1::2], factory.SMALL_KERNELS, strict=True)
    ]
    (snapshot,) = small_zoo.filter(model_number=row[NUMBER], is_final=True)
    with torch.no_grad():
        found = small_zoo.network(snapshot)(torch.from_numpy(images.transpose(0, 3, 1, 2).astype(np.float32)))
    expected = net(2 * images - 1)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_true_epochs_are_written_and_relabelled_on_request(tmp_path: Path) -> None:
    zoo = Zoo(
        make_planned_zoo(
            tmp_path / "zoo", "small_cnn", MODELS, epochs=2, diverged={3: 1},
            keep=lambda model: model.recipe.dataset == "svhn",
        )
    )  # fmt: skip
    told = export_zoo("small_cnn", zoo.path, tmp_path / "out").splitlines()
    folder = tmp_path / "out/svhn_cropped"
    (diverged,) = set(zoo.filter(diverged=True)["model_id"])
    assert told[1:] == [f"svhn_cropped: split.csv does not list models whose last step is not 2: {diverged}"]
    metrics = pandas.read_csv(folder / "metrics.csv.gz")
    assert set(metrics["step"]) == {0, 1, 2} and not (folder / "STEPS.txt").exists()
    assert len(load_like_nfn(folder, "train", final_step=2)[1])
    told = export_zoo("small_cnn", zoo.path, tmp_path / "out", final_step=86).splitlines()
    assert len(told) == 1
    _, metrics = load_like_nfn(folder, "test")
    assert set(metrics[NUMBER]) == set(zoo.filter(split="test")["model_number"])
    metrics = pandas.read_csv(folder / "metrics.csv.gz")
    assert set(metrics["step"]) == {0, 1, 86}
    assert (metrics["step"] == 86).sum() == MODELS
    assert set(metrics[metrics["step"] == 86]["nws.epoch"]) == {1, 2}
    assert (
        "--final-step" in (folder / "STEPS.txt").read_text() and " 86 " in (folder / "STEPS.txt").read_text()
    )
    same_after_import(zoo, "small_cnn", tmp_path / "out", tmp_path / "imported")
    export_zoo("small_cnn", zoo.path, tmp_path / "out")  # back to the true epochs
    assert not (folder / "STEPS.txt").exists()


def test_the_original_script_reads_our_nets(nws_zoo: Zoo, nws_export: Path) -> None:
    nets = {
        path: {**net, "file": file}
        for file in ("train", "test")
        for path, net in load_like_nws(nws_export, f"nws_main_{file}.csv").items()
    }
    assert len(nets) == MODELS
    optimizers, activations = ("adam", "rmsprop", "momentum"), ("relu", "elu", "sigmoid", "tanh")
    for path, net in nets.items():
        snapshots = nws_zoo.filter(model_number=int(path.split("/")[1]))
        first = snapshots[0]
        assert net["dataset"] == {"fashion_mnist": "fashion"}.get(first["dataset"], first["dataset"])
        assert (net["lrate"], net["batch_norm"]) == (first["learning_rate"], True)
        assert (optimizers[net["optimizer"]], activations[net["activation"]]) == (
            first["optimizer"],
            first["activation"],
        )
        assert net["file"] == {"validation": "train"}.get(first["split"], first["split"])
        assert net["nws.split"] == first["split"]
        for column, name in ((1, "train_accuracy"), (2, "validation_accuracy"), (3, "test_accuracy")):
            np.testing.assert_allclose(
                1 - net["errors"][:, column] / 100, snapshots[name], rtol=0, atol=3e-16
            )
        np.testing.assert_array_equal(net["errors"][:, 0], snapshots["step"])
        kernel = nws_zoo.layout(first)["conv1.weight"].size
        for snapshot, vector in zip(snapshots, net["weights"], strict=True):
            ours = nws_zoo.row(snapshot)
            np.testing.assert_array_equal(vector[:kernel], ours[:kernel])
            np.testing.assert_array_equal(np.sort(vector), np.sort(ours))


# Export, import, export


def same_after_import(zoo: Zoo, kind: str, export: Path, out: Path, rounding: float = 0.0) -> Zoo:
    """An export, imported: the same models by name."""
    import_zoo(kind, export, out)
    verify([str(out)], standalone_mode=False)
    there = Zoo(out, check=True)
    ours, theirs = (z.filter() for z in (zoo, there))
    order = [np.lexsort((s["snapshot"], s["model_number"])) for s in (ours, theirs)]
    ours, theirs = ours[order[0]], theirs[order[1]]
    names = "model_number", "split", "seed", "snapshot", "epoch", "step", "diverged", "architecture"
    assert ours.select([*RECIPE, *names]).to_pydict() == theirs.select([*RECIPE, *names]).to_pydict()
    for name in ("train_accuracy", "validation_accuracy", "test_accuracy"):
        np.testing.assert_allclose(
            ours[name].astype(float), theirs[name].astype(float), rtol=0, atol=rounding, err_msg=name
        )
    for mine, other in zip(zoo.arrays(ours), there.arrays(theirs), strict=True):
        assert mine.tobytes() == other.tobytes()
    return there


def test_small_cnn_there_and_back(small_zoo: Zoo, small_export: Path, tmp_path: Path) -> None:
    assert small_zoo.filter(diverged=True)["epoch"].max() == 85
    there = same_after_import(small_zoo, "small_cnn", small_export, tmp_path / "zoo")
    assert len(set(there.filter()["model_id"])) == MODELS
    export_zoo("small_cnn", there.path, tmp_path / "again")
    same_files(small_export, tmp_path / "again")


def same_files(first: Path, second: Path) -> None:
    """All but what says of which zoo they are."""
    before, after = content(first), content(second)
    of_before, of_after = (json.loads(files.pop("export.json")) for files in (before, after))
    assert before == after
    assert of_before["files"] == of_after["files"] and of_before["complete"]


def test_nws_there_and_back(nws_zoo: Zoo, nws_export: Path, tmp_path: Path) -> None:
    assert set(nws_zoo.filter(diverged=True, is_final=True)["epoch"]) == {5, 33}
    there = same_after_import(nws_zoo, "nws", nws_export, tmp_path / "zoo", rounding=3e-16)
    export_zoo("nws", there.path, tmp_path / "again")
    same_files(nws_export, tmp_path / "again")


def test_imported_releases_there_and_back(tmp_path: Path) -> None:
    """Twenty outputs, seeds and splits of their own."""
    factory.write_nws(
        tmp_path / "nws",
        "main",
        {"train": {n: factory.nws_meta(n) for n in (0, 5)}, "test": {10: factory.nws_meta(10)}},
    )
    import_zoo("nws", tmp_path / "nws", tmp_path / "nws_zoo")
    export_zoo("nws", tmp_path / "nws_zoo", tmp_path / "nws_export")
    same_after_import(Zoo(tmp_path / "nws_zoo"), "nws", tmp_path / "nws_export", tmp_path / "nws_again")
    for number, path in enumerate((0, 10, 5)):
        for snapshot in (1, 20):
            original, ours = (
                np.fromfile(tmp_path / name / f"weights/{snapshot:03d}.bin")
                for name in (f"nws/main/{path:04d}", f"nws_export/main/{number:06d}")
            )
            np.testing.assert_array_equal(original.astype(np.float32), ours.astype(np.float32))
    for dataset, models in (("mnist", 12), ("svhn_cropped", 9)):
        factory.write_small_cnn(tmp_path / "small" / dataset, dataset, models)
    import_zoo("small_cnn", tmp_path / "small", tmp_path / "small_zoo")
    export_zoo("small_cnn", tmp_path / "small_zoo", tmp_path / "small_export")
    same_after_import(
        Zoo(tmp_path / "small_zoo"), "small_cnn", tmp_path / "small_export", tmp_path / "small_again"
    )


@pytest.mark.parametrize("images", [8000, 10_000, 26_032])
def test_errors_in_percent_come_back(images: int) -> None:
    for correct in range(0, images + 1, 7):
        accuracy = correct / images
        found = 1 - percent(accuracy) / 100
        assert abs(found - accuracy) < 3e-16
        assert percent(found) == percent(accuracy)


# What the layouts cannot hold


def test_what_a_layout_cannot_hold_is_named(tmp_path: Path) -> None:
    zoo = make_planned_zoo(tmp_path / "zoo", "demo", 24)
    with pytest.raises(ZooError) as raised:
        export_zoo("small_cnn", zoo, tmp_path / "out")
    for reason in (
        "activation elu (",
        "batch_norm True (",
        "dataset digits (24)",
        "optimizer momentum (",
    ):
        assert reason in str(raised.value)
    assert "\n" not in str(raised.value) and "export another zoo" in str(raised.value)
    assert not (tmp_path / "out").exists()
    with pytest.raises(ZooError, match="expected models that the neural weight space's layout can hold"):
        export_zoo("nws", zoo, tmp_path / "out", partial=True)


def test_part_of_a_zoo_on_request(small_zoo: Zoo, tmp_path: Path) -> None:
    zoo = Path(shutil.copytree(small_zoo.path, tmp_path / "zoo"))
    make_planned_zoo(zoo, "fixed", 2)
    with pytest.raises(
        ZooError,
        match=r"batch_norm True \(2\).* models, e.g. fixed-000000; add --partial to "
        r"export the other 40 models",
    ):
        export_zoo("small_cnn", zoo, tmp_path / "out")
    told = export_zoo("small_cnn", zoo, tmp_path / "out", partial=True).splitlines()
    assert told[0].endswith("40 models of small_cnn in the Small CNN Zoo's layout")
    assert "fixed-000000, fixed-000001" in told[-1] and told[-1].startswith("left out: ")
    export_zoo("small_cnn", zoo, tmp_path / "subset", subsets=["small_cnn"])
    same_files(tmp_path / "out", tmp_path / "subset")
    told = export_zoo("nws", zoo, tmp_path / "nws", subsets=["fixed"])
    assert told == f"{tmp_path}/nws: 2 models of fixed in the neural weight space's layout"


def test_several_layouts_and_few_snapshots(tmp_path: Path) -> None:
    zoo = make_zoo(tmp_path / "zoo")
    with pytest.raises(ZooError, match=r"a network of 386 weights \(5\)"):
        export_zoo("small_cnn", zoo, tmp_path / "out")
    capped = make_planned_zoo(tmp_path / "capped", "fixed", 1, epochs=3)
    with pytest.raises(ZooError, match="4 snapshots, not 20"):
        export_zoo("nws", capped, tmp_path / "out")
    drawn = make_planned_zoo(tmp_path / "drawn", "small_cnn", 12)  # each has an l2 of its own
    with pytest.raises(ZooError, match=r"l2 other than 0\.0 \(12\)"):
        export_zoo("nws", drawn, tmp_path / "out")


def test_two_subsets_of_the_same_models(small_zoo: Zoo, small_export: Path, tmp_path: Path) -> None:
    zoo = Path(shutil.copytree(small_zoo.path, tmp_path / "zoo"))
    import_zoo("small_cnn", small_export, zoo)
    with pytest.raises(
        ZooError, match=r"expected models of one subset, found small_cnn, small_cnn_2020; add --subsets"
    ):
        export_zoo("small_cnn", zoo, tmp_path / "out")
    export_zoo("small_cnn", zoo, tmp_path / "out", subsets=["small_cnn_2020"])
    with pytest.raises(ZooError, match=r"--subsets: expected subsets of .*, found none_such"):
        export_zoo("small_cnn", zoo, tmp_path / "out", subsets=["none_such"])


# The folder


def test_an_export_touches_nothing_of_others(small_zoo: Zoo, mnist_zoo: Zoo, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    with pytest.raises(ZooError, match="expected an empty folder, or one with an export of the same zoo"):
        export_zoo("small_cnn", small_zoo.path, out)
    assert content(out) == {"mine.txt": b"mine"}
    (out / "mine.txt").unlink()
    export_zoo("small_cnn", mnist_zoo.path, out)
    before = content(out)
    (out / "mine.txt").write_text("mine")
    (out / "mnist/notes").mkdir()
    (out / "mnist/notes/mine.txt").write_text("mine")
    (out / "mnist/weights.npy").write_bytes(b"cut")
    other = make_planned_zoo(tmp_path / "other", "small_cnn", 4, seed=1)
    with pytest.raises(ZooError, match="found one of"):
        export_zoo("small_cnn", other, out)
    with pytest.raises(ZooError, match="found one of"):
        export_zoo("nws", make_planned_zoo(tmp_path / "fixed", "fixed", 1), out)
    export_zoo("small_cnn", mnist_zoo.path, out)
    assert content(out) == {**before, "mine.txt": b"mine", "mnist/notes/mine.txt": b"mine"}


def test_another_import_is_another_zoo(tmp_path: Path) -> None:
    def change(weights: np.ndarray, lines: list[dict[str, object]]) -> None:
        weights += 1

    for name, changed in (("a", None), ("b", change)):
        factory.write_small_cnn(tmp_path / f"{name}_release/mnist", "mnist", 1, changed)
        import_zoo("small_cnn", tmp_path / f"{name}_release", tmp_path / name)
    export_zoo("small_cnn", tmp_path / "a", tmp_path / "out")
    with pytest.raises(ZooError, match="found one of"):
        export_zoo("small_cnn", tmp_path / "b", tmp_path / "out")


def test_a_name_that_others_took(small_zoo: Zoo, mnist_zoo: Zoo, tmp_path: Path) -> None:
    """The zoo has grown by an image set, whose folder is there."""
    out = tmp_path / "out"
    export_zoo("small_cnn", mnist_zoo.path, out)
    (out / "cifar10").mkdir()
    (out / "cifar10/weights.npy").write_text("mine")
    before = content(out)
    with pytest.raises(ZooError, match=r"cifar10/weights.npy: expected a name that is free, found a file"):
        export_zoo("small_cnn", small_zoo.path, out)
    assert content(out) == before
    shutil.rmtree(out / "cifar10")
    (tmp_path / "elsewhere").mkdir()
    (out / "cifar10").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ZooError, match="expected a file inside this folder"):
        export_zoo("small_cnn", small_zoo.path, out)
    (out / "cifar10").unlink()
    export_zoo("small_cnn", small_zoo.path, out)
    assert (out / "svhn_cropped/weights.npy").exists()
    export_zoo("small_cnn", mnist_zoo.path, out)  # what the other wrote goes
    assert sorted(path.name for path in out.iterdir()) == ["export.json", "mnist"]


@pytest.mark.parametrize(
    "files",
    [
        '["mnist"]',
        "[1]",
        "[[]]",
        '["../mine.txt"]',
        '["/mine.txt"]',
        "{}",
        "7",
        '["mine\\u0000"]',
        '["mine.txt"]',
        '["mnist/mine.txt"]',
        '["export.json"]',
        '["mnist/weights.npy/x"]',
        '["mnist/weights.npy\\n"]',
        '["../mnist/weights.npy"]',
    ],
)
def test_a_list_of_files_that_is_none(mnist_zoo: Zoo, tmp_path: Path, files: str) -> None:
    """It names nothing that is removed."""
    out = tmp_path / "out"
    export_zoo("small_cnn", mnist_zoo.path, out)
    for folder in (tmp_path, out, out / "mnist"):
        (folder / "mine.txt").write_text("mine")
    told = json.loads((out / "export.json").read_text())
    (out / "export.json").write_text(json.dumps({**told, "files": json.loads(files)}))
    before = content(tmp_path)
    with pytest.raises(ZooError) as raised:
        export_zoo("small_cnn", mnist_zoo.path, out)
    assert "\n" not in str(raised.value)
    assert content(tmp_path) == before


def test_a_list_of_files_that_is_cut(mnist_zoo: Zoo, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export_zoo("small_cnn", mnist_zoo.path, out)
    os.truncate(out / "export.json", 40)
    with pytest.raises(
        ZooError, match=r"expected an empty folder.*, found a damaged export.json; choose another folder$"
    ):
        export_zoo("small_cnn", mnist_zoo.path, out)


def test_folders_that_are_left_empty_go(tmp_path: Path) -> None:
    """The zoo has become smaller; only what others put there stays."""
    zoo = make_planned_zoo(tmp_path / "zoo", "fixed", 3)
    export_zoo("nws", zoo, tmp_path / "out")
    for number, name in ((1, "mine.txt"), (2, "weights/mine.txt")):
        (tmp_path / f"out/fixed/{number:06d}/{name}").write_text("mine")
    export_zoo("nws", make_planned_zoo(tmp_path / "smaller", "fixed", 1), tmp_path / "out")
    left = {
        path.relative_to(tmp_path / "out/fixed").as_posix() for path in (tmp_path / "out/fixed").rglob("*")
    }
    assert {path for path in left if not path.startswith("000000")} == {
        "000001", "000001/mine.txt", "000002", "000002/weights", "000002/weights/mine.txt",
    }  # fmt: skip
    (tmp_path / "out/fixed/000001/mine.txt").unlink()
    (tmp_path / "out/fixed/000001").rmdir()
    export_zoo("nws", zoo, tmp_path / "out")
    export_zoo("nws", make_planned_zoo(tmp_path / "smallest", "fixed", 1), tmp_path / "out")
    assert not (tmp_path / "out/fixed/000001").exists()


KILLER = """
import os, signal, sys
from pathlib import Path
from builder.exporters.exporting import export_zoo
replace, left = os.replace, int(sys.argv[3])
def dying(source, target):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)
os.replace = dying
export_zoo("small_cnn", sys.argv[1], Path(sys.argv[2]))
"""


@pytest.mark.parametrize("files", [0, 1, 4, 9])
def test_a_killed_export_is_taken_up_again(
    small_zoo: Zoo, small_export: Path, tmp_path: Path, files: int
) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-c", KILLER, str(small_zoo.path), str(out), str(files)]
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == -signal.SIGKILL
    assert [path for path in out.rglob(".*.tmp")]
    export_zoo("small_cnn", small_zoo.path, out)
    assert content(out) == content(small_export)


def test_two_exports_at_once(small_zoo: Zoo, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    descriptor = os.open(out, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with pytest.raises(ZooError, match="expected no other running export"):
        export_zoo("small_cnn", small_zoo.path, out)
    os.close(descriptor)
    export_zoo("small_cnn", small_zoo.path, out)


def test_a_disk_without_links(
    small_zoo: Zoo, small_export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", fail)
    export_zoo("small_cnn", small_zoo.path, tmp_path / "out")
    assert content(tmp_path / "out") == content(small_export)


# From the Hub


@pytest.mark.parametrize("kind", ["small_cnn", "nws"])
def test_an_export_from_the_hub_is_that_of_the_folder(
    kind: str, request: pytest.FixtureRequest, hub: LoopbackHub, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    zoo: Zoo = request.getfixturevalue({"small_cnn": "small_zoo", "nws": "nws_zoo"}[kind])
    exported: Path = request.getfixturevalue({"small_cnn": "small_export", "nws": "nws_export"}[kind])
    hub.put("org/nws", zoo.path)
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "home"))
    code, out, _ = run(capsys, "--export", kind, "org/nws", tmp_path / "out")
    assert code == 0 and out.startswith(f"{tmp_path}/out: 40 models of ")
    assert content(tmp_path / "out") == content(exported)
    assert 0 < len(weight_requests(hub)) < len(zoo.filter()) / 5  # neighbours together
    export_zoo(kind, zoo.path, tmp_path / "out")  # the same zoo, wherever it is read from
    assert content(tmp_path / "out") == content(exported)


def test_an_export_from_a_hub_that_fails(
    small_zoo: Zoo, small_export: Path, hub: LoopbackHub, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(http, "PAUSES", ())
    arguments = "--export", "small_cnn", "org/nws", tmp_path / "out"
    code, _, err = run(capsys, *arguments)
    assert code == 2 and err.count("\n") == 1 and not (tmp_path / "out").exists()
    hub.put("org/nws", small_zoo.path)
    weights = len(set(small_zoo.filter()["file"])) // 2

    def fail(number: int, method: str, path: str) -> Any:
        return 503 if len(weight_requests(hub)) > weights else None

    hub.faults = fail
    code, _, err = run(capsys, *arguments)
    assert code == 2 and err.count("\n") == 1 and (tmp_path / "out/export.json").exists()
    hub.faults = lambda number, method, path: None
    assert run(capsys, *arguments)[0] == 0
    assert content(tmp_path / "out") == content(small_export)


# The command


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        nws_build([str(argument) for argument in arguments], standalone_mode=True)
    captured = capsys.readouterr()
    return int(ended.value.code or 0), captured.out, captured.err


def test_the_command(
    small_zoo: Zoo, small_export: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(capsys, "--export", "small_cnn", small_zoo.path, tmp_path / "out")
    assert code == 0 and out.startswith(
        f"{tmp_path}/out: 40 models of small_cnn in the Small CNN Zoo's layout\n"
    )
    assert content(tmp_path / "out") == content(small_export)


MISTAKES = {
    "another layout": (["--export", "other", "nws", "out"], "Invalid value for '--export'"),
    "no zoo": (["--export", "nws", "./none", "out"], "expected a folder with nws.json, found nothing"),
    "a preset": (
        ["--export", "nws", "./none", "out", "--preset", "demo"],
        "--preset: expected no --export beside it",
    ),
    "no export": (["--final-step", "86"], "--final-step: expected --export beside it, found none"),
    "an import": (
        ["--partial", "--import", "nws", "none"],
        "--partial: expected --export beside it, found none",
    ),
}


@pytest.mark.parametrize(("arguments", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "") and message in err and err.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("step", [-1, 0, 80, 10**6 + 1, 10**30])
def test_a_final_step_that_is_not_after_the_others(mnist_zoo: Zoo, tmp_path: Path, step: int) -> None:
    """Loaders would take other snapshots for final ones."""
    with pytest.raises(ZooError, match=rf"^--final-step: expected 81 to 1000000, .*, found {step};"):
        export_zoo("small_cnn", mnist_zoo.path, tmp_path / "out", final_step=step)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_none(
    small_zoo: Zoo, nws_zoo: Zoo, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    code, _, err = run(capsys, "--export", "small_cnn", small_zoo.path, tmp_path / "file")
    assert code == 2 and "expected a folder that can be created" in err
    code, _, err = run(capsys, "--export", "nws", nws_zoo.path, tmp_path / "out", "--final-step", 86)
    assert code == 2 and "--final-step: expected the layout small_cnn, found nws" in err
