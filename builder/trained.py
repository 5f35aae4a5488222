"""What training a model produces, on its way to the store."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from builder.plan import Model


@dataclass
class Export:
    """A model at an epoch's start."""

    epoch: int
    step: int
    validation_accuracy: float | None
    validation_loss: float | None


@dataclass(frozen=True)
class Trained:
    """A finished model."""

    model: Model
    rows: np.ndarray  # [S, P]
    # for each of S snapshots: the columns that differ between snapshots, and converged, diverged
    snapshots: list[dict[str, Any]]
    epochs: int  # begun; a diverged model's last epoch counts, though its row is not kept
    edge_scores: np.ndarray | None = None  # [S, E] of the architectures that have them


@dataclass(frozen=True)
class Summary:
    """What a trained model reports besides its staged file."""

    model_id: str
    epochs: int
    score: float | None  # test accuracy, or PSNR in dB of a network that represents an image
    diverged: bool
    seconds: float  # since its cohort began


def summary(trained: Trained, seconds: float) -> Summary:
    final = trained.snapshots[-1]
    score = final.get("test_accuracy", final.get("psnr"))
    return Summary(trained.model.id, trained.epochs, score, final["diverged"], seconds)
