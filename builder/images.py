"""Loads the images that networks are trained on, and brings them to the size that a network reads.

`load_image_set` reads one of `IMAGE_SETS` at its native size: from a local folder (the original idx files, or
Parquet in the Hub's schema), from the Hub, or, for `digits`, from scikit-learn. `prepare` then makes the
uint8 images of a recipe.
From pixels on everything is exact integer arithmetic, the same on every machine. Decoded JPEG may differ
between versions of libjpeg; `ImageSet.sha256` shows it.

Axes: N images, C channels (1 grey, 3 colour), H height, W width.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import hashlib
import io
import math
import os
import re
import struct
import warnings
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

from builder.image_sets import IMAGE_SETS, ImageSetFacts
from builder.parquet import Cost, cost_of, open_parquet
from nws_dataset.errors import ZooError
from nws_dataset.files import open_file, path_type

Split = tuple[np.ndarray, np.ndarray]  # images uint8 [N, C, H, W], labels int64 [N]
Example = tuple[str, bytes | None, int | None]  # its location (for errors), encoded image, label

IDX_PREFIXES = {"train": "train", "test": "t10k"}  # split -> prefix of its idx files
IDX_KINDS = {3: "images", 1: "labels"}  # rank of the array -> what the idx file contains
# folders of these names may lie between a set's folder and its files
NEUTRAL_FOLDERS = ("data", "raw")
IMAGE_FILE = re.compile(r"(train|test)-.*\.parquet|(train|t10k)-(images|labels)[-.]idx[13]-ubyte(\.gz)?")
MAX_DEPTH = 3  # folders between --images and the files
ARROW_ERRORS = (pa.ArrowException, OSError, ValueError)  # of a damaged Parquet file
PILLOW_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    struct.error,
    zlib.error,
    OverflowError,
    Image.DecompressionBombError,
)
MAX_BYTES = 1 << 28  # of a split's images, and of their encoded form: svhn has 225 MB
MAX_IMAGES = 1 << 17  # in a split: svhn has 73,257
MAX_ENCODED = 1 << 24  # bytes of an encoded image
MAX_PIXELS = 1 << 22  # in an image: our image sets have 96 x 96 at most
MAX_INFLATED = 1100  # most bytes that one byte of a gzip file can become
BLOCK = 512  # images resized at a time: the int32 intermediates stay in cache
DIGITS_TEST = 360  # scikit-learn has no split: the last 360 of its 1797 digits are our test images


@dataclass(frozen=True, eq=False)
class ImageSet:
    """One image set at its native size. Each class occurs among the training images."""

    name: str
    train_images: np.ndarray  # uint8 [N, C, H, W]
    train_labels: np.ndarray  # int64 [N], 0..9
    test_images: np.ndarray  # uint8 [N, C, H, W]
    test_labels: np.ndarray  # int64 [N], 0..9
    source: str  # where they came from, without a local path

    @cached_property
    def sha256(self) -> str:
        """Hex digest of the name and of the type, shape and bytes of the four arrays, without `source`."""
        digest = hashlib.sha256(self.name.encode())
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, np.ndarray):
                little = np.ascontiguousarray(value, value.dtype.newbyteorder("<"))
                digest.update(f"\n{field.name} {little.dtype.name} {little.shape}\n".encode())
                digest.update(little.data)
        return digest.hexdigest()


def load_image_set(name: str, directory: Path | None = None) -> ImageSet:
    """Load the training and test images of one set at their native size.

    Args:
        name: a key of `IMAGE_SETS`.
        directory: the folder of `--images`. It contains the set's files, or a sub-folder named after the set
            (directly, or in `data`). Of several folders with images of the set, the only one that has them
            all is taken. Files are idx (`.gz` or not) or Parquet in the Hub's schema. None: from the Hub.
            `digits` always comes from scikit-learn.

    Returns:
        The image set.

    Raises:
        ZooError: an unknown name, no folder with images of the set, several of which none or more than one
            has them all, a damaged or missing file, labels outside 0..9, a class without training images, or
            a Hub that cannot be reached.

    Example:
        >>> load_image_set("digits").train_images.shape
        (1437, 1, 8, 8)
    """
    if name not in IMAGE_SETS:
        raise ZooError(
            "image set", expected=f"one of {', '.join(IMAGE_SETS)}", found=repr(name), do="correct the name"
        )
    source = IMAGE_SETS[name]
    if name == "digits":
        return _checked("scikit-learn", name, "scikit-learn digits", *_load_digits())
    whole = source.part_of or name
    if directory is None:
        return _checked(source.hub, name, str(source.hub), *_load_hub(whole))
    # of a part, all images are test images of the whole set
    wanted = {split: prefix for split, prefix in IDX_PREFIXES.items() if split == "test" or whole == name}
    folder = _find_folder(whole, Path(os.path.abspath(directory)), wanted)
    if any(_find_idx(folder, prefix, rank) for prefix in wanted.values() for rank in IDX_KINDS):
        whence = "idx files"
        splits = [_load_idx(folder, prefix, source) for prefix in wanted.values()]
    else:
        whence = f"Parquet {_public_name(whole, folder)}"
        splits = [_load_parquet(folder, split, source) for split in wanted]
    if whole != name:
        splits = _parted(folder, source, *splits)
    return _checked(folder, name, whence, *splits)


def has_image_set(name: str, directory: Path) -> bool:
    """Whether the folder of `--images` has files of a set, complete or not.

    Args:
        name: a key of `IMAGE_SETS`.
        directory: the folder, as for `load_image_set`.

    Returns:
        True or False.

    Raises:
        ZooError: if it is not a folder that can be read.
    """
    whole = IMAGE_SETS[name].part_of or name
    return any(_owner(folder) in (whole, None) for folder in _candidates(whole, directory.absolute()))


def prepare(images: np.ndarray, channels: int, size: int) -> np.ndarray:
    """Make the images that a network reads: the right number of channels, then the right size.

    Args:
        images: uint8 [N, C, H, W], C is 1 or 3.
        channels: 1 (colour becomes the plain mean of its channels, rounded half to even) or 3 (grey is
            tiled).
        size: height and width in pixels.

    Returns:
        A new array, uint8 [N, channels, size, size].

    Raises:
        ValueError: `channels` or C is neither 1 nor 3.
    """
    if channels not in (1, 3) or images.shape[1] not in (1, 3):
        raise ValueError(f"channels must be 1 or 3, found {images.shape[1]} in the images, {channels} wanted")
    prepared = np.empty((len(images), channels, size, size), np.uint8)
    for start in range(0, len(images), BLOCK):
        block = images[start : start + BLOCK]
        if channels < block.shape[1]:
            block = _divide(block.sum(axis=1, keepdims=True, dtype=np.int32), 3).astype(np.uint8)
        prepared[start : start + BLOCK] = resize(block, size)  # broadcasting copies one channel to three
    return prepared


def resize(images: np.ndarray, size: int) -> np.ndarray:
    """Resize bilinearly in exact integers: half-pixel centres, clamped edges, no antialias, half to even.

    The same as `torch.nn.functional.interpolate(x.double(), size, mode="bilinear",
    align_corners=False).round()` wherever float64 holds torch's weights exactly (a power of two such as 32 as
    `size`); elsewhere torch may round a tie the other way.

    Args:
        images: uint8 [N, C, H, W].
        size: height and width of the result in pixels.

    Returns:
        uint8 [N, C, size, size]; `images` itself if it has that size already.
    """
    if images.shape[2:] == (size, size):
        return images
    resized = np.empty((*images.shape[:2], size, size), np.uint8)
    wide = np.int32 if size <= 1024 else np.int64  # _divide holds up to 2044 * size**2
    (top, bottom, down), (left, right, along) = (_taps(n, size) for n in images.shape[2:])
    down, along = down.astype(wide)[:, None], along.astype(wide)
    for start in range(0, len(images), BLOCK):
        block = images[start : start + BLOCK].astype(wide)
        block = np.take(block, left, 3) * (2 * size - along) + np.take(block, right, 3) * along
        block = np.take(block, top, 2) * (2 * size - down) + np.take(block, bottom, 2) * down
        resized[start : start + BLOCK] = _divide(block, 4 * size**2)
    return resized


def _taps(n: int, m: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each of m pixels made from n: its two neighbours, and the second's weight in units of 1 / 2m."""
    position = np.clip((2 * np.arange(m) + 1) * n - m, 0, 2 * m * (n - 1))  # in units of 1 / 2m pixels
    first = position // (2 * m)
    return first, np.minimum(first + 1, n - 1), position % (2 * m)


def _divide(value: np.ndarray, divisor: int) -> np.ndarray:
    """Divide integers >= 0, rounding half to even: (2v + d) // 2d, less 1 at a tie above an even number."""
    odd: np.ndarray = value // divisor & 1
    return (2 * value + (divisor - 1) + odd) // (2 * divisor)


def _checked(where: object, name: str, source: str, train: Split, test: Split) -> ImageSet:
    """Make an image set of two splits that fit together and have every class among the training images."""
    if train[0].shape[1:] != test[0].shape[1:]:
        expected, found = (" x ".join(map(str, images.shape[1:])) for images, _ in (train, test))
        do = "take both from the same set"
        raise ZooError(where, expected=f"test images of {expected} as in training", found=found, do=do)
    missing = sorted(set(range(IMAGE_SETS[name].classes)) - set(np.unique(train[1]).tolist()))
    if missing:
        found = f"none of {', '.join(map(str, missing))}"
        raise ZooError(
            where, expected="training images of every class", found=found, do="fetch the whole set again"
        )
    return ImageSet(name, *train, *test, source)


def _parted(folder: Path, source: ImageSetFacts, split: Split) -> list[Split]:
    """The images of a split, the first ones for training."""
    (images, labels), count = split, source.train_images + source.test_images
    if len(images) != count:
        do = "fetch the whole set again"
        raise ZooError(folder, expected=f"{count} test images", found=str(len(images)), do=do)
    train = source.train_images
    return [(images[:train], labels[:train]), (images[train:], labels[train:])]


def _load_digits() -> tuple[Split, Split]:
    """Scikit-learn's 1797 digits of 8 x 8 pixels, scaled from 0..16 to 0..255; the first 1437 train."""
    from sklearn.datasets import load_digits  # slow to import, only needed here

    digits = load_digits()
    images = _divide(digits.images.astype(np.int32)[:, None] * 255, 16).astype(np.uint8)
    labels = digits.target.astype(np.int64)
    return (images[:-DIGITS_TEST], labels[:-DIGITS_TEST]), (images[-DIGITS_TEST:], labels[-DIGITS_TEST:])


def _load_hub(name: str) -> tuple[Split, Split]:
    """Load both splits from the Hub (or its local cache) with the `datasets` library."""
    source = IMAGE_SETS[name]
    if source.hub is None:
        do = "give --images DIR, a folder with its files"
        raise ZooError(
            name, expected="a local folder", found="no folder, and no repository on the Hub", do=do
        )
    try:
        import datasets

        train, test = datasets.load_dataset(source.hub, source.config, split=list(IDX_PREFIXES))
    except Exception as error:  # the libraries below raise half a dozen kinds of errors
        do = "connect, or give --images DIR, a folder with its files"
        raise ZooError(
            source.hub, expected="the data set on the Hub", found=_one_line(error), do=do
        ) from error
    first, second = (
        _decode(_hub_examples(split, source), len(split), source, source.hub) for split in (train, test)
    )
    return first, second


def _hub_examples(split: Any, source: ImageSetFacts) -> Iterator[Example]:
    """The examples of a `datasets.Dataset`, images still encoded."""
    _check_columns(split.features.arrow_schema, source, source.hub)
    tables = split.with_format("arrow").iter(batch_size=100)
    yield from _examples(
        (batch for table in tables for batch in table.to_batches()), source, f"{source.hub} {split.split}"
    )


def _find_folder(name: str, directory: Path, splits: Iterable[str]) -> Path:
    """The one folder at or below `directory` that has the set's files; of several, the one whole one."""
    found_folders = _candidates(name, directory)
    folders = [folder for folder in found_folders if _owner(folder) in (name, None)]
    if not folders:
        expected = f"images of {name} (idx files, or train-*.parquet and test-*.parquet)"
        found = f"those of {_owner(found_folders[0])}" if found_folders else "none"
        do = f"put them into its sub-folder {IMAGE_SETS[name].folders[0]}, or correct --images"
        raise ZooError(directory, expected=expected, found=found, do=do)
    if len(folders) == 1:
        return folders[0]
    whole = [folder for folder in folders if all(_is_whole(folder, split, name) for split in splits)]
    if len(whole) != 1:
        found = " and ".join(str(folder.relative_to(directory)) for folder in folders)
        do = f"point --images at one of them, e.g. --images {folders[0]}, or keep only one there"
        expected = f"one folder with {'' if whole else 'all '}images of {name}"
        raise ZooError(directory, expected=expected, found=found, do=do)
    return whole[0]


def _is_whole(folder: Path, split: str, name: str) -> bool:
    """Whether a folder has as many images of a split as the set; none is decoded. False if damaged."""
    source = IMAGE_SETS[name]
    count, idx = 0, _find_idx(folder, IDX_PREFIXES[split], 3)
    try:
        if idx is not None:
            count = len(_read_idx(idx, 3))
        else:
            for path in folder.glob(f"{split}-*.parquet"):
                with _parquet(path, source) as (_, cost):
                    count += cost.rows
    except ZooError:
        return False
    return count == (source.train_images if split == "train" else source.test_images)


def _candidates(name: str, directory: Path) -> list[Path]:
    """Folders at or below `directory` that may have the set's files."""
    if path_type(directory) != "a folder":
        raise ZooError(directory, expected="a folder", found=path_type(directory), do="correct --images")
    try:
        return _image_folders(name, directory, inside=False, depth=MAX_DEPTH)
    except OSError as error:
        do = "make it readable"
        raise ZooError(directory, expected="readable folders", found=_one_line(error), do=do) from error


def _image_folders(name: str, folder: Path, *, inside: bool, depth: int) -> list[Path]:
    """Find candidate folders: below sub-folders of the set's name, else this one, else below neutral ones.

    `inside` a folder of the set's name every sub-folder may have its files, outside only NEUTRAL_FOLDERS.
    """
    inside = inside or _named_set(folder) == name
    subfolders = sorted(sub for sub in folder.iterdir() if sub.is_dir()) if depth else []
    own = [sub for sub in subfolders if _named_set(sub) == name]
    found = [hit for sub in own for hit in _image_folders(name, sub, inside=True, depth=depth - 1)]
    if found:
        return found
    if any(IMAGE_FILE.fullmatch(path.name) for path in folder.iterdir()):
        return [folder]
    other = [sub for sub in subfolders if _named_set(sub) is None and (inside or sub.name in NEUTRAL_FOLDERS)]
    return [hit for sub in other for hit in _image_folders(name, sub, inside=inside, depth=depth - 1)]


def _named_set(folder: Path) -> str | None:
    """The image set that a folder is named after."""
    plain = re.sub("[-_]", "", folder.name.lower())
    names = ((name, folder_name) for name, source in IMAGE_SETS.items() for folder_name in source.folders)
    return next((name for name, folder_name in names if folder_name.replace("_", "") == plain), None)


def _owner(folder: Path) -> str | None:
    """The image set that a folder belongs to, by its own name or else its parent's."""
    return _named_set(folder) or _named_set(folder.parent)


def _public_name(name: str, folder: Path) -> str:
    """The set's name and the path below the folder of that name: `cifar10/jpeg-transcoded`."""
    real = folder.resolve()
    for below, ancestor in enumerate((real, *real.parents[:MAX_DEPTH])):
        if _named_set(ancestor) == name:
            return "/".join([name, *real.parts[len(real.parts) - below :]])
    return name


def _find_idx(folder: Path, prefix: str, rank: int) -> Path | None:
    """Find the idx file of images (rank 3) or labels (rank 1): `train-images-idx3-ubyte`, or with a dot."""
    paths = (
        folder / f"{prefix}-{IDX_KINDS[rank]}{dot}idx{rank}-ubyte{gz}" for dot in "-." for gz in ("", ".gz")
    )
    return next((path for path in paths if path.is_file()), None)


def _load_idx(folder: Path, prefix: str, source: ImageSetFacts) -> Split:
    """Load one split from its two idx files."""
    paths = {rank: _find_idx(folder, prefix, rank) for rank in IDX_KINDS}
    for rank, path in paths.items():
        if path is None:
            missing = folder / f"{prefix}-{IDX_KINDS[rank]}-idx{rank}-ubyte.gz"
            raise ZooError(missing, expected="this file", found="none", do="fetch it too")
    images, labels = (_read_idx(path, rank) for rank, path in paths.items() if path)
    if len(images) != len(labels):
        expected, do = f"{len(images)} labels, one for each image", "fetch both files again"
        raise ZooError(paths[1], expected=expected, found=str(len(labels)), do=do)
    if labels.max() >= source.classes:
        found = f"{labels.max()} at {labels.argmax()}"
        raise ZooError(paths[1], expected=f"labels 0..{source.classes - 1}", found=found, do="fetch it again")
    return images[:, None], labels.astype(np.int64)


def _read_idx(path: Path, rank: int) -> np.ndarray:
    """Read an idx file of bytes: magic number 0x0800 + rank, `rank` big-endian uint32 lengths, the bytes."""
    do = "fetch it again"
    magic, header = struct.pack(">I", 0x0800 + rank), 4 + 4 * rank
    try:
        with open_file(path) as raw, gzip.open(raw) if path.suffix == ".gz" else raw as file:
            data = file.read(header)
            if data[:4] != magic:
                raise ZooError(
                    path,
                    expected=f"magic number {magic.hex()}",
                    found=data[:4].hex() or "an empty file",
                    do=do,
                )
            if len(data) < header:
                raise ZooError(
                    path, expected=f"a header of {header} bytes", found=f"{len(data)} bytes", do=do
                )
            shape = struct.unpack_from(f">{rank}I", data, 4)
            if not 0 < shape[0] <= MAX_IMAGES or 0 in shape:
                raise ZooError(path, expected=f"1 to {MAX_IMAGES} images", found=f"the shape {shape}", do=do)
            size = header + math.prod(shape)
            max_bytes = min(MAX_BYTES, path.stat().st_size * (MAX_INFLATED if path.suffix == ".gz" else 1))
            if size > max_bytes:
                raise ZooError(
                    path, expected=f"{size} bytes as its header says", found=f"{max_bytes} at most", do=do
                )
            data += file.read(size - header + 1)  # a limit to what it inflates to
    except (OSError, EOFError, zlib.error) as error:
        raise ZooError(path, expected="a whole file", found=_one_line(error), do=do) from error
    if len(data) != size:
        found = f"{len(data)}" if len(data) < size else "more"
        raise ZooError(path, expected=f"{size} bytes as its header says", found=found, do=do)
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape).copy()  # writable, as torch requires


def _load_parquet(folder: Path, split: str, source: ImageSetFacts) -> Split:
    """Load one split from its Parquet files, in the order of their names."""
    paths = sorted(folder.glob(f"{split}-*.parquet"))
    if not paths:
        missing = folder / f"{split}-*.parquet"
        raise ZooError(missing, expected="this file", found="none", do="fetch it too")
    for path in paths:
        total = re.search(r"-of-(\d+)\.parquet$", path.name)
        if total and int(total[1]) != len(paths):
            found = f"{len(paths)} {split} files"
            raise ZooError(
                path, expected=f"{int(total[1])} as its name says", found=found, do="fetch the whole split"
            )
    count = encoded = 0
    for path in paths:
        with _parquet(path, source) as (_, cost):
            count, encoded = count + cost.rows, encoded + cost.num_bytes
        if encoded > MAX_BYTES:
            expected, do = f"at most {MAX_BYTES} bytes of encoded images in a split", "use smaller images"
            raise ZooError(path, expected=expected, found=f"{encoded} or more", do=do)
    return _decode(
        (example for path in paths for example in _parquet_examples(path, source)), count, source, paths[0]
    )


@contextlib.contextmanager
def _parquet(path: Path, source: ImageSetFacts) -> Iterator[tuple[pq.ParquetFile, Cost]]:
    """Open a Parquet file of images and estimate what reading it costs; errors of Arrow become one line."""
    try:
        with open_file(path) as file, open_parquet(file) as opened:
            _check_columns(opened.schema_arrow, source, path)
            yield opened, cost_of(file, opened, _leaves(source))
    except ARROW_ERRORS as error:
        raise ZooError(
            path, expected="a whole Parquet file", found=_one_line(error), do="fetch it again"
        ) from error


def _leaves(source: ImageSetFacts) -> list[str]:
    """The columns to read from a Parquet file."""
    return [f"{source.column}.bytes", "label"]


def _parquet_examples(path: Path, source: ImageSetFacts) -> Iterator[Example]:
    """Yield the examples of one Parquet file, images still encoded."""
    with _parquet(path, source) as (file, cost):
        yield from _examples(
            file.iter_batches(cost.batch_rows, columns=_leaves(source), use_threads=False), source, path
        )


def _check_columns(schema: pa.Schema, source: ImageSetFacts, where: object) -> None:
    """Raise a ZooError unless there is a column of encoded images and one of integer labels."""
    types = dict(zip(schema.names, schema.types, strict=True))
    image, label = types.get(source.column, pa.null()), types.get("label", pa.null())
    blobs = {image.field(i).name: image.field(i).type for i in range(image.num_fields)}.get(
        "bytes", pa.null()
    )
    binary = pa.types.is_binary(blobs) or pa.types.is_large_binary(blobs)
    if not (pa.types.is_struct(image) and binary and pa.types.is_integer(label)):
        expected = f"columns `{source.column}` (struct of bytes and path) and `label` (integer)"
        found = ", ".join(f"`{name}` ({type_})" for name, type_ in types.items()) or "no columns"
        do = "take the files of the Hub's repository"
        raise ZooError(where, expected=expected, found=" ".join(found.split()), do=do)


def _examples(batches: Iterable[pa.RecordBatch], source: ImageSetFacts, where: object) -> Iterator[Example]:
    """Yield each example: its location, encoded image and label."""
    number = 0
    for batch in batches:
        blobs = pc.struct_field(batch.column(source.column), "bytes")
        for blob, label in zip(blobs, batch.column("label").to_pylist(), strict=True):
            yield f"{where} row {number}", blob.as_py(), label
            number += 1


def _decode(examples: Iterable[Example], count: int, source: ImageSetFacts, where: object) -> Split:
    """Decode a split's images, all of one size; `count` examples are expected."""
    do = "fetch the file again"
    if not 0 < count <= MAX_IMAGES:
        found = "none" if count == 0 else str(count)
        raise ZooError(
            where,
            expected="at least one image" if count == 0 else f"1 to {MAX_IMAGES} images",
            found=found,
            do=do,
        )
    images, labels = np.empty(0, np.uint8), np.empty(count, np.int64)
    done = 0
    for at, blob, label in examples:
        image = _decode_image(blob, at)
        if done == 0:
            if count * image.nbytes > MAX_BYTES:
                expected, found = (
                    f"at most {MAX_BYTES} bytes of images in a split",
                    f"{count} of {image.nbytes} bytes",
                )
                raise ZooError(at, expected=expected, found=found, do="use smaller images")
            images = np.empty((count, *image.shape), np.uint8)
        if image.shape != images.shape[1:]:
            expected, found = (" x ".join(map(str, shape)) for shape in (images.shape[1:], image.shape))
            raise ZooError(at, expected=f"an image of {expected} as before", found=found, do=do)
        if label is None or not 0 <= label < source.classes:
            raise ZooError(at, expected=f"a label 0..{source.classes - 1}", found=str(label), do=do)
        if done == count:
            break
        images[done], labels[done] = image, label
        done += 1
    else:
        if done == count:
            return images, labels
    raise ZooError(
        where,
        expected=f"{count} images, as its footers say",
        found=f"{done}" if done < count else "more",
        do=do,
    )


def _decode_image(blob: bytes | None, where: object) -> np.ndarray:
    """Decode an image to pixels, uint8 [C, H, W]."""
    expected, do = "an 8-bit grey or RGB image as PNG or JPEG", "fetch the file again"
    if blob is None:
        raise ZooError(where, expected=expected, found="none", do=do)
    if len(blob) > MAX_ENCODED:
        found = f"{len(blob)}"
        raise ZooError(
            where,
            expected=f"an encoded image of at most {MAX_ENCODED} bytes",
            found=found,
            do="use smaller images",
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # its limit is far above ours
            with Image.open(io.BytesIO(blob), formats=("PNG", "JPEG")) as image:
                if math.prod(image.size) > MAX_PIXELS:  # from the header; nothing is decoded yet
                    found = f"{image.size[0]} x {image.size[1]} pixels"
                    raise ZooError(
                        where, expected=f"an image of at most {MAX_PIXELS} pixels", found=found, do=do
                    )
                pixels = np.asarray(image)
    except PILLOW_ERRORS as error:
        raise ZooError(where, expected=expected, found=_one_line(error), do=do) from error
    if image.mode not in ("L", "RGB"):
        raise ZooError(where, expected=expected, found=f"mode {image.mode}", do=do)
    return np.atleast_3d(pixels).transpose(2, 0, 1)


def _one_line(error: Exception) -> str:
    """An error's kind and message on one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())
