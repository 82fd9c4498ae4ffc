"""What one image costs a network: multiply-adds, counted in the operations that TensorFlow would run for it.

Counting operations, not layers, takes in whatever a network is made of: dense layers, convolutions of every kind,
attention with its products of queries and keys, layers of one's own. One multiplication with the addition that follows
is one multiply-add, as in the papers' tables (He et al., arXiv:1512.03385); biases, activations and norms, which are
no products of two sums, are none.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf


@dataclass(frozen=True)
class Cost:
    """Multiply-adds an image; `is_least` where some of what is computed cannot be counted: a loop, a new operation."""

    multiply_adds: int
    is_least: bool = False


def cost(model: keras.Model) -> Cost:
    """What one image costs this network when nothing is learned. It is traced once more for that; nothing is run."""
    one = tf.TensorSpec([1, *model.input_shape[1:]], tf.uint8)
    traced = tf.function(lambda images: model(images, training=False), autograph=False)
    found = [_count(operation) for operation in traced.get_concrete_function(one).graph.get_operations()]
    return Cost(sum(each for each in found if each is not None), None in found)


def _count(operation: tf.Operation) -> int | None:
    """Multiply-adds of an operation; None where it has some, and how many cannot be told."""
    count = COUNTED.get(operation.type)
    if count:
        try:
            return count(operation)
        except (TypeError, ValueError):  # a side is not known before an image is seen
            return None
    is_unknown = operation.type in INSIDE or "Conv" in operation.type or "MatMul" in operation.type
    return None if is_unknown else 0


def _shape(tensor: Any) -> list[int]:
    return [int(side) for side in tensor.shape]


def _convolution(operation: tf.Operation) -> int:
    """Each output value sums over a filter's window and the channels of its group: the filters' shape says both."""
    *window, channels, filters = _shape(operation.inputs[1])
    output = _shape(operation.outputs[0])
    places = math.prod(output) // output[_channel_axis(operation, len(output))]
    return places * math.prod(window) * channels * filters


def _transposed(operation: tf.Operation) -> int:
    """A transposed convolution: each value of its input goes through the whole filter."""
    *window, channels, filters = _shape(operation.inputs[1])
    given = _shape(operation.inputs[2])
    places = math.prod(given) // given[_channel_axis(operation, len(given))]
    return places * math.prod(window) * channels * filters


def _channel_axis(operation: tf.Operation, rank: int) -> int:
    return 1 if operation.get_attr("data_format").startswith(b"NC") else rank - 1


def _product(operation: tf.Operation) -> int:
    """A product of matrices: each output value sums over the side that the two have in common."""
    name = "transpose_a" if operation.type == "MatMul" else "adj_x"
    common = _shape(operation.inputs[0])[-2 if operation.get_attr(name) else -1]
    return math.prod(_shape(operation.outputs[0])) * common


def _einsum(operation: tf.Operation) -> int:
    """Every combination of the letters, with `...` for the sides in front, is one multiply-add."""
    given, _, _ = operation.get_attr("equation").decode().partition("->")
    sides: dict[str, int] = {}
    for letters, tensor in zip(given.split(","), operation.inputs, strict=True):
        shape = _shape(tensor)
        if "..." in letters:
            before, after = letters.split("...")
            missing = len(shape) - len(before) - len(after)
            letters = before + "".join(map(str, range(missing))) + after
        for letter, side in zip(letters, shape, strict=True):
            sides[letter] = max(side, sides.get(letter, 1))
    return math.prod(sides.values()) if len(operation.inputs) > 1 else 0


COUNTED: dict[str, Callable[[Any], int]] = {
    "Conv2D": _convolution,
    "Conv3D": _convolution,
    "DepthwiseConv2dNative": _convolution,
    "Conv2DBackpropInput": _transposed,
    "Conv3DBackpropInputV2": _transposed,
    "MatMul": _product,
    "BatchMatMulV2": _product,
    "Einsum": _einsum,
}
# What holds operations of its own, run as often as it likes
INSIDE = {"While", "StatelessWhile", "If", "StatelessIf", "Case", "PartitionedCall", "StatefulPartitionedCall"}
