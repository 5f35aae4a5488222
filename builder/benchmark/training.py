"""The benchmark's command: trains planned models with this project's code and its peers, interleaved."""

from __future__ import annotations

import json
import platform
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch
from llvmlite.binding import get_host_cpu_name

from builder.benchmark.contenders import GRAPH_MODELS
from builder.benchmark.measurements import DeviceResults
from builder.benchmark.report import tables
from builder.benchmark.stacked import STACKED_MODELS
from builder.benchmark.timing import AllCoresTimer, InProcessTimer, Measured, Timer, measure, peak_memory
from builder.benchmark.workloads import cases, cases_of_kinds, is_real, write_images
from builder.forecasting.pace import Case
from builder.training.cpu.vectors import registers
from builder.training.device import GPU_SLOTS, cores, resolve_device
from nws_dataset.console import Command, Progress
from nws_dataset.errors import ZooError

GPU_CONTENDERS = (
    "plain",
    *(f"careful x{count}" for count in GRAPH_MODELS),
    "vmap",
    "ours",
    "evaluation",
    "peak",
)
_SMALL: dict[str, tuple[str, ...]] = {"one thread": ("plain", "vmap", "batched", "ours", "peak")}
# kind of networks -> where -> contenders
CPU_CONTENDERS: dict[str, dict[str, tuple[str, ...]]] = {
    "cnn": {
        "one thread": ("plain", "vmap", "ours", "peak"),
        "all cores": ("careful", "ours", "evaluation", "peak"),
    },
    "siren": _SMALL,
    "kan": _SMALL,
    "resnet": {"all cores": ("careful", "ours", "peak")},
}


@dataclass(frozen=True)
class Effort:
    """How long to measure."""

    repetitions: int
    seconds: float  # of a timed block
    # whether vmap is timed everywhere: on a CPU a step of large stacked networks takes many seconds
    all_vmapped: bool


FULL, QUICK = Effort(7, 0.3, True), Effort(3, 0.1, False)
QUICK_VMAP_FLOPS = 8e9  # of one step of all stacked models


@click.command(cls=Command)
@click.option(
    "--device",
    type=click.Choice(["cpu", "cuda"]),
    help="Device to train on.  [default: cuda if there is one]",
)
@click.option("--quick", is_flag=True, help="Shorter timings and fewer repetitions.")
@click.option(
    "--json",
    "report",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write all measurements to this file.",
)
@click.option(
    "--images",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    metavar="DIR",
    help="Folder of the real image sets, as for nws build; scikit-learn's digits stand in for those that "
    "it lacks.",
)
def main(device: str | None, quick: bool, report: Path | None, images: Path | None) -> None:
    """Measure how fast training is, beside plain, careful, vmapped and batched PyTorch.

    All contenders train the same networks with the same recipes, interleaved. On a CPU plain, vmapped and
    batched PyTorch are compared on one thread, careful PyTorch on all cores with a process each; there
    sirens, KANs and residual networks are trained too.
    """
    if report is not None and not report.absolute().parent.is_dir():
        raise ZooError(
            report, expected="a file in a folder that exists", found="no such folder", do="make the folder"
        )
    results = run(resolve_device(device or "auto"), QUICK if quick else FULL, images)
    if report is not None:
        report.write_text(json.dumps(results.to_json(), indent=1) + "\n", encoding="utf-8")
    for table in tables(results):
        table.print()
    for name, value in results.about.items():
        click.echo(f"{name}: {value}")


def run(device: torch.device, effort: Effort, directory: Path | None) -> DeviceResults:
    """Measure all cases on a device."""
    on_gpu = device.type == "cuda"
    chosen = cases(GPU_SLOTS) if on_gpu else [*cases(), *cases_of_kinds()]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        write_images(chosen, directory, folder)
        if not on_gpu:
            torch.set_num_threads(1)
        single = InProcessTimer(folder, device, effort.seconds)
        all_cores = None if on_gpu else stack.enter_context(AllCoresTimer(folder, effort.seconds, cores()))
        progress = stack.enter_context(Progress("", len(chosen)))
        measured = []
        for case in chosen:
            measured.append(_measure(case, single, all_cores, effort))
            progress.advance(note=f"{case.workload}: {case.model.recipe.architecture.id}")
        return DeviceResults(device, measured, _about(device, effort, directory, measured, all_cores))


def _measure(case: Case, single: InProcessTimer, all_cores: AllCoresTimer | None, effort: Effort) -> Measured:
    small = case.workload != "main" and (
        all_cores is None or STACKED_MODELS * case.step_flops <= QUICK_VMAP_FLOPS
    )

    def timed(contenders: tuple[str, ...]) -> list[str]:
        return [contender for contender in contenders if contender != "vmap" or small or effort.all_vmapped]

    if all_cores is None:
        timers: dict[str, tuple[Timer, list[str]]] = {"GPU": (single, timed(GPU_CONTENDERS))}
    else:
        timer: dict[str, Timer] = {"one thread": single, "all cores": all_cores}
        offered = CPU_CONTENDERS[case.model.recipe.architecture.kind]
        timers = {where: (timer[where], timed(contenders)) for where, contenders in offered.items()}
    return measure(case, timers, effort.repetitions)


def _about(
    device: torch.device,
    effort: Effort,
    directory: Path | None,
    measured: list[Measured],
    all_cores: AllCoresTimer | None,
) -> dict[str, Any]:
    """What else to record about the run."""
    about: dict[str, Any] = {
        "processor": torch.cuda.get_device_name()
        if device.type == "cuda"
        else f"{platform.machine()} {get_host_cpu_name()}",
        "cores": cores(),
        "vectors of ours": f"{32 * registers().lanes} bits",
        "vectors of torch": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "images": images_of(directory, [m.case for m in measured]),
        "repetitions": effort.repetitions,
        "seconds of a timed block": effort.seconds,
        "peak memory of this process, MB": round(peak_memory() / 1e6),
    }
    if all_cores is not None:
        return about | {"peak memory of a worker, MB": round(max(all_cores.memory()) / 1e6)}
    return about | {
        f"peak GPU memory of {contender}, MB": round(max(m.memory.get(contender, 0) for m in measured) / 1e6)
        for contender in GPU_CONTENDERS
    }


def images_of(directory: Path | None, cases: Sequence[Case]) -> str:
    """Where the images come from, in words."""
    names = sorted({case.model.recipe.dataset for case in cases})
    replaced = [name for name in names if not is_real(name, directory)]
    return f"scikit-learn's digits in place of {', '.join(replaced)}" if replaced else "real"
