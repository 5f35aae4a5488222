"""The benchmark measures what it says: real recipes, peers that train, FLOPs and hours that add up.

Nothing is timed here.
"""

from __future__ import annotations

import dataclasses
import json
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call

from builder.benchmark import contenders, pytorch, training
from builder.benchmark.contenders import EVALUATED_IMAGES, Evaluation, flops_of
from builder.benchmark.measurements import EPOCHS, DeviceResults, evaluation_flops, training_flops
from builder.benchmark.pytorch import Careful, Plain
from builder.benchmark.reading import write_large_index
from builder.benchmark.report import tables
from builder.benchmark.stacked import STACKED_MODELS, Stacked, Vmapped, batched
from builder.benchmark.timing import AllCoresTimer, InProcessTimer, Measured, measure
from builder.benchmark.workloads import (
    VARIED,
    bank_of_case,
    cases,
    cases_of_kinds,
    is_real,
    stand_in,
    write_images,
)
from builder.forecasting import pace
from builder.forecasting.costs import forward_flops
from builder.forecasting.pace import Case, CohortSteps, ImageSteps, order_of
from builder.plan import Model, select
from builder.training import batches, update
from builder.training.bank import Images
from builder.training.cpu import kernels
from builder.training.plain import PlainLoop
from nws_dataset.errors import ZooError
from nws_dataset.format.subsets import NWS_MAIN, SUBSETS
from nws_dataset.networks import kan, resnet, siren
from nws_dataset.networks.base import BaseArchitecture
from nws_dataset.reading.zoo import Zoo
from training_cases import CPU, NWS, SMALL_CNN, IdleStep, images_for, make_model, plain_step

ROUNDING = 1e-4  # of a gradient in float32, whose largest numbers are near 1
FLOP_RATE = 1e12  # of the made-up results
CONTENDERS = training.CPU_CONTENDERS
RESNET = resnet.Architecture(image_size=8, width_conv=4)
# networks that a core's cache holds, in small
SMALL: dict[str, tuple[BaseArchitecture, dict[str, object]]] = {
    "siren": (
        siren.Architecture(image_size=8, width_hidden=5, image_channels=3, frequency_hidden=20.0),
        {"activation": "sine", "initialization": "siren"},
    ),
    "kan_inr": (
        kan.Architecture(image_size=8, width_hidden=5),
        {"activation": "silu", "initialization": "kan", "schedule": "cosine", "learning_rate_end": 1e-4},
    ),
    "kan": (
        kan.Architecture(reads="images", image_size=6, width_hidden=5, depth_hidden=1, pixel_min=-1),
        {"activation": "silu", "initialization": "kan"},
    ),
}


@pytest.fixture(scope="module")
def chosen() -> list[Case]:
    return cases()


@pytest.fixture(scope="module")
def of_kinds() -> list[Case]:
    return cases_of_kinds()


# What is trained


def test_cases_cover_sizes_and_recipes(chosen: list[Case]) -> None:
    assert [case.workload for case in chosen] == [
        "small_cnn 64",
        "small_cnn 512",
        *["fixed"] * 4,
        *["main"] * 12,
    ]
    assert chosen == cases()
    for workload in ("fixed", "main"):
        recipes = [case.model.recipe for case in chosen if case.workload == workload]
        for field in VARIED:
            assert {getattr(recipe, field) for recipe in recipes} == set(NWS_MAIN[field].values), (
                workload,
                field,
            )
    costs = [case.forward_flops for case in chosen if case.workload == "main"]
    assert costs == sorted(costs) and costs[-1] > 20 * costs[0]
    assert len({case.model.recipe.architecture for case in chosen if case.workload == "main"}) == 12
    planned = {model.id: model for name in ("main", "fixed") for model in select(SUBSETS[name], 0)}
    assert all(planned[case.model.id] == case.model for case in chosen[2:])
    assert [case.model.recipe.batch_size for case in chosen[:2]] == [64, 512]


def test_other_kinds_of_networks(of_kinds: list[Case]) -> None:
    told = [(c.workload, c.model.recipe.dataset, c.model.recipe.batch_size) for c in of_kinds]
    assert told == [
        ("siren", "mnist", 28 * 28),
        ("kan_inr", "mnist", 28 * 28),
        ("kan", "mnist", 128),
        ("resnet", "cifar10", 512),
    ]
    for case in of_kinds:
        assert [case.model] == select(SUBSETS[case.workload], 0, models=1)
        for where, names in CONTENDERS[case.model.recipe.architecture.kind].items():
            assert "ours" in names and all(flops_of(name, case, CPU) > 0 for name in names), where


def test_cohorts_train_together(chosen: list[Case]) -> None:
    for alone, together in zip(chosen, cases(64), strict=True):
        assert together.model == alone.model
        assert len({model.cohort for model in together.models}) == 1
        assert len({model.number for model in together.models}) == len(together.models) <= 64
        assert len(together.models) == 64 or together.workload == "main"


def test_the_page_has_a_row_for_each_workload(chosen: list[Case], of_kinds: list[Case]) -> None:
    text = (Path(__file__).parent.parent / "docs/why/speed.md").read_text()
    (table,) = re.findall(
        r"^\| networks \| times as fast as plain.*\n\|[-:|]+\n((?:\|.*\n)+)", text, re.MULTILINE
    )
    rows = [re.findall(r"^\| `(\w+)`(?:, batch (\d+))?", row) for row in table.splitlines()]
    told = [" ".join(filter(None, name)) for (name,) in rows]
    assert told == list(dict.fromkeys(case.workload for case in (*chosen, *of_kinds)))


def test_flops(chosen: list[Case]) -> None:
    for case in chosen:
        forward = forward_flops(case.model.recipe.architecture)
        for contender in ("plain", "careful", "careful x4", "vmap", "ours"):
            assert flops_of(contender, case, CPU) == 3 * forward * case.model.recipe.batch_size
        assert flops_of("evaluation", case, CPU) == EVALUATED_IMAGES * forward
        assert flops_of("peak", case, torch.device("cuda")) == 2 * 8192**3


def test_digits_stand_in(chosen: list[Case], tmp_path: Path) -> None:
    by_dataset = {case.model.recipe.dataset: case for case in chosen[2:]}
    pair = [by_dataset["mnist"], by_dataset["cifar10"]]
    write_images(pair, None, tmp_path)
    gray, colour = (bank_of_case(case, CPU, tmp_path)[case.model.recipe.dataset] for case in pair)
    assert gray.gray and not colour.gray
    assert gray.train_images.shape == colour.train_images.shape == (8 * 1437, 3, 32, 32)
    assert "in place of cifar10" in stand_in("cifar10").source
    for case, images in zip(pair, (gray, colour), strict=True):
        order = order_of(case.model, images)
        assert order.shape[1] == case.model.recipe.batch_size and len(order) * order.shape[1] > 9000
        assert len(order.unique()) == order.numel()


def test_digits_stand_in_for_what_a_folder_lacks(chosen: list[Case], tmp_path: Path) -> None:
    (tmp_path / "mnist").mkdir()
    (tmp_path / "mnist" / "train-images-idx3-ubyte").touch()
    assert is_real("mnist", tmp_path) and not is_real("svhn", tmp_path) and not is_real("mnist", None)
    told = training.images_of(tmp_path, [case for case in chosen if case.workload == "fixed"])
    assert "digits in place of" in told and "mnist" not in told.replace("fashion_mnist", "")
    with pytest.raises(ZooError, match="a folder"):
        is_real("mnist", tmp_path / "none")


# The peers


def a_case(architecture=NWS, **fields: object) -> tuple[Case, dict[str, Images]]:
    return Case("main", (make_model(architecture, **fields),)), images_for(architecture)


def loss_of(contender: Plain | Careful | Vmapped, images: Images) -> float:
    """Cross-entropy on the training images, without dropout."""
    network = contender.network.train(False)
    tensors = (
        {name: x[0] for name, x in (*contender.weights.items(), *contender.buffers.items())}
        if isinstance(contender, Vmapped)
        else {}
    )
    with torch.no_grad():
        loss = F.cross_entropy(
            functional_call(network, tensors, (images.train_images / 255,)), images.train_labels
        ).item()
    network.train()
    return loss


@pytest.mark.parametrize("contender", [Plain, Careful, Vmapped])
@pytest.mark.parametrize("optimizer", ["adam", "rmsprop", "momentum", "sgd"])
def test_peers_train(contender: type[Plain | Careful | Vmapped], optimizer: str) -> None:
    rate = {"momentum": 0.01, "sgd": 0.05}.get(optimizer, 0.003)
    for architecture in (NWS, SMALL_CNN):
        torch.manual_seed(0)  # the peers draw dropout and augmentation from torch's generator
        case, bank = a_case(
            architecture,
            optimizer=optimizer,
            dropout=0.1,
            augmentation=architecture is NWS,
            learning_rate=rate,
            learning_rate_decay=1.0,
        )
        made = contender(case, bank, CPU)
        before = loss_of(made, bank["digits"])
        made.run(100)
        assert loss_of(made, bank["digits"]) < 0.97 * before


@pytest.mark.parametrize("architecture", [NWS, SMALL_CNN], ids=["nws", "small_cnn"])
def test_peers_take_the_plain_loops_step(architecture) -> None:
    case, bank = a_case(architecture, optimizer="sgd", dropout=0.0, l2=1e-2)
    plain, careful, mapped = (contender(case, bank, CPU) for contender in (Plain, Careful, Vmapped))
    order = order_of(case.model, bank["digits"])
    loop = PlainLoop(case.model, bank["digits"])
    loop.step(*next(loop.epoch(0)))
    for contender in (plain, careful):
        contender.run(1)
        assert torch.allclose(contender.network.row().double(), loop.row, rtol=0, atol=1e-6)
    mapped.step(order[:1].expand(STACKED_MODELS, -1))
    for name, tensor in loop.layout.views(loop.row).items():
        found = (mapped.weights | mapped.buffers)[name][0]
        assert torch.allclose(found.double(), tensor, rtol=0, atol=1e-6), name
        if name in mapped.weights and not name.endswith("bias"):
            other = (mapped.weights | mapped.buffers)[name][1]
            assert not torch.equal(found, other)  # each has its own initialization


def test_plain_gradient_equals_the_plain_loops() -> None:
    case, bank = a_case(dropout=0.0)
    plain, loop = Plain(case, bank, CPU), PlainLoop(case.model, bank["digits"])
    plain.run(1)
    loop.step(*next(loop.epoch(0)))
    for (name, parameter), (_, expected) in zip(
        plain.network.named_parameters(), loop.network.named_parameters(), strict=True
    ):
        assert parameter.grad is not None and expected.grad is not None
        assert torch.allclose(parameter.grad.double(), expected.grad, rtol=0, atol=ROUNDING), name


def test_careful_differs_only_in_how() -> None:
    case, bank = a_case(optimizer="adam", dropout=0.0)
    plain, careful = Plain(case, bank, CPU), Careful(case, bank, CPU)
    assert careful.network.get_parameter("conv2.weight").is_contiguous(memory_format=torch.channels_last)
    plain.run(1)
    careful.run(1)
    for ours, theirs in zip(plain.network.parameters(), careful.network.parameters(), strict=True):
        assert torch.allclose(ours.grad, theirs.grad, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("contender", [Vmapped, batched])
@pytest.mark.parametrize("kind", SMALL)
def test_stacked_models_train_as_each_alone(contender: Callable[..., Stacked], kind: str) -> None:
    architecture, fields = SMALL[kind]
    case, bank = a_case(architecture, image=2, dropout=0.0, **fields)
    stacked = contender(case, bank, CPU, torch.float64)
    stacked.run(3)
    for m in (0, 5):
        model = dataclasses.replace(case.model, number=m, image=2 + m)
        alone = Plain(Case("", (model,)), bank, CPU, torch.float64)
        start = alone.network.row()
        for index in stacked.order[torch.arange(3) % len(stacked.order), m]:
            alone.step(index)
            alone.schedule.step()
        for name, weight in alone.network.named_parameters():
            assert torch.allclose(stacked.weights[name][m], weight, rtol=0, atol=1e-9), name
        assert (alone.network.row() - start).abs().max() > 1e-3


@pytest.mark.parametrize("kind", ["siren", "kan_inr"])
def test_ours_trains_networks_of_images_as_the_plain_step(kind: str) -> None:
    architecture, fields = SMALL[kind]
    case, bank = a_case(architecture, image=2, **fields)
    recipe, ours = case.model.recipe, contenders.CONTENDERS["ours"](case, bank, CPU)
    assert isinstance(ours, ImageSteps)
    state = ours.state[0][0].double(), ours.state[1][0].double(), ours.state[2][0].double()
    target = architecture.scale(bank["digits"].train_images[2] / 255).flatten(1).T.double()
    for step in range(5):
        rate = update.rate_of(recipe, step % recipe.max_epochs, 1)
        plain_step(architecture, state, target, update.step_size("adam", rate, step + 1))
    ours.run(2)
    ours.run(3)
    assert torch.allclose(ours.state[0][0].double(), state[0], rtol=0, atol=2e-5)


def test_residual_networks_take_the_plain_loops_step() -> None:
    fields = {"initialization": "kaiming_normal", "label_smoothing": 0.15}
    case, bank = a_case(RESNET, optimizer="sgd", **fields)
    loop = PlainLoop(case.model, bank["digits"])
    loop.step(*next(loop.epoch(0)))
    for contender in (Plain(case, bank, CPU), Careful(case, bank, CPU)):
        contender.run(1)
        assert torch.allclose(contender.network.row().double(), loop.row, rtol=0, atol=1e-6)


@pytest.mark.parametrize("tuned", [False, True])
def test_adamw_is_the_builders(tuned: bool) -> None:
    torch.manual_seed(0)
    fields = {"initialization": "kaiming_normal", "weight_decay": 0.1, "learning_rate": 0.05}
    recipe = make_model(RESNET, optimizer="adamw", **fields).recipe
    row, gradient = torch.randn(2, 1, 10, dtype=torch.float64)
    weight, moments = row[0].clone(), torch.zeros(2, 1, 10, dtype=torch.float64)
    weight.grad = gradient[0]
    pytorch.optimizer_of(recipe, [("output.bias", weight)], tuned=tuned).step()
    rate = torch.tensor([[update.step_size("adamw", 0.05, 1)]], dtype=torch.float64)
    update.update("adamw", row, gradient, *moments, rate, torch.full_like(row, 0.05 * 0.1))
    assert torch.allclose(weight, row[0], rtol=0, atol=1e-6)


def test_rates_follow_the_schedule() -> None:
    case, bank = a_case(schedule="triangle", warmup_epochs=1.0, max_epochs=3, optimizer="sgd")
    plain, rates = Plain(case, bank, CPU), []
    steps = len(plain.order)
    for _ in range(3 * steps + 1):
        rates.append(plain.optimizer.param_groups[1]["lr"])
        plain.run(1)
    expected = [update.rate_of(case.model.recipe, step, steps) for step in range(3 * steps)]
    assert rates == pytest.approx([*expected, expected[0]])


def test_flips_shifts_and_cuts_are_like_the_builders() -> None:
    torch.manual_seed(0)
    images = torch.rand(1, 3, 12, 12).expand(4000, 3, 12, 12)
    found = pytorch.flip_shift_cutout(images)
    expected = batches.flip_shift_cutout(
        make_model(RESNET, initialization="kaiming_normal"), images, torch.arange(4000), 0
    )
    for moment in (torch.mean, torch.std):
        assert torch.allclose(moment(found, 0), moment(expected, 0), rtol=0, atol=0.05)
    assert found.mean().item() == pytest.approx(expected.mean().item(), abs=0.01)


@pytest.mark.parametrize("gray", [True, False])
def test_augmentation_is_like_the_builders(gray: bool) -> None:
    torch.manual_seed(0)
    images = torch.rand(1, 1 if gray else 3, 12, 12).expand(2000, 3, 12, 12)
    found = pytorch.augment(images, gray=gray)
    expected = batches.augment(make_model(NWS), images, torch.arange(2000), 0, gray=gray)
    assert found.shape == images.shape and found.min() >= 0 and found.max() <= 1
    for moment in (torch.mean, torch.std):
        assert torch.allclose(moment(found, 0), moment(expected, 0), rtol=0, atol=0.05)
    assert found.mean().item() == pytest.approx(expected.mean().item(), abs=0.01)


def test_no_shift_of_colours_changes_nothing() -> None:
    images = torch.rand(50, 3, 6, 6)
    images[0] = 0.3  # gray has no hue
    found = pytorch.shift_colours(images, torch.zeros(50, 1, 1), torch.ones(50, 1, 1))
    assert torch.allclose(found, images, atol=1e-5)


# This project's contender


@pytest.fixture
def fake_step(monkeypatch: pytest.MonkeyPatch) -> IdleStep:
    step = IdleStep()
    monkeypatch.setattr(pace, "make_backend", lambda architecture, device, tf32=False: step)
    return step


def test_ours_goes_through_epochs(fake_step: IdleStep) -> None:
    models = tuple(
        make_model(NWS, number, optimizer=optimizer, batch_size=4)
        for number, optimizer in enumerate(("adam", "rmsprop"))
    )
    ours = CohortSteps(Case("main", models), images_for(NWS), CPU)
    assert ours.models == 2 and [second[0].item() for second in ours.state[2]] == [0, 1]
    # classes are balanced, so one model's epoch may be longer than another's
    length = min(map(len, ours.orders))
    ours.run(length - 1)
    ours.run(2)
    ours.run(length)
    told = [(call[1].epoch, call[1].step, call[1].steps) for call in fake_step.calls]
    assert told == [
        (0, 0, length - 1),
        (0, length - 1, 1),
        (1, length, 1),
        (1, length + 1, length - 1),
        (2, 2 * length, 1),
    ]
    for m, model in enumerate(models):
        assert fake_step.calls[0][m].model == model
        assert torch.equal(
            torch.cat([call[m].order for call in fake_step.calls[:2]]), ours.orders[m][:length].flatten()
        )


def test_evaluation_exports(fake_step: IdleStep) -> None:
    case, bank = a_case()
    evaluation = Evaluation(case, bank, CPU)
    evaluation.run(3)
    evaluation.spool.seek(0)
    assert evaluation.spool.read() == evaluation.row.numpy().tobytes()
    evaluation.spool.close()


# Timing


class Recorder:
    """A timer that notes what it is asked."""

    def __init__(self, log: list[str]) -> None:
        self.log = log

    def prepare(self, case: Case, contenders: Sequence[str]) -> dict[str, int]:
        self.log.append("prepare")
        return {contender: 1 for contender in contenders}

    def time(self, contender: str) -> float:
        self.log.append(contender)
        return float(len(self.log))


def test_sides_take_turns(chosen: list[Case]) -> None:
    log: list[str] = []
    timer = Recorder(log)
    measured = measure(chosen[0], {"here": (timer, ("plain", "ours")), "there": (timer, ("careful",))}, 3)
    assert log == ["prepare", "prepare", *["plain", "ours", "careful"] * 3]
    assert measured.rates == {
        "here": {"plain": [3, 6, 9], "ours": [4, 7, 10]},
        "there": {"careful": [5, 8, 11]},
    }
    assert measured.rate("here", "ours") == 7
    assert measured.has("there", "careful") and not measured.has("there", "ours")


def test_a_block_lasts_as_long_as_asked(chosen: list[Case], monkeypatch: pytest.MonkeyPatch) -> None:
    clock = 0.0

    class Fake:
        models = 4

        def __init__(self, *_: object) -> None:
            self.runs: list[int] = []

        def run(self, steps: int) -> None:
            nonlocal clock
            clock += steps * 0.002 + (0 if self.runs else 10)  # the first compiles
            self.runs.append(steps)

    monkeypatch.setattr(time, "perf_counter", lambda: clock)
    monkeypatch.setattr("builder.benchmark.timing.bank_of_case", lambda *_: {})
    monkeypatch.setitem(contenders.CONTENDERS, "fake", Fake)
    here = InProcessTimer(Path(), CPU, 0.3)
    here.prepare(chosen[0], ["fake"])
    contender, steps = here.contenders["fake"]
    assert (contender.runs, steps) == ([1, 1, 2, 4, 8, 16, 32], 150)
    assert here.time("fake") == pytest.approx(4 / 0.002)


def test_a_crew_answers_until_it_ends(chosen: list[Case], tmp_path: Path) -> None:
    write_images(chosen[:1], None, tmp_path)
    with AllCoresTimer(tmp_path, 0.01, 2) as crew:
        assert crew.prepare(chosen[0], ["plain"]) == {}
        assert crew.time("plain") > 0
        assert len(crew.memory()) == 2
        crew.processes[0].terminate()
        with pytest.raises(ZooError, match="it has ended"):
            crew.time("plain")
    assert not any(process.is_alive() for process in crew.processes)


# What is made of it


def made_up(chosen: list[Case], rates: dict[str, float]) -> DeviceResults:
    """Results in which each contender reaches so many times FLOP_RATE on every case; three repetitions, of
    which the second is the median.
    """
    measured = []
    for case in chosen:
        found = {
            where: {
                contender: [
                    rates[contender] * FLOP_RATE / flops_of(contender, case, CPU) * f for f in (0.5, 1, 1.25)
                ]
                for contender in names
            }
            for where, names in CONTENDERS[case.model.recipe.architecture.kind].items()
        }
        measured.append(Measured(case, found, {}))
    return DeviceResults(CPU, measured, {"cores": 2})


RATES = {
    "plain": 0.1,
    "vmap": 0.2,
    "batched": 0.25,
    "careful": 0.4,
    "ours": 0.5,
    "evaluation": 0.25,
    "peak": 0.8,
}


def test_hours_of_the_whole_zoo(chosen: list[Case]) -> None:
    lines = {line.name: line for line in made_up(chosen, RATES).summary()}
    models: list[Model] = [model for name in ("main", "fixed") for model in select(SUBSETS[name], 0)]
    train, evaluate = (
        training_flops(models) / (0.5 * FLOP_RATE),
        evaluation_flops(models) / (0.25 * FLOP_RATE),
    )
    assert lines["hours for 16,000 models of 30 epochs"].value == pytest.approx((train + evaluate) / 3600)
    assert lines["of them evaluation and export"].value == pytest.approx(evaluate / 3600)
    alone = [
        dataclasses.replace(
            models[0], recipe=dataclasses.replace(models[0].recipe, dataset="mnist", batch_size=32)
        )
    ]
    # ten times the smallest class, without those for validation, in whole batches
    images = 54_210 * 9 // 10 // 32 * 32
    assert training_flops(alone) == 3 * forward_flops(models[0].recipe.architecture) * images * EPOCHS


def test_ratios_stand_beside_their_targets(chosen: list[Case]) -> None:
    results = made_up(chosen, RATES)
    lines = {line.name: line for line in results.summary()}
    for name, value, target, met in (
        ("ours / plain, one thread: small_cnn 64", 5, 7, False),
        ("ours / plain, one thread: fixed", 5, 2.5, True),
        ("ours / plain, one thread: main, least", 5, 0.9, True),
        ("ours / vmap, one thread: fixed", 2.5, None, None),
        ("ours / careful, all cores: small_cnn 512", 1.25, 3.5, False),
        ("ours / careful, all cores: main, median", 1.25, 1.8, False),
        ("peak, one thread, GFLOP/s", 1000, None, None),  # the best repetition
        ("ours / peak, all cores: main", 0.5, None, None),
    ):
        assert (lines[name].value, lines[name].target, lines[name].met) == (
            pytest.approx(value, abs=1e-9),
            target,
            met,
        ), name
    slow = results.measured[-1]
    slow.rates["one thread"]["ours"] = [rate / 5 for rate in slow.rates["one thread"]["ours"]]
    lines = {line.name: line for line in results.summary()}
    assert lines["ours / plain, one thread: main, median"].value == pytest.approx(5)
    assert lines["ours / plain, one thread: main, least"].value == pytest.approx(1)


def test_other_kinds_have_tables_and_ratios(chosen: list[Case], of_kinds: list[Case]) -> None:
    results = made_up([*chosen, *of_kinds], RATES)
    lines = {line.name: line for line in results.summary()}
    for name, value, target in (
        ("ours / plain, one thread: siren", 5, 10),
        ("ours / vmap or batched, one thread: kan", 2, 4),
        ("ours / careful, all cores: resnet", 1.25, 1),
        ("ours / peak, all cores: resnet", 0.5, None),
    ):
        assert (lines[name].value, lines[name].target) == (pytest.approx(value), target), name
    assert "ours / peak, all cores: siren" not in lines
    first, small, second, large, _ = tables(results)
    assert (len(first.rows), len(second.rows)) == (len(chosen), len(chosen))
    assert [row[0] for row in small.rows] == ["siren", "kan_inr", "kan"] and "batched" in small.columns
    assert [row[0] for row in large.rows] == ["resnet"] and "batched" not in first.columns
    assert "-" not in [cell for table in (small, large) for row in table.rows for cell in row]


def test_networks_that_a_peer_trains_faster_are_listed(chosen: list[Case]) -> None:
    results = made_up(chosen, RATES)
    assert (
        results.slower() == []
        and [table.title for table in tables(results)][-1] == "Summary"
        and len(tables(results)) == 3
    )
    slow = results.measured[-1]
    slow.rates["one thread"]["ours"] = [rate / 10 for rate in slow.rates["one thread"]["ours"]]
    (table,) = [table for table in tables(results) if table.title == "Slower than a peer"]
    told = [(row[0], row[1], row[2], *row[-3:]) for row in table.rows]
    network = slow.case.model.recipe.architecture.id
    assert told == [
        ("one thread", "plain", network, "0.50", "0.05", "0.10"),
        ("one thread", "vmap", network, "0.25", "0.05", "0.20"),
    ]


def test_peak_of_a_core_is_counted() -> None:
    """Every multiply-add is done: of ones, each sum grows by 1 a round."""
    x = torch.ones(kernels.SCRATCH).numpy()
    kernels.multiply_add(x, 100)
    assert (x == 100).sum() == kernels.TILE_SUMS and (x[x != 100] == 1).all()
    assert flops_of("peak", cases()[0], CPU) == 2 * kernels.TILE_SUMS * contenders.PEAK_ROUNDS


def test_vmap_may_be_left_out(chosen: list[Case]) -> None:
    results = made_up(chosen, RATES)
    for measured in (*results.measured[3:6], *results.measured[6:]):
        del measured.rates["one thread"]["vmap"]
    names = [line.name for line in results.summary() if "vmap" in line.name]
    assert names == [
        f"ours / vmap, one thread: {name}"
        for name in ("small_cnn 64", "small_cnn 512", "fixed (1 of 4 cases)")
    ]
    assert tables(results)[0].rows[-1][4] == "-"


def test_best_of_the_graphs_counts(chosen: list[Case]) -> None:
    gpu = torch.device("cuda")
    rates = {
        "plain": 1,
        "careful x1": 2,
        "careful x4": 5,
        "careful x8": 4,
        "vmap": 8,
        "ours": 40,
        "evaluation": 20,
        "peak": 80,
    }
    measured = [
        Measured(
            case,
            {
                "GPU": {
                    contender: [1e12 * rate / flops_of(contender, case, gpu)]
                    for contender, rate in rates.items()
                }
            },
            {},
        )
        for case in chosen
    ]
    results = DeviceResults(gpu, measured, {})
    lines = {line.name: line for line in results.summary()}
    assert lines["ours / careful, GPU: fixed"].value == pytest.approx(8)
    assert lines["ours / careful or vmap, GPU: fixed"].value == pytest.approx(5)
    assert lines["ours / plain, GPU: fixed"].met is True
    assert lines["ours / peak, GPU: fixed"].target == 0.25
    assert lines["hours for 16,000 models of 30 epochs"].target == 24
    assert len(tables(results)) == 2


def test_command_writes_json(
    chosen: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(training, "run", lambda device, effort, images: made_up(chosen, RATES))
    report = tmp_path / "report.json"
    training.main(["--quick", "--device", "cpu", "--json", str(report)], standalone_mode=False)
    out = capsys.readouterr().out
    assert "one thread" in out and "hours for 16,000 models" in out and "cores: 2" in out
    written = json.loads(report.read_text())
    assert set(written) == {"cores", "device", "cases", "summary"}
    assert len(written["cases"]) == len(chosen)
    first = written["cases"][0]
    assert set(first) == {
        "workload",
        "model_id",
        "models_together",
        "recipe",
        "flops",
        "steps_per_second",
        "gpu_memory_bytes",
    }
    assert len(first["steps_per_second"]["one thread"]["plain"]) == 3
    assert set(written["summary"][0]) == {"name", "value", "target", "at_most", "met"}


def test_command_refuses_a_missing_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        training.main(["--device", "cpu", "--json", str(tmp_path / "none" / "report.json")])
    assert ended.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_large_index_of_the_benchmark_of_reading_is_a_zoo(tmp_path: Path) -> None:
    zoo = Zoo(write_large_index(tmp_path / "zoo", 30))
    assert len(zoo.filter()) == 600 and len(zoo.filter(is_final=True)) == 30
