"""Who owns a folder: a lock file that the kernel frees when its process dies."""

import contextlib
import fcntl
import json
import os
import socket
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import SettingsError, UnreadableError
from .files import TEMPORARY, read_json, remove_leftovers, storage_error, unreadable


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
        remove_leftovers(lock.parent, TEMPORARY)
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
