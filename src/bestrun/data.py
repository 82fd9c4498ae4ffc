"""From files to verified arrays, splits, a digest, and the order in which training sees the images.

What was read is what is used: the arrays stay in memory, so a file replaced while a run trains changes nothing.
"""

import gzip
import hashlib
import io
import math
import os
import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bestrun import sources
from bestrun.errors import DataError, SettingsError

KNOWN = {"mnist": sources.load_mnist, "fashion_mnist": sources.load_fashion_mnist}
FROM_FILES = ("idx", "npz")  # data.dir= and data.path= say where

IDX_FILES = {
    "x_train": "train-images-idx3-ubyte",
    "y_train": "train-labels-idx1-ubyte",
    "x_test": "t10k-images-idx3-ubyte",
    "y_test": "t10k-labels-idx1-ubyte",
}
MAX_ARRAY_BYTES = 4 << 30  # no file makes us take more memory than this for one array
CHUNK_BYTES = 1 << 20
HEADER_BYTES = 1 << 14  # numpy itself refuses array headers of more than 10,000 characters
OVERLAP_WORTH_A_WARNING = 0.01  # of a split; MNIST itself repeats a few images


@dataclass(frozen=True, eq=False)
class Split:
    """images: uint8 (n, height, width, channels), C-contiguous; labels: int64 (n,)."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, eq=False)
class Dataset:
    """`digest` changes with any pixel, label, shape, order or split; the same content from another file keeps it."""

    name: str
    train: Split
    validation: Split
    test: Split
    num_classes: int
    digest: str
    warnings: tuple[str, ...]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width, channels."""
        height, width, channels = self.train.images.shape[1:]
        return height, width, channels


class Found(NamedTuple):
    """An array and, for messages, the file (and member) that held it."""

    where: str
    values: NDArray[Any]


def load_dataset(
    name: str,
    *,
    dir: str | None = None,
    path: str | None = None,
    validation_size: int | float | None = 5000,
    validation_seed: int | None = None,
) -> Dataset:
    """Read, check and split the data set `name`: a key of KNOWN, "idx" (with `dir`) or "npz" (with `path`).

    Raises SettingsError for arguments that cannot be, DataError for files that are not what they should be.
    """
    found = _read(name, dir, path)
    warnings: list[str] = []
    splits = {
        part: _checked_split(found[f"x_{part}"], found[f"y_{part}"], warnings)
        for part in ("train", "validation", "test")
        if f"x_{part}" in found
    }
    _refuse_unequal_images(found, splits)
    if "validation" not in splits:
        splits["validation"], splits["train"] = _cut_validation(splits["train"], validation_size, validation_seed)
        found["y_validation"] = found["y_train"]
    train, validation, test = splits["train"], splits["validation"], splits["test"]
    num_classes = _count_classes(found["y_train"].where, train.labels)
    # hash() of bytes has 64 bits: a false match among millions of images is less likely than a broken memory cell.
    train_hashes = {hash(image.tobytes()) for image in train.images}
    for part in ("validation", "test"):
        where, split = found[f"y_{part}"].where, splits[part]
        warnings += _compare_labels(where, part, split.labels, num_classes)
        repeated = sum(hash(image.tobytes()) in train_hashes for image in split.images)
        if repeated > OVERLAP_WORTH_A_WARNING * len(split):
            warnings.append(f"{where}: {repeated:,} of {len(split):,} {part} images are also training images")
    return Dataset(name, train, validation, test, num_classes, _digest(train, validation, test), tuple(warnings))


# ---- batch order


def batch_indices(seed: int, first_step: int, steps: int, batch_size: int, num_images: int) -> NDArray[np.int32]:
    """Which training images the steps `first_step`, ... (from 0) see: int32, shape (steps, batch_size).

    The orders of epoch 0, 1, ... form one endless stream; step s takes its s-th piece of `batch_size`. Pieces cross the
    end of an epoch, so nothing is dropped, and nothing is remembered from call to call: a resumed run sees what the
    uninterrupted one would have seen.
    """
    start, stop = first_step * batch_size, (first_step + steps) * batch_size
    pieces = [np.empty(0, np.int32)]
    for epoch in range(start // num_images, math.ceil(stop / num_images)):
        epoch_start = epoch * num_images
        order = _epoch_order(seed, epoch, num_images)
        pieces.append(order[max(start - epoch_start, 0) : stop - epoch_start])
    return np.concatenate(pieces).reshape(steps, batch_size)


@lru_cache(maxsize=2)  # a batch may lie on the border of two epochs
def _epoch_order(seed: int, epoch: int, num_images: int) -> NDArray[np.int32]:
    return np.random.default_rng([seed, epoch]).permutation(num_images).astype(np.int32)


# ---- splits


def _cut_validation(split: Split, size: int | float | None, seed: int | None) -> tuple[Split, Split]:
    """The first images validate, in the files' order or in one drawn from `seed`; the others train."""
    total = len(split)
    count = size
    if isinstance(size, float):
        count = round(size * total) if 0 < size < 1 else None
    if count is None or not 0 < count < total:
        raise SettingsError(
            f"data.validation_size: {size} of {total:,} training images; allowed: a count from 1 to {total - 1:,}, "
            "or a share strictly between 0 and 1, that leaves at least one image on each side"
        )
    if seed is not None and seed < 0:
        raise SettingsError(f"data.validation_seed: {seed}; allowed: null or a whole number from 0")
    images, labels = split.images, split.labels
    if seed is not None:
        order = np.random.default_rng(seed).permutation(total)
        images, labels = images[order], labels[order]
    return Split(images[:count], labels[:count]), Split(images[count:], labels[count:])


def _count_classes(where: str, labels: NDArray[np.int64]) -> int:
    present = np.unique(labels)  # not bincount: one label of 2**40 would take terabytes
    missing = next((label for label, found in enumerate(present) if label != found), len(present))
    if missing < max(2, int(present[-1]) + 1):
        found = f"labels up to {present[-1]}, but no training image of class {missing}"
        remedy = "add images or renumber the classes; if all of them went to validation, set data.validation_seed=0"
        raise _refusal(where, found, "training images of every class, two classes or more", remedy)
    return len(present)


def _compare_labels(where: str, part: str, labels: NDArray[np.int64], num_classes: int) -> list[str]:
    """Refuse labels that training never sees; warn of classes that `part` never sees."""
    if labels.max() >= num_classes:
        item = int(np.argmax(labels >= num_classes))
        found, expected = f"label {labels[item]} at {part} image {item}", f"0 to {num_classes - 1}, as in training"
        raise _refusal(where, found, expected, "correct it, or add training images of that class")
    missing = sorted(set(range(num_classes)) - set(labels.tolist()))
    named = ", ".join(map(str, missing[:10])) + ", ..." * (len(missing) > 10)
    return [f"{where}: no {part} image of class {named}"] if missing else []


def _digest(*splits: Split) -> str:
    """SHA-256 over shape, pixels and labels of train, validation and test, in their order.

    An image is hashed where its split has it, so another split or another order is another digest.
    """
    digest = hashlib.sha256()
    for split in splits:
        digest.update(f"{split.images.shape}\n".encode())
        digest.update(split.images.data)
        digest.update(split.labels.astype("<i8").data)
    return digest.hexdigest()


# ---- checks and conversion


def _checked_split(x: Found, y: Found, warnings: list[str]) -> Split:
    if len(x.values) != len(y.values):
        found = f"{len(y.values):,} labels, but {x.where} has {len(x.values):,} images"
        raise _refusal(y.where, found, "as many labels as images", "take both from the same source")
    low, high = int(y.values.min()), int(y.values.max())
    if low < 0 or high > np.iinfo(np.int64).max:
        raise _refusal(y.where, f"labels from {low} to {high}", "class numbers from 0", "renumber the classes")
    images = _as_uint8(x, warnings)
    if len(images) > 1 and all(np.array_equal(image, images[0]) for image in images[1:]):
        warnings.append(f"{x.where}: all {len(images):,} images are identical" + (", all zero" * (not images[0].any())))
    images = images if images.ndim == 4 else images[..., np.newaxis]
    return Split(images, y.values.astype(np.int64))


def _as_uint8(x: Found, warnings: list[str]) -> NDArray[np.uint8]:
    """Floats in [0, 1] are scaled to 0..255; whole numbers are taken as they are."""
    low, high = x.values.min(), x.values.max()  # both are NaN if any pixel is
    if not (low >= 0 and high <= 255):
        found = "NaN among the pixels" if high != high else f"pixels from {low} to {high}"
        raise _refusal(x.where, found, "0 to 255, or floats from 0 to 1", "scale them and write the file again")
    if x.values.dtype == np.uint8:
        return np.ascontiguousarray(x.values)
    is_float = x.values.dtype.kind == "f"
    if is_float and high > 1:
        warnings.append(f"{x.where}: float pixels up to {high} are rounded to whole numbers, not scaled by 255")
    images = np.empty(x.values.shape, np.uint8)
    for start in range(0, len(images), 256):  # in pieces: a float copy of everything could be 4 GiB more
        piece = slice(start, start + 256)
        images[piece] = np.rint(x.values[piece] * (255 if is_float and high <= 1 else 1))
    return images


def _refuse_unequal_images(found: dict[str, Found], splits: dict[str, Split]) -> None:
    shape = splits["train"].images.shape[1:]
    for part, split in splits.items():
        if split.images.shape[1:] != shape:
            size, other = ("x".join(map(str, s)) for s in (split.images.shape[1:], shape))
            where, train = found[f"x_{part}"].where, found["x_train"].where
            raise _refusal(where, f"{size} images", f"{other} as in {train}", "bring all images to one size")


def _refusal(where: object, found: str, expected: str, remedy: str) -> DataError:
    return DataError(" ".join(f"{where}: found {found[:300]}; expected {expected}; {remedy}".splitlines()))


# ---- reading


def _read(name: str, dir: str | None, path: str | None) -> dict[str, Found]:
    if name in KNOWN:
        return {key: Found(f"{name} {key}", values) for key, values in KNOWN[name]().items()}
    if name == "idx":
        if not dir:
            raise SettingsError("data.dir: not given; data=idx needs the folder of the four IDX files: data.dir=FOLDER")
        folder = Path(os.path.expanduser(dir))
        return {key: read_idx(_find_idx(folder, usual), key[0]) for key, usual in IDX_FILES.items()}
    if name == "npz":
        if not path:
            raise SettingsError("data.path: not given; data=npz needs the .npz file: data.path=FILE")
        return read_npz(Path(os.path.expanduser(path)))
    raise SettingsError(f"data: {name!r} is not known; allowed: {', '.join([*KNOWN, *FROM_FILES])}")


def _find_idx(folder: Path, usual: str) -> Path:
    for stem in (usual, usual.replace("-idx", ".idx")):
        for spelling in (stem, stem.replace("idx3", "idx4")):
            for path in (folder / spelling, folder / f"{spelling}.gz"):
                if os.path.lexists(path):  # a broken link is this file, damaged, and not a missing one
                    return path
    found = "no such file" if folder.is_dir() else "no such folder"
    raise _refusal(folder / usual, found, "this name, plain or with .gz", "set data.dir to the folder that has it")


@contextmanager
def _refusing(path: Path, expected: str) -> Iterator[io.BufferedReader]:
    """An open file; whatever goes wrong while it is read becomes a DataError.

    Everything is caught because gzip, zipfile and numpy's header parser promise no closed list of what they raise.
    """
    try:
        with sources.open_regular(path) as file:
            yield file
    except DataError:
        raise
    except Exception as error:
        reason = (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__
        raise _refusal(path, f"nothing readable ({reason})", expected, "put the original file there") from error


def read_idx(path: Path, kind: str) -> Found:
    """The images (kind "x") or labels ("y") of one IDX file, gzipped if its name ends in .gz.

    The format: 00 00, a type (08: bytes), the number of dimensions, each of them as 4 big-endian bytes, then the items.
    """
    dimensions = (3, 4) if kind == "x" else (1,)
    packed = path.name.endswith(".gz")
    with _refusing(path, "an IDX file" + " in gzip" * packed) as file:
        stream = gzip.GzipFile(fileobj=file) if packed else file
        magic = stream.read(4)
        if len(magic) < 4 or magic[:3] != b"\0\0\x08" or magic[3] not in dimensions:
            expected = "an IDX file of bytes, " + " or ".join(f"00 00 08 0{count}" for count in dimensions)
            raise _refusal(path, _describe(magic), expected, "put the original file there")
        header = stream.read(4 * magic[3])
        if len(header) < 4 * magic[3]:
            raise _refusal(path, f"only {len(header)} bytes of sizes", f"{4 * magic[3]}", "copy the original again")
        shape = struct.unpack(f">{magic[3]}I", header)
        _check_header(path, kind, shape, np.dtype(np.uint8))
        size, held = 4 + len(header) + math.prod(shape), os.fstat(file.fileno()).st_size
        # Packing adds less than a percent; GzipFile would read a terabyte of zeros behind the end byte by byte.
        if held > size + packed * (size // 100 + CHUNK_BYTES) or (held < size and not packed):
            raise _refusal(path, f"{held:,} bytes", f"{size:,} for its shape {shape}", "copy the original again")
        return Found(str(path), _read_array(path, stream, shape, np.dtype(np.uint8)))


class _SmallReads(io.BufferedReader):
    """Stops zipfile from reading a "table of contents" of gigabytes, which a sparse file makes for nothing."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > CHUNK_BYTES:
            raise ValueError(f"a table of contents of {size:,} bytes")
        return super().read(size)


def read_npz(path: Path) -> dict[str, Found]:
    """x_train, y_train, x_test, y_test of an .npz file, and x_val, y_val (as "..._validation") if it has either."""
    expected = "an .npz file as numpy.savez writes it"
    with _refusing(path, expected) as file, _SmallReads(file.raw) as small, zipfile.ZipFile(small) as archive:
        members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        wanted = [*IDX_FILES] + ["x_val", "y_val"] * bool({"x_val", "y_val"} & members.keys())
        if missing := [name for name in wanted if name not in members]:
            found = f"no {' and no '.join(missing)}, only {', '.join(members) or 'nothing'}"
            raise _refusal(path, found, ", ".join(wanted), "write it again with them, or without x_val and y_val")
        return {
            name.replace("val", "validation"): _read_npy(f"{path}[{name}]", name[0], archive, members[name])
            for name in wanted
        }


def _read_npy(where: str, kind: str, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Found:
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # zipfile unpacks others without a bound
        raise _refusal(where, f"compression {info.compress_type}", "none or deflate", "save it with numpy.savez")
    with archive.open(info) as stream:
        head = io.BytesIO(stream.read(HEADER_BYTES))  # in memory, so a header cannot claim to be gigabytes long
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    shape, fortran, dtype = readers[np.lib.format.read_magic(head)](head)
    size = head.tell() + math.prod(shape) * dtype.itemsize
    _check_header(where, kind, shape, dtype)
    if size != info.file_size:
        raise _refusal(where, f"{info.file_size:,} bytes", f"{size:,} for its shape {shape}", "write the file again")
    with archive.open(info) as stream:
        stream.read(head.tell())
        return Found(where, _read_array(where, stream, shape, dtype, "F" if fortran else "C"))


def _check_header(where: object, kind: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    """Before memory is taken. `kind` is x for images or y for labels."""
    if dtype.kind not in ("uif" if kind == "x" else "ui"):
        expected, convert = ("integers or floats", "float") if kind == "x" else ("integers", "int")
        remedy = f"convert them with .astype({convert}); objects are never unpickled"
        raise _refusal(where, f"type {dtype}", expected, remedy)
    if len(shape) not in ((3, 4) if kind == "x" else (1,)):
        expected = "(n, height, width) or (n, height, width, channels)" if kind == "x" else "(n,)"
        remedy = "reshape the images" if kind == "x" else "one-hot labels become class numbers with y.argmax(axis=1)"
        raise _refusal(where, f"shape {shape}", expected, remedy)
    if min(shape) < 1:
        raise _refusal(where, f"shape {shape}", "at least one item, no empty dimension", "write the file again")
    if (size := math.prod(shape) * dtype.itemsize) > MAX_ARRAY_BYTES:
        expected = f"at most {MAX_ARRAY_BYTES:,} (MAX_ARRAY_BYTES)"
        raise _refusal(where, f"shape {shape}, {size:,} bytes", expected, "use fewer or smaller images")


def _read_array(
    where: object, stream: Any, shape: tuple[int, ...], dtype: np.dtype[Any], order: Any = "C"
) -> NDArray[Any]:
    """Exactly one array, to the end of the stream; at most a byte more is ever unpacked."""
    buffer = np.empty(math.prod(shape) * dtype.itemsize, np.uint8)  # the system gives memory only as it fills
    filled = 0
    while chunk := stream.read(min(CHUNK_BYTES, len(buffer) - filled)):
        buffer[filled : filled + len(chunk)] = np.frombuffer(chunk, np.uint8)
        filled += len(chunk)
    if filled < len(buffer) or stream.read(1):  # this read also checks the checksum at the end
        found = f"only {filled:,} bytes of pixels or labels" if filled < len(buffer) else "bytes after the last item"
        raise _refusal(where, found, f"{len(buffer):,} for its shape {shape}", "copy the original again")
    return buffer.view(dtype).reshape(shape, order=order)


def _describe(start: bytes) -> str:
    if not start:
        return "an empty file"
    if start[:1] in b"<\n\r ":
        return "text, perhaps a web page"
    if start[:2] == b"\x1f\x8b":
        return "gzip data (its name should end in .gz; if it does, it was packed twice)"
    return f"a file that starts {start.hex(' ')}"
