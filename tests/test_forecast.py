"""The dry run tells what a build would make, and is right; it writes nothing."""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from builder.build import build
from builder.cli import main
from builder.forecasting import calibration
from builder.forecasting.calibration import Calibration, Pace
from builder.forecasting.costs import disk_bytes, epoch_flops, epoch_images, evaluated_images, forward_flops
from builder.forecasting.forecast import forecast, format_duration, format_number, makespan
from builder.image_sets import IMAGE_SETS
from builder.plan import Model, Request, select
from builder.training.backend import Segment
from builder.training.train import Cohort
from nws_dataset.format.subsets import SUBSETS
from nws_dataset.networks.cnn import Architecture
from training_cases import CPU, NWS, images_for, make_model

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
        assert all(abs(count - len(models) * share) < slack for count in counts.values()), (
            f"{field}: {counts}"
        )


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
    check_uniform(
        [math.log(m.recipe.init_std) for m in models if m.recipe.init_std is not None],
        math.log(1e-3),
        math.log(0.5),
    )
    for start in range(0, len(models), 4):  # so 30,000 of each in 120,000
        assert {model.recipe.dataset for model in models[start : start + 4]} == {
            "mnist",
            "fashion_mnist",
            "cifar10",
            "svhn",
        }
    assert SUBSETS["small_cnn"].num_models == 4 * 30_000


def test_fields_are_drawn_independently(plans: dict[str, list[Model]]) -> None:
    fields = EVEN | EVEN_SHAPES
    columns = [model.recipe.columns() for model in plans["main"]]
    for a, b in (
        ("dataset", "optimizer"),
        ("activation", "initialization"),
        ("filter_size", "width_fc"),
        ("batch_size", "augmentation"),
    ):
        counts = Counter((row[a], row[b]) for row in columns)
        share = 1 / len(fields[a]) / len(fields[b])
        slack = SIGMAS * math.sqrt(len(columns) * share * (1 - share))
        assert all(abs(counts[x, y] - len(columns) * share) < slack for x in fields[a] for y in fields[b]), (
            a,
            b,
        )


def test_flops_counted_by_hand() -> None:
    # The Small CNN Zoo's net on 28 x 28: maps of 13, 6 and 2 pixels; a multiplication and an addition for
    # each use of a weight.
    small = select(SUBSETS["small_cnn"], 0, models=1)[0]
    assert small.recipe.architecture.image_size == 28
    by_hand = 2 * (13 * 13 * 16 * 1 * 9 + 6 * 6 * 16 * 16 * 9 + 2 * 2 * 16 * 16 * 9 + 10 * 16)
    assert forward_flops(small.recipe.architecture) == by_hand == 233_312
    # The NWS net: 32, 16 and 8 pixels, then 4 x 4 x 32 = 512 inputs.
    convolutions = 32 * 32 * 8 * 3 * 25 + 16 * 16 * 16 * 8 * 25 + 8 * 8 * 32 * 16 * 25
    assert forward_flops(Architecture()) == 2 * (convolutions + 128 * 512 + 64 * 128 + 10 * 64)
    # An epoch: forward, and twice as much backward, on the images that are trained on.
    whole = _with(small, train_fraction=1.0)
    assert epoch_flops(whole, None) == 3 * by_hand * (60_000 // 512 * 512)


def test_images_of_an_epoch() -> None:
    model = make_model(NWS, dataset="svhn", batch_size=64)
    assert epoch_images(_with(model, balanced=False), None) == 73_257 * 9 // 10 // 64 * 64
    assert epoch_images(_with(model, balanced=False), 1000) == 900 // 64 * 64
    assert epoch_images(_with(model, balanced=False), 50) == 45  # one batch, smaller than the others
    assert epoch_images(model, None) == 46_590 * 9 // 10 // 64 * 64
    assert epoch_images(_with(model, train_fraction=0.25), None) == 46_590 * 9 // 40 // 64 * 64


def _with(model: Model, **fields: Any) -> Model:
    return dataclasses.replace(model, recipe=dataclasses.replace(model.recipe, **fields))


class CountingStep:
    """A `Backend` that only counts images."""

    def __init__(self) -> None:
        self.trained = self.evaluated = 0

    def train(
        self, state: tuple[torch.Tensor, torch.Tensor, torch.Tensor], segments: Mapping[int, Segment]
    ) -> torch.Tensor:
        self.trained += sum(len(segment.order) for segment in segments.values())
        return torch.zeros(len(segments))

    def evaluate(
        self, rows: torch.Tensor, activation: str, images: torch.Tensor, labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        self.evaluated += len(rows) * len(labels)
        return torch.zeros(len(rows), len(labels), dtype=torch.bool), torch.zeros(len(rows), len(labels))


def test_images_of_evaluations() -> None:
    by_dataset = {model.recipe.dataset: model for model in select(SUBSETS["main"], 0, models=100)}
    assert evaluated_images(by_dataset["mnist"], None, 30) == 31 * 6000 + 20 * (10_000 + 5000)
    assert evaluated_images(by_dataset["stl10"], None, 30) == 31 * 500 + 20 * (8000 + 4500)
    capped = select(SUBSETS["main"], 0, models=1, datasets=("mnist",), epochs=2)[0]
    assert evaluated_images(capped, 1000, 2) == 3 * 100 + 3 * (10_000 + 900)


@pytest.mark.parametrize("balanced", [False, True])
def test_counted_images_are_those_of_a_training(balanced: bool) -> None:
    model, backend = make_model(NWS, balanced=balanced, max_epochs=3, train_fraction=0.5), CountingStep()
    (_,) = Cohort(SUBSETS[model.subset], NWS, images_for(NWS, None), device=CPU, backend=backend).train(
        [model]
    )
    # The smallest class of a part of the images is smaller than its share of all.
    assert backend.trained == pytest.approx(3 * epoch_images(model, None), rel=0.1 if balanced else 1e-9)
    assert backend.evaluated == pytest.approx(evaluated_images(model, None, 3), rel=0.01)


def test_bytes_on_disk(tmp_path: Path) -> None:
    request = Request("demo", 24, epochs=1)
    build(request, tmp_path / "nws", device="cpu")
    written = sum(path.stat().st_size for path in tmp_path.rglob("*.parquet"))
    ((subset, models),) = request.plan()
    assert disk_bytes(subset, models) == pytest.approx(written, rel=0.02)
    assert f"  on disk        {disk_bytes(subset, models) / 1e6:,.1f} MB\n" in forecast(request, made_up)


# Time


def made_up(
    models: Sequence[Model], train_images: int | None, device: torch.device = CPU, **_: object
) -> Calibration:
    """1 TFLOP/s of training, half of that with augmentation; 4 of evaluation."""
    pace = Pace({False: 1e-12, True: 2e-12}, 0.25e-12)
    workers = min(2, len(models)) if device.type == "cpu" else 1
    return Calibration(device, workers, {model.number: pace for model in models}, order=0.0, split=0.0)


def time_line(request: Request, device: torch.device = CPU) -> str:
    (line,) = (
        line
        for line in forecast(request, lambda models, limit: made_up(models, limit, device)).splitlines()
        if line.startswith("  time ")
    )
    return line


def test_time_of_a_capped_build() -> None:
    request = Request("fixed", 3, ("stl10",), epochs=5)
    ((_, models),) = request.plan()
    seconds = [made_up(models, None).seconds(model, None, 5) for model in models]
    end = makespan([s.total for s in seconds], 2)
    share = round(100 * sum(s.evaluation for s in seconds) / sum(s.total for s in seconds))
    told = (
        f"{format_duration(end)} on 2 CPU processes (trainings of 5 epochs), {format_number(180 / end)} "
        "models a minute"
    )
    assert time_line(request) == f"  time           {told}, of that evaluation {share} %"
    assert " on 1 CPU process (" in time_line(Request("fixed", 1))


def test_time_of_a_build_that_may_stop_early() -> None:
    line = time_line(Request("fixed"))
    ((_, models),) = Request("fixed").plan()
    further = sum(
        epoch_flops(m, None) * (2e-12 if m.recipe.augmentation else 1e-12)
        + IMAGE_SETS[m.recipe.dataset].train_images * 0.1 * forward_flops(m.recipe.architecture) * 0.25e-12
        for m in models
    )
    assert line.endswith(f"; each further epoch of every model adds {format_duration(further / 2)}")
    assert "(trainings of 20 epochs)" in line
    on_gpu = time_line(Request("fixed"), torch.device("cuda"))
    assert " on a GPU (" in on_gpu and on_gpu.endswith(f" adds {format_duration(further)}")


def test_makespan_follows_the_plans_order() -> None:
    assert makespan([5, 1, 1, 1, 1, 1], 2) == 5
    assert makespan([1, 1, 1, 1, 1, 5], 2) == 7  # the last runs alone
    assert makespan([2, 3], 1) == 5


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        (0.2, "0 s"),
        (89, "89 s"),
        (95, "2 min"),
        (3569, "59 min"),
        (3590, "1 h 0 min"),
        (4980, "1 h 23 min"),
        (40_000, "11 h"),
    ],
)
def test_durations(seconds: float, told: str) -> None:
    assert format_duration(seconds) == told


# The command


def test_main_is_planned(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(calibration, "calibrate", made_up)
    with pytest.raises(SystemExit) as ended:
        main(["--preset", "main", "--dry-run"])
    out, err = capsys.readouterr()
    assert (ended.value.code, err) == (0, "")
    assert out.startswith("main: 13,000 models, 260,000 snapshots, seed 0\n")
    assert [line.split("  ")[1].strip() for line in out.splitlines()[1:9]] == [
        "splits", "cohorts", "weights", "on disk", "training", "time", "drawn", "",
    ]  # fmt: skip
    assert not list(tmp_path.iterdir())


def test_dry_run_of_a_subset_of_the_plan() -> None:
    text = forecast(Request("nws", 13_010, epochs=5), made_up)
    assert "main: 13,000 models, 78,000 snapshots" in text  # five epochs leave six exports
    assert "fixed: 10 models, 60 snapshots" in text
    assert "(5 epochs)" in text
    only = forecast(Request("main", 100, ("stl10",)), made_up)
    assert only.startswith("main: 100 models, 2,000 snapshots")
    assert "dataset            stl10 100 (100.0 %)" in only


def test_dry_run_leaves_the_folder_alone(tmp_path: Path) -> None:
    out = tmp_path / "nws"
    command = [
        sys.executable,
        "-m",
        "builder.cli",
        "--models",
        "2",
        "--device",
        "cpu",
        "--dry-run",
        "--out",
        str(out),
    ]
    finished = subprocess.run(
        command, capture_output=True, text=True, cwd=Path(__file__).parent.parent, check=True
    )
    assert finished.stdout.startswith("demo: 2 models, 40 snapshots, seed 0\n")
    assert "  time  " in finished.stdout
    assert finished.stderr == ""
    assert not out.exists()
