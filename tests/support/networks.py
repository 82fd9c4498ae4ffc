"""Networks of one's own with layers inside layers, each as the function that a file of training/networks/ has."""

from __future__ import annotations

import inspect
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bestrun
from support.processes import bestrun_command


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


def write(build: Callable[..., Any], functions: Path, settings: Path) -> None:
    """One of these as its two files, in a copy of training/networks/ and of conf/model/."""
    name = build.__name__
    text = inspect.getsource(build).replace(f"def {name}(", "def build(", 1)
    (functions / f"{name}.py").write_text(f"from typing import Any\n\n\n{text}")
    (settings / f"{name}.yaml").write_text(f"name: {name}\n{SETTINGS.get(name, '')}")


def command_in_lab(folder: Path, argv: tuple[str, ...]) -> None:
    """The command `bestrun` whose conf/ and training/networks/ are those of a folder."""
    import bestrun.training.networks as functions
    from bestrun.settings import compose
    from bestrun.settings import networks as settings
    from bestrun.training import model

    compose.PACKAGE = folder
    settings.NETWORKS = model.NETWORKS = folder / "networks"
    functions.__path__.append(str(folder / "networks"))
    bestrun_command(argv)


def make_lab(folder: Path, *builds: Callable[..., Any]) -> Path:
    """A folder for `command_in_lab`, with these networks beside ours."""
    here = Path(inspect.getfile(bestrun)).parent
    shutil.copytree(here.parents[1] / "conf", folder / "conf")
    shutil.copytree(here / "training" / "networks", folder / "networks")
    for build in builds:
        write(build, folder / "networks", folder / "conf" / "model")
    return folder
