"""MLflow: where the store is, how it is made, how runs are found. Only `MlflowClient`, never the fluent API."""

import contextlib
import gc
import logging
import math
import os
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from ..errors import BestrunError, SettingsError, UnreadableError, VerificationError
from ..formatting import mask_uri
from ..metrics import best_key, metric_of, objectives
from ..settings.config import store_uri
from ..storage.folder import RunFolder, names_in, read_json
from ..storage.home import DATABASE, Place, find_home, has_run, place_of
from . import database
from .names import TAG_BEST_SHA256, TAG_FOLDER, TAG_ROLE, TAG_RUN, TAG_SWEEP, where

# Short time-outs and no retries inside the client: the mirror has its own back-off, and a repeated `create_run` whose
# answer was lost would make a second run. Read by MLflow at each call; what the user's environment says wins.
CLIENT_SETTINGS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER": "false",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}


class TrackingError(BestrunError):
    """MLflow did not answer."""


def own_store(home: Path) -> str:
    """The URI of the database in the home."""
    return f"sqlite:///{home.absolute() / DATABASE}"


def resolve_uri(setting: str | None, home: Path) -> str:
    """The tracking URI: the setting, else MLFLOW_TRACKING_URI, else SQLite in the home.

    What was set may name the database in this home where that lay before: it is meant where it lies now.

    Raises:
        SettingsError: MLflow cannot open it, by whatever way it came.
    """
    variable = os.environ.get("MLFLOW_TRACKING_URI")
    given = setting or variable
    if not given:
        return own_store(home)
    try:
        uri = store_uri(given)
    except ValueError as error:
        name = "tracking.uri" if setting else "MLFLOW_TRACKING_URI"
        why = str(error) or f"takes sqlite:///FILE, http(s)://HOST or a database; type {name}=sqlite:///mlflow.db"
        raise SettingsError(f"{name}={mask_uri(given)}: {why}") from None
    path = sqlite_path(uri)
    return own_store(home) if path and not path.exists() and _lay_at(path, home) else uri


def is_own_store(uri: str, home: Path) -> bool:
    """Whether this is the database in the home, by whatever link or mount."""
    path, own = sqlite_path(uri), (home / DATABASE).resolve()
    with contextlib.suppress(OSError):
        return path is not None and (path == own or path.samefile(own))
    return False


def store_of(recorded: Mapping[str, Any], home: Path) -> str | None:
    """The URI of the store that mirror.json means, in a home that may have been moved or copied; None if it means none.

    A run whose store was its home's own uses the one in the home it lies in now. The key `store` says so; before there
    was one, the address tells: the home lay there, or the store in the home has this very run.
    """
    uri = recorded.get("uri")
    if not uri:
        return None
    path = sqlite_path(uri)
    if recorded.get("store") == "home" or is_own_store(uri, home):
        return own_store(home)
    if path and path.name == DATABASE and (_lay_at(path, home) or has_run(home, recorded.get("run_id"))):
        return own_store(home)
    return str(uri)


def is_same_store(recorded: Mapping[str, Any], uri: str, home: Path) -> bool:
    """Whether what mirror.json says, which run and what was acknowledged, is said of this store."""
    if recorded.get("uri") == mask_uri(uri):
        return True
    meant = store_of(recorded, home)
    if not meant or not is_own_store(meant, home) or not is_own_store(uri, home):
        return False
    # A run's folder may have been copied alone, into a home whose store has never heard of it
    return recorded.get("run_id") is None or has_run(home, recorded["run_id"])


def _lay_at(database: Path, home: Path) -> bool:
    """Whether this was the database in the home, where that lay before."""
    place = place_of(home)
    return place is not None and database.name == DATABASE and database.parent in place.former


def sqlite_path(uri: str) -> Path | None:
    """The file of an SQLite tracking URI, with links resolved, or None for another store."""
    if not uri.startswith("sqlite:///"):
        return None
    return Path(uri.removeprefix("sqlite:///").partition("?")[0]).resolve()


log = logging.getLogger("bestrun")


@dataclass(frozen=True)
class Store:
    """A connection to one tracking store."""

    uri: str
    client: Any

    @cached_property
    def place(self) -> Place | None:
        """The home that this is the own store of; None for another store."""
        path = sqlite_path(self.uri)
        return place_of(path.parent) if path and path.name == DATABASE else None

    def here(self, address: str) -> str:
        """An address that the store holds, as it leads into the store's home, which may have been moved or copied."""
        return self.place.here(address) if self.place else address

    def run_folder(self, run: Any) -> RunFolder | None:
        """The folder that a run of ours was made in, if it is on this machine."""
        tags = run.data.tags
        folder = RunFolder(Path(self.here(tags.get(TAG_FOLDER) or "/nowhere")))
        if self.place and not folder.exists():  # in a home that is mounted twice, by its other path
            folder = RunFolder(self.place.home / "runs" / Path(tags.get(TAG_RUN) or "nowhere").name)
            if read_json(folder.mirror).get("run_id") != run.info.run_id:
                return None
        return folder if folder.exists() else None

    def experiment_id(self, name: str, home: Path | None = None) -> str:
        """The ID of the experiment, created if it is new; eight processes may do so at once.

        Args:
            home: whose runs go there; it keeps the artifacts where the store has no place of its own for them.

        Raises:
            SettingsError: the experiment was deleted in MLflow, or its artifacts belong to another machine.
        """
        from mlflow.exceptions import MlflowException

        found = self.client.get_experiment_by_name(name)
        if found is None:
            path = sqlite_path(self.uri)
            root = self.place.path if self.place else path.parent if path else None
            if root is None and home and not self.uri.startswith("http"):  # a database, which keeps no files
                root = home.absolute()
                (root / "artifacts" / name).mkdir(parents=True, exist_ok=True)  # its being there says whose it is
                log.info("artifacts of experiment %s are kept in %s", name, root / "artifacts" / name)
            location = (root / "artifacts" / name).as_uri() if root else None
            try:
                return str(self.client.create_experiment(name, artifact_location=location))
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
                found = self.client.get_experiment_by_name(name)
        if found.lifecycle_stage != "active":
            raise SettingsError(
                f"experiment={name}: it was deleted in MLflow; restore it there "
                f"(mlflow experiments restore -x {found.experiment_id}), or name another: experiment=NAME"
            )
        if home:
            self.refuse_elsewhere(found, home)
        return str(found.experiment_id)

    def refuse_elsewhere(self, experiment: Any, home: Path) -> None:
        """Refuse a local folder that is another machine's, or whatever folder we stand in: it would be made anew here.

        Raises:
            SettingsError: says what to do.
        """
        location = self.here(experiment.artifact_location or "")
        path = local_path(location)
        if self.uri.startswith("http") or path is None:
            return
        database = sqlite_path(self.uri)
        ours = [folder.resolve() for folder in (home, database and database.parent) if folder]
        is_ours = path.is_absolute() and any(path.resolve().is_relative_to(folder) for folder in ours)
        is_here = path.is_absolute() and (path.exists() or (path.parent.exists() and path.parent != Path(path.root)))
        if not (is_ours or (is_here and experiment.name != "Default")):  # MLflow's own is wherever MLflow stood
            raise SettingsError(
                f"experiment={experiment.name}: keeps its artifacts in {location or 'the current folder'}, which is no "
                "place of theirs on this machine; name another: experiment=NAME; or let a server keep them: mlflow "
                "server --artifacts-destination FOLDER"
            )

    def artifacts(self, run: Any) -> Any:
        """The repository of a run's artifacts: `log_artifact(s)`, `list_artifacts`, `download_artifacts`,
        `delete_artifacts`. The one way to them, as MLflow's client asks for the run anew at each call.
        """
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        uri = self.here(run.info.artifact_uri)
        if self.place and (path := local_path(uri)) and path.is_relative_to(self.place.home):
            return _in_home(uri, self.uri, self.place)
        return get_artifact_repository(uri, tracking_uri=self.uri)

    def experiments(self, name: str | None) -> dict[str, str]:
        """ID -> name of the active experiments, or of the named one.

        Raises:
            SettingsError: there is no experiment of this name; lists those there are.
        """
        found = {e.experiment_id: e.name for e in self.client.search_experiments()}
        if name is None:
            return found
        chosen = {key: value for key, value in found.items() if value == name}
        if not chosen:
            raise SettingsError(f"experiment {name!r}: there is none; there are: {', '.join(sorted(found.values()))}")
        return chosen


def local_path(uri: str) -> Path | None:
    """The folder that an artifact address means on this machine; None for an address of another scheme."""
    parts = urlsplit(uri)
    return Path(unquote(parts.path) if parts.scheme else uri) if parts.scheme in ("", "file") else None


def _in_home(uri: str, tracking_uri: str, place: Place) -> Any:
    """A repository that writes only as long as its home is there: MLflow's would make the path of a moved one anew."""
    from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

    class InHome(LocalArtifactRepository):  # type: ignore[misc]
        def log_artifact(self, *args: Any, **kwargs: Any) -> None:
            place.check()
            super().log_artifact(*args, **kwargs)

        def log_artifacts(self, *args: Any, **kwargs: Any) -> None:
            place.check()
            super().log_artifacts(*args, **kwargs)

    return InHome(uri, tracking_uri=tracking_uri)


def connect(uri: str, *, create: bool = True) -> Store:
    """Connect to a store; an SQLite one is made first, see database.py.

    Raises:
        SettingsError: with `create=False`, there is no database yet; or it is none of this MLflow's.
        StorageError: the database cannot be read or made.
    """
    path = sqlite_path(uri)
    gc.disable()  # an eighth of MLflow's import is the collector, looking through objects that all stay
    try:
        if path:
            database.ready(path, create=create, load=import_mlflow)
        client = import_mlflow().MlflowClient(uri)
        if path:
            client.search_experiments(max_results=1)
    finally:
        gc.enable()
    return Store(uri, client)


def import_mlflow() -> Any:
    """The module, with our settings and not a line for each table of a new store."""
    for name, value in CLIENT_SETTINGS.items():
        os.environ.setdefault(name, value)
    import mlflow

    for name in ("mlflow", "mlflow.store.db.utils", "sqlalchemy", "alembic"):
        logging.getLogger(name).setLevel(
            logging.CRITICAL
        )  # tracebacks of what they raise as well, and we tell in a line
    return mlflow


@contextlib.contextmanager
def reaching(uri: str) -> Iterator[None]:
    """Turn whatever MLflow raises into one line that names the store."""
    try:
        yield
    except BestrunError:
        raise
    except Exception as error:
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise TrackingError(f"MLflow at {mask_uri(uri)}: {text.replace(uri, mask_uri(uri))}") from error


# ---- RUN references: a run ID, a unique prefix of it, a run name, `latest`, `best`, or a registered model's NAME@ALIAS

REFERENCE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}")
ALIAS = re.compile(r"(?!(?i:latest|v[0-9]+)\Z)[A-Za-z0-9_-]{1,200}")  # MLflow keeps those two for itself


def find_run(
    store: Store,
    reference: str,
    *,
    experiment: str | None = None,
    objective: str | None = None,
    sweep: str | None = None,
) -> Any:
    """The MLflow run that a RUN reference means; with `sweep`, `best` and `latest` of that sweep.

    Raises:
        SettingsError: it means none, or several; lists them.
        VerificationError: it is no run of ours, or NAME@ALIAS is another checkpoint than the run's best.
    """
    run = _find(store, reference, experiment, objective, sweep)
    tags = run.data.tags
    name = tags.get(TAG_RUN, "")
    if not name and tags.get(TAG_ROLE) == "sweep":
        sweep = tags.get(TAG_SWEEP, "")
        raise SettingsError(f"run {reference!r}: it is a sweep; see: bestrun sweep {sweep[:100]}")
    if not REFERENCE.fullmatch(name):  # it becomes the name of a folder
        raise VerificationError(f"run {run.info.run_id}: not a run of bestrun: its tag {TAG_RUN} is {name[:60]!r}")
    return run


def _find(store: Store, reference: str, experiment: str | None, objective: str | None, sweep: str | None) -> Any:
    check_reference(reference)
    experiments = list(store.experiments(experiment))
    if "@" in reference:
        return _registered_run(store, reference, experiments)
    ours = of_sweep(store, sweep)
    if reference == "latest":
        found = search(store, experiments, ours, ["attributes.start_time DESC"], 1)
        return _one(found, "latest: there is no such run yet; make one: bestrun train")
    if reference == "best":
        return best_run(store, experiments, objective, ours)
    if re.fullmatch(r"[0-9a-f]{8,32}", reference):
        found = search(store, experiments, f"attributes.run_id LIKE '{reference}%'", [], 6)
        if found:
            return _only(found, reference)
    found = search(store, experiments, where(TAG_RUN, reference), ["attributes.start_time DESC"], 6)
    if not found:
        raise SettingsError(f"run {reference!r}: MLflow at {mask_uri(store.uri)} has none; list them: bestrun runs")
    return _only(found, reference)


def check_reference(reference: str) -> None:
    """Refuse what cannot be a RUN, before it is used in a path or a query."""
    name, at, alias = reference.partition("@")
    if not REFERENCE.fullmatch(name) or (at and not ALIAS.fullmatch(alias)):
        raise SettingsError(
            f"run {reference[:60]!r}: not a run reference; it is a run ID (or 8 and more of its first characters), "
            "a run name, latest, best, or a registered model's NAME@ALIAS"
        )


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
    role = f"{where(TAG_ROLE, 'sweep')} and {where(TAG_SWEEP, sweep)}"
    parents = search(store, list(store.experiments(None)), role, ["attributes.start_time DESC"], 20)
    ours = read_json(find_home() / "sweeps" / sweep / "manifest.json").get("parent_run_id")
    chosen = [run for run in parents if run.info.run_id == ours] or parents
    if len(chosen) > 1:
        each = "; ".join(
            f"{run.data.tags.get('mlflow.user') or 'somebody'}'s of "
            f"{time.strftime('%Y-%m-%d %H:%M', time.localtime(run.info.start_time / 1000))}: --sweep {run.info.run_id}"
            for run in chosen
        )
        raise SettingsError(f"--sweep {sweep}: means {len(chosen)} sweeps; type which: {each}")
    if not chosen:  # its parent was deleted
        return f"{OURS} and {where(TAG_SWEEP, sweep)}"
    return f"{OURS} and tags.\"mlflow.parentRunId\" = '{chosen[0].info.run_id}'"


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
    for key in [objective] if objective else objectives():
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


def search(store: Store, experiments: list[str], filtered: str, order: list[str], most: int) -> list[Any]:
    return (
        list(store.client.search_runs(experiments, filtered, order_by=order, max_results=most)) if experiments else []
    )


def _one(found: list[Any], message: str) -> Any:
    if not found:
        raise SettingsError(message)
    return found[0]


def _only(found: list[Any], reference: str) -> Any:
    if len(found) > 1:
        raise SettingsError(_several(reference, [f"{run.info.run_id} ({run.info.run_name})" for run in found]))
    return found[0]


def _several(reference: str, found: list[str]) -> str:
    more = ", ..." * (len(found) > 5)
    return f"run {reference!r} means several: {', '.join(found[:5])}{more}; give one of these IDs"


def local_folder(home: Path, reference: str) -> RunFolder:
    """The run folder on this machine that a RUN reference means; MLflow is not asked.

    Raises:
        SettingsError: there is none, or several; lists them.
    """
    check_reference(reference)
    if "@" in reference:
        raise SettingsError(f"run {reference!r}: only MLflow knows what is registered; type a run name")
    folders = run_folders(home)
    if reference == "latest" and folders:
        return folders[-1]
    if named := next((folder for folder in folders if folder.name == reference), None):
        return named
    ids = {folder: _run_id(folder) for folder in folders if len(reference) >= 8}
    found = [folder for folder, run_id in ids.items() if run_id.startswith(reference)]
    if len(found) > 1:
        raise SettingsError(_several(reference, [f"{ids[folder]} ({folder.name})" for folder in found]))
    if found:
        return found[0]
    raise SettingsError(f"run {reference!r}: there is no folder of it in {home / 'runs'}")


def _run_id(folder: RunFolder) -> str:
    try:
        return str(read_json(folder.mirror).get("run_id"))
    except UnreadableError:
        return ""


def run_folders(home: Path) -> list[RunFolder]:
    """All runs of this home, the oldest first."""
    folders = [RunFolder(home / "runs" / name) for name in names_in(home / "runs")]
    return sorted(filter(_may_be_a_run, folders), key=lambda folder: (_begun(folder), folder.name))


def _may_be_a_run(folder: RunFolder) -> bool:
    """A journal that cannot be read now is a run's: whoever asks for that run will hear why, all others go on."""
    try:
        return folder.exists()
    except UnreadableError:
        return True


def _begun(folder: RunFolder) -> float:
    try:
        return folder.config.stat().st_mtime
    except OSError:
        return 0


def make_registered_model(client: Any, name: str) -> None:
    """See that the registry has a model of this name."""
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
