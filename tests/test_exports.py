"""The public names of nws_dataset: listed once, documented, and imported only when they are used."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys

import pytest

import nws_dataset

HEAVY = (
    "torch",
    "datasets",
    "huggingface_hub",
    "sklearn",
    "lightgbm",
    "scipy",
    "matplotlib",
    "pandas",
    "pyarrow",
    "numpy",
)


def run(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout.strip()


def test_type_checkers_see_what_all_lists() -> None:
    assert nws_dataset.__file__
    with open(nws_dataset.__file__) as source:
        tree = ast.parse(source.read())
    (guarded,) = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {alias.asname for node in guarded.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert seen | {"__version__"} == set(nws_dataset.__all__)
    assert len(set(nws_dataset.__all__)) == len(nws_dataset.__all__)
    assert set(nws_dataset.__all__) <= set(dir(nws_dataset))


@pytest.mark.parametrize("name", sorted(set(nws_dataset.__all__) - {"__version__"}))
def test_public_names_exist_and_say_what_they_are(name: str) -> None:
    public = getattr(nws_dataset, name)
    assert public.__module__.startswith("nws_dataset.")
    assert inspect.getdoc(public)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = nws_dataset.no_such_name


def test_import_is_light() -> None:
    assert run(f"import sys, nws_dataset; print([name for name in {HEAVY} if name in sys.modules])") == "[]"


def test_reading_needs_no_torch() -> None:
    assert (
        run(
            "import sys, nws_dataset; nws_dataset.Zoo, nws_dataset.load_dataset; print('torch' in "
            "sys.modules)"
        )
        == "False"
    )


def test_a_missing_extra_is_named() -> None:
    code = (
        "import sys, nws_dataset\nsys.modules['torch'] = None\ntry: nws_dataset.Network\nexcept "
        "ImportError as error: print(error)"
    )
    assert run(code) == "nws_dataset.Network needs torch: pip install 'nws-dataset[baselines]'"
