"""Reads a zoo of neural networks: its index, its weights, its networks; and learns from them with two
baselines.

    from nws_dataset import Zoo
    zoo = Zoo("nws")
    weights = zoo.weights(zoo.filter(dataset="mnist", is_final=True))

A public name is imported when it is first used, so that `import nws_dataset` stays light: torch is loaded
only for what needs it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nws_dataset.errors import ZooError as ZooError
    from nws_dataset.layout import Layout as Layout
    from nws_dataset.layout import layout_of as layout_of
    from nws_dataset.load import load_dataset as load_dataset
    from nws_dataset.load import with_weights as with_weights
    from nws_dataset.meta_classifier import DeepMetaClassifier as DeepMetaClassifier
    from nws_dataset.meta_classifier import DeepMetaRegressor as DeepMetaRegressor
    from nws_dataset.network import Network as Network
    from nws_dataset.predictors import DenseNet as DenseNet
    from nws_dataset.predictors import GradientBoosting as GradientBoosting
    from nws_dataset.predictors import LogitLinear as LogitLinear
    from nws_dataset.recipe import Architecture as Architecture
    from nws_dataset.recipe import Recipe as Recipe
    from nws_dataset.slices import RandomUnits as RandomUnits
    from nws_dataset.slices import ZooRows as ZooRows
    from nws_dataset.statistics import zoo_features as zoo_features
    from nws_dataset.views import Graph as Graph
    from nws_dataset.views import LayerTuples as LayerTuples
    from nws_dataset.views import Tokens as Tokens
    from nws_dataset.views import compose_permutations as compose_permutations
    from nws_dataset.views import inverse_permutations as inverse_permutations
    from nws_dataset.views import permutation_spec as permutation_spec
    from nws_dataset.views import permute as permute
    from nws_dataset.views import random_permutations as random_permutations
    from nws_dataset.zoo import Rows as Rows
    from nws_dataset.zoo import Zoo as Zoo

__version__ = "0.1.0"

_EXPORTS = {
    "recipe": ("Architecture", "Recipe"),
    "layout": ("Layout", "layout_of"),
    "network": ("Network",),
    "zoo": ("Rows", "Zoo"),
    "load": ("load_dataset", "with_weights"),
    "views": (
        "Graph",
        "LayerTuples",
        "Tokens",
        "compose_permutations",
        "inverse_permutations",
        "permutation_spec",
        "permute",
        "random_permutations",
    ),
    "errors": ("ZooError",),
    "statistics": ("zoo_features",),
    "predictors": ("DenseNet", "GradientBoosting", "LogitLinear"),
    "meta_classifier": ("DeepMetaClassifier", "DeepMetaRegressor"),
    "slices": ("RandomUnits", "ZooRows"),
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
    globals()[name] = value  # from now on found without this function
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
