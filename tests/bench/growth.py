"""Growth: what ten times as many steps, runs, trials and images cost, or more. Nothing may outgrow its work."""

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from .speed import Run
from .store import BEST, LIST, made_elsewhere, process
from .sweeps import memory, small_mnist, sweep
from .table import row, section

SMALL = ["model.num_filters=[2,4]", "model.fc_size=8", "training.batch_size=8", "pictures=false"]


def growth() -> list[dict[str, Any]]:
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        data = ["data=npz", small_mnist(place)]

        section("milliseconds a step of a small network, an evaluation every 100")
        for steps in (1000, 10_000, 100_000):
            run = Run(*data, *SMALL, f"training.max_steps={steps}", f"training.patience_steps={steps}")
            each = 1000 * (run.at(steps) - run.at(100)) / (steps - 100)
            rows += [
                row(f"a step of {steps:,}", [each], "ms"),
                row(f"most memory with {steps:,} steps", [run.megabytes], "MB"),
            ]

        section("a store with more and more runs")
        for runs in (10, 1000, 5000):
            uri = made_elsewhere(place / f"{runs}.db", runs)
            for what, words in (("bestrun runs", LIST), ("the look-up of best", ["-c", BEST])):
                rows.append(row(f"{what}, {runs:,} runs", [process(words, uri)[0] for _ in range(3)], "s"))

        section("a sweep of more and more trials, ten steps each")
        short = ["training.max_steps=10", "training.evaluate_every_steps=10", "training.patience_steps=10"]
        for trials in (10, 100):
            began = time.perf_counter()
            sweep(place, f"s{trials}", *data, *SMALL, *short, f"seed=range(0,{trials})")
            rows.append(row(f"a trial of {trials}", [(time.perf_counter() - began) / trials], "s"))
        found = memory(place, 500, *data, *SMALL, *short)
        rows.append(row("a trial of 500, by local workers", [found["seconds"] / 500], "s"))
        for name in ("scheduler", "worker"):
            more = 100 * (found[name] / found[f"{name}, early"] - 1)
            rows.append(row(f"most memory of a {name}, of 500 trials above the first 50", [more], "%", 5))

        section("more and more images from the cache, a small network")
        for images in (10_000, 100_000):
            out_of_memory = [f"data.path={random_images(place, images)}", "data.in_memory=false", "data=npz"]
            run = Run(*out_of_memory, *SMALL, "training.max_steps=2000", "training.patience_steps=2000")
            each = 1000 * (run.at(2000) - run.at(100)) / 1900
            rows += [
                row(f"a step of {images:,} images from the cache, evaluations of 1,000 with it", [each], "ms"),
                row(f"from the command to the first evaluation with {images:,} images", [run.at(0) - run.began], "s"),
                row(f"most memory with {images:,} images from the cache", [run.megabytes], "MB"),
            ]
    return rows


def random_images(place: Path, count: int) -> Path:
    """Images of 28x28 that compress, so that they are decoded into the cache, with as many to evaluate however many."""
    path, draw = place / f"{count}.npz", np.random.default_rng(0)
    arrays = {}
    for part, number in (("train", count), ("val", 1000), ("test", 1000)):
        arrays[f"x_{part}"] = draw.integers(0, 2, (number, 28, 28), np.uint8) * 255
        arrays[f"y_{part}"] = draw.integers(0, 10, number, np.uint8)
    np.savez_compressed(path, **arrays)
    return path
