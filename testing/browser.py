"""A page in the installed Chromium, and what is wrong with it: errors, requests, width, what axe-core finds.

Needs the extra `browser`, Chromium, and once npm for axe-core, which is kept in .pytest_cache.
"""

from __future__ import annotations

import contextlib
import functools
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from nws_dataset.files import atomic_write

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

NAMES = ("chromium", "chromium-browser", "google-chrome")
WIDTHS = (1280, 420)  # pixels
HEIGHT = 900
SCHEMES = ("light", "dark")
AXE = "4.14.1"
CACHE = Path(__file__).parent.parent / ".pytest_cache" / f"axe-core-{AXE}.min.js"
GRAVE = ("serious", "critical")


class Missing(Exception):
    """What a browser test needs is not installed; says what."""


@dataclass
class Visit:
    """A page that is open, and what it did since."""

    page: Page
    root: Path  # the folder whose files are the page's own
    errors: list[str] = field(default_factory=list)  # of the console, and exceptions that nobody caught
    requests: list[str] = field(default_factory=list)  # addresses

    @property
    def foreign(self) -> list[str]:
        """The requests that are for nothing of the page's own."""
        return [address for address in self.requests if not self._is_own(address)]

    def _is_own(self, address: str) -> bool:
        parts = urlsplit(address)
        if parts.scheme == "file":
            return Path(unquote(parts.path)).resolve().is_relative_to(self.root.resolve())
        return parts.scheme in ("data", "blob")

    def problems(self) -> list[str]:
        """Everything that is wrong with the page as it is now, each in one line.

        Raises:
            Missing: if axe-core is not at hand.
        """
        width, scrolled = self.page.evaluate("[innerWidth, document.documentElement.scrollWidth]")
        self.page.evaluate(axe_source())  # unlike a script element, it needs no leave of the page's policy
        # without its own requests for style sheets, which a page that was opened as a file may not make
        violations = self.page.evaluate("axe.run({preload: false}).then(found => found.violations)")
        return [
            *(f"error: {error}" for error in self.errors),
            *(f"request: {address}" for address in self.foreign),
            *([f"scrolls sideways: {scrolled} of {width} pixels"] if scrolled > width else []),
            *(
                f"axe, {found['impact']}: {found['id']}, {len(found['nodes'])} times, first at "
                f"{found['nodes'][0]['target']}: {found['help']}"
                for found in violations
                if found["impact"] in GRAVE
            ),
        ]


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """The installed Chromium, without a window.

    Raises:
        Missing: if there is none, or no Playwright.
    """
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        raise Missing("no Chromium in PATH")
    try:
        from playwright.sync_api import sync_playwright
    except ModuleNotFoundError as error:
        raise Missing("no Playwright: pip install '.[browser]'") from error
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path)
        yield browser
        browser.close()


@contextlib.contextmanager
def opened(
    browser: Browser,
    path: Path,
    *,
    width: int = WIDTHS[0],
    scheme: str = SCHEMES[0],
    root: Path | None = None,
) -> Iterator[Visit]:
    """A page, open in a context of its own: nothing of other pages is remembered.

    Args:
        browser: from `chromium`.
        path: the HTML file.
        width: of the window, in pixels.
        scheme: "light" or "dark", which the reader prefers.
        root: the folder whose files are the page's own; None for the file alone.
    """
    context = browser.new_context(
        viewport={"width": width, "height": HEIGHT},
        color_scheme="dark" if scheme == "dark" else "light",
        reduced_motion="reduce",  # no colour is measured half-way
    )
    page = context.new_page()
    visit = Visit(page, root or path)
    page.on("request", lambda request: visit.requests.append(request.url))
    page.on("console", lambda said: visit.errors.append(said.text) if said.type == "error" else None)
    page.on("pageerror", lambda error: visit.errors.append(str(error)))
    page.goto(path.resolve().as_uri(), wait_until="networkidle")
    yield visit
    context.close()


@functools.cache
def axe_source() -> str:
    """axe-core's script, of version AXE.

    Raises:
        Missing: if it is not in the cache, and npm cannot install it.
    """
    if not CACHE.exists():
        npm = shutil.which("npm")
        if npm is None:
            raise Missing("no npm in PATH, which installs axe-core")
        with tempfile.TemporaryDirectory() as folder:
            command = [npm, "install", "--prefix", folder, "--ignore-scripts", f"axe-core@{AXE}"]
            result = subprocess.run(command, capture_output=True, text=True)
            if result.returncode:
                raise Missing(f"axe-core: npm says {result.stderr.strip().splitlines()[-1:]}")
            CACHE.parent.mkdir(exist_ok=True)
            with atomic_write(CACHE) as temporary:
                shutil.copy(Path(folder, "node_modules", "axe-core", "axe.min.js"), temporary)
    return CACHE.read_text()
