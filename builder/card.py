"""The dataset card: README.md of a zoo, rendered from its own manifest and index."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import yaml

from builder.image_sets import IMAGE_SETS
from nws_dataset.console import size
from nws_dataset.format.manifest import Manifest, configs
from nws_dataset.format.schema import COLUMNS, INDEX_SCHEMA, SPLITS
from nws_dataset.format.subsets import IMPORTED, SUBSETS, ByDataset, Choice, Cycle, LogUniform, Uniform

TEMPLATE = "dataset.md.j2"
# the first of these columns that varies colours the overview
COLOURED_BY = ("optimizer", "activation", "initialization", "dataset")
OVERVIEW = "plots/overview.png"  # on top
EXPLORER_PAGE = "plots/explorer.html"  # what `nws explore` writes, for a zoo that is published
EXPLORER_PICTURE = "plots/explorer.png"  # a still of it, which leads to it
PLOTS = {
    OVERVIEW: "What the networks of this zoo are, at a glance: their accuracy over training and at its end, "
    "images decoded from them, or the edges that they keep",
    "plots/accuracy.png": "For every data set, how many final networks have which test accuracy (or PSNR), "
    "and its mean over training",
    "plots/weights.png": "Root mean square of the weights of three layers, after training against before "
    "it, by initialization",
    "plots/trajectories.png": "Distance of the weights of three layers from their start, over training, "
    "coloured by final test accuracy (or PSNR)",
    EXPLORER_PICTURE: "Every network of this zoo as a point, as the page to look into shows them: by its "
    "result, and by the principal components of its weights' statistics",
    "plots/images.png": "Images decoded from networks at each snapshot, beside the originals",
}  # path in the zoo -> its alternative text; `builder.gallery` draws them
# a question to the index compares networks by the first of these columns that varies
GROUPED_BY = (*COLOURED_BY, "label", "max_epochs", "architecture")
MANY_ARCHITECTURES = 12  # beyond so many, a card counts them and does not list them


def plots_of(manifest: Manifest) -> dict[str, str]:
    """Those of PLOTS that a zoo has: images only where networks represent images."""
    of_images = any(SUBSETS[name].of_images for name in manifest.subsets if name in SUBSETS)
    return {path: text for path, text in PLOTS.items() if of_images or path != "plots/images.png"}


def render(manifest: Manifest, tables: Sequence[pa.Table]) -> str:
    """Render the text of the card.

    Args:
        manifest: the zoo's manifest; of a subset in neither SUBSETS nor IMPORTED only the entry is used.
        tables: the index (INDEX_SCHEMA), in any number of parts.
    """
    index = pa.concat_tables(tables) if tables else INDEX_SCHEMA.empty_table()
    built = [name for name in manifest.subsets if name in SUBSETS]
    of_images = [name for name in built if SUBSETS[name].of_images]
    loader = jinja2.PackageLoader("cards", "")
    environment = jinja2.Environment(
        loader=loader,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(TEMPLATE).render(
        front_matter=yaml.safe_dump(_front_matter(manifest, index), sort_keys=False),
        manifest=manifest,
        summaries={name: _summary(index, name, entry.copies) for name, entry in manifest.subsets.items()},
        presets=SUBSETS,
        imported=IMPORTED,
        built=built,
        of_images=of_images,
        classifiers=[name for name in built if name not in of_images],
        kinds=sorted(pc.unique(index["kind"]).to_pylist()),
        recipes={name: recipe_table(name) for name in manifest.subsets if name in SUBSETS},
        image_terms=_image_terms(manifest, index),
        plots=plots_of(manifest) if len(index) else {},
        overview=OVERVIEW,
        explorer_page=EXPLORER_PAGE,
        explorer_picture=EXPLORER_PICTURE,
        models=pc.sum(index["is_final"]).as_py() or 0,
        snapshots=len(index),
        size=size(sum(entry.size for entry in manifest.files.values())),
        score=score_of(index),
        by=varying(index, GROUPED_BY) or "subset",
        many_architectures=MANY_ARCHITECTURES,
        splits=SPLITS,
        columns=COLUMNS,
    )


def _front_matter(manifest: Manifest, index: pa.Table) -> dict[str, Any]:
    """The card's YAML, for the Hub and `datasets`."""
    return {
        # of imported subsets
        "license": "apache-2.0" if manifest.subsets.keys() <= SUBSETS.keys() else ["apache-2.0", "unknown"],
        "pretty_name": "Neural weight space",
        "tags": [
            "weight-space-learning",
            "model-zoo",
            "neural-network-weights",
            "training-dynamics",
            "safetensors",
        ],
        "task_categories": ["other"],
        "annotations_creators": ["machine-generated"],
        "source_datasets": ["original"],
        "size_categories": [_size_category(len(index))],
        **configs(manifest, index),
    }


def score_of(index: pa.Table) -> str:
    """The column that says how good most networks are: the test accuracy of classifiers, else PSNR."""
    return "psnr" if index["test_accuracy"].null_count == len(index) else "test_accuracy"


def varying(index: pa.Table, columns: Sequence[str]) -> str | None:
    """The first of some columns that has more than one value; None if none has."""
    return next((name for name in columns if pc.count_distinct(index[name]).as_py() > 1), None)


def _size_category(count: int) -> str:
    """The Hub's name for a number of examples."""
    steps = (
        (10**3, "n<1K"),
        (10**4, "1K<n<10K"),
        (10**5, "10K<n<100K"),
        (10**6, "100K<n<1M"),
        (10**7, "1M<n<10M"),
        (10**8, "10M<n<100M"),
    )
    return next(name for limit, name in steps if count < limit)


def _image_terms(manifest: Manifest, index: pa.Table) -> dict[str, str]:
    """Name of each data set -> its authors' terms of use."""
    found = index.group_by(["dataset"]).aggregate([("subset", "distinct")]).sort_by("dataset").to_pylist()
    names = {one["dataset"]: manifest.dataset_name(one["dataset"], one["subset_distinct"]) for one in found}
    return {name: IMAGE_SETS[dataset].terms for dataset, name in names.items()}


def _summary(index: pa.Table, subset: str, copies: Mapping[str, str]) -> dict[str, Any]:
    """A subset's counts and scores of final networks, in total and by data set; architectures; size.

    Data sets in `copies` have the names there.
    """
    snapshots = index.filter(pc.field("subset") == subset)
    final = snapshots.filter(pc.field("is_final"))
    lengths, weights = (pc.min_max(final[column]).as_py() for column in ("num_snapshots", "num_weights"))
    return {
        **_scores(final),
        "snapshots": len(snapshots),
        "by_split": {split: pc.sum(pc.equal(final["split"], split)).as_py() or 0 for split in SPLITS},
        "by_dataset": {
            copies.get(name, name): _scores(final.filter(pc.field("dataset") == name))
            for name in _counts(final, "dataset")
        },
        "architectures": _counts(final, "architecture"),
        "num_snapshots": _range(lengths),
        "num_weights": _range(weights),
        "megabytes": (pc.sum(snapshots["length"]).as_py() or 0) / 1e6,
    }


def _scores(final: pa.Table) -> dict[str, Any]:
    """Counts of some final networks, and their test accuracies or PSNR; None where they have none."""
    accuracy, psnr = (final[name].drop_null().to_numpy() for name in ("test_accuracy", "psnr"))
    return {
        "models": len(final),
        "converged": pc.sum(final["converged"]).as_py(),
        "diverged": pc.sum(final["diverged"]).as_py() or 0,
        "accuracy": {"mean": float(accuracy.mean()), "best": float(accuracy.max())}
        if len(accuracy)
        else None,
        "psnr": {"median": float(np.median(psnr)), "best": float(psnr.max())} if len(psnr) else None,
    }


def _counts(table: pa.Table, column: str) -> dict[str, int]:
    """How often each value of a column occurs, the most frequent first."""
    counted = [(entry["values"], entry["counts"]) for entry in pc.value_counts(table[column]).to_pylist()]
    return dict(sorted(counted, key=lambda pair: (-pair[1], pair[0])))


def _range(ends: dict[str, Any]) -> str:
    """Format a range: "20", "5 to 20", or "none"."""
    low, high = ends["min"], ends["max"]
    if low is None:
        return "none"
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def recipe_table(subset: str) -> list[tuple[str, str]]:
    """(field, values) of a subset's distribution; families that draw differently are joined by "or"."""
    families = list(SUBSETS[subset].families)
    fields = dict.fromkeys(field for family in families for field in family)
    texts = {
        field: dict.fromkeys(_describe(family[field]) for family in families if field in family)
        for field in fields
    }
    return [(field.replace(",", ", "), " or ".join(values)) for field, values in texts.items()]


def _describe(distribution: object) -> str:
    """What a field is drawn from, or its only value, in words."""
    match distribution:
        case Choice(values) | Cycle(values):
            return ", ".join(map(_describe, values))
        case Uniform(low, high):
            return f"uniform {low:g} .. {high:g}"
        case LogUniform(low, high):
            return f"log-uniform {low:g} .. {high:g}"
        case ByDataset(by_name):
            named: dict[str, list[str]] = {}
            for name, value in by_name.items():
                named.setdefault(_describe(value), []).append(name)
            return "; ".join(f"{text} ({', '.join(names)})" for text, names in named.items())
        case bool() | None:
            return str(distribution).lower()
    return str(distribution)
