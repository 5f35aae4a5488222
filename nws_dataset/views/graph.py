"""Rows as graphs of the networks' computation.

    view = Graph.from_rows(architecture, rows)  # rows [P] or [N, P], a numpy array or a torch tensor
    view.rows()                                 # the same rows

Letters of axes: N networks (any leading axes), P weights of a row, K side of a kernel, V nodes, E edges.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nws_dataset.errors import ZooError
from nws_dataset.format.layout import OUTPUT, layout_of
from nws_dataset.format.recipe import LEGAL_VALUES, Architecture
from nws_dataset.views.gather import check_axes, flatten, like, take, with_zero
from nws_dataset.views.indices import (
    VECTOR_ROLES,
    kernels,
    padded_kernels,
    rows_from,
    smallest_side,
    unit_vectors,
)
from nws_dataset.views.permutations import CACHED, permutation_spec

NODE_TYPES = ("input", "conv", "dense", OUTPUT)
# of which nets ScaleGMN knows a symmetry: of sign, else of scale
SIGN_SYMMETRIES = {"tanh": True, "relu": False}


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
        return rows_from(
            self.architecture,
            {
                "x": (self.x, _node_indices(self.architecture)),
                "edge_attr": (self.edge_attr, _edge_indices(self.architecture, side)),
            },
        )

    @functools.cached_property
    def edge_index(self) -> Any:
        """[2, E] integers: source and target node of each edge."""
        return like(self.x, _edges(self.architecture))

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers of nodes: "input", then those of the layout."""
        return NODE_TYPES[0], *layout_of(self.architecture).layers

    @functools.cached_property
    def node_layer(self) -> Any:
        """[V] integers: the index of each node's layer in `layers`."""
        return like(self.x, _node_layer(self.architecture))

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
        _check_activations(names.ravel().tolist(), legal, "give the column")
        index = np.array([legal.index(name) for name in names.ravel()]).reshape(*names.shape, 1)
        first, node = _first_nodes(self.architecture), np.arange(self.x.shape[-2])
        return like(self.x, np.where((node >= first[1]) & (node < first[-2]), index, -1))

    def to_neural_graphs(
        self, activation: str | Sequence[str] | None = None, *, linear_as_conv: bool = False
    ) -> list[dict[str, Any]]:
        """What the models of neural-graphs (Kofinas et al.) take of each network:
        `Data(**fields, y=target)`, where their `flattening_method` is null.

        Args:
            activation: the networks' column of the index: a name, or N of them. None leaves `activations`
                out.
            linear_as_conv: as in their configuration. False: the weight of a dense layer comes first among
                zeros. True: it stands in the middle, as a kernel does.

        Returns:
            N dicts, of tensors where the view has tensors:

            | field | what it is |
            |---|---|
            | `x` | [V, 1] biases; with batch-norm [V, 5], VECTOR_ROLES: set their `d_in` to 5 |
            | `edge_index` | [2, E], by source, then target |
            | `edge_attr` | [E, K * K], in this order |
            | `mlp_edge_masks` | [E] bool: edges whose weight is one number of a dense layer |
            | `node_types` | [V] integers: 0 inputs and channels, 1 units and outputs of dense layers |
            | `spatial_embed_mask` | [V] bool: channels of the last convolution |
            | `conv_mask` | of each layer 1 if it has kernels or follows the flatten of a map, else 0 |
            | `layer_layout` | how many nodes there are: inputs, then each layer |
            | `fmap_size` | 1: no node is repeated after the flatten |
            | `activations` | the name of each hidden layer's function |

        Raises:
            ZooError: if there is no such activation, or another number of them than networks.

        Example:
            >>> architecture = Architecture(batch_norm=False)
            >>> rows = np.zeros((2, layout_of(architecture).num_weights), np.float32)
            >>> fields = Graph.from_rows(architecture, rows).to_neural_graphs("relu")[0]
            >>> fields["x"].shape, fields["edge_index"][:, [0, 1, 8]].tolist()
            ((261, 1), [[0, 0, 1], [3, 4, 3]])
            >>> fields["layer_layout"], fields["conv_mask"]
            ([3, 8, 16, 32, 128, 64, 10], [1, 1, 1, 1, 0, 0])
        """
        networks = self._by_source(dense_first=not linear_as_conv)
        if activation is None:
            return networks
        hidden = len(self.layers) - 2
        return [
            {**fields, "activations": [name] * hidden}
            for fields, name in zip(networks, self._activations(activation), strict=True)
        ]

    def to_scalegmn(self, activation: str | Sequence[str]) -> list[dict[str, Any]]:
        """What the models of ScaleGMN (Kalogeropoulos et al., arXiv 2406.10685) take of each network, in both
        directions: `Data(**fields, y=target)`.

        Args:
            activation: the networks' column of the index: a name, or N of them.

        Returns:
            N dicts, of tensors where the view has tensors: the fields of `to_neural_graphs`, dense weights
            first, and

            | field | what it is |
            |---|---|
            | `bw_edge_index` | [2, E]: `edge_index` from target to source |
            | `mask_hidden` | [V, 1] bool: nodes that are neither inputs nor outputs |
            | `mask_first_layer` | [V, 1] bool: inputs |
            | `sign_mask` | True where the symmetry is of sign (tanh), False where it is of scale (relu) |
            | `node2type` | [V] integers: a type for each input, each hidden layer and each output |
            | `edge2type` | [E] integers: a type for the edges of each input, hidden layer and output |

            Their `d_in_v` is the width of `x`, `_max_kernel_height` and `_max_kernel_width` are K.

        Raises:
            ZooError: if an activation is neither relu nor tanh, or there is another number of them than
                networks.

        Example:
            >>> architecture = Architecture(batch_norm=False)
            >>> rows = np.zeros((2, layout_of(architecture).num_weights), np.float32)
            >>> one, other = Graph.from_rows(architecture, rows, 5).to_scalegmn(["relu", "tanh"])
            >>> one["edge_attr"].shape, int(one["mask_hidden"].sum()), one["sign_mask"], other["sign_mask"]
            ((13592, 25), 248, False, True)
        """
        networks = self._by_source(dense_first=True)
        names = self._activations(activation)
        _check_activations(
            names, tuple(SIGN_SYMMETRIES), "filter by it: ScaleGMN knows no symmetry of others"
        )
        shared = {name: like(self.x, array) for name, array in _scalegmn_fields(self.architecture).items()}
        return [
            {**fields, **shared, "sign_mask": SIGN_SYMMETRIES[name]}
            for fields, name in zip(networks, names, strict=True)
        ]

    def _activations(self, activation: str | Sequence[str]) -> list[str]:
        """A name for each network."""
        count = math.prod(self.x.shape[:-2])
        names = (
            [activation] * count if isinstance(activation, str) else np.asarray(activation).ravel().tolist()
        )
        _check_activations(names, LEGAL_VALUES["activation"], "give the column")
        if len(names) != count:
            raise ZooError(
                "activation",
                expected=f"a name, or {count} of them",
                found=str(len(names)),
                do="give the column",
            )
        return names

    def _by_source(self, *, dense_first: bool) -> list[dict[str, Any]]:
        """The fields that neural-graphs and ScaleGMN share, for each network."""
        architecture = self.architecture
        edges, width = self.edge_attr.shape[-2:]
        order, layer, dense = _source_order(architecture), _node_layer(architecture), _dense(architecture)
        edge_index = _edges(architecture)[:, order]
        dense_edges = dense[layer[edge_index[1]]]
        numbers = np.arange(edges * width).reshape(edges, width)[order]
        if dense_first:
            first, middle = numbers[dense_edges, 0], numbers[dense_edges, width // 2]
            numbers[dense_edges, 0], numbers[dense_edges, width // 2] = middle, first
        edge_attr = take(flatten(self.edge_attr, self.edge_attr.ndim - 2), numbers)
        x = self.x if architecture.batch_norm else self.x[..., :1]
        shared = {
            "edge_index": edge_index,
            "mlp_edge_masks": dense_edges,
            "node_types": dense[layer].astype(np.int64),
            "spatial_embed_mask": layer == np.flatnonzero(~dense)[-1],
        }
        shared = {name: like(self.x, array) for name, array in shared.items()}
        return [
            {
                "x": features,
                "edge_attr": attributes,
                **shared,
                # lists of their own: neural-graphs writes into them
                "conv_mask": (~dense[1:]).astype(int).tolist(),
                "layer_layout": np.bincount(layer).tolist(),
                "fmap_size": 1,
            }
            for features, attributes in zip(
                x.reshape(-1, *x.shape[-2:]), edge_attr.reshape(-1, edges, width), strict=True
            )
        ]


def _check_activations(names: Sequence[str], legal: Sequence[str], do: str) -> None:
    unknown = sorted(map(str, {*names} - {*legal}))
    if unknown:
        raise ZooError("activation", expected=f"some of {', '.join(legal)}", found=", ".join(unknown), do=do)


def _first_nodes(architecture: Architecture) -> np.ndarray:
    """The first node of the inputs and of each layer, then the number of nodes."""
    return np.cumsum([0, architecture.image_channels, *(len(kernel) for kernel in kernels(architecture))])


def _node_layer(architecture: Architecture) -> np.ndarray:
    """[V]: 0 for inputs, then each layer."""
    sizes = np.diff(_first_nodes(architecture))
    return np.repeat(np.arange(len(sizes)), sizes)


def _dense(architecture: Architecture) -> np.ndarray:
    """Of the inputs and each layer a bool: whether its weights are numbers, not kernels."""
    shapes = permutation_spec(architecture).shapes
    weights = [weight.name for weight, *_ in layout_of(architecture).by_layer.values()]
    return np.array([False, *(len(shapes[name]) == 2 for name in weights)])


def _edges(architecture: Architecture) -> np.ndarray:
    """[2, E]: source and target, as the weights lie: unit by unit, input by input."""
    first = _first_nodes(architecture).tolist()
    edges = [
        np.mgrid[units:end, inputs:units].reshape(2, -1)
        for inputs, units, end in zip(first, first[1:], first[2:], strict=False)
    ]
    return np.concatenate(edges, axis=1)[[1, 0]]


def _source_order(architecture: Architecture) -> np.ndarray:
    """[E]: the edges by source, then target."""
    source, target = _edges(architecture)
    return np.lexsort((target, source))


def _scalegmn_fields(architecture: Architecture) -> dict[str, np.ndarray]:
    """What ScaleGMN takes beside the fields of neural-graphs, but for the activation's."""
    first, layer = _first_nodes(architecture), _node_layer(architecture)
    source, target = _edges(architecture)[:, _source_order(architecture)]
    inputs, last = int(first[1]), int(layer[-1])
    node, edge_layer, output = np.arange(len(layer)), layer[target], first[-2]
    # types are counted through: inputs, a hidden layer each, outputs
    node_types = [node, inputs + last - 1 + node - output]
    edge_types = [source, inputs + last - 2 + target - output]
    return {
        "bw_edge_index": np.stack([target, source]),
        "mask_hidden": ((layer > 0) & (layer < last))[:, None],
        "mask_first_layer": (layer == 0)[:, None],
        "node2type": np.select([layer == 0, layer == last], node_types, inputs + layer - 1),
        "edge2type": np.select([edge_layer == 1, edge_layer == last], edge_types, inputs + edge_layer - 2),
    }


@functools.lru_cache(CACHED)
def _node_indices(architecture: Architecture) -> np.ndarray:
    """[V, len(VECTOR_ROLES)]"""
    first = _first_nodes(architecture)
    nodes = np.full((first[-1], len(VECTOR_ROLES)), layout_of(architecture).num_weights)
    for start, vectors in zip(first[1:], unit_vectors(architecture), strict=False):
        nodes[start : start + vectors.shape[1], : len(vectors)] = vectors.T
    return nodes


@functools.lru_cache(CACHED)
def _edge_indices(architecture: Architecture, kernel_size: int | None) -> np.ndarray:
    """[E, K * K]; an edge's kernel stands in the middle of its square."""
    smallest = smallest_side(architecture)
    side = smallest if kernel_size is None else kernel_size
    if not isinstance(side, int | np.integer) or side < smallest or side % 2 == 0:
        raise ZooError(
            "kernel_size",
            expected=f"an odd number of at least {smallest}",
            found=repr(side),
            do="choose such a number",
        )
    return np.concatenate(
        [kernel.reshape(-1, side * side) for kernel in padded_kernels(architecture, int(side))]
    )
