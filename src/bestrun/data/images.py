"""Pictures, read with suspicion, as arrays.py reads arrays: bounded memory and time, only DataError."""

import io
import logging
import math
import os
import re
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from ..errors import DataError
from .arrays import MAX_ARRAY_BYTES, Found, describe, name_of, read_npz_images, refusal, refusing
from .pixels import Notes, as_uint8, channels_last

log = logging.getLogger("bestrun")
# Of odd metadata, and of sizes that are refused here. Once, since threads share what catch_warnings changes
warnings.filterwarnings("ignore", module=r"PIL\.")

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")  # in any case
FORMATS = {  # Pillow's name -> how such a file begins, which counts, whatever the ending says
    "PNG": rb"\x89PNG\r\n\x1a\n",
    "JPEG": rb"\xff\xd8\xff",
    "WEBP": rb"RIFF....WEBP",
    "BMP": rb"BM",
    "GIF": rb"GIF8[79]a",
    "TIFF": rb"II\x2a\0|MM\0\x2a|II\x2b\0|MM\0\x2b",
}
EXPECTED = "a PNG, JPEG, WebP, BMP, GIF or TIFF image"
GREY = ("1", "L", "LA", "La", "I;16", "I;16L", "I;16B", "I;16N")  # Pillow's modes without colour
MAX_BYTES = 100 << 20  # of a file
MAX_PIXELS = 50_000_000  # of a picture: 200 MB for each copy that its conversion needs
MAX_SCANS = 1000  # of a JPEG. Each goes over all pixels, however few bytes it has; cameras write about 10
MAX_PIECES = 1_000_000  # of a TIFF: strips or tiles
TAIL, LATE = 1 << 16, (b"eXIf", b"iTXt", b"zTXt", b"tEXt")  # chunks of a PNG that may say how it was held

Shape = tuple[int, int, int]  # height, width, channels


def read_image(
    path: Path, shape: Shape | None = None, *, invert: bool = False, way: str = "stretch"
) -> NDArray[np.uint8]:
    """One picture as uint8 (height, width, channels), upright, transparent parts on black.

    Args:
        shape: scaled to this height and width, to grey (1 channel) or colour (3); None leaves it as it is.
        invert: dark becomes light: for a network that learned white on black.
        way: how it is brought to that shape, see `fit`.

    Raises:
        DataError: it is no picture that can be read, or too large.
    """
    image = open_picture(path)
    pixels = fit(image, shape or (image.height, image.width, len(image.getbands())), path, way)
    return 255 - pixels if invert else pixels


def read_images(
    path: Path, shape: Shape, *, invert: bool = False, way: str = "stretch"
) -> tuple[list[str], NDArray[np.uint8]]:
    """The names and pixels, uint8 (n, height, width, channels), of one picture, or of all images of an .npz file.

    Raises:
        DataError: as `read_image`.
    """
    if path.suffix.lower() != ".npz":
        return [str(path)], read_image(path, shape, invert=invert, way=way)[np.newaxis]
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
        images = np.stack([fit(picture, shape, found.where, way) for picture in pictures])
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
    return decode(read_bytes(path), path)


def read_bytes(path: Path) -> bytes:
    """What a picture's file holds.

    Raises:
        DataError: it cannot be read, or is larger than MAX_BYTES.
    """
    with refusing(path, EXPECTED) as file:
        _refuse_large(size := os.fstat(file.fileno()).st_size, path)
        return file.read(size)


def header(data: bytes, where: object) -> Shape:
    """Height, width (upright) and channels (1 where it can have only grey, else 3) of a picture that is not decoded.

    Raises:
        DataError: as `decode`, as far as that is seen without decoding.
    """
    with _checked(data, where) as image:
        if image.format == "PNG" and "exif" not in image.info and any(mark in data[-TAIL:] for mark in LATE):
            image.load()  # only so what stands behind the pixels is known
        # Of a TIFF, Pillow has turned the size already
        turned = image.format != "TIFF" and image.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
        width, height = image.size[::-1] if turned else image.size
        return height, width, 1 if image.mode in GREY else 3


def decode(data: bytes, where: object) -> Image.Image:
    """The picture, the first if there are several, upright, in 8 bits: mode L where it can have only grey, else RGB.

    16 bits keep their upper 8; transparent parts stand on black; palettes, CMYK (by Pillow's formula, without a colour
    profile), YCbCr and LAB become RGB.

    Args:
        where: what messages call it.

    Raises:
        DataError: damaged, too large, of floats or 32 bits, or of a format that is none of FORMATS.
    """
    with _checked(data, where) as image:
        upright = ImageOps.exif_transpose(image)
        if upright.mode.startswith("I;16"):  # of which Pillow's own conversion keeps the low bits
            upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
        mode = "L" if upright.mode in GREY else "RGB"
        if upright.has_transparency_data:
            upright = Image.alpha_composite(Image.new("RGBA", upright.size, "black"), upright.convert("RGBA"))
        return upright.convert(mode)


@contextmanager
def _checked(data: bytes, where: object) -> Iterator[Image.Image]:
    """A picture of which only the header was read. Whatever Pillow raises, here and until it is closed, is a DataError:
    it promises no closed list.
    """
    _refuse_large(len(data), where)
    name = next((name for name, beginnings in FORMATS.items() if re.match(beginnings, data, re.DOTALL)), None)
    if name is None:
        raise refusal(where, describe(data[:8]), EXPECTED, "save the picture as one")
    if name == "JPEG" and (scans := data.count(b"\xff\xda")) > MAX_SCANS:
        raise refusal(where, f"{scans:,} scans", f"at most {MAX_SCANS:,} (MAX_SCANS)", "save the picture again")
    if name == "TIFF":
        _refuse_many_pieces(data, where)
    try:
        image: Image.Image = Image.open(io.BytesIO(data), formats=(name,))
        if not 0 < image.width * image.height <= MAX_PIXELS:
            expected = f"1 to {MAX_PIXELS:,} pixels (MAX_PIXELS)"
            raise refusal(where, f"{image.width} x {image.height} pixels", expected, "make it smaller")
        if image.mode in ("I", "F"):
            found = "a picture of floats or of 32 bits, which do not say what is white"
            raise refusal(where, found, "8 or 16 bits a pixel", "scale it to 8 bits, or put such into an .npz file")
        yield image
    except DataError:
        raise
    except UnidentifiedImageError:  # its message holds a memory address
        raise refusal(where, "a damaged beginning", EXPECTED, "put the original file there") from None
    except Exception as error:
        found = f"nothing readable ({str(error) or type(error).__name__})"
        raise refusal(where, found, EXPECTED, "put the original file there") from error


def _refuse_large(size: int, where: object) -> None:
    if size > MAX_BYTES:
        raise refusal(where, f"{size:,} bytes", f"at most {MAX_BYTES:,} (MAX_BYTES)", "make it smaller")


def _refuse_many_pieces(data: bytes, where: object) -> None:
    """Of a TIFF: Pillow makes an object of each of its strips and tiles before any is looked at."""
    order = "<" if data[:2] == b"II" else ">"
    try:
        (first,) = struct.unpack_from(f"{order}I", data, 4)
        (count,) = struct.unpack_from(f"{order}H", data, first)
        entries = [struct.unpack_from(f"{order}HHI", data, first + 2 + 12 * number) for number in range(count)]
    except struct.error:
        return  # cut, or a BigTIFF: of the latter nothing is counted, and it is one of a hundred million pixels at most
    if (pieces := max((length for tag, _, length in entries if tag in (273, 324)), default=0)) > MAX_PIECES:
        raise refusal(where, f"{pieces:,} pieces", f"at most {MAX_PIECES:,} (MAX_PIECES)", "save the picture again")


def fit(image: Image.Image, shape: Shape, where: object, way: str = "stretch") -> NDArray[np.uint8]:
    """The pixels of a picture, brought to a height and width, in 1 channel or 3.

    Args:
        way: "stretch" it, "crop" what reaches beyond the shape when it covers it, or "pad" with black where it does not
            reach when it lies inside.
    """
    height, width, channels = shape
    if channels not in (1, 3):
        raise refusal(where, "a grey or colour image", f"{channels} channels", "put such images into an .npz file")
    image = image.convert("L" if channels == 1 else "RGB")
    if image.size == (width, height):
        return np.array(image).reshape(shape)
    if way == "crop":
        image = ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)
    elif way == "pad":
        scale = min(width / image.width, height / image.height)
        inner = max(1, round(image.width * scale)), max(1, round(image.height * scale))
        ground = Image.new(image.mode, (width, height))
        ground.paste(image.resize(inner, Image.Resampling.LANCZOS), ((width - inner[0]) // 2, (height - inner[1]) // 2))
        image = ground
    else:
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    return np.array(image).reshape(shape)
