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
        labels: int64 (n,).
        others: int64 (n,), the second label of images that were mixed (mixup, arXiv:1710.09412; CutMix,
            arXiv:1905.04899), whose loss is the weighted sum of both labels' losses; None: there is none.
        share: float32 (n,), how much of each image is of `labels`; the rest is of `others`.
        smoothing: share of each label that is spread over all classes (arXiv:1512.00567).
        class_weights: float32 (classes,), by which the loss of each label is multiplied; None: all are 1.
    """
    if others is None and not smoothing:
        found = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
        return found if class_weights is None else found * tf.gather(class_weights, labels)
    classes = logits.shape[1]
    target = _target(labels, classes, smoothing, class_weights)
    if others is not None:
        mixed = share[:, None]
        target = mixed * target + (1 - mixed) * _target(others, classes, smoothing, class_weights)
    # The logits go into one operation. With three, their gradient is the sum of three, and TensorFlow's AddN takes them
    # in an order that depends on which memory is free at that moment: the last digit of every weight was then chance.
    return -tf.reduce_sum(target * tf.nn.log_softmax(logits), axis=1)


def _target(labels: Any, classes: int, smoothing: float, class_weights: Any) -> Any:
    """By how much each class' log-probability counts: float32 (n, classes)."""
    target = tf.one_hot(labels, classes, on_value=1 - smoothing + smoothing / classes, off_value=smoothing / classes)
    return target if class_weights is None else target * tf.gather(class_weights, labels)[:, None]
