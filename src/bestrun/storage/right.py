"""Which validation images a best classified rightly: a bit an image, base64, in its line of the journal.

Two runs on the same images are compared image by image, and neither network is needed for that.
"""

import base64
from typing import Any

import numpy as np

MAX_IMAGES = 20_000  # 3.3 kB a line; of more images they are computed from the checkpoint when somebody asks

Bits = np.ndarray[Any, np.dtype[np.bool_]]


def encoded(right: Bits) -> str | None:
    """Bits (images,) as the journal has them; None of more than MAX_IMAGES."""
    return base64.b64encode(np.packbits(right).tobytes()).decode() if len(right) <= MAX_IMAGES else None


def agreeing(text: str, images: int, accuracy: float | None) -> Bits | None:
    """The bits (images,) of a line; None where they are not as many as its accuracy says."""
    bits = decoded(text, images)
    if bits is None or accuracy is None or round(accuracy * images) != int(bits.sum()):
        return None
    return bits


def decoded(text: str, images: int) -> Bits | None:
    """The bits (images,) of a line; None where the text is not that of so many."""
    try:
        packed = np.frombuffer(base64.b64decode(text, validate=True), np.uint8)
    except (ValueError, TypeError):
        return None
    if len(packed) != (images + 7) // 8:
        return None
    return np.unpackbits(packed, count=images).astype(bool)
