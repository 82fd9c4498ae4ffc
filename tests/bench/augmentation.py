"""Photographs varied while training: our augmentation=images against the same in tf.data's map and Keras' fit.

`python -m tests.bench.augmentation ours|plain|keras SIDE` prints one line of JSON; `make bench ARGS=augmentation` runs
them in turn. One network (BENCH_MODEL: cnn or cnn_bn), drawn images, the functions of conf/augmentation/images.yaml.
"""

import json
import os
import sys
import time
from functools import partial
from typing import Any

import numpy as np

from .images import timed_fit
from .table import computed_on, in_turn, row, section

SIZES = {32: (64, 200, 20), 224: (32, 12, 3)}  # side of an image: images of a batch, steps under the clock, before it
IMAGES = 640
NETWORKS = {
    "cnn": ["model=cnn", "model.num_filters=[16,32]", "model.filter_sizes=[5,5]"],
    "cnn_bn": ["model=cnn_bn", "model.num_filters=[16,32,32]", "model.filter_sizes=[3,3,3]"],
}
NETWORK = NETWORKS[os.environ.get("BENCH_MODEL", "cnn")]


def drawn(side: int) -> tuple[Any, Any]:
    from tests.support.drawings import shapes

    return shapes(IMAGES, side, 0)


def ours(side: int, *words: str) -> dict[str, float]:
    from bestrun.data.dataset import Split
    from bestrun.data.order import batch_indices
    from bestrun.training import device
    from bestrun.training.optimizers import build_optimizer
    from bestrun.training.steps import compile_steps

    device.prepare(None)
    config, model = network(side, *words)
    batch, count, warm = SIZES[side]
    images, labels = drawn(side)
    optimizer = build_optimizer(model=model, **dict(config.optimizer))
    run_steps = compile_steps(model, optimizer, Split(images, labels.astype(np.int64)), config)

    def steps(first: int, count: int) -> float:
        rates = np.full(count, 1e-3, "float32")
        began = time.perf_counter()
        run_steps(batch_indices(0, first, count, batch, len(images)), rates, first, 0.0, 0)
        return time.perf_counter() - began

    steps(0, warm)
    return {"steps": count, "seconds": steps(warm, count)}


def network(side: int, *words: str) -> tuple[Any, Any]:
    """The settings, and the network of ours that both train."""
    from bestrun.settings.compose import compose
    from bestrun.training.model import build_model

    config = compose([*NETWORK, f"training.batch_size={SIZES[side][0]}", *words]).config
    return config, build_model(image_shape=(side, side, 3), num_classes=10, seed=0, **dict(config.model))


def keras_fit(side: int) -> dict[str, float]:
    """As TensorFlow's guide to data augmentation has it: each image in the map, many at once, a few batches ahead."""
    import tensorflow as tf

    threads = int(os.environ.get("BENCH_THREADS", "0"))  # not determinism, which would make the map a sequence
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)
    config, model = network(side, "augmentation=images")
    batch, count, warm = SIZES[side]
    ranges, pixels = config.augmentation, config.augmentation.crop_padding_pixels

    def vary(image: Any, label: Any) -> tuple[Any, Any]:
        image = tf.image.random_flip_left_right(image)
        image = tf.image.random_crop(tf.pad(image, [[pixels, pixels], [pixels, pixels], [0, 0]]), [side, side, 3])
        image = tf.image.random_brightness(image, ranges.brightness_share)
        image = tf.image.random_contrast(image, 1 - ranges.contrast_share, 1 + ranges.contrast_share)
        image = tf.image.random_saturation(image, 1 - ranges.saturation_share, 1 + ranges.saturation_share)
        return tf.image.random_hue(image, ranges.hue_share), label

    data = tf.data.Dataset.from_tensor_slices(drawn(side)).shuffle(IMAGES).repeat()
    data = data.map(vary, num_parallel_calls=tf.data.AUTOTUNE).batch(batch).prefetch(tf.data.AUTOTUNE)
    return timed_fit(model, data, warm, count)


def varied() -> list[dict[str, Any]]:
    from .speed import rate, ratios

    rows = []
    for side, (batch, _, _) in SIZES.items():
        section(f"augmentation=images, batches of {batch} images of {side}x{side}x3")
        found = in_turn({name: partial(rate, "augmentation", name, str(side)) for name in ("ours", "plain", "keras")})
        what = f"{side} px: steps a second"
        rows += [
            row(f"{what}, augmentation=images", found["ours"], "1/s"),
            row(f"{what}, augmentation=none", found["plain"], "1/s"),
            row(f"{what}, Keras' fit, the same in tf.data's map", found["keras"], "1/s"),
            row(f"{side} px: ours against Keras'", ratios(found["ours"], found["keras"]), "x"),
        ]
    return rows


if __name__ == "__main__":
    program, side = sys.argv[1], int(sys.argv[2])
    measured = {
        "ours": lambda: ours(side, "augmentation=images"),
        "plain": lambda: ours(side),
        "keras": lambda: keras_fit(side),
    }
    print(json.dumps(measured[program]() | {"device": computed_on()}))
