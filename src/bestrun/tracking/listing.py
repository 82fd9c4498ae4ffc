"""Lists of runs, best first, by what their objective says; and the honest state of each."""

import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from typing import Any

from ..environment import user_name
from ..errors import SettingsError, UnreadableError
from ..formatting import nearest, shown
from ..metrics import METRICS, best_key, metric_of, objectives
from ..storage.folder import RunFolder
from ..storage.history import History
from ..storage.reasons import STATES
from .lookup import LARGEST, OURS, objectives_in_use, of_sweep, ranked, search
from .names import TAG_CHANGED, TAG_RUN, TAG_STOP_REASON
from .store import Store

log = logging.getLogger("bestrun")


@dataclass(frozen=True)
class Row:
    """One run in a list. `state` is what is true now: a run whose process died is `interrupted`, not running."""

    run_id: str
    run_name: str
    experiment: str
    state: str
    objective: str
    best: float | None
    best_step: int | None
    test_accuracy: float | None
    stop_reason: str | None
    started_ms: int
    changed: dict[str, Any] | None  # setting -> [old, new] of what a resume changed
    user: str
    settings: Mapping[str, str]
    metrics: Mapping[str, float]  # the last value of each, as MLflow has it
    tags: Mapping[str, str]


FIELDS = tuple(field.name for field in fields(Row) if field.name not in ("settings", "metrics", "tags"))
# What tables call some of them; `--columns` takes both
TITLES = {"run": "run_name", "ID": "run_id", "step": "best_step", "test": "test_accuracy", "started": "started_ms"}

KINDS = {"metrics": "metric", "params": "setting", "tags": "tag"}  # MLflow's word -> ours
NAME = re.compile(r"[\w./: -]+")  # what MLflow lets these be called
FILTER = """--filter 'metrics."best/accuracy" > 0.98 and params.seed = "1"'"""


def list_runs(
    store: Store,
    *,
    experiment: str | None = None,
    sweep: str | None = None,
    filter: str | None = None,
    sort: str | None = None,
    most: int = 20,
    mine: bool = False,
) -> list[Row]:
    """The best `most` runs of each objective, or with `sort` the first `most` of all.

    Ties go to the earlier start. Runs that lack the deciding value, or have NaN or infinity there, come last.

    Args:
        filter: in MLflow's language, such as: metrics."best/accuracy" > 0.98 and params.seed = "1"
        mine: only those of the user who runs this.
        sort: a metric, or `started`; a loss ascends and all else descends, unless `:asc` or `:desc` follows.

    Raises:
        SettingsError: MLflow refuses the filter, or no run has the metric, setting or tag that is asked for.
    """
    experiments = store.experiments(experiment)
    with refused_filter(filter):
        asked = asked_for(of_sweep(store, sweep), filter, mine)
        if sort:
            runs = _sorted(store, list(experiments), asked, sort, most)
        else:
            runs = _best_of_each_objective(store, list(experiments), asked, most)
    if filter and not runs:
        check_filter(store, filter)
    return [_row(store, run, experiments) for run in runs]


def asked_for(runs: str, filter: str | None, mine: bool) -> str:
    """The filter of a search: of these runs, those that are asked for."""
    if mine:
        runs += f" and tags.\"mlflow.user\" = '{user_name()}'"
    return f"{runs} and {filter}" if filter else runs


@contextmanager
def refused_filter(filter: str | None) -> Iterator[None]:
    """Turn MLflow's refusal of a filter into a SettingsError."""
    try:
        yield
    except Exception as error:  # MLflow's is not imported for this
        if not filter or getattr(error, "error_code", None) != "INVALID_PARAMETER_VALUE":
            raise
        reason = " ".join(str(error).removeprefix("INVALID_PARAMETER_VALUE: ").split())[:300]
        raise SettingsError(f"--filter {filter[:100]!r}: {reason}; a right one: {FILTER}") from None


def _best_of_each_objective(store: Store, experiments: list[str], asked: str, most: int) -> list[Any]:
    runs, in_use = [], objectives_in_use(store, experiments, asked)
    for key in objectives():
        if key in in_use:
            of_kind = f"{asked} and params.\"objective.metric\" = '{key}'"
            runs += _first(store, experiments, of_kind, best_key(key), metric_of(key).direction == "maximize", most)
    if set(in_use) <= set(objectives()):
        return runs
    others = [f"params.\"objective.metric\" != '{key}'" for key in objectives()]  # of another version
    return runs + search(store, experiments, " and ".join([asked, *others]), ["attributes.start_time ASC"], most)


def _first(store: Store, experiments: list[str], filtered: str, metric: str, descending: bool, most: int) -> list[Any]:
    found = ranked(store, experiments, filtered, metric, descending, most)
    if len(found) == most:
        return found
    # These are all that have a number. Among the `most` earliest runs are enough others to fill the list.
    known = {run.info.run_id for run in found}
    earliest = search(store, experiments, filtered, ["attributes.start_time ASC"], most)
    return (found + [run for run in earliest if run.info.run_id not in known])[:most]


def _sorted(store: Store, experiments: list[str], asked: str, sort: str, most: int) -> list[Any]:
    filtered = f"{asked} and params.\"objective.metric\" != ''"  # a run just made has no settings in MLflow yet
    metric = METRICS.get(sort.rpartition("/")[2])
    name, direction = sort, "asc" if metric and metric.direction == "minimize" else "desc"
    if sort.endswith((":asc", ":desc")):
        name, _, direction = sort.rpartition(":")
    if name == "started":
        return search(store, experiments, filtered, [f"attributes.start_time {direction}"], most)
    if NAME.fullmatch(name):
        found = _first(store, experiments, filtered, name, direction == "desc", most)
        if any(name in run.data.metrics for run in found) or _anybody_has(store, "metrics", name):
            return found
    names = _names(store)
    if name in names["params"]:
        metrics = ", ".join(names["metrics"])
        raise SettingsError(f"--sort {name}: a setting is text to MLflow, it sorts by numbers: started, {metrics}")
    raise _nobody_has("--sort", name, "metric", ["started", *names["metrics"]])


# ---- names that no run has ----


def check_columns(store: Store, rows: Sequence[Row], columns: Sequence[str]) -> None:
    """Refuse a column that no run has.

    Raises:
        SettingsError: for the first of them; lists those there are.
    """
    for column in columns:
        if TITLES.get(column, column) in FIELDS or any(value(row, column) is not None for row in rows):
            continue
        kinds = {"metrics": column, "params": column, "tags": column.removeprefix("tags.")}
        if not any(_anybody_has(store, kind, name) for kind, name in kinds.items()):
            names = _names(store)
            ours = [*TITLES, *(field for field in FIELDS if field not in TITLES.values())]
            there = [*ours, *names["metrics"], *names["params"], *(f"tags.{name}" for name in names["tags"])]
            raise _nobody_has("--columns", column, "metric, setting or tag", there)


def check_filter(store: Store, filter: str) -> None:
    """Raises SettingsError: a filter that finds nothing asks for what no run has."""
    from mlflow.utils.search_utils import SearchUtils

    for clause in SearchUtils.parse_search_filter(filter):
        kind, name = {"metric": "metrics", "parameter": "params", "tag": "tags"}.get(clause["type"]), clause["key"]
        if kind and not _anybody_has(store, kind, name):
            raise _nobody_has("--filter", name, KINDS[kind], _names(store)[kind])


def _anybody_has(store: Store, kind: str, name: str) -> bool:
    if not NAME.fullmatch(name):
        return False
    first = search(store, list(store.experiments(None)), OURS, [f'{kind}."{name}" ASC'], 1)  # those without are last
    return not first or name in getattr(first[0].data, kind)


def _names(store: Store) -> dict[str, list[str]]:
    """The names of metrics, settings and tags in use, as the latest runs tell: MLflow has no list of them."""
    latest = search(store, list(store.experiments(None)), OURS, ["attributes.start_time DESC"], 100)
    found = {kind: {name for run in latest for name in getattr(run.data, kind)} for kind in KINDS}
    short = {re.sub("^class/.*/", "class/NAME/", name) for name in found["metrics"]}  # there may be a thousand
    return {kind: sorted(short if kind == "metrics" else names) for kind, names in found.items()}


def _nobody_has(option: str, name: str, what: str, names: list[str]) -> SettingsError:
    near = nearest(name, names)
    hint = f"did you mean {near}? " if near else ""
    there = f"there are: {', '.join(names)}"
    return SettingsError(f"{option} {shown(name)}: no run has a {what} of this name; {hint}{there}")


# ---- rows ----


def _row(store: Store, run: Any, experiments: dict[str, str]) -> Row:
    metrics, settings, tags = run.data.metrics, run.data.params, run.data.tags
    objective, reason = settings["objective.metric"], tags.get(TAG_STOP_REASON)
    step = number(metrics.get("best/step"))
    now = state(run.info.status, store.run_folder(run) if run.info.status == "RUNNING" else None)
    return Row(
        run.info.run_id,
        tags[TAG_RUN],
        experiments[run.info.experiment_id],
        "interrupted" if (now, reason) == ("stopped", "interrupted") else now,
        objective,
        number(metrics.get(best_key(objective))),
        None if step is None else int(step),
        number(metrics.get("test/accuracy")),
        None if run.info.status == "RUNNING" else reason,  # a resumed run still has the reason of its last stop
        run.info.start_time,
        changed_by_resumes(tags.get(TAG_CHANGED)),
        tags.get("mlflow.user", ""),
        settings,
        metrics,
        tags,
    )


def number(value: float | None) -> float | None:
    """None for what is no number: NaN, and infinity as MLflow keeps it."""
    return value if value is not None and abs(value) < LARGEST else None


def changed_by_resumes(tag: str | None) -> dict[str, Any] | None:
    """Setting -> [old, new] of a run's tag; None without one."""
    with suppress(ValueError):
        return dict(json.loads(tag)) if tag else None
    return {}  # too long for a tag, and cut


def state(status: str, folder: RunFolder | None) -> str:
    """MLflow's status in our words; a run that MLflow believes running is looked at where its folder is here."""
    if status != "RUNNING":
        return STATES.get(status, status.lower())
    try:
        if not folder or folder.is_owned():
            return "running"
        history = History.read(folder.journal)
    except UnreadableError:  # another user's: what MLflow says is all that is known
        return "running"
    now = history.state(owned=False)
    return f"{now}, behind" if history.stopped else now


def value(row: Row, column: str) -> Any:
    """What a row has in a column: a field, or the number, setting or tag of that name. None if it has none."""
    if (field := TITLES.get(column, column)) in FIELDS:
        return getattr(row, field)
    if column in row.metrics:
        return number(row.metrics[column])
    return row.settings.get(column, row.tags.get(column.removeprefix("tags.")))


def as_json(rows: Sequence[Row], columns: Sequence[str] = FIELDS) -> list[dict[str, Any]]:
    return [{column: value(row, column) for column in columns} for row in rows]
