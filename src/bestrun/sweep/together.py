"""A sweep's runs leave a home together: its scheduler finds the others by their folders."""

from collections.abc import Iterable
from pathlib import Path

from ..errors import SettingsError
from ..storage.folder import RunFolder
from ..storage.history import History
from .manifest import Manifest, folder_name, is_running, read_manifest, refuse_copy


def runs_of(home: Path, name: str) -> tuple[list[str], str | None]:
    """The runs of a sweep that have folders in its home, and its parent run's ID in MLflow.

    Raises:
        SettingsError: there is no such sweep, it is running, or its folder is a copy.
    """
    manifest = read_manifest(home, name)
    refuse_copy(home, name)
    if is_running(manifest.path):
        raise SettingsError(f"sweep {name}: is running; wait for it, or stop it with Ctrl-C")
    return [run.name for run in manifest.runs() if manifest.folder(run).exists()], manifest.parent_run_id


def refuse_alone(home: Path, folders: Iterable[RunFolder]) -> None:
    """Raises SettingsError: one of these runs belongs to a sweep of this home that still needs it."""
    for folder in folders:
        began_in = History.read(folder.journal).started.get("sweep")
        name = folder_name(home, began_in) if began_in else None
        if name is None:
            continue
        manifest = read_manifest(home, name)
        if not _is_complete(manifest):
            raise SettingsError(
                f"run {folder.name}: belongs to sweep {name}, of which {manifest.over()} of {manifest.n_trials} trials "
                f"are over; let it end, or move all of it: bestrun move --sweep {name} --to HOME"
            )


def _is_complete(manifest: Manifest) -> bool:
    finals_are_over = all(trial.is_over for trial in manifest.finals)
    return not is_running(manifest.path) and manifest.over() >= manifest.n_trials and finals_are_over
