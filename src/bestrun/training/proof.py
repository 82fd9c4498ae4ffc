"""That a rebuilt network is the function it was when its checkpoint was saved, not just weights of the same shapes.

Beside each checkpoint stand the network's answers to eight images that nobody has to keep: they are drawn by a hash.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..storage.checkpoint import Checkpoint
from ..storage.provenance import computed_by, environment_differences

TEXT = "bestrun asks eight images, and the network answers as before"
COUNT = 8
MAX_BYTES = 1 << 26  # of all eight; larger images are fewer
TOLERANCE = 1e-3  # of the largest logit: another processor or version adds up in another order

Answers = NDArray[np.float32]


@dataclass(frozen=True)
class Function:
    """What was found of a network's function.

    Attributes:
        is_same: None where no answers were kept.
        words: the finding, as people read it.
    """

    is_same: bool | None
    words: str


def words_of(function: Function) -> str:
    """What a line says of a checkpoint whose bytes were proved: "verified" where its function was, too."""
    if function.is_same:
        return "verified"
    return f"bytes verified; {function.words}"


def images(shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Noise (8, height, width, channels), the same for ever: NumPy's random streams may change, a hash does not."""
    size = int(np.prod(shape))
    count = max(1, min(COUNT, MAX_BYTES // size))
    drawn = hashlib.shake_256(f"{TEXT} {'x'.join(map(str, shape))}".encode()).digest(count * size)
    return np.frombuffer(drawn, np.uint8).reshape(count, *shape)


def answers(model: Any, predict: Callable[[Any], Any], shape: tuple[int, int, int]) -> Answers:
    """A network's logits (8, classes) of the eight images, by its compiled `predict`; fewer at once of a large one."""
    from .layers import values_per_image
    from .model import MAX_VALUES

    asked, at_once = images(shape), max(1, min(COUNT, MAX_VALUES // values_per_image(model)))
    return np.concatenate([predict(asked[start : start + at_once]) for start in range(0, len(asked), at_once)])


def same_function(checkpoint: Checkpoint, now: Answers, threads: int | None) -> Function:
    """Whether a network with a checkpoint's weights answers as the one that was saved.

    On the processor, with the versions, flags and threads of then, answers are equal bit by bit; elsewhere they are
    within TOLERANCE of the largest logit.

    Args:
        threads: the setting with which `now` was computed.
    """
    then = checkpoint.answers
    if then is None or checkpoint.made_on is None:
        return Function(None, "its function could not be verified: the run is older than such a proof")
    elsewhere = environment_differences(checkpoint.made_on, computed_by(threads), code=False)
    if then.shape == now.shape and np.array_equal(then, now):
        return Function(True, "it answers eight test images as it did then, bit by bit")
    if then.shape != now.shape:
        return Function(False, f"it gives {now.shape[1]} answers an image, {then.shape[1]} were recorded")
    difference, largest = float(np.abs(then - now).max()), float(np.abs(then).max())
    measured = f"answers differ by {difference:.2g}, the largest is {largest:.2g}"
    if not elsewhere:
        return Function(False, f"{measured}; on the same processor, versions and threads they were to be equal")
    if difference <= TOLERANCE * largest:
        return Function(True, f"it answers eight test images as it did then but for the last digits ({elsewhere[0]})")
    return Function(False, f"{measured}; {'; '.join(elsewhere)} would explain a difference of {TOLERANCE:g} of it")
