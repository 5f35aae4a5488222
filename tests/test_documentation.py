"""The README is true: its generated parts are fresh, its examples run, its links lead somewhere, its pictures
are well formed.
"""

from __future__ import annotations

import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml

import readme
from testing.zoo_factory import make_zoo

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
EXAMPLES = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


def test_generated_parts_are_fresh() -> None:
    command = [sys.executable, "-m", "cogapp", "--check", "-I", "scripts", "README.md"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, (
        f"{result.stdout}{result.stderr}\nwrite them anew: cog -r -I scripts README.md"
    )


@pytest.mark.parametrize("code", EXAMPLES, ids=[f"example{i}" for i in range(1, len(EXAMPLES) + 1)])
def test_examples_run(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if "torch_geometric" in code:  # scripts/test-others has it
        pytest.importorskip("torch_geometric")
    make_zoo(tmp_path / "nws")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    exec(compile(code, "<README.md>", "exec"), {})


def test_every_command_is_documented() -> None:
    installed = {entry.name: entry.value for entry in metadata.distribution("nws-dataset").entry_points}
    assert installed == readme.SCRIPTS
    assert all(f"### {command}\n" in README for command in readme.COMMANDS)
    for command in re.findall(r"^\./(\S+)", README, re.MULTILINE):
        assert (ROOT / command).stat().st_mode & 0o100, f"{command} cannot be run"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)", page.read_text())
    missing = [
        target
        for target in targets
        if not target.startswith("https://") and not (page.parent / target).exists()
    ]
    assert missing == []


def test_the_file_tree_covers_every_folder() -> None:
    ignored = {line.strip("/\n") for line in (ROOT / ".gitignore").read_text().splitlines()}
    folders = {
        path.name for path in ROOT.iterdir() if not path.name.startswith(".") and any(path.rglob("*.py"))
    }
    assert folders - ignored <= set(readme.FOLDERS)


@pytest.mark.parametrize("picture", sorted(ROOT.glob("docs/*.svg")), ids=lambda path: path.name)
def test_pictures_are_well_formed(picture: Path) -> None:
    assert ElementTree.parse(picture).getroot().tag.endswith("svg")


def test_the_citation_file_names_the_papers_that_the_readme_names() -> None:
    references = yaml.safe_load((ROOT / "CITATION.cff").read_text())["references"]
    entries = re.findall(r"^@\w+\{(.*?)^\}", README, re.MULTILINE | re.DOTALL)
    for reference, entry in zip(references, entries, strict=True):
        authors = " and ".join(
            f"{author['family-names']}, {author['given-names']}" for author in reference["authors"]
        )
        (identifier,) = reference["identifiers"]
        assert f"{{{reference['title']}}}" in entry
        assert f"{{{authors}}}" in entry.replace('{\\"o}', "ö")
        assert f"{{{reference['year']}}}" in entry
        assert identifier["value"].removeprefix("arXiv:") in entry


def test_commit_hooks_check_what_the_test_command_checks() -> None:
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    lines = (ROOT / "scripts" / "test").read_text().splitlines()
    checks = [line for line in lines if line.startswith(("ruff", "mypy", "cog"))]
    assert [hook["entry"] for hook in repository["hooks"]] == checks
