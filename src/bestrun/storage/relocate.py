"""A whole home to another place, or back in order after somebody has moved it.

On one file system a rename is all: at once, and nothing is copied. To another one it is copied beside, proved by every
file's hash, made at home there, given its name, and only then is the old one removed. Killed anywhere, the home is
whole in one of the two places, and the same line goes on.
"""

import contextlib
import errno
import os
import shutil
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import SettingsError
from .files import StorageError, sync_folder
from .home import DATABASE, MARKER, address_anew, is_at_work, is_home, read_marker, settle, whereabouts
from .locks import locked
from .parcel import copy_files, differing, files_in, refuse_too_large, refused
from .workplace import remove_dead

OF_PLACE = {MARKER, DATABASE, f"{DATABASE}.lock"}  # are others where a home lies elsewhere


@dataclass(frozen=True)
class Relocation:
    """What is going to be done with a home.

    Attributes:
        how: `rename`; `copy`, after which the source is deleted; `finish`, which deletes what an earlier call has
            copied; `repair`, where it lies at the target already; `nothing`, where it is at home there.
        lay_at: where its addresses lie.
        bytes: of all its files.
    """

    source: Path
    target: Path
    how: str
    lay_at: Path
    bytes: int

    @property
    def deletes(self) -> bool:
        return self.how in ("copy", "finish")


def plan_relocation(source: Path, target: Path) -> Relocation:
    """Look at a home that is to lie at `target`; nothing is written.

    Raises:
        SettingsError: it cannot; says why.
    """
    if source.is_symlink():
        raise SettingsError(
            f"{source}: is a link to {source.resolve()}; name that: BESTRUN_MLRUNS={source.resolve()} bestrun move ..."
        )
    source, target = source.resolve(), target.expanduser().absolute()
    if target.is_symlink():
        raise SettingsError(f"--home {target}: is a link; name the folder itself")
    target = target.parent.resolve() / target.name
    at_target = is_home(target)
    if at_target and (source == target or not is_home(source)):
        lay_at = read_marker(target).path
        how = "nothing" if lay_at == target else "repair"
        if how == "nothing" and source != target and _leaving(source).exists():
            how = "finish"
        return Relocation(source, target, how, lay_at, 0)
    if not is_home(source):
        raise SettingsError(f"--home {target}: no runs are there, nor in {source}; say where: BESTRUN_MLRUNS=FOLDER")
    if target.is_relative_to(source) or source.is_relative_to(target):
        raise SettingsError(f"--home {target}: a home cannot lie in itself; it is in {source}")
    _refuse_at_work(source)
    lay_at = read_marker(source).path
    if at_target:
        _refuse_unlike(source, target)
        return Relocation(source, target, "finish", lay_at, _size(source))
    if os.path.lexists(target) and not (target.is_dir() and not os.listdir(target)):
        raise SettingsError(f"--home {target}: is there already; name a new folder, as {target / 'mlruns'}")
    if are_on_one_disk(source, target):
        return Relocation(source, target, "rename", lay_at, _size(source))
    files_in(source, leave=())  # it refuses links
    refuse_too_large(target, size := _size(source))
    return Relocation(source, target, "copy", lay_at, size)


def relocate(plan: Relocation) -> None:
    """Do it.

    Raises:
        SettingsError, StorageError, VerificationError: nothing was deleted.
    """
    source, target = plan.source, plan.target
    if plan.how in ("rename", "copy"):
        settle(source)  # it knows which home it is
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            if plan.how == "rename":
                _rename(source, target)
            else:
                _copy(source, target)
        except OSError as error:
            raise refused(target, error) from error
    settle(target)
    lies = whereabouts(target)
    if lies and lies.path != target and not (lies.path.exists() and lies.path.samefile(target)):
        raise StorageError(
            f"{target}: the home is there, whole, and the addresses in its MLflow store could not be rewritten yet; "
            "they are translated until then; when nothing is at work in it and its disk takes files, the same again"
        )
    if plan.deletes:
        _delete(source, target)


def are_on_one_disk(source: Path, target: Path) -> bool:
    """Whether a rename can bring a folder to a place that is not there yet."""
    there = next(path for path in target.parents if path.exists())
    return there.stat().st_dev == source.stat().st_dev and not os.path.ismount(source)


def _refuse_at_work(home: Path) -> None:
    if is_at_work(home):
        raise SettingsError(f"{home}: a run or a sweep is at work in it; wait for it, or stop it with Ctrl-C")


def _rename(source: Path, target: Path) -> None:
    os.rename(source, target)  # an empty folder is replaced
    for folder in {source.parent, target.parent}:
        sync_folder(folder)


def _copy(source: Path, target: Path) -> None:
    copy = target.with_name(f".{target.name}.arriving")
    with _alone(target):
        shutil.rmtree(copy, ignore_errors=True)  # of a call that was killed
        remove_dead(source)
        before = _state(source)
        copy_files(source, copy, files_in(source, leave=()))
        for root, _, _ in os.walk(source):  # an empty folder may say something, too
            (copy / Path(root).relative_to(source)).mkdir(exist_ok=True)
        if _state(source) != before or is_at_work(source):
            shutil.rmtree(copy, ignore_errors=True)
            raise SettingsError(f"{source}: was written to while it was copied; nothing was deleted; the same again")
        address_anew(copy, target)
        os.rename(copy, target)
        sync_folder(target.parent)


@contextlib.contextmanager
def _alone(target: Path) -> Iterator[None]:
    """One copy to a place at a time."""
    lock = target.with_name(f".{target.name}.arriving.lock")
    with locked(lock, f"--home {target}"):
        yield
        lock.unlink(missing_ok=True)


def _state(home: Path) -> list[tuple[str, int, int]]:
    """By which it is seen whether anything was written to a home. Locks are taken by whoever looks."""
    names = [name for name in files_in(home, leave=()) if Path(name).name not in ("lock", f"{DATABASE}.lock")]
    found = [(name, (home / name).stat()) for name in names]
    return [(name, status.st_mtime_ns, status.st_size) for name, status in found]


def _size(home: Path) -> int:
    return sum(Path(root, name).lstat().st_size for root, _, names in os.walk(home) for name in names)


def _refuse_unlike(source: Path, target: Path) -> None:
    """Refuse to take a home for the copy of another that a killed call has made, unless it has all of it.

    Raises:
        SettingsError: says what it has not.
    """
    ours, theirs = read_marker(source), read_marker(target)
    if ours.identity is None or ours.identity != theirs.identity or theirs.path != target:
        raise SettingsError(f"--home {target}: is another home; name a new folder, or move runs: bestrun move RUN --to")
    names = [name for name in files_in(source, leave=()) if name not in OF_PLACE and Path(name).name != "lock"]
    other = differing(source, target, names)
    if other or not _runs(source) <= _runs(target):
        what = other or DATABASE
        raise SettingsError(
            f"--home {target}: is a copy of {source}, and its {what} is another one; nothing was deleted; keep one of "
            "the two"
        )


def _runs(home: Path) -> set[str]:
    """The runs that the store in a home has."""
    database = home / DATABASE
    if not database.exists():
        return set()
    try:
        with contextlib.closing(sqlite3.connect(f"{database.as_uri()}?mode=rw", uri=True, timeout=20)) as connection:
            return {run_id for (run_id,) in connection.execute("SELECT run_uuid FROM runs")}
    except sqlite3.Error as error:
        raise StorageError(f"{database}: cannot be read: {error}") from error


def _leaving(source: Path) -> Path:
    """What a home that has gone is called until all of it is removed."""
    return source.with_name(f".{source.name}.leaving")


def _delete(source: Path, target: Path) -> None:
    """Remove the old home: its name at once, then what was in it."""
    leaving = _leaving(source)
    try:
        if source != target and is_home(source):
            shutil.rmtree(leaving, ignore_errors=True)
            try:
                os.rename(source, leaving)
            except OSError as error:
                if error.errno not in (errno.EBUSY, errno.EXDEV):
                    raise
                leaving = source  # a mount point keeps its name
            sync_folder(source.parent)
        shutil.rmtree(leaving, ignore_errors=True)
    except OSError as error:
        raise StorageError(f"{source}: cannot be removed: {error.strerror}; it is whole in {target}") from error
