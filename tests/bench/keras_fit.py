"""Peer 2: `keras.Model.fit` over tf.data with EarlyStopping, ModelCheckpoint and MLflow's autolog, as documented.

`python -m tests.bench.keras_fit steps|whole` prints one line of JSON.
"""

import json
import os
import sys
import tempfile
import time
from pathlib import Path

import keras
import tensorflow as tf

from bestrun.data.dataset import load_dataset

from .table import computed_on

if threads := int(os.environ.get("BENCH_THREADS", "0")):
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)


def network() -> keras.Model:
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            layers.Conv2D(16, 5, padding="same", activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(36, 5, padding="same", activation="relu"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(128, activation="relu"),
            layers.Dense(10),
        ]
    )
    model.compile(
        optimizer=keras.optimizers.Adam(1e-4),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


class Clock(keras.callbacks.Callback):
    """When each epoch, which is 100 steps and an evaluation, was over."""

    def __init__(self) -> None:
        super().__init__()
        self.times: list[float] = []

    def on_epoch_end(self, epoch: int, logs: object = None) -> None:
        self.times.append(time.perf_counter())


def main(mode: str) -> dict[str, float]:
    data, clock = load_dataset("mnist"), Clock()
    images = {name: getattr(data, name).images.astype("float32") / 255 for name in ("train", "validation")}
    train = tf.data.Dataset.from_tensor_slices((images["train"], data.train.labels))
    train = train.shuffle(10_000).batch(64).repeat().prefetch(tf.data.AUTOTUNE)
    validation = tf.data.Dataset.from_tensor_slices((images["validation"], data.validation.labels)).batch(1000)
    model = network()
    if mode == "steps":
        model.fit(train, steps_per_epoch=100, epochs=4, verbose=0, callbacks=[clock])
        return {"steps": 300, "seconds": clock.times[3] - clock.times[0]}
    import mlflow

    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        mlflow.set_tracking_uri(f"sqlite:///{Path(folder) / 'mlflow.db'}")
        mlflow.tensorflow.autolog(log_datasets=False)  # it would read the repeated data set to an end that never comes
        callbacks = [
            keras.callbacks.EarlyStopping(monitor="val_accuracy", patience=10),
            keras.callbacks.ModelCheckpoint("best.keras", monitor="val_accuracy", save_best_only=True),
            clock,
        ]
        model.fit(train, steps_per_epoch=100, epochs=8, validation_data=validation, verbose=0, callbacks=callbacks)
    return {"steps": 600, "seconds": clock.times[7] - clock.times[1]}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1]) | {"device": computed_on()}))
