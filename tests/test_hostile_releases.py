"""Releases and images from anyone: sizes follow from headers that were checked; what inflates beyond is not
read.
"""

from __future__ import annotations

import functools
import gzip
import io
import os
import resource
import signal
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from builder import images
from builder.images import load_image_set
from builder.importers.importing import import_zoo
from builder.parquet import _pages
from nws_dataset.errors import ZooError
from nws_dataset.format.manifest import Manifest
from nws_dataset.reading.zoo import Zoo
from testing import release_factory as factory
from testing.zoo_factory import make_zoo

MB = 1 << 20
UNREAD = ("README.md", "meta.csv")  # files of a zoo and a release that are not opened
SECONDS = 60  # in which a call must end


def refused(call: Callable[[], object], message: str, megabytes: int = 150) -> None:
    """A call ends in one line, and takes no more memory than that: it runs in a process of its own with so
    much room.
    """
    child = os.fork()
    if not child:
        signal.alarm(SECONDS)
        with open("/proc/self/statm") as status:
            used = int(status.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + megabytes * MB, used + megabytes * MB))
        try:
            call()
        except ZooError as error:
            os._exit(0 if "\n" not in str(error) and message in str(error) else 3)
        except BaseException:
            os._exit(4)
        os._exit(5)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


# --- images ---


def idx(folder: Path, prefix: str, images: bytes, labels: bytes, count: int, size: int = 28) -> None:
    folder.mkdir(exist_ok=True)
    header = struct.pack(">IIII", 0x803, count, size, size), struct.pack(">II", 0x801, count)
    for name, head, content in (("images-idx3", header[0], images), ("labels-idx1", header[1], labels)):
        with gzip.open(folder / f"{prefix}-{name}-ubyte.gz", "wb", compresslevel=9) as file:
            file.write(head)
            for start in range(0, len(content), MB):
                file.write(content[start : start + MB])


def test_an_idx_file_that_inflates_to_a_gigabyte(tmp_path: Path) -> None:
    """Its header asks for 31 kB."""
    idx(tmp_path / "mnist", "train", bytes(1000 * MB), bytes(40), 40)
    refused(lambda: load_image_set("mnist", tmp_path), "expected 31376 bytes as its header says, found more")


@pytest.mark.parametrize("count", [2**32 - 1, 10**6])
def test_an_idx_header_that_asks_for_more_than_there_can_be(tmp_path: Path, count: int) -> None:
    idx(tmp_path / "mnist", "train", bytes(1000), bytes(40), count)
    refused(lambda: load_image_set("mnist", tmp_path), "ubyte.gz: expected ")


def png(width: int, height: int) -> bytes:
    """A grey image of zeros, by its format alone: nothing of its size is made here."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(bytes(width + 1)) for _ in range(height)) + packer.flush()
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
        + chunk(b"IDAT", rows)
        + chunk(b"IEND", b"")
    )


def parquet(folder: Path, blobs: list[bytes], labels: list[int], **options: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("train", "test"):
        images = [{"bytes": blob, "path": None} for blob in blobs]
        schema = pa.schema(
            [("img", pa.struct([("bytes", pa.binary()), ("path", pa.string())])), ("label", pa.int64())]
        )
        pq.write_table(
            pa.table({"img": images, "label": labels}, schema=schema),
            folder / f"{split}-00000-of-00001.parquet",
            **options,
        )


@pytest.mark.parametrize(
    ("width", "height"), [(13_000, 13_000), (10_000, 9000), (2049, 2048), (1, 5_000_000)]
)
def test_images_of_too_many_pixels(tmp_path: Path, width: int, height: int) -> None:
    parquet(tmp_path / "cifar10", [png(width, height)], [0])
    refused(
        lambda: load_image_set("cifar10", tmp_path),
        f"expected an image of at most 4194304 pixels, found {width} x {height} pixels",
        400,
    )


@pytest.mark.parametrize("compression", ["zstd", "snappy", "gzip"])
def test_a_value_of_a_parquet_file_that_inflates(tmp_path: Path, compression: str) -> None:
    parquet(tmp_path / "cifar10", [bytes(200 * MB)], [0], compression=compression)
    refused(lambda: load_image_set("cifar10", tmp_path), "a page of 209715204 bytes, more than 33554432")
    parquet(tmp_path / "cifar10", [bytes(17 * MB)], [0], compression=compression)
    refused(
        lambda: load_image_set("cifar10", tmp_path),
        "row 0: expected an encoded image of at most 16777216 bytes, found 17825792",
    )


def shape_of(folder: Path) -> None:
    raise ZooError(
        "images", expected="none", found=str(load_image_set("cifar10", folder).train_images.shape), do="-"
    )


def test_a_value_that_the_rows_of_a_parquet_file_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two kilobytes or less: many rows of a dictionary's one value, whether what counts is its length or its
    pixels.
    """
    parquet(
        tmp_path / "cifar10",
        [png(32, 32) + bytes(MB * 9 // 10)] * 1500,
        [row % 10 for row in range(1500)],
        compression="zstd",
    )
    assert sum(file.stat().st_size for file in tmp_path.rglob("*.parquet")) < 10_000
    # the values are 1,350 MB; some versions of pyarrow take more than others beside them
    refused(lambda: shape_of(tmp_path), "(1500, 1, 32, 32)", 500)
    parquet(tmp_path / "cifar10", [png(2048, 2048)] * 100, [row % 10 for row in range(100)])
    refused(
        lambda: load_image_set("cifar10", tmp_path),
        "expected at most 268435456 bytes of images in a split",
        300,
    )
    monkeypatch.setattr(images, "MAX_IMAGES", 99)
    refused(lambda: load_image_set("cifar10", tmp_path), "expected 1 to 99 images, found 100")


def test_values_of_a_parquet_file_that_share_their_beginning(tmp_path: Path) -> None:
    """In an encoding where a value of a megabyte is the one before it and a few bytes."""
    encodings = {"img.bytes": "DELTA_BYTE_ARRAY", "img.path": "PLAIN", "label": "PLAIN"}
    blobs = [png(32, 32) + bytes(MB) + str(row).encode() for row in range(100)]
    parquet(
        tmp_path / "cifar10",
        blobs,
        [row % 10 for row in range(100)],
        use_dictionary=False,
        column_encoding=encodings,
    )
    refused(
        lambda: load_image_set("cifar10", tmp_path), "a page in encoding 7, neither plain nor by a dictionary"
    )


def test_pages_of_a_parquet_file_that_are_more_than_a_split(tmp_path: Path) -> None:
    """Each of them is small enough, and inflates from nothing."""
    parquet(
        tmp_path / "cifar10",
        [bytes(8 * MB)] * 40,
        [0] * 40,
        compression="zstd",
        row_group_size=1,
        use_dictionary=False,
    )
    refused(
        lambda: load_image_set("cifar10", tmp_path),
        "expected at most 268435456 bytes of encoded images in a split, found 335",
    )


def test_a_column_of_a_parquet_file_that_is_not_read(tmp_path: Path) -> None:
    """The path of each image is as long as it likes: nobody reads it."""
    folder = tmp_path / "cifar10"
    folder.mkdir()
    schema = pa.schema(
        [("img", pa.struct([("bytes", pa.binary()), ("path", pa.string())])), ("label", pa.int64())]
    )
    table = pa.table(
        {"img": [{"bytes": png(32, 32), "path": "x" * 200 * MB}] * 10, "label": range(10)}, schema=schema
    )
    for split in ("train", "test"):
        pq.write_table(table, folder / f"{split}-00000-of-00001.parquet", compression="zstd")
    del table
    refused(lambda: shape_of(tmp_path), "(10, 1, 32, 32)")


@pytest.mark.parametrize("names", [["bytes", "bytes"], ["bytes"]])
def test_a_column_of_a_parquet_file_that_is_there_twice(tmp_path: Path, names: list[str]) -> None:
    """A sibling of one name, or a column whose own name looks like the way to it."""
    folder = tmp_path / "cifar10"
    folder.mkdir()
    blobs = pa.array([png(32, 32)] * 10, pa.binary())
    images_, labels = pa.StructArray.from_arrays([blobs] * len(names), names), pa.array(range(10))
    columns, titles = (
        ([images_, labels], ["img", "label"])
        if len(names) > 1
        else ([images_, labels, blobs], ["img", "label", "img.bytes"])
    )
    for split in ("train", "test"):
        pq.write_table(pa.Table.from_arrays(columns, titles), folder / f"{split}-00000-of-00001.parquet")
    with pytest.raises(ZooError, match=r"img\.bytes is not there once"):
        load_image_set("cifar10", tmp_path)


def varint(value: int) -> bytes:
    return bytes([value & 127 | 128]) + varint(value >> 7) if value > 127 else bytes([value])


def number_in_thrift(value: int) -> bytes:
    return varint(value * 2 if value >= 0 else -value * 2 - 1)


def page_header(size: int, compressed: int, encoding: int = 0) -> bytes:
    data_page = (
        b"\x15"
        + number_in_thrift(10)
        + b"".join(b"\x15" + number_in_thrift(kind) for kind in (encoding, 3, 3))
        + b"\0"
    )
    return (
        b"\x15"
        + number_in_thrift(0)
        + b"\x15"
        + number_in_thrift(size)
        + b"\x15"
        + number_in_thrift(compressed)
        + b"\x2c"
        + data_page
        + b"\0"
    )


GOOD = page_header(100, 4)
PAGES = {
    "not there": (b"", "cut short"),
    "cut short": (GOOD[:-3], "cut short"),
    "huge": (page_header(2**31 - 1, 4) + bytes(4), "a page of 2147483647 bytes, more than 33554432"),
    "32 bits too many": (page_header(2**32 + 100, 4) + bytes(4), "a page of 4294967396 bytes"),
    "negative": (page_header(-1, 4) + bytes(4), "a page without a size"),
    "beyond the column": (page_header(100, 10**6), "a page of 1000000 bytes"),
    "compressed to less than nothing": (page_header(100, -4), "a page of -4 bytes"),
    "delta": (page_header(100, 4, 7) + bytes(4), "a page in encoding 7"),
    "second size": (
        GOOD[:-1] + b"\x05\x04" + number_in_thrift(2**31 - 1) + b"\0" + bytes(4),
        "field 2 of a header twice",
    ),
    "second size by overflow": (
        GOOD[:-1] + b"\x05" + number_in_thrift(2**16 + 2) + number_in_thrift(2**31 - 1) + b"\0",
        "field 65538",
    ),
    "deep": (b"\x1c" * 60_000, "nested too deeply"),
    "deep lists": (b"\x19" * 60_000, "nested too deeply"),
    "long number": (b"\x15" + b"\xff" * 100, "a number of more than 64 bits"),
    "map": (b"\x1b\x01\x55\x02\x02\0", "type 11"),
    "no struct": (b"\xff" * 60_000, "type 15"),
    "endless list": (b"\x19\xf5" + b"\xff" * 9 + b"\x01", "entries in a header, more than 131072"),
    "cut list": (b"\x19\xf5" + varint(1000), "cut short"),
    "long text": (b"\x18" + b"\xff" * 5 + b"\x01", "cut short"),
}


@pytest.mark.parametrize(("page", "message"), PAGES.values(), ids=PAGES)
def test_headers_of_pages(page: bytes, message: str) -> None:
    """Whatever Arrow would make of them."""
    with pytest.raises(ValueError, match=message):
        list(_pages(io.BytesIO(page), 0, max(1, len(page))))


def test_headers_of_good_pages() -> None:
    content = GOOD + bytes(4) + page_header(7, 9, encoding=8) + bytes(9)
    assert list(_pages(io.BytesIO(content), 0, len(content))) == [100, 9]


@pytest.mark.parametrize(
    "options",
    [
        {"data_page_version": "2.0"},
        {"compression": "none"},
        {"write_page_checksum": True},
        {"version": "1.0"},
    ],
)
def test_parquet_files_of_all_kinds_are_read(tmp_path: Path, options: dict[str, Any]) -> None:
    blobs = [png(32, 32) + bytes([row]) for row in range(100)]
    parquet(
        tmp_path / "cifar10",
        blobs,
        [row % 10 for row in range(100)],
        row_group_size=30,
        data_page_size=100,
        **options,
    )
    with pytest.raises(ZooError, match=r"found \(100, 1, 32, 32\)"):
        shape_of(tmp_path)


@pytest.mark.parametrize("footer", [2**32 - 1, 10**6, 0, 3])
def test_footers_of_a_parquet_file(tmp_path: Path, footer: int) -> None:
    """Of a size that it has not, and garbage."""
    parquet(tmp_path / "cifar10", [png(32, 32)] * 10, list(range(10)))
    path = tmp_path / "cifar10/train-00000-of-00001.parquet"
    path.write_bytes(path.read_bytes()[:-8] + struct.pack("<I", footer) + b"PAR1")
    refused(lambda: load_image_set("cifar10", tmp_path), "expected a whole Parquet file")


def test_a_footer_of_many_small_parts(tmp_path: Path) -> None:
    """Two million columns of three bytes each, of which Arrow makes gigabytes."""
    parquet(tmp_path / "cifar10", [png(32, 32)] * 10, list(range(10)))
    columns = b"\x19\xfc" + varint(15_000) + b"\x26\x00\x00" * 15_000 + b"\x00"
    footer = b"\x49\xfc" + varint(150) + columns * 150 + b"\x00"
    (tmp_path / "cifar10/train-00000-of-00001.parquet").write_bytes(
        b"PAR1" + footer + struct.pack("<I", len(footer)) + b"PAR1"
    )
    refused(lambda: load_image_set("cifar10", tmp_path), "entries in a header, more than 131072")


def test_a_footer_of_a_gigabyte(tmp_path: Path) -> None:
    parquet(tmp_path / "cifar10", [png(32, 32)] * 10, list(range(10)))
    with open(tmp_path / "cifar10/train-00000-of-00001.parquet", "r+b") as file:
        file.truncate(1000 * MB)
        file.seek(0, 2)
        file.write(struct.pack("<I", 999 * MB) + b"PAR1")
    refused(lambda: load_image_set("cifar10", tmp_path), "a footer of 1047527424 bytes, more than 8388608")


def test_an_idx_name_that_is_a_folder(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(buffer, "PNG")
    parquet(tmp_path / "cifar10", [buffer.getvalue()] * 10, list(range(10)))
    (tmp_path / "cifar10/train-images-idx3-ubyte").mkdir()
    assert load_image_set("cifar10", tmp_path).train_images.shape == (10, 3, 32, 32)
    (tmp_path / "cifar10/train-00000-of-00001.parquet").unlink()
    (tmp_path / "cifar10/train-00000-of-00001.parquet").mkdir()
    with pytest.raises(ZooError, match="a whole Parquet file"):
        load_image_set("cifar10", tmp_path)


@pytest.mark.parametrize("path", ["loop", "x" * 5000, "a\0b", "\ud800", "file", "nothing"])
def test_folders_that_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("loop").symlink_to("loop")
    Path("file").write_text("")
    calls: tuple[Callable[[], Any], ...] = (
        lambda: load_image_set("mnist", Path(path)),
        lambda: import_zoo("nws", Path(path), tmp_path / "out"),
        lambda: import_zoo("small_cnn", Path(path), tmp_path / "out"),
    )
    for call in calls:
        with pytest.raises(ZooError) as raised:
            call()
        assert "\n" not in str(raised.value) and str(raised.value).isprintable()


def test_pipes_in_place_of_files(tmp_path: Path) -> None:
    """Whatever is opened, a pipe that nobody writes to is told and not waited for."""

    def set_of_images(folder: Path) -> Path:
        parquet(folder / "cifar10", [png(32, 32)] * 10, list(range(10)))
        return folder

    def released(folder: Path) -> Path:
        return factory.write_nws(folder / "nws", "main", {"train": {0: factory.nws_meta(0)}})

    def read(folder: Path) -> None:
        zoo = Zoo(folder)
        snapshots = zoo.filter()
        for snapshot in snapshots:
            zoo.row(snapshot)
        zoo.weights(snapshots)

    kinds: dict[str, tuple[Callable[[Path], Path], Callable[[Path], object]]] = {
        "images": (set_of_images, lambda folder: load_image_set("cifar10", folder)),
        "small_cnn": (small, lambda folder: import_zoo("small_cnn", folder, tmp_path / "out")),
        "nws": (released, lambda folder: import_zoo("nws", folder, tmp_path / "out")),
        "zoo": (make_zoo, read),
    }
    for kind, (make, call) in kinds.items():
        made = make(tmp_path / kind)
        for path in sorted(path for path in made.rglob("*") if path.is_file() and path.name not in UNREAD):
            content = path.read_bytes()
            path.unlink()
            os.mkfifo(path)
            refused(functools.partial(call, made), "", 1000)
            path.unlink()
            path.write_bytes(content)


# --- the Small CNN Zoo ---


def small(folder: Path, models: int = 4, **change: Any) -> Path:
    return factory.write_small_cnn(folder / "mnist", "mnist", models, **change).parent


def test_the_seed_is_that_of_the_lines_and_splits_stay(tmp_path: Path) -> None:
    out = tmp_path / "out"
    import_zoo("small_cnn", small(tmp_path), out)
    snapshots = Zoo(out).filter(is_final=True)
    assert dict(zip(snapshots["model_number"].tolist(), snapshots["seed"].tolist(), strict=True)) == {
        0: 0,
        4: 1,
        8: 2,
        12: 0,
    }
    assert Manifest.read(out).subsets["small_cnn_2020"].seed == 42


@pytest.mark.parametrize("seed", ["x", "", 1.5, float("nan"), 1e300])
def test_a_seed_that_is_none(tmp_path: Path, seed: Any) -> None:
    def change(weights: np.ndarray, lines: list[dict[str, object]]) -> None:
        for line in lines:
            line["config.random_seed"] = seed

    with pytest.raises(ZooError) as raised:
        import_zoo("small_cnn", small(tmp_path, change=change), tmp_path / "out")
    assert "random_seed" in str(raised.value) and "\n" not in str(raised.value)


def test_a_modeldir_that_names_checkpoints(tmp_path: Path) -> None:
    def change(weights: np.ndarray, lines: list[dict[str, object]]) -> None:
        for line in lines:
            line["modeldir"] = f"{line['modeldir']}/{line['step']}"

    with pytest.raises(ZooError, match=r"expected 9 rows for each modeldir, .* found 4 of 36 with 1"):
        import_zoo("small_cnn", small(tmp_path, change=change), tmp_path / "out")


def test_the_plan_s_epochs_come_first(tmp_path: Path) -> None:
    """Three of four models have other epochs; the one with the plan's is the one that is complete."""

    def change(weights: np.ndarray, lines: list[dict[str, object]]) -> None:
        for line in lines:
            if not str(line["modeldir"]).endswith("/1"):
                line["step"] = int(str(line["step"])) + 1

    told = import_zoo("small_cnn", small(tmp_path, change=change), tmp_path / "out")
    assert told.splitlines()[0] == "small_cnn_2020: 1 models, 1 of them imported now"
    assert set(Zoo(tmp_path / "out").filter()["epoch"]) == set(factory.SMALL_EPOCHS)


def test_metrics_that_inflate_to_a_gigabyte(tmp_path: Path) -> None:
    source = small(tmp_path)
    with gzip.open(source / "mnist/metrics.csv.gz") as file:
        header, line, *_ = file.read().splitlines(keepends=True)
    with gzip.open(source / "mnist/metrics.csv.gz", "wb") as file:
        file.write(header)
        for _ in range(1000):
            file.write(line * (MB // len(line)))
    refused(
        lambda: import_zoo("small_cnn", source, tmp_path / "out"),
        "lines, as many as weights.npy has rows",
        400,
    )


HEADERS = {
    "deep": "(" * 5000,
    "objects": "{'descr': '|O', 'fortran_order': False, 'shape': (36, 4970), }",
    "huge": "{'descr': '<f4', 'fortran_order': False, 'shape': (10**12, 4970), }",
    "large": "{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000, 4970), }",
    "negative": "{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 4970), }",
    "code": "{'descr': '<f4', 'fortran_order': False, 'shape': __import__('os'), }",
    "no dict": "7",
}


@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS)
def test_npy_headers(tmp_path: Path, header: str) -> None:
    source = small(tmp_path)
    text = header.encode() + b" " * (-(len(header) + 11) % 64) + b"\n"
    (source / "mnist/weights.npy").write_bytes(
        b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + bytes(1000)
    )
    refused(
        lambda: import_zoo("small_cnn", source, tmp_path / "out"),
        "weights.npy: expected an array [36, 4970] of float32",
        400,
    )


def test_a_layout_of_a_hundred_megabytes(tmp_path: Path) -> None:
    source = small(tmp_path)
    with open(source / "mnist/layout.csv", "wb") as file:
        file.truncate(100 * MB)
    refused(lambda: import_zoo("small_cnn", source, tmp_path / "out"), "a table of at most", 300)


@pytest.mark.parametrize("shape", ["(" + "9" * 5000 + ")", "\u0663", "(1, 2, 3, 4)" * 100])
def test_shapes_in_a_layout(tmp_path: Path, shape: str) -> None:
    source = small(tmp_path)
    (source / "mnist/layout.csv").write_text(
        f'varname,start_idx,end_idx,shape\nsequential/conv2d/bias:0,0,16,"{shape}"\n'
    )
    with pytest.raises(ZooError) as raised:
        import_zoo("small_cnn", source, tmp_path / "out")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["train_accuracy", "test_accuracy"])
@pytest.mark.parametrize("value", [-0.5, 1.5, 97.0, 1e300])
def test_accuracies_that_are_none(tmp_path: Path, name: str, value: float) -> None:
    def change(weights: np.ndarray, lines: list[dict[str, object]]) -> None:
        lines[3][name] = value

    with pytest.raises(ZooError, match=rf"line 5: expected 0 to 1 as {name}, found "):
        import_zoo("small_cnn", small(tmp_path, change=change), tmp_path / "out")


STEPS = (1e300, 2.0**62, 2.0**63, 1e15, -1.0, float("inf"))


@pytest.mark.parametrize("step", STEPS)
def test_epochs_that_are_none(tmp_path: Path, step: float) -> None:
    def change(weights: np.ndarray, lines: list[dict[str, object]]) -> None:
        for line in lines:
            line["step"] = step if line["step"] == 86 else line["step"]

    with pytest.raises(ZooError, match="expected whole numbers up to 1000000 as step"):
        import_zoo("small_cnn", small(tmp_path, change=change), tmp_path / "out")


# --- the neural weight space ---


@pytest.mark.parametrize("step", STEPS)
def test_steps_that_are_none(tmp_path: Path, step: float) -> None:
    source = factory.write_nws(tmp_path / "nws", "main", {"train": {0: factory.nws_meta(0)}})
    for error in source.rglob("error.bin"):
        numbers = np.fromfile(error).reshape(-1, 5)
        numbers[:, 0] = step
        numbers.tofile(error)
    with pytest.raises(ZooError, match=r"error\.bin: expected a whole step and errors in percent"):
        import_zoo("nws", source, tmp_path / "out")


@pytest.mark.parametrize("exports", [1e300, float("nan"), float("inf"), -1.0, 2.5, 1e9])
def test_exports_that_are_none(tmp_path: Path, exports: float) -> None:
    source = factory.write_nws(tmp_path / "nws", "main", {"train": {0: factory.nws_meta(0)}})
    for stat in source.rglob("stat.bin"):
        numbers = np.fromfile(stat)
        numbers[0] = exports
        numbers.tofile(stat)
    refused(
        lambda: import_zoo("nws", source, tmp_path / "out"),
        "stat.bin: expected 20 or more exported epochs",
        300,
    )
