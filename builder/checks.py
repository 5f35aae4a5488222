"""Re-reads a zoo and compares it with its index, from bytes to accuracies; repeats trainings."""

from __future__ import annotations

import functools
import math
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
import yaml

from builder.images import ImageSet, load_image_set
from builder.plan import BACKENDS, DEVICES, Model, up_to
from builder.store import CARD_NAME, GENERATOR_VERSION, planned_columns, remembered_images, shard_of
from builder.training import batches
from builder.training.backend import Backend
from builder.training.bank import Images, bank_of
from builder.training.device import make_backend, missing_requirement
from builder.training.implicit import (
    ImageBackend,
    ImageCohort,
    evaluate_image_rows,
    fit_of,
    image_of,
    make_image_backend,
    target_of,
)
from builder.training.train import Cohort, edge_scores_of, evaluate_rows, evaluate_snapshots
from nws_dataset.errors import ZooError
from nws_dataset.files import sha256_file
from nws_dataset.format import manifest, shards
from nws_dataset.format.schema import METADATA_SCHEMA
from nws_dataset.format.subsets import SUBSETS
from nws_dataset.networks.network import coordinates
from nws_dataset.reading.snapshots import Snapshots
from nws_dataset.reading.zoo import Zoo

# share of test images that the plain network may classify differently (float32 ties)
PLAIN_TOLERANCE = 3 / 10_000
ROUNDING = 2e-3  # of an accuracy or a loss that another device took
PSNR_TOLERANCE = 0.01  # dB
ROUNDED, PERFECT = 90.0, 1000.0  # dB: from there on errors are the rounding of float32; without any error
EVALUATION_BLOCK = 500  # images a pass of the plain network


class Verifier:
    """The checks of one zoo.

    Each returns what it has checked, and raises a ZooError at the first thing that is wrong.

    Args:
        folder: the zoo's folder.
        images: folder with image files; None: where the builder found them on this machine, else the Hub.
    """

    def __init__(self, folder: Path, images: Path | None = None) -> None:
        self.folder = folder
        # always a folder, even if the name could be a repository's
        self.zoo = Zoo(os.path.join(os.curdir, folder), check=True)
        self.snapshots = Snapshots(self.zoo.index)
        self.images = images or remembered_images(folder)

    def files(self) -> str:
        """Size and sha256 of every file. No other files, as the card's patterns would include them."""
        lying = {
            path.relative_to(self.folder).as_posix()
            for name in ("index", "snapshots")
            for path in (self.folder / name).rglob("*")
        }
        strange = sorted(
            name for name in lying - self.zoo.manifest.files.keys() if not (self.folder / name).is_dir()
        )
        if strange:
            raise ZooError(
                self.folder / strange[0],
                expected="files that nws.json lists",
                found="another",
                do="build again, or remove it",
            )
        for relative, entry in self.zoo.manifest.files.items():
            path = self.zoo.manifest.locate(self.folder, relative)
            found = sha256_file(path)
            if found != entry.sha256:
                raise ZooError(
                    path, expected=f"sha256 {entry.sha256}", found=found, do="fetch or build the file again"
                )
        return f"{len(self.zoo.manifest.files)} files, sizes and sha256"

    def card(self) -> str:
        """The card describes the files correctly to the Hub and `datasets`."""
        expected, found = self._front_matters()
        if _without_state(found) != _without_state(expected):
            self._other_card("configs and features as nws.json has them")
        from builder import gallery  # matplotlib is slow to load

        plots = [name for name in gallery.stale(self.folder) if (self.folder / name).exists()]
        for name in plots:
            raise ZooError(
                self.folder / name,
                expected="what is drawn from this index",
                found="what was drawn from another one, or is damaged",
                do="run nws build again to redraw it",
            )
        return f"{len(expected['configs'])} configs"

    def state(self) -> str:
        """The card names this state of the zoo, which is part of the key of the cache of `datasets`.

        Checked last: any other error says more.
        """
        expected, found = self._front_matters()
        if found != expected:
            self._other_card(f"this index's numbers of snapshots and {manifest.state(self.zoo.manifest)}")
        return "the card names this nws.json"

    def _front_matters(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """What the card should say to `datasets`, and what it does say."""
        path = self.folder / CARD_NAME
        if not path.is_file():
            raise ZooError(path, expected="the card", found="no file", do="run nws build again to rewrite it")
        parts = path.read_text(encoding="utf-8", errors="replace").split("---\n", 2)
        try:
            front = yaml.safe_load(parts[1]) if len(parts) == 3 else None
        except (yaml.YAMLError, ValueError, RecursionError):
            front = None
        expected = manifest.configs(self.zoo.manifest, self.zoo.index)
        return expected, {name: front.get(name) for name in expected} if isinstance(front, dict) else {}

    def _other_card(self, expected: str) -> NoReturn:
        raise ZooError(
            self.folder / CARD_NAME,
            expected=expected,
            found="others",
            do="run nws build again to rewrite it",
        )

    def values(self) -> str:
        """Every value at its offset: sha256, header, shape, finite numbers."""
        weights = 0
        for snapshot in self.snapshots:
            numbers = self.zoo.row(snapshot)
            if numbers.size != snapshot["num_weights"] or not np.isfinite(numbers).all():
                where = f"{self.folder / snapshot['file']} at byte {snapshot['offset']}"
                raise ZooError(
                    where,
                    expected=f"{snapshot['num_weights']} finite weights",
                    found=f"{numbers.size}, not all finite",
                    do="build it again",
                )
            weights += numbers.size
        scores = self._edge_scores()
        of_edges = f", {scores} edge scores" if scores else ""
        return (
            f"{len(self.snapshots)} snapshots, {weights} weights{of_edges}: offsets, sha256, headers, finite"
        )

    def _edge_scores(self) -> int:
        """The number of edges' scores, each value checked; those of architectures that have scores must be
        there.
        """
        count = 0
        for snapshot in self.snapshots if self.snapshots.table["kind"].null_count == 0 else ():
            if not self.zoo.architecture(snapshot).edge_scores():
                continue
            scores = self.zoo.edge_scores([snapshot])[0]
            if not (np.isfinite(scores) & (scores >= 0)).all():
                raise ZooError(
                    f"{snapshot['model_id']} snapshot {snapshot['snapshot']}",
                    expected="scores of edges that are finite and not negative",
                    found="others",
                    do="build it again",
                )
            count += scores.size
        return count

    def shards(self) -> str:
        """The shards' columns agree with the index."""
        index = {(snapshot["model_id"], snapshot["snapshot"]): snapshot for snapshot in self.snapshots}
        seen = 0
        for relative in sorted({str(name) for name in self.snapshots["file"]}):
            for batch in shards.read_snapshots(self.folder / relative, METADATA_SCHEMA.names):
                for snapshot in batch.to_pylist():
                    known = index.get((snapshot["model_id"], snapshot["snapshot"]))
                    if known is None or not all(
                        _same(known[name], value, exact=True) for name, value in snapshot.items()
                    ):
                        where = (
                            f"{self.folder / relative} {snapshot['model_id']} snapshot {snapshot['snapshot']}"
                        )
                        raise ZooError(
                            where,
                            expected="the snapshot that the index has",
                            found="another",
                            do="build the index again",
                        )
                    seen += 1
        if seen != len(index):
            raise ZooError(
                self.folder,
                expected=f"{len(index)} snapshots in the shards",
                found=str(seen),
                do="build the index again",
            )
        return f"{seen} snapshots of the shards equal those of the index"

    def counts(self) -> str:
        """Every model has each of its snapshots once, and the number of models is that of nws.json."""
        numbers_of: dict[str, list[int]] = {}
        for snapshot in self.snapshots:
            numbers_of.setdefault(snapshot["model_id"], []).append(snapshot["snapshot"])
            if snapshot["is_final"] != (snapshot["snapshot"] == snapshot["num_snapshots"]):
                raise ZooError(
                    snapshot["model_id"],
                    expected="is_final on the last snapshot only",
                    found=str(snapshot["snapshot"]),
                    do="build it again",
                )
        expected = {snapshot["model_id"]: snapshot["num_snapshots"] for snapshot in self.snapshots}
        for identifier, numbers in numbers_of.items():
            if len(numbers) != expected[identifier] or sorted(numbers) != list(range(1, len(numbers) + 1)):
                found = f"{len(numbers)}: {sorted(numbers)[:30]}"
                raise ZooError(
                    identifier,
                    expected=f"snapshots 1 to {expected[identifier]}",
                    found=found,
                    do="build it again",
                )
        per_subset = Counter(snapshot["subset"] for snapshot in self.snapshots if snapshot["is_final"])
        for name, entry in self.zoo.manifest.subsets.items():
            if per_subset[name] != entry.num_models:
                raise ZooError(
                    self.folder,
                    expected=f"{entry.num_models} models of {name}",
                    found=str(per_subset[name]),
                    do="build it again",
                )
        return f"{len(numbers_of)} models with all their snapshots"

    def plan(self) -> str:
        """Splits, recipes and shards follow the plan; an imported model has one split in all snapshots."""
        if self.zoo.manifest.generator_version != GENERATOR_VERSION:
            return (
                f"skipped: generator version {self.zoo.manifest.generator_version} made this zoo, this "
                f"is {GENERATOR_VERSION}"
            )
        planned = {
            name: {**planned_columns(model), "file": shard_of(model)} for name, model in self._models.items()
        }
        splits: dict[str, str] = {}
        for snapshot in self.snapshots:
            expected = {"split": splits.setdefault(snapshot["model_id"], snapshot["split"])}
            if snapshot["subset"] not in self.imported:
                expected = planned[self.model(snapshot).id]
            wrong = [name for name, value in expected.items() if snapshot[name] != value]
            if wrong:
                found = f"another {', '.join(wrong)} in snapshot {snapshot['snapshot']}"
                raise ZooError(
                    snapshot["model_id"],
                    expected="the plan's recipe and split",
                    found=found,
                    do="build it again",
                )
        trained = sum(
            entry.num_models for name, entry in self.zoo.manifest.subsets.items() if name not in self.imported
        )
        return f"{trained} models with the plan's recipes, {len(splits)} with one split each{self._skipped()}"

    def reevaluate(self, count: int) -> str:
        """Evaluate final networks again: exactly by the builder on the build's device, and plainly."""
        worst, all_exact, chosen = 0, True, evenly_spaced(self._trained_here("--reevaluate"), count)
        for snapshot in chosen:
            exact = self._built_on(snapshot) == self._device(snapshot)
            all_exact &= exact
            for name, value in self._evaluated(snapshot).items():
                if not _same(snapshot[name], value, exact=exact):
                    found = f"{value} by the builder's evaluation"
                    raise ZooError(
                        snapshot["model_id"],
                        expected=f"{name} {snapshot[name]}",
                        found=found,
                        do="see CONTRIBUTING.md",
                    )
            if snapshot["image"] is not None:
                self._check_image(snapshot)
                continue
            images = self.bank(snapshot)
            difference = abs(
                self._plain_correct(snapshot, images)
                - round(snapshot["test_accuracy"] * len(images.test_labels))
            )
            worst = max(worst, difference)
            if difference > max(1, PLAIN_TOLERANCE * len(images.test_labels)):
                found = f"{difference} images otherwise by the plain network"
                raise ZooError(
                    snapshot["model_id"],
                    expected=f"test_accuracy {snapshot['test_accuracy']}",
                    found=found,
                    do="see CONTRIBUTING.md",
                )
        how = "exactly" if all_exact else "to another device's rounding"
        return (
            f"{len(chosen)} networks: the builder's evaluation {how}, the plain network within {worst} "
            f"images{self._skipped()}"
        )

    def _check_image(self, snapshot: Mapping[str, Any]) -> None:
        """Raise a ZooError unless the plain network gives a snapshot's image as well as the index says."""
        network, model = self.zoo.network(snapshot).double(), self.model(snapshot)
        architecture = self.zoo.architecture(snapshot)
        pixels, _ = image_of(model, self.bank(snapshot))
        target = target_of(architecture, pixels.cpu(), torch.float64)
        with torch.no_grad():
            values = network(coordinates(architecture, torch.float64))
        found, recorded = fit_of(architecture, values, target)["psnr"], snapshot["psnr"]
        ours, theirs = (PERFECT if psnr is None else psnr for psnr in (found, recorded))
        if abs(ours - theirs) > PSNR_TOLERANCE and min(ours, theirs) < ROUNDED:
            raise ZooError(
                snapshot["model_id"],
                expected=f"psnr {recorded}",
                found=f"{found} by the plain network",
                do="see CONTRIBUTING.md",
            )

    def retrain(self, count: int) -> str:
        """Train models again, each alone: all snapshots must be equal to the last bit."""
        chosen = evenly_spaced(self._trained_here("--retrain"), count)
        for final in chosen:
            model, device = self.model(final), self._device(final)
            if self._options(final["subset"])["backend"] == "torch" and self._built_on(final).type != "cpu":
                expected, found = (
                    "models whose bits do not depend on their neighbours",
                    (f"{model.id}, trained by torch on a GPU"),
                )
                raise ZooError("--retrain", expected=expected, found=found, do="leave it out")
            if device != self._built_on(final):
                raise ZooError(
                    "--retrain",
                    expected=f"the device that built {model.id} ({self._built_on(final)})",
                    found=str(device),
                    do="leave it out",
                )
            bank = {final["dataset"]: self.bank(final)}
            subset, architecture = SUBSETS[model.subset], model.recipe.architecture
            cohort: Cohort | ImageCohort
            if subset.of_images:
                backend = self._image_backend(final)
                cohort = ImageCohort(subset, architecture, bank, device=device, backend=backend)
            else:
                cohort = Cohort(subset, architecture, bank, device=device, backend=self._backend(final))
            (trained,) = cohort.train([model])
            recorded = self.snapshots.filter(model_id=model.id)
            for snapshot in recorded:
                again = trained.rows[snapshot["snapshot"] - 1]
                if again.tobytes() != self.zoo.row(snapshot).tobytes():
                    found = f"other weights in snapshot {snapshot['snapshot']}"
                    do = "retrain on the processor and with the torch version that built it"
                    raise ZooError(model.id, expected="the row that was recorded", found=found, do=do)
        return f"{len(chosen)} models trained again alone, equal in every bit{self._skipped()}"

    # For the checks

    @functools.cached_property
    def imported(self) -> list[str]:
        """The subsets that were imported."""
        return [name for name in self.zoo.manifest.subsets if name not in SUBSETS]

    def _skipped(self) -> str:
        """The note of a check that skips imported subsets."""
        return f"; without a plan, skipped: {', '.join(self.imported)}" if self.imported else ""

    def _trained_here(self, option: str) -> Snapshots:
        """The final networks of all planned subsets."""
        planned = [name for name in self.zoo.manifest.subsets if name not in self.imported]
        if self.imported and not planned:
            found = f"imported ones only ({', '.join(self.imported)})"
            raise ZooError(option, expected="models that nws build trained", found=found, do="leave it out")
        return self.snapshots.filter(is_final=True, subset=planned)

    @functools.cached_property
    def _models(self) -> dict[str, Model]:
        """The plan's models, up to the last one of each subset."""
        models = {}
        for name, entry in self.zoo.manifest.subsets.items():
            if entry.seed is None or name in self.imported:
                continue
            numbers = self.snapshots.filter(subset=name)["model_number"]
            last = int(numbers.max()) if len(numbers) else -1
            for model in up_to(SUBSETS[name], entry.seed, last, epochs=self._options(name)["epochs"]):
                models[model.id] = model
        return models

    def _options(self, subset: str) -> Mapping[str, Any]:
        """The options that a subset was built with."""
        options = self.zoo.manifest.subsets[subset].settings
        legal = {
            "backend": options["backend"] in BACKENDS,
            "device": options.get("device") in DEVICES,
            "tf32": isinstance(options.get("tf32"), bool),
            **{name: name in options and _is_limit(options[name]) for name in ("epochs", "train_images")},
        }
        for name, is_legal in legal.items():
            if not is_legal:
                where, found = self.folder / manifest.MANIFEST_NAME, repr(options.get(name, "none"))
                raise ZooError(
                    where,
                    expected=f"option {name} of subset {subset} as nws build writes it",
                    found=found,
                    do="build it again",
                )
        return options

    def model(self, snapshot: Mapping[str, Any]) -> Model:
        """The plan's model of a snapshot."""
        if snapshot["model_id"] not in self._models:
            raise ZooError(
                snapshot["model_id"],
                expected="a model of the plan",
                found="none of this number",
                do="build it again",
            )
        return self._models[snapshot["model_id"]]

    @functools.cache  # noqa: B019 -- lives as long as the program
    def _image_set(self, name: str, subset: str) -> ImageSet:
        images = load_image_set(name, self.images)
        recorded = self.zoo.manifest.subsets[subset].image_sets.get(name)
        if recorded is None:
            where = self.folder / manifest.MANIFEST_NAME
            raise ZooError(
                where,
                expected=f"image set {name} among those of subset {subset}",
                found="none",
                do="fetch or build it again",
            )
        expected = recorded.sha256
        if images.sha256 != expected:
            raise ZooError(
                f"image set {name}",
                expected=f"sha256 {expected}",
                found=images.sha256,
                do="give --images DIR with the images of the build",
            )
        return images

    def _built_on(self, snapshot: Mapping[str, Any]) -> torch.device:
        return torch.device(self._options(snapshot["subset"])["device"])

    def _device(self, snapshot: Mapping[str, Any]) -> torch.device:
        """The device that the snapshot's subset was built on, or the CPU if that is missing here."""
        options = self._options(snapshot["subset"])
        return torch.device(
            "cpu" if missing_requirement(options["device"], options["backend"]) else options["device"]
        )

    def _backend(self, snapshot: Mapping[str, Any]) -> Backend:
        """The backend that trained a snapshot's subset, on the device that is here."""
        options = self._options(snapshot["subset"])
        return make_backend(
            self.zoo.architecture(snapshot),
            self._device(snapshot),
            name=options["backend"],
            tf32=options["tf32"],
        )

    def _image_backend(self, snapshot: Mapping[str, Any]) -> ImageBackend:
        """The same of networks that represent images."""
        options, architecture = self._options(snapshot["subset"]), self.zoo.architecture(snapshot)
        return make_image_backend(architecture, self._device(snapshot), name=options["backend"])

    def _evaluated(self, snapshot: Mapping[str, Any]) -> dict[str, Any]:
        """A snapshot's accuracies and losses, by the builder's evaluation."""
        model, images = self.model(snapshot), self.bank(snapshot)
        weights = torch.from_numpy(self.zoo.row(snapshot).copy()).to(self._device(snapshot))[None]
        if model.image is not None:
            pixels, label = image_of(model, images)
            image_backend, architecture = self._image_backend(snapshot), model.recipe.architecture
            (found,) = evaluate_image_rows(image_backend, architecture, weights, pixels)
            return {**found, "label": label}
        images = batches.with_label_noise(model, images)
        parts = batches.split_images(model, images.train_labels)
        backend = self._backend(snapshot)
        (columns,) = evaluate_snapshots(backend, weights, model, images, parts)
        scores = edge_scores_of(backend, model, weights, images)
        if scores is not None:
            recorded = torch.from_numpy(self.zoo.edge_scores([snapshot])).to(scores)
            if not torch.allclose(scores, recorded, rtol=ROUNDING, atol=ROUNDING):
                raise ZooError(
                    snapshot["model_id"],
                    expected="the edge scores that were recorded",
                    found="others by the builder's evaluation",
                    do="see CONTRIBUTING.md",
                )
        if len(parts.validation):
            columns["validation_accuracy"] = evaluate_rows(backend, weights, model, images, parts.validation)[
                0
            ][0]
        return columns

    def bank(self, snapshot: Mapping[str, Any]) -> Images:
        """The images of a snapshot's model, prepared for its network."""
        return self._bank(
            snapshot["dataset"], snapshot["subset"], snapshot["architecture_json"], self._device(snapshot)
        )

    @functools.cache  # noqa: B019
    def _bank(self, dataset: str, subset: str, architecture_json: str, device: torch.device) -> Images:
        architecture = self.zoo.architecture({"architecture_json": architecture_json})
        limit = self._options(subset)["train_images"]
        return bank_of({dataset: self._image_set(dataset, subset)}, architecture, device, limit)[dataset]

    @torch.no_grad()
    def _plain_correct(self, snapshot: Mapping[str, Any], images: Images) -> int:
        network = self.zoo.network(snapshot).to(images.test_images.device)
        blocks = zip(
            images.test_images.split(EVALUATION_BLOCK),
            images.test_labels.split(EVALUATION_BLOCK),
            strict=True,
        )
        return sum(int((network(x).argmax(1) == y.to(x.device)).sum()) for x, y in blocks)


def _without_state(front: dict[str, Any]) -> dict[str, Any]:
    """A card's front matter without what changes with every snapshot."""
    infos = front.get("dataset_info")
    kept = (
        [
            {name: info.get(name) for name in ("config_name", "features")}
            for info in infos
            if isinstance(info, dict)
        ]
        if isinstance(infos, list)
        else infos
    )
    return {**front, "dataset_info": kept}


def _is_limit(value: object) -> bool:
    """Whether a value is valid for a limiting option: a positive count, or None for no limit."""
    return value is None or (manifest.is_count(value) and value != 0)


def _same(recorded: Any, found: Any, *, exact: bool) -> bool:
    """Whether two values of a column are equal (nan equals nan); if not `exact`, up to rounding."""
    if isinstance(recorded, list) and isinstance(found, list):
        return len(recorded) == len(found) and all(
            _same(a, b, exact=exact) for a, b in zip(recorded, found, strict=True)
        )
    if exact or not (isinstance(recorded, float) and isinstance(found, float)) or recorded != recorded:
        return bool(recorded == found or (recorded != recorded and found != found))
    return math.isclose(recorded, found, rel_tol=ROUNDING, abs_tol=ROUNDING)


def evenly_spaced(snapshots: Snapshots, count: int) -> list[Mapping[str, Any]]:
    """`count` evenly spaced snapshots, or all if there are fewer."""
    indices = dict.fromkeys(
        np.linspace(0, len(snapshots) - 1, min(count, len(snapshots))).round().astype(int).tolist()
    )
    return [snapshots[i] for i in indices]


def checks(verifier: Verifier, reevaluate: int, retrain: int) -> Iterator[tuple[str, Callable[[], str]]]:
    """Yield (name, check) in the order in which they run."""
    for name in ("files", "card", "values", "shards", "counts", "plan"):
        yield name, getattr(verifier, name)
    if reevaluate:
        yield "reevaluate", lambda: verifier.reevaluate(reevaluate)
    if retrain:
        yield "retrain", lambda: verifier.retrain(retrain)
    yield "state", verifier.state
