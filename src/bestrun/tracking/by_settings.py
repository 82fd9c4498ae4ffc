"""Runs of the same settings as one: how many seeds, their mean and where the true one lies, the worst and the best."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import SettingsError
from ..judging import mean_of
from ..metrics import best_key, goodness, metric_of, objectives
from ..settings.config import deciding
from ..storage.reasons import StopReason
from .database import asked
from .listing import asked_for, changed_by_resumes, check_filter, number, refused_filter
from .lookup import of_sweep, search
from .names import TAG_CHANGED, TAG_DATA_DIGEST, TAG_PARENT_RUN, TAG_RUN, TAG_STOP_REASON
from .store import Store, sqlite_path

MOST = 50_000  # runs that a search of MLflow gives at once
TAGS = (TAG_RUN, TAG_CHANGED, TAG_DATA_DIGEST, TAG_PARENT_RUN, TAG_STOP_REASON)


@dataclass(frozen=True)
class Seen:
    """What of a run counts here.

    Attributes:
        is_finished: by its steps or its patience; the clock ends a run anywhere.
        settings: as one types them, those it began with.
        changed: setting -> [old, new], of what resumes have changed.
        best: the objective at its best evaluation.
    """

    run_name: str
    is_finished: bool
    started_ms: int
    settings: Mapping[str, str]
    changed: Mapping[str, Any]
    best: float | None
    data_digest: str


@dataclass(frozen=True)
class Configuration:
    """The runs of one configuration.

    Attributes:
        settings: what tells it from the others of the list.
        runs: the names of those that count: finished, one a seed, the latest where there are several.
        left_out: how many others there are, unfinished ones and those of a seed that counts already.
        mean: of their bests, and `low` to `high`, where the true one lies (95 %, Student's t); None of one seed.
    """

    objective: str
    settings: dict[str, str]
    runs: list[str]
    left_out: int
    mean: float | None
    low: float | None
    high: float | None
    worst: float | None
    best: float | None

    @property
    def seeds(self) -> int:
        return len(self.runs)


def list_configurations(
    store: Store,
    *,
    experiment: str | None = None,
    sweep: str | None = None,
    filter: str | None = None,
    mine: bool = False,
    most: int = 20,
) -> list[Configuration]:
    """The best `most` configurations of each objective, by the mean of their seeds; those without one come last.

    Args:
        filter: only of these runs, in MLflow's language.

    Raises:
        SettingsError: MLflow refuses the filter.
    """
    experiments = list(store.experiments(experiment))
    path = sqlite_path(store.uri)
    if path and not (sweep or filter or mine):  # MLflow makes 250,000 objects of 5,000 runs, in five seconds
        seen = _of_database(path, experiments)
    else:
        seen = _of_mlflow(store, experiments, sweep, filter, mine)
    return configurations(seen, most)


def configurations(seen: Iterable[Seen], most: int) -> list[Configuration]:
    """Group runs by what decides but the seed; see `list_configurations`."""
    groups: dict[tuple[Any, ...], list[Seen]] = {}
    for run in seen:
        groups.setdefault(_key(run), []).append(run)
    names = _differing([dict(key[1]) for key in groups])
    found = [_configuration(key, runs, names) for key, runs in groups.items()]

    def order(each: Configuration) -> tuple[bool, float]:
        direction = metric_of(each.objective).direction
        return each.mean is None, -goodness(direction, each.mean or 0.0)

    in_use = dict.fromkeys([*objectives(), *(each.objective for each in found)])
    return [each for key in in_use for each in sorted((c for c in found if c.objective == key), key=order)[:most]]


def _key(run: Seen) -> tuple[Any, ...]:
    """What two runs must have in common: settings, with what became of them by resumes, and data."""
    settings = deciding(run.settings)
    changes = {key: values[-1] for key, values in run.changed.items() if deciding({key: "given"})}
    settings |= {key: f"{settings.get(key, '-')} -> {value}" for key, value in changes.items()}
    settings |= {"data digest": run.data_digest[:12]}
    settings = {key: value for key, value in settings.items() if not key.startswith("objective.")}
    return run.settings["objective.metric"], tuple(sorted(settings.items()))


def _differing(settings: Sequence[Mapping[str, str]]) -> list[str]:
    """The settings that are not the same in all."""
    names = dict.fromkeys(name for each in settings for name in each)
    return [name for name in names if len({each.get(name) for each in settings}) > 1]


def _configuration(key: tuple[Any, ...], runs: Sequence[Seen], names: Sequence[str]) -> Configuration:
    objective, settings = key[0], dict(key[1])
    finished = sorted((run for run in runs if run.is_finished and run.best is not None), key=lambda run: run.started_ms)
    by_seed = {run.settings.get("seed", ""): run for run in finished}
    values = [run.best for run in by_seed.values() if run.best is not None]
    shown = {name: settings.get(name, "-") for name in names}
    counted = [run.run_name for run in by_seed.values()]
    if not values:
        return Configuration(objective, shown, [], len(runs), None, None, None, None, None)
    found, direction = mean_of(values), metric_of(objective).direction
    low, high = (found.interval.low, found.interval.high) if found.interval else (None, None)
    ordered = sorted(values, key=lambda value: goodness(direction, value))
    left_out = len(runs) - len(counted)
    return Configuration(objective, shown, counted, left_out, found.mean, low, high, ordered[0], ordered[-1])


def _of_mlflow(store: Store, experiments: list[str], sweep: str | None, filter: str | None, mine: bool) -> list[Seen]:
    with refused_filter(filter):
        runs = search(store, experiments, asked_for(of_sweep(store, sweep), filter, mine), [], MOST)
    if filter and not runs:
        check_filter(store, filter)
    return [
        _seen(run.info.status, run.info.start_time, run.data.params, run.data.metrics, run.data.tags)
        for run in runs
        if "objective.metric" in run.data.params  # a run just made has no settings in MLflow yet
    ]


def _of_database(path: Path, experiments: list[str]) -> list[Seen]:
    """The same from MLflow's tables, which are read and nothing else."""
    marks = ",".join("?" * len(experiments))
    ours = f"run_uuid IN (SELECT run_uuid FROM runs WHERE lifecycle_stage = 'active' AND experiment_id IN ({marks}))"
    tagged = f"{ours} AND run_uuid IN (SELECT run_uuid FROM tags WHERE key = '{TAG_RUN}' AND value != '')"
    keys = ",".join(f"'{best_key(key)}'" for key in objectives())
    with asked(path) as database:

        def of(table: str, condition: str) -> dict[str, dict[str, Any]]:
            rows = database.execute(f"SELECT run_uuid, key, value FROM {table} WHERE {condition}", experiments)
            found: dict[str, dict[str, Any]] = {}
            for run, key, value in rows:
                found.setdefault(run, {})[key] = value
            return found

        params, tags = of("params", tagged), of("tags", f"key IN {TAGS} AND {ours}")
        metrics = of("latest_metrics", f"NOT is_nan AND key IN ({keys}) AND {ours}")
        runs = database.execute(f"SELECT run_uuid, status, start_time FROM runs WHERE {tagged}", experiments).fetchall()
    return [
        _seen(status, start, params[run], metrics.get(run, {}), tags.get(run, {}))
        for run, status, start in runs
        if "objective.metric" in params.get(run, {})
    ]


def _seen(
    status: str, start: int, settings: Mapping[str, str], metrics: Mapping[str, float], tags: Mapping[str, str]
) -> Seen:
    if parent := tags.get(TAG_PARENT_RUN):
        settings = {**settings, "from_run": parent}  # not what was typed: `best` may be another run now
    return Seen(
        tags.get(TAG_RUN, ""),
        status == "FINISHED" and tags.get(TAG_STOP_REASON) != StopReason.MAX_HOURS,
        start,
        settings,
        changed_by_resumes(tags.get(TAG_CHANGED)) or {},
        number(metrics.get(best_key(settings["objective.metric"]))),
        tags.get(TAG_DATA_DIGEST, ""),
    )


def refuse_with(sort: str | None, columns: str | None) -> None:
    """Raises SettingsError for what a list of configurations does not take."""
    for name, given in (("--sort", sort), ("--columns", columns)):
        if given:
            raise SettingsError(
                f"{name} {given}: --by settings orders by the mean and shows what differs; leave it out"
            )
