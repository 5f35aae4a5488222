"""Plain stacked torch against the plain loop in float64; what a neighbour may change; and zoos built by it,
through the command.
"""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from builder import build as build_module
from builder import philox
from builder.cli import main as nws_build
from builder.plan import Model
from builder.trained import Trained
from builder.training import bank, batches, torch_backend
from builder.training import workers as workers_module
from builder.training.backend import Segment
from builder.training.bank import Images
from builder.training.device import make_backend
from builder.training.plain import PlainLoop
from builder.training.torch_backend import TorchBackend
from builder.training.train import Cohort
from builder.verify import main as nws_verify
from nws_dataset.console import Interrupted, UserError
from nws_dataset.format.subsets import SUBSETS
from nws_dataset.networks.cnn import Architecture
from nws_dataset.networks.network import Network
from nws_dataset.reading.zoo import Zoo
from test_build import content, staged
from training_cases import ARCHITECTURES, CPU, NWS, every_combination, images_for, make_model

DEVICE = torch.device("cuda") if torch.cuda.is_available() else CPU
# of a row after a step in float64, relative to the row's largest weight where that is above 1
TOLERANCE = 1e-9
# of a row after a step, beside others and alone
NEIGHBOUR_TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-13}
CONV_DROPPED = dataclasses.replace(NWS, dropout_place="conv", pixel_min=-1)
CASES = {**ARCHITECTURES, "conv_dropped": CONV_DROPPED}
State = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def on_device(images: Images) -> Images:
    return Images.on(DEVICE, {name: getattr(images, name).numpy() for name in bank.ARRAYS}, gray=images.gray)


def state_of(loops: list[PlainLoop], dtype: torch.dtype = torch.float64) -> State:
    """Their rows and moments with an empty slot before them, as a cohort holds them: a row ends before the
    next one starts.
    """
    state = torch.full((3, 1 + len(loops), len(loops[0].row) + 3), torch.nan, dtype=dtype, device=DEVICE)[
        :, :, :-3
    ]
    for m, loop in enumerate(loops, 1):
        state[:, m] = torch.stack([loop.row, loop.first, loop.second]).to(state)
    return state[0], state[1], state[2]


def segments_of(loops: list[PlainLoop], steps: int) -> dict[int, Segment]:
    """The next steps of each."""
    segments = {}
    for m, loop in enumerate(loops, 1):
        images = on_device(loop.images)
        order = batches.epoch_order(loop.model, loop.parts, loop.images.train_labels, 0).to(
            images.train_labels.device
        )
        segments[m] = Segment(
            loop.model, images, order, loop.model.recipe.batch_size, 0, loop.steps, loop.steps, steps
        )
    return segments


def difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.cpu() - expected.cpu()).abs().max() / expected.abs().max().clamp(min=1))


def check_steps(models: list[Model], images: Images, steps: int) -> None:
    """One segment of all the models, against the plain loop's steps."""
    loops = [PlainLoop(model, images) for model in models]
    state, segments = state_of(loops), segments_of(loops, steps)
    losses = make_backend(models[0].recipe.architecture, DEVICE, torch.float64, name="torch").train(
        state, segments
    )
    for m, (loop, loss) in enumerate(zip(loops, losses.tolist(), strict=True), 1):
        assert loss == pytest.approx(
            sum(loop.step(*batch) for batch, _ in zip(loop.epoch(0), range(steps), strict=False)), rel=1e-9
        )
        for x, expected in zip(state, (loop.row, loop.first, loop.second), strict=True):
            assert difference(x[m], expected) <= TOLERANCE, loop.model.recipe
    assert all(x[0].isnan().all() for x in state)


@pytest.mark.parametrize("name", CASES)
def test_a_step_of_every_combination_equals_the_plain_loop(name: str) -> None:
    check_steps(every_combination(CASES[name]), images_for(CASES[name], 200)["digits"], 1)


@pytest.mark.parametrize("name", CASES)
def test_a_segment_of_steps_equals_the_plain_loop(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In several stacks of an activation, with images for two steps made ready at a time, and the labels
    where Apple's GPUs have them.
    """
    monkeypatch.setattr(bank, "labels_on", lambda device: CPU)
    monkeypatch.setattr(torch_backend, "STACKED", 2)
    monkeypatch.setattr(torch_backend, "PREPARED_IMAGES", 32)
    kinds = itertools.product(("adam", "momentum"), ("elu", "tanh", "elu"))
    models = [
        make_model(
            CASES[name], n, optimizer=optimizer, activation=activation, augmentation=n % 2 == 0, l2=1e-3
        )
        for n, (optimizer, activation) in enumerate(kinds)
    ]
    check_steps(models, images_for(CASES[name], 200)["digits"], 5)


@pytest.mark.parametrize("name", CASES)
def test_evaluation_equals_the_plain_network_and_is_that_of_a_row_alone(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch_backend, "EVALUATION_IMAGES", 100)
    architecture = CASES[name]
    images = images_for(architecture)["digits"]
    loop = PlainLoop(make_model(architecture, activation="elu"), images)
    start = loop.row
    for batch in loop.epoch(0):
        loop.step(*batch)
    rows, pixels, labels = (
        torch.stack([start, loop.row]).to(DEVICE),
        images.test_images.to(DEVICE),
        images.test_labels,
    )
    for dtype in (torch.float64, torch.float32):
        backend = make_backend(architecture, DEVICE, dtype, name="torch")
        correct, losses = backend.evaluate(rows.to(dtype), "elu", pixels, labels)
        for k, row in enumerate(rows.cpu()):
            alone = backend.evaluate(rows[k : k + 1].to(dtype), "elu", pixels, labels)
            assert torch.equal(alone[0][0], correct[k]) and torch.equal(alone[1][0], losses[k])
            if dtype == torch.float64:
                logits = Network(architecture, "elu").double().load_row(row).eval()(images.test_images)
                expected = torch.nn.functional.cross_entropy(logits, images.test_labels, reduction="none")
                assert torch.equal(correct[k].cpu(), logits.argmax(1) == images.test_labels)
                torch.testing.assert_close(losses[k], expected.detach(), rtol=1e-10, atol=1e-12)


# Neighbours


@pytest.mark.parametrize("dtype", NEIGHBOUR_TOLERANCE)
@pytest.mark.parametrize("name", CASES)
def test_a_neighbour_moves_the_rounding_at_most(name: str, dtype: torch.dtype) -> None:
    """Also one that diverges.

    The model's optimizer must not divide by a gradient that is nothing but rounding, as Adam does.
    """
    images, found = images_for(CASES[name])["digits"], []
    models = [
        make_model(CASES[name], n, optimizer=o) for n, o in enumerate(("momentum", "sgd", "adam", "rmsprop"))
    ]
    for chosen in (models, models[:1], models[:1]):
        loops = [PlainLoop(model, images) for model in chosen]
        state, segments = state_of(loops, dtype), segments_of(loops, 1)
        state[0][3:] = torch.nan
        losses = TorchBackend(CASES[name], DEVICE, dtype).train(state, segments)
        assert losses.isfinite().tolist() == [True, True, False, False][: len(chosen)]
        found.append(torch.stack([x[1] for x in state]))
    beside, alone, again = found
    assert alone.isfinite().all() and difference(beside, alone) <= NEIGHBOUR_TOLERANCE[dtype]
    assert torch.equal(alone, again)


def cohort_of(
    models: list[Model], dtype: torch.dtype = torch.float32, *, slots: int = 1, stacked: bool = False
) -> dict[str, Trained]:
    architecture = models[0].recipe.architecture
    backend = TorchBackend(architecture, CPU, dtype)
    cohort = Cohort(
        SUBSETS["demo"],
        architecture,
        images_for(architecture),
        device=CPU,
        slots=slots,
        dtype=dtype,
        backend=backend,
    )
    cohort.stacked = stacked
    return {trained.model.id: trained for trained in cohort.train(models)}


def smooth(architecture: Architecture, count: int) -> list[Model]:
    """Models whose trajectories do not part for a rounding; their trainings end at different times."""
    kinds = itertools.cycle(itertools.product(("momentum", "sgd"), ("tanh", "sigmoid")))
    return [
        make_model(
            architecture,
            n,
            optimizer=o,
            activation=a,
            max_epochs=1 + n % 2,
            augmentation=n % 3 == 0,
            balanced=n % 5 > 0,
        )
        for n, (o, a) in zip(range(count), kinds, strict=False)
    ]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_on_a_cpu_rows_are_bit_identical_alone_and_in_a_cohort(name: str) -> None:
    models = smooth(ARCHITECTURES[name], 4)
    together = cohort_of(models, slots=3)
    for model in models:
        (alone,) = cohort_of([model]).values()
        assert (
            together[model.id].rows.tobytes() == alone.rows.tobytes()
            and together[model.id].snapshots == alone.snapshots
        )


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_stacked_as_on_a_gpu_whole_trainings_equal_the_plain_loop(name: str) -> None:
    """Slots are refilled, and trainings end at different times."""
    models = smooth(ARCHITECTURES[name], 5)
    trained = cohort_of(models, torch.float64, slots=3, stacked=True)
    for model in models:
        loop = PlainLoop(model, images_for(ARCHITECTURES[name])["digits"])
        assert len(trained[model.id].rows) == model.recipe.max_epochs + 1
        for epoch, row in enumerate(trained[model.id].rows):
            assert difference(torch.from_numpy(row), loop.row) <= TOLERANCE
            if epoch < model.recipe.max_epochs:
                for batch in loop.epoch(epoch):
                    loop.step(*batch)


# Devices without float64


class NoDouble(TorchDispatchMode):
    """As on Apple's GPUs: an operation that gives float64 fails."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        assert not any(
            isinstance(x, torch.Tensor) and x.dtype == torch.float64
            for x in torch.utils._pytree.tree_leaves(out)
        ), func
        return out


def test_nothing_on_the_device_is_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random words are drawn as on a device, by torch."""

    def words(
        model: Model, purpose: philox.Purpose, *, index: torch.Tensor, epoch: int = 0, block: Any = 0
    ) -> tuple[torch.Tensor, ...]:
        return philox.draw(
            philox.key_of(model.seed, model.subset),
            purpose,
            index=index,
            epoch=epoch,
            model=model.number,
            block=block,
        )

    monkeypatch.setattr(batches, "words", words)
    images = images_for(NWS, 200)["digits"]
    loops = [
        PlainLoop(make_model(NWS, n, augmentation=n > 0, optimizer=o), images, torch.float32)
        for n, o in enumerate(("adam", "sgd"))
    ]
    backend, state = make_backend(NWS, DEVICE, name="torch"), state_of(loops, torch.float32)
    with NoDouble():
        assert backend.train(state, segments_of(loops, 2)).isfinite().all()
        backend.evaluate(state[0][1:], "relu", images.test_images.to(DEVICE), images.test_labels)
        with pytest.raises(AssertionError, match="to_copy"):
            state[0].double()


# Zoos


@pytest.mark.slow
def test_a_zoo_by_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Interrupted and continued it ends in the same bytes; nothing else continues it; it says what built it,
    and training repeats.
    """
    monkeypatch.setattr(workers_module, "cores", lambda: 1)
    monkeypatch.setattr(build_module, "compile_step", None)  # torch needs no compiled step
    command = ["--epochs", "1", "--train-images", "200", "--device", "cpu", "--backend", "torch", "--models"]

    def run(out: Path, *arguments: str) -> None:
        nws_build([*arguments, "--out", str(out)], standalone_mode=False)

    def interrupted(shards: build_module._ShardWriter, result: object) -> None:
        if result is not None:
            raise KeyboardInterrupt

    run(tmp_path / "whole", *command, "5")
    with monkeypatch.context() as patch, pytest.raises(Interrupted, match="finished models are kept"):
        patch.setattr(build_module._ShardWriter, "advance", interrupted)
        run(tmp_path / "nws", *command, "5")
    assert 1 <= staged(tmp_path / "nws") < 5
    refused = (
        "backend of subset demo fast, found torch in nws.json; use another --out, or the settings it "
        "was built with"
    )
    with pytest.raises(UserError, match=refused):
        run(tmp_path / "nws", *command[:-2], "auto", "--models", "5")
    run(tmp_path / "nws", *command, "5")
    assert content(tmp_path / "nws") == content(tmp_path / "whole")
    recorded = {"backend": "torch", "device": "cpu", "epochs": 1, "tf32": False, "train_images": 200}
    assert Zoo(tmp_path / "nws").manifest.subsets["demo"].options == recorded
    assert (
        "Trained by plain torch on CPUs: the fast step would give other last bits for the same seed."
        in (tmp_path / "nws/README.md").read_text()
    )
    nws_verify([str(tmp_path / "nws"), "--reevaluate", "5", "--retrain", "2"], standalone_mode=False)
    told = capsys.readouterr().out
    assert (
        "5 networks: the builder's evaluation exactly" in told
        and ("2 models trained again alone, equal in every bit") in told
    )


def test_a_dry_run_by_torch(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from builder.forecasting import calibration

    monkeypatch.setattr("builder.training.cpu.backend.compile_step", None)
    monkeypatch.setattr(calibration, "SECONDS", 0.001)
    monkeypatch.setattr(calibration, "IMAGES", 300)
    nws_build(
        ["--models", "2", "--epochs", "1", "--device", "cpu", "--backend", "torch", "--dry-run"],
        standalone_mode=False,
    )
    assert (
        " on 2 CPU processes (trainings of 1 epochs)" in capsys.readouterr().out or calibration.cores() == 1
    )
