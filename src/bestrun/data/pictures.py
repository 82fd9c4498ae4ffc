"""Pictures that are decoded when they are asked for: on all processors, in bounded memory, always in the same order."""

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..environment import processors
from ..errors import DataError
from ..formatting import shown
from .arrays import MAX_ARRAY_BYTES, refusal
from .images import Shape, decode, fit, header
from .pixels import Notes

MAX_THREADS = 16
WAITING = 4  # pictures a thread that are decoded ahead of the one that is asked for
PIXELS_AT_ONCE = 100_000_000  # of all pictures that are in work: 400 MB for each copy that a conversion needs

Progress = Callable[[Sequence[int]], Iterable[int]]  # gives numbers one by one, and may show how far it is
Given = TypeVar("Given")


class Look(NamedTuple):
    """How pictures become images of one shape.

    Attributes:
        size: "WIDTHxHEIGHT"; None: all must be of one size.
        fit: what becomes of pictures of another one, see `images.fit`.
        channels: 1 (grey) or 3; None: 1 if all pictures are grey, else 3.
        damaged: "refuse" a picture that cannot be read, or "skip" it.
        typed: how a person types one of these, as data.size=64x48 or --size 64x48.
    """

    size: str | None = None
    fit: str = "stretch"
    channels: int | None = None
    damaged: str = "refuse"
    typed: str = "data.{}={}"

    def word(self, name: str, value: object) -> str:
        return self.typed.format(name, value)


class Encoded(NamedTuple):
    """A picture as its file holds it: what messages call it, and what reads its bytes (in a thread of its own)."""

    where: object
    read: Callable[[], bytes]


class Source(Protocol):
    def encoded(self, part: str, numbers: Iterable[int]) -> Iterator[Encoded]:
        """The pictures of a split with these numbers (ascending), in their order."""


class Part(NamedTuple):
    """The pictures of a split.

    Attributes:
        where: what messages call the split.
        labels: int64 (n,).
        numbers: int64 (n,), those by which its source knows them.
        pixels: int64 (n,), how many each picture has in its file.
    """

    where: str
    labels: NDArray[np.int64]
    numbers: NDArray[np.int64]
    pixels: NDArray[np.int64]


@dataclass(frozen=True)
class Pictures:
    """All that is known of pictures before they are decoded.

    Attributes:
        splits: train, validation (where there is one) and test, each in its final order.
        class_names: of label 0, 1, ...
        image_shape: height, width, channels of every image.
    """

    splits: dict[str, Part]
    class_names: tuple[str, ...]
    image_shape: Shape
    look: Look
    source: Source
    notes: Notes

    def images(
        self, part: str, numbers: Sequence[int] | None = None, progress: Progress = iter
    ) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """Each number and its image, uint8 (height, width, channels), in order. What is damaged is passed over with a
        note, if it is not refused.

        Args:
            numbers: which images of the split, from 0, ascending; None: all of them.

        Raises:
            DataError: a picture is damaged, or not of the size that its header promised.
        """
        split = self.splits[part]
        wanted = range(len(split.labels)) if numbers is None else numbers
        source = self.source.encoded(part, split.numbers[wanted].tolist())
        work = (
            (partial(self._image, encoded), int(split.pixels[number]))
            for number, encoded in zip(progress(wanted), source, strict=False)
        )
        skipped: list[DataError] = []
        for number, image in zip(wanted, _side_by_side(work), strict=True):
            if isinstance(image, DataError):
                skipped.append(image)
            else:
                yield number, image
        tell_skipped(skipped, self.notes)

    def _image(self, encoded: Encoded) -> NDArray[np.uint8] | DataError:
        height, width, _ = self.image_shape
        try:
            picture = decode(encoded.read(), encoded.where)
        except DataError as error:
            return skipped_or_raised(error, self.look)
        if self.look.size is None and picture.size != (width, height):
            found, expected = "{}x{} pixels".format(*picture.size), f"{width}x{height} as its header has it"
            raise refusal(encoded.where, found, expected, "save the picture again")
        return fit(picture, self.image_shape, encoded.where, self.look.fit)


def look_through(
    source: Source,
    labels: Mapping[str, NDArray[np.int64]],
    places: Mapping[str, str],
    class_names: Sequence[str],
    look: Look,
    notes: Notes,
    progress: Progress = iter,
) -> Pictures:
    """The pictures of all splits, each header read and none decoded: sizes, channels, and what is damaged so far.

    Args:
        labels: split -> int64 (n,), in the order of the source's numbers 0 to n - 1.
        places: split -> what messages call it.

    Raises:
        DataError: a picture is damaged, of another size than the others, or a class has none.
    """
    splits, skipped = {}, []
    first: tuple[Shape, object] | None = None
    grey = True
    for part, of_part in labels.items():
        kept, pixels = [], []
        numbers = range(len(of_part))
        work = ((partial(_header, encoded, look), 0) for encoded in source.encoded(part, progress(numbers)))
        for number, (where, shape) in enumerate(_side_by_side(work)):
            if isinstance(shape, DataError):
                skipped.append(shape)
                continue
            first = first or (shape, where)
            if look.size is None and shape[:2] != first[0][:2]:
                raise _other_size(shape, where, *first, look)
            grey = grey and shape[2] == 1
            kept.append(number)
            pixels.append(shape[0] * shape[1])
        splits[part] = Part(places[part], of_part[kept], np.array(kept, np.int64), np.array(pixels, np.int64))
    tell_skipped(skipped, notes)
    refuse_missing({part: split.labels for part, split in splits.items()}, places, class_names)
    assert first is not None  # else some split would have been refused
    width, height = map(int, look.size.split("x")) if look.size else first[0][1::-1]
    shape = height, width, look.channels or (1 if grey else 3)
    return Pictures(splits, tuple(class_names), shape, look, source, notes)


def in_memory(pictures: Pictures, progress: Progress = iter) -> dict[str, tuple[NDArray[np.uint8], NDArray[np.int64]]]:
    """Split -> images, uint8 (n, height, width, channels), and labels, int64 (n,).

    Raises:
        DataError: as `Pictures.images`, or there are more pixels than memory should hold.
    """
    total, shape = sum(len(split.labels) for split in pictures.splits.values()), pictures.image_shape
    if total * math.prod(shape) > MAX_ARRAY_BYTES:
        found = "{:,} images of {} x {} x {}".format(total, *shape)
        expected = f"at most {MAX_ARRAY_BYTES:,} bytes of pixels (MAX_ARRAY_BYTES)"
        raise refusal(pictures.splits["train"].where, found, expected, f"type {pictures.look.word('size', '64x48')}")
    arrays = {}
    for part, split in pictures.splits.items():
        images = np.empty((len(split.labels), *shape), np.uint8)
        kept: list[int] = []
        for number, image in pictures.images(part, progress=progress):
            images[len(kept)] = image
            kept.append(number)
        arrays[part] = images[: len(kept)], split.labels[kept]
    labels = {part: labels for part, (_, labels) in arrays.items()}
    refuse_missing(labels, {part: split.where for part, split in pictures.splits.items()}, pictures.class_names)
    return arrays


def refuse_missing(
    labels: Mapping[str, NDArray[np.int64]], places: Mapping[str, str], class_names: Sequence[str]
) -> None:
    """Raises DataError: a split is empty, or no picture of a class trains."""
    for part, of_part in labels.items():
        if not len(of_part):
            advice = "add pictures; of a class with a single one nothing is cut"
            raise refusal(places[part], f"no {part} images", "one or more", advice)
    present = set(labels["train"].tolist())
    if missing := [name for label, name in enumerate(class_names) if label not in present]:
        found = f"no picture of class {shown(missing[0])} that could be read"
        raise refusal(places["train"], found, "one or more", "add some, or remove the class")


def skipped_or_raised(error: DataError, look: Look) -> DataError:
    """The error itself where it only costs this picture."""
    if look.damaged == "skip":
        return error
    raise DataError(f"{error}; or leave such pictures out: {look.word('damaged', 'skip')}") from error


def tell_skipped(skipped: Sequence[DataError], notes: Notes) -> None:
    if skipped:
        notes.warnings.append(f"{len(skipped):,} pictures that cannot be read were left out, the first is {skipped[0]}")


def _header(encoded: Encoded, look: Look) -> tuple[object, Shape | DataError]:
    try:
        return encoded.where, header(encoded.read(), encoded.where)
    except DataError as error:
        return encoded.where, skipped_or_raised(error, look)


def _other_size(shape: Shape, where: object, first: Shape, first_where: object, look: Look) -> DataError:
    usual = f"{first[1]}x{first[0]}"
    remedy = f"type {look.word('size', usual)} to bring all to one size"
    return refusal(where, f"{shape[1]}x{shape[0]} pixels", f"{usual} as in {first_where}", remedy)


def _side_by_side(work: Iterable[tuple[Callable[[], Given], int]]) -> Iterator[Given]:
    """What each piece of work gives, in its order, whichever thread is done first. Pillow lets go of Python's lock
    while it decodes and scales.

    Args:
        work: a function, and how many pixels it holds in memory.
    """
    threads = min(processors(), MAX_THREADS)
    waiting: deque[tuple[Future[Given], int]] = deque()
    held = 0
    pool = ThreadPoolExecutor(threads, "pictures")
    try:
        for function, pixels in work:
            while waiting and (len(waiting) >= WAITING * threads or held + pixels > PIXELS_AT_ONCE):
                future, given_back = waiting.popleft()
                yield future.result()
                held -= given_back
            waiting.append((pool.submit(function), pixels))
            held += pixels
        while waiting:
            yield waiting.popleft()[0].result()
    finally:  # an error, Ctrl-C, or nobody asks for more: what has not begun does not begin
        pool.shutdown(cancel_futures=True)
