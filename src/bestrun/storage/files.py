"""How a file is replaced without ever being half there, and how the small ones are read."""

import contextlib
import errno
import fcntl
import json
import os
import re
import secrets
import shutil
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import BestrunError, UnreadableError

JOURNAL, MIRROR, RESULT = "journal.jsonl", "mirror.json", "result.json"  # in a run folder

TEMPORARY = re.compile(r"\..*\.tmp")  # in folders of ours: what a crash in `replacing` leaves behind


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
    line and `last`, F10 before older checkpoints are deleted, F11 before the run is ended in MLflow, F12 between the
    upload of `last` and its tag.

    And of the removal of a run: G1 before its folder is renamed, G2 after it, G3 after MLflow's run is marked as
    deleted, G4 after its models are gone, G5 after its artifacts, G6 before the folder goes.
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
    remove_leftovers(path.parent, re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{8}}\.tmp"))
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


def remove_leftovers(folder: Path, names: re.Pattern[str]) -> None:
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


def second_name(source: Path, name: Path) -> None:
    """Give a file a second name, under which it stays when the first goes; a copy, where a file system has no links.

    Raises:
        FileNotFoundError: it is gone.
        OSError: the copy cannot be written.
    """
    try:
        os.link(source, name)
    except FileNotFoundError:
        raise
    except OSError:
        shutil.copyfile(source, name)


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
    folder = path.parent
    if _is_gone(folder):
        return StorageError(f"{path}: cannot {doing}: its folder was moved or deleted; go on where it lies now")
    verb = "sync" if path.name in (MIRROR, RESULT) else "resume"
    again = f"bestrun {verb} {folder.name}" if _may_hold_a_run(folder) else "the same again"
    mend = {errno.ENOSPC: "make room", errno.EDQUOT: "make room", errno.EFBIG: "raise the limit, see ulimit -f"}
    what = f"{path}: cannot {doing}: {error.strerror or error}; {mend.get(error.errno or 0, 'mend that')}"
    return StorageError(what, again)


def holds_run(folder: Path) -> bool:
    """Whether a folder is a run's: its journal has a first line. A crash before that leaves nothing that counts.

    Raises:
        UnreadableError: there is a journal, and it could not be read: it may hold work.
    """
    journal = folder / JOURNAL
    try:
        with open(journal, "rb") as file:
            return file.readline().endswith(b"\n")
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise unreadable(journal, error) from error


def _may_hold_a_run(folder: Path) -> bool:
    try:
        return holds_run(folder)
    except UnreadableError:
        return True


def _is_gone(folder: Path) -> bool:
    try:
        folder.stat()
    except FileNotFoundError:
        return True
    except OSError:  # it may not be looked at
        return False
    return False


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
