"""Networks that read the row as it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from nws_dataset.baselines.metanetworks.base import EDGES, TARGETS, Metanetwork
from nws_dataset.baselines.saving import MAX_INTEGER, Allowed
from nws_dataset.errors import ZooError
from nws_dataset.networks.layout import layout_of

CHANNELS = (2, 4, 8, 16, 32, 64)  # of the first convolutions, each followed by a pool
LAST_POOLS = (False, True, False, True)  # whether a pool follows each of the last convolutions
CHANNELS_OF_EDGES = (16, 32, 32, 32)
KERNEL = 5


@dataclass(eq=False)
class MLP(Metanetwork):
    """Dense layers on the row; each weight is standardised by itself. Needs torch.

    With `permute`, it is the published baseline with permutation augmentation.

    Args:
        width: units of each of the two hidden layers.
        dropout: probability that a unit is dropped.

    The other parameters and attributes are those of `Metanetwork`.
    """

    width: int = 512
    dropout: float = 0.3

    _allowed: ClassVar[Mapping[str, Allowed]] = {
        **Metanetwork._allowed,
        "width": Allowed(1, MAX_INTEGER, integer=True),
        "dropout": Allowed(0, 1, open_high=True),
    }
    by_orbit: ClassVar[bool] = False

    def _make_module(self, num_outputs: int, num_features: int = 0) -> Any:
        """See `Metanetwork._make_module`."""
        from torch import nn

        from nws_dataset.baselines.metanetworks.modules import dense

        layers = list[nn.Module]()
        for inputs in (layout_of(self.architecture).num_weights, self.width):
            layers += [dense(inputs, self.width), nn.Dropout(self.dropout)]
        return nn.Sequential(*layers, nn.Linear(self.width, num_outputs))


@dataclass(eq=False)
class RowConvolutions(Metanetwork):
    """The variant of the deep meta-classifier that reads the whole row. Needs torch.

    Source: Lim et al. 2024, arXiv 2405.20231: ten convolutions of width 5 without padding (2, 4, 8, 16, 32,
    and five times 64 channels; ReLU, batch-norm), a pool of 2 after each of the first six, the eighth and the
    tenth; then a dense layer at each position, their mean, and two dense layers. Rows that are too short
    (below 2,044 weights) go without as many of the last pools as leave one position. How the published
    figures for edges were made is not known: here convolutions with padding run along the edges in the row's
    order, without pools.

    Parameters and attributes are those of `Metanetwork`.
    """

    by_orbit: ClassVar[bool] = False
    targets: ClassVar[tuple[str, ...]] = TARGETS

    def _make_module(self, num_outputs: int, num_features: int = 0) -> Any:
        """See `Metanetwork._make_module`."""
        from nws_dataset.baselines.metanetworks.modules import Convolutions, EdgeConvolutions

        if self.target == EDGES:
            return EdgeConvolutions(self.architecture, CHANNELS_OF_EDGES, KERNEL)
        length = layout_of(self.architecture).num_weights
        pooled = [True] * len(CHANNELS) + list(LAST_POOLS)
        while any(pooled) and _positions(length, pooled) < 1:
            pooled[max(i for i, pool in enumerate(pooled) if pool)] = False
        if _positions(length, pooled) < 1:
            least, do = len(pooled) * (KERNEL - 1) + 1, "choose another method"
            expected = f"rows of {least} weights or more"
            raise ZooError(self.architecture.id, expected=expected, found=str(length), do=do)
        stages = zip((*CHANNELS, *[CHANNELS[-1]] * len(LAST_POOLS)), pooled, strict=True)
        return Convolutions(list(stages), KERNEL, num_outputs)


def _positions(length: int, pooled: list[bool]) -> int:
    """Positions that remain of a row."""
    for pool in pooled:
        length = (length - KERNEL + 1) // (2 if pool else 1)
    return length
