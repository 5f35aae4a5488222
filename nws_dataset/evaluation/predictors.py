"""How well three predictors read test accuracy off features of the final weights: R2 and Kendall's tau on held-out models.

python scripts/evaluate_predictors.py ZOO
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
from scipy.stats import kendalltau
from sklearn.base import clone
from sklearn.metrics import r2_score

from nws_dataset.command import Command
from nws_dataset.evaluation import report
from nws_dataset.evaluation.folds import Fold, check_models, describe, folds_of, is_small
from nws_dataset.predictors import DenseNet, GradientBoosting, LogitLinear
from nws_dataset.statistics import zoo_features

if TYPE_CHECKING:
    from nws_dataset.zoo import Zoo

FEATURES = {"layers": "statistics of every tensor", "whole": "statistics of the whole row", "hyperparameters": "hyper-parameters"}
PREDICTORS = {"linear": LogitLinear(), "boosting": GradientBoosting(), "dense net": DenseNet()}
NUM_FITS = len(FEATURES) * len(PREDICTORS)


def evaluate(zoo: Zoo, seed: int, advance: Callable[[str], None] = lambda what: None) -> dict[str, Any]:
    """Fit every predictor to every set of features, and predict the models that were held out.

    Args:
        zoo: the zoo.
        seed: of the folds and of the predictors.
        advance: called after each of the NUM_FITS pairs with its name.

    Returns:
        what `predictors.json` holds: settings, and under "results" a dict for each pair of features and predictor.

    Raises:
        ZooError: if the zoo has too few models.
    """
    started = time.monotonic()
    rows = zoo.filter(is_final=True)
    check_models(zoo.name, rows["split"])
    folds = folds_of(np.asarray(rows["split"]), seed, small=is_small(len(rows)))
    tested = np.sort(np.concatenate([fold.test for fold in folds]))
    model_ids, truth = np.asarray(rows["model_id"]), np.asarray(rows["test_accuracy"], dtype=np.float64)
    converged = np.asarray(rows["converged"], dtype=bool)[tested]
    results = []
    for kind, words in FEATURES.items():
        X, names = zoo_features(zoo, rows, kind)
        for name, predictor in PREDICTORS.items():
            predicted = _held_out_predictions(predictor, X, truth, folds, seed)[tested]
            scores = _scores_by_part(truth[tested], predicted, converged, seed)
            results.append({"features": kind, "num_features": len(names), "predictor": name, **scores, "predicted": predicted.tolist()})
            advance(f"{words}, {name}")
    return {
        "experiment": "predictors",
        "seed": seed,
        "held_out": describe([len(folds)]),
        "predictors": {name: repr(predictor) for name, predictor in PREDICTORS.items()},
        "results": results,
        "models": {"model_id": model_ids[tested].tolist(), "true": truth[tested].tolist(), "converged": converged.tolist()},
        "folds": [model_ids[fold.test].tolist() for fold in folds],
        "seconds": round(time.monotonic() - started, 1),
    }


def _held_out_predictions(predictor: Any, X: np.ndarray, y: np.ndarray, folds: list[Fold], seed: int) -> np.ndarray:
    """[M] predictions of the models that some fold tests; NaN for the others."""
    predicted = np.full(len(y), np.nan)
    for i, fold in enumerate(folds):
        fitted = clone(predictor).set_params(random_state=seed + i)
        held_out = (X[fold.validation], y[fold.validation]) if len(fold.validation) else ()
        predicted[fold.test] = fitted.fit(X[fold.training], y[fold.training], *held_out).predict(X[fold.test])
    return predicted


def _scores_by_part(truth: np.ndarray, predicted: np.ndarray, converged: np.ndarray, seed: int) -> dict[str, Any]:
    """Scores on all held-out models, and on the converged ones."""
    return {"all": _scores(truth, predicted, seed), "converged": _scores(truth[converged], predicted[converged], seed)}


def _scores(truth: np.ndarray, predicted: np.ndarray, seed: int) -> dict[str, Any]:
    """R2 and tau-b, of the predictions of all folds together, with their intervals; None when there are too few models."""
    if len(truth) < 3:
        return {"r2": None, "kendall_tau": None, "r2_interval_95": None, "kendall_tau_interval_95": None, "num_models": len(truth)}
    scores: dict[str, Any] = {"num_models": len(truth)}
    for name, statistic in (("r2", _r2), ("kendall_tau", _tau)):
        value = float(statistic(truth, predicted))
        scores[name] = value if np.isfinite(value) else None  # none of constant truths, nor tau of constant predictions
        scores[f"{name}_interval_95"] = report.bootstrap_interval(statistic, truth, predicted, seed)
    return scores


def _r2(truth: np.ndarray, predicted: np.ndarray) -> float:
    return float(r2_score(truth, predicted)) if np.ptp(truth) > 0 else float("nan")


def _tau(truth: np.ndarray, predicted: np.ndarray) -> float:
    return float(kendalltau(truth, predicted).statistic)


def table_of(results: dict[str, Any]) -> report.Table:
    """The summary: a row for each pair of features and predictor."""

    def cells(result: dict[str, Any]) -> tuple[str, ...]:
        scores = [(result[part], score) for part in ("all", "converged") for score in ("r2", "kendall_tau")]
        return tuple(report.with_interval(part[score], part[f"{score}_interval_95"]) for part, score in scores)

    first = results["results"][0]
    counts = [f"{score}, {part} {first[part]['num_models']}" for part in ("all", "converged") for score in ("R2", "tau")]
    rows = [(f"{FEATURES[r['features']]} ({r['num_features']})", r["predictor"], *cells(r)) for r in results["results"]]
    return report.Table(f"Test accuracy predicted from features: {results['zoo']}", ("features", "predictor", *counts), rows)


def notes_of(results: dict[str, Any]) -> list[str]:
    """How the numbers were taken, for the Markdown file and the terminal."""
    return [
        f"Held out: {results['held_out']}. Final snapshots only; seed {results['seed']}; {results['seconds']:.0f} s.",
        "R2 and Kendall's tau-b of all held-out models together, with 95 % intervals from resampling them"
        f" (where there are {report.FEWEST_FOR_BOOTSTRAP} or more). `converged` scores the same predictions on the"
        " models whose accuracy is at least 5 points above the majority class's rate.",
    ]


def plots_of(results: dict[str, Any]) -> dict[str, Any]:
    """The figures, by name."""
    from nws_dataset.evaluation import plots

    truth, converged = np.array(results["models"]["true"]), np.array(results["models"]["converged"], dtype=bool)
    panels = [
        {"title": f"{FEATURES[r['features']]}\n{r['predictor']}", "true": truth, "predicted": np.array(r["predicted"]), **r["all"]}
        for r in results["results"]
    ]
    return {
        "scatter": plots.predicted_against_true(
            panels, converged, len(PREDICTORS), f"Accuracy read off features, held-out models of {results['zoo']}"
        )
    }


@click.command(cls=Command)
@click.argument("zoo")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help=report.OUT_HELP)
@click.option("--seed", default=0, show_default=True, help="Of the folds and of the predictors.")
def main(zoo: str, out: Path | None, seed: int) -> None:
    """Predict test accuracy from features of the final weights of ZOO, a folder that nws-build wrote.

    Prints R2 and Kendall's tau of three predictors by three sets of features, and writes them as JSON, Markdown and a plot.
    """
    from nws_dataset.zoo import Zoo

    report.be_patient()
    with report.progress(NUM_FITS) as advance:
        results = {"zoo": report.name_of(zoo), **evaluate(Zoo(zoo), seed, advance)}
    report.conclude(results, report.results_folder(zoo, out), table_of(results), notes_of(results), plots_of(results))
