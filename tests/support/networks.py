"""Networks of one's own with layers inside layers, each as the function that one registers."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any


def vit(image_shape: Any, num_classes: Any, *, width: Any, heads: Any, dropout: Any) -> Any:
    """A tiny vision transformer: patches of a quarter of the image's side, one block of attention."""
    import keras

    layers = keras.layers
    images = keras.Input(image_shape, dtype="uint8")
    side = max(image_shape[0] // 4, 1)
    x = layers.Conv2D(width, side, side, name="patches")(layers.Rescaling(1 / 255)(images))
    x = layers.Reshape((-1, width))(x)
    numbers = keras.ops.cumsum(keras.ops.ones_like(x[:, :, 0], dtype="int32"), axis=1) - 1
    x = x + layers.Embedding(x.shape[1], width, name="position")(numbers)
    normed = layers.LayerNormalization()(x)
    x = x + layers.MultiHeadAttention(heads, width // heads, dropout=dropout)(normed, normed)
    hidden = keras.Sequential([layers.Dense(2 * width, "gelu"), layers.Dropout(dropout), layers.Dense(width)])
    x = x + hidden(layers.LayerNormalization()(x))
    return keras.Model(images, layers.Dense(num_classes, name="logits")(layers.GlobalAveragePooling1D()(x)))


def nested(image_shape: Any, num_classes: Any) -> Any:
    """A backbone that is a model inside the model, with batch norm and dropout in it."""
    import keras

    layers = keras.layers
    inner = keras.Input(image_shape)
    x = layers.Conv2D(4, 3, 2, name="conv")(inner)
    x = layers.Dropout(0.2, name="dropout")(layers.ReLU()(layers.BatchNormalization(name="norm")(x)))
    x = keras.Sequential([layers.Conv2D(4, 3, name="conv"), layers.ReLU()], name="block")(x)
    backbone = keras.Model(inner, x, name="backbone")
    images = keras.Input(image_shape, dtype="uint8")
    x = layers.GlobalAveragePooling2D()(backbone(layers.Rescaling(1 / 255)(images)))
    return keras.Model(images, layers.Dense(num_classes, name="logits")(x))


def mobile(image_shape: Any, num_classes: Any) -> Any:
    """MobileNetV2 as Keras has it, which takes 32 x 32 pixels at least."""
    import keras

    layers = keras.layers
    images = keras.Input(image_shape, dtype="uint8")
    missing = max(0, 32 - min(image_shape[:2]))
    x = layers.ZeroPadding2D((missing + 1) // 2)(layers.Rescaling(1 / 127.5, -1)(images))
    inner = keras.applications.MobileNetV2(x.shape[1:], alpha=0.35, include_top=False, weights=None, pooling="avg")
    return keras.Model(images, layers.Dense(num_classes, name="logits")(inner(x)))


def unsteady(image_shape: Any, num_classes: Any) -> Any:
    """Noise from a generator that is no layer's variable: no checkpoint says where it is."""
    import keras
    import tensorflow as tf

    images = keras.Input(image_shape, dtype="uint8")
    x = keras.layers.Flatten()(keras.layers.Rescaling(1 / 255)(images))
    x = keras.layers.Lambda(lambda x: x + tf.random.normal(tf.shape(x), stddev=0.1), name="noise")(x)
    return keras.Model(images, keras.layers.Dense(num_classes, name="logits")(x))


SETTINGS = {"vit": "width: 8\nheads: 2\ndropout: 0.1\n"}  # of those that have some


def make_lab(folder: Path, *builds: Callable[..., Any]) -> Path:
    """A folder for `--config-dir` that has these networks."""
    (folder / "model").mkdir(parents=True)
    text = "from typing import Any\n\nimport bestrun\n"
    for build in builds:
        name = build.__name__
        text += f'\n\n@bestrun.network("{name}")\n{inspect.getsource(build)}'
        (folder / "model" / f"{name}.yaml").write_text(f"name: {name}\n{SETTINGS.get(name, '')}")
    (folder / "code.py").write_text(text)
    return folder
