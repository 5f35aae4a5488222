"""The dataset card: README.md of a zoo, rendered from its own manifest and index."""

from __future__ import annotations

import importlib.resources
from collections.abc import Sequence
from typing import Any

import jinja2
import pyarrow as pa
import pyarrow.compute as pc
import yaml

from nws_dataset.manifest import Manifest, configs
from nws_dataset.recipe import SUBSETS, ByDataset, Choice, Cycle, LogUniform, Uniform
from nws_dataset.schema import COLUMNS, INDEX_SCHEMA, SPLITS

TEMPLATE = "dataset.md.j2"


def render(manifest: Manifest, tables: Sequence[pa.Table]) -> str:
    """The text of the card.

    Args:
        manifest: of the zoo.
        tables: the index's rows (INDEX_SCHEMA), in any parts.
    """
    index = pa.concat_tables(tables) if tables else INDEX_SCHEMA.empty_table()
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
    template = environment.from_string((importlib.resources.files("cards") / TEMPLATE).read_text(encoding="utf-8"))
    front_matter = {
        "license": "apache-2.0",
        "pretty_name": "Neural weight space",
        "tags": ["weight-space-learning", "model-zoo", "safetensors"],
        "size_categories": [_size_category(len(index))],
        **configs(manifest),
    }
    return template.render(
        front_matter=yaml.safe_dump(front_matter, sort_keys=False),
        manifest=manifest,
        summaries={name: _summary(index, name) for name in manifest.subsets},
        descriptions={name: SUBSETS[name].description if name in SUBSETS else "" for name in manifest.subsets},
        recipes={name: _recipe_table(name) for name in manifest.subsets if name in SUBSETS},
        splits=SPLITS,
        columns=COLUMNS,
    )


def _size_category(rows: int) -> str:
    """The Hub's name for a number of rows."""
    steps = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"))
    return next(name for limit, name in steps if rows < limit)


def _summary(index: pa.Table, subset: str) -> dict[str, Any]:
    """Counts and accuracies of a subset's final networks."""
    final = index.filter((pc.field("subset") == subset) & pc.field("is_final"))
    by_split = {split: pc.sum(pc.equal(final["split"], split)).as_py() or 0 for split in SPLITS}
    accuracy = final["test_accuracy"].to_numpy()
    return {
        "models": len(final),
        "snapshots": pc.sum(pc.equal(index["subset"], subset)).as_py() or 0,
        "by_split": by_split,
        "converged": pc.sum(final["converged"]).as_py() or 0,
        "diverged": pc.sum(final["diverged"]).as_py() or 0,
        "accuracy": {"mean": float(accuracy.mean()), "best": float(accuracy.max())} if len(final) else None,
    }


def _recipe_table(subset: str) -> list[tuple[str, str]]:
    """(field, values) of a subset's distribution; families that draw differently are told apart by "or"."""
    families = list(SUBSETS[subset].families)
    fields = dict.fromkeys(field for family in families for field in family)
    told = {field: dict.fromkeys(_tell(family[field]) for family in families if field in family) for field in fields}
    return [(field.replace(",", ", "), " or ".join(values)) for field, values in told.items()]


def _tell(distribution: object) -> str:
    match distribution:
        case Choice(values) | Cycle(values):
            return ", ".join(str(value).lower() if isinstance(value, bool) else str(value) for value in values)
        case Uniform(low, high):
            return f"uniform {low:g} .. {high:g}"
        case LogUniform(low, high):
            return f"log-uniform {low:g} .. {high:g}"
        case ByDataset(by_name):
            return ", ".join(f"{value} ({name})" for name, value in by_name.items())
    return str(distribution).lower() if isinstance(distribution, bool) else str(distribution)
