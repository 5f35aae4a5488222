"""Architectures: what is no network is refused by name, and before anything of its size is made."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
import torch

from nws_dataset.errors import ZooError
from nws_dataset.networks import architecture_from_json
from nws_dataset.networks.cnn import Architecture
from nws_dataset.networks.layout import layout_of
from nws_dataset.networks.network import Network

FIELDS = [field.name for field in dataclasses.fields(Architecture)]


def test_layers_without_units() -> None:
    with pytest.raises(
        ZooError,
        match=r"Architecture\.width_fc: expected a unit in each hidden layer, "
        r"found 1, halved to 1, 0",
    ):
        Architecture(width_fc=1)
    assert Architecture(width_fc=2).dense_widths == (2, 1)
    assert Architecture(depth_fc=1, width_fc=1).dense_widths == (1,)


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize(
    "value", ["x", 1.5, True, [], {}, -1, 10**30, float("nan"), np.int64(3), b"3"], ids=repr
)
def test_values_of_another_type_or_size(name: str, value: Any) -> None:
    if isinstance(getattr(Architecture(), name), bool) and isinstance(value, bool):
        return
    if name == "pixel_min" and value == -1:
        return
    with pytest.raises(ZooError, match=rf"^Architecture(\.{name})?: expected ") as raised:
        Architecture(**{name: value})
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", Architecture.bounds)
def test_bounds(name: str) -> None:
    low, high = Architecture.bounds[name]
    for value in (low - 1, high + 1):
        with pytest.raises(
            ZooError,
            match=rf"^Architecture\.{name}: expected {low} to {high}, found "
            rf"{value}",
        ):
            Architecture(**{name: value})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "5",
        "null",
        '"a"',
        "{}}",
        '{"depth": 3}',
        "[" * 100_000,
        '{"a":' * 50_000,
        '{"width_conv": NaN}',
        "{\n",
        '{"depth_conv": 10000000}',
    ],
)
def test_texts_that_are_no_architecture(text: str) -> None:
    with pytest.raises(ZooError) as raised:
        architecture_from_json(text)
    assert "\n" not in str(raised.value) and str(raised.value).isprintable() and len(str(raised.value)) < 3000


def test_json_goes_there_and_back() -> None:
    architecture = Architecture(filter_size=3, width_conv=4, depth_fc=0, width_fc=None)
    assert architecture_from_json(architecture.to_json()) == architecture
    assert architecture_from_json("{}") == Architecture()


def test_a_network_that_no_machine_holds() -> None:
    huge = architecture_from_json(
        json.dumps({"width_conv": 1 << 16, "width_growth": 64, "image_size": 1 << 16})
    )
    with pytest.raises(ZooError, match=r"expected at most 4294967296 weights, found \d+"):
        layout_of(huge)
    with pytest.raises(ZooError, match="at most 4294967296 weights"):
        Network(huge, "relu")


@pytest.mark.parametrize(
    ("activation", "dropout"),
    [("gelu", 0.0), (None, 0.0), ("relu", 2.0), ("relu", "x"), ("relu", None), ("relu", True)],
)
def test_what_is_no_recipe_of_a_network(activation: Any, dropout: Any) -> None:
    with pytest.raises(ZooError, match=r"^(activation|dropout): expected "):
        Network(Architecture(), activation, dropout)


@pytest.mark.parametrize("pixel_min", [0, -1])
def test_images_in_the_network_s_own_range(pixel_min: int) -> None:
    net = Network(Architecture(pixel_min=pixel_min, image_size=16), "tanh").double().eval()
    images = torch.rand(3, 3, 16, 16, dtype=torch.float64)
    entered: list[torch.Tensor] = []
    net.get_submodule("conv1").register_forward_pre_hook(lambda module, inputs: entered.append(inputs[0]))
    assert torch.equal(net(images), net(images * (1 - pixel_min) + pixel_min, scaled=True))
    probe = torch.full((1, 3, 16, 16), -1.0, dtype=torch.float64)
    net(probe, scaled=True)
    assert torch.equal(entered[-1], probe)
    net(probe)
    assert torch.equal(entered[-1], probe * (1 - pixel_min) + pixel_min)
    whole = (images * 255).to(torch.uint8)
    assert torch.equal(net(whole), net(whole.double() / 255))


def test_images_that_are_none() -> None:
    net = Network(Architecture(), "relu").eval()
    for shape in ((3, 32, 32), (1, 1, 32, 32), (1, 3, 28, 28), (1, 3, 32)):
        with pytest.raises(ZooError, match=r"expected images \[B, 3, 32, 32\], found \["):
            net(torch.zeros(shape))
    for images, scaled in (
        (torch.zeros(1, 3, 32, 32, dtype=torch.int64), False),
        (torch.zeros(1, 3, 32, 32, dtype=torch.uint8), True),
    ):
        with pytest.raises(ZooError, match=r"expected (uint8|floating point)"):
            net(images, scaled=scaled)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("name", ["width_conv", "width_fc", "pixel_min", "batch_norm", "padding"])
def test_a_number_of_more_digits_than_python_prints(name: str, sign: int) -> None:
    values: dict[str, Any] = {name: sign * 10**5_000}
    with pytest.raises(
        ZooError,
        match=rf"Architecture\.{name}: expected .* found a number of more than 64 "
        rf"bits",
    ):
        Architecture(**values)


def test_an_architecture_is_told_as_a_text() -> None:
    with pytest.raises(ZooError, match="architecture_json"):
        architecture_from_json(None)  # type: ignore[arg-type]
