"""What kans and residual networks are trained by: noisy and smoothed labels, schedules, AdamW, augmentation;
and the scores of a kan's edges.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.nn.functional as F

from builder import gallery
from builder.build import build
from builder.card import OVERVIEW
from builder.checks import Verifier
from builder.images import load_image_set
from builder.plan import Model, Request, select
from builder.store import open_store, shard_of, stage
from builder.trained import Trained
from builder.training import batches, update
from builder.training.bank import Images, bank_of
from builder.training.cpu.kan import KanBackend
from builder.training.device import make_backend
from builder.training.implicit import ImageCohort
from builder.training.plain import PlainLoop
from builder.training.torch_backend import TorchBackend
from builder.training.train import Cohort, edge_scores_of
from nws_dataset import Zoo
from nws_dataset.errors import ZooError
from nws_dataset.format.manifest import ImageSource, SubsetEntry
from nws_dataset.format.schema import INDEX_SCHEMA
from nws_dataset.format.shards import pack_scores, read_index, unpack_scores, write_index
from nws_dataset.format.subsets import SUBSETS
from nws_dataset.networks import kan, resnet
from test_bad_input import reseal
from test_images import write_parquet_set
from training_cases import NWS, make_model

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def of_kan() -> tuple[Model, Images]:
    (model,) = select(SUBSETS["kan"], 0, models=1, datasets=("digits",), epochs=1)
    return model, bank_of({"digits": load_image_set("digits")}, model.recipe.architecture, CPU)["digits"]


@pytest.fixture(scope="module")
def of_resnet() -> tuple[Model, Images]:
    (model,) = select(SUBSETS["resnet"], 0, models=1, epochs=4)
    model = replace(model, recipe=replace(model.recipe, dataset="digits", batch_size=96))
    architecture = resnet.Architecture(image_size=8, width_conv=4)
    model = replace(model, recipe=replace(model.recipe, architecture=architecture))
    return model, bank_of({"digits": load_image_set("digits")}, architecture, CPU)["digits"]


@pytest.mark.parametrize("backend", ["fast", "torch"])
@pytest.mark.parametrize("kind", ["of_kan", "of_resnet"])
def test_steps_are_those_of_the_plain_loop(kind: str, backend: str, request: pytest.FixtureRequest) -> None:
    model, images = request.getfixturevalue(kind)
    loop = PlainLoop(model, images)
    tested = make_backend(model.recipe.architecture, CPU, torch.float64, name=backend)
    assert isinstance(tested, KanBackend if (kind, backend) == ("of_kan", "fast") else TorchBackend)
    noisy = batches.with_label_noise(model, images)
    order = batches.epoch_order(model, loop.parts, noisy.train_labels, 0)
    batch = model.recipe.batch_size
    from builder.training.backend import Segment

    for step, arguments in enumerate(loop.epoch(0)):
        if step == 4:
            break
        state = tuple(x[None].clone() for x in (loop.row, loop.first, loop.second))
        segment = Segment(model, noisy, order, batch, 0, step, step, 1)
        loss = tested.train((state[0], state[1], state[2]), {0: segment})
        assert loss.item() == pytest.approx(loop.step(*arguments), abs=1e-9 + model.recipe.label_smoothing)
        for found, plain in zip(state, (loop.row, loop.first, loop.second), strict=True):
            torch.testing.assert_close(found[0], plain, rtol=0, atol=1e-9)


def test_the_plain_loop_is_torchs_adamw(of_resnet: tuple[Model, Images]) -> None:
    """Decoupled decay as torch has it; epsilons stand elsewhere."""
    model, images = of_resnet
    loop = PlainLoop(model, images)
    network = loop.network.load_row(loop.row)
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    x, labels, masks, rate = next(iter(loop.epoch(0)))
    learning_rate = 1e-3
    loop.decay = learning_rate * model.recipe.weight_decay
    loop.step(x, labels, masks, update.step_size("adamw", learning_rate, 1))
    network.load_state_dict(before, strict=False)
    network.zero_grad()
    smoothing = model.recipe.label_smoothing
    F.cross_entropy(network(x, masks), labels, label_smoothing=smoothing).backward()
    torch.optim.AdamW(network.parameters(), learning_rate, weight_decay=model.recipe.weight_decay).step()
    gradients = [torch.as_tensor(p.grad).reshape(-1) for p in network.parameters()]
    large = torch.cat(gradients).abs() > 1e-3  # beside which epsilon is small
    difference = (network.row() - loop.row).abs()
    assert large.double().mean() > 0.3 and float(difference[large].max()) < 2e-3 * learning_rate
    assert rate == 0  # a triangle begins there


def test_schedules() -> None:
    cosine = replace(
        make_model(NWS).recipe, schedule="cosine", learning_rate=1.0, learning_rate_end=0.1, max_epochs=10
    )
    rates = [update.rate_of(cosine, step, 3) for step in range(31)]
    expected = [0.1 + 0.9 * (1 + np.cos(np.pi * step / 30)) / 2 for step in range(31)]
    assert rates == pytest.approx(expected, abs=1e-12)
    triangle = replace(cosine, schedule="triangle", warmup_epochs=5.0, max_epochs=20)
    rates = [update.rate_of(triangle, step, 4) for step in range(81)]
    assert (rates[0], rates[10], rates[20], rates[50], rates[80]) == pytest.approx((0, 0.5, 1, 0.5, 0))
    short = replace(triangle, max_epochs=4)  # the peak is half-way
    assert [update.rate_of(short, step, 4) for step in (4, 8, 12)] == pytest.approx([0.5, 1, 0.5])
    decay = replace(cosine, schedule="decay", learning_rate_decay=0.5)
    assert [update.rate_of(decay, step, 3) for step in (0, 2, 3, 8)] == [1, 1, 0.5, 0.25]


def test_label_noise_draws_labels_anew(of_kan: tuple[Model, Images]) -> None:
    model, images = of_kan
    for noise in (0.0, 0.4, 1.0):
        noisy = replace(model, recipe=replace(model.recipe, label_noise=noise))
        labels = batches.with_label_noise(noisy, images).train_labels
        changed = (labels != images.train_labels).double().mean().item()
        assert changed == pytest.approx(0.9 * noise, abs=0.05)
        assert torch.equal(batches.with_label_noise(noisy, images).train_labels, labels)
        assert torch.equal(batches.with_label_noise(noisy, images).test_labels, images.test_labels)


def test_flip_shift_cutout() -> None:
    model = replace(make_model(NWS), recipe=replace(make_model(NWS).recipe, augmentation=True))
    size, count = 12, 400
    images = torch.arange(3 * size * size, dtype=torch.float64).reshape(1, 3, size, size) / 1000 + 1
    images = images.expand(count, -1, -1, -1)
    index = torch.arange(count)
    found = batches.flip_shift_cutout(model, images, index, 0)
    assert found.shape == images.shape
    mean = torch.tensor([125, 122, 113], dtype=torch.float64) / 255
    filled = (found == mean[:, None, None]).all(1)
    assert int(filled.sum((1, 2)).min()) >= batches.CUTOUT**2
    ascending = torch.zeros(count, dtype=torch.bool)
    for n in range(count):
        row = found[n, 0][~filled[n]]
        ascending[n] = bool((row[1] > row[0]).item())
    assert 0.4 < ascending.double().mean().item() < 0.6  # half are flipped
    alone = torch.cat([batches.flip_shift_cutout(model, images[:1], index[n : n + 1], 0) for n in range(5)])
    assert torch.equal(alone, found[:5])
    other = batches.flip_shift_cutout(model, images, index, 1)
    assert not torch.equal(other, found)


def test_edge_scores_are_the_mean_size_of_each_function(of_kan: tuple[Model, Images]) -> None:
    model, images = of_kan
    architecture = model.recipe.architecture
    assert isinstance(architecture, kan.Architecture)
    rows = torch.randn(2, 65_920, dtype=torch.float64) * 0.1
    plain = edge_scores_of(TorchBackend(architecture, CPU, torch.float64), model, rows, images)
    fast = edge_scores_of(KanBackend(architecture, torch.float64), model, rows, images)
    assert plain is not None and fast is not None and fast.shape == (2, architecture.num_edges)
    torch.testing.assert_close(fast, plain, rtol=0, atol=1e-9)
    # an edge whose function is nothing has no score
    silent = rows[:1].clone()
    silent[:] = 0
    nothing = edge_scores_of(KanBackend(architecture, torch.float64), model, silent, images)
    assert nothing is not None and float(nothing.abs().max()) == 0


def test_a_zoo_of_kans_has_edge_scores(tmp_path: Path, of_kan: tuple[Model, Images]) -> None:
    _, images = of_kan
    models = select(SUBSETS["kan"], 0, models=3, datasets=("digits",), epochs=1)
    architecture = models[0].recipe.architecture
    found = list(Cohort(SUBSETS["kan"], architecture, {"digits": images}, device=CPU).train(models))
    source = load_image_set("digits")
    with open_store(tmp_path / "zoo") as folder:
        sets = {"digits": ImageSource(source.source, source.sha256)}
        folder.declare("kan", SubsetEntry(0, 0, {"backend": "fast"}, sets))
        for trained in found:
            stage(folder.out, trained)
        for path in dict.fromkeys(map(shard_of, models)):
            folder.add_models(path, [model for model in models if shard_of(model) == path])
        folder.commit()
    zoo = Zoo(tmp_path / "zoo")
    for trained in found:
        snapshots = zoo.filter(model_id=trained.model.id)
        assert np.array_equal(zoo.edge_scores(snapshots), trained.edge_scores)
        assert set(snapshots["edge_threshold"]) == {SUBSETS["kan"].edge_thresholds["digits"]}
        assert set(snapshots["label_noise"]) == {trained.model.recipe.label_noise}
    check_overview(zoo)
    with pytest.raises(ZooError, match="networks of one architecture, found no snapshots"):
        zoo.edge_scores(zoo.filter(model_id="none"))
    check_other_lengths(zoo.path)


def check_overview(zoo: Zoo) -> None:
    """It shows which edges the networks keep, in the order of their label noise."""
    final = sorted(zoo.filter(is_final=True), key=lambda snapshot: snapshot["label_noise"])
    kept = zoo.edge_scores(final) >= final[0]["edge_threshold"]
    *maps, scatter, _ = gallery.FIGURES[OVERVIEW](zoo).axes
    first = kept[:, : 32 * 14 * 14].reshape(3, 32, 14, 14).mean(1)
    assert np.array_equal([axes.images[0].get_array() for axes in maps if axes.images], first)
    expected = [(snapshot["label_noise"], share) for snapshot, share in zip(final, kept.mean(1), strict=True)]
    assert np.asarray(scatter.collections[0].get_offsets()) == pytest.approx(np.array(expected))


def check_other_lengths(folder: Path) -> None:
    """Refused by the index alone: before a value is read, or room is made for it."""

    def shorter(line: dict[str, Any]) -> None:
        line["edge_scores_length"] -= 4

    def absurd(line: dict[str, Any]) -> None:
        many = kan.Architecture(reads="images", image_size=14, width_hidden=20_000, pixel_min=-1)
        line["architecture_json"] = many.to_json()

    for change, told in (
        (shorter, "the 6592 edge scores of"),
        (absurd, "the 404120000 edge"),
    ):
        forge_index(folder, change)
        zoo = Zoo(folder)
        with pytest.raises(ZooError, match=f"^kan-00000.: expected {told}"):
            zoo.edge_scores(zoo.filter())
    with pytest.raises(ZooError, match="the safetensors header of"):
        Verifier(folder).values()


def forge_index(zoo: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the lines of a zoo's index in place; nws.json and the card belong to it."""
    for path in Zoo(zoo).manifest.index_files():
        lines = read_index(zoo / path).to_pylist()
        for line in lines:
            change(line)
        write_index(zoo / path, pa.Table.from_pylist(lines, INDEX_SCHEMA))
    reseal(zoo)


def test_edge_scores_of_another_length_are_refused() -> None:
    architecture = kan.Architecture(reads="images", image_size=3, width_hidden=2, depth_hidden=1)
    scores = np.ones(architecture.num_edges, np.float32)
    value = pack_scores(architecture, scores)
    assert np.array_equal(unpack_scores(architecture, value), scores)
    with pytest.raises(ValueError, match="edge scores: expected"):
        pack_scores(architecture, scores[:-1])
    with pytest.raises(ZooError, match="the 38 edge scores of"):
        unpack_scores(architecture, value[:-4])
    with pytest.raises(ZooError, match=f"header of {architecture.id}'s edge scores, found other"):
        unpack_scores(architecture, b"x" + value[1:])


def test_the_parts_of_kmnist_are_a_set_of_their_own(tmp_path: Path) -> None:
    with pytest.raises(ZooError, match="images of kmnist"):
        load_image_set("kmnist_10k", tmp_path)


# Whatever a model is trained beside


def trained(subset: str, models: list[Model], images: Images, slots: int = 1) -> dict[str, bytes]:
    """Rows and scores by model."""
    architecture, bank = models[0].recipe.architecture, {"digits": images}
    cohort = Cohort(SUBSETS[subset], architecture, bank, device=CPU, slots=slots)
    return {found.model.id: bits_of(found) for found in cohort.train(models)}


def bits_of(found: Trained) -> bytes:
    scores = b"" if found.edge_scores is None else found.edge_scores.tobytes()
    return found.rows.tobytes() + scores


@pytest.mark.parametrize("kind", ["kan", "resnet"])
def test_rows_are_bit_identical_alone_and_together(kind: str, request: pytest.FixtureRequest) -> None:
    """Alone, in a batch of 64, in another one, by two threads; models differ in all that is drawn."""
    (like, _), models = request.getfixturevalue(f"of_{kind}"), select(SUBSETS[kind], 0, models=64, epochs=1)
    of = {"kan": {"width_hidden": 8}, "resnet": {"image_size": 8, "width_conv": 2}}[kind]
    architecture = replace(like.recipe.architecture, **of)
    models = [
        replace(model, recipe=replace(model.recipe, dataset="digits", architecture=architecture))
        for model in models
    ]
    images = bank_of({"digits": load_image_set("digits")}, architecture, CPU, 32)["digits"]
    few = {"test_images": images.test_images[:16], "test_labels": images.test_labels[:16]}
    images = replace(images, **few)
    together = trained(kind, models, images, slots=64)
    assert len(set(together.values())) == 64

    def check(models: list[Model], slots: int = 1) -> None:
        assert trained(kind, models, images, slots) == {model.id: together[model.id] for model in models}

    for model in models[:60:20]:
        check([model])
    check(models[40:34:-1], slots=4)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        check(models[2:4], slots=2)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["kan_inr", "kan", "resnet"])
def test_rows_are_bit_identical_after_a_resume(preset: str, tmp_path: Path) -> None:
    """Two models of a stopped build, and two that two processes train when it goes on."""
    dataset, images = "digits", None
    if preset == "resnet":
        dataset, images = "cifar10", write_parquet_set(tmp_path / "cifar10", column="img")
    request = Request(preset, 4, (dataset,), epochs=1)
    ((subset, models),) = request.plan()
    architecture = models[0].recipe.architecture
    bank = bank_of({dataset: load_image_set(dataset, images)}, architecture, CPU)
    kind = ImageCohort if subset.of_images else Cohort
    alone = {
        model.id: found
        for model in models
        for found in kind(subset, architecture, bank, device=CPU).train([model])
    }
    for model in models[:2]:
        stage(tmp_path / "zoo", alone[model.id])
    build(request, tmp_path / "zoo", images=images, device="cpu", workers=2)
    zoo = Zoo(tmp_path / "zoo")
    for name, found in alone.items():
        snapshots = zoo.filter(model_id=name)
        assert zoo.weights(snapshots).tobytes() == found.rows.tobytes()
        if found.edge_scores is not None:
            assert zoo.edge_scores(snapshots).tobytes() == found.edge_scores.tobytes()
