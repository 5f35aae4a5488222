"""What a model sees: its images, their order, their augmentation, its dropout."""

from __future__ import annotations

import colorsys
import math

import numpy as np
import pytest
import torch

from builder.training import batches
from builder.training.batches import training_images
from nws_dataset.errors import ZooError
from training_cases import NWS, SMALL_CNN, images_for, make_model

LABELS = images_for(NWS, None)["digits"].train_labels


def parts_of(**fields) -> tuple:
    model = make_model(NWS, **fields)
    return model, batches.split_images(model, LABELS)


# Order


def test_parts_are_disjoint_and_cover_the_first_images() -> None:
    _, parts = parts_of(train_fraction=0.5, validation_fraction=0.1)
    count = round(len(LABELS) / 2)
    assert len(parts.validation) == round(count / 10)
    assert torch.equal(torch.cat([parts.train, parts.validation]).sort().values, torch.arange(count))


def test_balanced_epochs_have_equal_counts_drawn_anew() -> None:
    model, parts = parts_of(balanced=True)
    first, second = (batches.epoch_order(model, parts, LABELS, epoch) for epoch in (0, 1))
    smallest = int(torch.bincount(LABELS[parts.train]).min())
    for order in (first, second):
        assert torch.bincount(LABELS[order]).tolist() == [smallest] * 10
        assert len(order.unique()) == len(order) and bool(torch.isin(order, parts.train).all())
    assert set(first.tolist()) != set(second.tolist())


def test_plain_epochs_are_permutations() -> None:
    model, parts = parts_of(balanced=False)
    first, second = (batches.epoch_order(model, parts, LABELS, epoch) for epoch in (0, 1))
    assert torch.equal(first.sort().values, parts.train) and torch.equal(second.sort().values, parts.train)
    assert not torch.equal(first, second)
    other = make_model(NWS, 1, balanced=False)
    assert not torch.equal(batches.epoch_order(other, parts, LABELS, 0), first)


def test_orders_are_golden() -> None:
    model, parts = parts_of(balanced=True)
    assert batches.epoch_order(model, parts, LABELS, 3)[:8].tolist() == [
        1343,
        1372,
        380,
        1358,
        1283,
        1170,
        1037,
        343,
    ]
    assert parts.validation[:8].tolist() == [0, 3, 9, 15, 17, 25, 49, 55]


def test_a_missing_class_is_named() -> None:
    with pytest.raises(
        ZooError,
        match=r"demo-000000 on digits: expected training images of 10 classes, "
        r"found .* use more --train-images",
    ):
        batches.split_images(make_model(NWS), LABELS[:8])


# Augmentation


def augmented(model, count: int = 12, **kwargs) -> torch.Tensor:
    images = images_for(NWS)["digits"]
    index = torch.arange(count)
    return batches.augment(
        model, images.train_images[index].double() / 255, index, kwargs.pop("epoch", 0), gray=True
    )


def test_augmentation_depends_on_model_epoch_and_image_only() -> None:
    model = make_model(NWS, augmentation=True)
    together = augmented(model)
    assert torch.equal(together[:5], augmented(model, 5))
    assert not torch.equal(together, augmented(model, epoch=1))
    assert not torch.equal(together, augmented(make_model(NWS, 1, augmentation=True)))
    assert together.min() >= 0 and together.max() <= 1


def test_gray_images_take_a_shorter_way_to_the_same_result() -> None:
    images = images_for(NWS)["digits"].train_images[:6].double() / 255
    model, index = make_model(NWS, augmentation=True), torch.arange(6)
    torch.testing.assert_close(
        batches.augment(model, images, index, 2, gray=True), batches.augment(model, images, index, 2)
    )


def test_warp_moves_as_its_parameters_say() -> None:
    image = torch.zeros(1, 1, 32, 32, dtype=torch.float64)
    image[0, 0, 16, 10] = 1

    def centre(*s: float) -> tuple[float, float]:
        draws = torch.full((12, 1), 0.5, dtype=torch.float64)
        draws[:5, 0] = (torch.tensor(s, dtype=torch.float64) + 1) / 2
        warped = batches._warp(image, batches._distortion(draws, 32))[0, 0]
        y, x = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
        return float((warped * x).sum() / warped.sum()), float((warped * y).sum() / warped.sum())

    assert centre(0, 0, 0, 0, 0) == pytest.approx((10, 16))
    assert centre(1, 0, 0, 0, 0) == pytest.approx((10 - batches.SHIFT, 16), abs=1e-6)
    assert centre(0, -1, 0, 0, 0) == pytest.approx((10, 16 + batches.SHIFT), abs=1e-6)
    x, y = centre(0, 0, 1, 0, 0)  # a turn keeps the distance from the centre at 15.5, 15.5
    assert math.dist((x, y), (15.5, 15.5)) == pytest.approx(math.dist((10, 16), (15.5, 15.5)), abs=0.3)
    assert abs(math.atan2(y - 15.5, x - 15.5) - math.atan2(0.5, -5.5)) == pytest.approx(
        batches.ROTATION, abs=0.04
    )
    assert centre(0, 0, 0, 1, 0)[0] == pytest.approx(15.5 - 5.5 * (1 + batches.ZOOM), abs=0.1)


@pytest.mark.parametrize(("turn", "factor"), [(0.0, 1.0), (0.08, 1.0), (-0.05, 0.3), (0.03, 1.5)])
def test_recolouring_is_that_of_hsv(turn: float, factor: float) -> None:
    x = torch.rand(1, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x[0, :, 0, 0] = 0.5  # a gray pixel has no hue
    got = batches._recolour_hsv(x, torch.full((1, 1, 1), turn), torch.full((1, 1, 1), factor))
    for i in range(8):
        for j in range(8):
            h, s, v = colorsys.rgb_to_hsv(*x[0, :, i, j].tolist())
            expected = colorsys.hsv_to_rgb((h + turn) % 1, min(s * factor, 1), v)
            assert got[0, :, i, j].tolist() == pytest.approx(expected, abs=1e-6)


def test_noise_has_the_drawn_deviation() -> None:
    model, index = make_model(NWS), torch.arange(40)
    noise = batches._normals(model, index, 0, 3 * 32 * 32)
    assert noise.mean().item() == pytest.approx(0, abs=0.01) and noise.std().item() == pytest.approx(
        1, abs=0.01
    )
    assert np.corrcoef(noise[:2].numpy())[0, 1] == pytest.approx(0, abs=0.06)


def test_augmentation_is_off_unless_the_recipe_has_it() -> None:
    images, index = images_for(NWS)["digits"], torch.arange(4)
    plain = training_images(make_model(NWS), images, index, 0, torch.float32)
    assert torch.equal(plain, images.train_images[:4].float() / 255)
    assert not torch.equal(
        plain, training_images(make_model(NWS, augmentation=True), images, index, 0, torch.float32)
    )


# Dropout


@pytest.mark.parametrize("rate", [0.0, 0.25, 0.7])
def test_dropout_drops_the_rate_and_keeps_the_mean(rate: float) -> None:
    model = make_model(SMALL_CNN, dropout=rate)
    masks = batches.dropout_masks(model, torch.arange(60), 0, torch.float64)
    assert list(masks) == ["conv1", "conv2", "conv3"]
    dropped = float((masks["conv1"] == 0).double().mean())
    assert dropped == pytest.approx(rate, abs=0.01)
    assert set(masks["conv1"].unique().tolist()) <= {0.0, 1 / (1 - rate)}


def test_dropout_is_a_function_of_the_image_and_differs_between_layers() -> None:
    model = make_model(SMALL_CNN)
    masks = batches.dropout_masks(model, torch.arange(10), 1, torch.float32)
    alone = batches.dropout_masks(model, torch.tensor([7]), 1, torch.float32)
    assert all(torch.equal(mask[7], alone[layer][0]) for layer, mask in masks.items())
    assert not torch.equal(masks["conv1"][0].flatten()[:30], masks["conv2"][0].flatten()[:30])
    assert not torch.equal(
        masks["conv1"], batches.dropout_masks(model, torch.arange(10), 2, torch.float32)["conv1"]
    )
