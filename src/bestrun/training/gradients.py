"""What one batch says: its gradients, its loss, how many of its images are right. As a whole, or in parts."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from ..settings.config import Config
from . import device
from .halves import convolutions_in_halves
from .layers import sees_whole_batches
from .loss import losses


def batch_gradients(model: keras.Model, config: Config, class_weights: Any = None) -> Callable[..., Any]:
    """A batch's gradients, for inside the graph.

    With `training.micro_batches` above 1 its parts are computed one after the other, so that only one part's outputs
    of the layers are in memory. Each part is computed in as many pieces at once as the processor likes.

    Args:
        class_weights: float32 (classes,), see `losses`.

    Returns:
        A function of (images (batch size, height, width, channels), labels int64 (batch size,), others, share) ->
        (the gradient of the mean loss for each trainable weight, that loss, correctly classified images). A mixed
        image counts as its heavier label.
    """
    weights, training = model.trainable_variables, config.training
    size = training.batch_size // training.micro_batches
    whole = sees_whole_batches(model)
    pieces = 1 if whole else device.parts()
    sizes = [len(piece) for piece in np.array_split(range(size), pieces) if len(piece)]

    def piece_of(images: Any, labels: Any, others: Any, share: Any) -> tuple[list[Any], Any, Any]:
        in_halves = convolutions_in_halves(model) if whole and device.parts() > 1 else nullcontext()
        with tf.GradientTape() as tape, in_halves:
            logits = tf.cast(model(images, training=True), tf.float32)  # from bfloat16, as it may be
            found = losses(
                logits, labels, others, share, smoothing=training.label_smoothing, class_weights=class_weights
            )
            loss = tf.reduce_sum(found) / training.batch_size
        slopes = tape.gradient(loss, weights)
        heavier = labels if others is None else tf.where(share >= 0.5, labels, others)
        hits = tf.equal(tf.argmax(logits, axis=1), tf.cast(heavier, tf.int64))
        gradients = [_or_zeros(each, weight) for each, weight in zip(slopes, weights, strict=True)]
        return gradients, loss, tf.reduce_sum(tf.cast(hits, tf.int64))

    def at_once(*batch: Any) -> tuple[list[Any], Any, Any]:
        if len(sizes) == 1:  # no split: graphics cards have none of uint8
            for each in batch:
                if each is not None:
                    each.set_shape([size, *each.shape[1:]])
            return piece_of(*batch)
        split = [[None] * len(sizes) if each is None else tf.split(each, sizes) for each in batch]
        found = [piece_of(*piece) for piece in zip(*split, strict=True)]
        gradients = [tf.add_n(each) for each in zip(*(piece[0] for piece in found), strict=True)]
        return gradients, sum(piece[1] for piece in found), sum(piece[2] for piece in found)

    def in_turn(*batch: Any) -> tuple[list[Any], Any, Any]:
        def part(i: Any, loss: Any, correct: Any, *sums: Any) -> tuple[Any, ...]:
            of_part = [None if each is None else each[i * size : (i + 1) * size] for each in batch]
            gradients, more, hits = at_once(*of_part)
            return (i + 1, loss + more, correct + hits, *(a + b for a, b in zip(sums, gradients, strict=True)))

        begin = (tf.constant(0), tf.constant(0.0), tf.constant(0, tf.int64))
        zeros = (tf.zeros(weight.shape, weight.dtype) for weight in weights)
        # Not ten parts at a time, as TensorFlow likes: what they hold in memory is what this is about
        _, loss, correct, *gradients = tf.while_loop(
            lambda i, *_: i < training.micro_batches, part, (*begin, *zeros), parallel_iterations=1
        )
        return gradients, loss, correct

    return at_once if training.micro_batches == 1 else in_turn


def _or_zeros(gradient: Any, weight: Any) -> Any:
    """A weight that does not lead to the logits has no gradient; its optimizer takes a zero."""
    return tf.zeros(weight.shape, weight.dtype) if gradient is None else gradient
