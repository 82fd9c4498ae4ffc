"""Many steps of training in one call into TensorFlow: what an update is."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from ..data.dataset import Split
from ..settings.config import Config
from . import device
from .augmentation import augmentation
from .layers import sees_whole_batches


def compile_steps(
    model: keras.Model, optimizer: keras.optimizers.Optimizer, train: Split, config: Config
) -> Callable[..., Any]:
    """Many optimizer updates in one call into TensorFlow; going back to Python for each costs a tenth of the speed.

    Returns:
        A function of (batches: int32 indices (steps, batch size), rates: float32 (steps,), first step, loss sum,
        correct) -> (loss sum, correct, step at which the loss stopped being finite or -1). The sums go in and out, so
        that they are added up in one order, however the steps are cut into calls.
    """
    images, labels = tf.constant(train.images), tf.constant(train.labels.astype("int32"))
    weights, smoothing = model.trainable_variables, config.training.label_smoothing
    parts = 1 if sees_whole_batches(model) else device.parts()
    sizes = [len(part) for part in np.array_split(range(config.training.batch_size), parts) if len(part)]
    augment = augmentation(**config.augmentation.model_dump())

    # Without AutoGraph, which takes a second to rewrite this file's source, and turns the loop into the same while_loop
    @tf.function(  # type: ignore[untyped-decorator]
        autograph=False,
        input_signature=[
            tf.TensorSpec([None, None], tf.int32),
            tf.TensorSpec([None], tf.float32),
            tf.TensorSpec([], tf.int64),
            tf.TensorSpec([], tf.float64),
            tf.TensorSpec([], tf.int64),
        ],
    )
    def run(batches: Any, rates: Any, first_step: Any, loss_sum: Any, correct: Any) -> Any:
        count = tf.shape(batches)[0]

        def step(i: Any, loss_sum: Any, correct: Any, diverged_at: Any) -> Any:
            number = first_step + tf.cast(i, tf.int64)
            batch = augment(tf.gather(images, batches[i]), config.seed, number)
            gradients, loss = [], 0.0
            for x, y in zip(tf.split(batch, sizes), tf.split(tf.gather(labels, batches[i]), sizes), strict=True):
                with tf.GradientTape() as tape:
                    logits = model(x, training=True)
                    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(y, logits)
                    if smoothing:  # that share of each label spread over all classes: the difference it makes
                        right = tf.gather(logits, y, axis=1, batch_dims=1)
                        losses += smoothing * (right - tf.reduce_mean(logits, axis=1))
                    part = tf.reduce_sum(losses) / sum(sizes)
                found = tape.gradient(part, weights)
                gradients.append([_or_zeros(each, weight) for each, weight in zip(found, weights, strict=True)])
                loss += part
                hits = tf.equal(tf.argmax(logits, axis=1, output_type=tf.int32), y)
                correct += tf.reduce_sum(tf.cast(hits, tf.int64))
            optimizer.learning_rate = rates[i]
            optimizer.apply([tf.add_n(each) for each in zip(*gradients, strict=True)], weights)
            loss_sum += tf.cast(loss, tf.float64)
            bad = tf.logical_and(diverged_at < 0, tf.logical_not(tf.math.is_finite(loss)))
            return i + 1, loss_sum, correct, tf.where(bad, number + 1, diverged_at)

        begin = (tf.constant(0), loss_sum, correct, tf.constant(-1, tf.int64))
        return tf.while_loop(lambda i, *_: i < count, step, begin, maximum_iterations=count)[1:]

    def run_steps(*arguments: Any) -> tuple[float, int, int]:
        loss_sum, correct, diverged_at = run(*arguments)
        return float(loss_sum), int(correct), int(diverged_at)

    return run_steps


def _or_zeros(gradient: Any, weight: Any) -> Any:
    """A weight that does not lead to the logits has no gradient; its optimizer takes a zero."""
    return tf.zeros(weight.shape, weight.dtype) if gradient is None else gradient
