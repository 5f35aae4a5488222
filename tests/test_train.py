"""Training: a row depends on its model alone, the papers' rules, divergence, and the whole cohort against the
plain loop.
"""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch

from builder import rules
from builder.plan import Model
from builder.rules import chosen_exports, should_stop
from builder.trained import Trained
from builder.training import train
from builder.training.device import make_backend
from builder.training.initial import initial_row
from builder.training.plain import PlainLoop
from builder.training.train import Cohort
from nws_dataset.format.subsets import SUBSETS, Subset
from nws_dataset.networks.cnn import Architecture
from training_cases import ARCHITECTURES, CPU, NWS, NWS_PLAIN, SMALL_CNN, images_for, make_model

DEMO = SUBSETS["demo"]


def run(
    models: list[Model], slots: int = 1, dtype: torch.dtype = torch.float32, subset: Subset = DEMO
) -> dict[str, Trained]:
    architecture = models[0].recipe.architecture
    cohort = Cohort(subset, architecture, images_for(architecture), device=CPU, slots=slots, dtype=dtype)
    return {trained.model.id: trained for trained in cohort.train(models)}


def mixed(architecture: Architecture, count: int) -> list[Model]:
    """Models of one cohort that differ in all else; their trainings end at different times."""
    kinds = itertools.cycle(
        itertools.product(("adam", "rmsprop", "momentum", "sgd"), ("relu", "elu", "sigmoid", "tanh"))
    )
    return [
        make_model(
            architecture,
            number,
            optimizer=optimizer,
            activation=activation,
            augmentation=number % 3 == 0,
            initialization=("glorot_uniform", "he_normal", "orthogonal", "constant")[number // 4 % 4],
            dropout=(0.5, 0.1)[number % 2],
            l2=(0.0, 1e-3)[number // 2 % 2],
            max_epochs=2 + number % 2,
            balanced=number % 5 != 0,
            train_fraction=(1.0, 0.9)[number // 8 % 2],
        )
        for number, (optimizer, activation) in zip(range(count), kinds, strict=False)
    ]


# No model influences another


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_rows_are_bit_identical_alone_in_a_cohort_in_a_refilled_slot(name: str, dtype: torch.dtype) -> None:
    models = mixed(ARCHITECTURES[name], 16)
    alone = {model.id: run([model], dtype=dtype)[model.id] for model in models}
    for slots in (16, 3):  # 3: models follow each other in a slot
        together = run(models, slots, dtype)
        assert together.keys() == alone.keys()
        for identifier, trained in together.items():
            assert trained.rows.dtype == np.dtype(str(dtype).removeprefix("torch."))
            assert trained.rows.tobytes() == alone[identifier].rows.tobytes()
            assert trained.snapshots == alone[identifier].snapshots


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_rows_are_bit_identical_on_one_thread_or_two(dtype: torch.dtype) -> None:
    model = make_model(dataclasses.replace(NWS, width_conv=12, width_fc=192, image_size=32), batch_size=32)
    before, rows = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            rows.append(run([model], dtype=dtype)[model.id].rows)
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert rows[0].tobytes() == rows[1].tobytes()


def test_a_diverging_model_freezes_and_leaves_its_neighbours_alone() -> None:
    wild = make_model(NWS_PLAIN, 1, optimizer="sgd", initialization="normal", learning_rate=1e30, dropout=0.0)
    calm = [make_model(NWS_PLAIN, number) for number in (0, 2)]
    trained = run([calm[0], wild, calm[1]], slots=3)
    for model in calm:
        assert trained[model.id].rows.tobytes() == run([model])[model.id].rows.tobytes()
        assert not trained[model.id].snapshots[-1]["diverged"]
    frozen = trained[wild.id]
    assert all(columns["diverged"] and columns["epoch"] == 0 for columns in frozen.snapshots)
    # the last finite epoch's start, repeated
    assert all(np.array_equal(row, initial_row(wild)) for row in frozen.rows)


# The whole cohort against the plain loop


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_three_epochs_equal_the_plain_loop(name: str) -> None:
    """Every export of a training whose trajectory does not part (smooth activation, no adaptive rate)."""
    architecture = ARCHITECTURES[name]
    model = make_model(architecture, 3, optimizer="momentum", activation="tanh", augmentation=True, l2=1e-3)
    trained = run([model], dtype=torch.float64)[model.id]
    loop = PlainLoop(model, images_for(architecture)["digits"])
    assert len(trained.rows) == 4
    for epoch, row in enumerate(trained.rows):
        np.testing.assert_allclose(row, loop.row.numpy(), rtol=0, atol=1e-9)
        assert (trained.snapshots[epoch]["epoch"], trained.snapshots[epoch]["step"]) == (epoch, loop.steps)
        if epoch < 3:
            for batch in loop.epoch(epoch):
                loop.step(*batch)


def test_segments_of_many_slots_change_nothing() -> None:
    """The way of a GPU: slots take their steps together until the first ends its epoch; data sets and ends
    differ, slots are refilled.
    """
    models = mixed(SMALL_CNN, 7)
    cohort = Cohort(DEMO, SMALL_CNN, images_for(SMALL_CNN), device=CPU, slots=3)
    cohort.stacked = True
    stacked = {trained.model.id: trained for trained in cohort.train(models)}
    for identifier, trained in run(models).items():
        assert stacked[identifier].rows.tobytes() == trained.rows.tobytes()
        assert stacked[identifier].snapshots == trained.snapshots


def test_snapshot_one_is_the_initialization_and_metrics_are_of_the_row() -> None:
    model = make_model(SMALL_CNN, 4, max_epochs=2)
    trained = run([model])[model.id]
    images = images_for(SMALL_CNN)["digits"]
    assert np.array_equal(trained.rows[0], initial_row(model))
    for row, columns in zip(trained.rows, trained.snapshots, strict=True):
        ((accuracy, loss, by_class),) = train.evaluate_rows(
            make_backend(SMALL_CNN, CPU), torch.from_numpy(row)[None], model, images, None
        )
        assert (columns["test_accuracy"], columns["test_loss"], columns["class_test_accuracy"]) == (
            accuracy,
            loss,
            by_class,
        )
        counts = torch.bincount(images.test_labels).tolist()
        assert sum(a * n for a, n in zip(by_class, counts, strict=True)) / sum(counts) == pytest.approx(
            accuracy
        )


def test_without_validation_part_its_columns_are_null() -> None:
    model = make_model(SMALL_CNN, validation_fraction=0.0, early_stopping=False, max_epochs=1)
    columns = run([model])[model.id].snapshots[-1]
    assert columns["validation_accuracy"] is None and columns["validation_loss"] is None


def test_fewer_images_than_a_batch_make_one_step() -> None:
    model = make_model(NWS, batch_size=512, max_epochs=2, balanced=False)
    assert [columns["step"] for columns in run([model])[model.id].snapshots] == [0, 1, 2]


def test_early_stopping_ends_a_training_and_frees_its_slot() -> None:
    """A network that cannot learn has an unchanged validation accuracy; it stops by the rule, not by
    max_epochs.
    """
    stuck = make_model(
        SMALL_CNN,
        0,
        optimizer="sgd",
        learning_rate=1e-12,
        max_epochs=200,
        initialization="constant",
        dropout=0.0,
    )
    after = make_model(SMALL_CNN, 1, max_epochs=2)
    trained = run([stuck, after], slots=1)
    assert trained[stuck.id].snapshots[-1]["epoch"] == rules.UNCHANGED_IN_A_ROW
    assert len(trained[stuck.id].rows) == DEMO.num_snapshots
    assert trained[after.id].snapshots[-1]["epoch"] == 2


def test_exports_wait_on_disk_and_go(tmp_path) -> None:
    model = make_model(SMALL_CNN, max_epochs=2)
    cohort = Cohort(DEMO, SMALL_CNN, images_for(SMALL_CNN), device=CPU, spool=tmp_path)
    assert len(list(cohort.train([model]))) == 1
    assert not list(tmp_path.iterdir())


# The rules


def test_chosen_exports_are_the_papers() -> None:
    main = SUBSETS["main"]
    assert chosen_exports(main, 1000, 20) == list(range(20))
    assert chosen_exports(main, 1000, 39) == list(range(0, 39, 2))
    expected = [round(1 + i * 40 / 19) - 1 for i in range(20)]
    assert chosen_exports(main, 1000, 41) == expected
    assert chosen_exports(main, 5, 6) == [0, 1, 2, 3, 4, 5]  # a cap leaves fewer exports: fewer snapshots
    assert chosen_exports(main, 1000, 3) == [0, 1] + [2] * 18  # it diverged: the last one repeats
    assert chosen_exports(SUBSETS["small_cnn"], 86, 87) == [0, 1, 2, 3, 20, 40, 60, 80, 86]
    assert chosen_exports(SUBSETS["small_cnn"], 10, 11) == [0, 1, 2, 3, 10]
    assert chosen_exports(SUBSETS["small_cnn"], 86, 11) == [0, 1, 2, 3, 10, 10, 10, 10, 10]


def first_stop(accuracies: list[float]) -> int | None:
    """Epochs after which the rule stops a training."""
    return next((n - 1 for n in range(1, len(accuracies) + 1) if should_stop(accuracies[:n])), None)


def test_stopping_rule() -> None:
    rising = [n / 2000 for n in range(1001)]
    assert first_stop(rising) is None
    # five in a row worse after epoch 30
    assert first_stop([*rising[:31], *(0.015 - 0.001 * n for n in range(1, 10))]) == 35
    assert first_stop([1 - n / 100 for n in range(30)]) == 20  # never before 20 epochs
    assert first_stop([0.5] * 100) == 30  # thirty in a row unchanged
    saw = [0.5 + 0.1 * (n % 2) for n in range(100)]  # below its average at every second epoch
    assert first_stop(saw) == 60


def test_converged_is_five_points_above_the_majority_class() -> None:
    images = images_for(NWS)["digits"]
    assert images.majority_rate == int(torch.bincount(images.test_labels).max()) / len(images.test_labels)
    trained = run([make_model(SMALL_CNN, 7, optimizer="sgd", learning_rate=1e-12, max_epochs=1)])
    columns = next(iter(trained.values())).snapshots[-1]
    assert columns["converged"] == (columns["test_accuracy"] >= images.majority_rate + 0.05)
    assert math.isfinite(columns["test_loss"])
