"""Every page that people open, in Chromium: the site, the leaderboards, the explorer; and the check itself.

Only `pytest -m site` runs it; scripts/test-site does, after it has built the site.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from testing.browser import SCHEMES, WIDTHS, opened

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = pytest.mark.site

ROOT = Path(__file__).parent.parent
SITE = ROOT / "build" / "site"  # as mkdocs.yml says
PAGES = sorted([*SITE.glob("**/*.html"), *ROOT.glob("build/*.html"), *ROOT.glob("docs/**/*.html")])
FINE = """<!doctype html><html lang="en"><title>Fine</title><link rel="stylesheet" href="fine.css">
<main><h1>Fine</h1></main>"""


@pytest.fixture(scope="module")
def browser(axe: str, chromium: Browser) -> Browser:
    return chromium


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_a_page_is_fine(browser: Browser, page: Path, width: int, scheme: str) -> None:
    root = SITE if page.is_relative_to(SITE) else page
    with opened(browser, page, width=width, scheme=scheme, root=root) as visit:
        assert visit.problems() == []


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ("<script>console.error('wrong')</script>", "error: wrong"),
        ("<script>undefined.x</script>", "error: Cannot read properties"),
        ('<img src="https://example.invalid/a.png" alt="">', "request: https://example.invalid/a.png"),
        ('<img src="../other.png" alt="">', "request: file:"),
        ('<p style="width: 2000px">wide</p>', "scrolls sideways: 2"),
        ('<img src="data:,">', "axe, critical: image-alt"),
        ('<p style="color: #ccc; background: #fff">faint</p>', "axe, serious: color-contrast"),
    ],
)
def test_the_check_finds(browser: Browser, tmp_path: Path, body: str, problem: str) -> None:
    page = tmp_path / "page.html"
    (tmp_path / "fine.css").write_text("h1 { color: #222 }")
    for html, found in ((FINE, False), (FINE + body, True)):
        page.write_text(html)
        with opened(browser, page, root=tmp_path) as visit:
            problems = visit.problems()
            assert any(line.startswith(problem) for line in problems) if found else problems == []
