"""Evaluation: exact figures over any split, with no remainder dropped."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from ..data.rows import Images, pieces
from ..metrics import METRICS
from . import device
from .layers import values_per_image
from .own import measure as measure_own

Array = np.ndarray[Any, Any]
Predict = Callable[[Images], Array]

MAX_VALUES_AT_ONCE = 1 << 26  # of a network's largest output: 256 MiB, and others beside it
MAX_VALUES_COPIED = 1 << 22  # of logits: 32 MiB in float64


@dataclass(frozen=True)
class Figures:
    """What an evaluation says: mean cross-entropy in nats, and how many of how many images were right."""

    loss: float
    correct: int
    total: int

    @property
    def accuracy(self) -> float:
        return self.correct / self.total


def balanced_accuracy(logits: Array, labels: Array) -> float:
    """The mean recall of the classes that are among the labels: each counts the same, however many images it has.

    As scikit-learn's `balanced_accuracy_score` (Brodersen et al., ICPR 2010, doi:10.1109/ICPR.2010.764).
    """
    images, _, right = _of_classes(logits, labels)
    return float((right[images > 0] / images[images > 0]).mean())


def f1(logits: Array, labels: Array) -> float:
    """The mean over classes of 2 precision recall / (precision + recall): the macro-averaged F1.

    As scikit-learn's `f1_score(average="macro", zero_division=0)`: over the classes that are among the labels or were
    predicted; it is 0 for one that was never predicted, and for one that was and is not among the labels (the mean of
    the classes' F1, not the F1 of mean precision and recall: Opitz and Burst, arXiv:1911.03347).
    """
    images, predicted, right = _of_classes(logits, labels)
    there = images + predicted > 0
    return float((2 * right[there] / (images + predicted)[there]).mean())


def top5(logits: Array, labels: Array) -> float:
    """The share of images whose class is among the five of the highest logits (Russakovsky et al., arXiv:1409.0575).

    As scikit-learn's `top_k_accuracy_score(k=5, labels=range(classes))`: of equal logits the later class comes first.
    """
    found, classes = 0, np.arange(logits.shape[1])
    for part, right in _in_parts(logits, labels):
        own = part[np.arange(len(right)), right][:, None]
        before = ~(part <= own)  # not `>`: what is not a number is ahead of all, and no image is right by it
        before |= (part == own) & (classes > right[:, None])
        found += int((before.sum(axis=1) < 5).sum())
    return found / len(labels)


def _of_classes(logits: Array, labels: Array) -> tuple[Array, Array, Array]:
    """Of each class (classes,): its images, those that were taken for it, those that were so rightly."""
    said, classes = logits.argmax(axis=1), logits.shape[1]
    return tuple(np.bincount(each, minlength=classes) for each in (labels, said, labels[said == labels]))  # type: ignore[return-value]


def _in_parts(logits: Array, labels: Array) -> Iterator[tuple[Array, Array]]:
    """Some images after the other, so that what is computed of them is never large."""
    rows = max(1, MAX_VALUES_COPIED // logits.shape[1])
    for first in range(0, len(labels), rows):
        yield logits[first : first + rows], labels[first : first + rows]


# A metric beside loss and accuracy: a function of logits (n, classes) and labels (n,); its row is in metrics.py
FURTHER: dict[str, Callable[[Array, Array], float]] = {
    "balanced_accuracy": balanced_accuracy,
    "f1": f1,
    "top5": top5,
}


def further_figures(logits: Array, labels: Array, own: Sequence[str] = ()) -> dict[str, float | None]:
    """Metric -> its value, of those that `figures` does not give and that tell something of so many classes.

    Args:
        own: of the lab's metrics, those of the run; one that has the name of one of ours takes its place.
    """
    names = [name for name in FURTHER if logits.shape[1] >= METRICS[name].least_classes]
    return {name: float(FURTHER[name](logits, labels)) for name in names} | measure_own(own, logits, labels)


def compile_predict(model: keras.Model, batch_size: int) -> Predict:
    """A function of uint8 images (n, height, width, channels) -> float32 logits (n, classes), in batches.

    Args:
        batch_size: images at once; fewer, where a network's outputs for them would take more than MAX_VALUES_AT_ONCE.
    """
    at_once = max(1, min(batch_size, MAX_VALUES_AT_ONCE // values_per_image(model)))

    @tf.function(  # type: ignore[untyped-decorator]
        autograph=False, input_signature=[tf.TensorSpec([None, *model.input_shape[1:]], tf.uint8)]
    )
    def predict_batch(images: Any) -> Any:
        if device.parts() == 1:
            return tf.cast(model(images, training=False), tf.float32)  # from bfloat16, as it may be
        count = tf.shape(images)[0]
        half = (count + 1) // 2
        halves = images[:half], images[tf.minimum(half, count - 1) :]  # one image twice: oneDNN takes no empty batch
        return tf.cast(tf.concat([model(images, training=False) for images in halves], axis=0)[:count], tf.float32)

    def predict(images: Images) -> Array:
        return np.concatenate([predict_batch(batch).numpy() for batch in pieces(images, at_once)])

    return predict


def are_probabilities(logits: Array) -> bool:
    """Whether outputs (n, classes) are those of a softmax or a sigmoid, of which a second softmax makes little."""
    is_softmax = logits.min() >= 0 and np.abs(logits.sum(axis=1) - 1).max() < 1e-3
    return bool(is_softmax or (logits.min() > 0 and logits.max() < 1))


def figures(logits: Array, labels: Array) -> Figures:
    """Loss and accuracy of logits (n, classes) against labels (n,), summed in float64."""
    losses = np.concatenate([_losses(*part) for part in _in_parts(logits, labels)])
    return Figures(float(losses.mean()), int((logits.argmax(axis=1) == labels).sum()), len(labels))


def _losses(logits: Array, labels: Array) -> Array:
    """The cross-entropy of each image (n,), in nats, float64."""
    scores = logits.astype(np.float64)
    highest = scores.max(axis=1, keepdims=True)
    log_sum = np.log(np.exp(scores - highest).sum(axis=1)) + highest[:, 0]
    return log_sum - scores[np.arange(len(labels)), labels]  # type: ignore[no-any-return]


def confusion_matrix(logits: Array, labels: Array, num_classes: int) -> Array:
    """Counts (num_classes, num_classes): row = true class, column = predicted class."""
    matrix = np.zeros((num_classes, num_classes), np.int64)
    np.add.at(matrix, (labels, logits.argmax(axis=1)), 1)
    return matrix


def confusions(logits: Array, labels: Array) -> list[list[int]]:
    """The confusion matrix without its zeros, for the journal: [true class, predicted class, images] for each cell."""
    cells, images = np.unique(np.stack([labels, logits.argmax(axis=1)], axis=1), axis=0, return_counts=True)
    return np.column_stack([cells, images]).tolist()  # type: ignore[no-any-return]
