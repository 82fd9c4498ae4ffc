"""The run folder: where everything is, who owns it, and how a file is replaced without ever being half there."""

import contextlib
import errno
import fcntl
import json
import os
import re
import secrets
import shutil
import signal
import socket
import stat
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import BestrunError, SettingsError, UnreadableError

TEMPORARY = re.compile(r"\..*\.tmp")  # in folders of ours: what a crash in `replacing` leaves behind
NEW_NAME = re.compile(r"[0-9]{8}-[0-9]{6}-[a-z0-9]{4}")  # of `new_name`
BEFORE_THE_TRUTH = {"lock", "config.yaml", "overrides.yaml", "uncommitted.diff", "run.log"}


class StorageError(BestrunError):
    """A file could not be written: full disk, size limit, missing right.

    Attributes:
        problem: the message without what to type next, for a verb that knows better.
    """

    def __init__(self, problem: str, again: str | None = None) -> None:
        super().__init__(f"{problem}, then: {again}" if again else problem)
        self.problem = problem


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


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write that becomes `path` at the end of the block: whoever reads, finds the old bytes or the new ones.

    The order is the point: bytes on disk before the name points at them, the name on disk before we return. An error
    in the block, Ctrl-C too, leaves `path` as it was and nothing beside it. What a killed process left goes first.

    Raises:
        OSError: the disk refused.
    """
    fault("F1")
    _remove_leftovers(path.parent, re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{8}}\.tmp"))
    temporary, file = _beside(path)
    try:
        with file:
            yield file
            file.flush()
            fault("F3")
            os.fsync(file.fileno())
            fault("F4")
            os.replace(temporary, path)  # while it is held: nobody takes it for a leftover
        fault("F5")
        sync_folder(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def _beside(path: Path) -> tuple[Path, BinaryIO]:
    """A new file in the folder of `path`, as a rename never crosses file systems; held with flock while it is open."""
    while True:
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
        file = open(temporary, "xb")  # noqa: SIM115  (closed by `replacing`)
        with contextlib.suppress(OSError):  # a file system without locks, where nobody removes leftovers either
            fcntl.flock(file, fcntl.LOCK_EX)
        if temporary.exists():
            return temporary, file
        file.close()  # before it was held another process took it for a leftover


def _remove_leftovers(folder: Path, names: re.Pattern[str]) -> None:
    """Remove the temporary files that nobody holds: their process is dead. Best effort, a leftover costs only space."""
    with contextlib.suppress(OSError):
        for name in filter(names.fullmatch, os.listdir(folder)):
            with contextlib.suppress(OSError):
                descriptor = os.open(folder / name, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    os.unlink(folder / name)
                finally:
                    os.close(descriptor)


def write_atomically(path: Path, data: bytes) -> None:
    """Replace `path` by `data`: whatever happens, the file holds the old bytes or the new ones, complete.

    Raises:
        StorageError: naming the path and the bytes needed; the old file is untouched.
    """
    try:
        with replacing(path) as file:
            half = len(data) // 2
            file.write(data[:half])
            fault("F2")
            file.write(data[half:])
    except OSError as error:
        raise storage_error(path, f"write {len(data):,} bytes", error) from error


def storage_error(path: Path, doing: str, error: OSError) -> StorageError:
    """One line that says what could not be done to which file of a run, why, and what to type once that is mended."""
    run = RunFolder(path.parent)
    if _is_gone(path.parent):
        return StorageError(f"{path}: cannot {doing}: its folder was moved or deleted; go on where it lies now")
    verb = "sync" if path in (run.mirror, run.result) else "resume"
    again = f"bestrun {verb} {run.name}" if _is_known_run(run) else "the same again"
    mend = {errno.ENOSPC: "make room", errno.EDQUOT: "make room", errno.EFBIG: "raise the limit, see ulimit -f"}
    what = f"{path}: cannot {doing}: {error.strerror or error}; {mend.get(error.errno or 0, 'mend that')}"
    return StorageError(what, again)


def _is_gone(folder: Path) -> bool:
    try:
        folder.stat()
    except FileNotFoundError:
        return True
    except OSError:  # it may not be looked at
        return False
    return False


def _is_known_run(run: "RunFolder") -> bool:
    try:
        return run.exists()
    except UnreadableError:
        return True


def sync_folder(folder: Path) -> None:
    """Make renames and deletions in `folder` durable, where its file system can do that for folders at all."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network and shared folders
            raise
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Make all that is in `folder`, at any depth, durable; that it stands in its parent is for the caller to sync."""
    for root, _, names in os.walk(folder):
        for name in names:
            with open(Path(root, name), "rb") as file:
                os.fsync(file.fileno())
        sync_folder(Path(root))


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    write_atomically(path, (json.dumps(value, indent=2) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """The object in a small file of ours, or {} where it is missing or no JSON object.

    Raises:
        UnreadableError: it is there, and the system could not read it.
    """
    try:
        value = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return {}
    except OSError as error:
        raise unreadable(path, error) from error
    return value if isinstance(value, dict) else {}


def unreadable(path: Path, error: OSError) -> UnreadableError:
    """One line for a file that may hold work and could not be read."""
    return UnreadableError(
        f"{path}: cannot be read: {error.strerror or error}; nothing was changed; mend that, and try again"
    )


def names_in(folder: Path) -> list[str]:
    """The names in a folder, sorted; none where there is no such folder.

    `Path.glob` takes a folder that it may not read for an empty one.

    Raises:
        UnreadableError: it is there, and the system could not list it.
    """
    try:
        return sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise unreadable(folder, error) from error


def make_folder(folder: Path) -> None:
    """Make a folder, if it is not there, so that its name survives a power cut, too.

    Raises:
        StorageError: it cannot be made.
    """
    try:
        folder.mkdir()
        sync_folder(folder.parent)
    except FileExistsError:
        return
    except OSError as error:
        raise storage_error(folder, "make this folder", error) from error


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
        """Holds a stop reason where a sweep asks this run to end; see sweep/backends/."""
        return self.path / "stop"

    @property
    def diff(self) -> Path:
        """What of the code was not committed when the run began."""
        return self.path / "uncommitted.diff"

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

    def exists(self) -> bool:
        """Whether it is a run: its journal has a first line. A crash before that leaves nothing that counts.

        Raises:
            UnreadableError: there is a journal, and it could not be read: it may hold work.
        """
        try:
            with open(self.journal, "rb") as file:
                return file.readline().endswith(b"\n")
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:
            raise unreadable(self.journal, error) from error

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
            self._remove_leftovers()
            try:
                yield
            finally:
                self._discard_unless_it_is_a_run()

    def _remove_leftovers(self) -> None:
        """What a process that was killed left half made, beside what `locked` removes; only its owner makes any."""
        _remove_leftovers(self.pictures, TEMPORARY)
        for draft in (self.path / "upload", self.path / "model" / "draft"):
            shutil.rmtree(draft, ignore_errors=True)

    def _discard_unless_it_is_a_run(self) -> None:
        """A full disk may end a run before its first journal line: then nothing is left of it, its name is free."""
        with contextlib.suppress(OSError, UnreadableError):  # what cannot be read may hold work, any other file, too
            if not self.exists():
                for path in (self.config, self.overrides, self.diff, self.journal, self.log, self.lock):
                    path.unlink(missing_ok=True)
                self.path.rmdir()


def is_locked(lock: Path) -> bool:
    """Whether a living process holds this lock.

    Raises:
        UnreadableError: there is a lock, and it could not be asked.
    """
    try:
        descriptor = os.open(lock, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise unreadable(lock, error) from error
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
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise storage_error(lock, "open it", error) from error
    try:
        _acquire(descriptor, lock, what)
        sign(descriptor, lock)
        _remove_leftovers(lock.parent, TEMPORARY)
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
                raise in_use(lock, what) from None
            time.sleep(0.05)


def in_use(lock: Path, what: str) -> SettingsError:
    """The refusal of what another process holds: which one, where and since when."""
    owner: dict[str, Any] = {}
    with contextlib.suppress(UnreadableError):  # it is for the message alone
        owner = read_json(lock)
    minutes = max(0.0, time.time() - owner.get("started", time.time())) / 60  # clocks are set back
    return SettingsError(
        f"{what} is in use by process {owner.get('pid', '?')} on {owner.get('host', '?')}, "
        f"for {minutes:.0f} min; wait for it, or stop it with: kill {owner.get('pid', 'PID')}"
    )


def sign(descriptor: int, lock: Path) -> None:
    """Write into a lock file who holds it. What is no lock file of ours keeps its content.

    Raises:
        SettingsError: it is another file, put or linked there.
    """
    is_file, content = stat.S_ISREG(os.fstat(descriptor).st_mode), b""
    with contextlib.suppress(OSError):
        content = os.pread(descriptor, 4096, 0)
    if not is_file or (content.strip(b"\0 ") and not (content.startswith(b"{") and b'"pid"' in content)):
        raise SettingsError(f"{lock}: is no lock of this program, and was left as it is; remove it if it is of no use")
    owner = {"host": socket.gethostname(), "pid": os.getpid(), "started": time.time()}
    with contextlib.suppress(OSError):  # the content is for that message only; the lock itself is the kernel's
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(owner).encode(), 0)


def remove_never_begun(folders: Path, truth: str) -> None:
    """Remove the folders of processes that died at once, under names that nobody will ever type again; best effort.

    Nothing goes on a guess: it is an hour old, not held, has no byte of `truth`, the file that makes it a run or a
    sweep, and holds nothing but what is written before that.
    """
    with contextlib.suppress(OSError), os.scandir(folders) as entries:
        for entry in entries:
            with contextlib.suppress(OSError, BestrunError):
                age = time.time() - entry.stat(follow_symlinks=False).st_mtime
                if NEW_NAME.fullmatch(entry.name) and age > 3600 and _has_not_begun(Path(entry.path), truth):
                    with locked(Path(entry.path, "lock"), entry.name):
                        if _has_not_begun(Path(entry.path), truth):
                            for name in os.listdir(entry.path):
                                os.unlink(os.path.join(entry.path, name))
                            os.rmdir(entry.path)


def _has_not_begun(folder: Path, truth: str) -> bool:
    path = folder / truth
    names = {name for name in os.listdir(folder) if not TEMPORARY.fullmatch(name)}
    return not (path.exists() and path.stat().st_size) and names <= BEFORE_THE_TRUTH | {truth}


def create_run_folder(home: Path, name: str | None) -> RunFolder:
    """A new, empty run folder below `home`.

    Raises:
        SettingsError: the name is taken, or the folder cannot be made.
    """
    from .home import create_home  # which needs this module

    create_home(home)
    if not name:
        remove_never_begun(home / "runs", "journal.jsonl")
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
