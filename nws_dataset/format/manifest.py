"""nws.json: what a zoo's folder contains and how it was made.

It is written last, so a folder with a manifest is complete.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import functools
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from nws_dataset.errors import ZooError, reason
from nws_dataset.files import atomic_write, path_type, read_json, resolve_inside
from nws_dataset.format.schema import INDEX_SCHEMA, SNAPSHOTS_SCHEMA, SPLITS, card_features, of_version_2

MANIFEST_NAME = "nws.json"
FORMAT_VERSION = 3
READABLE = (2, FORMAT_VERSION)  # version 2 is read, and nothing is added to it
INDEX_PATH = "index/{subset}/{split}.parquet"
SNAPSHOTS_PATH = "snapshots/{subset}/{split}-{architecture}-{block:05d}.parquet"
# folder for files that are not part of the zoo yet; no pattern of the card matches them
STAGING = ".staging"
# a complete new state moving into the folder: its files take precedence over those of the same name there
PENDING = f"{STAGING}/commit"
SUBSET_NAME = re.compile(r"[A-Za-z0-9_][\w.-]{0,99}", re.ASCII)  # it is part of paths and patterns
PLACEHOLDER = re.compile(r"\{([a-z]+)(?::0?\d{1,2}d)?\}")  # of a path template
MAX_TEMPLATE = 200  # characters
EARLIER_OPTIONS = {"backend": "fast"}  # of subsets built before nws.json recorded them
INDEX_CONFIG = "index"  # the default config of the Hub and `load_dataset`


@dataclass(frozen=True)
class FileEntry:
    """A file of the zoo."""

    size: int  # bytes
    sha256: str


@dataclass(frozen=True)
class ImageSource:
    """The images that models were trained on."""

    source: str  # where they came from, e.g. a repository and revision
    sha256: str  # of the images and labels that were used


@dataclass(frozen=True)
class ImageCopy:
    """A copy of an image set whose pixels are not the original's, so results on it have its name."""

    dataset: str
    name: str
    folder: str  # the end of its source, as another decoder of JPEG may give other pixels
    sha256: str  # as in ImageSource

    def is_source(self, dataset: str, images: ImageSource) -> bool:
        """Whether images of a data set came from this copy."""
        told = images.sha256 == self.sha256 or images.source.endswith(self.folder)
        return dataset == self.dataset and told


COPIES = (
    ImageCopy(
        "cifar10",
        "CIFAR-10 (JPEG q75)",
        "/jpeg-transcoded",
        "4d575a3f46ef747e2f11c6c6a197119ff7979c376bf7733a85ab95c376ac5b76",
    ),
)


@dataclass(frozen=True)
class SubsetEntry:
    """A subset in the folder."""

    # of the build; of an imported subset the seed of its splits, None if the release has its own splits
    seed: int | None
    num_models: int  # models present, 0 .. num_models - 1
    # differences from the preset, e.g. epochs; values may be null
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    # by the recipe's `dataset`
    image_sets: Mapping[str, ImageSource] = dataclasses.field(default_factory=dict)

    @property
    def settings(self) -> dict[str, Any]:
        """The seed and options of a build, including options that its version did not record."""
        return {"seed": self.seed, **EARLIER_OPTIONS, **self.options}

    @property
    def copies(self) -> dict[str, str]:
        """Data set -> the name of the copy that its images came from, of those in COPIES."""
        sets = self.image_sets.items()
        return {name: copy.name for name, images in sets for copy in COPIES if copy.is_source(name, images)}


@dataclass(frozen=True)
class Manifest:
    """The content of nws.json."""

    generator_version: str
    subsets: Mapping[str, SubsetEntry]
    files: Mapping[str, FileEntry]  # by path relative to the folder
    index_path: str = INDEX_PATH
    snapshots_path: str = SNAPSHOTS_PATH
    format_version: int = FORMAT_VERSION

    @classmethod
    def read(cls, folder: str | Path) -> Manifest:
        """The manifest of a zoo's folder; if a new state is moving in, or was stopped there, the new one.

        Raises:
            ZooError: if it is missing, damaged, or of another format version.
        """
        for path in (Path(folder) / PENDING / MANIFEST_NAME, Path(folder) / MANIFEST_NAME):
            try:
                return cls.from_json(read_json(path, "the manifest of a zoo"), path)
            except ZooError:
                if path_type(path) != "nothing":  # else it has moved, or never existed
                    raise
        do = "not a zoo; build one with nws build --out DIR"
        raise ZooError(
            folder,
            expected=f"a folder with {MANIFEST_NAME}",
            found=path_type(folder) if path_type(folder) != "a folder" else "none",
            do=do,
        )

    @classmethod
    def from_json(cls, data: Any, where: object) -> Manifest:
        """The manifest from nws.json's content.

        Args:
            data: as `json.loads` returned it.
            where: its name in error messages.

        Raises:
            ZooError: if it is damaged, or of another format version.
        """
        if not isinstance(data, dict) or "format_version" not in data:
            found = "no format_version" if isinstance(data, dict) else type(data).__name__
            raise ZooError(where, expected="the manifest of a zoo", found=found, do="fetch or build it again")
        version = data["format_version"]
        if version not in READABLE or type(version) is not int:
            do = "install the version of nws that built it"
            expected = f"format_version {' or '.join(map(str, READABLE))}"
            raise ZooError(where, expected=expected, found=repr(version), do=do)
        try:
            return cls._from_json(data)
        except (ValueError, TypeError, AttributeError, LookupError) as error:
            raise ZooError(
                where, expected="the manifest of a zoo", found=reason(error), do="fetch or build it again"
            ) from error

    @classmethod
    def _from_json(cls, data: dict[str, Any]) -> Manifest:
        files = {path: FileEntry(**entry) for path, entry in data["files"].items()}
        subsets = {}
        for name, entry in data["subsets"].items():
            image_sets = {dataset: ImageSource(**source) for dataset, source in entry["image_sets"].items()}
            subsets[name] = SubsetEntry(**{**entry, "image_sets": image_sets})
        manifest = cls(**{**data, "files": files, "subsets": subsets})
        manifest._check()
        # a ValueError for lone surrogates: these strings go into the card
        json.dumps({**data, "files": None}, ensure_ascii=False).encode()
        return manifest

    def _check(self) -> None:
        """Raise a ValueError unless values have the right types and templates the right placeholders."""
        for path, entry in self.files.items():
            if not is_count(entry.size) or not isinstance(entry.sha256, str):
                raise ValueError(f"size or sha256 of {path}")
        for name, subset in self.subsets.items():
            if not SUBSET_NAME.fullmatch(name):
                raise ValueError(f"the subset's name {name!r}")
            if (
                not is_count(subset.num_models)
                or not isinstance(subset.options, dict)
                or not isinstance(subset.seed, int | None)
            ):
                raise ValueError(f"seed, num_models or options of {name}")
            if not all(isinstance(value, str | float | int | None) for value in subset.options.values()):
                raise ValueError(f"options of {name}: not each a text, number, truth value or null")
            for image_set in subset.image_sets.values():
                if not isinstance(image_set.source, str) or not isinstance(image_set.sha256, str):
                    raise ValueError(f"image_sets of {name}")
        if not isinstance(self.generator_version, str):
            raise ValueError("generator_version")
        for template, ours in ((self.index_path, INDEX_PATH), (self.snapshots_path, SNAPSHOTS_PATH)):
            rest = PLACEHOLDER.sub("", template)
            if (
                len(template) > MAX_TEMPLATE
                or PLACEHOLDER.findall(template) != PLACEHOLDER.findall(ours)
                or set("{}") & set(rest)
            ):
                raise ValueError(f"the path template {template[:MAX_TEMPLATE]!r}")

    def dataset_name(self, dataset: str, subsets: Iterable[str]) -> str:
        """The name of results on a data set in some subsets: the data set's own, or its copy's."""
        entries = (self.subsets.get(subset) for subset in subsets)
        names = [entry.copies.get(dataset, dataset) if entry else dataset for entry in entries]
        return " and ".join(sorted(set(names)))

    def check_current(self, where: object) -> None:
        """Raise a ZooError unless the zoo is of today's format, so that something can be added to it."""
        if self.format_version != FORMAT_VERSION:
            raise ZooError(
                where,
                expected=f"a zoo of format_version {FORMAT_VERSION}, or none",
                found=f"one of {self.format_version}, which is only read",
                do="choose another place, or use the version of nws that built it",
            )

    def write(self, folder: str | Path) -> None:
        """Write nws.json; equal manifests give equal bytes.

        Raises:
            ZooError: if it cannot be written.
        """
        with atomic_write(Path(folder) / MANIFEST_NAME) as temporary:
            temporary.write_bytes(self._content())

    @functools.cached_property
    def digest(self) -> str:
        """The SHA-256 of nws.json as `write` writes it, which covers all files: it lists their SHA-256."""
        return hashlib.sha256(self._content()).hexdigest()

    def _content(self) -> bytes:
        return (json.dumps(dataclasses.asdict(self), indent=2, sort_keys=True) + "\n").encode()

    def data_files(self) -> dict[str, dict[str, str]]:
        """Config of the card -> split -> file pattern. Config `index` is the index of all subsets."""
        patterns = {INDEX_CONFIG: self.index_path.replace("{subset}", "*")}
        snapshots_path = re.sub(r"\{architecture\}.*\}", "*", self.snapshots_path)
        patterns.update({subset: snapshots_path.replace("{subset}", subset) for subset in self.subsets})
        return {
            name: {split: pattern.replace("{split}", split) for split in SPLITS}
            for name, pattern in patterns.items()
        }

    def matching(self, pattern: str) -> list[str]:
        """The files that a pattern of `data_files` matches, sorted."""
        return sorted(fnmatch.filter(self.files, pattern))

    def locate(self, folder: str | Path, relative: str) -> Path:
        """The path of a file of the zoo, which must be listed and have the listed size.

        While a zoo grows, new files are in PENDING until they move to their places.

        Raises:
            ZooError: if it leads outside the folder, is not listed, is missing, or has another size.
        """
        path, entry = resolve_inside(folder, relative), self.files.get(relative)
        if entry is None:
            raise ZooError(
                path, expected=f"a file that {MANIFEST_NAME} lists", found="none", do="build the index again"
            )
        found = "no file"
        for candidate in (resolve_inside(folder, f"{PENDING}/{relative}"), path):
            if path_type(candidate) == "a file":
                try:
                    found = f"{candidate.stat().st_size} bytes"
                except OSError:  # it has just moved there
                    continue
                if found == f"{entry.size} bytes":
                    return candidate
        raise ZooError(path, expected=f"{entry.size} bytes", found=found, do="fetch or build the file again")

    def index_files(self) -> list[str]:
        """The index files that have snapshots, by subset and split."""
        paths = (
            self.index_path.format(subset=subset, split=split) for subset in self.subsets for split in SPLITS
        )
        return [path for path in paths if path in self.files]


def configs(manifest: Manifest, index: pa.Table) -> dict[str, list[dict[str, Any]]]:
    """The card's YAML, with which the stock `datasets` library loads a folder.

    Config `index` (the default) is the index of all subsets; each subset is a config with its weights. Splits
    without snapshots are left out. The text names the state of the zoo, because the library's cache key is
    this text and the folder's last name, and counts the snapshots, because the library checks that.

    Args:
        manifest: of the folder; its `files` decide.
        index: the zoo's index; the columns `subset` and `split` are enough.

    Returns:
        {"configs": ..., "dataset_info": ...}, to dump between the card's `---` lines.
    """
    counted = index.group_by(["subset", "split"]).aggregate([([], "count_all")]).to_pylist()
    counts = {(line["subset"], line["split"]): line["count_all"] for line in counted}
    entries, infos = [], []
    for name, patterns in manifest.data_files().items():
        present = {split: pattern for split, pattern in patterns.items() if manifest.matching(pattern)}
        if not present:
            continue
        subsets = manifest.subsets if name == INDEX_CONFIG else [name]
        splits: list[dict[str, Any]] = [
            {
                "name": split,
                "num_bytes": sum(manifest.files[file].size for file in manifest.matching(pattern)),
                "num_examples": sum(counts.get((subset, split), 0) for subset in subsets),
            }
            for split, pattern in present.items()
        ]
        default = {"default": True} if name == INDEX_CONFIG else {}
        entries.append(
            {
                "config_name": name,
                **default,
                "data_files": [{"split": split, "path": path} for split, path in present.items()],
            }
        )
        infos.append(
            {
                "config_name": name,
                "description": state(manifest),
                "features": card_features(
                    schema_of(manifest, INDEX_SCHEMA if name == INDEX_CONFIG else SNAPSHOTS_SCHEMA)
                ),
                "splits": splits,
                "download_size": sum(split["num_bytes"] for split in splits),
            }
        )
    return {"configs": entries, "dataset_info": infos}


def schema_of(manifest: Manifest, schema: pa.Schema) -> pa.Schema:
    """A schema as a zoo's files have it."""
    return schema if manifest.format_version == FORMAT_VERSION else of_version_2(schema)


def state(manifest: Manifest) -> str:
    """The text that names the state of the zoo in a card and in loaded datasets."""
    return f"{MANIFEST_NAME} sha256 {manifest.digest}"


def is_count(value: Any) -> bool:
    """Whether a value of nws.json is a whole number from 0 that fits into int64."""
    return type(value) is int and 0 <= value < 1 << 63
