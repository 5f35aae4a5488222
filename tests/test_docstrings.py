"""Every name that `nws_dataset` exports says what it takes, gives and raises, and has an example."""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

import nws_dataset
from nws_dataset.networks.base import BaseArchitecture

# what the author of a kind of network writes, and its base class documents
OF_KINDS = {*vars(BaseArchitecture)} - {"id", "to_json"}
EXPORTED = {name: getattr(nws_dataset, name) for name in nws_dataset.__all__ if not name.startswith("__")}
CLASSES = [name for name, value in EXPORTED.items() if inspect.isclass(value)]


@dataclass(frozen=True)
class Function:
    """A function of the package."""

    code: Callable[..., Any]
    called: bool = True  # False for a property


def members(cls: type) -> Iterator[tuple[str, Function]]:
    """The public methods and properties of a class that come from this package."""
    for name in dir(cls):
        found = inspect.getattr_static(cls, name)
        if isinstance(found, property):
            function = Function(found.fget, called=False)  # type: ignore[arg-type]
        elif isinstance(found, functools.cached_property):
            function = Function(found.func, called=False)
        else:
            function = Function(getattr(found, "__func__", found))
        ours = inspect.isfunction(function.code) and function.code.__module__.startswith("nws_dataset")
        of_kind = issubclass(cls, BaseArchitecture) and name in OF_KINDS
        if ours and not of_kind and not name.startswith("_"):
            yield name, function


FUNCTIONS = {name: Function(inspect.unwrap(EXPORTED[name])) for name in EXPORTED if name not in CLASSES}
FUNCTIONS |= {f"{cls}.{name}": function for cls in CLASSES for name, function in members(EXPORTED[cls])}


def section(documented: Any, title: str) -> str:
    """The lines of a section of a docstring, "" if there is none."""
    text = (inspect.getdoc(documented) or "") + "\n"
    found = re.search(rf"^{title}:\n((?: .*\n|\n)+)", text, re.MULTILINE)
    return textwrap.dedent(found[1]) if found else ""


def undocumented(parameters: list[str], documented: Any) -> list[str]:
    """Those of the parameters that a docstring's Args leave out."""
    documented_names = re.findall(r"^(\w+):", section(documented, "Args"), re.MULTILINE)
    return [name for name in parameters if name not in documented_names]


def parameters_of(code: Callable[..., Any]) -> list[str]:
    return [name for name in inspect.signature(code).parameters if name not in ("self", "cls")]


def raises(code: Callable[..., Any]) -> bool:
    """Whether there is a `raise` in it; what it calls may raise more."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(code)))
    return any(isinstance(node, ast.Raise) for node in ast.walk(tree))


def has_a_sentence(documented: Any) -> bool:
    return bool(re.search(r"\.(\s|$)", inspect.getdoc(documented) or ""))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_says_what_it_takes_gives_and_raises(name: str) -> None:
    code = FUNCTIONS[name].code
    assert has_a_sentence(code)
    assert undocumented(parameters_of(code), code) == []
    if FUNCTIONS[name].called and inspect.signature(code).return_annotation not in (None, "None"):
        assert section(code, "Returns") or section(code, "Yields")
    if raises(code):
        assert section(code, "Raises")


@pytest.mark.parametrize("name", CLASSES)
def test_a_class_says_what_it_takes_and_raises(name: str) -> None:
    cls = EXPORTED[name]
    assert has_a_sentence(cls)
    missing = parameters_of(cls)
    for base in cls.__mro__[:-1]:  # a parameter may be documented by the class that takes it
        missing = undocumented(missing, base)
    if dataclasses.is_dataclass(cls):  # or, of a field, by a comment beside or above it
        source = inspect.getsource(cls)
        commented = r"^    {0}: .*  # |^    # .*\n    {0}: "
        missing = [field for field in missing if not re.search(commented.format(field), source, re.MULTILINE)]
    assert missing == []
    made_by = vars(cls).get("__post_init__") if dataclasses.is_dataclass(cls) else vars(cls).get("__init__")
    if made_by is not None and raises(made_by):
        assert section(cls, "Raises")


@pytest.mark.parametrize("name", EXPORTED)
def test_there_is_an_example(name: str) -> None:
    """Of each function and class; a public method has its own, or another example of its class calls it."""
    value = EXPORTED[name]
    if name not in CLASSES:
        assert section(value, "Example")
        return
    methods = {method: function.code for method, function in members(value) if function.called}
    examples = "".join(
        section(documented, "Example") for documented in (*value.__mro__[:-1], *methods.values())
    )
    assert examples
    missing = [
        method
        for method, code in methods.items()
        if not section(code, "Example") and f".{method}(" not in examples
    ]
    assert missing == []
