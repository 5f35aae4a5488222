"""Writes networks that represent images as folders for the published loaders of such networks.

Each network's final snapshot becomes a file with a state_dict, named as in DWSNets (Navon et al. 2023;
neural-graphs, ScaleGMN and ProbeGen read the same) or NFN (Zhou et al. 2023). Each image set has a JSON file
with the paths and labels of the zoo's splits. A layout takes only networks of its own convention, and cannot
be imported again.
"""

from __future__ import annotations

import abc
import functools
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, ClassVar

import numpy as np

from builder.exporters.export_folder import ExportFolder
from builder.exporters.exporter import Exporter, Misfits, Options, chunks, no_final_step
from builder.image_sets import IMAGE_SETS
from nws_dataset.console import Progress
from nws_dataset.format.schema import SPLITS
from nws_dataset.format.subsets import IMAGE_SETS_OF_INRS
from nws_dataset.networks import siren
from nws_dataset.networks.layout import layout_of
from nws_dataset.reading.snapshots import Snapshots
from nws_dataset.reading.zoo import Zoo

if TYPE_CHECKING:
    import torch

CHUNK_SNAPSHOTS = 20_000  # read at once: 100 MB
SPLIT_NAMES = dict(zip(SPLITS, ("train", "val", "test"), strict=True))  # ours -> theirs


@dataclass(frozen=True)
class NamedNet:
    """The parts from which a layout makes the name of a network's file."""

    dataset: str
    split: str  # the loaders' name
    image: int  # number of its image in the image set
    rank: int  # of this image among the exported images
    label: int
    copy: int  # number of earlier networks of the same image


class SirenExporter(Exporter):
    """Writes networks that represent images, in one of the published layouts."""

    convention: ClassVar[str]  # of the networks that the layout holds
    channels: ClassVar[tuple[int, ...]]  # of their images
    most_copies: ClassVar[int | None]  # networks per image that the layout can hold; None: any number

    def __init__(self, zoo: Zoo, snapshots: Snapshots, options: Options) -> None:
        super().__init__(zoo, snapshots[snapshots["is_final"]], options)
        self.nets = list(self._nets())  # in the order of self.snapshots

    def note_misfits(self, snapshots: Snapshots, misfits: Misfits) -> None:
        names = ("model_id", "kind", "convention", "image_channels", "dataset", "image", "label")
        copies: Counter[tuple[str, int]] = Counter()
        order = np.argsort(snapshots["model_number"], kind="stable")
        for row in snapshots[order].select(names).to_pylist():
            reason = self._misfit(row)
            if not reason and self.most_copies is not None:
                copies[row["dataset"], row["image"]] += 1
                if copies[row["dataset"], row["image"]] > self.most_copies:
                    reason = f"more than {self.most_copies} of an image"
            if reason:
                misfits.models[reason].append(row["model_id"])

    def _misfit(self, row: Mapping[str, Any]) -> str:
        """Why a network does not fit into the layout, regardless of others; empty if it does."""
        if row["kind"] != siren.Architecture.kind:
            return f"kind {row['kind']}"
        if row["convention"] != self.convention:
            return f"convention {row['convention']}"
        if row["image_channels"] not in self.channels:
            return f"image_channels {row['image_channels']}"
        if row["image"] is None or row["label"] is None:
            return "no image or label"
        return ""

    def _nets(self) -> Iterator[NamedNet]:
        columns = [self.snapshots[name].tolist() for name in ("dataset", "split", "image", "label")]
        images = defaultdict(set)
        for dataset, _, image, _ in zip(*columns, strict=True):
            images[dataset].add(image)
        ranks = {name: {image: i for i, image in enumerate(sorted(found))} for name, found in images.items()}
        copies: Counter[tuple[str, int]] = Counter()
        for dataset, split, image, label in zip(*columns, strict=True):
            copy = copies[dataset, image]
            copies[dataset, image] += 1
            yield NamedNet(dataset, SPLIT_NAMES[split], image, ranks[dataset][image], label, copy)

    @abc.abstractmethod
    def path(self, net: NamedNet) -> str:
        """A network's file."""

    @abc.abstractmethod
    def splits_path(self, dataset: str) -> str:
        """The file of an image set's splits; paths in it are relative to its folder."""

    @abc.abstractmethod
    def name(self, layer: int, last: bool) -> str:
        """The prefix of the names of a layer's tensors."""

    def splits(self, nets: list[NamedNet]) -> dict[str, Any]:
        """The paths and labels of each split of an image set."""
        folder = self.splits_path(nets[0].dataset).rpartition("/")[0]
        found: dict[str, Any] = {name: {"path": [], "label": []} for name in SPLIT_NAMES.values()}
        for net in sorted(nets, key=lambda net: (net.copy, net.rank)):
            found[net.split]["path"].append(self.path(net).removeprefix(f"{folder}/"))
            found[net.split]["label"].append(net.label)
        return found

    def files(self) -> list[str]:
        no_final_step(self.options, self.convention)
        datasets = sorted({net.dataset for net in self.nets})
        return [*map(self.splits_path, datasets), *map(self.path, self.nets)]

    def write(self, folder: ExportFolder, progress: Progress) -> list[str]:
        by_dataset: dict[str, list[NamedNet]] = defaultdict(list)
        for net in self.nets:
            by_dataset[net.dataset].append(net)
        for dataset, nets in sorted(by_dataset.items()):
            snapshots, left = self.snapshots.filter(dataset=dataset), iter(nets)
            for part in chunks(snapshots, CHUNK_SNAPSHOTS):
                for row in self.zoo.weights(part):
                    content = self._state_dict(part, row)
                    folder.write(self.path(next(left)), functools.partial(_save, content))
                    progress.advance(note=dataset)
            folder.put(self.splits_path(dataset), (json.dumps(self.splits(nets)) + "\n").encode())
        return []

    def _state_dict(self, snapshots: Snapshots, row: np.ndarray) -> dict[str, torch.Tensor]:
        """A network's tensors by their published names, each a copy."""
        import torch

        layout = layout_of(self.zoo.architecture(snapshots[0]))
        layers = list(dict.fromkeys(spec.layer for spec in layout.tensors))
        names = {layer: self.name(i, layer == layers[-1]) for i, layer in enumerate(layers)}
        return {
            f"{names[spec.layer]}.{spec.role}": torch.from_numpy(row[spec.offset : spec.stop].copy()).reshape(
                spec.shape
            )
            for spec in layout.tensors
        }


def _save(state: dict[str, torch.Tensor], file: BinaryIO) -> None:
    import torch

    torch.save(state, file)


class DwsExporter(SirenExporter):
    """Writes the folders of DWSNets: one for each network, or for each part of Fashion-MNIST."""

    title = "DWSNets' layout"
    convention = "dws"
    channels = (1,)
    most_copies = 1
    # Fashion-MNIST's release has names of its own; other image sets are named as in MNIST's
    fashion = "fashion_mnist"
    fashion_folder = "fmnist_inrs"
    names = re.compile(
        rf"({'|'.join(IMAGE_SETS_OF_INRS)}|fmnist)_splits\.json|fmnist_inrs/(train|test)/model_\d+\.pth"
        rf"|({'|'.join(IMAGE_SETS_OF_INRS)})_png_(training|testing)_\d+_\d+/checkpoints/model_final\.pth"
    )

    def path(self, net: NamedNet) -> str:
        train_images = IMAGE_SETS[net.dataset].train_images
        is_test = net.image >= train_images
        number = net.image - train_images * is_test
        if net.dataset == self.fashion:
            return f"{self.fashion_folder}/{'test' if is_test else 'train'}/model_{number}.pth"
        part = "testing" if is_test else "training"
        return f"{net.dataset}_png_{part}_{net.label}_{number}/checkpoints/model_final.pth"

    def splits_path(self, dataset: str) -> str:
        return f"{'fmnist' if dataset == self.fashion else dataset}_splits.json"

    def name(self, layer: int, last: bool) -> str:
        return f"seq.{layer}"


class NfnExporter(SirenExporter):
    """Writes the folders of NFN: one for each class, and for each further copy of the images.

    NFN's loader numbers the networks and cuts splits at two numbers from the file of splits. If a whole image
    set is exported, a network's number is that of its image.
    """

    title = "NFN's layout"
    convention = "nfn"
    channels = (1, 3)
    most_copies = None
    folders: ClassVar[Mapping[str, str]] = {"fashion_mnist": "fashion", "cifar10": "cifar"}
    names = re.compile(
        rf"siren_({'|'.join((*IMAGE_SETS_OF_INRS, *folders.values()))})_wts"
        r"/(splits\.json|randinit_smaller(_aug\d+)?_\ds/net\d+\.pth)"
    )

    def path(self, net: NamedNet) -> str:
        copy = f"_aug{net.copy - 1}" if net.copy else ""
        return f"{self._folder(net.dataset)}/randinit_smaller{copy}_{net.label}s/net{net.rank}.pth"

    def splits_path(self, dataset: str) -> str:
        return f"{self._folder(dataset)}/splits.json"

    def _folder(self, dataset: str) -> str:
        return f"siren_{self.folders.get(dataset, dataset)}_wts"

    def name(self, layer: int, last: bool) -> str:
        return f"net.{layer}" if last else f"net.{layer}.linear"

    def splits(self, nets: list[NamedNet]) -> dict[str, Any]:
        sizes = Counter(net.split for net in nets if not net.copy)
        points = [sizes["train"], sizes["train"] + sizes["val"]]
        return {"split_points": points, **super().splits(nets)}
