"""Published results on networks that are not ours: what methods reach elsewhere.

The networks, how many there are and how they were trained differ from a zoo's.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from nws_dataset.console import Cell, Table
from nws_dataset.evaluation.scores import metric_of
from nws_dataset.evaluation.tasks import EDGES, LABEL

ACCURACY = "accuracy"


@dataclass(frozen=True)
class Protocol:
    """Networks that methods were tried on, and what each reached."""

    section: str  # of the page
    kind: str  # of the networks
    words: str
    metric: str
    datasets: tuple[str, ...]
    # method and arXiv number of the source -> a value for each data set, None where there is none
    values: dict[tuple[str, str], tuple[float | None, ...]]


DWS, SCALEGMN, WS_KAN, ASYMMETRIC = "2301.12780", "2406.10685", "2602.16316", "2405.20231"
PROTOCOLS = (
    Protocol(
        LABEL,
        "siren",
        "SIRENs of DWSNets, one an image, 55,000 to learn from (CIFAR-10: those of NFN without copies)",
        "accuracy",
        ("mnist", "fashion_mnist", "cifar10"),
        {
            ("MLP", DWS): (0.1755, 0.1991, None),
            ("MLP, permutation augmentation", DWS): (0.2926, 0.2276, None),
            ("MLP, alignment", DWS): (0.5898, 0.4779, None),
            ("inr2vec's architecture", DWS): (0.2369, 0.2233, None),
            ("transformer", DWS): (0.2657, 0.2697, None),
            ("NFN-HNP", SCALEGMN): (0.7911, 0.6894, 0.2864),
            ("NFN-NP", SCALEGMN): (0.7850, 0.6819, 0.3341),
            ("DWSNets", SCALEGMN): (0.8571, 0.6706, 0.3445),
            ("NG-GNN, no probes", SCALEGMN): (0.9140, 0.6800, 0.3604),
            ("ScaleGMN", SCALEGMN): (0.9657, 0.8046, 0.3643),
            ("ScaleGMN-B", SCALEGMN): (0.9659, 0.8078, 0.3882),
        },
    ),
    Protocol(
        LABEL,
        "kan",
        "KANs of WS-KAN, one an image; their number and training are not published",
        "accuracy",
        ("mnist", "fashion_mnist", "cifar10"),
        {
            ("MLP", WS_KAN): (0.341, 0.413, 0.168),
            ("MLP, permutation augmentation", WS_KAN): (0.627, 0.630, 0.282),
            ("MLP, alignment", WS_KAN): (0.810, 0.736, 0.300),
            ("deep meta-classifier", WS_KAN): (0.734, 0.731, 0.330),
            ("deep sets on edges", WS_KAN): (0.591, 0.659, 0.232),
            ("set transformer on edges", WS_KAN): (0.875, 0.802, 0.343),
            ("WS-KAN", WS_KAN): (0.943, 0.846, 0.422),
        },
    ),
    Protocol(
        ACCURACY,
        "kan",
        "KAN classifiers of WS-KAN; R² of those marked * is derived from the error and the variance",
        "r2",
        ("mnist", "fashion_mnist", "kmnist"),
        {
            ("MLP", WS_KAN): (0.7699, None, None),
            ("deep meta-classifier *", WS_KAN): (0.889, 0.830, 0.903),
            ("deep sets on edges", WS_KAN): (None, 0.8973, 0.9407),
            ("WS-KAN", WS_KAN): (0.9481, 0.9227, 0.9569),
        },
    ),
    Protocol(
        ACCURACY,
        "resnet",
        "10,000 small residual networks, 5,000 to learn from",
        "r2",
        ("cifar10",),
        {
            ("deep meta-classifier, whole rows", ASYMMETRIC): (0.95,),
            ("dense net on statistics", ASYMMETRIC): (0.976,),
        },
    ),
    Protocol(
        EDGES,
        "kan",
        "KAN classifiers of WS-KAN; the share that is kept, and so the majority rate, is not published",
        "edge_accuracy",
        ("mnist", "fashion_mnist", "kmnist"),
        {
            ("deep meta-classifier", WS_KAN): (0.9307, 0.9659, 0.9139),
            ("WS-KAN", WS_KAN): (0.9793, 0.9893, 0.9772),
        },
    ),
)


def published_tables(section: str, kinds: Collection[str]) -> list[Table]:
    """What is published for a section of the page on networks of these kinds, on other networks than ours."""
    tables = []
    for protocol in PROTOCOLS:
        if protocol.section != section or protocol.kind not in kinds:
            continue
        metric = metric_of(protocol.metric)
        rows = [
            (method, f"arXiv {source}", *(Cell() if v is None else Cell(metric.text(v), v) for v in values))
            for (method, source), values in protocol.values.items()
        ]
        title = f"Published, on other networks, {metric.words}: {protocol.words}"
        tables.append(Table(title, ("method", "source", *protocol.datasets), rows, num_heads=2))
    return tables
