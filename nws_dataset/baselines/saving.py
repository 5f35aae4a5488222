"""Estimators as folders, on disk or on the Hub, without pickle: arrays as safetensors, the rest as JSON.

    estimator.json       class, parameters (get_params), learned attributes except arrays, SHA-256 of arrays
    arrays.safetensors   learned arrays of numbers
    README.md            the card, in a repository on the Hub

To make an estimator savable, inherit `SaveMixin` before scikit-learn's mixins. Learned attributes are those
that end in `_`. If all are arrays, numbers, strings, or lists and dicts of these, nothing else is needed.
Otherwise (a torch module, trees) override two methods:

    def _learned(self) -> dict[str, Any]:  # name -> array, number, string, list, dict
        learned = super()._learned()
        return learned | tensors_of(learned.pop("network_"), "network_")

    def _restore(self, learned: dict[str, Any]) -> None:  # the same dict again; sets the attributes
        ...

A folder may be malicious. `_restore` must check names, types, shapes and ranges before it allocates
anything of their size (`array`, `numbers`, `strings` and `integer` help), and raise a ValueError. `_allowed`
says what each parameter may be; `fit` must begin with `check_parameters()`, which `save` and `load` call too.
A parameter that does not fit into JSON (a callback, a random generator) is not saved: the loaded estimator
has its default.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import math
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
from safetensors import SafetensorError
from safetensors import numpy as safetensors

from nws_dataset.errors import ValueZooError, ZooError, reason
from nws_dataset.files import atomic_write, path_type, read_file, read_json

MAX_INTEGER = (1 << 31) - 1  # of whole numbers passed to native code
MAX_NUMBER = 1e30  # of other numbers, so that products with ordinary ones fit into float32
FORMAT = 2
FACTS, ARRAYS, CARD = "estimator.json", "arrays.safetensors", "README.md"
MAX_CLASSES = 10**6
LIBRARY = "nws-dataset"
MAX_ARRAYS_BYTES = 1 << 32  # of a saved estimator
PATIENCE_SECONDS = 120.0  # without a byte from the Hub during a push
# marks an array of strings, or of strings and numbers, in JSON (labels, names of features)
STRINGS = "strings"
Self = TypeVar("Self", bound="SaveMixin")


@dataclass(frozen=True)
class Allowed:
    """What a parameter of an estimator may be: a number within bounds, or one of some values."""

    low: float = 0
    high: float = MAX_NUMBER
    integer: bool = False
    open_low: bool = False  # whether `low` itself is not legal
    open_high: bool = False
    none: bool = False  # whether None is legal too
    choices: tuple[str, ...] = ()  # instead of numbers

    def allows(self, value: Any) -> bool:
        """Whether a value is legal."""
        if self.choices or value is None:
            return isinstance(value, str) and value in self.choices if self.choices else self.none
        if isinstance(value, bool) or not isinstance(
            value, int | np.integer | (np.integer if self.integer else float | np.floating)
        ):
            return False
        number: Any = value
        above = self.low < number if self.open_low else self.low <= number
        return bool(above and (number < self.high if self.open_high else number <= self.high))

    def __str__(self) -> str:
        if self.choices:
            return " or ".join(self.choices)
        low = f"{'above' if self.open_low else 'of at least'} {self.low:g}"
        high = (
            f" and {'below' if self.open_high else 'at most'} {self.high:g}"
            if not self.integer or self.high < MAX_INTEGER
            else ""
        )
        return f"a {'whole ' if self.integer else ''}number {low}{high}{', or None' if self.none else ''}"


class SaveMixin:
    """Lets a scikit-learn estimator be saved, loaded and shared; see the module's docstring.

    Example:
        >>> from nws_dataset import LogitLinear
        >>> X = np.linspace(0, 1, 50).reshape(-1, 1)
        >>> predictor = LogitLinear(random_state=0).fit(X, X[:, 0])
        >>> loaded = LogitLinear.load(predictor.save("my_predictor"))
        >>> bool((loaded.predict(X) == predictor.predict(X)).all())
        True
        >>> commit = predictor.push_to_hub("org/my_predictor", about="Learned the identity.")
        >>> LogitLinear.from_pretrained("org/my_predictor").n_iter_ == predictor.n_iter_
        True
        >>> "Learned the identity." in predictor.card("org/my_predictor", about="Learned the identity.")
        True
        >>> LogitLinear(max_iter=0).check_parameters()
        Traceback (most recent call last):
        nws_dataset.errors.ValueZooError: max_iter: expected a whole number of at least 1, found 0;
            choose another value
    """

    # parameter -> what it may be; checked by `fit`, `save` and `load`
    _allowed: ClassVar[Mapping[str, Allowed]] = {}

    def check_parameters(self) -> None:
        """Check that every parameter is legal.

        Raises:
            ValueZooError: if a parameter is not legal; it is a ValueError too.
        """
        check_allowed(self, self._allowed)

    def save(self, folder: str | Path) -> Path:
        """Write the fitted estimator into a folder.

        Args:
            folder: made if missing; an estimator's files in it are replaced.

        Returns:
            The folder.

        Raises:
            sklearn.exceptions.NotFittedError: if it is not fitted.
            ValueError: if a parameter is no longer legal, or something learned is not finite.
        """
        from sklearn.utils.validation import check_is_fitted

        check_is_fitted(self)
        self.check_parameters()
        folder, learned = Path(folder), self._learned()
        arrays = {name: np.array(value, order="C") for name, value in learned.items() if _is_array(value)}
        for name, value in arrays.items():
            if np.isnan(value).any():
                raise ValueZooError(
                    name,
                    expected="numbers",
                    found="NaN",
                    do="fit it again, e.g. with a smaller learning rate",
                )
        rest = {name: value for name, value in learned.items() if name not in arrays}
        content = safetensors.save(arrays)
        files = {ARRAYS: hashlib.sha256(content).hexdigest()}
        facts = {
            "format": FORMAT,
            "class": type(self).__name__,
            "parameters": self._plain_parameters(),
            "learned": rest,
            "files": files,
        }
        for name, data in {
            ARRAYS: content,
            FACTS: (json.dumps(facts, indent=1, default=_to_json) + "\n").encode(),
        }.items():
            with atomic_write(folder / name) as temporary:
                temporary.write_bytes(data)
        return folder

    @classmethod
    def load(cls: type[Self], folder: str | Path) -> Self:
        """The estimator that `save` wrote; it predicts the same.

        Args:
            folder: that `save` wrote.

        Returns:
            An estimator of this class.

        Raises:
            ZooError: if there is no estimator, it is of another class, or a file is damaged.
        """
        folder = Path(folder)
        facts = read_json(folder / FACTS, f"a saved {cls.__name__}")
        try:
            if not isinstance(facts, dict):
                raise TypeError(f"expected its facts, found {type(facts).__name__}")
            if (facts["format"], facts["class"]) != (FORMAT, cls.__name__):
                found = f"a {facts['class']} in format {facts['format']}"
                do = "load it with its own class; if the format is an earlier one, fit and save it again"
                raise ZooError(folder, expected=f"a {cls.__name__} in format {FORMAT}", found=found, do=do)
            estimator = cls._from_plain(facts["parameters"])
            estimator.check_parameters()
            learned = {name: _from_json(value) for name, value in facts["learned"].items()}
            content = read_file(folder / ARRAYS, f"the arrays of a saved {cls.__name__}", MAX_ARRAYS_BYTES)
            if hashlib.sha256(content).hexdigest() != facts["files"][ARRAYS]:
                raise ValueError(f"{ARRAYS} is not the file that {FACTS} names")
            estimator._restore(learned | safetensors.load(content))
        except (
            OSError,
            SafetensorError,
            ValueError,
            LookupError,
            TypeError,
            AttributeError,
            OverflowError,
            RuntimeError,
        ) as error:
            raise ZooError(
                folder, expected=f"a saved {cls.__name__}", found=reason(error), do="save or fetch it again"
            ) from error
        return estimator

    def push_to_hub(
        self, repo_id: str, *, about: str = "", private: bool = False, token: str | None = None
    ) -> str:
        """Upload the fitted estimator with a card, as one commit; the model repository is made if missing.

        Args:
            repo_id: "org/name".
            about: Markdown for the card: what it was trained on, how good it is.
            private: whether a new repository is private.
            token: of a user who may write there; None for the stored login.

        Returns:
            The address of the commit.

        Raises:
            ZooError: if the Hub refuses, or cannot be reached.
        """
        from huggingface_hub import HfApi

        from nws_dataset.http import bounded, retried

        api = HfApi(token=token)
        with tempfile.TemporaryDirectory() as folder, bounded(api.endpoint, PATIENCE_SECONDS):
            (self.save(folder) / CARD).write_text(self.card(repo_id, about), encoding="utf-8")
            retried(lambda: api.create_repo(repo_id, private=private, exist_ok=True), repo_id, token)
            message = f"{type(self).__name__} of {LIBRARY}"
            return str(
                retried(
                    lambda: api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=message),
                    repo_id,
                    token,
                ).commit_url
            )

    @classmethod
    def from_pretrained(
        cls: type[Self], repo_id: str | Path, *, revision: str | None = None, token: str | None = None
    ) -> Self:
        """The estimator of a model repository on the Hub, or of a folder.

        Args:
            repo_id: "org/name", or a folder.
            revision: branch, tag or commit on the Hub.
            token: for a private one; None for the stored login.

        Returns:
            An estimator of this class.

        Raises:
            ZooError: as `load`, or if the Hub refuses or cannot be reached.
        """
        if path_type(repo_id) == "a folder":
            return cls.load(repo_id)
        from nws_dataset.remote import download

        with download(str(repo_id), [FACTS, ARRAYS], revision=revision, token=token) as folder:
            return cls.load(folder)

    def card(self, repo_id: str, about: str = "") -> str:
        """The card of a repository: Markdown with the Hub's YAML.

        It says what the estimator is, how to load it, and its parameters.

        Args:
            repo_id: "org/name".
            about: Markdown, as in `push_to_hub`.

        Returns:
            The text of its README.md.
        """
        from huggingface_hub import ModelCard, ModelCardData

        name = type(self).__name__
        data = ModelCardData(library_name=LIBRARY, tags=["weight-space-learning", "model-zoo"])
        parts = [
            f"# {name}",
            f"A `{name}` of the Python package `{LIBRARY}`, which learns from the weights of trained "
            "networks.",
            about,
            f"```python\nfrom nws_dataset import {name}\n\nestimator = "
            f"{name}.from_pretrained({repo_id!r})\n```",
            "| parameter | value |\n| --- | --- |\n"
            + "\n".join(f"| {key} | {value} |" for key, value in self._plain_parameters().items()),
        ]
        return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(filter(None, parts)) + "\n"))

    def _plain_parameters(self) -> dict[str, Any]:
        """The parameters that fit into JSON."""
        parameters = self.get_params(deep=False)  # type: ignore[attr-defined]
        return {name: value for name, value in parameters.items() if _is_plain(value)}

    @classmethod
    def _from_plain(cls: type[Self], recorded: dict[str, Any]) -> Self:
        """An estimator with the parameters that `_plain_parameters` returned."""
        return cls(**_parameters(cls, recorded))

    def _learned(self) -> dict[str, Any]:
        """The learned attributes, by name."""
        return {
            name: value
            for name, value in vars(self).items()
            if name.endswith("_") and not name.startswith("_")
        }

    def _restore(self, learned: dict[str, Any]) -> None:
        """Set the attributes that `_learned` returned."""
        vars(self).update(learned)


def _is_array(value: Any) -> bool:
    """Whether it is saved by safetensors."""
    return isinstance(value, np.ndarray) and value.dtype.kind in "fiub"


def _is_plain(value: Any) -> bool:
    """Whether it fits into JSON."""
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, float, str, np.bool_, np.integer, np.floating))


def _to_json(value: Any) -> Any:
    """A learned value or parameter for JSON: numpy's numbers and arrays in it become plain ones."""
    if isinstance(value, np.ndarray):
        return {STRINGS: value.tolist(), "dtype": str(value.dtype)}
    if isinstance(value, np.bool_ | np.integer | np.floating):
        return value.item()
    raise TypeError(f"expected arrays, numbers and texts, found {type(value).__name__}")


def _from_json(value: Any) -> Any:
    """A learned value from JSON; tuples have become lists.

    Raises:
        ValueError: if it is marked as an array, but not of strings and numbers.
    """
    if not isinstance(value, dict) or STRINGS not in value:
        return value
    listed, dtype = value[STRINGS], value["dtype"]
    plain = isinstance(listed, list) and all(isinstance(item, str | int | float) for item in listed)
    most = max((len(str(item)) for item in listed), default=0) if plain else 0
    if not plain or dtype not in ("object", f"<U{most}"):
        raise ValueError(f"expected a list of strings, found one of {dtype!r}"[:200])
    return np.array(listed, dtype)


def _tuples(value: Any) -> Any:
    """A parameter with lists turned into tuples: parameters are immutable."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _parameters(cls: type, recorded: Any) -> dict[str, Any]:
    """A class's parameters from a file, each of its default's type.

    Raises:
        ValueError: if one is unknown, or of another type.
    """
    known = inspect.signature(cls).parameters
    found = {name: _tuples(value) for name, value in recorded.items()}
    for name, value in found.items():
        default = known[name].default if name in known else inspect.Parameter.empty
        types = (int, float) if isinstance(default, float) else (type(default),)
        same = (
            default is None
            or value is None
            or (isinstance(value, types) and isinstance(value, bool) == isinstance(default, bool))
        )
        if name not in known or not same or (isinstance(value, float) and not math.isfinite(value)):
            raise ValueError(f"expected parameters of {cls.__name__}, found {name}={value!r}")
    return found


# For `_restore`: values from the learned dict; each raises a ValueError if one is missing or of another form.


def array(
    learned: Mapping[str, Any], name: str, shape: tuple[int, ...], dtype: type = np.float64
) -> np.ndarray:
    """An array of finite numbers."""
    found = learned.get(name)
    if not isinstance(found, np.ndarray) or found.shape != shape or found.dtype != dtype:
        shown = f"{list(found.shape)} {found.dtype}" if isinstance(found, np.ndarray) else "none"
        raise ValueError(f"{name}: expected {list(shape)} {np.dtype(dtype)}, found {shown}")
    if found.dtype.kind == "f" and not np.isfinite(found).all():
        raise ValueError(f"{name}: expected finite numbers")
    return found


def numbers(learned: Mapping[str, Any], name: str, count: int) -> list[float]:
    """A list of finite numbers."""
    found = learned.get(name)
    if not isinstance(found, list) or len(found) != count or not all(_is_number(value) for value in found):
        raise ValueError(f"{name}: expected {count} numbers, found {found!r}")
    return [float(value) for value in found]  # numpy would make objects of integers beyond 64 bits


def integer(learned: Mapping[str, Any], name: str, low: int, high: int) -> int:
    """An integer within bounds."""
    found = learned.get(name)
    if type(found) is not int or not low <= found <= high:
        raise ValueError(f"{name}: expected {low} to {high}, found {found!r}")
    return found


def classes(learned: Mapping[str, Any]) -> np.ndarray:
    """An array of two or more different labels, "classes_"."""
    found = learned.get("classes_")
    if not isinstance(found, np.ndarray) or found.ndim != 1 or not 2 <= len(found) <= MAX_CLASSES:
        raise ValueError("classes_: expected two or more")
    if len(set(found.tolist())) != len(found):
        raise ValueError("classes_: expected different ones")
    return found


def mean_and_scale(learned: Mapping[str, Any]) -> tuple[float, float]:
    """Two finite numbers, "mean_" and "scale_"."""
    mean, scale = numbers({"targets": [learned.get("mean_"), learned.get("scale_")]}, "targets", 2)
    return mean, scale


def history(learned: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What each epoch told, "history_"."""
    found = learned.get("history_")
    if not isinstance(found, list) or not all(isinstance(epoch, dict) for epoch in found):
        raise ValueError("history_: expected what each epoch told")
    return found


def tensors_of(module: Any, name: str) -> dict[str, np.ndarray]:
    """A torch module's tensors by the names that they are saved by, "<name>.<tensor>"."""
    return {f"{name}.{key}": tensor.cpu().numpy() for key, tensor in module.state_dict().items()}


def module_of(learned: Mapping[str, Any], name: str, make: Callable[[], Any]) -> Any:
    """The torch module whose tensors `tensors_of` returned.

    Args:
        learned: what was saved.
        name: of the attribute.
        make: makes the module; called on the device "meta" first, to check shapes before memory is used.
    """
    import torch

    with torch.device("meta"):
        expected = make().state_dict()
    state = {}
    for key, tensor in expected.items():
        dtype = np.float32 if tensor.is_floating_point() else np.int64
        state[key] = torch.from_numpy(array(learned, f"{name}.{key}", tuple(tensor.shape), dtype))
    module = make()
    module.load_state_dict(state)
    return module


def strings(learned: Mapping[str, Any], name: str, count: int) -> np.ndarray:
    """An array of strings."""
    found = learned.get(name)
    if (
        not isinstance(found, np.ndarray)
        or found.shape != (count,)
        or not all(isinstance(value, str) for value in found.tolist())
    ):
        raise ValueError(f"{name}: expected {count} strings")
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


# Checks of `fit`s.


def check_allowed(estimator: Any, allowed: Mapping[str, Allowed]) -> None:
    """Raise a ValueZooError if a parameter is not what is allowed."""
    for name, legal in allowed.items():
        value = getattr(estimator, name)
        if not legal.allows(value):
            raise ValueZooError(name, expected=str(legal), found=repr(value), do="choose another value")


def check_numeric(name: str, y: Any) -> None:
    """Raise a ValueZooError for strings or dates, which numpy converts silently or refuses unclearly."""
    dtype = np.asarray(y).dtype
    if dtype.kind in "SUMmV":
        raise ValueZooError(name, expected="numbers", found=f"an array of {dtype}", do="convert them")


def check_both(X_validation: Any, y_validation: Any) -> None:
    """Raise a ValueZooError if only one of them is given."""
    if (X_validation is None) != (y_validation is None):
        missing = "X_validation" if X_validation is None else "y_validation"
        raise ValueZooError(
            missing, expected="both X_validation and y_validation, or neither", found="None", do="give it too"
        )


def check_size(where: str, num_weights: int, num_bytes: int) -> None:
    """Raise a ValueZooError, before the network is made, if it would be too large for `load`."""
    if num_weights * num_bytes > MAX_ARRAYS_BYTES:
        raise ValueZooError(
            where,
            expected=f"a network of at most {MAX_ARRAYS_BYTES // num_bytes} weights",
            found=str(num_weights),
            do="choose a smaller one",
        )
