"""scripts/install installs what is asked for, or nothing where it is there; scripts/demo ends with its page.

No package is installed: the environment's programs write down how they are called.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROGRAM = '#!/bin/sh\necho "$(basename "$0") $*" >> "$LOG"\n'
COMMANDS = ("nws-build", "nws-evaluate-meta-classifier", "nws-evaluate-predictors", "nws-leaderboard")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with an environment of programs that do nothing."""
    root = tmp_path / "a check out"
    programs = root / "venv" / "bin"
    shutil.copytree(ROOT / "scripts", root / "scripts")
    programs.mkdir(parents=True)
    for name in ("pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, root)
    for name in ("python", *COMMANDS):
        (programs / name).write_text(PROGRAM)
        (programs / name).chmod(0o755)
    return root


def run(checkout: Path, *command: str) -> tuple[str, list[str]]:
    """What a script prints, and how it called the environment's programs."""
    log = checkout / "log"
    log.write_text("")
    environment = {**os.environ, "VENV": "venv", "LOG": str(log)}
    told = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, check=True)
    return told.stdout, log.read_text().splitlines()


def test_an_extra_is_installed_once_and_a_larger_one_serves_as_well(checkout: Path) -> None:
    installed = {"all", "dev"}
    for extra, installs in (("all", True), ("all", False), ("dev", True), ("dev", False), ("all", False)):
        told, calls = run(checkout, "scripts/install", *([] if extra == "dev" else [extra]))
        assert any(call.endswith(f"--editable .[{extra}]") for call in calls) == bool(calls) == installs
        assert ("Installed into venv in " in told) == installs
    for extras in ("dev,docs", "dev,docs,browser", "dev,docs", "dev", "all"):
        assert bool(run(checkout, "scripts/install", extras)[1]) == (extras not in installed)
        installed |= {extras}
    (checkout / "constraints.txt").write_text("numpy==1.0\n")
    assert run(checkout, "scripts/install", "all")[1]


def test_the_demo_says_how_long_its_steps_take_and_ends_with_its_page(checkout: Path) -> None:
    told, calls = run(checkout, "scripts/demo")
    assert "[all]" in " ".join(calls) and "[dev]" not in " ".join(calls)
    assert [call.split()[0] for call in calls if call.startswith("nws-")] == list(COMMANDS)
    assert told.count(" (about ") == told.count("took ") == 5
    page = (checkout / "nws-results" / "leaderboard.html").as_uri()
    assert told.splitlines()[-1] == page
