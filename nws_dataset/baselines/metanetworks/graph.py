"""A network that passes messages on the graph of a row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from nws_dataset.baselines.metanetworks.base import EDGES, TARGETS, Metanetwork, check_heads
from nws_dataset.baselines.predictors import MAX_LAYERS
from nws_dataset.baselines.saving import MAX_INTEGER, Allowed
from nws_dataset.networks.layout import layout_of
from nws_dataset.views.statistics import statistics


@dataclass(eq=False)
class GraphNetwork(Metanetwork):
    """A graph network on rows: messages along the edges in both directions, states of nodes and edges.

    The order of hidden units does not change its answer; the order of edges is that of its answers for them.
    Computed layer by layer as dense products, as all units of two layers are connected. After Kofinas et al.
    (arXiv 2403.12143) and Lim et al. (arXiv 2312.04501). Needs torch.

    Args:
        width: of a node's state, a multiple of `heads`.
        heads: width of an edge's state.
        rounds: of messages.
        dropout: of the readout.
        statistics: the readout also gets the seven statistics of each tensor.

    The other parameters and attributes are those of `Metanetwork`.

    Example:
        >>> from nws_dataset.networks import siren
        >>> architecture, random = siren.Architecture(width_hidden=8), np.random.default_rng(0)
        >>> scales, labels = np.repeat([0.1, 1.0], 32), np.repeat(["small", "large"], 32)
        >>> rows = (scales[:, None] * random.normal(size=(64, 105))).astype(np.float32)
        >>> network = GraphNetwork(architecture, width=16, heads=4, epochs=5, batch_size=8, random_state=0)
        >>> bool((network.fit(rows, labels).predict(rows) == labels).mean() > 0.9)
        True
        >>> network.predict_proba(rows[:3]).shape
        (3, 2)
    """

    width: int = 64
    heads: int = 16
    rounds: int = 3
    dropout: float = 0.0
    statistics: bool = False

    _allowed: ClassVar[Mapping[str, Allowed]] = {
        **Metanetwork._allowed,
        **dict.fromkeys(("width", "heads"), Allowed(1, MAX_INTEGER, integer=True)),
        "rounds": Allowed(1, MAX_LAYERS, integer=True),
        "dropout": Allowed(0, 1, open_high=True),
    }
    targets: ClassVar[tuple[str, ...]] = TARGETS

    def _make_module(self, num_outputs: int, num_features: int = 0) -> Any:
        """See `Metanetwork._make_module`."""
        from nws_dataset.baselines.metanetworks.modules import GraphModule

        return GraphModule(
            self.architecture,
            width=self.width,
            heads=self.heads,
            rounds=self.rounds,
            dropout=self.dropout,
            num_outputs=self._or_edges(num_outputs),
            num_statistics=num_features,
        )

    def _features(self, rows: np.ndarray) -> np.ndarray | None:
        reads = self.statistics and self.target != EDGES
        return statistics(rows, layout_of(self.architecture))[0] if reads else None

    def check_parameters(self) -> None:
        super().check_parameters()
        check_heads(self.width, self.heads)
