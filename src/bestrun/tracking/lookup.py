"""Which of MLflow's runs a RUN reference means; a folder on this machine is storage/reference.py's."""

import math
import re
import time
from dataclasses import dataclass
from typing import Any

from ..errors import SettingsError, VerificationError
from ..formatting import mask_uri
from ..metrics import best_key, metric_of, objectives
from ..storage.files import read_json
from ..storage.folder import RunFolder
from ..storage.home import find_home
from ..storage.reference import REFERENCE, check_reference, several
from .names import TAG_BEST_RUN, TAG_BEST_SHA256, TAG_FINALISTS, TAG_ROLE, TAG_RUN, TAG_SWEEP, where
from .store import Store


@dataclass(frozen=True)
class Lookup:
    """A RUN as it was typed, and where it is looked for.

    Attributes:
        experiment, sweep: only there.
        objective: which one `best` goes by, where there are runs of several.
    """

    reference: str
    experiment: str | None = None
    objective: str | None = None
    sweep: str | None = None


def find_run(store: Store, lookup: Lookup) -> Any:
    """The MLflow run that a RUN reference means; with `sweep`, `best` and `latest` of that sweep.

    Raises:
        SettingsError: it means none, or several; lists them.
        VerificationError: it is no run of ours, or NAME@ALIAS is another checkpoint than the run's best.
    """
    run, reference = _find(store, lookup), lookup.reference
    tags = run.data.tags
    name = tags.get(TAG_RUN, "")
    if not name and tags.get(TAG_ROLE) == "sweep":
        sweep = tags.get(TAG_SWEEP, "")
        raise SettingsError(f"run {reference!r}: it is a sweep; see: bestrun sweep {sweep[:100]}")
    if not REFERENCE.fullmatch(name):  # it becomes the name of a folder
        raise VerificationError(f"run {run.info.run_id}: not a run of bestrun: its tag {TAG_RUN} is {name[:60]!r}")
    return run


def _find(store: Store, lookup: Lookup) -> Any:
    reference = lookup.reference
    check_reference(reference)
    experiments = list(store.experiments(lookup.experiment))
    if "@" in reference:
        return _registered_run(store, reference, experiments)
    ours = of_sweep(store, lookup.sweep)
    if reference == "latest":
        found = search(store, experiments, ours, ["attributes.start_time DESC"], 1)
        return _one(found, "latest: there is no such run yet; make one: bestrun train")
    if reference == "best":
        chosen = None if lookup.objective else winner_of(store, lookup.sweep)
        return chosen or best_run(store, experiments, lookup.objective, ours)
    if re.fullmatch(r"[0-9a-f]{8,32}", reference):
        found = search(store, experiments, f"attributes.run_id LIKE '{reference}%'", [], 6)
        if found:
            return _only(found, reference)
    named = where(TAG_RUN, reference)
    found = search(store, experiments, named, ["attributes.start_time DESC"], 6)
    if not found:
        raise SettingsError(f"run {reference!r}: MLflow at {mask_uri(store.uri)} has none; list them: bestrun runs")
    return _only(_own(store, experiments, reference, found) or found, reference)


def _own(store: Store, experiments: list[str], name: str, found: list[Any]) -> list[Any]:
    """The record of this home's run of a name, as others on the same server may have runs of it; [] where the home has
    none.

    Args:
        found: MLflow's runs of this name.

    Raises:
        SettingsError: MLflow has no record of it: those that it has are others.
    """
    folder = RunFolder(find_home() / "runs" / name)
    birth = folder.birth
    if birth is None or not REFERENCE.fullmatch(birth[0]):
        return []
    alike = f"{where(TAG_RUN, birth[0])} and attributes.start_time = {birth[1]}"
    own = search(store, experiments, alike, [], 6)
    if not own:
        each = ", ".join(f"{run.info.run_id} ({whose(run)})" for run in found[:5])
        raise SettingsError(
            f"run {name!r}: MLflow at {mask_uri(store.uri)} has another run of this name, {each}, and not the one in "
            f"{folder.path}; to send that: bestrun sync {name}; restore, fetch and predict take it with --local; for "
            "another one give its ID"
        )
    sent_as = read_json(folder.mirror).get("run_id")
    return [run for run in own if run.info.run_id == sent_as] or own


def _registered_run(store: Store, reference: str, experiments: list[str]) -> Any:
    """The run of a registered model's alias, which must still have the best checkpoint it was registered with."""
    from mlflow.exceptions import MlflowException

    name, _, alias = reference.partition("@")
    try:
        version = store.client.get_model_version_by_alias(name, alias)
        run = store.client.get_run(version.run_id or "none")
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        raise SettingsError(f"run {reference!r}: {error.message.rstrip('.')}; {_register(reference)}") from None
    if run.info.lifecycle_stage != "active":
        again = f"mlflow runs restore --run-id {run.info.run_id}"
        raise SettingsError(f"run {reference!r}: its run was deleted; what brings it back: {again}")
    if run.info.experiment_id not in experiments:
        raise SettingsError(f"run {reference!r}: its run {run.info.run_name} is not in this experiment")
    registered, best = (having.tags.get(TAG_BEST_SHA256, "none") for having in (version, run.data))
    if registered != best:
        raise VerificationError(
            f"run {reference!r}: version {version.version} was registered with checkpoint {registered[:16]}, but the "
            f"best of its run {run.info.run_name} is now {best[:16]}; {_register(reference, run.info.run_id)}"
        )
    return run


def _register(reference: str, run: str = "RUN") -> str:
    name, _, alias = reference.partition("@")
    return f"to register one: bestrun register {run} --name {name} --alias {alias}"


OURS = f"tags.\"{TAG_RUN}\" != ''"


def of_sweep(store: Store, sweep: str | None) -> str:
    """The filter for all our runs, or for the runs of one sweep: those of its parent run.

    Args:
        sweep: its name, or the ID of its parent run. Of several of one name, that of our home is meant.

    Raises:
        SettingsError: it cannot be the name of a sweep, or means several of other people.
    """
    if sweep is None:
        return OURS
    if not REFERENCE.fullmatch(sweep):
        raise SettingsError(f"--sweep {sweep[:60]!r}: not the name of a sweep; list them: bestrun sweep")
    if re.fullmatch("[0-9a-f]{32}", sweep):
        return f"{OURS} and tags.\"mlflow.parentRunId\" = '{sweep}'"
    parent = _parent_of(store, sweep)
    if parent is None:  # it was deleted
        return f"{OURS} and {where(TAG_SWEEP, sweep)}"
    return f"{OURS} and tags.\"mlflow.parentRunId\" = '{parent.info.run_id}'"


def _parent_of(store: Store, sweep: str) -> Any | None:
    """The parent run of the sweep of this name; None where there is none.

    Raises:
        SettingsError: it means several of other people.
    """
    ours = read_json(find_home() / "sweeps" / sweep / "manifest.json")  # a folder that was renamed holds its first name
    role = f"{where(TAG_ROLE, 'sweep')} and {where(TAG_SWEEP, str(ours.get('name') or sweep))}"
    parents = search(store, list(store.experiments(None)), role, ["attributes.start_time DESC"], 20)
    chosen = [run for run in parents if run.info.run_id == ours.get("parent_run_id")] or parents
    if len(chosen) > 1:
        each = "; ".join(f"{whose(run)}: --sweep {run.info.run_id}" for run in chosen)
        raise SettingsError(f"--sweep {sweep}: means {len(chosen)} sweeps; type which: {each}")
    return chosen[0] if chosen else None


def whose(run: Any) -> str:
    """Who made a run, and when: what tells apart those of one name."""
    began = time.strftime("%Y-%m-%d %H:%M", time.localtime(run.info.start_time / 1000))
    return f"{run.data.tags.get('mlflow.user') or 'somebody'}'s of {began}"


def winner_of(store: Store, sweep: str | None) -> Any | None:
    """The run that a sweep's finalists chose: the best mean of fresh seeds, not the best value of all; None where a
    sweep has none, or they are not over.

    Raises:
        SettingsError: it was deleted.
    """
    if sweep is None or not REFERENCE.fullmatch(sweep):
        return None
    is_id = re.fullmatch("[0-9a-f]{32}", sweep)
    parent = store.client.get_run(sweep) if is_id else _parent_of(store, sweep)
    run_id = parent.data.tags.get(TAG_BEST_RUN) if parent and TAG_FINALISTS in parent.data.tags else None
    if not run_id:
        return None
    run = store.client.get_run(run_id)
    if run.info.lifecycle_stage != "active":
        again = f"mlflow runs restore --run-id {run_id}"
        raise SettingsError(
            f"--sweep {sweep}: its winner {run.info.run_name} was deleted; what brings it back: {again}"
        )
    return run


def best_run(store: Store, experiments: list[str], objective: str | None, ours: str = OURS) -> Any:
    """The best FINISHED run by its objective, ties to the earlier; of the latest run's experiment, if not told which.

    Raises:
        SettingsError: there is none, or runs of different objectives would have to be compared.
    """
    if len(experiments) > 1:
        latest = search(store, experiments, ours, ["attributes.start_time DESC"], 1)
        experiments = [run.info.experiment_id for run in latest]
    finished = f"{ours} and attributes.status = 'FINISHED'"
    found = {}
    for key in [objective] if objective else objectives_in_use(store, experiments, finished):
        if key not in objectives():
            continue
        filtered = f"{finished} and params.\"objective.metric\" = '{key}'"
        if best := ranked(store, experiments, filtered, best_key(key), metric_of(key).direction == "maximize", 1):
            found[key] = best[0]
    if len(found) > 1:
        each = ", ".join(f"some {metric_of(key).direction} {key}" for key in found)
        raise SettingsError(f"best: of these runs, {each}; say which: --objective {next(iter(found))}")
    return _one(list(found.values()), "best: no finished run has a best value yet; list the runs: bestrun runs")


LARGEST = 1e300  # MLflow keeps infinity as the largest float


SAMPLE = 32


def ranked(store: Store, experiments: list[str], filtered: str, metric: str, descending: bool, most: int) -> list[Any]:
    """The first `most` runs by a metric, of those where it is a finite number; ties to the earlier start.

    On SQLite MLflow's ordering by a metric takes a time that grows with the square of the runs (1 s for 5,000), so it
    is given only those as good as some run of a sample. If these are `most`, none of the first `most` of all is lost.
    """

    def between(low: float, high: float, order: str, most: int) -> list[Any]:
        least, greatest = (repr(value).replace("+", "") for value in (low, high))  # MLflow does not read 1e+300
        bounded = f'{filtered} and metrics."{metric}" >= {least} and metrics."{metric}" <= {greatest}'
        found = search(store, experiments, bounded, [order, "attributes.start_time ASC"], most)
        return [run for run in found if math.isfinite(run.data.metrics[metric])]  # an old server finds NaN too, as 0

    order = f'metrics."{metric}" {"DESC" if descending else "ASC"}'
    sample = between(-LARGEST, LARGEST, "attributes.run_id ASC", SAMPLE)  # IDs are random
    values = sorted((run.data.metrics[metric] for run in sample), reverse=descending)
    for rank in (1, 4, 16) if len(sample) == SAMPLE else ():
        low, high = (values[rank], LARGEST) if descending else (-LARGEST, values[rank])
        if len(found := between(low, high, order, most)) == most:
            return found
    return between(-LARGEST, LARGEST, order, most)


def objectives_in_use(store: Store, experiments: list[str], filtered: str) -> list[str]:
    """The objectives of these runs, ours in their order and then what only another version knows: a search each, and
    one more, where looking for the best of each of ours would take several.
    """
    found: list[str] = []
    while True:
        others = [f"params.\"objective.metric\" != '{key}'" for key in ["", *found]]
        first = search(store, experiments, " and ".join([filtered, *others]), ["attributes.start_time DESC"], 1)
        if not first:
            return [key for key in objectives() if key in found] + [key for key in found if key not in objectives()]
        found.append(first[0].data.params["objective.metric"])
        if not re.fullmatch(r"[\w/]{1,200}", found[-1]):  # no search can leave that one out
            return [*objectives(), found[-1]]


PAGE = 200  # runs of one answer, which a busy server gives within our client's time-out


def search(store: Store, experiments: list[str], filtered: str, order: list[str], most: int) -> list[Any]:
    """The first `most` runs of these experiments that a filter lets through."""
    found: list[Any] = []
    token = None
    while experiments and len(found) < most:
        size = min(PAGE, most - len(found))
        page = store.client.search_runs(experiments, filtered, order_by=order, max_results=size, page_token=token)
        found += page
        token = page.token
        if not token:
            break
    return found


def _one(found: list[Any], message: str) -> Any:
    if not found:
        raise SettingsError(message)
    return found[0]


def _only(found: list[Any], reference: str) -> Any:
    if len(found) > 1:
        raise SettingsError(
            several(reference, [f"{run.info.run_id} ({run.info.run_name}, {whose(run)})" for run in found])
        )
    return found[0]
