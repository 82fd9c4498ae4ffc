"""Mixed training images: mixup and CutMix, each a function of (seed, step), over a batch before it is split into parts.

A mixed image counts for both labels, as much for each as it has of its pixels.
"""

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from . import device
from .draws import MIXING, seed_of, uniform, window

WHICH, PARTNER, SIDES, MIDDLE, GAMMA, POWER = range(MIXING, MIXING + 6)  # what is drawn, each with a seed of its own

Mix = Callable[[Any, Any, Any, Any], tuple[Any, ...]]


def mixing(*, mixup_share: float, mixup_alpha: float, cutmix_share: float) -> Mix:
    """A function of (images, labels, seed, step) that mixes a batch.

    Args:
        mixup_share: of the images are blended with another one (arXiv:1710.09412).
        mixup_alpha: of the Beta(alpha, alpha) that says how much of each a blend has.
        cutmix_share: of the images have a rectangle of another one (arXiv:1905.04899); its area before it is cut off at
            the border is drawn uniformly.

    Returns:
        A function of images: uint8 (n, height, width, channels), labels: int64 (n,), and two integers, which gives
        (images, labels, others, share) as `gradients.batch_gradients` takes them. If both shares are 0, the images and
        labels are as they were, and there are no others.
    """
    if not (mixup_share or cutmix_share):
        return lambda images, labels, seed, step: (images, labels, None, None)

    def mix(images: Any, labels: Any, seed: Any, step: Any) -> tuple[Any, ...]:
        count = tf.shape(labels)[0]
        which, order = (
            uniform([count], seed, step, WHICH),
            tf.argsort(uniform([count], seed, step, PARTNER), stable=True),
        )
        partners, others = _in_order(images, order), tf.gather(labels, order)
        mixed, share = images, tf.ones([count])
        if mixup_share:
            chosen, blended = which < mixup_share, beta(count, mixup_alpha, seed, step)
            share = tf.where(chosen, blended, share)
            mixed = tf.where(_of_pixels(chosen), blend(images, partners, share), mixed)
        if cutmix_share:
            chosen = tf.logical_and(which >= mixup_share, which < mixup_share + cutmix_share)
            inside = tf.logical_and(rectangles(images, seed, step), chosen[:, tf.newaxis, tf.newaxis])
            mixed = tf.where(inside[..., tf.newaxis], partners, mixed)
            share = tf.where(chosen, 1 - tf.reduce_mean(tf.cast(inside, tf.float32), axis=[1, 2]), share)
        return mixed, labels, others, share

    return mix


def blend(images: Any, partners: Any, share: Any) -> Any:
    """So much of each image, float32 (n,), and the rest of its partner, to the nearest uint8."""
    share = _of_pixels(share)
    mixed = share * tf.cast(images, tf.float32) + (1 - share) * tf.cast(partners, tf.float32)
    return tf.cast(tf.round(mixed), tf.uint8)


def beta(count: Any, alpha: float, seed: Any, step: Any) -> Any:
    """Draws of Beta(alpha, alpha): float32 (count,).

    X / (X + Y) of two Gamma(alpha), from their logarithms: for a small alpha both may be too small for a float32.
    Gamma(alpha) is Gamma(alpha + 1) times U^(1 / alpha) (Marsaglia and Tsang 2000, section 6).
    """
    gammas = tf.random.stateless_gamma([2, count], seed_of(seed, step, GAMMA), alpha + 1.0)
    logarithms = tf.math.log(gammas) + tf.math.log1p(-uniform([2, count], seed, step, POWER)) / alpha
    return tf.sigmoid(logarithms[0] - logarithms[1])


def rectangles(images: Any, seed: Any, step: Any) -> Any:
    """Which pixels of each image lie in a rectangle of its shape, about any of its pixels: bool (n, height, width)."""
    count, (height, width) = tf.shape(images)[0], images.shape[1:3]
    sides = tf.sqrt(uniform([count], seed, step, SIDES))
    middles = uniform([2, count], seed, step, MIDDLE)
    rows, columns = (
        window(tf.cast(length * middle, tf.int32), tf.cast(length * sides, tf.int32), length)
        for length, middle in ((height, middles[0]), (width, middles[1]))
    )
    return tf.logical_and(rows[:, :, tf.newaxis], columns[:, tf.newaxis, :])


def _in_order(images: Any, order: Any) -> Any:
    """Images, uint8, in another order. Graphics cards gather none; float16 has all numbers from 0 to 255."""
    if not device.cards():
        return tf.gather(images, order)  # 5 ms quicker on a processor, of 32 images of 224 x 224 x 3
    return tf.cast(tf.gather(tf.cast(images, tf.float16), order), tf.uint8)


def _of_pixels(values: Any) -> Any:
    """A value for each image, as one for its pixels."""
    return values[:, tf.newaxis, tf.newaxis, tf.newaxis]
