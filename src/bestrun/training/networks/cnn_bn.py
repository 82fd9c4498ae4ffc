"""Convolutions with batch norm and dropout, for short schedules of high rates."""

from collections.abc import Sequence

import keras


def build(
    image_shape: tuple[int, int, int],
    num_classes: int,
    *,
    filter_sizes: Sequence[int],
    num_filters: Sequence[int],
    dropout: float,
) -> keras.Model:
    """Blocks of convolution, max-pool, batch norm and ReLU, then dropout and the logits. Arguments as in cnn.py."""
    images = keras.Input(image_shape, dtype="uint8", name="images")
    x = keras.layers.Rescaling(1 / 255, name="scale")(images)
    for number, (size, count) in enumerate(zip(filter_sizes, num_filters, strict=True), 1):
        x = keras.layers.Conv2D(count, size, padding="same", use_bias=False, name=f"layer_conv{number}")(x)
        x = keras.layers.MaxPooling2D(2, padding="same", name=f"pool{number}")(x)
        # So little momentum that the averages follow weights that still move fast when a short schedule ends
        x = keras.layers.BatchNormalization(momentum=0.95, name=f"norm{number}")(x)
        x = keras.layers.ReLU(name=f"relu{number}")(x)
    x = keras.layers.Flatten(name="flatten")(x)
    x = keras.layers.Dropout(dropout, name="dropout")(x)  # its seed is one of its variables, so it is in checkpoints
    logits = keras.layers.Dense(num_classes, name="layer_fc")(x)
    return keras.Model(images, logits, name="cnn_bn")
