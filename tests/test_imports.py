"""Who imports whom, also inside functions: the project's rooms, what each never needs, and no circle."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = "nws_dataset", "builder", "cards"
EVALUATION = ["nws_dataset.evaluation", "nws_dataset.pages", "nws_dataset.experiments"]
NEVER = {
    "researchers' code never needs the builder": (
        "nws_dataset",
        ["builder", "cards", "scripts", "testing", "tests"],
    ),
    "templates need no code": ("cards", ["builder", "nws_dataset", "scripts", "testing", "tests"]),
    "the product never needs its scripts": ("builder", ["scripts", "testing", "tests"]),
    "the format knows nothing that is built on it": (
        "nws_dataset.format",
        ["nws_dataset.reading", "nws_dataset.views", "nws_dataset.baselines", *EVALUATION],
    ),
    "views take arrays": (
        "nws_dataset.views",
        ["nws_dataset.reading", "nws_dataset.baselines", *EVALUATION],
    ),
    "what a zoo holds is said without learning from it": (
        "nws_dataset.info",
        ["nws_dataset.baselines", *EVALUATION],
    ),
    "reading a zoo needs no baseline": ("nws_dataset.reading", ["nws_dataset.baselines", *EVALUATION]),
    "looking into a zoo needs no method": ("nws_dataset.explorer", ["nws_dataset.baselines", *EVALUATION]),
    "estimators know no zoo": ("nws_dataset.baselines", ["nws_dataset.reading", *EVALUATION]),
    "the engine knows no experiment and no page": (
        "nws_dataset.evaluation",
        ["nws_dataset.experiments", "nws_dataset.pages", "matplotlib", "jinja2", "click"],
    ),
    "a page runs no experiment": (
        "nws_dataset.pages",
        ["nws_dataset.experiments", "nws_dataset.evaluation.run", "nws_dataset.evaluation.models"],
    ),
    "building needs no experiment": ("builder", [*EVALUATION, "nws_dataset.baselines"]),
    "the product never needs its benchmark": (
        "builder",
        ["builder.benchmark"],
    ),
    "the store knows no training": ("builder.store", ["builder.training", "builder.forecasting"]),
    "a card knows no importer": ("builder.card", ["builder.importers", "builder.training"]),
    "an import trains nothing": ("builder.importers", ["builder.training", "builder.forecasting"]),
    "an export trains nothing, and knows no import": (
        "builder.exporters",
        ["builder.training", "builder.forecasting", "builder.store", "builder.importers"],
    ),
    "a layout knows neither who reads nor who writes it": (
        "builder.releases",
        ["builder.importers", "builder.exporters", "builder.store", "nws_dataset.reading"],
    ),
    "a plan knows no training": (
        "builder.plan",
        ["builder.training", "builder.store", "builder.images", "builder.forecasting"],
    ),
    "training knows no forecast, no cluster and no build": (
        "builder.training",
        ["builder.forecasting", "builder.cluster", "builder.build", "builder.importers", "builder.publish"],
    ),
    "publishing trains nothing": ("builder.publish", ["builder.training", "builder.build"]),
    "a GPU's code needs none of the CPU's": ("builder.training.gpu", ["builder.training.cpu", "numba"]),
    "the CPU's code needs none of a GPU's": ("builder.training.cpu", ["builder.training.gpu", "triton"]),
    "plots need torch nowhere": ("builder.gallery", ["builder.training", "torch"]),
}  # what a reader may rely on: (who, whom it never imports)
ONLY = {
    "ray": ["builder.cluster", "nws_dataset.evaluation.run"],
    "triton": ["builder.training.gpu"],
    "numba": ["builder.training.cpu"],
    "lightgbm": ["nws_dataset.baselines.boosting"],
}  # library -> the only modules that import it


def modules() -> dict[str, Path]:
    """Dotted name -> file of every module of the packages."""
    found = {}
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imported(path: Path) -> Iterator[str]:
    """What a module imports, of ours and of others: anywhere in it, and for the type checker alone."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{path}: imports name their package"
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield name if name in MODULES else node.module


def is_in(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


IMPORTED = {module: set(imported(path)) - {module} for module, path in MODULES.items()}


@pytest.mark.parametrize("rule", NEVER)
def test_never(rule: str) -> None:
    who, whom = NEVER[rule]
    members = [module for module in MODULES if is_in(module, who)]
    assert members, f"{who} is gone"
    broken = [
        f"{module} imports {name}"
        for module in members
        for name in sorted(IMPORTED[module])
        for package in whom
        if is_in(name, package) and not is_in(module, package)
    ]
    assert not broken, rule


@pytest.mark.parametrize("library", ONLY)
def test_only(library: str) -> None:
    users = [module for module, names in IMPORTED.items() if any(is_in(name, library) for name in names)]
    assert users, f"nobody imports {library}"
    for module in users:
        assert any(is_in(module, package) for package in ONLY[library]), f"{module} imports {library}"


def test_no_circle() -> None:
    # `nws_dataset` itself imports what its public names ask for, when they are asked for
    graph = {m: {n for n in names if n in MODULES and n != "nws_dataset"} for m, names in IMPORTED.items()}
    del graph["nws_dataset"]
    tuple(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError


def test_no_circle_of_rooms() -> None:
    def room(module: str) -> str:
        return ".".join(module.split(".")[:2])

    graph: dict[str, set[str]] = {}
    for module, names in IMPORTED.items():
        if module != "nws_dataset":
            others = {room(name) for name in names if name in MODULES and name != "nws_dataset"}
            graph.setdefault(room(module), set()).update(others - {room(module)})
    tuple(graphlib.TopologicalSorter(graph).static_order())


RESEARCH = ("datasets", "sklearn", "lightgbm", "matplotlib", "pandas")


@pytest.mark.parametrize(
    ("module", "blocked"),
    [
        ("nws_dataset.cli", ("rich", "torch", "numpy", "pyarrow", "huggingface_hub", *RESEARCH)),
        ("nws_dataset.console", ("rich", "torch", *RESEARCH)),
        ("nws_dataset.reading.zoo", ("huggingface_hub", "rich", "torch", *RESEARCH)),
        ("nws_dataset.reading.load", ("rich", "torch", *RESEARCH)),
        ("nws_dataset.views.graph", ("torch", *RESEARCH)),
        ("nws_dataset.views.layer_tuples", ("torch", *RESEARCH)),
        ("nws_dataset.views.tokens", ("torch", *RESEARCH)),
        ("nws_dataset.views.statistics", ("torch", *RESEARCH)),
        ("nws_dataset.explorer.page", ("torch", *RESEARCH)),
        ("nws_dataset.explorer.command", ("rich", "torch", *RESEARCH)),
        ("nws_dataset.networks.network", RESEARCH),
        ("builder.training.train", RESEARCH),
        ("builder.checks", RESEARCH),
        ("builder.verify", ("torch", *RESEARCH)),
        ("builder.cli", ("torch", *RESEARCH)),
        ("builder.commands", ("rich", "torch", *RESEARCH)),
        ("builder.plan", ("torch", *RESEARCH)),
        ("builder.rules", ("torch", *RESEARCH)),
        ("builder.forecasting.forecast", ("torch", *RESEARCH)),
        ("builder.card", ("torch", *RESEARCH)),
        ("builder.importers.importing", ("torch", *RESEARCH)),
        ("builder.exporters.exporting", ("torch", *RESEARCH)),
    ],
)
def test_imports_without(module: str, blocked: tuple[str, ...]) -> None:
    code = f"import sys\nfor name in {blocked}: sys.modules[name] = None\nimport {module}"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
