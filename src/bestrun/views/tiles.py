"""Confusion matrix, example errors, filters: of a run while it trains, of `restore`, in a report.

Pixels are made with numpy and lettered with Pillow, in some milliseconds: a Matplotlib figure of the same would take a
hundred times as long.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from . import lettering
from .curves import MAX_CLASSES_WITH_COUNTS

Pixels = NDArray[np.uint8]  # (height, width, 3)

# Anchors of colour scales that are told apart with any kind of colour blindness.
BLUES = np.array([[247, 251, 255], [158, 202, 225], [49, 130, 189], [8, 48, 107]])
BROWN_TO_PURPLE = np.array([[127, 59, 8], [253, 184, 99], [247, 247, 247], [178, 171, 210], [45, 0, 75]])
MARGIN = 12
LINE = 20  # pixels a line of text takes
MAX_TILES = 16  # images of a picture
MAX_FILTERS = 48


def confusion_matrix(matrix: NDArray[np.integer[Any]], title: str, names: Sequence[str] | None = None) -> Image.Image:
    """`matrix` (rows: true class, columns: predicted class, values: images) as coloured cells.

    Args:
        names: of the classes.
    """
    classes, largest = len(matrix), max(1, int(matrix.max(initial=0)))
    counted = classes <= MAX_CLASSES_WITH_COUNTS
    side = max(12 + 9 * len(str(largest)), 26) if counted else max(2, 640 // classes)
    every = math.ceil(classes / MAX_CLASSES_WITH_COUNTS)
    called = dict(list(enumerate(lettering.class_labels(names, classes)))[::every])
    font = lettering.font_for(called.values())
    widest = math.ceil(max(map(font.getlength, called.values())))
    upright = widest > side * every - 4  # what is too long to stand side by side above the columns
    band = widest + 12 if upright else LINE
    # Not linear: a handful of errors beside a thousand hits would have the colour of zero
    shares = (matrix / largest) ** 0.4
    cells = np.repeat(np.repeat(_coloured(shares, BLUES), side, axis=0), side, axis=1)
    left, top = MARGIN + LINE + 12 + max(LINE, widest), title_end(title) + band
    picture, draw = _canvas(left + classes * side + MARGIN, top + classes * side + MARGIN, title)
    picture.paste(Image.fromarray(cells), (left, top))
    for label, text in called.items():
        middle = (label + 0.5) * side
        draw.text((left - 6, top + middle), text, "black", font, "rm")
        if upright:
            picture.paste(_upright(text, widest, font, "lm"), (round(left + middle - LINE / 2), top - 4 - widest))
        else:
            draw.text((left + middle, top - 4), text, "black", font, "ms")
    above = (left + classes * side / 2, top - band - 2)
    draw.text(above, "predicted class (images per cell)", "black", lettering.font(), "ms")
    picture.paste(_upright("true class", classes * side, lettering.font()), (MARGIN - 4, top))
    for (row, column), count in np.ndenumerate(matrix) if counted else ():
        colour = "white" if shares[row, column] > 0.6 else "black"
        place = left + (column + 0.5) * side, top + (row + 0.5) * side
        draw.text(place, str(count or "."), colour, lettering.font(), "mm")  # errors are what the eye should find
    return picture


def example_errors(
    images: Any,
    labels: NDArray[np.integer[Any]],
    predictions: NDArray[np.integer[Any]],
    title: str,
    names: Sequence[str] | None = None,
) -> Image.Image:
    """The first wrongly classified images true and predicted class under each.

    Args:
        images: uint8 (n, height, width, channels): an array, or what has such a shape and gives one by its number.
        names: of the classes.
    """
    wrong = np.flatnonzero(labels != predictions)
    shown = wrong[:MAX_TILES]
    called = lettering.class_labels(names, 1 + int(max(labels.max(initial=0), predictions.max(initial=0))))
    below = [f"true {called[labels[index]]}\npredicted {called[predictions[index]]}" for index in shown]
    count = f"{len(wrong):,} errors in {len(labels):,} images" + f", the first {len(shown)}" * (len(wrong) > len(shown))
    return _captioned([images[index] for index in shown], images.shape[1:3], below, f"{title}\n{count}")


def training_images(
    images: NDArray[np.uint8],
    labels: NDArray[np.integer[Any]],
    others: NDArray[np.integer[Any]],
    shares: NDArray[np.floating[Any]],
    classes: int,
    title: str,
    names: Sequence[str] | None = None,
) -> Image.Image:
    """At most MAX_TILES images as training sees them, the class of each below, or both classes and how much of each.

    Args:
        images: uint8 (n, height, width, channels).
        labels, others, shares: (n,) each; so much of an image is of class `labels`, and the rest of class `others`.
        names: of the classes.
    """
    called = lettering.class_labels(names, classes)
    below = []
    for label, other, share in zip(labels, others, shares.round(2).tolist(), strict=True):
        (more, heavier), (less, lighter) = sorted([(share, label), (round(1 - share, 2), other)], reverse=True)
        mixed = label != other and less > 0
        below.append(f"{called[heavier]} {more:g}\n+ {called[lighter]} {less:g}" if mixed else called[heavier])
    return _captioned(list(images[:MAX_TILES]), images.shape[1:3], below[:MAX_TILES], title)


def _captioned(images: Sequence[Any], size: tuple[int, int], below: Sequence[str], title: str) -> Image.Image:
    """Images of one size, (height, width), four in a row, with at most two lines of text below each."""
    lines = [line for text in below for line in text.splitlines()]
    font = lettering.font_for(lines)
    height, width = size
    times = max(1, 96 // max(height, width))
    wide = max([104, width * times, *(math.ceil(font.getlength(line)) for line in lines)])
    across, down = wide + MARGIN, height * times + 2 * LINE + MARGIN
    columns, rows = 4, max(1, math.ceil(len(images) / 4))
    begin = title_end(title)
    picture, draw = _canvas(columns * across + MARGIN, begin + rows * down, title)
    for position, (image, text) in enumerate(zip(images, below, strict=True)):
        row, column = divmod(position, columns)
        left, top = MARGIN + column * across, begin + row * down
        tile = np.repeat(np.repeat(image, times, axis=0), times, axis=1)
        if tile.shape[-1] != 3:
            tile = np.repeat(tile[..., :1], 3, axis=-1)
        picture.paste(Image.fromarray(tile), (left, top))
        draw.multiline_text((left, top + height * times + 2), text, "black", font, spacing=2)
    return picture


def filters(kernel: NDArray[np.floating[Any]], title: str) -> Image.Image:
    """A convolution's `kernel` (height, width, input channels, filters) as tiles: a row for each input channel."""
    count, channels = kernel.shape[3], kernel.shape[2]
    kernel = kernel[:, :, :MAX_FILTERS, :MAX_FILTERS]
    height, width = kernel.shape[:2]
    if kernel.shape[2] == 1:  # one row of many would be a ribbon
        columns = math.ceil(math.sqrt(kernel.shape[3]))
        tiles = [kernel[:, :, 0, index] for index in range(kernel.shape[3])]
    else:
        columns = kernel.shape[3]
        tiles = [kernel[:, :, channel, index] for channel, index in np.ndindex(*kernel.shape[2:])]
    rows = math.ceil(len(tiles) / columns)
    extreme = float(np.abs(kernel).max(initial=0)) or 1.0
    mosaic = np.full((rows * (height + 1), columns * (width + 1), 3), 255, np.uint8)
    for index, tile in enumerate(tiles):
        top, left = index // columns * (height + 1), index % columns * (width + 1)
        mosaic[top : top + height, left : left + width] = _coloured(tile / extreme / 2 + 0.5, BROWN_TO_PURPLE)
    times = max(1, min(16, 900 // max(mosaic.shape[:2])))
    mosaic = np.repeat(np.repeat(mosaic, times, axis=0), times, axis=1)
    what = f"{_extent(count)} filters across" + (f", {_extent(channels)} input channels down" if channels > 1 else "")
    scale = f"weights from {-extreme:.2g} (brown) to {extreme:.2g} (purple)"
    title = f"{title}\n{what}\n{scale}"
    wide, high = max(mosaic.shape[1], 420) + 2 * MARGIN, title_end(title) + mosaic.shape[0] + MARGIN
    picture, _ = _canvas(wide, high, title)
    picture.paste(Image.fromarray(mosaic), (MARGIN, title_end(title)))
    return picture


def title_end(title: str) -> int:
    """Where a picture goes on below its title: so many pixels from the top."""
    return LINE * len(title.splitlines()) + 2 * MARGIN


def _extent(count: int) -> str:
    return f"the first {MAX_FILTERS} of {count:,}" if count > MAX_FILTERS else str(count)


def _coloured(shares: NDArray[Any], anchors: NDArray[Any]) -> Pixels:
    """Shares from 0 to 1 as colours between the anchors."""
    places = np.linspace(0, 1, len(anchors))
    channels = [np.interp(shares, places, anchors[:, channel]) for channel in range(3)]
    return np.stack(channels, axis=-1).round().astype(np.uint8)


def _canvas(width: int, height: int, title: str) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """A white picture wide enough for the lines of its title."""
    needed = max(lettering.font().getlength(line) for line in title.splitlines()) + 2 * MARGIN
    picture = Image.new("RGB", (max(width, math.ceil(needed)), height), "white")
    draw = ImageDraw.Draw(picture)
    draw.multiline_text((MARGIN, MARGIN - 4), title, "black", lettering.font(), spacing=4)
    return picture, draw


def _upright(text: str, length: int, font: Any, anchor: str = "mm") -> Image.Image:
    """A line of text that is read from below, so many pixels high; `anchor`: lm begins below, mm is in the middle."""
    strip = Image.new("RGB", (length, LINE), "white")
    place = (0 if anchor == "lm" else length / 2, LINE / 2)
    ImageDraw.Draw(strip).text(place, text, "black", font, anchor)
    return strip.rotate(90, expand=True)
