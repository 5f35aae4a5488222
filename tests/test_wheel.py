"""The wheel alone, in an environment and a folder where the checkout cannot be found, builds a zoo and learns
from it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from configparser import ConfigParser
from pathlib import Path

import pytest

import generated

ROOT = Path(__file__).parent.parent
PACKAGES = ("nws_dataset", "builder", "cards")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with the wheel, which borrows this one's libraries but not its editable
    installation.
    """
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder)
    python = folder / "bin" / "python"
    install = ["install", "--quiet", "--no-deps", "--no-index", "--disable-pip-version-check", str(wheel)]
    subprocess.run([sys.executable, "-m", "pip", "--python", str(python), *install], check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    # their own .pth files are not read again
    libraries = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (site / "libraries.pth").write_text("\n".join(libraries))
    return folder


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("empty")


def run(environment: Path, folder: Path, program: str, *arguments: str) -> str:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    command = [str(environment / "bin" / program), *arguments]
    result = subprocess.run(
        command, cwd=folder, env={**kept, "HF_HOME": str(folder / "hf")}, capture_output=True, text=True
    )
    assert result.returncode == 0, f"{program} {' '.join(arguments)}\n{result.stdout}\n{result.stderr}"
    return result.stdout


def test_contents(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        (entry_points,) = [name for name in archive.namelist() if name.endswith("entry_points.txt")]
        parser = ConfigParser()
        parser.read_string(archive.read(entry_points).decode())
    expected = {
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file()
    }
    assert names == {name for name in expected if "__pycache__" not in name}
    assert dict(parser["console_scripts"]) == generated.SCRIPTS


def test_the_wheel_is_what_is_imported(environment: Path, empty: Path) -> None:
    code = (
        "import importlib, json; print(json.dumps([importlib.import_module(name).__file__ for name in "
        f"{PACKAGES}]))"
    )
    files = json.loads(run(environment, empty, "python", "-c", code))
    assert all(Path(file).is_relative_to(environment) for file in files), files


def test_builds_a_zoo_and_learns_from_it(environment: Path, empty: Path) -> None:
    run(environment, empty, "nws-build", "--preset", "demo", "--models", "8", "--epochs", "2", "--out", "nws")
    run(environment, empty, "nws", "verify", "nws")
    assert "8 models, 24 snapshots" in run(environment, empty, "nws", "info", "nws")
    run(
        environment,
        empty,
        "nws-evaluate-meta-classifier",
        "nws",
        "--seeds",
        "1",
        "--folds",
        "2",
        "--epochs",
        "1",
        "--slice-length",
        "500",
        "--jobs",
        "1",
        "--out",
        "results",
    )
    run(environment, empty, "nws-evaluate-predictors", "nws", "--seeds", "1", "--out", "results")
    run(
        environment,
        empty,
        "nws-leaderboard",
        "nws",
        "--results",
        "results",
        "--out",
        "results/leaderboard.html",
    )
    assert {path.suffix for path in (empty / "results").rglob("*") if path.is_file()} >= {".json", ".md"}
