"""What the built site holds: every name and notebook, nothing from other servers, search without a server.

Only `pytest -m site` runs it; scripts/test-site does, after it has built the site.
"""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import nws_dataset

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = pytest.mark.site

ROOT = Path(__file__).parent.parent
SITE = ROOT / "build" / "site"  # as mkdocs.yml says
FOREIGN = re.compile(r"^(?:\w+:)?//")


class Loaded(HTMLParser):
    """The addresses of what a page loads: not of what it links to."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = ("src", "srcset", "poster", "data") + (("href",) if tag in ("link", "use", "image") else ())
        self.found += [value for name, value in attrs if name in names and value]


def loaded(page: Path) -> list[str]:
    parser = Loaded()
    parser.feed(page.read_text())
    return parser.found


def test_nothing_is_loaded_from_another_server() -> None:
    pages = {page.relative_to(SITE).as_posix(): loaded(page) for page in SITE.rglob("*.html")}
    assert len(pages) > 30
    assert {
        page: found for page, all_ in pages.items() if (found := [a for a in all_ if FOREIGN.match(a)])
    } == {}
    styles = "".join(path.read_text() for path in SITE.rglob("*.css"))
    assert re.findall(r"(?:url\(|@import\s*)['\"]?(?:\w+:)?//[^)'\"]+", styles) == []


def test_every_public_name_has_its_docstring() -> None:
    text = "".join(path.read_text() for path in SITE.glob("reference/*.html"))
    names = [name for name in nws_dataset.__all__ if not name.startswith("__")]
    assert [name for name in names if f'id="nws_dataset.{name}"' not in text] == []


def test_every_notebook_is_a_page() -> None:
    notebooks = {path.stem for path in ROOT.glob("examples/*.ipynb")}
    assert {path.stem for path in SITE.glob("examples/*.html")} == notebooks
    home = (SITE / "index.html").read_text()
    assert all(f'href="examples/{name}.html"' in home for name in notebooks)


def test_search_finds_pages_without_a_server(chromium: Browser) -> None:
    page = chromium.new_page(viewport={"width": 1280, "height": 900})
    page.goto((SITE / "guides" / "load.html").as_uri())
    page.click(".md-search__input")
    page.keyboard.type("permutation")
    found = page.locator(".md-search-result__item h1")
    found.first.wait_for()
    assert "Views of weights" in found.all_inner_texts()
