"""The methods that are networks on whole rows, for zoos of one architecture."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from nws_dataset.baselines.metanetworks.base import CLASS, EDGES, NUMBER, Metanetwork
from nws_dataset.baselines.metanetworks.graph import GraphNetwork
from nws_dataset.baselines.metanetworks.rows import MLP, RowConvolutions
from nws_dataset.baselines.metanetworks.sets import DeepSets, SetTransformer
from nws_dataset.evaluation.inputs import EDGE_SET, GRAPH, GRAPH_STATISTICS, ROW, WEIGHT_SET, Inputs
from nws_dataset.evaluation.models import expected_seconds
from nws_dataset.evaluation.run import Method, Question
from nws_dataset.evaluation.tasks import Labelled, Task
from nws_dataset.networks.layout import layout_of

GRAPH_NETWORK, HYBRID = "graph network", "hybrid"
PLAIN_MLP, PERMUTED_MLP = "MLP", "MLP + permutations"
# name and input -> class and parameters
METANETWORKS: dict[tuple[str, str], tuple[type[Metanetwork], dict[str, Any]]] = {
    (PLAIN_MLP, ROW): (MLP, {"flip": False}),
    (PERMUTED_MLP, ROW): (MLP, {"permute": True}),
    ("convolutions", ROW): (RowConvolutions, {"flip": False}),
    ("deep sets", WEIGHT_SET): (DeepSets, {"width": 32, "flip": False}),
    ("deep sets", EDGE_SET): (DeepSets, {"over": "edges"}),
    ("set transformer", EDGE_SET): (SetTransformer, {}),
    (GRAPH_NETWORK, GRAPH): (GraphNetwork, {}),
    (HYBRID, GRAPH_STATISTICS): (GraphNetwork, {"statistics": True}),
}
STEPS, FEWEST, MOST = 5000, 20, 40  # of training: steps, and epochs for many and for few networks


def epochs_of(num_rows: int, batch_size: int) -> int:
    """Epochs of training on this many rows.

    Example:
        >>> epochs_of(8000, 32), epochs_of(100, 32)
        (20, 40)
    """
    return max(FEWEST, min(math.ceil(STEPS * batch_size / num_rows), MOST))


@dataclass
class RowModel:
    """A metanetwork as a `MethodModel`."""

    inputs: Inputs
    make: Callable[..., Metanetwork]
    task: Task
    seed: int

    def fit(self, training: Labelled, validation: Labelled) -> RowModel:
        target = _target(self.task)
        network = self.make(self.inputs.architecture, target=target, random_state=self.seed)
        network.epochs = epochs_of(len(training.indices), network.batch_size)
        held_out = (self._rows(validation.indices), validation.y) if len(validation.indices) else (None, None)
        self.network = network.fit(self._rows(training.indices), training.y, *held_out)
        return self

    def predict(self, networks: np.ndarray, question: Question) -> np.ndarray:
        rows = self._rows(networks)
        return self.network.predict_proba(rows) if self.task.of_edges else self.network.predict(rows)

    def _rows(self, networks: np.ndarray) -> np.ndarray:
        return np.asarray(self.inputs.weights)[networks]


def metanetworks(inputs: Inputs, target: str) -> list[Method]:
    """The methods for a target ("class", "number" or "edges") that read a zoo's rows; none for several
    architectures, or too many weights.
    """
    methods = []
    for (name, words), (kind, parameters) in METANETWORKS.items():
        whole = words in (WEIGHT_SET, GRAPH_STATISTICS)  # says nothing of a single edge
        if inputs.skipped or target not in kind.targets or (whole and target == EDGES):
            continue
        make = functools.partial(kind, **parameters)
        seconds = functools.partial(_seconds, inputs, make, (name, words))
        methods.append(Method(name, words, functools.partial(RowModel, inputs, make), seconds=seconds))
    return methods


def _target(task: Task) -> str:
    """What a metanetwork predicts."""
    return EDGES if task.of_edges else NUMBER if task.is_number else CLASS


def _seconds(inputs: Inputs, make: Callable[..., Metanetwork], key: tuple[str, str], task: Task) -> float:
    """See `expected_seconds`."""
    network = make(inputs.architecture, target=_target(task), epochs=1, random_state=0)
    rows = len(task.folds[0].training)
    size = min(network.batch_size, rows)
    steps = epochs_of(rows, network.batch_size) * (rows // size)
    shape = size, layout_of(inputs.architecture).num_weights
    kept = task.truth[:size] if task.of_edges else None
    return expected_seconds(inputs, (*key, network.target), steps, network, shape, kept)
