"""The GPU's kernels against torch: on a GPU if there is one, else in Triton's interpreter."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

pytest.importorskip("triton")

import torch.nn.functional as F

from builder.philox import LANES, Purpose, key_of, lanes16
from builder.plan import Model, select
from builder.training import batches, update
from builder.training.backend import ACTIVATION_NUMBERS
from builder.training.gpu import augment, dense, epilogues, update_kernels
from builder.training.gpu import products as products_module
from builder.training.gpu.pieces import Dropout, Slots, draw
from builder.training.gpu.products import (
    LibraryProducts,
    Product,
    Products,
    Tiles,
    TritonProducts,
    products_of,
)
from nws_dataset.format.subsets import SUBSETS
from nws_dataset.networks.cnn import BATCH_NORM_EPSILON, Architecture
from nws_dataset.networks.network import ACTIVATIONS
from training_cases import CPU, NWS, images_for, make_model

DEVICE = torch.device("cuda") if torch.cuda.is_available() else CPU
F64 = torch.float64
CONVOLUTIONAL = [
    name
    for name, subset in SUBSETS.items()
    if all(family.get("kind", Architecture.kind) == Architecture.kind for family in subset.families)
]
SMALL_TILES = Tiles(pixels=64, inner=16, channels=8)  # several tiles along every axis


def close_to(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64).to(DEVICE)


def bordered(x: torch.Tensor, border: int) -> torch.Tensor:
    """A map [M, B, C, S, S] within zeros, the models of an image together."""
    whole = F.pad(x.transpose(0, 1), [border] * 4).contiguous().transpose(0, 1)
    return whole[..., border : border + x.shape[3], border : border + x.shape[4]]


def slots_of(models: list[Model], epoch: int = 0, active: list[int] | None = None) -> Slots:
    def column(values: list[int]) -> torch.Tensor:
        return torch.tensor(values, device=DEVICE)

    keys = [key_of(model.seed, model.subset) for model in models]
    recipes = [model.recipe for model in models]
    return Slots(
        column(active or [1] * len(models)),
        column([ACTIVATION_NUMBERS[recipe.activation] for recipe in recipes]),
        column([(high << 32 | low) - (high >> 31 << 64) for low, high in keys]),
        column([model.number for model in models]),
        column([epoch] * len(models)),
        column([round(recipe.dropout * (1 << 16)) for recipe in recipes]),
        torch.tensor([1 / (1 - recipe.dropout) for recipe in recipes], dtype=F64, device=DEVICE),
    )


def mixed_models(*activations: str, architecture: Architecture = NWS) -> list[Model]:
    """A model of each activation; dropout rates alternate and 0 is among them."""
    return [
        make_model(architecture, 7 * n, activation=name, dropout=(0.5, 0.0, 0.2)[n % 3])
        for n, name in enumerate(activations)
    ]


# Products

PRODUCTS = {
    "same_5": Product("conv1", 3, 3, 7, 10, kernel=5, pad=2),
    "same_3": Product("conv2", 1, 5, 6, 4, kernel=3, pad=1),
    "valid_stride": Product("conv1", 2, 2, 9, 6, kernel=3, stride=2),
    "valid_stride_even": Product("conv1", 2, 3, 8, 6, kernel=3, stride=2),
    "dense": Product("dense1", 4, 37, 1, 11),
}
WAYS: dict[str, Products] = {"triton": TritonProducts(tiles=SMALL_TILES), "grouped": LibraryProducts()}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", PRODUCTS)
def test_products_equal_torchs(name: str, way: str) -> None:
    """Forward, input gradient, weight gradient and moments of models with rows of their own; an inactive slot
    stays as it is.
    """
    product, products = PRODUCTS[name], WAYS[way]
    models, images = 3, 5
    rows = noise(models, product.offset + product.weights + 3).requires_grad_()
    x = noise(models, images, product.inputs, product.size, product.size, seed=1).requires_grad_()
    expected = torch.stack(
        [
            F.conv2d(
                x[m], product.weight(rows)[m].view(product.outputs, product.inputs, product.kernel, -1),
                product.bias(rows)[m],
                product.stride, product.pad,
            )
            for m in range(models)
        ]
    )  # fmt: skip
    towards = noise(*expected.shape, seed=2)
    dx, drows = torch.autograd.grad((expected * towards).sum(), [x, rows])
    active = (
        torch.tensor([1, 1, 0], device=DEVICE)
        if way == "triton"
        else torch.ones(models, dtype=torch.int64, device=DEVICE)
    )
    here = slice(0, int(active.sum()))

    plain, source = rows.detach(), bordered(x.detach(), product.pad)
    pixels = images * product.out_size**2
    y, found_dx, found_rows = (torch.full_like(t.detach(), 9.0) for t in (expected, x, rows))
    moments = noise(models, product.outputs, -(-pixels // products.moment_pixels), 2)
    products.forward(product, source, plain, y, moments, active)
    dy = bordered(towards, product.gradient_border)
    products.input_gradient(product, dy, plain, found_dx, active)
    products.weight_gradient(product, source, dy, found_rows, active)

    close_to(y[here], expected[here].detach())
    close_to(found_dx[here], dx[here])
    own = slice(product.offset, product.offset + product.weights)
    close_to(found_rows[here, own], drows[here, own])
    for found in (y, found_dx, found_rows):
        assert (found[here.stop :] == 9).all()
    found_rows[:, own] = 9
    assert (found_rows == 9).all(), "wrote beside the layer's part of the row"
    flat = expected.detach().transpose(1, 2).reshape(models, product.outputs, -1)
    part = flat[..., : products.moment_pixels]
    close_to(moments[here, :, 0, 0], part.mean(2)[here])
    close_to(moments[here, :, 0, 1], (part - part.mean(2, keepdim=True)).square().sum(2)[here])


@pytest.mark.parametrize("subset", CONVOLUTIONAL)
def test_tiles_of_a_weight_gradient_are_no_larger_than_its_layer(
    subset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A first layer of 9 taps in a tile of 128 takes four times as long."""
    launched: list[dict[str, int]] = []
    monkeypatch.setattr(products_module, "weight_gradient_kernel", _Launches(launched))
    monkeypatch.setattr(products_module, "sum_parts_kernel", _Launches([]))
    architectures = {model.recipe.architecture for model in select(SUBSETS[subset], 0, models=64)}
    for architecture in architectures:
        for product in products_of(architecture):
            x = torch.empty(1, 2, product.inputs, product.size, product.size, device="meta")
            dy = torch.empty(1, 2, product.outputs, product.out_size, product.out_size, device="meta")
            gradients = torch.empty(1, product.offset + product.weights, device="meta")
            TritonProducts().weight_gradient(product, x, dy, gradients, torch.ones(1, device="meta"))
            taps = launched.pop()["TAPS"]
            assert taps == 16 or taps < 2 * product.taps, f"{taps} rows for {product.taps} taps"


class _Launches:
    """In place of a kernel: notes what it would be launched with."""

    def __init__(self, launched: list[dict[str, int]]) -> None:
        self.launched = launched

    def __getitem__(self, grid: object) -> Callable[..., None]:
        return lambda *arguments, **options: self.launched.append(options)


def test_weight_gradient_of_many_pixels_is_summed_in_parts() -> None:
    product = Product("conv1", 0, 1, 24, 2, kernel=3, pad=1)
    x, towards = noise(2, 5, 1, 24, 24), noise(2, 5, 2, 24, 24, seed=1)  # 2880 pixels
    found = torch.zeros(2, product.weights, dtype=F64, device=DEVICE)
    products = TritonProducts(tiles=Tiles(pixels=32, inner=512))
    products.weight_gradient(
        product, bordered(x, 1), bordered(towards, 1), found, torch.ones(2, dtype=torch.int64, device=DEVICE)
    )
    for m in range(2):
        expected = torch.nn.grad.conv2d_weight(x[m], (2, 1, 3, 3), towards[m], padding=1)
        close_to(product.weight(found)[m], expected.flatten(1))
        close_to(product.bias(found)[m], towards[m].sum((0, 2, 3)))


@pytest.mark.skipif(DEVICE == CPU, reason="the interpreter has no tensor cores")
@pytest.mark.parametrize(("precision", "tolerance"), [("ieee", 1e-6), ("tf32x3", 2e-6), ("tf32", 2e-3)])
def test_precision_of_float32_products(precision: str, tolerance: float) -> None:
    product = Product("conv1", 0, 16, 16, 32, kernel=5, pad=2)
    rows, x = noise(4, product.weights), noise(4, 8, 16, 16, 16, seed=1)
    expected = torch.stack(
        [
            F.conv2d(x[m], product.weight(rows)[m].view(32, 16, 5, 5), product.bias(rows)[m], padding=2)
            for m in range(4)
        ]
    )
    y = torch.empty(expected.shape, device=DEVICE)
    active = torch.ones(4, dtype=torch.int64, device=DEVICE)
    TritonProducts(precision).forward(product, bordered(x.float(), 2), rows.float(), y, None, active)
    assert float((y - expected).norm() / expected.norm()) < tolerance


# The ends of layers


def reference_close(
    y: torch.Tensor, model: Model, norm: torch.Tensor | None, mask: torch.Tensor | None, pool: bool
) -> torch.Tensor:
    """One model's y [B, C, S, S] as torch ends the layer."""
    if norm is not None:
        mean, variance = y.mean((0, 2, 3), keepdim=True), y.var((0, 2, 3), keepdim=True, unbiased=False)
        y = (y - mean) / (variance + BATCH_NORM_EPSILON).sqrt() * norm[0, :, None, None] + norm[
            1, :, None, None
        ]
    z = ACTIVATIONS[model.recipe.activation](y)
    z = F.max_pool2d(z, 2) if pool else z
    return z if mask is None else z * mask


def masks_of(
    models: list[Model], index: torch.Tensor, shape: tuple[int, ...], layer_block: int
) -> torch.Tensor:
    """Dropout's factors [M, B, units...], by `builder.training.batches`."""
    found = []
    for model, indices in zip(models, index, strict=True):
        blocks = layer_block + torch.arange(-(-math.prod(shape) // LANES), device=DEVICE)
        lanes = torch.stack(
            lanes16(batches.words(model, Purpose.DROPOUT, index=indices[:, None], epoch=3, block=blocks)), -1
        )
        kept = lanes.flatten(1)[:, : math.prod(shape)] >= round(model.recipe.dropout * (1 << 16))
        found.append(kept.view(-1, *shape).to(F64) / (1 - model.recipe.dropout))
    return torch.stack(found)


@pytest.mark.parametrize(
    ("norm", "pool", "size"), [(True, True, 5), (True, False, 4), (False, True, 4), (False, False, 5)]
)
def test_end_of_a_convolution_and_the_way_back(norm: bool, pool: bool, size: int) -> None:
    models = mixed_models("relu", "elu", "sigmoid", "tanh")
    slots, channels, images = slots_of(models, epoch=3), 3, 6
    y = noise(4, images, channels, size, size).mul_(2).requires_grad_()
    weight = noise(4, 4 * channels, seed=1).abs_() - 0.3  # some weights of batch-norm are negative
    index = torch.arange(4 * images, device=DEVICE).view(4, images) * 3
    quarter = size // 2 if pool else size
    masks = masks_of(models, index, (channels, quarter, quarter), 1 << 20)
    leaf = weight.clone().requires_grad_()
    parts = leaf.unflatten(1, (4, channels))
    expected = torch.stack(
        [
            reference_close(y[m], model, parts[m, :2] if norm else None, masks[m], pool)
            for m, model in enumerate(models)
        ]
    )
    towards = noise(*expected.shape, seed=2)
    found_grad = torch.autograd.grad((expected * towards).sum(), [y, leaf], allow_unused=True)

    plain, running = y.detach().contiguous(), weight.clone()
    given = epilogues.Norm(*torch.zeros(2, 4, channels, dtype=F64, device=DEVICE), running) if norm else None
    if given is not None:
        moments = torch.empty(4, channels, 1, 2, dtype=F64, device=DEVICE)
        epilogues.moments(plain, moments, slots.active)
        pixels = images * size**2
        epilogues.statistics(
            moments,
            pixels,
            epilogues.MOMENT_PIXELS,
            given.mean,
            given.deviation,
            running[:, 2 * channels :],
            slots.active,
        )
        close_to(
            running[:, 2 * channels : 3 * channels],
            0.9 * weight[:, 2 * channels : 3 * channels] + 0.1 * plain.mean((1, 3, 4)),
        )
        unbiased = plain.transpose(1, 2).flatten(2).var(2)
        close_to(running[:, 3 * channels :], 0.9 * weight[:, 3 * channels :] + 0.1 * unbiased)
    out, top = (bordered(torch.zeros_like(expected), border) for border in (1, 0))
    dropout = Dropout.of(index.int(), 1 << 20, channels * quarter**2)
    draw(dropout, slots)
    epilogues.conv_epilogue_forward(plain, top if pool else plain, out, given, dropout, slots, pool=pool)
    close_to(out, expected.detach())

    dz, dy = torch.zeros_like(expected), bordered(torch.zeros_like(plain), 2)
    sums, totals = (
        torch.zeros(4, channels, epilogues.sum_parts(dz), 2, dtype=F64, device=DEVICE),
        noise(4, channels, 2),
    )
    epilogues.conv_epilogue_backward(
        towards, top if pool else plain, dz, sums, given, dropout, slots, average=False
    )
    gradient = torch.zeros_like(weight)
    if norm:
        epilogues.norm_gradient(sums, totals, gradient, slots.active)
        close_to(gradient[:, : 2 * channels], found_grad[1][:, : 2 * channels])
    epilogues.scatter_to_windows(dz, plain, dy, totals, given, slots.active, pool=pool)
    close_to(dy, found_grad[0])


def test_pooling_sends_the_gradient_to_the_first_of_equals() -> None:
    slots = slots_of(mixed_models("tanh"))
    y = torch.ones(1, 1, 1, 2, 2, dtype=F64, device=DEVICE)
    dz, dy = torch.ones(1, 1, 1, 1, 1, dtype=F64, device=DEVICE), torch.zeros_like(y)
    epilogues.scatter_to_windows(dz, y, dy, y, None, slots.active, pool=True)
    assert dy.flatten().tolist() == [1, 0, 0, 0]


def test_nan_passes_and_stays_in_its_model() -> None:
    slots = slots_of(mixed_models("relu", "relu"))
    y = noise(2, 2, 1, 4, 4)
    y[0, 0, 0, 1, 1] = torch.nan
    out, top = torch.zeros(2, 2, 2, 1, 2, 2, dtype=F64, device=DEVICE)
    epilogues.conv_epilogue_forward(y, top, out, None, None, slots, pool=True)
    assert out[0, 0, 0, 0, 0].isnan()
    assert torch.isfinite(out[1]).all()


@pytest.mark.parametrize("training", [True, False])
def test_end_of_a_dense_layer_and_the_way_back(training: bool) -> None:
    models = mixed_models("relu", "elu", "sigmoid", "tanh")
    slots, units, images = slots_of(models, epoch=3), 11, 6 if training else 40
    x = noise(4, images, units).requires_grad_()
    weight = noise(4, 4 * units, seed=1).abs_()
    index = torch.arange(4 * images, device=DEVICE).view(4, images)
    masks = masks_of(models, index, (units,), 2 << 20)
    leaf = weight.clone().requires_grad_()
    running, expected = weight.clone(), []
    for m, model in enumerate(models):
        statistics = [running[m, i * units : (i + 1) * units] for i in (2, 3)]
        h = ACTIVATIONS[model.recipe.activation](x[m])
        h = F.batch_norm(
            h, *statistics, leaf[m, :units], leaf[m, units : 2 * units], training, 0.1, BATCH_NORM_EPSILON
        )
        expected.append(h * masks[m] if training else h)
    found = weight.clone()
    out, mean, deviation = torch.zeros_like(x.detach()), *torch.zeros(2, 4, units, dtype=F64, device=DEVICE)
    dropout = Dropout.of(index.int(), 2 << 20, units) if training else None
    if dropout is not None:
        draw(dropout, slots)
    dense.dense_epilogue_forward(x.detach(), out, mean, deviation, found, dropout, slots, training=training)
    close_to(out, torch.stack(expected).detach())
    close_to(found, running)
    if training:
        towards = noise(*x.shape, seed=2)
        dx, drows = torch.autograd.grad((torch.stack(expected) * towards).sum(), [x, leaf])
        found_dx, gradient = torch.zeros_like(out), torch.zeros_like(weight)
        dense.dense_epilogue_backward(
            towards, x.detach(), found_dx, mean, deviation, weight, gradient, dropout, slots
        )
        close_to(found_dx, dx)
        close_to(gradient[:, : 2 * units], drows[:, : 2 * units])


@pytest.mark.parametrize("activation", ["elu", "tanh", "sigmoid"])
def test_activations_are_exact_near_zero_and_far_from_it(activation: str) -> None:
    tiny = torch.logspace(-12, 2.5, 200, dtype=F64, device=DEVICE)
    x = torch.cat([-tiny, tiny]).view(1, 400, 1, 1, 1)
    out = torch.zeros_like(x)
    epilogues.conv_epilogue_forward(x, x, out, None, None, slots_of(mixed_models(activation)), pool=False)
    torch.testing.assert_close(out, ACTIVATIONS[activation](x), rtol=2e-15, atol=1e-200)


# Batch, loss, update


@pytest.mark.parametrize("dataset", ["gray", "colour", "one_channel"])
def test_batch_equals_that_of_builder_batches(dataset: str) -> None:
    """Two data sets, augmented and not, black at -1; from the second step of the order."""
    channels = 1 if dataset == "one_channel" else 3
    architecture = Architecture(
        filter_size=3, width_conv=4, width_fc=16, image_size=12, image_channels=channels, pixel_min=-1
    )
    images = images_for(architecture)["digits"]
    pixels = images.train_images.to(DEVICE)
    if dataset == "colour":
        pixels = torch.randint(
            0, 256, pixels.shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8
        ).to(DEVICE)
    models = [make_model(architecture, n, augmentation=n > 0) for n in range(3)]
    labels = [images.train_labels.to(DEVICE), *(images.train_labels.flip(0).to(DEVICE) for _ in range(2))]
    order = torch.arange(24, device=DEVICE).view(3, 8).flip(1)
    slots, step = slots_of(models, epoch=2), torch.ones(3, dtype=torch.int64, device=DEVICE)
    x = bordered(torch.zeros(3, 4, channels, 12, 12, dtype=F64, device=DEVICE), 1)
    found = torch.zeros(3, 4, dtype=torch.int64, device=DEVICE)
    index = torch.zeros(3, 4, dtype=torch.int32, device=DEVICE)
    sources = torch.tensor(
        [[x.data_ptr() for x in arrays] for arrays in ([pixels] * 3, labels, order)], device=DEVICE
    )
    augmented = torch.tensor([0, 1, 1], device=DEVICE)
    augment.load(sources, step, (x, found, index), augmented, slots, -1)
    for m, model in enumerate(models):
        indices = order[m, 4:]
        expected = pixels[indices].to(F64) / 255
        if model.recipe.augmentation:
            expected = batches.augment(model, expected, indices, 2, gray=dataset != "colour")
        close_to(x[m], expected * 2 - 1)
        assert torch.equal(found[m], labels[m][indices])
        assert torch.equal(index[m].long(), indices)


def test_loss_and_its_gradient() -> None:
    logits, labels = noise(3, 7, 10).mul_(5).requires_grad_(), torch.arange(21, device=DEVICE).view(3, 7) % 10
    expected = torch.stack([F.cross_entropy(logits[m], labels[m]) for m in range(3)])
    (gradient,) = torch.autograd.grad(expected.sum(), logits)
    found, losses = torch.zeros_like(gradient), torch.ones(3, dtype=F64, device=DEVICE)
    update_kernels.cross_entropy(
        logits.detach(), labels, found, losses, torch.tensor([1, 1, 0], device=DEVICE)
    )
    close_to(losses, torch.cat([expected[:2].detach() + 1, torch.ones(1, dtype=F64, device=DEVICE)]))
    close_to(found[:2], gradient[:2])
    assert not found[2].any()


def test_update_equals_the_rule() -> None:
    names = list(update.COEFFICIENTS)
    models, weights = len(names), 37
    rows, first, gradients = noise(3, models, weights + 3)[:, :, :weights]
    second = noise(models, weights + 3, seed=1).abs_()[:, :weights]
    state = [x.clone() for x in (rows, first, second)]
    is_kernel = (torch.arange(weights, device=DEVICE) % 2).to(F64)
    l2 = torch.tensor([0.0, 1e-2, 1e-3, 0.1, 0.0], dtype=F64, device=DEVICE)
    rates = noise(models, 3, seed=2).abs_()
    coefficients = torch.tensor(
        [update.COEFFICIENTS[name] for name in names], dtype=F64, device=DEVICE
    ).T.contiguous()
    rate_addresses = torch.tensor([of_model.data_ptr() for of_model in rates], device=DEVICE)
    step, active = (
        torch.full((models,), 2, device=DEVICE),
        torch.ones(models, dtype=torch.int64, device=DEVICE),
    )
    update_kernels.update(
        (rows, first, second), gradients, is_kernel, rate_addresses, step, l2, coefficients, active
    )
    for m, name in enumerate(names):
        gradient = gradients[m] + 2 * l2[m] * is_kernel * state[0][m]
        expected = update.rule(
            state[0][m], gradient, state[1][m], state[2][m], rates[m, 2], update.COEFFICIENTS[name]
        )
        for found, value in zip((rows[m], first[m], second[m]), expected, strict=True):
            close_to(found, value)


def test_average_of_maps() -> None:
    x, out = noise(2, 5, 3, 3, 3), torch.zeros(2, 5, 3, dtype=F64, device=DEVICE)
    update_kernels.average(x, out, torch.ones(2, dtype=torch.int64, device=DEVICE))
    close_to(out, x.mean((3, 4)))
