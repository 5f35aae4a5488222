"""A zoo of neural networks: read its index, weights and networks, and learn from them with two baselines.

    from nws_dataset import Zoo
    zoo = Zoo("nws")
    weights = zoo.weights(zoo.filter(dataset="mnist", is_final=True))

A public name is imported when it is first used, so `import nws_dataset` is fast: torch is only loaded by
names that need it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nws_dataset.baselines.meta_classifier import DeepMetaClassifier as DeepMetaClassifier
    from nws_dataset.baselines.meta_classifier import DeepMetaRegressor as DeepMetaRegressor
    from nws_dataset.baselines.metanetworks.graph import GraphNetwork as GraphNetwork
    from nws_dataset.baselines.predictors import DenseNet as DenseNet
    from nws_dataset.baselines.predictors import GradientBoosting as GradientBoosting
    from nws_dataset.baselines.predictors import LogitLinear as LogitLinear
    from nws_dataset.errors import ZooError as ZooError
    from nws_dataset.format.recipe import Recipe as Recipe
    from nws_dataset.networks.cnn import Architecture as Architecture
    from nws_dataset.networks.layout import Layout as Layout
    from nws_dataset.networks.layout import layout_of as layout_of
    from nws_dataset.networks.network import Network as Network
    from nws_dataset.networks.stacked import Networks as Networks
    from nws_dataset.reading.dataset import SnapshotDataset as SnapshotDataset
    from nws_dataset.reading.load import load_dataset as load_dataset
    from nws_dataset.reading.load import with_weights as with_weights
    from nws_dataset.reading.snapshots import Snapshots as Snapshots
    from nws_dataset.reading.zoo import Zoo as Zoo
    from nws_dataset.reading.zoo_rows import ZooRows as ZooRows
    from nws_dataset.views.graph import Graph as Graph
    from nws_dataset.views.layer_tuples import LayerTuples as LayerTuples
    from nws_dataset.views.permutations import compose_permutations as compose_permutations
    from nws_dataset.views.permutations import inverse_permutations as inverse_permutations
    from nws_dataset.views.permutations import permutation_spec as permutation_spec
    from nws_dataset.views.permutations import permute as permute
    from nws_dataset.views.permutations import random_permutations as random_permutations
    from nws_dataset.views.slices import RandomUnits as RandomUnits
    from nws_dataset.views.statistics import zoo_features as zoo_features
    from nws_dataset.views.tokens import Tokens as Tokens
    from nws_dataset.views.tokens import sane_state_dict as sane_state_dict

__version__ = "0.1.0"

_EXPORTS = {
    "format.recipe": ("Recipe",),
    "networks.cnn": ("Architecture",),
    "networks.layout": ("Layout", "layout_of"),
    "networks.network": ("Network",),
    "networks.stacked": ("Networks",),
    "reading.zoo": ("Zoo",),
    "reading.snapshots": ("Snapshots",),
    "reading.zoo_rows": ("ZooRows",),
    "reading.dataset": ("SnapshotDataset",),
    "reading.load": ("load_dataset", "with_weights"),
    "views.graph": ("Graph",),
    "views.layer_tuples": ("LayerTuples",),
    "views.tokens": ("Tokens", "sane_state_dict"),
    "views.permutations": (
        "compose_permutations",
        "inverse_permutations",
        "permutation_spec",
        "permute",
        "random_permutations",
    ),
    "views.slices": ("RandomUnits",),
    "views.statistics": ("zoo_features",),
    "baselines.predictors": ("DenseNet", "GradientBoosting", "LogitLinear"),
    "baselines.metanetworks.graph": ("GraphNetwork",),
    "baselines.meta_classifier": ("DeepMetaClassifier", "DeepMetaRegressor"),
    "errors": ("ZooError",),
}  # module -> its public names
_MODULE_OF = {name: module for module, names in _EXPORTS.items() for name in names}
__all__ = ["__version__", *_MODULE_OF]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        value = getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == __name__:
            raise
        message = f"nws_dataset.{name} needs {error.name}: pip install 'nws-dataset[baselines]'"
        raise ModuleNotFoundError(message, name=error.name) from error
    globals()[name] = value  # later lookups do not come here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
