"""Pictures that say which one they are."""

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw


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


SHAPES = ("disc", "ring", "square", "frame", "triangle", "cross", "star", "bars", "moon", "arrow")


def shapes(count: int, side: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Colour pictures of SHAPES, uint8 (count, side, side, 3), and their labels: each shape somewhere, of any size and
    colour, upright but for some degrees, before a background of two colours and three other strokes, with noise.
    """
    random, labels = np.random.default_rng(seed), np.arange(count) % len(SHAPES)
    images = np.stack([_scene(SHAPES[label], side, random) for label in labels])
    return images, labels


def _scene(shape: str, side: int, random: np.random.Generator) -> np.ndarray:
    large = 4 * side  # drawn four times as large: edges are soft
    low, high = random.integers(0, 256, (2, 3))
    ramp = np.linspace(0, 1, large)[:, None, None] * random.uniform(0.3, 1)
    scene = Image.fromarray(np.broadcast_to(low + (high - low) * ramp, (large, large, 3)).astype(np.uint8))
    draw = ImageDraw.Draw(scene)
    for _ in range(3):
        ends = [tuple(end) for end in random.integers(0, large, (2, 2)).tolist()]
        draw.line(ends, tuple(random.integers(0, 256, 3).tolist()), int(large * random.uniform(0.01, 0.05)))
    size = int(large * random.uniform(0.3, 0.6))
    mask = _shape(shape, size).rotate(random.uniform(-20, 20), expand=True)
    place = tuple(random.integers(0, large - np.array(mask.size), endpoint=True).tolist())
    scene.paste(Image.new("RGB", mask.size, tuple(random.integers(0, 256, 3).tolist())), place, mask)
    pixels = np.asarray(scene.resize((side, side), Image.Resampling.BOX)).astype(float)
    return (pixels + random.normal(0, 12, pixels.shape)).clip(0, 255).astype(np.uint8)


def _shape(shape: str, size: int) -> Image.Image:
    """White on black, as a mask."""
    mask = Image.new("L", (size, size))
    draw, last, third = ImageDraw.Draw(mask), size - 1, size // 3
    if shape in ("disc", "ring", "moon"):
        draw.ellipse((0, 0, last, last), 255)
    if shape == "ring":
        draw.ellipse((size // 4, size // 4, last - size // 4, last - size // 4), 0)
    if shape == "moon":
        draw.ellipse((third, 0, last + third, last), 0)
    if shape in ("square", "frame"):
        draw.rectangle((0, 0, last, last), 255)
    if shape == "frame":
        draw.rectangle((size // 4, size // 4, last - size // 4, last - size // 4), 0)
    if shape == "triangle":
        draw.polygon([(size / 2, 0), (last, last), (0, last)], 255)
    if shape == "cross":
        draw.rectangle((third, 0, 2 * third, last), 255)
        draw.rectangle((0, third, last, 2 * third), 255)
    if shape == "star":
        angles, radii = np.arange(10) * np.pi / 5, np.where(np.arange(10) % 2, 0.2, 0.5)
        draw.polygon(
            [(size * (0.5 + r * np.sin(a)), size * (0.5 - r * np.cos(a))) for a, r in zip(angles, radii, strict=True)],
            255,
        )
    if shape == "bars":
        for left in (0, 2 * size // 5, 4 * size // 5):
            draw.rectangle((left, 0, left + size // 5, last), 255)
    if shape == "arrow":
        draw.polygon([(size / 2, 0), (last, size / 2), (0, size / 2)], 255)
        draw.rectangle((third, size // 2, 2 * third, last), 255)
    return mask
