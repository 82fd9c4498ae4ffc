"""A night's work by (a) Hydra's basic sweeper around `keras.Model.fit` with EarlyStopping, ModelCheckpoint and MLflow's
autolog: one trial after the other, each on all processors.

`python -m tests.bench.night_keras -m data=FILE.npz learning_rate=3e-4,1e-3 'filters=[8,16],[16,36]' fc_size=64,128`
"""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import hydra
import keras
import mlflow
import numpy as np
import tensorflow as tf
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from omegaconf import MISSING


@dataclass
class Settings:
    data: str = MISSING
    log_models: bool = True  # as autolog does by itself
    learning_rate: float = 1e-3
    filters: list[int] = field(default_factory=lambda: [16, 36])
    fc_size: int = 128


class Noted(keras.callbacks.Callback):
    """When each epoch, which is 100 steps and an evaluation, was over, and its val_accuracy: a line of BENCH_NOTES."""

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        with open(os.environ["BENCH_NOTES"], "a") as file:
            print(time.time(), (logs or {})["val_accuracy"], file=file)


def network(learning_rate: float, filters: Sequence[int], fc_size: int) -> keras.Model:
    layers = keras.layers
    model = keras.Sequential([keras.Input((28, 28, 1))])
    for count in filters:
        model.add(layers.Conv2D(count, 5, padding="same", activation="relu"))
        model.add(layers.MaxPooling2D())
    model.add(layers.Flatten())
    model.add(layers.Dense(fc_size, activation="relu"))
    model.add(layers.Dense(10))
    model.compile(
        optimizer=keras.optimizers.Adam(learning_rate),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


def fit(
    data: str,
    learning_rate: float,
    filters: Sequence[int],
    fc_size: int,
    folder: str | Path,
    callbacks: Sequence[keras.callbacks.Callback] = (),
) -> float:
    """600 steps of 64 images, evaluated every 100; the best val_accuracy.

    Args:
        data: an .npz file with x_train, y_train, x_val and y_val.
        folder: for the best model.
        callbacks: further ones.
    """
    keras.utils.clear_session()
    keras.utils.set_random_seed(0)
    with np.load(data) as arrays:
        images = {part: arrays[f"x_{part}"][..., np.newaxis].astype("float32") / 255 for part in ("train", "val")}
        labels = {part: arrays[f"y_{part}"] for part in ("train", "val")}
    train = tf.data.Dataset.from_tensor_slices((images["train"], labels["train"]))
    train = train.shuffle(10_000).batch(64).repeat().prefetch(tf.data.AUTOTUNE)
    validation = tf.data.Dataset.from_tensor_slices((images["val"], labels["val"])).batch(1000)
    history = network(learning_rate, filters, fc_size).fit(
        train,
        steps_per_epoch=100,
        epochs=6,
        validation_data=validation,
        verbose=0,
        callbacks=[
            keras.callbacks.EarlyStopping(monitor="val_accuracy", patience=3),
            keras.callbacks.ModelCheckpoint(Path(folder) / "best.keras", monitor="val_accuracy", save_best_only=True),
            *callbacks,
        ],
    )
    return float(max(history.history["val_accuracy"]))


@hydra.main(version_base=None, config_name="settings")
def main(settings: Settings) -> float:
    mlflow.set_tracking_uri("sqlite:///mlflow.db")
    # Data sets would be read to an end, which the repeated one does not have
    mlflow.tensorflow.autolog(log_datasets=False, log_models=settings.log_models)
    point = {"learning_rate": settings.learning_rate, "filters": list(settings.filters), "fc_size": settings.fc_size}
    with mlflow.start_run():
        mlflow.log_params(point)
        return fit(settings.data, folder=HydraConfig.get().runtime.output_dir, callbacks=[Noted()], **point)


if __name__ == "__main__":
    ConfigStore.instance().store(name="settings", node=Settings)
    main()
