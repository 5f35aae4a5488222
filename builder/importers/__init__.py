"""The two original releases as subsets of a zoo of ours: which there are, and what a reader should know about
them.

`builder.importers.release.import_zoo` writes them; `nws` and `small_cnn` read the files. Imports nothing
heavy: the card reads it too.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ImportedSubset:
    """A subset that was imported, not trained by the builder."""

    name: str
    kind: str  # of the release, as `nws-build --import` takes it
    like: str  # the subset of ours that draws the same recipes (a key of nws_dataset.recipe.SUBSETS)
    description: str
    source: str  # where the release is told of
    licence: str  # of the release
    notes: tuple[str, ...]  # in what its numbers differ from those of the builder's own subsets


_NWS = "Eilertsen et al. 2020, https://github.com/gabrieleilertsen/nws"
_NWS_LICENCE = "not told for the data; BSD for its code"
_NWS_NOTES = (
    "The split is the original's; nets that its split files leave out (very low test accuracy) are left "
    "out here too.",
    "Weights were float64 and are rounded to float32; dense layers after the flatten take channel, height, "
    "width order, as elsewhere here.",
    "The output layer has 20 units for 10 classes.",
    "Accuracies are the original's: taken with the batch's statistics, a partial last batch dropped; the "
    "training accuracy is the mean over"
    " the epoch's batches while it was trained (of the first snapshot: one batch). Losses and accuracies "
    "of single classes are not told.",
)
_SMALL_CNN = (
    "Unterthiner et al. 2020, "
    "https://github.com/google-research/google-research/tree/master/dnn_predict_accuracy"
)
_SMALL_CNN_LICENCE = "CC BY 4.0"
_SMALL_CNN_NOTES = (
    "The release has no split; models are split as everywhere here, by a hash of model_id and the seed.",
    "Losses are the release's, which add l2 * sum(w^2) over the kernels to the cross-entropy.",
    "Steps are counted from the epoch and the number of training images; seeds are the release's "
    "config.random_seed.",
    "Models without a row for each of the snapshots' epochs are left out.",
)

IMPORTED: dict[str, ImportedSubset] = {
    subset.name: subset
    for subset in (
        ImportedSubset(
            "main_2020",
            "nws",
            "main",
            "the original neural weight space, random architectures",
            _NWS,
            _NWS_LICENCE,
            _NWS_NOTES,
        ),
        ImportedSubset(
            "fixed_2020",
            "nws",
            "fixed",
            "the original neural weight space, one architecture",
            _NWS,
            _NWS_LICENCE,
            _NWS_NOTES,
        ),
        ImportedSubset(
            "small_cnn_2020",
            "small_cnn",
            "small_cnn",
            "the original Small CNN Zoo",
            _SMALL_CNN,
            _SMALL_CNN_LICENCE,
            _SMALL_CNN_NOTES,
        ),
    )
}
KINDS = tuple(dict.fromkeys(subset.kind for subset in IMPORTED.values()))


def subsets_of(kind: str) -> dict[str, str]:
    """The subsets of a release: the one of ours that each is like -> its name.

    Example:
        >>> subsets_of("nws")
        {'main': 'main_2020', 'fixed': 'fixed_2020'}
    """
    return {subset.like: subset.name for subset in IMPORTED.values() if subset.kind == kind}
