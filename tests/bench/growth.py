"""Growth: what ten and a hundred times as many steps, runs and trials cost. Nothing may grow faster than its work."""

import tempfile
import time
from pathlib import Path
from typing import Any

from .speed import Run
from .store import BEST, LIST, made_elsewhere, process
from .sweeps import small_mnist, sweep
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
    return rows
