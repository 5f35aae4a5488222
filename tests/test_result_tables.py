"""Results in the repository are small, and `scripts/scores.py` makes them so without losing a score."""

from __future__ import annotations

import csv
import io
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
MAX_BYTES = 200_000  # of a result file in the repository
ABOUT = {
    "experiment": "accuracy",
    "target": "test_accuracy",
    "method": "boosting",
    "nets": "all",
    "metric": "r2",
}


def table_of(path: Path, records: list[dict[str, Any]]) -> list[dict[str, str]]:
    zoo = {"name": "zoo", "subsets": {}}
    path.write_text(json.dumps({"zoo": zoo, "command": "nws-evaluate zoo", "results": records}))
    command = [sys.executable, ROOT / "scripts" / "scores.py", path]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return list(csv.DictReader(io.StringIO(run.stdout)))


def test_results_in_the_repository_are_small() -> None:
    files = [path for kind in ("json", "csv") for path in (ROOT / "docs" / "results").rglob(f"*.{kind}")]
    assert files
    assert [path.name for path in files if path.stat().st_size > MAX_BYTES] == []


def test_the_table_has_the_mean_and_spread_of_each_score(tmp_path: Path) -> None:
    values = [0.91234, 0.95678, 0.93]
    both = [ABOUT | {"input": "layers", "dataset": name} for name in ("mnist", "fashion_mnist")]
    sides = {"trained_on": "mnist", "tested_on": "fashion_mnist", "across": "dataset", "input": "layers"}
    records = [
        *(
            both[0] | {"seed": i, "value": value, "trained_on": "mnist, train"}
            for i, value in enumerate(values)
        ),
        both[1]
        | {"seed": 0, "value": -0.5, "interval_95": [-0.75, 0.25], "trained_on": "fashion_mnist, train"},
        ABOUT | sides | {"experiment": "transfer", "value": 0.25},
        *(
            both[0] | {"experiment": "importance", "feature": name, "value": share}
            for name, share in (("conv1.weight.min", 0.125), ("conv1.weight.max", 0.875))
        ),
    ]
    lines = table_of(tmp_path / "results.json", records)
    mean, spread = statistics.mean(values), statistics.stdev(values)
    assert [(line["mean"], line["spread"], line["seeds"]) for line in lines] == [
        (f"{mean:.4g}", f"{spread:.4g}", "3"),
        ("-0.5", "", "1"),
        ("0.25", "", "1"),
        ("0.125", "", "1"),
        ("0.875", "", "1"),
    ]
    assert [line["feature"] for line in lines[3:]] == ["conv1.weight.min", "conv1.weight.max"]
    assert (lines[1]["low_95"], lines[1]["high_95"]) == ("-0.75", "0.25")
    # the data set says it, but where two are compared
    assert [line["trained_on"] for line in lines] == ["", "", "mnist", "", ""]
    assert "method" not in lines[0]  # is the same in all
