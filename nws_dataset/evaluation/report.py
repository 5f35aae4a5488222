"""What both experiments share in telling their results: intervals, tables, files, progress."""

from __future__ import annotations

import json
import math
import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from nws_dataset.console import Table
from nws_dataset.errors import ZooError, one_line
from nws_dataset.files import atomic_write, path_type

if TYPE_CHECKING:
    from nws_dataset.reading.zoo import Zoo

Z_95 = 1.959963984540054  # two-sided 95 % quantile of the normal distribution
RESAMPLES = 300
# libraries take seeds of 31 bits, and folds and repetitions count up from the first
MAX_SEEDS, MAX_SEED = 1000, 10**9
FEWEST_FOR_BOOTSTRAP = 10  # models; resamples of fewer say little
OUT_HELP = "Folder for the results.  [default: ZOO-results, beside the zoo]"
Interval = tuple[float, float]


def wilson_interval(correct: int, total: int) -> Interval:
    """95 % interval of a proportion (Wilson 1927).

    Args:
        correct: number of models that were predicted right.
        total: number of held-out models. Snapshots of one model are not independent, so count models.

    Example:
        >>> [round(end, 3) for end in wilson_interval(8, 10)]
        [0.49, 0.943]
    """
    if total == 0:
        return 0.0, 1.0
    p, z2 = correct / total, Z_95**2
    centre = (p + z2 / (2 * total)) / (1 + z2 / total)
    half = Z_95 / (1 + z2 / total) * math.sqrt(p * (1 - p) / total + z2 / (4 * total**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def bootstrap_interval(
    statistic: Callable[[np.ndarray, np.ndarray], float], truth: np.ndarray, predicted: np.ndarray, seed: int
) -> Interval | None:
    """95 % interval of a statistic of truth [M] and predictions [M], by resampling the M held-out models;
    None where they are too few.
    """
    if len(truth) < FEWEST_FOR_BOOTSTRAP:
        return None
    random = np.random.default_rng(seed)
    draws = (random.integers(len(truth), size=len(truth)) for _ in range(RESAMPLES))
    values = np.array([statistic(truth[i], predicted[i]) for i in draws])
    values = values[np.isfinite(values)]
    return (float(np.quantile(values, 0.025)), float(np.quantile(values, 0.975))) if len(values) else None


def accuracy(truth: np.ndarray, predicted: np.ndarray) -> dict[str, Any]:
    """Accuracy on held-out models, with its interval and their number."""
    correct = int((truth == predicted).sum())
    return {
        "accuracy": correct / len(truth) if len(truth) else None,
        "interval_95": wilson_interval(correct, len(truth)),
        "num_models": len(truth),
    }


def with_interval(value: float | None, interval: Interval | None, percent: bool = False) -> str:
    """A number and its 95 % interval, if it has one, as text.

    Example:
        >>> with_interval(0.5, (0.4, 0.6), percent=True), with_interval(0.5, (0.4, 0.6))
        ('50.0 % (40.0-60.0)', '0.50 (0.40 to 0.60)')
    """
    if value is None:
        return "-"

    def text(number: float) -> str:
        # + 0.0: no minus before zero
        return f"{100 * number:.1f}" if percent else f"{round(number, 2) + 0.0:.2f}"

    unit, to = (" %", "-") if percent else ("", " to ")
    return text(value) + unit + (f" ({to.join(map(text, interval))})" if interval else "")


def percent(value: float | None) -> str:
    """A share as text.

    Example:
        >>> percent(0.125), percent(None)
        ('12.5 %', '-')
    """
    return "-" if value is None else f"{100 * value:.1f} %"


def over_seeds(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Records that differ in nothing but the seed, as one: the mean of their numbers, and "spread", the
    standard deviation of "value".

    Example:
        >>> values = {0: 0.5, 1: 0.6, 2: 0.7}
        >>> over_seeds([{"target": "optimizer", "seed": seed, "value": values[seed]} for seed in values])
        [{'target': 'optimizer', 'value': 0.6, 'seeds': 3, 'spread': 0.1}]
    """
    same: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for record in records:
        same.setdefault(
            tuple((key, value) for key, value in record.items() if key not in OF_A_SEED), []
        ).append(record)
    return [_mean(group) for group in same.values()]


OF_A_SEED = (
    "seed",
    "value",
    "interval_95",
    "chance",
    "from_architecture",
    "num_train",
    "num_test",
    "pairs",
)  # what may differ between seeds


def _mean(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One record for those of several seeds."""
    mean = {key: value for key, value in records[0].items() if key not in ("seed", "pairs")}
    for key in ("value", "interval_95", "chance", "from_architecture"):
        if mean.get(key) is not None:
            mean[key] = np.mean([record[key] for record in records], axis=0).round(12).tolist()
    return {
        **mean,
        "seeds": len(records),
        "spread": round(spread([record["value"] for record in records]) or 0.0, 12),
    }


def spread(values: Sequence[float]) -> float | None:
    """The standard deviation over seeds; None of a single one.

    Example:
        >>> round(spread([0.5, 0.6, 0.7]), 12), spread([0.5])
        (0.1, None)
    """
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def conclude(
    results: dict[str, Any],
    folder: Path,
    table: Table,
    notes: Sequence[str],
    draw: Callable[[], dict[str, Any]],
    more: Sequence[Table] = (),
) -> None:
    """Write an experiment's results as `<experiment>.json`, `<experiment>.md` and `<experiment>_<plot>.png`;
    print the table and the paths.

    Args:
        results: all that JSON can hold: "experiment", which names the files, "zoo" (see `facts_of`),
            "command", "settings", "results"; the plots' names are added as "plots".
        folder: made if it is not there.
        table: the summary.
        notes: sentences that say how the numbers were taken.
        draw: gives name -> matplotlib figure; called when the numbers are safe on disk.
        more: tables below the summary.
    """
    name = results["experiment"]
    data, text = folder / f"{name}.json", folder / f"{name}.md"
    _write(data, json.dumps({**results, "plots": []}, indent=1))
    plots = draw()
    images = {plot: folder / f"{name}_{plot}.png" for plot in plots}
    for plot, path in images.items():
        with atomic_write(path) as temporary:
            plots[plot].savefig(temporary, dpi=150, format="png")
    links = [f"![{plot}]({path.name})" for plot, path in images.items()]
    below = [part for other in more for part in (f"## {other.title}", other.markdown())]
    contents = {
        data: json.dumps({**results, "plots": [path.name for path in images.values()]}, indent=1),
        text: "\n\n".join([f"# {table.title}", *notes, table.markdown(), *links, *below]),
    }
    for path, content in contents.items():
        _write(path, content)
    for shown in (table, *more):
        shown.print()
    for line in (*notes, "Written: " + ", ".join(map(one_line, (data, text, *images.values())))):
        click.echo(line)


def _write(path: Path, content: str) -> None:
    """A text file, whole or not at all."""
    with atomic_write(path) as temporary:
        temporary.write_text(content + "\n", encoding="utf-8")


def be_patient() -> None:
    """Let idle OpenMP threads sleep.

    Spinning, they make training up to eight times slower where other programs use the cores too.

    Libraries read this when they are loaded: call it before torch and lightgbm are imported.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def results_folder(zoo: str, out: Path | None) -> Path:
    """Where results go: `out`, or a folder named after the zoo that lies beside it, never in it."""
    if out is not None:
        return out
    path = Path(zoo)
    return (path.resolve().parent if path.is_dir() else Path()) / f"{path.resolve().name}-results"


def check_folder(folder: Path) -> None:
    """Raise a ZooError, before hours of work, if results could not be written to a folder, which need not
    exist. Writes nothing.
    """
    nearest = folder
    while path_type(nearest) == "nothing" and nearest != nearest.parent:
        nearest = nearest.parent
    found = path_type(nearest)
    if found == "a folder" and not os.access(nearest, os.W_OK | os.X_OK):
        found = f"{nearest}, which may not be written to"
    elif found == "a folder":
        return
    elif nearest != folder:
        found = f"{found} at {nearest}"
    raise ZooError(
        folder,
        expected="a folder for results",
        found=found,
        do="permit writing, or choose another place (--out)",
    )


def check_device(device: str) -> None:
    """Raise a ZooError if torch cannot compute on a device here."""
    from nws_dataset.views import slices

    slices.check_device(f"--device {device}", device, "leave the option out, or name one that is there")


def name_of(zoo: str) -> str:
    """What reports call a zoo: a folder by its name, so that nothing of the machine gets into them, a
    repository as it is.
    """
    return one_line(Path(zoo).resolve().name) if Path(zoo).is_dir() else zoo


def facts_of(zoo: Zoo, name: str) -> dict[str, Any]:
    """What results say about a zoo: what it is called, and of each subset the seed, the build's options and
    the number of models.
    """
    subsets = {
        subset: {"seed": entry.seed, "options": entry.options, "num_models": entry.num_models}
        for subset, entry in zoo.manifest.subsets.items()
    }
    return {"name": name, "subsets": subsets}


def command_line() -> str:
    """The running click command as it was given, with folders by their names, so that nothing of the machine
    gets into results.
    """
    context = click.get_current_context()
    words = [Path(context.info_name or "").name]
    for parameter in context.command.params:
        value = context.params.get(parameter.name or "")
        if (
            context.get_parameter_source(parameter.name or "") is not click.core.ParameterSource.COMMANDLINE
            or parameter.name == "out"
        ):
            continue
        if isinstance(parameter, click.Option):
            words.append(parameter.opts[0])
            words += (
                []
                if parameter.is_flag
                else [one_line(",".join(map(str, value)) if isinstance(value, (list, tuple)) else value)]
            )
        else:
            words.append(name_of(str(value)))
    return shlex.join(words)
