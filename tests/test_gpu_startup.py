"""The check before an architecture trains on a GPU: the kernels pass, a planted fault is named, what passed
is remembered.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from triton.runtime.errors import OutOfResources

from builder import build as build_module
from builder.build import build
from builder.plan import Request
from builder.training import device, update
from builder.training.gpu import augment, epilogues, startup, tiny, update_kernels
from builder.training.gpu import backend as gpu_step
from builder.training.gpu.backend import GpuBackend
from builder.training.gpu.products import TritonProducts
from builder.training.gpu.tiny import TinyCohort, differs
from builder.training.workers import LocalTraining
from nws_dataset.errors import ZooError, reason
from nws_dataset.format.subsets import SUBSETS
from nws_dataset.networks.cnn import Architecture
from training_cases import CPU, make_model

DEVICE = torch.device("cuda") if torch.cuda.is_available() else CPU
NWS = Architecture(filter_size=3, width_conv=2, depth_fc=1, width_fc=8, image_size=8)
SMALL_CNN = Architecture(
    filter_size=3, width_conv=2, width_growth=1, stride=2, padding="valid", pooling="none", head="average",
    depth_fc=0, width_fc=None,
    batch_norm=False, dropout_place="conv", image_channels=1, image_size=15, pixel_min=-1,
)  # fmt: skip
BATCH = 4  # the interpreter takes a second for an image and layer


@pytest.mark.parametrize(("architecture", "looks"), [(NWS, 1), (SMALL_CNN, 2)], ids=["nws", "small_cnn"])
def test_the_kernels_pass(architecture: Architecture, looks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiny, "MIN_COMPARED_STEPS", looks)
    cohort = TinyCohort(architecture, BATCH, DEVICE)
    assert cohort.difference() is None
    assert int(cohort.run.taken[0]) == looks
    # it did compare float32
    assert min(map(max, cohort.errors.values())) < 1e-6 and max(map(max, cohort.errors.values())) > 1e-8


# Faults


def scaled(
    target: Any, name: str, of: Callable[..., torch.Tensor], factor: float = 1.01
) -> Callable[[pytest.MonkeyPatch], None]:
    """A kernel's launch whose result, which `of` finds among what it is called with, is then scaled."""

    def plant(monkeypatch: pytest.MonkeyPatch) -> None:
        original = getattr(target, name)

        def wrong(*given: Any, **options: Any) -> Any:
            result = original(*given, **options)
            of(*given).mul_(factor)
            return result

        monkeypatch.setattr(target, name, wrong)

    return plant


def other_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    """RMSprop forgets the old mean square."""
    changed = update.COEFFICIENTS["rmsprop"]._replace(second_decay=0.0)
    original = gpu_step._numbers
    table = {**update.COEFFICIENTS, "rmsprop": changed}
    numbers = lambda recipe: [*original(recipe)[:2], *table[recipe.optimizer]]  # noqa: E731
    monkeypatch.setattr(gpu_step, "_numbers", numbers)


def no_factor(monkeypatch: pytest.MonkeyPatch) -> None:
    """What dropout keeps is not scaled."""
    original = gpu_step._numbers
    monkeypatch.setattr(gpu_step, "_numbers", lambda recipe: [1.0, *original(recipe)[1:]])


END = (
    "conv1's end (batch-norm, activation, pooling, dropout), by epilogues.conv_epilogue_forward, "
    "that enters conv2 off by "
)
FAULTS = {
    "augmentation": (
        scaled(augment, "load", lambda *given: given[2][0]),
        "the batch, by augment.load, that enters conv1 off by ",
    ),
    "product": (
        scaled(TritonProducts, "forward", lambda *given: given[4]),
        "the product of conv1, by products.forward, off by ",
    ),
    "pooling": (
        scaled(epilogues, "conv_epilogue_forward", lambda *given: given[2]),
        "conv1's end (batch-norm, activation, pooling, dropout), by epilogues.conv_epilogue_forward,",
    ),
    "dropout": (no_factor, END),
    "loss": (
        scaled(update_kernels, "cross_entropy", lambda *given: given[3]),
        "the loss, by update_kernels.cross_entropy, off by ",
    ),
    "way back": (
        scaled(epilogues, "conv_epilogue_backward", lambda *given: given[2]),
        "the gradient in the product of conv3, by products.input_gradient or "
        "epilogues.conv_epilogue_backward, off by ",
    ),
    "weight gradient": (
        scaled(
            TritonProducts,
            "weight_gradient",
            lambda _, product, x, dy, gradients, active: product.weight(gradients),
        ),
        "the gradient of output.weight off by ",
    ),
    "update": (other_rule, "the update, by update_kernels.update, off by "),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the architecture and a recipe."""
    monkeypatch.setattr(tiny, "MAX_COMPARED_STEPS", 1)
    plant, told = FAULTS[fault]
    plant(monkeypatch)
    found = startup.checked(make_model(SMALL_CNN, batch_size=BATCH), DEVICE, streams=False)
    assert found is not None and found.startswith(told)
    assert f"with {SMALL_CNN.id}, batch size {BATCH}, " in found
    assert ("rmsprop, elu" in found) == (fault == "update") or fault != "update"


def test_faults_of_batch_norm_and_of_the_evaluation_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiny, "MAX_COMPARED_STEPS", 1)
    cohort = TinyCohort(NWS, BATCH, DEVICE)
    with monkeypatch.context() as patch:
        scaled(GpuBackend, "evaluate", lambda self, rows, *given: rows, 1.0)(patch)
        original = GpuBackend.evaluate
        patch.setattr(GpuBackend, "evaluate", lambda *given: (original(*given)[0], 2 * original(*given)[1]))
        found = cohort.difference()
        assert found is not None and found.startswith(
            "the evaluation, by GpuBackend.evaluate, off by 1.0e+00 with "
        )
    scaled(epilogues, "statistics", lambda *given: given[5][:, : given[3].shape[1]], 1.5)(monkeypatch)
    found = TinyCohort(NWS, BATCH, DEVICE).difference()
    assert found is not None and found.startswith("conv1_norm.running_mean off by 5.0e-01 with ")


def test_rounding_and_ties_are_no_difference() -> None:
    rounding, tie, wrong = 1e-5, 1e-3, 0.1
    assert not differs([rounding, tie, rounding, rounding])
    assert differs([rounding, wrong, rounding, rounding])  # no tie moves so much
    assert differs([tie, tie, tie, rounding])  # not in most models
    assert all(differs([rounding] * k + [float("nan")] + [rounding] * (3 - k)) for k in range(4))


def test_of_each_model_the_best_gradient_counts_and_the_worst_of_all_else() -> None:
    cohort = SimpleNamespace(models=[0, 1])
    errors: dict[str, list[float]] = {}
    for k, error in ((0, 0.5), (1, float("nan")), (0, 0.1), (1, 0.2), (0, 0.3)):
        for worst in (False, True):
            TinyCohort._keep(cohort, errors, str(worst), k, error, worst=worst)  # type: ignore[arg-type]
    assert errors == {"False": [0.1, 0.2], "True": [0.5, float("inf")]}


def test_a_counter_that_stands_still_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first step is right, and the second takes its images again."""
    monkeypatch.setattr(tiny, "MAX_COMPARED_STEPS", 2)
    original = update_kernels.update

    def stand_still(*given: Any) -> None:
        original(*given)
        given[4].sub_(1)

    monkeypatch.setattr(update_kernels, "update", stand_still)
    found = TinyCohort(SMALL_CNN, BATCH, DEVICE).difference()
    assert found is not None and found.startswith("the batch, by augment.load, that enters conv1 off by ")


@pytest.mark.parametrize(
    "error",
    [OutOfResources(300_000, 232_448, "shared memory"), RuntimeError("CUDA error: misaligned address\nmore")],
)
def test_a_kernel_that_the_device_refuses_is_a_problem(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*given: object) -> None:
        raise error

    monkeypatch.setattr(augment, "load", refused)
    found = startup.checked(make_model(SMALL_CNN, batch_size=BATCH), DEVICE)
    assert found == f"{reason(error)}, with {SMALL_CNN.id}"
    error = torch.cuda.OutOfMemoryError("CUDA out of memory.")
    with pytest.raises(torch.cuda.OutOfMemoryError):
        startup.checked(make_model(SMALL_CNN, batch_size=BATCH), DEVICE)


def test_lanes_that_disturb_each_other_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a cohort trains while another trains is wrong; alone it is right."""
    monkeypatch.setattr(startup, "CAPTURES", 2)
    made: list[object] = []

    def train(run: gpu_step.Run, segments: dict[int, object]) -> torch.Tensor:
        made.append(run)
        run.state[0].add_(0.0 if len(made) < 6 else 1e-6)
        return run.losses

    monkeypatch.setattr(gpu_step.Run, "train", train)
    told = f"rows that depend on what another cohort does with {SMALL_CNN.id}, batch size {BATCH}"
    assert startup.streams_difference(SMALL_CNN, BATCH, DEVICE) == told
    assert len(made) > 2
    made.clear()
    monkeypatch.setattr(gpu_step.Run, "train", lambda run, segments: run.losses)
    assert startup.streams_difference(SMALL_CNN, BATCH, DEVICE) is None


# What passed


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[str, bool]]:
    """The checks that are made: none finds anything."""
    made: list[tuple[str, bool]] = []

    def checked(model: Any, device: torch.device, *, tf32: bool, streams: bool) -> None:
        made.append((model.recipe.architecture.id + " tf32" * tf32, streams))

    monkeypatch.setattr(startup, "checked", checked)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return made


def test_what_passed_is_remembered_until_something_changes(
    checks: list[tuple[str, bool]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for model in (make_model(SMALL_CNN), make_model(NWS), make_model(SMALL_CNN, 1)):
        startup.require(model, CPU)
    startup.require(make_model(NWS), CPU, tf32=True)
    assert checks == [(SMALL_CNN.id, True), (NWS.id, False), (f"{NWS.id} tf32", False)]  # streams once
    (path,) = (tmp_path / "cache" / "nws").iterdir()
    assert path.name == "gpu-check-cpu.json"
    assert json.loads(path.read_text())["passed"] == [
        SMALL_CNN.id,
        startup.TWO_STREAMS,
        NWS.id,
        f"{NWS.id} tf32",
    ]
    for change in (
        lambda: monkeypatch.setattr(startup.sources, "digest", lambda modules: "other"),
        lambda: path.write_text("[]"),
    ):
        checks.clear()
        change()
        startup.require(make_model(NWS), CPU)
        assert checks == [(NWS.id, True)]
        assert startup.passed(make_model(NWS), CPU) and not startup.passed(make_model(SMALL_CNN), CPU)
        assert json.loads(path.read_text())["passed"] == [NWS.id, startup.TWO_STREAMS]


def test_a_cache_that_cannot_be_written_is_said(
    checks: list[tuple[str, bool]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    startup.require(make_model(NWS), CPU)
    startup.require(make_model(NWS), CPU)
    assert len(checks) == 2
    assert capsys.readouterr().err.startswith(
        f"the GPU's check will be made again: {tmp_path / 'file' / 'nws'}"
    )


def test_a_user_without_a_home_has_a_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert startup.PassedChecks(CPU).path == tmp_path / "home" / ".cache" / "nws" / "gpu-check-cpu.json"

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(startup.Path, "home", homeless)
    monkeypatch.setattr(startup.tempfile, "gettempdir", lambda: str(tmp_path))
    startup.PassedChecks(CPU).add("it")
    assert startup.PassedChecks(CPU).passed == ["it"]
    assert (tmp_path / f"nws-{os.getuid()}" / "gpu-check-cpu.json").exists()


def test_a_problem_is_not_remembered(
    checks: list[tuple[str, bool]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(startup, "checked", lambda *given, **options: "the loss off by 1")
    for _ in range(2):
        with pytest.raises(
            ZooError,
            match=r"^--device cpu: expected kernels that agree with .*, found the "
            r"loss off by 1; use",
        ):
            startup.require(make_model(NWS), CPU)
    assert not (tmp_path / "cache").exists()


# Builds


@pytest.fixture
def faulty_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is a GPU with Triton, and its check finds something."""
    monkeypatch.setattr(
        device,
        "missing_requirement",
        lambda device, backend: "" if device in ("cpu", "cuda") else "a GPU that torch can use",
    )
    monkeypatch.setattr(build_module, "compile_before", lambda work: None)
    monkeypatch.setattr(startup, "passed", lambda model, device, tf32: False)
    monkeypatch.setattr(
        startup,
        "problem",
        lambda model, device, tf32: f"the loss off by 1 with {model.recipe.architecture.id}",
    )


def test_auto_falls_back_to_the_cpu(
    faulty_gpu: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build(Request("demo", 1, epochs=1), tmp_path / "nws", workers=1)
    assert capsys.readouterr().err.startswith(
        "training on the CPU: the check of the GPU found the loss off by 1 with conv"
    )
    assert (
        json.loads((tmp_path / "nws" / "nws.json").read_text())["subsets"]["demo"]["options"]["device"]
        == "cpu"
    )
    with pytest.raises(ZooError, match="--tf32: expected a GPU"):
        build(Request("demo", 1, epochs=1, tf32=True), tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_cuda_is_refused(faulty_gpu: None, tmp_path: Path) -> None:
    with pytest.raises(
        ZooError,
        match=r"^--device cuda: expected kernels that agree with .*, found the "
        r"loss off by 1 with conv",
    ):
        build(Request("demo", 1, epochs=1), tmp_path / "nws", device="cuda")
    assert not (tmp_path / "nws").exists()


def test_a_later_architecture_is_checked_before_it_trains(faulty_gpu: None, tmp_path: Path) -> None:
    with pytest.raises(
        ZooError,
        match=f"found the loss off by 1 with {NWS.id}; use --device cpu or --backend torch in another folder",
    ):
        list(LocalTraining(SUBSETS["demo"], "cuda", out=tmp_path).run([make_model(NWS)]))
