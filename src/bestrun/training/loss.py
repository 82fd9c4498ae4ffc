"""What a training image costs: cross-entropy, with smoothed, mixed and weighted labels."""

from typing import Any

import tensorflow as tf


def losses(
    logits: Any,
    labels: Any,
    others: Any = None,
    share: Any = None,
    *,
    smoothing: float = 0.0,
    class_weights: Any = None,
) -> Any:
    """The cross-entropy of each image, in nats: float32 (n,).

    Args:
        logits: float32 (n, classes).
        labels: int32 (n,).
        others: int32 (n,), the second label of images that were mixed (mixup, arXiv:1710.09412; CutMix,
            arXiv:1905.04899), whose loss is the weighted sum of both labels' losses; None: there is none.
        share: float32 (n,), how much of each image is of `labels`; the rest is of `others`.
        smoothing: share of each label that is spread over all classes (arXiv:1512.00567).
        class_weights: float32 (classes,), by which the loss of each label is multiplied; None: all are 1.
    """
    first = _of_one_label(logits, labels, smoothing, class_weights)
    if others is None:
        return first
    return share * first + (1 - share) * _of_one_label(logits, others, smoothing, class_weights)


def _of_one_label(logits: Any, labels: Any, smoothing: float, class_weights: Any) -> Any:
    found = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
    if smoothing:  # the difference it makes
        right = tf.gather(logits, labels, axis=1, batch_dims=1)
        found += smoothing * (right - tf.reduce_mean(logits, axis=1))
    return found if class_weights is None else found * tf.gather(class_weights, labels)
