"""The tutorial's network: convolutions and two dense layers."""

from collections.abc import Sequence

import keras


def build(
    image_shape: tuple[int, int, int],
    num_classes: int,
    *,
    filter_sizes: Sequence[int],
    num_filters: Sequence[int],
    fc_size: int,
) -> keras.Model:
    """Blocks of convolution, max-pool and ReLU, then a hidden dense layer and the logits.

    Args:
        image_shape: height, width, channels of the uint8 images.
        filter_sizes, num_filters: side in pixels and count of each block's square filters.

    Returns:
        A model of uint8 images (n, height, width, channels) -> float32 logits (n, num_classes).
    """
    images = keras.Input(image_shape, dtype="uint8", name="images")
    x = keras.layers.Rescaling(1 / 255, name="scale")(images)
    for number, (size, count) in enumerate(zip(filter_sizes, num_filters, strict=True), 1):
        x = keras.layers.Conv2D(count, size, padding="same", name=f"layer_conv{number}")(x)
        # Same padding rounds an odd map up, so no depth makes it vanish. Pooling before ReLU is the same function as
        # after it, for a quarter of the work.
        x = keras.layers.MaxPooling2D(2, padding="same", name=f"pool{number}")(x)
        x = keras.layers.ReLU(name=f"relu{number}")(x)
    x = keras.layers.Flatten(name="flatten")(x)
    x = keras.layers.Dense(fc_size, activation="relu", name="layer_fc1")(x)
    logits = keras.layers.Dense(num_classes, name="layer_fc2")(x)
    return keras.Model(images, logits, name="cnn")
