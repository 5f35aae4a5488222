"""What a page shows of a zoo's index: recipes, results over training, and which models it shows.

Axes: M models, S snapshots of a model.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from nws_dataset.errors import ZooError
from nws_dataset.explorer.packing import pack, pack_codes, quantize
from nws_dataset.format.recipe import Recipe
from nws_dataset.format.schema import COLUMNS, INDEX_SCHEMA
from nws_dataset.networks import columns_of_architectures
from nws_dataset.reading.snapshots import Snapshots
from nws_dataset.views.statistics import LOGARITHMIC

if TYPE_CHECKING:
    from nws_dataset.reading.zoo import Zoo

MAX_MODELS = 16_000
MAX_CURVE_VALUES = 1_000_000  # of all models' results over training: 2 MB
MAX_WHOLE = 2**53  # up to which JavaScript has every whole number
MAX_CATEGORIES = 12  # a column of numbers with more distinct values is a range
SEED = 0  # of every sample
FIELDS = tuple(
    dict.fromkeys(
        [
            *("subset", "split", "kind", "architecture"),
            *(field.name for field in dataclasses.fields(Recipe)),
            *columns_of_architectures(),
            *("num_weights", "label", "image", "converged", "diverged", "seed"),
        ]
    )
)
METRICS = (
    *("test_accuracy", "train_accuracy", "validation_accuracy", "psnr"),
    *("test_loss", "train_loss", "validation_loss"),
)
TIMES = ("epoch", "step")
COLOURED_BY = (  # the first that varies
    *("label", "kept_edges", "label_noise", "dataset"),
    *("optimizer", "activation", "initialization", "architecture"),
)
NOUNS = {True: "yes", False: "no", None: "n/a"}


@dataclass(frozen=True)
class Shown:
    """The models of a page.

    Args:
        final: [M], the last snapshot of each.
        lines: all snapshots of these models.
        at: [M, S], where a snapshot is among `lines`; -1 where a model has no more.
        last: [M], each model's last snapshot on the axis S.
        num_models: of the whole zoo.
        num_snapshots: of the whole zoo.
        most_snapshots: that a model has, of which S are shown.
    """

    final: Snapshots
    lines: Snapshots
    at: np.ndarray
    last: np.ndarray
    num_models: int
    num_snapshots: int
    most_snapshots: int

    @classmethod
    def of(cls, zoo: Zoo) -> Shown:
        """Choose what is shown: all models, or a sample of MAX_MODELS.

        Raises:
            ZooError: if the zoo is empty, or its index contradicts itself.
        """
        every = zoo.filter()
        final = every.filter(is_final=True)
        if not len(final):
            raise ZooError(zoo.name, expected="a zoo with models", found="none", do="build some")
        num_models, lines = len(final), every
        if num_models > MAX_MODELS:
            chosen = np.random.default_rng(SEED).choice(num_models, MAX_MODELS, replace=False)
            final = final[np.sort(chosen)]
        number = {name: i for i, name in enumerate(final["model_id"].tolist())}
        models = np.array([number.get(name, -1) for name in every["model_id"].tolist()], np.int64)
        if num_models > MAX_MODELS:
            lines, models = every[models >= 0], models[models >= 0]
        lengths, numbers = final["num_snapshots"], lines["snapshot"]
        legal = len(number) == len(final) and lengths.min() >= 1 and lengths.max() <= len(every)
        legal = legal and (models >= 0).all() and ((numbers >= 1) & (numbers <= lengths[models])).all()
        if not legal:
            expected = "snapshots 1 to num_snapshots of each model, the last one final"
            do = "check the zoo with nws verify, and build or fetch it again"
            raise ZooError(zoo.name, expected=expected, found="others", do=do)
        values = len(final) * sum(_known(lines[name]) for name in (*METRICS, *TIMES))
        most = int(lengths.max())
        kept = min(most, max(2, MAX_CURVE_VALUES // max(1, values)))
        at = np.full((len(final), kept), -1, np.int64)
        for length in np.unique(lengths).tolist():
            place = np.full(length + 1, -1)  # number of a snapshot -> its place on the axis S
            count = min(length, kept)
            place[1 + np.rint(np.linspace(0, length - 1, count)).astype(int)] = np.arange(count)
            own = np.flatnonzero(lengths[models] == length)
            own = own[place[numbers[own]] >= 0]
            at[models[own], place[numbers[own]]] = own
        last = np.minimum(lengths, kept) - 1
        return cls(final, lines, at, last, num_models, len(every), most)

    def __len__(self) -> int:
        return len(self.final)

    def over_training(self, name: str) -> np.ndarray:
        """A column of numbers at each snapshot [M, S] float64; NaN where there is none."""
        return np.where(self.at >= 0, self.lines[name].astype(np.float64)[self.at], np.nan)


def _known(numbers: np.ndarray) -> bool:
    """Whether there is any number."""
    return bool(np.isfinite(numbers).any())


def index_of(zoo: Zoo, shown: Shown) -> dict[str, Any]:
    """What the page shows without reading a weight.

    Returns:
        `ids` [M]; `fields`, columns of each model that vary; `same`, those that do not; `metrics` and
        `times`, numbers at each snapshot [M, S], or [1, S] where all models have the same.
    """
    fields: list[dict[str, Any]] = []
    same = []
    for name in FIELDS:
        values = dataset_names(zoo, shown.final) if name == "dataset" else shown.final[name]
        field = _field(name, values)
        if "numbers" in field or len(field["values"]) > 1:
            fields.append(field)
        elif field["values"] != [NOUNS[None]]:
            same.append({"name": name, "about": COLUMNS[name], "value": field["values"][0]})
    metrics = []
    for name in METRICS:
        values = shown.over_training(name)
        if _known(values):
            scale = "log" if name.endswith("loss") else "linear"
            metrics.append({"name": name, "about": COLUMNS[name], "codes": quantize(values, scale)})
    times = []
    for name in TIMES:
        values = shown.over_training(name)
        values = values[:1] if (values == values[:1]).all() else values
        times.append({"name": name, "about": COLUMNS[name], "values": pack(values.astype(np.float32))})
    return {
        "ids": shown.final["model_id"].tolist(),
        "last": pack_codes(shown.last),
        "fields": fields,
        "same": same,
        "metrics": metrics,
        "times": times,
    }


def number_field(name: str, about: str, values: np.ndarray, *, log: bool = False) -> dict[str, Any]:
    """A field that is filtered by a range: a number of each model [M], NaN where there is none."""
    whole = bool((np.isnan(values) | (values == np.rint(values))).all())
    return {"name": name, "about": about, "log": log, "whole": whole, "numbers": pack(_float32(values))}


def _float32(values: np.ndarray) -> np.ndarray:
    """Numbers as JavaScript gets them; what float32 cannot hold is missing."""
    with np.errstate(over="ignore"):
        found = values.astype(np.float32)
    return np.where(np.isfinite(found), found, np.float32(np.nan))


def _field(name: str, values: np.ndarray) -> dict[str, Any]:
    """A column of each model [M]: a range of numbers, or categories."""
    is_text = INDEX_SCHEMA.field(name).type in (pa.string(), pa.bool_())
    if not is_text:
        numbers = values.astype(np.float64)
        numbers[~np.isfinite(numbers)] = np.nan
        values = numbers if values.dtype.kind == "f" else values
        if len(np.unique(numbers[~np.isnan(numbers)])) > MAX_CATEGORIES:
            log = name in LOGARITHMIC and not (numbers <= 0).any()
            return number_field(name, COLUMNS[name], numbers, log=log)
    return category_field(name, COLUMNS[name], values, ordered=not is_text and name != "label")


def category_field(name: str, about: str, values: np.ndarray, *, ordered: bool = False) -> dict[str, Any]:
    """A field that is filtered by its values: the known ones in order, then none.

    Args:
        name: its name.
        about: what it is.
        values: of each model [M]; None or NaN where there is none.
        ordered: whether values are more or less than others.
    """
    listed = values.tolist()
    known = sorted(value for value in set(listed) if value is not None and value == value)
    codes = {value: code for code, value in enumerate(known)}
    found = np.array([codes.get(value, len(known)) for value in listed])
    words = [_word(value) for value in known]
    if (found == len(known)).any():
        words.append(NOUNS[None])
    ordered = ordered and len(known) > 2
    return {"name": name, "about": about, "values": words, "ordered": ordered, "codes": pack_codes(found)}


def _word(value: Any) -> str | int | float:
    """A category as the page gets it."""
    if isinstance(value, bool):
        return NOUNS[value]
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value) if isinstance(value, int) and abs(value) > MAX_WHOLE else value


def dataset_names(zoo: Zoo, final: Snapshots) -> np.ndarray:
    """The data set of each model [M] as pages call it."""
    pairs = list(zip(final["dataset"].tolist(), final["subset"].tolist(), strict=True))
    names = {pair: zoo.manifest.dataset_name(pair[0], [pair[1]]) for pair in set(pairs)}
    return np.array([names[pair] for pair in pairs], object)


def start_of(contents: dict[str, Any]) -> dict[str, str]:
    """The axes and the colour that a page begins with."""
    names = {field["name"] for field in contents["fields"]}
    metrics = [metric["name"] for metric in contents["metrics"]]
    y = metrics[0] if metrics else "step"
    x = next((name for name in ("label_noise", "learning_rate") if name in names), "epoch")
    if x == "epoch" and contents["statistics"] is not None:
        x, y = "statistics 1", "statistics 2"
    colour = next((name for name in COLOURED_BY if name in names), "")
    if colour == x:
        colour = next((name for name in COLOURED_BY if name in names and name != x), "")
    return {"x": x, "y": y, "colour": colour}
