"""Before the first step: what this process opens by itself, without a server, is asked whether it can be used.

That is a database, and the artifacts of an experiment that its server does not pass on. What must be mended here (a
driver, a library, credentials, a place for artifacts) is said in one line, not after the training.
A store that is merely not reachable stays what it is for everybody: training goes on, and the mirror tries again.
"""

import logging
import re
import threading
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..errors import BestrunError, SettingsError
from ..formatting import mask_uri
from .refusals import install, reason, remedy
from .store import connect, import_mlflow, is_own_store, local_path, sqlite_path

log = logging.getLogger("bestrun")

SECONDS = 5.0  # for its answer
LIBRARIES = {"s3": "boto3"}  # scheme of an artifact store -> the module that MLflow speaks to it by
REFUSED = re.compile(  # what PostgreSQL, MySQL and SQL Server say of an account, which a driver passes on as an outage
    r"authentication failed|no password supplied|pg_hba|(role|user) \S+ does not exist|access denied|login failed|"
    r"permission denied",
    re.IGNORECASE,
)
MISSING = re.compile(r"database \S+ does not exist|unknown database", re.IGNORECASE)


def refuse_unusable(uri: str, experiment: str, home: Path) -> None:
    """See that a store can be opened and keeps this experiment's artifacts where they can be written.

    A server is asked only where a library is missing that its artifacts may need: that takes time before the first
    step, and what else a server refuses its first answers tell while training goes on.

    Raises:
        SettingsError: it cannot be used before something is mended; says what.
    """
    if is_own_store(uri, home) and experiment != "Default":
        return
    is_server = uri.startswith("http")
    if is_server and all(map(find_spec, LIBRARIES.values())):
        return
    import_mlflow()  # takes seconds, and is no answer of the store
    found: list[BestrunError] = []

    def ask() -> None:
        try:
            if is_server:
                _look_for_library(uri, experiment, home)
                return
            if not sqlite_path(uri):
                _open_once(uri)
            _look_at_artifacts(uri, experiment, home)
        except BestrunError as error:
            found.append(error)
        except Exception as error:
            account = "give a user and a password that may open it" if REFUSED.search(str(error)) else None
            if MISSING.search(str(error)):
                account = "make the database, or name another"
            if not is_server and (advice := remedy(error) or account):
                found.append(SettingsError(f"tracking.uri={mask_uri(uri)}: {reason(error)}; {advice}"))
            else:
                log.debug("%s was not looked at: %s", mask_uri(uri), reason(error))

    thread = threading.Thread(target=ask, name="direct", daemon=True)
    thread.start()
    thread.join(SECONDS)
    if found:
        raise found[0]


def _open_once(uri: str) -> None:
    """Without MLflow, which tries for minutes."""
    import sqlalchemy
    from sqlalchemy.pool import NullPool

    engine = sqlalchemy.create_engine(uri, poolclass=NullPool)  # the driver is imported here
    try:
        engine.connect().close()
    finally:
        engine.dispose()


def _look_for_library(uri: str, experiment: str, home: Path) -> None:
    """Whether what a server's artifacts need is installed, where they are sent to their store directly. A new
    experiment is made here and not by the run: only the server knows where it puts it.

    Raises:
        SettingsError: it is not.
    """
    store = connect(uri)
    try:
        experiment_id = store.experiment_id(experiment, home)
    except SettingsError:  # it was deleted there: that costs the record, not the training
        return
    location = store.client.get_experiment(experiment_id).artifact_location
    library = LIBRARIES.get(location.partition(":")[0])
    if library and not find_spec(library):
        raise SettingsError(
            f"tracking.uri={mask_uri(uri)}: experiment={experiment} keeps its artifacts in {mask_uri(location)}, which "
            f"needs a library: {install(library)}"
        )


def _look_at_artifacts(uri: str, experiment: str, home: Path) -> None:
    store = connect(uri)
    known: Any = store.client.get_experiment_by_name(experiment)
    if known is None:
        return
    store.refuse_elsewhere(known, home)
    if local_path(known.artifact_location) is None:
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        get_artifact_repository(known.artifact_location, tracking_uri=uri).list_artifacts()
