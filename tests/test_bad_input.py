"""Bad input: one line that names what, what was expected and found, and what to do; exit code 2; nothing
written, nothing changed.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch

from builder.build import build
from builder.cli import main as nws_build
from builder.plan import Request
from builder.store import GENERATOR_VERSION
from builder.verify import main as nws_verify
from nws_dataset.errors import ZooError
from nws_dataset.files import sha256_file
from nws_dataset.format.manifest import FileEntry, Manifest
from nws_dataset.format.schema import INDEX_SCHEMA
from nws_dataset.format.shards import header, read_index, write_index
from nws_dataset.format.subsets import PRESETS
from nws_dataset.reading.snapshots import Snapshots
from nws_dataset.reading.zoo import Zoo
from test_build import write_idx

ROOT = Path(__file__).parent.parent
LINE = re.compile(r"Error: .+: expected .+, found .+; .+")
DEMO = ("--preset", "demo", "--models", "3", "--epochs", "1", "--device", "cpu")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("built") / "nws"
    build(Request("demo", 3, epochs=1), out, device="cpu", workers=1)
    return out


@pytest.fixture
def zoo(built: Path, tmp_path: Path) -> Path:
    """A copy of a complete zoo of three models."""
    return Path(shutil.copytree(built, tmp_path / "nws"))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A tiny image set in place of mnist."""
    write_idx(tmp_path / "images" / "mnist", seed=0)
    return tmp_path / "images"


def state(folder: Path) -> dict[Path, bytes | None]:
    """Every file and folder below a folder."""
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def one_line(code: object, out: str, err: str) -> str:
    assert code == 2, err
    assert out == ""
    (line,) = err.splitlines()
    return line


@pytest.fixture
def refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., str]:
    """Run a command that must be refused, in an empty folder; returns its line."""
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")

    def run(command: click.Command, *arguments: object) -> str:
        before = state(tmp_path)
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            command.main([str(argument) for argument in arguments])
        assert state(tmp_path) == before
        out, err = capfd.readouterr()
        # nws-verify tells what is right as it goes
        return one_line(ended.value.code, out if command is nws_build else "", err)

    return run


# Options


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (
            ["--preset", "big"],
            f"--preset: expected one of {', '.join(PRESETS)}, found big; choose",
        ),
        (
            ["--datasets", "imagenet"],
            "--datasets: expected image sets that preset demo draws (digits), found imagenet; choose",
        ),
        (
            ["--datasets", "mnist"],
            "--datasets: expected image sets that preset demo draws (digits), found mnist; choose",
        ),
        (
            ["--preset", "nws", "--datasets", "mnist,digits"],
            "(mnist, cifar10, svhn, stl10, fashion_mnist), found digits; choose",
        ),
        (
            ["--preset", "siren", "--datasets", "kmnist_10k"],
            "preset siren draws (mnist, fashion_mnist, cifar10, digits), found kmnist_10k; choose",
        ),
        (
            ["--preset", "kan", "--datasets", "cifar10"],
            "preset kan draws (mnist, fashion_mnist, kmnist, kmnist_10k, digits), found cifar10; choose",
        ),
        (
            ["--preset", "resnet", "--datasets", "digits"],
            "--datasets: expected image sets that preset resnet draws (cifar10), found digits; choose",
        ),
        (
            ["--datasets", ","],
            "--datasets: expected image sets that preset demo draws (digits), found none; choose",
        ),
        (["--seed", str(2**63)], f"--seed: expected an integer of 64 bits, found {2**63}; choose"),
        (["--upload"], "--upload: expected --repo-id ORG/NAME beside it, found none; name the repository"),
        (["--repo-id", "org/nws"], "--repo-id: expected --upload beside it, found none; add --upload"),
        (["--private"], "--private: expected --upload beside it, found none;"),
        (["--revision", "work"], "--revision: expected --upload beside it, found none;"),
        (["--tag", "v1"], "--tag: expected --upload beside it, found none;"),
        (
            ["--upload", "--repo-id", "nws"],
            "--repo-id: expected ORG/NAME, found 'nws'; put your user name or organisation before it",
        ),
        (["--upload", "--repo-id", "a/b/c"], "--repo-id: expected ORG/NAME, found 'a/b/c';"),
        (["--upload", "--repo-id", "org/n ws"], "--repo-id: expected ORG/NAME, found 'org/n ws';"),
        (
            ["--upload", "--repo-id", "org/nws", "--tag", "v 1"],
            "--tag: expected a name for git, found 'v 1';",
        ),
        (
            ["--upload", "--repo-id", "org/nws", "--revision", "a..b"],
            "--revision: expected a name for git, found 'a..b';",
        ),
    ],
)
@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_options(refused: Callable[..., str], arguments: list[str], told: str, dry: list[str]) -> None:
    line = refused(nws_build, *arguments, *dry)
    assert LINE.fullmatch(line)
    assert told in line


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--images", "nowhere"], "nowhere: expected a folder, found nothing; correct --images"),
        (["--images", __file__], f"{__file__}: expected a folder, found a file; correct --images"),
        (
            ["--tf32", "--device", "cpu"],
            "--tf32: expected a GPU and the fast backend, found a CPU; leave it out",
        ),
        (["--backend", "torch", "--tf32"], "--tf32: expected a GPU and the fast backend, found "),
        (["--device", "mps"], "--device mps: expected a fast step for it, found none; use --device cpu"),
        (["--train-images", "15"], "expected training images of 10 classes, found "),
    ],
)
def test_options_about_images(refused: Callable[..., str], arguments: list[str], told: str) -> None:
    line = refused(nws_build, *arguments)
    assert LINE.fullmatch(line)
    assert told in line


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--models", "0"], "Error: Invalid value for '--models': 0 is not in the range x>=1."),
        (["--epochs", "x"], "Error: Invalid value for '--epochs': 'x' is not a valid integer range."),
        (
            ["--device", "tpu"],
            "Error: Invalid value for '--device': 'tpu' is not one of 'auto', 'cpu', 'cuda', 'mps'.",
        ),
        (
            ["--backend", "jax"],
            "Error: Invalid value for '--backend': 'jax' is not one of 'auto', 'fast', 'torch'.",
        ),
        (["--bogus"], "Error: No such option"),
    ],
)
def test_options_that_click_refuses(refused: Callable[..., str], arguments: list[str], told: str) -> None:
    assert refused(nws_build, *arguments).startswith(told)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu(refused: Callable[..., str]) -> None:
    assert refused(nws_build, "--device", "cuda") == (
        "Error: --device cuda: expected a GPU that torch can use, found none; use --device cpu"
    )


# Images


def fixed(images: Path, out: str | Path = "out/nws") -> list[object]:
    return [
        "--preset",
        "fixed",
        "--datasets",
        "mnist",
        "--models",
        1,
        "--epochs",
        1,
        "--images",
        images,
        "--out",
        out,
        "--device",
        "cpu",
    ]


def test_a_folder_without_images(refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    line = refused(nws_build, *fixed(tmp_path / "empty"))
    assert LINE.fullmatch(line)
    assert (
        f"{tmp_path / 'empty'}: expected images of mnist (idx files, or train-*.parquet and "
        "test-*.parquet), found none;"
    ) in line


def test_a_truncated_idx_file(refused: Callable[..., str], images: Path) -> None:
    path = images / "mnist" / "train-images-idx3-ubyte.gz"
    whole = gzip.decompress(path.read_bytes())
    path.write_bytes(gzip.compress(whole[:-100]))
    line = refused(nws_build, *fixed(images))
    assert LINE.fullmatch(line)
    assert f"{path}: expected {len(whole)} bytes as its header says, found {len(whole) - 100};" in line
    path.write_bytes(gzip.compress(whole)[:-20])
    assert f"{path}: expected a whole file" in refused(nws_build, *fixed(images))


def test_an_idx_file_that_is_not_there(refused: Callable[..., str], images: Path) -> None:
    path = images / "mnist" / "t10k-labels-idx1-ubyte.gz"
    path.unlink()
    assert f"{path}: expected this file, found none;" in refused(nws_build, *fixed(images))


@pytest.mark.parametrize("preset", ["siren", "kan_inr"])
def test_networks_of_images_need_whole_sets(refused: Callable[..., str], images: Path, preset: str) -> None:
    line = refused(
        nws_build,
        "--preset",
        preset,
        "--datasets",
        "mnist",
        "--models",
        2,
        "--images",
        images,
        "--out",
        "out",
    )
    assert LINE.fullmatch(line)
    assert "mnist: expected 60000 + 10000 images: networks are numbered by them, found 40 + 20;" in line


def test_a_part_of_a_set_needs_its_images(refused: Callable[..., str], tmp_path: Path) -> None:
    images = write_idx(tmp_path / "images" / "kmnist", seed=0).parent
    line = refused(
        nws_build, "--preset", "kan", "--datasets", "kmnist_10k", "--images", images, "--out", "out"
    )
    assert LINE.fullmatch(line) and "expected 10000" in line and "found 20" in line


# The folder


def test_other_files_in_the_folder(refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"meow")
    line = refused(nws_build, *DEMO, "--out", tmp_path / "photos")
    assert line == (
        f"Error: {tmp_path / 'photos'}: expected a zoo, or an empty or new folder, found other "
        "files; choose another --out"
    )


@pytest.mark.parametrize("out", ["cat.jpg", "cat.jpg/nws", "/proc/nws"])
def test_a_path_that_cannot_be_written(refused: Callable[..., str], tmp_path: Path, out: str) -> None:
    (tmp_path / "cat.jpg").write_bytes(b"meow")
    line = refused(nws_build, *DEMO, "--out", tmp_path / out)
    assert LINE.fullmatch(line)
    assert f"{tmp_path / out}: expected a folder that can be written, found " in line
    assert line.endswith("; choose another --out")


def limited(size: int, *arguments: object) -> subprocess.CompletedProcess[str]:
    """nws-build where no file may grow beyond a size, as on a full disk."""
    command = [sys.executable, "-m", "builder.cli", *map(str, arguments)]
    limit = (size, size)
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit),
        check=False,
    )


@pytest.mark.parametrize(
    "size",
    [1000, 100_000, 1_200_000],
    ids=["card", "images for the workers", "a worker's snapshots"],
)
def test_a_full_disk(tmp_path: Path, size: int) -> None:
    out = tmp_path / "out" / "nws"
    finished = limited(
        size, "--models", 8, "--epochs", 4, "--train-images", 300, "--device", "cpu", "--out", out
    )
    # where it is slow, progress comes before
    told = [line for line in finished.stderr.splitlines() if not line.startswith("demo: ")]
    line = one_line(finished.returncode, finished.stdout, "\n".join(told))
    assert LINE.fullmatch(line)
    assert line.startswith(f"Error: {out}") and "free space" in line
    left = [path for path in out.rglob("*") if path.is_file()]
    assert not [path for path in left if path.name.endswith((".tmp", ".npy"))]
    if size < 1_000_000:
        assert not out.parent.exists()


def test_a_build_goes_on_after_a_full_disk(tmp_path: Path, built: Path) -> None:
    out = tmp_path / "nws"
    assert limited(500_000, *DEMO, "--out", out).returncode == 2
    build(Request("demo", 3, epochs=1), out, device="cpu", workers=1)
    assert {path.relative_to(out): content for path, content in state(out).items()} == {
        path.relative_to(built): content for path, content in state(built).items()
    }


# A zoo that was built with something else


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (
            ["--seed", "1"],
            "expected seed of subset demo 1, found 0 in nws.json; use another --out, or the settings",
        ),
        (["--epochs", "2"], "expected epochs of subset demo 2, found 1 in nws.json;"),
        (["--train-images", "300"], "expected train_images of subset demo 300, found None in nws.json;"),
    ],
)
def test_other_settings(refused: Callable[..., str], zoo: Path, arguments: list[str], told: str) -> None:
    assert f"{zoo}: {told}" in refused(nws_build, *DEMO, "--out", zoo, *arguments)


def test_other_images(refused: Callable[..., str], images: Path, tmp_path: Path) -> None:
    out = tmp_path / "fixed"
    build(Request("fixed", 1, ("mnist",), epochs=1), out, images=images, device="cpu", workers=1)
    write_idx(tmp_path / "others" / "mnist", seed=1)
    line = refused(nws_build, *fixed(tmp_path / "others", out))
    assert re.fullmatch(
        rf"Error: {out}: expected image set mnist of subset fixed idx files \w{{12}}, found idx files "
        rf"\w{{12}} in nws.json; .*",
        line,
    )


def test_another_generator(refused: Callable[..., str], zoo: Path) -> None:
    change_manifest(zoo, lambda data: data.update(generator_version="0"))
    assert f"{zoo}: expected generator version {GENERATOR_VERSION}, found 0 in nws.json" in refused(
        nws_build, *DEMO, "--out", zoo
    )


def test_templates_that_lead_elsewhere(refused: Callable[..., str], zoo: Path) -> None:
    change_manifest(
        zoo, lambda data: data.update(snapshots_path="../../{subset}/{split}-{architecture}-{block}.parquet")
    )
    assert f"{zoo}: expected snapshots path snapshots/" in refused(nws_build, *DEMO, "--out", zoo)


# A damaged zoo


def change_manifest(zoo: Path, change: Callable[[dict], object]) -> None:  # type: ignore[type-arg]
    data = json.loads((zoo / "nws.json").read_text())
    change(data)
    (zoo / "nws.json").write_text(json.dumps(data))


def reseal(zoo: Path) -> None:
    """Write sizes and sha256 of the files as they are now into nws.json."""
    files = Manifest.read(zoo).files
    entries = {name: FileEntry((zoo / name).stat().st_size, sha256_file(zoo / name)) for name in files}
    change_manifest(
        zoo, lambda data: data.update(files={name: vars(entry) for name, entry in entries.items()})
    )


def first_snapshot(zoo: Path) -> dict[str, object]:
    return Snapshots(Zoo(zoo).index)[0]


def test_a_shard_cut_short(refused: Callable[..., str], zoo: Path) -> None:
    snapshot = first_snapshot(zoo)
    shard = zoo / str(snapshot["file"])
    size = shard.stat().st_size
    shard.write_bytes(shard.read_bytes()[: size // 2])
    told = f"{shard}: expected {size} bytes, found {size // 2} bytes; fetch or build the file again"
    with pytest.raises(ZooError, match=f"^{re.escape(told)}$"):
        Zoo(zoo).row(snapshot)
    assert refused(nws_verify, zoo) == f"Error: {told}"
    line = refused(nws_build, *DEMO, "--out", zoo)
    assert LINE.fullmatch(line) and f"{shard}: expected a complete Parquet file" in line


def test_a_lost_shard(refused: Callable[..., str], zoo: Path) -> None:
    shard = zoo / str(first_snapshot(zoo)["file"])
    shard.unlink()
    assert f"{shard}: expected a shard that nws.json lists, found no file;" in refused(
        nws_build, *DEMO, "--out", zoo
    )
    assert f"{shard}: expected" in refused(nws_verify, zoo)


@pytest.mark.parametrize("text", ["", "{", "null", "[]", '{"format_version": 1}', '{"format_version": 3}'])
@pytest.mark.parametrize("command", [nws_build, nws_verify], ids=["build", "verify"])
def test_a_damaged_manifest(
    refused: Callable[..., str], zoo: Path, text: str, command: click.Command
) -> None:
    (zoo / "nws.json").write_text(text)
    line = refused(command, *((*DEMO, "--out", zoo) if command is nws_build else (zoo,)))
    assert LINE.fullmatch(line) and str(zoo / "nws.json") in line


@pytest.mark.parametrize("outside", ["../secret.parquet", "/etc/passwd", "snapshots/../../secret.parquet"])
def test_an_index_that_points_outside(refused: Callable[..., str], zoo: Path, outside: str) -> None:
    path = zoo / Zoo(zoo).manifest.index_files()[0]
    index = read_index(path)
    column = INDEX_SCHEMA.get_field_index("file")
    write_index(path, index.set_column(column, INDEX_SCHEMA.field("file"), pa.array([outside] * len(index))))
    reseal(zoo)
    told = f"{zoo}: expected a relative path below this folder, found '{outside}'"
    with pytest.raises(ZooError, match=re.escape(told)):
        Zoo(zoo).row(first_snapshot(zoo))
    assert told in refused(nws_verify, zoo)
    assert told in refused(nws_build, *DEMO, "--out", zoo)


def test_a_manifest_that_points_outside(refused: Callable[..., str], zoo: Path) -> None:
    secret = zoo.parent / "secret"
    secret.write_bytes(b"secret")
    entry = {"size": 6, "sha256": sha256_file(secret)}
    change_manifest(zoo, lambda data: data["files"].update({"snapshots/demo/../../../secret": entry}))
    assert "expected a relative path below this folder" in refused(nws_verify, zoo)
    assert "expected a relative path below this folder" in refused(nws_build, *DEMO, "--out", zoo)


@pytest.mark.parametrize(
    ("architecture", "told"),
    [
        ({"kind": "transformer"}, 'its fields and "kind", one of cnn, siren, kan, resnet, found'),
        ({"kind": "siren", "width_hidden": 10**12}, "Architecture.width_hidden: expected 1 to 65536, found"),
        ({"kind": "resnet", "width_conv": 4096}, "an architecture: expected at most 4294967296 weights"),
        ({"kind": "siren", "width_hidden": 60_000}, "expected the safetensors header of siren2x60000"),
        ({"kind": "kan", "width_hidden": 20_000}, "that of "),
    ],
)
def test_an_architecture_that_nothing_is_made_for(
    refused: Callable[..., str], zoo: Path, architecture: dict[str, object], told: str
) -> None:
    """Refused before there is room for its weights, which would be up to 17 GB."""
    for path in Zoo(zoo).manifest.index_files():
        index = read_index(zoo / path)
        column = INDEX_SCHEMA.get_field_index("architecture_json")
        texts = pa.array([json.dumps(architecture)] * len(index))
        write_index(zoo / path, index.set_column(column, INDEX_SCHEMA.field(column), texts))
    reseal(zoo)
    opened = Zoo(zoo)
    snapshots = opened.filter(model_id=opened.filter()[0]["model_id"])
    limit = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**29, limit[1]))
    try:
        for read in (opened.weights, opened.networks, opened.images, lambda s: opened.network(s[0])):
            with pytest.raises(ZooError, match=re.escape(told)):
                read(snapshots)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limit)
    assert told in refused(nws_verify, zoo)


def test_a_value_of_another_architecture(refused: Callable[..., str], zoo: Path) -> None:
    """Even one whose sha256 is right wherever it stands."""
    snapshot = first_snapshot(zoo)
    shard, offset = zoo / str(snapshot["file"]), int(str(snapshot["offset"]))
    content = shard.read_bytes()
    right = Zoo(zoo).architecture(snapshot).id
    wrong = right.replace("conv3x", "conv4x").replace("conv5x", "conv4x")
    head = header(Zoo(zoo).architecture(snapshot))
    shard.write_bytes(
        content[:offset] + head.replace(right.encode(), wrong.encode()) + content[offset + len(head) :]
    )
    path = zoo / Zoo(zoo).manifest.index_files()[0]
    digest = digest_of(shard, offset, int(str(snapshot["length"])))
    index = read_index(path)
    digests = pc.if_else(
        pc.and_(pc.equal(index["file"], snapshot["file"]), pc.equal(index["offset"], offset)),
        digest,
        index["sha256"],
    )
    write_index(
        path, index.set_column(INDEX_SCHEMA.get_field_index("sha256"), INDEX_SCHEMA.field("sha256"), digests)
    )
    reseal(zoo)
    told = (
        f"{shard} at byte {offset}: expected the safetensors header of {right}, found that of {wrong}; "
        "fetch or build the file again"
    )
    with pytest.raises(ZooError, match=re.escape(told)):
        Zoo(zoo, check=True).row(first_snapshot(zoo))
    assert refused(nws_verify, zoo) == f"Error: {told}"


def digest_of(shard: Path, offset: int, length: int) -> str:
    return hashlib.sha256(shard.read_bytes()[offset : offset + length]).hexdigest()


@pytest.mark.parametrize(
    "module",
    ["cli", "verify", *(f"experiments.{name}" for name in ("leaderboard", "recipes", "accuracies"))],
)
def test_a_current_folder_that_is_gone(tmp_path: Path, module: str) -> None:
    """Torch cannot even be loaded there."""
    gone = tmp_path / "gone"
    gone.mkdir()
    module = f"nws_dataset.{module}" if "." in module else f"builder.{module}"
    finished = subprocess.run(
        [
            sys.executable,
            "-c",
            f"import os; os.rmdir({str(gone)!r}); from {module} import main; main()",
            "nws",
        ],
        capture_output=True,
        text=True,
        cwd=gone,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    line = one_line(finished.returncode, finished.stdout, finished.stderr)
    assert line.startswith("Error: the current folder: expected one that exists, found FileNotFoundError")
