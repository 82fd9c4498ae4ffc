"""What a sweep came to: trials best first, cost, importances, spread over seeds; and pictures of it."""

import logging
import statistics
import threading
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..metrics import goodness
from ..views import charts, curves
from .finalists import expected, finalists, measured
from .manifest import Manifest, Trial, is_running
from .winner import figures_of, winner

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = logging.getLogger("bestrun")


def summary(manifest: Manifest) -> dict[str, Any]:
    """One JSON-able document; see docs/sweeps.md."""
    count, (run, saved), best = manifest.count(), manifest.steps(), manifest.best()
    finals = finalists(manifest)
    return {
        "name": manifest.name,
        "kind": manifest.line["kind"],
        "running": is_running(manifest.path),
        "objective": manifest.objective,
        "n_trials": manifest.n_trials,
        "count": {state: number for state, number in sorted(count.items()) if number},
        "best": _trial(best) if best else None,
        "test": figures_of(manifest),
        "finalists": [each.as_json() for each in measured(manifest, finals)],
        "expected": expected(finals, manifest.objective["direction"]),
        "winner": best_run.name if (best_run := winner(manifest)) else None,
        "cost": {
            "steps_run": run,
            "steps_saved_by_pruning": saved,
            "seconds": round(sum(run.seconds for run in manifest.runs()), 1),
        },
        "importances": importances(manifest),
        "over_seeds": over_seeds(manifest),
        "parent_run_id": manifest.parent_run_id,
        "folder": str(manifest.path.parent),
        "trials": [_trial(trial) for trial in manifest.better_first(manifest.trials)],
    }


def _trial(trial: Trial) -> dict[str, Any]:
    return {
        "trial": trial.number,
        "state": trial.state,
        "value": trial.value,
        "settings": trial.point,
        "steps": sum(run.step for run in trial.runs),
        "runs": [
            {
                "run_name": run.name,
                "run_id": run.run_id,
                "state": run.state,
                "best": run.best,
                "best_step": run.best_step,
            }
            | ({"error": run.error} if run.error else {})
            for run in trial.runs
        ],
    }


def over_seeds(manifest: Manifest) -> list[dict[str, Any]]:
    """Mean, spread (standard deviation) and worst of each configuration that ran with several seeds."""
    by_goodness = partial(goodness, manifest.objective["direction"])
    return [
        {
            "settings": dict(point),
            "seeds": len(values),
            "mean": statistics.mean(values),
            "spread": statistics.stdev(values),
            "worst": min(values, key=by_goodness),
        }
        for point, values in manifest.configurations().items()
        if len(values) > 1
    ]


def _study(manifest: Manifest) -> Any:
    """The trials as Optuna has them; of a grid, every setting is a choice."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(study_name=manifest.name, direction=manifest.objective["direction"])
    keys = list(manifest.line["space"])
    columns = {key: _numbers([trial.point[key] for trial in manifest.trials]) for key in keys}
    kinds = {key: _distribution(values) for key, values in columns.items()}
    for trial in manifest.complete():
        params = {key: columns[key][trial.number] for key in keys}
        study.add_trial(optuna.trial.create_trial(params=params, distributions=kinds, value=trial.value))
    return study


def _numbers(texts: list[str]) -> list[Any]:
    try:
        return [float(text) for text in texts]
    except ValueError:
        return texts


def _distribution(values: list[Any]) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    different = sorted(set(values))
    if isinstance(different[0], str) or len(different) < 3:
        return CategoricalDistribution(different)
    return FloatDistribution(different[0], different[-1], log=different[0] > 0 and different[-1] >= 30 * different[0])


def has_importances(manifest: Manifest) -> bool:
    """Whether there is enough to say which setting mattered: two of them, four trials, and not all alike."""
    values = [trial.value for trial in manifest.complete()]
    return len(values) >= 4 and len(set(values)) >= 2 and len(manifest.line["space"]) >= 2


def importances(manifest: Manifest) -> dict[str, float] | None:
    """Setting -> share of the objective's variance it explains (fANOVA, Optuna's); None where that cannot be said."""
    if not has_importances(manifest):
        return None
    import optuna

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
        found = optuna.importance.get_param_importances(_study(manifest), evaluator=evaluator)
    return {key: round(float(value), 4) for key, value in found.items()}


@lru_cache(1)
def load_early() -> None:
    """Begin to load what the importances and the pictures are made with: three seconds that the end need not wait."""
    threading.Thread(target=_load, name="load", daemon=True).start()


def _load() -> None:
    with suppress(Exception):  # what is missing is told where it is used
        import optuna

        optuna.importance.FanovaImportanceEvaluator(seed=0)
        curves.new_figure(1, 1).canvas.draw()


def write_plots(manifest: Manifest) -> list[Path]:
    """Optimisation history, parallel coordinates and importances as PNGs in the sweep's folder."""
    if len(manifest.complete()) < 2:
        return []
    trials, objective = manifest.trials, manifest.objective
    points, values = [trial.point for trial in trials], [trial.value for trial in trials]
    complete = [trial.state == "complete" for trial in trials]
    drawn: dict[str, Callable[[str], Figure]] = {
        "optimization_history": lambda title: charts.history_figure(values, complete, objective, title),
        "parallel_coordinates": lambda title: charts.parallel_coordinates_figure(
            points, values, complete, objective, title
        ),
    }
    if has_importances(manifest):
        drawn["importances"] = lambda title: charts.importances_figure(
            importances(manifest) or {}, objective["metric"], title
        )
    written = []
    for name, draw in drawn.items():
        path = manifest.path.with_name(f"{name}.png")
        try:
            curves.write_figure(draw(f"{manifest.name}: {name.replace('_', ' ')}"), path)
            written.append(path)
        except Exception as error:  # a picture is not worth a sweep
            log.warning("%s: not drawn: %s; the same line again draws it", path.name, error)
    return written
