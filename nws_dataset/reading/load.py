"""`load_dataset`: a zoo as a Hugging Face `datasets.Dataset`; `with_weights` adds weights, read on access."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from nws_dataset.errors import ZooError, reason
from nws_dataset.format.manifest import INDEX_CONFIG, Manifest, state
from nws_dataset.reading.zoo import DEFAULT_REPOSITORY as DEFAULT_REPOSITORY
from nws_dataset.reading.zoo import LOCAL_NAME, Zoo

if TYPE_CHECKING:
    import datasets

    AnyDataset = TypeVar(
        "AnyDataset",
        datasets.Dataset,
        datasets.DatasetDict,
        datasets.IterableDataset,
        datasets.IterableDatasetDict,
    )

PREPARE_OPTIONS = ("num_proc", "download_mode", "verification_mode")
# options of datasets.load_dataset that are accepted for a folder
FOLDER_OPTIONS = ("streaming", "keep_in_memory", *PREPARE_OPTIONS, "columns", "filters")
# origin of a loaded dataset -> its zoo, so that `with_weights` need not open it again
_opened: dict[str, Zoo] = {}


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
    """Load a zoo with the `datasets` library, which caches it once for each state (digest of nws.json).

    `info.homepage` names the zoo, and stays so through `filter`, `select`, `map`, `shuffle` and the like;
    `info.description` names the state of the zoo.

    Args:
        path: the zoo's folder, or "org/name" on the Hub; "nws" is ./nws or else DEFAULT_REPOSITORY.
        name: "index" (no weights; see `with_weights`), or a subset, whose snapshots hold their weights as
            safetensors bytes.
        split: "train", "validation", "test", a part of one, or a list of these; None loads all as a
            DatasetDict.
        revision: branch, tag or commit on the Hub.
        token: for a private zoo on the Hub; None is the stored login.
        cache_dir: where files are cached; None is the libraries' own caches.
        kwargs: of datasets.load_dataset, such as `streaming`; for a folder only FOLDER_OPTIONS.

    Returns:
        A datasets.Dataset, a DatasetDict without `split`, a list for a list; the iterable counterparts with
        streaming=True.

    Raises:
        ZooError: if there is no zoo, or it has no such subset.

    Example:
        >>> ds = load_dataset("nws", split="train")
        >>> ds = ds.filter(lambda snapshot: snapshot["is_final"] and snapshot["dataset"] == "mnist")
        >>> ds = with_weights(ds)
        >>> ds[0]["weights"].shape
        (386,)
    """
    # the library takes several splits only if it does not stream
    if isinstance(split, (list, tuple)) and kwargs.get("streaming"):
        return [
            load_dataset(path, name, part, revision=revision, token=token, cache_dir=cache_dir, **kwargs)
            for part in split
        ]
    path = os.path.expanduser(path) if isinstance(path, str | os.PathLike) else path
    for last in (False, False, True):
        zoo = Zoo(path, revision=revision, token=token, cache_dir=cache_dir)
        try:
            loaded = _load(
                zoo,
                INDEX_CONFIG if name is None else name,
                split,
                str(cache_dir) if cache_dir else None,
                dict(kwargs),
            )
            break
        except ZooError:
            folder = zoo.files.path
            if last or folder is None or Manifest.read(folder).digest == zoo.manifest.digest:
                raise  # else the folder has changed since
    _opened[zoo.files.origin] = zoo
    for part in (
        loaded.values() if isinstance(loaded, dict) else loaded if isinstance(loaded, list) else [loaded]
    ):
        part.info.homepage, part.info.description = zoo.files.origin, state(zoo.manifest)
    return loaded


def _load(zoo: Zoo, name: str, split: Any, cache_dir: str | None, kwargs: dict[str, Any]) -> Any:
    """Load a zoo with the library."""
    import datasets

    files, names = zoo.files, (INDEX_CONFIG, *zoo.subsets)
    if name not in names:
        raise ZooError(
            zoo.name, expected=f"one of {', '.join(names)}", found=repr(name), do="choose one of them"
        )
    if files.path is None:
        if kwargs.get("filters") is not None:
            kwargs.setdefault("verification_mode", "no_checks")  # the card's counts are without filters
        where = {option: files.arguments[option] for option in ("path", "revision", "token")}
        return datasets.load_dataset(**where, name=name, split=split, cache_dir=cache_dir, **kwargs)
    from nws_dataset.reading.prepare import FolderBuilder

    unknown = [option for option in kwargs if option not in FOLDER_OPTIONS]
    if unknown:
        expected = f"options among {', '.join(FOLDER_OPTIONS)}"
        raise ZooError(
            "load_dataset",
            expected=expected,
            found=", ".join(unknown),
            do="leave it out: nws.json lists a folder's files",
        )
    streaming, in_memory = kwargs.pop("streaming", False), kwargs.pop("keep_in_memory", False)
    prepared = {option: kwargs.pop(option) for option in PREPARE_OPTIONS if option in kwargs}
    builder = FolderBuilder(files.path, files.manifest, name, cache_dir=cache_dir, **kwargs)
    try:
        if streaming:
            return builder.as_streaming_dataset(split)
        builder.download_and_prepare(**prepared)
        return builder.as_dataset(split, in_memory=bool(in_memory))
    except datasets.exceptions.DatasetGenerationError as error:
        if isinstance(error.__cause__, ZooError):
            raise error.__cause__ from None
        do = "check the filters, and the space and permissions of the library's cache"
        raise ZooError(
            zoo.name, expected="snapshots that can be prepared", found=reason(error.__cause__ or error), do=do
        ) from error
    except (
        ValueError,
        AssertionError,
    ) as error:  # the library's errors for an unknown split or option
        do = "choose others"
        raise ZooError(
            zoo.name,
            expected="a split and options that it knows",
            found=f"{split!r} ({reason(error)})",
            do=do,
        ) from error


def with_weights(ds: AnyDataset, zoo: Zoo | None = None, columns: Sequence[str] | None = None) -> AnyDataset:
    """The same snapshots with `weights`, [P] float32, read from the zoo when a snapshot is accessed.

    The weights are not a stored column; all methods of the dataset keep them until
    `remove_columns("weights")`. Without a format they are numpy arrays, a list of them in a batch; with one,
    whatever it makes of a column of lists, e.g. one tensor [N, P] for rows of one length. `map` and `filter`
    pass them to their function, so all are read; `map` with `remove_columns` of all columns gives snapshots
    without weights. `to_pandas`, `save_to_disk` and other exports have them as a column. `batch` and
    `to_tf_dataset` are refused. `ds[:]["weights"]`, or `Zoo.weights(ds)` for one array [N, P], reads many at
    once; from the Hub, the weights of a batch are fetched together. In a stream they are an ordinary column.

    The library's `concatenate_datasets` and `interleave_datasets` keep weights if all parts are of one zoo,
    have one format, and hide the same columns. Otherwise the weights are lost, with only an info message in
    the library's log: join first, then call this.

    Every value is checked against the SHA-256 in its snapshot: snapshots of another zoo, or of an earlier
    state of this one, are refused.

    Args:
        ds: snapshots of the config "index", from `load_dataset`, streamed or not; or a dict or list of such.
        zoo: where the weights are; None takes the zoo that `ds` was loaded from.
        columns: those to keep beside `weights`; None keeps all. For a DataLoader, name what you need: torch
            cannot collate null.

    Returns:
        A new dataset of the same kind (a subclass of datasets.Dataset for one), which can be pickled.

    Raises:
        ZooError: if `ds` lacks index columns, its snapshots are of another zoo or several, or its zoo is
            unknown.

    Example:
        >>> ds = with_weights(load_dataset("nws", split="train"))
        >>> ds = ds.map(lambda snapshot: {"norm": float((snapshot["weights"] ** 2).sum())})
        >>> ds[0]["norm"] > 0
        True
    """
    import datasets

    from nws_dataset.reading import weighted

    if isinstance(ds, (datasets.DatasetDict, datasets.IterableDatasetDict)):
        return type(ds)({split: with_weights(part, zoo, columns) for split, part in ds.items()})
    dataset_types = (datasets.Dataset, datasets.IterableDataset)
    if isinstance(ds, (list, tuple)) and all(isinstance(part, dataset_types) for part in ds):
        return type(ds)(with_weights(part, zoo, columns) for part in ds)
    if not isinstance(ds, dataset_types):
        raise ZooError(
            "with_weights",
            expected="a dataset of the datasets library",
            found=type(ds).__name__,
            do="load it with load_dataset",
        )
    if isinstance(ds, datasets.IterableDataset):
        weighted.check_states(ds)
        return weighted.stream_with_weights(ds, zoo or _zoo_of(ds), columns)
    snapshots, known = weighted.without_weights(ds)
    weighted.check_columns(
        snapshots.column_names, [name for name in columns or () if name != weighted.WEIGHTS]
    )
    weighted.check_states(snapshots)
    return weighted.dataset_with_weights(snapshots, zoo or known or _zoo_of(snapshots), columns)


def _zoo_of(ds: Any) -> Zoo:
    """The zoo that a dataset was loaded from, in this process or an earlier one."""
    origin = (ds.info.homepage or "").split("\n\n")[0]  # several, if snapshots of copies of a zoo were joined
    if not origin:
        raise ZooError(
            "with_weights",
            expected="a dataset from nws_dataset.load_dataset",
            found="another",
            do="pass zoo=Zoo(path)",
        )
    if origin not in _opened:
        path, _, revision = origin.partition("/tree/") if origin.startswith("http") else (origin, "", "")
        repository = path.partition("/datasets/")[2]
        _opened[origin] = Zoo(repository, revision=revision) if repository and revision else Zoo(origin)
    return _opened[origin]
