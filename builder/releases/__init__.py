"""Layouts of the two original releases: names of files and columns, codes, order of weights.

`builder.importers` reads them, `builder.exporters` writes them.
"""

OWN = "nws."  # prefix of columns that an export adds to those of the release; readers may ignore them
OWN_NUMBER, OWN_SPLIT, OWN_SEED, OWN_DIVERGED, OWN_MAX_EPOCHS, OWN_EPOCH, OWN_SNAPSHOTS = (
    f"{OWN}{name}"
    for name in ("model_number", "split", "seed", "diverged", "max_epochs", "epoch", "num_snapshots")
)
MAX_EPOCHS, MAX_STEPS = 10**6, 10**12  # of a training: the releases have 1,000 epochs at most
EXPORT_NAME = "export.json"  # beside an exported release: what was exported
EPOCHS_NOTE = "STEPS.txt"  # beside an image set's files whose final snapshots were relabelled
