"""A zoo's folder for the `datasets` library: a builder that reads only the files that nws.json lists.

The library's own builder takes the folder's name for a pattern, and trusts files to be as the card says.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from nws_dataset.errors import ZooError
from nws_dataset.files import read_file
from nws_dataset.format.manifest import INDEX_CONFIG, Manifest, state
from nws_dataset.format.schema import INDEX_SCHEMA, SNAPSHOTS_SCHEMA
from nws_dataset.format.shards import check_value, read_index, read_snapshots


@dataclass
class Options(datasets.BuilderConfig):
    """What to read: the options of the library's own Parquet builder.

    Args:
        columns: names; None reads all.
        filters: an Arrow expression, or a list of (column, operator, value), that snapshots must fulfil.
    """

    columns: list[str] | None = None
    filters: Any = None


class FolderBuilder(datasets.ArrowBasedBuilder):
    """Snapshots of a zoo's folder, cached by the library under the digest of nws.json.

    Args:
        folder: the zoo.
        manifest: its nws.json.
        name: INDEX_CONFIG or a subset.
        cache_dir: of the library; None is its default.
        options: of Options.
    """

    BUILDER_CONFIG_CLASS = Options

    def __init__(
        self, folder: Path, manifest: Manifest, name: str, *, cache_dir: str | None = None, **options: Any
    ) -> None:
        self.folder, self.manifest = folder, manifest
        if isinstance(options.get("columns"), str):
            options["columns"] = [options["columns"]]
        super().__init__(
            cache_dir, dataset_name="nws", config_name=name, hash=self.manifest.digest, **options
        )

    def _info(self) -> datasets.DatasetInfo:
        schema = INDEX_SCHEMA if self.config.name == INDEX_CONFIG else SNAPSHOTS_SCHEMA
        features = datasets.Features.from_arrow_schema(schema)
        if self.config.columns is not None:
            missing = [name for name in self.config.columns if name not in features]
            if missing:
                expected = f"columns among {', '.join(features)}"
                raise ZooError(self.folder, expected=expected, found=", ".join(missing), do="choose others")
            features = datasets.Features(
                {name: feature for name, feature in features.items() if name in self.config.columns}
            )
        return datasets.DatasetInfo(description=state(self.manifest), features=features)

    def _split_generators(self, dl_manager: Any) -> list[datasets.SplitGenerator]:
        files = {
            split: self.manifest.matching(pattern)
            for split, pattern in self.manifest.data_files()[self.config.name].items()
        }
        return [
            datasets.SplitGenerator(name=split, gen_kwargs={"files": found})
            for split, found in files.items()
            if found
        ]

    def _generate_tables(self, files: list[str]) -> Iterator[tuple[str, pa.Table]]:
        """The snapshots of files, all checked to be of the same state of the zoo."""
        filters = self.config.filters
        condition = pq.filters_to_expression(filters) if isinstance(filters, list) else filters
        for file in files:
            for number, table in enumerate(self._tables(file)):
                # the open file can no longer change
                if number == 0 and Manifest.read(self.folder).digest != self.manifest.digest:
                    do = "wait until nothing is built or copied there, then load again"
                    raise ZooError(
                        self.folder, expected="a folder that does not change", found="a new nws.json", do=do
                    )
                snapshots = table if condition is None else table.filter(condition)
                yield f"{file}-{number}", snapshots.select(list(self.info.features))

    def _tables(self, file: str) -> Iterator[pa.Table]:
        path = self.manifest.locate(self.folder, file)
        if self.config.name == INDEX_CONFIG:
            content = memoryview(read_file(path, "an index file", self.manifest.files[file].size))
            check_value(content, self.manifest.files[file].sha256, path)
            yield read_index(path, content)
        else:
            for batch in read_snapshots(path):
                yield pa.Table.from_batches([batch])
