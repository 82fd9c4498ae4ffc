"""Image files read with suspicion: IDX and npz. Whatever a file holds, it costs bounded memory and time, and only
DataError comes of it, which names the file, what was found and what was expected.
"""

import gzip
import io
import math
import os
import struct
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .. import class_names
from ..errors import DataError
from . import known
from .spellings import roles

if TYPE_CHECKING:
    from .pixels import Notes

IDX_FILES = {
    "x_train": "train-images-idx3-ubyte",
    "y_train": "train-labels-idx1-ubyte",
    "x_test": "t10k-images-idx3-ubyte",
    "y_test": "t10k-labels-idx1-ubyte",
}
MAX_ARRAY_BYTES = 4 << 30  # no file makes us take more memory than this for one array
MAX_STORED_BYTES = 1 << 40  # of images that are read in pieces: more would take a day to look through once
CHUNK_BYTES = 1 << 20
PIECE_BYTES = 16 << 20  # of images that are looked at at once where not all of them are in memory
HEADER_BYTES = 1 << 14  # numpy itself refuses array headers of more than 10,000 characters


class Found(NamedTuple):
    """An array, or images that are still in their file, and, for messages, the file (and member) that holds them.

    `problem` says what is wrong with one that training can do without; its values are then empty.
    """

    where: str
    values: Any  # NDArray, or Unread
    problem: str = ""


@dataclass(frozen=True, eq=False)
class Unread:
    """Images (n, ...) that are still in their file, of which the header was read and checked.

    Attributes:
        stored: the shape as the file has it.
        order: "C", or "F" for Fortran's, in which no image lies in one piece.
        opened: gives a stream that stands at the first pixel.
        begin: the byte of the file `path` from which on the pixels lie there; None if they must be unpacked.
        is_turned: whether channels come first in the file, and last in what is given out.
    """

    where: str
    path: Path
    stored: tuple[int, ...]
    dtype: np.dtype[Any]
    opened: Callable[[], AbstractContextManager[Any]]
    order: Any = "C"
    begin: int | None = None
    is_turned: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        count, *sides = self.stored
        return (count, *sides[1:], sides[0]) if self.is_turned else self.stored

    @property
    def ndim(self) -> int:
        return len(self.stored)

    @property
    def nbytes(self) -> int:
        return math.prod(self.stored) * self.dtype.itemsize

    def __len__(self) -> int:
        return self.stored[0]

    @property
    def place(self) -> tuple[Path, int] | None:
        """File and byte from which on the images stand there, uint8 with channels last, one behind the other."""
        is_plain = self.dtype == np.uint8 and self.order == "C" and not self.is_turned
        return (self.path, self.begin) if is_plain and self.begin is not None else None

    def turned(self) -> "Unread":
        """With the channels last, as they are first."""
        return replace(self, is_turned=True)

    def load(self) -> NDArray[Any]:
        """All of it.

        Raises:
            DataError: it is larger than MAX_ARRAY_BYTES, or not what its header says.
        """
        if self.nbytes > MAX_ARRAY_BYTES:
            expected = f"at most {MAX_ARRAY_BYTES:,} in memory (MAX_ARRAY_BYTES)"
            remedy = "type data.in_memory=false"
            if self.order == "F":
                remedy = f"write it as numpy.ascontiguousarray({name_of(self.where)}), of which pieces can be read"
            raise refusal(self.where, f"shape {self.stored}, {self.nbytes:,} bytes", expected, remedy)
        with self.opened() as stream:
            return self._as_given(_read_array(self.where, stream, self.stored, self.dtype, self.order))

    def pieces(self) -> Iterator[NDArray[Any]]:
        """All of it in order, so many images at once as PIECE_BYTES hold. What lies in Fortran's order is loaded.

        Raises:
            DataError: it is not what its header says.
        """
        if self.order == "F":
            yield from pieces_of(self.load())
            return
        image = math.prod(self.stored[1:]) * self.dtype.itemsize
        at_once = max(1, PIECE_BYTES // image)
        with self.opened() as stream:
            for start in range(0, len(self), at_once):
                count = min(at_once, len(self) - start)
                buffer = np.empty(count * image, np.uint8)
                if (filled := _fill(stream, buffer)) < len(buffer):
                    raise _unlike(self.where, start * image + filled, self.nbytes, self.stored)
                yield self._as_given(buffer.view(self.dtype).reshape(count, *self.stored[1:]))
            if stream.read(1):  # this read also checks the checksum at the end
                raise _unlike(self.where, None, self.nbytes, self.stored)

    def _as_given(self, values: NDArray[Any]) -> NDArray[Any]:
        return np.moveaxis(values, 1, -1) if self.is_turned else values


def pieces_of(values: Any) -> Iterator[NDArray[Any]]:
    """An array, or what is still in its file, in pieces of about PIECE_BYTES, in order."""
    if isinstance(values, Unread):
        yield from values.pieces()
        return
    at_once = max(1, PIECE_BYTES * len(values) // max(1, values.nbytes))
    for start in range(0, len(values), at_once):
        yield values[start : start + at_once]


def name_of(where: str) -> str:
    """What to call an array in a hint: its name in the file, which stands in brackets at the end of `where`."""
    return where.rpartition("[")[2].removesuffix("]") if where.endswith("]") else "it"


def refusal(where: object, found: str, expected: str, remedy: str) -> DataError:
    return DataError(" ".join(f"{where}: found {found[:300]}; expected {expected}; {remedy}".splitlines()))


def find_idx(folder: Path, usual: str) -> Path:
    for stem in (usual, usual.replace("-idx", ".idx")):
        for spelling in (stem, stem.replace("idx3", "idx4")):
            for path in (folder / spelling, folder / f"{spelling}.gz"):
                if os.path.lexists(path):  # a broken link is this file, damaged, and not a missing one
                    return path
    found = "no such file" if folder.is_dir() else "no such folder"
    raise refusal(folder / usual, found, "this name, plain or with .gz", "set data.dir to the folder that has it")


@contextmanager
def refusing(path: Path, expected: str) -> Iterator[io.BufferedReader]:
    """An open file; whatever goes wrong while it is read becomes a DataError.

    Everything is caught because gzip, zipfile and numpy's header parser promise no closed list of what they raise.
    """
    try:
        with known.open_regular(path) as file:
            yield file
    except DataError:
        raise
    except Exception as error:
        reason = (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__
        raise refusal(path, f"nothing readable ({reason})", expected, "put the original file there") from error


def read_idx(path: Path, kind: str) -> Found:
    """The images (kind "x"), not yet read, or the labels ("y") of one IDX file, gzipped if its name ends in .gz.

    The format: 00 00, a type (08: bytes), the number of dimensions, each of them as 4 big-endian bytes, then the items.
    """
    dimensions = (3, 4) if kind == "x" else (1,)
    packed = path.name.endswith(".gz")
    with _idx_stream(path) as (file, stream):
        magic = stream.read(4)
        if len(magic) < 4 or magic[:3] != b"\0\0\x08" or magic[3] not in dimensions:
            expected = "an IDX file of bytes, " + " or ".join(f"00 00 08 0{count}" for count in dimensions)
            raise refusal(path, describe(magic), expected, "put the original file there")
        header = stream.read(4 * magic[3])
        if len(header) < 4 * magic[3]:
            raise refusal(path, f"only {len(header)} bytes of sizes", f"{4 * magic[3]}", "copy the original again")
        shape = struct.unpack(f">{magic[3]}I", header)
        check_header(path, kind, shape, np.dtype(np.uint8))
        begin = 4 + len(header)
        size, held = begin + math.prod(shape), os.fstat(file.fileno()).st_size
        # Packing adds less than a percent; GzipFile would read a terabyte of zeros behind the end byte by byte.
        if held > size + packed * (size // 100 + CHUNK_BYTES) or (held < size and not packed):
            raise refusal(path, f"{held:,} bytes", f"{size:,} for its shape {shape}", "copy the original again")
        if kind != "x":
            return Found(str(path), _read_array(path, stream, shape, np.dtype(np.uint8)))
        stamp = _stamp(file)

    @contextmanager
    def opened() -> Iterator[Any]:
        with _idx_stream(path) as (again, stream):
            _refuse_another(path, again, stamp)
            stream.read(begin)
            yield stream

    in_file = None if packed else begin
    return Found(str(path), Unread(str(path), path, shape, np.dtype(np.uint8), opened, begin=in_file))


@contextmanager
def _idx_stream(path: Path) -> Iterator[tuple[io.BufferedReader, Any]]:
    """An open IDX file, and what is to be read of it, unpacked."""
    packed = path.name.endswith(".gz")
    with refusing(path, "an IDX file" + " in gzip" * packed) as file:
        yield file, gzip.GzipFile(fileobj=file) if packed else file


def _stamp(file: Any) -> tuple[int, ...]:
    """What another file, or another content, changes."""
    facts = os.fstat(file.fileno())
    return facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns


def _refuse_another(where: object, file: Any, stamp: tuple[int, ...]) -> None:
    if _stamp(file) != stamp:
        raise refusal(where, "another file than a moment ago", "one that stays", "wait until it is written, try again")


class _SmallReads(io.BufferedReader):
    """Stops zipfile from reading a "table of contents" of gigabytes, which a sparse file makes for nothing."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > CHUNK_BYTES:
            raise ValueError(f"a table of contents of {size:,} bytes")
        return super().read(size)


NPZ = "an .npz file as numpy.savez writes it"


@contextmanager
def _archive(path: Path) -> Iterator[tuple[zipfile.ZipFile, dict[str, zipfile.ZipInfo]]]:
    """An open .npz file and the arrays it names."""
    with refusing(path, NPZ) as file, _SmallReads(file.raw) as small, zipfile.ZipFile(small) as archive:
        yield archive, {info.filename.removesuffix(".npy"): info for info in archive.infolist()}


def read_npz(path: Path, notes: "Notes") -> dict[str, Found]:
    """x_train, y_train, and x_test, y_test, x_validation, y_validation as far as an .npz file has them, under whatever
    names; see spellings.py. Images are not yet read. And class_names, if it has some. A remark names the other arrays.
    """
    if not os.path.lexists(path):  # a broken link is this file, damaged, and not a missing one
        raise refusal(path, "no such file", NPZ, "set data.path to the file that has it")
    with _archive(path) as (archive, members):
        found = {}
        named = _roles(path, archive, members, notes)
        if others := [name for name in members if name not in (*named.values(), "class_names")]:
            told = ", ".join(map(class_names.cleaned, others[:10])) + ", ..." * (len(others) > 10)
            notes.remarks.append(f"{path}: its {told} were not read")
        for role, name in named.items():
            where = f"{path}[{name}]"
            if role[0] == "x":
                found[role] = Found(where, _unread_npy(where, path, archive, members[name]))
            else:
                found[role] = _read_npy(where, "y", archive, members[name])
        if "class_names" in members:
            found["class_names"] = _read_names(f"{path}[class_names]", archive, members["class_names"])
        return found


def _read_names(where: str, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Found:
    """Texts (n,). Training does without them, so nobody's are refused."""
    try:
        names = _read_npy(where, "names", archive, info).values
        texts = names if names.dtype.kind == "U" else np.char.decode(names, "utf-8")
        texts.tolist()  # bytes need not be characters in UTF-32 either
        return Found(where, texts)
    except DataError as error:
        problem = str(error)
    except (ValueError, SystemError):  # the latter is what Python says of a character beyond the last one
        problem = f"{where}: found bytes that are no text"
    return Found(where, np.empty(0, "U"), problem)


def _roles(path: Path, archive: zipfile.ZipFile, members: dict[str, zipfile.ZipInfo], notes: "Notes") -> dict[str, str]:
    """Which array is x_train and so on: those of these names, else those that other names say."""

    def said(names: Iterable[str]) -> dict[str, str]:
        return roles(names, lambda name: len(_npy_header(path, archive, members[name])[1]))

    if members.keys() >= IDX_FILES.keys():
        others = said(name for name in members if name not in IDX_FILES)
        validation = {role: others[role] for role in _pair("validation") if role in others}
        validation |= {f"{kind}_validation": f"{kind}_val" for kind in "xy" if f"{kind}_val" in members}
        if late := [name for name in validation.values() if name not in ("x_val", "y_val")]:
            notes.mended.append(f"its {', '.join(late)} are the validation split, before they were not read")
        arrays = {name: name for name in IDX_FILES} | validation
    else:
        arrays = said(members)
    usual = {role: role.replace("validation", "val") for role in ("x_train", "y_train", *arrays)}
    halves = [f"{kind}_{role[2:]}" for role in usual for kind in "xy"]
    if missing := [role.replace("validation", "val") for role in dict.fromkeys(halves) if role not in arrays]:
        if not arrays:
            missing = [*IDX_FILES]
        text = f"no {' and no '.join(missing)}, only {', '.join(members) or 'nothing'}"
        remedy = "write the arrays again under these names"
        if set(missing) < {"x_val", "y_val"}:
            remedy = "write it again with both of x_val and y_val, or without"
        wanted = dict.fromkeys([*IDX_FILES, *missing])
        raise refusal(path, text, ", ".join(wanted), remedy)
    return {role: arrays[role] for part in ("train", "test", "validation") for role in _pair(part) if role in arrays}


def _pair(part: str) -> tuple[str, str]:
    return f"x_{part}", f"y_{part}"


def read_npz_images(path: Path) -> Found:
    """The images of an .npz file: its array `images`, `x` or `x_test`, else its only one of 3 or 4 dimensions."""
    with _archive(path) as (archive, members):
        usual: list[str] = [name for name in ("images", "x", "x_test") if name in members]
        names = usual[:1] or [name for name in members if len(_npy_header(path, archive, members[name])[1]) in (3, 4)]
        if len(names) != 1:
            found = f"{', '.join(names) or 'no images'} among {', '.join(members) or 'nothing'}"
            raise refusal(path, found, "one array of images", "call it images and write the file again")
        where = f"{path}[{names[0]}]"
        return Found(where, _unread_npy(where, path, archive, members[names[0]]).load())


def _npy_header(
    where: object, archive: zipfile.ZipFile, info: zipfile.ZipInfo
) -> tuple[int, tuple[int, ...], bool, np.dtype[Any]]:
    """Length of the header, shape, whether in Fortran's order, type."""
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # zipfile unpacks others without a bound
        raise refusal(where, f"compression {info.compress_type}", "none or deflate", "save it with numpy.savez")
    with archive.open(info) as stream:
        head = io.BytesIO(stream.read(HEADER_BYTES))  # in memory, so a header cannot claim to be gigabytes long
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    header = readers[np.lib.format.read_magic(head)](head)
    return head.tell(), *header


def _read_npy(where: str, kind: str, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Found:
    begin, shape, fortran, dtype = _checked_npy(where, kind, archive, info)
    with archive.open(info) as stream:
        stream.read(begin)
        return Found(where, _read_array(where, stream, shape, dtype, "F" if fortran else "C"))


def _checked_npy(
    where: str, kind: str, archive: zipfile.ZipFile, info: zipfile.ZipInfo
) -> tuple[int, tuple[int, ...], bool, np.dtype[Any]]:
    """As `_npy_header`, of an array that can be what it is to be."""
    begin, shape, fortran, dtype = _npy_header(where, archive, info)
    size = begin + math.prod(shape) * dtype.itemsize
    check_header(where, kind, shape, dtype)
    if size != info.file_size:
        raise refusal(where, f"{info.file_size:,} bytes", f"{size:,} for its shape {shape}", "write the file again")
    return begin, shape, fortran, dtype


def _unread_npy(where: str, path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Unread:
    begin, shape, fortran, dtype = _checked_npy(where, "x", archive, info)
    stamp = _stamp(archive.fp)

    @contextmanager
    def opened() -> Iterator[Any]:
        with _archive(path) as (again, _):
            _refuse_another(where, again.fp, stamp)
            with again.open(info) as stream:
                stream.read(begin)
                yield stream

    in_file = None
    if info.compress_type == zipfile.ZIP_STORED and not info.flag_bits & 1:  # 1: with a password
        in_file = _begin_of_member(archive, info) + begin
    return Unread(where, path, shape, dtype, opened, "F" if fortran else "C", in_file)


def _begin_of_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> int:
    """Where in the file a member's bytes begin: behind its own header, its name, and what else that header holds."""
    assert archive.fp is not None
    header = os.pread(archive.fp.fileno(), 30, info.header_offset)
    name, extra = struct.unpack("<HH", header[26:30])
    return int(info.header_offset + 30 + name + extra)


def check_header(where: object, kind: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    """Before memory is taken. `kind` is x for images, y for labels, names for those of classes."""
    name = name_of(str(where))
    types, dimensions = {"x": ("uif", (3, 4)), "y": ("uifbUS", (1, 2)), "names": ("US", (1,))}[kind]
    if dtype.kind not in types:  # of labels, labels.py says what is wrong with some of these
        raise refusal(where, f"type {dtype}", *_typed_otherwise(kind, name, dtype))
    if len(shape) not in dimensions:
        expected = "(n, height, width) or (n, height, width, channels)" if kind == "x" else "(n,)"
        remedy = {"y": "a number an image", "names": "a name a class"}
        raise refusal(where, f"shape {shape}", expected, remedy[kind] if kind in remedy else _reshaped(name, shape))
    if min(shape) < 1:
        raise refusal(where, f"shape {shape}", "at least one item, no empty dimension", "write the file again")
    if kind == "names" and math.prod(shape) * dtype.itemsize > class_names.MAX_BYTES:
        raise refusal(where, f"{shape[0]:,} names of type {dtype}", "short names", "shorten them")
    limit, limit_name = (MAX_STORED_BYTES, "MAX_STORED_BYTES") if kind == "x" else (MAX_ARRAY_BYTES, "MAX_ARRAY_BYTES")
    if (size := math.prod(shape) * dtype.itemsize) > limit or shape[0] >= 1 << 31:
        expected = f"at most {limit:,} ({limit_name}), of fewer than 2^31 images"
        raise refusal(where, f"shape {shape}, {size:,} bytes", expected, "use fewer or smaller images")


def _typed_otherwise(kind: str, name: str, dtype: np.dtype[Any]) -> tuple[str, str]:
    """What is expected instead of an array of this type, and how to get there."""
    if kind == "names":
        return "text", f"write it as {name}.astype(str); objects are never unpickled"
    if kind == "y":
        return "class numbers", f"write it as {name}.astype(str); objects are never unpickled"
    expected = "integers or floats"
    if dtype.kind == "b":
        return expected, f"write it as {name}.astype(float)"
    if dtype.kind == "O":
        return expected, f"write it as numpy.stack(list({name})), of images of one size; objects are never unpickled"
    if dtype.kind == "c":
        return expected, f"write it as abs({name}), or whatever of it is the image"
    return expected, "write the pixels; of pictures in files, bestrun pack makes such a file"


def _reshaped(name: str, shape: tuple[int, ...]) -> str:
    """How images of another number of dimensions become some."""
    side = math.isqrt(shape[1]) if len(shape) == 2 else 0
    if side and side * side == shape[1]:
        return f"write it as {name}.reshape(-1, {side}, {side})"
    if len(shape) == 2:
        return f"write it as {name}.reshape(-1, HEIGHT, WIDTH) or {name}.reshape(-1, HEIGHT, WIDTH, CHANNELS)"
    if len(shape) > 4:
        return f"images have two sides; take slices, or write it as {name}.reshape(-1, HEIGHT, WIDTH, CHANNELS)"
    return "images have two sides; write it with them"


def _read_array(
    where: object, stream: Any, shape: tuple[int, ...], dtype: np.dtype[Any], order: Any = "C"
) -> NDArray[Any]:
    """Exactly one array, to the end of the stream; at most a byte more is ever unpacked."""
    buffer = np.empty(math.prod(shape) * dtype.itemsize, np.uint8)  # the system gives memory only as it fills
    filled = _fill(stream, buffer)
    if filled < len(buffer) or stream.read(1):  # this read also checks the checksum at the end
        raise _unlike(where, filled if filled < len(buffer) else None, len(buffer), shape)
    return buffer.view(dtype).reshape(shape, order=order)


def _fill(stream: Any, buffer: NDArray[np.uint8]) -> int:
    """Read into a buffer; gives how many bytes there were."""
    filled = 0
    while chunk := stream.read(min(CHUNK_BYTES, len(buffer) - filled)):
        buffer[filled : filled + len(chunk)] = np.frombuffer(chunk, np.uint8)
        filled += len(chunk)
    return filled


def _unlike(where: object, held: int | None, size: int, shape: tuple[int, ...]) -> DataError:
    """The refusal of an array that ends before, or goes on behind, what its header says."""
    found = "bytes after the last item" if held is None else f"only {held:,} bytes of pixels or labels"
    return refusal(where, found, f"{size:,} for its shape {shape}", "copy the original again")


def describe(start: bytes) -> str:
    if not start:
        return "an empty file"
    if start[:1] in b"<\n\r ":
        return "text, perhaps a web page"
    if start[:2] == b"\x1f\x8b":
        return "gzip data (its name should end in .gz; if it does, it was packed twice)"
    return f"a file that starts {start.hex(' ')}"
