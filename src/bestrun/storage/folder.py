"""The run folder: where everything of a run is, and how a new one is made."""

import contextlib
import hashlib
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import BestrunError, SettingsError, UnreadableError, VerificationError
from .copies import Birth, known, original
from .files import (
    JOURNAL,
    MIRROR,
    RESULT,
    TEMPORARY,
    holds_run,
    make_folder,
    names_in,
    remove_leftovers,
    replacing,
    sync_folder,
    write_atomically,
)
from .locks import is_locked, locked

OWN_CODE = re.compile(r"code(-[0-9a-f]{12})?\.py")
NEW_NAME = re.compile(r"[0-9]{8}-[0-9]{6}-[a-z0-9]{4}")  # of `new_name`
ENVIRONMENT = re.compile(r"environment(-[0-9a-f]{12})?\.txt")
BEFORE_THE_TRUTH = {"lock", "config.yaml", "overrides.yaml", "uncommitted.diff", "environment.txt", "run.log", "code"}


def new_name() -> str:
    """A run name that sorts by time and does not collide: `20261122-214530-k3f9`."""
    return time.strftime("%Y%m%d-%H%M%S-") + "".join(
        secrets.choice("abcdefghjkmnpqrstuvwxyz23456789") for _ in range(4)
    )


@dataclass(frozen=True)
class RunFolder:
    """`mlruns/runs/<name>/`; the file formats are described in docs/formats.md."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def overrides(self) -> Path:
        return self.path / "overrides.yaml"

    @property
    def journal(self) -> Path:
        return self.path / JOURNAL

    @property
    def last(self) -> Path:
        return self.path / "last.safetensors"

    @property
    def log(self) -> Path:
        return self.path / "run.log"

    @property
    def lock(self) -> Path:
        return self.path / "lock"

    @property
    def mirror(self) -> Path:
        return self.path / MIRROR

    @property
    def result(self) -> Path:
        return self.path / RESULT

    @property
    def stop(self) -> Path:
        """Holds a stop reason where a sweep asks this run to end; see sweep/backends/."""
        return self.path / "stop"

    @property
    def diff(self) -> Path:
        """What of the code was not committed when the run began."""
        return self.path / "uncommitted.diff"

    @property
    def code(self) -> Path:
        """Texts of a code.py of one's own: `code.py` of when the run began, `code-<SHA-256>.py` of later ones."""
        return self.path / "code"

    @property
    def codes(self) -> list[Path]:
        names = [name for name in names_in(self.code) if OWN_CODE.fullmatch(name)]
        return [self.code / name for name in sorted(names, key=lambda name: (len(name), name))]  # code.py first

    def keep_code(self, text: str) -> None:
        """Keep a text of code.py, once. Raises StorageError: it cannot be written."""
        make_folder(self.code)
        _keep(self.code / "code.py", self.codes, text)

    @property
    def environments(self) -> list[Path]:
        """What was installed: `environment.txt` of when the run began, `environment-<SHA-256>.txt` of later processes
        that had something else.
        """
        names = [name for name in names_in(self.path) if ENVIRONMENT.fullmatch(name)]
        return [self.path / name for name in sorted(names, key=lambda name: (len(name), name))]

    def keep_environment(self, text: str) -> None:
        """Keep what is installed, once. Raises StorageError: it cannot be written."""
        _keep(self.path / "environment.txt", self.environments, text)

    def remove_code(self) -> None:
        """Remove the kept texts of a run that never was. Raises OSError where there is anything else."""
        for name in names_in(self.code):
            if OWN_CODE.fullmatch(name) or TEMPORARY.fullmatch(name):
                (self.code / name).unlink()
        if os.path.lexists(self.code):
            self.code.rmdir()

    @property
    def pictures(self) -> Path:
        return self.path / "pictures"

    def ask_to_stop(self, reason: str) -> None:
        """End whichever process trains this run, at its next chunk of steps; it never reads half a reason."""
        with replacing(self.stop) as file:
            file.write(reason.encode())

    def best(self, step: int) -> Path:
        return self.path / f"best-{step}.safetensors"

    def bests(self) -> list[Path]:
        """The best checkpoints that exist, newest step first."""
        found = [name for name in names_in(self.path) if re.fullmatch(r"best-[0-9]+\.safetensors", name)]
        return [self.best(step) for step in sorted((int(name[5:-12]) for name in found), reverse=True)]

    def keyframe(self, step: int) -> Path:
        """The state at an evaluation, kept for ever; `training.keyframe_every_steps` says of which."""
        return self.path / f"keyframe-{step}.safetensors"

    def keyframes(self) -> list[Path]:
        """Those that exist, newest step first."""
        found = [name for name in names_in(self.path) if re.fullmatch(r"keyframe-[0-9]+\.safetensors", name)]
        return [self.keyframe(step) for step in sorted((int(name[9:-12]) for name in found), reverse=True)]

    def inside(self, name: str) -> Path:
        """A file that a journal names, which may be anybody's: an archive from elsewhere, or MLflow's copy.

        Raises:
            VerificationError: the name leads out of this folder.
        """
        parts = Path(str(name)).parts
        if not parts or ".." in parts or parts[0] == os.sep:
            raise VerificationError(f"{self.journal}: names {str(name)[:80]!r}, which leads out of the run folder")
        return self.path.joinpath(*parts)

    def exists(self) -> bool:
        """Whether it is a run, see `holds_run`. Raises UnreadableError as that does."""
        return holds_run(self.path)

    def is_owned(self) -> bool:
        """Whether a living process holds the lock; a dead one's is free by itself."""
        return is_locked(self.lock)

    @property
    def birth(self) -> Birth | None:
        """Name and start of the run in it, which tell runs apart wherever they are; None of what is none."""
        return known(self.path, _birth)

    def original(self) -> "RunFolder | None":
        """The folder of this home that this one is a copy of or a link to; see copies.py."""
        found = original(self.path, _birth)
        return RunFolder(found) if found else None

    def refuse_copy(self) -> None:
        """Raises SettingsError: it is a copy of another folder here, or a link to it, from which alone the run is
        written.
        """
        if found := self.original():
            raise SettingsError(
                f"run {self.name}: {self.path} is a copy of {found.path} or a link to it, and one run is written from "
                f"one folder; to go on with it: bestrun resume {found.name}; to train another like it: bestrun rerun "
                f"{found.name}"
            )

    @contextlib.contextmanager
    def owned(self) -> Iterator[None]:
        """Own the folder for a while: one process writes, nobody else.

        Raises:
            SettingsError: another process owns it; says which, where and since when. Or it is a copy.
            StorageError: the lock file cannot be made.
        """
        self.refuse_copy()
        with locked(self.lock, f"run {self.name}"):
            self._remove_leftovers()
            try:
                yield
            finally:
                self._discard_unless_it_is_a_run()

    def _remove_leftovers(self) -> None:
        """What a process that was killed left half made, beside what `locked` removes; only its owner makes any."""
        remove_leftovers(self.pictures, TEMPORARY)
        remove_leftovers(self.code, TEMPORARY)
        for draft in (self.path / "upload", self.path / "model" / "draft"):
            shutil.rmtree(draft, ignore_errors=True)

    def _discard_unless_it_is_a_run(self) -> None:
        """A full disk may end a run before its first journal line: then nothing is left of it, its name is free."""
        with contextlib.suppress(OSError, UnreadableError):  # what cannot be read may hold work, any other file, too
            if not self.exists():
                self.remove_code()
                texts = (self.config, self.overrides, self.diff, *self.environments)
                for path in (*texts, self.journal, self.log, self.lock):
                    path.unlink(missing_ok=True)
                self.path.rmdir()


def _birth(folder: Path) -> Birth | None:
    """Of the run in a folder, by the first line of its journal."""
    try:
        with open(folder / JOURNAL, "rb") as file:
            started = json.loads(file.readline())
    except OSError:
        return None
    return str(started["name"]), int(started["time_ms"])


def _keep(path: Path, kept: list[Path], text: str) -> None:
    """Write a text as `path`, where others are kept under a name with its hash, unless it is one of them."""
    content = text.encode()
    if not any(each.read_bytes() == content for each in kept):
        digest = hashlib.sha256(content).hexdigest()[:12]
        write_atomically(path.with_stem(f"{path.stem}-{digest}") if kept else path, content)


def never_begun(folders: Path, truth: str) -> list[Path]:
    """The folders of processes that died at once, under names that nobody will ever type again; best effort.

    Nothing goes on a guess: it is an hour old, not held, has no byte of `truth`, the file that makes it a run or a
    sweep, and holds nothing but what is written before that.
    """
    found = []
    with contextlib.suppress(OSError), os.scandir(folders) as entries:
        for entry in entries:
            with contextlib.suppress(OSError, BestrunError):
                path, age = Path(entry.path), time.time() - entry.stat(follow_symlinks=False).st_mtime
                is_old = NEW_NAME.fullmatch(entry.name) and age > 3600
                if is_old and not is_locked(path / "lock") and _has_not_begun(path, truth):
                    found.append(path)
    return found


def remove_never_begun(folders: Path, truth: str) -> None:
    """Remove them; best effort."""
    for folder in never_begun(folders, truth):
        with contextlib.suppress(OSError, BestrunError), locked(folder / "lock", folder.name):
            if _has_not_begun(folder, truth):
                RunFolder(folder).remove_code()
                for name in os.listdir(folder):
                    (folder / name).unlink()
                folder.rmdir()


def _has_not_begun(folder: Path, truth: str) -> bool:
    path = folder / truth
    names = {name for name in os.listdir(folder) if not TEMPORARY.fullmatch(name)}
    if not all(OWN_CODE.fullmatch(name) or TEMPORARY.fullmatch(name) for name in names_in(folder / "code")):
        return False
    return not (path.exists() and path.stat().st_size) and names <= BEFORE_THE_TRUTH | {truth}


def create_run_folder(home: Path, name: str | None) -> RunFolder:
    """A new, empty run folder below `home`.

    Raises:
        SettingsError: the name is taken, or the folder cannot be made.
    """
    from .home import create_home  # which needs this module

    create_home(home)
    if not name:
        remove_never_begun(home / "runs", JOURNAL)
    folder = RunFolder(home / "runs" / (name or new_name()))
    try:
        folder.path.mkdir(parents=True)
        sync_folder(folder.path.parent)
    except FileExistsError:
        if not folder.exists() and folder.path.is_dir() and not folder.is_owned():
            return folder  # a crash before the first journal line: nothing in it counts
        raise SettingsError(
            f"name={folder.name}: such a run exists; another name, or go on with it: bestrun resume {folder.name}"
        ) from None
    except OSError as error:
        raise SettingsError(f"{folder.path}: cannot be created: {error.strerror}") from error
    return folder
