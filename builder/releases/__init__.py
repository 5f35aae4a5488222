"""How the two original releases are laid out: names of files and columns, codes, and the order of the
weights. `builder.importers` reads them so, `builder.exporters` writes them so.
"""

OWN = "nws."  # begins the name of a column that an export adds and the releases lack; a reader may ignore it
OWN_NUMBER, OWN_SPLIT, OWN_SEED, OWN_DIVERGED, OWN_MAX_EPOCHS, OWN_EPOCH, OWN_SNAPSHOTS = (
    f"{OWN}{name}"
    for name in ("model_number", "split", "seed", "diverged", "max_epochs", "epoch", "num_snapshots")
)
EXPORT_NAME = "export.json"  # beside an exported release: what it is an export of
EPOCHS_NOTE = "STEPS.txt"  # beside an image set's files whose final snapshots were relabelled
