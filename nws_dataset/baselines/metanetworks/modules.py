"""The torch modules of the methods.

Axes: B rows of a batch, P weights of a row, V nodes of one layer, T and S target and source nodes of a layer
of edges, E edges, F features of an edge, D width of a node's state, H heads (the width of an edge's), C
outputs.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from nws_dataset.networks.base import BaseArchitecture
from nws_dataset.views.gather import take
from nws_dataset.views.graph import Layers

INITIAL = 0.5  # deviation of learned embeddings
READOUT = 256  # units of the readout
MAX_READ = 16  # inputs or outputs whose states are read one by one; of more the mean and maximum
PART = 1 << 15  # weights of a batch whose states are computed at once
PER_EDGE = 32  # units of the readout of an edge


def dense(inputs: int, outputs: int) -> nn.Sequential:
    """A linear layer, layer-norm and ReLU."""
    return nn.Sequential(nn.Linear(inputs, outputs), nn.LayerNorm(outputs), nn.ReLU())


class Convolutions(nn.Module):
    """Convolutions on a row without padding, then dense layers at each position, whose mean is read out."""

    def __init__(self, stages: Sequence[tuple[int, bool]], kernel: int, num_outputs: int) -> None:
        super().__init__()
        layers, inputs = list[nn.Module](), 1
        for channels, pooled in stages:
            layers += [nn.Conv1d(inputs, channels, kernel), nn.ReLU(), nn.BatchNorm1d(channels)]
            layers += [nn.MaxPool1d(2)] if pooled else []
            inputs = channels
        self.stages = nn.Sequential(*layers)
        self.position = dense(inputs, inputs)
        self.readout = nn.Sequential(dense(inputs, inputs), nn.Linear(inputs, num_outputs))

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        positions = self.stages(rows[:, None]).transpose(1, 2)
        return self.readout(self.position(positions).mean(1))


class EdgeConvolutions(nn.Module):
    """Convolutions with padding along the edges [B, E, F] of a row, in its order; a logit for each edge.

    Args:
        architecture: of the rows.
        channels: of each convolution.
        kernel: its width, odd.
    """

    def __init__(self, architecture: BaseArchitecture, channels: Sequence[int], kernel: int) -> None:
        super().__init__()
        self.embed = EachEdge(architecture, channels[0])
        layers, inputs = list[nn.Module](), channels[0]
        for outputs in channels:
            layers += [nn.Conv1d(inputs, outputs, kernel, padding=kernel // 2), nn.ReLU()]
            layers += [nn.BatchNorm1d(outputs)]
            inputs = outputs
        self.stages = nn.Sequential(*layers, nn.Conv1d(inputs, 1, 1))

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return self.stages(self.embed(rows).mT)[:, 0]


class MeanOfElements(nn.Module):
    """A deep set: dense layers on each element, their mean, dense layers on it, or on it and each element.

    Args:
        embed: from rows [B, P] to elements [B, elements, D].
        width: D.
        num_outputs: C; None for a logit for each element.
    """

    def __init__(self, embed: nn.Module, width: int, num_outputs: int | None) -> None:
        super().__init__()
        self.embed, self.per_element = embed, num_outputs is None
        self.element = nn.Sequential(nn.LayerNorm(width), nn.ReLU())
        inputs = 2 * width if self.per_element else width
        last = nn.Linear(width, num_outputs or 1)
        self.readout = nn.Sequential(dense(inputs, width), dense(width, width), last)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        states = self.element(self.embed(rows))
        mean = states.mean(1)
        if not self.per_element:
            return self.readout(mean)
        return self.readout(torch.cat([states, mean[:, None].expand_as(states)], 2))[:, :, 0]


class MeanOfWeights(nn.Module):
    """A deep set of the weights of a row [B, P]: a dense layer on each, their mean, dense layers on it.

    Args:
        width: D, of the layers.
        num_outputs: C.
    """

    def __init__(self, width: int, num_outputs: int) -> None:
        super().__init__()
        self.weight = dense(1, width)
        self.readout = nn.Sequential(dense(width, width), dense(width, width), nn.Linear(width, num_outputs))

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        size = max(1, PART // len(rows))
        # part by part, and in the backward pass once more: states of all weights of long rows fill gigabytes
        sums = [
            checkpoint(self._sum, part, use_reentrant=False) for part in rows[:, :, None].split(size, dim=1)
        ]
        return self.readout(torch.stack(sums).sum(0) / rows.shape[1])

    def _sum(self, part: torch.Tensor) -> torch.Tensor:
        return self.weight(part).sum(1)


class EachEdge(nn.Module):
    """Rows [B, P] as sets of edges [B, E, D]: an edge's weights and its target's bias, embedded by layer."""

    def __init__(self, architecture: BaseArchitecture, width: int) -> None:
        super().__init__()
        self.layers = Layers.of(architecture)
        features = [
            self.layers.nodes[edges.target].indices.shape[1] + edges.indices.shape[2]
            for edges in self.layers.edges
        ]
        self.embed = nn.ModuleList([nn.Linear(count, width) for count in features])

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        parts = []
        for edges, embed in zip(self.layers.edges, self.embed, strict=True):
            weights = take(rows, edges.indices)  # [B, T, S, F]
            of_target = take(rows, self.layers.nodes[edges.target].indices)[:, :, None]
            of_target = of_target.expand(*weights.shape[:3], -1)
            parts.append(embed(torch.cat([weights, of_target], 3)).flatten(1, 2))
        return torch.cat(parts, 1)


class Attention(nn.Module):
    """Multi-head attention of queries [B, Q, D] to elements [B, K, D], then a dense layer.

    It has no projection of the heads' outputs, which `nn.MultiheadAttention` has.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(2)])
        self.dense = nn.Sequential(nn.Linear(width, width), nn.ReLU())

    def forward(self, queries: torch.Tensor, elements: torch.Tensor) -> torch.Tensor:
        asked = self.query(queries)
        parts = (asked, self.key(elements), self.value(elements))
        split = [part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in parts]
        found = functional.scaled_dot_product_attention(*split).transpose(1, 2).flatten(2)
        found = self.norms[0](asked + found)
        return self.norms[1](found + self.dense(found))


class SetAttention(nn.Module):
    """A set transformer (Lee et al. 2019, arXiv 1810.00825) with inducing points.

    Elements attend to each other through a few learned points; a learned query pools them.

    Args:
        embed: from rows [B, P] to elements [B, elements, D].
        width: D.
        heads: of the attention.
        points: learned ones of each block.
        blocks: of attention.
        num_outputs: C; None for a logit for each element.
    """

    def __init__(
        self, embed: nn.Module, *, width: int, heads: int, points: int, blocks: int, num_outputs: int | None
    ) -> None:
        super().__init__()
        self.embed, self.per_element = embed, num_outputs is None
        self.points = nn.ParameterList(
            [nn.Parameter(torch.randn(points, width) * INITIAL) for _ in range(blocks)]
        )
        self.gather = nn.ModuleList([Attention(width, heads) for _ in range(blocks)])
        self.spread = nn.ModuleList([Attention(width, heads) for _ in range(blocks)])
        self.query = nn.Parameter(torch.randn(1, width) * INITIAL)
        self.pool = Attention(width, heads)
        self.readout = nn.Linear(width, num_outputs or 1)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        states, count = self.embed(rows), len(rows)
        for points, gather, spread in zip(self.points, self.gather, self.spread, strict=True):
            states = spread(states, gather(points.expand(count, -1, -1), states))
        if self.per_element:
            return self.readout(states)[:, :, 0]
        return self.readout(self.pool(self.query.expand(count, -1, -1), states)[:, 0])


class EdgeLinear(nn.Module):
    """A linear layer on the states of edges [B, H, T, S]."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs).uniform_(-1, 1) / math.sqrt(inputs))

    def forward(self, edges: torch.Tensor) -> torch.Tensor:
        weight = self.weight.expand(len(edges), -1, -1)
        return torch.bmm(weight, edges.flatten(2)).unflatten(2, edges.shape[2:])


class Messages(nn.Module):
    """A round of messages along the edges between two layers of nodes, in both directions.

    An edge's state [H] weighs a message of its node's state, H numbers of D / H each: so a sum over edges
    is H products of matrices [T, S] and [S, D / H].
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.forth, self.back = nn.Linear(width, width), nn.Linear(width, width)

    def forward(
        self, edges: torch.Tensor, sources: torch.Tensor, targets: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Messages to the targets [B, T, D + H] and the sources [B, S, D + H].

        Args:
            edges: [B, H, T, S].
            sources: [B, S, D].
            targets: [B, T, D].
        """
        forth = edges @ self._split(self.forth(sources))
        back = self._split(self.back(targets)).mT @ edges
        return forth.transpose(1, 2).flatten(2), back.permute(0, 3, 1, 2).flatten(2)

    def _split(self, states: torch.Tensor) -> torch.Tensor:
        """[B, S, D] -> [B, H, S, D / H + 1]: what edges sum up, and 1 / S for their mean."""
        split = (states / math.sqrt(states.shape[1])).unflatten(2, (self.heads, -1)).transpose(1, 2)
        ones = split.new_full((), 1 / states.shape[1]).expand(*split.shape[:3], 1)
        return torch.cat([split, ones], 3)


class NewNodes(nn.Module):
    """New states of nodes [B, V, D], each layer's, from messages along all edges [B, H, T, S]."""

    def __init__(self, layers: Layers, width: int, heads: int) -> None:
        super().__init__()
        self.layers = layers
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in layers.nodes])
        self.messages = nn.ModuleList([Messages(width, heads) for _ in layers.edges])
        received = width + heads
        self.nodes = nn.ModuleList(
            [
                nn.Sequential(
                    nn.Linear(width + 2 * received, 2 * width), nn.SiLU(), nn.Linear(2 * width, width)
                )
                for _ in layers.nodes
            ]
        )

    def forward(self, nodes: list[torch.Tensor], edges: list[torch.Tensor]) -> list[torch.Tensor]:
        normed = [norm(states) for norm, states in zip(self.norms, nodes, strict=True)]
        zero = [states.new_zeros(()) for states in nodes]
        into, out_of = list(zero), list(zero)
        for pair, states, messages in zip(self.layers.edges, edges, self.messages, strict=True):
            forth, back = messages(states, normed[pair.source], normed[pair.target])
            into[pair.target], out_of[pair.source] = into[pair.target] + forth, out_of[pair.source] + back
        received = nodes[0].shape[2] + edges[0].shape[1]
        new = []
        for i, update in enumerate(self.nodes):
            shape = *nodes[i].shape[:2], received
            both = [part[i].expand(shape) for part in (into, out_of)]
            new.append(nodes[i] + update(torch.cat([normed[i], *both], 2)))
        return new


class NewEdges(nn.Module):
    """New states of edges [B, H, T, S], each layer's, from theirs and those of their nodes [B, V, D]."""

    def __init__(self, layers: Layers, width: int, heads: int) -> None:
        super().__init__()
        self.layers = layers
        self.own = nn.ModuleList([EdgeLinear(heads, heads) for _ in layers.edges])
        self.to_target = nn.ModuleList([nn.Linear(width, heads) for _ in layers.edges])
        self.to_source = nn.ModuleList([nn.Linear(width, heads) for _ in layers.edges])

    def forward(self, nodes: list[torch.Tensor], edges: list[torch.Tensor]) -> list[torch.Tensor]:
        return [
            functional.silu(
                (own(states) + to_target(nodes[pair.target]).mT[:, :, :, None]).add_(
                    to_source(nodes[pair.source]).mT[:, :, None]
                )
            ).add_(states)
            for pair, states, own, to_target, to_source in zip(
                self.layers.edges, edges, self.own, self.to_target, self.to_source, strict=True
            )
        ]


class GraphModule(nn.Module):
    """Rounds of messages on the graph of a row [B, P], read out over its nodes, or per edge.

    Args:
        architecture: of the rows.
        width: D, of a node's state.
        heads: H, of an edge's.
        rounds: of messages.
        dropout: of the readout.
        num_outputs: C; None for a logit for each edge.
        num_statistics: numbers that the readout gets besides.
    """

    def __init__(
        self,
        architecture: BaseArchitecture,
        *,
        width: int,
        heads: int,
        rounds: int,
        dropout: float,
        num_outputs: int | None,
        num_statistics: int = 0,
    ) -> None:
        super().__init__()
        self.layers = layers = Layers.of(architecture)
        features = [layer.indices.shape[1] for layer in layers.nodes]  # 0 of some
        self.embed_nodes = nn.ModuleList(
            [nn.Linear(count, width) if count else nn.Identity() for count in features]
        )
        self.embed_edges = nn.ModuleList([nn.Linear(edges.indices.shape[2], heads) for edges in layers.edges])
        # inputs and outputs keep their order: each has a state of its own
        counts = [len(layer.indices) if layer.is_fixed else 1 for layer in layers.nodes]
        self.places = nn.ParameterList(
            [nn.Parameter(torch.randn(count, width) * INITIAL) for count in counts]
        )
        self.per_edge = num_outputs is None
        self.node_rounds = nn.ModuleList([NewNodes(layers, width, heads) for _ in range(rounds)])
        # without answers for edges nothing reads those of the last round
        edge_rounds = rounds if self.per_edge else rounds - 1
        self.edge_rounds = nn.ModuleList([NewEdges(layers, width, heads) for _ in range(edge_rounds)])
        if num_outputs is None:
            self.edge_readouts = nn.ModuleList([EdgeReadout(width, heads) for _ in layers.edges])
            return
        self.pooled = [not layer.is_fixed or len(layer.indices) > MAX_READ for layer in layers.nodes]
        read = sum(2 if pooled else count for pooled, count in zip(self.pooled, counts, strict=True))
        inputs = num_statistics + width * read
        self.readout = nn.Sequential(
            *(nn.LayerNorm(inputs), nn.Dropout(dropout), nn.Linear(inputs, READOUT), nn.SiLU()),
            *(nn.Dropout(dropout), nn.Linear(READOUT, num_outputs)),
        )

    def forward(self, rows: torch.Tensor, statistics: torch.Tensor | None = None) -> torch.Tensor:
        """[B, C], or [B, E] logits of edges."""
        nodes, edges = self._embedded(rows)
        for new_nodes, new_edges in itertools.zip_longest(self.node_rounds, self.edge_rounds):
            nodes = new_nodes(nodes, edges)
            edges = edges if new_edges is None else new_edges(nodes, edges)
        if self.per_edge:
            pairs = zip(self.layers.edges, edges, self.edge_readouts, strict=True)
            logits = [read(states, nodes[pair.source], nodes[pair.target]) for pair, states, read in pairs]
            return torch.cat(logits, 1)
        parts = [] if statistics is None else [statistics]
        for states, pooled in zip(nodes, self.pooled, strict=True):
            parts += [states.mean(1), states.amax(1)] if pooled else [states.flatten(1)]
        return self.readout(torch.cat(parts, 1))

    def _embedded(self, rows: torch.Tensor) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """The first states of nodes [B, V, D] and edges [B, H, T, S]."""
        nodes = []
        for layer, embed, place in zip(self.layers.nodes, self.embed_nodes, self.places, strict=True):
            states = place.expand(len(rows), len(layer.indices), -1)
            nodes.append(states + embed(take(rows, layer.indices)) if layer.indices.size else states)
        edges = [
            embed(take(rows, layer.indices)).movedim(3, 1).contiguous()
            for layer, embed in zip(self.layers.edges, self.embed_edges, strict=True)
        ]
        return nodes, edges


class EdgeReadout(nn.Module):
    """A logit for each edge from its state and those of its nodes."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.own = EdgeLinear(heads, PER_EDGE)
        self.source, self.target = nn.Linear(width, PER_EDGE), nn.Linear(width, PER_EDGE)
        self.last, self.bias = EdgeLinear(PER_EDGE, 1), nn.Parameter(torch.zeros(()))

    def forward(self, edges: torch.Tensor, sources: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """[B, T * S], from states [B, H, T, S], [B, S, D] and [B, T, D]."""
        of_nodes = self.target(targets).mT[:, :, :, None] + self.source(sources).mT[:, :, None]
        return self.last(functional.silu(self.own(edges) + of_nodes)).flatten(1) + self.bias
