"""How well predictors read a network's test accuracy off its weights: all inputs and methods, learning
curves, transfer, early prediction.

python scripts/evaluate_predictors.py ZOO

Axes: N final networks, F features.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np

from nws_dataset import console
from nws_dataset.console import Command
from nws_dataset.evaluation import paper, report, trials
from nws_dataset.evaluation.folds import Fold, describe
from nws_dataset.evaluation.inputs import LAYERS, RECIPE, WHOLE, words_of
from nws_dataset.evaluation.study import Group, Step, Study
from nws_dataset.evaluation.transfer import BOOSTING, THEN, early_steps, held_out_steps, transfer_steps

SMALLEST_CURVE = 100  # networks, and then twice as many each time
DEPARTURE = 0.005  # of R2: the paper's order of two inputs or methods counts if they are further apart
FEWEST_FOR_TREND = 3  # sizes
SHOWN = (LAYERS, WHOLE, RECIPE)  # inputs of the scatter plots
PLACES = 3  # decimals of R2


# The experiments


def accuracy_steps(study: Study) -> Iterator[Step]:
    """Every input with every method, on the networks of each data set."""
    for group, (name, method) in itertools.product(study.groups, study.pairs()):
        yield f"{group.name}: {words_of(name)}, {method}", partial(_accuracy, study, group, name, method)


def _accuracy(study: Study, group: Group, name: str, method: str) -> list[trials.Record]:
    X, names = study.inputs[name]
    chosen = study.method(group, name, method)
    found = []
    for seed in study.seeds:
        folds = group.folds(seed)
        predicted = trials.held_out_predictions(chosen, X, study.truth, folds, seed)
        tested, first = np.flatnonzero(np.isfinite(predicted)), seed == study.seeds[0]
        if first:
            study.predictions[group.name, name, method] = predicted
        common = _common(study, "accuracy", group, name, method, seed, len(folds[0].training))
        common |= {"num_features": len(names), "setting": repr(chosen.estimator)}
        found += trials.records(
            common, study.truth[tested], predicted[tested], study.converged[tested], intervals=first
        )
    return found


def curve_steps(study: Study) -> Iterator[Step]:
    """Fewer networks to learn from: for the paper's inputs; in small zoos for the statistics of all layers
    only.
    """
    for group in study.groups:
        largest = len(group.folds(study.seeds[0])[0].training)
        sizes = [SMALLEST_CURVE << i for i in range(20) if SMALLEST_CURVE << i < largest]
        for name, method, size in itertools.product(curve_inputs(study, group), trials.PREDICTORS, sizes):
            words = f"{group.name}: {words_of(name)}, {method}, {size} networks"
            yield words, partial(_curve, study, group, name, method, size)


def curve_inputs(study: Study, group: Group) -> list[str]:
    """The inputs whose learning curves are drawn."""
    return [name for name in study.inputs if name in paper.R2 and (name == LAYERS or not group.small)]


def _curve(study: Study, group: Group, name: str, method: str, size: int) -> list[trials.Record]:
    """One size. The networks of a smaller one are among those of a larger one of the same seed."""
    found = []
    for seed in study.seeds:
        random = np.random.default_rng(seed)
        folds = [
            Fold(random.permutation(fold.training)[:size], fold.validation, fold.test)
            for fold in group.folds(seed)
        ]
        predicted = trials.held_out_predictions(
            study.method(group, name, method), study.inputs[name][0], study.truth, folds, seed
        )
        tested = np.flatnonzero(np.isfinite(predicted))
        common = _common(study, "learning_curve", group, name, method, seed, size)
        found += trials.records(common, study.truth[tested], predicted[tested], study.converged[tested])
    return found


def importance_steps(study: Study) -> Iterator[Step]:
    """Which statistics boosting gains from: their part of the reduction of its loss."""
    for group in study.groups:
        yield f"{group.name}: what boosting looks at", partial(_importance, study, group)


def _importance(study: Study, group: Group) -> list[trials.Record]:
    X, names = study.inputs[LAYERS]
    fold, seed = group.folds(study.seeds[0])[0], study.seeds[0]
    gain = study.method(group, LAYERS, BOOSTING).fit(X, study.truth, fold, seed).trees_.importance(X.shape[1])
    common = _common(study, "importance", group, LAYERS, BOOSTING, seed, len(fold.training))
    shares = gain / max(gain.sum(), np.finfo(float).tiny)
    return [
        {
            **common,
            "target": trials.TARGET,
            "nets": "all",
            "num_test": 0,
            "metric": "gain_share",
            "feature": name,
            "value": float(share),
        }
        for name, share in zip(names, shares, strict=True)
    ]


def _common(
    study: Study, experiment: str, group: Group, name: str, method: str, seed: int, num_train: int
) -> trials.Record:
    """What the records of one experiment on one group say."""
    subsets = set(study.rows.table["subset"].take(group.places).to_pylist())
    value = paper.r2(subsets.pop() if len(subsets) == 1 else "", group.name, name, method)
    trained, tested = ("other folds", "each fold in turn") if group.small else ("train", "test")
    return {
        "experiment": experiment,
        "method": method,
        "input": name,
        "trained_on": f"{group.name}, {trained}",
        "tested_on": f"{group.name}, {tested}",
        "dataset": group.name,
        "num_train": num_train,
        "seed": seed,
        **({} if value is None else {"paper": value}),
    }


def all_steps(study: Study) -> list[Step]:
    """All experiments, in the order in which they are done."""
    experiments = (accuracy_steps, curve_steps, transfer_steps, held_out_steps, early_steps, importance_steps)
    return [step for experiment in experiments for step in experiment(study)]


# The page


def tables_of(study: Study, found: Sequence[trials.Record]) -> list[console.Table]:
    """A table for each data set, and one for each kind of transfer."""
    return [
        *(_accuracy_table(study, group, found) for group in study.groups),
        *departures(study, found),
        *_transfer_tables(found),
        *_early_tables(study, found),
    ]


def _accuracy_table(study: Study, group: Group, found: Sequence[trials.Record]) -> console.Table:
    rows = []
    for name, method in study.pairs():
        mine = {"experiment": "accuracy", "dataset": group.name, "input": name, "method": method}
        of_paper = next(
            (record["paper"] for record in found if "paper" in record and mine.items() <= record.items()),
            None,
        )
        scores = [
            ("r2", "all"),
            ("mse", "all"),
            ("kendall_tau", "all"),
            ("r2", "converged"),
            ("kendall_tau", "converged"),
        ]
        cells = [
            _mean(trials.values(found, **mine, metric=metric, nets=nets), metric) for metric, nets in scores
        ]
        ranks = trials.values(found, **mine, metric="true_rank_of_best", nets="all")
        cells = [
            cells[0],
            "-" if of_paper is None else f"{of_paper:.3f}",
            *cells[1:],
            f"{np.median(ranks):.0f}" if ranks else "-",
        ]
        rows.append((f"{words_of(name)} ({len(study.inputs[name][1])})", method, *cells))
    columns = (
        "input (features)",
        "method",
        "R2",
        "R2 in the paper",
        "MSE",
        "tau",
        "R2, converged",
        "tau, converged",
        "rank of best",
    )
    return console.Table(f"Test accuracy of {group.name} networks, predicted", columns, rows)


def _transfer_tables(found: Sequence[trials.Record]) -> list[console.Table]:
    tables = []
    for experiment, column in dict.fromkeys((r["experiment"], r["across"]) for r in found if "across" in r):
        part = [
            record
            for record in found
            if record["experiment"] == experiment and record["across"] == column and record["nets"] == "all"
        ]
        rows = []
        for key in dict.fromkeys((r["trained_on"], r["tested_on"], r["method"]) for r in part):
            mine = dict(zip(("trained_on", "tested_on", "method"), key, strict=True))
            rows.append(
                (
                    *key,
                    *(
                        _mean(trials.values(part, **mine, metric=metric), metric)
                        for metric in ("kendall_tau", "r2")
                    ),
                )
            )
        title = (
            f"Transfer across {column}s, without retraining"
            if experiment == "transfer"
            else f"One {column} held out"
        )
        tables.append(console.Table(title, ("trained on", "tested on", "method", "tau", "R2"), rows))
    return tables


def _early_tables(study: Study, found: Sequence[trials.Record]) -> list[console.Table]:
    early = [record for record in found if record["experiment"] == "early" and record["nets"] == "all"]
    tables = []
    for group in study.groups:
        rows = []
        for snapshot, epoch in dict.fromkeys(
            (r["snapshot"], r["epoch"]) for r in early if r["trained_on"] == group.name
        ):
            mine = {"trained_on": group.name, "snapshot": snapshot}
            cells = [
                _mean(trials.values(early, **mine, input=name, metric=metric), metric)
                for name in (LAYERS, THEN)
                for metric in ("r2", "kendall_tau")
            ]
            rows.append((f"{snapshot} (epoch {epoch})", *cells))
        if rows:
            columns = (
                "snapshot",
                "R2, weights then",
                "tau, weights then",
                "R2, accuracy then",
                "tau, accuracy then",
            )
            tables.append(
                console.Table(f"Final accuracy of {group.name} networks, predicted early", columns, rows)
            )
    return tables


def _mean(values: Sequence[float], metric: str) -> str:
    """Mean and standard deviation over seeds, as text."""
    if not values:
        return "-"
    places = PLACES + 2 * (metric == "mse")
    text = f"{np.mean(values) + 0.0:.{places}f}"
    spread = report.spread(values)
    return text if spread is None else f"{text} ± {spread:.{places}f}"


def curves(
    found: Sequence[trials.Record], dataset: str, name: str, method: str
) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of networks [S] and R2 [S, seeds] of a learning curve; its end is the main result."""
    mine = {"dataset": dataset, "input": name, "method": method, "metric": "r2", "nets": "all"}
    part = [
        r for r in found if r["experiment"] in ("learning_curve", "accuracy") and mine.items() <= r.items()
    ]
    by_size = {
        size: [r["value"] for r in part if r["num_train"] == size]
        for size in sorted({r["num_train"] for r in part})
    }
    seeds = min(map(len, by_size.values()), default=0)
    return np.array(list(by_size)), np.array([values[:seeds] for values in by_size.values()]).reshape(
        len(by_size), seeds
    )


def departures(study: Study, found: Sequence[trials.Record]) -> list[console.Table]:
    """A table of the pairs of inputs of a method, or methods of an input, that stand in another order here
    than in the paper.
    """
    rows = []
    for group in study.groups:
        mine = {"experiment": "accuracy", "dataset": group.name}
        papers = {
            (r["input"], r["method"]): r["paper"] for r in found if "paper" in r and mine.items() <= r.items()
        }
        for better, worse in itertools.permutations(papers, 2):
            related = (better[0] == worse[0]) != (better[1] == worse[1])
            if not related or papers[better] - papers[worse] < DEPARTURE:
                continue
            sizes, high = curves(found, group.name, *better)
            _, low = curves(found, group.name, *worse)
            gaps = (low - high).mean(axis=1)
            if gaps[-1] > 0:
                pair = (f"{words_of(name)}, {method}" for name, method in (better, worse))
                told = trend(sizes, gaps, float(np.std((low - high)[-1])))
                rows.append((group.name, *pair, f"{papers[better] - papers[worse]:.3f}", told))
    columns = ("data set", "ahead in the paper", "of", "in R2 by", "but here behind")
    return [console.Table("Another order than the paper's", columns, rows)] if rows else []


def trend(sizes: np.ndarray, gaps: np.ndarray, spread: float) -> str:
    """What a learning curve says of a gap in R2 that should not be there: whether more networks would mend
    it.

    Args:
        sizes: [S] numbers of networks, ascending.
        gaps: [S] by how much what should be worse is better; the last one is positive.
        spread: standard deviation of the last gap over seeds.

    Example:
        >>> trend(np.array([200, 400, 800]), np.array([0.06, 0.04, 0.02]), 0.0)
        'by 0.020 with 800 networks (0.060 with 200); a line over the logarithm closes it at about 1,600: more
        networks would mend it.'
    """
    told = f"by {gaps[-1]:.3f} with {sizes[-1]:,} networks"
    if gaps[-1] <= 2 * spread:
        return f"{told}, within twice the spread over seeds ({spread:.3f}): no departure."
    if len(sizes) < FEWEST_FOR_TREND:
        return f"{told}; too few networks for a learning curve."
    told += f" ({gaps[-FEWEST_FOR_TREND]:.3f} with {sizes[-FEWEST_FOR_TREND]:,})"
    slope, start = np.polyfit(np.log2(sizes[-FEWEST_FOR_TREND:]), gaps[-FEWEST_FOR_TREND:], 1)
    if slope >= 0:
        return f"{told}; the gap does not close: more networks alone would not mend it."
    closed = 2 ** min(-start / slope, 40.0)
    if closed > paper.NUM_TRAIN:
        return (
            f"{told}; the gap closes too slowly: it would take more than the paper's "
            f"{paper.NUM_TRAIN:,} networks."
        )
    return (
        f"{told}; a line over the logarithm closes it at about {round(closed, -2):,.0f}: more networks "
        "would mend it."
    )


def notes_of(study: Study, found: Sequence[trials.Record], seconds: float) -> list[str]:
    """How the numbers were taken, for the Markdown file and the terminal."""
    held_out = describe([len(group.folds(study.seeds[0])) for group in study.groups])
    return [
        f"Held out: {held_out}. Mean and standard deviation over {len(study.seeds)} seeds; {seconds:.0f} s "
        "in all.",
        "Settings are chosen on validation models (in cross-validation the first one is taken), training "
        "stops by them or by a part of the"
        " training models. `converged` scores the same predictions on the models whose"
        " accuracy is at least 5 points above the majority class's rate. Rank of best: the true rank of "
        "the test model predicted best."
        " Learning curves have fewer models to learn from; those for validation and test stay the same.",
        *study.skipped,
        *([paper.CAUTION] if any("paper" in record for record in found) else []),
    ]


def plots_of(study: Study, found: Sequence[trials.Record]) -> dict[str, Any]:
    """The figures, by name."""
    from nws_dataset.evaluation import plots

    figures = {"r2": plots.r2_by_input(found, words_of), "importance": plots.gain_matrix(found)}
    figures["learning_curve"] = plots.learning_curves(
        {
            (group.name, method): {
                words_of(name): curves(found, group.name, name, method) for name in curve_inputs(study, group)
            }
            for group, method in itertools.product(study.groups, trials.PREDICTORS)
        }
    )
    for column in dict.fromkeys(r["across"] for r in found if r["experiment"] == "transfer"):
        figures[f"transfer_{column}"] = plots.transfer_matrices(
            [r for r in found if r.get("across") == column], column
        )
    if any(r["experiment"] == "early" for r in found):
        figures["early"] = plots.early_curves(
            found, {LAYERS: "weights at that snapshot", THEN: "accuracy at that snapshot"}
        )
    for group in study.groups:
        figures[f"scatter_{group.name.replace(' ', '_')}"] = _scatter(study, group, found)
    return figures


def _scatter(study: Study, group: Group, found: Sequence[trials.Record]) -> Any:
    from nws_dataset.evaluation import plots

    panels = []
    for name, method in itertools.product(SHOWN, trials.PREDICTORS):
        predicted = study.predictions[group.name, name, method]
        tested = np.flatnonzero(np.isfinite(predicted))
        truth = study.truth[tested]
        scores = {
            "r2": trials.r2(truth, predicted[tested]),
            "kendall_tau": trials.kendall_tau(truth, predicted[tested]),
        }
        panels.append(
            {"title": f"{words_of(name)}\n{method}", "true": truth, "predicted": predicted[tested], **scores}
        )
    title = f"Accuracy read off features, held-out {group.name} networks"
    return plots.predicted_against_true(panels, study.converged[tested], len(trials.PREDICTORS), title)


@click.command(cls=Command)
@click.argument("zoo")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help=report.OUT_HELP)
@click.option(
    "--seed",
    default=0,
    show_default=True,
    type=click.IntRange(0, report.MAX_SEED),
    help="The first of the seeds.",
)
@click.option(
    "--seeds",
    default=3,
    show_default=True,
    type=click.IntRange(1, report.MAX_SEEDS),
    help="Seeds of predictors and folds, for the spread.",
)
@click.option(
    "--meta-regressor",
    "meta",
    is_flag=True,
    help="Also the deep meta-classifier as a regressor (slow without a GPU).",
)
def main(zoo: str, out: Path | None, seed: int, seeds: int, meta: bool) -> None:
    """Predict test accuracy from the final weights of ZOO, a folder that nws-build wrote.

    Three predictors by all inputs, learning curves, transfer, early prediction. Prints tables, and writes
    JSON, Markdown and plots.
    """
    from nws_dataset.reading.zoo import Zoo

    report.be_patient()
    started = time.monotonic()
    opened, folder = Zoo(zoo), report.results_folder(zoo, out)
    report.check_folder(folder)
    study = Study.of(opened, range(seed, seed + seeds), meta)
    steps, found = all_steps(study), []
    with console.progress(len(steps)) as advance:
        for words, step in steps:
            found += step()
            advance(words)
    results = {
        "experiment": "predictors",
        "zoo": report.facts_of(opened, report.name_of(zoo)),
        "command": report.command_line(),
        "settings": {
            "seeds": list(study.seeds),
            "held_out": {g.name: describe([len(g.folds(seed))]) for g in study.groups},
        },
        "results": found,
        "predictions": _predictions(study),
    }
    first, *others = tables_of(study, found)
    notes = notes_of(study, found, time.monotonic() - started)
    report.conclude(results, folder, first, notes, lambda: plots_of(study, found), more=others)


def _predictions(study: Study) -> list[dict[str, Any]]:
    """What each method said of each held-out model, in the first seed's turn."""
    model_ids, told = study.rows["model_id"], []
    for (group, name, method), predicted in study.predictions.items():
        tested = np.flatnonzero(np.isfinite(predicted))
        columns = {
            "model_id": model_ids[tested].tolist(),
            "true": study.truth[tested].tolist(),
            "predicted": predicted[tested].tolist(),
        }
        told.append({"dataset": group, "input": name, "method": method, "seed": study.seeds[0], **columns})
    return told
