"""The GPU's step against the plain loop, in float64 and step by step: on a GPU if there is one, else in
Triton's interpreter.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import itertools
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("triton")

from builder.plan import Model
from builder.training import batches
from builder.training.backend import Segment
from builder.training.bank import Images
from builder.training.gpu import backend as gpu_step
from builder.training.gpu.backend import GpuBackend, Run, State
from builder.training.plain import PlainLoop
from builder.training.streams import run_side_by_side
from builder.training.train import Cohort
from nws_dataset.format.subsets import SUBSETS
from nws_dataset.networks.cnn import Architecture
from nws_dataset.networks.network import Network
from training_cases import ARCHITECTURES, CPU, NWS, SMALL_CNN, images_for, make_model

DEVICE = torch.device("cuda") if torch.cuda.is_available() else CPU
BATCH = 8
PADDING = 5  # numbers behind a row


def on_device(images: Images) -> Images:
    arrays = {f.name: getattr(images, f.name) for f in dataclasses.fields(images)}
    return Images(**{name: x.to(DEVICE) if isinstance(x, torch.Tensor) else x for name, x in arrays.items()})


def images_of(model: Model) -> Images:
    """Digits; for odd models with inverted pixels, as another data set would be."""
    images = images_for(model.recipe.architecture)["digits"]
    return dataclasses.replace(images, train_images=255 - images.train_images) if model.number % 2 else images


def mixed_models(architecture: Architecture, count: int = 4) -> list[Model]:
    kinds = [("adam", "relu"), ("rmsprop", "elu"), ("momentum", "sigmoid"), ("sgd", "tanh")][:count]
    return [
        make_model(
            architecture, n, optimizer=optimizer, activation=activation, l2=1e-3 * (n % 2),
            augmentation=n > 1, batch_size=BATCH,
            dropout=(0.5, 0.2, 0.0)[n % 3],
        )
        for n, (optimizer, activation) in enumerate(kinds)
    ]  # fmt: skip


class Bench:
    """Plain loops on the host, and the same models in the slots of a state on the device; one slot stays
    empty.
    """

    def __init__(self, models: list[Model], empty: int = 1) -> None:
        self.models = models
        self.loops = [PlainLoop(model, images_of(model)) for model in models]
        self.slots = [m for m in range(len(models) + 1) if m != empty]
        self.images = [on_device(loop.images) for loop in self.loops]
        orders = [
            batches.epoch_order(loop.model, loop.parts, loop.images.train_labels, 0) for loop in self.loops
        ]
        self.orders = [order.to(DEVICE) for order in orders]
        self.batches = [loop.epoch(0) for loop in self.loops]
        weights = len(self.loops[0].row)
        buffers = torch.full((3, len(models) + 1, weights + PADDING), 0.5, dtype=torch.float64, device=DEVICE)
        first, second, third = buffers[:, :, :weights]
        self.buffers, self.state = buffers, (first, second, third)

    def copy_plain_state(self) -> None:
        for m, loop in zip(self.slots, self.loops, strict=True):
            for x, value in zip(self.state, (loop.row, loop.first, loop.second), strict=True):
                x[m] = value.to(DEVICE)

    def segments(self, start: int, steps: int) -> dict[int, Segment]:
        return {
            m: Segment(model, images, order, BATCH, 0, start, start, steps)
            for m, model, images, order in zip(self.slots, self.models, self.images, self.orders, strict=True)
        }

    def plain_steps(self, steps: int) -> list[float]:
        """The loops' summed losses."""
        return [
            sum(loop.step(*next(batch)) for _ in range(steps))
            for loop, batch in zip(self.loops, self.batches, strict=True)
        ]

    def check(self, tolerance: float) -> None:
        for m, loop in zip(self.slots, self.loops, strict=True):
            for x, value in zip(self.state, (loop.row, loop.first, loop.second), strict=True):
                difference = float((x[m].cpu() - value).abs().max() / value.abs().max().clamp(min=1))
                assert difference <= tolerance, loop.model.recipe
        untouched = [m for m in range(self.buffers.shape[1]) if m not in self.slots]
        assert (self.buffers[:, untouched] == 0.5).all()
        assert (self.buffers[:, :, -PADDING:] == 0.5).all()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_steps_equal_the_plain_loop(name: str) -> None:
    """Models of different recipes and data sets in one call; each step starts from the plain loops' state."""
    models, steps = (4, 2) if name == "small_cnn" else (3, 1)  # the interpreter takes seconds for a step
    bench = Bench(mixed_models(ARCHITECTURES[name], models))
    stepper = GpuBackend(bench.models[0].recipe.architecture, DEVICE, torch.float64)
    for step in range(steps):
        bench.copy_plain_state()
        losses = stepper.train(bench.state, bench.segments(step, 1))
        assert losses.tolist() == pytest.approx(bench.plain_steps(1), rel=1e-9)
        bench.check(1e-9)


def test_steps_with_the_libraries_products_equal_the_plain_loop() -> None:
    bench = Bench(mixed_models(NWS, 2))
    bench.copy_plain_state()
    losses = GpuBackend(NWS, DEVICE, torch.float64, convolution="grouped").train(
        bench.state, bench.segments(0, 1)
    )
    assert losses.tolist() == pytest.approx(bench.plain_steps(1), rel=1e-9)
    bench.check(1e-9)


def test_each_slot_takes_its_own_epochs_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Epochs of different lengths, slots that are refilled or stay empty, batches of two sizes: what a step
    finds in the tables.
    """
    taken: dict[int, list[list[tuple[int, list[int], float]]]] = {}  # of each model, epoch by epoch

    def noted(run: Run) -> None:
        for m in run.active_slots:
            number, epoch, counter = int(run.slots.number[m]), int(run.slots.epoch[m]), int(run.taken[m])
            epochs = taken.setdefault(number, [])
            epochs += [[] for _ in range(epoch + 1 - len(epochs))]
            indices = (ctypes.c_int64 * run.batch).from_address(
                int(run.sources[2, m]) + 8 * run.batch * counter
            )
            rate = ctypes.c_double.from_address(int(run.rates[m]) + 8 * counter)
            epochs[epoch].append((counter, list(indices), rate.value))
        assert run.slots.active.nonzero().flatten().tolist() == sorted(run.active_slots)
        run.taken.add_(run.slots.active)

    monkeypatch.setattr(Run, "step", noted)
    nothing = lambda self, rows, *given: torch.zeros(2, len(rows), len(given[-1]), dtype=torch.bool)  # noqa: E731 -- neither correct nor a loss
    monkeypatch.setattr(GpuBackend, "evaluate", nothing)
    models = [
        make_model(SMALL_CNN, n, optimizer=("adam", "sgd")[n % 2], batch_size=20, train_fraction=(1.0, 0.55,
        0.3, 0.8)[n % 4],
                   balanced=False, max_epochs=3 + n % 2)
        for n in range(7)
    ]  # fmt: skip
    images = images_for(SMALL_CNN)["digits"]
    backend = GpuBackend(SMALL_CNN, CPU, torch.float64)
    cohort = Cohort(
        SUBSETS["demo"],
        SMALL_CNN,
        {"digits": images},
        device=CPU,
        slots=3,
        dtype=torch.float64,
        backend=backend,
    )
    cohort.stacked = True
    assert len(list(cohort.train(models))) == len(models)
    assert len(backend._runs) == 2  # 16 images, and the batch size where an epoch holds more
    for model in models:
        before = 0
        for epoch in range(model.recipe.max_epochs):
            order = batches.epoch_order(
                model, batches.split_images(model, images.train_labels), images.train_labels, epoch
            )
            batch = min(20, len(order))
            segment = Segment(model, images, order, batch, epoch, before)
            expected = zip(
                range(segment.steps),
                order[: segment.steps * batch].view(-1, batch).tolist(),
                segment.rates(),
                strict=True,
            )
            assert taken[model.number][epoch] == list(expected)
            before += segment.steps


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, of the interpreter
def test_a_model_depends_neither_on_its_slot_nor_on_a_diverging_neighbour() -> None:
    (model,) = mixed_models(SMALL_CNN, 1)
    found = []
    for slots, m in ((1, 0), (3, 2)):
        state = tuple(
            torch.zeros(
                3, slots, 1 + len(PlainLoop(model, images_of(model)).row), dtype=torch.float32, device=DEVICE
            )[:, :, :-1]
        )
        state[0][m] = PlainLoop(model, images_of(model)).row.to(DEVICE)
        state[0][:m] = torch.nan
        order = torch.arange(BATCH, device=DEVICE)
        segments = {k: Segment(model, on_device(images_of(model)), order, BATCH, 0, 0) for k in {0, m}}
        losses = GpuBackend(SMALL_CNN, DEVICE).train(as_state(state), segments)
        found.append([losses[list(segments).index(m)], *(x[m] for x in state)])
        assert m == 0 or not torch.isfinite(losses[list(segments).index(0)])
    for alone, beside in zip(*found, strict=True):
        assert torch.isfinite(alone).all()
        assert torch.equal(alone, beside)


def as_state(state: tuple[torch.Tensor, ...]) -> State:
    rows, first, second = state
    return rows, first, second


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_evaluation_equals_the_plain_network(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two rows, in blocks of images of which the last is smaller."""
    monkeypatch.setattr(gpu_step, "EVALUATION_IMAGES", 16)
    architecture = ARCHITECTURES[name]
    model = make_model(architecture, activation="elu")
    images = images_for(architecture)["digits"]
    loop = PlainLoop(model, images)
    start = loop.row
    for batch in loop.epoch(0):
        loop.step(*batch)
    pixels, labels = images.test_images[:11], images.test_labels[:11]
    rows = torch.stack([start, loop.row]).to(DEVICE)
    correct, losses = GpuBackend(architecture, DEVICE, torch.float64).evaluate(
        rows, "elu", pixels.to(DEVICE), labels.to(DEVICE)
    )
    for k, row in enumerate((start, loop.row)):
        logits = Network(architecture, "elu").double().load_row(row).eval()(pixels)
        expected = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
        assert torch.equal(correct[k].cpu(), logits.argmax(1) == labels)
        torch.testing.assert_close(losses[k].cpu(), expected.detach(), rtol=1e-10, atol=1e-12)


POOL = 32  # streams that torch hands out in turn


class FakeCuda:
    """What `run_side_by_side` and `_capture` use of torch.cuda, on a machine without it."""

    def __init__(self) -> None:
        self.taken = itertools.count()
        self.current: dict[int, FakeStream] = {}  # of each thread
        self.shared: list[int] = []  # streams that a capture began on while another cohort worked on them

    def current_stream(self, device: object = None) -> FakeStream:
        return self.current.get(threading.get_ident(), DEFAULT_STREAM)

    @contextlib.contextmanager
    def stream(self, stream: FakeStream) -> Iterator[None]:
        before = self.current_stream()
        self.current[threading.get_ident()] = stream
        yield
        self.current[threading.get_ident()] = before

    def begin(self) -> None:
        me = threading.get_ident()
        self.shared += [
            s.number
            for thread, s in list(self.current.items())
            if thread != me and s.number == self.current[me].number
        ]


class FakeStream:
    def __init__(self, number: int) -> None:
        self.number = number

    def wait_stream(self, other: FakeStream) -> None:
        pass

    def synchronize(self) -> None:
        pass


DEFAULT_STREAM = FakeStream(-1)


def waits_for_all_lanes(*_: object, **__: object) -> None:
    raise AssertionError("a capture waits for other lanes")


def test_a_capture_never_begins_on_another_cohorts_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's streams come round after 32, and cohorts keep theirs; what another puts on a captured stream
    goes into the wrong graph.
    """
    fake, captured = FakeCuda(), []
    graph = SimpleNamespace(capture_begin=lambda **_: fake.begin(), capture_end=lambda: captured.append(1))
    for name, value in {
        "Stream": lambda device=None: FakeStream(next(fake.taken) % POOL),
        "stream": fake.stream,
        "current_stream": fake.current_stream,
        "default_stream": lambda device=None: DEFAULT_STREAM,
        "CUDAGraph": lambda: graph,
        "device": lambda device: contextlib.nullcontext(),
        # these wait for the whole device, and hold other lanes up
        "graph": waits_for_all_lanes,
        "synchronize": waits_for_all_lanes,
        "empty_cache": waits_for_all_lanes,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    device = torch.device("cuda")

    def cohort() -> Iterator[int]:
        gpu_step._capture(lambda: None, device)
        time.sleep(0.002)  # it trains
        yield 1

    assert sum(filter(None, run_side_by_side([cohort] * 60, 8, device))) == len(captured) == 60
    assert fake.shared == []
