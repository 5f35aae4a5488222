"""The images: exact resizing against literal numbers and against torch, every format read back, every bad
input.
"""

import dataclasses
import gzip
import hashlib
import io
import struct
import sys
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch.nn.functional import interpolate

from builder.image_sets import IMAGE_SETS
from builder.images import load_image_set, prepare, resize
from nws_dataset.errors import ZooError

DIGITS_SHA256 = "f6cdc3211221fa77d36ca36d5e36b47c7c305f01b193c226a05303cda78d8dc9"
# train, then test, 3 x 32 x 32
DIGITS_32_SHA256 = "c2efdd68b0697962a4493ca9d83b61598cf4b1ef2fe749d1c907d86222defc79"
LABELS = {"train": np.arange(40) % 10, "test": np.arange(20) % 10}


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def pixels(channels: int = 1, size: int = 6) -> dict[str, np.ndarray]:
    """Train and test images uint8 [N, C, H, W] to go with LABELS."""
    return {
        split: noise(len(labels), channels, size, size, seed=len(labels)) for split, labels in LABELS.items()
    }


# --- files as they are found in the wild ---


def write_idx(path: Path, array: np.ndarray) -> None:
    data = (
        struct.pack(f">{1 + array.ndim}I", 0x0800 + array.ndim, *array.shape)
        + array.astype(np.uint8).tobytes()
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def write_idx_set(folder: Path, dot: str = "-", gz: str = ".gz") -> Path:
    for split, prefix in (("train", "train"), ("test", "t10k")):
        write_idx(folder / f"{prefix}-images{dot}idx3-ubyte{gz}", pixels()[split][:, 0])
        write_idx(folder / f"{prefix}-labels{dot}idx1-ubyte{gz}", LABELS[split])
    return folder


def encode(image: np.ndarray) -> bytes:
    """A PNG of uint8 [C, H, W]."""
    stream = io.BytesIO()
    Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0)).save(stream, "PNG")
    return stream.getvalue()


def table(blobs: list, labels: list, column: str = "image") -> pa.Table:
    type_ = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    images = pa.array([{"bytes": blob, "path": None} for blob in blobs], type_)
    return pa.table({column: images, "label": pa.array(labels, pa.int64())})


def write_parquet_set(folder: Path, channels: int = 3, column: str = "image", shards: int = 1) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for split, images in pixels(channels).items():
        whole = table([encode(image) for image in images], LABELS[split].tolist(), column)
        rows = len(whole) // shards
        for shard in range(shards):
            pq.write_table(
                whole.slice(shard * rows, rows), folder / f"{split}-{shard:05d}-of-{shards:05d}.parquet"
            )
    return folder


def assert_read_back(image_set, channels: int) -> None:
    for split, images in pixels(channels).items():
        found, labels = getattr(image_set, f"{split}_images"), getattr(image_set, f"{split}_labels")
        assert found.dtype == np.uint8 and found.flags.c_contiguous and found.flags.writeable
        assert labels.dtype == np.int64
        np.testing.assert_array_equal(found, images)
        np.testing.assert_array_equal(labels, LABELS[split])


def refused(name: str, directory: Path | None, *words: str) -> None:
    """Loading ends in one ZooError of one line that holds all the words."""
    with pytest.raises(ZooError) as error:
        load_image_set(name, directory)
    message = str(error.value)
    assert "\n" not in message
    for word in words:
        assert word in message


# --- resizing ---


@pytest.mark.parametrize(
    ("row", "size", "expected"),
    [
        ([0, 255], 4, [0, 64, 191, 255]),  # positions -1/4, 1/4, 3/4, 5/4, clamped at the edges
        ([0, 1, 2, 3], 2, [0, 2]),  # ties at 0.5 and 2.5 go to the even neighbour
        ([1, 2, 3, 4], 2, [2, 4]),
        ([10, 20, 30, 41], 1, [25]),  # no antialias: the two middle pixels only
        ([7], 3, [7, 7, 7]),
        ([0, 100, 200, 50, 255], 3, [33, 200, 187]),  # positions 1/3, 2, 11/3
    ],
)
def test_resize_gives_these_numbers(row, size, expected):
    images = np.array(row, np.uint8).reshape(1, 1, 1, -1)
    np.testing.assert_array_equal(resize(images, size)[0, 0], [expected] * size)
    np.testing.assert_array_equal(resize(images.swapaxes(2, 3), size)[0, 0].T, [expected] * size)


def test_resize_rounds_once_after_both_directions():
    images = np.array([[0, 1], [1, 1]], np.uint8)[None, None]
    np.testing.assert_array_equal(resize(images, 3)[0, 0], [[0, 0, 1], [0, 1, 1], [1, 1, 1]])  # middle: 0.75


def torch_resize(images: np.ndarray, size: int) -> np.ndarray:
    double = torch.from_numpy(images).double()
    return interpolate(double, (size, size), mode="bilinear", align_corners=False, antialias=False).numpy()


@pytest.mark.parametrize(
    "shape", [(600, 1, 28, 28), (20, 3, 8, 8), (5, 3, 96, 96), (2, 1, 33, 31), (3, 1, 1, 5)]
)
def test_resize_equals_torch_where_its_weights_are_exact(shape):
    images = noise(*shape)
    np.testing.assert_array_equal(resize(images, 32), torch_resize(images, 32).round().astype(np.uint8))


@pytest.mark.parametrize(("n", "size"), [(32, 28), (28, 17), (96, 31), (5, 7), (3, 100)])
def test_resize_equals_torch_but_for_the_float_error_of_its_ties(n, size):
    images = noise(40, 1, n, n)
    exact = torch_resize(images, size)
    found = resize(images, size)
    clear = np.abs(exact % 1 - 0.5) > 1e-9
    assert clear.mean() > 0.9
    np.testing.assert_array_equal(found[clear], exact.round()[clear])
    assert np.abs(found - exact).max() <= 0.5 + 1e-9


def test_resize_is_exact_beyond_the_range_of_int32():
    assert (resize(np.full((1, 1, 2, 3), 255, np.uint8), 1100) == 255).all()


def test_resize_leaves_images_of_the_right_size():
    images = noise(2, 3, 8, 8)
    assert resize(images, 8) is images


# --- channels ---


def test_prepare_tiles_grey():
    images = noise(3, 1, 8, 8)
    found = prepare(images, 3, 32)
    assert found.shape == (3, 3, 32, 32) and found.dtype == np.uint8
    np.testing.assert_array_equal(found, np.repeat(resize(images, 32), 3, axis=1))


def test_prepare_takes_the_plain_channel_mean_before_it_resizes():
    images = np.array([[[0, 255]], [[1, 255]], [[1, 254]]], np.uint8)[None]  # means 2/3 and 254 2/3
    np.testing.assert_array_equal(prepare(images[..., :1, :], 1, 4)[0, 0], [[1, 64, 192, 255]] * 4)
    colour = noise(600, 3, 8, 8)
    np.testing.assert_array_equal(prepare(colour, 1, 8)[:, 0], np.round(colour.astype(float).mean(1)))


def test_prepare_never_aliases_its_input():
    images = noise(2, 3, 8, 8)
    assert not np.shares_memory(prepare(images, 3, 8), images)


@pytest.mark.parametrize(("channels", "found"), [(2, 3), (3, 4)])
def test_prepare_knows_one_and_three_channels(channels, found):
    with pytest.raises(ValueError, match="must be 1 or 3"):
        prepare(noise(1, found, 4, 4), channels, 8)


# --- digits ---


def test_digits_are_scikit_learns_split_without_shuffling(tmp_path):
    digits = load_image_set("digits", tmp_path)  # the folder does not matter
    assert digits.train_images.shape == (1437, 1, 8, 8) and digits.test_images.shape == (360, 1, 8, 8)
    assert digits.train_labels[:5].tolist() == [0, 1, 2, 3, 4]
    # 0 0 5 13 9 1 0 0 times 255 / 16
    assert digits.train_images[0, 0, 0].tolist() == [0, 0, 80, 207, 143, 16, 0, 0]
    for labels in (digits.train_labels, digits.test_labels):
        assert labels.dtype == np.int64 and np.unique(labels).tolist() == list(range(10))
    assert digits.source == "scikit-learn digits"


def test_digits_are_golden():
    digits = load_image_set("digits")
    assert digits.sha256 == DIGITS_SHA256
    prepared = prepare(np.concatenate([digits.train_images, digits.test_images]), 3, 32)
    assert hashlib.sha256(prepared.tobytes()).hexdigest() == DIGITS_32_SHA256


# --- files read back ---


@pytest.mark.parametrize("dot", ["-", "."])
@pytest.mark.parametrize("gz", ["", ".gz"])
def test_idx_files_read_back(tmp_path, dot, gz):
    image_set = load_image_set("mnist", write_idx_set(tmp_path, dot, gz))
    assert_read_back(image_set, channels=1)
    assert image_set.source == "idx files"


@pytest.mark.parametrize("folder", ["fashion_mnist", "fashion-mnist", "FashionMNIST/raw", "data/fashion"])
def test_a_sub_folder_is_found_by_its_name(tmp_path, folder):
    write_idx_set(tmp_path / folder)
    write_parquet_set(tmp_path / "cifar10", column="img")
    assert_read_back(load_image_set("fashion_mnist", tmp_path), channels=1)


@pytest.mark.parametrize(
    ("name", "folder", "source"),
    [
        ("mnist", "mnist", "Parquet mnist"),
        ("cifar10", "cifar10/jpeg-transcoded", "Parquet cifar10/jpeg-transcoded"),
        ("cifar10", "CIFAR-10/plain_text", "Parquet cifar10"),
        ("stl10", "stl10/data", "Parquet stl10/data"),
        ("svhn", "cropped_digits", "Parquet svhn"),
        ("stl10", "data", "Parquet stl10"),
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_parquet_reads_back(tmp_path, name, folder, source, channels):
    write_parquet_set(tmp_path / folder, channels, IMAGE_SETS[name].column, shards=2)
    image_set = load_image_set(name, tmp_path)
    assert_read_back(image_set, channels)
    assert image_set.source == source
    assert load_image_set(name, tmp_path / folder).sha256 == image_set.sha256


def test_the_configuration_of_the_hub_is_preferred_to_its_siblings(tmp_path):
    write_parquet_set(tmp_path / "svhn" / "cropped_digits")
    write_parquet_set(tmp_path / "svhn" / "full_numbers", channels=1)
    assert_read_back(load_image_set("svhn", tmp_path), channels=3)


def test_the_hub_gives_the_same_set_as_its_files(tmp_path, monkeypatch):
    write_parquet_set(tmp_path, column="img")

    def load_dataset(path, name, split):
        assert (path, name) == ("uoft-cs/cifar10", None)
        features = datasets.Features({"img": datasets.Image(), "label": datasets.Value("int64")})
        tables = (pq.read_table(next(tmp_path.glob(f"{part}-*"))) for part in split)
        return [datasets.Dataset(found).cast(features) for found in tables]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    image_set = load_image_set("cifar10")
    assert_read_back(image_set, channels=3)
    assert image_set.source == "uoft-cs/cifar10"
    assert image_set.sha256 == load_image_set("cifar10", tmp_path).sha256


def test_sha256_tells_sets_apart_but_not_their_formats(tmp_path):
    idx = load_image_set("mnist", write_idx_set(tmp_path / "a"))
    parquet = load_image_set("mnist", write_parquet_set(tmp_path / "b", channels=1))
    kmnist = load_image_set("kmnist", tmp_path / "a")
    assert idx.sha256 == parquet.sha256 != kmnist.sha256
    idx.test_labels[0] += 1
    assert idx.sha256 == parquet.sha256  # taken once
    assert load_image_set("kmnist", tmp_path / "a").sha256 == kmnist.sha256


# --- bad input: folders ---


def test_unknown_name():
    refused("minst", None, "mnist, fashion_mnist", "'minst'")


def test_no_such_folder(tmp_path):
    refused("mnist", tmp_path / "none", str(tmp_path / "none"), "expected a folder", "--images")


def test_a_file_for_a_folder(tmp_path):
    (tmp_path / "file").touch()
    refused("mnist", tmp_path / "file", "found a file")


def test_no_images_of_the_set(tmp_path):
    write_idx_set(tmp_path / "mnist")
    refused("svhn", tmp_path, "images of svhn", "found none", "sub-folder svhn")


@pytest.mark.parametrize("folder", ["mnist", "mnist/raw"])
def test_a_folder_of_another_set(tmp_path, folder):
    refused("fashion_mnist", write_idx_set(tmp_path / folder), "images of fashion_mnist", "those of mnist")


def test_several_folders(tmp_path):
    for folder in ("jpeg-transcoded", "lossless-subset"):
        write_parquet_set(tmp_path / "cifar10" / folder, column="img")
    chosen = tmp_path / "cifar10" / "jpeg-transcoded"
    refused("cifar10", tmp_path, "cifar10/jpeg-transcoded and cifar10/lossless-subset", f"--images {chosen}")
    refused("cifar10", tmp_path, "expected one folder with all images of cifar10")
    assert_read_back(load_image_set("cifar10", chosen), channels=3)


def test_of_several_folders_the_whole_one_is_taken(tmp_path, monkeypatch):
    counts = {f"{split}_images": len(labels) for split, labels in LABELS.items()}
    for name in ("cifar10", "mnist"):
        monkeypatch.setitem(IMAGE_SETS, name, dataclasses.replace(IMAGE_SETS[name], **counts))
    colour, gray = tmp_path / "cifar10", tmp_path / "mnist"
    write_parquet_set(colour / "whole", column="img")
    write_parquet_set(colour / "half", column="img", shards=2)
    for path in (colour / "half").glob("*-00001-*"):
        path.unlink()
    damaged = write_parquet_set(colour / "damaged", column="img") / PARQUET
    damaged.write_bytes(damaged.read_bytes()[:-9])
    write_idx_set(gray / "whole", gz="")
    write_idx(write_idx_set(gray / "part") / "t10k-images-idx3-ubyte.gz", pixels()["test"][:9, 0])
    found = load_image_set("cifar10", tmp_path)
    assert_read_back(found, channels=3)
    assert found.source == "Parquet cifar10/whole"
    assert_read_back(load_image_set("mnist", tmp_path), channels=1)
    write_parquet_set(colour / "again", column="img")
    refused("cifar10", tmp_path, "one folder with images", "cifar10/again", "cifar10/whole", "--images")


def test_a_set_that_the_hub_does_not_have():
    refused("kmnist", None, "--images DIR")


def test_the_hub_cannot_be_reached(monkeypatch):
    def load_dataset(*args, **kwargs):
        raise ConnectionError("Couldn't reach\nthe Hub")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    refused("mnist", None, "ylecun/mnist", "Couldn't reach the Hub", "--images DIR")


def test_the_datasets_library_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    refused("mnist", None, "ModuleNotFoundError", "--images DIR")


# --- bad input: idx files ---


@pytest.mark.parametrize("name", ["train-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"])
def test_idx_file_missing(tmp_path, name):
    (write_idx_set(tmp_path) / name).unlink()
    refused("kmnist", tmp_path, str(tmp_path / name), "found none")


def damaged_idx(tmp_path: Path, change, gz: str = "") -> None:
    """Change the bytes of the training images' file, then expect a ZooError that names it."""
    path = write_idx_set(tmp_path, gz=gz) / f"train-images-idx3-ubyte{gz}"
    path.write_bytes(change(path.read_bytes()))
    refused("mnist", tmp_path, str(path), "fetch it again")


@pytest.mark.parametrize("keep", [0, 1, 5, 12, 200, -1])
def test_gzip_truncated(tmp_path, keep):
    damaged_idx(tmp_path, lambda data: data[:keep], gz=".gz")


def test_gzip_corrupt(tmp_path):
    damaged_idx(tmp_path, lambda data: data[:99] + bytes([data[99] ^ 255]) + data[100:], gz=".gz")


def test_gzip_is_none(tmp_path):
    damaged_idx(tmp_path, gzip.decompress, gz=".gz")


@pytest.mark.parametrize("keep", [0, 3, 4, 15, 16, 500, -1])
def test_idx_truncated(tmp_path, keep):
    damaged_idx(tmp_path, lambda data: data[:keep])


def test_idx_trailing_bytes(tmp_path):
    damaged_idx(tmp_path, lambda data: data + b"\0")


@pytest.mark.parametrize("magic", [0x0801, 0x0D03, 0x1F8B0800])
def test_idx_wrong_magic(tmp_path, magic):
    damaged_idx(tmp_path, lambda data: struct.pack(">I", magic) + data[4:])


def test_idx_without_images(tmp_path):
    damaged_idx(tmp_path, lambda data: struct.pack(">4I", 0x0803, 0, 2**32 - 1, 2**32 - 1))


def test_idx_shape_of_other_test_images(tmp_path):
    write_idx(write_idx_set(tmp_path) / "t10k-images-idx3-ubyte.gz", noise(20, 5, 6))
    refused("mnist", tmp_path, "1 x 6 x 6", "1 x 5 x 6")


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (LABELS["train"][:-1], ("40 labels", "found 39")),
        (np.where(np.arange(40) == 7, 10, LABELS["train"]), ("labels 0..9", "found 10 at 7")),
    ],
)
def test_idx_labels_do_not_fit(tmp_path, labels, words):
    path = write_idx_set(tmp_path) / "train-labels-idx1-ubyte.gz"
    write_idx(path, labels)
    refused("mnist", tmp_path, str(path), *words)


def test_a_class_is_missing_in_training(tmp_path):
    write_idx(
        write_idx_set(tmp_path) / "train-labels-idx1-ubyte.gz",
        np.where(LABELS["train"] > 7, 0, LABELS["train"]),
    )
    refused("mnist", tmp_path, str(tmp_path), "every class", "none of 8, 9")


# --- bad input: Parquet files ---


PARQUET = "train-00000-of-00001.parquet"


@pytest.mark.parametrize("keep", [0, 4, 300, -1])
def test_parquet_truncated(tmp_path, keep):
    path = write_parquet_set(tmp_path) / PARQUET
    path.write_bytes(path.read_bytes()[:keep])
    refused("svhn", tmp_path, str(path), "whole Parquet file")


def test_parquet_corrupt_anywhere_gives_a_zoo_error_or_loads(tmp_path):
    path = write_parquet_set(tmp_path) / PARQUET
    good = path.read_bytes()
    for i in np.random.default_rng(0).integers(0, len(good), 200):
        path.write_bytes(good[:i] + bytes([good[i] ^ 255]) + good[i + 1 :])
        try:
            load_image_set("svhn", tmp_path)
        except ZooError as error:
            assert "\n" not in str(error)


def test_parquet_split_missing(tmp_path):
    (write_parquet_set(tmp_path) / PARQUET).unlink()
    refused("svhn", tmp_path, "train-*.parquet", "found none")


def test_parquet_shard_missing(tmp_path):
    (write_parquet_set(tmp_path, shards=2) / "train-00001-of-00002.parquet").unlink()
    refused("svhn", tmp_path, "train-00000-of-00002.parquet", "found 1 train files")


def bad_table(tmp_path: Path, found: pa.Table, *words: str) -> None:
    path = write_parquet_set(tmp_path) / PARQUET
    pq.write_table(found, path)
    refused("svhn", tmp_path, str(path), *words)


PNG = encode(noise(3, 6, 6))


@pytest.mark.parametrize(
    "found",
    [
        table([PNG], [0], column="img"),
        table([PNG], [0]).drop_columns("label"),
        pa.table({"image": [PNG], "label": [0]}),
        pa.table({"image": [{"path": "a.png"}], "label": [0]}),
        pa.table({"image": [{"bytes": "text"}], "label": [0]}),
        pa.table({"image": [{"bytes": PNG}], "label": ["cat"]}),
    ],
)
def test_parquet_columns(tmp_path, found):
    bad_table(tmp_path, found, "`image` (struct of bytes and path) and `label` (integer)")


@pytest.mark.parametrize("label", [-1, 10, None])
def test_parquet_label(tmp_path, label):
    bad_table(tmp_path, table([PNG, PNG], [3, label]), "row 1", "label 0..9", f"found {label}")


def test_parquet_image_sizes_differ(tmp_path):
    bad_table(tmp_path, table([PNG, encode(noise(3, 6, 7))], [0, 1]), "row 1", "3 x 6 x 6", "3 x 6 x 7")


def test_parquet_without_examples(tmp_path):
    bad_table(tmp_path, table([], []), "at least one image")


@pytest.mark.parametrize(
    "blob", [None, b"", b"not an image", PNG[:40], PNG[:-30], PNG[:50] + b"\0\0" + PNG[52:]]
)
def test_parquet_image_cannot_be_decoded(tmp_path, blob):
    bad_table(tmp_path, table([PNG, blob], [0, 1]), "row 1", "8-bit grey or RGB image")


def test_parquet_image_of_another_mode(tmp_path):
    stream = io.BytesIO()
    Image.new("RGBA", (6, 6)).save(stream, "PNG")
    bad_table(tmp_path, table([stream.getvalue()], [0]), "8-bit grey or RGB image", "mode RGBA")
