"""Parent runs that nobody closed: of a sweep whose scheduler was killed, or whose end MLflow was not told.

`bestrun sync` closes them. A sweep that is at work is left alone, and so is what another home writes.
"""

from pathlib import Path
from typing import Any

from ..errors import BestrunError, SettingsError
from ..storage.files import read_json
from ..storage.folder import RunFolder
from ..storage.history import History
from ..storage.locks import locked
from ..storage.reasons import STATES
from ..tracking.parent import close_parent
from ..tracking.refusals import is_permanent, reason
from ..tracking.store import connect, resolve_uri, store_of
from ..tracking.sync import own_uri
from .manifest import Manifest, is_running, original_of, read_manifest, sweep_names, sweep_path
from .parent import outline
from .summary import write_plots


def close_parents(home: Path, setting: str | None) -> list[dict[str, Any]]:
    """Close the parent runs of all sweeps of a home that have ended; one report for each that needed it, like `sync`'s.

    Args:
        setting: the tracking URI that was typed, if one was.
    """
    silent: dict[str, str] = {}  # a store that does not answer is asked once, not once a sweep
    reports = [_close(home, name, setting, silent) for name in sweep_names(home)]
    return [report for report in reports if report]


def _close(home: Path, name: str, setting: str | None, silent: dict[str, str]) -> dict[str, Any] | None:
    report: dict[str, Any] = {"run_name": name, "run_id": None, "sent": 0, "state": "behind", "error": None}
    path, uri = sweep_path(home, name), ""
    try:
        if read_json(path).get("closed") or is_running(path) or original_of(home, name):
            return None  # its scheduler closes it, or the sweep that its folder is a copy of
        with locked(path.with_name("lock"), f"sweep {name}"):  # a scheduler that begins now opens it again
            manifest = read_manifest(home, name)
            are_at_work = any(manifest.folder(run).is_owned() for run in manifest.runs())  # they save, and leave
            if are_at_work or not manifest.parent_run_id:
                return None
            uri, status = _uri(manifest, setting, home), status_of(manifest)
            if uri in silent:
                return report | {"error": silent[uri]}
            before = close_parent(
                connect(uri, create=False),
                manifest.parent_run_id,
                folder=RunFolder(home / "runs" / name),
                sweep_folder=path.parent,
                news=outline(manifest),
                status=status,
                ended_ms=_ended_ms(manifest),
                draw=lambda: write_plots(manifest) if status == "FINISHED" else [],
            )
            if before is None:
                return None
            manifest.closed = before if before in STATES else status
            manifest.save()
    except Exception as error:
        if isinstance(error, SettingsError) and is_running(path):
            return None  # it has begun in this moment
        told = str(error) if isinstance(error, BestrunError) else reason(error)
        if uri and is_permanent(error):
            return report | {"state": "refused", "error": told}
        silent |= {uri: told} if uri else {}
        return report | {"error": told}
    state = f"sweep was dead: {status}"
    return None if before in STATES else report | {"run_id": manifest.parent_run_id, "state": state}


def status_of(manifest: Manifest) -> str:
    """What a sweep that nobody works on is in MLflow: as its scheduler said at the end, else by its trials."""
    if manifest.ended:
        return manifest.ended
    finals_begun = bool(manifest.finals) or not manifest.wants_finals or not manifest.complete()
    are_over = all(trial.is_over for trial in manifest.finals) and manifest.over() >= manifest.n_trials
    if not (are_over and finals_begun):
        return "KILLED"
    return "FINISHED" if manifest.count()["complete"] else "FAILED"


def _ended_ms(manifest: Manifest) -> int:
    """When the last process of its runs wrote its last line, in milliseconds since 1970."""
    ended = [manifest.created_ms]
    for run in manifest.runs():
        folder = manifest.folder(run)
        try:
            ended += [History.read(folder.journal).ended_ms] if folder.exists() else []
        except BestrunError:  # damaged; `sync` says so of the run
            continue
    return max(ended)


def _uri(manifest: Manifest, setting: str | None, home: Path) -> str:
    """Where its MLflow is: where that of its runs is.

    Raises:
        SettingsError: the address needs a user and a password, which stand in no file of ours.
    """
    for run in manifest.runs():
        if manifest.folder(run).exists():
            return own_uri(manifest.folder(run), setting, home)
    return resolve_uri(setting or store_of({"uri": manifest.uri}, home), home)
