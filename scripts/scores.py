"""Writes the mean over seeds of each score of a result file: python scripts/scores.py JSON > CSV

For results whose JSON is too large for a repository. The table keeps every score, but not its seeds one by
one, nor the predictions, nor columns in which all lines agree.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from typing import Any

from nws_dataset.evaluation.results import Results
from nws_dataset.evaluation.scores import IDENTITY, Score, scores_of

ABOUT = (*IDENTITY, "num_train", "num_test")
SIDES = ("trained_on", "tested_on")  # clear from the data set, unless they are compared across something
DIGITS = 4  # significant ones


def line_of(score: Score) -> dict[str, Any]:
    """A score's line: what it is of, its mean and spread over seeds, the 95 % interval of the first seed."""
    first = score.first
    about = {
        name: getattr(first, name) for name in ABOUT if name not in SIDES or first.across or not first.dataset
    }
    low, high = score.interval_95 or (None, None)
    numbers = {"mean": score.value, "spread": score.spread, "low_95": low, "high_95": high}
    numbers |= {name: score.mean(name) for name in ("chance", "ceiling")}
    rounded = {name: None if x is None else float(f"{round(x, 9):.{DIGITS}g}") for name, x in numbers.items()}
    return about | rounded | {"seeds": len(score.records)}


def main(path: str) -> None:
    lines = [line_of(score) for score in scores_of(Results.read(Path(path)).records)]
    names = dict.fromkeys(name for line in lines for name in line)
    varying = [name for name in names if len({line.get(name) for line in lines}) > 1]
    table = csv.DictWriter(sys.stdout, varying, extrasaction="ignore", lineterminator="\n")
    table.writeheader()
    table.writerows(lines)


if __name__ == "__main__":
    main(*sys.argv[1:])
