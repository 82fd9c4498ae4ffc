"""What nobody needs any more in a home, and how it goes: what killed processes left, and what better things replaced.

Nothing is taken for a leftover on a guess. What a living process may be at is held with flock, or is younger than
QUIET_SECONDS.
"""

import contextlib
import os
import re
import secrets
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ..errors import BestrunError
from .files import JOURNAL, TEMPORARY, names_in, remove_leftovers, sync_folder
from .folder import RunFolder, never_begun, remove_never_begun
from .history import History
from .home import DATABASE
from .locks import is_locked
from .reasons import StopReason
from .reference import run_folders
from .workplace import dead_places, remove_dead

QUIET_SECONDS = 3600.0
ASIDE = "aside"  # in the home: run folders that `resume --from-mlflow` took out of the way
BIN = ".gc-"  # begins the name of a run folder that is being removed; it is no run any more
SET_ASIDE = re.compile(r"(.+)-[0-9]{8}-[0-9]{6}")
UPLOADING = ".artifact.uploading."  # MLflow's name for an artifact that is not whole


@dataclass(frozen=True)
class Piece:
    """Something that can go.

    Attributes:
        name: what it is called in a message.
        sizes: bytes of its files, by kind: what it consists of, in words.
        remove: removes it, and gives how many bytes that freed.
    """

    name: str
    sizes: Mapping[str, int]
    remove: Callable[[], int]

    @property
    def bytes(self) -> int:
        return sum(self.sizes.values())


def size_of(path: Path) -> int:
    """The bytes of a file, or of all files below a folder; links are not followed, and a file of two names counts once.

    What goes away meanwhile has none.
    """
    seen: dict[tuple[int, int], int] = {}
    with contextlib.suppress(OSError):
        facts = path.lstat()
        if not path.is_dir() or path.is_symlink():
            return facts.st_size
        for root, _, names in os.walk(path):
            for name in names:
                with contextlib.suppress(OSError):
                    each = os.lstat(os.path.join(root, name))
                    seen[each.st_dev, each.st_ino] = each.st_size
    return sum(seen.values())


def remove_tree(path: Path) -> int:
    """Remove a file or a folder with all that is in it; gives the bytes it had.

    Raises:
        OSError: something of it cannot be removed.
    """
    size = size_of(path)
    with contextlib.suppress(FileNotFoundError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    return size


# ---- what there is ----


def leftovers(home: Path) -> list[Piece]:
    """All that can go from a home without anything being lost; nothing is changed.

    Raises:
        UnreadableError: a folder of the home cannot be listed.
    """
    return [piece for find in FINDERS for piece in find(home)]


def _of_runs(home: Path) -> Iterator[Piece]:
    """Of runs that are over: what was half written, and checkpoints that better ones followed."""
    for folder in run_folders(home):
        with contextlib.suppress(BestrunError):  # it cannot be read, so nothing of it is known to be superfluous
            if not folder.is_owned() and (history := _over(folder)):
                sizes: Counter[str] = Counter()
                for kind, path in _superfluous(folder, history):
                    sizes[kind] += size_of(path)
                if sizes:
                    yield Piece(str(folder.path), sizes, partial(_tidy, folder))


def _over(folder: RunFolder) -> History | None:
    """The history of a run that came to its end; of one that could go on, None."""
    history = History.read(folder.journal)
    stopped = history.stopped
    return None if stopped is None or StopReason.of(stopped["reason"]) is StopReason.INTERRUPTED else history


def _superfluous(folder: RunFolder, history: History) -> Iterator[tuple[str, Path]]:
    best = history.best
    for path in folder.bests():
        if best is None or path.name != best["checkpoint"]:
            yield "checkpoints that better ones followed", path
    for place in (folder.path, folder.pictures, folder.code):
        yield from (("half written files", path) for path in _half_written(place))
    for draft in (folder.path / "upload", folder.path / "model" / "draft"):
        if draft.is_dir():
            yield "half written files", draft


def _tidy(folder: RunFolder) -> int:
    before = {path: size_of(path) for _, path in _superfluous(folder, History.read(folder.journal))}
    with folder.owned():  # which removes what was half written
        if history := _over(folder):
            for _, path in _superfluous(folder, history):
                path.unlink()
    return sum(size for path, size in before.items() if not os.path.lexists(path))


def _half_written(folder: Path) -> list[Path]:
    """Temporary files of `replacing` that nobody holds."""
    names = filter(TEMPORARY.fullmatch, names_in(folder))
    return [folder / name for name in names if not is_locked(folder / name)]


def _of_the_home(home: Path) -> Iterator[Piece]:
    """What was half written elsewhere than in runs."""
    sweeps = [home / "sweeps" / name for name in names_in(home / "sweeps")]
    for folder in (home, home / "cache", *sweeps):
        for path in _half_written(folder):
            yield Piece(str(path), {"half written files": size_of(path)}, partial(_unlink_unheld, path))
    for path in (home / "cache").glob("*.json"):  # what was computed of rows that are gone
        if not path.with_suffix(".rows").exists() and _is_quiet(path):
            yield Piece(str(path), {"cache: notes on nothing": size_of(path)}, partial(remove_tree, path))


def _unlink_unheld(path: Path) -> int:
    size = size_of(path)
    remove_leftovers(path.parent, re.compile(re.escape(path.name)))
    return 0 if os.path.lexists(path) else size


def _never_begun(home: Path) -> Iterator[Piece]:
    for folders, truth in ((home / "runs", JOURNAL), (home / "sweeps", "manifest.json")):
        for path in never_begun(folders, truth):
            sizes = {"runs and sweeps that never began": size_of(path)}
            yield Piece(str(path), sizes, partial(_remove_never_begun, path, truth))


def _remove_never_begun(path: Path, truth: str) -> int:
    size = size_of(path)
    remove_never_begun(path.parent, truth)
    return 0 if path.exists() else size


def _set_aside(home: Path) -> Iterator[Piece]:
    """Run folders that were set aside, where the same run has taken their place."""
    for name in names_in(home / ASIDE):
        found, path = SET_ASIDE.fullmatch(name), home / ASIDE / name
        if found and path.is_dir() and not path.is_symlink():
            successor = RunFolder(home / "runs" / found[1])
            with contextlib.suppress(BestrunError):
                is_same = successor.birth is not None and successor.birth == RunFolder(path).birth
                if is_same and not successor.is_owned() and not is_locked(path / "lock"):
                    yield Piece(str(path), {"folders set aside": size_of(path)}, partial(remove_tree, path))


def _databases(home: Path) -> Iterator[Piece]:
    """What MLflow or a child of ours was killed in making; docs/formats.md says that no row is in it."""
    if not is_locked(home / f"{DATABASE}.lock"):
        for pattern in (f"{DATABASE}.half-made-*", f".{DATABASE}.*.new*"):
            for path in sorted(home.glob(pattern)):
                if _is_quiet(path):
                    yield Piece(str(path), {"half made databases": size_of(path)}, partial(remove_tree, path))


def _uploads(home: Path) -> Iterator[Piece]:
    """Artifacts whose copying was cut off, by MLflow's own name for them."""
    for root, _, names in os.walk(home / "artifacts"):
        for name in names:
            path = Path(root, name)
            if name.startswith(UPLOADING) and _is_quiet(path):
                yield Piece(str(path), {"uploads cut off": size_of(path)}, partial(remove_tree, path))


def _work_folders(home: Path) -> Iterator[Piece]:
    """Of dead processes, in the system's temporary folder."""
    for path in dead_places(Path(tempfile.gettempdir())):
        yield Piece(str(path), {"work folders": size_of(path)}, partial(_remove_dead, path))


def _remove_dead(path: Path) -> int:
    size = size_of(path)
    remove_dead(path.parent)
    return 0 if path.exists() else size


def _is_quiet(path: Path) -> bool:
    """Whether nobody has written to it, or copied it there, for so long that nobody is at it. Both set its ctime."""
    try:
        return time.time() - path.lstat().st_ctime > QUIET_SECONDS
    except OSError:
        return False


FINDERS = (_of_runs, _of_the_home, _never_begun, _set_aside, _databases, _uploads, _work_folders)


# ---- a whole run folder ----


def run_size(folder: RunFolder) -> int:
    """The bytes of a run folder. Its lock does not count: whoever holds it writes to it."""
    return size_of(folder.path) - size_of(folder.lock)


def throw_away(folder: RunFolder) -> RunFolder:
    """Give a run folder, which is held, a name that no run has: from here on it is none, and what is left of it a
    leftover. It keeps mirror.json, which says what MLflow has of it, until all else is gone.

    Raises:
        OSError: it cannot be renamed; nothing has changed.
    """
    thrown = RunFolder(folder.path.with_name(f"{BIN}{folder.name}-{secrets.token_hex(4)}"))
    os.rename(folder.path, thrown.path)
    sync_folder(folder.path.parent)
    return thrown


def take_back(thrown: RunFolder, folder: RunFolder) -> None:
    """Undo `throw_away`, where the name is still free; best effort: else a later `bestrun gc` tries again."""
    with contextlib.suppress(OSError):
        if not os.path.lexists(folder.path):
            os.rename(thrown.path, folder.path)
            sync_folder(folder.path.parent)


def thrown_away(home: Path) -> list[tuple[str, RunFolder]]:
    """Run folders whose removal was cut off, each with the name that the run had."""
    names = [name for name in names_in(home / "runs") if re.fullmatch(rf"{re.escape(BIN)}.+-[0-9a-f]{{8}}", name)]
    return [(name[len(BIN) : -9], RunFolder(home / "runs" / name)) for name in names]


def destroy(thrown: RunFolder) -> int:
    """Remove what is left of a run folder, its lock and mirror.json last; gives the bytes it had.

    Raises:
        OSError: something of it cannot be removed.
    """
    size = run_size(thrown)
    for name in names_in(thrown.path):
        if name not in (thrown.lock.name, thrown.mirror.name):
            remove_tree(thrown.path / name)
    for path in (thrown.mirror, thrown.lock):
        path.unlink(missing_ok=True)
    if thrown.path.is_symlink():  # to another disk, where an empty folder is left
        thrown.path.unlink()
    else:
        thrown.path.rmdir()
    return size
