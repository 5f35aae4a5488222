"""Small versions of the two original releases: networks in their own conventions, files in their layouts.

Nothing here comes from the package: kernels are height, width, in, out and images height, width, channel, as
in TensorFlow, and the forward passes are plain numpy in float64, so that an import can be compared with them.

Axes: B images, H W height and width, I O channels or units in and out.
"""

from __future__ import annotations

import csv
import gzip
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

Activation = Callable[[np.ndarray], np.ndarray]
ACTIVATIONS: dict[str, Activation] = {
    "relu": lambda x: np.maximum(x, 0),
    "elu": lambda x: np.where(x > 0, x, np.exp(np.minimum(x, 0)) - 1),
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "tanh": np.tanh,
}


def convolve(x_BHWI: np.ndarray, kernel_HWIO: np.ndarray, *, pad: int = 0, stride: int = 1) -> np.ndarray:
    """A convolution (as networks mean it: the kernel is not flipped), [B, H, W, O]."""
    size = kernel_HWIO.shape[0]
    padded = np.pad(x_BHWI, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    windows_BHWIhw = np.lib.stride_tricks.sliding_window_view(padded, (size, size), axis=(1, 2))[
        :, ::stride, ::stride
    ]
    return np.tensordot(windows_BHWIhw, kernel_HWIO, axes=([4, 5, 3], [0, 1, 2]))


# The neural weight space

NWS_PROPERTIES = (
    "dataset", "lrate", "batch_size", "batch_norm", "augmentation", "optimizer", "activation",
    "initialization",
    "filter_size", "depth_conv", "depth_fc", "width_conv", "width_fc",
)  # fmt: skip
NWS_SNAPSHOTS = 20
NWS_OUTPUTS = 20
NWS_ACTIVATIONS = ("relu", "elu", "sigmoid", "tanh")


@dataclass(frozen=True)
class NwsLayer:
    """A layer of the original's network; its variables are in the order of creation."""

    kernel: np.ndarray  # [H, W, I, O] or [I, O]
    bias: np.ndarray
    norm: tuple[np.ndarray, ...]  # beta, gamma, moving mean, moving variance; empty in the output layer

    def normalize(self, x: np.ndarray) -> np.ndarray:
        beta, gamma, mean, variance = self.norm
        return (x - mean) / np.sqrt(variance + 1e-5) * gamma + beta

    def numbers(self) -> list[np.ndarray]:
        """The numbers as in the release's files: the kernel output by output, input by input."""
        axes = (3, 2, 0, 1) if self.kernel.ndim == 4 else (1, 0)
        return [self.kernel.transpose(axes).ravel(), self.bias, *self.norm]


class NwsNet:
    """One snapshot of a net of the neural weight space, with random weights.

    Args:
        meta: its properties, as in meta.csv.
        seed: of the weights.
    """

    def __init__(self, meta: dict[str, object], seed: Sequence[int]) -> None:
        self.random = np.random.default_rng(seed)
        self.activation = ACTIVATIONS[NWS_ACTIVATIONS[int(str(meta["activation"]))]]
        size, depth_conv, depth_fc, width_conv, width_fc = (
            int(str(meta[name])) for name in NWS_PROPERTIES[8:]
        )
        self.blocks: list[list[NwsLayer]] = []
        inputs = 3
        for block, convolutions in enumerate({3: (1, 1, 1), 4: (1, 1, 2), 5: (1, 2, 2)}[depth_conv]):
            outputs = width_conv * 2**block
            self.blocks.append([])
            for _ in range(convolutions):
                self.blocks[-1].append(self._layer(size, size, inputs, outputs))
                inputs = outputs
        inputs *= 4 * 4
        self.dense: list[NwsLayer] = []
        for i in range(depth_fc):
            self.dense.append(self._layer(inputs, width_fc // 2**i))
            inputs = width_fc // 2**i
        self.output = self._layer(inputs, NWS_OUTPUTS, norm=False)

    def _layer(self, *shape: int, norm: bool = True) -> NwsLayer:
        units, draw = shape[-1], self.random
        kernel = draw.standard_normal(shape) / np.sqrt(np.prod(shape[:-1]))
        vectors = (
            draw.normal(0, 0.1, units),
            draw.normal(1, 0.2, units),
            draw.normal(0, 0.3, units),
            draw.uniform(0.5, 2, units),
        )
        return NwsLayer(kernel, draw.normal(0, 0.1, units), vectors if norm else ())

    def __call__(self, images_BHWC: np.ndarray) -> np.ndarray:
        """Logits [B, 20] of images in 0 .. 1."""
        x = images_BHWC
        for block in self.blocks:
            for layer in block:
                pad = layer.kernel.shape[0] // 2
                x = self.activation(layer.normalize(convolve(x, layer.kernel, pad=pad) + layer.bias))
            batch, height, width, channels = x.shape
            x = x.reshape(batch, height // 2, 2, width // 2, 2, channels).max((2, 4))
        x = x.reshape(len(x), -1)
        for layer in self.dense:
            x = layer.normalize(self.activation(x @ layer.kernel + layer.bias))
        return x @ self.output.kernel + self.output.bias

    def numbers(self) -> np.ndarray:
        """All weights as in the release's files."""
        layers = [layer for block in self.blocks for layer in block] + [*self.dense, self.output]
        return np.concatenate([vector for layer in layers for vector in layer.numbers()])

    @property
    def num_conv(self) -> int:
        return sum(vector.size for block in self.blocks for layer in block for vector in layer.numbers())


def nws_meta(number: int, **properties: object) -> dict[str, object]:
    """The properties of net `number`: all nets differ, and the first five have different architectures."""
    shapes = ((3, 3, 2, 4, 64), (5, 4, 3, 4, 64), (7, 5, 4, 4, 64), (3, 4, 2, 8, 128), (3, 5, 3, 12, 192))
    drawn = (
        ("mnist", "cifar10", "svhn", "stl10", "fashion")[number % 5],
        0.0002 + 0.0001 * number,
        (32, 64, 128, 256)[number % 4],
        True,
        number % 2 == 1,
        number % 3,
        number % 4,
        (number + 1) % 4,
        *shapes[number % 5],
    )
    return {**dict(zip(NWS_PROPERTIES, drawn, strict=True)), **properties}


def nws_exports(number: int) -> int:
    """At how many epochs a net was exported."""
    return 30 + 7 * number


def nws_errors(number: int) -> np.ndarray:
    """A net's error.bin: [epochs, 5] of step and errors in percent."""
    epoch = np.arange(nws_exports(number), dtype=np.float64)
    return np.stack(
        [epoch * 100, 80 - epoch / 4, 82 - epoch / 4, 85 - epoch / 8 - number, 82 - epoch / 5], axis=1
    )


def write_nws(root: Path, part: str, splits: dict[str, dict[int, dict[str, object]]]) -> Path:
    """Write a part of the neural weight space.

    Args:
        root: the release's folder.
        part: "main" or "fixed".
        splits: "train" and "test" -> a net's number -> its properties. Net n has the weights of
            NwsNet(properties, (n, snapshot)).
    """
    for split, nets in splits.items():
        rows = []
        for number, meta in nets.items():
            net = write_nws_net(root / f"{part}/{number:04d}", number, meta)
            dense = net.numbers().size - net.num_conv
            rows.append(
                {**meta, "path": f"{part}/{number:04d}", "weightn_conv": net.num_conv, "weightn_fc": dense}
            )
        with open(root / f"nws_{part}_{split}.csv", "w", newline="") as file:
            writer = csv.DictWriter(file, [*NWS_PROPERTIES, "path", "weightn_conv", "weightn_fc"])
            writer.writeheader()
            writer.writerows(rows)
    return root


def write_nws_net(folder: Path, number: int, meta: dict[str, object]) -> NwsNet:
    """Write a net's folder; return its last snapshot."""
    (folder / "weights").mkdir(parents=True)
    with open(folder / "meta.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, NWS_PROPERTIES)
        writer.writeheader()
        writer.writerow(meta)
    for snapshot in range(1, NWS_SNAPSHOTS + 1):
        net = NwsNet(meta, (number, snapshot))
        net.numbers().astype("<f8").tofile(folder / f"weights/{snapshot:03d}.bin")
    errors = nws_errors(number)
    errors.astype("<f8").tofile(folder / "error.bin")
    np.array([len(errors), errors[-1, 0], len(errors) - 1, 1234.5], "<f8").tofile(folder / "stat.bin")
    return net


# The Small CNN Zoo

SMALL_EPOCHS = (0, 1, 2, 3, 20, 40, 60, 80, 86)
SMALL_KERNELS = ((3, 3, 1, 16), (3, 3, 16, 16), (3, 3, 16, 16), (16, 10))
SMALL_LAYERS = ("conv2d", "conv2d_1", "conv2d_2", "dense")
SMALL_WEIGHTS = 4970


class SmallNet:
    """One snapshot of a network of the Small CNN Zoo, with random weights."""

    def __init__(self, activation: str, seed: Sequence[int]) -> None:
        random = np.random.default_rng(seed)
        self.activation = ACTIVATIONS[activation]
        self.kernels = [
            (random.standard_normal(shape) / np.sqrt(np.prod(shape[:-1]))).astype(np.float32)
            for shape in SMALL_KERNELS
        ]
        self.biases = [random.normal(0, 0.1, shape[-1]).astype(np.float32) for shape in SMALL_KERNELS]

    def __call__(self, images_BHW1: np.ndarray) -> np.ndarray:
        """Logits [B, 10] of images in -1 .. 1."""
        x = images_BHW1
        for kernel, bias in zip(self.kernels[:3], self.biases[:3], strict=True):
            x = self.activation(convolve(x, kernel.astype(np.float64), stride=2) + bias)
        return x.mean((1, 2)) @ self.kernels[3].astype(np.float64) + self.biases[3]

    def numbers(self) -> np.ndarray:
        """All weights as a row of weights.npy."""
        return np.concatenate(
            [part.ravel() for pair in zip(self.biases, self.kernels, strict=True) for part in pair]
        )


def small_config(dataset: str, number: int) -> dict[str, object]:
    """The columns config.* of a model."""
    return {
        "config.activation": ("relu", "tanh")[number % 2],
        "config.b_init": "zeros",
        "config.dataset": dataset,
        "config.dnn_architecture": "cnn",
        "config.dropout": 0.05 * number,
        "config.epochs": 86,
        "config.epochs_between_checkpoints": 20,
        "config.init_std": 0.01 * (number + 1),
        "config.l2reg": 1e-6 * (number + 1),
        "config.learning_rate": 0.001 * (number + 1),
        "config.num_layers": 3,
        "config.num_units": 16,
        "config.optimizer": ("adam", "sgd", "rmsprop")[number % 3],
        "config.random_seed": number % 3,
        "config.train_fraction": (0.1, 0.25, 0.5, 1.0)[number % 4],
        "config.w_init": ("he_normal", "orthogonal", "glorot_normal", "RandomNormal", "TruncatedNormal")[
            number % 5
        ],
    }


def small_results(number: int, snapshot: int) -> dict[str, float]:
    """The results of a model's snapshot (counted from 0)."""
    accuracy = 0.1 + 0.01 * number + 0.05 * snapshot
    return {
        "test_accuracy": accuracy,
        "test_loss": 2.3 - accuracy,
        "train_accuracy": accuracy + 0.02,
        "train_loss": 2.2 - accuracy,
    }


def write_small_cnn(
    folder: Path,
    dataset: str,
    models: int,
    change: Callable[[np.ndarray, list[dict[str, object]]], None] | None = None,
) -> Path:
    """Write an image set's part of the Small CNN Zoo.

    Args:
        folder: the image set's folder.
        dataset: its name in the release. Model n has the weights of SmallNet(activation, (n, snapshot)).
        models: number of models. Their rows alternate by snapshot, so that a model's rows are not adjacent.
        change: may alter weights and lines before they are written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lines: list[dict[str, object]] = []
    rows = []
    for snapshot, epoch in enumerate(SMALL_EPOCHS):
        for number in range(models):
            config = small_config(dataset, number)
            rows.append(SmallNet(str(config["config.activation"]), (number, snapshot)).numbers())
            lines.append(
                {
                    "": len(lines),
                    **config,
                    "modeldir": f"{dataset}/{number}",
                    "step": epoch,
                    **small_results(number, snapshot),
                }
            )
    weights = np.stack(rows)
    if change:
        change(weights, lines)
    np.save(folder / "weights.npy", weights)
    with gzip.open(folder / "metrics.csv.gz", "wt", newline="") as file:
        writer = csv.DictWriter(file, list(lines[0]))
        writer.writeheader()
        writer.writerows(lines)
    write_layout(folder / "layout.csv")
    return folder


def write_layout(file: Path) -> None:
    """Write the Small CNN Zoo's layout.csv."""
    lines, start = ["varname,start_idx,end_idx,shape"], 0
    for layer, kernel in zip(SMALL_LAYERS, SMALL_KERNELS, strict=True):
        for name, shape in (("bias", kernel[-1:]), ("kernel", kernel)):
            stop = start + int(np.prod(shape))
            lines.append(f'sequential/{layer}/{name}:0,{start},{stop},"{shape}"')
            start = stop
    assert start == SMALL_WEIGHTS
    file.write_text("\n".join(lines) + "\n")
