"""What pictures are lettered with, and what they call a class: they never have boxes in the place of letters."""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from PIL import ImageFont

from ..class_names import labels

NO_CHARACTER = "\U0010fffe"  # of which every font draws what it draws of a character that it lacks


@lru_cache
def font() -> Any:
    """Pillow's own, which has hardly more than ASCII."""
    return ImageFont.load_default(14)


@lru_cache
def wider_font() -> Any:
    """DejaVu Sans, which comes with Matplotlib: Latin, Greek, Cyrillic, Hebrew, Arabic, signs."""
    place = find_spec("matplotlib")  # not imported: that takes longer than the picture
    try:
        path = Path(place.origin).parent / "mpl-data/fonts/ttf/DejaVuSans.ttf" if place and place.origin else ""
        return ImageFont.truetype(path, 13)
    except OSError:
        return font()


def font_for(texts: Iterable[str]) -> Any:
    """One font for texts that stand together."""
    return font() if all(_has(font(), one) for text in texts for one in text) else wider_font()


def class_labels(names: Sequence[str] | None, count: int, columns: int = 20) -> list[str]:
    """As `labels`; a class whose name cannot be written here, in Chinese for example, is its number."""
    return [
        text if all(_has(wider_font(), one) for one in text) else str(number)
        for number, text in enumerate(labels(names, count, columns))
    ]


@lru_cache(maxsize=10_000)
def _has(font: Any, character: str) -> bool:
    return " " <= character <= "~" or bytes(font.getmask(character)) != bytes(font.getmask(NO_CHARACTER))
