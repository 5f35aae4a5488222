"""Rows as the methods of this field take them: tensors by layer, a graph, tokens; and the permutations that
leave the function as it is.

    view = Graph.from_rows(architecture, rows)  # rows [P] or [N, P], a numpy array or a torch tensor
    view.rows()                                 # the same rows

Hidden units have no order: a permutation of them, done to every tensor that they touch, gives another row of
the same function. To all that follows, a dense layer after the flatten is a convolution whose kernel covers
the whole map: its weight is [units, channels, map, map], so that to permute the channels is to permute an
axis. Batch-norm's four vectors belong to the units of their layer.

Letters of axes: N networks (any leading axes), P weights of a row, O units of a layer, I inputs of a layer, K
side of a kernel, V nodes, E edges, T tokens.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nws_dataset.errors import ZooError
from nws_dataset.format.layout import TensorSpec, layout_of
from nws_dataset.format.recipe import LEGAL_VALUES, Architecture
from nws_dataset.views.gather import check_axes, concatenate, flatten, like, take, with_zero
from nws_dataset.views.permutations import CACHED, permutation_spec, tensor_indices

CONVENTIONS = ("nfn", "dws")
# what a unit has beside its incoming weights
VECTOR_ROLES = ("bias", "norm_weight", "norm_bias", "norm_mean", "norm_variance")
NODE_TYPES = ("input", "conv", "dense", "output")
TOKEN_SIZE = 288  # that of Schürholt et al.


@dataclass(frozen=True, eq=False)
class LayerTuples:
    """The tensors of each layer, from input to output, as networks that are equivariant to permutations take
    them.

    | convention | weights | biases | norms |
    |---|---|---|---|
    | "nfn" | [N, 1, O, I], convolutions [N, 1, O, I, K, K] | [N, 1, O] | [N, 4, O] |
    | "dws" | [N, I, O, K * K], K * K = 1 where there is no kernel | [N, O, 1] | [N, O, 4] |

    The first is that of neural functionals (NFN, Zhou et al., arXiv 2302.14040), for
    `WeightSpaceFeatures(view.weights, view.biases)`; the second that of DWSNets (Navon et al., arXiv
    2301.12780). `norms` are batch-norm's weight, bias, mean and variance of each hidden layer, or () without
    batch-norm; a permutation of units reorders them with the bias, so they may be joined to it as four more
    channels.

    Raises:
        ZooError: if there is no such convention.
    """

    architecture: Architecture  # of all of them
    weights: tuple[Any, ...]  # of every layer
    biases: tuple[Any, ...]  # of every layer
    norms: tuple[Any, ...] = ()  # of every hidden layer, or none
    convention: str = CONVENTIONS[0]  # the order of axes, see above

    def __post_init__(self) -> None:
        if self.convention not in CONVENTIONS:
            raise ZooError(
                "convention",
                expected=f"one of {', '.join(CONVENTIONS)}",
                found=repr(self.convention),
                do="choose one of them",
            )

    @classmethod
    def from_rows(
        cls, architecture: Architecture, rows: Any, convention: str = CONVENTIONS[0]
    ) -> LayerTuples:
        """The tensors of rows; no copy is made.

        Args:
            architecture: that of the rows.
            rows: [..., P], a numpy array or torch tensor.
            convention: "nfn" or "dws", the order of axes.

        Returns:
            The view; its arrays are of the kind of `rows`.

        Raises:
            ZooError: if there is no such convention, or rows are not of this architecture.

        Example:
            >>> architecture = Architecture()
            >>> rows = np.zeros((2, layout_of(architecture).num_weights), np.float32)
            >>> view = LayerTuples.from_rows(architecture, rows)
            >>> [array.shape for array in (view.weights[0], view.weights[3], view.weights[4])]
            [(2, 1, 8, 3, 5, 5), (2, 1, 128, 32, 4, 4), (2, 1, 64, 128)]
            >>> view.biases[4].shape, view.norms[4].shape
            ((2, 1, 64), (2, 4, 64))
            >>> view.rows().shape == rows.shape
            True
            >>> LayerTuples.from_rows(architecture, rows, "dws").weights[3].shape
            (2, 32, 128, 16)
        """
        check_axes("rows", rows, layout_of(architecture).num_weights)
        shapes = permutation_spec(architecture).shapes
        lead = tuple(rows.shape[:-1])
        layers = []
        for weight, *vectors in _layers(architecture):
            flat, shape = rows[..., weight.offset : weight.stop], shapes[weight.name]
            # a unit's bias, and its batch-norm
            beside = rows[..., weight.stop : vectors[-1].stop].reshape(*lead, len(vectors), shape[0])
            bias, norm = beside[..., :1, :], beside[..., 1:, :]
            if convention == "dws":
                kernels = flat.reshape(*lead, *shape[:2], math.prod(shape[2:]))
                layers.append((kernels.swapaxes(-3, -2), bias.swapaxes(-2, -1), norm.swapaxes(-2, -1)))
            else:
                layers.append((flat.reshape(*lead, 1, *shape), bias, norm))
        weights, biases, norms = zip(*layers, strict=True)
        return cls(architecture, weights, biases, norms[:-1] if architecture.batch_norm else (), convention)

    def rows(self) -> Any:
        """The rows [..., P] of these tensors, a copy.

        Returns:
            [..., P], an array or tensor of the same kind.

        Raises:
            ZooError: if their shapes are not those of this architecture.
        """
        self._check()
        lead = len(self.biases[0].shape) - 2
        pieces = []
        for i, tensors in enumerate(zip(self.weights, self.biases, strict=True)):
            weight, *vectors = (*tensors, *self.norms[i : i + 1])
            if self.convention == "dws":
                weight, vectors = weight.swapaxes(-3, -2), [vector.swapaxes(-2, -1) for vector in vectors]
            pieces += [flatten(tensor, lead) for tensor in (weight, *vectors)]
        return concatenate(pieces)

    def _check(self) -> None:
        """Raise a ZooError unless the tensors have the shapes of the architecture."""
        row = np.empty(layout_of(self.architecture).num_weights)
        expected = LayerTuples.from_rows(self.architecture, row, self.convention)
        for name in ("weights", "biases", "norms"):
            found, wanted = getattr(self, name), getattr(expected, name)
            if len(found) != len(wanted):
                raise ZooError(
                    name,
                    expected=f"{len(wanted)} tensors",
                    found=str(len(found)),
                    do="give one of each layer that has it",
                )
            for i, (tensor, shape) in enumerate(zip(found, (tensor.shape for tensor in wanted), strict=True)):
                check_axes(f"{name}[{i}]", tensor, *shape)


@dataclass(frozen=True, eq=False)
class Graph:
    """Networks as graphs of their computation, with PyTorch Geometric's field names.

    Nodes are the input channels, then each layer's channels or units, then the outputs, in network order. An
    edge leads from an input of a layer to a unit of it. This is the graph of Kofinas et al. (arXiv
    2403.12143) and Lim et al. (arXiv 2312.04501). A permutation of hidden units renames nodes and changes
    nothing else. What is the same for all networks of an architecture is a property, and made once:
    `Data(x=view.x[n], edge_index=view.edge_index, edge_attr=view.edge_attr[n])` is network n.
    """

    architecture: Architecture  # of all of them
    x: Any  # [N, V, 5]: VECTOR_ROLES of each node, zero where it has none
    # [N, E, K * K]: the kernel, centred among zeros; a dense layer's is one number, or the map after the
    # flatten
    edge_attr: Any

    @classmethod
    def from_rows(cls, architecture: Architecture, rows: Any, kernel_size: int | None = None) -> Graph:
        """The graphs of rows.

        Args:
            architecture: that of the rows.
            rows: [..., P], a numpy array or torch tensor.
            kernel_size: K, odd; None for the smallest that holds the architecture's kernels and its last map.
                Give a larger one to let graphs of several architectures have edges of one width.

        Returns:
            The view; its arrays are of the kind of `rows`.

        Raises:
            ZooError: if the kernel size is too small or even, or rows are not of this architecture.

        Example:
            >>> architecture = Architecture()
            >>> rows = np.zeros((2, layout_of(architecture).num_weights), np.float32)
            >>> view = Graph.from_rows(architecture, rows)
            >>> view.x.shape, view.edge_index.shape, view.edge_attr.shape
            ((2, 261, 5), (2, 13592), (2, 13592, 25))
            >>> view.edge_index[:, [0, 1, 3, -1]].tolist(), view.node_layer[[0, 3, 260]].tolist()
            ([[0, 1, 0, 250], [3, 3, 4, 260]], [0, 1, 6])
            >>> view.rows().shape
            (2, 92218)
        """
        check_axes("rows", rows, layout_of(architecture).num_weights)
        rows = with_zero(rows)
        return cls(
            architecture,
            take(rows, _node_indices(architecture)),
            take(rows, _edge_indices(architecture, kernel_size)),
        )

    def rows(self) -> Any:
        """The rows [..., P] of these features, a copy. Numbers that stand for padding are left out.

        Returns:
            [..., P], an array or tensor of the same kind.

        Raises:
            ZooError: if their shapes are not those of this architecture.
        """
        side = math.isqrt(self.edge_attr.shape[-1])
        return _rows_from(
            self.architecture,
            x=(self.x, _node_indices(self.architecture)),
            edge_attr=(self.edge_attr, _edge_indices(self.architecture, side)),
        )

    @functools.cached_property
    def edge_index(self) -> Any:
        """[2, E] integers: source and target node of each edge."""
        first = _first_nodes(self.architecture).tolist()
        edges = [
            np.mgrid[units:end, inputs:units].reshape(2, -1)
            for inputs, units, end in zip(first, first[1:], first[2:], strict=False)
        ]
        # as the weights lie: unit by unit, input by input
        return like(self.x, np.concatenate(edges, axis=1)[[1, 0]])

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers of nodes: "input", then those of the layout."""
        return NODE_TYPES[0], *layout_of(self.architecture).layers

    @functools.cached_property
    def node_layer(self) -> Any:
        """[V] integers: the index of each node's layer in `layers`."""
        return like(self.x, np.repeat(np.arange(len(self.layers)), np.diff(_first_nodes(self.architecture))))

    @functools.cached_property
    def node_type(self) -> Any:
        """[V] integers: the index of each node's type in NODE_TYPES."""
        types = np.array([NODE_TYPES.index(layer.rstrip("0123456789")) for layer in self.layers])
        return like(self.x, np.repeat(types, np.diff(_first_nodes(self.architecture))))

    def node_activation(self, activation: str | Sequence[str]) -> Any:
        """Which function each node applies.

        Args:
            activation: the networks' column of the index: a name, or N of them (`snapshots["activation"]`).

        Returns:
            [V] or [N, V] integers: the index of its name in LEGAL_VALUES["activation"], -1 for inputs and
            outputs, which apply none.

        Raises:
            ZooError: for another activation.

        Example:
            >>> architecture = Architecture()
            >>> view = Graph.from_rows(architecture, np.zeros(layout_of(architecture).num_weights))
            >>> view.node_activation("tanh")[[0, 3, 260]].tolist()
            [-1, 3, -1]
        """
        names, legal = np.asarray(activation), LEGAL_VALUES["activation"]
        unknown = sorted({*names.ravel().tolist()} - {*legal})
        if unknown:
            raise ZooError(
                "activation",
                expected=f"some of {', '.join(legal)}",
                found=", ".join(map(str, unknown)),
                do="give the column",
            )
        index = np.array([legal.index(name) for name in names.ravel()]).reshape(*names.shape, 1)
        first, node = _first_nodes(self.architecture), np.arange(self.x.shape[-2])
        return like(self.x, np.where((node >= first[1]) & (node < first[-2]), index, -1))


@dataclass(frozen=True, eq=False)
class Tokens:
    """Networks as sequences of tokens of one size, as sequence models of weights take them.

    A unit's incoming weights, its bias and its batch-norm's four numbers stand together, cut into tokens;
    zeros fill up the last one. As in SANE (Schürholt et al., arXiv 2406.09997), except that batch-norm has
    tokens of its own there.
    """

    architecture: Architecture  # of all of them
    tokens: Any  # [N, T, size]

    @classmethod
    def from_rows(cls, architecture: Architecture, rows: Any, size: int = TOKEN_SIZE) -> Tokens:
        """The tokens of rows.

        Args:
            architecture: that of the rows.
            rows: [..., P], a numpy array or torch tensor.
            size: numbers in a token.

        Returns:
            The view; its arrays are of the kind of `rows`.

        Raises:
            ZooError: if the size is not positive, or rows are not of this architecture.

        Example:
            >>> architecture = Architecture()
            >>> rows = np.zeros((2, layout_of(architecture).num_weights), np.float32)
            >>> view = Tokens.from_rows(architecture, rows)
            >>> view.tokens.shape, view.mask.shape, view.position[[0, 24, 25]].tolist(), view.rows().shape
            ((2, 418, 288), (418, 288), [[0, 0, 0], [24, 2, 0], [25, 2, 0]], (2, 92218))
        """
        check_axes("rows", rows, layout_of(architecture).num_weights)
        return cls(architecture, take(with_zero(rows), _token_indices(architecture, size)))

    def rows(self) -> Any:
        """The rows [..., P] of these tokens, a copy. Numbers that stand for padding are left out.

        Returns:
            [..., P], an array or tensor of the same kind.

        Raises:
            ZooError: if their shapes are not those of this architecture.
        """
        return _rows_from(
            self.architecture, tokens=(self.tokens, _token_indices(self.architecture, self.tokens.shape[-1]))
        )

    @functools.cached_property
    def mask(self) -> Any:
        """[T, size] bool: False where zeros fill up a token."""
        return like(
            self.tokens,
            _token_indices(self.architecture, self.tokens.shape[-1])
            < layout_of(self.architecture).num_weights,
        )

    @functools.cached_property
    def position(self) -> Any:
        """[T, 3] integers: index in the sequence, layer, unit in the layer."""
        size, units_of_layers = self.tokens.shape[-1], []
        for layer, tensors in enumerate(_layers(self.architecture)):
            units = tensors[0].shape[0]
            unit = np.repeat(
                np.arange(units), math.ceil(sum(tensor.size for tensor in tensors) / units / size)
            )
            units_of_layers.append(np.stack([np.full_like(unit, layer), unit], axis=1))
        position = np.concatenate(units_of_layers)
        return like(self.tokens, np.insert(position, 0, np.arange(len(position)), axis=1))


# How graph and tokens are made: an array of indices says which number of the row stands at each position, P
# where none does. It is made once for an architecture, by the reshapes that the tensors themselves would
# undergo; to take a view of rows, and to turn it back, is then a gather.


def _layers(architecture: Architecture) -> list[list[TensorSpec]]:
    """The tensors of each layer: its weight, its bias, then batch-norm's where it has one."""
    return [
        list(tensors)
        for _, tensors in itertools.groupby(layout_of(architecture).tensors, lambda tensor: tensor.layer)
    ]


def _first_nodes(architecture: Architecture) -> np.ndarray:
    """The first node of the inputs and of each layer, then the number of nodes."""
    return np.cumsum(
        [0, architecture.image_channels, *(weight.shape[0] for weight, *_ in _layers(architecture))]
    )


@functools.lru_cache(CACHED)
def _node_indices(architecture: Architecture) -> np.ndarray:
    """[V, len(VECTOR_ROLES)]"""
    indices, first = tensor_indices(architecture), _first_nodes(architecture)
    nodes = np.full((first[-1], len(VECTOR_ROLES)), layout_of(architecture).num_weights)
    for i, (_, *vectors) in enumerate(_layers(architecture), 1):
        for vector in vectors:
            nodes[first[i] : first[i + 1], VECTOR_ROLES.index(vector.role)] = indices[vector.name]
    return nodes


@functools.lru_cache(CACHED)
def _edge_indices(architecture: Architecture, kernel_size: int | None) -> np.ndarray:
    """[E, K * K]; an edge's kernel stands in the middle of its square."""
    indices, num_weights = tensor_indices(architecture), layout_of(architecture).num_weights
    kernels = [indices[weight.name] for weight, *_ in _layers(architecture)]
    kernels = [kernel.reshape(*kernel.shape[:2], *(kernel.shape[2:] or (1, 1))) for kernel in kernels]
    # odd: so that the middle of an odd kernel is the middle of the square
    smallest = max(kernel.shape[-1] for kernel in kernels) | 1
    side = smallest if kernel_size is None else kernel_size
    if not isinstance(side, int | np.integer) or side < smallest or side % 2 == 0:
        raise ZooError(
            "kernel_size",
            expected=f"an odd number of at least {smallest}",
            found=repr(side),
            do="choose such a number",
        )
    edges = []
    for kernel in kernels:
        before, after = (side - kernel.shape[-1]) // 2, (side - kernel.shape[-1] + 1) // 2
        square = np.pad(
            kernel, ((0, 0), (0, 0), (before, after), (before, after)), constant_values=num_weights
        )
        edges.append(square.reshape(-1, side * side))
    return np.concatenate(edges)


@functools.lru_cache(CACHED)
def _token_indices(architecture: Architecture, size: int) -> np.ndarray:
    """[T, size]"""
    if not isinstance(size, int | np.integer) or size < 1:
        raise ZooError(
            "size", expected="at least 1", found=repr(size), do="say how many numbers a token holds"
        )
    indices, num_weights = tensor_indices(architecture), layout_of(architecture).num_weights
    tokens = []
    for weight, *vectors in _layers(architecture):
        units = np.concatenate(
            [indices[tensor.name].reshape(weight.shape[0], -1) for tensor in (weight, *vectors)], axis=1
        )
        tokens.append(
            np.pad(units, ((0, 0), (0, -units.shape[1] % size)), constant_values=num_weights).reshape(
                -1, size
            )
        )
    return np.concatenate(tokens)


def _rows_from(architecture: Architecture, **parts: tuple[Any, np.ndarray]) -> Any:
    """The rows [..., P] that stand in arrays, each with its indices."""
    num_weights = layout_of(architecture).num_weights
    numbers, order = [], []
    for name, (array, indices) in parts.items():
        check_axes(name, array, *indices.shape)
        filled = np.flatnonzero(indices < num_weights)
        numbers.append(take(flatten(array, len(array.shape) - indices.ndim), filled))
        order.append(indices.reshape(-1)[filled])
    return take(concatenate(numbers), np.argsort(np.concatenate(order), kind="stable"))
