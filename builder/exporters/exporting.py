"""Writes a zoo in the layout of an original release."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from builder.exporters.export_folder import open_export
from builder.exporters.exporter import Exporter, Options, identity_of
from builder.exporters.nws import NwsExporter
from builder.exporters.siren import DwsExporter, NfnExporter
from builder.exporters.small_cnn import SmallCnnExporter
from nws_dataset.console import Progress
from nws_dataset.errors import ZooError
from nws_dataset.format.subsets import LAYOUTS
from nws_dataset.reading.zoo import Zoo

EXPORTERS: dict[str, type[Exporter]] = {
    "nws": NwsExporter,
    "small_cnn": SmallCnnExporter,
    "dws": DwsExporter,
    "nfn": NfnExporter,
}
assert tuple(EXPORTERS) == LAYOUTS


def export_zoo(
    release: str,
    zoo: str | Path,
    out: Path,
    *,
    revision: str | None = None,
    subsets: Sequence[str] = (),
    partial: bool = False,
    final_step: int | None = None,
) -> str:
    """Write a zoo in the layout of a release, for loaders that were written for the release.

    Args:
        release: "nws" (the original neural weight space), "small_cnn" (the Small CNN Zoo); for SIRENs,
            "dws" (DWSNets) or "nfn" (NFN).
        zoo: its folder, or "org/name" on the Hub.
        revision: branch, tag or commit of a zoo on the Hub.
        out: a folder that is empty, missing, or has an export of the same zoo.
        subsets: names of the subsets to export; none for all.
        partial: leave out the models that do not fit into the layout, and name them.
        final_step: what the layout states instead of each model's last epoch; "small_cnn" only.

    Returns:
        What was exported and what was left out, one line each.

    Raises:
        ZooError: if there is no such zoo, it does not fit into the layout, or the folder contains something
            else.

    Example:
        >>> from builder.importers.importing import import_zoo
        >>> _ = import_zoo("small_cnn", Path("smallcnnzoo"), Path("imported"))
        >>> print(export_zoo("small_cnn", "imported", Path("exported")))
        exported: 2 models of small_cnn_2020 in the Small CNN Zoo's layout
        mnist: split.csv cannot keep the zoo's splits: no models for validation, test
    """
    if release not in EXPORTERS:
        found, do = repr(release), "choose one of them"
        raise ZooError("--export", expected=f"one of {', '.join(EXPORTERS)}", found=found, do=do)
    opened = Zoo(str(zoo), revision=revision)
    unknown = [name for name in subsets if name not in opened.subsets]
    if unknown:
        expected = f"subsets of {opened.name}: {', '.join(opened.subsets)}"
        raise ZooError("--subsets", expected=expected, found=", ".join(unknown), do="choose among them")
    snapshots = opened.filter(subset=list(subsets)) if subsets else opened.filter()
    if not len(snapshots):
        raise ZooError(opened.name, expected="models", found="none", do="build some first")
    exporter = EXPORTERS[release](opened, snapshots, Options(partial, final_step))
    identity = identity_of(opened, release, exporter.snapshots)
    try:
        with open_export(out, identity, exporter.files(), exporter.names) as folder:
            exporter.fetch()
            with Progress(f"{release} in {out}", exporter.num_models, unit="models") as progress:
                lines = exporter.write(folder, progress)
    except OSError as error:
        do = "permit it or free space, then run again"
        raise ZooError(
            error.filename or out, expected="files that can be read and written", found=str(error), do=do
        ) from error
    models = f"{exporter.num_models} models of {', '.join(exporter.subsets)}"
    left_out = [f"left out: {exporter.misfits.with_names()}"] if exporter.misfits.models else []
    return "\n".join([f"{out}: {models} in {exporter.title}", *lines, *left_out])
