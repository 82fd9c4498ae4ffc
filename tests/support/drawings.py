"""Pictures that say which one they are."""

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def draw(path: Path, number: int, size: tuple[int, int] = (5, 4), mode: str = "L", **options: Any) -> Path:
    """A picture all of whose pixels are `number`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, number).convert(mode).save(path, **options)
    return path


def draw_classes(folder: Path, mode: str = "L") -> Path:
    """Ten pictures of each of three classes, of 5 x 4 pixels, of the values 0 to 9, 10 to 19, 20 to 29."""
    for label, name in enumerate(["cat", "dog", "emu"]):
        for number in range(10):
            draw(folder / name / f"{number}.png", 10 * label + number, mode=mode)
    return folder


def encoded(image: Any, kind: str = "PNG", **options: Any) -> bytes:
    """What a file of a picture holds; of an array or an image."""
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(buffer := io.BytesIO(), kind, **options)
    return buffer.getvalue()


def numbers(images: np.ndarray) -> list[int]:
    """Which pictures these are."""
    return [int(image.flat[0]) for image in images]
