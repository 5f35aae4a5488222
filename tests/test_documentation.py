"""The pages are true: generated parts are fresh, examples run, commands parse, links lead somewhere, pictures
are well formed. All of it without MkDocs.
"""

from __future__ import annotations

import importlib
import re
import shlex
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import click
import pytest
import yaml

import generated
import nws_dataset
from nws_dataset import cli
from testing.planned_zoo import make_planned_zoo
from testing.zoo_factory import make_zoo

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = {
    str(path.relative_to(ROOT)): path.read_text()
    for path in sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("loading_script/**/*.md")])
}
EXTRAS = metadata.metadata("nws-dataset").get_all("Provides-Extra", [])
FENCE = re.compile(  # why it is not run here, language, code
    r"^(?:<!-- (not run: [^\n]+|run by [^\n]+) -->\n)?```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL
)
MOST_NOT_RUN = 5


def blocks(page: str, language: str) -> list[str]:
    """The blocks of a page that are to run."""
    return [code for reason, name, code in FENCE.findall(PAGES[page]) if name == language and not reason]


def pages_with(language: str) -> list[str]:
    return [page for page in PAGES if blocks(page, language)]


def test_generated_parts_are_fresh() -> None:
    command = ["-m", "cogapp", "--check", "-I", "scripts", "@scripts/generated.txt"]
    result = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, (
        f"{result.stdout}{result.stderr}\nwrite them anew: cog -r -I scripts @scripts/generated.txt"
    )


def test_every_page_with_a_generated_part_is_listed() -> None:
    listed = (ROOT / "scripts" / "generated.txt").read_text().splitlines()[1:]
    assert sorted(listed) == sorted(page for page, text in PAGES.items() if "[[[cog" in text)


def test_the_readme_is_a_front_page() -> None:
    assert len(README.splitlines()) <= 150


# Examples


@pytest.fixture(scope="module")
def zoos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What examples read: a small zoo, and one of networks that represent images."""
    folder = tmp_path_factory.mktemp("zoos")
    make_zoo(folder / "nws")
    make_planned_zoo(folder / "sirens", "siren", 16, keep=lambda model: model.recipe.dataset == "mnist")
    return folder


@pytest.mark.parametrize("page", pages_with("python"))
def test_examples_run(page: str, zoos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks of a page, in order and in one namespace, as a reader runs them."""
    for zoo in zoos.iterdir():
        (tmp_path / zoo.name).symlink_to(zoo)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for number, code in enumerate(blocks(page, "python"), start=1):
        if "torch_geometric" in code:  # scripts/test-others has it
            pytest.importorskip("torch_geometric")
        exec(compile(code, f"<{page}, block {number}>", "exec", dont_inherit=True), namespace)


# Commands


@pytest.mark.parametrize("page", pages_with("sh"))
def test_commands_parse(page: str, zoos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours take their options and arguments; scripts are there; packages have the extras."""
    for name in ("ZOO", "PATH", "small_cnn", "fixed", "siren_mnist"):  # placeholders, and zoos built before
        (tmp_path / name).symlink_to(zoos / "nws")
    (tmp_path / "nws").symlink_to(zoos / "nws")
    for method in re.findall(r'^```python\n("""(\w+\.py):.*?)^```$', PAGES[page], re.MULTILINE | re.DOTALL):
        (tmp_path / method[1]).write_text(method[0])
    monkeypatch.chdir(tmp_path)
    for code in blocks(page, "sh"):
        for line in code.replace("\\\n", " ").splitlines():
            check_command(shlex.split(line, comments=True))


def check_arguments(command: str, arguments: list[str]) -> None:
    with generated.load(command).make_context(command, list(arguments)):
        pass


def check_command(words: list[str]) -> None:
    """Fail if a command is none of ours, or does not take its arguments."""
    match words:
        case []:
            pass
        case ["nws", name, *arguments] if name in cli.COMMANDS:
            check_arguments(f"nws {name}", arguments)
        case [name, *arguments] if name in generated.SCRIPTS:
            check_arguments(name, arguments)
        case ["python" | "python3", script, *arguments]:
            source = (ROOT / script).read_text()
            where = re.search(r"^ *from (\S+) import main$", source, re.MULTILINE)
            main = importlib.import_module(where[1] if where else Path(script).stem).main
            if isinstance(main, click.Command):
                with main.make_context(script, list(arguments)):
                    pass
        case [script] if script.startswith("./scripts/"):
            assert (ROOT / script).stat().st_mode & 0o100, f"{script} cannot be run"
        case ["source", ".venv/bin/activate"]:
            pass
        case ["pip", "install", package]:
            name, _, extra = package.partition("[")
            assert name in (".", "nws-dataset") and extra.rstrip("]") in ("", *EXTRAS), package
        case _:
            raise AssertionError(f"no command of ours: {shlex.join(words)}")


def test_few_blocks_are_not_run() -> None:
    reasons = [reason for text in PAGES.values() for reason, _, _ in FENCE.findall(text) if reason]
    elsewhere = [reason.removeprefix("run by ") for reason in reasons if reason.startswith("run by ")]
    assert all((ROOT / path).exists() for path in elsewhere)
    assert len(reasons) - len(elsewhere) <= MOST_NOT_RUN, reasons
    languages = {name for text in PAGES.values() for _, name, _ in FENCE.findall(text)}
    assert languages <= {"python", "sh", "text", "bibtex"}


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_shell_blocks_are_shell() -> None:
    code = "\n".join(code for text in PAGES.values() for _, name, code in FENCE.findall(text) if name == "sh")
    subprocess.run(["bash", "-n"], input=code, text=True, check=True)


# Reference


def test_every_public_name_and_command_is_documented_once() -> None:
    names = [name for page in generated.REFERENCE.glob("*.md") for name in generated.documented(page)]
    assert sorted(names) == sorted(name for name in nws_dataset.__all__ if not name.startswith("__"))
    installed = {entry.name: entry.value for entry in metadata.distribution("nws-dataset").entry_points}
    assert installed == generated.SCRIPTS


# Links and pictures


def headings(markdown: str) -> set[str]:
    """The anchors of a page, as MkDocs and repositories' web pages make them."""
    titles = re.findall(r"^#+ (.+)$", FENCE.sub("", markdown), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title).strip().lower().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    text, wrong = FENCE.sub("", PAGES[page]), []
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]+))?\)", text):
        if target.startswith("https://"):
            continue
        path = (ROOT / page).parent / target if target else ROOT / page
        if not path.exists():
            wrong.append(target)
        elif anchor and not anchor.startswith("nws_dataset."):  # those are mkdocstrings'
            known = headings(PAGES[str(path.resolve().relative_to(ROOT))])
            wrong += [] if anchor in known else [f"{target}#{anchor}"]
    assert wrong == []


def test_every_page_of_the_site_is_in_its_navigation() -> None:
    def pages(items: Any) -> set[str]:
        if isinstance(items, str):
            return {items}
        values = items.values() if isinstance(items, dict) else items
        return {page for value in values for page in pages(value)}

    class Loader(yaml.SafeLoader):
        """Of mkdocs.yml, whose tags are MkDocs' own."""

    found = pages(yaml.load((ROOT / "mkdocs.yml").read_text(), Loader)["nav"])
    written = {page.removeprefix("docs/") for page in PAGES if page.startswith("docs/")}
    assert written <= found


@pytest.mark.parametrize("picture", sorted(ROOT.glob("docs/**/*.svg")), ids=lambda path: path.name)
def test_pictures_are_well_formed(picture: Path) -> None:
    assert ElementTree.parse(picture).getroot().tag.endswith("svg")


def test_the_file_tree_covers_every_folder() -> None:
    ignored = {line.strip("/\n") for line in (ROOT / ".gitignore").read_text().splitlines()}
    folders = {
        path.name for path in ROOT.iterdir() if not path.name.startswith(".") and any(path.rglob("*.py"))
    }
    assert folders - ignored <= set(generated.FOLDERS)


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
