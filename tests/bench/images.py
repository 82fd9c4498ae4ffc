"""Pictures larger than memory: ours from the cache against Keras' image_dataset_from_directory and fit, one network.

`python -m tests.bench.images ours FILE.npz | keras FOLDER` prints one line of JSON; `make bench ARGS=images` runs both
in turn. BENCH_IMAGES is how many pictures of 224x224x3 are made; 20,000 are 3 GB decoded.
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from .table import computed_on, home_in, in_turn, row, section

SIDE, BATCH, CLASSES = 224, 32, 4
WARM, STEPS = 5, 40  # steps of training, before the clock and under it


def residual(keras: Any) -> Any:
    """A small residual network of uint8 images -> logits."""
    layers = keras.layers
    pictures = keras.Input((SIDE, SIDE, 3), dtype="uint8")
    x = layers.Rescaling(1 / 255)(pictures)
    x = layers.Conv2D(16, 7, 4, padding="same", activation="relu")(x)
    for width in (16, 32, 64):
        short = layers.Conv2D(width, 1, 2)(x)
        x = layers.Conv2D(width, 3, 2, padding="same", activation="relu")(x)
        x = layers.ReLU()(layers.Add()([short, layers.Conv2D(width, 3, padding="same")(x)]))
    return keras.Model(pictures, layers.Dense(CLASSES)(layers.GlobalAveragePooling2D()(x)))


def ours(path: str) -> dict[str, float]:
    """The home's cache has these images after the first time."""
    from bestrun.data.dataset import load_dataset
    from bestrun.data.order import batch_indices
    from bestrun.data.rows import Ahead
    from bestrun.settings.compose import compose
    from bestrun.training import device
    from bestrun.training.optimizers import build_optimizer
    from bestrun.training.steps import compile_steps

    waits: list[float] = []
    batches = Ahead.batches

    def timed_batches(*given: Any) -> Iterator[Any]:
        """The same, and how long each was waited for."""
        found = batches(*given)
        while True:
            began = time.perf_counter()
            piece = next(found, None)
            waits.append(time.perf_counter() - began)
            if piece is None:
                return
            yield piece

    Ahead.batches = timed_batches  # type: ignore[method-assign]
    began = time.perf_counter()
    data = load_dataset("npz", path=path, validation_size=0.1, in_memory=False)
    loaded = time.perf_counter() - began
    device.prepare(None)
    import keras

    config = compose([f"training.batch_size={BATCH}"]).config
    model = residual(keras)
    run_steps = compile_steps(model, build_optimizer(model=model, **dict(config.optimizer)), data.train, config)

    def steps(first: int, count: int) -> float:
        rates = np.full(count, 1e-3, "float32")
        began = time.perf_counter()
        run_steps(batch_indices(0, first, count, BATCH, len(data.train)), rates, first, 0.0, 0)
        return time.perf_counter() - began

    steps(0, WARM)
    waits.clear()
    seconds = steps(WARM, STEPS)
    return {"steps": STEPS, "seconds": seconds, "loaded": loaded, "waited": 100 * sum(waits) / seconds}


def keras_fit(folder: str) -> dict[str, float]:
    """As Keras' own guide has it, with the prefetch that it advises."""
    import keras
    import tensorflow as tf

    train = keras.utils.image_dataset_from_directory(folder, image_size=(SIDE, SIDE), batch_size=BATCH, verbose=False)
    train = train.map(lambda images, labels: (tf.cast(images, tf.uint8), labels)).repeat().prefetch(tf.data.AUTOTUNE)
    return timed_fit(residual(keras), train, WARM, STEPS)


def timed_fit(model: Any, data: Any, warm: int, steps: int) -> dict[str, float]:
    """Keras' fit on batches without end: steps before the clock, and steps under it."""
    import keras

    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=keras.optimizers.Adam(1e-3), loss=loss, metrics=["accuracy"])
    model.fit(data, steps_per_epoch=warm, epochs=1, verbose=0)
    began = time.perf_counter()
    model.fit(data, steps_per_epoch=steps, epochs=1, verbose=0)
    return {"steps": steps, "seconds": time.perf_counter() - began}


def texture(random: np.random.Generator) -> np.ndarray[Any, Any]:
    """What a photograph's detail is to a JPEG decoder: noise whose amplitude falls as 1/frequency (Field 1987), here
    with colours that mostly agree; float64 (SIDE, SIDE, 3), of mean 0 and deviation 1. 30 kB a picture, as photos have.
    """
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(SIDE), np.fft.fftfreq(SIDE)))
    frequency[0, 0] = 1
    noise = random.normal(size=(SIDE, SIDE, 1)) + 0.3 * random.normal(size=(SIDE, SIDE, 3))
    found = np.fft.ifft2(np.fft.fft2(noise, axes=(0, 1)) / frequency[..., np.newaxis], axes=(0, 1)).real
    return (found - found.mean()) / found.std()


def make(place: Path, count: int) -> None:
    """The same pictures twice: a folder a class of JPEG files, and what those hold as a compressed .npz file."""
    from PIL import Image
    from tests.support.large import images

    random = np.random.default_rng(0)
    textures = [texture(random) for _ in range(50)]

    x = np.empty((count, SIDE, SIDE, 3), np.uint8)
    for number in range(count):
        folder = place / "pictures" / str(number % CLASSES)
        folder.mkdir(parents=True, exist_ok=True)
        (pixels,) = images(np.array([number % CLASSES]), SIDE // 8, number)
        path = folder / f"{number}.jpg"
        picture = np.asarray(Image.fromarray(pixels).resize((SIDE, SIDE))) / 2 + 64 + 50 * textures[number % 50]
        Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(path, quality=90)
        x[number] = np.asarray(Image.open(path))
    y, few = np.arange(count) % CLASSES, 8 * CLASSES
    np.savez_compressed(place / "pictures.npz", x_train=x, y_train=y, x_test=x[:few], y_test=y[:few])


def compared() -> list[dict[str, Any]]:
    from .speed import program, ratios

    count = int(os.environ.get("BENCH_IMAGES", "4000"))
    section(f"{count:,} pictures of {SIDE}x{SIDE}x3: ours from the cache, Keras' from the folder")
    with tempfile.TemporaryDirectory() as place, home_in(place):
        make(Path(place), count)
        first = program("images", "ours", f"{place}/pictures.npz")
        size = sum(path.stat().st_size for path in Path(place, "mlruns/cache").iterdir())
        seconds: list[float] = []
        waited: list[float] = []

        def rate(*words: str) -> float:
            found = program("images", *words)
            seconds.extend([found["loaded"]] if "loaded" in found else [])
            waited.extend([found["waited"]] if "waited" in found else [])
            return BATCH * float(found["steps"] / found["seconds"])

        found = in_turn(
            {
                "ours": lambda: rate("ours", f"{place}/pictures.npz"),
                "keras": lambda: rate("keras", f"{place}/pictures"),
            }
        )
    return [
        row("images a second, ours from the cache", found["ours"], "1/s"),
        row("images a second, Keras' from JPEG files", found["keras"], "1/s"),
        row("ours against Keras'", ratios(found["ours"], found["keras"]), "x", 1.5, at_least=True),
        row("of our steps' time, waiting for images", waited, "%", 3),
        row("making the cache of a compressed .npz", [first["loaded"]], "s"),
        row("its size", [size / 1e6], "MB"),
        row("finding it again", seconds, "s"),
    ]


if __name__ == "__main__":
    print(json.dumps({"ours": ours, "keras": keras_fit}[sys.argv[1]](sys.argv[2]) | {"device": computed_on()}))
