"""Functions of one's own, from the lab's code.py: tried before anything is on disk, and how metrics are measured."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from .. import lab
from ..data.dataset import Dataset
from ..errors import BestrunError, SettingsError
from ..settings.config import Config, OwnAugmentation
from . import device
from .augmentation import augmentation
from .model import refuse_unfit as refuse_network

TRIED = 4  # images


def refuse_unfit(config: Config, data: Dataset) -> keras.Model:
    """Try a network, and what is one's own on a few images: augmentation, metrics.

    Returns:
        The network; its variables have no values.

    Raises:
        SettingsError: something of it cannot be trained with; says why.
    """
    with device.precision(config.precision):
        sketch = refuse_network(image_shape=data.image_shape, num_classes=data.num_classes, **dict(config.model))
    if isinstance(config.augmentation, OwnAugmentation):
        _try_augmentation(config, data)
    split = data.validation
    count = min(TRIED, len(split))
    measure(lab.metrics(), np.zeros((count, data.num_classes), np.float32), split.labels[:count])
    return sketch


def _try_augmentation(config: Config, data: Dataset) -> None:
    name, augment = config.augmentation.name, augmentation(**config.augmentation.model_dump())
    images = data.train.images[:TRIED]

    # As in training: inside the graph, where a step's number is a tensor
    traced = tf.function(lambda images, step: augment(images, config.seed, step), autograph=False)
    try:
        given = traced(tf.constant(images), tf.constant(0, tf.int64))
        found = f"{given.dtype.name}{list(given.shape)}"
    except BestrunError:
        raise
    except Exception as error:  # whatever one's own code does
        raise SettingsError(f"augmentation={name}: {lab.where(error)}") from error
    if found != f"uint8{list(images.shape)}":
        wanted = f"uint8{list(images.shape)}"
        raise SettingsError(f"augmentation={name}: gives {found} for {wanted}; takes the same: tf.cast(..., tf.uint8)")


def measure(names: Sequence[str], logits: Any, labels: Any) -> dict[str, float | None]:
    """The lab's metrics of logits (n, classes) and labels (n,): name -> value; None for what is not finite.

    Raises:
        SettingsError: one fails, or gives no number; says where.
    """
    found = {}
    for name in names:
        function = lab.function("metric", name)
        try:
            given = function(logits, labels)
        except Exception as error:  # whatever one's own code does
            raise SettingsError(f"metric val/{name}: {lab.where(error)}") from error
        found[name] = lab.number(name, given)
    return found
