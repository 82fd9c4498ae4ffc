"""Images decoded once, in files of the home: `mlruns/cache/<source>-<state>.rows`.

Such a file is made under another name and renamed when it is whole: the rows (uint8 pixels, one image behind the
other), the CRC-32 of each (4 bytes, little-endian), a JSON header, and a tail of 64 bytes that says how long those are
and seals all but the rows with a SHA-256. A row is checked by its CRC whenever it is read. Where the source holds the
rows as they are, the file has none of its own and says where they lie.

Its name is what decides the pixels: the source's files and how they are decoded, and those files' size, time of last
change and time of last change of their entry (which nobody sets back). So what was decoded of a file as it was before
is not found, and removed when it is decoded anew. docs/formats.md has the fields.
"""

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import shutil
import struct
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..environment import memory_bytes
from ..errors import BestrunError, DataError, SettingsError
from ..storage.files import (
    TEMPORARY,
    StorageError,
    fault,
    make_folder,
    names_in,
    read_json,
    remove_leftovers,
    replacing,
    storage_error,
    write_json,
)
from ..storage.home import create_home, find_home, foreign_owners
from ..terminal import say
from .arrays import MAX_ARRAY_BYTES
from .known import open_regular
from .rows import Pixels, Place, RowFile, Stored, crc, pieces

log = logging.getLogger("bestrun")

FOLDER = "cache"  # in the home
MEMORY_SHARE = 8  # more than so small a part stays in a file: TensorFlow's copy and the network need memory, too
FORMAT = 1
MAGIC = b"bestrun rows 1\n\0"
TAIL = struct.Struct("<16sQQ32s")  # magic, bytes of the header, number of CRCs, SHA-256 of CRCs, header and both
MAX_HEADER_BYTES = 1 << 28
MAX_REMEMBERED = 1000  # digests: of splits by so many seeds


Remember = Callable[[str, Callable[[], dict[str, Any]]], dict[str, Any]]  # Entry.remembered, or what only computes


def is_held(size: int, in_memory: bool | None) -> bool:
    """Whether images of so many bytes are held in memory; None: as there is memory."""
    if in_memory is None:
        return size <= min(memory_bytes() // MEMORY_SHARE, MAX_ARRAY_BYTES)
    return in_memory


# ---- what goes in ----


@dataclass(frozen=True)
class Source:
    """What decides the pixels.

    Attributes:
        words: what people call it, as a path.
        settings: where it is, and all that decides how it is decoded; JSON.
        there: what stands there now beside the content of the files, as how many images; JSON.
        files: whose content decides.
    """

    words: str
    settings: Mapping[str, Any]
    there: Mapping[str, Any]
    files: Sequence[Path] = ()

    def name(self) -> str:
        """Of its file in the cache: what it is, and what state it is in."""
        states = [[str(path.absolute()), _state(path)] for path in self.files]
        return f"{self.subject}-{_hash([self.there, states])}"

    @property
    def subject(self) -> str:
        """The same for every state of the source: also where files were added, or have more images."""
        return _hash([FORMAT, self.settings])


def _hash(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def _state(path: Path) -> list[int]:
    try:
        facts = path.stat()
    except OSError as error:  # whoever reads it says so
        return [-(error.errno or 1)]
    return [facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns]


@dataclass(frozen=True)
class Part:
    """Some of a source's images, a split or all.

    Attributes:
        count: how many there are at most.
        pieces: gives them in order, uint8 (k, height, width, channels), k at once; asked for them once.
        place: the file and the byte from which on they lie there one behind the other, if they do.
    """

    count: int
    pieces: Callable[[], Iterator[Pixels]]
    place: tuple[Path, int] | None = None


@dataclass(frozen=True)
class Recipe:
    """How a source becomes rows.

    Attributes:
        shape: height, width, channels of every image.
        facts: what else is to be known of them, JSON; asked when all parts are done.
    """

    shape: tuple[int, int, int]
    parts: Mapping[str, Part]
    facts: Callable[[], Mapping[str, Any]] = dict


# ---- what comes out ----


class Entry:
    """The images of a source, decoded.

    Attributes:
        facts: as the recipe had them.
        path: its file in the cache; None: of this process alone.
    """

    def __init__(self, header: Mapping[str, Any], seal: str, rows: RowFile, path: Path | None) -> None:
        self.facts: Mapping[str, Any] = header["facts"]
        self.path = path
        self._parts, self._seal, self._rows = header["parts"], seal, rows

    def images(self, part: str) -> Stored:
        begin = 0
        for name, count in self._parts:
            if name == part:
                return Stored(self._rows, np.arange(begin, begin + count))
            begin += count
        raise KeyError(part)

    def remembered(self, key: str, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What `compute` gave, for these rows and this key, when it was first asked: it goes over all pixels."""
        path = self.path and self.path.with_suffix(".json")
        kept = (path and _sealed(read_json(path), self._seal)) or {}
        if key not in kept:
            kept = dict(list(kept.items())[1 - MAX_REMEMBERED :]) | {key: compute()}
            if path:
                with contextlib.suppress(StorageError):  # then it is computed again
                    write_json(path, {"of": self._seal, "kept": kept, "check": _hash([self._seal, kept])})
        return dict(kept[key])


def _sealed(document: Mapping[str, Any], seal: str) -> dict[str, Any] | None:
    """What was remembered of the rows with this seal, if it stands there as it was written."""
    kept = document.get("kept")
    is_whole = document.get("of") == seal and document.get("check") == _hash([seal, kept])
    return kept if is_whole and isinstance(kept, dict) else None


# ---- finding and making ----


def find(source: Source) -> Entry | None:
    """The images of a source, if they stand in the cache."""
    folder = _folder(makes=False)
    return _found(folder / f"{source.name()}.rows") if folder else None


def entry(source: Source, recipe: Callable[[], Recipe]) -> Entry:
    """The images of a source: found in the cache, else decoded into it.

    Of two processes that need the same one at once, one decodes and the other waits. Where the home cannot be written,
    or is somebody else's, they are decoded into a nameless file of the temporary folder, for this process alone.

    Raises:
        DataError: as the recipe does, and where the source changes while it is decoded.
        StorageError: there is no room for it; says how much is needed.
    """
    folder, name = _folder(makes=True), source.name()
    if folder is None:
        return _make_nameless(source, name, recipe())
    path = folder / f"{name}.rows"
    if found := _found(path):
        return found
    try:
        with _alone(path.with_suffix(".lock"), source):
            return _found(path) or _make(path, source, recipe())
    except _UnwritableError:
        return _make_nameless(source, name, recipe())


def _folder(*, makes: bool) -> Path | None:
    """Where files of the cache are; None: nowhere, as nothing is taken from a stranger's home, nor put into it."""
    home = find_home()
    if foreign_owners(home):
        return None
    folder = home / FOLDER
    if makes and not folder.is_dir():
        try:
            create_home(home)
            make_folder(folder)
        except (SettingsError, StorageError):
            return None
    return folder if folder.is_dir() else None


class _UnwritableError(Exception):
    """Nothing can be made in the cache's folder."""


@contextlib.contextmanager
def _alone(lock: Path, source: Source) -> Iterator[None]:
    """While no other process makes this entry."""
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    except OSError as error:
        raise _UnwritableError from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"{source.words}: another process decodes these images; waiting for it", err=True)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError:  # a file system without locks: each makes its own, and the last rename wins
            pass
        yield
    finally:
        os.close(descriptor)


def _make(path: Path, source: Source, recipe: Recipe) -> Entry:
    """Decode into the cache. What was made of an earlier state of the source goes."""
    remove_leftovers(path.parent, TEMPORARY)
    _refuse_without_room(path.parent, recipe)
    with _naming(path), replacing(path) as file:
        _write(file, source, recipe)
        _refuse_change(source, path.stem)
    for other in names_in(path.parent):
        if other.startswith(f"{source.subject}-") and not other.startswith(path.stem):
            with contextlib.suppress(OSError):
                (path.parent / other).unlink()
    if made := _found(path):
        return made
    raise DataError(f"{path}: is not what was just written there; is the disk sound?")


def _make_nameless(source: Source, name: str, recipe: Recipe) -> Entry:
    folder = Path(tempfile.gettempdir())
    _refuse_without_room(folder, recipe)
    with _naming(folder), tempfile.TemporaryFile(dir=folder) as file:
        _write(file, source, recipe)
        _refuse_change(source, name)
        file.flush()
        return _opened(file, Path(file.name) if isinstance(file.name, str) else folder / "(nameless)", None)


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """A disk's refusal becomes one line that names the file."""
    try:
        yield
    except OSError as error:
        raise storage_error(path, "write decoded images", error) from error


def _refuse_without_room(folder: Path, recipe: Recipe) -> None:
    """Before minutes of decoding."""
    needed, free = 1 << 20, shutil.disk_usage(folder).free
    rows = sum(part.count for part in recipe.parts.values())
    needed += rows * (4 + (0 if _lie_as_they_are(recipe) else int(np.prod(recipe.shape))))
    if needed > free:
        raise StorageError(
            f"{folder}: decoded, these images take {needed:,} bytes, and {free:,} are free there; make room (bestrun "
            "cache shows what was decoded before, bestrun cache --clear removes it), or name a home on another disk: "
            "BESTRUN_MLRUNS=FOLDER"
        )


def _refuse_change(source: Source, name: str) -> None:
    if source.name() != name:
        raise DataError(f"{source.words}: was changed while it was read; wait until it is written, and try again")


def _lie_as_they_are(recipe: Recipe) -> bool:
    return all(part.place for part in recipe.parts.values())


def _write(file: BinaryIO, source: Source, recipe: Recipe) -> None:
    """Rows, CRCs, header, tail."""
    are_there = _lie_as_they_are(recipe)
    total = sum(part.count for part in recipe.parts.values()) * int(np.prod(recipe.shape))
    what = "looked through" if are_there else "decoded into the cache"
    say(f"{source.words}: {total / 1e6:,.1f} MB of images are {what}, once", err=True)
    crcs, parts, pixels, begin = bytearray(), [], hashlib.sha256(), 0
    places: list[list[Any]] = []
    for name, part in recipe.parts.items():
        count = 0
        for piece in part.pieces():
            rows = np.ascontiguousarray(piece).reshape(len(piece), *recipe.shape)
            crcs += struct.pack(f"<{len(rows)}I", *(crc(row) for row in rows))
            pixels.update(rows.data)
            if not are_there:
                file.write(rows.data)
            count += len(rows)
            fault("F2")
        parts.append([name, count])
        where, at = part.place if are_there and part.place else (None, begin)
        places.append([where and str(where.absolute()), at, count, where and _state(where)])
        begin += count * int(np.prod(recipe.shape))
    header = json.dumps(
        {
            "source": source.words,
            "made_ms": time.time_ns() // 1_000_000,
            "shape": recipe.shape,
            "parts": parts,
            "places": places,
            "pixels_sha256": pixels.hexdigest(),
            "facts": recipe.facts(),
        },
        sort_keys=True,
    ).encode()
    sealed = crcs + header + struct.pack("<QQ", len(header), len(crcs) // 4)
    file.write(crcs + header + TAIL.pack(MAGIC, len(header), len(crcs) // 4, hashlib.sha256(sealed).digest()))


# ---- reading ----


class _DamagedError(Exception):
    """A file of the cache is not what was written; says how."""


def _found(path: Path) -> Entry | None:
    """What the cache has under a name. What is not whole there is told of, and not used."""
    try:
        with open_regular(path) as file:
            made = _opened(file, path, path)
    except FileNotFoundError:
        return None
    except (_DamagedError, OSError, DataError) as error:
        say(f"{path}: {error}; not used", err=True)
        return None
    with contextlib.suppress(OSError):
        os.utime(path)  # when it was last used
    return made


def _opened(file: BinaryIO, path: Path, name: Path | None, on_damage: Callable[[], str] | None = None) -> Entry:
    """Read all but the rows.

    Args:
        on_damage: as RowFile has it; None: the file is removed, so that it is made anew.

    Raises:
        _DamagedError: it is not what was written, or the source's own rows are not what they were.
    """
    header, crcs, seal = _read_header(file)
    places, descriptors = [], {}
    try:
        for where, begin, count, state in header["places"]:
            if where not in descriptors:
                descriptors[where] = os.dup(file.fileno()) if where is None else _open_source(Path(where), state)
            places.append(Place(Path(where or path), descriptors[where], begin, count))
    except BaseException:
        for descriptor in descriptors.values():
            os.close(descriptor)
        raise
    is_own = None in descriptors
    rows = RowFile(places, tuple(header["shape"]), crcs, on_damage or (lambda: _forget(name, seal, is_own)))
    return Entry(header, seal, rows, name)


def _read_header(file: BinaryIO) -> tuple[dict[str, Any], Any, str]:
    """Header, CRCs, seal (hexadecimal).

    Raises:
        _DamagedError: they are not what was written.
    """
    size = os.fstat(file.fileno()).st_size
    tail = os.pread(file.fileno(), TAIL.size, max(0, size - TAIL.size))
    if len(tail) < TAIL.size or not tail.startswith(MAGIC):
        raise _DamagedError("is no whole file of decoded images")
    _, length, count, seal = TAIL.unpack(tail)
    begin = size - TAIL.size - length - 4 * count
    if length > MAX_HEADER_BYTES or begin < 0:
        raise _DamagedError("its end is damaged")
    sealed = os.pread(file.fileno(), 4 * count + length, begin)
    if hashlib.sha256(sealed + struct.pack("<QQ", length, count)).digest() != seal:
        raise _DamagedError("its end is damaged")
    try:
        header = json.loads(sealed[4 * count :])
    except ValueError as error:
        raise _DamagedError("its end is damaged") from error
    own = sum(number for where, _, number, _ in header["places"] if where is None)
    if begin != own * int(np.prod(header["shape"])):
        raise _DamagedError(f"has {begin:,} bytes of rows, expected {own * int(np.prod(header['shape'])):,}")
    return header, np.frombuffer(sealed[: 4 * count], "<u4").astype(np.uint32), seal.hex()


def _open_source(path: Path, state: list[int]) -> int:
    with open_regular(path) as file:
        facts = os.fstat(file.fileno())
        if [facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns] != state:
            raise _DamagedError(f"the images lie in {path}, which was changed")
        return os.dup(file.fileno())


def _forget(path: Path | None, seal: str, is_own: bool) -> str:
    """A row is damaged: the file goes, unless another process has made it anew; gives what to do next."""
    if path is None and is_own:
        return "try again"
    if path is not None:
        with contextlib.suppress(OSError, _DamagedError, ValueError), open_regular(path) as file:
            if _read_header(file)[2] == seal:
                path.unlink()
    if is_own:
        return f"{path} was removed from the cache, and the next command makes it anew"
    return "the file is damaged, or was changed while it was used; put the original there, and try again"


# ---- bestrun cache ----


@dataclass(frozen=True)
class Listed:
    """A file of the cache.

    Attributes:
        bytes: on the disk, of it and of what stands beside it.
        source: what it was made of; None where that cannot be read.
        problem: why it will not be used; None where nothing speaks against it.
    """

    path: Path
    bytes: int
    source: str | None
    images: int
    used_ms: int
    problem: str | None


def listed(home: Path, *, verify: bool = False, told: Callable[[Path], None] = lambda _: None) -> list[Listed]:
    """All files of a home's cache, the one that was used last first.

    Args:
        verify: read every row, not the end of a file alone.
        told: of each file before it is read.

    Raises:
        UnreadableError: the folder cannot be listed.
    """
    folder, found = home / FOLDER, []
    for name in names_in(folder):
        path = folder / name
        if path.suffix != ".rows" or name.startswith("."):
            continue
        told(path)
        try:
            facts = path.lstat()
        except FileNotFoundError:
            continue
        beside = path.with_suffix(".json")
        size = facts.st_size + (beside.stat().st_size if beside.is_file() else 0)
        source, images, problem = _looked_into(path, verify)
        found.append(Listed(path, size, source, images, facts.st_mtime_ns // 1_000_000, problem))
    return sorted(found, key=lambda each: -each.used_ms)


def _looked_into(path: Path, verify: bool) -> tuple[str | None, int, str | None]:
    """Source, number of images, problem."""
    source, images = None, 0
    try:
        with open_regular(path) as file:
            header, crcs, _ = _read_header(file)
            source, images = str(header["source"]), len(crcs)
            opened = _opened(file, path, path, lambda: "bestrun cache --clear removes it")
            if verify:
                _verify(opened, header)
    except (_DamagedError, BestrunError, OSError) as error:
        return source, images, str(error)
    return source, images, None


def _verify(entry: Entry, header: Mapping[str, Any]) -> None:
    pixels = hashlib.sha256()
    for name, _ in header["parts"]:
        for piece in pieces(entry.images(name)):
            pixels.update(piece.data)
    if pixels.hexdigest() != header["pixels_sha256"]:
        raise _DamagedError("its pixels are not those that were written")


def clear(home: Path) -> int:
    """Remove all that the cache holds; a run that reads it goes on. Gives how many bytes that were.

    Raises:
        StorageError: something of it cannot be removed.
    """
    folder, freed = home / FOLDER, 0
    for name in names_in(folder):
        path = folder / name
        if path.suffix in (".rows", ".json", ".lock") or TEMPORARY.fullmatch(name):
            try:
                freed += path.lstat().st_size
                path.unlink()
            except FileNotFoundError:
                continue
            except OSError as error:
                raise storage_error(path, "remove it", error) from error
    return freed
