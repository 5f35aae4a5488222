"""Parts of Markdown pages that are generated from the code: names, help, columns, subsets, files.

`cog -r -I scripts @scripts/generated.txt` writes them anew; that file lists the pages.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path

import click
import jinja2
import pyarrow as pa

import nws_dataset
from builder import card
from builder.image_sets import IMAGE_SETS
from nws_dataset import cli
from nws_dataset.format.manifest import Manifest, SubsetEntry
from nws_dataset.format.schema import COLUMNS, INDEX_SCHEMA, METADATA_SCHEMA, SNAPSHOTS_SCHEMA
from nws_dataset.format.subsets import IMPORTED, PRESETS, SUBSETS
from nws_dataset.networks import KINDS

ROOT = Path(__file__).parent.parent
REFERENCE = ROOT / "docs" / "reference"
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
    "scripts": "Programs: benchmarks, checks of a GPU, torture, the site and its generated parts",
    "testing": None,
    "tests": "A file a module; what crosses modules has a file of its own",
    "examples": "Notebooks with their outputs, pages of the site",
    "docs": "The site's pages and pictures (mkdocs.yml), and results",
    ".ci": "What CI runs",
}  # in reading order
WIDTH = 84  # of a command's help, in characters
TREE_COLUMN = 34  # where annotations start
UNLISTED = ("__init__.py", "py.typed")


def load(command: str) -> click.Command:
    """One of COMMANDS."""
    return cli.Entry(COMMANDS[command], "", "").load()


def help_of(command: str) -> str:
    """The `--help` text of one of COMMANDS, as wide as a page of the site has room for.

    Of two names for one command, the first has it.
    """
    first = next(name for name, target in COMMANDS.items() if target == COMMANDS[command])
    if first != command:
        return f"The same as `{first}`.\n"
    main = load(command)
    with main.make_context(
        command, [], resilient_parsing=True, terminal_width=WIDTH, max_content_width=WIDTH
    ) as context:
        return "```text\n" + main.get_help(context) + "\n```\n"


def public_names() -> str:
    """A table of what `nws_dataset` exports: a link to its docstring, and the first sentence of it."""
    pages = {name: page.name for page in sorted(REFERENCE.glob("*.md")) for name in documented(page)}
    names = [name for name in nws_dataset.__all__ if not name.startswith("__")]
    lines = [
        f"| [`{name}`]({pages[name]}#nws_dataset.{name}) | "
        f"{_sentence(inspect.getdoc(getattr(nws_dataset, name)) or '')} |"
        for name in names
    ]
    return "\n".join(["| name | what it is |", "|---|---|", *lines]) + "\n"


def documented(page: Path) -> list[str]:
    """The names of `nws_dataset` whose docstrings a page shows."""
    return re.findall(r"^::: nws_dataset\.(\w+)$", page.read_text(), re.MULTILINE)


def columns() -> str:
    """Tables of all columns: of a snapshot, of the index alone, and of the snapshots files alone."""
    parts = {
        "What a snapshot is": METADATA_SCHEMA.names,
        "Where its weights are (the index)": _beyond(INDEX_SCHEMA),
        "Its weights (snapshots files)": _beyond(SNAPSHOTS_SCHEMA),
    }
    fields = {field.name: field for schema in (INDEX_SCHEMA, SNAPSHOTS_SCHEMA) for field in schema}
    sections = []
    for title, names in parts.items():
        lines = [
            f"| `{name}` | {_type(fields[name].type)} | {'yes' if fields[name].nullable else ''} "
            f"| {COLUMNS[name]} |"
            for name in names
        ]
        heads = ["| column | type | may be null | meaning |", "|---|---|---|---|"]
        sections.append("\n".join([f"## {title}\n", *heads, *lines]) + "\n")
    return "\n".join(sections)


def _beyond(schema: pa.Schema) -> list[str]:
    return [name for name in schema.names if name not in METADATA_SCHEMA.names]


def _type(column: pa.DataType) -> str:
    return f"list of {_type(column.value_type)}" if pa.types.is_list(column) else str(column)


def subsets() -> str:
    """Tables of what a build draws, with every distribution, and of what is imported."""
    lines = [
        f"| [`{name}`](#{name}) | {', '.join(f'`{p}`' for p, parts in PRESETS.items() if name in parts)} "
        f"| {subset.num_models:,} | {subset.num_snapshots} | {subset.description} |"
        for name, subset in SUBSETS.items()
    ]
    imported = [
        f"| `{name}` | `nws import {subset.release}` | {subset.description} "
        f"| [{paper}]({address}) | {subset.licence} |"
        for name, subset in IMPORTED.items()
        for paper, address in [subset.source.split(", ")]
    ]
    requested = [f"`{name}`" for name, subset in SUBSETS.items() if subset.on_request]
    drawn = [
        f"### {name}\n\n{subset.description[0].upper()}{subset.description[1:]}.\n\n"
        "| field | drawn from |\n|---|---|\n"
        + "".join(f"| {field} | {values} |\n" for field, values in card.recipe_table(name))
        for name, subset in SUBSETS.items()
    ]
    notes = [
        f"### {name}\n\n" + "".join(f"- {note}\n" for note in subset.notes)
        for name, subset in IMPORTED.items()
    ]
    return "\n".join(
        [
            "| subset | preset | models | snapshots of each | what they are |",
            "|---|---|---:|---:|---|",
            *lines,
            "\n`siren_nfn` is `siren` with `--convention nfn`. "
            f"The numbers of {', '.join(requested)} count networks of `digits`, which are trained only with "
            "`--datasets digits`; where networks represent images, each set has room for 70,000.\n",
            "| imported subset | by | what it is | source | licence |",
            "|---|---|---|---|---|",
            *imported,
            "\n## What recipes are drawn from\n",
            "A field that is not listed has [its default](../reference/networks.md#nws_dataset.Recipe). "
            "Commas separate values that are equally likely; `28 (mnist)` is the value for networks of that "
            "image set. Where a subset joins two families, such as `demo`, a field may be of one of them.\n",
            *drawn,
            "## How imported subsets differ\n",
            *notes,
        ]
    )


def datasheet() -> str:
    """The datasheet of a zoo with all subsets that a build draws."""
    of_images = [name for name, subset in SUBSETS.items() if subset.of_images]
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("cards", ""),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    text = environment.get_template("datasheet.md.j2").render(
        manifest=Manifest("", {name: SubsetEntry(0, 0) for name in SUBSETS}, {}),
        presets=SUBSETS,
        built=list(SUBSETS),
        of_images=of_images,
        classifiers=[name for name in SUBSETS if name not in of_images],
        kinds=list(KINDS),
        summaries={},
        image_terms={name: image_set.terms for name, image_set in IMAGE_SETS.items()},
    )
    return re.sub(r"^###", "##", text.removeprefix("## Datasheet\n\n"), flags=re.MULTILINE) + "\n"


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
    return f"{'    ' * depth + name:<{TREE_COLUMN}}{purpose}".rstrip()


def _purpose(path: Path) -> str:
    """The first sentence of a file's description, or nothing."""
    text = ""
    if path.suffix == ".py" and path.exists():
        text = ast.get_docstring(ast.parse(path.read_text())) or ""
    elif path.suffix == ".md":
        text = _heading(path.read_text())
    elif path.suffix == ".ipynb":
        text = _heading("".join(json.loads(path.read_text())["cells"][0]["source"]))
    elif not path.suffix and path.read_bytes().startswith(b"#!"):
        text = path.read_text().splitlines()[1].removeprefix("# ")
    return _sentence(text)


def _heading(markdown: str) -> str:
    """The first heading, after a front matter if there is one."""
    found = re.search(r"(?:\A|\n\n)# (.*)", markdown)
    return found[1] if found else ""


def _sentence(text: str) -> str:
    """The first sentence of a docstring, without its full stop."""
    return re.split(r"(?<!et al)(?<!e\.g)\. ", " ".join(text.split("\n\n")[0].split()))[0].rstrip(".")
