"""Networks run together give what each gives alone, and the same gradients."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.func import functional_call

from nws_dataset.errors import ZooError
from nws_dataset.networks import stacked as networks_module
from nws_dataset.networks.cnn import Architecture
from nws_dataset.networks.layout import layout_of
from nws_dataset.networks.network import Network
from nws_dataset.networks.stacked import Networks
from nws_dataset.reading.snapshots import Snapshots
from nws_dataset.reading.zoo import Zoo
from test_views import ARCHITECTURES
from testing.zoo_factory import NORMED, PLAIN, make_zoo

ALL_ACTIVATIONS = ["tanh", *Architecture.activations, "tanh"]
CENTRED = dataclasses.replace(NORMED, pixel_min=-1)
TINY = Architecture(filter_size=3, width_conv=1, depth_fc=1, width_fc=2, image_size=8, image_channels=1)
each_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES.values(), ids=ARCHITECTURES)


def random_weights(
    architecture: Architecture, count: int, dtype: torch.dtype = torch.float64
) -> torch.Tensor:
    """[N, P], with batch-norm's variances positive and about 1."""
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(count, layout_of(architecture).num_weights, generator=generator, dtype=dtype) * 0.2
    for name, tensor in layout_of(architecture).views(weights).items():
        if name.endswith("running_var"):
            tensor.abs_().add_(0.5)
    return weights


def random_images(architecture: Architecture, count: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    size = architecture.image_size
    generator = torch.Generator().manual_seed(1)
    return torch.rand(count, architecture.image_channels, size, size, generator=generator, dtype=dtype)


def one_by_one(
    architecture: Architecture, activations: list[str], weights: torch.Tensor, images: torch.Tensor
) -> torch.Tensor:
    """[N, B, O] of single networks; gradients reach weights that a single network can learn."""
    layout, logits = layout_of(architecture), []
    for activation, row in zip(activations, weights, strict=True):
        network = Network(architecture, activation).to(weights.dtype).eval()
        state = {
            name: tensor if layout[name].trained else tensor.detach()
            for name, tensor in layout.views(row).items()
        }
        logits.append(functional_call(network, state, (images,), strict=False))
    return torch.stack(logits)


@pytest.mark.parametrize("map_bytes", [1, networks_module.CPU_MAP_BYTES])
@each_architecture
def test_outputs_and_gradients_are_those_of_single_networks(
    architecture: Architecture, map_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(networks_module, "CPU_MAP_BYTES", map_bytes)  # 1: one network at a time
    weights = random_weights(architecture, len(ALL_ACTIVATIONS)).requires_grad_()
    images = random_images(architecture, 2).requires_grad_()
    networks = Networks(architecture, ALL_ACTIVATIONS, weights.detach())
    expected = one_by_one(architecture, ALL_ACTIVATIONS, weights, images)
    assert expected.std(0).max() > 1e-3  # networks differ
    torch.testing.assert_close(networks(images), expected, rtol=0, atol=1e-12)
    factors = torch.randn(expected.shape, dtype=torch.float64)
    of_weights, of_images = torch.autograd.grad((expected * factors).sum(), (weights, images))
    found_of_weights, found_of_images = torch.autograd.grad(
        (networks(images, weights) * factors).sum(), (weights, images)
    )
    torch.testing.assert_close(found_of_images, of_images, rtol=1e-9, atol=1e-12)
    for tensor in layout_of(architecture).tensors:
        if tensor.trained:
            part = slice(tensor.offset, tensor.stop)
            assert of_weights[:, part].abs().max() > 0, tensor.name
            torch.testing.assert_close(
                found_of_weights[:, part], of_weights[:, part], rtol=1e-9, atol=1e-12, msg=tensor.name
            )


@pytest.mark.parametrize("architecture", [PLAIN, NORMED], ids=["plain", "normed"])
def test_float32_is_exact_to_1e_6(architecture: Architecture) -> None:
    weights = random_weights(architecture, 40, torch.float32)
    images = random_images(architecture, 8, torch.float32)
    found = Networks(architecture, ["relu"] * 40, weights)(images)
    expected = one_by_one(architecture, ["relu"] * 40, weights, images)
    assert found.dtype == torch.float32
    assert (found - expected).abs().max() <= 1e-6 * max(1, expected.abs().max())


def test_gradients_reach_running_statistics() -> None:
    """Which torch's own batch-norm refuses: compared with differences."""
    weights, images = random_weights(TINY, 2), random_images(TINY, 2)
    networks = Networks(TINY, ["tanh", "sigmoid"], weights)
    assert torch.autograd.gradcheck(
        lambda w, x: networks(x, w, scaled=True), (weights.requires_grad_(), images.requires_grad_())
    )


@pytest.mark.parametrize("architecture", [NORMED, CENTRED], ids=["0..1", "-1..1"])
def test_images_of_every_kind(architecture: Architecture) -> None:
    weights = random_weights(architecture, 2)
    singles = [Network(architecture, "relu").double().load_row(row).eval() for row in weights]
    networks = Networks(architecture, ["relu"] * 2, weights)
    images = random_images(architecture, 3)
    pixels = (images * 255).to(torch.uint8)
    for given in (images, pixels):
        expected = torch.stack([single(given) for single in singles])
        torch.testing.assert_close(networks(given), expected, rtol=0, atol=1e-12)
    expected = torch.stack([single(images, scaled=True) for single in singles])
    torch.testing.assert_close(networks(images, scaled=True), expected, rtol=0, atol=1e-12)
    assert networks(images[:0]).shape == (2, 0, 10)


def test_weights_in_place_of_their_own() -> None:
    own, others = random_weights(NORMED, 3), random_weights(NORMED, 6)[3:]
    activations, images = ["relu", "elu", "relu"], random_images(NORMED, 2)
    networks = Networks(NORMED, activations, own)
    assert torch.equal(networks(images, others), Networks(NORMED, activations, others)(images))
    assert not torch.allclose(networks(images, others), networks(images))


def test_a_module_that_moves_and_holds_no_parameters() -> None:
    networks = Networks(PLAIN, ["relu"], random_weights(PLAIN, 1, torch.float32))
    assert list(networks.parameters()) == [] and list(networks.state_dict()) == ["weights"]
    assert networks.double()(random_images(PLAIN, 1)).dtype == torch.float64


WEIGHTS = torch.zeros(2, layout_of(PLAIN).num_weights)
IMAGES = torch.zeros(1, 1, 28, 28)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: Networks(PLAIN, ["relu", "gelu"], WEIGHTS), "one of relu, elu, sigmoid, tanh, found 'gelu'"),
        (lambda: Networks(PLAIN, [], WEIGHTS[:0]), "activations: expected one for each network, found none"),
        (lambda: Networks(PLAIN, ["relu"], WEIGHTS), r"weights: expected a floating-point tensor \[1, 386\]"),
        (lambda: Networks(NORMED, ["relu"] * 2, WEIGHTS), r"\[2, 3050\], found \[2, 386\] torch.float32"),
        (lambda: Networks(PLAIN, ["relu"] * 2, WEIGHTS.int()), "floating-point .*found .* torch.int32"),
        (lambda: Networks(PLAIN, ["relu"] * 2, WEIGHTS.numpy()), "found ndarray"),
        (lambda: Networks(PLAIN, ["relu"] * 2, WEIGHTS)(IMAGES, WEIGHTS[:1]), r"-point tensor \[2, 386\]"),
        (lambda: Networks(PLAIN, ["relu"] * 2, WEIGHTS)(IMAGES[0]), r"expected images \[B, 1, 28, 28\]"),
        (lambda: Networks(PLAIN, ["relu"] * 2, WEIGHTS)(IMAGES.int()), "uint8 0..255, or floating point"),
        (
            lambda: Networks(PLAIN, ["relu"] * 2, WEIGHTS)(IMAGES.byte(), scaled=True),
            "expected floating point, found torch.uint8",
        ),
    ],
)  # fmt: skip
def test_mistakes(wrong: Callable[[], Any], message: str) -> None:
    with pytest.raises(ZooError, match=message):
        wrong()


# --- of a zoo ---


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    return Zoo(make_zoo(tmp_path_factory.mktemp("zoo") / "nws"))


@pytest.mark.parametrize("architecture", [PLAIN, NORMED], ids=["plain", "normed"])
def test_networks_of_snapshots(zoo: Zoo, architecture: Architecture) -> None:
    snapshots = zoo.filter(architecture=architecture.id)[::-1]
    networks = zoo.networks(snapshots)
    assert networks.activations == tuple(snapshots["activation"])
    assert torch.equal(networks.weights, torch.from_numpy(zoo.weights(snapshots)))
    # variances of this zoo are random numbers, and may be negative
    networks.weights.abs_()
    images = random_images(architecture, 4, torch.float32)
    expected = torch.stack(
        [
            Network(architecture, a).load_row(row).eval()(images)
            for a, row in zip(networks.activations, networks.weights, strict=True)
        ]
    )
    torch.testing.assert_close(networks(images), expected, rtol=1e-5, atol=1e-6)


def test_snapshots_of_every_form(zoo: Zoo) -> None:
    snapshots = zoo.filter(architecture=PLAIN.id)
    images, expected = IMAGES + 0.5, zoo.networks(snapshots)(IMAGES + 0.5)
    torch.testing.assert_close(expected, torch.stack([zoo.network(s)(images) for s in snapshots]))
    assert len(set(snapshots["activation"])) == 1
    for form in (snapshots.table, snapshots.to_pandas(), list(snapshots), Snapshots(snapshots.table)):
        assert torch.equal(zoo.networks(form)(images), expected)


def test_networks_that_are_not_of_one_architecture(zoo: Zoo) -> None:
    with pytest.raises(
        ZooError, match=f"of one architecture, found {NORMED.id}, {PLAIN.id}; filter by architecture"
    ):
        zoo.networks(zoo.filter())
    with pytest.raises(ZooError, match="found no snapshots"):
        zoo.networks(zoo.filter(model_id="none"))
    with pytest.raises(ZooError, match="activation"):
        zoo.networks(zoo.filter(architecture=PLAIN.id).table.drop_columns(["activation"]))
    with pytest.raises(ZooError, match="several snapshots, found one"):
        zoo.networks(zoo.filter()[0])
