"""What a RUN may be, and which folder on this machine it means; MLflow is not asked here.

A RUN is a run ID, 8 or more of its first characters, a run name, `latest`, `best`, or a registered model's NAME@ALIAS.
"""

import re
from pathlib import Path

from ..errors import SettingsError, UnreadableError
from .files import names_in, read_json
from .folder import RunFolder

REFERENCE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}")
ALIAS = re.compile(r"(?!(?i:latest|v[0-9]+)\Z)[A-Za-z0-9_-]{1,200}")  # MLflow keeps those two for itself


def check_reference(reference: str) -> None:
    """Refuse what cannot be a RUN, before it is used in a path or a query."""
    name, at, alias = reference.partition("@")
    if not REFERENCE.fullmatch(name) or (at and not ALIAS.fullmatch(alias)):
        raise SettingsError(
            f"run {reference[:60]!r}: not a run reference; it is a run ID (or 8 and more of its first characters), "
            "a run name, latest, best, or a registered model's NAME@ALIAS"
        )


def may_change(reference: str) -> bool:
    """Whether a RUN may mean another run the next time that it is asked for."""
    return reference in ("latest", "best") or "@" in reference


def several(reference: str, found: list[str]) -> str:
    """The refusal of a reference that fits several runs."""
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
        raise SettingsError(several(reference, [f"{ids[folder]} ({folder.name})" for folder in found]))
    if found:
        return found[0]
    raise SettingsError(f"run {reference!r}: there is no folder of it in {home / 'runs'}")


def folder_of(home: Path, name: str, started_ms: int) -> RunFolder | None:
    """The folder on this machine of a run that MLflow knows, whatever it is called now: names repeat, a name with its
    start does not. None where there is none.
    """
    named = RunFolder(home / "runs" / Path(name).name)  # a tag, which may say anything
    if named.birth == (name, started_ms):
        return named
    return next((each for each in run_folders(home) if each.birth == (name, started_ms) and not each.original()), None)


def _run_id(folder: RunFolder) -> str:
    try:
        return str(read_json(folder.mirror).get("run_id"))
    except UnreadableError:
        return ""


def run_folders(home: Path) -> list[RunFolder]:
    """All runs of this home, the oldest first."""
    names = [name for name in names_in(home / "runs") if not name.startswith(".")]  # see storage/leftovers.py
    folders = [RunFolder(home / "runs" / name) for name in names]
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
