"""Dropout with masks that cost little; torch's are a quarter of a small network's step on a CPU."""

from __future__ import annotations

import torch

PER_DRAW = 4  # masked values for each 64 random bits
LEVELS = 1 << 16  # of a probability


class Dropout(torch.nn.Module):
    """As torch.nn.Dropout, with a probability to 16 bits.

    Args:
        p: probability that a value is dropped, from 0 to less than 1.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.dropped = min(round(p * LEVELS), LEVELS - 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """In training some values [...] become 0 and the others larger; in evaluation all stay."""
        if not self.training or not self.dropped:
            return x
        draws = torch.empty(-(-x.numel() // PER_DRAW), dtype=torch.int64).random_(-(1 << 63), None)
        levels = draws.view(torch.int16)[: x.numel()].view(x.shape)
        return x * (levels >= self.dropped - LEVELS // 2).to(x.dtype).mul_(LEVELS / (LEVELS - self.dropped))
