"""Pictures, PNG and JPEG, read with suspicion, as arrays.py reads arrays: bounded memory and time, only DataError."""

import io
import logging
import math
import os
import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from .arrays import MAX_ARRAY_BYTES, Found, describe, name_of, read_npz_images, refusal, refusing
from .pixels import Notes, as_uint8, channels_last

log = logging.getLogger("bestrun")

SUFFIXES = (".png", ".jpg", ".jpeg")
MAX_BYTES = 100 << 20  # of a file
MAX_PIXELS = 50_000_000  # of a picture: 200 MB for each copy that its conversion needs
MAX_SCANS = 1000  # of a JPEG. Each goes over all pixels, however few bytes it has; cameras write about 10

Shape = tuple[int, int, int]  # height, width, channels


def read_image(path: Path, shape: Shape | None = None, *, invert: bool = False) -> NDArray[np.uint8]:
    """One PNG or JPEG as uint8 (height, width, channels), upright, transparent parts on black.

    Args:
        shape: scaled to this height and width, to grey (1 channel) or colour (3); None leaves it as it is.
        invert: dark becomes light: for a network that learned white on black.

    Raises:
        DataError: it is not such a file, or too large.
    """
    image = open_picture(path)
    pixels = fit(image, shape or (image.height, image.width, len(image.getbands())), path)
    return 255 - pixels if invert else pixels


def read_images(path: Path, shape: Shape, *, invert: bool = False) -> tuple[list[str], NDArray[np.uint8]]:
    """The names and pixels, uint8 (n, height, width, channels), of one PNG or JPEG, or of all images of an .npz file.

    Raises:
        DataError: as `read_image`.
    """
    if path.suffix.lower() != ".npz":
        return [str(path)], read_image(path, shape, invert=invert)[np.newaxis]
    found, notes = read_npz_images(path), Notes()
    name = name_of(found.where)
    images = as_uint8({name: _like(found, shape, notes)}, notes)[name]
    for warning in notes.warnings:
        log.warning("%s", warning)
    images = images if images.ndim == 4 else images[..., np.newaxis]
    if images.shape[1:] != shape:
        if images.shape[3] not in (1, 3):
            size, other = ("x".join(map(str, each)) for each in (images.shape[1:], shape))
            raise refusal(found.where, f"{size} images", other, "bring them to that size, or to 1 or 3 channels")
        if len(images) * math.prod(shape) > MAX_ARRAY_BYTES:
            raise refusal(found.where, f"{len(images):,} images", "fewer when scaled up", "split the file")
        pictures = (Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image) for image in images)
        images = np.stack([fit(picture, shape, found.where) for picture in pictures])
    return [f"{path}[{number}]" for number in range(len(images))], 255 - images if invert else images


def _like(images: Found, shape: Shape, notes: Notes) -> Found:
    """Images with their channels last, as a network takes them."""
    if images.values.shape[1:] == shape:
        return images
    if images.values.shape[1:] == (shape[2], shape[0], shape[1]):
        return channels_last(images, "channels_first", notes)
    return channels_last(images, None if images.values.shape[-1] != shape[2] else "channels_last", notes)


def open_picture(path: Path) -> Image.Image:
    """The picture of a file, upright, in 8 bits: mode L where the file can have only grey, else RGB.

    Raises:
        DataError: as `read_image`.
    """
    with refusing(path, "a PNG or JPEG image") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of odd metadata, and of a size that is refused here
        if (size := os.fstat(file.fileno()).st_size) > MAX_BYTES:
            raise refusal(path, f"{size:,} bytes", f"at most {MAX_BYTES:,} (MAX_BYTES)", "make it smaller")
        data = file.read(size)
        if not data.startswith((b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")):
            raise refusal(path, describe(data[:8]), "a PNG or JPEG image", "save the picture as one")
        if data[0] == 0xFF and (scans := data.count(b"\xff\xda")) > MAX_SCANS:
            raise refusal(path, f"{scans:,} scans", f"at most {MAX_SCANS:,} (MAX_SCANS)", "save the picture again")
        try:
            image: Image.Image = Image.open(io.BytesIO(data), formats=("PNG", "JPEG"))
        except UnidentifiedImageError:  # its message holds a memory address
            raise refusal(path, "a damaged beginning", "a PNG or JPEG image", "put the original file there") from None
        if not 0 < image.width * image.height <= MAX_PIXELS:
            expected = f"1 to {MAX_PIXELS:,} pixels (MAX_PIXELS)"
            raise refusal(path, f"{image.width} x {image.height} pixels", expected, "make it smaller")
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I"):  # 16 bits of grey, of which Pillow's own conversion keeps the low ones
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        mode = "L" if image.mode in ("1", "L", "LA") else "RGB"
        if image.has_transparency_data:
            image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image.convert("RGBA"))
        return image.convert(mode)


def fit(image: Image.Image, shape: Shape, where: object) -> NDArray[np.uint8]:
    """The pixels of a picture, stretched to a height and width, in 1 channel or 3."""
    height, width, channels = shape
    if channels not in (1, 3):
        raise refusal(where, "a grey or colour image", f"{channels} channels", "put such images into an .npz file")
    image = image.convert("L" if channels == 1 else "RGB")
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    return np.array(image).reshape(shape)
