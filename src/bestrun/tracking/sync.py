"""Telling MLflow what it missed, and which MLflow that is."""

import os
from pathlib import Path
from typing import Any

from ..errors import BestrunError, SettingsError, UnreadableError, VerificationError
from ..formatting import mask_uri
from ..settings.compose import config_now
from ..storage.checkpoint import load
from ..storage.files import read_json, write_json
from ..storage.folder import RunFolder
from ..storage.history import DIED, History
from ..storage.home import settle
from ..storage.journal import Journal
from ..storage.reasons import StopReason
from .refusals import is_permanent, reason, remedy
from .sender import DeletedError, Sender
from .store import TrackingError, is_own_store, resolve_uri, sqlite_path, store_of

NOT_COMPARED = "complete when MLflow last answered"


def sync(folders: list[RunFolder], *, home: Path, setting: str | None) -> list[dict[str, Any]]:
    """Send to MLflow what it has not got; a run whose process died is marked as what it was. One report a run."""
    settle(home)
    silent: dict[str, TrackingError] = {}  # a store that does not answer is asked once, not once a run
    return [_sync(folder, home, setting, silent) for folder in folders]


def _sync(folder: RunFolder, home: Path, setting: str | None, silent: dict[str, TrackingError]) -> dict[str, Any]:
    report: dict[str, Any] = {"run_name": folder.name, "sent": 0, "state": "complete", "error": None}
    sender = None
    try:
        if whole := folder.original():
            return report | {"state": f"a copy of {whole.name}", "error": None}
        if folder.is_owned():
            return report | {"state": "running: its own process sends"}
        with folder.owned():
            if ended := end_for_dead_process(folder):
                report["state"] = ended
            try:
                uri = own_uri(folder, setting, home)
            except AbsentError:
                raise
            except SettingsError:  # its password is in no file
                recorded = read_json(folder.mirror).get("uri")
                if recorded and not Sender(folder, recorded).behind():
                    return report | {"state": NOT_COMPARED, "run_id": Sender(folder, recorded).run_id}
                raise
            sender = Sender(folder, uri)
            if uri in silent:
                raise silent[uri]
            report["run_id"] = sender.run_id
            report["sent"] = sender.catch_up(check=True)
            report["run_id"] = sender.run_id
            if sender.missing:
                report["state"], report["error"] = "behind", _lacks(sender, folder)
    except Exception as error:
        told = str(error) if isinstance(error, BestrunError) else reason(error)
        report["state"], report["error"] = "behind", told
        if sender and is_permanent(error) and not isinstance(error, TrackingError):
            report["state"], report["error"] = "refused", told + _advice(error, sender, folder)
        elif sender and not isinstance(error, VerificationError):
            silent[sender.uri] = TrackingError(told)
            if not sender.behind():  # it was not asked whether it still has what it acknowledged
                report["state"], report["error"] = NOT_COMPARED, None
    return report


def end_for_dead_process(folder: RunFolder) -> str | None:
    """Write the end of an owned run whose process died before it could; returns what there is to say of it.

    The stop rule knows whether the run was over at its last evaluation. Then it is complete, if its state was saved:
    the process died between that and its end, or could not write it.

    Raises:
        VerificationError: the journal or the settings are damaged.
        StorageError: the end cannot be written.
    """
    with Journal(folder.journal) as journal:
        history = History.read(folder.journal)
        if history.stopped:
            if StopReason.of(history.stopped["reason"]).is_finished and not folder.result.exists():
                write_json(folder.result, _result(folder, history))
            return None
        training = config_now(folder.config, history).training
        rule = history.over(dict(training))
        step, best = history.last_evaluation_step, history.best_checkpoint
        # Killed before `last` was saved, or before its model or its test: a resume does the rest
        if rule and (history.is_to_have_model or history.is_to_be_tested or not _has_state(folder, step)):
            rule = None
        message = "its process could not write this line" if rule else DIED
        why = rule or StopReason.INTERRUPTED
        journal.append("stopped", reason=why, step=step, best=best, message=message, by="sync")
        if rule:
            write_json(folder.result, _result(folder, History(journal.events)))
    return "was dead: complete" if rule else "was dead: marked as interrupted"


def _has_state(folder: RunFolder, step: int) -> bool:
    """Whether the newest state of a run is that of its last evaluation."""
    try:
        return load(folder.last).state.step == step
    except UnreadableError:
        raise
    except VerificationError:
        return False


def _result(folder: RunFolder, history: History) -> dict[str, Any]:
    return {
        "run_id": read_json(folder.mirror).get("run_id"),
        "run_name": folder.name,
        "folder": str(folder.path),
        "best": history.best_checkpoint,
        "stop_reason": history.stopped["reason"] if history.stopped else None,
        "steps": history.step,
        "seconds": history.seconds,
        "test": history.test,
    }


def _lacks(sender: Sender, folder: RunFolder) -> str:
    """What MLflow lacks of a run, why, and what to type once that is mended."""
    each = "; ".join(f"{name}: {why}" for name, why in sender.missing.items())
    return f"MLflow lacks {each}; once that is mended: bestrun sync {folder.name}"


def _advice(error: Exception, sender: Sender, folder: RunFolder) -> str:
    """What to do about a refusal, by its cause."""
    if isinstance(error, DeletedError):
        return f", or rm {folder.mirror} lets sync send it as a new run"
    if mend := remedy(error):
        return f"; {mend}, then: bestrun sync {folder.name}"
    if sender.run_id and not isinstance(error, BestrunError):
        return (
            f"; if it was deleted there: mlflow runs restore --run-id {sender.run_id} brings it back, or "
            f"rm {folder.mirror} lets sync send it as a new run"
        )
    return ""


class AbsentError(SettingsError):
    """The database that a run was sent to is not there: on a disk that is not mounted, or moved."""


def own_uri(folder: RunFolder, setting: str | None, home: Path) -> str:
    """Where a run's MLflow is: what is asked for, else what its settings say, else the store it was sent to before. A
    database that is gone is replaced by no other one, except by that of MLFLOW_TRACKING_URI.

    Raises:
        AbsentError: the database that it was sent to is not there.
        SettingsError: the address needs a user and a password, which stand in no file of ours.
    """
    if setting:
        return setting
    uri = config_now(folder.config, History.read(folder.journal)).tracking.uri
    if uri:
        uri = resolve_uri(uri, home)
    else:
        uri = store_of(read_json(folder.mirror), home)
        if not uri:
            return resolve_uri(None, home)
        if is_own_store(uri, home):
            return uri
        database = sqlite_path(uri)
        if database and not database.exists():
            elsewhere = resolve_uri(None, home) if os.environ.get("MLFLOW_TRACKING_URI") else uri
            if elsewhere == uri:
                raise AbsentError(f"{uri}: is not there; mount it, or say where it is now: --tracking-uri URI")
            return elsewhere
    if "***" not in uri:
        return str(uri)
    open_address = uri.replace("***@", "")
    given = os.environ.get("MLFLOW_TRACKING_URI")
    if given and mask_uri(given) in (uri, open_address):
        return given
    if uri.startswith("http") and any(os.environ.get(f"MLFLOW_TRACKING_{name}") for name in ("USERNAME", "TOKEN")):
        return open_address  # MLflow takes them from there
    raise SettingsError(
        f"{uri} needs the user and password that *** stands for, which are kept in no file; give the whole address: "
        f"MLFLOW_TRACKING_URI=ADDRESS bestrun sync sends every run of it, --tracking-uri ADDRESS this one"
    )
