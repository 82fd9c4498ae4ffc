"""A network of keras.applications as one layer, `backbone`, and logits on it."""

from functools import partial

import keras

from ...errors import SettingsError
from ...settings.applications import FAMILY_OF, smallest_side


def build(
    image_shape: tuple[int, int, int],
    num_classes: int,
    *,
    application: str,
    weights: str | None,
    pooling: str,
    dropout: float,
) -> keras.Model:
    """The family's own scaling of pixels, the network without its top, pooling, dropout and logits.

    Args:
        application: its name in keras.applications.
        weights: not read here, where runs are restored too, but by pretrained.py, once, for a fresh start.
        pooling: avg or max.

    Raises:
        SettingsError: it takes no such images.
    """
    height, width, channels = image_shape
    side = smallest_side(application)
    if min(height, width) < side or channels not in (1, 3):
        raise SettingsError(
            f"model.application={application}: takes images of at least {side} x {side} pixels and 1 or 3 channels; "
            f"these are {width} wide and {height} high, with {channels}"
        )
    images = keras.Input(image_shape, dtype="uint8", name="images")
    x = keras.layers.Rescaling(1.0, name="pixels")(images)  # floats
    if channels == 1:
        x = keras.layers.Concatenate(name="channels")([x, x, x])
    x = getattr(keras.applications, FAMILY_OF[application]).preprocess_input(x)
    make = partial(getattr(keras.applications, application), include_top=False, weights=None)
    if FAMILY_OF[application] == "efficientnet_v2":  # which finds its blocks by its own name, so it is named afterwards
        inner = make(input_shape=(height, width, 3))
        network = keras.Model(inner.input, inner.output, name="backbone")
    else:
        network = make(input_shape=(height, width, 3), name="backbone")
    x = network(x)
    pool = {"avg": keras.layers.GlobalAveragePooling2D, "max": keras.layers.GlobalMaxPooling2D}[pooling]
    x = keras.layers.Dropout(dropout, name="dropout")(pool(name="pooling")(x))
    return keras.Model(images, keras.layers.Dense(num_classes, name="logits")(x), name="backbone_network")
