"""`load_dataset`: a zoo as a Hugging Face `datasets.Dataset`; `with_weights`: its networks, read when a row is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from nws_dataset.errors import ZooError
from nws_dataset.manifest import INDEX_CONFIG
from nws_dataset.zoo import PLACE_COLUMNS, Zoo

if TYPE_CHECKING:
    import datasets

    AnyDataset = TypeVar("AnyDataset", datasets.Dataset, datasets.DatasetDict)

LOCAL_NAME = "nws"
DEFAULT_REPOSITORY = "nws/nws"  # what "nws" stands for when there is no such folder


def load_dataset(path: str | Path = LOCAL_NAME, name: str = INDEX_CONFIG, split: str | None = None, **kwargs: Any) -> Any:
    """Load a zoo with the `datasets` library, which converts it to its own cache once.

    The dataset remembers its zoo, through `filter`, `select`, `map`, `shuffle` and the like, in `info.homepage`: where a data set lives is
    what that field is for, and the library hands it on.

    Args:
        path: the zoo's folder; "nws" is ./nws or else DEFAULT_REPOSITORY.
        name: "index" (no weights; see `with_weights`), or a subset, whose rows hold their weights as safetensors bytes.
        split: "train", "validation" or "test"; None loads all as a DatasetDict.
        kwargs: of datasets.load_dataset.

    Returns:
        A datasets.Dataset, or a DatasetDict without `split`.

    Raises:
        ZooError: if the folder is not a zoo, or has no such subset.

    Example:
        >>> ds = load_dataset("nws", split="train")  # doctest: +SKIP
        >>> ds = with_weights(ds.filter(lambda row: row["is_final"] and row["dataset"] == "mnist"))  # doctest: +SKIP
        >>> ds[0]["weights"].shape  # doctest: +SKIP
    """
    import datasets

    zoo = Zoo(DEFAULT_REPOSITORY if str(path) == LOCAL_NAME and not Path(path).is_dir() else path)
    names = (INDEX_CONFIG, *zoo.subsets)
    if name not in names:
        raise ZooError(zoo.path, expected=f"one of {', '.join(names)}", found=repr(name), do="choose one of them")
    loaded = datasets.load_dataset(str(zoo.path), name, split=split, **kwargs)
    for part in loaded.values() if isinstance(loaded, dict) else [loaded]:
        part.info.homepage = str(zoo.path)
    return loaded


def with_weights(ds: AnyDataset, zoo: Zoo | None = None, columns: Sequence[str] | None = None) -> AnyDataset:
    """The same rows with `weights`, np.float32 [P], read from the zoo when a row is asked for.

    Call it last: a format or transform that is set later takes its place, and `map` or `filter` after it read the weights of every row.
    A batch `ds[a:b]` has a list of arrays, of one architecture or several. The weights are no stored column, and the library refuses
    `ds["weights"]`: write `ds[:]["weights"]`, or `Zoo.weights(ds)` for one array [N, P].

    Args:
        ds: rows of the config "index", from `load_dataset`; or a DatasetDict of such.
        zoo: where the weights are; None takes the zoo that `ds` was loaded from.
        columns: what a row has beside `weights`; None keeps all. For a DataLoader, name what you need: torch cannot collate null.

    Returns:
        A new Dataset (or DatasetDict); it can be pickled.

    Raises:
        ZooError: if `ds` is streamed, has no index columns, or its zoo is not known.
    """
    import datasets

    if isinstance(ds, datasets.DatasetDict):
        return datasets.DatasetDict({split: with_weights(part, zoo, columns) for split, part in ds.items()})
    if not isinstance(ds, datasets.Dataset):
        raise ZooError("with_weights", expected="a Dataset or DatasetDict", found=type(ds).__name__, do="load it without streaming")
    missing = [column for column in (*PLACE_COLUMNS, *(columns or ())) if column not in ds.column_names]
    if missing:
        found = f"no {', '.join(missing)}"
        raise ZooError("with_weights", expected="rows of the config index", found=found, do="load the index and keep its columns")
    if zoo is None and not ds.info.homepage:
        raise ZooError("with_weights", expected="a dataset from nws_dataset.load_dataset", found="another", do="pass zoo=Zoo(path)")
    return ds.with_transform(_ReadWeights(zoo or Zoo(ds.info.homepage), columns))


class _ReadWeights:
    """The transform of `with_weights`: a class, not a closure, so that datasets can be pickled for the workers of a DataLoader."""

    def __init__(self, zoo: Zoo, columns: Sequence[str] | None) -> None:
        self.zoo = zoo
        self.columns = columns

    def __call__(self, batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        if not set(PLACE_COLUMNS) <= set(batch):
            return batch  # the library asks for one column alone: ds["test_accuracy"]
        rows = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
        kept = {name: batch[name] for name in (batch if self.columns is None else self.columns)}
        return {**kept, "weights": [self.zoo.row(row).copy() for row in rows]}  # copies: torch wants aligned and writable arrays
