"""Before the first step: a store that this process opens by itself, without a server, is asked whether it can be used.

What must be mended here (a driver, credentials, a place for artifacts) is said in one line, not after the training.
A store that is merely not reachable stays what it is for everybody: training goes on, and the mirror tries again.
"""

import logging
import re
import threading
from pathlib import Path
from typing import Any

from ..errors import BestrunError, SettingsError
from ..formatting import mask_uri
from .refusals import reason, remedy
from .store import connect, import_mlflow, is_own_store, local_path, sqlite_path

log = logging.getLogger("bestrun")

SECONDS = 5.0  # for its answer
REFUSED = re.compile(  # what PostgreSQL, MySQL and SQL Server say of an account, which a driver passes on as an outage
    r"authentication failed|no password supplied|pg_hba|(role|user) \S+ does not exist|access denied|login failed|"
    r"permission denied",
    re.IGNORECASE,
)
MISSING = re.compile(r"database \S+ does not exist|unknown database", re.IGNORECASE)


def refuse_unusable(uri: str, experiment: str, home: Path) -> None:
    """See that a store can be opened and keeps this experiment's artifacts where they can be written.

    Raises:
        SettingsError: it cannot be used before something is mended; says what.
    """
    if uri.startswith("http") or (is_own_store(uri, home) and experiment != "Default"):
        return
    import_mlflow()  # takes seconds, and is no answer of the store
    found: list[BestrunError] = []

    def ask() -> None:
        try:
            if not sqlite_path(uri):
                _open_once(uri)
            _look_at_artifacts(uri, experiment, home)
        except BestrunError as error:
            found.append(error)
        except Exception as error:
            account = "give a user and a password that may open it" if REFUSED.search(str(error)) else None
            if MISSING.search(str(error)):
                account = "make the database, or name another"
            if advice := remedy(error) or account:
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


def _look_at_artifacts(uri: str, experiment: str, home: Path) -> None:
    store = connect(uri)
    known: Any = store.client.get_experiment_by_name(experiment)
    if known is None:
        return
    store.refuse_elsewhere(known, home)
    if local_path(known.artifact_location) is None:
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        get_artifact_repository(known.artifact_location, tracking_uri=uri).list_artifacts()
