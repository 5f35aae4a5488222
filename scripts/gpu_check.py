"""Check and measure the GPU's training step.

    python3 scripts/gpu_check.py [--quick] [--parts machine,products] [--out DIR]

Parts: machine (its peaks), tests (of kernels and step), gradients (float32 against the plain network in
float64), startup (the check before an architecture trains, and its seconds), products (the candidates for a
layer's products), steps (whole steps, and what takes their time), benchmark (scripts/bench_training.py), tf32
(its effect on accuracy). Needs no installation; every number goes to DIR/gpu_check.json, a table comes last.

Axes: M models, B images, C channels, S height = width.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the package need not be installed

import click
import torch
import torch.nn.functional as F

from builder.images import load_image_set
from builder.plan import Model, select
from builder.training import batches
from builder.training.backend import Segment, aligned
from builder.training.bank import Images, bank_of
from builder.training.initial import initial_row
from builder.training.plain import PlainLoop
from builder.training.train import Cohort
from builder.training.update import SECOND_START
from nws_dataset.console import Command
from nws_dataset.errors import ZooError
from nws_dataset.format.recipe import Recipe
from nws_dataset.format.subsets import SUBSETS
from nws_dataset.networks.cnn import Architecture, convolutional
from nws_dataset.networks.layout import layout_of

ROOT = Path(__file__).resolve().parent.parent
FIXED = Architecture()
SMALL_CNN = convolutional(select(SUBSETS["small_cnn"], 0, models=1)[0].recipe.architecture)
DEEP = Architecture(filter_size=3, depth_conv=5, width_conv=12, depth_fc=3, width_fc=192)
STEPS = 20  # in a timed call
COHORTS = 13, 64  # models
CASES = {"fixed": (FIXED, 128), "small_cnn": (SMALL_CNN, 512), "deep": (DEEP, 128)}
ACTIVATIONS = "relu", "elu", "sigmoid", "tanh"
CUDA = torch.device("cuda")
Report = dict[str, Any]


class Timer:
    """Medians of CUDA-event times.

    Args:
        quick: use few repetitions and few candidates.
    """

    def __init__(self, quick: bool) -> None:
        self.quick, self.repetitions = quick, 5 if quick else 20

    def __call__(self, work: Callable[[], object]) -> float:
        """Milliseconds of `work` in a CUDA graph, so that launches cost the same as in a step."""
        stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                work()
        torch.cuda.synchronize()
        with torch.cuda.graph(graph, stream=stream):
            work()
        return self.of_calls(graph.replay)

    def of_calls(self, work: Callable[[], object]) -> float:
        """Milliseconds of `work` called directly."""
        times = []
        for _ in range(self.repetitions + 2):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            work()
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end))
        return statistics.median(times[2:])


# The machine


def machine(timer: Timer) -> Report:
    """Versions, and the peaks to compare times with."""
    import triton

    a, b, c = torch.randn(3, 8192, 8192, device=CUDA)
    source, target = torch.randn(2, 1 << 28, device=CUDA)
    peaks = {}
    for name, tf32 in (("fp32", False), ("tf32", True)):
        torch.backends.cuda.matmul.allow_tf32 = tf32
        peaks[f"matmul_{name}_tflops"] = 2 * 8192**3 / timer(lambda: torch.mm(a, b, out=c)) / 1e9
    torch.backends.cuda.matmul.allow_tf32 = False
    copied = 2 * source.numel() * source.element_size()
    return {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        **peaks,
        "copy_tb_per_s": copied / timer(lambda: target.copy_(source)) / 1e9,
    }


# Correctness


def run_tests(timer: Timer) -> Report:
    """Run the tests of kernels and step on this GPU; without pytest only `gradients` checks."""
    if importlib.util.find_spec("pytest") is None:
        return {"passed": None, "summary": "pytest is not installed: only the gradients are checked"}
    # compiling takes most of the time
    slow = [] if timer.quick else ["tests/test_gpu_backend.py", "tests/test_gpu_startup.py"]
    files = ["tests/test_gpu_kernels.py", "tests/test_torch_backend.py", *slow]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return {
        "passed": done.returncode == 0,
        "summary": done.stdout.strip().splitlines()[-1:],
        "output": (done.stdout + done.stderr)[-20_000:],
    }


def make_model(architecture: Architecture, number: int, **fields: Any) -> Model:
    usual: dict[str, Any] = {
        "learning_rate": 0.002,
        "batch_size": 64,
        "optimizer": "sgd",
        "dropout": 0.3,
        "l2": 1e-4,
    }
    recipe = Recipe(architecture, dataset="digits", initialization="glorot_uniform", **{**usual, **fields})
    return Model("demo", number, seed=0, recipe=recipe, block=0)


def digits(architecture: Architecture, device: torch.device) -> Images:
    return bank_of({"digits": load_image_set("digits")}, architecture, device)["digits"]


def gradients(timer: Timer) -> Report:
    """Relative errors of float32 gradients; SGD's first moment is the gradient, including L2."""
    from builder.training.gpu.backend import GpuBackend
    from builder.training.gpu.tiny import differs

    ways: dict[str, dict[str, Any]] = {
        "triton": {},
        "tf32": {"tf32": True},
        "grouped": {"convolution": "grouped"},
    }
    found = {}
    for name, (architecture, _) in CASES.items():
        models = [
            make_model(architecture, n, activation=kind, augmentation=n % 2 == 1)
            for n, kind in enumerate(ACTIVATIONS)
        ]
        loops = [PlainLoop(model, digits(architecture, torch.device("cpu"))) for model in models]
        images = digits(architecture, CUDA)
        for kind, options in ways.items():
            rows, first, second = torch.zeros(3, len(models), len(loops[0].row), device=CUDA)
            rows.copy_(torch.stack([torch.from_numpy(initial_row(model)) for model in models]))
            orders = [
                batches.epoch_order(loop.model, loop.parts, loop.images.train_labels, 0)[:64].to(CUDA)
                for loop in loops
            ]
            second.fill_(SECOND_START["sgd"])
            segments = {m: Segment(model, images, orders[m], 64, 0, 0) for m, model in enumerate(models)}
            GpuBackend(architecture, CUDA, **options).train((rows, first, second), segments)
            for m, activation in enumerate(ACTIVATIONS):
                if kind == "triton":
                    loops[m].step(*next(loops[m].epoch(0)))
                exact = loops[m].first
                found[f"{name} {activation} {kind}"] = float(
                    (first[m].double().cpu() - exact).norm() / exact.norm()
                )
    together = {
        f"{name} {kind}": [found[f"{name} {activation} {kind}"] for activation in ACTIVATIONS]
        for name in CASES
        for kind in ways
    }
    passed = not any(differs(errors) for name, errors in together.items() if not name.endswith("tf32"))
    return {
        "relative_errors": found,
        "medians": {name: statistics.median(errors) for name, errors in together.items()},
        "passed": passed,
    }


def startup(timer: Timer) -> Report:
    """The check before training, for the presets' first architectures; seconds with and without compiling."""
    from builder.training.gpu.startup import checked

    first = {preset: select(subset, 0, models=4 if timer.quick else 16) for preset, subset in SUBSETS.items()}
    models = {model.recipe.architecture: model for chosen in first.values() for model in chosen}
    found: Report = {}
    for number, (architecture, model) in enumerate(models.items()):
        seconds, problem = list[float](), None
        for _ in range(2):
            start = time.perf_counter()
            problem = checked(model, CUDA, streams=number == 0) or problem
            seconds.append(time.perf_counter() - start)
        found[architecture.id] = {"problem": problem, "seconds_first": seconds[0], "seconds": seconds[1]}
        click.echo(f"  {architecture.id}: {problem or 'passed'}, {seconds[0]:.1f} s, then {seconds[1]:.2f} s")
    return {"passed": all(one["problem"] is None for one in found.values()), "architectures": found}


# Candidates for the products


def products(timer: Timer) -> Report:
    """Milliseconds of every candidate for every layer of `fixed` and `small_cnn`, in all three directions."""
    from builder.training.gpu.products import products_of

    found: Report = {}
    for name in ("fixed", "small_cnn"):
        architecture, batch = CASES[name]
        for models in COHORTS[timer.quick :]:
            for product in products_of(architecture)[: architecture.depth_conv + 1]:
                times = candidates(timer, product, models, batch)
                flops = 2 * models * batch * product.out_size**2 * product.outputs * product.taps
                found[f"{name} M={models} {product.layer}"] = {"gflop": flops / 1e9, "milliseconds": times}
    return found


def candidates(timer: Timer, product: Any, models: int, batch: int) -> dict[str, float]:
    """(candidate and direction) -> milliseconds."""
    from builder.training.gpu.products import LibraryProducts, Tiles, TritonProducts

    ways: dict[str, Any] = {"grouped": LibraryProducts(), "grouped tf32": LibraryProducts(tf32=True)}
    shapes = [Tiles(), Tiles(128, 16, warps=4)]
    more = [
        Tiles(128, 16),
        Tiles(512, 16, warps=4),
        Tiles(256, 16, warps=4),
        Tiles(256, 32, warps=4),
        Tiles(256, 16, stages=3),
    ]
    for precision in ("ieee", "tf32x3", "tf32"):
        for tiles in shapes if timer.quick or precision != "ieee" else shapes + more:
            ways[f"triton {precision} {tiles.pixels}x{tiles.inner} w{tiles.warps} s{tiles.stages}"] = (
                TritonProducts(precision, tiles)
            )
    times = unfolded(timer, product, models, batch)
    for name, way in ways.items():
        for direction, work in directions(product, models, batch, way).items():
            times[f"{name} {direction}"] = timer(work)
    return times


def directions(product: Any, models: int, batch: int, way: Any) -> dict[str, Callable[[], object]]:
    """The three products of a layer (forward and both gradients) on random maps, laid out as in a step."""
    rows = torch.randn(models, product.offset + product.weights, device=CUDA)
    active = torch.ones(models, dtype=torch.int64, device=CUDA)
    found = torch.empty_like(rows)
    x = random_map(models, batch, product.inputs, product.size, product.pad if way.bordered else 0)
    dx = random_map(models, batch, product.inputs, product.size, 0)
    y = random_map(models, batch, product.outputs, product.out_size, 0)
    dy = random_map(
        models, batch, product.outputs, product.out_size, product.gradient_border if way.bordered else 0
    )
    return {
        "forward": lambda: way.forward(product, x, rows, y, None, active),
        "input gradient": lambda: way.input_gradient(product, dy, rows, dx, active),
        "weight gradient": lambda: way.weight_gradient(product, x, dy, found, active),
    }


def random_map(models: int, batch: int, channels: int, size: int, border: int) -> torch.Tensor:
    whole = F.pad(torch.randn(batch, models, channels, size, size, device=CUDA), [border] * 4)
    return whole[..., border : border + size, border : border + size].transpose(0, 1)


def unfolded(timer: Timer, product: Any, models: int, batch: int) -> dict[str, float]:
    """The explicit matrix: unfold and a batched product; for a dense layer only the product."""
    images = torch.randn(models * batch, product.inputs, product.size, product.size, device=CUDA)
    weight = torch.randn(models, product.outputs, product.taps, device=CUDA)
    window = (product.kernel, 1, product.pad, product.stride)
    # [M, taps, B S S]
    columns = F.unfold(images, *window).unflatten(0, (models, batch)).transpose(1, 2).flatten(2)
    dy = torch.randn(models, product.outputs, columns.shape[2], device=CUDA)

    def unfold() -> torch.Tensor:
        return F.unfold(images, *window).unflatten(0, (models, batch)).transpose(1, 2).flatten(2)

    def fold() -> torch.Tensor:
        towards = (
            torch.bmm(weight.transpose(1, 2), dy).unflatten(2, (batch, -1)).transpose(1, 2).flatten(0, 1)
        )
        return F.fold(towards, (product.size, product.size), *window)

    return {
        "unfold forward": timer(lambda: torch.bmm(weight, unfold())),
        "unfold input gradient": timer(fold),
        "unfold weight gradient": timer(lambda: torch.bmm(dy, columns.transpose(1, 2))),
    }


# Whole steps


def steps(timer: Timer) -> Report:
    """Milliseconds of a step of M models, its rate, and the slowest kernels."""
    from builder.training.gpu.backend import GpuBackend

    ways: dict[str, dict[str, Any]] = {
        "triton": {},
        "triton tf32": {"tf32": True},
        "grouped": {"convolution": "grouped"},
    }
    found: Report = {}
    for name, (architecture, batch) in CASES.items():
        for models in (1, *COHORTS):
            state, segments = many_models(architecture, models, batch)
            for way, options in {"triton": ways["triton"]}.items() if timer.quick else ways.items():
                click.echo(f"  {name} M={models} {way}")
                backend = GpuBackend(architecture, CUDA, **options)
                backend.train(state, segments)
                time = timer.of_calls(functools.partial(backend.train, state, segments)) / STEPS
                found[f"{name} M={models} {way}"] = {
                    "milliseconds": time,
                    "images_per_s": models * batch / time * 1e3,
                    "tflops": models * batch * step_flops(architecture) / time / 1e9,
                    "kernels": profile(backend, state, segments) if models == max(COHORTS) else {},
                }
    return found


def many_models(architecture: Architecture, models: int, batch: int) -> tuple[Any, dict[int, Segment]]:
    """Rows and moments on the device, and segments for models of all activations, half of them augmented."""
    chosen = [
        make_model(
            architecture,
            n,
            optimizer="adam",
            activation=ACTIVATIONS[n % 4],
            augmentation=n % 2 == 0,
            batch_size=batch,
        )
        for n in range(models)
    ]
    weights = layout_of(architecture).num_weights
    rows, first, second = torch.zeros(3, models, aligned(weights), device=CUDA)[:, :, :weights]
    rows.copy_(torch.stack([torch.from_numpy(initial_row(model)) for model in chosen]))
    images = digits(architecture, CUDA)
    order = torch.randint(len(images.train_labels), (STEPS * batch,), device=CUDA)
    return (rows, first, second), {
        m: Segment(model, images, order, batch, 0, 0) for m, model in enumerate(chosen)
    }


def step_flops(architecture: Architecture) -> int:
    """FLOPs of one image: forward, input gradient (except in the first layer) and weight gradient."""
    from builder.training.gpu.products import products_of

    return sum(
        2 * p.out_size**2 * p.outputs * p.taps * (2 if i == 0 else 3)
        for i, p in enumerate(products_of(architecture))
    )


def profile(backend: Any, state: Any, segments: dict[int, Segment]) -> dict[str, float]:
    """Kernel -> microseconds in a step, the longest first."""
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        backend.train(state, segments)
        torch.cuda.synchronize()
    events = sorted(profiler.key_averages(), key=lambda event: -event.device_time_total)
    return {event.key[:80]: round(event.device_time_total / STEPS, 1) for event in events[:16]}


# The benchmark, and what TF32 does to accuracy


def benchmark(timer: Timer) -> Report:
    """The project's own benchmark of training."""
    target = ROOT / "gpu_check_benchmark.json"
    command = [sys.executable, "-m", "builder.benchmark.training", "--device", "cuda", "--json", str(target)]
    done = subprocess.run(
        [*command, "--quick"] if timer.quick else command,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        return {"passed": False, "output": (done.stdout + done.stderr)[-20_000:]}
    numbers = json.loads(target.read_text(encoding="utf-8"))
    target.unlink()
    return {"passed": True, "numbers": numbers, "output": done.stdout[-20_000:]}


def tf32(timer: Timer) -> Report:
    """Final test accuracies of the same 16 models on digits, with and without TF32."""
    from builder.training.gpu.backend import GpuBackend

    epochs = 5 if timer.quick else 20
    models = [
        make_model(
            SMALL_CNN,
            n,
            optimizer="adam",
            activation=ACTIVATIONS[n % 4],
            batch_size=32,
            dropout=0.0,
            max_epochs=epochs,
            learning_rate=0.003,
        )
        for n in range(16)
    ]
    accuracies: dict[str, list[float]] = {}
    for name, rounded in (("fp32", False), ("tf32", True)):
        backend = GpuBackend(SMALL_CNN, CUDA, tf32=rounded)
        cohort = Cohort(
            SUBSETS["demo"],
            SMALL_CNN,
            {"digits": digits(SMALL_CNN, CUDA)},
            device=CUDA,
            slots=16,
            backend=backend,
        )
        trained = {t.model.number: t.snapshots[-1]["test_accuracy"] for t in cohort.train(models)}
        accuracies[name] = [trained[n] for n in range(16)]
    differences = [b - a for a, b in zip(accuracies["fp32"], accuracies["tf32"], strict=True)]
    return {
        **accuracies,
        "mean_difference": statistics.mean(differences),
        "largest": max(map(abs, differences)),
    }


PARTS: dict[str, Callable[[Timer], Report]] = {
    "machine": machine,
    "tests": run_tests,
    "gradients": gradients,
    "startup": startup,
    "products": products,
    "steps": steps,
    "benchmark": benchmark,
    "tf32": tf32,
}


def table(report: Report) -> list[str]:
    """The decisive numbers, one per line."""
    lines = [f"{name}: {value}" for name, value in report.get("machine", {}).items()]
    for part in ("tests", "gradients", "startup", "benchmark"):
        if part in report:
            lines.append(
                f"{part}: {'passed' if report[part]['passed'] else report[part].get('summary', 'FAILED')}"
            )
    for layer, numbers in report.get("products", {}).items():
        for direction in ("forward", "input gradient", "weight gradient"):
            times = {
                name.removesuffix(f" {direction}"): t
                for name, t in numbers["milliseconds"].items()
                if name.endswith(direction)
            }
            bests = [
                min((t, n) for n, t in times.items() if way in n)
                for way in ("grouped", "unfold", "ieee", "tf32x3", "triton tf32 ")
            ]
            lines.append(
                f"{layer} {direction}: " + ", ".join(f"{name} {time:.3f}" for time, name in bests) + " ms"
            )
    for name, numbers in report.get("steps", {}).items():
        lines.append(
            f"step {name}: {numbers['milliseconds']:.3f} ms, {numbers['images_per_s']:,.0f} images/s, "
            f"{numbers['tflops']:.1f} TFLOP/s"
        )
    if "tf32" in report:
        lines.append(
            f"tf32: accuracy {report['tf32']['mean_difference']:+.4f} on average, at most "
            f"{report['tf32']['largest']:.4f}"
        )
    return lines


@click.command(cls=Command)
@click.option("--quick", is_flag=True, help="Fewer repetitions and candidates, shorter trainings.")
@click.option("--parts", default=",".join(PARTS), show_default=True, metavar="A,B", help="What to run.")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("gpu_check"),
    show_default=True,
    metavar="DIR",
)
def main(quick: bool, parts: str, out: Path) -> None:
    """Check and measure the step of cohorts on this machine's GPU."""
    chosen = parts.split(",")
    unknown = [part for part in chosen if part not in PARTS]
    if unknown:
        raise ZooError(
            "--parts", expected="some of " + ",".join(PARTS), found=",".join(unknown), do="choose among them"
        )
    if not torch.cuda.is_available():
        raise ZooError(
            "this machine",
            expected="a CUDA GPU",
            found="none that torch can use",
            do="run this where there is one",
        )
    out.mkdir(parents=True, exist_ok=True)
    timer, report = Timer(quick), dict[str, Any]()
    for part in chosen:
        click.echo(f"{part} ...")
        report[part] = PARTS[part](timer)
        (out / "gpu_check.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    click.echo("\n".join(table(report)))


if __name__ == "__main__":
    main()
