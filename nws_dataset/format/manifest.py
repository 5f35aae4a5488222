"""nws.json: what a zoo's folder holds and how it was made.

Written last, so a folder with a manifest is complete.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import functools
import hashlib
import json
import re
from collections.abc import Mapping
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
# folder of what is not part of the zoo yet; no pattern of the card matches what is in it
STAGING = ".staging"
# a complete new state on its way into the folder: what is in it comes before what stands under the same name
PENDING = f"{STAGING}/commit"
SUBSET_NAME = re.compile(r"[A-Za-z0-9_][\w.-]{0,99}", re.ASCII)  # it stands in paths and patterns
PLACEHOLDER = re.compile(r"\{([a-z]+)(?::0?\d{1,2}d)?\}")  # of a path template
MAX_TEMPLATE = 200  # letters
EARLIER_OPTIONS = {"backend": "fast"}  # of subsets that were built before nws.json said so
INDEX_CONFIG = "index"  # the config that the Hub and `load_dataset` take by default


@dataclass(frozen=True)
class FileEntry:
    """A file of the zoo."""

    size: int  # bytes
    sha256: str


@dataclass(frozen=True)
class ImageSet:
    """The images that models were trained on."""

    source: str  # where they came from, e.g. a repository and revision
    sha256: str  # of the images and labels as they were used


@dataclass(frozen=True)
class SubsetEntry:
    """A subset as it is present in the folder."""

    # of the build; of an imported subset what its splits follow from, None if the release has splits of its
    # own
    seed: int | None
    num_models: int  # models present, 0 .. num_models - 1
    # what departs from the preset, e.g. epochs; may be null
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    image_sets: Mapping[str, ImageSet] = dataclasses.field(default_factory=dict)  # by the recipe's `dataset`

    @property
    def settings(self) -> dict[str, Any]:
        """The seed and the options of a build, those too that its version did not write down."""
        return {"seed": self.seed, **EARLIER_OPTIONS, **self.options}


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
        """The manifest of a zoo's folder; of a zoo that grows just now, or was stopped there, that of the new
        state.

        Raises:
            ZooError: if it is missing, damaged, or of another format version.
        """
        for path in (Path(folder) / PENDING / MANIFEST_NAME, Path(folder) / MANIFEST_NAME):
            try:
                return cls.from_json(read_json(path, "the manifest of a zoo"), path)
            except ZooError:
                if path_type(path) != "nothing":  # else it has moved, or there is none
                    raise
        do = "not a zoo; build one with nws-build --out DIR"
        raise ZooError(
            folder,
            expected=f"a folder with {MANIFEST_NAME}",
            found=path_type(folder) if path_type(folder) != "a folder" else "none",
            do=do,
        )

    @classmethod
    def from_json(cls, data: Any, where: object) -> Manifest:
        """The manifest that `json.loads` made of nws.json's content.

        Args:
            data: what was read.
            where: what an error names.

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
            image_sets = {image_set: ImageSet(**source) for image_set, source in entry["image_sets"].items()}
            subsets[name] = SubsetEntry(**{**entry, "image_sets": image_sets})
        manifest = cls(**{**data, "files": files, "subsets": subsets})
        manifest._check()
        # a ValueError for half a character: these texts stand in the card
        json.dumps({**data, "files": None}, ensure_ascii=False).encode()
        return manifest

    def _check(self) -> None:
        """Raise a ValueError unless the values have their types and the templates name what they must."""
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
        """Write nws.json; the same manifest gives the same bytes.

        Raises:
            ZooError: if it cannot be written.
        """
        with atomic_write(Path(folder) / MANIFEST_NAME) as temporary:
            temporary.write_bytes(self._content())

    @functools.cached_property
    def digest(self) -> str:
        """The SHA-256 of nws.json as `write` writes it: of all that the zoo holds, as it lists every file's
        own.
        """
        return hashlib.sha256(self._content()).hexdigest()

    def _content(self) -> bytes:
        return (json.dumps(dataclasses.asdict(self), indent=2, sort_keys=True) + "\n").encode()

    def data_files(self) -> dict[str, dict[str, str]]:
        """For each config of the card, by split, the pattern of its files.

        Config `index` is the index of all subsets.
        """
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
        """The path of a file of the zoo, which must be listed and have the size that is listed.

        While a zoo grows, its new files stand in PENDING, and move from there to where they belong.

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
                except OSError:  # it has just been moved there
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
    """The card's YAML that makes a folder load with the stock `datasets` library.

    Config `index` (the default) is the index of all subsets; each subset is a config with its weights. Splits
    without snapshots are left out. The library keys its cache on this text and on the folder's last name, so
    the text names the state of the zoo; and it refuses files that have other numbers of snapshots, so the
    text has those.

    Args:
        manifest: of the folder; its `files` decide.
        index: its lines; the columns `subset` and `split` are enough.

    Returns:
        {"configs": ..., "dataset_info": ...}, to be dumped between the card's `---` lines.
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
    """The text by which a card, and each dataset that is loaded, names the state of its zoo."""
    return f"{MANIFEST_NAME} sha256 {manifest.digest}"


def is_count(value: Any) -> bool:
    """Whether a value of nws.json is a whole number from 0 that Arrow and numpy can count to."""
    return type(value) is int and 0 <= value < 1 << 63
