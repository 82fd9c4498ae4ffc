"""Can a run be tracked there? A store is asked, and on a server a run is made, written to and deleted again."""

import contextlib
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ..errors import BestrunError, SettingsError
from ..formatting import mask_uri
from ..storage.files import StorageError
from ..storage.workplace import Workplace
from . import database
from .artifacts import TooLargeError, seconds_for, upload
from .direct import REFUSED, refuse_unusable
from .names import TAG_ROLE
from .refusals import reason, remedy, status_of
from .store import Store, TrackingError, connect, import_mlflow, local_path, sqlite_path

CHECK = "check"  # the role of a run that is made to see whether it can be; nothing lists it as a run
SECONDS = 30.0  # so long a store is waited for: a database is tried for minutes by MLflow
BUSY_SECONDS = 5.0

Answer = TypeVar("Answer")


class ForbiddenError(BestrunError):
    """The store answers, and does not let us do this."""

    exit_code = 2


@dataclass(frozen=True)
class Answered:
    """A store that answered.

    Attributes:
        seconds: how long that took.
        version: of MLflow there; None where it does not say.
    """

    seconds: float
    version: str | None


def ask(uri: str, experiment: str, home: Path) -> Answered:
    """Ask a server, or a database that is none of SQLite's, whether it is there.

    Raises:
        TrackingError: it did not answer; says why.
        ForbiddenError: it does not let us in.
        SettingsError: something is to be mended here first: a driver, an account.
    """
    import_mlflow()  # takes seconds, and is no answer of the store
    began = time.monotonic()

    def look() -> Answered:
        refuse_unusable(uri, experiment, home)  # of a database it knows what MLflow, which tries for minutes, does not
        connect(uri).client.search_experiments(max_results=1)
        seconds = time.monotonic() - began
        return Answered(seconds, _version(uri))

    return _answer_of(uri, look, "may not read there", SECONDS)


@dataclass(frozen=True)
class Written:
    """A run that was made, written to and deleted.

    Attributes:
        seconds: that its artifact took.
        left: what of it could not be taken away again; None where nothing is left.
    """

    seconds: float
    left: str | None


def try_writing(uri: str, experiment: str, home: Path, artifact: Path | None = None) -> Written:
    """Make a run in the experiment, write a metric and an artifact, and delete it again.

    An experiment that is not there yet is made, and stays: MLflow would keep the name of a deleted one.

    Args:
        artifact: a file; None: a small one.

    Raises:
        ForbiddenError: what a run does is not allowed there.
        SettingsError: the experiment was deleted, or its artifacts belong to another machine.
        TrackingError: it did not answer.
    """
    with Workplace() as place:
        if artifact is None:
            artifact = place / "check.txt"
            artifact.write_text("made by bestrun check, and of no further use\n")
        file, seconds = artifact, SECONDS + seconds_for(artifact.stat().st_size)
        return _answer_of(uri, lambda: _write(connect(uri), experiment, home, file), "may not write there", seconds)


def _write(store: Store, experiment: str, home: Path, artifact: Path) -> Written:
    client = store.client
    experiment_id = store.experiment_id(experiment, home)
    run = client.create_run(experiment_id, run_name=f"bestrun-check-{secrets.token_hex(4)}", tags={TAG_ROLE: CHECK})
    try:
        client.log_metric(run.info.run_id, CHECK, 1.0, step=0, synchronous=True)
        began = time.monotonic()
        upload(store, run, artifact, CHECK)
        seconds = time.monotonic() - began
        repository = store.artifacts(run)
        if f"{CHECK}/{artifact.name}" not in [item.path for item in repository.list_artifacts(CHECK)]:
            raise SettingsError(f"experiment={experiment}: an artifact that was sent there is not to be found")
    finally:
        left = _take_away(store, run)
    return Written(seconds, left)


def _take_away(store: Store, run: Any) -> str | None:
    """Delete the run and its artifact; what is not allowed is told."""
    left = []
    try:
        repository = store.artifacts(run)
        repository.delete_artifacts(CHECK)
        if path := local_path(repository.artifact_uri):
            with contextlib.suppress(OSError):  # nothing of it is there, or something else
                path.rmdir()
                path.parent.rmdir()
    except Exception as error:  # each kind of artifact store has its own
        left.append(f"its artifact is not ({reason(error)})")
    try:
        store.client.delete_run(run.info.run_id)
    except Exception as error:
        with contextlib.suppress(Exception):
            store.client.set_terminated(run.info.run_id, "FINISHED")
        left.insert(0, f"run {run.info.run_name} is not ({reason(error)})")
    return "; ".join(left) or None


def _answer_of(uri: str, ask: Callable[[], Answer], forbidden: str, seconds: float) -> Answer:
    """What a store answers, waited for no longer than so many seconds, whatever its driver does."""
    found: list[Answer] = []
    failed: list[Exception] = []

    def run() -> None:
        try:
            found.append(ask())
        except Exception as error:
            failed.append(error)

    thread = threading.Thread(target=run, name="probe", daemon=True)
    thread.start()
    thread.join(seconds)
    if found:
        return found[0]
    where = f"MLflow at {mask_uri(uri)}"
    if not failed:
        raise TrackingError(f"{where}: no answer within {seconds:.0f} s")
    error = failed[0]
    advice = remedy(error)
    if isinstance(error, TooLargeError):
        raise ForbiddenError(f"{where}: takes no file of this size (413): {error}; {advice}") from error
    if isinstance(error, BestrunError):
        raise error
    if status_of(error) in (401, 403) or isinstance(error, PermissionError) or REFUSED.search(str(error)):
        mend = advice or "get the right to write there"
        raise ForbiddenError(f"{where}: {forbidden}: {reason(error)}; {mend}") from error
    raise TrackingError(f"{where}: {reason(error)}{f'; {advice}' if advice else ''}") from error


def _version(uri: str) -> str | None:
    """The version of the MLflow that serves there; of a database that of this one, as no other MLflow is asked."""
    import mlflow
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    if not uri.startswith("http"):
        return str(mlflow.__version__)
    with contextlib.suppress(Exception):  # a server of another kind, or one that hides it
        text: str = http_request(get_default_host_creds(uri), "/version", "GET", raise_on_status=False).text.strip()
        return text if text and len(text) < 40 and text[0].isdigit() else None
    return None


def look_at_sqlite(uri: str) -> bool:
    """See that a database of SQLite can be opened and written, without writing anything.

    Returns:
        Whether it is there; if not, the first run makes it.

    Raises:
        SettingsError, StorageError: it is no database of this MLflow, cannot be written, or is locked.
    """
    path = sqlite_path(uri)
    assert path is not None
    if not path.exists() or not path.stat().st_size:
        return False
    _write_nothing(path, "SELECT 1")  # whether it is held is known sooner than MLflow would say it
    database.ready(path, create=False, load=import_mlflow)
    _write_nothing(path, "UPDATE alembic_version SET version_num = version_num")
    return True


def _write_nothing(path: Path, statement: str) -> None:
    """Begin to write, and undo it. What is no database is for `database.ready` to tell.

    Raises:
        StorageError: it cannot be written; says why.
    """
    address = f"{path.as_uri()}?mode=rw"
    try:
        with contextlib.closing(
            sqlite3.connect(address, uri=True, timeout=BUSY_SECONDS, isolation_level=None)
        ) as asked:
            asked.execute("BEGIN IMMEDIATE")
            asked.execute(statement)
            asked.execute("ROLLBACK")
    except sqlite3.Error as error:
        if error.sqlite_errorcode == sqlite3.SQLITE_NOTADB:
            return
        locked = error.sqlite_errorcode == sqlite3.SQLITE_BUSY
        mend = f"another process holds it: end that, see fuser {path}" if locked else "get the right to write there"
        raise StorageError(f"{path}: cannot be written: {error}; {mend}") from error
