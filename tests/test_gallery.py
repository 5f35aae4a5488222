"""The plots: drawn from the zoo alone, only when stale, the same bytes each time, of any zoo."""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner
from matplotlib.collections import PathCollection
from PIL import Image

from builder import card, gallery
from nws_dataset.errors import ZooError
from nws_dataset.explorer.command import main as explore
from nws_dataset.format.manifest import FileEntry, Manifest
from nws_dataset.format.recipe import LEGAL_VALUES
from nws_dataset.format.schema import INDEX_SCHEMA
from nws_dataset.networks import KINDS
from nws_dataset.reading.index import Columns
from nws_dataset.reading.zoo import Zoo
from testing.zoo_factory import make_zoo, use_copy

# of a zoo of classifiers
PLOTS = [path for path in card.PLOTS if path != "plots/images.png"]
FILES = [*PLOTS, card.EXPLORER_PAGE]
DRAWN_HERE = [path for path in PLOTS if path != card.EXPLORER_PICTURE]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_zoo(tmp_path_factory.mktemp("gallery") / "zoo")
    assert gallery.stale(folder) == list(FILES)
    assert gallery.draw(folder) == [folder / name for name in FILES]
    return folder


@pytest.fixture
def zoo(drawn: Path, tmp_path: Path) -> Path:
    """A copy of a zoo with its plots."""
    return Path(shutil.copytree(drawn, tmp_path / "zoo"))


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in FILES}


def replaced(zoo: Zoo, column: str, values: list[object]) -> None:
    """Gives the models other values of a column, in turn."""
    position, numbers = INDEX_SCHEMA.get_field_index(column), zoo.index["model_number"].to_pylist()
    told = pa.array([values[number % len(values)] for number in numbers], INDEX_SCHEMA.field(column).type)
    changed = Columns.of(zoo.index.set_column(position, INDEX_SCHEMA.field(column), told))
    zoo.__dict__.update(_columns=changed, index=changed.table(range(changed.num_rows)))


def test_pictures_that_a_card_can_show(drawn: Path) -> None:
    for name in PLOTS:
        with Image.open(drawn / name) as image:
            image.load()
            assert image.format == "PNG"
            assert image.width == gallery.WIDTH * gallery.DPI
            assert len(set(image.convert("L").resize((60, 40)).tobytes())) > 10, f"{name} shows nothing"
    assert sorted(path.name for path in (drawn / "plots").iterdir()) == sorted(
        Path(name).name for name in FILES
    )


def test_a_folder_whatever_its_name(zoo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(zoo.parent)
    shutil.rmtree(zoo / "plots")
    zoo.rename("~")
    assert gallery.draw(Path("~")) == [Path("~") / name for name in FILES]


def test_nothing_is_drawn_twice(zoo: Path) -> None:
    times = [(zoo / name).stat().st_mtime_ns for name in FILES]
    assert gallery.stale(zoo) == []
    assert gallery.draw(zoo) == []
    assert [(zoo / name).stat().st_mtime_ns for name in FILES] == times


def test_the_same_zoo_gives_the_same_bytes(zoo: Path) -> None:
    before = contents(zoo)
    shutil.rmtree(zoo / "plots")
    gallery.draw(zoo)
    assert contents(zoo) == before


@pytest.mark.parametrize("damage", ["missing", "cut", "flipped", "no digest", "no picture"])
def test_a_plot_that_is_not_the_zoos_is_drawn_anew(zoo: Path, damage: str) -> None:
    before, name = contents(zoo), list(PLOTS)[1]
    path = zoo / name
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(before[name][:-100])
    elif damage == "flipped":
        middle = len(before[name]) // 2
        path.write_bytes(
            before[name][:middle] + bytes([before[name][middle] ^ 1]) + before[name][middle + 1 :]
        )
    elif damage == "no digest":
        with Image.open(path) as image:
            image.load()
            image.save(path)
    else:
        path.write_bytes(b"a text")
    assert gallery.stale(zoo) == [name]
    assert gallery.draw(zoo) == [path]
    assert contents(zoo) == before


@pytest.mark.parametrize(
    "damage", ["missing", "cut", "flipped", "no digest", "of another zoo", "bytes", "huge"]
)
def test_a_page_that_is_not_the_zoos_is_written_anew(zoo: Path, damage: str) -> None:
    before, path = contents(zoo), zoo / card.EXPLORER_PAGE
    page = before[card.EXPLORER_PAGE]
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(page[:1000])
    elif damage == "flipped":
        path.write_bytes(page[:5000] + bytes([page[5000] ^ 1]) + page[5001:])
    elif damage == "no digest":
        path.write_bytes(page[: page.rindex(b"<!--")])
    elif damage == "of another zoo":
        line = page.splitlines()[-1].split()
        path.write_bytes(page.replace(line[2], line[2][::-1]))
    elif damage == "bytes":
        path.write_bytes(bytes(range(256)))
    else:
        os.truncate(path, gallery.MAX_PAGE_BYTES + 1)
    assert gallery.stale(zoo) == [card.EXPLORER_PAGE]
    assert gallery.draw(zoo) == [path]
    assert contents(zoo) == before


def test_the_page_is_what_explore_writes(zoo: Path, tmp_path: Path) -> None:
    """But for its name, and the last line; it names the zoo's subsets, as the folder may have any name."""
    page = tmp_path / "page.html"
    assert CliRunner().invoke(explore, [str(zoo), "--out", str(page)], catch_exceptions=False).exit_code == 0
    ours = (zoo / card.EXPLORER_PAGE).read_text().splitlines()
    assert ours[-2] == "</html>" and gallery.DIGEST in ours[-1]
    differ = [(a, b) for a, b in zip(ours, page.read_text().splitlines(), strict=False) if a != b]
    assert differ[0][0] == "<title>demo: a zoo of networks</title>" and len(differ) == 3, "title, h1, data"


def test_without_its_library_no_page_is_written(zoo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(zoo / "plots")
    monkeypatch.setattr(gallery, "missing_libraries", lambda: ["vl_convert"])
    assert gallery.draw(zoo) == [zoo / name for name in PLOTS]
    assert gallery.stale(zoo) == []


@pytest.mark.parametrize("stale", [False, True])
def test_without_its_library_a_page_stays_while_it_is_the_zoos(
    zoo: Path, stale: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stale one would be published as if it were this zoo's."""
    page = zoo / card.EXPLORER_PAGE
    page.write_text(page.read_text() + stale * "more")
    monkeypatch.setattr(gallery, "missing_libraries", lambda: ["vl_convert"])
    assert gallery.stale(zoo) == [card.EXPLORER_PAGE] * stale
    assert gallery.draw(zoo) == [] and page.exists() is not stale
    assert gallery.stale(zoo) == []


def test_a_change_of_the_index_makes_all_stale(zoo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = Manifest.read(zoo)
    index = manifest.index_files()[0]
    files = {**manifest.files, index: FileEntry(manifest.files[index].size, "another")}
    dataclasses.replace(manifest, files=files).write(zoo)
    assert gallery.stale(zoo) == FILES
    manifest.write(zoo)
    monkeypatch.setattr(gallery, "VERSION", "another")
    assert gallery.stale(zoo) == FILES


def test_a_copy_of_an_image_set_has_its_name(zoo: Path) -> None:
    name = use_copy(zoo)
    assert gallery.stale(zoo) == FILES
    opened = Zoo(zoo)
    left, right = gallery.FIGURES["plots/accuracy.png"](opened).subfigs
    called = ["mnist", name, "svhn"]
    assert [axes.get_title("left").split(":")[0] for axes in left.axes] == called
    assert [line.get_label() for line in right.axes[0].lines] == called
    replaced(opened, "test_accuracy", [None])
    replaced(opened, "psnr", [30.0])
    _, curves = gallery.FIGURES["plots/accuracy.png"](opened).axes
    assert [line.get_label() for line in curves.lines] == called


def test_a_zoo_without_models_has_no_plots(tmp_path: Path) -> None:
    Manifest("test", {}, {}).write(tmp_path)
    assert gallery.stale(tmp_path) == gallery.draw(tmp_path) == []
    with pytest.raises(ZooError, match=r"nws\.json"):
        gallery.stale(tmp_path / "none")


@pytest.mark.parametrize(("models", "snapshots"), [(1, 1), (4, 2), (40, 20)])
def test_zoos_of_any_size(tmp_path: Path, models: int, snapshots: int) -> None:
    folder = make_zoo(tmp_path / "zoo", models=models, snapshots=snapshots)
    assert len(gallery.draw(folder)) == len(FILES)


def test_every_value_has_a_colour_of_its_own(zoo: Path) -> None:
    assert len(set(gallery.COLOURS)) == len(gallery.COLOURS) >= len(LEGAL_VALUES["dataset"])
    for kind in KINDS.values():
        colours = [gallery._colour("initialization", name) for name in kind.initializations]
        assert len(set(colours)) == len(colours)
    opened = Zoo(zoo)
    for column in ("dataset", "initialization"):
        replaced(opened, column, list(LEGAL_VALUES[column]))
    for name in DRAWN_HERE:
        gallery.FIGURES[name](opened).draw_without_rendering()


def test_networks_that_diverged_do_not_stretch_the_axes(zoo: Path) -> None:
    opened = Zoo(zoo)
    shown = gallery._finite(opened)
    replaced(opened, "diverged", [False, True])
    assert len(gallery._finite(opened)) < len(shown)
    replaced(opened, "diverged", [True])
    assert len(gallery._finite(opened)) == len(shown)


def test_weights_that_are_zero_have_no_place_on_a_logarithmic_axis(
    zoo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = Zoo.row
    monkeypatch.setattr(Zoo, "row", lambda self, which: row(self, which) * (which["model_number"] > 4))
    opened = Zoo(zoo)
    for name in DRAWN_HERE:
        gallery.FIGURES[name](opened).draw_without_rendering()
    monkeypatch.setattr(Zoo, "row", lambda self, which: np.zeros_like(row(self, which)))
    for name in DRAWN_HERE:
        gallery.FIGURES[name](opened).draw_without_rendering()


def test_few_weights_are_read(zoo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    row = Zoo.row
    monkeypatch.setattr(Zoo, "row", lambda self, which: (read.append(which["model_id"]), row(self, which))[1])
    monkeypatch.setattr(gallery, "SAMPLED_SNAPSHOTS", 8)
    opened = Zoo(zoo)  # 10 models of 3 snapshots
    gallery.FIGURES["plots/weights.png"](opened)
    assert len(read) == 8
    assert len(set(read)) == 4
    read.clear()
    gallery.FIGURES["plots/trajectories.png"](opened)
    assert len(set(read)) == 2


def test_what_the_accuracies_show(zoo: Path) -> None:
    opened = Zoo(zoo)
    figure = gallery.FIGURES["plots/accuracy.png"](opened)
    left, right = figure.subfigs
    final = opened.filter(is_final=True)
    names = gallery._present(opened.index, "dataset")
    for axes, name in zip(left.axes, names, strict=True):
        assert (
            axes.get_title("left") == f"{name}: {final.filter(dataset=name)['converged'].sum()} of "
            f"{len(final.filter(dataset=name))} converged"
        )
        assert sum(bar.get_height() for bar in axes.patches) == len(final.filter(dataset=name))
    for line, name in zip(right.axes[0].lines, names, strict=True):
        epochs, means = line.get_data()
        for epoch, mean in zip(epochs, means, strict=True):  # every model has a snapshot at every epoch
            assert mean == pytest.approx(
                opened.filter(dataset=name, epoch=int(epoch))["test_accuracy"].mean()
            )


def test_what_the_overview_shows(zoo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every network over training, coloured by what differs, and where they end."""
    opened = Zoo(zoo)
    figure = gallery.FIGURES[card.OVERVIEW](opened)
    left, right = figure.axes
    names = ["relu", "tanh"]  # all have one optimizer
    assert figure.legends[0].get_title().get_text() == "activation"
    assert [text.get_text() for text in figure.legends[0].texts] == names
    models = sorted(set(opened.index["model_id"].to_pylist()))
    for line, model in zip(left.lines, models, strict=True):
        snapshots = opened.filter(model_id=model)
        assert np.array_equal(
            line.get_xydata(), np.stack([snapshots["epoch"], snapshots["test_accuracy"]], 1)
        )
        assert line.get_color() == gallery._colour("activation", snapshots[0]["activation"])
    assert sum(bar.get_width() for bar in right.patches) == len(models)
    monkeypatch.setattr(gallery, "CURVES", 4)
    left, _ = gallery.FIGURES[card.OVERVIEW](opened).axes
    assert len(left.lines) == 4 and left.get_title("left").startswith("4 networks of 10 ")


def test_what_the_weights_show(zoo: Path) -> None:
    opened = Zoo(zoo)
    axes = gallery.FIGURES["plots/weights.png"](opened).axes[2]
    (points,) = (found for found in axes.collections if isinstance(found, PathCollection))
    models = [opened.filter(model_id=name) for name in sorted(set(opened.index["model_id"].to_pylist()))]
    sizes = [
        [
            np.sqrt((opened.state_dict(snapshot)["output.weight"].numpy() ** 2).mean())
            for snapshot in (model[0], model[-1])
        ]
        for model in models
    ]
    assert np.sort(np.asarray(points.get_offsets()), axis=0) == pytest.approx(np.sort(sizes, axis=0))
    line = gallery.FIGURES["plots/trajectories.png"](opened).axes[2].lines[0]
    worst = min(opened.filter(is_final=True), key=lambda snapshot: snapshot["test_accuracy"])["model_id"]
    first, *others = (
        opened.state_dict(snapshot)["output.weight"].numpy() for snapshot in opened.filter(model_id=worst)
    )
    distances = [np.linalg.norm(other - first) / np.linalg.norm(first) for other in others]
    assert line.get_ydata() == pytest.approx([np.nan, *distances], nan_ok=True)
