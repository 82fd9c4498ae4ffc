"""Folders to make files in, away from where they will stand; whatever a killed command leaves, the next one removes.

A place is a folder with `files`, which is what one gets, and `lock`, held with flock as long as its process lives. It
belongs to whoever holds the lock that stands in the folder: the holder alone touches `files`, and removes the lock
last; from then on it only tries to remove the empty folder. So any number of processes may make places and remove dead
ones at once: one that lost its new place to another, which took it for a dead one's, sees that and makes the next.
"""

import contextlib
import fcntl
import os
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from ..errors import SettingsError, UnreadableError
from ..formatting import shown
from .files import sync_folder, sync_tree
from .locks import in_use, is_locked, sign

DELIVERY = ".bestrun-fetch"  # one at a time in a folder, hence a name without an accident in it
PLACES = re.compile(rf"\.?bestrun-[0-9a-f]{{16}}|{re.escape(DELIVERY)}")
MAX_SECONDS = 1.0  # so long a name may be held by somebody who only removes what is dead


class Workplace:
    """An empty folder, as long as this lasts; those that dead processes left beside it are removed first.

    Args:
        parent: where; by default the system's temporary folder. Made if it is not there.
        name: one of a kind, for places of which there may be only one.

    Raises:
        SettingsError: another process holds the place of this name; says which, where and since when.
    """

    def __init__(self, parent: Path | None = None, name: str | None = None) -> None:
        self._parent, self._name = parent or Path(tempfile.gettempdir()), name
        self._prefix = ".bestrun-" if parent else "bestrun-"  # hidden in a folder of the user's

    def __enter__(self) -> Path:
        self._parent.mkdir(parents=True, exist_ok=True)
        remove_dead(self._parent)
        deadline = time.monotonic() + MAX_SECONDS
        while True:
            self.folder = self._parent / (self._name or self._prefix + secrets.token_hex(8))
            with contextlib.suppress(FileExistsError):
                self.folder.mkdir(0o700)
            if (held := _hold(self.folder)) is not None:
                break
            if self._name and time.monotonic() > deadline:
                raise in_use(self.folder / "lock", f"--out {self._parent}")
            time.sleep(0.01)
        self._descriptor = held
        try:
            sign(held, self.folder / "lock")
            _empty(self.folder)  # one of a kind may have been another's a moment ago
            files = self.folder / "files"
            files.mkdir()
        except BaseException:
            _remove(self.folder, held)
            raise
        return files

    def __exit__(self, *_: object) -> None:
        _remove(self.folder, self._descriptor)


def dead_places(parent: Path) -> list[Path]:
    """The places in `parent` that nobody holds, of this user's; best effort. One that is just being made may be among
    them: only `remove_dead` knows.
    """
    found = []
    for place in _places(parent):
        with contextlib.suppress(UnreadableError):
            if not is_locked(place / "lock"):
                found.append(place)
    return found


def remove_dead(parent: Path) -> None:
    """Remove the places in `parent` which processes of this user left that are dead; best effort."""
    for place in _places(parent):
        with contextlib.suppress(OSError):
            if (held := _hold(place)) is not None:
                _remove(place, held)


def _places(parent: Path) -> list[Path]:
    """All places in `parent` of this user's."""
    found = []
    with contextlib.suppress(OSError), os.scandir(parent) as entries:
        for entry in entries:
            if PLACES.fullmatch(entry.name):
                with contextlib.suppress(OSError):
                    mine = entry.stat(follow_symlinks=False).st_uid == os.geteuid()
                    if mine and entry.is_dir(follow_symlinks=False):
                        found.append(Path(entry.path))
    return found


def _hold(place: Path) -> int | None:
    """Lock a place. None: another process holds it, or has removed it."""
    lock = place / "lock"
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(descriptor), os.lstat(lock)):
            return descriptor
    except (BlockingIOError, FileNotFoundError):
        pass
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


def _remove(place: Path, descriptor: int) -> None:
    """Remove a place that is held: the lock after all else, as it is the holder's no longer from then on."""
    try:
        _empty(place)
        with contextlib.suppress(OSError):
            (place / "lock").unlink()
            place.rmdir()
    finally:
        os.close(descriptor)


def _empty(place: Path) -> None:
    """Remove the files of a place, and those that it was about to deliver: they are the same files by another name."""
    files = place / "files"
    with contextlib.suppress(OSError):
        for path in files.iterdir():
            with contextlib.suppress(OSError):
                delivered = place.parent / path.name
                if os.path.samestat(path.lstat(), delivered.lstat()):
                    delivered.unlink()
    for folder in (files, place / "delivered") * 2:  # twice, as one failing call would leave it in a user's folder
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def delivered(out: Path, names: re.Pattern[str], is_same: Callable[[Path, Path], bool]) -> Iterator[Path]:
    """A place for files that come to stand in the folder `out` together, or not at all; all of it within `out`.

    The place keeps a second name of each file until all have their first one. Killed before, all are taken back by the
    next command; killed later, all are there, and the same command finds them to be what it would deliver.

    Args:
        names: of the files that will be delivered.
        is_same: whether a new file says what one says that stands in `out` already; that one stays.

    Raises:
        SettingsError: `out` has other files in it, or another process is delivering to it.
    """

    def others() -> set[str]:
        return {name for name in os.listdir(out) if not PLACES.fullmatch(name)}

    made = [folder for folder in (out, *out.parents) if not folder.exists()]
    if not made and not (out / DELIVERY).exists():  # else it is not known yet whose they are
        _refuse(out, [name for name in others() if not names.fullmatch(name)])
    try:
        with Workplace(out, DELIVERY) as place:
            _refuse(out, [name for name in others() if not names.fullmatch(name)])
            yield place
            new = {path.name: path for path in place.iterdir()}
            there = others()
            _refuse(out, [name for name in there if name not in new or not is_same(new[name], out / name)])
            sync_tree(place)
            for name in sorted(new.keys() - there):
                _give_name(new[name], out / name)
            sync_folder(out)
            place.rename(place.with_name("delivered"))  # from here on they are not taken back
    except BaseException:
        with contextlib.suppress(OSError):  # something else may be there by now
            for folder in made:
                folder.rmdir()
        raise


def _refuse(out: Path, names: list[str]) -> None:
    if names:
        raise SettingsError(f"--out {out}: has files in it, as {shown(min(names))}; name a new folder, or empty it")


def _give_name(path: Path, name: Path) -> None:
    """A second name for a file, never over another file; where a file system has no second names, a new one."""
    try:
        os.link(path, name)
    except FileExistsError:
        _refuse(name.parent, [name.name])
    except OSError:
        os.replace(path, name)
