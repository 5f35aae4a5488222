"""Reads damaged zoos, one after the other: `python tests/fuzz_reader.py ZOO WORK FIRST COUNT`. tests/test_fuzz.py runs it in a process.

Each case damages one file of a copy of the zoo. Then all is read, with checks. Allowed are a ZooError, or exactly what the whole zoo gives.
Anything else ends the process: another exception, a crash, data that differ, or a case that takes longer than SECONDS.
"""

from __future__ import annotations

import faulthandler
import hashlib
import json
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np

from nws_dataset import Zoo, ZooError
from nws_dataset.shards import read_snapshots, reindex

SECONDS = 20  # for one case


def flip(content: bytearray, random: np.random.Generator) -> None:
    """A few flipped bits."""
    for place in random.integers(len(content), size=random.integers(1, 4)):
        content[place] ^= 1 << random.integers(8)


def cut(content: bytearray, random: np.random.Generator) -> None:
    """The end is missing."""
    del content[random.integers(len(content)) :]


def remove(content: bytearray, random: np.random.Generator) -> None:
    """Some bytes in the middle are missing."""
    start = random.integers(len(content))
    del content[start : start + random.integers(1, 200)]


def insert(content: bytearray, random: np.random.Generator) -> None:
    """Some bytes too many."""
    place = random.integers(len(content))
    content[place:place] = random.bytes(random.integers(1, 200))


def overwrite(content: bytearray, random: np.random.Generator) -> None:
    """A block of other bytes: zeros, ones, noise, or a copy of another place."""
    start, size = random.integers(len(content)), int(random.integers(1, 300))
    other = int(random.integers(len(content)))
    block = (bytes(size), b"\xff" * size, random.bytes(size), bytes(content[other : other + size]))[random.integers(4)]
    content[start : start + len(block)] = block[: len(content) - start]


def huge(content: bytearray, random: np.random.Generator) -> None:
    """A number becomes huge: a length, an offset, a count."""
    place = random.integers(max(1, len(content) - 8))
    content[place : place + 8] = int(random.choice([2**31 - 1, 2**40, 2**62, 2**63])).to_bytes(8, "little")


DAMAGES: tuple[Callable[[bytearray, np.random.Generator], None], ...] = (flip, cut, remove, insert, overwrite, huge)


def read_all(folder: Path) -> list[tuple[object, bytes]]:
    """Everything a zoo tells: the rows of its index with their weights, and whether its shards agree."""
    zoo = Zoo(folder, check=True)
    rows = zoo.filter()
    found = [(dict(row), array.tobytes()) for row, array in zip(rows, zoo.arrays(rows), strict=True)]
    for row, (_, weights) in zip(rows, found, strict=True):
        assert zoo.row(row).tobytes() == weights == zoo.weights([row]).tobytes()
    for file in sorted({str(name) for name in rows["file"]} if len(rows) else ()):
        assert sum(batch.num_rows for batch in read_snapshots(zoo.path / file)) == len(reindex(zoo.path / file, relative=file))
    return found


def admit(folder: Path, relative: str) -> None:
    """Set down the damaged file's size and sha256 in nws.json, as if it were meant so: the reader must get on with it."""
    manifest, content = json.loads((folder / "nws.json").read_text()), (folder / relative).read_bytes()
    manifest["files"][relative] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (folder / "nws.json").write_text(json.dumps(manifest))


def main(zoo: str, work: str, first: int, count: int) -> None:
    whole, folder = Path(zoo), Path(work) / "zoo"
    expected = read_all(whole)
    files = sorted(path.relative_to(whole).as_posix() for path in whole.rglob("*") if path.suffix in (".json", ".parquet"))
    outcomes: Counter[str] = Counter()
    for case in range(first, first + count):
        random = np.random.default_rng([case])
        relative, admitted = files[random.integers(len(files))], bool(random.integers(2))
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(whole, folder)
        content = bytearray((whole / relative).read_bytes())
        DAMAGES[random.integers(len(DAMAGES))](content, random)
        (folder / relative).write_bytes(content)
        admitted = admitted and relative != "nws.json"
        if admitted:
            admit(folder, relative)
        faulthandler.dump_traceback_later(SECONDS, exit=True)
        try:
            found = read_all(folder)
            same = found == expected
            if not same and not (admitted and relative.startswith("index/")):  # an index that is meant so may say other things
                raise AssertionError(f"case {case}: {relative} gives other data")
            outcomes["read" if same else "another index"] += 1
        except ZooError:
            outcomes["refused"] += 1
        except Exception:
            print(f"case {case}: {relative}{' admitted' if admitted else ''}", flush=True)
            raise
        faulthandler.cancel_dump_traceback_later()
    print(json.dumps(outcomes))


if __name__ == "__main__":
    faulthandler.enable()
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
