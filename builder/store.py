"""A zoo's folder while it is built: finding finished models, staging new ones, writing shards.

A finished model is staged in a snapshots file of its own. When all selected models of a shard are there, the
shard is written once, in the order of the plan, to NEXT; index, card and nws.json follow. NEXT is then
renamed to PENDING, which makes it the zoo's state, and its files move to their places. Readers look into
PENDING first, so they always see either the old state or the new one. At last the staged files are removed.
Every file is written under a temporary name and renamed, so a build may stop at any moment: the next run
finds on the disk what is done.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import json
import mmap
import os
import shutil
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Protocol, cast

import pyarrow as pa
import pyarrow.compute as pc

from builder import card
from builder.plan import Model
from builder.trained import Trained
from nws_dataset.errors import ZooError, reason
from nws_dataset.files import atomic_write, fsync, path_type, read_json, resolve_inside, sha256_file
from nws_dataset.format import shards
from nws_dataset.format.manifest import (
    INDEX_PATH,
    MANIFEST_NAME,
    PENDING,
    SNAPSHOTS_PATH,
    STAGING,
    FileEntry,
    Manifest,
    SubsetEntry,
)
from nws_dataset.format.recipe import Recipe
from nws_dataset.format.schema import INDEX_SCHEMA, METADATA_SCHEMA, SPLITS
from nws_dataset.format.subsets import SUBSETS
from nws_dataset.networks.layout import layout_of

GENERATOR_VERSION = "2"  # changes whenever the same plan would give different weights
CARD_NAME = "README.md"
LOCAL_NOTE = ".local.json"
ZOO_FILES = (CARD_NAME, LOCAL_NOTE, MANIFEST_NAME)  # a zoo's files beside its folders
FOLDERS = ("snapshots", "index", "plots")  # a zoo's folders
LOCK = "lock"  # the file in STAGING that a running builder locks
LOCK_ATTEMPTS = 100  # tries to take a lock that ending builds keep removing
NEXT = f"{STAGING}/next"  # files of the zoo's next state while they are written
ORDER = [("snapshot", "ascending"), ("model_id", "ascending")]  # order of the snapshots in a shard


class PlannedModel(Protocol):
    """What determines a model's shard and most of its columns; planned and imported models have it."""

    @property
    def id(self) -> str: ...
    @property
    def subset(self) -> str: ...
    @property
    def number(self) -> int: ...
    @property
    def seed(self) -> int | None: ...
    @property
    def split(self) -> str: ...
    @property
    def recipe(self) -> Recipe: ...
    @property
    def block(self) -> int: ...
    @property
    def image(self) -> int | None: ...


def staged_path(out: Path, model: Model) -> Path:
    """Where a finished model waits for its shard to be written."""
    return out / STAGING / "models" / f"{model.id}.parquet"


def stage(out: Path, trained: Trained) -> None:
    """Write a finished model's snapshots where `Store.add_models` finds them."""
    model, architecture = trained.model, trained.model.recipe.architecture
    path = staged_path(out, model)
    snapshots = metadata(model, trained.snapshots)
    values = (shards.pack(architecture, row) for row in trained.rows)
    scores = None
    if trained.edge_scores is not None:
        scores = [shards.pack_scores(architecture, of_edges) for of_edges in trained.edge_scores]
    table = pa.Table.from_pylist(snapshots, METADATA_SCHEMA)
    shards.write_snapshots(path, table, values, relative=path.name, edge_scores=scores)


def metadata(model: PlannedModel, snapshots: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The columns of a model's snapshots; `snapshots` has those that differ between snapshots."""
    count = len(snapshots)
    common = {**planned_columns(model), "num_snapshots": count}
    return [
        {**common, "snapshot": s, "is_final": s == count, **columns} for s, columns in enumerate(snapshots, 1)
    ]


def planned_columns(model: PlannedModel) -> dict[str, Any]:
    """The columns that are known before training."""
    architecture = model.recipe.architecture
    return {
        "model_id": model.id,
        "subset": model.subset,
        "split": model.split,
        "model_number": model.number,
        "seed": model.seed,
        **model.recipe.columns(),
        "edge_threshold": edge_threshold(model),
        "image": model.image,
        "architecture": architecture.id,
        "architecture_json": architecture.to_json(),
        "num_weights": layout_of(architecture).num_weights,
    }


def edge_threshold(model: PlannedModel) -> float | None:
    """The score from which an edge of a model is kept; None of models whose edges have no scores."""
    subset = SUBSETS.get(model.subset)
    return subset.edge_thresholds.get(model.recipe.dataset) if subset else None


def shard_of(model: PlannedModel) -> str:
    """The path of a model's shard in a zoo."""
    return SNAPSHOTS_PATH.format(
        subset=model.subset, split=model.split, architecture=model.recipe.architecture.id, block=model.block
    )


class Store:
    """A zoo's folder, locked against other builders. Use `open_store`."""

    def __init__(self, out: Path) -> None:
        self.out, self.next = out, out / NEXT
        exists = (out / MANIFEST_NAME).exists()
        self.manifest = Manifest.read(out) if exists else Manifest(GENERATOR_VERSION, {}, {})
        self.manifest.check_current(out)
        self.entries: dict[str, FileEntry] = {}  # size and digest of each shard
        self.indexes: dict[str, pa.Table] = {}  # the index files that match nws.json
        # path of a shard -> its lines of the index
        self.tables = {
            path: table for subset in self.manifest.subsets for path, table in self._present(subset)
        }

    def _present(self, subset: str) -> Iterator[tuple[str, pa.Table]]:
        """Yield each shard of a subset with its lines of the index.

        They come from the index where it matches the shard, else from the shard itself.
        """
        index = pa.concat_tables([INDEX_SCHEMA.empty_table(), *self._read_indexes(subset)])
        listed = {path for path in self.manifest.files if path.startswith(f"snapshots/{subset}/")}
        folders = [(root, root / "snapshots" / subset) for root in (self.out, self.next)]
        found = {
            path.relative_to(root).as_posix()
            for root, folder in folders
            for path in folder.glob("[!.]*.parquet")
        }
        for path in sorted(listed | found):
            file, entry = self._file(path), self.manifest.files.get(path)
            if path not in found:
                raise ZooError(
                    file,
                    expected=f"a shard that {MANIFEST_NAME} lists",
                    found="no file",
                    do="restore it, or build into another folder",
                )
            snapshots = index.filter(pc.equal(index["file"], path))
            if (
                entry is not None
                and file == resolve_inside(self.out, path)
                and file.stat().st_size == entry.size
                and len(snapshots)
            ):
                self.entries[path] = entry
                yield path, snapshots
            else:  # a build stopped after writing the shard, before the new state
                table = shards.reindex(file, relative=path)
                self.entries[path] = _entry(file)
                yield path, table

    def _file(self, path: str) -> Path:
        """Where a file of the zoo is: in its next state, else in the present one."""
        written = resolve_inside(self.out, f"{NEXT}/{path}")
        return written if written.is_file() else resolve_inside(self.out, path)

    def _read_indexes(self, subset: str) -> Iterator[pa.Table]:
        """Read the index files of a subset that match nws.json; the others are rebuilt from the shards."""
        for split in SPLITS:
            path = INDEX_PATH.format(subset=subset, split=split)
            file, entry = resolve_inside(self.out, path), self.manifest.files.get(path)
            if entry is not None and file.exists() and _entry(file) == entry:
                self.indexes[path] = table = shards.read_index(file)
                for shard in pc.unique(table["file"]).to_pylist():
                    resolve_inside(self.out, shard)
                yield table

    # For the build: what is there

    def check(self, subset: str, entry: SubsetEntry) -> None:
        """Raise a ZooError if the subset is already here, built from something else."""
        made = {
            "generator version": GENERATOR_VERSION,
            "index path": INDEX_PATH,
            "snapshots path": SNAPSHOTS_PATH,
        }
        here = (self.manifest.generator_version, self.manifest.index_path, self.manifest.snapshots_path)
        for (name, asked), found in zip(made.items(), here, strict=True):
            if found != asked:
                self._refuse(name, found, asked)
        present = self._declared_entry(subset)
        if present:
            for option, value in entry.settings.items():
                recorded = present.settings.get(option)
                if recorded != value:
                    self._refuse(f"{option} of subset {subset}", recorded, value)
            for name, images in entry.image_sets.items():
                known = present.image_sets.get(name, images)
                if known.sha256 != images.sha256:
                    self._refuse(
                        f"image set {name} of subset {subset}",
                        *(f"{i.source} {i.sha256[:12]}" for i in (known, images)),
                    )

    def declare(self, subset: str, entry: SubsetEntry) -> None:
        """Record what a subset is built from; raise a ZooError if it was built from something else."""
        self.check(subset, entry)
        present = self._declared_entry(subset)
        image_sets = {**entry.image_sets, **(present.image_sets if present else {})}
        self._declared = (subset, entry.seed, entry.options, dict(sorted(image_sets.items())))
        if present is None or image_sets.keys() != present.image_sets.keys():
            self.commit()

    def _declared_entry(self, subset: str) -> SubsetEntry | None:
        """What a subset was declared with; None while none of its models is in a shard or staged.

        Until then it may be declared anew.
        """
        staged = (self.out / STAGING / "models").glob(f"{subset}-*.parquet")
        return (
            self.manifest.subsets.get(subset)
            if any(_subset_of(path) == subset for path in self.tables) or any(staged)
            else None
        )

    def _refuse(self, what: str, here: object, asked: object) -> None:
        raise ZooError(
            self.out,
            expected=f"{what} {asked}",
            found=f"{here} in {MANIFEST_NAME}",
            do="use another --out, or the settings it was built with",
        )

    def missing(self, models: Iterable[Model]) -> list[Model]:
        """The models that are neither in a shard nor staged."""
        present = {
            identifier for table in self.tables.values() for identifier in table["model_id"].to_pylist()
        }
        return [
            model for model in models if model.id not in present and not staged_path(self.out, model).exists()
        ]

    # For the build: writing

    def add_models(self, path: str, models: list[Model]) -> None:
        """Write a shard anew with staged models added; `commit` makes it part of the zoo."""
        sources = [(self._file(path), self.tables[path])] if path in self.tables else []
        present = self.models_in(path)
        for model in models:
            if model.id not in present:
                file = staged_path(self.out, model)
                sources.append((file, shards.reindex(file, relative=file.name)))
        order = pa.array([number for number, (_, table) in enumerate(sources) for _ in range(len(table))])
        snapshots = (
            pa.concat_tables([table for _, table in sources]).append_column("source", order).sort_by(ORDER)
        )
        files, metadata = [file for file, _ in sources], snapshots.select(METADATA_SCHEMA.names)
        scores = _values(files, snapshots, "edge_scores_")
        self.put(path, metadata, cast(Iterator[bytes], _values(files, snapshots)), scores)

    def put(
        self,
        path: str,
        snapshots: pa.Table,
        values: Iterable[bytes],
        edge_scores: Iterable[bytes | None] | None = None,
    ) -> None:
        """Write a whole shard; `commit` makes it part of the zoo.

        Snapshots are in METADATA_SCHEMA and ORDER, with one value each.
        """
        self.tables[path] = shards.write_snapshots(
            self.next / path, snapshots, values, relative=path, edge_scores=edge_scores
        )
        self.entries[path] = _entry(self.next / path)

    def models_in(self, path: str) -> set[str]:
        """The model_ids in a shard; none if the shard does not exist."""
        return set(self.tables[path]["model_id"].to_pylist()) if path in self.tables else set()

    def commit(self) -> None:
        """Make the shards, with index, card and nws.json, the zoo's state; remove their staged files."""
        subset, seed, options, image_sets = self._declared
        files = dict(self.entries)
        for (name, split), table in self._indexes():
            path = INDEX_PATH.format(subset=name, split=split)
            if path not in self.indexes or not table.equals(self.indexes[path]):
                shards.write_index(self.next / path, table)
                self.indexes[path] = table
            files[path] = _entry(self._file(path))
        present = {
            identifier
            for path, table in self.tables.items()
            if _subset_of(path) == subset
            for identifier in table["model_id"].to_pylist()
        }
        entry = SubsetEntry(seed, len(present), options, image_sets)
        manifest = Manifest(
            GENERATOR_VERSION, dict(sorted({**self.manifest.subsets, subset: entry}.items())), files
        )
        text = card.render(manifest, [table for _, table in sorted(self.tables.items())]).encode()
        if not _has_content(self.out / CARD_NAME, text):
            _write(self.next / CARD_NAME, text)
        if manifest != self.manifest:
            manifest.write(self.next)
            self.manifest = manifest
        if self.next.exists():
            os.replace(self.next, self.out / PENDING)
            fsync(self.out / STAGING)
            roll_forward(self.out)
        for identifier in present:
            (self.out / STAGING / "models" / f"{identifier}.parquet").unlink(missing_ok=True)

    def _indexes(self) -> Iterator[tuple[tuple[str, str], pa.Table]]:
        """Yield (subset, split) and its part of the index, shard by shard."""
        for subset in dict.fromkeys(map(_subset_of, sorted(self.tables))):
            for split in SPLITS:
                parts = [
                    table
                    for path, table in sorted(self.tables.items())
                    if path.startswith(f"snapshots/{subset}/{split}-")
                ]
                if parts:
                    yield (subset, split), pa.concat_tables(parts)


def _subset_of(shard: str) -> str:
    return shard.split("/")[1]


def roll_forward(out: Path) -> None:
    """Move the files in PENDING to their places, nws.json last: until then readers look into PENDING."""
    pending = out / PENDING
    if not pending.exists():
        return
    rank = {CARD_NAME: 1, MANIFEST_NAME: 2}
    found = [path.relative_to(pending) for path in sorted(pending.rglob("*")) if path.is_file()]
    for path in found:
        resolve_inside(out, path.as_posix())  # a folder from elsewhere may contain links
    for path in sorted(found, key=lambda path: rank.get(path.as_posix(), 0)):
        target = out / path
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.as_posix() == MANIFEST_NAME:  # after a power cut, all the others must be there
            for folder in {(out / other).parent for other in found}:
                fsync(folder)
        os.replace(pending / path, target)
    fsync(out)
    shutil.rmtree(pending)


def _has_content(file: Path, content: bytes) -> bool:
    """Whether a file exists with this content."""
    return (
        path_type(file) == "a file" and file.stat().st_size == len(content) and file.read_bytes() == content
    )


def _write(file: Path, content: bytes) -> None:
    with atomic_write(file) as temporary:
        temporary.write_bytes(content)


def _entry(file: Path) -> FileEntry:
    return FileEntry(file.stat().st_size, sha256_file(file))


def _values(files: list[Path], snapshots: pa.Table, prefix: str = "") -> Iterator[bytes | None]:
    """Read the values of snapshots and check each against its sha256; None for snapshots without one.

    Snapshots are in INDEX_SCHEMA plus `source`, the number of a file; the columns with offset, length and
    sha256 begin with `prefix`.
    """
    maps: dict[int, mmap.mmap] = {}
    names = ("source", *(prefix + name for name in ("offset", "length", "sha256")))
    try:
        for number, offset, length, digest in zip(*(snapshots[n].to_pylist() for n in names), strict=True):
            if offset is None:
                yield None
                continue
            if number not in maps:
                with open(files[number], "rb") as file:
                    maps[number] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            value = maps[number][offset : offset + length]
            shards.check_value(value, digest, files[number])
            yield value
    finally:
        for content in maps.values():
            content.close()


# locks held: (process, thread, folder); a fork or another thread does not hold them
_locked_folders: set[tuple[int, int, str]] = set()


@contextmanager
def lock_folder(out: Path) -> Iterator[None]:
    """Lock a zoo's folder, created if missing, against other builders; the same thread may lock it again.

    When the block ends, the builder's temporary files are removed, and so is a new zoo that has no models.

    Raises:
        ZooError: if the folder cannot be written, is in use by another build, contains something other than
            a zoo, or has links or devices where a build writes.
    """
    cannot = functools.partial(
        ZooError, out, expected="a folder that can be written", do="choose another --out"
    )
    try:
        this = os.getpid(), threading.get_ident(), os.path.realpath(out)
    except (OSError, ValueError) as error:
        raise cannot(found=reason(error)) from error
    if this in _locked_folders:
        yield
        return
    try:
        made = [path for path in (out.absolute(), *out.absolute().parents) if path_type(path) == "nothing"]
        if _is_foreign(out):
            raise ZooError(
                out,
                expected="a zoo, or an empty or new folder",
                found="other files",
                do="choose another --out",
            )
        _refuse_links(out)
        _refuse_earlier(out)
        lock = _take_lock(out)
    except (OSError, ValueError, RuntimeError) as error:  # circular links; names too long or not text
        raise cannot(found=reason(error)) from error
    with lock:
        _locked_folders.add(this)
        try:
            new = [out / name for name in ZOO_FILES if path_type(out / MANIFEST_NAME) == "nothing"]
            with _as_disk_error(out):
                roll_forward(out)  # finish what a killed build left
                _remove_leftovers(out)
                (out / STAGING / "models").mkdir(exist_ok=True)
            try:
                yield
            finally:
                with _as_disk_error(out):
                    # else: a fork is leaving, or the folder was removed and another build has begun
                    if os.getpid() == this[0] and _is_locked_file(lock, out):
                        _remove_leftovers(out)
                        _remove(out, new, made)
        finally:
            _locked_folders.discard(this)


def _is_foreign(out: Path) -> bool:
    """Whether a folder contains something other than a zoo or the remains of a killed build."""
    if path_type(out) != "a folder" or path_type(out / PENDING / MANIFEST_NAME) == "a file":
        return False
    names = set(os.listdir(out))  # listed in one go: builds come and go
    of_builds = {STAGING, *ZOO_FILES, *FOLDERS}
    half_written = {name for name in names if name.startswith(".") and name.endswith(".tmp")}
    return (
        bool(names)
        and MANIFEST_NAME not in names
        and (STAGING not in names or not names <= of_builds | half_written)
    )


def _refuse_earlier(out: Path) -> None:
    """Raise a ZooError if the folder is a zoo of an earlier format, before anything in it changes."""
    try:
        manifest = Manifest.read(out)
    except ZooError:  # there is none, or one that is damaged, which is said where it is read
        return
    manifest.check_current(out)


def _refuse_links(out: Path) -> None:
    """Raise a ZooError for a link or device where a build writes or deletes: it could lead anywhere."""
    for top in (out / STAGING, *(out / name for name in FOLDERS)):
        for folder, folders, files in os.walk(top, onerror=_raise_unless_missing):
            for path in (Path(folder), *(Path(folder, name) for name in (*folders, *files))):
                if path.is_symlink():
                    found = f"a link to {os.readlink(path)}"
                elif path_type(path) in (
                    "a folder",
                    "a file",
                    "nothing",
                ):  # what another build had there may be gone
                    continue
                else:
                    found = path_type(path)
                raise ZooError(
                    path,
                    expected="a file or folder of a zoo, where a build writes",
                    found=found,
                    do="remove it",
                )


def _raise_unless_missing(error: OSError) -> None:
    """Raise unless the folder is missing: what cannot be listed cannot be checked."""
    if not isinstance(error, FileNotFoundError):
        raise error


@contextmanager
def _as_disk_error(out: Path) -> Iterator[None]:
    """Turn a disk error into a ZooError of one line."""
    try:
        yield
    except OSError as error:
        do = "free space or permit writing, then run again"
        raise ZooError(
            error.filename or out, expected="a disk that can be written", found=reason(error), do=do
        ) from error


def _take_lock(out: Path) -> IO[bytes]:
    """Open and lock the file that keeps other builders out."""
    path = out / STAGING / LOCK
    for last in (*[False] * LOCK_ATTEMPTS, True):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = open(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666), "wb")  # noqa: SIM115 -- held until the build ends
        except (FileNotFoundError, FileExistsError):  # a build that ended removed the folder in between
            if last:
                raise
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_locked_file(lock, out):
                return lock
        except BlockingIOError:
            lock.close()
            break
        except BaseException:
            lock.close()
            raise
        lock.close()
    raise ZooError(
        out, expected="one build at a time", found="another one at work", do="wait for it, or stop it"
    )


def _is_locked_file(lock: IO[bytes], out: Path) -> bool:
    """Whether the locked file is still the folder's: the build that made it may have ended and removed it."""
    try:
        return os.path.samestat(os.fstat(lock.fileno()), os.stat(out / STAGING / LOCK))
    except FileNotFoundError:
        return False


@contextmanager
def open_store(out: Path) -> Iterator[Store]:
    """Open the store of a folder, locked as by `lock_folder`.

    Raises:
        ZooError: as `lock_folder`, or if a file of the zoo is damaged.
    """
    with lock_folder(out):
        yield Store(out)


def _remove(out: Path, new: list[Path], made: list[Path]) -> None:
    """Remove the builder's temporary files; if the zoo has no models, also `new` files and `made` folders."""
    staging = out / STAGING
    kept = (staging / "models", out / NEXT, out / PENDING)
    if any(path.is_file() for folder in kept for path in folder.rglob("*")):
        return
    empty = not (out / "snapshots").exists()
    for path in new if empty else ():
        path.unlink(missing_ok=True)
    for path in staging.iterdir():
        if path.name != LOCK:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    # last: from here on another build may lock its own file, in folders that are then not empty
    (staging / LOCK).unlink()
    for path in (staging, *(made if empty else ())):
        with contextlib.suppress(OSError):
            path.rmdir()


def _remove_leftovers(out: Path) -> None:
    """Remove half-written files of a zoo, and the images for workers: the next build may use others."""
    for folder in (STAGING, *FOLDERS):
        for leftover in (out / folder).rglob(".*.tmp"):
            leftover.unlink()
    for name in ZOO_FILES:
        for leftover in out.glob(f".{name}.*.tmp"):
            leftover.unlink()
    if (out / STAGING / "images").exists():
        shutil.rmtree(out / STAGING / "images")


def holds_models(out: Path) -> bool:
    """Whether a folder has finished models, in shards or staged."""
    return any(any((out / folder).rglob("[!.]*.parquet")) for folder in (STAGING, "snapshots"))


def remember_images(out: Path, images: Path | None) -> None:
    """Note for `verify` where the images are on this machine; the note is not part of the data set."""
    note = json.dumps({"images": images and str(images.resolve())}) + "\n"
    if not _has_content(out / LOCAL_NOTE, note.encode()):
        _write(out / LOCAL_NOTE, note.encode())


def remembered_images(out: Path) -> Path | None:
    """The folder of images that the zoo was last built with on this machine; None if there was none.

    Raises:
        ZooError: if the note is damaged.
    """
    note = out / LOCAL_NOTE
    if path_type(note) == "nothing":
        return None
    content = read_json(note, "where the images lie")
    folder = content.get("images", 0) if isinstance(content, dict) else 0
    if not isinstance(folder, str | None):
        raise ZooError(
            note,
            expected='{"images": the folder where they lie, or null}',
            found=repr(content),
            do="remove it",
        )
    return Path(folder) if folder else None
