"""Calibration measures models that stand for all, and its seconds follow from what it measured."""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from collections.abc import Callable, Sequence

import pytest
import torch

from builder.forecasting import calibration
from builder.forecasting.calibration import (
    STRATA,
    Calibration,
    Pace,
    calibrate,
    combined,
    seconds_per_step,
    strata,
)
from builder.forecasting.costs import epoch_flops, epoch_images, evaluated_images, forward_flops
from builder.forecasting.pace import Case, CohortSteps, Contender, ImageSteps
from builder.plan import Model, select
from builder.rules import min_epochs
from builder.training.device import slots_of
from builder.training.train import Cohort
from nws_dataset.format.subsets import SUBSETS
from training_cases import CPU, NWS, IdleStep, images_for, make_model


@pytest.fixture(scope="module")
def models() -> list[Model]:
    return select(SUBSETS["main"], 0, models=500)


def test_strata_hold_equal_shares_of_the_work(models: list[Model]) -> None:
    parts = strata(models, None)
    assert len(parts) == STRATA
    assert sorted(model.number for part in parts for model in part) == list(range(500))
    costs = [[forward_flops(model.recipe.architecture) for model in part] for part in parts]
    assert all(max(cheap) <= min(dear) for cheap, dear in itertools.pairwise(costs))
    flops = [sum(min_epochs(model.recipe) * epoch_flops(model, None) for model in part) for part in parts]
    assert flops == pytest.approx([sum(flops) / STRATA] * STRATA, rel=0.05)


def test_few_models_are_strata_of_their_own(models: list[Model]) -> None:
    parts = strata(models[:3], None)
    assert len(parts) <= 3 and {model.number for part in parts for model in part} == {0, 1, 2}
    assert strata(models[:1], None) == [models[:1]]


def test_seconds_of_a_model() -> None:
    model = make_model(NWS, number=7, dataset="mnist", augmentation=True)
    measured = Calibration(CPU, 2, {7: Pace({False: 1.0, True: 2.0}, 0.5)}, order=10.0, split=3.0)
    seconds = measured.seconds(model, 1000, 4)
    forward = forward_flops(NWS)
    assert seconds.training == pytest.approx(
        4 * epoch_images(model, 1000) * 3 * forward * 2.0 + 4 * 900 * 10.0 + 1000 * 3.0
    )
    assert seconds.evaluation == pytest.approx(evaluated_images(model, 1000, 4) * forward * 0.5)
    assert seconds.total == seconds.training + seconds.evaluation


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[Sequence[Contender]]:
    """What was measured: every step takes a second, and nothing is run."""
    calls: list[Sequence[Contender]] = []

    def seconds(contenders: Sequence[Contender], device: torch.device) -> float:
        calls.append(contenders)
        return 1.0

    monkeypatch.setattr(calibration, "seconds_per_step", seconds)
    monkeypatch.setattr(calibration, "cores", lambda: 3)
    monkeypatch.setattr(calibration, "IMAGES", 600)
    return calls


def test_both_kinds_of_training_are_measured(
    models: list[Model], measured: list[Sequence[Contender]]
) -> None:
    found = calibrate(models, None, CPU)
    assert set(found.paces) == {model.number for model in models}
    assert found.workers == 3 and all(len(contenders) == 3 for contenders in measured)
    assert len(measured) == 3 * STRATA  # training without and with augmentation, evaluation
    for part in strata(models, None):
        (pace,) = {id(found.paces[model.number]): found.paces[model.number] for model in part}.values()
        recipe = part[len(part) // 2].recipe
        forward = forward_flops(recipe.architecture)
        assert pace.training == dict.fromkeys(
            (False, True), pytest.approx(1 / (3 * forward * recipe.batch_size))
        )
        assert pace.evaluation == pytest.approx(1 / (calibration.EVALUATED_IMAGES["cpu"] * forward))


def test_only_what_is_needed_is_measured(measured: list[Sequence[Contender]]) -> None:
    model = make_model(NWS, augmentation=True, balanced=True, train_fraction=0.1, batch_size=64)
    found = calibrate([model], None, CPU)
    assert found.workers == 1 and list(found.paces[0].training) == [True]
    training, _ = (contenders[0] for contenders in measured)
    assert isinstance(training, CohortSteps)
    # not a tenth of the images
    assert training.cohort[0].recipe.augmentation and len(training.orders[0]) == 600 * 9 // 10 // 64


def test_networks_of_images_are_measured(measured: list[Sequence[Contender]]) -> None:
    models = select(SUBSETS["siren"], 0, models=4)
    found = calibrate(models, None, CPU)
    assert all(isinstance(steps, ImageSteps) for contenders in measured for steps in contenders)
    for model in models:
        flops = 3 * forward_flops(model.recipe.architecture) * model.recipe.batch_size
        pace = found.paces[model.number]
        assert {*pace.training.values(), pace.evaluation} == {1 / flops}


def lengths_of(step: IdleStep) -> list[int]:
    """Steps of each call; those of its segments are equal."""
    return [length for call in step.calls for (length,) in [{segment.steps for segment in call.values()}]]


@pytest.mark.parametrize(("count", "slots"), [(11, 4), (3, 3), (2, 1)])
def test_segments_are_as_long_as_a_cohorts(count: int, slots: int, monkeypatch: pytest.MonkeyPatch) -> None:
    models = [
        make_model(NWS, n, batch_size=5, train_fraction=(1.0, 0.5, 0.7)[n % 3], validation_fraction=0.1,
        balanced=False,
                   max_epochs=2 + n % 2, early_stopping=False)
        for n in range(count)
    ]  # fmt: skip
    backend = IdleStep()
    cohort = Cohort(SUBSETS["demo"], NWS, images_for(NWS, 200), device=CPU, slots=slots, backend=backend)
    cohort.stacked = True
    assert len(list(cohort.train(models))) == count
    lengths = lengths_of(backend)
    assert calibration.mean_segment(models, slots, 200) == sum(lengths) / len(lengths)
    assert len(set(lengths)) > 2 or slots == 1
    monkeypatch.setattr(calibration, "SEGMENTS", 2)
    assert calibration.mean_segment(models, slots, 200) == sum(lengths[:2]) / 2


def test_segments_of_the_presets_are_short() -> None:
    """With 64 slots some slot's epoch ends every few steps; `main`'s few slots have longer segments."""
    fixed = [model for model in select(SUBSETS["fixed"], 0, models=8000) if model.recipe.batch_size == 128]
    assert calibration.mean_segment(fixed, 64, None) == pytest.approx(6.4, abs=1.5)
    cohorts = Counter(model.cohort for model in select(SUBSETS["main"], 0, models=4000))
    cohort = cohorts.most_common(1)[0][0]
    main = [model for model in select(SUBSETS["main"], 0, models=4000) if model.cohort == cohort]
    assert 20 < calibration.mean_segment(main, slots_of(len(main)), None) < 800


def test_the_models_epochs_end_one_after_the_other() -> None:
    models = tuple(make_model(NWS, number, batch_size=20) for number in range(3))
    step = IdleStep()
    taken: list[list[tuple[int, int, int]]] = []
    monkey = step.train
    step.train = lambda state, segments: (  # type: ignore[method-assign]
        taken.append([(s.epoch, s.start, s.step) for s in segments.values()]) or monkey(state, segments)
    )
    CohortSteps(Case("main", models), images_for(NWS), CPU, step, apart=4).run(14)
    assert lengths_of(step) == [4, 4, 4, 2]
    assert taken[:2] == [[(0, 0, 0), (0, 4, 4), (0, 8, 8)], [(0, 4, 4), (0, 8, 8), (1, 0, 12)]]
    assert taken[3] == [(1, 0, 12), (1, 4, 16), (1, 8, 20)]


class FakeContender:
    """Notes how many steps it takes; all contenders must run at once, or the barrier breaks."""

    models = 1

    def __init__(self, barrier: threading.Barrier) -> None:
        self.barrier, self.steps = barrier, list[int]()

    def run(self, steps: int) -> None:
        self.steps.append(steps)
        self.barrier.wait(timeout=60)


def test_sides_run_together_and_long_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    barrier = threading.Barrier(2)
    contenders = [FakeContender(barrier), FakeContender(barrier)]

    def elapsed(action: Callable[[], object], device: torch.device) -> float:
        action()
        return 0.01 * contenders[0].steps[-1]

    monkeypatch.setattr(calibration, "_elapsed", elapsed)
    assert seconds_per_step(contenders, CPU) == pytest.approx(0.01)
    assert contenders[0].steps == contenders[1].steps == [1, 36]


def test_a_slow_first_step_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain torch takes a second to begin."""
    contender = FakeContender(threading.Barrier(1))

    def elapsed(action: Callable[[], object], device: torch.device) -> float:
        action()
        return 0.01 * contender.steps[-1] + (len(contender.steps) == 1)

    monkeypatch.setattr(calibration, "_elapsed", elapsed)
    assert seconds_per_step([contender], CPU) == pytest.approx(0.01)


def test_a_small_model_is_measured_for_real(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "SECONDS", 0.001)
    monkeypatch.setattr(calibration, "IMAGES", 300)
    models = [make_model(NWS, number, augmentation=bool(number)) for number in range(2)]
    found = calibrate(models, None, CPU)
    assert all(
        found.seconds(model, None, 3).training > found.seconds(model, None, 2).training > 0
        for model in models
    )
    assert all(found.seconds(model, None, 2).evaluation > 0 for model in models)
    assert found.order > 0 and found.split > 0


def test_nodes_together_do_what_each_does() -> None:
    slow = Calibration(CPU, 2, {7: Pace({False: 4.0}, 1.0), 8: Pace({True: 1.0}, 2.0)}, order=1.0, split=2.0)
    fast = Calibration(CPU, 6, {7: Pace({False: 1.0}, 1.0), 8: Pace({True: 1.0}, 1.0)}, order=1.0, split=1.0)
    found = combined([slow, fast])
    assert found.paces == {7: Pace({False: 8 / (2 / 4 + 6 / 1)}, 1.0), 8: Pace({True: 1.0}, 8 / (2 / 2 + 6))}
    assert (found.order, found.split, found.workers) == (1.0, 8 / (2 / 2 + 6), 8)
    assert (found.description, combined([fast]).description) == (
        "8 CPU processes on 2 nodes",
        "6 CPU processes on 1 node",
    )
