"""Random draws inside the graph as functions of (seed, step) and of what is drawn: no generator keeps a state.

A resumed run draws what the uninterrupted one would have drawn, and no two uses draw the same: one seed given to two of
TensorFlow's functions would have them flip, shift and darken the very same images.
"""

from typing import Any

import tensorflow as tf

MIXING = 100  # of mixing.py; per_image.py has the numbers from 0 up


def seed_of(seed: Any, step: Any, use: int) -> Any:
    """The seed of one use of randomness in a step: int64 (2,), for TensorFlow's stateless functions.

    Args:
        seed, step: integers.
        use: which use it is. Its number is part of what a run draws, so it stays as long as runs are resumed.
    """
    seeds = tf.stack([tf.cast(seed, tf.int64), tf.cast(step, tf.int64)])
    return tf.random.fold_in(seeds, tf.constant(use, tf.int64), alg="philox")


def uniform(shape: Any, seed: Any, step: Any, use: int) -> Any:
    """Numbers from 0 to just below 1: float32 (shape)."""
    return tf.random.stateless_uniform(shape, seed_of(seed, step, use), alg="philox")


def seeds_of_images(seed: Any, step: Any, use: int, count: Any) -> Any:
    """A seed for each of `count` images: int64 (count, 2)."""
    return tf.random.stateless_uniform([count, 2], seed_of(seed, step, use), None, None, tf.int64, alg="philox")


def window(middle: Any, side: Any, length: int) -> Any:
    """Which of `length` pixels lie in a window about one of them: bool (..., length).

    Args:
        middle, side: int32 (...), in pixels; what the window has beyond the first and the last pixel is cut off.
    """
    first = (middle - side // 2)[..., tf.newaxis]
    places = tf.range(length)
    return tf.logical_and(places >= first, places < first + side[..., tf.newaxis])
