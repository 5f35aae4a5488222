"""Who may import whom, and what a room needs: researchers' code never needs the builder, training needs
neither datasets nor lightgbm.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAY_IMPORT = {
    "nws_dataset": {"nws_dataset"},
    "builder": {"builder", "nws_dataset", "cards"},
    "cards": set(),
}  # package -> those of the project that it may import
OURS = {*MAY_IMPORT, "scripts", "tests"}


def imported(tree: ast.AST) -> Iterator[str]:
    """Top-level packages that a module imports, anywhere in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports name their package"
            yield (node.module or "").partition(".")[0]


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_import_direction(package: str) -> None:
    for path in (ROOT / package).rglob("*.py"):
        found = set(imported(ast.parse(path.read_text()))) & OURS
        assert found <= MAY_IMPORT[package], (
            f"{path.relative_to(ROOT)} imports {sorted(found - MAY_IMPORT[package])}"
        )


@pytest.mark.parametrize(
    ("module", "blocked"),
    [
        ("nws_dataset.zoo", ("torch", "datasets", "sklearn", "lightgbm", "matplotlib", "pandas")),
        ("nws_dataset.load", ("torch", "datasets", "sklearn", "lightgbm", "matplotlib", "pandas")),
        ("nws_dataset.views", ("torch", "datasets", "sklearn", "lightgbm", "matplotlib", "pandas")),
        ("nws_dataset.statistics", ("torch", "datasets", "sklearn", "lightgbm", "matplotlib", "pandas")),
        ("nws_dataset.network", ("datasets", "sklearn", "lightgbm", "matplotlib", "pandas")),
        ("builder.train", ("datasets", "sklearn", "lightgbm", "matplotlib", "pandas")),
        ("builder.checks", ("datasets", "sklearn", "lightgbm", "matplotlib", "pandas")),
        ("builder.verify", ("torch", "datasets", "sklearn", "lightgbm", "matplotlib", "pandas")),
        ("builder.cli", ("torch", "datasets", "sklearn", "lightgbm", "matplotlib", "pandas")),
    ],
)
def test_imports_without(module: str, blocked: tuple[str, ...]) -> None:
    code = (
        f"import sys, importlib\nfor name in {blocked}: sys.modules[name] = "
        f"None\nimportlib.import_module({module!r})"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
