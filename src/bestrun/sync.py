"""Telling MLflow what it missed, and which MLflow that is."""

import os
from pathlib import Path
from typing import Any

from .compose import read_config
from .config import mask_uri
from .errors import BestrunError, SettingsError
from .folder import RunFolder, read_json
from .home import settle
from .journal import Journal, best_of, is_over
from .mirror import Sender, is_permanent, reason
from .tracking import TrackingError, is_own_store, resolve_uri, sqlite_path, store_of


def sync(folders: list[RunFolder], *, home: Path, setting: str | None) -> list[dict[str, Any]]:
    """Send to MLflow what it has not got; a run whose process died is marked as interrupted. One report a run."""
    settle(home)
    reports = []
    silent: dict[str, str] = {}  # a store that does not answer is asked once, not once a run
    for folder in folders:
        sender = None
        report: dict[str, Any] = {"run_name": folder.name, "sent": 0, "state": "complete", "error": None}
        try:
            if folder.is_owned():
                reports.append(report | {"state": "running: its own process sends"})
                continue
            with folder.owned():
                journal = Journal(folder.journal)
                if journal.events and not is_over(journal.events):
                    line = journal.find("evaluation")
                    journal.append(
                        "stopped",
                        reason="interrupted",
                        step=line["step"] if line else 0,
                        best=best_of(journal),
                        message="the process died",
                    )
                    report["state"] = "was dead: marked as interrupted"
                journal.close()
                recorded = store_of(read_json(folder.mirror), home)
                if not setting and recorded and not Sender(folder, recorded).behind():
                    reports.append(report | {"run_id": Sender(folder, recorded).run_id})
                    continue
                uri = own_uri(folder, setting, home)
                if uri in silent and Sender(folder, uri).behind():
                    raise TrackingError(silent[uri])
                sender = Sender(folder, uri)
                report["sent"] = sender.catch_up()
                report["run_id"] = sender.run_id
        except Exception as error:
            report["error"] = str(error) if isinstance(error, BestrunError) else reason(error)
            report["state"] = "behind"
            if sender and is_permanent(error):
                report["state"] = "refused"
                if sender.run_id:
                    report["error"] += (
                        f"; if it was deleted there: mlflow runs restore --run-id {sender.run_id} brings it back, or "
                        f"rm {folder.mirror} lets sync send it as a new run"
                    )
            elif sender:
                silent[sender.uri] = report["error"]
        reports.append(report)
    return reports


def own_uri(folder: RunFolder, setting: str | None, home: Path) -> str:
    """Where a run's MLflow is: what is asked for, else what its settings say, else the store it was sent to before.

    Raises:
        SettingsError: the address needs a user and a password, which stand in no file of ours.
    """
    if setting:
        return setting
    uri = read_config(folder.config).tracking.uri
    if uri:
        uri = resolve_uri(uri, home)
    else:
        uri = store_of(read_json(folder.mirror), home)
        if uri and is_own_store(uri, home):
            return uri
        database = sqlite_path(uri) if uri else None
        if not uri or (database and not database.exists()):  # not there: runs and store were moved together
            return resolve_uri(None, home)
    if "***" not in uri:
        return str(uri)
    given = os.environ.get("MLFLOW_TRACKING_URI")
    if given and mask_uri(given) in (uri, uri.replace("***@", "")):
        return given
    raise SettingsError(
        f"{uri} needs the user and password that *** stands for, which are kept in no file; give the whole address: "
        f"in MLFLOW_TRACKING_URI, or with --tracking-uri"
    )
