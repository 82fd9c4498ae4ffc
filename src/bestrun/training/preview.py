"""What training makes of its first images, to be looked at."""

import numpy as np
import tensorflow as tf

from ..data.dataset import Split
from ..data.order import batch_indices
from ..settings.config import Config
from .augmentation import variation
from .evaluation import Array


def first_images(config: Config, train: Split, count: int) -> tuple[Array, ...]:
    """The first images of step 0, by the very draws that the step takes.

    Returns:
        `count` images, or as many as a batch has, labels, other labels and shares, see `augmentation.variation`; an
        image that is not mixed has its label twice, or a share of 1.
    """
    (indices,) = batch_indices(config.seed, 0, 1, config.training.batch_size, len(train))
    images, labels = np.asarray(train.images[indices]), train.labels[indices].astype("int64")
    vary = tf.function(variation(config), autograph=False)  # in a graph as in training; partners are of the whole batch
    varied, labels, others, shares = vary(images, labels, tf.constant(0, tf.int64))
    if others is None:
        others, shares = labels, tf.ones(len(labels))
    return tuple(each[:count].numpy() for each in (varied, labels, others, shares))
