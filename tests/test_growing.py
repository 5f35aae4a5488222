"""Readers beside a zoo that grows: at every step of the way they see the old state or the new one, and never
a wrong byte.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from nws_dataset.errors import ZooError
from nws_dataset.format.manifest import MANIFEST_NAME, PENDING, STAGING
from nws_dataset.format.schema import METADATA_SCHEMA
from nws_dataset.format.shards import write_index, write_snapshots
from nws_dataset.reading import folder as folder_module
from nws_dataset.reading.snapshots import Snapshots
from nws_dataset.reading.zoo import Zoo
from testing.zoo_factory import make_zoo, write_manifest

FEW, MANY = 6, 10  # models before and after


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_zoo(tmp_path_factory.mktemp("zoo") / "grown", models=MANY)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, grown: Path) -> Path:
    """The zoo before it grew: the first models of the other, the same bytes."""
    folder, zoo = tmp_path_factory.mktemp("zoo") / "small", Zoo(grown)
    for index_path in zoo.manifest.index_files():
        tables = []
        for path in dict.fromkeys(pq.read_table(grown / index_path)["file"].to_pylist()):
            table = pq.read_table(grown / path)
            table = table.filter(pc.less(table["model_number"], FEW))
            if len(table):
                values = [value.as_py() for value in table["weights"]]
                tables.append(
                    write_snapshots(folder / path, table.select(METADATA_SCHEMA.names), values, relative=path)
                )
        if tables:
            write_index(folder / index_path, pa.concat_tables(tables))
    paths = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*.parquet"))]
    write_manifest(folder, ["demo"], FEW, paths)
    return folder


def steps(folder: Path, grown: Path) -> Iterator[str]:
    """Takes a folder to the new state as a builder does, a step at a time."""
    manifest = Zoo(grown).manifest
    prepared, commit = folder / STAGING / "next", folder / PENDING
    files = [*manifest.files, "README.md", MANIFEST_NAME]
    changed = [
        file
        for file in files
        if not (folder / file).exists() or (folder / file).read_bytes() != (grown / file).read_bytes()
    ]
    for file in changed:
        (prepared / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(grown / file, prepared / file)
        yield f"prepared {file}"
    prepared.rename(commit)
    yield "committed"
    for file in changed:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        os.replace(commit / file, folder / file)
        yield f"moved {file}"
    shutil.rmtree(commit)
    yield "done"


def check(zoo: Zoo, snapshots: Snapshots | None = None) -> int:
    """Every value in every way that it can be read; returns the number of models."""
    snapshots = zoo.filter() if snapshots is None else snapshots
    known = {
        snapshot["sha256"]: array for snapshot, array in zip(snapshots, zoo.arrays(snapshots), strict=True)
    }
    for snapshot in snapshots:
        assert hashlib.sha256(zoo.value(snapshot)).hexdigest() == snapshot["sha256"]
    for part, weights in zoo.stacks(snapshots):
        for snapshot, expected in zip(part, weights, strict=True):
            assert np.array_equal(known[snapshot["sha256"]], expected)
    assert np.array_equal(
        zoo.slices(snapshots, [2] * len(snapshots), 9),
        [known[snapshot["sha256"]][2:11] for snapshot in snapshots],
    )
    return len(set(snapshots["model_id"]))


@pytest.mark.parametrize("checked", [False, True])
def test_every_step(tmp_path: Path, small: Path, grown: Path, checked: bool) -> None:
    folder = Path(shutil.copytree(small, tmp_path / "zoo"))
    opened = [Zoo(folder, check=checked)]  # its index is read later
    used = Zoo(folder, check=checked)
    snapshots, before = used.filter(), []
    assert check(used, snapshots) == FEW
    committed = False
    for step in steps(folder, grown):
        committed |= step == "committed"
        fresh = Zoo(folder, check=checked)
        assert check(fresh) == (MANY if committed else FEW), step
        assert check(used, snapshots) == FEW, step
        before.append((Zoo(folder, check=checked), fresh.filter()))
        opened.append(Zoo(folder, check=checked))
        late = Zoo(folder, check=checked)
        late.filter()
        for zoo, chosen in before:
            assert check(zoo, chosen) in (FEW, MANY), step
    for zoo in opened:
        assert check(zoo) in (FEW, MANY)


def test_the_index_is_of_one_state(tmp_path: Path, small: Path, grown: Path) -> None:
    """Columns that are first asked for when the index files have changed are those of the snapshots that were
    given out.
    """
    folder = Path(shutil.copytree(small, tmp_path / "zoo"))
    zoo = Zoo(folder)
    snapshots = zoo.filter(is_final=True)
    assert list(steps(folder, grown))[-1] == "done"
    assert len(snapshots) == FEW and set(snapshots["model_number"]) == set(range(FEW))
    assert check(zoo, snapshots) == FEW and zoo.manifest.subsets["demo"].num_models == FEW
    assert len(Zoo(folder).filter(is_final=True)) == MANY


@pytest.mark.parametrize("checked", [False, True])
@pytest.mark.parametrize("pause", [0.0, 0.003])
def test_readers_beside_a_writer(
    tmp_path: Path, small: Path, grown: Path, checked: bool, pause: float
) -> None:
    """A zoo grows while others read it without a pause."""
    folder = Path(shutil.copytree(small, tmp_path / "zoo"))
    stop, seen = threading.Event(), []

    def read() -> None:
        while not stop.is_set():
            zoo = Zoo(folder, check=checked)
            snapshots = zoo.filter()
            time.sleep(pause)
            seen.append(check(zoo, snapshots))

    with ThreadPoolExecutor(3) as threads:
        readers = [threads.submit(read) for _ in range(3)]
        for _ in steps(folder, grown):
            time.sleep(pause)
        while len(seen) < 6 and not any(reader.done() for reader in readers):
            time.sleep(0.01)
        stop.set()
        for reader in readers:
            reader.result()
    assert set(seen) <= {FEW, MANY} and MANY in seen


def test_another_zoo_in_its_place(tmp_path: Path, small: Path) -> None:
    """Snapshots whose values are nowhere any more are refused, not read as others."""
    folder = Path(shutil.copytree(small, tmp_path / "zoo"))
    zoo = Zoo(folder)
    snapshots = zoo.filter()
    another = make_zoo(tmp_path / "another", models=FEW, seed=5)
    assert list(steps(folder, another))[-1] == "done"
    for read in (
        zoo.arrays,
        lambda snapshots: zoo.value(snapshots[0]),
        lambda snapshots: zoo.slices(snapshots, [0] * len(snapshots), 5),
        lambda snapshots: list(zoo.stacks(snapshots)),
    ):
        with pytest.raises(
            ZooError, match="expected the zoo that was opened, found another in its place; open it again"
        ):
            read(snapshots)


def test_a_damaged_file_is_told_at_once(tmp_path: Path, small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_module, "CHANGE_SECONDS", 1e6)
    folder = Path(shutil.copytree(small, tmp_path / "zoo"))
    zoo = Zoo(folder)
    snapshot = zoo.filter()[0]
    path = folder / snapshot["file"]
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(ZooError, match="fetch or build the file again"):
        zoo.row(snapshot)
    index = folder / zoo.manifest.index_files()[0]
    index.write_bytes(index.read_bytes()[::-1])
    with pytest.raises(ZooError, match="expected sha256"):
        Zoo(folder).filter()


def test_a_new_state_that_is_damaged(
    tmp_path: Path, small: Path, grown: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that stays other than listed is waited for, and then named."""
    monkeypatch.setattr(folder_module, "CHANGE_SECONDS", 0.1)
    folder = Path(shutil.copytree(small, tmp_path / "zoo"))
    for step in steps(folder, grown):
        if step == "committed":
            break
    file = Zoo(folder).filter()[0]["file"]
    (folder / PENDING / file).write_bytes(b"")
    with pytest.raises(ZooError, match=r"\.parquet: expected \d+ bytes, found \d+ bytes"):
        check(Zoo(folder))
