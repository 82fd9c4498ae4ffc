"""Which images a step takes: a function of (seed, epoch), so that a resumed run takes the same."""

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray


def batch_indices(seed: int, first_step: int, steps: int, batch_size: int, num_images: int) -> NDArray[np.int32]:
    """Which training images the steps `first_step`, ... (from 0) see: int32, shape (steps, batch_size).

    The orders of epoch 0, 1, ... form one endless stream; step s takes its s-th piece of `batch_size`. Pieces cross the
    end of an epoch, so nothing is dropped, and nothing is remembered from call to call: a resumed run sees what the
    uninterrupted one would have seen.
    """
    start, stop = first_step * batch_size, (first_step + steps) * batch_size
    pieces = [np.empty(0, np.int32)]
    for epoch in range(start // num_images, math.ceil(stop / num_images)):
        epoch_start = epoch * num_images
        order = _epoch_order(seed, epoch, num_images)
        pieces.append(order[max(start - epoch_start, 0) : stop - epoch_start])
    return np.concatenate(pieces).reshape(steps, batch_size)


@lru_cache(maxsize=2)  # a batch may lie on the border of two epochs
def _epoch_order(seed: int, epoch: int, num_images: int) -> NDArray[np.int32]:
    return np.random.default_rng([seed, epoch]).permutation(num_images).astype(np.int32)
