"""What a network is and how it was trained: `Architecture`, `Recipe`, their legal values, and what each
subset draws.

The only place where these facts stand. Columns, cards, plans, tables and tests derive from the dataclasses
below; the numbers are those of Eilertsen et al. 2020 (arXiv 2002.05688, subsets `main` and `fixed`) and
Unterthiner et al. 2020 (arXiv 2002.11448, subset `small_cnn`).
"""

from __future__ import annotations

import dataclasses
import json
import typing
from dataclasses import dataclass
from typing import Any

from nws_dataset.errors import ZooError
from nws_dataset.files import parse_json

NUM_CLASSES = 10
NUM_BLOCKS = 3  # convolutional blocks; a block doubles the channels and may end in a max-pool
LEGAL_VALUES: dict[str, tuple[Any, ...]] = {
    "dataset": ("mnist", "cifar10", "svhn", "stl10", "fashion_mnist", "kmnist", "digits"),
    "optimizer": ("adam", "rmsprop", "momentum", "sgd"),
    "activation": ("relu", "elu", "sigmoid", "tanh"),
    "initialization": (
        "constant",
        "normal",
        "glorot_uniform",
        "glorot_normal",
        "he_normal",
        "orthogonal",
        "random_normal",
        "truncated_normal",
    ),
    "padding": ("same", "valid"),
    "pooling": ("max", "none"),
    "head": ("flatten", "average"),
    "dropout_place": ("dense", "conv"),
    "pixel_min": (-1, 0),
}
INITIALIZATIONS_WITH_STD = ("random_normal", "truncated_normal")


BOUNDS = {  # of an architecture's numbers: what a file asks for must be a network that a machine can hold
    "filter_size": (1, 255),
    "depth_conv": (NUM_BLOCKS, 300),
    "width_conv": (1, 1 << 16),
    "width_growth": (1, 64),
    "stride": (1, 255),
    "depth_fc": (0, 300),
    "width_fc": (1, 1 << 24),
    "image_channels": (1, 255),
    "image_size": (1, 1 << 16),
    "num_outputs": (NUM_CLASSES, 1 << 16),
}


def _shown(found: object) -> str:
    """A value for a message; Python refuses to print a number of thousands of digits."""
    return "a number of more than 64 bits" if isinstance(found, int) and abs(found) >= 2**64 else repr(found)


def _check_types(value: Any) -> None:
    """Raise a ZooError if a field of a dataclass has a value of another type; numpy's numbers are no Python
    numbers.
    """
    types = typing.get_type_hints(type(value))
    for field in dataclasses.fields(value):
        found, field_type = getattr(value, field.name), types[field.name]
        legal = typing.get_args(field_type) or (field_type,)
        if not (type(found) in legal or (type(found) is int and float in legal)):
            expected = " or ".join("None" if k is type(None) else k.__name__ for k in legal)
            raise ZooError(
                f"{type(value).__name__}.{field.name}",
                expected=expected,
                found=_shown(found),
                do="give such a value",
            )


def _check_legal(value: object) -> None:
    """Raise a ZooError if a field of a dataclass has a value that is not in LEGAL_VALUES."""
    for name, legal in LEGAL_VALUES.items():
        found = getattr(value, name, legal[0])
        if found not in legal:
            expected = "one of " + ", ".join(map(str, legal))
            raise ZooError(
                f"{type(value).__name__}.{name}",
                expected=expected,
                found=_shown(found),
                do="choose a legal value",
            )


@dataclass(frozen=True)
class Architecture:
    """The part of a recipe that fixes the shapes of a network, and so its row.

    Three blocks of convolutions (conv -> batch-norm -> activation), then hidden dense layers (dense ->
    activation -> batch-norm), then the output layer. Both papers' networks are instances: the defaults are
    the `fixed` one of Eilertsen et al.

    Raises:
        ZooError: if a value is not legal, or no such network is possible.

    Example:
        >>> Architecture().id
        'conv3x8k5-max-dense2x128-bn-in3x32'
        >>> Architecture(filter_size=3, width_conv=4).conv_widths
        (4, 8, 16)
        >>> Architecture.from_json(Architecture(width_fc=64).to_json()).dense_widths
        (64, 32)
    """

    filter_size: int = 5  # kernels are filter_size x filter_size, odd
    depth_conv: int = 3  # convolutions in all; the last blocks get the second ones first
    width_conv: int = 8  # channels of the first block
    width_growth: int = 2  # channels of block c are width_conv * width_growth**c
    stride: int = 1  # of every convolution
    padding: str = "same"  # "same": filter_size // 2 on every side; "valid": none
    pooling: str = "max"  # "max": each block ends in a 2x2 max-pool; "none"
    head: str = "flatten"  # after the convolutions: "flatten" (channel, height, width) or global "average"
    depth_fc: int = 2  # hidden dense layers
    # units of the first hidden dense layer, halved at each further one; None without hidden layers
    width_fc: int | None = 128
    batch_norm: bool = True  # convolution: before the activation; dense: after it
    # dropout closes the hidden "dense" layers or the "conv" layers; its rate is the recipe's
    dropout_place: str = "dense"
    image_channels: int = 3  # 1: gray, 3: colour (gray images tiled)
    image_size: int = 32  # pixels, height = width
    pixel_min: int = 0  # pixels enter the network scaled to pixel_min .. 1
    # units of the output layer; nets of Eilertsen et al.'s own release have twice as many as classes
    num_outputs: int = NUM_CLASSES

    def __post_init__(self) -> None:
        _check_types(self)
        _check_legal(self)
        for name, (low, high) in BOUNDS.items():
            found = getattr(self, name)
            if found is not None and not low <= found <= high:
                raise ZooError(
                    f"Architecture.{name}",
                    expected=f"{low} to {high}",
                    found=_shown(found),
                    do="choose a number in between",
                )
        if self.filter_size % 2 == 0:
            raise ZooError(
                "Architecture.filter_size",
                expected="an odd number",
                found=str(self.filter_size),
                do="choose 3, 5, 7, ...",
            )
        if (self.width_fc is None) != (self.depth_fc == 0):
            raise ZooError(
                "Architecture.width_fc",
                expected="None without hidden dense layers, else a number",
                found=str(self.width_fc),
                do="set both",
            )
        if not all(self.dense_widths):
            found = f"{self.width_fc}, halved to {', '.join(map(str, self.dense_widths))}"
            raise ZooError(
                "Architecture.width_fc",
                expected="a unit in each hidden layer",
                found=found,
                do="widen them, or have fewer",
            )
        if self.map_sizes[-1] < 1:
            raise ZooError(
                "Architecture",
                expected="an image that survives the convolutions",
                found=f"{self.image_size} pixels",
                do="enlarge it",
            )

    @property
    def convs_per_block(self) -> tuple[int, ...]:
        """Convolutions in each block; depth 4 adds a second one to block 3, depth 5 to blocks 2 and 3."""
        base, extra = divmod(self.depth_conv, NUM_BLOCKS)
        return tuple(base + (block >= NUM_BLOCKS - extra) for block in range(NUM_BLOCKS))

    @property
    def conv_widths(self) -> tuple[int, ...]:
        """Output channels of each convolution."""
        return tuple(
            self.width_conv * self.width_growth**b
            for b, n in enumerate(self.convs_per_block)
            for _ in range(n)
        )

    @property
    def pooled(self) -> tuple[bool, ...]:
        """Whether each convolution is followed by a 2x2 max-pool."""
        return tuple(self.pooling == "max" and i == n - 1 for n in self.convs_per_block for i in range(n))

    @property
    def pad(self) -> int:
        """Zeros on every side of a convolution's input."""
        return self.filter_size // 2 if self.padding == "same" else 0

    @property
    def map_sizes(self) -> tuple[int, ...]:
        """Height (= width) of the feature map after each convolution, before pooling; then that of the last
        map after pooling.
        """
        sizes, size = [], self.image_size
        for pool in self.pooled:
            size = (size + 2 * self.pad - self.filter_size) // self.stride + 1
            sizes.append(size)
            size = size // 2 if pool else size
        return (*sizes, size)

    @property
    def dense_widths(self) -> tuple[int, ...]:
        """Units of each hidden dense layer."""
        return tuple((self.width_fc or 0) >> i for i in range(self.depth_fc))

    @property
    def id(self) -> str:
        """A short name, unique among architectures and fit for a file name."""
        conv = f"conv{self.depth_conv}x{self.width_conv}k{self.filter_size}"
        conv += (
            f"s{self.stride}" * (self.stride != 1)
            + f"g{self.width_growth}" * (self.width_growth != 2)
            + "v" * (self.padding == "valid")
        )
        parts = [
            conv,
            self.pooling if self.pooling != "none" else "",
            "avg" if self.head == "average" else "",
        ]
        parts += [
            f"dense{self.depth_fc}x{self.width_fc}" if self.depth_fc else "",
            "bn" if self.batch_norm else "",
        ]
        parts += ["convdrop" if self.dropout_place == "conv" else ""]
        # c: pixels centred on 0
        parts += [f"in{self.image_channels}x{self.image_size}" + "c" * (self.pixel_min == -1)]
        parts += [f"out{self.num_outputs}" if self.num_outputs != NUM_CLASSES else ""]
        return "-".join(filter(None, parts))

    def to_json(self) -> str:
        """The fields as JSON, in their order.

        Returns:
            The text, which `from_json` reads.
        """
        return json.dumps(dataclasses.asdict(self), separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Architecture:
        """The architecture that `to_json` wrote.

        Args:
            text: JSON with the fields of an architecture; what it leaves out has its default.

        Returns:
            The architecture.

        Raises:
            ZooError: if the text is not that of an architecture.
        """
        expected = "the fields of Architecture"
        if not isinstance(text, str):
            raise ZooError("architecture_json", expected=expected, found=repr(text)[:80], do="rebuild it")
        fields = parse_json(text, "architecture_json", expected)
        if not isinstance(fields, dict) or not fields.keys() <= {
            field.name for field in dataclasses.fields(cls)
        }:
            raise ZooError("architecture_json", expected=expected, found=text[:80], do="rebuild it")
        return cls(**fields)


@dataclass(frozen=True)
class Recipe:
    """All hyper-parameters of one training.

    Fields stand in the index as columns of the same name, the architecture's beside them.

    Raises:
        ZooError: if a value is not legal, or two of them do not fit together.

    Example:
        >>> values = {"dataset": "mnist", "learning_rate": 0.001, "batch_size": 32, "optimizer": "adam"}
        >>> recipe = Recipe(Architecture(), **values, activation="relu", initialization="glorot_uniform")
        >>> columns = recipe.columns()
        >>> columns["learning_rate"], columns["filter_size"]
        (0.001, 5)
    """

    architecture: Architecture  # fixes the shapes
    dataset: str  # the image set, e.g. "mnist"
    learning_rate: float  # in the first epoch
    batch_size: int  # images in a step
    optimizer: str  # TensorFlow's forms: adam (eps 1e-8), rmsprop (decay 0.9), momentum (0.95), sgd
    activation: str  # of all layers but the output
    initialization: str  # of the weights; biases start at 0
    init_std: float | None = None  # standard deviation, for random_normal and truncated_normal
    augmentation: bool = False  # whether images are changed at random before each use
    dropout: float = 0.0  # probability that a unit is dropped
    l2: float = 0.0  # adds l2 * sum(w^2) over the kernels to the loss
    train_fraction: float = 1.0  # the first part of the training images that is used
    validation_fraction: float = 0.0  # part of those, shuffled per model, that is held out
    balanced: bool = False  # each epoch is re-drawn to equal class counts
    learning_rate_decay: float = 1.0  # factor per epoch
    max_epochs: int = 1000  # training ends after these at the latest
    early_stopping: bool = False  # the stopping rule of Eilertsen et al.

    def __post_init__(self) -> None:
        _check_legal(self)
        if (self.init_std is None) == (self.initialization in INITIALIZATIONS_WITH_STD):
            raise ZooError(
                "Recipe.init_std",
                expected=f"a number for {' and '.join(INITIALIZATIONS_WITH_STD)} only",
                found=str(self.init_std),
                do="set it",
            )

        if self.early_stopping and not self.validation_fraction:
            raise ZooError(
                "Recipe.early_stopping",
                expected="a validation part",
                found="validation_fraction 0",
                do="set it",
            )

    def columns(self) -> dict[str, Any]:
        """The recipe as columns of the index: its own fields and those of the architecture.

        Returns:
            column -> value.
        """
        fields = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name != "architecture"
        }
        return {**fields, **dataclasses.asdict(self.architecture)}


# What a family of networks draws at random. A model's draw of a field is a pure function of (seed, subset,
# model number, field).
