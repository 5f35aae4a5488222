"""`load_dataset`: a zoo as a Hugging Face `datasets.Dataset`; `with_weights`: its networks, read when a row is asked for."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pyarrow as pa

from nws_dataset.errors import ZooError, reason
from nws_dataset.folder import Folder
from nws_dataset.manifest import INDEX_CONFIG, Manifest, state
from nws_dataset.zoo import DEFAULT_REPOSITORY as DEFAULT_REPOSITORY
from nws_dataset.zoo import LOCAL_NAME, READ_COLUMNS, Zoo

if TYPE_CHECKING:
    import datasets

    AnyDataset = TypeVar("AnyDataset", datasets.Dataset, datasets.DatasetDict, datasets.IterableDataset, datasets.IterableDatasetDict)

PREPARE_OPTIONS = ("num_proc", "download_mode", "verification_mode")
FOLDER_OPTIONS = ("streaming", "keep_in_memory", *PREPARE_OPTIONS, "columns", "filters")  # of datasets.load_dataset; for a folder
STREAM_ROWS = 32  # of a stream, whose weights are read together
_opened: dict[str, Zoo] = {}  # homepage of a loaded dataset -> its zoo, so that `with_weights` need not open it again


def load_dataset(
    path: str | Path = LOCAL_NAME,
    name: str | None = None,
    split: str | Sequence[str] | None = None,
    *,
    revision: str | None = None,
    token: str | None = None,
    cache_dir: str | Path | None = None,
    **kwargs: Any,
) -> Any:
    """Load a zoo with the `datasets` library, which converts it to its own cache once for each state: the digest of nws.json is the key.

    The dataset remembers its zoo, through `filter`, `select`, `map`, `shuffle` and the like, in `info.homepage`: where a data set lives is
    what that field is for, and the library hands it on. `info.description` names the state of the zoo.

    Args:
        path: the zoo's folder, or "org/name" on the Hub; "nws" is ./nws or else DEFAULT_REPOSITORY.
        name: "index", the default (no weights; see `with_weights`), or a subset, whose rows hold their weights as safetensors bytes.
        split: "train", "validation" or "test", a part of one, or several of them as a list; None loads all as a DatasetDict.
        revision: branch, tag or commit on the Hub.
        token: for a private zoo on the Hub; None is the stored login.
        cache_dir: where files are kept; None is the libraries' own caches.
        kwargs: of datasets.load_dataset, such as `streaming`; for a folder those of FOLDER_OPTIONS.

    Returns:
        A datasets.Dataset, a DatasetDict without `split`, a list for a list; their iterable kin with streaming=True.

    Raises:
        ZooError: if there is no zoo, or it has no such subset.

    Example:
        >>> ds = load_dataset("nws", split="train")  # doctest: +SKIP
        >>> ds = with_weights(ds.filter(lambda row: row["is_final"] and row["dataset"] == "mnist"))  # doctest: +SKIP
        >>> ds[0]["weights"].shape  # doctest: +SKIP
    """
    if isinstance(split, (list, tuple)) and kwargs.get("streaming"):  # the library takes several only when it does not stream
        return [load_dataset(path, name, part, revision=revision, token=token, cache_dir=cache_dir, **kwargs) for part in split]
    path = os.path.expanduser(path)
    for last in (False, False, True):
        zoo = Zoo(path, revision=revision, token=token, cache_dir=cache_dir)
        try:
            loaded = _load(zoo, INDEX_CONFIG if name is None else name, split, str(cache_dir) if cache_dir else None, dict(kwargs))
            break
        except ZooError:
            folder = zoo.source.path if isinstance(zoo.source, Folder) else None
            if last or folder is None or Manifest.read(folder).digest == zoo.manifest.digest:
                raise  # else the folder has changed meanwhile
    _opened[zoo.source.homepage] = zoo
    for part in loaded.values() if isinstance(loaded, dict) else loaded if isinstance(loaded, list) else [loaded]:
        part.info.homepage, part.info.description = zoo.source.homepage, state(zoo.manifest)
    return loaded


def _load(zoo: Zoo, name: str, split: Any, cache_dir: str | None, kwargs: dict[str, Any]) -> Any:
    """What the library makes of a zoo."""
    import datasets

    source, names = zoo.source, (INDEX_CONFIG, *zoo.subsets)
    if name not in names:
        raise ZooError(zoo.name, expected=f"one of {', '.join(names)}", found=repr(name), do="choose one of them")
    if not isinstance(source, Folder):
        where = {"path": source.repo_id, "revision": source.revision, "token": source.token}
        return datasets.load_dataset(**where, name=name, split=split, cache_dir=cache_dir, **kwargs)
    from nws_dataset.prepare import FolderBuilder

    unknown = [option for option in kwargs if option not in FOLDER_OPTIONS]
    if unknown:
        expected = f"options among {', '.join(FOLDER_OPTIONS)}"
        raise ZooError("load_dataset", expected=expected, found=", ".join(unknown), do="leave it out: nws.json lists a folder's files")
    streaming, in_memory = kwargs.pop("streaming", False), kwargs.pop("keep_in_memory", False)
    prepared = {option: kwargs.pop(option) for option in PREPARE_OPTIONS if option in kwargs}
    builder = FolderBuilder(source, name, cache_dir=cache_dir, **kwargs)
    try:
        if streaming:
            return builder.as_streaming_dataset(split)
        builder.download_and_prepare(**prepared)
        return builder.as_dataset(split, in_memory=bool(in_memory))
    except datasets.exceptions.DatasetGenerationError as error:
        if isinstance(error.__cause__, ZooError):
            raise error.__cause__ from None
        raise
    except (ValueError, AssertionError) as error:  # what the library raises for a split
        expected, do = "a split that it has, or a part of one", "choose another"
        raise ZooError(zoo.name, expected=expected, found=f"{split!r} ({reason(error)})", do=do) from error


def with_weights(ds: AnyDataset, zoo: Zoo | None = None, columns: Sequence[str] | None = None) -> AnyDataset:
    """The same rows with `weights`, [P] float32, read from the zoo when a row is asked for.

    The weights are numpy arrays, or torch tensors if `ds` has the format "torch". Call it last: a format or transform that is set later
    takes its place, and `map` or `filter` after it read the weights of every row. A batch `ds[a:b]` has one stack [N, P] if a format is set
    and all have one length, else a list of arrays. The weights are no stored column, and the library refuses `ds["weights"]`: write
    `ds[:]["weights"]`, or `Zoo.weights(ds)` for one array [N, P]. On the Hub, the weights of a batch are fetched together.

    Args:
        ds: rows of the config "index", from `load_dataset`, streamed or not; or a dict of such.
        zoo: where the weights are; None takes the zoo that `ds` was loaded from.
        columns: what a row has beside `weights`; None keeps all. For a DataLoader, name what you need: torch cannot collate null.

    Returns:
        A new dataset of the same kind; it can be pickled.

    Raises:
        ZooError: if `ds` has no index columns, or its zoo is not known.
    """
    import datasets

    if isinstance(ds, (datasets.DatasetDict, datasets.IterableDatasetDict)):
        return type(ds)({split: with_weights(part, zoo, columns) for split, part in ds.items()})
    if not isinstance(ds, (datasets.Dataset, datasets.IterableDataset)):
        raise ZooError(
            "with_weights", expected="a dataset of the datasets library", found=type(ds).__name__, do="load it with load_dataset"
        )
    present = ds.column_names or []
    missing = [column for column in (*READ_COLUMNS, *(columns or ())) if column not in present]
    if missing:
        found = f"no {', '.join(missing)}"
        raise ZooError("with_weights", expected="rows of the config index", found=found, do="load the index and keep its columns")
    if zoo is None:
        zoo = _zoo_of(ds.info.homepage)
    if isinstance(ds, datasets.IterableDataset):
        removed = [column for column in present if columns is not None and column not in columns]
        return ds.map(_ReadWeights(zoo, ()), batched=True, batch_size=STREAM_ROWS, remove_columns=removed)
    kept = list(ds.format["columns"] if columns is None else columns)
    return ds.with_transform(_ReadWeights(zoo, kept, ds.format["type"], ds.format["format_kwargs"], ds.features.arrow_schema))


def _zoo_of(homepage: str | None) -> Zoo:
    """The zoo that a dataset was loaded from, in this process or another."""
    if not homepage:
        raise ZooError("with_weights", expected="a dataset from nws_dataset.load_dataset", found="another", do="pass zoo=Zoo(path)")
    if homepage not in _opened:
        path, _, revision = homepage.partition("/tree/") if homepage.startswith("http") else (homepage, "", "")
        repository = path.partition("/datasets/")[2]
        _opened[homepage] = Zoo(repository, revision=revision) if repository and revision else Zoo(homepage)
    return _opened[homepage]


class _ReadWeights:
    """Adds the weights to a batch of rows: a class, not a closure, so that datasets can be pickled for the workers of a DataLoader."""

    def __init__(
        self,
        zoo: Zoo,
        columns: Sequence[str],
        format: str | None = None,
        format_kwargs: dict[str, Any] | None = None,
        schema: pa.Schema | None = None,
    ) -> None:
        self.zoo, self.columns = zoo, columns
        self.format, self.format_kwargs, self.schema = format, format_kwargs, schema

    def __call__(self, batch: dict[str, list[Any]]) -> dict[str, Any]:
        if not set(READ_COLUMNS) <= set(batch):
            return batch  # the library asks for one column alone: ds["test_accuracy"]
        rows = [dict(zip(READ_COLUMNS, values, strict=True)) for values in zip(*(batch[name] for name in READ_COLUMNS), strict=True)]
        weights: Any = [array.copy() for array in self.zoo.arrays(rows)]  # torch wants aligned and writable arrays
        kept = {name: batch[name] for name in self.columns}
        if self.format is None:
            return {**kept, "weights": weights}
        return {**self._formatted(kept), "weights": self._stacked(weights)}

    def _formatted(self, kept: dict[str, list[Any]]) -> Any:
        """The other columns as the format has them."""
        from datasets.formatting import get_formatter

        assert self.schema is not None
        schema = pa.schema([self.schema.field(name) for name in kept])
        formatter = get_formatter(self.format, **(self.format_kwargs or {}))
        return formatter.format_batch(pa.table(kept, schema)) if kept else {}

    def _stacked(self, weights: list[np.ndarray]) -> Any:
        """Weights of one length as one array, as the formats of the library do."""
        alike = len({len(array) for array in weights}) == 1
        if self.format == "torch":
            import torch

            tensors = [torch.from_numpy(array) for array in weights]
            return torch.stack(tensors) if alike else tensors
        return np.stack(weights) if alike else weights
