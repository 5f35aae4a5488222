"""Mutated input of every kind: `python tests/fuzz_all.py [--cases N] [--seed S] [--format NAME]`;
tests/test_fuzz.py runs a part of it.

A case is a pure function of its format and number: a copy of something good is damaged, and what a user does
with it is done. Allowed are a ZooError of one line, or that it works. Another exception, a signal, more than
SECONDS or more than MEGABYTES above the harness at rest fail. Cases run in forked processes, a batch each, so
that none takes the others along.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gzip
import hashlib
import io
import json
import os
import shutil
import signal
import stat
import struct
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from testing.loopback_hub import Answer, LoopbackHub

HUB = LoopbackHub()
if "HF_ENDPOINT" not in os.environ:  # conftest.py has set another
    os.environ.update(HUB.environment())

import click  # noqa: E402
import numpy as np  # noqa: E402
import pyarrow as pa  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402
from safetensors import numpy as safetensors  # noqa: E402

from builder import images as images_module  # noqa: E402
from builder.exporters.exporting import export_zoo  # noqa: E402
from builder.importers.importing import import_zoo  # noqa: E402
from builder.releases import EXPORT_NAME  # noqa: E402
from builder.store import LOCAL_NOTE, remembered_images  # noqa: E402
from nws_dataset import http  # noqa: E402
from nws_dataset.baselines.meta_classifier import DeepMetaClassifier, DeepMetaRegressor  # noqa: E402
from nws_dataset.baselines.predictors import DenseNet, GradientBoosting, LogitLinear  # noqa: E402
from nws_dataset.baselines.saving import ARRAYS, FACTS  # noqa: E402
from nws_dataset.errors import ZooError  # noqa: E402
from nws_dataset.evaluation.results import facts_of  # noqa: E402
from nws_dataset.experiments import leaderboard  # noqa: E402
from nws_dataset.format.shards import read_snapshots, reindex  # noqa: E402
from nws_dataset.networks import architecture_from_json  # noqa: E402
from nws_dataset.networks.cnn import Architecture  # noqa: E402
from nws_dataset.networks.layout import layout_of  # noqa: E402
from nws_dataset.networks.network import Network  # noqa: E402
from nws_dataset.reading.zoo import Zoo  # noqa: E402
from testing import release_factory  # noqa: E402
from testing.planned_zoo import make_planned_zoo  # noqa: E402
from testing.zoo_factory import make_zoo  # noqa: E402

SECONDS, MEGABYTES = 30.0, 500.0  # of a case
BATCH = 25  # cases of a process
REPOSITORY = "org/nws"
Random = np.random.Generator


# Damage


def damaged(content: bytes, random: Random) -> bytes:
    """Bytes with a few bits flipped, cut, removed, inserted, overwritten, or with a huge number."""
    data = bytearray(content)
    position, size = int(random.integers(len(data) or 1)), int(random.integers(1, 300))
    kind = random.integers(6)
    if not data or kind == 0:
        return bytes(data[:position])
    if kind == 1:
        for at in random.integers(len(data), size=random.integers(1, 4)):
            data[at] ^= 1 << random.integers(8)
    elif kind == 2:
        del data[position : position + size]
    elif kind == 3:
        data[position:position] = random.bytes(size)
    elif kind == 4:
        other = int(random.integers(len(data)))
        block = (bytes(size), b"\xff" * size, random.bytes(size), bytes(data[other : other + size]))[
            random.integers(4)
        ]
        data[position : position + len(block)] = block
    else:
        data[position : position + 8] = int(random.choice([2**31 - 1, 2**40, 2**62, 2**63])).to_bytes(
            8, "little"
        )
    return bytes(data)


HOSTILE: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 2**31, 2**63, 10**30, 0.5, -0.0, 1e308, float("nan"), float("inf"), "", "x",
    "../x", "/etc/hostname", "\0",
    "\ud800", "a\nb", "{subset:>9999999999}", "9" * 5000, "x" * 3000, [], {}, [[]], ["x"] * 50, {"a": None},
    {"strings": [1], "dtype": "object"},
)  # fmt: skip


def changed(value: Any, random: Random) -> Any:
    """JSON with one of its values, names or parts changed."""
    value = json.loads(json.dumps(value))
    if not isinstance(value, dict | list) or not value or random.random() < 0.03:
        return _hostile(random)
    parent = value
    while True:
        keys = list(parent) if isinstance(parent, dict) else list(range(len(parent)))
        key = keys[random.integers(len(keys))]
        child = parent[key]
        if isinstance(child, dict | list) and child and random.random() < 0.75:
            parent = child
            continue
        kind = random.integers(8)
        if kind == 0:
            del parent[key]
        elif kind == 1 and isinstance(parent, dict):
            parent[str(_hostile(random))] = parent.pop(key)
        elif kind == 2 and isinstance(child, int | float) and not isinstance(child, bool):
            parent[key] = child * int(random.choice([-1, 2, 10, 10**6])) + int(random.integers(-1, 2))
        elif kind == 3 and isinstance(child, str):
            parent[key] = damaged(child.encode(), random).decode(errors="replace")
        else:
            parent[key] = _hostile(random)
        return value


def _hostile(random: Random) -> Any:
    return HOSTILE[random.integers(len(HOSTILE))]


def json_text(value: Any, random: Random) -> bytes:
    """A changed JSON text; now and then one that is damaged or deeply nested."""
    if random.random() < 0.08:
        return bytes(random.choice([b"[" * 100_000, b'{"a":' * 50_000, b"", b"\xff\xfe", b"nul", b"[1e999]"]))
    text = json.dumps(changed(value, random)).encode()
    return damaged(text, random) if random.random() < 0.2 else text


# What users do


@dataclass
class Format:
    """A kind of input."""

    name: str
    make: Callable[[Path], object]  # something good, made once
    damage: Callable[[Path, Random], object]  # of a copy
    use: Callable[[Path], object]


def read_zoo(folder: Path) -> None:
    """Everything of a zoo, and in every way."""
    for check in (False, True):
        zoo = Zoo(folder, check=check)
        snapshots = zoo.filter(is_final=True)
        [dict(snapshot) for snapshot in snapshots]
        for snapshot in list(snapshots)[:4]:
            for read in (
                zoo.row,
                zoo.network,
                lambda snapshot, zoo=zoo: zoo.weights([snapshot]),
                lambda snapshot, zoo=zoo: zoo.slices([snapshot], [0], 3),
            ):
                with contextlib.suppress(ZooError):
                    read(snapshot)
        zoo.arrays(zoo.filter())
        list(zoo.stacks())
    for file in [name for name in zoo.manifest.files if name.startswith("snapshots/")]:
        assert sum(batch.num_rows for batch in read_snapshots(zoo.path / file)) == len(
            reindex(zoo.path / file, relative=file)
        )


def admit(folder: Path, relative: str) -> None:
    """Set down a file's size and sha256 in nws.json, as if it were meant so: the reader must get on
    with it.
    """
    told, content = json.loads((folder / "nws.json").read_text()), (folder / relative).read_bytes()
    told["files"][relative] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (folder / "nws.json").write_text(json.dumps(told))


def damage_manifest(folder: Path, random: Random) -> None:
    (folder / "nws.json").write_bytes(json_text(json.loads((folder / "nws.json").read_text()), random))


def damage_file_of_zoo(folder: Path, random: Random) -> None:
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.parquet"))
    file = files[random.integers(len(files))]
    (folder / file).write_bytes(damaged((folder / file).read_bytes(), random))
    if random.random() < 0.7:
        admit(folder, file)


def damage_index(folder: Path, random: Random) -> None:
    """Other values in an index that is a whole file: of the types that it must have, or not."""
    files = sorted(path.relative_to(folder).as_posix() for path in (folder / "index").rglob("*.parquet"))
    file = files[random.integers(len(files))]
    table = pq.read_table(folder / file)
    names = (
        "file",
        "offset",
        "length",
        "architecture_json",
        "activation",
        "dropout",
        "num_weights",
        "model_id",
        "subset",
        "is_final",
        "sha256",
    )
    name = names[random.integers(len(names))]
    i, values = table.schema.get_field_index(name), table[name].to_pylist()
    row = int(random.integers(len(values)))
    if name == "architecture_json":
        values[row] = json_text(json.loads(values[row]), random).decode(errors="replace")
    elif random.random() < 0.5 and isinstance(values[row], int) and not isinstance(values[row], bool):
        values[row] += int(random.choice([-(2**62), -8, -1, 1, 8, 2**40, 2**62]))
    else:
        values[row] = _hostile(random)
    kind = table.schema.field(i)
    try:
        column = pa.array(values, kind.type)
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        column = pa.array([str(value).encode(errors="replace").decode() for value in values])
    schema = table.schema.set(i, pa.field(name, column.type, nullable=column.null_count > 0))
    pq.write_table(
        pa.Table.from_arrays([*table.columns[:i], column, *table.columns[i + 1 :]], schema=schema),
        folder / file,
    )
    admit(folder, file)


def use_architecture(folder: Path) -> None:
    architecture = architecture_from_json(
        (folder / "architecture.json").read_text(encoding="utf-8", errors="replace")
    )
    if layout_of(architecture).num_weights < 10**6 and architecture.image_size <= 64:
        size, channels = architecture.image_size, architecture.image_channels
        Network(architecture, "relu").eval()(torch.zeros(1, channels, size, size))


def make_estimators(folder: Path) -> None:
    random = np.random.default_rng(0)
    X = random.standard_normal((40, 6)).astype(np.float32)
    y = 1 / (1 + np.exp(-X[:, 0]))
    slim: dict[str, Any] = {
        "slice_length": 6,
        "epochs": 1,
        "width": 1 / 32,
        "random_state": 0,
        "batch_size": 16,
    }
    estimators = (
        LogitLinear(random_state=0),
        GradientBoosting(num_trees=4, num_threads=1, random_state=0),
        DenseNet(num_layers=1, num_units=4, max_epochs=2, random_state=0),
        DeepMetaRegressor(**slim),
        DeepMetaClassifier(**slim),
    )
    for estimator in estimators:
        classes = isinstance(estimator, DeepMetaClassifier)
        estimator.fit(X, np.where(y > 0.5, "adam", "sgd") if classes else y).save(
            folder / type(estimator).__name__
        )


ESTIMATORS: dict[str, Any] = {
    kind.__name__: kind
    for kind in (LogitLinear, GradientBoosting, DenseNet, DeepMetaRegressor, DeepMetaClassifier)
}


def damage_estimator(folder: Path, random: Random) -> None:
    """One of them; the others are removed."""
    name = list(ESTIMATORS)[random.integers(len(ESTIMATORS))]
    for other in ESTIMATORS:
        if other != name:
            shutil.rmtree(folder / other)
    facts, arrays = folder / name / FACTS, folder / name / ARRAYS
    told, kind = json.loads(facts.read_text()), random.integers(3)
    if kind == 0:
        facts.write_bytes(json_text(told, random))
        return
    if kind == 1:
        arrays.write_bytes(damaged(arrays.read_bytes(), random))
    else:
        found = safetensors.load(arrays.read_bytes())
        key = sorted(found)[random.integers(len(found))]
        array = found[key].copy()
        if array.size and random.random() < 0.7:
            flat = array.reshape(-1)
            flat[random.integers(flat.size)] = random.choice(
                [0, 1, -1, 5, 31, -128 if array.dtype != np.uint8 else 255]
            )
        else:
            array = (array.reshape(-1)[:-1], array[None], array.astype(np.float16))[random.integers(3)]
        arrays.write_bytes(safetensors.save({**found, key: np.ascontiguousarray(array)}))
    told["files"] = {ARRAYS: hashlib.sha256(arrays.read_bytes()).hexdigest()}
    facts.write_text(json.dumps(told))


def use_estimator(folder: Path) -> None:
    for path in folder.iterdir():
        estimator = ESTIMATORS[path.name].load(path)
        try:
            estimator.predict(np.zeros((3, 6), np.float32))
        except ValueError as error:  # scikit-learn's own word for another number of features
            assert "features" in str(error), error


def make_results(folder: Path) -> None:
    make_zoo(folder / "zoo", models=6, snapshots=1)
    common = {
        "nets": "all",
        "seed": 0,
        "num_test": 10,
        "metric": "accuracy",
        "value": 0.5,
        "interval_95": [0.4, 0.6],
        "chance": 0.25,
    }
    records = [
        {**common, "experiment": "what", "target": target, "method": method, "input": "slice"}
        for target in ("optimizer", "activation")
        for method in ("deep", "svm")
    ]
    results = {
        "experiment": "meta_classifier", "zoo": facts_of(Zoo(folder / "zoo"), "zoo"), "command": "x",
        "seconds": 1.0,
        "settings": {"epochs": 1},
        "held_out": "folds", "layers": ["conv1"], "results": records,
    }  # fmt: skip
    (folder / "results.json").write_text(json.dumps(results))


def use_results(folder: Path) -> None:
    arguments = [
        str(folder / "zoo"),
        "--results",
        str(folder / "results.json"),
        "--out",
        str(folder / "page.html"),
    ]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        leaderboard.main.main(arguments, standalone_mode=False)


def damage_json(name: str) -> Callable[[Path, Random], None]:
    def damage(folder: Path, random: Random) -> None:
        (folder / name).write_bytes(json_text(json.loads((folder / name).read_text()), random))

    return damage


def damage_any_file(folder: Path, random: Random) -> None:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    file = files[random.integers(len(files))]
    content = file.read_bytes()
    if file.suffix == ".gz" and random.random() < 0.7:
        file.write_bytes(gzip.compress(damaged(gzip.decompress(content), random)))
    elif file.suffix == ".csv" and random.random() < 0.7:
        lines = content.decode().splitlines()
        row = int(random.integers(len(lines)))
        cells = lines[row].split(",")
        cells[random.integers(len(cells))] = (
            str(_hostile(random)).encode(errors="replace").decode().replace("\0", "0")
        )
        lines[row] = ",".join(cells)
        file.write_text("\n".join(lines), encoding="utf-8")
    else:
        file.write_bytes(damaged(content, random))


def make_images(folder: Path) -> None:
    for split in ("train", "t10k"):
        for name, head, size in (
            ("images-idx3", struct.pack(">IIII", 0x803, 30, 8, 8), 1920),
            ("labels-idx1", struct.pack(">II", 0x801, 30), 30),
        ):
            (folder / "mnist").mkdir(exist_ok=True)
            content = bytes(i % 10 for i in range(size))
            (folder / f"mnist/{split}-{name}-ubyte.gz").write_bytes(gzip.compress(head + content))
    (folder / "cifar10").mkdir()
    for split in ("train", "test"):
        images = []
        for value in range(10):
            buffer = io.BytesIO()
            Image.fromarray(np.full((8, 8, 3), value, np.uint8)).save(buffer, "PNG" if value % 2 else "JPEG")
            images.append({"bytes": buffer.getvalue(), "path": None})
        schema = pa.schema(
            [("img", pa.struct([("bytes", pa.binary()), ("path", pa.string())])), ("label", pa.int64())]
        )
        file = folder / f"cifar10/{split}-00000-of-00001.parquet"
        pq.write_table(
            pa.table({"img": images, "label": list(range(10))}, schema=schema), file, compression="none"
        )


def use_images(folder: Path) -> None:
    failed = [
        error
        for error in map(
            lambda name: _error(lambda: images_module.load_image_set(name, folder)), ("mnist", "cifar10")
        )
        if error
    ]
    if failed:
        raise failed[0]


def _error(call: Callable[[], object]) -> ZooError | None:
    try:
        call()
    except ZooError as error:
        return error
    return None


PARQUET = "cifar10/{}-00000-of-00001.parquet"


def damage_parquet(folder: Path, random: Random) -> None:
    """Images written otherwise: in values that inflate or are shared, other types, codecs and encodings; then
    bytes damaged, or not.
    """
    path = folder / PARQUET.format(random.choice(["train", "test"]))
    blobs = pq.read_table(path)["img"].to_pylist()
    long = bytes(int(random.choice([0, 0, 1, 1000, 10**6, 2 * 10**7, 4 * 10**7])))
    blobs = [{**blob, "bytes": blob["bytes"] + long} for blob in blobs[: 2 if len(long) > 10**6 else 10]]
    if random.random() < 0.2 and len(long) <= 1000:
        blobs *= int(random.choice([10, 1000, 20_000]))
    labels: list[Any] = [row % 10 for row in range(len(blobs))]
    column: Any = pa.array(blobs, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    if random.random() < 0.1:
        labels[random.integers(len(labels))] = random.choice([None, -1, 10, 2**62])
    if random.random() < 0.1:
        column = (
            pa.array([[blob] for blob in blobs]),
            column.field(0),
            pa.array([{"bytes": [1]}] * len(blobs)),
        )[random.integers(3)]
    options: dict[str, Any] = {
        "compression": str(random.choice(["none", "snappy", "zstd", "gzip", "brotli", "lz4"])),
        "row_group_size": int(random.choice([1, 3, 10**6])) if len(blobs) < 1000 else 10**6,
        "data_page_version": str(random.choice(["1.0", "2.0"])),
        "use_dictionary": bool(random.integers(2)),
    }
    if (
        not options["use_dictionary"]
        and random.random() < 0.3
        and "bytes" in str(column.type)
        and pa.types.is_struct(column.type)
    ):
        options["column_encoding"] = {
            "img.bytes": str(random.choice(["DELTA_BYTE_ARRAY", "DELTA_LENGTH_BYTE_ARRAY"]))
        }
    with contextlib.suppress(pa.ArrowException, OSError):  # what Arrow does not write so
        pq.write_table(pa.table({"img": column, "label": pa.array(labels, pa.int64())}), path, **options)
    content, kind = path.read_bytes(), random.integers(4)
    footer = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    if kind == 1:
        path.write_bytes(damaged(content, random))
    elif kind == 2:  # the first page's header
        path.write_bytes(content[:4] + damaged(content[4:44], random) + content[44:])
    elif kind == 3:
        path.write_bytes(content[:footer] + damaged(content[footer:-8], random) + content[-8:])


def make_all(folder: Path) -> None:
    """Something good of each kind that is read from a folder."""
    for name in FOLDERS:
        (folder / name).mkdir()
        FORMATS[name].make(folder / name)


def damage_kind(folder: Path, random: Random) -> None:
    """Something else in place of a file or folder: what is waited for, has no end, or leads in a
    circle.
    """
    name = FOLDERS[random.integers(len(FOLDERS))]
    for other in set(FOLDERS) - {name}:
        shutil.rmtree(folder / other)
    paths = sorted((folder / name).rglob("*"))
    path = paths[random.integers(len(paths))]
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    kind = random.integers(5)
    if kind == 0:
        os.mkfifo(path)
    elif kind == 1:
        os.mknod(path, stat.S_IFSOCK | 0o600)
    elif kind == 2:
        path.symlink_to(random.choice(["/dev/zero", "/dev/null", "/dev/tty"]))
    elif kind == 3:
        path.symlink_to(path.name)
    else:
        path.mkdir()


USERS = ("mine.txt", "export/mine.txt", "export/mnist/mine.txt")  # files of others in an export's folder


def make_export(folder: Path) -> None:
    """An export, its zoo, and files of others; a further export finds one image set less."""
    for name, models in (("larger", 8), ("zoo", 1)):
        make_planned_zoo(folder / name, "small_cnn", models)
    export_zoo("small_cnn", folder / "larger", folder / "export")
    shutil.rmtree(folder / "larger")
    for name in USERS:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("mine")


def damage_export(folder: Path, random: Random) -> None:
    """Its list is changed, or names what others put there."""
    if random.random() < 0.7:
        damage_json(f"export/{EXPORT_NAME}")(folder, random)
        return
    told = json.loads((folder / "export" / EXPORT_NAME).read_text())
    name = os.path.relpath(folder / random.choice(USERS), folder / "export")
    told["files"][random.integers(len(told["files"]))] = name
    (folder / "export" / EXPORT_NAME).write_text(json.dumps(told))


def use_export(folder: Path) -> None:
    try:
        export_zoo("small_cnn", folder / "zoo", folder / "export")
    finally:
        assert all((folder / name).read_text() == "mine" for name in USERS)


def use_all(folder: Path) -> None:
    for name in FOLDERS:
        if (folder / name).exists():
            FORMATS[name].use(folder / name)


def put_on_hub(folder: Path) -> None:
    make_zoo(folder / "zoo", models=4, snapshots=1)


def damage_hub(folder: Path, random: Random) -> None:
    """The answer to one of the first requests is another; which, the folder notes for `use_hub`."""
    (folder / "seed").write_text(str(random.integers(2**31)))


def use_hub(folder: Path) -> None:
    random = np.random.default_rng(int((folder / "seed").read_text()))
    HUB.reset()
    HUB.put(REPOSITORY, folder / "zoo")
    wrong, lasts = int(random.integers(8)), random.random() < 0.5
    headers = (
        "X-Repo-Commit",
        "Location",
        "Content-Range",
        "Content-Length",
        "Content-Encoding",
        "Retry-After",
        "ETag",
        "RateLimit",
        "Link",
    )

    def spoil(answer: Answer) -> Answer:
        status, body, told = answer.status, answer.body, dict(answer.headers)
        kind = random.integers(3)
        if kind == 0:
            status = int(
                random.choice([200, 204, 206, 301, 302, 307, 308, 400, 401, 403, 404, 416, 429, 500, 503])
            )
        elif kind == 1:
            value = _hostile(random)
            text = (
                str(value)
                .encode("latin-1", errors="replace")
                .decode("latin-1")
                .replace("\0", "")
                .replace("\n", " ")
            )
            told[headers[random.integers(len(headers) - 1)]] = text[:500]
        elif isinstance(body, bytes):
            body = damaged(body, random)
        return Answer(status, body, told)

    HUB.faults = lambda number, method, path: spoil if number == wrong or (lasts and number > wrong) else None
    zoo = Zoo(REPOSITORY, cache_dir=folder / "cache")
    zoo.arrays(zoo.filter())


def make_small_zoo(folder: Path) -> None:
    make_zoo(folder, models=4, snapshots=2)


FORMATS = {
    format_.name: format_
    for format_ in (
        Format("nws.json", make_small_zoo, damage_manifest, read_zoo),
        Format("index values", make_small_zoo, damage_index, read_zoo),
        Format("files of a zoo", make_small_zoo, damage_file_of_zoo, read_zoo),
        Format(
            "architecture",
            lambda folder: (folder / "architecture.json").write_text(Architecture().to_json()),
            damage_json("architecture.json"), use_architecture,
        ),
        Format(
            LOCAL_NOTE, lambda folder: (folder / LOCAL_NOTE).write_text('{"images": "/tmp"}'),
            damage_json(LOCAL_NOTE), remembered_images,
        ),
        Format(
            "small_cnn",
            lambda folder: release_factory.write_small_cnn(folder / "source/mnist", "mnist", 2),
            damage_any_file,
            lambda folder: import_zoo("small_cnn", folder / "source", folder / "out"),
        ),
        Format(
            "nws",
            lambda folder: release_factory.write_nws(
                folder / "source", "main", {"train": {0: release_factory.nws_meta(0)}}
            ),
            damage_any_file, lambda folder: import_zoo("nws", folder / "source", folder / "out"),
        ),
        Format(EXPORT_NAME, make_export, damage_export, use_export),
        Format("estimators", make_estimators, damage_estimator, use_estimator),
        Format("results", make_results, damage_json("results.json"), use_results),
        Format("images", make_images, damage_any_file, use_images),
        Format("Parquet images", make_images, damage_parquet, use_images),
        Format("no regular files", make_all, damage_kind, use_all),
        Format("answers of a Hub", put_on_hub, damage_hub, use_hub),
    )
}  # fmt: skip
FOLDERS = ("nws.json", "small_cnn", "nws", "estimators", "results", "images")  # formats of "no regular files"


# The harness


@dataclass
class Outcome:
    """Of the cases of a format."""

    refused: int = 0
    accepted: int = 0
    seconds: float = 0.0  # of the slowest
    megabytes: float = 0.0  # of the largest
    failures: list[str] = field(default_factory=list)


def run(name: str, first: int, count: int, scratch: Path) -> Outcome:
    """Cases of a format, from a number on."""
    format_, outcome = FORMATS[name], Outcome()
    good = scratch / f"good {name}"
    if not good.exists():
        good.mkdir(parents=True)
        format_.make(good)
        if name != "answers of a Hub":  # what is good must be, or nothing is tried
            shutil.copytree(good, scratch / "try")
            format_.use(scratch / "try")
            shutil.rmtree(scratch / "try")
    number, stop = first, first + count
    while number < stop:
        told = scratch / "told"
        told.write_bytes(b"")
        child = os.fork()
        if not child:
            _batch(format_, good, scratch / "case", range(number, min(number + BATCH, stop)), told)
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        lines = [json.loads(line) for line in told.read_text().splitlines()]
        for line in lines:
            outcome.refused += line["what"] == "refused"
            outcome.accepted += line["what"] == "accepted"
            outcome.seconds, outcome.megabytes = (
                max(outcome.seconds, line["seconds"]),
                max(outcome.megabytes, line["megabytes"]),
            )
            if line["megabytes"] > MEGABYTES:
                outcome.failures.append(f"{name} {line['number']}: {line['megabytes']:.0f} MB")
            if line["what"] not in ("refused", "accepted"):
                outcome.failures.append(f"{name} {line['number']}: {line['what']}")
        number += len(lines)
        if status:  # in the case after the last that has told
            outcome.failures.append(
                f"{name} {number}: ended by signal {-status}"
                if status < 0
                else f"{name} {number}: ended with {status}"
            )
            number += 1
    return outcome


def _batch(format_: Format, good: Path, work: Path, numbers: range, told: Path) -> None:
    """Cases, in the process of a batch; each writes a line."""
    faulthandler.dump_traceback_later(SECONDS * len(numbers), exit=True)
    HUB.start()  # in this process: the cases put into it
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # a case that hangs ends the process, whatever it is in
    with open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), 2)
    for number in numbers:
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(good, work)
        random = np.random.default_rng([number, *format_.name.encode()])
        format_.damage(work, random)
        rest, start = _reset_peak(), time.monotonic()
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
        try:
            format_.use(work)
            what = "accepted"
        except (ZooError, click.ClickException) as error:
            text = error.message if isinstance(error, click.ClickException) else str(error)
            what = "refused" if text.isprintable() else f"a message of several lines: {text!r}"
        except BaseException:
            what = traceback.format_exc()[-1500:]
        signal.setitimer(signal.ITIMER_REAL, 0)
        line = {
            "number": number,
            "what": what,
            "seconds": time.monotonic() - start,
            "megabytes": _memory("VmHWM") - rest,
        }
        with open(told, "a") as file:
            file.write(json.dumps(line) + "\n")


def _reset_peak() -> float:
    """The memory of this process now, in MB, from which its peak is counted anew."""
    Path("/proc/self/clear_refs").write_text("5")
    return _memory("VmRSS")


def _memory(name: str) -> float:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(name)) / 1e3


def prepare() -> None:
    """What all cases share: one thread, no pauses, a Hub."""
    torch.set_num_threads(1)
    http.PAUSES = (0.0, 0.0)
    http._sleep = lambda seconds: None


@click.command()
@click.option("--cases", default=20_000, show_default=True, help="In all, in equal parts.")
@click.option("--seed", default=0, show_default=True, help="Number of the first case, times a million.")
@click.option(
    "--format",
    "names",
    multiple=True,
    type=click.Choice(list(FORMATS)),
    help="Only this one; may be given several times.",
)
@click.option("--first", type=int, help="The number of the first case, to repeat one.")
def main(cases: int, seed: int, names: tuple[str, ...], first: int | None) -> None:
    """Damage inputs of every kind, and do with them what users do."""
    prepare()
    chosen, failures = list(names or FORMATS), []
    click.echo(
        f"{'format':20}{'cases':>8}{'refused':>9}{'accepted':>9}{'seconds':>9}{'MB':>7}{'failures':>9}"
    )
    with tempfile.TemporaryDirectory() as scratch:
        for name in chosen:
            count = max(1, cases // len(chosen))
            found = run(name, seed * 10**6 if first is None else first, count, Path(scratch))
            told = (
                f"{name:20}{count:8}{found.refused:9}{found.accepted:9}{found.seconds:9.2f}{found.megabytes:7.0f}"
                f"{len(found.failures):9}"
            )
            click.echo(told)
            failures += found.failures
    for failure in failures:
        click.echo(failure)
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
