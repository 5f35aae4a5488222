"""Evaluates the measurements: ratios and their targets, fractions of the peak, hours for the whole zoo."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from builder.benchmark.contenders import flops_of
from builder.benchmark.timing import Measured
from builder.benchmark.workloads import SEED
from builder.forecasting.costs import epoch_flops, evaluated_images, forward_flops
from builder.plan import Model, select
from nws_dataset.format.subsets import SUBSETS

EPOCHS = 30  # per model, for the projection
PROJECTED = "main", "fixed"  # subsets


@dataclass(frozen=True)
class Comparison:
    """Ours beside the fastest of some peers."""

    where: str
    peers: tuple[str, ...]
    # workload -> smallest ratio that is good enough
    targets: Mapping[str, float] = field(default_factory=dict)


SMALL = "siren", "kan_inr", "kan"  # workloads of networks that fit into a core's cache
COMPARISONS = {
    "cpu": (
        Comparison(
            "one thread",
            ("plain",),
            {
                "small_cnn 64": 7,
                "small_cnn 512": 5.5,
                "fixed": 2.5,
                "main, median": 2.2,
                "main, least": 0.9,
                **dict.fromkeys(SMALL, 10.0),
            },
        ),
        Comparison("one thread", ("vmap",)),
        Comparison("one thread", ("vmap", "batched"), dict.fromkeys(SMALL, 4.0)),
        Comparison(
            "all cores",
            ("careful",),
            {
                "small_cnn 64": 6,
                "small_cnn 512": 3.5,
                "fixed": 2,
                "main, median": 1.8,
                "main, least": 0.85,
                "resnet": 1,
            },
        ),
    ),
    "cuda": (
        Comparison("GPU", ("plain",), {"fixed": 30, "main, median": 10}),
        Comparison("GPU", ("careful",)),
        Comparison("GPU", ("vmap",)),
        Comparison("GPU", ("careful", "vmap"), {"fixed": 5}),
    ),
}
# workload -> smallest fraction of the peak
PEAK_TARGETS: dict[str, dict[str, float]] = {"cpu": {"fixed": 0.55}, "cuda": {"fixed": 0.25}}
HOURS_TARGETS = {"cpu": None, "cuda": 24.0}


@dataclass(frozen=True)
class SummaryLine:
    """A number in the summary."""

    name: str
    value: float
    target: float | None = None
    at_most: bool = False  # the target is an upper bound

    @property
    def met(self) -> bool | None:
        if self.target is None:
            return None
        return self.value <= self.target if self.at_most else self.value >= self.target


@dataclass(frozen=True)
class DeviceResults:
    """All measurements on a device."""

    device: torch.device
    measured: Sequence[Measured]
    about: Mapping[str, Any]  # the machine, the settings

    @property
    def widest(self) -> str:
        """The setup that uses the whole device."""
        return "GPU" if self.device.type == "cuda" else "all cores"

    @property
    def setups(self) -> list[str]:
        """The setups in which contenders were timed: one thread, all cores or a GPU."""
        return list(self.measured[0].rates)

    def workloads(self) -> dict[str, list[Measured]]:
        """The measurements of each workload."""
        groups: dict[str, list[Measured]] = {}
        for measured in self.measured:
            groups.setdefault(measured.case.workload, []).append(measured)
        return groups

    def flop_rate(self, measured: Measured, where: str, contender: str) -> float:
        """FLOP/s of a contender on a case."""
        return measured.rate(where, contender) * flops_of(contender, measured.case, self.device)

    def pooled_flop_rate(self, group: Sequence[Measured], where: str, contender: str) -> float:
        """FLOP/s of a contender that takes the same number of images from each case."""
        flops = [measured.case.forward_flops for measured in group]
        return sum(flops) / sum(
            f / self.flop_rate(m, where, contender) for f, m in zip(flops, group, strict=True)
        )

    def peak(self, where: str) -> float:
        """The largest FLOP/s of `contenders.Peak`, in any repetition."""
        return max(
            max(m.rates[where]["peak"]) * flops_of("peak", m.case, self.device)
            for m in self.measured
            if m.has(where, "peak")
        )

    def slower(self) -> list[tuple[str, str, Measured]]:
        """The cases in which a peer is faster than ours: setup, peer, case."""
        return [
            (where, peer, measured)
            for where, peer in dict.fromkeys(
                (comparison.where, peer)
                for comparison in COMPARISONS[self.device.type]
                for peer in comparison.peers
            )
            for measured in self.measured
            if measured.has(where, peer)
            and self.flop_rate(measured, where, peer) > self.flop_rate(measured, where, "ours")
        ]

    def summary(self) -> list[SummaryLine]:
        """The numbers with targets, and a few more."""
        lines = [line for comparison in COMPARISONS[self.device.type] for line in self._ratios(comparison)]
        for where in self.setups:
            lines.append(SummaryLine(f"peak, {where}, GFLOP/s", self.peak(where) / 1e9))
            for workload, group in self.workloads().items():
                if not group[0].has(where, "ours"):
                    continue
                fraction = self.pooled_flop_rate(group, where, "ours") / self.peak(where)
                lines.append(
                    SummaryLine(
                        f"ours / peak, {where}: {workload}",
                        fraction,
                        PEAK_TARGETS[self.device.type].get(workload),
                    )
                )
        return [*lines, *self._projection()]

    def _ratios(self, comparison: Comparison) -> Iterator[SummaryLine]:
        where, peers = comparison.where, comparison.peers

        def ratio(group: Sequence[Measured]) -> float:
            return self.pooled_flop_rate(group, where, "ours") / max(
                self.pooled_flop_rate(group, where, peer) for peer in peers
            )

        for workload, group in self.workloads().items():
            timed = [measured for measured in group if all(measured.has(where, peer) for peer in peers)]
            if not timed:
                continue
            values = {workload: ratio(timed)}
            if workload == "main":
                each = [ratio([measured]) for measured in timed]
                values = {"main, median": statistics.median(each), "main, least": min(each)}
            for name, value in values.items():
                label = name if len(timed) == len(group) else f"{name} ({len(timed)} of {len(group)} cases)"
                yield SummaryLine(
                    f"ours / {' or '.join(peers)}, {where}: {label}", value, comparison.targets.get(name)
                )

    def _projection(self) -> Iterator[SummaryLine]:
        """Hours for the whole zoo, at the rates of the measured cases of each subset."""
        training = evaluation = 0.0
        groups = self.workloads()
        plans = {name: select(SUBSETS[name], SEED) for name in PROJECTED}
        for name, models in plans.items():
            training += training_flops(models) / self.pooled_flop_rate(groups[name], self.widest, "ours")
            evaluation += evaluation_flops(models) / self.pooled_flop_rate(
                groups[name], self.widest, "evaluation"
            )
        count = sum(map(len, plans.values()))
        target = HOURS_TARGETS[self.device.type]
        yield SummaryLine(
            f"hours for {count:,} models of {EPOCHS} epochs",
            (training + evaluation) / 3600,
            target,
            at_most=True,
        )
        yield SummaryLine("of them evaluation and export", evaluation / 3600)

    def to_json(self) -> dict[str, Any]:
        """Every number."""
        return {
            **self.about,
            "device": self.device.type,
            "cases": [self._case(measured) for measured in self.measured],
            "summary": [dataclasses.asdict(line) | {"met": line.met} for line in self.summary()],
        }

    def _case(self, measured: Measured) -> dict[str, Any]:
        case, recipe = measured.case, measured.case.model.recipe
        return {
            "workload": case.workload,
            "model_id": case.model.id,
            "models_together": len(case.models),
            "recipe": dataclasses.asdict(recipe) | {"architecture": recipe.architecture.id},
            "flops": {
                s: flops_of(s, case, self.device)
                for contenders in measured.rates.values()
                for s in contenders
            },
            "steps_per_second": measured.rates,
            "gpu_memory_bytes": measured.memory,
        }


def training_flops(models: Sequence[Model]) -> float:
    """FLOPs of the models' epochs."""
    return EPOCHS * sum(epoch_flops(model, None) for model in models)


def evaluation_flops(models: Sequence[Model]) -> float:
    """FLOPs of the models' evaluations."""
    return sum(
        evaluated_images(model, None, EPOCHS) * forward_flops(model.recipe.architecture) for model in models
    )
