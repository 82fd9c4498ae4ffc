"""Files that are taken to another folder, so that what arrives is proved: each by its hash, read again where it lies.

Nothing is trusted on the way: what is no file of its own (a link, a device) is refused, not followed.
"""

import contextlib
import hashlib
import os
import shutil
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import BinaryIO, NamedTuple

from ..errors import SettingsError, VerificationError
from .files import TEMPORARY, StorageError, storage_error, sync_folder, sync_tree, unreadable

CHUNK = 1 << 20
OF_A_PROCESS = {"lock", "stop"}  # in a run's or a sweep's folder: of the process that works there, not of the run


class Seal(NamedTuple):
    """What a file must be: its size in bytes and its SHA-256."""

    bytes: int
    sha256: str


def files_in(folder: Path, *, leave: Iterable[str] = OF_A_PROCESS) -> list[str]:
    """The files of a folder at any depth, as paths below it, sorted; not what a killed process left half written.

    Args:
        leave: names right in the folder that are left out.

    Raises:
        SettingsError: there is a link or a device: what it leads to would not be taken.
        UnreadableError: a folder cannot be listed.
    """
    found: list[str] = []

    def refuse(error: OSError) -> None:
        raise unreadable(Path(error.filename or folder), error) from error

    for root, folders, names in os.walk(folder, onerror=refuse):
        for name in [*folders, *names]:
            path = Path(root, name)
            mode = path.lstat().st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                kind = "a link" if stat.S_ISLNK(mode) else "neither a file nor a folder"
                raise SettingsError(f"{path}: is {kind}, which cannot be taken along; put the file itself there")
            relative = path.relative_to(folder).as_posix()
            if stat.S_ISREG(mode) and not TEMPORARY.fullmatch(name) and relative not in leave:
                found.append(relative)
    return sorted(found)


def bytes_of(folder: Path, names: Iterable[str]) -> int:
    """How many bytes these files hold."""
    return sum((folder / name).stat().st_size for name in names)


def seal_of(path: Path) -> Seal:
    """A file's size and hash. Raises UnreadableError where it cannot be read."""
    try:
        with open(path, "rb") as file:
            return Seal(os.fstat(file.fileno()).st_size, hashlib.file_digest(file, "sha256").hexdigest())
    except OSError as error:
        raise unreadable(path, error) from error


def write_sealed(source: BinaryIO, target: Path, most: int) -> Seal:
    """Write a new file of what `source` gives; it is on disk when this returns.

    Args:
        most: so many bytes at most; what is longer is cut off there, and has another seal.

    Raises:
        OSError: there is such a file, or the disk refused.
    """
    digest, size = hashlib.sha256(), 0
    with open(target, "xb") as file:
        while size < most and (data := source.read(min(CHUNK, most - size))):
            digest.update(data)
            file.write(data)
            size += len(data)
        file.flush()
        os.fsync(file.fileno())
        with contextlib.suppress(OSError):  # so that `prove` reads what the disk has
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return Seal(size, digest.hexdigest())


def copy_files(source: Path, target: Path, names: Iterable[str]) -> dict[str, Seal]:
    """Copy files into a folder that is made for them, with their times, and prove them there.

    Raises:
        StorageError: the disk refused.
        VerificationError: what arrived is not what was sent.
    """
    seals: dict[str, Seal] = {}
    try:
        target.mkdir(parents=True)
        for name in names:
            path = target / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(source / name, "rb") as file:
                seals[name] = write_sealed(file, path, os.fstat(file.fileno()).st_size)
            shutil.copystat(source / name, path)  # runs are in the order of times
        sync_tree(target)
        sync_folder(target.parent)
    except OSError as error:
        raise refused(target, error) from error
    prove(target, seals)
    return seals


def refused(target: Path, error: OSError) -> StorageError:
    """One line for a file that could not be written where it was to arrive."""
    return storage_error(Path(error.filename or target), "write it", error)


def prove(folder: Path, seals: Mapping[str, Seal]) -> None:
    """Read every file again.

    Raises:
        VerificationError: one of them is not what it must be; names it.
    """
    for name, seal in seals.items():
        if seal_of(folder / name) != seal:
            raise VerificationError(f"{folder / name}: did not arrive as it was sent; nothing was deleted; once more")


def differing(folder: Path, other: Path, names: Iterable[str]) -> str | None:
    """The first of these files that `other` has not, or has otherwise; None where all are the same."""
    for name in names:
        path = other / name
        if not path.is_file() or seal_of(path) != seal_of(folder / name):
            return name
    return None


def refuse_too_large(folder: Path, size: int) -> None:
    """Raises StorageError where a folder's disk has no room for `size` bytes."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if (free := shutil.disk_usage(there).free) < size:
        raise StorageError(f"{folder}: {size:,} bytes are to go there, and its disk has {free:,} left; make room")
