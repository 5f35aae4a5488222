"""The tables that the benchmark prints."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from builder.benchmark.contenders import EVALUATED_IMAGES
from builder.benchmark.measurements import DeviceResults, SummaryLine
from builder.benchmark.timing import Measured
from builder.forecasting.forecast import format_number
from builder.plan import Model
from nws_dataset.console import Table
from nws_dataset.networks import cnn

MET = {None: "", True: "yes", False: "no"}


def tables(results: DeviceResults) -> list[Table]:
    """Tables of rates in each setup, of the networks that a peer trains faster, if any, and the summary."""
    rates = (table for where in results.setups for table in _rates(results, where))
    return [*rates, *_slower(results), _summary(results)]


def _rates(results: DeviceResults, where: str) -> Iterator[Table]:
    """A table of the convolutional networks, and one of the other kinds, which have other contenders."""
    timed = [measured for measured in results.measured if measured.has(where, "ours")]
    yield _rates_of([m for m in timed if _is_cnn(m)], results, where)
    if others := [m for m in timed if not _is_cnn(m)]:
        yield _rates_of(others, results, where, ", other kinds of networks")


def _is_cnn(measured: Measured) -> bool:
    return isinstance(measured.case.model.recipe.architecture, cnn.Architecture)


def _rates_of(timed: Sequence[Measured], results: DeviceResults, where: str, which: str = "") -> Table:
    contenders = [
        contender
        for contender in dict.fromkeys(contender for m in timed for contender in m.rates[where])
        if contender != "peak"
    ]
    peers = [
        contender
        for contender in dict.fromkeys(contender.split()[0] for contender in contenders)
        if contender not in ("ours", "evaluation")
    ]
    lines = []
    for measured in timed:
        cells = [_rate(results, measured, where, contender) for contender in contenders]
        ours = measured.rate(where, "ours")
        cells += [
            f"{ours / measured.rate(where, peer):.2f}" if measured.has(where, peer) else "-" for peer in peers
        ]
        cells.append(f"{results.flop_rate(measured, where, 'ours') / results.peak(where):.2f}")
        model = measured.case.model
        lines.append((measured.case.workload, model.recipe.architecture.id, _recipe(model), *cells))
    columns = ("workload", "network", "recipe", *contenders, *(f"ours / {peer}" for peer in peers), "of peak")
    title = f"{where}{which}: steps a second of all models together (GFLOP/s)"
    if "evaluation" in contenders:
        title += f"; a step of evaluation is {EVALUATED_IMAGES:,} images"
    return Table(title, columns, lines)


def _rate(results: DeviceResults, measured: Measured, where: str, contender: str) -> str:
    if contender not in measured.rates[where]:
        return "-"
    return (
        f"{format_number(measured.rate(where, contender))} "
        f"({format_number(results.flop_rate(measured, where, contender) / 1e9)})"
    )


def _recipe(model: Model) -> str:
    recipe = model.recipe
    return f"{recipe.batch_size} {recipe.optimizer} {recipe.activation}" + " augmented" * recipe.augmentation


def _slower(results: DeviceResults) -> Iterator[Table]:
    """A table of such networks; none if there are none.

    If the peer is near the peak, there is nothing to gain; if ours is far from it, it waits for memory.
    """
    lines = []
    for where, peer, measured in results.slower():
        rates = [results.flop_rate(measured, where, contender) for contender in ("ours", peer)]
        model, shares = measured.case.model, [f"{rate / results.peak(where):.2f}" for rate in rates]
        lines.append(
            (where, peer, model.recipe.architecture.id, _recipe(model), f"{rates[0] / rates[1]:.2f}", *shares)
        )
    if lines:
        yield Table(
            "Slower than a peer",
            ("where", "peer", "network", "recipe", "ours / peer", "ours of peak", "peer of peak"),
            lines,
        )


def _summary(results: DeviceResults) -> Table:
    lines = [
        (line.name, format_number(line.value), _target(line), MET[line.met]) for line in results.summary()
    ]
    return Table("Summary", ("", "measured", "target", "met"), lines)


def _target(line: SummaryLine) -> str:
    return "" if line.target is None else f"{'<' if line.at_most else '>='} {line.target:g}"
