"""Many steps of training in one call into TensorFlow: what an update is."""

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import keras
import tensorflow as tf

from ..data.dataset import Split
from ..data.rows import Ahead, Stored
from ..settings.config import Config
from . import device
from .augmentation import variation
from .class_weights import class_weights
from .gradients import batch_gradients
from .layers import sees_whole_batches
from .optimizers import update


class Batches(Protocol):
    """Where a step's batch comes from. What a step computes of it is the same.

    Attributes:
        specs: of the tensors that go into a call for its steps, each with the steps as its first axis.
    """

    specs: list[tf.TensorSpec]

    def calls(self, indices: Any, first_step: int) -> Iterator[tuple[Any, ...]]:
        """Those tensors, for one call after the other, of steps that see these images: int32 (steps, batch size)."""

    def take(self, tensors: Any, i: Any) -> tuple[Any, Any]:
        """Inside the graph: images (batch size, height, width, channels) and labels (batch size,) of a call's step.

        Labels are int64: TensorFlow keeps int32 in the host's memory, and a graphics card would wait for it each step.
        """


class Gathered:
    """Images in memory are in TensorFlow's, too, and a step gathers its own: one call for all steps.

    For the processor alone: TensorFlow has no gather of uint8 on graphics cards, where each step would copy all images
    back, and the card would have to hold them.
    """

    def __init__(self, train: Split) -> None:
        self._images, self._labels = tf.constant(train.images), tf.constant(train.labels.astype("int64"))
        self.specs = [tf.TensorSpec([None, None], tf.int32)]

    def calls(self, indices: Any, first_step: int) -> Iterator[tuple[Any, ...]]:
        yield (indices,)

    def take(self, tensors: Any, i: Any) -> tuple[Any, Any]:
        return tf.gather(self._images, tensors[0][i]), tf.gather(self._labels, tensors[0][i])


class Read:
    """Images are read a few steps ahead, and a call gets the batches of its steps: those that stay in a file, and all
    for a graphics card, which holds no more of them than Ahead reads at once.
    """

    def __init__(self, train: Split, config: Config) -> None:
        images = train.images
        self._ahead = Ahead(images, config.seed, config.training.batch_size)
        self._labels = train.labels.astype("int64")
        self.specs = [tf.TensorSpec([None, None, *images.shape[1:]], tf.uint8), tf.TensorSpec([None, None], tf.int64)]

    def calls(self, indices: Any, first_step: int) -> Iterator[tuple[Any, ...]]:
        done = 0
        for images in self._ahead.batches(first_step, len(indices)):
            yield images, self._labels[indices[done : done + len(images)]]
            done += len(images)

    def take(self, tensors: Any, i: Any) -> tuple[Any, Any]:
        return tensors[0][i], tensors[1][i]


def compile_steps(
    model: keras.Model, optimizer: keras.optimizers.Optimizer, train: Split, config: Config
) -> Callable[..., Any]:
    """Many optimizer updates in one call into TensorFlow; going back to Python for each costs a tenth of the speed.

    Returns:
        A function of (batches: int32 indices (steps, batch size), rates: float32 (steps,), first step, loss sum,
        correct) -> (loss sum, correct, step at which the loss stopped being finite or -1). The sums go in and out, so
        that they are added up in one order, however the steps are cut into calls.
    """
    is_read = isinstance(train.images, Stored) or bool(device.cards())
    source: Batches = Read(train, config) if is_read else Gathered(train)
    weights = class_weights(config.training.class_weights, train.labels, model.output_shape[1])
    gradients_of = batch_gradients(model, config, None if weights is None else tf.constant(weights))
    vary, memory = variation(config), settings_for_memory(model, config)

    # Without AutoGraph, which takes a second to rewrite this file's source, and turns the loop into the same while_loop
    @tf.function(  # type: ignore[untyped-decorator]
        autograph=False,
        input_signature=[
            source.specs,
            tf.TensorSpec([None], tf.float32),
            tf.TensorSpec([], tf.int64),
            tf.TensorSpec([], tf.float64),
            tf.TensorSpec([], tf.int64),
        ],
    )
    def run(tensors: Any, rates: Any, first_step: Any, loss_sum: Any, correct: Any) -> Any:
        count = tf.shape(rates)[0]

        def step(i: Any, loss_sum: Any, correct: Any, diverged_at: Any) -> Any:
            number = first_step + tf.cast(i, tf.int64)
            gradients, loss, hits = gradients_of(*vary(*source.take(tensors, i), number))
            correct += hits
            update(optimizer, gradients, model.trainable_variables, rates[i])
            loss_sum += tf.cast(loss, tf.float64)
            bad = tf.logical_and(diverged_at < 0, tf.logical_not(tf.math.is_finite(loss)))
            return i + 1, loss_sum, correct, tf.where(bad, number + 1, diverged_at)

        begin = (tf.constant(0), loss_sum, correct, tf.constant(-1, tf.int64))
        return tf.while_loop(lambda i, *_: i < count, step, begin, maximum_iterations=count)[1:]

    def run_steps(indices: Any, rates: Any, first_step: int, loss_sum: Any, correct: Any) -> tuple[float, int, int]:
        done, diverged_at = 0, -1
        for tensors in source.calls(indices, first_step):
            steps = len(tensors[0])
            part = rates[done : done + steps]
            with device.memory(*memory):
                loss_sum, correct, diverged_at = run(list(tensors), part, first_step + done, loss_sum, correct)
                done += steps
                if diverged_at >= 0:
                    break
        return float(loss_sum), int(correct), int(diverged_at)

    return run_steps


def settings_for_memory(model: keras.Model, config: Config) -> tuple[str, str]:
    """What asks for the memory that a step takes, and what to type for less, as `device.memory` takes them."""
    size, parts = config.training.batch_size, config.training.micro_batches
    given = f"training.batch_size={size}" + (f" training.micro_batches={parts}" if parts > 1 else "")
    if parts == size:
        return given, "an image at a time is the least; take smaller images, or a smaller network"
    if sees_whole_batches(model):
        return given, f"type training.batch_size={size // 2} for a new run"
    more = next(count for count in range(2 * parts, size + 1) if size % count == 0)
    return given, f"type training.micro_batches={more} for a new run, whose steps are the same, in smaller parts"
