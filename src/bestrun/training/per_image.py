"""The augmentation `images`: each training image through TensorFlow's stateless image functions, by draws of its own.

Given a batch, most of those functions draw once for all of it (tried), so they are mapped over its images, each with a
seed from (seed, step, function). One map for all functions took 5 ms for 64 images of 32 x 32 x 3, one map for each
8 ms, and the same written with operations on whole batches 7 ms; 68, 75 and 197 ms for 32 images of 224 x 224 x 3.

All of it runs on the processor, wherever the network is: a graphics card has no lists of uint8 images for the map, and
its AdjustContrastv2 refuses to run where operations have to be deterministic.
"""

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from . import device
from .draws import seeds_of_images, window

Function = Callable[..., Any]  # of (an image: uint8 (height, width, channels), its seed: int64 (2,), the setting)


def flip_horizontal(image: Any, seed: Any, share: float) -> Any:
    """Mirrored left to right, that share of the images."""
    return tf.where(tf.random.stateless_uniform([], seed) < share, tf.image.flip_left_right(image), image)


def flip_vertical(image: Any, seed: Any, share: float) -> Any:
    """Mirrored top to bottom, that share of the images."""
    return tf.where(tf.random.stateless_uniform([], seed) < share, tf.image.flip_up_down(image), image)


def crop(image: Any, seed: Any, pixels: int) -> Any:
    """So many black pixels around it, and of that a piece of the old size: a shift (arXiv:1512.03385, section 4.2)."""
    padded = tf.pad(image, [[pixels, pixels], [pixels, pixels], [0, 0]])
    return tf.image.stateless_random_crop(padded, image.shape, seed)


def brightness(image: Any, seed: Any, share: float) -> Any:
    """Lighter or darker by at most this share of the way from black to white."""
    return tf.image.stateless_random_brightness(image, share, seed)


def contrast(image: Any, seed: Any, share: float) -> Any:
    """Each pixel's distance from the mean of its channel times a factor from 1 - share to 1 + share."""
    return tf.image.stateless_random_contrast(image, 1 - share, 1 + share, seed)


def saturation(image: Any, seed: Any, share: float) -> Any:
    """The colours' saturation times a factor from 1 - share to 1 + share."""
    return tf.image.stateless_random_saturation(image, 1 - share, 1 + share, seed)


def hue(image: Any, seed: Any, share: float) -> Any:
    """All colours turned by at most this share of the colour circle, either way."""
    return tf.image.stateless_random_hue(image, share, seed)


def cutout(image: Any, seed: Any, pixels: int) -> Any:
    """A square of this side black, its middle at any pixel, so that it may stand out (arXiv:1708.04552)."""
    height, width = image.shape[:2]
    middle = tf.cast(tf.random.stateless_uniform([2], seed) * [height, width], tf.int32)
    side = tf.constant(pixels)
    inside = tf.logical_and(window(middle[0], side, height)[:, tf.newaxis], window(middle[1], side, width))
    return tf.where(inside[..., tf.newaxis], tf.zeros_like(image), image)


# Setting -> its function, in the order in which they are applied. The place in this table is part of a function's seed:
# a new one goes to the end.
FUNCTIONS: dict[str, Function] = {
    "flip_horizontal_share": flip_horizontal,
    "flip_vertical_share": flip_vertical,
    "crop_padding_pixels": crop,
    "brightness_share": brightness,
    "contrast_share": contrast,
    "saturation_share": saturation,
    "hue_share": hue,
    "cutout_pixels": cutout,
}
COLOUR = ("saturation_share", "hue_share")  # of red, green and blue: images of another number of channels have none


def images(images: Any, seed: Any, step: Any, **settings: float) -> Any:
    """Each image through all functions that are on; one whose setting is 0 is not in the graph.

    Args:
        images: uint8 (n, height, width, channels), n known or not.
        seed, step: integers that decide the draws.
        settings: of FUNCTIONS.

    Returns:
        uint8 images of the same shape.
    """
    shape = images.shape[1:]
    chosen = [
        (number, function, settings[name])
        for number, (name, function) in enumerate(FUNCTIONS.items())
        if settings[name] and (shape[-1] == 3 or name not in COLOUR)
    ]
    if not chosen:
        return images

    def vary(each: Any) -> Any:
        image, *seeds = each
        for (_, function, setting), own in zip(chosen, seeds, strict=True):
            image = function(image, own, setting)
        return tf.ensure_shape(image, shape)

    with tf.device(device.HOST):
        seeds = (seeds_of_images(seed, step, number, tf.shape(images)[0]) for number, _, _ in chosen)
        return tf.map_fn(vary, (images, *seeds), fn_output_signature=tf.TensorSpec(shape, tf.uint8))
