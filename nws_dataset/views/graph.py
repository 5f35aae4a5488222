"""Rows as graphs of what the networks compute.

    view = Graph.from_rows(architecture, rows)  # rows [P] or [N, P], a numpy array or a torch tensor
    view.rows()                                 # the same rows

Axes: N networks (any leading axes), P weights of a row, K side of a kernel, V nodes, E edges.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nws_dataset.errors import ZooError
from nws_dataset.format.recipe import LEGAL_VALUES
from nws_dataset.networks.base import BaseArchitecture
from nws_dataset.networks.layout import INPUT, OUTPUT, TensorSpec, layout_of
from nws_dataset.views.gather import check_axes, flatten, like, take, with_zero
from nws_dataset.views.indices import (
    VECTOR_ROLES,
    padded_kernels,
    rows_from,
    smallest_side,
)
from nws_dataset.views.permutations import CACHED, tensor_indices

NODE_TYPES = ("input", "conv", "dense", OUTPUT)
# activations whose symmetry ScaleGMN knows -> whether it is of sign, else of scale
SIGN_SYMMETRIES = {"tanh": True, "relu": False, "sine": True}


@dataclass(frozen=True, eq=False)
class Graph:
    """Networks as graphs of what they compute, with PyTorch Geometric's field names.

    Nodes are the input channels, then each layer's channels or units, then the outputs, in network order. An
    edge goes from an input of a layer to one of its units. This is the graph of Kofinas et al. (arXiv
    2403.12143) and Lim et al. (arXiv 2312.04501). Permuting hidden units only renumbers nodes. What all
    networks of an architecture share is a property, and made once:
    `Data(x=view.x[n], edge_index=view.edge_index, edge_attr=view.edge_attr[n])` is network n.
    """

    architecture: BaseArchitecture  # of all of them
    x: Any  # [N, V, 5]: VECTOR_ROLES of each node, zero where it lacks one
    # [N, E, K * K]: the kernel, padded with zeros around it; a dense layer's is one number, or the map after
    # the flatten. For a kan [N, E, F]: w_b, w_s and the coefficients of an edge
    edge_attr: Any

    @classmethod
    def from_rows(cls, architecture: BaseArchitecture, rows: Any, kernel_size: int | None = None) -> Graph:
        """The graphs of rows.

        Args:
            architecture: that of the rows.
            rows: [..., P], a numpy array or torch tensor.
            kernel_size: K, odd; None for the smallest that holds the architecture's kernels and its last map.
                A larger one gives graphs of several architectures the same edge width.

        Returns:
            The view; its arrays are of the same type as `rows`.

        Raises:
            ZooError: if the kernel size is too small or even, or rows are not of this architecture.

        Example:
            >>> from nws_dataset import Architecture
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
        """The rows [..., P] of these features, a copy without the padding.

        Returns:
            [..., P], an array or tensor as the view has them.

        Raises:
            ZooError: if their shapes are not those of this architecture.
        """
        kernels = all(len(tensors) == 1 for tensors in _edge_tensors(self.architecture))
        side = math.isqrt(self.edge_attr.shape[-1]) if kernels else None
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
        """Names of the layers of nodes: "input", then those whose units they are.

        What a residual network adds up shares its nodes.
        """
        return tuple(layout_of(self.architecture).unit_counts)

    @functools.cached_property
    def node_layer(self) -> Any:
        """[V] integers: the index of each node's layer in `layers`."""
        return like(self.x, _node_layer(self.architecture))

    @functools.cached_property
    def node_type(self) -> Any:
        """[V] integers: the index of each node's type in NODE_TYPES."""
        kernels = {spec.units[0] for spec in layout_of(self.architecture).tensors if len(spec.shape) == 4}
        names = [
            layer if layer in NODE_TYPES else "conv" if layer in kernels else "dense" for layer in self.layers
        ]
        types = np.array([NODE_TYPES.index(name) for name in names])
        return like(self.x, np.repeat(types, np.diff(_first_nodes(self.architecture))))

    def node_activation(self, activation: str | Sequence[str]) -> Any:
        """The activation function of each node.

        Args:
            activation: of the networks: a name, or N of them (`snapshots["activation"]`).

        Returns:
            [V] or [N, V] integers: the index of its name in LEGAL_VALUES["activation"], -1 for inputs and
            outputs, which have none.

        Raises:
            ZooError: for another activation.

        Example:
            >>> from nws_dataset import Architecture
            >>> architecture = Architecture()
            >>> view = Graph.from_rows(architecture, np.zeros(layout_of(architecture).num_weights))
            >>> view.node_activation("tanh")[[0, 3, 260]].tolist()
            [-1, 3, -1]
        """
        names, legal = np.asarray(activation), LEGAL_VALUES["activation"]
        _check_activations(names.ravel().tolist(), self.architecture.activations, "give the column")
        index = np.array([legal.index(name) for name in names.ravel()]).reshape(*names.shape, 1)
        first, node = _first_nodes(self.architecture), np.arange(self.x.shape[-2])
        return like(self.x, np.where((node >= first[1]) & (node < first[-2]), index, -1))

    def to_neural_graphs(
        self, activation: str | Sequence[str] | None = None, *, linear_as_conv: bool = False
    ) -> list[dict[str, Any]]:
        """The input of neural-graphs' models (Kofinas et al.) for each network: `Data(**fields, y=target)`.

        Their `flattening_method` must be null.

        Args:
            activation: of the networks: a name, or N of them; None leaves out `activations`.
            linear_as_conv: as in their configuration. False: a dense layer's weight is followed by zeros.
                True: it is centred among zeros, like a kernel.

        Returns:
            N dicts, of tensors where the view has tensors:

            | field | what it is |
            |---|---|
            | `x` | [V, 1] biases; with batch-norm [V, 5], VECTOR_ROLES: set their `d_in` to 5 |
            | `edge_index` | [2, E], by source, then target |
            | `edge_attr` | [E, K * K], in this order |
            | `mlp_edge_masks` | [E] bool: edges of dense layers whose weight is one number |
            | `node_types` | [V] integers: 0 inputs and channels, 1 units and outputs of dense layers |
            | `spatial_embed_mask` | [V] bool: channels of the last convolution |
            | `conv_mask` | for each layer 1 if it has kernels or follows the flatten of a map, else 0 |
            | `layer_layout` | numbers of nodes: inputs, then each layer |
            | `fmap_size` | 1: no node is repeated after the flatten |
            | `activations` | the name of each hidden layer's function |

        Raises:
            ZooError: if there is no such activation, or not one per network.

        Example:
            >>> from nws_dataset import Architecture
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
        """The input of ScaleGMN's models (Kalogeropoulos et al., arXiv 2406.10685), also bidirectional ones,
        for each network: `Data(**fields, y=target)`.

        Args:
            activation: of the networks: a name, or N of them.

        Returns:
            N dicts, of tensors where the view has tensors: the fields of `to_neural_graphs`, dense weights
            first, and

            | field | what it is |
            |---|---|
            | `bw_edge_index` | [2, E]: `edge_index` from target to source |
            | `mask_hidden` | [V, 1] bool: nodes that are neither inputs nor outputs |
            | `mask_first_layer` | [V, 1] bool: inputs |
            | `sign_mask` | True where the symmetry is of sign (tanh, sine), False: of scale (relu) |
            | `node2type` | [V] integers: a type for each input, each hidden layer and each output |
            | `edge2type` | [E] integers: a type for the edges of each input, hidden layer and output |

            Their `d_in_v` is the width of `x`, `_max_kernel_height` and `_max_kernel_width` are K.

        Raises:
            ZooError: if an activation is not relu, tanh or sine, or there is not one per network.

        Example:
            >>> from nws_dataset import Architecture
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
        """The name of each network's activation."""
        count = math.prod(self.x.shape[:-2])
        names = (
            [activation] * count if isinstance(activation, str) else np.asarray(activation).ravel().tolist()
        )
        _check_activations(names, self.architecture.activations, "give the column")
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
        if not _is_chain(architecture):
            raise ZooError(
                architecture.id,
                expected="layers of one weight each, one behind the other",
                found=f"a {architecture.kind}",
                do="use the view itself",
            )
        edges, width = self.edge_attr.shape[-2:]
        order, layer, dense = _source_order(architecture), _node_layer(architecture), _dense(architecture)
        edge_index = _edges(architecture)[:, order]
        dense_edges = dense[layer[edge_index[1]]]
        numbers = np.arange(edges * width).reshape(edges, width)[order]
        if dense_first:
            first, middle = numbers[dense_edges, 0], numbers[dense_edges, width // 2]
            numbers[dense_edges, 0], numbers[dense_edges, width // 2] = middle, first
        edge_attr = take(flatten(self.edge_attr, self.edge_attr.ndim - 2), numbers)
        x = self.x if layout_of(architecture).has_batch_norm else self.x[..., :1]
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
                # a new list for each network: neural-graphs writes into them
                "conv_mask": (~dense[1:]).astype(int).tolist(),
                "layer_layout": np.bincount(layer).tolist(),
                "fmap_size": 1,
            }
            for features, attributes in zip(
                x.reshape(-1, *x.shape[-2:]), edge_attr.reshape(-1, edges, width), strict=True
            )
        ]


@dataclass(frozen=True)
class NodeLayer:
    """The nodes of one layer."""

    name: str  # of its units
    indices: np.ndarray  # [V, F]: places in the row of each node's biases and norms; F may be 0

    @property
    def is_fixed(self) -> bool:
        """Whether its nodes are inputs or outputs, which keep their order."""
        return self.name in (INPUT, OUTPUT)


@dataclass(frozen=True)
class EdgeLayer:
    """All edges from the nodes of one layer to those of another."""

    source: int  # number of the layer of nodes
    target: int
    indices: np.ndarray  # [T, S, F]: places in the row of the weights from each source to each target


@dataclass(frozen=True)
class Layers:
    """The graph of an architecture layer by layer, for methods that compute with whole layers.

    Nodes and edges have the order of `Graph`; features are not padded.
    """

    nodes: tuple[NodeLayer, ...]
    edges: tuple[EdgeLayer, ...]

    @classmethod
    @functools.lru_cache(CACHED)
    def of(cls, architecture: BaseArchitecture) -> Layers:
        """The layers of an architecture.

        Example:
            >>> from nws_dataset.networks import kan
            >>> layers = Layers.of(kan.Architecture(depth_hidden=1))
            >>> [(layer.name, layer.indices.shape) for layer in layers.nodes]
            [('input', (2, 0)), ('layer1', (32, 0)), ('output', (1, 0))]
            >>> [edges.indices.shape for edges in layers.edges]
            [(32, 2, 10), (1, 32, 10)]
        """
        layout, indices = layout_of(architecture), tensor_indices(architecture)
        names = list(layout.unit_counts)
        nodes = []
        for name, size in layout.unit_counts.items():
            vectors = [indices[spec.name] for spec in layout.tensors if spec.units == (name,)]
            nodes.append(NodeLayer(name, np.reshape(vectors, (len(vectors), size)).T.astype(np.int64)))
        edges = []
        for tensors in _edge_tensors(architecture):
            target, source = (names.index(str(units)) for units in tensors[0].units[:2])
            shape = *tensors[0].unit_shape[:2], -1
            parts = [indices[spec.name].reshape(shape) for spec in tensors]
            edges.append(EdgeLayer(source, target, np.concatenate(parts, axis=2)))
        return cls(tuple(nodes), tuple(edges))


def _check_activations(names: Sequence[str], legal: Sequence[str], do: str) -> None:
    unknown = sorted(map(str, {*names} - {*legal}))
    if unknown:
        raise ZooError("activation", expected=f"some of {', '.join(legal)}", found=", ".join(unknown), do=do)


def _first_nodes(architecture: BaseArchitecture) -> np.ndarray:
    """The first node of the inputs and of each layer, then the number of all nodes."""
    return np.cumsum([0, *layout_of(architecture).unit_counts.values()])


def _node_layer(architecture: BaseArchitecture) -> np.ndarray:
    """[V]: 0 for inputs, then each layer."""
    sizes = np.diff(_first_nodes(architecture))
    return np.repeat(np.arange(len(sizes)), sizes)


def _edge_tensors(architecture: BaseArchitecture) -> list[list[TensorSpec]]:
    """Of each layer of edges its tensors, whose first two axes are units and inputs."""
    layers = layout_of(architecture).by_layer.values()
    return [[spec for spec in tensors if len(spec.units) > 1] for tensors in layers]


def _dense(architecture: BaseArchitecture) -> np.ndarray:
    """For the inputs and each layer: whether its weights are numbers, not kernels."""
    shapes = {tensors[0].units[0]: tensors[0].unit_shape for tensors in reversed(_edge_tensors(architecture))}
    return np.array([len(shapes.get(units, ())) == 2 for units in layout_of(architecture).unit_counts])


def _edges(architecture: BaseArchitecture) -> np.ndarray:
    """[2, E]: source and target, in the weights' order: unit by unit, input by input."""
    first, edges = _first_nodes(architecture), []
    for layer in Layers.of(architecture).edges:
        units, inputs = layer.indices.shape[:2]
        target, source = first[layer.target], first[layer.source]
        edges.append(np.mgrid[target : target + units, source : source + inputs].reshape(2, -1))
    return np.concatenate(edges, axis=1)[[1, 0]]


def _is_chain(architecture: BaseArchitecture) -> bool:
    """Whether each layer has one weight and reads the layer before it."""
    tensors, units = _edge_tensors(architecture), [*layout_of(architecture).unit_counts]
    pairs = zip(tensors, units, units[1:], strict=False)
    return len(tensors) == len(units) - 1 and all(
        len(of_layer) == 1 and of_layer[0].units[:2] == (target, source) for of_layer, source, target in pairs
    )


def _source_order(architecture: BaseArchitecture) -> np.ndarray:
    """[E]: the edges by source, then target."""
    source, target = _edges(architecture)
    return np.lexsort((target, source))


def _scalegmn_fields(architecture: BaseArchitecture) -> dict[str, np.ndarray]:
    """ScaleGMN's fields beside those of neural-graphs, except those of activations."""
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
def _node_indices(architecture: BaseArchitecture) -> np.ndarray:
    """[V, len(VECTOR_ROLES)], or more where the norms of several layers stand on the same nodes."""
    nodes, zero = Layers.of(architecture).nodes, layout_of(architecture).num_weights
    width = max(len(VECTOR_ROLES), *(layer.indices.shape[1] for layer in nodes))
    missing = [((0, 0), (0, width - layer.indices.shape[1])) for layer in nodes]
    pairs = zip(nodes, missing, strict=True)
    return np.concatenate([np.pad(layer.indices, pad, constant_values=zero) for layer, pad in pairs])


@functools.lru_cache(CACHED)
def _edge_indices(architecture: BaseArchitecture, kernel_size: int | None) -> np.ndarray:
    """[E, K * K]; an edge's kernel stands in the middle of its square. Of a layer with several tensors, an
    edge's numbers in all of them, one behind the other.
    """
    if any(len(tensors) > 1 for tensors in _edge_tensors(architecture)):
        if kernel_size is not None:
            do = "leave it out"
            raise ZooError(
                "kernel_size", expected="none: edges are no kernels", found=repr(kernel_size), do=do
            )
        layers = Layers.of(architecture).edges
        return np.concatenate([layer.indices.reshape(-1, layer.indices.shape[2]) for layer in layers])
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
