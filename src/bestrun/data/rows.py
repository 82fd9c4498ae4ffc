"""Images by number, wherever they are: a NumPy array, or rows of a file that is never in memory as a whole.

Both are `Images`: they have a shape, a length and selections, by a slice or an array of numbers. A selection of stored
rows is read by `numpy.asarray` and not before, so `np.asarray(images[which])` is pixels in either case. `pieces` goes
through all of them in bounded memory, `Ahead` through the batches of training.
"""

import os
import weakref
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from .arrays import PIECE_BYTES
from .order import batch_indices

AHEAD_BYTES = 32 << 20  # of the batches that are read at once; up to three times that and TensorFlow's copy are alive,
AHEAD_STEPS = 100  # and of so many steps at most: the first waits for all of them

Pixels = NDArray[np.uint8]


class Images(Protocol):
    """uint8 images (n, height, width, channels): a NumPy array, or `Stored`."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, which: Any, /) -> Any: ...


def pieces(images: Images, at_once: int | None = None) -> Iterator[Pixels]:
    """All images in order: so many at once, by default as PIECE_BYTES hold."""
    at_once = at_once or max(1, PIECE_BYTES // int(np.prod(images.shape[1:])))
    for start in range(0, len(images), at_once):
        yield np.asarray(images[start : start + at_once])


# ---- rows of a file ----


def crc(row: Pixels) -> int:
    """CRC-32 of an image whose pixels lie in one piece."""
    return zlib.crc32(row.data)


@dataclass(frozen=True)
class Place:
    """Where `count` rows lie one behind the other: from byte `begin` of the file `path`, open as `descriptor`."""

    path: Path
    descriptor: int
    begin: int
    count: int


class RowFile:
    """Rows of one shape in one file or several, numbered through; closed with its last user.

    They are read by `os.preadv`: as fast as a map of the file, without its pages in the process, and a file that is cut
    while it is read is an error and no SIGBUS.

    Args:
        crcs: the CRC-32 that each row had when it was first seen: uint32 (n,).
        on_damage: called when a row is not what it was, before that is raised; gives what to type next.
    """

    def __init__(
        self,
        places: Sequence[Place],
        shape: tuple[int, ...],
        crcs: NDArray[np.uint32],
        on_damage: Callable[[], str],
    ) -> None:
        self.shape = shape
        self._places, self._crcs, self._on_damage = places, crcs, on_damage
        size = int(np.prod(shape))
        self._file_of = np.repeat(np.arange(len(places)), [place.count for place in places])
        self._begins = np.concatenate([place.begin + size * np.arange(place.count) for place in places])
        for descriptor in {place.descriptor for place in places}:
            weakref.finalize(self, os.close, descriptor)

    def __len__(self) -> int:
        return len(self._crcs)

    def read(self, numbers: NDArray[np.integer[Any]]) -> Pixels:
        """These rows, in this order: uint8 (k, *shape).

        Raises:
            DataError: one of them is not what it was when it was first seen, or cannot be read.
        """
        rows = np.empty((len(numbers), *self.shape), np.uint8)
        if not len(numbers):
            return rows
        flat = rows.reshape(len(numbers), -1)
        begins, files = self._begins[numbers], self._file_of[numbers]
        # Where a row is not the one behind the one before, another reading begins
        breaks = np.flatnonzero((np.diff(begins) != flat.shape[1]) | (np.diff(files) != 0)) + 1
        for start, stop in zip([0, *breaks], [*breaks, len(numbers)], strict=True):
            place = self._places[files[start]]
            try:
                _fill(place.descriptor, flat[start:stop].reshape(-1).data, int(begins[start]))
            except OSError as error:
                raise DataError(f"{place.path}: cannot be read: {error.strerror or error}; mend that") from error
        for number, row in zip(numbers, flat, strict=True):
            if crc(row) != self._crcs[number]:
                path = self._places[self._file_of[number]].path
                what = f"image {number} is not what it was when it was first read"
                raise DataError(f"{path}: {what}; {self._on_damage()}")
        return rows


def _fill(descriptor: int, buffer: memoryview, begin: int) -> None:
    """Read bytes; those behind the end of a file that was cut stay as they were, and fail their CRC."""
    done = 0
    while done < len(buffer) and (count := os.preadv(descriptor, [buffer[done:]], begin + done)):
        done += count


@dataclass(frozen=True, eq=False)
class Stored:
    """Images in a file: `numbers` says which of its rows, in which order."""

    file: RowFile
    numbers: NDArray[np.int64]

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.numbers), *self.file.shape)

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, which: Any, /) -> Any:
        """One image, read; or a selection, not yet read."""
        if isinstance(which, int | np.integer):
            return self.file.read(self.numbers[which : which + 1 or None])[0]
        return Stored(self.file, self.numbers[which])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        rows = self.file.read(self.numbers)
        return rows if dtype is None else rows.astype(dtype)


# ---- batches, read ahead ----


class Ahead:
    """The batches of training, read by a thread one piece ahead of whoever learns them.

    A piece is so many steps as AHEAD_BYTES hold, one at least, AHEAD_STEPS at most. Pieces begin at multiples of their
    length, so what is read ahead does not depend on how steps are cut into calls.
    """

    def __init__(self, images: Images, seed: int, batch_size: int) -> None:
        self._images, self._seed, self._batch_size = images, seed, batch_size
        self._steps = max(1, min(AHEAD_STEPS, AHEAD_BYTES // (batch_size * int(np.prod(images.shape[1:])))))
        self._thread = ThreadPoolExecutor(1, "rows")
        self._pending: dict[int, Future[Pixels]] = {}

    def batches(self, first_step: int, steps: int) -> Iterator[Pixels]:
        """The images of these steps in order, uint8 (k, batch size, height, width, channels), k steps at once.

        Raises:
            DataError: a row is not what it was.
        """
        step, end = first_step, first_step + steps
        while step < end:
            number, offset = divmod(step, self._steps)
            count = min(self._steps - offset, end - step)
            yield self._piece(number)[offset : offset + count]
            step += count

    def _piece(self, number: int) -> Pixels:
        """A piece, waited for; the next is on its way, and those of before are let go."""
        self._pending = {each: self._pending.get(each) or self._start(each) for each in (number, number + 1)}
        return self._pending[number].result()

    def _start(self, number: int) -> "Future[Pixels]":
        return self._thread.submit(self._read, number * self._steps)

    def _read(self, first_step: int) -> Pixels:
        which = batch_indices(self._seed, first_step, self._steps, self._batch_size, len(self._images))
        rows: Pixels = np.asarray(self._images[which.reshape(-1)])
        return rows.reshape(*which.shape, *self._images.shape[1:])
