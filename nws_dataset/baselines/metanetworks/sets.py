"""Networks that read a row as a set, in which nothing has a place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from nws_dataset.baselines.metanetworks.base import EDGES, TARGETS, Metanetwork, check_heads
from nws_dataset.baselines.predictors import MAX_LAYERS
from nws_dataset.baselines.saving import MAX_INTEGER, Allowed
from nws_dataset.errors import ValueZooError


@dataclass(eq=False)
class DeepSets(Metanetwork):
    """A deep set (Zaheer et al. 2017, arXiv 1703.06114) of weights, or of edges. Needs torch.

    Over weights it sees neither places nor tensors, as in Lim et al. 2024 (arXiv 2405.20231). An edge has its
    weights and its target's bias, and is embedded by its layer.

    Args:
        over: "weights" or "edges".
        width: of an element's state.

    The other parameters and attributes are those of `Metanetwork`.
    """

    over: str = "weights"
    width: int = 64

    targets: ClassVar[tuple[str, ...]] = TARGETS
    _allowed: ClassVar[Mapping[str, Allowed]] = {
        **Metanetwork._allowed,
        "over": Allowed(choices=("weights", "edges")),
        "width": Allowed(1, MAX_INTEGER, integer=True),
    }

    def _make_module(self, num_outputs: int, num_features: int = 0) -> Any:
        """See `Metanetwork._make_module`."""
        from nws_dataset.baselines.metanetworks.modules import EachEdge, MeanOfElements, MeanOfWeights

        if self.over == "weights":
            return MeanOfWeights(self.width, num_outputs)
        each = EachEdge(self.architecture, self.width)
        return MeanOfElements(each, self.width, self._or_edges(num_outputs))

    def check_parameters(self) -> None:
        super().check_parameters()
        if self.target == EDGES and self.over != "edges":
            do = "choose another value"
            raise ValueZooError("over", expected="edges, the target", found=repr(self.over), do=do)


@dataclass(eq=False)
class SetTransformer(Metanetwork):
    """A set transformer (Lee et al. 2019, arXiv 1810.00825) over edges. Needs torch.

    An edge has its weights and its target's bias, and is embedded by its layer. Edges attend to each other
    through a few learned points.

    Args:
        width: of an edge's state, a multiple of `heads`.
        heads: of the attention.
        points: learned ones of each block.
        blocks: of attention.

    The other parameters and attributes are those of `Metanetwork`.
    """

    width: int = 32
    heads: int = 4
    points: int = 16
    blocks: int = 2

    targets: ClassVar[tuple[str, ...]] = TARGETS
    _allowed: ClassVar[Mapping[str, Allowed]] = {
        **Metanetwork._allowed,
        **dict.fromkeys(("width", "heads", "points"), Allowed(1, MAX_INTEGER, integer=True)),
        "blocks": Allowed(1, MAX_LAYERS, integer=True),
    }

    def _make_module(self, num_outputs: int, num_features: int = 0) -> Any:
        """See `Metanetwork._make_module`."""
        from nws_dataset.baselines.metanetworks.modules import EachEdge, SetAttention

        return SetAttention(
            EachEdge(self.architecture, self.width),
            width=self.width,
            heads=self.heads,
            points=self.points,
            blocks=self.blocks,
            num_outputs=self._or_edges(num_outputs),
        )

    def check_parameters(self) -> None:
        super().check_parameters()
        check_heads(self.width, self.heads)
