"""`nws info`: what a zoo holds, on one screen."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from nws_dataset.console import Command, size
from nws_dataset.errors import one_line
from nws_dataset.options import revision_option

if TYPE_CHECKING:
    import numpy as np

    from nws_dataset.format.manifest import Manifest
    from nws_dataset.reading.snapshots import Snapshots
    from nws_dataset.reading.zoo import Zoo

WIDTH = 80  # columns of the screen
MAX_LINES = 12  # of a list or table, which is shortened beyond
MAX_NAME = 19  # characters of a name
LIMIT = 1e4  # of a score; a damaged index may hold any number
BARS = "▁▂▃▄▅▆▇█"
PLAIN_BARS = ".:-=+*#@"  # for a terminal whose encoding lacks the others
FEWEST_BARS, MOST_BARS = 8, 30
# column that tells how good a network is -> its name, and how its numbers are written
SCORES = {"test_accuracy": ("test accuracy", "{:.3f}"), "psnr": ("PSNR", "{:.1f} dB")}


@click.command(cls=Command)
@click.argument("zoo")
@revision_option
def main(zoo: str, revision: str | None) -> None:
    """Say on one screen what a zoo holds.

    ZOO is a folder, or ORG/NAME on the Hub, of which no weights are fetched. Bars show how many final
    networks have which test accuracy, or which PSNR if they represent images.
    """
    from nws_dataset.reading.zoo import Zoo

    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    bars = BARS if BARS.encode(encoding, "ignore").decode(encoding) == BARS else PLAIN_BARS
    text = "\n".join(lines_of(Zoo(zoo, revision=revision), bars))
    click.echo(text.encode(encoding, "replace").decode(encoding))


def lines_of(zoo: Zoo, bars: str = BARS) -> Iterator[str]:
    """What a zoo holds, line by line, with a terminal's codes for bold and colour.

    Args:
        zoo: in a folder or on the Hub; its index is read, and no weights.
        bars: characters of rising height.

    Raises:
        ZooError: if the index is missing or damaged.
    """
    from nws_dataset.format.manifest import STAGING
    from nws_dataset.format.schema import SPLITS

    manifest, snapshots, final = zoo.manifest, zoo.filter(), zoo.filter(is_final=True)
    yield click.style(one_line(zoo.name), bold=True)
    index = sum(manifest.files[path].size for path in manifest.index_files())
    total = sum(entry.size for entry in manifest.files.values())
    holds = f"{_count(len(final), 'model')}, {_count(len(snapshots), 'snapshot')}"
    sizes = f"{size(total - index)}, and {size(index)} of index"
    yield _fact("holds", f"{holds}; {sizes}" if len(snapshots) else "no models yet")
    for i, line in enumerate(_shortened(_kinds(final))):
        yield _fact("" if i else "kinds", line)
    splits = Counter(final["split"].tolist())
    if splits:
        ordered = sorted(splits, key=[*SPLITS, *splits].index)
        yield _fact("splits", ", ".join(f"{_name(name)} {splits[name]:,}" for name in ordered[:MAX_LINES]))
    yield _fact("version", f"format {manifest.format_version}, generator {_name(manifest.generator_version)}")
    yield _fact("digest", manifest.digest)
    if zoo.files.path is not None and (zoo.files.path / STAGING).exists():
        yield _fact("growing", "a build is at work here, or was interrupted")
    for column in SCORES:
        scored = snapshots[abs(snapshots[column].astype(float)) <= LIMIT]  # not where it is null
        if len(scored):
            yield ""
            yield from _table(scored, column, manifest, bars)


def _fact(name: str, text: str) -> str:
    return f"{click.style(f'{name:<9}', dim=True)}{text}"


def _count(number: int, word: str) -> str:
    return f"{number:,} {word}{'s' * (number != 1)}"


def _name(text: str, length: int = MAX_NAME) -> str:
    """A name from a file as one short word of a line."""
    shown = one_line(text)
    return shown if len(shown) <= length else f"{shown[: length - 3]}..."


def _shortened(lines: list[str]) -> list[str]:
    """At most MAX_LINES lines; the last one then counts what is left out."""
    more = len(lines) - MAX_LINES
    return lines if more <= 0 else [*lines[: MAX_LINES - 1], f"and {more + 1} more"]


def _kinds(final: Snapshots) -> list[str]:
    """Each kind of network, the most frequent first: its models, architectures and numbers of weights."""
    lines = []
    for kind, count in Counter(final["kind"].tolist()).most_common():
        own = final.filter(kind=kind)
        architectures = _count(len(set(own["architecture"])), "architecture")
        low, high = int(own["num_weights"].min()), int(own["num_weights"].max())
        weights = f"{low:,} to {high:,}" if low < high else f"{low:,}"
        lines.append(f"{_name(kind)}: {_count(count, 'model')}, {architectures} of {weights} weights")
    return lines


def _table(scored: Snapshots, column: str, manifest: Manifest, bars: str) -> Iterator[str]:
    """A line for each subset and data set, with bars of its final networks' scores, all on one axis."""
    import numpy as np

    final, (score, form) = scored.filter(is_final=True), SCORES[column]
    rows: list[tuple[tuple[str, ...], np.ndarray]] = []
    counts = Counter(zip(scored["subset"], scored["dataset"], strict=True))
    for (subset, dataset), count in sorted(counts.items(), key=str):
        own = final.filter(subset=subset, dataset=dataset)[column]
        names = _name(subset), _name(manifest.dataset_name(dataset, [subset]))
        median = form.format(np.median(own)) if len(own) else ""
        rows.append(((*names, f"{len(own):,}", f"{count:,}", median), own))
    heads = ("subset", "data set", "models", "snapshots", "median")
    widths = [max(map(len, cells)) for cells in zip(heads, *(cells for cells, _ in rows), strict=True)]
    count = min(max(WIDTH - sum(widths) - 2 * len(widths), FEWEST_BARS), MOST_BARS)

    def line(cells: tuple[str, ...], drawn: str) -> str:
        aligned = [f"{cell:{'<<>>>'[i]}{widths[i]}}" for i, cell in enumerate(cells)]
        return "  ".join([*aligned, drawn])

    found = final[column]
    low, high = (0.0, 1.0) if column == "test_accuracy" or not len(found) else (found.min(), found.max())
    first, last = f"{low:.3g}", f"{high:.3g}"
    room = count - len(first) - len(last)
    title = next((words for words in (score, score.split()[-1]) if len(words) + 2 <= room), "")
    axis = f"{first}{title:^{room}}{last}"
    yield click.style(line(heads, axis), dim=True)
    yield from _shortened(
        [
            line(cells, click.style(_drawn(own, low, high, count, bars).rstrip(), fg="cyan"))
            for cells, own in rows
        ]
    )


def _drawn(values: Any, low: float, high: float, count: int, bars: str) -> str:
    """A histogram as a line of `count` bars; the fullest bin has the highest, an empty one none."""
    import numpy as np

    counts, _ = np.histogram(np.clip(values, low, high), count, (low, high) if low < high else (low, low + 1))
    heights = -(-counts * len(bars) // max(counts.max(), 1))
    return "".join(bars[height - 1] if height else " " for height in heights.tolist())


if __name__ == "__main__":
    main()
