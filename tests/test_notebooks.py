"""The notebooks of examples/: two run on a tiny zoo; all have outputs, and nothing of a machine.

scripts/test-site runs all of them, on the demo's zoo.
"""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import nbformat
import pytest
from click.testing import CliRunner

import notebooks
from testing.zoo_factory import make_zoo

NAMES = notebooks.notebooks()
QUICK = ("graph_network", "streaming")  # they need no image, and no more than a few networks
MOST_BYTES = 400_000
MACHINE = re.compile(r"/(?:home|root|tmp|Users|usr|opt|var|mnt|work)/|[A-Z]:\\\\")
TITLE, LAST = re.compile(r"# \S"), "## What to try next"


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


@pytest.mark.parametrize("name", QUICK)
def test_runs(name: str, tmp_path: Path) -> None:
    make_zoo(tmp_path / "nws")
    (tmp_path / "examples").mkdir()
    found = notebooks.execute(name, tmp_path / "examples")
    assert [cell.execution_count for cell in code_cells(found)] == [*range(1, len(code_cells(found)) + 1)]
    assert [
        output for cell in code_cells(found) for output in cell.outputs if output.get("name") == "stderr"
    ] == []


@pytest.mark.parametrize("name", NAMES)
class TestIsFitForTheSite:
    @pytest.fixture
    def notebook(self, name: str) -> nbformat.NotebookNode:
        return nbformat.read(notebooks.FOLDER / f"{name}.ipynb", as_version=4)

    def test_is_valid_and_small(self, name: str, notebook: nbformat.NotebookNode) -> None:
        nbformat.validate(notebook)
        assert notebook.metadata == notebooks.METADATA
        assert (notebooks.FOLDER / f"{name}.ipynb").stat().st_size <= MOST_BYTES

    def test_was_executed_once_from_its_beginning(self, notebook: nbformat.NotebookNode) -> None:
        for number, cell in enumerate(code_cells(notebook), 1):
            ast.parse(cell.source)
            assert cell.execution_count == number
            for output in cell.outputs:
                assert output.output_type != "error" and output.get("name") != "stderr", output

    def test_says_where_its_zoo_comes_from(self, notebook: nbformat.NotebookNode) -> None:
        code = "\n".join(cell.source for cell in code_cells(notebook))
        (first, *_) = re.findall(r'.*"\.\./nws.*', code)
        assert first.endswith("# if there is none: ./scripts/demo") or "nws_build(" in code

    def test_says_nothing_of_the_machine(self, notebook: nbformat.NotebookNode) -> None:
        for cell in code_cells(notebook):
            for output in cell.outputs:
                output.get("data", {}).pop("image/png", None)
        assert MACHINE.findall(json.dumps(notebook)) == []

    def test_reads_as_a_page(self, notebook: nbformat.NotebookNode) -> None:
        text = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
        headings = [line for source in text for line in source.splitlines() if line.startswith("#")]
        assert TITLE.match(headings[0]) and all(line.startswith("## ") for line in headings[1:])
        assert headings[-1] == LAST
        links = [target for source in text for target in re.findall(r"\]\(([^)#\s]+)", source)]
        assert [target for target in links if not (notebooks.FOLDER / target).exists()] == []
        pictures = [
            cell
            for cell in code_cells(notebook)
            if any("image/png" in output.get("data", {}) for output in cell.outputs)
        ]
        assert pictures and all(len(cell.metadata.get("alt", "")) > 20 for cell in pictures)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of two notebooks, of which the first fails."""
    for name, source in {"bad": "print('first')\nassert False, 'not so'", "good": "print(6 * 7)"}.items():
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
        nbformat.write(notebook, tmp_path / f"{name}.ipynb")
    monkeypatch.setattr(notebooks, "FOLDER", tmp_path)
    return tmp_path


def test_outputs_are_written_and_failures_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    run, execute = CliRunner().invoke, notebooks.execute
    monkeypatch.setattr(notebooks, "execute", lambda name: execute(name, folder))
    assert run(notebooks.main, ["--check", "good"]).exit_code == 0
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before

    result = run(notebooks.main, [])
    assert result.exit_code == 1 and "not so" in result.stderr
    assert (folder / "bad.ipynb").read_bytes() == before["bad.ipynb"]
    written = nbformat.read(folder / "good.ipynb", as_version=4)
    assert written.cells[0].outputs[0].text == "42\n" and written.metadata == notebooks.METADATA


def test_an_unknown_notebook_is_refused(folder: Path) -> None:
    result = CliRunner().invoke(notebooks.main, ["good", "other"])
    assert result.exit_code == 2
    assert "NAME: expected one of bad, good, found 'other'; leave it out for all of them" in result.stderr
