"""From images as a file holds them to uint8, channels last: one scale for all splits, and nothing guessed."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from .arrays import Found, Unread, pieces_of, refusal

HAIR = 0.0010001  # of the range: so far beyond it, 0.001 in single precision, go pixels that a program has rounded
DARK = 4  # no float images from 0 to 255 are that dark at their brightest
COLOURS = (1, 3)  # numbers of channels that no side of an image is likely to have
FEW = 4  # more channels than this are seldom
RANGES = (1023, 4095, 16383, 65535)  # of 10, 12, 14 and 16 bits

Conversion = Callable[[NDArray[Any]], NDArray[np.uint8]]  # of some images at once


@dataclass
class Notes:
    """What a user is told of data that was read.

    Attributes:
        warnings: a line each.
        mended: ways in which earlier versions read these files otherwise, so that their runs have another digest.
        remarks: what was done as it should be, and yet is good to know; a line each.
    """

    warnings: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    mended: list[str] = field(default_factory=list)

    def add(self, others: "Notes") -> None:
        """Take over what was told elsewhere."""
        for name, lines in vars(others).items():
            getattr(self, name).extend(lines)

    def tell_mended(self, where: str, what: str, advice: str, before: str = "") -> None:
        """Tell of something that earlier versions read otherwise; `before` is how to read it as they did."""
        self.warnings.append(f"{where}: {what}; {advice}")
        self.mended.append(f"{what}{before}")


# ---- layout ----


def channels_last(x: Found, layout: str | None, notes: Notes) -> Found:
    """Images (n, height, width) or (n, height, width, channels), turned where their channels come first.

    Args:
        layout: "channels_last", "channels_first", or None: what the shape says, if it says it unmistakably.

    Raises:
        DataError: it does not.
    """
    if x.values.ndim == 3 or layout == "channels_last":
        return x
    turned = Found(x.where, x.values.turned() if isinstance(x.values, Unread) else np.moveaxis(x.values, 1, -1))
    if layout == "channels_first":
        return turned
    first, middle, last = x.values.shape[1:]
    if (first in COLOURS) != (last in COLOURS):
        if last in COLOURS:
            return x
        size = " x ".join(map(str, turned.values.shape[1:]))
        what = f"its channels come first, shape {x.values.shape}, and were turned to {size}"
        before = "; data.layout=channels_last reads it as it was read then"
        notes.tell_mended(x.where, what, "data.layout=channels_first says so, too", before)
        return turned
    if first not in COLOURS and ((last <= FEW < first) or (first == middle != last)):
        return x
    raise refusal(
        x.where,
        f"shape {x.values.shape}, which does not say where the channels are",
        "1 or 3 channels, last",
        "type data.layout=channels_last or data.layout=channels_first",
    )


# ---- scale ----


def as_uint8(images: Mapping[str, Found], notes: Notes) -> dict[str, NDArray[np.uint8]]:
    """Pixels from 0 to 255 of all splits, in memory; see `conversions`."""
    convert = conversions(images, notes)
    return {name: _converted(x.values, convert[name]) for name, x in images.items()}


def _converted(values: NDArray[Any], convert: Conversion) -> NDArray[np.uint8]:
    if values.dtype == np.uint8:
        return np.ascontiguousarray(values)
    images, start = np.empty(values.shape, np.uint8), 0
    for piece in pieces_of(values):  # a float copy of everything could be 4 GiB more
        images[start : start + len(piece)] = convert(piece)
        start += len(piece)
    return images


def conversions(images: Mapping[str, Found], notes: Notes) -> dict[str, Conversion]:
    """How pixels of all splits become such from 0 to 255, by one scale: whole numbers stay, floats from 0 to 1 are
    times 255. All pixels are looked at once, in pieces.

    Args:
        images: arrays, or what is still in its file, by the name they have in the user's file, as x_train.

    Raises:
        DataError: they are neither, or not all the same; says how to convert them.
    """
    ranges = {name: _range(x.values) for name, x in images.items()}
    tops = {name: _top(name, images, ranges) for name in images}
    floats = {name: top for name, top in tops.items() if top and images[name].values.dtype.kind == "f"}
    for name, top in floats.items():
        usual, expected = next(iter(floats.items()))
        if top != expected:
            remedy = f"{name} / 255" if top > expected else f"{name} * 255"
            found = f"pixels up to {ranges[name][1]:.7g}, but {usual} has them up to {ranges[usual][1]:.7g}"
            raise refusal(images[name].where, found, "one scale for all", f"write it as {remedy}")
    return {name: _conversion(x, tops[name] or 255, ranges[name], notes) for name, x in images.items()}


def _range(values: Any) -> tuple[float, float]:
    """The lowest and the highest pixel; both are NaN if any is."""
    bounds = [(piece.min(), piece.max()) for piece in pieces_of(values)]
    lows, highs = zip(*bounds, strict=True)
    return float(np.min(lows)), float(np.max(highs))


def _top(name: str, images: Mapping[str, Found], ranges: Mapping[str, tuple[float, float]]) -> int | None:
    """What stands for white, 1 or 255; None where all is black."""
    x, (low, high) = images[name], ranges[name]
    is_float = x.values.dtype.kind == "f"
    top = 1 if is_float and high <= 1 + HAIR else 255
    hair = HAIR * top if is_float else 0
    if not (low >= -hair and high <= top + hair):
        raise _out_of_range(name, x, ranges)
    if high <= hair:
        return None
    if not is_float and high == 1:
        found, remedy = "whole numbers of which none is above 1", f"write it as {name} * 255"
        raise refusal(x.where, found, "whole numbers from 0 to 255", remedy)
    if is_float and top == 255 and (high <= DARK or _is_mostly_below_one(x.values)):
        highest = max(high for other, (_, high) in ranges.items() if images[other].values.dtype.kind == "f")
        remedy = f"write it as numpy.clip({name}, 0, 1), or all splits alike as {name} / {highest:.9g}"
        raise refusal(x.where, f"most pixels from 0 to 1, but some up to {high:.7g}", "0 to 1, or 0 to 255", remedy)
    return top


def _is_mostly_below_one(values: Any) -> bool:
    """Whether most pixels that are not black are those of images from 0 to 1."""
    bright = below = 0
    for piece in pieces_of(values):
        bright += int((piece > 0).sum())
        below += int(((piece > 0) & (piece <= 1)).sum())
    return below > bright / 2


def _out_of_range(name: str, x: Found, ranges: Mapping[str, tuple[float, float]]) -> DataError:
    """The refusal, with the expression that converts such pixels; the same one for all splits."""
    low, high = ranges[name]
    expected = "0 to 255, or floats from 0 to 1"
    if not np.isfinite([low, high]).all():
        found = f"{'NaN' if np.isnan(low) else 'infinity'} among the pixels"
        return refusal(x.where, found, expected, f"write it as numpy.nan_to_num({name}, nan=0, posinf=0, neginf=0)")
    finite = [bounds for bounds in ranges.values() if np.isfinite(bounds).all()]
    lowest, highest = min(low for low, _ in finite), max(high for _, high in finite)
    if x.values.dtype.kind == "f" and lowest >= -1 - HAIR and highest <= 1 + HAIR:
        remedy = f"({name} + 1) / 2"
    elif x.values.dtype.kind == "i" and lowest >= -128 and highest <= 127:
        remedy = f"{name}.astype(int) + 128"
    elif lowest >= 0 and (top := next((top for top in RANGES if highest <= top), None)):
        remedy = f"{name} / {top}"
    else:
        remedy = f"({name} - {lowest:.9g}) / {highest - lowest:.9g}"
    return refusal(x.where, f"pixels from {low:.7g} to {high:.7g}", expected, f"write it as {remedy}")


def _conversion(x: Found, top: int, bounds: tuple[float, float], notes: Notes) -> Conversion:
    low, high = bounds
    if x.values.dtype == np.uint8:
        return np.ascontiguousarray
    is_float = x.values.dtype.kind == "f"
    if is_float and top == 255 and high > 0:
        notes.warnings.append(f"{x.where}: float pixels up to {high} are rounded to whole numbers, not scaled by 255")
    if low < 0 or high > top:
        what = f"its pixels from {low:.9g} to {high:.9g} were clipped to 0 and {top}"
        notes.tell_mended(x.where, what, "another program's rounding leaves such")
    factor = 255 // top if is_float else 1
    return lambda piece: np.rint(np.clip(piece, 0, top) * factor).astype(np.uint8)
