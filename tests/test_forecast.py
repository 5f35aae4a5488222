"""The dry run tells what a build would make, and is right; it writes nothing."""

from __future__ import annotations

import math
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from builder.build import Request, build
from builder.cli import main
from builder.forecast import TRAIN_IMAGES, disk_bytes, epoch_flops, forecast, forward_flops
from builder.images import load_image_set
from builder.plan import Model, select
from nws_dataset.recipe import SUBSETS, Architecture

# FACTS: every field of the nets of Eilertsen et al., each value as likely as the others.
EVEN: dict[str, tuple[Any, ...]] = {
    "dataset": ("mnist", "cifar10", "svhn", "stl10", "fashion_mnist"),
    "batch_size": (32, 64, 128, 256),
    "augmentation": (False, True),
    "optimizer": ("adam", "rmsprop", "momentum"),
    "activation": ("relu", "elu", "sigmoid", "tanh"),
    "initialization": ("constant", "normal", "glorot_uniform", "glorot_normal"),
}
EVEN_SHAPES: dict[str, tuple[Any, ...]] = {
    "filter_size": (3, 5, 7),
    "depth_conv": (3, 4, 5),
    "depth_fc": (2, 3, 4),
    "width_conv": (4, 8, 12),
    "width_fc": (64, 128, 192),
}
FIXED_SHAPE = {"filter_size": 5, "depth_conv": 3, "depth_fc": 2, "width_conv": 8, "width_fc": 128}
EVEN_SMALL: dict[str, tuple[Any, ...]] = {
    "optimizer": ("adam", "sgd", "rmsprop"),
    "activation": ("relu", "tanh"),
    "initialization": ("he_normal", "orthogonal", "glorot_normal", "random_normal", "truncated_normal"),
    "train_fraction": (0.1, 0.25, 0.5, 1.0),
}
SIGMAS = 4


@pytest.fixture(scope="module")
def plans() -> dict[str, list[Model]]:
    return {name: select(SUBSETS[name], 0, models=4000) for name in ("main", "fixed", "small_cnn")}


def check_even(models: list[Model], values: dict[str, tuple[Any, ...]]) -> None:
    for field, expected in values.items():
        counts = Counter(model.recipe.columns()[field] for model in models)
        assert set(counts) == set(expected), field
        share = 1 / len(expected)
        slack = SIGMAS * math.sqrt(len(models) * share * (1 - share))
        assert all(abs(count - len(models) * share) < slack for count in counts.values()), f"{field}: {counts}"


def check_uniform(numbers: list[float], low: float, high: float) -> None:
    """Within the range, and a tenth of the numbers in each tenth of it."""
    assert low <= min(numbers) and max(numbers) <= high
    counts = Counter(min(int(10 * (number - low) / (high - low)), 9) for number in numbers)
    slack = SIGMAS * math.sqrt(len(numbers) * 0.1 * 0.9)
    assert all(abs(counts[tenth] - len(numbers) / 10) < slack for tenth in range(10)), counts


def test_marginals_of_main(plans: dict[str, list[Model]]) -> None:
    check_even(plans["main"], EVEN | EVEN_SHAPES)
    check_uniform([model.recipe.learning_rate for model in plans["main"]], 0.0002, 0.005)


def test_marginals_of_fixed(plans: dict[str, list[Model]]) -> None:
    check_even(plans["fixed"], EVEN)
    check_uniform([model.recipe.learning_rate for model in plans["fixed"]], 0.0002, 0.005)
    assert len(plans["fixed"]) == 3000
    (architecture,) = {model.recipe.architecture for model in plans["fixed"]}
    assert {field: getattr(architecture, field) for field in FIXED_SHAPE} == FIXED_SHAPE


def test_marginals_of_small_cnn(plans: dict[str, list[Model]]) -> None:
    models = plans["small_cnn"]
    check_even(models, EVEN_SMALL)
    check_uniform([math.log(model.recipe.learning_rate) for model in models], math.log(5e-4), math.log(5e-2))
    check_uniform([math.log(model.recipe.l2) for model in models], math.log(1e-8), math.log(1e-2))
    check_uniform([model.recipe.dropout for model in models], 0, 0.7)
    check_uniform([math.log(m.recipe.init_std) for m in models if m.recipe.init_std is not None], math.log(1e-3), math.log(0.5))
    for start in range(0, len(models), 4):  # so 30,000 of each in 120,000
        assert {model.recipe.dataset for model in models[start : start + 4]} == {"mnist", "fashion_mnist", "cifar10", "svhn"}
    assert SUBSETS["small_cnn"].num_models == 4 * 30_000


def test_fields_are_drawn_independently(plans: dict[str, list[Model]]) -> None:
    fields = EVEN | EVEN_SHAPES
    columns = [model.recipe.columns() for model in plans["main"]]
    for a, b in (("dataset", "optimizer"), ("activation", "initialization"), ("filter_size", "width_fc"), ("batch_size", "augmentation")):
        counts = Counter((row[a], row[b]) for row in columns)
        share = 1 / len(fields[a]) / len(fields[b])
        slack = SIGMAS * math.sqrt(len(columns) * share * (1 - share))
        assert all(abs(counts[x, y] - len(columns) * share) < slack for x in fields[a] for y in fields[b]), (a, b)


def test_flops_counted_by_hand() -> None:
    # The Small CNN Zoo's net on 28 x 28: maps of 13, 6 and 2 pixels; a multiplication and an addition for each use of a weight.
    small = select(SUBSETS["small_cnn"], 0, models=1)[0]
    assert small.recipe.architecture.image_size == 28
    by_hand = 2 * (13 * 13 * 16 * 1 * 9 + 6 * 6 * 16 * 16 * 9 + 2 * 2 * 16 * 16 * 9 + 10 * 16)
    assert forward_flops(small.recipe.architecture) == by_hand == 233_312
    # The NWS net: 32, 16 and 8 pixels, then 4 x 4 x 32 = 512 inputs.
    convolutions = 32 * 32 * 8 * 3 * 25 + 16 * 16 * 16 * 8 * 25 + 8 * 8 * 32 * 16 * 25
    assert forward_flops(Architecture()) == 2 * (convolutions + 128 * 512 + 64 * 128 + 10 * 64)
    # An epoch: forward, and twice as much backward, on the images that are trained on.
    images = 60_000 * small.recipe.train_fraction
    assert epoch_flops(small, None) == 3 * by_hand * images
    assert epoch_flops(small, 1000) == 3 * by_hand * 1000 * small.recipe.train_fraction


def test_training_images_are_those_of_the_sets() -> None:
    assert TRAIN_IMAGES["digits"] == len(load_image_set("digits").train_images)
    assert set(TRAIN_IMAGES) >= {model for subset in SUBSETS.values() for family in subset.families for model in _sets(family["dataset"])}


def _sets(draw: Any) -> Iterator[str]:
    yield from getattr(draw, "values", None) or (draw,)


def test_bytes_on_disk(tmp_path: Path) -> None:
    request = Request("demo", 24, epochs=1)
    build(request, tmp_path / "nws", device="cpu")
    written = sum(path.stat().st_size for path in tmp_path.rglob("*.parquet"))
    ((subset, models),) = request.plan()
    assert disk_bytes(subset, models) == pytest.approx(written, rel=0.02)
    assert f"  on disk        {disk_bytes(subset, models) / 1e6:,.1f} MB\n" in forecast(request)


def test_main_is_planned(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["--preset", "main", "--dry-run"])
    out, err = capsys.readouterr()
    assert (ended.value.code, err) == (0, "")
    assert out.startswith("main: 13,000 models, 260,000 snapshots, seed 0\n")
    assert [line.split("  ")[1].strip() for line in out.splitlines()[1:8]] == [
        "splits", "cohorts", "weights", "on disk", "training", "drawn", "",
    ]  # fmt: skip
    assert not list(tmp_path.iterdir())


def test_dry_run_of_a_subset_of_the_plan() -> None:
    text = forecast(Request("nws", 13_010, epochs=5))
    assert "main: 13,000 models, 78,000 snapshots" in text  # five epochs leave six exports
    assert "fixed: 10 models, 60 snapshots" in text
    assert "(5 epochs)" in text
    only = forecast(Request("main", 100, ("stl10",)))
    assert only.startswith("main: 100 models, 2,000 snapshots")
    assert "dataset            stl10 100 (100.0 %)" in only


def test_dry_run_leaves_the_folder_alone(tmp_path: Path) -> None:
    out = tmp_path / "nws"
    command = [sys.executable, "-m", "builder.cli", "--dry-run", "--out", str(out)]
    finished = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent.parent, check=True)
    count = SUBSETS["demo"].num_models
    assert finished.stdout.startswith(f"demo: {count} models, {20 * count:,} snapshots, seed 0\n")
    assert finished.stderr == ""
    assert not out.exists()
