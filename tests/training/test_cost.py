"""Multiply-adds an image: by hand for each kind of layer, and "at least" where a loop hides some."""

import pytest

from bestrun.training import device  # noqa: F401  (first: it makes TensorFlow's start quiet)
from bestrun.training.cost import Cost, cost
from support.networks import nested, vit

# layers behind 8 x 8 pixels of 6 channels, or behind their 64 places in a row; multiply-adds
COUNTS = {
    "dense": ("Flatten() Dense(7)", 8 * 8 * 6 * 7),
    "dense at each place": ("Dense(7)", 8 * 8 * 6 * 7),
    "convolution": ("Conv2D(4, 3, 2, 'same')", 4 * 4 * 9 * 6 * 4),
    "without padding": ("Conv2D(4, 3)", 6 * 6 * 9 * 6 * 4),
    "depthwise": ("DepthwiseConv2D(3, padding='same', depth_multiplier=2)", 8 * 8 * 9 * 6 * 2),
    "separable": ("SeparableConv2D(5, 3, padding='same')", 8 * 8 * (9 * 6 + 6 * 5)),
    "transposed": ("Conv2DTranspose(4, 3, 2, 'same')", 8 * 8 * 9 * 6 * 4),
    "a row": ("Reshape((64, 6)) Conv1D(4, 3, padding='same')", 64 * 3 * 6 * 4),
    "einsum": ("Reshape((64, 6)) EinsumDense('abc,cd->abd', (None, 9))", 64 * 6 * 9),
    "norm and pooling": ("BatchNormalization() MaxPooling2D() ReLU()", 0),
}


def network(words, shape=(8, 8, 6)):
    import keras

    images = keras.Input(shape, dtype="uint8")
    x = keras.layers.Rescaling(1 / 255)(images)
    for word in words.replace(") ", ")|").split("|"):
        x = eval(word, vars(keras.layers))(x)
    return keras.Model(images, x)


@pytest.mark.parametrize("kind", COUNTS)
def test_multiply_adds_of_a_layer(kind):
    words, count = COUNTS[kind]
    assert cost(network(words)) == Cost(count)


def test_attention_counts_its_products_too():
    import keras

    images = keras.Input((8, 8, 6), dtype="uint8")
    x = keras.layers.Reshape((64, 6))(keras.layers.Rescaling(1 / 255)(images))
    model = keras.Model(images, keras.layers.MultiHeadAttention(2, 5)(x, x))
    projections, products = 4 * 64 * 6 * 10, 2 * 2 * 64 * 64 * 5
    assert cost(model) == Cost(projections + products)


def test_layers_inside_layers_count():
    places = 16  # 8 x 8 pixels in squares of 2
    attention, hidden = 4 * places * 8 * 8 + 2 * 2 * places * places * 4, 2 * places * 8 * 16
    transformer = vit((8, 8, 1), 10, width=8, heads=2, dropout=0.1)
    assert cost(transformer) == Cost(places * 4 * 8 + attention + hidden + 8 * 10)
    assert cost(nested((9, 9, 1), 3)) == Cost(4 * 4 * 9 * 4 + 2 * 2 * 9 * 4 * 4 + 4 * 3)


def test_a_loop_is_at_least():
    found = cost(network("Reshape((64, 6)) LSTM(3)"))
    assert found.is_least
