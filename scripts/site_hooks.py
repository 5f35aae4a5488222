"""What MkDocs is told in addition to mkdocs.yml: pages that lie outside docs/, and links between all of them.

A page keeps the links that lead somewhere on a repository's web page, relative to its file; on the site they
are made to lead to the same file's page.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import griffe
import nbconvert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "LICENSE": "licence.txt",
    "builder/LOG.md": "why/log.md",
}  # a file of the repository -> where the site has it
NOTEBOOKS = {f"examples/{path.name}": f"examples/{path.stem}.md" for path in ROOT.glob("examples/*.ipynb")}
OUTSIDE = PAGES | NOTEBOOKS
# nbconvert's own, but a picture has the alternative text of its cell's metadata
TEMPLATE = """{%- extends 'markdown/index.md.j2' -%}
{% block data_png %}
![{{ cell.metadata.alt or 'png' }}]({{ output.metadata.filenames['image/png'] | path2url }})
{% endblock data_png %}"""
# of tables by pandas, in place of which they get the theme's style
PANDAS_STYLE, PANDAS_TABLE = (
    re.compile("<style scoped>.*?</style>\n", re.DOTALL),
    '<table border="1" class="dataframe">',
)
LINK = re.compile(r"(\]\()([^)#\s:]+)([)#])")  # of Markdown, to a file


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Leave out the notebooks that are not there, and a page that only a server shows."""
    config.nav = list(_present(config.nav or []))
    config.theme.static_templates.discard("404.html")  # a server's, with addresses from its root
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files outside docs/; notebooks as Markdown with the outputs that they were saved with."""
    for source, target in OUTSIDE.items():
        if source in NOTEBOOKS:
            text, pictures = _markdown(ROOT / source)
            files.append(File.generated(config, target, content=text))
            for name, content in pictures.items():
                files.append(File.generated(config, f"examples/{name}", content=content))
        else:
            files.append(File.generated(config, target, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Page, **kwargs: Any) -> str:
    """Turn links between files of the repository into links between their pages. A page that has a tab of its
    own has no navigation beside it.
    """
    target = page.file.src_uri
    if target in ("index.md", "start.md"):
        page.meta.setdefault("hide", ["navigation"])
    sources = {uri: path for path, uri in OUTSIDE.items()}
    folder = posixpath.dirname(sources.get(target, f"docs/{target}"))

    def moved(found: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(folder, found[2]))
        to = OUTSIDE.get(path, path.removeprefix("docs/") if (ROOT / path).exists() else None)
        if to is None:
            return found[0]  # a picture of a notebook, or nothing: MkDocs says so
        return f"{found[1]}{posixpath.relpath(to, posixpath.dirname(target) or '.')}{found[3]}"

    return LINK.sub(moved, markdown)


class ExamplesAreCode(griffe.Extension):
    """Reads the section "Example:" of docstrings as Google's "Examples:", whose prompts are code."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)


def _present(items: list[Any]) -> Iterator[Any]:
    for item in items:
        if isinstance(item, dict):
            ((title, value),) = item.items()
            if isinstance(value, list):
                below = list(_present(value))
                if below:
                    yield {title: below}
                continue
            path = value
        else:
            path = item
        if not path.startswith("examples/") or path in NOTEBOOKS.values():
            yield item


def _markdown(notebook: Path) -> tuple[str, dict[str, bytes]]:
    """A notebook's text and outputs as Markdown, and its pictures by name."""
    exporter = nbconvert.MarkdownExporter(raw_template=TEMPLATE)
    resources = {"output_files_dir": f"{notebook.stem}_files"}
    text, found = exporter.from_filename(os.fspath(notebook), resources=resources)
    text = PANDAS_STYLE.sub("", text).replace(PANDAS_TABLE, "<table>")
    return text, found["outputs"]
