"""Augmentation: training images varied, and mixed, inside the graph, as a function of (seed, step) alone.

No generator keeps a state, so a resumed run draws what the uninterrupted one would have drawn.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import tensorflow as tf

from .. import lab
from ..settings.config import Config
from .mixing import mixing
from .per_image import images


def affine(
    images: Any,
    seed: Any,
    step: Any,
    *,
    rotation_degrees: float,
    scale_share: float,
    shear_share: float,
    shift_pixels: float,
) -> Any:
    """Each image under an affine map of its own, drawn uniformly, about its middle; what comes in from outside is 0.

    Args:
        images: uint8 (n, height, width, channels).
        seed, step: integers that decide the draws.
        rotation_degrees, scale_share, shear_share, shift_pixels: the largest change, either way.

    Returns:
        uint8 images of the same shape, interpolated bilinearly.
    """
    height, width = images.shape[1:3]
    seeds = tf.stack([tf.cast(seed, tf.int64), tf.cast(step, tf.int64)])
    draws = tf.random.stateless_uniform([5, tf.shape(images)[0]], seeds, -1, 1, alg="philox")
    angle, scale, shear = math.radians(rotation_degrees) * draws[0], 1 + scale_share * draws[1], shear_share * draws[2]
    # The map goes from where a pixel is drawn to where it is taken from: (x, y) -> (a x + b y + c, d x + e y + f)
    cos, sin = tf.cos(angle) / scale, tf.sin(angle) / scale
    a, b, d, e = cos, shear * cos - sin, sin, shear * sin + cos
    middle_x, middle_y = (width - 1) / 2, (height - 1) / 2
    moved_x, moved_y = middle_x + shift_pixels * draws[3], middle_y + shift_pixels * draws[4]
    c = middle_x - a * moved_x - b * moved_y
    f = middle_y - d * moved_x - e * moved_y
    zero = tf.zeros_like(a)
    moved = tf.raw_ops.ImageProjectiveTransformV3(
        images=tf.cast(images, tf.float32),
        transforms=tf.stack([a, b, c, d, e, f, zero, zero], axis=1),
        output_shape=[height, width],
        fill_value=0.0,
        interpolation="BILINEAR",
        fill_mode="CONSTANT",
    )
    return tf.cast(tf.round(moved), tf.uint8)


def augmentation(name: str, **settings: Any) -> Callable[[Any, Any, Any], Any]:
    """A function of (images, seed, step) -> images: one of ours, else the lab's of that name."""
    return partial(AUGMENTATIONS.get(name) or lab.function("augmentation", name), **settings)


def variation(config: Config) -> Callable[[Any, Any, Any], tuple[Any, ...]]:
    """What training makes of a batch: a function of (images, labels, step) -> (images, labels, others, share), as
    `gradients.batch_gradients` takes them; others and share are None where no images are mixed.
    """
    augment, training = augmentation(**config.augmentation.model_dump()), config.training
    mix = mixing(mixup_share=training.mixup_share, mixup_alpha=training.mixup_alpha, cutmix_share=training.cutmix_share)
    return lambda images, labels, step: mix(augment(images, config.seed, step), labels, config.seed, step)


def varies(config: Config) -> bool:
    """Whether training sees other images than there are."""
    return config.augmentation.name != "none" or config.training.mixup_share + config.training.cutmix_share > 0


AUGMENTATIONS: dict[str, Callable[..., Any]] = {
    "none": lambda images, seed, step: images,
    "affine": affine,
    "images": images,
}
