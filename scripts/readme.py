"""Help, public names and the file tree in README.md, generated from the code.

`cog -r -I scripts README.md` writes them.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import nws_dataset
from nws_dataset import cli

ROOT = Path(__file__).parent.parent
# installed command -> "module:attribute"
SCRIPTS = dict(re.findall(r'^(nws\S*) = "(\S+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE))
# in reading order, those of `nws` too
COMMANDS = {
    "nws": SCRIPTS["nws"],
    **{f"nws {name}": entry.target for name, entry in cli.COMMANDS.items()},
    **SCRIPTS,
}
FOLDERS = {
    "nws_dataset": None,  # None: the package's docstring
    "builder": None,
    "cards": None,
    "loading_script": 'A card of `hf://...` files, so that `load_dataset("nws")` works in a folder without '
    "code",
    "scripts": "Programs: benchmarks, checks of a GPU, torture, the README's parts",
    "testing": None,
    "tests": "A file a module; what crosses modules has a file of its own",
    "docs": "Pictures",
    ".ci": "What CI runs",
}  # in reading order
COLUMN = 34  # where annotations start
UNLISTED = ("__init__.py", "py.typed")


def help_of(command: str) -> str:
    """The `--help` text of one of COMMANDS, 100 columns wide; of two names for one, the first has it."""
    target = COMMANDS[command]
    first = next(name for name, other in COMMANDS.items() if other == target)
    if first != command:
        return f"The same as `{first}`.\n"
    main = cli.Entry(target, "", "").load()
    with main.make_context(
        command, [], resilient_parsing=True, terminal_width=100, max_content_width=100
    ) as context:
        return "```text\n" + main.get_help(context) + "\n```\n"


def public_names() -> str:
    """A table of what `nws_dataset` exports, each name with the first sentence of its docstring."""
    names = [name for name in nws_dataset.__all__ if not name.startswith("__")]
    lines = [
        f"| `{name}` | {_sentence(inspect.getdoc(getattr(nws_dataset, name)) or '')} |" for name in names
    ]
    return "\n".join(["| name | what it is |", "|---|---|", *lines]) + "\n"


def file_tree() -> str:
    """Every folder and file of FOLDERS with the first sentence of its docstring (or shell comment)."""
    lines = [line for folder, purpose in FOLDERS.items() for line in _entries(ROOT / folder, purpose)]
    return "```text\n" + "\n".join(lines) + "\n```\n"


def _entries(folder: Path, purpose: str | None, depth: int = 0) -> Iterator[str]:
    files = [path for path in folder.glob("*") if path.is_file() and path.name not in UNLISTED]
    below = [line for path in sorted(folder.glob("*/")) for line in _entries(path, None, depth + 1)]
    if folder.name != "__pycache__" and (files or below):
        yield _line(f"{folder.name}/", purpose or _purpose(folder / "__init__.py"), depth)
        yield from (_line(path.name, _purpose(path), depth + 1) for path in sorted(files))
        yield from below


def _line(name: str, purpose: str, depth: int) -> str:
    return f"{'    ' * depth + name:<{COLUMN}}{purpose}".rstrip()


def _purpose(path: Path) -> str:
    """The first sentence of a file's description, or nothing."""
    text = ""
    if path.suffix == ".py" and path.exists():
        text = ast.get_docstring(ast.parse(path.read_text())) or ""
    elif not path.suffix and path.read_bytes().startswith(b"#!"):
        text = path.read_text().splitlines()[1].removeprefix("# ")
    return _sentence(text)


def _sentence(text: str) -> str:
    """The first sentence of a docstring, without its full stop."""
    return re.split(r"(?<!et al)\. ", " ".join(text.split("\n\n")[0].split()))[0].rstrip(".")
