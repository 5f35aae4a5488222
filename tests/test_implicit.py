"""Networks that represent images: which image each has, how they are trained, and what they give."""

from __future__ import annotations

import math
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import builder.build
from builder import gallery
from builder.card import OVERVIEW
from builder.checks import Verifier
from builder.image_order import image_order, split_sizes
from builder.image_sets import IMAGE_SETS
from builder.images import load_image_set
from builder.plan import Model, Request, select, up_to
from builder.training import update
from builder.training.bank import Images, bank_of
from builder.training.cpu.kan import KanBackend
from builder.training.cpu.siren import SirenBackend
from builder.training.implicit import (
    ImageBackend,
    ImageCohort,
    TorchImageBackend,
    image_of,
    make_image_backend,
    psnr_of,
    target_of,
)
from builder.training.initial import initial_row
from builder.verify import main as verify
from nws_dataset import Zoo, layout_of
from nws_dataset.errors import ZooError
from nws_dataset.format.schema import SPLITS
from nws_dataset.format.subsets import SUBSETS
from nws_dataset.networks import kan, siren
from nws_dataset.networks.base import BaseArchitecture
from nws_dataset.networks.network import Network, coordinates
from test_build import content, kill, run
from test_classifiers_of_kinds import forge_index
from testing.forked import Death

CPU = torch.device("cpu")
MNIST_ORDER = [17209, 24841, 25478, 65429, 42452, 34052]  # images of the first networks
SUBSETS_OF_IMAGES = [name for name, subset in SUBSETS.items() if subset.of_images]
CASES: dict[str, BaseArchitecture] = {
    "siren": siren.Architecture(),
    "siren_colour": siren.Architecture(image_channels=3, image_size=32, pixel_min=-1, output_offset=0.0),
    "siren_deep": siren.Architecture(image_size=7, width_hidden=5, depth_hidden=3, frequency_hidden=20.0),
    "siren_shallow": siren.Architecture(image_size=17, width_hidden=33, depth_hidden=1),
    "kan": kan.Architecture(),
    "kan_colour": kan.Architecture(image_channels=3, image_size=9, width_hidden=7),
    "kan_other": kan.Architecture(image_size=8, width_hidden=6, grid=3, spline_order=2, grid_max=1.5),
    "kan_steps": kan.Architecture(image_size=8, width_hidden=4, spline_order=0),
}


def models_of(subset: str, count: int, epochs: int = 12) -> list[Model]:
    return select(SUBSETS[subset], 0, models=count, datasets=("digits",), epochs=epochs)


@pytest.fixture(scope="module")
def digits() -> Images:
    architecture = siren.Architecture(image_size=8)
    return bank_of({"digits": load_image_set("digits")}, architecture, CPU)["digits"]


def trained(subset: str, models: list[Model], digits: Images, slots: int = 1) -> list[bytes]:
    architecture = models[0].recipe.architecture
    cohort = ImageCohort(SUBSETS[subset], architecture, {"digits": digits}, device=CPU, slots=slots)
    return [found.rows.tobytes() for found in cohort.train(models)]


# Which image


@pytest.mark.parametrize("dataset", ["mnist", "cifar10", "digits"])
def test_every_prefix_holds_its_share_of_each_split(dataset: str) -> None:
    numbers, splits = image_order(dataset)
    sizes = np.array(list(split_sizes(IMAGE_SETS[dataset]).values()))
    assert sorted(numbers.tolist()) == list(range(sizes.sum()))
    assert list(split_sizes(IMAGE_SETS[dataset])) == list(SPLITS)
    count = np.arange(1, len(numbers) + 1)
    for split, size in enumerate(sizes):
        assert np.abs(np.cumsum(splits == split) - count * size / sizes.sum()).max() < 1
    ends = np.cumsum(sizes)
    assert (splits == np.searchsorted(ends, numbers, side="right")).all()


def test_the_order_is_pinned_and_no_seed_changes_it() -> None:
    assert image_order("mnist")[0][:6].tolist() == MNIST_ORDER
    for seed in (0, 7):
        models = select(SUBSETS["siren"], seed, models=6, datasets=("mnist",))
        assert [model.image for model in models] == MNIST_ORDER


def test_copies_come_after_and_change_nothing() -> None:
    subset, images = SUBSETS["siren"], len(image_order("digits")[0])
    once = select(subset, 0, datasets=("digits",))
    twice = select(subset, 0, datasets=("digits",), copies=2)
    assert len(once) == images and len(twice) == 2 * images and twice[:images] == once
    assert [m.image for m in twice[images:]] == [m.image for m in once]
    assert [m.split for m in twice[images:]] == [m.split for m in once]
    assert not np.array_equal(initial_row(twice[images]), initial_row(once[0]))
    assert all(len(model.id) == len("siren-") + subset.digits for model in twice)


def test_the_plan_up_to_a_number_is_that_of_any_selection() -> None:
    chosen = select(SUBSETS["kan_inr"], 3, models=5, datasets=("digits",), epochs=4)
    found = {model.id: model for model in up_to(SUBSETS["kan_inr"], 3, chosen[-1].number, epochs=4)}
    assert all(found[model.id] == model for model in chosen)


def test_images_of_another_number_are_refused(digits: Images) -> None:
    (model,) = models_of("siren", 1)
    fewer = Images(digits.train_images[:9], digits.train_labels[:9], *([digits.test_images] * 2), gray=True)
    with pytest.raises(ZooError, match=r"digits: expected 1437 \+ 360 images"):
        image_of(model, fewer)


# The step


def plain_step(
    architecture: BaseArchitecture, state: tuple[torch.Tensor, ...], target: torch.Tensor, rate: float
) -> float:
    """A step by the plain network and torch's autograd, in float64: state [P] each, in place."""
    row, first, second = state
    network = Network(architecture).double().load_row(row)
    loss = ((network(coordinates(architecture, torch.float64)) - target) ** 2).mean()
    loss.backward()
    specs = layout_of(architecture).tensors
    gradients = [torch.as_tensor(network.get_parameter(spec.name).grad) for spec in specs]
    gradient = torch.cat([found.reshape(-1) for found in gradients])
    rates = torch.tensor([[rate]], dtype=torch.float64)
    update.update("adam", row[None], gradient[None], first[None], second[None], rates)
    return loss.item()


@pytest.mark.parametrize("name", CASES)
def test_a_step_is_that_of_the_plain_network(name: str) -> None:
    architecture = CASES[name]
    torch.manual_seed(0)
    target = torch.rand(architecture.image_size**2, architecture.image_channels, dtype=torch.float64)
    row = Network(architecture).double().row().detach() * 0.7
    state = row, torch.zeros_like(row), torch.zeros_like(row)
    fast, general = (
        make_image_backend(architecture, CPU, torch.float64),
        TorchImageBackend(architecture, CPU, torch.float64),
    )
    assert isinstance(fast, SirenBackend | KanBackend)
    for step in range(1, 7):
        rate = update.step_size("adam", 2e-3, step)
        copies = [tuple(x[None].clone() for x in state) for _ in range(2)]
        losses = [
            backend.train_images((c[0], c[1], c[2]), target[None], [rate]).item()
            for backend, c in zip((fast, general), copies, strict=True)
        ]
        expected = plain_step(architecture, state, target, rate)
        for loss, copy in zip(losses, copies, strict=True):
            assert loss == pytest.approx(expected, abs=1e-9)
            for found, plain in zip(copy, state, strict=True):
                torch.testing.assert_close(found[0], plain, rtol=0, atol=1e-9)
    values = fast.evaluate_images(row[None])[0]
    plain_values = Network(architecture).double().load_row(row)(coordinates(architecture, torch.float64))
    torch.testing.assert_close(values, plain_values.detach(), rtol=0, atol=1e-9)


@pytest.mark.parametrize("subset", SUBSETS_OF_IMAGES)
def test_a_training_is_that_of_the_plain_network(subset: str, digits: Images) -> None:
    """By Adam with its bias correction, and the learning rates of the recipe's schedule."""
    (model,) = select(SUBSETS[subset], 0, models=1, datasets=("digits",), epochs=11)
    recipe, architecture = model.recipe, model.recipe.architecture
    bank = {"digits": digits}
    cohort = ImageCohort(SUBSETS[subset], architecture, bank, device=CPU, dtype=torch.float64)
    (found,) = cohort.train([model])
    row = torch.from_numpy(initial_row(model)).double()
    state = row, torch.zeros_like(row), torch.zeros_like(row)
    target = target_of(architecture, image_of(model, digits)[0], torch.float64)
    for step in range(11):
        correction = (1 - 0.999 ** (step + 1)) ** 0.5 / (1 - 0.9 ** (step + 1))
        plain_step(architecture, state, target, update.rate_of(recipe, step, 1) * correction)
    torch.testing.assert_close(torch.from_numpy(found.rows[-1]).double(), row, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("subset", SUBSETS_OF_IMAGES)
def test_rows_are_bit_identical_alone_and_together(subset: str, digits: Images) -> None:
    """Alone, in a batch of 64, in another one, by two threads."""
    models = models_of(subset, 64)
    together = trained(subset, models, digits, slots=64)
    assert [trained(subset, [model], digits)[0] for model in models[:60:15]] == together[:60:15]
    assert trained(subset, models[40:30:-1], digits, slots=4) == together[40:30:-1]
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert trained(subset, models[2:4], digits, slots=2) == together[2:4]
    finally:
        torch.set_num_threads(threads)


def test_a_model_that_diverges_freezes_and_leaves_its_neighbours_alone(digits: Images) -> None:
    models = models_of("siren", 3)
    backend = make_image_backend(models[0].recipe.architecture, CPU)

    class Spoiled:
        """Spoils the second model from the third call on."""

        calls = 0

        def train_images(
            self,
            state: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
            targets: torch.Tensor,
            rates: list[float],
        ) -> torch.Tensor:
            losses = backend.train_images(state, targets, rates)
            self.calls += 1
            if self.calls > 1:
                state[0][1] = math.nan
                losses[1] = math.nan
            return losses

        def evaluate_images(self, rows: torch.Tensor) -> torch.Tensor:
            return backend.evaluate_images(rows)

    spoiled: ImageBackend = Spoiled()
    architecture = models[0].recipe.architecture
    cohort = ImageCohort(
        SUBSETS["siren"], architecture, {"digits": digits}, device=CPU, slots=3, backend=spoiled
    )
    found = {result.model.id: result for result in cohort.train(models)}
    assert [found[m.id].snapshots[-1]["diverged"] for m in models] == [False, True, False]
    frozen = found[models[1].id].rows
    assert np.isfinite(frozen).all() and np.array_equal(frozen[-1], frozen[-2])
    for m in (models[0], models[2]):
        assert found[m.id].rows.tobytes() == trained("siren", [m], digits)[0]


def test_psnr() -> None:
    assert psnr_of(0.01, 1.0) == pytest.approx(20) and psnr_of(0.04, 2.0) == pytest.approx(20)
    assert psnr_of(0.0, 1.0) is None and psnr_of(math.nan, 1.0) is None


# A zoo


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("of_images") / "zoo"
    result = run(*command(folder, 8))
    assert result.returncode == 0 and "mean PSNR" in result.stderr, result.stderr
    return folder


def command(folder: Path, models: int, epochs: int = 150) -> list[str]:
    options = ["--preset", "siren", "--datasets", "digits", "--epochs", str(epochs), "--device", "cpu"]
    return ["-m", "builder.cli", *options, "--models", str(models), "--out", str(folder)]


def test_decoded_images_are_those_that_networks_stand_for(zoo: Path, digits: Images) -> None:
    opened = Zoo(zoo)
    final = opened.filter(is_final=True)
    decoded = opened.images(final)
    assert decoded.shape == (8, 1, 8, 8) and decoded.dtype == np.uint8
    originals = np.concatenate([digits.train_images.numpy(), digits.test_images.numpy()])
    labels = np.concatenate([digits.train_labels.numpy(), digits.test_labels.numpy()])
    for snapshot, pixels in zip(final, decoded, strict=True):
        assert np.abs(pixels.astype(int) - originals[snapshot["image"]]).mean() < 6
        assert snapshot["label"] == labels[snapshot["image"]]
        assert snapshot["psnr"] > 30 and snapshot["test_accuracy"] is None and snapshot["converged"] is None
        is_test = snapshot["image"] >= len(digits.train_images)
        assert (snapshot["split"] == "test") == is_test
    assert sorted(set(opened.filter()["epoch"])) == [0, 10, 100, 150]


def test_it_is_verified(zoo: Path) -> None:
    verifier = Verifier(zoo)
    assert "exactly" in verifier.reevaluate(8)
    assert "equal in every bit" in verifier.retrain(2)
    assert "8 models" in verifier.plan()


def test_its_card_speaks_of_images(zoo: Path) -> None:
    card = (zoo / "README.md").read_text()
    assert "8 small networks that each represent one image" in card
    assert re.search(r"Final PSNR: median \d+\.\d dB, best \d+\.\d dB", card)
    assert "follow their images" in card
    assert not re.search(r"\bnan\b|classif|did not converge|test accuracy: ", card.split("## Columns")[0])


def test_it_is_drawn(zoo: Path) -> None:
    assert {path.name for path in (zoo / "plots").iterdir()} >= {"images.png", "accuracy.png"}
    assert gallery.stale(zoo) == []


def test_its_overview_shows_what_networks_represent(zoo: Path) -> None:
    opened = Zoo(zoo)
    (axes,) = gallery.FIGURES[OVERVIEW](opened).axes
    images = np.concatenate([opened.images(opened.filter(model_id=name)) for name in sorted_models(opened)])
    assert np.array_equal([shown.get_array() for shown in axes.images], images[:, 0])
    assert [label.get_text() for label in axes.get_yticklabels()] == [f"step {n}" for n in (0, 10, 100, 150)]


def sorted_models(zoo: Zoo) -> list[str]:
    return sorted(set(zoo.filter()["model_id"]))


@pytest.mark.slow
def test_killed_ten_times_and_grown_it_has_the_bytes_of_one_that_was_built_at_once(tmp_path: Path) -> None:
    """From 20 models to 48; killed while models train, wait for their shard, and become files."""
    whole, grown = tmp_path / "whole" / "nws", tmp_path / "grown" / "nws"
    grown.parent.mkdir()
    while_it_begins: tuple[Death, ...] = (2, 3, 4, ("/snapshots/", "after"), ("nws.json$", "after"))
    while_it_grows: tuple[Death, ...] = (
        *(4, 6),
        *(("next/snapshots/.*train", "after"), ("commit$", "after"), ("nws/nws.json$", "after")),
    )
    for models, moments in ((20, while_it_begins), (48, while_it_grows)):
        for moment in moments:
            kill(command(grown, models, epochs=20)[2:], grown, moment)
        builder.build.build(Request("siren", models, ("digits",), epochs=20), grown, device="cpu")
    builder.build.build(Request("siren", 48, ("digits",), epochs=20), whole, device="cpu")
    assert content(grown) == content(whole)


def test_another_psnr_is_found(zoo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    verifier = Verifier(zoo)
    snapshot = dict(verifier.snapshots.filter(is_final=True)[0])
    verifier._check_image(snapshot)
    snapshot["psnr"] += 0.02
    with pytest.raises(ZooError, match="by the plain network"):
        verifier._check_image(snapshot)


@pytest.mark.parametrize("number", [-1, 1797, 10**12])
def test_an_image_outside_its_set(
    number: int, zoo: Path, digits: Images, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In training, in verification, on the plot: one line each, and nothing is drawn."""
    told = rf"^siren-00000003: expected an image of digits, 0 to 1796, found {number};"
    (model,) = models_of("siren", 1)
    with pytest.raises(ZooError, match=told):
        image_of(replace(model, image=number), digits)
    folder = Path(shutil.copytree(zoo, tmp_path / "zoo"))
    forge_index(folder, lambda line: line.update(image=number))
    shutil.rmtree(folder / "plots")
    before = content(folder)
    with pytest.raises(ZooError, match=told):
        gallery.draw(folder)
    assert not (folder / "plots").exists()
    with pytest.raises(SystemExit) as ended:
        verify.main([str(folder), "--reevaluate", "2"])
    line = capsys.readouterr().err
    assert ended.value.code == 2 and line.count("\n") == 1 and ": expected " in line
    assert content(folder) == before
    with pytest.raises(ZooError, match="the plan's recipe and split, found another image in"):
        Verifier(folder).plan()


def test_targets_are_in_the_networks_range(digits: Images) -> None:
    pixels = digits.train_images[0]
    for low in (0, -1):
        architecture = siren.Architecture(image_size=8, pixel_min=low)
        target = target_of(architecture, pixels, torch.float64)
        assert target.shape == (64, 1)
        torch.testing.assert_close(target[:, 0], pixels.flatten().double() / 255 * (1 - low) + low)
