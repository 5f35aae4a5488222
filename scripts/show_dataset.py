"""Shows a zoo through the stock `datasets` library alone: python scripts/show_dataset.py nws"""

from __future__ import annotations

import sys
from collections import Counter

import datasets

PROPERTIES = ("optimizer", "activation", "initialization", "batch_size", "batch_norm")


def main(name: str = "nws") -> None:
    index = datasets.load_dataset(name)
    print(f"{'split':<12}{'snapshots':>10}{'models':>8}")
    for split, snapshots in index.items():
        print(f"{split:<12}{snapshots.num_rows:>10}{len(set(snapshots['model_id'])):>8}")

    snapshot = index["train"][-1]
    print(f"\nThe last snapshot of the training split, some of its {len(snapshot)} columns:")
    for column in (
        "model_id",
        "snapshot",
        "is_final",
        "dataset",
        *PROPERTIES,
        "architecture",
        "num_weights",
        "test_accuracy",
    ):
        print(f"  {column:<16}{snapshot[column]}")

    final = index["train"].filter(lambda is_final: is_final, input_columns="is_final")
    print("\nModels of the training split by recipe:")
    for column in PROPERTIES:
        print(
            f"  {column:<16}"
            + ", ".join(f"{value} {count}" for value, count in Counter(final[column]).most_common())
        )


if __name__ == "__main__":
    datasets.disable_progress_bars()
    main(*sys.argv[1:])
