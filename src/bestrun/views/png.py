"""A picture as a PNG file of few bytes: six sets of them are kept of a run, in its folder and in MLflow."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageChops

from ..storage.files import replacing

MAX_COLOURS = 4096  # of a drawing; a photograph has more
MAX_OFF = 8  # of 255, by which a colour of the palette may differ from what was drawn: nobody sees it


def write(picture: Image.Image, path: Path) -> None:
    """Replace `path` by the picture as a PNG at once: whoever reads it, the mirror's thread too, finds all or none.

    A drawing gets a palette of 256 colours, chosen for it, which takes a third to a half of the bytes; where one would
    be seen to be another, as in a photograph, the picture stays as it is.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if picture.getcolors(MAX_COLOURS) is not None:
        drawing = picture.quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
        if np.asarray(ImageChops.difference(picture, drawing.convert(picture.mode))).max() <= MAX_OFF:
            picture = drawing
    with replacing(path) as file:
        picture.save(file, "PNG", optimize=True)
