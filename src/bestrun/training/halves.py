"""Networks that have to see whole batches, as those with batch norm do: their convolutions, which are most of the work,
still take the two halves of a batch at once, since each image is convolved on its own.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import keras
import tensorflow as tf

from .layers import layers_inside

Convolve = Callable[[Any, Any], Any]  # of images (n, height, width, channels) and a kernel


@contextmanager
def convolutions_in_halves(network: keras.Model) -> Iterator[None]:
    """A graph that is traced in here has each convolution twice, one for each half of a batch of known size.

    Of Keras' own Conv2D alone: a class made from it may do anything with a batch.
    """
    layers = {id(layer): layer for _, layer in layers_inside(network) if type(layer) is keras.layers.Conv2D}
    for layer in layers.values():
        layer.convolution_op = _in_halves(layer.convolution_op)
    try:
        yield
    finally:
        for layer in layers.values():
            del layer.convolution_op  # the class has it


def _in_halves(convolve: Convolve) -> Convolve:
    @tf.custom_gradient  # type: ignore[untyped-decorator]
    def both(images: Any, kernel: Any) -> Any:
        half, tapes, outputs = images.shape[0] // 2, [], []
        for part in (images[:half], images[half:]):
            with tf.GradientTape() as tape:
                tape.watch([part, kernel])
                outputs.append(convolve(part, kernel))
            tapes.append((tape, part))

        def gradients(upstream: Any) -> tuple[Any, Any]:
            (tape, part), (other, rest) = tapes
            images_part, kernel_part = tape.gradient(outputs[0], [part, kernel], upstream[:half])
            images_rest, kernel_rest = other.gradient(outputs[1], [rest, kernel], upstream[half:])
            # The kernel's is one sum of two here: TensorFlow adds up more of them in an order that is chance
            return tf.concat([images_part, images_rest], axis=0), kernel_part + kernel_rest

        return tf.concat(outputs, axis=0), gradients

    def whole(images: Any, kernel: Any) -> Any:
        if images.shape[0] == 1:
            return convolve(images, kernel)
        return both(images, keras.ops.convert_to_tensor(kernel))

    return whole
