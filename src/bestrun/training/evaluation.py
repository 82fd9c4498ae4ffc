"""Evaluation: exact figures over any split, with no remainder dropped."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from ..data.rows import Images, pieces
from . import device
from .layers import values_per_image
from .own import measure as measure_own

Array = np.ndarray[Any, Any]
Predict = Callable[[Images], Array]

MAX_VALUES_AT_ONCE = 1 << 26  # of a network's largest output: 256 MiB, and others beside it


@dataclass(frozen=True)
class Figures:
    """What an evaluation says: mean cross-entropy in nats, and how many of how many images were right."""

    loss: float
    correct: int
    total: int

    @property
    def accuracy(self) -> float:
        return self.correct / self.total


# A metric beside loss and accuracy: a function of logits (n, classes) and labels (n,); its row is in metrics.py
FURTHER: dict[str, Callable[[Array, Array], float]] = {}


def further_figures(logits: Array, labels: Array, own: Sequence[str] = ()) -> dict[str, float | None]:
    """Metric -> its value, of those that `figures` does not give; `own`: of the lab's, those of the run."""
    further = {name: float(measure(logits, labels)) for name, measure in FURTHER.items()}
    return further | measure_own(own, logits, labels)


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
            return model(images, training=False)
        count = tf.shape(images)[0]
        half = (count + 1) // 2
        halves = images[:half], images[tf.minimum(half, count - 1) :]  # one image twice: oneDNN takes no empty batch
        return tf.concat([model(images, training=False) for images in halves], axis=0)[:count]

    def predict(images: Images) -> Array:
        return np.concatenate([predict_batch(batch).numpy() for batch in pieces(images, at_once)])

    return predict


def are_probabilities(logits: Array) -> bool:
    """Whether outputs (n, classes) are those of a softmax or a sigmoid, of which a second softmax makes little."""
    is_softmax = logits.min() >= 0 and np.abs(logits.sum(axis=1) - 1).max() < 1e-3
    return bool(is_softmax or (logits.min() > 0 and logits.max() < 1))


def figures(logits: Array, labels: Array) -> Figures:
    """Loss and accuracy of logits (n, classes) against labels (n,), summed in float64."""
    scores = logits.astype(np.float64)
    highest = scores.max(axis=1, keepdims=True)
    log_sum = np.log(np.exp(scores - highest).sum(axis=1)) + highest[:, 0]
    losses = log_sum - scores[np.arange(len(labels)), labels]
    return Figures(float(losses.mean()), int((logits.argmax(axis=1) == labels).sum()), len(labels))


def confusion_matrix(logits: Array, labels: Array, num_classes: int) -> Array:
    """Counts (num_classes, num_classes): row = true class, column = predicted class."""
    matrix = np.zeros((num_classes, num_classes), np.int64)
    np.add.at(matrix, (labels, logits.argmax(axis=1)), 1)
    return matrix


def confusions(logits: Array, labels: Array) -> list[list[int]]:
    """The confusion matrix without its zeros, for the journal: [true class, predicted class, images] for each cell."""
    cells, images = np.unique(np.stack([labels, logits.argmax(axis=1)], axis=1), axis=0, return_counts=True)
    return np.column_stack([cells, images]).tolist()  # type: ignore[no-any-return]
