"""The configs in loading_script/nws/README.md, generated from the code.

`cog -r -I scripts loading_script/nws/README.md` writes them.
"""

from __future__ import annotations

import itertools

import yaml

from nws_dataset.format.manifest import INDEX_PATH, SNAPSHOTS_PATH, FileEntry, Manifest, SubsetEntry, configs
from nws_dataset.format.schema import INDEX_SCHEMA, SPLITS
from nws_dataset.format.subsets import SUBSETS
from nws_dataset.reading.zoo import DEFAULT_REPOSITORY

REVISION = "main"  # of DEFAULT_REPOSITORY; a tag pins a release


def front_matter() -> str:
    """The YAML that leads the stock `datasets` library to the files of DEFAULT_REPOSITORY.

    Every path is a pattern, and the library looks for its files only when its config is requested: a subset
    that is missing from the repository does not keep others from loading, and if a split is empty, the other
    splits load by name. (In the index each split must have snapshots: the library determines the files' kind
    from the first config.) Columns are left to the files, so that a missing subset is an error instead of an
    empty data set.
    """
    manifest = Manifest(
        "", dict.fromkeys(SUBSETS, SubsetEntry(None, 0)), dict.fromkeys(_one_file_each(), FileEntry(0, ""))
    )
    entries = configs(manifest, INDEX_SCHEMA.empty_table())["configs"]
    for data_file in itertools.chain.from_iterable(entry["data_files"] for entry in entries):
        data_file["path"] = f"hf://datasets/{DEFAULT_REPOSITORY}@{REVISION}/{data_file['path']}"
    return yaml.safe_dump({"configs": entries}, sort_keys=False, width=1000).rstrip()


def _one_file_each() -> list[str]:
    """The index and one shard of every subset and split, with the names they have in a complete zoo."""
    pairs = list(itertools.product(SUBSETS, SPLITS))
    indexes = [INDEX_PATH.format(subset=subset, split=split) for subset, split in pairs]
    return indexes + [
        SNAPSHOTS_PATH.format(subset=subset, split=split, architecture="any", block=0)
        for subset, split in pairs
    ]
