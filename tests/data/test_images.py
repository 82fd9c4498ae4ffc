"""Promises about reading pictures."""

import io
import os
import struct
import time
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from bestrun.data.images import MAX_PIXELS, read_image, read_images
from bestrun.errors import DataError

RANDOM = np.random.default_rng(0)
GREY, COLOUR = RANDOM.integers(0, 256, (6, 5), np.uint8), RANDOM.integers(0, 256, (6, 5, 3), np.uint8)


def encoded(pixels, kind="PNG", **options) -> bytes:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(buffer := io.BytesIO(), kind, **options)
    return buffer.getvalue()


def written(path: Path, raw: bytes) -> Path:
    path.write_bytes(raw)
    return path


def with_palette(colours, pixels) -> Image.Image:
    image = Image.fromarray(np.array(pixels, np.uint8), "P")
    image.putpalette(colours)
    return image


# ---- what good pictures become


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (encoded(GREY), GREY[..., None]),
        (encoded(COLOUR), COLOUR),
        (encoded(COLOUR, transparency=(1, 2, 3)), COLOUR),
        (encoded(Image.fromarray(GREY > 127)), np.where(GREY > 127, 255, 0)[..., None]),
        (encoded(with_palette([9, 8, 7, 200, 100, 0], [[0, 1]])), [[[9, 8, 7], [200, 100, 0]]]),
        (encoded(np.array([[0, 257, 25799, 65535]], np.uint16)), [[[0], [1], [100], [255]]]),
        (encoded(np.array([[[200, 255], [200, 0], [200, 51]]], np.uint8)), [[[200], [0], [40]]]),
        (encoded(np.array([[[200, 10, 0, 0], [200, 10, 0, 51]]], np.uint8)), [[[0, 0, 0], [40, 2, 0]]]),
        (encoded(with_palette([9, 8, 7, 200, 100, 0], [[0, 1]]), transparency=1), [[[9, 8, 7], [0, 0, 0]]]),
    ],
    ids=[
        "grey",
        "colour",
        "unused transparency",
        "one bit",
        "palette",
        "16 bits",
        "grey alpha",
        "alpha",
        "clear entry",
    ],
)
def test_a_picture_becomes_its_pixels(tmp_path, raw, expected):
    pixels = read_image(written(tmp_path / "a.png", raw))
    assert pixels.dtype == np.uint8 and pixels.flags.writeable
    assert np.array_equal(pixels, expected)


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_a_jpeg_is_read(tmp_path, mode):
    raw = encoded(Image.new("RGB", (40, 30), (90, 90, 90)).convert(mode), "JPEG")
    pixels = read_image(written(tmp_path / "a.JPG", raw))
    assert pixels.shape == (30, 40, 1 if mode == "L" else 3)
    assert np.abs(pixels.astype(int) - 90).max() <= 2


@pytest.mark.parametrize("bits", [8, 16])
def test_a_picture_stands_upright_as_its_camera_says(tmp_path, bits):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held turned: the top is on the right
    pixels = GREY if bits == 8 else GREY.astype(np.uint16) * 257
    upright = read_image(written(tmp_path / "a.png", encoded(pixels, exif=exif)))
    assert np.array_equal(upright[..., 0], np.rot90(GREY, -1))


def test_a_picture_is_brought_to_the_networks_size_and_channels(tmp_path):
    half = np.zeros((60, 80, 3), np.uint8)
    half[:, 40:] = 255
    path = written(tmp_path / "a.png", encoded(half))
    for shape in ((30, 40, 1), (30, 40, 3), (90, 120, 1), (15, 90, 3)):
        pixels = read_image(path, shape)
        assert pixels.shape == shape
        assert pixels[:, : shape[1] // 2 - 3].max() < 10 and pixels[:, shape[1] // 2 + 3 :].min() > 245
    assert np.array_equal(read_image(path, (30, 40, 1), invert=True), 255 - read_image(path, (30, 40, 1)))


def test_grey_in_colour_and_back_is_the_same_grey(tmp_path):
    colour = read_image(written(tmp_path / "a.png", encoded(GREY)), (6, 5, 3))
    assert np.array_equal(colour, np.stack(3 * [GREY], axis=-1))
    assert np.array_equal(read_image(written(tmp_path / "b.png", encoded(colour)), (6, 5, 1))[..., 0], GREY)


# ---- several at once

STACK = RANDOM.integers(0, 256, (7, 6, 5), np.uint8)
OTHER = RANDOM.integers(0, 256, (2, 6, 5), np.uint8)


@pytest.mark.parametrize(
    "arrays",
    [
        {"images": STACK, "x": OTHER, "x_test": OTHER},
        {"x": STACK, "x_test": OTHER, "x_train": OTHER},
        {"x_test": STACK, "x_train": OTHER, "y_test": np.arange(7)},
        {"pictures": STACK, "labels": np.arange(7), "class_names": np.array(["a", "b"])},
        {"images": STACK / 255},
        {"images": np.asfortranarray(STACK)[..., None].astype(">i4")},
    ],
    ids=["images", "x", "x_test", "its only one", "floats", "other order"],
)
def test_the_images_of_an_npz_are_found_and_named(tmp_path, arrays):
    path = tmp_path / "some.npz"
    np.savez(path, **arrays)
    names, images = read_images(path, (6, 5, 1))
    assert names[3] == f"{path}[3]" and len(names) == 7
    assert images.dtype == np.uint8 and np.array_equal(images[..., 0], STACK)
    assert np.array_equal(read_images(path, (6, 5, 1), invert=True)[1], 255 - images)
    assert np.array_equal(read_images(path, (6, 5, 3))[1], np.repeat(images, 3, axis=3))
    assert read_images(path, (12, 9, 3))[1].shape == (7, 12, 9, 3)


def test_any_number_of_channels_is_read_from_an_npz_that_has_them(tmp_path):
    np.savez(tmp_path / "a.npz", images=np.stack(2 * [STACK], axis=-1))
    assert read_images(tmp_path / "a.npz", (6, 5, 2))[1].shape == (7, 6, 5, 2)
    with pytest.raises(DataError, match="found 6x5x2 images; expected 6x5x3"):
        read_images(tmp_path / "a.npz", (6, 5, 3))


def test_a_picture_is_one_image_under_its_own_name(tmp_path):
    path = written(tmp_path / "a.png", encoded(GREY))
    names, images = read_images(path, (6, 5, 1))
    assert names == [str(path)] and np.array_equal(images, GREY[None, ..., None])


# ---- refused


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1 << 20))) + chunk(b"IEND", b"")


def sparse(path: Path) -> None:
    path.write_bytes(png(5, 6)[:33] + struct.pack(">I", 2**31 - 1) + b"tEXt")
    os.truncate(path, 1 << 40)


def npz(**arrays) -> bytes:
    np.savez_compressed(buffer := io.BytesIO(), **arrays)
    return buffer.getvalue()


def many_strips(count: int) -> bytes:
    """A TIFF that names so many strips, all of them its beginning."""
    entries = [(256, 3, 1, 4), (257, 4, 1, count), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1)]
    entries += [(273, 4, count, 8), (278, 3, 1, 1)]
    body = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries) + bytes(4)
    return struct.pack("<2sHI", b"II", 42, 8 + 4 * count) + bytes(4 * count) + body


def large_webp(width: int, height: int) -> bytes:
    """A WebP whose canvas is larger than its picture."""
    canvas = b"VP8X" + struct.pack("<I", 10) + bytes(4) + (width - 1).to_bytes(3, "little")
    canvas += (height - 1).to_bytes(3, "little")
    chunks = canvas + encoded(COLOUR, "WEBP")[12:]
    return b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WEBP" + chunks


def large_bmp(width: int, height: int) -> bytes:
    raw = bytearray(encoded(COLOUR, "BMP"))
    raw[18:26] = struct.pack("<ii", width, height)
    return bytes(raw)


LARGE_PNG, LARGE_JPEG = encoded(np.tile(COLOUR, (20, 20, 1))), encoded(np.tile(COLOUR, (20, 20, 1)), "JPEG")
BAD = {
    "missing": ("a.png", lambda path: None, "No such file"),
    "directory": ("a.png", Path.mkdir, "Is a directory"),
    "FIFO": ("a.png", os.mkfifo, "not a regular file"),
    "symlink loop": ("a.png", lambda path: path.symlink_to(path), "symbolic links"),
    "sparse 1 TB file": ("a.png", sparse, "1,099,511,627,776 bytes; expected at most"),
    "chunk that promises 2 GB": ("a.png", png(5, 6)[:33] + b"\x7f\xff\xff\xfftEXt", "nothing readable"),
    "empty": ("a.png", b"", "an empty file"),
    "web page": ("a.jpg", b"<html>", "web page"),
    "PPM": ("a.png", encoded(GREY, "PPM"), "50 35 0a.*expected a PNG, JPEG, WebP, BMP, GIF or TIFF image"),
    "EPS, which Pillow gives to another program": ("a.tif", encoded(GREY, "EPS"), "25 21 50 53.*expected a PNG"),
    "TIFF of floats": ("a.tif", encoded(GREY.astype("f4"), "TIFF"), "of floats or of 32 bits.*expected 8 or 16 bits"),
    "TIFF of 32 bits": ("a.tif", encoded(GREY.astype("i4"), "TIFF"), "of floats or of 32 bits"),
    "TIFF of two million strips": ("a.tif", many_strips(2_000_000), "2,000,000 pieces; expected at most 1,000,000"),
    "WebP cut off": ("a.webp", encoded(COLOUR, "WEBP")[:60], "nothing readable|damaged beginning"),
    "WebP of too many pixels": ("a.webp", large_webp(16383, 16383), "16383 x 16383 pixels|nothing|damaged"),
    "BMP cut off": ("a.bmp", encoded(COLOUR, "BMP")[:80], "truncated|nothing readable"),
    "BMP of too many pixels": ("a.bmp", large_bmp(30_000, 30_000), "pixels"),
    "GIF cut off": ("a.gif", encoded(GREY, "GIF")[:30], "nothing readable|damaged beginning"),
    "GIF of too many pixels": ("a.gif", b"GIF89a" + b"\xff" * 4 + encoded(GREY, "GIF")[10:], "pixels"),
    "TIFF cut off": ("a.tif", encoded(COLOUR, "TIFF")[:40], "nothing readable|damaged beginning"),
    "PNG cut in its header": ("a.png", LARGE_PNG[:20], "damaged beginning|nothing readable"),
    "PNG cut off": ("a.png", LARGE_PNG[:200], "truncated"),
    "JPEG cut in its header": ("a.jpg", LARGE_JPEG[:20], "damaged beginning|nothing readable"),
    "JPEG cut off": ("a.jpg", LARGE_JPEG[: len(LARGE_JPEG) // 2], "truncated"),
    "PNG of too many pixels": ("a.png", png(MAX_PIXELS, 2), "50000000 x 2 pixels; expected 1 to"),
    "PNG bomb": ("a.png", png(2**31 - 1, 2**31 - 1), "nothing readable|pixels"),
    "PNG without pixels": ("a.png", png(0, 6), "nothing readable|damaged|0 x 6 pixels"),
    "JPEG of a million scans": ("a.jpg", LARGE_JPEG[:-2] + 10**6 * b"\xff\xda\0\x02", "1,000,00. scans"),
    "npz that is none": ("a.npz", LARGE_PNG, "not a zip file"),
    "npz without images": ("a.npz", npz(y=np.arange(3)), "found no images among y"),
    "npz of two stacks": ("a.npz", npz(a=STACK, b=OTHER), "found a, b among a, b; expected one array"),
    "npz of objects": ("a.npz", npz(images=np.array([{}, 1], object)), "never unpickled"),
    "npz of NaN": ("a.npz", npz(images=np.full((2, 3, 3), np.nan)), "NaN among the pixels"),
}


@pytest.mark.timeout(20)
@pytest.mark.parametrize(("name", "make", "words"), BAD.values(), ids=BAD.keys())
def test_a_bad_file_is_refused_by_name_in_little_memory(tmp_path, name, make, words):
    path = tmp_path / name
    path.write_bytes(make) if isinstance(make, bytes) else make(path)
    began = time.monotonic()
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=words) as error:
            read_images(path, (6, 5, 1))
        assert tracemalloc.get_traced_memory()[1] < 40 << 20
    finally:
        tracemalloc.stop()
    message = str(error.value)
    assert message.startswith(str(path)) and "\n" not in message and "0x" not in message and "expected" in message
    assert time.monotonic() - began < 5


def test_a_network_of_other_channels_is_told_so(tmp_path):
    with pytest.raises(DataError, match="a grey or colour image; expected 4 channels"):
        read_image(written(tmp_path / "a.png", encoded(GREY)), (6, 5, 4))


def test_many_small_images_are_not_scaled_up_beyond_memory(tmp_path):
    path = written(tmp_path / "a.npz", npz(images=np.zeros((40_000, 1, 1), np.uint8)))
    with pytest.raises(DataError, match="found 40,000 images; expected fewer"):
        read_images(path, (200, 200, 3))


EXIF = Image.Exif()
EXIF[0x0112] = 6
GOOD = [encoded(GREY), encoded(COLOUR, exif=EXIF), encoded(with_palette([1, 2, 3], [[0]]), transparency=0)]
GOOD += [encoded(COLOUR, kind) for kind in ("WEBP", "BMP", "GIF", "TIFF")]
GOOD += [encoded(GREY.astype(np.uint16)), encoded(COLOUR, "JPEG", exif=EXIF), encoded(GREY, "JPEG", progressive=True)]


@st.composite
def damaged(draw):
    """Arbitrary bytes behind a right beginning, or a good file with a few bytes changed, cut or repeated."""
    raw = bytearray(draw(st.sampled_from(GOOD)))
    if draw(st.booleans()):
        raw[draw(st.integers(0, 40)) :] = draw(st.binary(max_size=200))
    for _ in range(draw(st.integers(0, 4))):
        place = draw(st.integers(0, len(raw)))
        raw[place : place + draw(st.integers(0, 3))] = draw(st.binary(max_size=3))
    return bytes(raw[: draw(st.integers(0, len(raw)))] if draw(st.booleans()) else raw)


@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(raw=damaged())
def test_reading_raises_nothing_but_data_errors(tmp_path, raw):
    path = written(tmp_path / "a.png", raw)
    try:
        pixels = read_image(path)
    except DataError as error:
        assert str(path) in str(error) and "\n" not in str(error)
    else:
        assert pixels.dtype == np.uint8 and pixels.ndim == 3
