"""What a reader of a zoo's page must know: what it leaves out, and what its numbers are computed from."""

from __future__ import annotations

from importlib import util
from typing import Any

from nws_dataset.explorer.contents import Shown
from nws_dataset.explorer.packing import TOP
from nws_dataset.explorer.weights import CLIP, LEAST_MODELS, SAMPLED_SNAPSHOTS


def notes_of(shown: Shown, contents: dict[str, Any], *, read_weights: bool) -> list[str]:
    """Sentences for the end of the page."""
    notes = _of_index(shown)
    if not read_weights:
        return [*notes, "No weights were read: there are no principal components and no histograms."]
    return [*notes, *_of_components(contents), *_of_sample(contents)]


def _of_index(shown: Shown) -> list[str]:
    notes = []
    if shown.num_models > len(shown):
        notes.append(
            f"A random sample of {len(shown):,} of the zoo's {shown.num_models:,} models is shown; counts of "
            "models beside plots and filters are of the sample."
        )
    kept = shown.at.shape[1]
    if shown.most_snapshots > kept:
        notes.append(
            f"Of up to {shown.most_snapshots} snapshots of a model, {kept} are shown, evenly spaced."
        )
    notes.append(
        f"Numbers are rounded: results to 1/{TOP:,} of their range, recipes to seven digits. The zoo's index "
        "has them in full."
    )
    return notes


def _of_components(contents: dict[str, Any]) -> list[str]:
    notes, statistics = [], contents["statistics"]
    if statistics is not None:
        notes.append(
            f"PCA of statistics: {statistics['features']} statistics of the final weights of "
            f"{statistics['models']:,} models, of the whole row and of the tensors that all architectures "
            f"have, each standardized and cut at {CLIP:g} standard deviations."
        )
    fits = contents["weights"]["architectures"]
    words = f"of each architecture with at least {LEAST_MODELS} models"
    if not fits:
        return [*notes, f"PCA of weights would be computed {words}; here is none."]
    most = max(fit["fitted"] for fit in fits)
    notes.append(
        f"PCA of weights: {words}; the axes are computed from at most {most:,} final snapshots, and all "
        "models that were read are projected on them. Hidden units have no order, so weights of independent "
        "initializations rarely form clusters."
    )
    if any(field["name"] == "diverged" for field in contents["fields"]):
        notes.append(
            "Models that diverged do not shape components; they are drawn no further out than others."
        )
    return notes


def _of_sample(contents: dict[str, Any]) -> list[str]:
    counts = {
        kind: sum(part["models"]["shape"][0] for part in contents[kind])
        for kind in ("histograms", "images", "edges")
    }
    sampled = "all" if counts["histograms"] == contents["shown"] else "a random sample of"
    notes = [
        f"Histograms of weights: of {sampled} {counts['histograms']:,} models, at up to {SAMPLED_SNAPSHOTS} "
        "snapshots each."
    ]
    if counts["images"]:
        notes.append(f"Images are decoded for {counts['images']:,} of these models.")
    elif any(metric["name"] == "psnr" for metric in contents["metrics"]) and not util.find_spec("torch"):
        notes.append("Images are left out: decoding them needs torch (pip install torch).")
    if counts["edges"]:
        notes.append(f"Edges, kept and pruned, are shown for {counts['edges']:,} of these models.")
    return notes
