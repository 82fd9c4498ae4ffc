"""A batch in parts: their gradients add up to the whole's, and one part is in memory after the other."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from bestrun.settings.compose import compose
from bestrun.training import device
from bestrun.training.gradients import batch_gradients
from bestrun.training.model import build_model

RANDOM = np.random.default_rng(3)
IMAGES = RANDOM.integers(0, 256, (24, 8, 8, 1), np.uint8)
LABELS, OTHERS = RANDOM.integers(0, 5, (2, 24)).astype("int32")
SHARE = RANDOM.uniform(0, 1, 24).astype("float32")
WEIGHTS = np.array([0.5, 1, 2, 0, 3], "float32")
NETWORK = ["model.num_filters=[4]", "model.filter_sizes=[3]", "model.fc_size=8"]


def _config(*words):
    return compose(["training.batch_size=24", *NETWORK, *words]).config


def _found(config, mixed=(None, None), weights=None):
    """Gradients, loss and hits of one batch, computed as a step computes them."""
    network = build_model(image_shape=(8, 8, 1), num_classes=5, seed=0, **dict(config.model))
    gradients_of = batch_gradients(network, config, weights)
    return tf.function(gradients_of, autograph=False)(tf.constant(IMAGES), tf.constant(LABELS), *mixed)


@pytest.mark.parametrize("mixed", [(None, None), (tf.constant(OTHERS), tf.constant(SHARE))])
def test_the_gradient_of_parts_is_that_of_the_whole(mixed):
    words = ["training.label_smoothing=0.1"]
    whole = _found(_config(*words), mixed, tf.constant(WEIGHTS))
    for parts in (3, 24):
        found = _found(_config(*words, f"training.micro_batches={parts}"), mixed, tf.constant(WEIGHTS))
        for one, other in zip(whole[0], found[0], strict=True):
            assert np.linalg.norm(one - other) <= 1e-6 * np.linalg.norm(one), parts
        assert abs(whole[1] - found[1]) <= 1e-6 * whole[1] and whole[2] == found[2], parts


def test_a_part_is_computed_when_the_one_before_it_is_done(monkeypatch):
    """Else all of their layers' outputs are in memory at once, and nothing is won."""
    monkeypatch.setattr(device, "parts", lambda: 1)
    order = []

    @tf.custom_gradient
    def told(x):
        (y,) = tf.py_function(lambda x: (order.append("forward"), [x])[1], [x], [x.dtype])
        y.set_shape(x.shape)

        def back(dy):
            (dx,) = tf.py_function(lambda dy: (order.append("back"), [dy])[1], [dy], [dy.dtype])
            dx.set_shape(dy.shape)
            return dx

        return y, back

    keras.utils.clear_session()
    images = keras.Input((8, 8, 1), dtype="uint8")
    x = keras.layers.Dense(4)(keras.layers.Flatten()(keras.layers.Rescaling(1 / 255)(images)))
    network = keras.Model(images, keras.layers.Dense(5)(keras.layers.Lambda(told, output_shape=(4,))(x)))
    gradients_of = batch_gradients(network, _config("training.micro_batches=4"))
    compiled = tf.function(gradients_of, autograph=False)
    compiled(tf.constant(IMAGES), tf.constant(LABELS), None, None)
    assert order == ["forward", "back"] * 4
    graph = compiled.get_concrete_function(tf.constant(IMAGES), tf.constant(LABELS), None, None).graph
    loops = [each for each in graph.get_operations() if each.type in ("While", "StatelessWhile")]
    assert [each.get_attr("parallel_iterations") for each in loops] == [1]


@pytest.mark.parametrize("mixed", [(None, None), (tf.constant(OTHERS), tf.constant(SHARE))])
@pytest.mark.parametrize("words", [[], ["training.label_smoothing=0.1"]])
def test_no_gradient_is_a_sum_of_three_whose_order_is_chance(mixed, words, monkeypatch):
    """TensorFlow's AddN begins with the tensor whose memory is free at that moment; of two the order does not matter.
    Smoothing by three operations on the logits gave other last digits in three of ten runs.
    """
    monkeypatch.setattr(device, "parts", lambda: 2)
    config = _config(*words)
    network = build_model(image_shape=(8, 8, 1), num_classes=5, seed=0, **dict(config.model))
    gradients_of = tf.function(batch_gradients(network, config, tf.constant(WEIGHTS)), autograph=False)
    graph = gradients_of.get_concrete_function(tf.constant(IMAGES), tf.constant(LABELS), *mixed).graph
    sums = [len(operation.inputs) for operation in graph.get_operations() if operation.type == "AddN"]
    assert sums and max(sums) <= 2


def test_a_mixed_image_counts_as_its_heavier_label():
    config = _config()
    network = build_model(image_shape=(8, 8, 1), num_classes=5, seed=0, **dict(config.model))
    answers = tf.argmax(network(IMAGES), axis=1, output_type=tf.int32)
    share = tf.constant([0.9] * 16 + [0.2] * 8, tf.float32)
    labels, others = answers, (answers + 1) % 5
    assert batch_gradients(network, config)(tf.constant(IMAGES), labels, others, share)[2] == 16


@pytest.mark.parametrize(
    ("parts", "words"),
    [(5, "type one of 4 or 6"), (48, "type one of 24"), (7, "type one of 6 or 8")],
)
def test_parts_that_do_not_fit_the_batch_are_refused(parts, words):
    from bestrun.errors import SettingsError

    with pytest.raises(SettingsError, match=f"does not divide training.batch_size=24; .*{words}$"):
        _config(f"training.micro_batches={parts}")


def test_a_network_that_has_to_see_whole_batches_is_not_cut_before_anything_is_on_disk(home, small_mnist_npz):
    from bestrun.errors import SettingsError
    from bestrun.run.start import start
    from bestrun.views.screen import Screen

    words = ["data=npz", f"data.path={small_mnist_npz}", "model=cnn_bn", "training.micro_batches=2"]
    with pytest.raises(SettingsError, match=r"training\.micro_batches=2: layer norm1 .* training\.batch_size$"):
        start(compose(words), home=home / "mlruns", screen=Screen(quiet=True))
    assert not list((home / "mlruns").glob("runs/*"))
