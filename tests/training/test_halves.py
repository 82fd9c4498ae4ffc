"""A network that has to see whole batches convolves their halves at once, and learns what it would have learned."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from bestrun.settings.compose import compose
from bestrun.training import device
from bestrun.training.gradients import batch_gradients
from bestrun.training.model import build_model

NOTHING = 1e-5  # before batch norm a bias changes nothing: its gradient is rounding


class Centred(keras.layers.Conv2D):
    """A convolution that is not of each image on its own."""

    def convolution_op(self, inputs, kernel):
        return super().convolution_op(inputs - tf.reduce_mean(inputs, axis=0), kernel)


def _with_norm(convolution, **settings):
    keras.utils.clear_session()
    keras.utils.set_random_seed(0)
    images = keras.Input((8, 8, 3), dtype="uint8")
    x = keras.layers.Rescaling(1 / 255)(images)
    x = convolution(4, 3, padding="same", name="first", **settings)(x)
    x = keras.layers.BatchNormalization(name="norm")(x)
    shared = keras.layers.Conv2D(4, 3, padding="same", name="twice")
    x = keras.layers.Flatten()(shared(shared(x)))
    return keras.Model(images, keras.layers.Dense(5)(x))


def _compiled(network, size, monkeypatch, parts):
    """What learns from one batch, and that batch."""
    monkeypatch.setattr(device, "parts", lambda: parts)
    images = np.random.default_rng(1).integers(0, 256, (size, *network.input_shape[1:]), np.uint8)
    labels = np.random.default_rng(2).integers(0, 5, size).astype("int32")
    config = compose([f"training.batch_size={size}"]).config
    compiled = tf.function(batch_gradients(network, config), autograph=False)
    return compiled, (tf.constant(images), tf.constant(labels), None, None)


def _operations(compiled, batch):
    return compiled.get_concrete_function(*batch).graph.get_operations()


def _learned(network, size, monkeypatch, parts):
    """Gradients, loss and hits of one batch, the network's state after it, and the operations that found them."""
    compiled, batch = _compiled(network, size, monkeypatch, parts)
    found = compiled(*batch)
    state = [keras.ops.convert_to_numpy(each) for each in network.non_trainable_variables]
    return found, state, _operations(compiled, batch)


def _count(operations, kind):
    return sum(operation.type == kind for operation in operations)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("size", [1, 2, 25, 24])  # 24 is what the other tests have
def test_gradients_and_batch_norm_are_those_of_the_whole_batch(size, monkeypatch):
    whole, state, operations = _learned(_with_norm(keras.layers.Conv2D), size, monkeypatch, parts=1)
    halves, state_of_halves, more = _learned(_with_norm(keras.layers.Conv2D), size, monkeypatch, parts=2)
    for one, other in zip(whole[0], halves[0], strict=True):
        assert np.linalg.norm(one - other) <= 1e-5 * np.linalg.norm(one) + NOTHING
    assert abs(whole[1] - halves[1]) <= 1e-6 * whole[1] and whole[2] == halves[2]
    for one, other in zip(state, state_of_halves, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)
    assert _count(operations, "Conv2D") == 3 and _count(more, "Conv2D") == (3 if size == 1 else 6)


def test_each_kernel_of_a_shared_layer_has_a_sum_of_two_and_the_network_has_nothing_of_it_afterwards(monkeypatch):
    """The order of two does not matter."""
    network = _with_norm(keras.layers.Conv2D)
    operations = _operations(*_compiled(network, 24, monkeypatch, parts=2))
    sums = [each for each in operations if each.type == "AddN" and each.outputs[0].shape == (3, 3, 4, 4)]
    assert [len(each.inputs) for each in sums] == [2]
    assert not [layer.name for layer in network.layers if "convolution_op" in vars(layer)]


def test_a_class_made_from_a_convolution_sees_the_whole_batch(monkeypatch):
    whole, *_ = _learned(_with_norm(Centred), 24, monkeypatch, parts=1)
    halves, _, operations = _learned(_with_norm(Centred), 24, monkeypatch, parts=2)
    assert _count(operations, "Conv2D") == 5
    assert abs(whole[1] - halves[1]) <= 1e-6 * whole[1]


@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16"])
def test_it_works_in_each_precision_and_layout(precision, monkeypatch):
    with device.precision(precision):
        networks = [_with_norm(keras.layers.Conv2D, strides=2, dilation_rate=1, activation="relu") for _ in range(2)]
    whole, *_ = _learned(networks[0], 24, monkeypatch, parts=1)
    halves, *_ = _learned(networks[1], 24, monkeypatch, parts=2)
    close = 1e-5 if precision == "float32" else 2e-2
    for one, other in zip(whole[0], halves[0], strict=True):
        assert one.dtype == other.dtype == tf.float32
        assert np.linalg.norm(one - other) <= close * np.linalg.norm(one) + NOTHING


def test_our_network_with_batch_norm_is_one_of_them(monkeypatch):
    config = compose(["model=cnn_bn", "model.num_filters=[2,2]", "model.filter_sizes=[3,3]"]).config
    network = build_model(image_shape=(8, 8, 1), num_classes=5, seed=0, **dict(config.model))
    operations = _operations(*_compiled(network, 24, monkeypatch, parts=2))
    assert _count(operations, "Conv2D") == 4
