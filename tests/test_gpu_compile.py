"""What the presets launch on a GPU, compiled without one: all of it by `pytest -m gpu_compile`, else a
sample.

Recording and compiling are done in processes without TRITON_INTERPRET, in which warnings are errors.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

pytest.importorskip("triton")

from triton.backends.compiler import GPUTarget

import gpu_recording
from builder.images import load_image_set
from builder.plan import select
from builder.training import bank, workers
from builder.training.device import cores
from builder.training.gpu import startup, warmup
from builder.training.gpu.warmup import Variant
from builder.training.workers import CONTEXT, LocalTraining
from gpu_recording import Recorded
from nws_dataset.format.subsets import SUBSETS
from training_cases import SMALL_CNN, make_model

CAPABILITIES = 80, 90
# at most: each takes most of a second of a core
VARIANTS = {"demo": 140, "main": 130, "fixed": 65, "small_cnn": 40}
GRID = 2**31 - 1, 65_535, 65_535
OFFSET = 2**31 // 8  # kernels count in 32 bits
SHARED = 99 * 1024  # bytes that any GPU since 2020 has for a block
# bytes, the most that Triton 3.9 takes for any preset on either generation; 0 where nothing is said
STACK = {
    "forward_kernel": 2176,  # hardly any of it within the loop
    "input_gradient_kernel": 2024,
    "weight_gradient_kernel": 504,
    "load_kernel": 80,  # sine and cosine keep a small table for large angles
    "conv_epilogue_backward_kernel": 16,
    "conv_epilogue_forward_kernel": 8,
}
QUICK = [subset for subset in VARIANTS if subset != "main"]  # are recorded within seconds


@pytest.fixture(autouse=True)
def processes_without_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that tests fork from were started with TRITON_INTERPRET."""
    monkeypatch.setattr(workers, "CONTEXT", CONTEXT)


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProcessPoolExecutor]:
    """Processes that compile, with a cache of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("TRITON_INTERPRET", raising=False)
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        with ProcessPoolExecutor(cores(), CONTEXT, initializer=gpu_recording.start) as processes:
            yield processes


def recorded(pool: ProcessPoolExecutor, subset: str, capability: int = 90) -> Recorded:
    return pool.submit(gpu_recording.record, subset, capability).result()


def check_compiled(pool: ProcessPoolExecutor, variants: list[Variant], capability: int) -> None:
    found = list(pool.map(gpu_recording.compile_for, variants, [capability] * len(variants)))
    assert max(kernel.shared for kernel in found) <= SHARED
    assert [kernel for kernel in found if kernel.stack > STACK.get(kernel.kernel, 0)] == []


every_subset = pytest.mark.parametrize(
    "subset", [*QUICK, pytest.param("main", marks=pytest.mark.gpu_compile)]
)


@every_subset
def test_what_a_subset_launches(subset: str, pool: ProcessPoolExecutor) -> None:
    found = recorded(pool, subset)
    assert 0 < len(found.variants) <= VARIANTS[subset]
    assert all(map(gpu_recording.is_fused, found.variants))
    assert all(size <= most for size, most in zip(found.grid, GRID, strict=True))
    assert found.offset < OFFSET


def test_the_check_before_training_has_no_kernels_of_its_own(pool: ProcessPoolExecutor) -> None:
    """It checks those that train."""
    firsts = {model.recipe.architecture: model for model in select(SUBSETS["demo"], 0, models=12)}
    for model in firsts.values():
        cohort = [dataclasses.replace(model, number=n) for n in range(14)]
        (work,) = warmup.work_of(cohort, {model.recipe.dataset: (60_000, 10_000)})
        check, train = (
            pool.submit(gpu_recording.variants, part, 90) for part in (startup.work_of(model), work)
        )
        assert check.result() <= train.result()


@pytest.mark.slow
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_a_variant_of_each_kernel_compiles(capability: int, pool: ProcessPoolExecutor) -> None:
    variants = {variant.kernel: variant for variant in recorded(pool, "demo", capability).variants}
    check_compiled(pool, list(variants.values()), capability)


@pytest.mark.gpu_compile
@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("subset", VARIANTS)
def test_all_variants_compile(subset: str, capability: int, pool: ProcessPoolExecutor) -> None:
    check_compiled(pool, recorded(pool, subset, capability).variants, capability)


@pytest.fixture
def task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LocalTraining:
    """Of a build on a GPU that is not there, with images on the CPU."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "triton"))
    monkeypatch.setattr(warmup, "target", lambda: GPUTarget("cuda", 90, 32))
    task = LocalTraining(SUBSETS["demo"], "cpu", out=tmp_path)
    bank.save(load_image_set("digits"), SMALL_CNN, 400, task.images)
    return task


@pytest.mark.slow
def test_launches_find_what_was_compiled_before(
    task: LocalTraining, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    models = [make_model(SMALL_CNN, n, batch_size=32) for n in range(3)]
    (work,) = warmup.work_of(models, {"digits": (400, 360)})
    task.compile_kernels(models)
    with ProcessPoolExecutor(1, CONTEXT, initializer=gpu_recording.start) as processes:
        found, fresh = processes.submit(gpu_recording.compile_by_launching, work, 90).result()
        # a line of progress follows on a slow machine
        assert capfd.readouterr().err.startswith(
            f"Compiling {found} kernels for the GPU, those that are not there from an earlier build ...\n"
        )
        assert fresh == 0
        shutil.rmtree(next((task.out / "triton").glob("*/update_kernel.cubin")).parent)
        assert processes.submit(gpu_recording.compile_by_launching, work, 90).result() == (found - 1, 1)


def test_a_build_goes_on_where_kernels_cannot_be_compiled_before(
    task: LocalTraining, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")  # the processes find kernels of another kind
    task.compile_kernels([make_model(SMALL_CNN)])
    assert capfd.readouterr().err.startswith("kernels are compiled one by one, as the GPU needs them (")
