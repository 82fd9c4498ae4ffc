"""The run folder: where everything is, who owns it, and how a file is replaced without ever being half there."""

import contextlib
import errno
import fcntl
import json
import os
import secrets
import signal
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import BestrunError, SettingsError


class StorageError(BestrunError):
    """A file could not be written: full disk, size limit, missing right."""


def fault(point: str) -> None:
    """Die here if a test asks for it: BESTRUN_FAULT="F4" or "F4:3" kills the process at the third pass of F4.

    The points are the crash windows of a run; each stands at the line a crash would leave behind:
    F1 before the temporary file, F2 in the middle of writing it, F3 before its fsync, F4 before the rename, F5 after
    it, F6 before an upload, F7 between upload and check, F8 after the upload and before its tag, F9 between the journal
    line and `last`, F10 before older checkpoints are deleted, F11 before the run is ended in MLflow.
    """
    wanted = os.environ.get("BESTRUN_FAULT")
    if not wanted or wanted.split(":")[0] != point:
        return
    _passes[point] = _passes.get(point, 0) + 1
    if _passes[point] >= int(wanted.partition(":")[2] or 1):
        os.kill(os.getpid(), signal.SIGKILL)


_passes: dict[str, int] = {}


def write_atomically(path: Path, data: bytes) -> None:
    """Replace `path` by `data`: whatever happens, the file holds the old bytes or the new ones, complete.

    The order is the point: bytes on disk before the name points at them, the name on disk before we return.

    Raises:
        StorageError: naming the path and the bytes needed; the old file is untouched.
    """
    temporary = path.with_name(f".{path.name}.tmp")  # the same folder: a rename never crosses file systems
    try:
        fault("F1")
        with open(temporary, "wb") as file:
            half = len(data) // 2
            file.write(data[:half])
            fault("F2")
            file.write(data[half:])
            file.flush()
            fault("F3")
            os.fsync(file.fileno())
        fault("F4")
        os.replace(temporary, path)
        fault("F5")
        sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise storage_error(path, f"write {len(data):,} bytes", error) from error


def storage_error(path: Path, doing: str, error: OSError) -> StorageError:
    """One line that says what could not be done to which file of a run, why, and what to type once that is mended."""
    run = RunFolder(path.parent)
    if not path.parent.exists():
        return StorageError(f"{path}: cannot {doing}: its folder was moved or deleted; go on where it lies now")
    again = f"bestrun {'sync' if path == run.mirror else 'resume'} {run.name}" if run.exists() else "the same again"
    mend = {errno.ENOSPC: "make room", errno.EDQUOT: "make room", errno.EFBIG: "raise the limit, see ulimit -f"}
    return StorageError(
        f"{path}: cannot {doing}: {error.strerror or error}; {mend.get(error.errno or 0, 'mend that')}, then: {again}"
    )


def sync_folder(folder: Path) -> None:
    """Make renames and deletions in `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    write_atomically(path, (json.dumps(value, indent=2) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """The object in a small file of ours, or {} where it is missing or not readable as one."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


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
        return self.path / "journal.jsonl"

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
        return self.path / "mirror.json"

    @property
    def result(self) -> Path:
        return self.path / "result.json"

    @property
    def stop(self) -> Path:
        """Holds a stop reason where a sweep asks this run to end; see workers.py."""
        return self.path / "stop"

    @property
    def diff(self) -> Path:
        """What of the code was not committed when the run began."""
        return self.path / "uncommitted.diff"

    @property
    def pictures(self) -> Path:
        return self.path / "pictures"

    def best(self, step: int) -> Path:
        return self.path / f"best-{step}.safetensors"

    def bests(self) -> list[Path]:
        """The best checkpoints that exist, newest step first."""
        found = [path for path in self.path.glob("best-*.safetensors") if path.stem[5:].isdecimal()]
        return sorted(found, key=lambda path: int(path.stem[5:]), reverse=True)

    def exists(self) -> bool:
        """Whether it is a run: its journal has a first line. A crash before that leaves nothing that counts."""
        try:
            with open(self.journal, "rb") as file:
                return file.readline().endswith(b"\n")
        except OSError:
            return False

    def is_owned(self) -> bool:
        """Whether a living process holds the lock; a dead one's is free by itself."""
        return is_locked(self.lock)

    @contextlib.contextmanager
    def owned(self) -> Iterator[None]:
        """Own the folder for a while: one process writes, nobody else.

        Raises:
            SettingsError: another process owns it; says which, where and since when.
            StorageError: the lock file cannot be made.
        """
        with locked(self.lock, f"run {self.name}"):
            try:
                yield
            finally:
                self._discard_unless_it_is_a_run()

    def _discard_unless_it_is_a_run(self) -> None:
        """A full disk may end a run before its first journal line: then nothing is left of it, its name is free."""
        if not self.exists():
            with contextlib.suppress(OSError):  # any other file in it is not ours to delete
                for path in (self.config, self.overrides, self.diff, self.journal, self.log, self.lock):
                    path.unlink(missing_ok=True)
                self.path.rmdir()


def is_locked(lock: Path) -> bool:
    """Whether a living process holds this lock."""
    try:
        descriptor = os.open(lock, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


@contextlib.contextmanager
def locked(lock: Path, what: str) -> Iterator[None]:
    """Hold the lock file of a folder for a while; what a crash left half written there is removed first.

    Raises:
        SettingsError: another process holds it; says which, where and since when.
        StorageError: the lock file cannot be made.
    """
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise storage_error(lock, "open it", error) from error
    try:
        _acquire(descriptor, lock, what)
        for leftover in lock.parent.glob(".*.tmp"):  # what a crash in write_atomically leaves behind
            leftover.unlink(missing_ok=True)
        yield
    finally:
        os.close(descriptor)


def _acquire(descriptor: int, lock: Path, what: str) -> None:
    for attempt in range(5):  # `is_locked` of another process may hold the lock for an instant
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if attempt == 4:
                owner = read_json(lock)
                minutes = max(0.0, time.time() - owner.get("started", time.time())) / 60  # clocks are set back
                raise SettingsError(
                    f"{what} is in use by process {owner.get('pid', '?')} on {owner.get('host', '?')}, "
                    f"for {minutes:.0f} min; wait for it, or stop it with: kill {owner.get('pid', 'PID')}"
                ) from None
            time.sleep(0.05)
    owner = {"host": socket.gethostname(), "pid": os.getpid(), "started": time.time()}
    with contextlib.suppress(OSError):  # the content is for that message only; the lock itself is the kernel's
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(owner).encode(), 0)


def create_run_folder(home: Path, name: str | None) -> RunFolder:
    """A new, empty run folder below `home`.

    Raises:
        SettingsError: the name is taken, or the folder cannot be made.
    """
    from .home import create_home  # which needs this module

    create_home(home)
    folder = RunFolder(home / "runs" / (name or new_name()))
    try:
        folder.path.mkdir(parents=True)
    except FileExistsError:
        if not folder.exists() and folder.path.is_dir() and not folder.is_owned():
            return folder  # a crash before the first journal line: nothing in it counts
        raise SettingsError(
            f"name={folder.name}: such a run exists; another name, or go on with it: bestrun resume {folder.name}"
        ) from None
    except OSError as error:
        raise SettingsError(f"{folder.path}: cannot be created: {error.strerror}") from error
    return folder
