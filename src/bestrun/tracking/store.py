"""MLflow: where the store is, how it is made, how runs are found. Only `MlflowClient`, never the fluent API."""

import contextlib
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from ..environment import without_collector
from ..errors import BestrunError, SettingsError
from ..formatting import mask_uri
from ..settings.config import store_uri
from ..storage.folder import RunFolder
from ..storage.home import DATABASE, Whereabouts, find_home, has_run, whereabouts
from . import database
from .names import TAG_FOLDER, TAG_RUN
from .reader import Reader
from .refusals import remedy

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


@dataclass(frozen=True)
class Place:
    """Where runs are: their folders, and MLflow's record of them.

    Attributes:
        home: the folder `mlruns` on this machine.
        uri: the MLflow store, as `resolve_uri` says.
    """

    home: Path
    uri: str


def find_place(tracking_uri: str | None = None, *, writes: bool = False) -> Place:
    """The home that `find_home` finds, and the store that a tracking URI, or none, means there. Raises as those do."""
    home = find_home(writes=writes)
    return Place(home, resolve_uri(tracking_uri, home))


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
    lies = whereabouts(home)
    return lies is not None and database.name == DATABASE and database.parent in lies.former


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
    def whereabouts(self) -> Whereabouts | None:
        """The home that this is the own store of; None for another store."""
        path = sqlite_path(self.uri)
        return whereabouts(path.parent) if path and path.name == DATABASE else None

    def here(self, address: str) -> str:
        """An address that the store holds, as it leads into the store's home, which may have been moved or copied."""
        return self.whereabouts.here(address) if self.whereabouts else address

    def run_folder(self, run: Any) -> RunFolder | None:
        """The folder that a run of ours was made in, if it is on this machine."""
        tags = run.data.tags
        folder = RunFolder(Path(self.here(tags.get(TAG_FOLDER) or "/nowhere")))
        if self.whereabouts and not folder.exists():  # in a home that is mounted twice, by its other path
            folder = RunFolder(self.whereabouts.home / "runs" / Path(tags.get(TAG_RUN) or "nowhere").name)
        return folder if folder.birth == (tags.get(TAG_RUN), run.info.start_time) else None

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
            root = self.whereabouts.path if self.whereabouts else path.parent if path else None
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

    def artifacts(self, owner: Any) -> Any:
        """The repository of the artifacts of a run, or of a LoggedModel: `log_artifact(s)`, `list_artifacts`,
        `download_artifacts`, `delete_artifacts`. The one way to them, as MLflow's client asks for the run anew at
        each call.
        """
        return self.files_at(owner.info.artifact_uri if hasattr(owner, "info") else owner.artifact_location)

    def files_at(self, address: str) -> Any:
        """The repository at an address of the store's: of a run's artifacts, or of a model's."""
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        uri = self.here(address)
        if self.whereabouts and (path := local_path(uri)) and path.is_relative_to(self.whereabouts.home):
            return _in_home(uri, self.uri, self.whereabouts)
        return get_artifact_repository(uri, tracking_uri=self.uri)

    def experiments(self, name: str | None) -> dict[str, str]:
        """ID -> name of the active experiments, or of the named one.

        Raises:
            SettingsError: there is no experiment of this name; lists those there are.
        """
        found = {each.experiment_id: each.name for each in paged(self.client.search_experiments)}
        if name is None:
            return found
        chosen = {key: value for key, value in found.items() if value == name}
        if not chosen:
            raise SettingsError(f"experiment {name!r}: there is none; there are: {', '.join(sorted(found.values()))}")
        return chosen


def paged(ask: Callable[..., Any], *words: Any, **named: Any) -> Iterator[Any]:
    """All rows of a question that MLflow answers page by page."""
    token = None
    while True:
        answer = ask(*words, page_token=token, **named)
        yield from answer
        token = answer.token
        if not token:
            return


def local_path(uri: str) -> Path | None:
    """The folder that an artifact address means on this machine; None for an address of another scheme."""
    parts = urlsplit(uri)
    return Path(unquote(parts.path) if parts.scheme else uri) if parts.scheme in ("", "file") else None


def _in_home(uri: str, tracking_uri: str, lies: Whereabouts) -> Any:
    """A repository that writes only as long as its home is there: MLflow's would make the path of a moved one anew."""
    from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

    class InHome(LocalArtifactRepository):  # type: ignore[misc]
        def log_artifact(self, *args: Any, **kwargs: Any) -> None:
            lies.check()
            super().log_artifact(*args, **kwargs)

        def log_artifacts(self, *args: Any, **kwargs: Any) -> None:
            lies.check()
            super().log_artifacts(*args, **kwargs)

    return InHome(uri, tracking_uri=tracking_uri)


def connect(uri: str, *, create: bool = True) -> Store:
    """Connect to a store; what is a database, without a server before it, is made first, see database.py.

    Raises:
        SettingsError: with `create=False`, there is no SQLite database yet; or it is none of this MLflow's.
        StorageError: the SQLite database cannot be read or made.
        Exception: whatever the driver of another database raises.
    """
    path = sqlite_path(uri)
    with without_collector():
        if path:
            database.ready(path, create=create, load=import_mlflow)
        client_of = import_mlflow().MlflowClient
        with contextlib.nullcontext() if path or uri.startswith("http") else database.taking_turns(uri):
            client = client_of(uri)
            if not uri.startswith("http"):
                client.search_experiments(max_results=1)
    return Store(uri, client)


def reading(uri: str) -> Store:
    """Connect to a store for look-ups: to a database with the tables of this MLflow without importing MLflow, which
    takes longer than all that a list of runs needs; else as `connect` does, and raises, with `create=False`.
    """
    path = sqlite_path(uri)
    if path and "?" not in uri and not os.environ.get("MLFLOW_ENABLE_WORKSPACES") and database.is_of_this_mlflow(path):
        return Store(uri, Reader(path, lambda: connect(uri, create=False).client))
    return connect(uri, create=False)


def import_mlflow() -> Any:
    """The module, with our settings and not a line for each table of a new store."""
    for name, value in CLIENT_SETTINGS.items():
        os.environ.setdefault(name, value)
    # Else set_terminated prints the whole tracking URI, password included, in the middle of what is for the user
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
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
        mend = f"; {advice}" if (advice := remedy(error)) else ""
        raise TrackingError(f"MLflow at {mask_uri(uri)}: {text.replace(uri, mask_uri(uri))}{mend}") from error


def make_registered_model(client: Any, name: str) -> None:
    """See that the registry has a model of this name."""
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
